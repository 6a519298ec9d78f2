"""`mechint new analysis NAME`: what it writes is found by its entry point, has a menu, runs, and is drawn."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from mechint.analyses.base import analyses
from mechint.runner import command_line, subcommands
from mechint.runner.scaffold import command as scaffold
from mechint.utils import files
from mechint.utils.errors import MechintError
from mechint.utils.options import from_flags, options
from mechint.utils.plugins import loaded
from scripts.kconfig import mapping
from scripts.kconfig.defconfigs import find, find_all
from scripts.kconfig.loading import Menu, load, number_range
from tests.helpers.builders import tiny_mamba
from tests.helpers.commands import Here
from tests.helpers.paths import ROOT


def forget() -> None:
    loaded.cache_clear()
    analyses.cache_clear()


def install(site: Path, name: str, value: str) -> None:
    """Puts the note that an installer leaves of a package and its entry point beside it."""
    note = site / f"mechint_{name}-0.1.0.dist-info"
    note.mkdir()
    (note / "METADATA").write_text(f"Metadata-Version: 2.1\nName: mechint-{name}\nVersion: 0.1.0\n")
    (note / "entry_points.txt").write_text(f"[mechint.analyses]\n{name} = {value}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of installed packages with one that was just written: the analysis ``edge``."""
    scaffold.write("edge", tmp_path / "site")
    install(tmp_path / "site", "edge", "mechint_edge.analyzer:ANALYSIS")
    monkeypatch.syspath_prepend(tmp_path / "site")
    before = set(sys.modules)
    forget()
    yield tmp_path / "site"
    forget()
    for name in set(sys.modules) - before:
        if name.startswith(("mechint_", "test_edge")):
            del sys.modules[name]


def test_what_it_wrote_runs_and_passes_its_own_test(
    site: Path, tmp_path: Path, no_figures: None, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    test: ModuleType = importlib.import_module("test_edge")
    test.test_it_is_found()
    model = tiny_mamba(d_model=8, d_inner=12, d_state=4, dt_rank=2)
    model.norm_f.weight.data.fill_(1.0)
    test.test_its_numbers_are_those_of_the_model(model, tmp_path)
    raw = json.loads((tmp_path / "run/results.json").read_text())
    assert raw["analysis"] == "edge" and len(raw["cells"]) == len(raw["curve"]) == 2
    assert raw["control"]["models"] == 1 and len(raw["control"]["quantities"]) == 3
    assert all(0 < cell["drop"]["p"] <= 1 for cell in raw["cells"])
    said = here(lambda: subcommands.main(["edge", "--help"]), at=tmp_path)
    assert said.status == 0 and "--edge-controls" in said.out


def test_the_test_that_it_wrote_can_fail(site: Path, tmp_path: Path, no_figures: None) -> None:
    analyzer = importlib.import_module("mechint_edge.analyzer")
    test = importlib.import_module("test_edge")
    whole = analyzer.margin
    analyzer.margin = lambda model, prompts, zeroed: whole(model, prompts, []) + len(zeroed)
    with pytest.raises(AssertionError):
        test.test_its_numbers_are_those_of_the_model(tiny_mamba(), tmp_path)


def test_its_menu_flags_and_options_are_one_thing(site: Path) -> None:
    """Every option of the template has its symbol with the same default and range, and its experiment is runnable."""
    menu = load(ROOT, find(ROOT, "mamba-tiny-edge"))
    flags = mapping.arguments(menu, mapping.MECHINT)
    assert "--edge" in flags and "--no-ssm" in flags
    config = analyses()["edge"].config
    assert from_flags(command_line.parse(flags), config, "edge") == config()
    for field, _, option in options(config):
        symbol = menu.syms[f"KNLP_MECHINT_EDGE_{field.name.upper()}"]
        low, high, unit = number_range(symbol) or ("", "", "")
        assert (float(low), float(high), unit) == (option.low, option.high, option.unit)
    assert {"KNLP_MECHINT_EDGE"} | {f"KNLP_MECHINT_EDGE_{f.name.upper()}" for f, _, _ in options(config)} == {
        name for name in menu.syms if name.startswith("KNLP_MECHINT_EDGE")
    }


def test_without_the_package_nothing_is_left_of_it() -> None:
    assert "mamba-tiny-edge" not in find_all(ROOT) and "KNLP_MECHINT_EDGE" not in Menu(ROOT).syms


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("config KNLP_MECHINT_WRECK\n\tnonsense 'no such type'\n", "Kconfig:2"),
        ('config KNLP_MECHINT_SSM_STEPS\n\tint "another\'s"\n', "KNLP_MECHINT_SSM_STEPS is another's"),
        ('config SOMETHING\n\tbool "not of the analyses"\n', "SOMETHING is another's, or does not begin with"),
    ],
)
def test_a_menu_that_cannot_be_used_is_named_and_the_others_work(
    text: str, says: str, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (site / "mechint_wreck").mkdir()
    (site / "mechint_wreck/Kconfig").write_text(text)
    install(site, "wreck", "mechint_wreck.analyzer:ANALYSIS")
    menu = Menu(ROOT)
    assert "KNLP_MECHINT_EDGE" in menu.syms and "KNLP_MECHINT_WRECK" not in menu.syms and "SOMETHING" not in menu.syms
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("note: the menu of a plug-in is left out") and says in line


def test_a_plug_in_that_cannot_be_imported_may_be_switched_off_alone(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """make passes the switches of all menus, and those of a broken package are still there."""
    install(site, "wreck", "mechint_edge.nothing:ANALYSIS")
    flags = command_line.parse(["--no-wreck", "--edge", "--no-ssm"])
    assert flags.run_edge and not flags.run_ssm
    [line] = capsys.readouterr().err.splitlines()
    assert "'wreck'" in line and "ModuleNotFoundError" in line
    with pytest.raises(MechintError, match="--wreck is of a plug-in that cannot be imported"):
        command_line.parse(["--wreck"])


@pytest.mark.parametrize("name", ["a", "Edge", "a_b", "a-b", "9x", "class", "x" * 31, "", "../up"])
def test_names_that_are_none_are_refused(name: str, tmp_path: Path, here: Here) -> None:
    said = here(lambda: subcommands.main(["new", "analysis", name, "--directory", "d"]), at=tmp_path)
    assert said.status == 2 and "is no name of an analysis" in said.err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["ssm", "trace", "train", "new", "task", "checkpoint", "seed", "prompt", "no"])
def test_names_that_are_taken_are_refused(name: str, tmp_path: Path, here: Here) -> None:
    said = here(lambda: subcommands.main(["new", "analysis", name]), at=tmp_path)
    assert said.status == 2 and f"is called {name!r} already" in said.err and not list(tmp_path.iterdir())


def test_a_directory_with_files_is_left_alone(tmp_path: Path, here: Here) -> None:
    (tmp_path / "mechint-edge").mkdir()
    (tmp_path / "mechint-edge/mine").write_text("mine")
    said = here(lambda: subcommands.main(["new", "analysis", "edge"]), at=tmp_path)
    assert said.status == 2 and "mechint-edge is there already" in said.err
    assert [path.name for path in (tmp_path / "mechint-edge").iterdir()] == ["mine"]


def test_a_dry_run_writes_nothing(tmp_path: Path, here: Here) -> None:
    said = here(lambda: subcommands.main(["new", "analysis", "edge", "--dry-run"]), at=tmp_path)
    assert said.status == 0 and "mechint_edge/Kconfig" in said.out and not list(tmp_path.iterdir())


def test_the_words_of_the_template_are_all_replaced(tmp_path: Path) -> None:
    written = scaffold.write("edge", tmp_path / "d")
    assert len(written) == 8 and not any(re.search("@name@", path.read_text(), re.IGNORECASE) for path in written)


@pytest.mark.parametrize("there", [True, False])
def test_a_package_is_written_whole_or_not_at_all(there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk the first files stayed, and the next try was refused because of them."""
    written: list[Path] = []
    write_text = files.write_text

    def full(path: Path, text: str) -> Path:
        written.append(path)
        if len(written) > 3:
            raise OSError(28, "No space left on device", str(path))
        return write_text(path, text)

    place = tmp_path / "above" / "new"
    if there:
        place.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space") as raised:
        patched.setattr(files, "write_text", full)
        scaffold.write("edge", place)
    assert len(written) == 4 and Path(raised.value.filename).is_relative_to(place)
    assert sorted(tmp_path.rglob("*")) == before
    assert all(path.is_file() and path.is_relative_to(place) for path in scaffold.write("edge", place))
