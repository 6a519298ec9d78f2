"""Dynamics of matrix memories against brute force: impulses, real drops, and how squares of states shrink."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

import mechint
from mechint.attribution import memory_modes
from mechint.attribution.dynamics import OfScan, dynamics, effective_memory
from mechint.attribution.jacobians import linearise
from mechint.attribution.memory_jacobians import LinearisedMemory, memories
from mechint.attribution.modes import ModeGram
from mechint.utils.errors import MechintError
from tests.attribution.test_memory_jacobians import with_memory
from tests.helpers.builders import tiny_mamba, tokens
from tests.models.families.test_parity import error, prompt

NAMES = pytest.mark.parametrize("name", ["mamba2", "olmo_hybrid", "kimi_linear"])


@NAMES
def test_gramians_are_sums_over_impulses(name: str, tmp_path: Path) -> None:
    """The state's answer to a write of one value, and what is read later of a state with one entry, in runs."""
    (model, layer, part), ids, at = with_memory(name, tmp_path), prompt(rows=1, length=6), 3
    local = linearise(model, ids, layer)
    assert isinstance(local, LinearisedMemory)
    found = memory_modes.gramians(local, at)
    state, read = f"layers.{layer}.state", f"layers.{layer}.scan_out"
    clean = mechint.run(model, ids, [state, read])
    W = torch.zeros(part.heads, part.key_size, part.key_size, dtype=torch.float64)
    unit = torch.zeros(part.heads, part.value_size, dtype=torch.float64)
    unit[:, 0] = 1
    for source in range(at + 1):
        size = local.strength[0, source].unsqueeze(-1)
        edit = mechint.Edit(f"layers.{layer}.value", "add", size * unit, positions=[source])
        answer = mechint.run(model, ids, [state], [edit])[state] - clean[state]
        W += torch.einsum("hk,hl->hkl", answer[0, at, :, :, 0], answer[0, at, :, :, 0])
    M = torch.zeros_like(W)
    answers = []
    for key in range(part.key_size):
        move = torch.zeros(part.heads, part.key_size, part.value_size, dtype=torch.float64)
        move[:, key, 0] = 1
        edit = mechint.Edit(state, "add", move, positions=[at])
        answers.append((mechint.run(model, ids, [read], [edit])[read] - clean[read])[0, at:, :, 0])
    M = torch.einsum("kth,lth->hkl", torch.stack(answers), torch.stack(answers))
    assert error(found.controllability[0], W) <= 1e-9
    assert error(found.observability[0], M) <= 1e-9
    with pytest.raises(MechintError, match="position 6 does not exist"):
        memory_modes.gramians(local, 6)


@NAMES
def test_the_gram_predicts_real_drops_of_key_channels(name: str, tmp_path: Path) -> None:
    (model, layer, part), ids = with_memory(name, tmp_path), prompt(rows=2, length=5)
    local = linearise(model, ids, layer)
    assert isinstance(local, LinearisedMemory)
    gram = memory_modes.mode_gram(local)
    read = f"layers.{layer}.scan_out"
    clean = mechint.run(model, ids, [read])[read]
    alone, refitted = memory_modes.dropped_alone(gram)
    for key in range(part.key_size):
        keep = torch.ones(part.heads, part.key_size, part.value_size, dtype=torch.float64)
        keep[:, key] = 0
        edit = mechint.Edit(f"layers.{layer}.readout", "mask", keep)
        real = (mechint.run(model, ids, [read], [edit])[read] - clean).square().mean((0, 1)).flatten()
        torch.testing.assert_close(alone[key], real, rtol=1e-8, atol=1e-13)
        drop = torch.zeros(local.width, part.key_size)
        drop[:, key] = 1
        torch.testing.assert_close(refitted[key], gram.drop_refitted(drop), rtol=1e-5, atol=1e-10)


def test_what_others_replace_wholly_is_no_loss() -> None:
    """Of two modes that always do the same each can be spared; a mode that does nothing, too."""
    gram = torch.tensor([[[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 4, 0], [0, 0, 0, 0]]], dtype=torch.float64)
    alone, refitted = memory_modes.dropped_alone(ModeGram(gram, 1))
    assert alone[:, 0].tolist() == [1, 1, 4, 0]
    torch.testing.assert_close(refitted[:, 0], torch.tensor([0.0, 0, 4, 0], dtype=torch.float64))


@NAMES
def test_a_channel_forgets_as_the_square_of_its_state_shrinks(name: str, tmp_path: Path) -> None:
    (model, layer, part), ids = with_memory(name, tmp_path), prompt(rows=2, length=6)
    local = linearise(model, ids, layer)
    assert isinstance(local, LinearisedMemory)
    held, shrunk = memories(local), []
    for t in range(1, 6):
        kept = memory_modes.transition(local, t) @ held[:, t - 1]
        shrunk.append((held[:, t - 1].square().sum(-2) / kept.square().sum(-2)).log() / 2)
    wanted = 1 / torch.stack(shrunk).mean(0).flatten(1)
    torch.testing.assert_close(effective_memory(local), wanted, rtol=1e-7, atol=1e-9)
    if not part.erases:
        rate = (torch.exp(part.A_log) * local.strength)[:, 1:].mean(1)
        torch.testing.assert_close(wanted.view(2, part.heads, -1)[..., 0], 1 / rate)
    with pytest.raises(MechintError, match="two tokens or more"):
        effective_memory(linearise(model, ids[:, :1], layer))


@NAMES
def test_dynamics_describe_heads_and_groups(name: str, tmp_path: Path) -> None:
    (model, layer, part), ids = with_memory(name, tmp_path), prompt(rows=12, length=6)
    local = linearise(model, ids, layer)
    found = dynamics(local, {"mine": [0, local.width - 1]}, draws=20)
    assert found["tau_of"] == ("key channel" if part.key_decay else "head")
    assert len(found["tau"]) == (part.key_size if part.key_decay else part.heads)
    rate = -local.log_decay.flatten(0, 1).mean(0)  # [head] or [head, key]
    decay = local.log_decay.exp().flatten(0, 1).mean(0)
    tau, decay = (x.mean(0) if part.key_decay else x for x in (1 / rate, decay))
    assert found["tau"] == pytest.approx(tau.tolist()) and found["decay_now"] == pytest.approx(decay.tolist())
    mine, every = found["groups"]["mine"], found["groups"]["all channels"]
    assert mine["channels"] == [0, local.width - 1] and len(every["memory_tokens"]) == local.width
    assert len(every["drop_error"]) == found["states"] == part.key_size
    pairs = zip(every["drop_error_refitted"], every["drop_error"], strict=True)
    assert all(0 <= refitted <= alone * (1 + 1e-9) + 1e-12 for refitted, alone in pairs)
    assert found["hankel_rank"] == len(found["hankel"]) <= min(part.key_size, 3 + 1)
    low, value, high = (every["memory"][which] for which in ("low", "value", "high"))
    assert low <= value <= high


@NAMES
def test_the_variation_of_time_constants_by_hand(name: str, tmp_path: Path) -> None:
    """The range from the 10 % to the 90 % quantile of 1 / rate, over the median; the mean over a head's keys."""
    (model, layer, _), ids = with_memory(name, tmp_path), prompt(rows=3, length=5)
    local = linearise(model, ids, layer)
    assert isinstance(local, LinearisedMemory)
    rate = -local.log_decay.double().numpy()
    rate = rate.reshape(15, rate.shape[2], -1)  # [prompt · position, head, key or 1]
    low, middle, high = (1 / np.quantile(rate, share, axis=0) for share in (0.9, 0.5, 0.1))
    wanted = ((high - low) / middle).mean(-1).repeat(local.u.shape[-1])
    assert memory_modes.time_scales(local)["variation"].tolist() == pytest.approx(wanted.tolist(), rel=1e-9)


@NAMES
def test_time_constants_of_what_never_decays_are_finite_and_do_not_vary(name: str, tmp_path: Path) -> None:
    (model, layer, _), ids = with_memory(name, tmp_path), prompt(rows=2, length=4)
    local = linearise(model, ids, layer)
    assert isinstance(local, LinearisedMemory)
    found = memory_modes.time_scales(dataclasses.replace(local, log_decay=torch.zeros_like(local.log_decay)))
    assert (found["mean"] >= 1e299).all() and found["mean"].isfinite().all() and not found["variation"].any()


def test_drops_of_a_scan_are_those_of_its_gram() -> None:
    local = linearise(tiny_mamba(0, torch.float64), tokens(2, 5), 0)
    found, mine = OfScan.of(local, 2), torch.tensor([1, 3])
    alone, refitted = found.lost(mine)
    wanted, wanted_refitted = memory_modes.dropped_alone(ModeGram(found.gram.gram[mine], 1))
    torch.testing.assert_close(alone, wanted.sum(-1))
    torch.testing.assert_close(refitted, wanted_refitted.sum(-1), rtol=1e-4, atol=1e-12)
