"""Single units of one layer, all ablated; and the exact decomposition of a block into its tokens.

What a unit does is exact only when every layer above it is run again, so a sweep gains from the layers below, and what
it saves inside the layer: most in the last one, where a changed channel is one column of the output projection, and in
the middle about 24 / 11.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

import mechint
from mechint import Edit
from mechint.attribution.decomposition import decompose
from mechint.interventions.sweep import sweep

from ..pairs import Limit, Question, Target
from ..shapes import INNER, LAYERS, LOOP, OURS, VOCABULARY, last, model

SOME = 12
"""Units that the loop is timed on."""
MIDDLE = 48
"""Units of the middle layer that the sweep is timed on."""


@torch.no_grad()
def questions() -> Iterator[Question]:
    ours = model(LAYERS)
    tokens = torch.randint(0, VOCABULARY, (8, 32))
    at = last(tokens)

    def metric(logits: Tensor) -> Tensor:
        return logits[..., -1, :].log_softmax(-1)[..., 7]

    for layer, swept, bound in ((LAYERS - 1, INNER, 20.0), (LAYERS // 2, MIDDLE, 1.8)):
        site = f"layers.{layer}.gated"
        cells = [[Edit(site, "replace", 0.0, units=[e])] for e in range(INNER)]
        some, tried = cells[:: INNER // SOME], cells[:: INNER // swept]

        def loop(cells: list[list[Edit]] = some) -> list[Tensor]:
            return [metric(mechint.run(ours, tokens, edits=cell, logits_at=at).logits) for cell in cells]

        yield Question(
            "units",
            f"mamba-130m, every channel of layer {layer} ablated alone: {INNER} cells of 8 prompts of 32 tokens",
            {
                OURS: lambda cells=tried: sweep(ours, tokens, cells, metric, logits_at=at, memory_mib=2048),
                LOOP: loop,
            },
            [Target(LOOP, OURS, bound)],
            scale={LOOP: INNER / len(some), **({OURS: INNER / len(tried)} if swept < INNER else {})},
            rounds=2,
            limit=90.0,
            cold=(OURS, LOOP),
        )
    one = model(1)
    prompt = torch.randint(0, VOCABULARY, (1, 256))
    yield Question(
        "units",
        "mamba-130m, exact decomposition of one layer, 256 tokens",
        {OURS: lambda: decompose(one, prompt, 0)},
        [Limit(OURS, 2048.0, "MiB")],
        rounds=2,
    )
