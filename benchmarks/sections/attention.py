"""The hidden attention of one layer of mamba-130m: the layer, and each way to reduce its maps."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mechint.scan import attention_map

from ..pairs import Limit, Question
from ..shapes import FLOOR, INNER, STATES, WIDTH, model

LENGTH, VOCABULARY = 1024, 4096


def questions() -> Iterator[Question]:
    """Bounds in seconds and MiB are those asked of two cores, for a map whose channels are added up."""
    ours = model(1, VOCABULARY)
    tokens = torch.randint(0, VOCABULARY, (1, LENGTH))
    direction = torch.randn(WIDTH)
    queries, keys = torch.randn(LENGTH, INNER * STATES), torch.randn(INNER * STATES, LENGTH)
    reduced = ["mechint, weights", "mechint, direction"]
    yield Question(
        "attention",
        f"hidden attention of one layer of mamba-130m, {LENGTH} x {LENGTH} positions",
        {
            reduced[0]: lambda: attention_map(ours, tokens, 0),
            reduced[1]: lambda: attention_map(ours, tokens, 0, "direction", direction=direction),
            "mechint, eight channels": lambda: attention_map(ours, tokens, 0, "channels", channels=range(8)),
            FLOOR: lambda: queries @ keys,
        },
        [limit for name in reduced for limit in (Limit(name, 10.0), Limit(name, 2048.0, "MiB"))],
        rounds=3,
    )
    short = tokens[:, : LENGTH // 4]
    yield Question(
        "attention",
        f"energy through W_out, {WIDTH} numbers for each pair and channel, {LENGTH // 4} x {LENGTH // 4} positions",
        {"mechint, energy": lambda: attention_map(ours, short, 0, "energy")},
        [Limit("mechint, energy", 2048.0, "MiB")],
        rounds=3,
    )
