"""Hostile values of every option, on the command line and in ``.config``: taken, or refused in one line."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kconfiglib
import pytest
import torch

from mechint.analyses.base import analyses
from mechint.analyses.options import RunConfig
from mechint.models.loading.load import hf_config, to_hf_state_dict
from mechint.runner import command_line
from mechint.tasks.config import TaskConfig
from mechint.utils.errors import MechintError
from mechint.utils.options import flag, options
from scripts import train
from scripts.kconfig import mapping
from scripts.kconfig.defconfigs import ConfigError
from scripts.kconfig.loading import Assignment, Menu, apply
from tests.helpers.builders import tiny_gpt2, tiny_mamba
from tests.helpers.fuzzing import STRINGS, tried
from tests.helpers.paths import ROOT

VALUES = [
    *STRINGS, "0", "-1", "1", "2", "01", "1.0", "1e3", "1e-400", "9" * 18, "9" * 19, "9" * 5_000, "-inf", "inf", "NaN",
    "1_000", "٣", "१", "1²", "½", "Ⅷ", "0x10", " 1", "1 ", "1,", ",1", "1,,2", "0,²", "0,९", "0-1", "1:2", "a:b", "all",
    "usual", "auto", "none", "*", "[", "**", "?", "~", "~nobody/x", "/", ".", "..", "/dev/zero", "/dev/null",
    "/proc/self/mem",
    "$HOME", "`id`", "$(id)", ";", "|", "-", "--", "--help", "=", "a=b", "name=induction",
    "pairs=²", "pairs=3+", "+", "y", "n",
]  # fmt: skip
GROUPS: dict[str, Any] = {"": RunConfig, "task": TaskConfig, **{n: a.config for n, a in analyses().items()}}
FLAGS = [(group, flag(group, field.name), kind) for group, made in GROUPS.items() for field, kind, _ in options(made)]
KEPT = ("--output-dir", "--label")
"""Options that say where results go: a hostile value would write there, and is tried by itself."""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, build in (("mamba", tiny_mamba), ("gpt2", tiny_gpt2)):
        model: Any = build()
        torch.save({"model": to_hf_state_dict(model), "config": hf_config(model)}, folder / f"{name}.pt")
    return folder


def words(rng: random.Random, checkpoints: Path, at: Path) -> list[str]:
    """A dry run of one analysis with one to three hostile options, its own or those of all."""
    name = rng.choice(list(analyses()))
    family = "gpt2" if "k" in analyses()[name].needs else "mamba"
    found = [f"--checkpoint={checkpoints / family}.pt", f"--output-dir={at / 'out'}", "--dry-run"]
    found += [f"--{'' if other == name else 'no-'}{other}" for other in analyses()]
    found += ["--task-pairs=2", "--task-keys=12", "--task-values=12"]
    groups = (name, rng.choice((name, name, "task", "")))
    mine = [entry for entry in FLAGS if entry[0] in groups and entry[1] not in KEPT]
    texts = [entry for entry in mine if entry[2] is str]  # a number is refused by the parser most often
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        _, option, kind = rng.choice(texts if rng.random() < 0.6 else mine)
        found.append(f"{option}={rng.choice(VALUES)}" if kind is not bool or rng.random() < 0.2 else option)
    return found


def commands(checkpoints: Path) -> Callable[[random.Random, Path], Callable[[], object]]:
    def case(rng: random.Random, at: Path) -> Callable[[], object]:
        said = words(rng, checkpoints, at)

        def run() -> None:
            try:
                command_line.main(arguments=said)
            except (MechintError, OSError) as error:  # each is a line of exit_status; not all name a file
                raise MechintError(f"{at}: {error}") from None
            assert not (at / "out").exists()

        return run

    return case


@pytest.fixture
def one_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    """One parser for all cases: none of them changes its defaults, and to make it takes a while."""
    made = command_line.parser()
    monkeypatch.setattr(command_line, "parser", lambda: made)


@pytest.mark.usefixtures("one_parser")
def test_hostile_options_are_taken_or_are_one_line(checkpoints: Path, tmp_path: Path) -> None:
    ends = tried(commands(checkpoints), range(120), tmp_path)
    assert ends["refused in one line"] > 40 and ends["loaded"] > 5


@pytest.mark.exhaustive
@pytest.mark.usefixtures("one_parser")
def test_many_hostile_options_are_taken_or_are_one_line(checkpoints: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    ends = tried(commands(checkpoints), range(1_000, 9_000), tmp_path)
    took = time.monotonic() - began
    print(f"options: {sum(ends.values())} tried in {took:.0f} s: {dict(ends)}, tracebacks 0, hangs 0")


def configured(menu: Menu) -> Iterator[tuple[str, bool]]:
    """(symbol, whether it is quoted) of every symbol of a number or a text."""
    for symbol in menu.unique_defined_syms:
        if symbol.orig_type in (kconfiglib.INT, kconfiglib.STRING):
            yield str(symbol.name), symbol.orig_type == kconfiglib.STRING


def settings(menu: Menu) -> Callable[[random.Random, Path], Callable[[], object]]:
    symbols = list(configured(menu))
    runners = {mapping.MECHINT: command_line.parser(), mapping.TRAIN: train.parser()}

    def case(rng: random.Random, at: Path) -> Callable[[], object]:
        name, quoted = rng.choice(symbols)
        value = rng.choice(VALUES).split("\n")[0]
        text = f'"{kconfiglib.escape(value)}"' if quoted and rng.random() < 0.9 else value
        line = Assignment(f"{at}:1", name, text)

        def run() -> None:
            menu.unset_values()
            menu.warnings.clear()
            try:
                apply(menu, [Assignment("on", "KNLP_TRAIN", "y"), Assignment("on", "KNLP_MECHINT", "y"), line])
                for runner, parser in runners.items():
                    parser.parse_all(mapping.arguments(menu, runner))
            except (ConfigError, MechintError) as error:
                raise MechintError(f"{at}: {error}") from None

        return run

    return case


def test_hostile_configurations_are_taken_or_are_one_line(tmp_path: Path) -> None:
    ends = tried(settings(Menu(ROOT)), range(100), tmp_path)
    assert ends["refused in one line"] > 30 and ends["loaded"] > 0


@pytest.mark.exhaustive
def test_many_hostile_configurations_are_taken_or_are_one_line(tmp_path: Path) -> None:
    began = time.monotonic()
    ends = tried(settings(Menu(ROOT)), range(1_000, 6_000), tmp_path)
    took = time.monotonic() - began
    print(f"configurations: {sum(ends.values())} tried in {took:.0f} s: {dict(ends)}, tracebacks 0, hangs 0")
