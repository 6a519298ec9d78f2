"""The page of methods and families has no hole, is what README says, and what its pairs do when they are run."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers")

from mechint.analyses.base import analyses
from mechint.models.families import declared
from tests.models.families import write_methods
from tests.models.families.methods import FAMILIES, METHODS, OLD, outcomes
from tests.models.families.write_methods import PAGE, README, asked_for, page, read, short, with_table

ROWS = read(PAGE.read_text(encoding="utf-8"))
CHEAP = ("transplant", "map", "decompose", "relevance", "lag")
"""Methods that take no time."""


def test_every_family_and_every_method_is_on_the_page() -> None:
    assert list(ROWS) == list(FAMILIES) == [*OLD, *(name for name in FAMILIES if name not in OLD)]
    assert {family.name for family in declared().values()} == set(FAMILIES) - {*OLD}
    assert set(analyses()) <= set(METHODS)
    assert all(list(row) == list(METHODS) for row in ROWS.values())


def test_the_page_and_the_readme_are_made_of_the_same_outcomes() -> None:
    """Run ``python -m tests.models.families.write_methods`` where this fails."""
    assert PAGE.read_text(encoding="utf-8") == page(ROWS)
    readme = README.read_text(encoding="utf-8")
    assert readme == with_table(readme, ROWS) and short(ROWS) in readme


def test_a_run_that_is_stopped_keeps_what_it_has_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names choose families and methods, and each family is on the page once it is done."""
    assert asked_for(["lag", "mamba2"]) == (["mamba2"], ("lag",))
    assert asked_for([]) == (list(FAMILIES), tuple(METHODS))
    with pytest.raises(SystemExit, match="no family and no method is called lags"):
        asked_for(["lags"])
    for name, path in (("PAGE", PAGE), ("README", README)):
        monkeypatch.setattr(write_methods, name, tmp_path / path.name)
        (tmp_path / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    done = []

    def stopped(family: str, methods: tuple[str, ...]) -> dict[str, str]:
        if done:
            raise KeyboardInterrupt
        done.append(family)
        return dict.fromkeys(methods, "this model is refused here for a reason of the test")

    monkeypatch.setattr(write_methods, "outcomes", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_methods.main(["lag", "gpt2", "mamba2"])
    found = read((tmp_path / PAGE.name).read_text(encoding="utf-8"))
    expected = {family: dict(row) for family, row in ROWS.items()}
    expected["gpt2"]["lag"] = "this model is refused here for a reason of the test"
    assert found == expected


def test_every_refusal_is_a_sentence_that_names_no_file() -> None:
    for row in ROWS.values():
        for reason in filter(None, row.values()):
            assert "/" not in reason and len(reason) > 30 and "Error" not in reason


@pytest.mark.slow_except("gpt2|falcon_h1")
@pytest.mark.parametrize("family", FAMILIES)
def test_what_takes_no_time_is_as_the_page_says(family: str) -> None:
    assert outcomes(family, CHEAP) == {name: ROWS[family][name] for name in CHEAP}


@pytest.mark.exhaustive
@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_is_as_the_page_says(family: str) -> None:
    assert outcomes(family) == ROWS[family]
