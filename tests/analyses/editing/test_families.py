"""Every declared family has maps, and an edit of each gives its value at the edited token."""

from __future__ import annotations

from pathlib import Path

import pytest

from mechint.analyses.editing.maps import NAMES

pytest.importorskip("transformers")

from tests.analyses.editing.test_maps import edits_meet_their_value
from tests.models.families.test_parity import JUDGES, random_model


@pytest.mark.slow_except("(qwen3_next|jamba|olmo_hybrid)")
@pytest.mark.parametrize("name", JUDGES)
def test_every_declared_family_has_maps_that_can_be_edited(name: str, tmp_path: Path) -> None:
    model = random_model(name, 0, tmp_path).requires_grad_(False)
    found = edits_meet_their_value(model)
    assert found <= set(NAMES)
    assert ("down_proj" in found) >= any(type(part).__name__ in ("MLP", "GatedMLP") for part in model.every_part)
    assert ("out_proj" in found) == bool(model.carried_sites and "state" in model.carried_sites)
