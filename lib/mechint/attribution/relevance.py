"""Layer-wise relevance propagation: a logit shared out among tokens and biases, and nothing lost on the way.

Every nonlinearity is written as its input times a factor that is held (no gradient), so that gradient × input adds up:

==================== ============================================ ==============================================
where                rule                                         source
==================== ============================================ ==============================================
activations f        x · [f(x) / x]: σ(x) of SiLU, Φ(x) of GELU   Jafari et al. 2024 (MambaLRP), section 4.2
Δ, A, B, C           held: the scan is linear in u                Jafari et al. 2024, section 4.1
y ⊙ SiLU(z), MLP     half of a product's relevance to each factor Jafari et al. 2024, section 4.3
RMSNorm, LayerNorm   1/rms and 1/σ held                           Ali et al. 2022, section 4.2
attention            the pattern held: linear in v                Ali et al. 2022, section 4.1
sigmoid gates        held, weights of experts too                 Arras et al. 2017 (LSTM), section 3
delta rules          keys, queries, β, decay held: linear in v    as Δ, A, B, C
B ⊙ x, C ⊙ conv      half to each factor (short convolutions)     as other products
soft caps            cap · tanh(x / cap) as x times a held factor as activations
==================== ============================================ ==============================================

Each rule (:mod:`.relevance_rules`) keeps the value of the model's own forward and changes its gradient. At every layer,
the relevance of the residual stream and of the biases from there on add up to the logit; it is checked, every time.
Where the embeddings pass a layer beside the stream (Zamba 2), their relevance there is in the stream's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..interventions.edits import Edit
from ..interventions.model import Model
from ..interventions.run import run
from ..models.placement import need_one_device
from ..scan.checks import accumulate
from ..utils.errors import MechintError
from .relevance_rules import Inside, Seen, Value, activated, biases_of, needed, norm, rules_of

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
"""Tolerance of the sum at any layer, relative to the sum of the sizes of its products or to the logit, whichever is
larger. A token's share is a sum over units that nearly cancel, so its own size does not measure its rounding."""


@dataclass(frozen=True)
class Relevance:
    """The relevance of one logit for each row.

    Attributes:
        logit: [row].
        tokens: Relevance of each token's embedding (with its position's, where the model has those), [row, position].
        layers: Relevance of the residual stream before each layer and after the last, [layer + 1, row, position].
        bias: Relevance of the biases of each layer, and of those of the final norm and of the head together,
            [layer + 1, row].
        error: Largest violation of Σ layers[l] + Σ bias[l:] = logit, relative to :data:`TOLERANCE`'s scale.
        of_logit: The same relative to the logit alone.
    """

    logit: Tensor
    tokens: Tensor
    layers: Tensor
    bias: Tensor
    error: float
    of_logit: float


def check_rules(model: Model) -> None:
    """Raises :class:`MechintError` for a model with a layer without rules, or on several devices."""
    need_one_device(model, "relevance")
    for layer in model.layers:
        rules_of(layer)


def no_rules(model: Model) -> str | None:
    """Says why there are no rules for a model; None where there are."""
    try:
        check_rules(model)
    except MechintError as reason:
        return str(reason)
    return None


def by_rules(model: Model, tokens: Tensor, sites: Sequence[str] = ()) -> tuple[Tensor, Seen, Inside]:
    """The logits [row, position, vocabulary] of a forward whose gradients follow the rules, and its tensors by site.

    Call it with gradients enabled. Values are those of the model; a tensor that a rule holds needs no gradient.

    Args:
        sites: Full names of sites that are wanted beside those that the rules and biases read.

    Raises:
        MechintError: a layer without rules.
    """
    need_one_device(model, "relevance")
    final, _ = model.ending
    last = model.num_layers - 1
    seen: Seen = {}

    def edit(site: str, rule: Value | None) -> Edit:
        def value(clean: Tensor) -> Tensor:
            # everything after this site is computed from the kept tensor
            seen[site] = clean if rule is None else rule(seen, clean, site.rpartition(".")[0])
            return seen[site]

        return Edit(site, "replace", value)

    own: dict[str, Value] = {}
    replaced = {"final_norm", *sites}
    for i, layer in enumerate(model.layers):
        own |= {f"layers.{i}.{rule.site}": rule.value for rule in rules_of(layer)}
        replaced |= {f"layers.{i}.{site}" for site in needed(layer)}
    own["final_norm"] = lambda seen, clean, at: norm(final, seen[f"layers.{last}.resid_post"])
    wanted = [name for name in model.sites if name in replaced]
    # a leaf at the bottom gives everything above it a gradient, and no weight one
    leaf = torch.zeros((), device=tokens.device, requires_grad=True)
    edits = [Edit(model.first_sites[0], "add", leaf), *(edit(name, own.get(name)) for name in wanted)]
    inside = Inside()
    with inside.watching(model):
        logits = run(model, tokens, edits=edits).logits
    return logits, {name: seen[name] for name in wanted}, inside


def relevance(model: Model, tokens: Tensor, targets: Tensor, positions: Tensor | None = None) -> Relevance:
    """Splits the logits of some next tokens among the tokens of their prompts.

    Args:
        model: From :func:`mechint.load`, in float32 or float64.
        tokens: [row, position].
        targets: The token whose logit is split, [row].
        positions: Positions at which it is read, [row]; None for the last position.

    Raises:
        MechintError: a layer without rules, half precision, or shares that do not add up.
    """
    check_rules(model)
    dtype = next(model.parameters()).dtype
    if dtype not in TOLERANCE:
        raise MechintError(f"relevance: {dtype} rounds too much for shares that add up; load in float32")
    final, head = model.ending
    last = model.num_layers - 1
    rows = torch.arange(len(tokens), device=tokens.device)
    at = torch.full_like(rows, tokens.shape[1] - 1) if positions is None else positions
    with torch.enable_grad():
        logits, seen, inside = by_rules(model, tokens)
        logit = explained = logits[rows, at, targets]
        of_head = torch.zeros_like(logit) if model.head_bias is None else model.logit_scale * model.head_bias[targets]
        if model.logit_cap:
            uncapped = model.logit_scale * (seen["final_norm"][rows, at] * head[targets]).sum(-1) + of_head
            explained = activated(uncapped, lambda x: model.logit_cap * torch.tanh(x / model.logit_cap))
            of_head = of_head * torch.autograd.grad(explained.sum(), uncapped, retain_graph=True)[0]
        ends = {name: value for name, value in seen.items() if value.requires_grad}
        found = torch.autograd.grad(explained.sum(), [*ends.values(), *inside.zeros], allow_unused=True)
        grads = dict(zip(ends, found, strict=False))
        between = iter(found[len(ends) :])

    def share(name: str, value: Tensor) -> Tensor:
        """value · gradient summed over the units, and the sum of the products' sizes, [2, row, position]."""
        return shared(grads.get(name), value)

    def shared(grad: Tensor | None, value: Tensor) -> Tensor:
        if grad is None:
            return accumulate(value.detach()).new_zeros(2, *tokens.shape)
        value = value.detach().view(grad.shape[2:]) if value.dim() == 1 else value.detach()
        products = value.mul(grad).flatten(2)
        return torch.stack((products.sum(-1), products.abs().sum(-1)))

    stream = [f"layers.{i}.resid_pre" for i in range(last + 1)] + [f"layers.{last}.resid_post"]
    of_stream = [share(name, seen[name]) for name in stream]
    of_parts = [(i, shared(next(between), value).sum(-1)) for i, _, value in inside.biases]
    for i, (_, embeddings) in inside.beside.items():
        of_stream[i] = of_stream[i] + shared(next(between), embeddings)
    layers, sizes = torch.stack(of_stream, 1)
    none = layers.new_zeros(2, len(tokens))
    bias = []
    for i, layer in enumerate(model.layers):
        own_biases = {f"layers.{i}.{site}": value for site, value in biases_of(layer).items() if value is not None}
        added = [*(share(site, value).sum(-1) for site, value in own_biases.items())]
        bias.append(sum([*added, *(value for number, value in of_parts if number == i)], none))
    of_final = getattr(final, "bias", None)
    of_head = accumulate(of_head.detach())
    of_end = torch.stack((of_head, of_head.abs()))
    bias.append(of_end if of_final is None else of_end + share("final_norm", of_final).sum(-1))
    of_bias, bias_sizes = torch.stack(bias, 1)
    return checked(logit.detach(), layers, of_bias, (sizes.sum(-1), bias_sizes), TOLERANCE[dtype])


def checked(logit: Tensor, layers: Tensor, bias: Tensor, sizes: tuple[Tensor, Tensor], tolerance: float) -> Relevance:
    """The relevance, unless its shares do not add up to the logit.

    Args:
        logit, layers, bias: As of :class:`Relevance`.
        sizes: Sums of the sizes of the products that ``layers`` and ``bias`` add, [layer + 1, row] each.
        tolerance: For the sum at any layer, relative to these sizes or the logit.

    Raises:
        MechintError: they miss it by more.
    """
    upwards = lambda each: each.flip(0).cumsum(0).flip(0)  # of this layer and all above it
    missed = (layers.sum(-1) + upwards(bias) - logit).abs()
    scale = (sizes[0] + upwards(sizes[1])).maximum(logit.abs())
    error, of_logit = float((missed / scale).max()), float((missed / logit.abs()).max())
    if not error <= tolerance:
        raise MechintError(
            f"relevance: at layer {int((missed / scale).amax(1).argmax())} the shares miss the logit by {error:.1e} of "
            f"their size, above {tolerance:g}; load the model in float64"
        )
    return Relevance(logit, layers[0], layers, bias, error, of_logit)
