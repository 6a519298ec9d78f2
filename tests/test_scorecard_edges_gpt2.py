"""Edges of the compiled GPT-2s: what is declared stands up to cuts, and methods find it."""

from __future__ import annotations

import functools

import pytest
import torch

from mechint import Edit
from mechint.tasks.ground_truth import GPT2_BLUEPRINTS, Compiled
from mechint.tasks.ground_truth.flows import clear, flows, shares
from mechint.tasks.ground_truth.gpt2_flows import NEEDED
from mechint.tasks.ground_truth.truth import TIE, margins

SEED = 100


@functools.cache
def compiled(name: str, seed: int = SEED) -> Compiled:
    found = GPT2_BLUEPRINTS[name]().compile(seed=seed)
    found.model.requires_grad_(False)
    return found


def cut(layer: int, head: str, i: int, sources: list[int], row: int, site: str = "scores") -> Edit:
    units = [int(head.removeprefix("h"))]
    return Edit(f"layers.{layer}.{site}", "cut", positions=[i], sources=sources, rows=[row], units=units)


@pytest.mark.parametrize("name", list(NEEDED))
def test_each_declared_flow_is_needed_and_all_others_are_not(name: str) -> None:
    model = compiled(name)
    prompts = clear(model, model.task.sample(60, "evaluation", 1)).last()[:3]
    needed, taken = flows(model, prompts), shares(model, prompts)
    rows, length = prompts.tokens.shape
    assert all(there.any((1, 2)).all() for there in needed.values())
    rest = []
    for layer in range(model.model.config.n_layer):
        for head in (f"h{k}" for k in range(model.model.config.n_head)):
            nothing = torch.zeros(rows, length, length, dtype=torch.bool)
            there, share = (edges.get((layer, head), nothing) for edges in (needed, taken))
            for row, i, j in there.nonzero().tolist():
                for site in ("scores", "pattern"):
                    margin = margins(model.model, prompts, [cut(layer, head, i, [j], row, site)])[0][row, 0]
                    # what only takes a share gives nothing that a cut which leaves the others their weights could take
                    assert (margin <= TIE) == (site == "scores" or not bool(share[row, i, j])), (layer, head, row, i, j)
            for row in range(rows):
                for i in range(length):
                    sources = [j for j in range(i + 1) if not there[row, i, j]]
                    rest += [cut(layer, head, i, sources, row)] * bool(sources)
    assert margins(model.model, prompts, rest)[0].min() > model.truth.margin - 1e-2
