"""Plug-ins of installed packages: found by their entry points, and a broken one named without stopping the others."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Iterator
from typing import Any

import pytest

from mechint.analyses.base import analyses
from mechint.models import families
from mechint.utils.errors import MechintError
from mechint.utils.plugins import GROUPS, loaded, plugins


class Entry:
    """An entry point that gives an object, or raises an error."""

    def __init__(self, name: str, loaded: Any) -> None:
        self.name, self.value, self.loaded = name, f"package.{name}:X", loaded

    def load(self) -> Any:
        if isinstance(self.loaded, BaseException):
            raise self.loaded
        return self.loaded


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[Entry]]]:
    """The entry points of each group; the registries are read again with them."""
    there: dict[str, list[Entry]] = {group: [] for group in GROUPS}
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: there[group])
    forget()
    yield there
    forget()


def forget() -> None:
    for cached in (loaded, analyses, families.declared):
        cached.cache_clear()


def test_an_analysis_and_a_family_are_added(installed: dict[str, list[Entry]]) -> None:
    sparsity = dataclasses.replace(analyses()["sparsity"], name="sparsity_again", report_kind="sparsity")
    duet = dataclasses.replace(families.declared()["mamba2"], name="duet", also=())
    forget()
    installed["mechint.analyses"].append(Entry("again", sparsity))
    installed["mechint.families"].append(Entry("duet", [duet]))
    assert analyses()["sparsity_again"] is sparsity and families.declared()["duet"] is duet


def test_one_that_cannot_be_imported_is_named_and_the_rest_works(
    installed: dict[str, list[Entry]], capsys: pytest.CaptureFixture[str]
) -> None:
    installed["mechint.families"] += [
        Entry("broken", ImportError("no module named nothing\nat all")),
        Entry("fine", []),
    ]
    assert "mamba2" in families.declared() and list(plugins("mechint.families")) == ["fine"]
    said = capsys.readouterr().err
    assert "'broken' (package.broken:X)" in said and "ImportError: no module named nothing" in said
    assert said.count("\n") == 1


def test_two_of_one_name_and_things_of_another_kind_are_refused(installed: dict[str, list[Entry]]) -> None:
    mamba2 = families.declared()["mamba2"]
    forget()
    installed["mechint.families"].append(Entry("copy", [mamba2]))
    with pytest.raises(MechintError, match="the plug-in 'copy' declares a second family called 'mamba2'"):
        families.declared()
    trace = analyses()["trace"]
    forget()
    installed["mechint.analyses"].append(Entry("copy", trace))
    with pytest.raises(MechintError, match=r"'copy' of the group mechint.analyses declares a second 'trace'"):
        analyses()
    forget()
    installed["mechint.analyses"][:] = [Entry("number", 7)]
    with pytest.raises(MechintError, match=r"'number' of the group mechint.analyses names no Analysis"):
        analyses()


def test_a_module_that_ends_the_program_ends_nothing(
    installed: dict[str, list[Entry]], capsys: pytest.CaptureFixture[str]
) -> None:
    for group in GROUPS:
        installed[group].append(Entry("script", SystemExit("usage: script FILE")))
    assert "trace" in analyses() and "mamba2" in families.declared()
    assert capsys.readouterr().err.count("SystemExit: usage: script FILE") == 2


@pytest.mark.parametrize("name", ["", "two words", "--help", "Große", "9lives", "a/b", "a-b"])
def test_an_analysis_with_a_name_that_no_option_can_have_is_refused(
    name: str, installed: dict[str, list[Entry]]
) -> None:
    trace = analyses()["trace"]
    forget()
    installed["mechint.analyses"].append(Entry("odd", dataclasses.replace(trace, name=name)))
    with pytest.raises(MechintError, match=r"the plug-in 'odd' .* is no name of a command and an option"):
        analyses()


def test_an_analysis_behind_one_that_there_is_not_is_one_line(installed: dict[str, list[Entry]]) -> None:
    """It was a ValueError, with a traceback, of every command."""
    trace = analyses()["trace"]
    forget()
    installed["mechint.analyses"].append(Entry("late", dataclasses.replace(trace, name="late", after=("nothing",))))
    with pytest.raises(MechintError, match="late after nothing; correct the plug-in of these, or uninstall it"):
        analyses()


@pytest.mark.parametrize("wrong", [7, None, ["mamba2"], "mamba2"])
def test_a_plug_in_that_is_no_list_of_families_is_one_line(wrong: Any, installed: dict[str, list[Entry]]) -> None:
    installed["mechint.families"].append(Entry("odd", wrong))
    with pytest.raises(MechintError, match="the plug-in 'odd' names no list of families"):
        families.declared()
