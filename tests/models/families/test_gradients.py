"""Gradients at every site of every family against what a small change of that site does.

Attribution patching, integrated gradients and masks read them. An edit of a site and the gradient there must mean the
same tensor: not one that is recorded and never read on, nor one that is also read elsewhere under another name.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

import mechint
from mechint.interventions.gradients import gradients
from mechint.interventions.model import Model
from tests.helpers.judges.base import VOCABULARY
from tests.models.families.methods import FAMILIES, OLD
from tests.models.families.test_parity import prompt, random_model

STEP = 1e-5
QUICK = ("mamba", "gpt2", "falcon_h1", "olmo_hybrid", "qwen3_5_moe")
"""Families with each kind of memory, attention and experts."""
EACH = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in FAMILIES]


def slopes(model: Model, tokens: torch.Tensor, sites: list[str]) -> tuple[float, float]:
    """The derivative along a random direction at all these sites: from two runs, and from gradients."""
    metric = lambda logits: logits[:, -1].sin().sum(-1)
    values, found = gradients(model, tokens, sites, metric)
    random = torch.Generator().manual_seed(0)
    ways = {
        site: torch.randn(value.shape, generator=random, dtype=value.dtype)
        * ((value != 0) if site.endswith("expert_weight") else 1.0)  # an expert that is not chosen is not computed
        for site, value in values.items()
    }
    ends = []
    for step in (STEP, -STEP):
        edits = [mechint.Edit(site, "add", step * way) for site, way in ways.items()]
        ends.append(float(metric(mechint.run(model, tokens, edits=edits).logits).sum()))
    return (ends[0] - ends[1]) / (2 * STEP), float(sum((found[site] * way).sum() for site, way in ways.items()))


@pytest.mark.parametrize("name", EACH)
def test_the_gradient_at_every_site_is_what_a_small_change_does(name: str, tmp_path: Path) -> None:
    model = OLD[name](3, vocab_size=VOCABULARY).double() if name in OLD else random_model(name, 0, tmp_path)
    model.requires_grad_(False)
    tokens = prompt(1, 5)
    kinds: dict[str, list[str]] = {}
    for site in model.sites:
        kinds.setdefault(site.rpartition(".")[2], []).append(site)
    wrong = {}
    for kind, sites in kinds.items():
        by_runs, by_gradient = slopes(model, tokens, sites)
        if abs(by_runs - by_gradient) > 1e-3 * max(1.0, abs(by_runs)):
            wrong[kind] = by_runs, by_gradient
    assert not wrong
