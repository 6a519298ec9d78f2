"""Edits and cuts of a matrix memory against its exact map, and the parts that can be watched."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import mechint
from mechint.interventions.model import having
from mechint.scan.matrix import Writes, matrix_map

pytest.importorskip("transformers")

from tests.models.families.test_parity import TIGHT, error, prompt, random_model

RECURRENT = ("mamba2", "falcon_h1", "bamba", "kimi_linear", "olmo_hybrid", "qwen3_next")


@pytest.mark.parametrize("name", RECURRENT)
def test_a_cut_at_the_state_removes_what_the_map_says(name: str, tmp_path: Path) -> None:
    """y_i loses M[i, j] v_j for each source j, at the chosen readers alone; whole and behind a cache."""
    model, tokens = random_model(name, 0, tmp_path), prompt()
    layer = having(model, "state")[0]
    at = lambda site: f"layers.{layer}.{site}"
    erases = at("erase") in model.sites
    sites = [at(site) for site in ("decay", "key", "value", "query", "scan_out", *["erase"] * erases)]
    with torch.no_grad():
        clean = mechint.run(model, tokens, record=sites)
        erased = (clean[at("erase")], clean[at("key")]) if erases else (None, None)
        w = Writes(clean[at("decay")], clean[at("key")], clean[at("value")], *erased)
        exact = matrix_map(w, clean[at("query")])
        readers, sources = [5, 9], [1, 4]
        cut = mechint.Edit(at("state"), "cut", positions=readers, sources=sources)
        found = mechint.run(model, tokens, record=[at("scan_out")], edits=[cut])
        expected = clean[at("scan_out")].clone()
        for i in readers:
            for j in sources:
                expected[:, i] -= exact[:, :, i, j, None] * w.value[:, j]
        assert error(found[at("scan_out")], expected) <= TIGHT
        assert not torch.equal(found[at("scan_out")], clean[at("scan_out")])
        steps = mechint.generate(model, tokens[:, :7], 5, edits=[cut])
        whole = mechint.run(model, steps.tokens[:, :-1], edits=[cut]).logits
        assert error(steps.logits, whole) <= TIGHT


@pytest.mark.parametrize("name", ["kimi_linear", "olmo_hybrid"])
def test_without_erasing_a_delta_rule_is_gated_linear_attention(name: str, tmp_path: Path) -> None:
    model, tokens = random_model(name, 0, tmp_path), prompt()
    layer = having(model, "erase")[0]
    at = lambda site: f"layers.{layer}.{site}"
    with torch.no_grad():
        sites = [at(site) for site in ("decay", "key", "value", "query", "scan_out")]
        run = mechint.run(model, tokens, record=sites, edits=[mechint.Edit(at("erase"), "scale", 0.0)])
        exact = matrix_map(Writes(run[at("decay")], run[at("key")], run[at("value")]), run[at("query")])
        read = torch.einsum("bhij,bjhv->bihv", exact, run[at("value")])
        assert error(run[at("scan_out")], read) <= TIGHT


def test_parts_of_a_hybrid_are_watched_and_those_of_other_layers_named(tmp_path: Path) -> None:
    model = random_model("falcon_h1", 0, tmp_path / "h1")
    with mechint.watch(model, [(0, "mamba"), (0, "self_attn"), (0, "feed_forward"), (0, "block")]) as parts:
        model(prompt())
    run = mechint.run(model, prompt(), record=["layers.0.*"])
    for name, (before, after) in {
        "mamba": ("ln_1", "ssm_out"), "self_attn": ("ln_1", "attn_out"), "feed_forward": ("ln_2", "mlp_out"),
        "block": ("resid_pre", "resid_post"),
    }.items():  # fmt: skip
        assert torch.equal(parts[0, name].output, run[f"layers.0.{after}"])
        assert torch.equal(parts[0, name].input, run[f"layers.0.{before}"])
    models = (random_model("bamba", seed, tmp_path / str(seed)) for seed in range(20))
    mixed = next(model for model in models if 0 < len(having(model, "attn_out")) < model.num_layers)
    lacking = next(i for i in range(mixed.num_layers) if i not in having(mixed, "attn_out"))
    with (
        pytest.raises(mechint.MechintError, match="has no part 'self_attn'; other layers have it"),
        mechint.watch(mixed, [(lacking, "self_attn")]),
    ):
        pass
