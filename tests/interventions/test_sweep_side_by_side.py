"""Cells that start at different positions share the products of a transformer's layers: the same numbers as alone."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mechint
from mechint import Edit
from mechint.interventions.sweep import Base, sweep
from mechint.interventions.taps import SideBySide, Tap
from tests.helpers.builders import tiny_gpt2, tiny_llama, tokens
from tests.helpers.examples import examples
from tests.helpers.sweeps import one_by_one

MAKERS = {"gpt2": tiny_gpt2, "llama": tiny_llama}
LENGTH = 7


@pytest.mark.slow
@settings(max_examples=examples(40), deadline=None)
@given(st.sampled_from(list(MAKERS)), st.integers(0, 10_000), st.sampled_from([1, 3, 60, 1024]), st.booleans())
def test_any_starts_and_layers_and_any_wanted_positions(name: str, seed: int, together: int, local: bool) -> None:
    """Each row wants positions of its own; some of them lie before some of the starts."""
    model = MAKERS[name](seed, torch.float64, n_layer=3)
    prompts, pick = tokens(2, LENGTH, seed), random.Random(seed)
    kinds = ["resid_post", "resid_pre", "k", "v", "ln_1"] + ["mlp_post", "scores", "q"] * local
    sites = [site for site in model.sites if site.rpartition(".")[2] in kinds]
    cells = []
    for number in range(pick.randint(2, 12)):
        chosen = pick.sample(sites, pick.randint(1, 2))
        at = [pick.randrange(LENGTH)]
        cells.append([Edit(site, "scale", 0.1 * number - 0.3, positions=at) for site in chosen])
    wanted = torch.tensor([[pick.randrange(LENGTH) for _ in range(2)] for _ in range(2)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mechint.interventions.sweep.TOGETHER", together)
        found = sweep(model, prompts, cells, logits_at=wanted)
    expected = one_by_one(model, prompts, cells, (), wanted)
    assert float((found - expected).abs().max()) <= 1e-10 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_the_last_layer_gives_the_wanted_positions_alone(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = make(0, torch.float64, n_layer=3), tokens(2, LENGTH)
    with torch.no_grad():
        donor = mechint.run(model, tokens(2, LENGTH, 5), ["layers.*.resid_pre"])
    cells = [[Edit(s, "replace", donor[s][:, [p]], positions=[p])] for s in donor.values for p in range(LENGTH)]
    widths: list[int] = []
    whole = type(model).blocks

    def watched(self: Any, i: int, *others: Any) -> Any:
        found = whole(self, i, *others)
        widths.extend(part.shape[1] for part in found if i == 2)
        return found

    monkeypatch.setattr(type(model), "blocks", watched)
    last = torch.full((2, 1), LENGTH - 1)
    found = sweep(model, prompts, cells, logits_at=last)
    assert set(widths) == {1}
    assert torch.allclose(found, one_by_one(model, prompts, cells, (), last), atol=1e-10)
    widths.clear()
    local = [*cells, [Edit("layers.2.mlp_post", "scale", 0.0, positions=[LENGTH - 1]), *cells[0]]]
    assert torch.allclose(
        sweep(model, prompts, local, logits_at=last), one_by_one(model, prompts, local, (), last), atol=1e-10
    )
    assert LENGTH in widths


def test_starts_share_batches_of_about_a_thousand_tokens() -> None:
    model, prompts = tiny_gpt2(0, n_ctx=40), tokens(4, 40)
    cells = [[Edit("layers.0.k", "scale", 0.0, positions=[p])] for p in range(40)]

    def sizes(memory: float) -> list[int]:
        from mechint.interventions.edits import check_edits
        from mechint.interventions.sweep_cells import Cell

        plan = [Cell.of(k, check_edits(model.sites, edits, 4, 40), model) for k, edits in enumerate(cells)]
        wanted = torch.full((4, 1), 39)
        with torch.no_grad():
            base = Base(model, prompts, [], plan, wanted, memory)
            return [sum(4 * (40 - cell.position) for cell in batch.cells) for batch in base.batches(memory, wanted)]

    plenty = sizes(1024.0)
    assert sum(plenty) == sum(4 * length for length in range(1, 41))
    assert len(plenty) == -(-sum(plenty) // 1024)
    assert len(sizes(4.0)) > len(plenty)


def test_side_by_side_there_and_back() -> None:
    shapes = [(2, 3), (1, 5), (3, 1)]
    at = SideBySide([Tap((), (), offset) for offset in (0, 2, 6)], shapes)
    parts = [torch.randn(*shape, 4) for shape in shapes]
    joined = at.join(parts)
    assert joined.shape == (1, 14, 4)
    assert all(torch.equal(a, b) for a, b in zip(at.split(joined), parts, strict=True))
    assert at.positions(joined).tolist() == [0, 1, 2, 0, 1, 2, 2, 3, 4, 5, 6, 6, 6, 6]
    assert torch.equal(at.wanted(joined), joined)
    at.only = [torch.tensor([[2], [0]]), torch.tensor([[4]]), torch.zeros(3, 1, dtype=torch.long)]
    some = at.behind(at.wanted(joined))
    expected = [parts[0][[0, 1], [2, 0]], parts[1][:, 4], parts[2][:, 0]]
    assert all(torch.equal(a[:, 0], b) for a, b in zip(some, expected, strict=True))
