"""A circuit's own channels are all that a Mamba-1 mixer computes, and the numbers are those of the whole mixer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import mechint
from mechint.analyses.circuits.search.gates import GATES
from mechint.analyses.circuits.search.learning import Search, SearchOptions
from mechint.interventions.edits import Edit, check_edits
from mechint.interventions.run import read_by_head, run
from mechint.interventions.sweep import sweep
from mechint.interventions.taps import Tap
from mechint.interventions.unit_kinds import SSM_UNITS
from mechint.interventions.units import Units
from mechint.models.parts import mamba1, mamba1_kept
from tests.helpers import circuits
from tests.helpers.builders import tiny_mamba, tokens
from tests.helpers.judges.base import judged
from tests.models.families.test_parity import JUDGES

LENGTH = 6


class Counted:
    """Runs mixers by their kept channels however small they are, and counts them."""

    def __init__(self) -> None:
        self.kept: list[int] = []

    def __call__(self, mixer: Any, n: Tensor, cache: Any, at: Any, kept: Tensor) -> Tensor:
        self.kept.append(len(kept))
        return mamba1_kept.mix_kept(mixer, n, cache, at, kept)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    counter = Counted()
    monkeypatch.setattr(mamba1_kept, "LEAST_WORK", 0)
    monkeypatch.setattr(mamba1, "mix_kept", counter)
    return counter


def whole(compute: Callable[[], Any]) -> Any:
    """The same by whole mixers."""
    with mock.patch.object(mamba1_kept, "LEAST_WORK", 1 << 62):
        return compute()


def model_of(family: str, path: Path, dtype: torch.dtype = torch.float64) -> Any:
    if family == "mamba":
        return tiny_mamba(3, dtype).requires_grad_(False)
    found = []
    for seed in range(6):
        judged(JUDGES[family], seed).save_pretrained(path / str(seed))
        found.append(mechint.load(path / str(seed), dtype=dtype))
    return next(model for model in found if "channel" in model.unit_kinds).requires_grad_(False)


def close(got: Tensor, wanted: Tensor, tolerance: float = 1e-12) -> None:
    got, wanted = got.detach(), wanted.detach()
    assert float((got - wanted).abs().max()) <= tolerance * float(wanted.abs().max())


def mask_of(units: Units, share: float, seed: int, soft: bool = False) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    mask = (torch.rand(units.total, generator=random, dtype=torch.float64) < share).double()
    return mask * torch.rand(units.total, generator=random, dtype=torch.float64).clamp(min=0.1) if soft else mask


FILLS: dict[str, Callable[[Tensor], Any]] = {
    "zero": lambda x: 0.0,
    "mean": lambda x: x.mean((0, 1), keepdim=True)[0],
    "mean by position": lambda x: x.mean(0),
    "another prompt": lambda x: x.roll(1, 0),
}


def fills_of(model: Any, units: Units, ids: Tensor, way: str) -> dict[str, Any]:
    return {site: FILLS[way](x) for site, x in run(model, ids, record=units.sites).values.items()}


@pytest.mark.parametrize("family", ["mamba", "falcon_mamba", "jamba"])
@pytest.mark.parametrize("way", FILLS)
def test_masks_give_the_whole_mixers_numbers(family: str, way: str, tmp_path: Path, counted: Counted) -> None:
    model = model_of(family, tmp_path)
    units, ids = Units(model, SSM_UNITS["channel"]), tokens(3, LENGTH)
    for seed, share, soft in ((0, 0.1, False), (1, 0.3, True), (2, 0.5, False)):
        edits = units.edits(mask_of(units, share, seed, soft), fills_of(model, units, ids, way))
        read = lambda edits=edits: read_by_head(model, ids, edits, torch.tensor([[0, LENGTH - 1]] * 3))
        close(read(), whole(read))
    assert counted.kept
    assert max(counted.kept) <= mamba1_kept.MOST_KEPT * units.per_layer


@given(st.integers(0, 10_000), st.floats(0.0, 1.0), st.sampled_from(list(FILLS)), st.integers(1, 4), st.integers(1, 9))
def test_any_mask_of_any_shape(seed: int, share: float, way: str, rows: int, length: int) -> None:
    model = tiny_mamba(seed % 7, torch.float64).requires_grad_(False)
    units, ids = Units(model, SSM_UNITS["channel"]), tokens(rows, length, seed)
    edits = units.edits(mask_of(units, share, seed, seed % 2 == 0), fills_of(model, units, ids, way))
    read = lambda: read_by_head(model, ids, edits, torch.arange(length).expand(rows, -1))
    wanted = whole(read)
    with mock.patch.object(mamba1_kept, "LEAST_WORK", 0):
        close(read(), wanted)


@pytest.mark.parametrize("empty", [[0], [1], [0, 1]])
def test_layers_without_a_channel(empty: list[int], counted: Counted) -> None:
    model = tiny_mamba(2, torch.float64).requires_grad_(False)
    units, ids = Units(model, SSM_UNITS["channel"]), tokens(3, LENGTH)
    fills = fills_of(model, units, ids, "mean by position")

    def read() -> tuple[Tensor, Tensor]:
        mask = mask_of(units, 0.25, 5).requires_grad_()
        with torch.no_grad():
            for layer in empty:
                mask[layer * units.per_layer : (layer + 1) * units.per_layer] = 0.0
        edits = [dataclasses.replace(edit, zeros_fixed=True) for edit in units.edits(mask, fills)]
        found = read_by_head(model, ids, edits, torch.full((3, 1), LENGTH - 1))
        return found, torch.autograd.grad(found[..., 0].sum(), mask)[0] * (mask.detach() > 0)

    (got, slope), (wanted, before) = read(), whole(read)
    assert counted.kept.count(0) == len(empty)
    close(got, wanted)
    close(slope, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_open_gates_are_the_whole_mixers(dtype: torch.dtype, counted: Counted) -> None:
    model = tiny_mamba(2, dtype).requires_grad_(False)
    units, ids = Units(model, SSM_UNITS["channel"]), tokens(3, LENGTH)
    fills = fills_of(model, units, ids, "mean by position")

    def slope() -> tuple[Tensor, Tensor]:
        mask = mask_of(units, 0.25, 5, soft=True).to(dtype).requires_grad_()
        edits = [dataclasses.replace(edit, zeros_fixed=True) for edit in units.edits(mask, fills)]
        read = read_by_head(model, ids, edits, torch.full((3, 1), LENGTH - 1))
        return mask.detach(), torch.autograd.grad(read[..., 0].square().sum(), mask)[0]

    (mask, got), (_, wanted) = slope(), whole(slope)
    assert len(counted.kept) == 2
    close(got[mask > 0], wanted[mask > 0], 1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize(("gate", "used"), [("hard_concrete", True), ("straight_through", False)])
def test_a_search_is_the_same_and_uses_it_where_a_shut_gate_has_no_gradient(
    gate: str, used: bool, counted: Counted
) -> None:
    bench = circuits.uneven()
    bench.measurements.clear()
    scores = torch.arange(bench.units.total, dtype=torch.float64)

    def found() -> tuple[list[float], Tensor]:
        search = Search(bench, "kl", scores, SearchOptions(gate=gate, steps=12), 0, 5)
        while search.step < search.steps:
            search.advance()
        return [entry["loss"] for entry in search.history], search.logits.detach()

    (losses, logits), (before, wanted) = found(), whole(found)
    bench.measurements.clear()
    counted.kept.clear()
    with torch.enable_grad():
        gates = GATES[gate](wanted.clone().requires_grad_(), 5.0, torch.Generator().manual_seed(0))
        bench.measured(0, gates, "kl", gate == "hard_concrete")
    assert bool(counted.kept) is used
    close(torch.tensor(losses), torch.tensor(before), 1e-9)
    close(logits, wanted, 1e-9)


@pytest.mark.parametrize("way", ["mean", "mean by position"])
def test_removals_in_a_sweep_are_runs_by_hand(way: str, counted: Counted) -> None:
    model = tiny_mamba(4, torch.float64).requires_grad_(False)
    units, ids = Units(model, SSM_UNITS["channel"]), tokens(3, LENGTH)
    fills, mask = fills_of(model, units, ids, way), mask_of(units, 0.4, 3)
    kept = mask.nonzero().flatten().tolist()
    base, cells = units.removals(mask, kept, fills)
    dropped = units.dropping(int((mask == 0).nonzero()[0]), fills)  # nothing changes
    # and one that puts a value back into a channel that the base drops
    again = [Edit("layers.1.gated", "add", 0.7, units=[int((mask[units.per_layer :] == 0).nonzero()[-1])])]
    cells = [*cells, dropped, again]
    got = sweep(model, ids, cells, base=base)
    assert counted.kept
    counted.kept.clear()
    for number, cell in enumerate(cells):
        close(got[number], run(model, ids, edits=[*base, *cell]).logits)
    assert not counted.kept  # a run keeps the memory of all channels, so it is the whole mixer


def circuits_in_cells(model: Any, units: Units, ids: Tensor) -> Iterator[list[Edit]]:
    fills = fills_of(model, units, ids, "mean")
    for seed in range(4):
        yield units.edits(mask_of(units, 0.15, seed), fills)


def test_circuits_beside_each_other_compute_the_channels_of_any(counted: Counted) -> None:
    model = tiny_mamba(4, torch.float64).requires_grad_(False)
    units, ids = Units(model, SSM_UNITS["channel"]), tokens(2, LENGTH)
    cells = list(circuits_in_cells(model, units, ids))
    got = sweep(model, ids, cells)
    assert counted.kept
    for number, cell in enumerate(cells):
        close(got[number], run(model, ids, edits=cell).logits)


def first_add(edits: list[Edit], units: Units) -> list[Edit]:
    return [Edit("layers.0.u", "add", 0.5), *edits]


def some_rows(edits: list[Edit], units: Units) -> list[Edit]:
    return [dataclasses.replace(edit, rows=[0]) for edit in edits]


def some_positions(edits: list[Edit], units: Units) -> list[Edit]:
    return [dataclasses.replace(edit, positions=[1]) for edit in edits]


def only_gated(edits: list[Edit], units: Units) -> list[Edit]:
    return [edit for edit in edits if edit.site.endswith("gated")]


def inside(edits: list[Edit], units: Units) -> list[Edit]:
    return [*edits, *(Edit(f"layers.{i}.dt", "scale", 1.1) for i in range(2))]


def a_gradient_behind(edits: list[Edit], units: Units) -> list[Edit]:
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    return [*edits, *(Edit(site, "add", shift) for site in units.sites)]


@pytest.mark.parametrize("change", [some_rows, some_positions, only_gated, inside, a_gradient_behind])
def test_edits_that_need_a_dropped_channel_take_the_whole_mixer(change: Any, counted: Counted) -> None:
    model = tiny_mamba(4, torch.float64).requires_grad_(False)
    units, ids = Units(model, SSM_UNITS["channel"]), tokens(3, LENGTH)
    edits = change(units.edits(mask_of(units, 0.2, 1), fills_of(model, units, ids, "mean")), units)
    read = lambda: read_by_head(model, ids, edits, torch.full((3, 1), LENGTH - 1))
    close(read(), whole(read))
    assert not counted.kept


def test_an_edit_before_the_mask_sees_whole_channels(counted: Counted) -> None:
    model = tiny_mamba(4, torch.float64).requires_grad_(False)
    units, ids = Units(model, SSM_UNITS["channel"]), tokens(3, LENGTH)
    edits = first_add(units.edits(mask_of(units, 0.2, 1), fills_of(model, units, ids, "mean")), units)
    read = lambda: read_by_head(model, ids, edits, torch.full((3, 1), LENGTH - 1))
    close(read(), whole(read))
    assert len(counted.kept) == 1  # layer 1 alone


def test_what_is_recorded_or_goes_on_is_of_the_whole_mixer(counted: Counted) -> None:
    model = tiny_mamba(4, torch.float64).requires_grad_(False)
    units, ids = Units(model, SSM_UNITS["channel"]), tokens(3, LENGTH)
    edits = units.edits(mask_of(units, 0.2, 1), fills_of(model, units, ids, "mean"))
    checked = check_edits(model.sites, edits, 3, LENGTH)
    for record in (["layers.0.u", "layers.1.u"], ["layers.0.y", "layers.1.dt"]):
        tap = Tap(record, checked)
        tap.goes_on = False
        model.trace(ids, tap)
    run(model, ids, edits=edits)
    assert not counted.kept


def test_the_gradient_of_a_shut_gate_is_asked_of_the_whole_mixer(counted: Counted) -> None:
    model = tiny_mamba(4, torch.float64).requires_grad_(False)
    units, ids = Units(model, SSM_UNITS["channel"]), tokens(3, LENGTH)
    mask = mask_of(units, 0.2, 1).requires_grad_()
    read = read_by_head(model, ids, units.edits(mask, fills_of(model, units, ids, "zero")), torch.full((3, 1), 5))
    (slope,) = torch.autograd.grad(read.square().sum(), mask)
    assert not counted.kept
    assert bool((slope[mask.detach() == 0] != 0).any())
