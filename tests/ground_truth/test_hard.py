"""Hard models: their truths against ablations, wrong truths refused, and no cheap ranking that is exact."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest
import torch

from mechint.analyses.circuits.methods.gradients import activation_magnitude, gradient_x_activation
from mechint.ground_truth import BLUEPRINTS, HARD, MODELS, Compiled, Questions, Share, score_units, verify
from mechint.ground_truth.blueprint import GAIN
from mechint.ground_truth.gpt2.models import GAIN as GPT2_GAIN
from mechint.ground_truth.hard.superposed import LEFT, directions, largest_cosine, least_without_one
from mechint.ground_truth.hard.ways_mamba import RareTask
from mechint.ground_truth.together import check_together, share_scores
from mechint.scorecard.hard.cheap import gradient_size, reach
from mechint.scorecard.methods import Budget, evaluator_of
from mechint.utils.errors import MechintError


@functools.cache
def compiled(name: str, seed: int = 3) -> Compiled:
    found: Compiled = MODELS[name]().compile(seed=seed)
    found.model.requires_grad_(False)
    return found


QUICK, SLOW = ("loud_shift",), ("cancelling", "gpt2_superposed_recall")
"""Models whose truth is held against ablations in every run, and in long ones; the others in exhaustive ones."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=[] if name in QUICK else [pytest.mark.slow if name in SLOW else pytest.mark.exhaustive]
        )
        for name in HARD
    ],
)
def test_a_hard_truth_stands_up_to_ablations(name: str) -> None:
    model = compiled(name)
    found = verify(model.model, model.truth, model.task, 500, "discovery")
    assert {part.name for part in model.truth.parts} <= set(found)
    if model.truth.questions:
        assert found["without all that is needed together"] <= 0.5 < found["without all else"] == 1.0


@pytest.mark.slow_except("loud_shift|backup|cancelling|gpt2_two_heads")
@pytest.mark.parametrize("name", HARD)
def test_no_cheap_ranking_is_exact_on_a_hard_model(name: str) -> None:
    """From the weights alone, one gradient, one product, or the values: an exam that one of these passes is none."""
    model = compiled(name)
    mask = model.truth.mask(model.model, model.unit)
    evaluator = evaluator_of(model.model, model.task, "zero", Budget(int(mask.sum()), 64, 16, 60, model.unit), 64, 64)
    cheap = {
        "weights": reach(model.model),
        **{way.__name__: way(evaluator) for way in (gradient_size, gradient_x_activation, activation_magnitude)},
    }
    scores = {way: score_units(mask, values) for way, values in cheap.items()}
    assert not any(score.exact for score in scores.values())
    assert {way: score.auroc for way, score in scores.items() if score.auroc > 0.995} == {}


@pytest.mark.parametrize("name", ["shift", "recall", "gpt2_shift"])
def test_weights_alone_find_the_circuit_of_an_easy_model(name: str) -> None:
    model = compiled(name)
    assert score_units(model.truth.mask(model.model, model.unit), reach(model.model)).exact


# ---- a wrong truth is refused ------------------------------------------------------------------------------------


def refused(model: Compiled, message: str, questions: Questions | None = None, shares: tuple[Share, ...] = ()) -> None:
    truth = dataclasses.replace(model.truth, questions=questions, shares=shares)
    with pytest.raises(MechintError, match=message):
        dict(check_together(model.model, truth, model.task.sample(100, "train", 0)))


@pytest.mark.slow
def test_wrong_questions_are_contradicted() -> None:
    model = compiled("backup")
    questions = model.truth.questions
    assert questions is not None
    first, second = questions.sufficient
    wrong = functools.partial(dataclasses.replace, questions)
    refused(model, "is declared needed alone, and as one that is not", wrong(alone=first))
    refused(model, "without all that is needed together: 100.0% of the answers", wrong(together=first))
    refused(model, r"sufficient set 0 alone: .*% of the answers", wrong(sufficient=(second - first - {min(second)},)))
    refused(model, r"sufficient set 0 but for .*: 100.0% of the answers", wrong(sufficient=(first | second,)))


def test_units_that_break_nothing_alone_are_held_to_that() -> None:
    model = compiled("cancelling")
    questions = model.truth.questions
    assert questions is not None
    pairs = questions.alone - questions.together
    refused(model, r"without .* alone: .*% of the answers", dataclasses.replace(questions, alone=questions.together))
    assert len(pairs) == 2 * model.task.symbols  # type: ignore[attr-defined]


def test_wrong_shares_are_contradicted() -> None:
    model = compiled("two_ways")
    share = model.truth.shares[0]
    refused(model, "the logit of the answer falls by", shares=(dataclasses.replace(share, drop=share.drop + 0.1),))
    none = dataclasses.replace(share, answer=999)
    refused(model, "no prompt has the answer 999", shares=(none,))


# ---- what is declared --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "gain"), [("superposed_latch", GAIN), ("gpt2_superposed_recall", GPT2_GAIN)])
def test_shares_of_a_superposed_answer_add_up_to_its_logit(name: str, gain: float) -> None:
    model = compiled(name)
    totals: dict[Any, float] = {}
    for share in model.truth.shares:
        totals[share.answer] = totals.get(share.answer, 0.0) + share.drop
    assert len(totals) == 8
    assert all(total == pytest.approx(gain, abs=1e-4) for total in totals.values())
    shares = share_scores(model.truth, model.model, model.unit)
    assert float(shares.sum()) == pytest.approx(gain, abs=1e-4)
    assert set(shares.nonzero().flatten().tolist()) <= set(
        model.truth.mask(model.model, model.unit).nonzero().flatten().tolist()
    )


def test_shares_of_two_ways_are_set_by_the_seed() -> None:
    found = [[share.drop for share in compiled("two_ways", seed).truth.shares] for seed in (3, 4)]
    assert all(sum(drops) == pytest.approx(GAIN) for drops in found)
    assert found[0][0] != pytest.approx(found[1][0], abs=0.01)


def test_directions_are_more_than_their_dimensions() -> None:
    rows = directions(8, 4, 10, torch.Generator().manual_seed(0))
    assert rows.shape == (8, 10)
    assert torch.linalg.matrix_rank(rows, rtol=1e-4) == 4
    assert torch.allclose(rows.norm(dim=1), torch.ones(8), atol=1e-5)
    assert 0.0 < largest_cosine(rows) < 0.6
    assert float((rows @ rows.T - torch.eye(8)).abs().max()) > 0.1  # not orthogonal


def test_no_channel_of_a_superposition_is_needed_alone() -> None:
    """On any seed: of two symbols over two channels by hand, and of many draws."""
    assert least_without_one(torch.tensor([[0.6, 0.8], [0.8, -0.6]])) == pytest.approx(0.36 - 0.48)
    for seed in range(30):
        assert least_without_one(directions(8, 4, 10, torch.Generator().manual_seed(seed))) >= LEFT


@pytest.mark.parametrize("name", ["backup", "gpt2_two_heads"])
def test_masks_of_the_three_questions(name: str) -> None:
    model = compiled(name)
    assert model.truth.questions is not None
    masks = model.truth.questions.masks(model.model)
    assert float(masks["alone"][0].sum()) == 0
    assert torch.equal(masks["together"][0], model.truth.mask(model.model, model.unit))
    ways = masks["sufficient"]
    assert torch.equal(sum(ways), masks["together"][0])  # type: ignore[arg-type]
    assert all(way.any() for way in ways)


def test_a_rare_symbol_is_asked_for_in_one_of_fifty_prompts() -> None:
    task = RareTask(8, 20)
    prompts = task.sample(4000, "train", 0)
    for tokens in (prompts.answers, prompts.wrong):
        assert tokens is not None
        assert 0.01 < float((tokens == 0).float().mean()) < 0.03
    assert (prompts.answers != prompts.wrong).all()
    assert isinstance(BLUEPRINTS["latch"]().task, type(task).__mro__[1])
