"""Analyses of declared families: those that fit run, and those that do not are refused before any work."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import mechint
from mechint.analyses.base import analyses, check_model
from mechint.analyses.study.subspaces import study_site
from mechint.interventions.model import having, layer_kinds
from mechint.interventions.units import Units
from mechint.models.stack import Stack
from mechint.tasks import TaskConfig, make_task
from tests.analyses.test_one_accuracy import loaders, options_of

transformers = pytest.importorskip("transformers")

from tests.helpers.judges.base import judged  # noqa: E402
from tests.models.families.test_parity import JUDGES  # noqa: E402

pytestmark = pytest.mark.usefixtures("without_controls")
TASK = make_task(TaskConfig(name="recall", pairs=2, keys=12, values=12))


def model_of(name: str, path: Path) -> Stack:
    """A random model of a family with as many tokens as the task."""
    theirs = judged(JUDGES[name], 0).float()
    theirs.resize_token_embeddings(TASK.vocab_size)
    theirs.save_pretrained(path)
    model = mechint.load(path)
    assert isinstance(model, Stack)
    return model.requires_grad_(False)


def results_of(name: str, model: Stack, path: Path, **changes: Any) -> dict[str, Any]:
    analysis = analyses()[name]
    options = dataclasses.replace(options_of(analysis), **changes)
    check_model([analysis], model, "a model")
    analyzer = analysis.analyzer(model, options, "cpu", run_dir=path / name)
    return dict(analyzer.run_analysis(*loaders(model, TASK)))


@pytest.mark.slow_except("kimi_linear.*")
@pytest.mark.parametrize(
    ("name", "unit", "kind"),
    [("mamba2", "head", "ssm"), ("falcon_h1", "head", "ssm"), ("falcon_h1", "head", "kv"),
     ("olmo_hybrid", "channel", "ssm"),
     ("kimi_linear", "channel", "ssm"), ("gemma2", "mlp", "kv"), ("zamba2", "head", "kv")],
)  # fmt: skip
def test_a_circuit_is_found_and_names_the_layers_that_have_units(
    name: str, unit: str, kind: str, tmp_path: Path
) -> None:
    model = model_of(name, tmp_path / "model")
    results = results_of(kind, model, tmp_path, unit=unit, **({"target_sparsity": 0.5} if kind == "kv" else {}))
    known = model.unit_kinds
    units = Units(model, known.get(f"ssm_{unit}", known.get(unit)) if kind == "ssm" else known[unit])
    assert [layer["layer"] for layer in results["layers"]] == units.numbers
    assert results["metrics"]["units_total"]["value"] == units.total


@pytest.mark.slow_except("lfm2-compare|nemotron_h-sparsity")
@pytest.mark.parametrize(
    ("name", "analysis"),
    [("nemotron_h", "neuron"), ("kimi_linear", "neuron"), ("nemotron_h", "compare"), ("lfm2", "compare"),
     ("nemotron_h", "sparsity"), ("zamba2", "sparsity")],
)  # fmt: skip
def test_layers_that_differ_have_their_own_units_and_those_without_are_said(
    name: str, analysis: str, tmp_path: Path
) -> None:
    """Each layer of other sites or widths has its own units, and one without is in a note alone."""
    model = model_of(name, tmp_path / "model")
    more = {"top_k": 2} if analysis == "neuron" else {}
    results = results_of(analysis, model, tmp_path, sites="usual", layers="all", **more) if analysis != "compare" else (
        results_of(analysis, model, tmp_path)
    )  # fmt: skip
    notes = " ".join(map(str, results["notes"]))
    if analysis == "neuron":
        assert results["circuit"]["layers"] == having(model, model.ranked)
        for kind in results["units"]:
            layers = having(model, kind["name"])
            sizes = {layer: model.sites[f"layers.{layer}.{kind['name']}"].units[0] for layer in layers}
            assert [*zip(kind["layer"], kind["unit"], strict=True)] == [
                (layer, unit) for layer in layers for unit in range(sizes[layer])
            ]
            others = [layer for layer in range(model.num_layers) if layer not in layers]
            said = f"without the site {kind['name']} are left out there: {', '.join(map(str, others))}"
            assert (said in notes) == bool(others)
    elif analysis == "compare":
        assert [value is not None for value in results["curves"]["unit_effect_gini"]] == [
            i in having(model, model.ranked) for i in range(model.num_layers)
        ]
        assert all(value is not None for value in results["curves"]["layer_effect"])
    else:
        found = {(cell["layer"], cell["site"]) for cell in results["cells"]}
        kinds = {"resid_post", *model.mixers, *model.projected}
        assert found == {(i, kind) for kind in kinds for i in having(model, kind)}


def test_what_no_layer_looked_at_has_is_refused_before_work(tmp_path: Path) -> None:
    model = model_of("nemotron_h", tmp_path / "model")
    [other, *_] = [i for i in range(model.num_layers) if i not in having(model, model.ranked)]
    with pytest.raises(
        mechint.MechintError, match=rf"none of the layers \[{other}\] .* units to rank; those with the site"
    ):
        results_of("neuron", model, tmp_path, layers=str(other))
    with pytest.raises(mechint.MechintError, match=rf"none of the layers \[{other}\] has the site"):
        results_of("sparsity", model, tmp_path, layers=str(other), sites=model.ranked)


def test_a_model_without_attention_has_no_circuit_of_keys(tmp_path: Path) -> None:
    model = model_of("mamba2", tmp_path / "model")
    with pytest.raises(mechint.MechintError, match=r"'kv'.*needs a layer with the sites k, v"):
        results_of("kv", model, tmp_path)


def test_kinds_of_site_are_those_of_all_layers_in_the_order_of_the_forward(tmp_path: Path) -> None:
    model = model_of("nemotron_h", tmp_path / "model")
    kinds = layer_kinds(model)
    for i in range(model.num_layers):
        own = [site.rpartition(".")[2] for site in model.sites if site.startswith(f"layers.{i}.")]
        assert [kind for kind in kinds if kind in own] == own
    assert len(set(kinds)) == len(kinds) and torch.equal(model(torch.tensor([[1]])), model(torch.tensor([[1]])))


def test_a_study_names_the_layers_that_have_its_site(tmp_path: Path) -> None:
    model = model_of("nemotron_h", tmp_path / "model")
    lacking = next(i for i in range(model.num_layers) if i not in having(model, "mlp_post"))
    if there := having(model, "mlp_post"):
        with pytest.raises(mechint.MechintError, match=rf"layer {lacking} of this nemotron_h .* layers {there[0]}"):
            study_site(model, lacking, "mlp_post")
    with pytest.raises(mechint.MechintError, match="has no site 'nothing' with units"):
        study_site(model, 0, "nothing")
