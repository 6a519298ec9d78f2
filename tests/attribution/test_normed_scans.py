"""Derivatives of selective scans whose Δ, B and C are normed (Falcon-Mamba, Jamba), against autograd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("transformers")

from mechint.attribution.dynamics import dynamics
from mechint.attribution.jacobians import Linearised, jacobian, lags, linearise
from mechint.models.parts.mamba1 import Mamba1Mixer
from mechint.utils.errors import MechintError
from tests.attribution.test_memory_jacobians import with_memory
from tests.models.families.test_parity import prompt


def normed(module: Any, x: Tensor) -> Tensor:
    weight = getattr(module, "weight", None)
    return x / (x.square().mean(-1, keepdim=True) + module.eps).sqrt() * (1 if weight is None else weight)


def read(part: Mamba1Mixer, u: Tensor) -> Tensor:
    """y [L, E] of u [L, E]."""
    norms = (part.dt_layernorm, part.b_layernorm, part.c_layernorm)
    low, B, C = (normed(*pair) for pair in zip(norms, part.x_proj(u).split(part.sizes, -1), strict=True))
    dt, A = F.softplus(part.dt_proj(low)), -torch.exp(part.A_log)
    h, out = torch.zeros_like(A), []
    for t in range(len(u)):
        h = torch.exp(dt[t, :, None] * A) * h + (dt[t] * u[t])[:, None] * B[t]
        out.append(h @ C[t] + part.D * u[t])
    return torch.stack(out)


@pytest.mark.parametrize("name", ["falcon_mamba", "jamba"])
def test_derivatives_are_autograds(name: str, tmp_path: Path) -> None:
    (model, layer, part), ids = with_memory(name, tmp_path, Mamba1Mixer), prompt(rows=1, length=6)
    local = linearise(model, ids, layer)
    assert isinstance(local, Linearised)
    whole = torch.autograd.functional.jacobian(lambda u: read(part, u), local.u[0])  # [L, E, L, E]
    for slab in lags(local, 5, chunk=2):
        for k in range(slab.norm["total"].shape[1]):
            t = slab.first + k
            wanted = whole[t, :, t - slab.lag]
            torch.testing.assert_close(slab.own["total"][0, k], wanted.diagonal(), rtol=1e-8, atol=1e-11)
            torch.testing.assert_close(slab.norm["total"][0, k], wanted.norm(dim=-1), rtol=1e-7, atol=1e-10)
    assert dynamics(local, {}, draws=20)["states"] == part.A_log.shape[1]
    for refused in (lambda: jacobian(local, [0], 2), lambda: next(iter(lags(local, 2, "state")))):
        with pytest.raises(MechintError, match="where Δ, B and C are normed"):
            refused()
