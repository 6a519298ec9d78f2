"""Steps of single tokens, and moments of chosen units: each number against one run by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import mechint
from mechint import Edit
from mechint.analyses.circuits.methods.delta import delta_units, mean_step
from mechint.analyses.neurons.analyzer import NeuronAnalyzer
from mechint.analyses.neurons.delta import channels_of, step_gradients, token_steps
from mechint.analyses.neurons.moments import moments
from tests.helpers.builders import tiny_gpt2, tiny_mamba
from tests.helpers.neurons import SMALL, by_hand, prompts
from tests.helpers.tracing import loaders


def test_a_step_of_one_token_is_one_run_by_hand() -> None:
    model = tiny_mamba(3, torch.float64).requires_grad_(False)
    batch = prompts(model)
    site, length = "layers.1.dt", 4
    means = mean_step(model, [batch], [1])
    found = token_steps(model, batch, means, {site: [5, 2]}, length, "answer_logprob")
    own, clean = mechint.run(model, batch.tokens, [site])[site], by_hand(model, batch, "answer_logprob", [])
    for a, e in enumerate((5, 2)):
        for b, t in enumerate(range(3, 7)):
            held = by_hand(model, batch, "answer_logprob", [Edit(site, "replace", means[site][e], [t], units=[e])])
            torch.testing.assert_close(found[f"{site} token do_mean"][a, b], clean - held, rtol=0, atol=1e-10)
            torch.testing.assert_close(found[f"{site} token step"][a, b], own[:, t, e], rtol=0, atol=0)
            moved = [
                by_hand(model, batch, "answer_logprob", [Edit(site, "add", h, [t], units=[e])]) for h in (1e-6, -1e-6)
            ]
            slope = ((moved[0] - moved[1]) / 2e-6).abs()
            torch.testing.assert_close(found[f"{site} token gradient"][a, b], slope, rtol=1e-4, atol=1e-8)


def test_over_all_tokens_the_gradients_add_up_to_the_ranking() -> None:
    model = tiny_mamba(5, torch.float64).requires_grad_(False)
    batch = prompts(model)
    means, everything = mean_step(model, [batch], [0]), list(range(14))
    whole = delta_units(model, batch, means, "logit_diff")["layers.0.dt gradient"]
    ranked = step_gradients(model, batch, [0], "logit_diff")["layers.0.dt gradient"]
    single = token_steps(model, batch, means, {"layers.0.dt": everything}, 7, "logit_diff")
    torch.testing.assert_close(single["layers.0.dt token gradient"].sum(1), whole)
    torch.testing.assert_close(ranked, whole)
    assert channels_of(whole, 3) == whole.mean(1).argsort(descending=True)[:3].tolist()


def test_the_study_chooses_channels_on_other_prompts_and_counts_tokens_from_the_last() -> None:
    model = tiny_mamba(2)
    discovery, evaluation = loaders(model, 8, 8)
    config = dataclasses.replace(SMALL, sites="gated", attention=False, cross_layer=False)
    results = NeuronAnalyzer(model, config).run_analysis(discovery, evaluation)
    for entry in results["delta"]:
        found = entry["tokens"]
        ranked = [step_gradients(model, b, [entry["layer"]], "answer_logprob") for b in discovery]
        scores = torch.cat([r[f"layers.{entry['layer']}.dt gradient"] for r in ranked], 1)
        assert found["channels"] == channels_of(scores, 4)
        assert found["tokens"][-1] == -1 and len(found["tokens"]) == evaluation.batches[0].tokens.shape[1]
        for name in ("gradient", "do_mean", "step"):
            low, value, high = (np.array(found[name][key]) for key in ("low", "value", "high"))
            assert value.shape == (4, len(found["tokens"])) and (low <= value).all() and (value <= high).all()
        for k, e in enumerate(found["channels"]):
            total = sum(found["gradient"]["value"][k])
            assert total == pytest.approx(entry["rankings"]["gradient"]["value"][e], rel=1e-5)


@pytest.mark.parametrize(("build", "site"), [(tiny_mamba, "layers.1.gated"), (tiny_gpt2, "layers.0.mlp_post")])
def test_moments_and_diversity_are_those_of_the_activations(build, site: str) -> None:  # type: ignore[no-untyped-def]
    model = build(1, torch.float64).requires_grad_(False)
    batch = prompts(model)
    chosen = torch.tensor([3, 0, 7])
    found = moments(model, batch, {f"{site} mine": chosen})
    a = mechint.run(model, batch.tokens, [site])[site][..., chosen]
    torch.testing.assert_close(found[f"size {site} mine"], a.abs().mean(1).T)
    torch.testing.assert_close(found[f"mean {site} mine"], a.mean(1).T)
    torch.testing.assert_close(found[f"product {site} mine"][0, 2], (a[..., 0] * a[..., 2]).mean(1))
    discovery, evaluation = loaders(model.float(), 8, 8)
    config = dataclasses.replace(SMALL, sites=site.split(".")[2], cross_layer=False, delta=False)
    results = NeuronAnalyzer(model, config).run_analysis(discovery, evaluation)
    entry = next(e for e in results["attention"] if e["method"] == "rollout" and e["layer"] == int(site[7]))
    values = torch.cat(
        [mechint.run(model, b.tokens, [site])[site][..., entry["top"]].flatten(0, 1) for b in evaluation]
    )
    assert entry["mean_activation"]["value"] == pytest.approx(float(values.abs().mean()), rel=1e-5)
    correlation = np.corrcoef(values.numpy().T)[np.triu_indices(len(entry["top"]), 1)]
    assert entry["diversity"]["value"] == pytest.approx(1 - np.abs(correlation).mean(), rel=1e-4)


def test_the_moments_of_a_head_are_those_of_the_sum_of_its_dimensions() -> None:
    model, site = tiny_gpt2(1, torch.float64).requires_grad_(False), "layers.1.head_out"
    batch = prompts(model)
    found = moments(model, batch, {f"{site} mine": torch.tensor([2, 0])})
    a = mechint.run(model, batch.tokens, [site])[site][:, :, [2, 0]].sum(-1)
    torch.testing.assert_close(found[f"size {site} mine"], a.abs().mean(1).T)
    torch.testing.assert_close(found[f"mean {site} mine"], a.mean(1).T)
    torch.testing.assert_close(found[f"product {site} mine"][0, 1], (a[..., 0] * a[..., 1]).mean(1))
