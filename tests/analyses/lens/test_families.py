"""The lenses on every declared family: what parts add is the logit, and the last site gives the model's own logits."""

from __future__ import annotations

from pathlib import Path

import pytest

from mechint.analyses.lens.contributions import contributions, part_sites
from mechint.analyses.lens.reading import LogitLens, read_answers, stream_sites

pytest.importorskip("transformers")

from tests.analyses.lens.test_reading import prompts
from tests.models.families.test_parity import JUDGES, random_model


@pytest.mark.slow_except("(zamba2|gemma2|granitemoehybrid|olmo2|olmo)")
@pytest.mark.parametrize("name", JUDGES)
def test_contributions_add_up_and_the_last_site_gives_the_models_logits(name: str, tmp_path: Path) -> None:
    """Post-norms, multipliers, capped and scaled logits, and embeddings that are carried behind the stream."""
    model, asked = random_model(name, 0, tmp_path).requires_grad_(False), prompts()
    assert contributions(model, asked, True).remainder <= 1e-10
    assert set(part_sites(model)) >= set(model.first_sites)
    kl = read_answers(model, asked, stream_sites(model), {"logit": LogitLens()})["logit"][:, :, -1]
    assert float(kl[:, -1].abs().max()) < 1e-12 and float(kl[:, 0].min()) > 0
