"""The derivatives of one layer of mamba-130m's scan, by lag, against one backward for each output."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from mechint.attribution.jacobians import lags, linearise
from mechint.scan.selective import selective_scan

from ..pairs import Limit, Question, Target
from ..shapes import INNER, RANK, STATES, model

LENGTH, LAGS, VOCABULARY, SAMPLE = 512, 64, 4096, 8
OURS, LOOP = "mechint, every channel and lag", "a backward for each output"


def questions() -> Iterator[Question]:
    """The loop does a few of the length × channels outputs; its time is multiplied up, as each costs the same."""
    layer = model(1, VOCABULARY)
    tokens = torch.randint(0, VOCABULARY, (1, LENGTH))
    local, mixer = linearise(layer, tokens, 0), layer.layers[0]
    places = torch.stack([torch.linspace(0, LENGTH - 1, SAMPLE).long(), torch.randint(0, INNER, (SAMPLE,))], 1)

    def ours() -> float:
        return sum(float(slab.norm["total"].sum()) for slab in lags(local, LAGS))

    def loop() -> list[Tensor]:
        u = local.u.clone().requires_grad_()
        low, B, C = mixer.x_proj(u).split([RANK, STATES, STATES], -1)
        dt = F.softplus(mixer.dt_proj(low))
        y = selective_scan(u, dt, local.A, B, C)[0] + local.D * u
        return [torch.autograd.grad(y[0, t, e], u, retain_graph=True)[0] for t, e in places.tolist()]

    yield Question(
        "temporal",
        f"derivatives of all {INNER} channels' y by u, lags 0 to {LAGS} at {LENGTH} positions, own and over all inputs",
        {OURS: ours, LOOP: loop},
        [Target(LOOP, OURS, 20.0), Limit(OURS, 2048.0, "MiB")],
        scale={LOOP: LENGTH * INNER / SAMPLE},
        rounds=3,
    )
