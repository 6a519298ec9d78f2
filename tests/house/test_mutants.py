"""The hand-made mutants can be applied: each names a line that is there once, and tests that are there."""

from __future__ import annotations

import pytest

from scripts.mutants.by_hand import MUTANTS, Mutant, stale
from tests.helpers.paths import ROOT


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.file}: {mutant.mutated[:40]}")
def test_a_mutant_can_be_applied(mutant: Mutant) -> None:
    assert list(stale(mutant)) == []
    assert (ROOT / mutant.tests.split()[0]).exists()
