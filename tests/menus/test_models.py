"""MODELS= takes a path, a glob or a name."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechint.models.loading.discover import find_checkpoints
from mechint.utils.checkpoint_step import SUFFIXES
from mechint.utils.errors import MechintError
from scripts.kconfig.defconfigs import ConfigError, find
from scripts.kconfig.loading import load, save
from scripts.kconfig.models import classify, natural, override
from tests.helpers.paths import ROOT


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for path in (
        "one.pt",
        "run/final_model_stepV10.pt",
        "run/final_model_stepV2.pt",
        "run/best_model_stepV2.pt",
        "other/b10.pt",
        "other/b9.pt",
        "hf/config.json",
        "hf/model.safetensors",
        "done/final_masks.pt",
        "traced/effects.pt",
        "done/report.html",
        "several/b/final_masks.pt",
        "several/a/final_masks.pt",
        "mixed/final_model_stepV0.pt",
        "trained/final_model_stepV0/model.safetensors",
        "trained/best_model_stepV0/model.safetensors",
        "mixed/analysis/final_masks.pt",
        "empty/readme.txt",
        "odd [1] name/final_model_step0.pt",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    return tmp_path


CHOICES = {
    "a file": ("one.pt", "one.pt", False, "a checkpoint file"),
    "a file, dotted": ("./one.pt", "one.pt", False, "a checkpoint file"),
    "a glob": ("run/*_step*.pt", "run/*_step*.pt", False, "best_model_stepV2.pt, run/final_model_stepV2.pt, run/final"),
    "final checkpoints": ("run", "run/final_model_step*.pt", False, "final_model_stepV2.pt, final_model_stepV10.pt"),
    "slash at the end": ("run/", "run/final_model_step*.pt", False, "directory"),
    "final directories": ("trained", "trained/final_model_step*", False, "of a directory: final_model_stepV0"),
    "other checkpoints": ("other", "other", False, "b9.pt, b10.pt"),
    "a model": ("hf", "hf", False, "config.json"),
    "an analysis": ("done", "done", True, "contains final_masks.pt: visualise only"),
    "an analysis without masks": ("traced", "traced", True, "contains effects.pt: visualise only"),
    "its masks": ("done/final_masks.pt", "done", True, "masks of a finished analysis"),
    "analyses": ("several", "several", True, "in a, b below it"),
    "checkpoints before what was made of them": ("mixed", "mixed/final_model_step*.pt", False, "final checkpoints"),
    "a hub id": ("state-spaces/mamba-130m-hf", "state-spaces/mamba-130m-hf", False, "hub id"),
    "a directory with magic": (
        "odd [1] name",
        "odd [[]1] name/final_model_step*.pt",
        False,
        "final_model_step0.pt",
    ),
}


@pytest.mark.parametrize(("models", "value", "finished", "why"), CHOICES.values(), ids=CHOICES)
def test_what_is_chosen_and_why(place: Path, models: str, value: str, finished: bool, why: str) -> None:
    chosen = classify(models, place)
    assert (chosen.value, chosen.finished) == (value, finished)
    assert why in chosen.why
    absolute = models if "hub" in why else str(place / models)
    assert classify(absolute, Path("/")).why.replace(f"{place}/".lstrip("/"), "") == chosen.why


@pytest.mark.parametrize(
    ("models", "says"),
    [
        ("nothing/*.pt", "matches nothing"),
        ("empty", "nothing to analyse"),
        ("absent.pt", "does not exist"),
        ("run/absent", "does not exist"),
        ("organisation/model.pt", "does not exist"),
        ("a/b/c", "does not exist"),
        ("../up", "does not exist"),
        ("two\nlines", "control character"),
    ],
)
def test_what_is_nothing_is_an_error(place: Path, models: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        classify(models, place)
    assert f"MODELS={models}" in str(caught.value) or "control" in says


def test_an_override_persists_and_turns_training_off(place: Path) -> None:
    file = place / ".config"
    menu = load(ROOT, find(ROOT, "mamba-tiny-recall-mechint"))
    assert "KNLP_MECHINT_RUN_DIR=several" in override(menu, "several", place, "it")
    save(menu, ROOT, file)
    menu = load(ROOT, file)
    assert menu.syms["KNLP_TRAIN"].str_value == "n"
    assert menu.syms["KNLP_MECHINT_MODE_FROM_RUNS"].str_value == "y"
    assert "KNLP_MECHINT_CHECKPOINT" not in file.read_text()
    override(menu, "run", place, "it")
    save(menu, ROOT, file)
    menu = load(ROOT, file)
    assert menu.syms["KNLP_MECHINT_MODE_POSTTRAIN"].str_value == "y"
    assert menu.syms["KNLP_MECHINT_CHECKPOINT"].str_value == "run/final_model_step*.pt"
    assert "KNLP_MECHINT_RUN_DIR" not in file.read_text()


def test_an_override_needs_a_configuration_that_analyses(place: Path) -> None:
    menu = load(ROOT, find(ROOT, "mamba-tiny-recall"))
    with pytest.raises(ConfigError, match="KNLP_MECHINT is off in mamba-tiny-recall"):
        override(menu, "one.pt", place, "mamba-tiny-recall")


@given(st.lists(st.integers(0, 10**6), min_size=1))
def test_names_are_sorted_as_people_count(numbers: list[int]) -> None:
    assert natural(f"step{n}.pt" for n in numbers) == [f"step{n}.pt" for n in sorted(numbers)]


def test_natural_order_takes_any_names() -> None:
    assert natural(["b", "a10", "10", "a9", "", "a"]) == ["", "10", "a", "a9", "a10", "b"]


NAMES = ("run{}", "run{}.bak", "state.resume{}", "step2{}")


@pytest.mark.parametrize("ending", [*SUFFIXES, ".txt", ".json"])
@pytest.mark.parametrize("name", NAMES)
def test_a_directory_has_the_checkpoints_that_the_loader_finds_in_it(ending: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / name.format(ending)).touch()
    try:
        found: list[str] = find_checkpoints(str(tmp_path / "there"))
    except MechintError:
        found = []
    if found:
        chosen = classify("there", tmp_path)
        assert chosen.value == "there" and f"a directory of checkpoints: {name.format(ending)}" in chosen.why
    else:
        with pytest.raises(ConfigError, match="nothing to analyse"):
            classify("there", tmp_path)
    others = name == "run{}.bak" or ending == ".bin" or name.format(ending).endswith(".resume.pt")
    assert bool(found) == (ending in SUFFIXES and not others)
