"""Ranks units by estimates of their patching effects: attribution patching, and methods published to mend it.

With a the values of a unit on a prompt, a' those on its twin and m the logit difference, each estimates the effect of
a' in the prompt's run by Σ (a' - a) · g over the unit's positions and entries; they differ in g.

===================== ================================================================== ============================
method                g
===================== ================================================================== ============================
attribution_patching  ∂m/∂a on the prompt                                                Nanda 2023; Syed et al. 2023
eap_ig                ∂m/∂a, mean over points on the line from the twin's embeddings to  Hanna et al. 2024, section 3
                      the prompt's
eap_ig_activations    ∂m/∂a, mean over points on the line from the twin's values of all  Mueller et al. 2025
                      units of the layer to the prompt's
relp                  the propagation coefficients of :mod:`mechint.attribution          Rezaei Jafari et al. 2025
                      .relevance` in the gradient's place
atp_star              ∂m/∂a without the way through one layer, each layer left out in    Kramár et al. 2024, section
                      turn; queries and keys by the attention that they would give       3.1
===================== ================================================================== ============================

The first four give the size of the mean over prompts; atp_star the mean size, over the layers left out and prompts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ....attribution.relevance import by_rules
from ....interventions.edits import Edit
from ....interventions.gradients import gradients
from ....interventions.model import Model
from ....interventions.run import run
from ....interventions.units import Units
from ....models import gpt2
from ....tasks import Prompts
from ...metrics import answer_metric
from .evaluator import Evaluator

Values = dict[str, Tensor]
"""Values by site, [prompt, position, unit axes …]."""
STEPS = 5
"""Points on a line between twin and prompt (the paper's number)."""


def attribution_patching(evaluator: Evaluator) -> Tensor:
    """The size of the mean linear estimate of putting each unit's twin value into the clean run, [units]."""

    def measured(batch: Prompts, twin: Values) -> Tensor:
        return linear(evaluator.units, twin, *slopes(evaluator, batch))

    return over_prompts(evaluator, measured).mean(0).abs()


def eap_ig(evaluator: Evaluator, steps: int = STEPS) -> Tensor:
    """As :func:`attribution_patching`, with gradients averaged on the way between the two prompts' embeddings.

    At point k of ``steps`` the embeddings are z' + (k / steps)(z - z'), the last of which are the prompt's.
    """
    model, units = evaluator.model, evaluator.units

    def measured(batch: Prompts, twin: Values) -> Tensor:
        clean, other = (values_at(model, tokens, batch, model.first_sites) for tokens in both(batch))
        own = values_at(model, batch.tokens, batch, units.sites)
        total = torch.zeros((), device=batch.tokens.device)
        for step in range(1, steps + 1):
            line = {site: other[site] + step / steps * (clean[site] - other[site]) for site in clean}
            edits = [Edit(site, "replace", value) for site, value in line.items()]
            total = total + linear(units, twin, own, slopes(evaluator, batch, edits)[1]) / steps
        return total

    return over_prompts(evaluator, measured).mean(0).abs()


def eap_ig_activations(evaluator: Evaluator, steps: int = STEPS) -> Tensor:
    """As :func:`attribution_patching`, with gradients averaged on the way between the two values of a layer's units."""
    return along_activations(evaluator, steps).abs()


def along_activations(evaluator: Evaluator, steps: int) -> Tensor:
    """Mean estimates of the effects over prompts, [units], which add up to that of exchanging all units of a layer.

    They are slopes of a mask over the units of one layer, with all others kept, at points between twin and prompt by
    the midpoint rule; of a single point, at the prompt. Where a unit is replaced at several sites, one behind the
    other, all of them are on the way.
    """
    units, prompts = evaluator.units, sum(len(batch) for batch in evaluator.batches)
    total = torch.zeros(units.total, device=evaluator.batches[0].tokens.device)
    for batch in evaluator.batches:
        twin = values_at(evaluator.model, both(batch)[1], batch, units.sites)
        metric = answer_metric("logit_diff", batch)
        for row in units.by_row:
            own = torch.zeros_like(total)
            own[row.start : row.start + row.size] = 1.0
            for step in range(1, steps + 1):
                point = (step - 0.5) / steps if steps > 1 else 1.0
                mask = (1 - own + point * own).requires_grad_()
                with torch.enable_grad():
                    edits = units.edits(mask, twin)
                    logits = run(evaluator.model, batch.tokens, edits=edits, logits_at=batch.positions).logits
                    [slope] = torch.autograd.grad(metric(logits).sum(), mask)
                total -= own * slope / (steps * prompts)
    return total


def relp(evaluator: Evaluator) -> Tensor:
    """As :func:`attribution_patching`, with coefficients of layer-wise relevance propagation as the gradients, [units].

    The rules hold every attention pattern, so keys and queries get nothing.
    """
    model, units = evaluator.model, evaluator.units

    def measured(batch: Prompts, twin: Values) -> Tensor:
        with torch.enable_grad():
            logits, seen, _ = by_rules(model, batch.tokens, units.sites)
            rows = torch.arange(len(batch), device=logits.device)[:, None]
            total = answer_metric("logit_diff", batch)(logits[rows, batch.positions]).sum()
            ends = {site: seen[site] for site in units.sites if seen[site].requires_grad}
            found = torch.autograd.grad(total, list(ends.values()), allow_unused=True)
        there = dict(zip(ends, found, strict=True))
        own = {site: seen[site].detach() for site in units.sites}
        grads = {site: torch.zeros_like(own[site]) if there.get(site) is None else there[site] for site in own}
        return linear(units, twin, own, grads)

    return over_prompts(evaluator, measured).mean(0).abs()


def atp_star(evaluator: Evaluator) -> Tensor:
    """Mean size of linear estimates with one layer's contribution out of the gradient, each in turn, [units].

    A unit whose direct effect cancels with the one through a later layer has an estimate without that layer (GradDrop).
    Queries and keys change the attention pattern as they would, and its effect is linear (the QK fix): a softmax that
    is saturated has no gradient. The sum over layers is divided by one less than there are, since a unit has none
    without its own. A model of one layer has nothing to leave out.
    """
    model, units = evaluator.model, evaluator.units

    def measured(batch: Prompts, twin: Values) -> Tensor:
        drops = [dropped(model, layer) for layer in range(model.num_layers)] if model.num_layers > 1 else [[]]
        patterns = sorted({f"layers.{layer}.{name}" for layer, name in queries_and_keys(units)})
        total = torch.zeros((), device=batch.tokens.device)
        for edits in drops:
            own, grads = slopes(evaluator, batch, edits, [*units.sites, *patterns])
            total = total + linear(units, twin, own, grads, attended(model, twin, own, grads)).abs()
        return total / max(1, model.num_layers - 1)

    return over_prompts(evaluator, measured).mean(0)


# ---- what they share -------------------------------------------------------------------------------------------------


def over_prompts(evaluator: Evaluator, measured: Callable[[Prompts, Values], Tensor]) -> Tensor:
    """The estimates of all prompts, [prompt, units]; ``measured`` gets a batch and its units' twin values."""
    parts = []
    for batch in evaluator.batches:
        twin = values_at(evaluator.model, both(batch)[1], batch, evaluator.units.sites)
        parts.append(measured(batch, twin))
    return torch.cat(parts)


def both(batch: Prompts) -> tuple[Tensor, Tensor]:
    """The tokens of prompts and of their twins."""
    assert batch.twins is not None  # METHODS ask for them
    return batch.tokens, batch.twins


@torch.no_grad()
def values_at(model: Model, tokens: Tensor, batch: Prompts, sites: Sequence[str]) -> Values:
    return dict(run(model, tokens, record=list(sites), logits_at=batch.positions[:, :0]).values)


def slopes(
    evaluator: Evaluator, batch: Prompts, edits: Sequence[Edit] = (), sites: Sequence[str] = ()
) -> tuple[Values, Values]:
    """Values, and gradients of the logit difference, at sites, by default those of the units."""
    metric = answer_metric("logit_diff", batch)
    names = sites or evaluator.units.sites
    return gradients(evaluator.model, batch.tokens, names, metric, edits, logits_at=batch.positions)


Fixed = Callable[[int, str], Tensor | None]
"""From a layer and its site to an estimate [prompt, unit axes …] that is better than the linear one, or None."""


def linear(units: Units, twin: Values, own: Values, grads: Values, fixed: Fixed = lambda layer, site: None) -> Tensor:
    """Σ (twin's value - own value) · gradient over the positions and entries of each unit, [prompt, units]."""
    found = []
    for row in units.by_row:
        for block in row.blocks:
            total = torch.zeros(())
            for site in block.sites:
                name = f"layers.{row.layer}.{site}"
                each = fixed(row.layer, site)
                each = ((twin[name] - own[name]) * grads[name]).sum(1) if each is None else each
                inner = tuple(range(1 + (each.dim() - 1 if block.axes is None else block.axes), each.dim()))
                total = total.to(each) + (each.sum(inner) if inner else each).reshape(len(each), -1)
            found.append(total)
    return torch.cat(found, 1)


def dropped(model: Model, layer: int) -> list[Edit]:
    """Edits that keep what a layer adds to the residual stream and let no gradient through it."""
    [block] = model.unit_kinds["layer"].blocks_of(model.sites, layer)
    return [Edit(f"layers.{layer}.{site}", "replace", torch.Tensor.detach) for site in block.sites]


# ---- queries and keys ------------------------------------------------------------------------------------------------

READ_BY = ("q", "k", "scores", "pattern")


def queries_and_keys(units: Units) -> list[tuple[int, str]]:
    """Layer and site of all that is needed where some units are queries or keys; empty where none are."""
    layers = {row.layer for row in units.by_row for block in row.blocks if {"q", "k"} & set(block.sites)}
    return [(layer, site) for layer in layers for site in READ_BY]


def attended(model: Model, twin: Values, own: Values, grads: Values) -> Fixed:
    """Estimates of queries and keys: the change of the attention pattern times its gradient.

    Each channel of a head's queries, or keys, is exchanged alone at all positions, and the softmax computed anew.
    """

    def fixed(layer: int, site: str) -> Tensor | None:
        if site not in ("q", "k"):
            return None
        at = f"layers.{layer}."
        q, k, scores, slope = own[at + "q"], own[at + "k"], own[at + "scores"], grads[at + "pattern"]
        change = twin[at + site] - own[at + site]  # [prompt, position, head, channel]
        shared = q.shape[2] // k.shape[2]  # heads that read the same keys
        part = attention_of(model, layer)
        assert part is not None  # others are refused
        pattern, scale = scores.softmax(-1), score_scale(part)
        found = []
        for channel in range(q.shape[-1]):
            asks = (q if site == "k" else change)[..., channel]  # [prompt, reader, head]
            keys = (change if site == "k" else k)[..., channel].repeat_interleave(shared, 2)  # [prompt, source, head]
            moved = scale * asks.unsqueeze(-1) * keys.transpose(1, 2).unsqueeze(1)  # [prompt, reader, head, source]
            found.append((((scores + moved).softmax(-1) - pattern) * slope).sum((1, 3)))  # [prompt, head]
        effects = torch.stack(found, -1)
        return effects if site == "q" else effects.unflatten(1, (-1, shared)).sum(2)

    return fixed


def other_attention(model: Model, units: Units) -> str | None:
    """Says why queries and keys among these units cannot be judged by their pattern; None where they can."""
    for layer in sorted({layer for layer, _ in queries_and_keys(units)}):
        if attention_of(model, layer) is None:
            return (
                f"it knows queries and keys of a GPT-2 alone, and layer {layer} has other attention; choose another "
                "unit (v, head) or eap_ig"
            )
    return None


def attention_of(model: Model, layer: int) -> nn.Module | None:
    """The part of a layer whose scores are products of queries and keys alone; None where there is none."""
    return next((part for part in model.parts_of(layer).values() if score_scale(part)), None)


@functools.singledispatch
def score_scale(part: nn.Module) -> float:
    """The factor of the products of queries and keys; 0 where the scores are not these products alone."""
    return 0.0


@score_scale.register
def gpt2_scale(part: gpt2.Attention) -> float:
    return float(part.c.d_head) ** -0.5
