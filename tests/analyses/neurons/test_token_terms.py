"""Answers shared out among tokens: the numbers of the study are those of the two functions, and they add up."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import mechint
from mechint.analyses.neurons.analyzer import NeuronAnalyzer
from mechint.analyses.neurons.report import shared_section
from mechint.analyses.neurons.tokens import token_terms
from mechint.attribution.decomposition import decompose
from mechint.attribution.relevance import relevance
from mechint.report.content import Table
from tests.helpers.builders import tiny_gpt2, tiny_llama, tiny_mamba
from tests.helpers.neurons import SMALL, prompts
from tests.helpers.tracing import loaders

CONFIG = dataclasses.replace(
    SMALL, tokens=True, sites="out", delta=False, attention=False, cross_layer=False, eval_prompts=10
)


@pytest.mark.parametrize("build", [tiny_mamba, tiny_gpt2, tiny_llama])
def test_relevance_and_biases_add_up_to_the_logit_of_the_last_answer(build: Any) -> None:
    model = build(3, torch.float64).requires_grad_(False)
    batch = prompts(model)
    found = token_terms(model, batch, [0, 1], batch.tokens.shape[1], 256)
    rows, at = torch.arange(len(batch)), batch.positions[:, -1]
    logit = mechint.run(model, batch.tokens).logits[rows, at, batch.answers[:, -1]]
    for layer in range(model.num_layers + 1):
        total = found["relevance"][layer].sum(0) + found["relevance bias"][layer:].sum(0)
        torch.testing.assert_close(total, logit, rtol=1e-10, atol=1e-10)
    assert ("sources 0" in found) is (model.config.family == "mamba")
    assert float(found["relevance error"].max()) < 1e-12


def test_terms_are_those_of_the_position_that_the_last_answer_is_read_at() -> None:
    model = tiny_mamba(4, torch.float64).requires_grad_(False)
    two = prompts(model)  # the last answer is read at position 3 of 7
    first = {name: torch.cat([getattr(two, name)[:, :1], getattr(two, name)], 1) for name in ("positions", "answers")}
    batch = dataclasses.replace(two, wrong=None, **first)  # three answers, the first of which is asked twice
    found = token_terms(model, batch, [1], 5, 256)
    shared = relevance(model, batch.tokens, two.answers[:, 1], two.positions[:, 1])
    torch.testing.assert_close(found["relevance"], shared.layers[..., 2:].transpose(1, 2))
    whole = decompose(model, batch.tokens, 1)
    torch.testing.assert_close(found["sources 1"], whole.sources[:, 3, 2:].T)
    assert not found["sources 1"][2:].any()  # tokens behind the reader
    for k, name in enumerate(("skip", "bias", "residual")):
        torch.testing.assert_close(found["terms 1"][k], getattr(whole, name)[:, 3])
    assert float(found["missed 1"].max()) < 1e-12


def test_the_study_reports_means_over_prompts_with_what_the_sums_miss() -> None:
    model = tiny_mamba(5)
    discovery, evaluation = loaders(model, 8, 10)
    found = NeuronAnalyzer(model, CONFIG).run_analysis(discovery, evaluation)["tokens"]
    length = evaluation.batches[0].tokens.shape[1]
    assert found["tokens"] == list(range(-length, 0)) and 0 < found["missed"] < 1e-5
    each = [relevance(model, b.tokens, b.answers[:, -1], b.positions[:, -1]) for b in evaluation]
    mean = torch.cat([r.tokens for r in each]).double().mean(0)
    torch.testing.assert_close(torch.tensor(found["relevance"]["value"][0], dtype=torch.float64), mean)
    assert len(found["bias"]) == model.num_layers + 1
    for block in found["blocks"]:
        assert 0 < block["missed"] < 1e-5 and len(block["sources"]["value"]) == length
        assert block["residual"]["low"] <= block["residual"]["value"] <= block["residual"]["high"]
    [table] = [block for block in shared_section(found).blocks if isinstance(block, Table)]
    assert len(table.rows) == model.num_layers


def test_half_precision_and_a_switched_off_section_have_none() -> None:
    for model, config in (
        (tiny_mamba(), dataclasses.replace(CONFIG, tokens=False)),
        (tiny_mamba().to(torch.bfloat16), CONFIG),
    ):
        analyzer = NeuronAnalyzer(model, config)
        assert not analyzer.shares_out and not analyzer.control_config().tokens
