"""A head with a bias (Phi): all that reads the head counts it once, before the scale and the cap of the logits."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mechint
from mechint.analyses.dictionaries.logits import direct_map
from mechint.analyses.lens.contributions import HEAD_BIAS, contributions
from mechint.analyses.lens.reading import logits_of, stream_sites
from mechint.analyses.metrics import Answers
from mechint.analyses.random_weights import reinitialised
from mechint.attribution.relevance import relevance
from mechint.interventions.prefix import behind, up_to
from mechint.interventions.run import read_by_head
from mechint.interventions.sweep import sweep
from mechint.interventions.taps import Tap
from mechint.models.loading.load import from_state_dict, hf_config, to_hf_state_dict
from mechint.models.placement import place
from mechint.models.stack import Stack
from mechint.tasks import Prompts
from mechint.training.initial import initialise
from tests.helpers.builders import tiny_gpt2, tiny_llama, tiny_mamba
from tests.helpers.devices import pretended_devices
from tests.helpers.families import built
from tests.models.test_placement import same

PHI: dict[str, Any] = {
    "model_type": "phi", "vocab_size": 24, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 12,
    "num_attention_heads": 2, "partial_rotary_factor": 0.5, "layer_norm_eps": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip
WAYS = [(1.0, 0.0, False), (1.0, 0.0, True), (0.5, 2.0, False)]
"""Scale and cap of the logits, and whether the head is the embedding."""
IDS = torch.tensor([[3, 5, 7, 11, 13, 17], [2, 9, 4, 20, 1, 8]])


def phi(scale: float = 1.0, cap: float = 0.0, tied: bool = False) -> Stack:
    """A random Phi in float64 whose biases are as large as its logits; published ones have no scale and no cap."""
    from mechint.models.families import declared
    from mechint.models.loading.config_reader import ConfigReader

    config = declared()["phi"].read(ConfigReader({**PHI, "tie_word_embeddings": tied}, "m", "Phi"))
    model = built("phi", dataclasses.replace(config, logit_scale=scale, logit_cap=cap))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    assert isinstance(model, Stack) and model.head_bias is not None
    return model


def by_hand(model: Stack, read: Tensor) -> Tensor:
    """The logits of what the head reads, from the weights alone."""
    state = model.state_dict()
    logits = read @ state["embed_tokens.weight" if model.config.tied else "lm_head.weight"].T + state["lm_head.bias"]
    logits = logits * model.config.logit_scale
    return model.config.logit_cap * (logits / model.config.logit_cap).tanh() if model.config.logit_cap else logits


def prompts() -> Prompts:
    at = torch.tensor([[3, 5], [2, 5]])
    return Prompts(IDS, at, IDS.gather(1, torch.tensor([[4, 1], [3, 0]])), None, None, at[:, 0])


@pytest.mark.parametrize(("scale", "cap", "tied"), WAYS)
def test_logits_of_runs_lenses_and_sweeps_are_those_by_hand(scale: float, cap: float, tied: bool) -> None:
    model = phi(scale, cap, tied)
    run = mechint.run(model, IDS, ["final_norm", stream_sites(model)[-1]])
    expected = by_hand(model, run["final_norm"])
    torch.testing.assert_close(run.logits, expected, rtol=1e-13, atol=1e-13)
    assert torch.equal(logits_of(model, run["final_norm"]), run.logits)
    assert torch.equal(model.finish(run[stream_sites(model)[-1]], Tap()), run.logits)
    cells = [[mechint.Edit("layers.0.mlp_out", "scale", 0.0, positions=[2])], []]
    last = torch.full((2, 1), 5)
    read = sweep(model, IDS, cells, logits_at=last, by_head=True)
    torch.testing.assert_close(model.unembed(read), sweep(model, IDS, cells, logits_at=last), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("scale", "cap", "tied"), WAYS)
def test_metrics_read_at_the_head_and_their_gradients_are_those_of_the_logits(
    scale: float, cap: float, tied: bool
) -> None:
    """A search of circuits makes the logits itself, of what the head reads."""
    model, asked = phi(scale, cap, tied), prompts()
    read = read_by_head(model, IDS, (), asked.positions)
    answers = Answers(asked, read, model.ending[1], scale, cap, model.head_bias)
    for keep in (False, True):
        if keep:
            answers.keep_logs()
        leaf = (read * 0.9).requires_grad_()
        found = answers.metrics(leaf, "answer_logprob")["answer_logprob"]
        again = leaf.detach().clone().requires_grad_()
        logs = by_hand(model, again).log_softmax(-1)
        expected = logs.gather(-1, asked.answers.unsqueeze(-1)).squeeze(-1).mean(-1)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
        full = by_hand(model, read).log_softmax(-1)
        kl = (full.exp() * (full - logs)).sum(-1).mean(-1)
        torch.testing.assert_close(answers.metrics(leaf)["kl"].double(), kl, rtol=1e-5, atol=1e-5)
        found.sum().backward()
        expected.sum().backward()
        assert again.grad is not None
        torch.testing.assert_close(leaf.grad, again.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("scale", "cap", "tied"), WAYS)
def test_contributions_add_up_with_a_term_of_the_head(scale: float, cap: float, tied: bool) -> None:
    model, asked = phi(scale, cap, tied), prompts()
    found = contributions(model, asked, difference=False)
    assert found.parts[-1] == HEAD_BIAS and found.remainder <= 1e-12
    if not cap:
        assert model.head_bias is not None
        expected = scale * model.head_bias[asked.answers].mean(-1)
        torch.testing.assert_close(found.values[:, -1], expected, rtol=1e-13, atol=1e-13)
    assert HEAD_BIAS not in contributions(tiny_gpt2(dtype=torch.float64).requires_grad_(False), asked, False).parts


@pytest.mark.parametrize(("scale", "cap", "tied"), WAYS)
def test_relevance_adds_up_and_the_biases_at_the_end_have_their_share(scale: float, cap: float, tied: bool) -> None:
    """The last row of ``bias``: what the final norm's bias and the head's own give, through the cap's held ratio."""
    model, targets = phi(scale, cap, tied), torch.tensor([6, 10])
    found = relevance(model, IDS, targets)  # it checks at every layer that nothing is lost
    assert found.error <= 1e-12 and model.head_bias is not None
    torch.testing.assert_close(found.layers[-1].sum(-1) + found.bias[-1], found.logit, rtol=1e-12, atol=1e-12)
    given = scale * (model.ending[1][targets] @ model.norm.bias + model.head_bias[targets])  # type: ignore[operator]
    if cap:
        before = (model.unembed(mechint.run(model, IDS, ["final_norm"])["final_norm"])[:, -1] / cap).atanh() * cap
        each = before.gather(-1, targets[:, None])[:, 0]
        given = given * found.logit / each
    torch.testing.assert_close(found.bias[-1], given, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("scale", "cap", "tied"), WAYS)
def test_the_effect_of_a_direction_has_the_slope_of_the_biased_logits_and_no_bias(
    scale: float, cap: float, tied: bool
) -> None:
    model, site = phi(scale, cap, tied), "layers.1.mlp_out"
    keep = torch.zeros_like(IDS, dtype=torch.bool)
    keep[0, 3] = True
    found = direct_map(model, IDS, site, keep)
    last = behind(model, IDS, up_to(model, IDS, site)[1], site)[0, 3]
    jacobian = torch.autograd.functional.jacobian(lambda r: model.finish(r[None, None], Tap())[0, 0], last)
    torch.testing.assert_close(found, jacobian, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("tied", [False, True])
def test_the_bias_of_a_placed_model_is_where_its_head_is(tied: bool) -> None:
    model = phi(tied=tied)
    with pretended_devices() as devices:
        placed = copy.deepcopy(model)
        place(placed, devices)
        assert placed.head_bias is not None and placed.head_bias.device == devices[0] == placed.ending[1].device
        same(model(IDS), placed(IDS.to(devices[0])))


def test_copies_and_new_weights_keep_or_draw_the_bias() -> None:
    for tied in (False, True):
        model = phi(tied=tied)
        assert torch.equal(copy.deepcopy(model)(IDS), model(IDS))
        other = reinitialised(model, 0)
        assert model.head_bias is not None and other.head_bias is not None
        assert torch.equal(other.head_bias, model.head_bias) and not torch.equal(other(IDS), model(IDS))
        drawn = copy.deepcopy(model)
        initialise(drawn, "unit")
        assert drawn.head_bias is not None and not drawn.head_bias.any() and drawn.embeddings.any()


def test_a_file_has_exactly_the_bias_that_its_family_says(tmp_path: Path) -> None:
    model = phi()
    state, config = to_hf_state_dict(model), hf_config(model)
    assert torch.equal(from_state_dict(state, config, "m", dtype="float64")(IDS), model(IDS))
    with pytest.raises(mechint.MechintError, match=r"tensors missing: 1 \(lm_head.bias\)"):
        from_state_dict({name: x for name, x in state.items() if name != "lm_head.bias"}, config, "m")
    with pytest.raises(mechint.MechintError, match=r"lm_head.bias is \[3\] and should be \[24\]"):
        from_state_dict({**state, "lm_head.bias": torch.zeros(3)}, config, "m")
    with pytest.raises(mechint.MechintError, match="the configuration says that the head is the embedding"):
        from_state_dict(state, {**config, "tie_word_embeddings": True}, "m")
    tied = phi(tied=True)
    state, config = to_hf_state_dict(tied), hf_config(tied)
    assert "lm_head.bias" in state and "lm_head.weight" not in state
    both = {**state, "lm_head.weight": state["model.embed_tokens.weight"].clone()}
    for tensors in (state, both):
        assert torch.equal(from_state_dict(dict(tensors), config, "m", dtype="float64")(IDS), tied(IDS))


@pytest.mark.parametrize("build", [tiny_mamba, tiny_gpt2, tiny_llama])
def test_a_bare_file_of_a_family_without_a_bias_is_refused_with_one(build: Any) -> None:
    model = build()
    assert model.head_bias is None
    state = {**to_hf_state_dict(model), "lm_head.bias": torch.zeros(len(model.embeddings))}
    with pytest.raises(mechint.MechintError, match=r"lm_head\.bias") as found:
        from_state_dict(state, hf_config(model), "m")
    assert "\n" not in str(found.value)
    with pytest.raises(mechint.MechintError, match=r"lm_head\.bias"):
        from_state_dict(state, None, "m")
