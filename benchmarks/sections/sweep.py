"""A ROME map: the clean residual put back at every layer and position of ten noised runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import mechint
from mechint import Edit
from mechint.interventions.sweep import sweep

from ..pairs import Question, Target
from ..shapes import HF, LAYERS, LOOP, OURS, VOCABULARY, WIDTH, pair


@torch.no_grad()
def questions() -> Iterator[Question]:
    theirs, ours = pair(LAYERS)
    length, draws, subject = 12, 10, [4, 5, 6]
    clean = torch.randint(0, VOCABULARY, (1, length))
    donor = mechint.run(ours, clean, ["layers.*.resid_post"])
    noise = torch.randn(draws, len(subject), WIDTH)
    prompts = clean.repeat(draws, 1)
    base = [Edit("embed", "add", noise, positions=subject)]
    last = torch.full((draws, 1), length - 1)
    cells = [
        [Edit(site, "replace", donor[site][:, p : p + 1], positions=[p])]
        for site in donor.values
        for p in range(length)
    ]
    metric = lambda logits: logits[..., 0, :].log_softmax(-1)[..., 7]
    some = cells[:: len(cells) // 6]

    def loop() -> list[Tensor]:
        return [metric(mechint.run(ours, prompts, [], [*base, *cell], logits_at=last).logits) for cell in some]

    def hooked() -> None:
        for cell in some[:3]:
            edit = cell[0]
            layer, position = int(edit.site.split(".")[1]), (edit.positions or [0])[0]

            def corrupt(module: Any, given: Any, out: Tensor) -> Tensor:
                out = out.clone()
                out[:, subject] += noise
                return out

            def restore(module: Any, given: Any, out: Tensor, position: int = position, edit: Edit = edit) -> Tensor:
                out = out.clone()
                out[:, position] = edit.value[:, 0]  # type: ignore[index]
                return out

            handles = [
                theirs.backbone.embeddings.register_forward_hook(corrupt),
                theirs.backbone.layers[layer].register_forward_hook(restore),
            ]
            metric(theirs(prompts, use_cache=False, logits_to_keep=1).logits)
            for handle in handles:
                handle.remove()

    yield Question(
        "sweep",
        f"mamba-130m ROME map: {len(cells)} cells, {draws} noised runs of {length} tokens, subject {subject}",
        {
            OURS: lambda: sweep(ours, prompts, cells, metric, base=base, logits_at=last, memory_mib=1024),
            LOOP: loop,
            HF: hooked,
        },
        [Target(LOOP, OURS, 7.0), Target(HF, OURS, 25.0)],
        {LOOP: len(cells) / len(some), HF: len(cells) / 3},
        rounds=3,
    )
