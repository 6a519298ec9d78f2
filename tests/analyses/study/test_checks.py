"""Checks, powers and shares of a study by hand."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy.optimize import brentq

from mechint.analyses.loader import PromptLoader
from mechint.analyses.probes.fitting import detectable, needed
from mechint.analyses.study import candidates, steps_discovery
from mechint.analyses.study.analyzer import Study, inputs, of_layer
from mechint.analyses.study.candidates import Candidate, merge, site_kinds
from mechint.analyses.study.options import StudyConfig
from mechint.models.loading.load import load
from mechint.tasks import make_task
from mechint.utils.errors import MechintError
from mechint.utils.rundir import fingerprint, weights_digest
from tests.helpers.builders import tiny_mamba
from tests.helpers.circuits import TASK
from tests.helpers.experiments import checkpoint


@pytest.mark.parametrize(("n", "chance", "power", "z"), [(50, 0.5, 0.8, 0.8416), (200, 0.1, 0.9, 1.2816)])
def test_the_least_accuracy_that_so_many_prompts_show(n: int, chance: float, power: float, z: float) -> None:
    spread = lambda p: math.sqrt(p * (1 - p) / n)
    expected = brentq(lambda a: a - chance - 1.6449 * spread(chance) - z * spread(a), chance + 1e-9, 1)
    assert detectable(n, chance, power) == pytest.approx(expected, abs=(1 - chance) / 1000)
    enough = needed(expected + 0.01, chance, power)
    assert detectable(enough, chance, power) <= expected + 0.01 and enough <= n


def test_how_far_a_mask_is_from_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept alone the units are 0.5 nats away, none of them 2: three quarters are made up for."""
    batches = [SimpleNamespace(tokens=torch.zeros(1, 1))]
    monkeypatch.setattr(candidates, "mask_bench", lambda model, loader, kind: SimpleNamespace(batches=batches))
    kept = torch.tensor([[True, False], [False, True]])
    costs = {2.0: 0.5, 0.0: 2.0}
    monkeypatch.setattr(candidates, "cost", lambda bench, metric, mask: costs[float(mask.sum())])
    close = lambda: candidates.closeness(None, None, "gated", kept)  # type: ignore[arg-type]
    assert close() == {"kl": 0.5, "kl_none": 2.0, "share": 0.75}
    costs[0.0] = 1e-9
    assert close()["share"] is None


@pytest.mark.parametrize(("skipped", "refused"), [("", True), ("9", True), ("8", False), ("8,9", False)])
def test_a_lag_is_checked_unless_its_step_is_left_out(skipped: str, refused: bool) -> None:
    loader: Any = PromptLoader(make_task(TASK), "discovery", 8, 8, 0)
    config = dataclasses.replace(StudyConfig(), max_lag=500, skip_steps=skipped)
    study = Study(tiny_mamba(), config)
    if refused:
        with pytest.raises(MechintError, match="max_lag is 500"):
            study.check(loader, loader)
    else:
        study.check(loader, loader)


def test_inputs_are_the_weights_of_other_checkpoints_in_their_order(tmp_path: Path) -> None:
    """Other weights of another seed, or of an earlier step, make another request; so does another set of them."""
    for seed in range(3):
        checkpoint(tmp_path / f"m{seed}.pt", seed)
    digests = [weights_digest(load(tmp_path / f"m{seed}.pt", dtype="float32")) for seed in range(3)]
    assert len(set(digests)) == 3
    asked = StudyConfig(peers=f"{tmp_path}/m[01].pt", trajectory=f"{tmp_path}/m2.pt")
    assert inputs(asked, tmp_path) == {"peers": fingerprint(digests[:2]), "trajectory": fingerprint(digests[2:])}
    assert inputs(StudyConfig(peers=f"{tmp_path}/m1.pt"), tmp_path) == {"peers": fingerprint(digests[1:2])}
    assert inputs(StudyConfig(), tmp_path) == {}


def test_the_part_of_a_step_about_one_layer() -> None:
    row = lambda layer: {"layer": layer, "label": "a"}
    report = {
        "status": "done", "said": "all", "metric": "kl", "ablation": "zero", "notes": ["n"], "random": 3,
        "layers": {"1": {"kept": 2}, "11": {"kept": 3}}, "probes": [row(1), row(11)], "candidates": [row(11)],
        "tests": [{"candidate": "L1 probe a"}, {"candidate": "L11 probe a"}],
    }  # fmt: skip
    said = {name: report[name] for name in ("status", "said", "metric", "ablation", "notes")}
    more = {"layer": {"kept": 2}, "probes": [row(1)], "candidates": [], "tests": [{"candidate": "L1 probe a"}]}
    assert of_layer(report, 1) == said | more
    assert of_layer(report, 3) == said | {"layer": None, "probes": [], "candidates": [], "tests": []}
    assert of_layer({"status": "nothing"}, 1) == {"status": "nothing"}


def test_kinds_of_sites_are_named_where_there_are_several() -> None:
    found = site_kinds(["layers.0.gated", "layers.1.gated"])
    assert [(kind.name, kind.blocks[0].sites) for kind in found] == [("unit", ("gated",))]
    found = site_kinds(["layers.0.gated", "layers.1.mlp_act", "layers.2.gated"])
    assert [(kind.name, kind.blocks[0].sites) for kind in found] == [("gated", ("gated",)), ("mlp_act", ("mlp_act",))]


def test_candidates_of_several_sources_agree_with_each_other() -> None:
    """Two sources propose one direction, a third an orthogonal one: agreements 1, 1 and 0, and 0 and 0."""
    axes = torch.eye(3, dtype=torch.float64)
    make = lambda name, source, k: Candidate(name, 0, "layers.0.gated", axes[:, k : k + 1], (source,))
    carried: Any = {"layers.0.gated": SimpleNamespace(share=lambda basis: 0.6 if float(basis[0]) else 0.3)}
    found, table = merge([make("a", "mask", 0), make("b", "probe", 0), make("c", "traffic", 1)], carried)
    assert [(one.name, one.sources) for one in found] == [("a", ("mask", "probe")), ("c", ("traffic",))]
    assert [one.agreement for one in found] == pytest.approx([2 / 3, 0.0])
    assert [one.evidence for one in found] == pytest.approx([0.6 * (1 + 2 / 3) / 2, 0.3 / 2])
    assert table == [[pytest.approx(1.0), pytest.approx(0.0)], [pytest.approx(0.0), pytest.approx(1.0)]]


def test_a_latent_is_dead_behind_ten_rounds_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    keep = lambda configs, pools, training, title: made.append((configs, training)) or [SimpleNamespace(sae="made")]
    monkeypatch.setattr(steps_discovery, "train_grid", keep)
    rows = torch.zeros(1500, 4)
    assert steps_discovery.dictionary(rows, "layers.0.gated", 2.0, 3, steps=7, seed=5, penalty=0.5) == "made"
    [(configs, training)] = made
    assert (training.tokens, training.batch, training.dead_after, training.seed) == (7 * 1024, 1024, 15_000, 5)
    config = configs["study"]
    assert (config.architecture, config.d_in, config.d_sae, config.k, config.penalty) == ("topk", 4, 8, 3, 0.5)
    assert (config.site, config.seed) == ("layers.0.gated", 5)
