"""Finished circuits read back onto models, and refused by models of another shape."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mechint
from mechint.analyses.ablation import Ablation
from mechint.analyses.circuits.kv import KVCircuitAnalyzer
from mechint.analyses.circuits.stored import load_circuit
from mechint.interventions.unit_kinds import KV_UNITS
from mechint.interventions.units import Units
from mechint.utils.errors import MechintError
from tests.helpers.builders import tiny_gpt2, tiny_llama, tiny_mamba, tokens
from tests.helpers.circuit_runs import write_run
from tests.helpers.kv import SMALL, known_circuit, loaders, truth


@pytest.mark.parametrize("unit", list(KV_UNITS))
@pytest.mark.parametrize("family", [tiny_gpt2, tiny_llama])
def test_a_circuit_comes_back_as_the_mask_it_was(family: Any, unit: str, tmp_path: Path) -> None:
    model, ids = family(vocab_size=32).requires_grad_(False), tokens(2, 7)
    units = Units(model, KV_UNITS[unit])
    mask = (torch.rand(units.total, generator=torch.Generator().manual_seed(3)) < 0.5).float()
    mask[0], mask[-1] = 1.0, 0.0
    run = write_run(tmp_path / "run", model, unit, mask)
    for place in (run, run / "final_masks.pt"):
        circuit = load_circuit(place, model)
        assert torch.equal(circuit.mask, mask) and circuit.ablation == "mean"
    wanted = units.edits(mask, dict.fromkeys(units.sites, 0.0))
    by_hand = mechint.run(model, ids, edits=wanted).logits
    assert torch.equal(mechint.run(model, ids, edits=circuit.edits()).logits, by_hand)
    assert not torch.equal(by_hand, model(ids))


def test_the_circuit_of_an_analysis_keeps_its_faithfulness(tmp_path: Path) -> None:
    """Found by the analysis, read back, and measured by hand: the KL to the model is nothing."""
    model, (discovery, evaluation) = known_circuit(), loaders()
    run = write_run(tmp_path / "run", model, "kv", truth())
    circuit, batch = load_circuit(run, model), evaluation.batches[0]
    ablation = Ablation(model, circuit.units, circuit.ablation, discovery.batches, discovery.task.aligned)
    kept = mechint.run(model, batch.tokens, edits=circuit.edits(ablation.fills(batch))).logits
    torch.testing.assert_close(kept, model(batch.tokens), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"n_head": 2, "d_model": 12}, ("2 layers of 2 x 3 x 4", "2 layers of 2 x 2 x 6", "heads")),
        ({"n_layer": 3}, ("2 layers of", "3 layers of")),
    ],
)
def test_a_model_of_another_shape_is_refused_and_both_are_named(
    other: dict[str, int], words: tuple[str, ...], tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", known_circuit(), "kv", truth())
    with pytest.raises(MechintError) as error:
        load_circuit(run, tiny_gpt2(vocab_size=32, **other))
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_another_family_a_missing_file_and_masks_of_another_run_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", known_circuit(), "layer", torch.tensor([1.0, 0.0]))
    with pytest.raises(MechintError, match=r"of a gpt2, and .* is a mamba"):  # which has layers, too
        load_circuit(run, tiny_mamba())
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps(results | {"unit": "kv"}))
    with pytest.raises(MechintError, match=r"2 layers of 1 .* 2 layers of 2 x 3 x 4"):
        load_circuit(run, known_circuit())
    (run / "final_masks.pt").unlink()
    with pytest.raises(MechintError, match=r"final_masks\.pt is missing"):
        load_circuit(run, known_circuit())
    with pytest.raises(MechintError, match=r"results\.json is missing"):
        load_circuit(tmp_path / "nowhere", known_circuit())


# --- how attribution ranks -------------------------------------------------------------------------------------------


def test_the_attribution_curve_is_that_of_the_better_order() -> None:
    """Scores whose sizes are right and whose signs are not: by size they are the circuit, signed its opposite."""
    from tests.helpers.kv import bench

    model, test = known_circuit(), bench(known_circuit())
    analyzer = KVCircuitAnalyzer(model, dataclasses.replace(SMALL))
    right = truth() + 0.1
    for scores, order in ((right, "signed"), (-right, "size")):
        name, ranking = analyzer.ranking(test, scores, 9)
        assert name == order
        assert torch.equal(test.units.top(ranking, 9), truth())


def test_a_circuit_that_overshoots_the_model_is_not_the_better_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A faithfulness of 0.9 is closer to the model's, which is 1, than one of 1.5."""
    from tests.helpers.kv import bench

    test, analyzer = bench(known_circuit()), KVCircuitAnalyzer(known_circuit(), dataclasses.replace(SMALL))
    low, high = truth(), analyzer.units.top(-truth(), 9)
    monkeypatch.setattr(test, "faithful", lambda mask, metric: 1.5 if torch.equal(mask, high) else 0.9)
    assert torch.equal(analyzer.by_size(test, [9], -truth(), {9: low})[9], low)
    assert torch.equal(analyzer.by_size(test, [9], truth(), {9: high})[9], low)
    assert torch.equal(analyzer.by_size(test, [9], -truth(), {})[9], high)


@pytest.mark.slow_except("True")
@pytest.mark.parametrize("back", [True, False])
def test_searches_that_found_nothing_say_nothing_of_stability(back: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mechint.analyses.circuits.search.learning.Search.settle", lambda self: back)
    config = dataclasses.replace(SMALL, steps=10, seeds=2, random_circuits=2, removed_units=0)
    results = KVCircuitAnalyzer(known_circuit(), config).run_analysis(*loaders())
    assert ("jaccard" in results["metrics"]) != back
    assert (
        any(note.startswith("2 of 2 searches ended with a circuit that is worse") for note in results["notes"]) == back
    )
    assert any("Stability was not measured" in note for note in results["notes"]) == back
    assert [search["went_back"] for search in results["searches"]] == [back, back]
