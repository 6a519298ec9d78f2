"""Candidates, and their tests, on a model whose circuit is known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mechint
from mechint.analyses.loader import PromptLoader
from mechint.analyses.random_weights import shuffled_weights
from mechint.analyses.study.ablation_tests import (
    DOSES,
    Held,
    by_rank,
    granularity,
    least_rank,
    necessity,
    robustness,
)
from mechint.analyses.study.candidates import (
    Candidate,
    by_site,
    from_units,
    mask_search,
    merge,
    of_clusters,
    of_mask,
    strongest,
)
from mechint.analyses.study.steps_controls import unfiltered
from mechint.analyses.study.subspaces import (
    linear_cka,
    orthonormal,
    overlap,
    random_basis,
    study_site,
    traffic,
    unit_basis,
)
from mechint.ground_truth import BLUEPRINTS
from mechint.tasks import TaskConfig, make_task
from mechint.utils.errors import MechintError
from mechint.utils.multiple_tests import holm
from mechint.utils.statistics import draws_needed, rank_correlation
from tests.helpers.builders import tiny_gpt2, tiny_mamba
from tests.helpers.examples import examples


@pytest.fixture(scope="module")
def known() -> Any:
    """(model, site, speakers, idle channels, discovery, held): the compiled shift, whose answers 7 channels speak."""
    compiled = BLUEPRINTS["shift"]().compile(seed=1)
    model = compiled.model.eval().requires_grad_(False)
    site = study_site(model, compiled.truth.units("channel")[0][0])
    loader = PromptLoader(compiled.task, "discovery", 32, 32, 0)
    held = Held.of(model, PromptLoader(compiled.task, "evaluation", 16, 16, 0).batches, [site], "logit_diff")
    layer = int(site.split(".")[1])
    true = [unit[0] for where, unit in compiled.truth.units("channel") if where == layer]
    idle = [u for u in range(model.config.d_inner) if u not in true][: len(true)]
    return model, site, true, idle, loader, held


def test_shares_add_up_to_the_effect(known: Any) -> None:
    model, site, true, idle, loader, _ = known
    [found] = traffic(model, loader.batches, [site])
    width = found.clean.shape[-1]
    assert found.share(torch.eye(width, dtype=torch.float64)) == pytest.approx(float(found.by_unit().sum()))
    assert found.share(unit_basis(true, width)) == pytest.approx(1.0, abs=0.01)
    assert abs(found.share(unit_basis(idle, width))) < 1e-6
    assert set(torch.nonzero(found.by_unit() > 1e-3).flatten().tolist()) <= set(true)


def test_the_known_circuit_is_needed_and_suffices_and_idle_units_are_not(known: Any) -> None:
    model, site, true, idle, _, held = known
    width = model.config.d_inner
    for units, effect in ((true, 1.0), (idle, 0.0)):
        candidate = from_units("x", "mask", 0, site, units, width)
        for test in ("necessity", "sufficiency"):
            found = necessity(held, candidate, test, draws=39, bootstrap=100)
            assert float(found.effect["value"]) == pytest.approx(effect, abs=0.02)
            assert (found.p == 1 / 40) == bool(effect) and len(found.dose) == len(DOSES)
            assert not effect or found.monotone == pytest.approx(1.0)
        shaken = robustness(held, candidate, draws=4)
        if effect:
            assert shaken["noise outside"]["value"] < 1e-6 < shaken["noise inside"]["value"]
            assert shaken["rotation inside"]["value"] > 10 * shaken["rotation outside"]["value"]
            assert shaken["granularity"]["ranks"] == [*range(1, shaken["granularity"]["ranks"][-1] + 1)]
            assert shaken["granularity"]["least_rank"] > 1 and shaken["granularity"]["effect"][-1] == pytest.approx(
                1.0, abs=0.02
            )
        else:
            assert shaken["granularity"]["least_rank"] is None


@pytest.mark.parametrize("test", ["necessity", "sufficiency"])
@pytest.mark.parametrize("made", [tiny_mamba, tiny_gpt2])
def test_the_whole_site_beats_no_random_subspace_of_its_rank(made: Any, test: str) -> None:
    """Each of them is the whole site, too: rounding alone tells their effects apart, and decides nothing."""
    task = make_task(TaskConfig(name="recall", pairs=2, keys=12, values=12))
    model = made(0, vocab_size=task.vocab_size, **({"n_ctx": 64} if made is tiny_gpt2 else {})).requires_grad_(False)
    site = study_site(model, 1)
    context: Any = SimpleNamespace(model=model, sites={1: site}, config=SimpleNamespace(metric="logit_diff"))
    held = unfiltered(context, model, PromptLoader(task, "evaluation", 32, 32, 0).batches[0])
    width = held.clean[site].shape[-1]
    found = necessity(held, from_units("all", "mask", 1, site, range(width), width), test, draws=39, bootstrap=100)
    assert found.random["high"] - found.random["low"] < 1e-4 and found.p == 1.0


def test_an_ablation_is_an_edit_of_the_models_own_run(known: Any) -> None:
    model, site, _, _, _, held = known
    basis = orthonormal(torch.randn(3, model.config.d_inner, generator=torch.Generator().manual_seed(0)))
    candidate = Candidate("directions", 0, site, basis, ("sae",))
    found = necessity(held, candidate, "necessity", draws=2, bootstrap=100)
    clean, twin = held.clean[site], held.twin[site]
    value = (clean + ((twin - clean) @ basis) @ basis.T).float()
    pair = held.pairs["necessity"]
    logits = mechint.run(
        model, held.prompts.tokens, (), [mechint.Edit(site, "replace", value)], logits_at=pair.logits_at
    )
    lost = (pair.clean - pair.metric(logits.logits).double()).mean() / held.effect.mean()
    assert float(found.effect["value"]) == pytest.approx(float(lost), abs=1e-5)


def test_sources_propose_the_known_units_and_agree(known: Any) -> None:
    model, site, true, idle, loader, _ = known
    layer = int(site.split(".")[1])
    [found] = traffic(model, loader.batches, [site])
    kept = mask_search(model, loader, ["layers.0.gated"], len(true), 12, 0)
    assert kept.shape == (model.num_layers * model.config.d_inner,) and int(kept.sum()) == len(true)
    proposals = [*of_mask(found, layer, by_site(model, [site], kept)[site], len(true)), *of_clusters(found, layer, 8)]
    wrong = from_units("idle", "probe", layer, site, idle, model.config.d_inner)
    twice = from_units("again", "sae", layer, site, proposals[0].units, model.config.d_inner)
    candidates, table = merge([*proposals, wrong, twice], {site: found})
    assert set(candidates[0].units) <= set(true) and candidates[0].evidence > 0.4
    assert {"mask", "sae"} <= set(candidates[0].sources) and candidates[-1].name == "idle"
    assert candidates[-1].evidence < 1e-6 and all(table[i][i] == pytest.approx(1.0) for i in range(len(table)))


@settings(max_examples=examples(15), deadline=None)
@given(st.integers(2, 9), st.data())
def test_bases_are_orthonormal_and_overlap_is_a_share(width: int, data: Any) -> None:
    rank = data.draw(st.integers(1, width))
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    a, within = random_basis(width, rank, g), unit_basis(range(width - 1), width)
    torch.testing.assert_close(a.T @ a, torch.eye(rank, dtype=torch.float64))
    assert overlap(a, a) == pytest.approx(1.0) and 0 <= overlap(a, random_basis(width, 1, g)) <= 1 + 1e-9
    inside = random_basis(width, min(rank, width - 1), g, within)
    assert float(inside[-1].abs().max()) < 1e-12
    again = orthonormal((a @ torch.randn(rank, rank + 2, generator=g, dtype=torch.float64)).T)
    assert overlap(a, again) == pytest.approx(1.0) and again.shape[1] == rank


def test_cka_and_holm_and_ranks() -> None:
    g = torch.Generator().manual_seed(0)
    a = torch.randn(200, 5, generator=g).numpy()
    turned = a @ random_basis(5, 5, g).numpy() * 3 + 1
    assert linear_cka(a, turned) == pytest.approx(1.0) and linear_cka(a, torch.randn(200, 5, generator=g).numpy()) < 0.2
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06]) and holm([]) == []
    assert rank_correlation([1, 2, 3], [2, 9, 10]) == pytest.approx(1.0) and rank_correlation([1, 2], [3, 3]) is None
    assert rank_correlation([1, 2, 2, 3], [1, 2, 2, 3]) == pytest.approx(1.0)
    assert draws_needed(8) == 159 and strongest(torch.tensor([0.5, 0.0, 0.001, 0.4]), 4) == [0, 3]


def test_granularity_of_one_direction(known: Any) -> None:
    model, site, true, _, _, held = known
    found = granularity(held, from_units("one", "mask", 0, site, true[:1], model.config.d_inner))
    assert found["ranks"] == [1] and found["every_rank"] and found["n"] == len(held.prompts)


def test_the_least_rank_is_the_least_of_all() -> None:
    """Effects by hand: of every rank, also where they do not rise with the rank."""

    def effects(*values: float) -> Any:
        return lambda sizes: [values[j - 1] for j in sizes]

    rising = by_rank(effects(0.1, 0.2, 0.4, 0.6, 0.8, 0.92, 0.97, 1.0), 8)
    assert list(rising) == [1, 2, 3, 4, 5, 6, 7, 8] and least_rank(rising) == 6
    assert least_rank(by_rank(effects(0.1, 0.3, 0.95, 0.5, 0.8, 0.91, 0.97, 1.0), 8)) == 3
    assert least_rank(by_rank(effects(0.89), 1)) == 1
    # of more ranks than are tried: 1, 26, 50, 75, 100 and then all between the first that holds and the one before it
    many = by_rank(lambda sizes: [float(j >= 62) for j in sizes], 100, most=5)
    assert least_rank(many) == 62 and len(many) == 5 + 24 and set(range(51, 75)) < set(many)
    assert list(by_rank(lambda sizes: [1.0 for _ in sizes], 100, most=5)) == [1, 26, 50, 75, 100]


def test_what_cannot_be_studied_is_refused(known: Any) -> None:
    model, site, _, _, loader, _ = known
    with pytest.raises(MechintError, match=r"layer 9 does not exist; .* has"):
        study_site(model, 9)
    with pytest.raises(MechintError, match=r"no site 'gatd' .*did you mean gated"):
        study_site(model, 0, "gatd")
    assert study_site(tiny_gpt2(), 1) == "layers.1.head_out"
    untrained = shuffled_weights(model, 3)
    assert untrained is not model and not torch.equal(next(untrained.parameters()), next(model.parameters()))
    with pytest.raises(MechintError, match="and a test needs 33"):
        Held.of(model, loader.batches, [site], "logit_diff", least=33)
    with pytest.raises(MechintError, match="lower the rank"):
        mask_search(model, loader, ["layers.0.gated"], 10_000, 10, 0)
    task = make_task(TaskConfig(name="recall", pairs=3))
    with pytest.raises(MechintError, match="prompts would do if it answers as many"):
        Held.of(tiny_mamba(), PromptLoader(task, "evaluation", 8, 8, 0).batches, ["layers.0.gated"], "logit_diff")
