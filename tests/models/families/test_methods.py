"""The page of methods and families has no hole, is what README says, and what its pairs do when they are run."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

from mechint.analyses.base import analyses
from mechint.models.families import declared
from tests.models.families.methods import FAMILIES, METHODS, OLD, outcomes
from tests.models.families.write_methods import PAGE, README, page, read, short, with_table

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
