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
from mechint.analyses.study import candidates
from mechint.analyses.study.analyzer import Study, inputs
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
    loader: Any = PromptLoader(make_task(TASK), "discovery", 4, 4, 0)
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
