"""The sweep against one whole forward for every cell."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mechint
from mechint import Edit, MechintError
from mechint.interventions.gradients import gradients
from mechint.interventions.sweep import Base, sweep
from tests.helpers.builders import SIZES, tiny_mamba, tokens
from tests.helpers.examples import examples
from tests.helpers.paths import ROOT
from tests.helpers.sweeps import LENGTH, ROWS, edits, one_by_one


@settings(max_examples=examples(60), deadline=None)
@given(st.data(), SIZES, st.integers(0, 10_000))
def test_any_cells_over_any_base_equal_one_run_each(data: st.DataObject, sizes: dict[str, Any], seed: int) -> None:
    model = tiny_mamba(seed, torch.float64, **sizes)
    prompts = tokens(ROWS, LENGTH, seed)
    base = data.draw(st.lists(edits(model, seed), max_size=1))
    cells = [[data.draw(edits(model, seed + k))] for k in range(data.draw(st.integers(1, 5)))]
    at = torch.tensor([[LENGTH - 1, 2]] * ROWS) if data.draw(st.booleans()) else None
    found = sweep(model, prompts, cells, base=base, logits_at=at)
    expected = one_by_one(model, prompts, cells, base, at)
    scale = max(1.0, float(expected.abs().max()))
    assert float((found - expected).abs().max()) <= 1e-10 * scale


def test_a_cut_in_the_base_and_an_edit_of_the_same_state() -> None:
    model, prompts = tiny_mamba(dtype=torch.float64), tokens(2, 6)
    base = [Edit("layers.0.state", "cut", positions=[3, 5], sources=[1])]
    cells = [[Edit("layers.0.state", "replace", 0.3, positions=[p])] for p in range(6)]
    expected = one_by_one(model, prompts, cells, base)
    assert float((sweep(model, prompts, cells, base=base) - expected).abs().max()) <= 1e-10


def full_map(model: Any, donor: Any, length: int) -> list[list[Edit]]:
    """Every site kind at every layer and position, put back to a donor run's."""
    return [
        [Edit(name, "replace", donor[name][:, p : p + 1], positions=[p])]
        for name in donor.values
        for p in range(length)
    ]


@pytest.mark.slow_except("1024.0")
@pytest.mark.parametrize("memory", [1024.0, 0.6])
def test_a_map_of_every_site_in_float32(memory: float) -> None:
    model = tiny_mamba(3, n_layer=3)
    prompts = tokens(3, 7)
    kinds = ("resid_pre", "x", "u", "dt", "B", "C", "state", "y", "gate", "out")
    with torch.no_grad():
        donor = mechint.run(model, tokens(3, 7, 5), [f"layers.*.{kind}" for kind in kinds])
    cells = full_map(model, donor, 7)
    base = [Edit("embed", "add", 0.1, positions=[2, 3])]
    found = sweep(model, prompts, cells, base=base, memory_mib=memory)
    expected = one_by_one(model, prompts, cells, base)
    assert float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


def test_a_budget_changes_the_batches_and_not_the_numbers() -> None:
    model, prompts = tiny_mamba(1, torch.float64), tokens(2, 5)
    cells = [[Edit(f"layers.{i}.u", "scale", 0.0, units=[k])] for i in range(2) for k in range(14)]
    wanted = torch.arange(5).expand(2, -1)
    count = []
    for memory in (64.0, 0.5):
        plan = plan_of(model, prompts, cells, memory, wanted)
        count.append(len(list(plan.batches(memory, wanted))))
    assert count[0] == 1 < count[1]
    whole, pieces = (sweep(model, prompts, cells, memory_mib=memory) for memory in (64.0, 0.5))
    assert float((whole - pieces).abs().max()) <= 1e-12


def plan_of(model: Any, prompts: torch.Tensor, cells: Any, memory: float, wanted: torch.Tensor) -> Base:
    from mechint.interventions.edits import check_edits
    from mechint.interventions.sweep_cells import Cell

    with torch.no_grad():
        plan = [Cell.of(k, check_edits(model.sites, edits, *prompts.shape), model) for k, edits in enumerate(cells)]
        return Base(model, prompts, [], plan, wanted, memory)


def test_what_cannot_change_anything_is_not_run() -> None:
    model, prompts = tiny_mamba(), tokens(2, 6)
    with torch.no_grad():
        own = mechint.run(model, prompts, ["layers.0.state", "layers.1.out"])
    last = torch.full((2, 1), 3)
    cells = [
        [Edit("layers.0.state", "replace", own["layers.0.state"][:, 2:3], positions=[2])],  # what is there already
        [Edit("layers.1.out", "replace", 0.0, positions=[2])],  # in the last layer, where nothing looks
        [Edit("layers.0.u", "replace", 0.0, positions=[4, 5])],  # behind the wanted position
        [],
        [Edit("layers.0.u", "replace", 0.0, positions=[3])],
        [Edit("layers.1.out", "replace", 0.0, positions=[3])],
    ]
    assert [cell.number for cell in plan_of(model, prompts, cells, 64.0, last).active] == [4, 5]
    found = sweep(model, prompts, cells, logits_at=last)
    with torch.no_grad():
        clean = model(prompts)[:, 3:4]
    assert torch.equal(found[:4], found[:1].expand(4, -1, -1, -1)) and torch.allclose(found[0], clean, atol=1e-5)
    assert float((found[4] - clean).abs().max()) > 0.1 and float((found[5] - clean).abs().max()) > 0.1


def test_a_metric_and_its_shape() -> None:
    model, prompts = tiny_mamba(), tokens(3, 5)
    cells = [[Edit("layers.0.u", "scale", 0.0, units=[k])] for k in range(4)]
    found = sweep(model, prompts, cells, lambda logits: logits[:, :, -1, 7] - logits[:, :, -1, 3])
    logits = sweep(model, prompts, cells)
    assert found.shape == (4, 3) and torch.equal(found, logits[:, :, -1, 7] - logits[:, :, -1, 3])


def test_gradients_of_all_sites_at_once_are_those_of_each() -> None:
    model, prompts = tiny_mamba(dtype=torch.float64), tokens(2, 5)
    metric = lambda logits: logits[:, -1, 4]
    values, found = gradients(model, prompts, ["layers.*", "embed"], metric)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    for name in ("embed", "layers.0.dt", "layers.0.state", "layers.1.B", "layers.1.gate"):
        moved = torch.zeros_like(values[name], requires_grad=True)
        run = mechint.run(model, prompts, [], [Edit(name, "add", moved)])
        (expected,) = torch.autograd.grad(metric(run.logits).sum(), moved)
        assert float((expected - found[name]).abs().max()) <= 1e-12


def test_bad_input() -> None:
    model, prompts = tiny_mamba(), tokens(2, 6)
    cells = [[Edit("layers.0.u", "scale", 0.0)]]
    with pytest.raises(MechintError, match=r"too few for one cell of 2 rows, which needs .* MiB"):
        sweep(model, prompts, cells, memory_mib=0.01)
    with pytest.raises(MechintError, match="half of them hold the base's memory"):
        sweep(model, prompts, cells, memory_mib=0.0005)
    with pytest.raises(MechintError, match="at least one cell"):
        sweep(model, prompts, [])
    with pytest.raises(MechintError, match="two edits replace the same place"):
        sweep(model, prompts, [[Edit("layers.0.u", "replace", 0.0), Edit("layers.0.u", "replace", 1.0, units=[3])]])
    with pytest.raises(MechintError, match=r"cell 0 .*NaN"):
        sweep(model, prompts, [[Edit("layers.0.u", "replace", float("nan"))]])
    with pytest.raises(MechintError, match="position 6 does not exist"):
        sweep(model, prompts, [[Edit("layers.0.u", "replace", 0.0, positions=[6])]])


def test_edits_of_one_cell_that_share_no_place_are_fine() -> None:
    model, prompts = tiny_mamba(), tokens(2, 6)
    several = [
        Edit("layers.0.u", "replace", 0.0, units=[1]),
        Edit("layers.0.u", "replace", 1.0, units=[2]),
        Edit("layers.0.state", "replace", 0.0, positions=[1], units=[(1, 2)]),
        Edit("layers.0.state", "replace", 0.0, positions=[1], units=[(1, 3)]),
        Edit("layers.1.out", "replace", 0.0, rows=[0]),
        Edit("layers.1.out", "replace", 0.0, rows=[1], positions=[0]),
    ]
    expected = one_by_one(model, prompts, [several])
    assert torch.allclose(sweep(model, prompts, [several]), expected, atol=1e-5)


def test_a_killed_sweep_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = tiny_mamba(), tokens(2, 5)
    cells = [[Edit(f"layers.{i}.u", "scale", 0.0, positions=[p])] for i in range(2) for p in range(5)]
    expected = sweep(model, prompts, cells)
    run, left = Base.run, [4]  # a trial, two batches, and it dies

    def dies(self: Base, *arguments: Any) -> torch.Tensor:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return run(self, *arguments)

    monkeypatch.setattr(Base, "run", dies)
    with pytest.raises(KeyboardInterrupt):
        sweep(model, prompts, cells, store=tmp_path)
    kept = len(list(tmp_path.iterdir()))
    assert kept == 2
    calls: list[int] = []
    monkeypatch.setattr(Base, "run", lambda self, *arguments: (calls.append(1), run(self, *arguments))[1])
    assert torch.equal(sweep(model, prompts, cells, store=tmp_path), expected)
    assert len(calls) == 1 + 3  # the trial, and the batches that were missing
    sweep(model, prompts, cells, store=tmp_path, key="other weights")
    assert len(list(tmp_path.iterdir())) == 10


def test_damaged_batches_of_a_killed_sweep_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, prompts = tiny_mamba(), tokens(2, 5)
    cells = [[Edit(f"layers.{i}.u", "scale", 0.0, positions=[p])] for i in range(2) for p in range(5)]
    expected = sweep(model, prompts, cells, store=tmp_path)
    kept = sorted(tmp_path.iterdir())
    kept[0].write_bytes(kept[0].read_bytes()[:-1])
    kept[2].write_bytes(kept[1].read_bytes())  # whole, and of other cells
    run, calls = Base.run, list[int]()
    monkeypatch.setattr(Base, "run", lambda self, *arguments: (calls.append(1), run(self, *arguments))[1])
    assert torch.equal(sweep(model, prompts, cells, store=tmp_path), expected)
    assert len(calls) == 1 + 2 and capsys.readouterr().out.count("dropped") == 2


WORKER = """
    import os, sys, torch
    from pathlib import Path
    from mechint import Edit
    from mechint.interventions.sweep import sweep
    from mechint.utils.workers import end, join, together
    from tests.helpers.builders import tiny_mamba, tokens

    torch.set_num_threads(1)
    join()
    place = Path(sys.argv[1])
    if os.environ.get("RANK") == "1" and not (place / "died").exists():
        (place / "died").touch()
        os.kill(os.getpid(), 9)
    cells = [[Edit(f"layers.{i}.u", "scale", 0.0, positions=[p])] for i in range(2) for p in range(5)]
    with together():
        found = sweep(tiny_mamba(), tokens(2, 5), cells, store=place / "store")
    torch.save(found, place / f"found-{os.environ['RANK']}.pt")
    end(0)
"""


@pytest.mark.slow
def test_two_processes_one_of_which_dies_equal_one(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(textwrap.dedent(WORKER))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'lib'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    command = [str(word) for word in (*torchrun, script, tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    cells = [[Edit(f"layers.{i}.u", "scale", 0.0, positions=[p])] for i in range(2) for p in range(5)]
    alone = sweep(tiny_mamba(), tokens(2, 5), cells)
    for name in "01":
        assert torch.equal(torch.load(tmp_path / f"found-{name}.pt"), alone)
