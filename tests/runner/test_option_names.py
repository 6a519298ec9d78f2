"""Messages name options as their reader wrote them (flag, symbol or argument), and only options that exist."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mechint.analyses.base import analyses, group_of
from mechint.analyses.metrics import remedy
from mechint.analyses.options import RunConfig
from mechint.analyses.study.options import StudyConfig
from mechint.runner.export_command import ExportConfig
from mechint.runner.latents.command import LatentsConfig
from mechint.runner.mechanistic import ExperimentConfig
from mechint.runner.neuron_command import NeuronCommand
from mechint.scorecard.requests import ScorecardConfig
from mechint.tasks import TaskConfig, make_task
from mechint.training.options import ARCHITECTURES, TrainConfig
from mechint.utils import options
from mechint.utils.options import drawn_again, entered, flag, named
from scripts import run_mechint_analysis
from tests.helpers.commands import Here
from tests.helpers.paths import ROOT

LIBRARY = ROOT / "lib" / "mechint"
GROUPS: dict[str, type] = {
    "": RunConfig, "task": TaskConfig, "train": TrainConfig, **ARCHITECTURES,
    **{name: analysis.config for name, analysis in analyses().items()},
}  # fmt: skip


@pytest.fixture
def way(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(options, "_way", "python")
    monkeypatch.setattr(options, "_own", {})
    monkeypatch.delenv(options.CALLED_BY, raising=False)
    yield


def test_an_option_is_named_by_the_way_in(way: None, monkeypatch: pytest.MonkeyPatch) -> None:
    said = lambda: (named("", "output_dir"), named("train", "lr"), named("ssm", "steps"), named("", "checkpoint"))
    assert (
        said() == ("output_dir", "lr", "steps", "checkpoint") and drawn_again("d") == "mechint.report.write_report('d')"
    )
    entered()
    assert said() == ("--output-dir", "--train-lr", "--ssm-steps", "--checkpoint")
    entered(checkpoint="--model")
    assert named("", "checkpoint") == "--model" and "--run-dir=d" in drawn_again("d")
    monkeypatch.setattr(options, "_own", {})
    monkeypatch.setenv(options.CALLED_BY, "make")
    entered()
    expected = ("KNLP_MECHINT_OUTPUT_DIR", "KNLP_TRAIN_LR", "KNLP_MECHINT_SSM_STEPS", "MODELS=")
    assert said() == expected and drawn_again("d") == "MODELS=d"


def test_every_option_that_a_message_names_is_one() -> None:
    """``named("train", "lr")`` of the sources is a field of a configuration, and its symbol stands in a menu."""
    menus = "".join(
        path.read_text()
        for path in [*ROOT.glob("Kconfig*"), *ROOT.glob("*/Kconfig*"), *LIBRARY.glob("analyses/*/Kconfig*")]
    )
    used = set()
    for path in LIBRARY.rglob("*.py"):
        used |= set(re.findall(r"""named\(['"](\w*)['"], ['"](\w+)['"]\)""", path.read_text()))
    used -= {("", name) for name in (field.name for field in dataclasses.fields(ExperimentConfig))} - {("", "seed")}
    assert len(used) > 15
    for group, field in sorted(used):
        if (group, field) in {("", name) for name in analyses()}:
            continue  # the switch of an analysis
        assert field in {f.name for f in dataclasses.fields(GROUPS[group])}, (group, field)
        symbol = f"KNLP_{'' if group in options.MENUS_OF_THEIR_OWN else 'MECHINT_'}{group.upper()}{'_' * bool(group)}"
        assert f"config {symbol}{field.upper()}\n" in menus or f"config {symbol}{field.upper()}_" in menus, (
            group,
            field,
        )


def test_no_message_names_another_ways_option() -> None:
    """Flags, make's variables and symbols stand in no text of an error but through :func:`.options.named`."""
    wrong = []
    for path in LIBRARY.rglob("*.py"):
        if (
            path.relative_to(LIBRARY).parts[0] in ("scorecard",)
            or path.parent.name == "submit"
            or path.name in ("options.py", "neuron_command.py")
        ):
            continue  # commands of their own, whose flags these are
        for call in re.findall(r"(?:MechintError|NotAnswered|refuse)\((?:[^()]|\([^()]*\))*\)", path.read_text()):
            if re.search(r"KNLP_|MODELS=|RERUN|OUTPUT_DIR|MIN_ACCURACY|SKIP_STEPS|[ (]--(?!no-deps)[a-z]+-[a-z]", call):
                wrong.append((path.name, call[:120]))
    assert not wrong


def test_commands_name_their_own_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Here) -> None:
    """The same mistake through make's environment, through flags and through the documented command."""
    monkeypatch.delenv(options.CALLED_BY, raising=False)
    nothing = ("--ssm", "--checkpoint", "none*.pt")
    assert "with --checkpoint" in here(run_mechint_analysis.main, *nothing, at=tmp_path).err
    monkeypatch.setenv(options.CALLED_BY, "make")
    assert "with MODELS=" in here(run_mechint_analysis.main, *nothing, at=tmp_path).err
    monkeypatch.delenv(options.CALLED_BY)


@pytest.mark.slow
def test_the_documented_command_names_its_own_option(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "lib")}
    environment.pop(options.CALLED_BY, None)
    command = [sys.executable, str(ROOT / "scripts/mamba_mechanistic_analysis.py"), "--samples", "3"]
    command += ["--log_dir", str(tmp_path / "logs")]
    said = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path).stderr
    assert said.startswith("error: --samples is 3;") and not (tmp_path / "logs").exists()


def test_what_to_do_without_right_answers_fits_the_cause() -> None:
    task = make_task(TaskConfig(name="recall"))
    model: Any = type("Model", (), {"metadata": {"task": {"name": "recall"}}})
    assert remedy(model, task) == "Train it longer"
    assert remedy(type("Model", (), {"metadata": {}}), task) == "Choose the task that it was trained on"
    words = type("Task", (), {"name": "file", "tokenizer": object()})
    assert "become tokens" in remedy(model, words) and "longer" not in remedy(model, words)


def test_groups_of_options() -> None:
    assert group_of(StudyConfig()) == "study" and group_of(RunConfig()) == "" and flag("", "seed") == "--seed"


CONFIGS = [RunConfig, TaskConfig, TrainConfig, *ARCHITECTURES.values(), *(a.config for a in analyses().values()),
           ExperimentConfig, NeuronCommand, ScorecardConfig]  # fmt: skip


@pytest.mark.parametrize("config", list(dict.fromkeys(CONFIGS)), ids=lambda config: config.__name__)
def test_every_option_is_read(config: type) -> None:
    """Some source reads the field as an attribute, or by its name; an option that nobody reads does nothing."""
    sources = "".join(path.read_text() for path in LIBRARY.rglob("*.py"))
    unread = [
        field.name
        for field in dataclasses.fields(config)
        if not re.search(rf"\.{field.name}\b|[\"']{field.name}[\"']", sources)
    ]
    assert not unread


NO_PATHS = {"mode", "label", "model_id", "executor", "space", "answers", "labels", "scores"}
"""Options whose help speaks of files or directories and that are no path; ``scores`` are several."""


@pytest.mark.parametrize(
    "config", list(dict.fromkeys([*CONFIGS, LatentsConfig, ExportConfig])), ids=lambda config: config.__name__
)
def test_a_tilde_before_a_path_is_the_home_directory_and_elsewhere_a_character(
    config: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    if not all("option" in field.metadata for field in dataclasses.fields(config)):
        pytest.skip("options of a notebook alone")
    words = [(field.name, each) for field, kind, each in options.options(config) if kind is str and not each.choices]
    about = re.compile(r"(?i)\b(director(y|ies)|files?|finished|checkpoints?)\b")
    assert {name for name, each in words if about.search(each.help)} - NO_PATHS <= {
        name for name, each in words if each.path
    }
    for name, each in words:
        parser = options.Parser()
        options.add_flags(parser, config, "group")
        monkeypatch.setattr(options, "check", lambda *_, **__: None)
        found = options.from_flags(parser.parse_args([f"{flag('group', name)}=~/runs/one"]), config, "group")
        assert getattr(found, name) == ("/home/somebody/runs/one" if each.path else "~/runs/one"), name
