"""Steps 8 and 9 on hybrids: layers with a recurrence, the others named, and only channels as groups."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import mechint
from mechint.analyses.study.analyzer import Study
from mechint.analyses.study.candidates import by_site
from mechint.analyses.study.figures import draw_study
from mechint.analyses.study.options import StudyConfig
from mechint.analyses.study.results import StudyResults
from mechint.analyses.study.steps_circuit import SiteUnits
from mechint.analyses.study.steps_tests import channel_groups
from mechint.analyses.study.subspaces import study_site
from mechint.attribution.attention import channel_site, scans
from mechint.utils.statistics import chance_jaccard
from tests.helpers.answers import HalfRight
from tests.helpers.judges.base import judged
from tests.models.families.methods import TASK, model_of
from tests.models.families.test_parity import JUDGES

LEFT = "3 4 5 6 7 10 11 13 14 16"
"""Steps that these tests leave out."""


def studied(family: str, path: Path, **changes: Any) -> tuple[Study, dict[str, Any]]:
    model = model_of(family, path / "model")
    options = StudyConfig(skip_steps=LEFT, prompts=6, eval_prompts=6, bootstrap=50, min_accuracy=0, **changes)
    study = Study(model, options, "cpu", run_dir=path / "study")
    study.run_analysis(*(HalfRight(model, TASK, split, 6, 6, 0) for split in ("discovery", "evaluation")))
    return study, study.results


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3_next", "jamba", "nemotron_h"])
def test_layers_with_a_recurrence_are_described_and_others_named(family: str, tmp_path: Path) -> None:
    study, found = studied(family, tmp_path, random_weights=False)
    layers = [i for i in range(study.model.num_layers) if scans(study.model, i)]
    others = [i for i in range(study.model.num_layers) if i not in layers]
    assert layers
    for name in ("temporal", "dynamics"):
        step = found["steps"][name]
        assert step["status"] == "done" and list(step["layers"]) == [str(i) for i in layers]
        notes = step.get("notes", [])
        assert ("notes" in step) == bool(others)
        for i, note in zip(others, notes, strict=True):
            assert f"layer {i} of this" in note and note in step["said"]
    results = StudyResults.read({key: value for key, value in found.items() if key not in ("report", "schema")})
    drawn = draw_study(results, tmp_path)
    assert drawn["temporal"][0].is_file() and drawn["dynamics"][0].is_file()
    study.save_results()
    assert all((tmp_path / f"study/temporal_results_layer_{i}.json").is_file() for i in layers)


@pytest.mark.slow
def test_a_hybrid_is_searched_over_sites_of_several_kinds(tmp_path: Path) -> None:
    """Steps 5, 10 and 16, where layers have other sites and numbers of units."""
    model = load_hybrid(tmp_path / "model")
    options = StudyConfig(
        skip_steps="3 4 7 8 9 11 13 14", prompts=16, eval_prompts=16, bootstrap=50, min_accuracy=0, rank=3,
        mask_steps=4, seeds=2, draws=19, candidates=1, random_weights=False,
    )  # fmt: skip
    study = Study(model, options, "cpu", run_dir=tmp_path / "study")
    study.run_analysis(*(HalfRight(model, TASK, split, 16, 16, 0) for split in ("discovery", "evaluation")))
    kinds = {site.split(".")[2] for site in study.sites.values()}
    assert kinds == {"y", "head_out"}
    steps = study.results["steps"]
    assert steps["candidates"]["status"] == "done" and steps["candidates"]["mask"]["units"] == 3 * model.num_layers
    masked = [row for row in steps["candidates"]["candidates"] if "mask" in row["sources"]]
    assert all(max(row["units"]) < len(steps["candidates"]["share_by_unit"][row["site"]]) for row in masked)
    assert steps["reproducibility"]["status"] == "done"
    assert steps["circuit"]["status"] == "done" or "dropping every unit on" in steps["circuit"]["said"]


def load_hybrid(path: Path) -> Any:
    """A model of a delta rule and of attention, of other sizes."""
    for seed in range(20):
        theirs = judged(JUDGES["qwen3_next"], seed).float()
        theirs.resize_token_embeddings(TASK.vocab_size)
        theirs.save_pretrained(path / str(seed))
        model = mechint.load(path / str(seed)).requires_grad_(False)
        sizes = {math.prod(model.sites[study_site(model, i)].units) for i in range(model.num_layers)}
        if len({study_site(model, i).split(".")[2] for i in range(model.num_layers)}) > 1 and len(sizes) > 1:
            return model
    raise AssertionError


def test_chosen_sites_of_several_kinds_are_units_of_their_own(tmp_path: Path) -> None:
    model = load_hybrid(tmp_path)
    chosen = {i: study_site(model, i) for i in reversed(range(model.num_layers))}
    units = SiteUnits(model, chosen)
    sizes = [math.prod(model.sites[site].units) for site in chosen.values()]
    assert units.sizes == units.counted == sizes and units.total == sum(sizes)
    last = list(chosen.values())[-1]
    mask = units.mask_of({last: [0, 2]})
    assert units.by_site(mask) == {**{site: [] for site in chosen.values()}, last: [0, 2]}
    assert int(mask.nonzero()[0]) == sum(sizes[:-1])
    edits = units.edits(mask, dict.fromkeys(units.sites, 0.0))
    assert [edit.value.shape for edit in edits] == [model.sites[site].units for site in chosen.values()]
    [edit] = units.dropping(sum(sizes[:-1]) + 1, dict.fromkeys(units.sites, 0.0))
    assert edit.site == last and edit.value.flatten().tolist() == [float(k != 1) for k in range(sizes[-1])]
    kept = by_site(model, chosen.values(), torch.arange(sum(sizes)))
    assert {site: len(part) for site, part in kept.items()} == dict(zip(chosen.values(), sizes, strict=True))
    assert chance_jaccard([1, 2], [4, 8]) == pytest.approx(0.75 / (6 - 0.75))


def test_units_of_attention_are_no_channels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("falcon_h1", tmp_path)
    assert channel_site(model, 0, study_site(model, 0)) == channel_site(model, 0, "layers.0.y")
    assert channel_site(model, 0, "layers.0.gated") and not channel_site(model, 0, "layers.0.head_out")
    assert not channel_site(model, 0, "layers.0.state") and not channel_site(model, 0, "layers.0.conv")
    study = Study(model, StudyConfig(site="head_out"), "cpu", run_dir=tmp_path)
    context = study.begin(*(HalfRight(model, TASK, split, 4, 4, 0) for split in ("discovery", "evaluation")))
    monkeypatch.setattr(type(context), "groups", lambda self, layer: {"mine": [0]})
    assert channel_groups(context, 0) == {}
    assert channel_groups(dataclasses.replace(context, sites={0: "layers.0.y"}), 0) == {"mine": [0]}


def test_a_layer_of_neurons_alone_has_a_usual_site(tmp_path: Path) -> None:
    model = model_of("nemotron_h", tmp_path)
    for i in range(model.num_layers):
        kind = study_site(model, i).rpartition(".")[2]
        assert kind in {"y", "head_out", "mlp_post", "expert_weight"}
        assert kind in {site for part in model.parts_of(i).values() for site in (*part.patched, *part.single)}  # type: ignore[operator]
