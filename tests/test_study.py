"""Studies of models whose circuit is known, and of random weights: claims, kills, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mechint
from mechint import study_discovery, study_tests
from mechint.claims import COMBINED, VERDICTS, claims, judge, needed_prompts
from mechint.errors import MechintError, NotAnswered
from mechint.loader import PromptLoader
from mechint.report import write_report
from mechint.study import WORK, Study, of_layer
from mechint.study_circuit import SiteUnits, chance_jaccard, sentence
from mechint.study_config import ALWAYS, DESCRIBES, RANDOM_MODELS, STEPS, StudyConfig, chosen_layers, skipped
from mechint.study_discovery import mask_said
from mechint.subspaces import shuffled_weights
from mechint.tasks import TaskConfig, make_task
from mechint.tasks.ground_truth import BLUEPRINTS, GPT2_BLUEPRINTS
from mechint.tasks.windows import Windows
from tests.builders import tiny_gpt2, tiny_mamba

QUICK = StudyConfig(
    rank=12, candidates=1, draws=59, sae_steps=10, sae_width=0.5, probes="lasso", shuffles=2, mask_steps=10, max_lag=3,
    seeds=2, prompts=32, eval_prompts=24, bootstrap=300, random_weights=False,
    min_accuracy=0.0,
)  # fmt: skip


def study(model: Any, task: Any, config: StudyConfig = QUICK, run_dir: Path | None = None) -> tuple[Study, Any]:
    made = Study(model, config, "cpu", seed=0, run_dir=run_dir, key="a test")
    sizes = (("discovery", config.prompts), ("evaluation", config.eval_prompts))
    loaders = [PromptLoader(task, split, count, 32, 0) for split, count in sizes]
    return made, made.run_analysis(*loaders)


@pytest.fixture(scope="module")
def known() -> Any:
    return BLUEPRINTS["shift"]().compile(seed=1)


@pytest.fixture(scope="module")
def finished(known: Any, tmp_path_factory: Any) -> Any:
    made, results = study(known.model, known.task, run_dir=tmp_path_factory.mktemp("study"))
    return made, results


def test_claims_on_a_known_circuit_are_the_truth(known: Any, finished: Any) -> None:
    _, results = finished
    made = [claim for claim in results["claims"]["claims"] if claim["kind"] == "circuit"]
    assert [claim["verdict"] for claim in made] == ["supported"]
    true = set(known.truth.units("channel"))
    assert all((made[0]["layer"], (unit,)) in true for unit in made[0]["units"]) and made[0]["units"]
    assert made[0]["effect"]["value"] == pytest.approx(1.0, abs=0.02) and made[0]["p_holm"] <= 0.05
    assert set(made[0]["controls"]) == {
        "random subspaces, necessity", "random subspaces, sufficiency", "random units", "shuffled tokens"
    }  # fmt: skip
    assert results["steps"]["transfer"]["status"] == "nothing"  # a compiled task has no options to change


def test_the_combined_circuit_of_a_compiled_model_is_the_declared_one(known: Any, finished: Any) -> None:
    """Of the studied site the declared channels and no other, kept alone, are the model; without them nothing is."""
    _, results = finished
    found = results["steps"]["circuit"]
    declared = {(layer, unit[0]) for layer, unit in known.truth.units("channel")}
    mine = {(int(layer), unit) for layer, entry in found["layers"].items() for unit in entry["units"]}
    assert mine and mine <= declared and found["kept"] == len(mine)
    assert found["effect"]["low"] >= 0.95 and found["accuracy"]["value"] == 1.0
    assert found["completeness"]["low"] >= 0.95 and found["random_units"]["high"] < 0.5 and found["p"] == 1 / 60
    assert found["agreement"]["value"] > found["agreement_chance"] and found["total"] == 2 * known.model.config.d_inner
    first = results["claims"]["claims"][0]
    assert first["kind"] == COMBINED and first["verdict"] == "supported"
    assert f"these {len(mine)} of {found['total']} units together" in first["claim"]
    assert found["candidates"]["units"] >= found["candidates"]["shared"] > 0


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["induction", "modular_sum", "gpt2_shift", "gpt2_induction"])
def test_combined_circuits_of_compiled_models_are_the_declared_units(name: str) -> None:
    compiled = {**BLUEPRINTS, **GPT2_BLUEPRINTS}[name]().compile(seed=1)
    config = dataclasses.replace(QUICK, skip_steps="3 4 7 8 9 10 11 13 14", mask_steps=60, prompts=64)
    _, results = study(compiled.model, compiled.task, config)
    found = results["steps"]["circuit"]
    assert found["effect"]["low"] >= 0.95 and found["accuracy"]["low"] > found["chance"]["high"]
    if name in BLUEPRINTS:
        declared = {(layer, unit[0]) for layer, unit in compiled.truth.units("channel")}
    else:  # what a head passes on is its values, dimension by dimension
        width = compiled.model.sites["layers.0.head_out"].units[1]
        declared = {(layer, unit[1] * width + unit[2]) for layer, unit in compiled.truth.units("kv") if unit[0] == 1}
    assert {(int(layer), unit) for layer, entry in found["layers"].items() for unit in entry["units"]} <= declared
    assert results["claims"]["claims"][0]["verdict"] == "supported"


def of_circuit_report(**changes: Any) -> dict[str, Any]:
    n = lambda value, low, high: {"value": value, "low": low, "high": high, "n": 50, "interval": ""}
    report = {
        "kept": 3, "total": 12, "layers": {}, "effect": n(0.9, 0.8, 0.95), "accuracy": n(0.9, 0.8, 1.0),
        "chance": n(0.1, 0.05, 0.15), "agreement": n(0.6, 0.5, 0.7), "agreement_chance": 0.2, "p": 0.005,
        "completeness": n(0.9, 0.8, 1.0), "random_units": n(0.1, 0.0, 0.3),
    }  # fmt: skip
    return {"circuit": {**report, **changes}}


def test_verdicts_of_a_combined_circuit_by_hand() -> None:
    n = lambda value, low, high: {"value": value, "low": low, "high": high, "n": 50, "interval": ""}
    config = dataclasses.replace(QUICK, draws=199)
    for changes, verdict, why in (
        ({}, "supported", ""),
        ({"accuracy": n(0.12, 0.1, 0.2)}, "refuted", "kept alone it answers 12%"),
        ({"agreement": n(0.2, 0.1, 0.3)}, "refuted", "find other units: Jaccard 0.20, by chance 0.20"),
        ({"effect": n(0.3, 0.2, 0.4)}, "refuted", "0.50"),
        ({"random_units": n(0.5, 0.4, 0.99)}, "refuted", "random units"),
        ({"p": 0.3}, "underpowered", "p = 0.3"),
        ({"agreement": None}, "supported", ""),
    ):
        [claim] = claims(of_circuit_report(**changes), config, "recall")["claims"]
        assert claim["verdict"] == verdict and why in claim["why"], (changes, claim["verdict"], claim["why"])
    [claim] = claims(of_circuit_report(), config, "recall")["claims"]
    assert claim["claim"] == (
        "these 3 of 12 units together, kept alone, carry 90% (at least 80%) of the effect of recall"
    )
    nothing = {"circuit": {"status": "nothing", "said": "Nothing to say."}}
    assert claims(nothing, config, "recall")["claims"] == []


def test_agreement_by_chance() -> None:
    """By hand: 2 of 4 units twice share 1 of 3 on average (the mean shared over the mean union)."""
    assert chance_jaccard([2], 4) == pytest.approx(1 / 3) and chance_jaccard([4], 4) == 1.0
    assert chance_jaccard([1, 1], 10) == pytest.approx(0.2 / 3.8) and chance_jaccard([0, 5], 5) == 1.0


def test_units_of_chosen_layers_are_edits_of_these_alone() -> None:
    model = tiny_mamba(n_layer=3)
    units = SiteUnits(model, {0: "layers.0.gated", 2: "layers.2.gated"})
    width = model.config.d_inner
    assert units.total == 2 * width and units.layer_names == ["layers.0", "layers.2"]
    mask = units.mask_of({"layers.2.gated": [1, 4]})
    assert units.by_site(mask) == {"layers.0.gated": [], "layers.2.gated": [1, 4]}
    edits = units.edits(mask, {site: 0.0 for site in units.sites})
    assert [edit.site for edit in edits] == units.sites
    [edit] = units.dropping(width + 4, {site: 0.0 for site in units.sites})
    assert edit.site == "layers.2.gated" and edit.value.tolist() == [float(k != 4) for k in range(width)]


def test_a_mask_that_is_far_from_the_model_says_so() -> None:
    assert "a source of proposals, and no circuit" in mask_said(16, {"kl": 7.6, "kl_none": 13.5, "share": 0.44})
    near = mask_said(16, {"kl": 0.1, "kl_none": 10.0, "share": 0.99})
    assert "0.1 nats from the model, and none of them 10." in near and "no circuit" not in near
    assert "so are none" in mask_said(2, {"kl": 0.0, "kl_none": 0.0, "share": None})
    report = {
        "kept": 3, "total": 9, "accuracy_full": {"value": 1.0}, "agreement": None, "candidates": None, "target": 0.95,
        "complement": {"effect": of_circuit_report()["circuit"]["effect"]}, **of_circuit_report()["circuit"],
    }  # fmt: skip
    assert "not close to the model: it makes up for 50% of the KL" in sentence(
        {**report, "faithfulness_discovery": 0.5}
    )
    assert "not close" not in sentence({**report, "faithfulness_discovery": 0.96})


def test_a_model_that_does_not_do_the_task_is_refused_after_step_1(known: Any, capsys: Any) -> None:
    model = shuffled_weights(known.model, 0)
    with pytest.raises(NotAnswered, match=r"answers 12.5% of the held-out prompts, below the 50% asked for. Train it"):
        study(model, known.task, dataclasses.replace(QUICK, min_accuracy=0.5))
    said = capsys.readouterr().out
    assert "1 Setup" in said and "2 Activations" not in said
    made = Study(known.model, dataclasses.replace(QUICK, min_accuracy=0.1), "cpu")
    n = lambda value, low, high: {"value": value, "low": low, "high": high, "n": 50, "interval": ""}
    loaders = [PromptLoader(known.task, split, 8, 8, 0) for split in ("discovery", "evaluation")]
    made.begin(*loaders)
    made.check_answers({"accuracy": n(0.5, 0.4, 0.6), "chance": n(0.1, 0.0, 0.2)})
    with pytest.raises(NotAnswered, match="answers 50% of the prompts where chance gives 45%"):
        made.check_answers({"accuracy": n(0.5, 0.4, 0.6), "chance": n(0.45, 0.4, 0.5)})


def test_every_step_reports_and_every_number_has_its_interval(finished: Any) -> None:
    _, results = finished
    assert set(results["steps"]) == {STEPS[n] for n in WORK}
    assert all(entry["said"] for entry in results["steps"].values())
    json.dumps(results, allow_nan=False)
    for number in WORK:
        entry = results["steps"][STEPS[number]]
        if entry["status"] == "done":
            assert ("No claim rests on this step" in entry["said"]) == (number in DESCRIBES)
    for row in results["steps"]["necessity"]["tests"]:
        assert row["effect"]["low"] <= row["effect"]["value"] <= row["effect"]["high"] and row["effect"]["n"] == 24


def test_on_random_weights_no_claim_of_a_circuit_is_supported(known: Any) -> None:
    config = dataclasses.replace(QUICK, skip_steps="3 7 8 9 10 11 16", random_weights=True)
    for seed in range(2):
        _, results = study(shuffled_weights(known.model, seed), known.task, config)
        assert results["claims"]["verdicts"]["supported"] == 0
        assert "it needs" not in results["steps"]["setup"]["said"]
    _, results = study(tiny_mamba(vocab_size=known.task.vocab_size), known.task, config)
    assert results["claims"]["verdicts"]["supported"] == 0


def test_influence_and_time_constants_stand_beside_shuffled_weights(known: Any) -> None:
    config = dataclasses.replace(QUICK, skip_steps="3 4 5 6 7 10 11 13 14 16", random_weights=True, max_lag=0)
    _, results = study(known.model, known.task, config)
    steps = results["steps"]
    assert steps["temporal"]["max_lag"] == known.task.length - 1 and steps["temporal"]["reference"]["left_out"] == 0
    for step, name in (("temporal", "long_range_shuffled"), ("dynamics", "memory_shuffled")):
        entries = [entry for layer in steps[step]["layers"].values() if (entry := layer[name]) is not None]
        assert entries and all(
            0 < entry["n"] <= RANDOM_MODELS and entry["low"] <= entry["value"] <= entry["high"] for entry in entries
        )
        assert "shuffled weights" in steps[step]["said"]
    models = [study_tests.shuffled_models(known.model, 0, 2) for _ in range(2)]
    for a, b in zip(*models, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_a_killed_study_goes_on_to_equal_results(known: Any, finished: Any, tmp_path: Path, monkeypatch: Any) -> None:
    whole = finished[1]
    for number in (3, 6, 10):

        def killed(context: Any) -> Any:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setitem(WORK, number, killed)
            with pytest.raises(KeyboardInterrupt):
                study(known.model, known.task, run_dir=tmp_path)
    made, results = study(known.model, known.task, run_dir=tmp_path)
    assert {"step 02", "step 05", "step 09"} <= set(made.stages.resumed) and "step 10" not in made.stages.resumed
    assert json.dumps(results, sort_keys=True) == json.dumps(whole, sort_keys=True)


def test_the_documented_files_are_there(finished: Any) -> None:
    made, results = finished
    written = {path.name for path in made.save_results()}
    for name in ("sae_results", "probe_results", "candidate_circuits", "patching_results", "temporal_results"):
        assert f"{name}_layer_0.json" in written
    assert {"claims.json", "baseline_stats.json", "comprehensive_report.json", "activations.pt"} <= written
    assert json.loads((made.directory / "claims.json").read_text()) == results["claims"]
    layer = of_layer(results["steps"]["necessity"], results["claims"]["claims"][1]["layer"])
    assert layer["tests"] and of_layer(results["steps"]["necessity"], 99)["tests"] == []
    held = torch.load(made.directory / "activations.pt", weights_only=True)
    assert held["layers.0.gated"].shape[0] == QUICK.prompts


def test_the_report_shows_every_step_and_does_without_claims(finished: Any, tmp_path: Path) -> None:
    _, results = finished
    whole = {
        "schema": 1, "analysis": "study", "status": "complete", "checkpoint": "a/model.pt", "config": {},
        "model": {"parameters": 1}, "task": {"name": "shift", "description": "Shift"}, **results,
    }  # fmt: skip
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "results.json").write_text(json.dumps(whole))
    names = {path.name for path in write_report(tmp_path)}
    done = {name for name, entry in results["steps"].items() if entry["status"] == "done"} - {"setup", "scale"}
    assert names == {f"study_{name}.png" for name in (*done, "claims")} | {"study_report.md", "report.html"}
    page = (tmp_path / "report.html").read_text()
    assert "It would be refuted by" in page and "Nothing to say" in page and "supported" in page
    before = (tmp_path / "study_claims.png").read_bytes()
    write_report(tmp_path)
    assert (tmp_path / "study_claims.png").read_bytes() == before
    nothing = {name: {"status": "nothing", "said": "Nothing to say: a test."} for name in results["steps"]}
    none = {"claims": [], "verdicts": dict.fromkeys(VERDICTS, 0), "said": "No claim: a test.", "tests": 0}
    (tmp_path / "results.json").write_text(json.dumps({**whole, "steps": nothing, "claims": none}))
    assert {path.name for path in write_report(tmp_path)} == {"study_report.md", "report.html"}
    (tmp_path / "results.json").write_text(json.dumps({**whole, "schema": 99}))
    with pytest.raises(MechintError, match="not a finished study"):
        write_report(tmp_path)


def test_steps_can_be_left_out_and_the_study_goes_on(known: Any, capsys: Any) -> None:
    config = dataclasses.replace(QUICK, skip_steps="3 4 5 8 9 10 11 14 16")
    _, results = study(known.model, known.task, config)
    assert results["steps"]["candidates"]["status"] == "skipped"
    assert "it needs step 5 (candidates), which was left out" in results["steps"]["necessity"]["said"]
    assert results["claims"]["claims"] == [] and "No claim" in results["claims"]["said"]
    assert "15 Claims" in capsys.readouterr().out
    assert skipped("8 9,10") == {8, 9, 10} and skipped("temporal") == {8} and skipped("") == set()
    with pytest.raises(MechintError, match="no step '99'; take numbers from 1 to 16"):
        skipped("8 99")
    for number in ALWAYS:
        with pytest.raises(MechintError, match="cannot be left out"):
            skipped(str(number))


def test_bad_requests_are_refused_before_any_work(known: Any) -> None:
    with pytest.raises(MechintError, match=r"layer 7 does not exist; .* has 2"):
        Study(known.model, dataclasses.replace(QUICK, layers="7"), "cpu")
    with pytest.raises(MechintError, match="lower max_lag or give longer prompts"):
        study(known.model, known.task, dataclasses.replace(QUICK, max_lag=known.task.length))
    text = make_task(TaskConfig(name="text", length=8))
    with pytest.raises(MechintError, match="have none; choose recall"):
        study(tiny_mamba(vocab_size=256), text)
    assert chosen_layers("1,0", 3, "x") == [0, 1] and chosen_layers("all", 2, "x") == [0, 1]


def test_a_transformer_has_no_scan_and_the_rest_goes_on() -> None:
    task = make_task(TaskConfig(name="recall", pairs=3))
    config = dataclasses.replace(QUICK, skip_steps="3 4 7 10 11 13 14 16", rank=4)
    _, results = study(tiny_gpt2(), task, config)
    assert "no state-space recurrence" in results["steps"]["temporal"]["said"]
    assert results["claims"]["verdicts"]["supported"] == 0


def claim(value: float, low: float, high: float, p: float = 0.001, control: float = 0.0) -> dict[str, Any]:
    effect = {"value": value, "low": low, "high": high, "n": 50, "interval": ""}
    return {
        "kind": "circuit", "effect": effect, "least": 0.2, "p_holm": p, "resolution": 0.005,
        "controls": {"random": {"value": control, "low": control, "high": control}},
    }  # fmt: skip


def test_reading_is_claimed_only_beside_random_weights() -> None:
    made = {**claim(0.5, 0.4, 0.6), "kind": "probe"}
    assert judge(made, 4, QUICK, "") == ("underpowered", "the control on random weights was not measured (step 13)")
    for high, verdict in ((0.1, "supported"), (0.7, "refuted")):
        made["controls"]["random weights"] = {"value": high, "low": high, "high": high}
        assert judge(made, 4, QUICK, "")[0] == verdict


def test_verdicts_follow_from_numbers() -> None:
    assert judge(claim(0.5, 0.4, 0.6), 4, QUICK, "")[0] == "supported"
    assert judge(claim(0.1, 0.05, 0.15), 4, QUICK, "") == (
        "refuted",
        "the effect is at most 0.15, and 0.20 was asked for",
    )
    assert judge(claim(0.5, 0.4, 0.6, control=0.7), 4, QUICK, "")[0] == "refuted"
    assert judge(claim(0.3, -0.1, 0.7), 4, QUICK, "")[0] == "underpowered"
    assert judge(claim(0.5, 0.4, 0.6, p=0.2), 4, QUICK, "")[0] == "underpowered"
    verdict, why = judge(claim(0.5, 0.4, 0.6, p=0.2), 20, QUICK, "")
    assert verdict == "underpowered" and "20 claims need at least 399 random draws" in why
    assert judge(claim(0.5, 0.4, 0.6), 4, QUICK, "the model answers nothing")[0] == "underpowered"
    assert needed_prompts(claim(0.3, -0.1, 0.7)["effect"], 0.2) > 50
    empty = claims({}, QUICK, "recall")
    assert empty["claims"] == [] and set(empty["verdicts"]) == set(VERDICTS)


def test_windows_of_texts() -> None:
    words = "the quick brown fox jumps over the lazy dog and runs through a field of green grass towards home"
    task = Windows([words, words[::-1], words.upper()] * 4, 6)
    prompts = task.sample(20, "discovery", 0)
    assert prompts.twins is not None and bool((prompts.answers != prompts.wrong).all())
    other = set(task.sample(50, "evaluation", 0).template.tolist())
    assert not other & set(prompts.template.tolist())
    with pytest.raises(MechintError, match=r"different windows with .* give more texts"):
        Windows(["hello world"] * 50, 4).sample(5, "discovery", 0)
    with pytest.raises(MechintError, match="no text has more than 40 tokens"):
        Windows(["short"], 40)


def test_the_documented_python(tmp_path: Path, monkeypatch: Any) -> None:
    task = make_task(TaskConfig(name="recall", pairs=3))
    monkeypatch.setattr("mechint.mechanistic.load", lambda name, device: tiny_mamba(vocab_size=24))
    config = mechint.ExperimentConfig(
        model_name="x", layer_idx=1, num_samples=16, use_toy_data=True, log_dir=str(tmp_path / "logs"), device="cpu",
        top_k=1, draws=19, max_lag=2, skip_steps="7 10 13",
    )  # fmt: skip
    analyzer = mechint.MambaMechanisticAnalyzer(config).setup()
    values = analyzer.collect_activations()
    assert values["layers.1.gated"].shape == (16, 15, 14) and task.name == "recall"
    monkeypatch.setattr(study_discovery, "probe", lambda *a, **k: (_ for _ in ()).throw(MechintError("too few")))
    found = analyzer.discover_interpretable_features()
    assert found["sae"]["status"] == "done" and "too few" in found["probes"]["said"]
    assert isinstance(analyzer.select_candidate_circuits(), list)
    assert "Nothing to say" in analyzer.test_circuit_causality()["necessity"]["said"]
    assert (analyzer.directory / "config.json").exists() and "layer 1" in (
        analyzer.directory / "experiment.log"
    ).read_text()
    with pytest.raises(MechintError, match="hidden_size is 768, and x has 10"):
        mechint.MambaMechanisticAnalyzer(dataclasses.replace(config, hidden_size=768)).setup()
    with pytest.raises(MechintError, match="call setup"):
        mechint.MambaMechanisticAnalyzer(config).collect_activations()


def test_sae_analysis_of_arrays() -> None:
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (300,), generator=g)
    X = 0.3 * torch.randn(300, 10, generator=g)
    X[torch.arange(300), labels] += 2.0
    found = mechint.run_sae_analysis(X, labels, {"latent_dim_ratio": 1.0, "num_epochs": 60, "draws": 100})
    assert found["latents"][0]["p"] == 1 / 101 and abs(found["latents"][0]["correlation"]) > 0.5
    assert found["probe"]["score"]["value"] > 0.8 and found["n"] == 120
    with pytest.raises(MechintError, match="function of the activations"):
        mechint.run_sae_analysis(X, (X @ torch.randn(10, generator=g)).double(), {"num_epochs": 10})
    sides = X[X[:, 4].abs() > 0.1]
    with pytest.raises(MechintError, match="function of the probed activations"):
        mechint.run_sae_analysis(X, labels, {"num_epochs": 10}, shuffled=(sides, (sides[:, 4] > 0).long()))
    with pytest.raises(MechintError, match="no option 'latents'"):
        mechint.run_sae_analysis(X, labels, {"latents": 3})
    with pytest.raises(MechintError, match="give as many of each"):
        mechint.run_sae_analysis(X, labels[:5])
