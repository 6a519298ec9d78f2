"""A site recorded at some positions is what the whole record has there, and nothing else is held."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mechint
from mechint.interventions.edits import Edit
from mechint.interventions.run import generate, run
from mechint.utils.errors import MechintError
from mechint.utils.memory import peak_bytes
from tests.helpers.builders import tiny_gpt2, tiny_mamba, tokens
from tests.helpers.judges.base import judged
from tests.models.families.test_parity import JUDGES

LENGTH = 7


def at(names: Iterable[str], positions: list[int]) -> dict[str, list[int]]:
    return {name: positions for name in names}


FAMILIES = ("mamba", "gpt2", "mamba2", "falcon_h1", "qwen3_next", "kimi_linear", "lfm2", "jamba")


def model_of(family: str, path: Path, dtype: torch.dtype = torch.float32) -> Any:
    small = {"mamba": tiny_mamba, "gpt2": tiny_gpt2}
    if family in small:
        return small[family](3, dtype).requires_grad_(False)
    judged(JUDGES[family], 2).save_pretrained(path / family)
    return mechint.load(path / family, dtype=dtype).requires_grad_(False)


@pytest.mark.parametrize("family", FAMILIES)
def test_some_positions_are_those_of_the_whole_record(family: str, tmp_path: Path) -> None:
    model, ids = model_of(family, tmp_path), tokens(2, LENGTH)
    every = [name for name in model.sites if not name.endswith("logits")]
    whole = run(model, ids, record=every)
    for positions in ([0], [2, -1, 5], [3, 3], []):
        found = run(model, ids, record=at(every, positions))
        places = sorted({p % LENGTH for p in positions})
        assert found.keys() == whole.keys()
        assert torch.equal(found.logits, whole.logits)
        for name in every:
            assert torch.equal(found[name], whole[name][:, places]), (name, positions)
    # states alone: the recurrence stops at them and holds no other
    states = [name for name in every if name.endswith(".state")]
    found = run(model, ids, record=at(states, [1, 4]))
    assert torch.equal(found.logits, whole.logits)
    assert all(torch.equal(found[name], whole[name][:, [1, 4]]) for name in states)


@pytest.mark.parametrize("family", ["mamba", "mamba2", "qwen3_next"])
def test_edits_of_states_and_their_records_meet(family: str, tmp_path: Path) -> None:
    model, ids = model_of(family, tmp_path), tokens(2, LENGTH)
    states = [name for name in model.sites if name.endswith(".state")]
    shape = model.sites[states[0]].units
    value = torch.randn(2, 1, *shape, generator=torch.Generator().manual_seed(1))
    edits = [Edit(states[0], "replace", value, positions=[2]), Edit(states[-1], "scale", 0.5, positions=[4])]
    whole = run(model, ids, record=states, edits=edits)  # position by position
    found = run(model, ids, record=at(states, [2, 3, 4, -1]), edits=edits)  # stopped there alone
    alone = run(model, ids, edits=edits)
    assert torch.equal(found.logits, whole.logits) and torch.equal(alone.logits, whole.logits)
    assert torch.equal(found[states[0]][:, 0], value[:, 0])
    for name in states:
        assert torch.equal(found[name], whole[name][:, [2, 3, 4, LENGTH - 1]])


@given(st.integers(0, 10_000), st.integers(1, 9), st.data())
def test_any_positions_behind_a_cache(seed: int, length: int, data: st.DataObject) -> None:
    model, ids = tiny_mamba(seed % 5).requires_grad_(False), tokens(2, length, seed)
    split = data.draw(st.integers(0, length - 1))
    positions = data.draw(st.lists(st.integers(split, length - 1), max_size=4))
    cache = run(model, ids[:, :split]).cache if split else None
    sites = ["layers.*.state", "layers.*.conv_state", "layers.1.dt", "embed"]
    whole = run(model, ids, record=sites)
    found = run(model, ids[:, split:], record=at(sites, positions), cache=cache)
    for name in found:
        got, wanted = found[name], whole[name][:, sorted(set(positions))]
        assert got.shape == wanted.shape
        assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["mamba", "gpt2", "qwen3_next"])
def test_a_generation_records_its_positions(family: str, tmp_path: Path) -> None:
    model, ids = model_of(family, tmp_path), tokens(2, 4)
    every = [name for name in model.sites if name.startswith("layers.")]
    whole = generate(model, ids, 3, record=every)
    found = generate(model, ids, 3, record=at(every, [1, 4, -1]))
    assert torch.equal(found.tokens, whole.tokens)
    for name in every:
        assert torch.equal(found.values[name], whole.values[name][:, [1, 4, 5]]), name


def test_patterns_join_and_all_positions_win() -> None:
    model, ids = tiny_mamba(0).requires_grad_(False), tokens(1, LENGTH)
    found = run(model, ids, record={"layers.*.u": [0], "layers.1.u": [3], "layers.0.dt": None, "layers.*.dt": [2]})
    lengths = {name: found[name].shape[1] for name in found}
    assert lengths == {"layers.0.u": 1, "layers.0.dt": LENGTH, "layers.1.u": 2, "layers.1.dt": 1}


def test_gradients_at_recorded_positions_are_those_of_the_whole() -> None:
    model, ids = tiny_mamba(0, torch.float64).requires_grad_(True), tokens(2, LENGTH)
    whole = run(model, ids, record=["layers.1.u"])
    some = run(model, ids, record={"layers.1.u": [2, 5]})
    (wanted,) = torch.autograd.grad(whole.logits.square().sum(), whole["layers.1.u"])
    (got,) = torch.autograd.grad(some.logits.square().sum(), some["layers.1.u"])
    assert torch.allclose(got, wanted[:, [2, 5]], rtol=1e-10)


@pytest.mark.parametrize("position", [7, -8, 100])
def test_a_position_that_is_not_there_is_refused(position: int) -> None:
    model, ids = tiny_mamba(0).requires_grad_(False), tokens(1, LENGTH)
    with pytest.raises(MechintError, match=r"position -?\d+ is not in this run, which has the positions 0 … 6"):
        run(model, ids, record={"layers.0.state": [position]})


@pytest.mark.parametrize("positions", [3, 1.5, [0.5], "12", torch.ones(2)])
def test_positions_are_whole_numbers(positions: Any) -> None:
    model, ids = tiny_mamba(0).requires_grad_(False), tokens(1, LENGTH)
    with pytest.raises(MechintError, match=r"record of 'embed': positions are a list of whole numbers or None, not"):
        run(model, ids, record={"embed": positions})


def test_a_position_before_the_cache_is_refused() -> None:
    model, ids = tiny_mamba(0).requires_grad_(False), tokens(1, LENGTH)
    with pytest.raises(MechintError, match="position 1 is not in this run, which has the positions 4 … 6"):
        run(model, ids[:, 4:], record={"embed": [1]}, cache=run(model, ids[:, :4]).cache)


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_one_state_of_a_long_prompt_needs_little_memory(family: str, tmp_path: Path) -> None:
    model, ids = model_of(family, tmp_path), tokens(1, 256)
    states = [name for name in model.sites if name.endswith(".state")]
    peak = lambda record: peak_bytes(lambda: run(model, ids, record=record, logits_at=ids[:, :1]))
    none, one, whole = (peak(record) for record in ([], at(states, [-1]), states))
    assert one < 2.5 * none
    assert one < 0.8 * whole
