"""Derivatives of matrix memories against autograd through the recurrence written anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("transformers")

import mechint
from mechint.attribution.jacobians import lags, linearise
from mechint.attribution.memory_jacobians import LinearisedMemory, carried_queries, memories
from mechint.models.parts.mamba2 import Mamba2Mixer
from mechint.models.parts.recurrence import Recurrence
from mechint.models.stack import Stack
from mechint.utils.errors import MechintError
from tests.models.families.test_parity import error, prompt, random_model

FAMILIES = ["mamba2", "falcon_h1", "qwen3_5", "olmo_hybrid", "kimi_linear", "zamba2"]
"""One decay a head with and without a clamp, delta rules with β below 1 and 2, and a decay for every key."""


def with_memory(name: str, path: Path, kind: type = Recurrence) -> tuple[Stack, int, Any]:
    """The first random model with a matrix memory (or a part of that kind), the last layer that has one, and it."""
    for seed in range(6):
        model = random_model(name, seed, path / str(seed)).requires_grad_(False)
        for layer in reversed(range(model.num_layers)):
            for part in model.parts_of(layer).values():
                part = getattr(part, "mamba", part)
                if isinstance(part, kind):
                    return model, layer, part
    raise AssertionError(name)


def given(model: Stack, part: Any, layer: int, ids: Tensor) -> tuple[Tensor, ...]:
    """What the memory is given: channels behind the convolution [L, E], and numbers in front of softplus and σ."""
    names = {"conv", "dt", *["beta"] * part.erases}
    run = mechint.run(model, ids, [f"layers.{layer}.{name}" for name in names])
    at = {name: run[f"layers.{layer}.{name}"][0].detach() for name in names}
    if isinstance(part, Mamba2Mixer):
        limits = part.limits
        low = torch.where(at["dt"] <= limits[0], -20.0, at["dt"].expm1().clamp(min=1e-30).log())
        return part.activation(at["conv"]), low
    largest = 2.0 if part.doubled else 1.0
    return F.silu(at["conv"]), at["dt"].expm1().log(), torch.logit(at["beta"] / largest)


def forward(part: Any, channels: Tensor, low: Tensor, b: Tensor | None = None) -> Tensor:
    """What is read, [L, H · V], position by position with matrices."""
    H, K = part.heads, part.key_size
    if b is None:
        shared = part.groups * K
        u, key, query = channels.split([part.inner, shared, shared], -1)
        key, query = (x.unflatten(-1, (part.groups, K)).repeat_interleave(H // part.groups, 1) for x in (key, query))
        strength = F.softplus(low).clamp(*part.limits)
        dt = strength
    else:
        query, key, u = channels.split(part.sizes, -1)
        key, query = (
            x.unflatten(-1, (part.key_heads, K)).repeat_interleave(H // part.key_heads, 1) for x in (key, query)
        )
        key, query = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (key, query))
        query, dt = query / K**0.5, F.softplus(low)
        strength = torch.sigmoid(b) * (2 if part.doubled else 1)
    u = u.unflatten(-1, (H, -1))
    rate = torch.exp(part.A_log).reshape(-1, *[1] * (dt.dim() - 2))
    decay = torch.exp(-rate * dt).reshape(len(u), H, -1)  # [L, H, 1 or K]
    state, read = torch.zeros(H, K, u.shape[-1], dtype=u.dtype), []
    for t in range(len(u)):
        turn = torch.eye(K, dtype=u.dtype).expand(H, K, K)
        if b is not None:
            turn = turn - strength[t, :, None, None] * key[t].unsqueeze(-1) * key[t].unsqueeze(-2)
        write = key[t].unsqueeze(-1) * (strength[t, :, None] * u[t]).unsqueeze(-2)
        state = turn @ (decay[t].unsqueeze(-1) * state) + write
        read.append((query[t].unsqueeze(-1) * state).sum(-2) + (part.D[:, None] * u[t] if b is None else 0))
    return torch.stack(read).flatten(1)


def values_in(part: Any) -> slice:
    """The channels of the convolution that are values."""
    return slice(0, part.inner) if isinstance(part, Mamba2Mixer) else slice(sum(part.sizes[:2]), sum(part.sizes))


@pytest.mark.parametrize("name", FAMILIES)
def test_derivatives_are_autograds(name: str, tmp_path: Path) -> None:
    (model, layer, part), ids = with_memory(name, tmp_path), prompt(rows=1, length=6)
    inputs = given(model, part, layer, ids)
    recorded = mechint.run(model, ids, [f"layers.{layer}.y"])[f"layers.{layer}.y"]
    assert error(forward(part, *inputs), recorded[0].flatten(1)) <= 1e-9
    jacobians = torch.autograd.functional.jacobian(lambda *x: forward(part, *x), inputs)  # [L, channel, L, …] each
    local = linearise(model, ids, layer)
    assert isinstance(local, LinearisedMemory)
    seen = set()
    for slab in lags(local, 5):
        for t in range(slab.lag, 6):
            by = [jacobian[t, :, t - slab.lag].flatten(1) for jacobian in jacobians]
            own = by[0][:, values_in(part)].diagonal()
            total = torch.cat(by, 1).square().sum(1).sqrt()
            at = t - slab.first
            for path, wanted in (("direct", own), ("total", own)):
                torch.testing.assert_close(slab.own[path][0, at], wanted, rtol=1e-8, atol=1e-11)
            torch.testing.assert_close(slab.norm["direct"][0, at], own.abs(), rtol=1e-8, atol=1e-11)
            torch.testing.assert_close(slab.norm["total"][0, at], total, rtol=1e-7, atol=1e-10)
            seen.add((t, slab.lag))
    assert seen == {(t, lag) for t in range(6) for lag in range(t + 1)}


@pytest.mark.parametrize("name", ["mamba2", "qwen3_5", "kimi_linear"])
def test_a_carried_query_is_the_derivative_by_the_state(name: str, tmp_path: Path) -> None:
    """What a run reads when a state is moved, over how far it was moved."""
    (model, layer, part), ids = with_memory(name, tmp_path), prompt(rows=1, length=5)
    local = linearise(model, ids, layer)
    assert isinstance(local, LinearisedMemory)
    site = f"layers.{layer}.scan_out"
    clean = mechint.run(model, ids, [site, f"layers.{layer}.state"])
    assert error(memories(local), clean[f"layers.{layer}.state"]) <= 1e-12
    move = torch.randn(part.heads, part.key_size, part.value_size, dtype=torch.float64)
    for lag, carried in enumerate(carried_queries(local, 4)):
        for source in range(5 - lag):
            edit = mechint.Edit(f"layers.{layer}.state", "add", move, positions=[source])
            moved = mechint.run(model, ids, [site], [edit])[site] - clean[site]
            wanted = torch.einsum("hk,hkv->hv", carried[0, source], move)
            torch.testing.assert_close(moved[0, source + lag], wanted, rtol=1e-9, atol=1e-11)


def test_rows_are_alone_and_several_prompts_are_each_of_them(tmp_path: Path) -> None:
    (model, layer, _), ids = with_memory("qwen3_5", tmp_path), prompt(rows=3, length=5)
    found: dict[tuple[int, int], Tensor] = {}
    for slab in lags(linearise(model, ids, layer), 2):
        assert slab.rows.stop == slab.rows.start + 1
        found[slab.rows.start, slab.lag] = slab.norm["total"]
    for row in range(3):
        for slab in lags(linearise(model, ids[row : row + 1], layer), 2):
            torch.testing.assert_close(found[row, slab.lag], slab.norm["total"])


def test_states_of_matrix_memories_are_refused(tmp_path: Path) -> None:
    model, layer, _ = with_memory("mamba2", tmp_path)
    local = linearise(model, prompt(), layer)
    with pytest.raises(MechintError, match="one number of a channel"):
        next(iter(lags(local, 2, "state")))
    with pytest.raises(MechintError, match="max_lag is 11"):
        next(iter(lags(local, 11)))
