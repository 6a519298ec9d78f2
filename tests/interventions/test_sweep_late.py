"""Edits of late sites in a sweep: the stream behind a layer is changed and no layer run again; the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechint import Edit
from mechint.interventions.sweep import Base, sweep
from mechint.interventions.sweep_cells import Cell, late_edit
from mechint.models.mamba import Mamba
from tests.helpers.builders import tiny_gpt2, tiny_llama, tiny_mamba, tokens
from tests.helpers.examples import examples
from tests.helpers.sweeps import one_by_one

BUILDERS = (tiny_mamba, tiny_gpt2, tiny_llama)
ROWS, LENGTH = 3, 6


@st.composite
def late_edits(draw: st.DrawFn, model: Any, seed: int) -> Edit:
    """Any edit of a late site: rows, positions and units or all of them, any mode."""
    kind, layer = draw(st.sampled_from(list(model.late_sites))), draw(st.integers(0, model.num_layers - 1))
    name = f"layers.{layer}.{kind}"
    width = model.sites[name].units[0]
    some = lambda most: st.none() | st.lists(st.integers(0, most - 1), min_size=1, unique=True)
    rows, positions, units = draw(some(ROWS)), draw(some(LENGTH)), draw(some(width))
    sizes = [n if chosen is None else len(chosen) for chosen, n in ((rows, ROWS), (positions, LENGTH), (units, width))]
    value = torch.randn(sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mode = draw(st.sampled_from(["replace", "add", "scale", "mask"]))
    return Edit(name, mode, value, positions, units, rows, fill=0.3 if mode == "mask" else 0.0)


@pytest.mark.slow_except("tiny_mamba")
@pytest.mark.parametrize("build", BUILDERS)
@settings(max_examples=examples(15), deadline=None)
@given(data=st.data(), seed=st.integers(0, 1000))
def test_any_late_edits_over_any_base_equal_one_run_each(build: Any, data: st.DataObject, seed: int) -> None:
    model = build(seed, torch.float64).requires_grad_(False)
    prompts = tokens(ROWS, LENGTH, seed)
    base = data.draw(st.lists(late_edits(model, seed + 50), max_size=1))
    cells = [[data.draw(late_edits(model, seed + k))] for k in range(data.draw(st.integers(1, 4)))]
    cells.append([*cells[0], Edit(f"layers.{model.num_layers - 1}.resid_post", "add", 0.2)])
    found, expected = sweep(model, prompts, cells, base=base), one_by_one(model, prompts, cells, base)
    assert float((found - expected).abs().max()) <= 1e-10 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("build", BUILDERS)
def test_a_late_cell_of_the_last_layer_runs_no_layer(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = build().requires_grad_(False), tokens(2, 5)
    kind, last = next(iter(model.late_sites)), model.num_layers - 1
    cells = [[Edit(f"layers.{last}.{kind}", "scale", 0.5, units=[e])] for e in range(5)]
    ran: list[int] = []
    block = type(model).block

    def counted(self: Any, i: int, *rest: Any) -> Any:
        ran.append(i)
        return block(self, i, *rest)

    monkeypatch.setattr(type(model), "block", counted)
    sweep(model, prompts, cells)
    assert len(set(ran)) == len(ran)  # at most the base run, which may go through layers whole


def test_what_is_no_late_edit() -> None:
    model, prompts = tiny_mamba(), tokens(2, 5)
    late = Edit("layers.0.gated", "replace", 0.0, units=[1])

    def of(edits: list[Edit], base: tuple[Edit, ...] = (), other: Mamba = model) -> Edit | None:
        return late_edit(Cell.of(0, edits, other), base, other)

    assert of([late]) is late and of([late, Edit("layers.1.u", "add", 1.0)]) is late
    assert of([late, Edit("layers.0.out", "add", 1.0)]) is None  # two edits of the layer
    assert of([Edit("layers.0.u", "replace", 0.0)]) is None
    assert of([Edit("layers.0.out", "cut", positions=[3], sources=[1])]) is None
    assert of([late], (Edit("layers.0.gated", "scale", 0.5),)) is late
    assert of([late], (Edit("layers.0.resid_post", "replace", 0.5),)) is None  # the base overwrites what it adds
    assert of([Edit("logits", "add", 1.0)]) is None
    assert of([late], (), tiny_mamba().to(torch.bfloat16)) is None
    base = Base(model, prompts, [], [Cell.of(0, [late], model)], torch.full((2, 1), 4), 64.0)
    assert set(base.kept) == {"layers.0.gated"} and set(base.memory) == {(1, 0)}


def test_every_late_site_is_a_site_and_its_module_a_map_of_the_stream() -> None:
    for build in BUILDERS:
        model = build()
        for kind, (other, module) in model.late_sites.items():
            size = model.sites[f"layers.0.{kind}"].units
            assert not other or model.sites[f"layers.0.{other}"].units == size
            weight = model.layers[0].get_submodule(module).weight.shape if module else None
            assert weight in (None, (model.config.d_model, *size))
