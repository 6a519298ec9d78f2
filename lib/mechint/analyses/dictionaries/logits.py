"""The next tokens that a direction raises: the direct path from a site through the final norm to the logits."""

from __future__ import annotations

import torch
from torch import Tensor

from ...interventions.edits import Edit
from ...interventions.model import Model
from ...interventions.prefix import behind, layer_of, up_to
from ...interventions.sites import RESIDUAL, find_sites
from ...interventions.taps import Tap
from ...utils.errors import MechintError

STREAM = ("embed", "pos_embed", "resid_pre", "resid_mid", "resid_post")
"""Sites that are the residual stream; some layers have further ones between their steps."""
SAMPLE = 64
"""Residual vectors at which the final norm's derivative is averaged."""


def has_direct_path(model: Model, site: str) -> bool:
    """True if what is added at a site reaches the logits by a linear map and the final norm alone."""
    return in_stream(site) or model.added_at(site) is not None


def in_stream(site: str) -> bool:
    """True if a site is the residual stream itself."""
    return site.rpartition(".")[2].startswith(STREAM)


@torch.no_grad()
def direct_map(model: Model, tokens: Tensor, site: str, keep: Tensor | None = None) -> Tensor:
    """The direct effect of a site on the logits, [vocabulary, units of the site].

    J = W_U · J̄ · W: W brings the site to the residual stream (the mixer's or MLP's own output matrix), J̄ is the final
    norm's derivative averaged over residual vectors of the text, W_U the unembedding with the model's scale of the
    logits. Where logits are capped, each row is multiplied by the mean slope of its cap. The effect of later layers on
    the direction is not included.

    Args:
        model: From :func:`mechint.load`.
        tokens: Text that the residual vectors come from, [row, position].
        keep: [row, position] bool: positions to take them at; None for all.

    Raises:
        MechintError: no such site, or one that reaches the logits in no such way; those that do are named.
    """
    [site] = find_sites(model.sites, [site])
    if not has_direct_path(model, site):
        known = sorted({name.rpartition(".")[2] for name in model.sites if has_direct_path(model, name)})
        raise MechintError(
            f"{site} reaches the logits through products with other quantities, so its directions raise no fixed "
            f"tokens; this can be said of {', '.join(known)}"
        )
    _, before = up_to(model, tokens, site)
    last = behind(model, tokens, before, site)
    vectors = last[keep] if keep is not None else last.flatten(0, 1)
    vectors = vectors[torch.linspace(0, len(vectors) - 1, min(SAMPLE, len(vectors))).long()]
    head = model.ending[1].detach().to(vectors)
    slope = norm_derivative(model, vectors)[:, : head.shape[1]]  # some families carry the embeddings behind the stream
    effect = head @ slope * model.logit_scale
    if model.logit_cap:
        logits = model.finish(vectors.unsqueeze(0), Tap())[0]
        effect *= (1 - (logits / model.logit_cap) ** 2).mean(0).unsqueeze(1)
    through = output_matrix(model, site)
    return effect if through is None else effect @ through.to(effect)


def norm_derivative(model: Model, vectors: Tensor) -> Tensor:
    """Mean over residual vectors [n, carried] of the final norm's Jacobian, [model, carried]."""

    with torch.enable_grad():
        leaf = vectors.detach().clone().requires_grad_()
        tap = Tap(["final_norm"])
        model.finish(leaf.unsqueeze(0), tap)
        out = tap.values["final_norm"][0]
        rows = [torch.autograd.grad(out[:, i].sum(), leaf, retain_graph=True)[0].mean(0) for i in range(out.shape[1])]
    return torch.stack(rows)


def output_matrix(model: Model, site: str) -> Tensor | None:
    """The map from a site to the residual stream, [model, units]; None for a site that is there already."""
    behind_it = None if in_stream(site) else model.added_at(site)
    if behind_it in (None, site):
        return None
    assert behind_it is not None
    layer = layer_of(model, site)
    units = model.sites[site].units
    like = next(model.parameters())
    with torch.enable_grad():
        value = torch.zeros(1, 1, *units, dtype=like.dtype, device=like.device, requires_grad=True)
        edit = Edit(site, "replace", value).resolved(1)
        tap = Tap([behind_it], [edit])
        r = torch.zeros_like(model.begin(torch.zeros(1, 1, dtype=torch.long, device=like.device), Tap()))
        model.block(layer, r, model.empty_cache(layer, 1), tap)
        out = tap.values[behind_it][0, 0]
        rows = [torch.autograd.grad(o, value, retain_graph=True)[0].flatten() for o in out]
    assert model.sites[behind_it].axes == RESIDUAL
    return torch.stack(rows).detach()


def extreme_tokens(effect: Tensor, directions: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The next tokens that directions [n, units] raise and lower most, in logits for each unit of activation.

    A constant over the vocabulary changes no probability and is taken out.

    Returns:
        Values and tokens raised, values and tokens lowered, [n, count] each.
    """
    count = min(count, len(effect))
    centred = effect - effect.mean(0)
    parts = []
    for piece in directions.to(effect).split(max(1, (1 << 24) // len(effect))):
        logits = piece @ centred.T  # [piece, vocabulary]
        high, low = logits.topk(count, -1), logits.topk(count, -1, largest=False)
        parts.append((high.values, high.indices, low.values, low.indices))
    a, b, c, d = (torch.cat(column) for column in zip(*parts, strict=True))
    return a, b, c, d
