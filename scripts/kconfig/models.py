"""``MODELS=`` and ``BASELINE=``: what a path, a glob or a name on the command line means for the configuration.

Looks at names of files only; what is inside them is the loader's business.
"""

from __future__ import annotations

import glob
import os
import re
import runpy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import kconfiglib

from . import mapping
from .defconfigs import ConfigError

MASKS = "final_masks.pt"
MARKS = (MASKS, "effects.pt", "claims.json")  # one of them is in every finished analysis
FINAL = "final_model_step*.pt"
FINAL_DIRECTORY = "final_model_step*"
METRICS = "training_metrics_step*.json"
BELOW = ("*", "*/*", "*/*/*")  # label, checkpoint, analysis
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILE_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors", ".ckpt", ".gguf")
_IN_DIRECTORIES = tuple(ending for ending in _FILE_SUFFIXES if ending != ".bin")  # which other programs write, too


@dataclass(frozen=True)
class Chosen:
    """A finished analysis to draw again, or checkpoints to analyse, and why it was taken for that."""

    value: str
    why: str
    finished: bool = False


def natural(names: Iterable[str]) -> list[str]:
    """Sorted as people count: ``step2`` before ``step10``."""
    return sorted(
        names, key=lambda name: [(int(t), "") if t.isdecimal() else (-1, t) for t in re.split(r"(\d+)", name)]
    )


def classify(models: str, root: Path) -> Chosen:
    """Returns what ``models`` names; relative paths are below ``root``. :class:`ConfigError` when it is nothing
    usable."""
    if any(ord(character) < 32 or 0xD800 <= ord(character) < 0xE000 for character in models):
        raise ConfigError(
            f"MODELS={models!r} has a control character, or one that is no text; give one path, glob or hub id"
        )
    name = os.path.expanduser(models)
    path = root / name
    if path.is_dir():
        return _directory(os.path.normpath(name), path)
    if path.exists():
        return _file(os.path.normpath(name))
    if glob.has_magic(name):
        return _glob(name, root)
    return _absent(models, name, root)


def found_by(name: str, root: Path) -> list[str]:
    """Returns what a glob finds; the directory that a relative one is taken from is not a pattern."""
    return glob.glob(name if os.path.isabs(name) else os.path.join(glob.escape(str(root)), name), recursive=True)


WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""The usual names of a model directory's weights, as the loader knows them."""
OLD_NAMES: dict[str, str] = runpy.run_path(
    str(Path(__file__).resolve().parents[2] / "lib/mechint/models/loading/old_names.py")
)["OLD_NAMES"]
"""As the loader knows them; the library itself is not imported, which would load all that it needs."""


def _hint(name: str) -> str:
    return f"; the hub's {name} is {OLD_NAMES[name]} (MODELS={OLD_NAMES[name]})" if name in OLD_NAMES else ""


def _file(name: str) -> Chosen:
    if os.path.basename(name) in MARKS:
        return Chosen(os.path.dirname(name) or ".", "the masks of a finished analysis: visualise only", finished=True)
    return Chosen(name, "a checkpoint file")


def _glob(name: str, root: Path) -> Chosen:
    found = natural(os.path.relpath(match, root) for match in found_by(name, root))
    if not found:
        raise ConfigError(f"MODELS={name} matches nothing; name a checkpoint file, a glob that matches or a hub id")
    return Chosen(name, f"a glob that matches {_listed(found)}")


def _directory(name: str, path: Path) -> Chosen:
    def inside(pattern: str) -> list[str]:
        return natural(match.name for match in path.glob(pattern))

    for mark in MARKS:
        if inside(mark):
            return Chosen(name, f"a finished analysis, because it contains {mark}: visualise only", finished=True)
    if inside("config.json"):
        return Chosen(name, "a model directory, because it contains config.json")
    if any(inside(glob.escape(weights)) for weights in WEIGHTS):
        return Chosen(name, "a model directory, because it contains weights under their usual name")
    if found := natural(match.parent.name for weights in WEIGHTS for match in path.glob(f"*/{glob.escape(weights)}")):
        found = list(dict.fromkeys(found))
        if finals := [each for each in found if each.startswith(FINAL_DIRECTORY[:-1])]:
            pattern = os.path.join(glob.escape(name), FINAL_DIRECTORY)
            return Chosen(pattern, f"the final checkpoints of a directory: {_listed(finals)}")
        return Chosen(name, f"a directory of model directories: {_listed(found)}")
    if found := inside(FINAL):
        return Chosen(os.path.join(glob.escape(name), FINAL), f"the final checkpoints of a directory: {_listed(found)}")
    if found := [each for each in inside("*") if each.endswith(_IN_DIRECTORIES) and not each.endswith(".resume.pt")]:
        return Chosen(name, f"a directory of checkpoints: {_listed(found)}")
    for mark in MARKS:
        if found := natural(os.path.relpath(match.parent, path) for b in BELOW for match in path.glob(f"{b}/{mark}")):
            why = f"a finished analysis, because {mark} is in {_listed(found)} below it: visualise only"
            return Chosen(name, why, finished=True)
    raise ConfigError(
        f"MODELS={name} is a directory with nothing to analyse: no {MASKS}, no config.json and no "
        f"checkpoint ({', '.join(f'*{ending}' for ending in _IN_DIRECTORIES)}); "
        f"name a checkpoint, a directory of checkpoints or of a model, or a finished analysis{_hint(name)}"
    )


def _absent(models: str, name: str, root: Path) -> Chosen:
    organisation = name.split("/")[0]
    if re.fullmatch(r"output|mechint_analysis\w*|experiment_logs|runs|models|checkpoints", organisation):
        organisation = "."  # where results and models lie, by every habit; no owner of the hub
    if _HUB_ID.fullmatch(name) and not name.endswith(_FILE_SUFFIXES) and not (root / organisation).exists():
        return Chosen(name, "a hub id, because no such path exists here")
    raise ConfigError(
        f"MODELS={models} does not exist; name a checkpoint file, a glob, a directory, "
        f"or a hub id such as state-spaces/mamba-130m-hf{_hint(name)}"
    )


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:6])
    return shown if len(names) <= 6 else f"{shown} and {len(names) - 6} more"


def override(menu: kconfiglib.Kconfig, models: str, root: Path, name: str) -> str:
    """Puts ``models`` into a loaded configuration and returns the line that says what was chosen, and why.

    The checkpoints are the user's own, so training is turned off. ``name`` is what messages call the configuration.
    """
    if menu.syms["KNLP_MECHINT"].str_value != "y":
        raise ConfigError(f"MODELS= needs a configuration that analyses, and KNLP_MECHINT is off in {name}")
    chosen = classify(models, root)
    places = mapping.sources(menu)
    before = {os.path.normpath(menu.syms[f"{place}_CHECKPOINT"].str_value) for place in places}
    menu.syms["KNLP_TRAIN"].set_value(0)
    mode, symbol = ("FROM_RUNS", "RUN_DIR") if chosen.finished else ("POSTTRAIN", "CHECKPOINT")
    menu.syms[f"KNLP_MECHINT_MODE_{mode}"].set_value(2)
    for place in places:
        menu.syms[f"{place}_{symbol}"].set_value(chosen.value)
    for own in places[1:]:
        menu.syms[f"{own}_{mode}"].set_value(2)
    if not chosen.finished and os.path.normpath(chosen.value) not in before:
        menu.syms["KNLP_MECHINT_LABEL"].set_value(label(models))
    return f"MODELS={models}: {chosen.why}; {places[-1]}_{symbol}={chosen.value}"


def label(models: str) -> str:
    """A directory's name for what ``models`` names, so that the results of different models lie apart."""
    fixed = models
    while glob.has_magic(fixed):
        fixed = os.path.dirname(fixed)
    folder, name = os.path.split(os.path.normpath(fixed))
    if name.endswith(_FILE_SUFFIXES):
        name = "-".join(filter(None, [os.path.basename(folder), os.path.splitext(name)[0]]))
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")


def compare_with(menu: kconfiglib.Kconfig, baseline: str, root: Path, name: str) -> str:
    """Puts ``BASELINE=`` into a loaded configuration: a finished analysis, or a training run, to compare with."""
    path = root / os.path.expanduser(baseline)
    places = [f"{below}{mark}" for below in ("", *(f"{below}/" for below in BELOW)) for mark in MARKS]
    if path.is_dir() and any(found for place in places for found in path.glob(place)):
        kind, needs, what = "KNLP_MECHINT_BASELINE", "KNLP_MECHINT_MODE_POSTTRAIN", "a finished analysis"
    elif (path.is_file() and path.suffix == ".json") or (path.is_dir() and any(path.glob(METRICS))):
        kind, needs, what = "KNLP_TRAIN_BASELINE", "KNLP_TRAIN", "a training run"
    else:
        raise ConfigError(
            f"BASELINE={baseline} is not a run to compare with; name a finished analysis (a directory with {MASKS} in "
            f"it or below it), or the directory of a training run (with {METRICS})"
        )
    if menu.syms[needs].str_value != "y":
        raise ConfigError(f"BASELINE={baseline} is {what}, and {needs} is off in {name}")
    menu.syms[kind].set_value(os.path.normpath(os.path.expanduser(baseline)))
    return f"BASELINE={baseline}: {what} to compare with; {kind}={menu.syms[kind].str_value}"


def skip(menu: kconfiglib.Kconfig, steps: str, name: str) -> str:
    """Puts the steps that a study leaves out into a loaded configuration, and returns the line that says so."""
    if menu.syms["KNLP_MECHINT_STUDY"].str_value != "y":
        raise ConfigError(f"SKIP_STEPS= needs a configuration with a study, and KNLP_MECHINT_STUDY is off in {name}")
    menu.syms["KNLP_MECHINT_STUDY_SKIP_STEPS"].set_value(steps)
    return f"SKIP_STEPS={steps}: KNLP_MECHINT_STUDY_SKIP_STEPS={steps}"
