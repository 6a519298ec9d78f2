"""Scores of units by several methods, one prompt or one ablation at a time."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import mechint
from mechint.analyses.circuits.methods import delta, gradients, single_units, weights
from mechint.analyses.circuits.methods.attention import attention_units
from mechint.analyses.circuits.methods.evaluator import Evaluator
from mechint.analyses.circuits.methods.found import how_pruned, how_ranked, went_back
from mechint.analyses.metrics import answer_metric, logprobs
from mechint.attribution.attention import attention_maps, map_sites, normalised
from mechint.interventions.gradients import gradients as slopes_of
from mechint.tasks import Prompts
from tests.helpers.builders import tiny_gpt2, tiny_mamba
from tests.helpers.circuits import uneven
from tests.helpers.feature_units import prompts


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    return Evaluator(uneven(), "answer_logprob", seed=4)


def singles(evaluator: Evaluator) -> list[Any]:
    return [batch[torch.tensor([row])] for batch in evaluator.batches for row in range(len(batch))]


def test_sizes_of_activations_and_slopes_are_means_over_prompts_and_tokens(evaluator: Evaluator) -> None:
    model, sites = evaluator.model, ("u", "gated")
    size, push = torch.zeros(28).double(), torch.zeros(28).double()
    for prompt in singles(evaluator):
        names = [f"layers.{layer}.{site}" for layer in range(2) for site in sites]
        values, slopes = slopes_of(
            model, prompt.tokens, names, lambda logits, p=prompt: logprobs(logits, p), logits_at=prompt.positions
        )
        for name in names:
            at = slice(14 * int(name[7]), 14 * int(name[7]) + 14)
            size[at] += values[name][0].abs().mean(0) / 10
            push[at] += (values[name] * slopes[name])[0].abs().mean(0) / 10
    found = gradients.activation_magnitude(evaluator), gradients.gradient_x_activation(evaluator)
    torch.testing.assert_close(found[0].double(), size, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[1].double(), push, rtol=1e-4, atol=1e-6)
    assert torch.equal(gradients.attribution_size(evaluator), gradients.attribution(evaluator).abs())
    assert bool((gradients.attribution(evaluator) < 0).any())


def answer(evaluator: Evaluator, prompt: Any, edits: list[Any]) -> float:
    logits = mechint.run(evaluator.model, prompt.tokens, edits=edits, logits_at=prompt.positions).logits
    return float(logits.log_softmax(-1).gather(-1, prompt.answers[..., None]).mean())


@pytest.mark.parametrize("unit", [3, 20])
def test_effects_of_single_units_are_mean_sizes(evaluator: Evaluator, unit: int) -> None:
    layer, e = divmod(unit, 14)
    others = [k for k in range(14) if k != e]
    gone = [mechint.Edit(f"layers.{layer}.u", "replace", 0.0, units=[e])]
    every = [mechint.Edit(f"layers.{layer}.gated", "replace", 0.0)]
    alone = [mechint.Edit(f"layers.{layer}.gated", "replace", 0.0, units=others)]
    lost = [abs(answer(evaluator, p, []) - answer(evaluator, p, gone)) for p in singles(evaluator)]
    back = [abs(answer(evaluator, p, alone) - answer(evaluator, p, every)) for p in singles(evaluator)]
    assert float(single_units.causal_necessary(evaluator)[unit]) == pytest.approx(sum(lost) / 10, rel=1e-3)
    assert float(single_units.causal_sufficient(evaluator)[unit]) == pytest.approx(sum(back) / 10, rel=1e-3)


def test_rankings_by_the_step_are_of_all_prompts() -> None:
    """Moments of two prompts: of channel 0 means 1 and 3, squares 2 and 12, so 7 - 4."""
    moments = {"s mean": [[1.0, 0], [3.0, 1]], "s square": [[2.0, 4], [12.0, 2]],
               "s output mean": [[0.0, 2], [2.0, 2]], "s output square": [[1.0, 4], [3.0, 4]],
               "s gradient": [[1.0, 3], [0.0, 4]], "s do_mean": [[-1.0, 2], [5.0, 5]]}  # fmt: skip
    found = delta.rankings({name: torch.tensor(value) for name, value in moments.items()}, "s")
    assert {name: value.tolist() for name, value in found.items()} == {
        "gradient": [2.0, 2.0], "do_mean": [0.5, 5.0], "variance": [3.0, 2.75], "output_variance": [1.0, 0.0]
    }  # fmt: skip


def test_sizes_of_weights_are_of_a_channel_s_own(evaluator: Evaluator) -> None:
    found = weights.weight_magnitude(evaluator)
    layer = evaluator.model.layers[1]
    for e in (0, 9):
        own = [layer.in_proj.weight[e], layer.in_proj.weight[14 + e], layer.conv1d.weight[e, 0],
               layer.dt_proj.weight[e], layer.x_proj.weight[:, e], layer.out_proj.weight[:, e]]  # fmt: skip
        assert float(found[14 + e]) == pytest.approx(sum(float(part.square().sum()) for part in own) ** 0.5)
    assert len(found) == 28 and torch.equal(weights.random(evaluator), weights.random(evaluator))
    assert not torch.equal(weights.random(evaluator), weights.random(dataclasses.replace(evaluator, seed=5)))


@pytest.mark.parametrize(
    ("metric", "answers"),
    [("kl", "logit_diff"), ("accuracy", "logit_diff"), ("perplexity", "loss"), ("loss", "loss"),
     ("answer_logprob", "answer_logprob"), ("logit_diff", "logit_diff")],
)  # fmt: skip
def test_methods_that_need_the_answers_have_a_metric_of_theirs(evaluator: Evaluator, metric: str, answers: str) -> None:
    assert dataclasses.replace(evaluator, metric=metric).answer_metric == answers


def pruning(**changes: Any) -> dict[str, Any]:
    done = {"exchanges": 1200, "exchanged": 3, "faithfulness_discovery_searched": 0.9, "units_searched": 40,
            "units": 30, "minimal": True, "whole": True, "evaluations": 5000} | changes  # fmt: skip
    value = lambda x: {"value": x}
    return {"metrics": {"faithfulness_unpruned": value(0.91), "faithfulness": value(0.95)}, "pruning": done}


def test_how_a_circuit_was_pruned_is_said() -> None:
    """Which of the cases it is, and its numbers; the words are free."""
    whole = how_pruned(pruning(), 0.9)
    assert all(number in whole for number in ("40", "0.910", "30", "0.950", "1,200")) and "5,000" not in whole
    missed = how_pruned(pruning(faithfulness_discovery_searched=0.899), 0.9)
    assert (
        "0.899" in missed and "0.9" in missed.replace("0.899", "") and "1,200" not in missed and "0.950" not in missed
    )
    bound, short = (how_pruned(pruning(whole=False, minimal=minimal), 0.9) for minimal in (True, False))
    assert all("5,000" in text and "0.950" in text and "1,200" not in text for text in (bound, short))
    assert how_pruned(pruning(minimal=False), 0.9) == short
    sized = how_pruned(pruning(faithfulness_discovery_searched=0.1), float("inf"))
    assert "3" in sized and "1,200" in sized and "0.950" in sized and "40" not in sized
    assert len({whole, missed, bound, short, sized}) == 5


def test_searches_that_went_back_and_rankings_are_said() -> None:
    assert went_back(0, 3, True) == ""
    plain = went_back(1, 3, False)
    assert plain.startswith("1 of 3") and "attribution" in plain
    assert went_back(2, 3, True).startswith("2 of 3") and "attribution" not in went_back(2, 3, True)
    ranked = lambda metric: how_ranked({"metric": "kl", "ranking": {
        "units": 1500, "method": "m", "meaning": "what", "source": "who", "metric": metric}})  # fmt: skip
    assert all(part in ranked("kl") for part in ("1,500", "what", "who"))
    assert ranked("kl") == ranked(None) and "loss" in ranked("loss") and "loss" not in ranked("kl")


def asked_twice(rows: int = 2, length: int = 5) -> Prompts:
    """Prompts with two answers each, at other positions in each."""
    every, positions = prompts(rows, length), torch.tensor([[2, 4], [1, 4]])
    return dataclasses.replace(every, positions=positions, answers=every.answers.gather(1, positions))


@pytest.mark.parametrize(("build", "kind"), [(tiny_mamba, "gated"), (tiny_gpt2, "head_out")])
def test_activations_are_weighted_by_the_mean_row_of_attention_where_answers_are_asked_for(
    build: Any, kind: str
) -> None:
    model, asked = build(2, torch.float64).requires_grad_(False), asked_twice()
    found = attention_units(model, asked, [0, 1], "answer_logprob", kind)
    sites = [*map_sites(model), "layers.0." + kind, "layers.1." + kind]
    values, slopes = slopes_of(
        model, asked.tokens, sites, answer_metric("answer_logprob", asked), logits_at=asked.positions
    )
    (first, guided_0), (second, guided_1) = (
        map(normalised, attention_maps(model, layer, values, slopes)) for layer in range(2)
    )
    for layer, plain, guided in ((0, first, guided_0), (1, second, guided_1)):
        site = f"layers.{layer}.{kind}"
        a, da = values[site], slopes[site]
        for b, (p, q) in enumerate(asked.positions.tolist()):
            halves = [(torch.eye(5) + each[b]) / 2 for each in ((second, first) if layer == 0 else (second,))]
            onward = halves[0] @ halves[1] if layer == 0 else halves[0]
            for name, rows, what in (
                ("attention_weighted", plain[b], a[b].abs()), ("gradient_guided", guided[b], (a * da)[b].abs()),
                ("rollout", onward, a[b].abs()), ("gradient_x_input", torch.ones(5, 5), (a * da)[b].abs()),
            ):  # fmt: skip
                w = (rows[p] + rows[q]) / 2
                size = what if kind == "gated" else what.sum(-1)  # a head's is the sum over its dimensions
                expected = sum(w[j] * size[j] for j in range(5))
                torch.testing.assert_close(found[f"{site} {name}"][b], expected, rtol=1e-9, atol=1e-12)


def test_a_step_is_held_at_its_mean_one_channel_at_a_time_and_its_moments_are_over_tokens() -> None:
    model, asked = tiny_mamba(3, torch.float64).requires_grad_(False), asked_twice()
    means = {"layers.0.dt": torch.linspace(0.1, 1.4, 14, dtype=torch.float64)}
    found = delta.delta_units(model, asked, means, "answer_logprob")
    value = answer_metric("answer_logprob", asked)
    ran = lambda *edits: value(mechint.run(model, asked.tokens, edits=edits, logits_at=asked.positions).logits)
    for e in (0, 3, 13):
        held = mechint.Edit("layers.0.dt", "replace", 0.1 + 0.1 * e, units=[e])
        torch.testing.assert_close(found["layers.0.dt do_mean"][e], ran() - ran(held), rtol=0, atol=1e-9)
    values = mechint.run(model, asked.tokens, ["layers.0.dt", "layers.0.gated"])
    for name, site in (("layers.0.dt", "layers.0.dt"), ("layers.0.dt output", "layers.0.gated")):
        torch.testing.assert_close(found[f"{name} mean"], sum(values[site][:, t] for t in range(5)) / 5)
        torch.testing.assert_close(found[f"{name} square"], sum(values[site][:, t] ** 2 for t in range(5)) / 5)
    _, slopes = slopes_of(model, asked.tokens, ["layers.0.dt"], value, logits_at=asked.positions)
    expected = sum(slopes["layers.0.dt"][:, t].abs() for t in range(5))
    torch.testing.assert_close(found["layers.0.dt gradient"], expected.T)
