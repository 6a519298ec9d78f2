"""A finished analysis: every input by content, every file written, no number changed since; and in which order."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mechint.runner.one_analysis
import mechint.runner.preparation
from mechint import sae
from mechint.analyses.base import analyses, in_order
from mechint.analyses.circuits import features as sae_circuit
from mechint.analyses.circuits.features import FeatureCircuitConfig
from mechint.analyses.options import RunConfig
from mechint.analyses.study import analyzer as study
from mechint.analyses.study.options import StudyConfig
from mechint.runner.drawing import redraw
from mechint.runner.experiment import run_experiment
from mechint.runner.request import Experiment
from mechint.sae import SAEConfig
from mechint.tasks import TaskConfig
from mechint.utils.errors import MechintError
from mechint.utils.rundir import body
from tests.helpers.experiments import SSM, checkpoint
from tests.helpers.experiments import experiment as asked

PLAIN: dict[str, Any] = dict.fromkeys(("visualize_heatmaps", "visualize_curves", "visualize_faithfulness"), False)
"""Pages without figures, which take longer than such a search."""


def experiment(path: Path, output: Path, **changes: Any) -> Experiment:
    """A small search with as many prompts as show an effect."""
    return asked(path, output, **{"eval_prompts": 96, **PLAIN, **changes})


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint, and its finished analysis."""
    top = tmp_path_factory.mktemp("finished")
    path = checkpoint(top / "a.pt")
    run_experiment(experiment(path, top / "out"))
    return path, top / "out"


def is_finished(path: Path, output: Path, capsys: pytest.CaptureFixture[str], **changes: Any) -> bool:
    """True if the request is skipped as finished; another one is refused."""
    try:
        run_experiment(experiment(path, output, **changes))
    except MechintError as error:
        assert "another request" in str(error)
        return False
    return "is finished" in capsys.readouterr().out


@pytest.mark.parametrize("change", [{"budget": 5}, {"seed": 1}, {"batch_size": 4}, {"prompts": 17}])
def test_another_option_is_another_request(
    done: tuple[Path, Path], change: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert is_finished(*done, capsys)
    assert not is_finished(*done, capsys, **change)


def test_other_code_and_other_inputs_are_another_request(
    done: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(mechint.runner.preparation, "code_digest", lambda: "of other code")
        assert not is_finished(*done, capsys)
    changed = {**analyses(), "ssm": dataclasses.replace(analyses()["ssm"], inputs=lambda config, run_dir: {"a": "b"})}
    with monkeypatch.context() as patch:
        patch.setattr(mechint.runner.preparation, "analyses", lambda: changed)
        assert not is_finished(*done, capsys)
    assert is_finished(*done, capsys)


@pytest.mark.slow
def test_a_moved_checkpoint_or_text_is_the_same_and_a_changed_one_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"line {k} of a text, which says {k * 7919 % 10_007}\n" for k in range(3000)]
    ssm = dataclasses.replace(SSM, search="budget", budget=4, removed_units=0, eval_prompts=96)

    def request(model: Path, text: Path) -> bool:
        run = RunConfig(checkpoint=str(model), output_dir=str(tmp_path / "out"), batch_size=8, **PLAIN)
        try:
            run_experiment(Experiment(run, TaskConfig(name="text", text=str(text), length=8), {"ssm": ssm}))
        except MechintError as error:
            assert "another request" in str(error)
            return False
        return "is finished" in capsys.readouterr().out

    first, text = checkpoint(tmp_path / "a.pt", vocab_size=256), tmp_path / "a.txt"
    text.write_text("".join(words))
    assert not request(first, text) and request(first, text)
    moved = checkpoint(tmp_path / "elsewhere/b.pt", vocab_size=256)
    (tmp_path / "elsewhere/b.txt").write_text("".join(words))
    assert request(moved, tmp_path / "elsewhere/b.txt")
    text.write_text("".join(words[:-1]) + "another end of it")
    assert not request(first, text)


def test_dictionaries_peers_and_trajectories_count_by_content(tmp_path: Path) -> None:
    def dictionary(seed: int, place: str) -> dict[str, str]:
        made = sae.make(SAEConfig("topk", 10, 20, k=4, site="layers.0.resid_post", model_family="mamba", layer=0))
        with torch.no_grad():
            for p in made.parameters():
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)))
        sae.save(made, tmp_path / place / "one")
        return sae_circuit.inputs(FeatureCircuitConfig(dictionaries=str(tmp_path / place)), tmp_path)

    assert dictionary(0, "here") == dictionary(0, "there") != dictionary(1, "there")
    for name in ("peers", "trajectory"):
        config = StudyConfig(**{name: str(tmp_path / "models*/*.pt")})  # type: ignore[arg-type]
        checkpoint(tmp_path / "models/a.pt")
        one = study.inputs(config, tmp_path)
        checkpoint(tmp_path / "models/b.pt", seed=1)
        two = study.inputs(config, tmp_path)
        checkpoint(tmp_path / "models/b.pt", seed=2)
        assert set(one) == {name} and len({tuple(found.values()) for found in (one, two)}) == 2
        assert study.inputs(config, tmp_path) != two
        for path in (tmp_path / "models").iterdir():
            path.unlink()
    assert study.inputs(StudyConfig(), tmp_path) == {}


@pytest.mark.slow
def test_a_run_that_died_behind_its_results_is_not_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, output = checkpoint(tmp_path / "a.pt"), tmp_path / "out"

    def die(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mechint.runner.one_analysis, "draw", die)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(experiment(path, output))
    for stage in (output / ".stages").iterdir():  # as of an analyser that keeps none
        stage.unlink()
    (output / ".stages").rmdir()
    assert (output / "results.json").exists() and not is_finished(path, output, capsys)
    assert (output / "report.html").exists() and is_finished(path, output, capsys)


@pytest.mark.slow
def test_a_number_that_was_edited_is_said(done: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    path, output = done
    results = output / "results.json"
    before = results.read_text()
    raw = json.loads(before)
    raw["metrics"]["faithfulness"]["value"] += 0.5
    try:
        results.write_text(json.dumps(raw))
        redraw(RunConfig(run_dir=str(output), mode="from_runs"), False)
        assert "was changed after" in capsys.readouterr().err
        for page in ("report.html", "circuit_analysis_report.md"):
            assert "was changed after" in (output / page).read_text()
        with pytest.raises(MechintError, match=r"was changed after .* run the analysis again"):
            run_experiment(experiment(path, output))
        results.write_text("[1, 2]")
        with pytest.raises(MechintError, match="is not valid"):
            run_experiment(experiment(path, output))
    finally:
        results.write_text(before)
    redraw(RunConfig(run_dir=str(output), mode="from_runs"), False)
    assert "was changed" not in (output / "report.html").read_text() + capsys.readouterr().err


def test_analyses_come_behind_those_that_they_take_results_of() -> None:
    order = list(analyses())
    assert order.index("sae") < order.index("feature")
    other = {name: analyses()[name] for name in reversed(order)}
    assert list(in_order(other)).index("sae") < list(in_order(other)).index("feature")
    round_ = {
        name: dataclasses.replace(analyses()[name], after=(back,)) for name, back in (("sae", "ssm"), ("ssm", "sae"))
    }
    with pytest.raises(ValueError, match="no order fits"):
        in_order(round_)


def test_the_code_digest_is_of_what_computes_and_not_of_where_it_lies(tmp_path: Path) -> None:
    """A moved file and another import path are the same code; another number is not."""
    here, there = tmp_path / "a.py", tmp_path / "room" / "b.py"
    there.parent.mkdir()
    here.write_text("from .a import one\n\n\ndef two() -> int:\n    return 2 * one\n")
    there.write_text(
        "from ..room.b import (\n    one,\n)\n\ndef two() -> int:\n    from os import path\n    return 2 * one\n"
    )
    assert body(here) == body(there) == b"def two() -> int:\n    return 2 * one"
    there.write_text("def two() -> int:\n    return 3 * one\n")
    assert body(here) != body(there)
