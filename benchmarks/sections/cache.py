"""Recording what every layer makes, against plain hooks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import mechint

from ..pairs import Question, Target
from ..shapes import HF, LAYERS, OURS, VOCABULARY, last, pair

RECORDED = ["layers.*.resid_post", "layers.*.scan_out"]
BARE = "mechint, nothing recorded"


@torch.no_grad()
def questions() -> Iterator[Question]:
    """Hugging Face has no module whose output is the scan's: a hook gets the gated one, on its way into out_proj."""
    theirs, ours = pair(LAYERS)
    tokens = torch.randint(0, VOCABULARY, (4, 256))

    def hooked() -> list[Tensor]:
        kept: list[Tensor] = []
        handles: list[Any] = []
        for layer in theirs.backbone.layers:
            handles.append(layer.register_forward_hook(lambda module, given, out: kept.append(out)))
            handles.append(layer.mixer.out_proj.register_forward_hook(lambda module, given, out: kept.append(given[0])))
        theirs(tokens, use_cache=False, logits_to_keep=1)
        for handle in handles:
            handle.remove()
        assert len(kept) == 2 * LAYERS
        return kept

    @torch.no_grad()
    def run(record: list[str]) -> Any:
        return mechint.run(ours, tokens, record, logits_at=last(tokens))

    yield Question(
        "cache",
        f"mamba-130m, all residuals and scan outputs recorded, {tokens.shape[0]} x {tokens.shape[1]} tokens",
        {OURS: lambda: run(RECORDED), BARE: lambda: run([]), HF: torch.no_grad()(hooked)},
        [
            Target(HF, OURS, 1.6),
            Target(OURS, BARE, 1.1, at_most=True),
            Target(OURS, HF, 1.0, at_most=True, of="memory"),
        ],
        rounds=3,
    )
