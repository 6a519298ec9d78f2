"""Gates, budgets and temperatures by hand."""

from __future__ import annotations

import math

import pytest
import torch

from mechint.analyses.circuits.search.gates import (
    Temperature,
    budget_at,
    hard_concrete,
    ramp_at,
    shift_to,
    straight_through,
)
from mechint.analyses.circuits.search.learning import Adam


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("logit", [0.8, -1.3])
def test_gates_are_open_and_shut_as_often_as_the_hard_concrete_distribution_says(logit: float) -> None:
    """P(gate > 0) = σ(logit). A gate is 1 where the sample exceeds 11/12: the noise's logit is more than
    β log 11 - log α, with log α = logit - β log 11."""
    gates = hard_concrete(torch.full((40_000,), logit), None, generator())
    assert float((gates > 0).double().mean()) == pytest.approx(sigmoid(logit), abs=0.01)
    shift = 2 / 3 * math.log(11)
    assert float((gates == 1).double().mean()) == pytest.approx(sigmoid(logit - 2 * shift), abs=0.01)
    # half of the gates lie above the one whose noise has the logit 0
    median = min(max(1.2 * sigmoid((logit - shift) / (2 / 3)) - 0.1, 0.0), 1.0)
    assert float(gates.median()) == pytest.approx(median, abs=0.02)


def test_a_sample_is_the_stretched_logistic_of_its_noise() -> None:
    logits = torch.tensor([0.5, -0.2, 2.0, 1.0])
    noise = torch.rand(4, generator=generator()).tolist()
    found = hard_concrete(logits, None, generator())
    for gate, logit, u in zip(found.tolist(), logits.tolist(), noise, strict=True):
        sample = sigmoid((math.log(u / (1 - u)) + logit - 2 / 3 * math.log(11)) / (2 / 3))
        assert gate == pytest.approx(min(1.0, max(0.0, 1.2 * sample - 0.1)), abs=1e-5)
    budgeted = hard_concrete(logits, 1.5, generator())
    shift = float(shift_to(logits, 1.5))
    assert budgeted.tolist() == pytest.approx(hard_concrete(logits + shift, None, generator()).tolist(), abs=1e-5)


def test_the_shift_meets_the_budget_and_its_slope_keeps_it() -> None:
    logits = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64, requires_grad=True)
    shift = shift_to(logits, 1.7)
    assert sum(sigmoid(float(x) + float(shift.detach())) for x in logits.detach()) == pytest.approx(1.7)
    [slope] = torch.autograd.grad(shift, logits)
    for k in range(4):
        ends = []
        for step in (1e-5, -1e-5):
            moved = logits.detach().clone()
            moved[k] += step
            ends.append(float(shift_to(moved, 1.7)))
        assert float(slope[k]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4)


def test_straight_through_gates_are_exact_and_pass_the_slope_of_the_soft_ones() -> None:
    logits = torch.tensor([0.3, -0.4, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    assert straight_through(logits, None, generator()).tolist() == [1, 0, 0, 1]
    [slope] = torch.autograd.grad(straight_through(logits, None, generator()).sum(), logits)
    assert slope.tolist() == pytest.approx([sigmoid(float(x)) * (1 - sigmoid(float(x))) for x in logits])
    for budget, kept in ((1.4, [0, 0, 0, 1]), (1.6, [1, 0, 0, 1]), (0.2, [0, 0, 0, 1]), (2.9, [1, 0, 1, 1])):
        assert straight_through(logits, budget, generator()).tolist() == kept
    for gate in (straight_through, hard_concrete):
        assert gate(logits, 4, generator()).tolist() == [1, 1, 1, 1] == gate(logits, 9, generator()).tolist()
    first = straight_through(logits, 2.0, generator())[0]
    [slope] = torch.autograd.grad(first, logits)
    soft = lambda x: torch.sigmoid(x + shift_to(x, 2.0))[0]
    [expected] = torch.autograd.grad(soft(logits), logits)
    torch.testing.assert_close(slope, expected)


def test_budgets_by_hand() -> None:
    """Of 8 steps the last quarter has the target; step 3 of 6 has the geometric mean, or half of the way."""
    at = lambda step, schedule="exponential", hold=0.25: budget_at(step, 8, 1000, 10, schedule, hold)
    assert [at(step) for step in (0, 3, 6, 7)] == pytest.approx([1000, 100, 10, 10])
    assert [at(step, "linear") for step in (0, 3, 6)] == pytest.approx([1000, 505, 10])
    assert at(3, "cubic") == pytest.approx(1000 - 990 / 8) and at(4, "linear", 0.0) == pytest.approx(505)
    assert budget_at(1, 1, 100, 10) == pytest.approx(10) and budget_at(0, 1, 100, 10) == pytest.approx(100)
    assert budget_at(250, 500, 1, 0, "cubic", 0.0) == pytest.approx(1 - 0.125)
    assert ramp_at(0, 8, 1000, "linear") == 0 and ramp_at(6, 8, 1000, "linear") == pytest.approx(1)
    assert ramp_at(3, 8, 1000, "linear") == pytest.approx(0.5) and ramp_at(3, 8, 1, "cubic") == pytest.approx(1 / 8)
    assert ramp_at(3, 8, 10_000, "exponential") == pytest.approx((10_000 - 100) / 9_999)


def test_temperatures_by_hand() -> None:
    parse = Temperature.parse
    assert [parse("linear:1.0:0.1").at(step, 500) for step in (0, 450, 900)] == pytest.approx([1, 0.19, 0.1])
    assert parse("exponential: 4 : 1").at(5, 10) == pytest.approx(2) and parse("constant:0.3").at(7, 10) == 0.3
    assert [parse("cosine:3:1").at(step, 12) for step in (0, 4, 6, 12)] == pytest.approx([3, 2.5, 2, 1])
    assert parse("linear:2:1").at(0, 0) == 2 and parse("constant:100") == Temperature("constant", 100.0, 100.0)
    for text in (
        "linear:1",
        "constant:1:2",
        "linear:0.0009:1",
        "linear:1:101",
        "linear:x:1",
        "step:1:2",
        "linear:1:nan",
    ):
        with pytest.raises(Exception, match="the temperature schedule"):
            parse(text)
    assert parse("linear:0.001:100").end == 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adam_takes_the_steps_of_torch_s(dtype: torch.dtype) -> None:
    """Also from a saved state on."""
    start, random = torch.tensor([0.3, -2.0, 7.0], dtype=dtype), generator()
    theirs, ours, other = (start.clone().requires_grad_() for _ in range(3))
    oracle = torch.optim.Adam([theirs], lr=0.1, betas=(0.9, 0.99))
    adam = Adam(ours, 0.1, (0.9, 0.99))
    for step in range(60):
        theirs.grad = torch.randn(3, generator=random, dtype=dtype) * 10.0 ** (step % 5 - 2)
        oracle.step()
        adam.step(theirs.grad)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
        if step == 30:
            state, ours = adam.state(), other
            other.data.copy_(theirs.data)
            adam = Adam(other, 0.1, (0.9, 0.99))
            adam.restore(state)
    assert float((ours.detach() - start).abs().min()) > 0.1
