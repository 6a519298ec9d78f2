"""Continuations of many cells against one generation for every cell."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mechint
from mechint import Edit, MechintError
from mechint.interventions import continuations as module
from mechint.interventions.continuations import continuations
from tests.helpers.builders import SIZES, tiny_gpt2, tiny_mamba, tokens
from tests.helpers.examples import examples
from tests.helpers.sweeps import LENGTH, ROWS, edits


def one_by_one(model: Any, prompts: torch.Tensor, cells: Any, count: int) -> torch.Tensor:
    length = prompts.shape[1]
    return torch.stack([mechint.generate(model, prompts, count, edits=cell).tokens[:, length:] for cell in cells])


@settings(max_examples=examples(30), deadline=None)
@given(st.data(), SIZES, st.integers(0, 10_000))
def test_any_cells_equal_one_generation_each(data: st.DataObject, sizes: dict[str, Any], seed: int) -> None:
    model, prompts = tiny_mamba(seed, torch.float64, **sizes), tokens(ROWS, LENGTH - 3, seed)
    cells = [[data.draw(edits(model, seed + k))] for k in range(data.draw(st.integers(1, 5)))] + [[]]
    assert torch.equal(continuations(model, prompts, cells, 3), one_by_one(model, prompts, cells, 3))


@pytest.mark.parametrize("together", [2, 256])
@pytest.mark.parametrize("made", [tiny_mamba, tiny_gpt2])
def test_cells_of_every_layer_and_behind_them_all(made: Any, together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOGETHER", together)
    model, prompts = made(3, dtype=torch.float64, n_layer=3), tokens(2, 5, 1)
    width = model.embeddings.shape[1]
    out = "out" if made is tiny_mamba else "mlp_out"
    noise = lambda seed: torch.randn(2, 1, width, generator=torch.Generator().manual_seed(seed)).double() * 3
    sites = [
        "layers.2.resid_post",
        f"layers.0.{out}",
        "embed",
        "final_norm",
        "layers.0.resid_post",
        "layers.1.resid_pre",
    ]
    cells = [[Edit(site, "replace", noise(k), positions=[4 - k % 2])] for k, site in enumerate(sites)]
    cells += [
        [Edit("logits", "add", noise(9)[..., :1] * torch.arange(model.config.vocab_size), positions=[4])],
        [Edit(f"layers.1.{out}", "scale", -4.0)],  # at every position, those of the generated tokens too
        [Edit(f"layers.1.{out}", "add", noise(7), positions=[6])],  # at a generated token alone
        [*cells[0], Edit(f"layers.0.{out}", "scale", 0.0, positions=[2])],
    ]
    found, expected = continuations(model, prompts, cells, 4), one_by_one(model, prompts, cells, 4)
    assert torch.equal(found, expected) and len(found.flatten(1).unique(dim=0)) > 3
    assert torch.equal(continuations(model, prompts, cells[1:2], 1), expected[1:2, :, :1])


def test_what_is_refused() -> None:
    model, prompts = tiny_gpt2(n_ctx=8), tokens(1, 6)
    cells = [[Edit("layers.0.mlp_out", "scale", 0.0)]]
    with pytest.raises(MechintError, match="count is 0"):
        continuations(model, prompts, cells, 0)
    with pytest.raises(MechintError, match="9 positions are too many"):
        continuations(model, prompts, cells, 4)
    with pytest.raises(MechintError, match="too few for one cell of 1 rows"):
        continuations(model, prompts, cells, 2, memory_mib=1e-4)
    with pytest.raises(MechintError, match="no site"):
        continuations(model, prompts, [[Edit("layers.9.mlp_out", "scale", 0.0)]], 2)
    assert continuations(model, prompts, [], 2).shape == (0, 1, 2)
