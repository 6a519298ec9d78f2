"""Circuits of features as an analysis: a model whose head reads known directions, choice of dictionaries, reports."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mechint import MechintError, run, sae
from mechint.analyses.ablation import Ablation
from mechint.analyses.circuits.bench import Bench, removed
from mechint.analyses.circuits.features import (
    ANALYSIS,
    FeatureCircuitAnalyzer,
    FeatureCircuitConfig,
    digest,
    lacks,
    refuse,
)
from mechint.analyses.dictionaries.analyzer import SAEAnalysisConfig
from mechint.analyses.dictionaries.stored import one_for_each_site
from mechint.analyses.loader import PromptLoader
from mechint.analyses.options import RunConfig
from mechint.runner.experiment import run_experiment
from mechint.runner.request import Experiment
from mechint.sae.base import SAEConfig, SparseAutoencoder
from mechint.tasks import TaskConfig, make_task
from mechint.utils import files
from tests.helpers.builders import tiny_gpt2, tiny_mamba
from tests.helpers.experiments import checkpoint
from tests.helpers.feature_units import prompts, units_of
from tests.helpers.transcoders import transcoder

TASK = TaskConfig(name="recall", pairs=2, keys=12, values=12)
SITE = "layers.0.resid_post"
SMALL = FeatureCircuitConfig(
    search="budget", budget=6, steps=30, seeds=1, random_circuits=8, removed_units=3, bootstrap=100, min_accuracy=0.0,
    prompts=16, eval_prompts=16, control_tokens=2048, read=4, ablation="zero",
)  # fmt: skip
READ = {0, 1, 2, 5, 6, 7}
"""Latents of the directions that the head reads."""


def known_model() -> Any:
    """Its head reads three of five directions of the last residual."""
    model = tiny_mamba(n_layer=1, d_model=5, tied=False, vocab_size=make_task(TASK).vocab_size).requires_grad_(False)
    with torch.no_grad():
        model.norm_f.weight.fill_(1.0)
        model.lm_head.weight[:, 3:] = 0
        model.lm_head.weight *= 4
        model.embedding.weight[:, 3:] *= 0.01  # so that the norm's scale does not depend on the others
        model.layers[0].out_proj.weight[3:] *= 0.01
    return model


def exact() -> SparseAutoencoder:
    """Both signs of every direction: the whole activation, without an error."""
    made = sae.make(SAEConfig("relu", 5, 10, site=SITE, layer=0, model_family="mamba")).inference()
    axes = torch.cat([torch.eye(5), -torch.eye(5)])
    made.W_dec.copy_(axes)
    made.W_enc.copy_(axes.T)
    return made


def half_blind() -> SparseAutoencoder:
    """The same without the directions that the head reads: everything that matters is the error."""
    made = exact()
    made.W_dec[list(READ)] = 0
    return made


def loaders() -> list[PromptLoader]:
    return [PromptLoader(make_task(TASK), split, 16, 8, 0) for split in ("discovery", "evaluation")]


def analyse(directory: Path, dictionary: SparseAutoencoder, **changes: Any) -> dict[str, Any]:
    sae.save(dictionary, directory / "shelf" / "mine")
    config = replace(SMALL, dictionaries=str(directory / "shelf"), **changes)
    analyzer = FeatureCircuitAnalyzer(known_model(), config, run_dir=directory / "run")
    results = analyzer.run_analysis(*loaders())
    analyzer.save_results()
    return results


@pytest.mark.slow
def test_it_finds_the_latents_that_the_head_reads_and_says_what_it_owes_to_errors(tmp_path: Path) -> None:
    results = analyse(tmp_path, exact())
    [kept] = results["layers"]
    assert set(kept["units"]) == READ and (kept["site"], kept["total"], kept["kept"]) == (SITE, 11, 6)
    metrics = {name: entry["value"] for name, entry in results["metrics"].items()}
    assert metrics["faithfulness"] > 0.8 > metrics["faithfulness_random"]
    assert metrics["faithfulness_latents"] == pytest.approx(metrics["faithfulness"])  # no error was kept
    assert metrics["faithfulness_errors"] == pytest.approx(0, abs=1e-6)
    assert metrics["faithfulness_all_latents"] == pytest.approx(1, abs=1e-5)
    assert {"completeness", "mask_on_random_weights", "minimality"} <= set(metrics)
    for name in ("faithfulness_latents", "faithfulness_errors"):
        assert {"metric", "ablation", "sites", "n", "interval"} <= set(results["metrics"][name])
    [told] = results["dictionaries"]
    assert told["name"] == "mine" and told["site"] == SITE and len(told["sha256"]) == 64
    read = files.read_json(tmp_path / "run/features/mine.json")
    assert len(read["features"]) == 4 and {feature["id"] for feature in read["features"]} <= READ
    masks = torch.load(tmp_path / "run/final_masks.pt", weights_only=True)
    assert list(masks) == [SITE] and int(masks[SITE]["mask"].sum()) == 6
    json.dumps(results, allow_nan=False)
    assert "kept            6 of 11 latents" in ANALYSIS.summary(results)[0]


def test_what_no_latent_explains_is_the_errors(tmp_path: Path) -> None:
    results = analyse(tmp_path, half_blind(), budget=1, control_tokens=0)
    assert results["layers"][0]["units"] == ["error"]
    metrics = {name: entry["value"] for name, entry in results["metrics"].items()}
    assert metrics["faithfulness_errors"] == pytest.approx(metrics["faithfulness"]) and metrics["faithfulness"] > 0.8
    assert metrics["faithfulness_all_latents"] < 0.2
    assert "mask_on_random_weights" not in metrics and any("not asked for" in note for note in results["notes"])


def test_a_transcoder_is_searched_controlled_and_read_like_a_dictionary(tmp_path: Path) -> None:
    model = tiny_gpt2(vocab_size=make_task(TASK).vocab_size, n_ctx=32).requires_grad_(False)
    sae.save_transcoder(transcoder(model, 1, architecture="topk", skip=True), tmp_path / "shelf" / "mine")
    config = replace(SMALL, dictionaries=str(tmp_path / "shelf"), budget=5, read=2)
    analyzer = FeatureCircuitAnalyzer(model, config, run_dir=tmp_path / "run")
    results = analyzer.run_analysis(*loaders())
    analyzer.save_results()
    [kept], [told] = results["layers"], results["dictionaries"]
    assert (kept["site"], kept["total"], kept["kept"]) == ("layers.1.mlp_out", 18, 5)
    assert (told["site"], told["reads"], told["d_sae"]) == ("layers.1.mlp_out", "layers.1.ln_2", 16)
    metrics = {name: entry["value"] for name, entry in results["metrics"].items()}
    expected = {"faithfulness", "faithfulness_errors", "mask_on_random_weights", "mask_for_exchanged_answers"}
    assert expected | {f"faithfulness_{part}" for part in ("skips", "explained", "all_explained")} <= set(metrics)
    assert kept["skip"] and any("its skip connection is one unit, and the error is" in one for one in results["notes"])
    control = analyzer.stages.get("random weights dictionaries", dict)["layers.1.mlp_out"]
    assert control["W_enc"].shape == (12, 16) and control["W_skip"].abs().max() > 0 == control["W_skip"].isnan().sum()
    read = files.read_json(tmp_path / "run/features/mine.json")
    assert {feature["id"] for feature in read["features"]} <= {
        unit for unit in kept["units"] if unit not in ("skip", "error")
    }
    digests = [digest(one) for one in (transcoder(model, 1), transcoder(model, 1, seed=1), transcoder(model, 0))]
    assert len(set(digests)) == 3
    json.dumps(results, allow_nan=False)


def test_removing_units_one_at_a_time_is_a_mask_of_its_own_each() -> None:
    model = tiny_mamba().requires_grad_(False)
    units, batch = units_of(model, ("layers.0.out", "layers.1.out")), prompts(4, 6)
    bench = Bench(model, units, Ablation(model, units, "mean", [batch], True), [batch])
    mask = units.random([9, 12], torch.Generator().manual_seed(1))
    numbers = mask.nonzero()[:, 0].tolist()[::5]
    found = removed(bench, mask, numbers, "kl")
    for k, number in enumerate(numbers):
        alone = mask.index_fill(0, torch.tensor([number]), 0.0)
        torch.testing.assert_close(found[:, k], bench.measure(alone)["kl"], rtol=1e-4, atol=1e-6)
    assert units.errors().nonzero()[:, 0].tolist() == [16, 33] and [len(part) for part in units.by_layer(mask)] == [
        17,
        17,
    ]


def test_dictionaries_are_chosen_by_name_or_by_what_they_lose(tmp_path: Path) -> None:
    for name, site in (("a-k4", SITE), ("a-k8", SITE), ("b-k4", "layers.0.out")):
        made = exact()
        made.config = replace(made.config, site=site)
        sae.save(made, tmp_path / "dictionaries" / name)
    with pytest.raises(MechintError, match=r"several dictionaries \(a-k4, a-k8\); name the one"):
        one_for_each_site(tmp_path, "")
    assert list(one_for_each_site(tmp_path, "*-k4")) == ["a-k4", "b-k4"]
    assert list(one_for_each_site(tmp_path, "a-k8")) == ["a-k8"]
    with pytest.raises(MechintError, match=r"no dictionary 'a-k9'; did you mean|no dictionary 'a-k9'.*there are a-k4"):
        one_for_each_site(tmp_path, "a-k9")
    loss = {"a-k4": 0.3, "a-k8": 0.1, "b-k4": 0.2}
    members = [
        {"name": n, "site": "layers.0.out" if n[0] == "b" else SITE, "baseline": None,
         "metrics": {"ce_increase": {"value": v}}}
        for n, v in loss.items()
    ]  # fmt: skip
    files.write_json(tmp_path / "results.json", {"sae": {"members": members}})
    assert list(one_for_each_site(tmp_path, "")) == ["a-k8", "b-k4"]
    nameless = exact()
    nameless.config = replace(nameless.config, site="")
    sae.save(nameless, tmp_path / "other" / "x")
    with pytest.raises(MechintError, match="does not say of which site"):
        one_for_each_site(tmp_path / "other", "x")


def test_bad_requests_are_one_line_before_any_work(tmp_path: Path) -> None:
    assert lacks(SMALL, ["feature", "sae"]) is None and "the analysis that trains them (sae)" in str(
        lacks(SMALL, ["feature"])
    )
    with pytest.raises(MechintError, match="there are no dictionaries"):
        run_experiment(Experiment(RunConfig(checkpoint="none.pt", output_dir=str(tmp_path)), TASK, {"feature": SMALL}))
    assert "holds no dictionary" in str(refuse(replace(SMALL, dictionaries=str(tmp_path)), TASK))
    text = TaskConfig(name="text")
    assert "twins" in str(refuse(replace(SMALL, ablation="counterfactual"), text))
    with pytest.raises(MechintError, match="a circuit of 99 units"):
        analyse(tmp_path, exact(), budget=99)
    wide = sae.make(SAEConfig("relu", 7, 9, site=SITE)).inference()
    with pytest.raises(MechintError, match="reads 7 numbers"):
        analyse(tmp_path, wide)


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_one_experiment_trains_dictionaries_and_finds_their_circuit(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "model.pt")
    shelf = SAEAnalysisConfig(sites="out", architectures="topk", sparsity="3", ratio="2", tokens=2048, batch=256,
                              buffer=1024, bootstrap=100, causal=0, read=0, controls=False, prompts=16,
                              eval_prompts=16)  # fmt: skip
    circuit = replace(SMALL, budget=10, steps=10, random_circuits=2, control_tokens=1024, eval_prompts=64)
    wanted = RunConfig(checkpoint=str(model), output_dir=str(tmp_path / "out"), batch_size=8, visualize_curves=False)
    run_experiment(Experiment(wanted, TASK, {"sae": shelf, "feature": circuit}))
    results = json.loads((tmp_path / "out/feature/results.json").read_text())
    names = [entry["name"] for entry in results["dictionaries"]]
    assert names == ["layers.0.out-topk-k3-x2-s0", "layers.1.out-topk-k3-x2-s0"]
    assert [layer["site"] for layer in results["layers"]] == ["layers.0.out", "layers.1.out"]
    page = (tmp_path / "out/feature/report.html").read_text()
    assert "Features of the circuit" in page and "latents and errors" in page and "layers.1.out" in page
    listed = {path.name for path in (tmp_path / "out/feature/features").iterdir()}
    assert any(name.endswith(".html") for name in listed)
    assert {"feature_channel_importance.png", "faithfulness_curve.png"} <= {
        path.name for path in (tmp_path / "out/feature").iterdir()
    }
    run_experiment(Experiment(replace(wanted, mode="from_runs", run_dir=str(tmp_path / "out")), TASK, {}))
    assert (tmp_path / "out/feature/report.html").read_text() == page
    assert run(known_model(), loaders()[0].batches[0].tokens).logits.isfinite().all()
