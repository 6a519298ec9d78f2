"""Damaged stages of a killed run are dropped with a line and computed again: the results are the same to the byte."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from mechint.analyses.base import analyses
from mechint.analyses.options import RunConfig
from mechint.models.loading.load import hf_config, to_hf_state_dict
from mechint.runner import experiment as whole
from mechint.runner.experiment import run_experiment
from mechint.runner.request import Experiment
from mechint.tasks import TaskConfig
from mechint.utils.files import remove
from mechint.utils.rundir import Stages
from tests.helpers.builders import tiny_gpt2, tiny_mamba
from tests.helpers.fuzzing import damaged, within

TASK = TaskConfig(name="recall", pairs=2, keys=12, values=12)
SMALL: dict[str, Any] = {
    "prompts": 16, "eval_prompts": 64, "ablation": "zero", "bootstrap": 100, "steps": 6, "seeds": 2,
    "random_circuits": 2, "controls": 1,
    "min_accuracy": 0.0, "measure": False, "lengths": "4,8", "examples": 2, "draws": 20, "tokens": False, "random": 2,
    "search": "budget", "budget": 6, "target_sparsity": 0.9, "removed_units": 4, "site": "out", "sites": "out",
}  # fmt: skip
"""Given to each analysis that has such an option."""
MODELS = {"ssm": tiny_mamba, "compare": tiny_gpt2}


class Killed(Exception):
    """Stands for the signal that ends a run when all stages are there and no report is."""


def experiment(name: str, at: Path) -> Experiment:
    made = analyses()[name].config
    fields = {field.name for field in dataclasses.fields(made)}
    config = made(**{key: value for key, value in SMALL.items() if key in fields})
    run = RunConfig(
        checkpoint=str(at.parent / "a.pt"), output_dir=str(at), batch_size=8, visualize_heatmaps=False,
        visualize_curves=False, visualize_faithfulness=False,
    )  # fmt: skip
    return Experiment(run, TASK, {name: config})


@pytest.fixture(params=MODELS)
def killed(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, bytes]:
    """An analysis, what a kill behind its last stage leaves of it, and the results of an undisturbed run."""
    name = request.param
    model: Any = MODELS[name]()
    torch.save({"model": to_hf_state_dict(model), "config": hf_config(model)}, tmp_path / "a.pt")

    def kill(*_: object) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(whole, "draw", kill)
        with pytest.raises(Killed):
            run_experiment(experiment(name, tmp_path / "killed"))
        assert len(list((tmp_path / "killed/.stages").glob("*.done.pt"))) > 1
    shutil.copytree(tmp_path / "killed", tmp_path / "whole")
    remove(tmp_path / "whole" / ".stages")
    remove(tmp_path / "whole" / "results.json")
    run_experiment(experiment(name, tmp_path / "whole"))
    return name, tmp_path / "killed", (tmp_path / "whole/results.json").read_bytes()


def damage(rng: random.Random, stages: Path) -> bool:
    """Does something to one file; whether the others are of use still."""
    file = rng.choice(sorted(stages.iterdir()))
    kind = rng.randrange(9)
    if kind == 0:
        remove(file)
        file.mkdir()
        (file / "x").touch()
    elif kind == 1:
        remove(file)
        os.mkfifo(file)
    elif kind == 2:
        torch.save(rng.choice([None, 3, {}, [], {"a": torch.ones(2)}, "text"]), file)
    elif kind == 3:
        other = rng.choice([path for path in sorted(stages.iterdir()) if path != file])
        shutil.copy(other, file)
    else:
        before = file.read_bytes()
        damaged(rng, file)
        if file.read_bytes() == before:
            file.write_bytes(before[:-1])
    return file.name != "fingerprint"


def tried(killed: tuple[str, Path, bytes], seeds: range, printed: pytest.CaptureFixture[str]) -> Counter[str]:
    name, left, expected = killed
    ends: Counter[str] = Counter()
    for seed in seeds:
        target = left.parent / str(seed)
        shutil.copytree(left, target)
        useful = damage(random.Random(seed), target / ".stages")
        printed.readouterr()
        with within(60):
            run_experiment(experiment(name, target))
        said = [line for line in printed.readouterr().out.splitlines() if "dropped" in line]
        assert len(said) == 1 and str(target) in said[0], (seed, said)
        assert (target / "results.json").read_bytes() == expected, seed
        assert not (target / ".stages").exists()
        resumed = '"resumed": []' not in (target / "manifest.json").read_text()
        assert resumed == useful, seed
        ends["one stage computed again" if useful else "all computed again"] += 1
        shutil.rmtree(target)
    return ends


@pytest.mark.exhaustive
def test_damaged_stages_of_an_analysis_are_computed_again(
    killed: tuple[str, Path, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    ends = tried(killed, range(40), capsys)
    assert len(ends) == 2
    with capsys.disabled():
        took = time.monotonic() - began
        print(f"\nstages of {killed[0]}: {sum(ends.values())} damaged in {took:.0f} s: {dict(ends)}, tracebacks 0")


VALUES: dict[str, Any] = {
    "attribution": (torch.arange(40.0), "exact"),
    "batch 0": {"effects": torch.ones(3, 4), "n": 4},
    "batch 1": {"effects": torch.zeros(3, 4), "n": 4},
    "history": [{"step": 1, "loss": 0.5}],
}


def computed(stages: Stages) -> list[str]:
    """Gets every stage, holds its value to what was computed, and names those that were computed now."""
    anew = []
    for name, value in VALUES.items():

        def compute(name: str = name, value: Any = value) -> Any:
            anew.append(name)
            return value

        had = stages.has(name)
        assert str(stages.get(name, compute)) == str(value)
        assert had == (name not in anew)
    return anew


@pytest.mark.slow
def test_a_damaged_stage_is_dropped_with_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert computed(Stages(tmp_path / "whole", "key")) == list(VALUES)
    assert computed(Stages(tmp_path / "whole", "key")) == []
    for seed in range(100):
        shutil.copytree(tmp_path / "whole", tmp_path / str(seed))
        useful = damage(random.Random(seed), tmp_path / str(seed))
        capsys.readouterr()
        anew = computed(Stages(tmp_path / str(seed), "key"))
        said = capsys.readouterr().out.splitlines()
        assert len(anew) == (1 if useful else len(VALUES)), seed
        assert len(said) == 1 and str(tmp_path / str(seed)) in said[0] and "dropped" in said[0], (seed, said)
        assert computed(Stages(tmp_path / str(seed), "key")) == []


def test_stages_of_another_request_are_not_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    computed(Stages(tmp_path / "a", "one"))
    computed(Stages(tmp_path / "b", "two"))
    shutil.copy(tmp_path / "a/batch 0.done.pt", tmp_path / "b/batch 0.done.pt")
    assert computed(Stages(tmp_path / "b", "two")) == ["batch 0"]
    assert computed(Stages(tmp_path / "a", "two")) == list(VALUES)
    assert capsys.readouterr().out.count("dropped") == 2
    (tmp_path / "c").write_text("no directory")
    assert computed(Stages(tmp_path / "c", "two")) == list(VALUES)


def test_a_damaged_unfinished_stage_begins_anew(tmp_path: Path) -> None:
    stages = Stages(tmp_path, "key", every=0.0)
    stages.save_part("search", lambda: {"step": 3})
    assert stages.part("search") == {"step": 3} and stages.part("other") is None
    (tmp_path / "search.part.pt").write_bytes((tmp_path / "search.part.pt").read_bytes()[:-10])
    assert stages.part("search") is None and not (tmp_path / "search.part.pt").exists()
