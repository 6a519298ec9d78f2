"""Attribution patching and the methods published to mend it: each against an oracle that shares no code with it."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

import mechint
from mechint.analyses.ablation import Ablation
from mechint.analyses.circuits.bench import Bench
from mechint.analyses.circuits.methods import attribution_patching as methods
from mechint.analyses.circuits.methods.all_methods import METHODS, scores_of
from mechint.analyses.circuits.methods.evaluator import Evaluator
from mechint.analyses.circuits.methods.probe import ridge
from mechint.analyses.circuits.methods.single_units import exchange_effects
from mechint.analyses.metrics import answer_metric
from mechint.attribution.relevance import relevance
from mechint.interventions.gradients import gradients
from mechint.interventions.model import Model
from mechint.interventions.sweep import sweep
from mechint.interventions.units import Units
from mechint.tasks import Prompts
from mechint.utils.errors import MechintError
from tests.helpers.builders import VOCABULARY, tiny_gpt2, tiny_llama, tiny_mamba, tokens

PROMPTS, LENGTH = 6, 5


def prompts(seed: int = 0) -> Prompts:
    """Random prompts whose twins have other tokens at the second and the last position."""
    asked = tokens(PROMPTS, LENGTH, seed)
    twins = asked.clone()
    twins[:, [1, -1]] = (twins[:, [1, -1]] + 3) % VOCABULARY
    answers = torch.arange(PROMPTS).view(-1, 1) % 4
    at = torch.full((PROMPTS, 1), LENGTH - 1)
    return Prompts(asked, at, answers, twins, answers + 4, torch.arange(PROMPTS))


def evaluator(model: Model, kind: str, seed: int = 0) -> Evaluator:
    model.requires_grad_(False)
    units, batches = Units(model, model.unit_kinds[kind]), [prompts(seed)]
    return Evaluator(Bench(model, units, Ablation(model, units, "counterfactual", batches, True), batches))


@functools.cache
def known(name: str, kind: str) -> Evaluator:
    model = {"mamba": tiny_mamba, "gpt2": tiny_gpt2, "llama": tiny_llama}[name]()
    return evaluator(model.double(), kind)


CASES = [("mamba", "channel"), ("mamba", "mode"), ("gpt2", "kv"), ("gpt2", "head"), ("llama", "v"), ("llama", "head")]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_attribution_patching_is_the_slope_of_the_exact_effect(name: str, kind: str) -> None:
    """A mask at 1 - h puts h of each unit's twin value in; the difference quotient is the estimate."""
    made, small = known(name, kind), 1e-5
    [batch] = made.batches
    metric, fills = answer_metric("logit_diff", batch), made.bench.fills[0]
    cells = []
    for unit in range(made.units.total):
        mask = torch.ones(made.units.total, dtype=torch.float64)
        cells.append(made.units.edits(mask.index_fill(0, torch.tensor(unit), 1 - small), fills))
    found = sweep(made.model, batch.tokens, [*cells, []], metric, logits_at=batch.positions).double().mean(1)
    expected = (found[:-1] - found[-1]) / small
    scores = scores_of("attribution_patching", made)
    assert float(scores.max()) > 1e-4
    torch.testing.assert_close(scores.double(), expected.abs(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_integrated_gradients_of_one_point_are_attribution_patching(name: str, kind: str) -> None:
    made = known(name, kind)
    expected = methods.attribution_patching(made)
    torch.testing.assert_close(methods.eap_ig(made, steps=1), expected)
    torch.testing.assert_close(methods.eap_ig_activations(made, steps=1).double(), expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(methods.eap_ig(made, steps=2), expected)
    assert not torch.allclose(methods.eap_ig_activations(made, steps=2).double(), expected)


@pytest.mark.parametrize(("name", "kind"), [("mamba", "channel"), ("gpt2", "kv"), ("gpt2", "head")])
def test_estimates_on_the_line_of_a_layer_add_up_to_exchanging_all_of_it(name: str, kind: str) -> None:
    made = known(name, kind)
    [batch] = made.batches
    twin = methods.values_at(made.model, batch.twins, batch, made.units.sites)
    estimates = methods.along_activations(made, 25)
    metric = answer_metric("logit_diff", batch)
    for row in made.units.by_row:
        edits = [mechint.Edit(site, "replace", twin[site]) for site in row.sites]
        asked = mechint.run(made.model, batch.tokens, edits=edits, logits_at=batch.positions)
        clean = mechint.run(made.model, batch.tokens, logits_at=batch.positions)
        expected = (metric(asked.logits) - metric(clean.logits)).mean()
        found = estimates[row.start : row.start + row.size].sum()
        torch.testing.assert_close(found.double(), expected, rtol=2e-2, atol=2e-3)
        assert float(expected.abs()) > 0.01


def test_a_unit_that_carries_all_has_the_whole_difference() -> None:
    """One layer as one unit, on the line of the embeddings: close to twin less prompt, and exact without the norms."""
    made = evaluator(tiny_mamba(n_layer=1).double(), "layer")
    [exact] = exchange_effects(made.model, made.batches[0], made.units).mean(1).abs()
    [found] = methods.eap_ig_activations(made, steps=40)
    assert float(found) == pytest.approx(float(exact), rel=1e-2)


# ---- AtP* ------------------------------------------------------------------------------------------------------------


def test_dropped_gradients_are_the_average_by_hand() -> None:
    """Three layers: the two others' contributions are cut out of the backward in turn, here by frozen tensors."""
    made = evaluator(tiny_gpt2(n_layer=3).double(), "head")
    model, [batch] = made.model, made.batches
    metric = answer_metric("logit_diff", batch)
    clean = mechint.run(model, batch.tokens, record=["layers.*"], logits_at=batch.positions).values
    twin = methods.values_at(model, batch.twins, batch, made.units.sites)
    total = torch.zeros(PROMPTS, made.units.total, dtype=torch.float64)
    for layer in range(3):
        frozen = [
            mechint.Edit(f"layers.{layer}.{site}", "replace", clean[f"layers.{layer}.{site}"].detach())
            for site in ("attn_out", "mlp_out")
        ]
        parts = []
        for row in made.units.by_row:
            [site] = row.sites
            slot = clean[site].detach().clone().requires_grad_()
            edits = [*frozen, mechint.Edit(site, "replace", slot)]
            value = metric(mechint.run(model, batch.tokens, edits=edits, logits_at=batch.positions).logits).sum()
            slope = torch.autograd.grad(value, slot, allow_unused=True)[0] if value.requires_grad else None
            slope = torch.zeros_like(slot) if slope is None else slope
            parts.append(((twin[site] - slot) * slope).sum((1, 3)).detach())
        total += torch.cat(parts, 1).abs()
    torch.testing.assert_close(scores_of("atp_star", made), (total / 2).mean(0))


def test_one_layer_has_nothing_to_leave_out() -> None:
    made = evaluator(tiny_mamba(n_layer=1).double(), "channel")
    plain = methods.over_prompts(
        made, lambda batch, twin: methods.linear(made.units, twin, *methods.slopes(made, batch))
    )
    torch.testing.assert_close(scores_of("atp_star", made), plain.abs().mean(0))


@pytest.mark.parametrize("kind", ["k", "q"])
def test_queries_and_keys_have_the_effect_of_the_pattern_that_they_give(kind: str) -> None:
    """One layer whose pattern alone changes: exchanged and run, the pattern's change times its slope is the score."""
    made = evaluator(tiny_gpt2(n_layer=1).double(), kind)
    model, [batch] = made.model, made.batches
    metric = answer_metric("logit_diff", batch)
    twin = methods.values_at(model, batch.twins, batch, made.units.sites)
    values, grads = gradients(model, batch.tokens, ["layers.0.pattern"], metric, logits_at=batch.positions)
    expected = []
    for unit in range(made.units.total):
        edits = made.units.dropping(unit, twin)
        moved = mechint.run(model, batch.tokens, record=["layers.0.pattern"], edits=edits)["layers.0.pattern"]
        change = (moved - values["layers.0.pattern"]) * grads["layers.0.pattern"]
        expected.append(change.sum((1, 2, 3)).abs().mean())
    found = scores_of("atp_star", made)
    torch.testing.assert_close(found, torch.stack(expected).to(found))
    assert float(found.max()) > 1e-5


def test_keys_that_turn_are_refused() -> None:
    with pytest.raises(MechintError, match=r"knows queries and keys of a GPT-2 alone.*eap_ig"):
        scores_of("atp_star", known("llama", "kv"))


# ---- RelP ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mamba", "gpt2", "llama"])
def test_relevance_of_a_whole_stream_is_that_of_relevance(name: str) -> None:
    """Twin values of zero, a metric of one logit: value × coefficient of the stream is the relevance of its layer."""
    model = known(name, "layer").model
    batch = prompts()
    targets = batch.answers[:, 0]
    with torch.enable_grad():
        site = "layers.1.resid_pre"
        logits, seen, _ = methods.by_rules(model, batch.tokens, [site])
        total = logits[torch.arange(PROMPTS), -1, targets].sum()
        [slope] = torch.autograd.grad(total, seen[site])
    found = (seen[site] * slope).detach().sum(-1)
    torch.testing.assert_close(found, relevance(model, batch.tokens, targets).layers[1])


def test_relevance_patching_gives_keys_nothing_and_values_their_share() -> None:
    made = known("gpt2", "kv")
    found = scores_of("relp", made)
    keys = torch.cat([part[0].flatten() for part in made.units.by_layer(found)])
    assert not keys.any() and float(found.max()) > 1e-4
    head = scores_of("relp", known("gpt2", "head"))
    values = made.units.by_layer(found)
    assert (head > 0).all() and all((part[1] > 0).any() for part in values)


# ---- probe -----------------------------------------------------------------------------------------------------------


def test_a_probe_ranks_what_tells_the_answer_first() -> None:
    made = known("mamba", "channel")
    found = scores_of("probe", made)
    assert found.shape == (made.units.total,) and (found >= 0).all()


def test_ridge_by_hand() -> None:
    """Against the normal equations, and each leave-one-out error against a fit without that row."""
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 4, generator=random).double(), torch.randn(12, 2, generator=random).double()

    def fitted(x: Tensor, y: Tensor, penalty: float) -> Tensor:
        return torch.linalg.solve(x.T @ x + penalty * 4 * torch.eye(4).double(), x.T @ y)

    def error(penalty: float) -> float:
        rest = [torch.arange(12) != row for row in range(12)]
        return sum(float((y[~some] - x[~some] @ fitted(x[some], y[some], penalty)).square().sum()) for some in rest)

    best = min((10.0**power for power in range(-3, 4)), key=error)
    torch.testing.assert_close(ridge(x, y), fitted(x, y, best))


@pytest.mark.parametrize("name", ["attribution_patching", "eap_ig", "eap_ig_activations", "relp", "atp_star"])
def test_prompts_without_twins_are_refused(name: str) -> None:
    made = known("mamba", "channel")
    alone = Prompts(made.batches[0].tokens, made.batches[0].positions, made.batches[0].answers, None, None,
                    made.batches[0].template)  # fmt: skip
    bench = Bench(made.model, made.units, Ablation(made.model, made.units, "zero", [alone], True), [alone])
    with pytest.raises(MechintError, match=f"the method {name} .*twins"):
        scores_of(name, Evaluator(bench))
    assert METHODS[name].twins
