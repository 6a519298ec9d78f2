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
        if isinstance(self.loaded, Exception):
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
