"""Gradients of a metric at sites: what attribution patching multiplies with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .edits import Edit, check_edits
from .model import Model
from .run import check_tokens
from .sites import find_sites
from .sweep import Metric
from .taps import Tap


def gradients(
    model: Model,
    tokens: Tensor,
    sites: Iterable[str],
    metric: Metric,
    edits: Sequence[Edit] = (),
    logits_at: Tensor | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Values and gradients of the summed metric at all sites, by one forward and one backward.

    (gradient · (other value - value)).sum() over a unit's entries is attribution patching (Nanda 2023; Syed et al.
    2023), the linear estimate of what :func:`sweep` measures.

    Args:
        sites: Names or shell patterns.
        metric: A function of logits [row, wanted, vocabulary]; the sum of its values is differentiated.

    Returns:
        (values, gradients) by site name, each of the site's shape; a site that cannot reach the metric has zeros.
    """
    check_tokens(model, tokens)
    names = find_sites(model.sites, sites)
    edits = check_edits(model.sites, edits, *tokens.shape)
    dtype = torch.float64 if next(model.parameters()).dtype == torch.float64 else torch.float32
    # the recorded tensor of these is not the one that is read on, so the gradient is taken at an added shift of zero
    shifts = {
        name: torch.zeros(*tokens.shape, *model.sites[name].units, dtype=dtype, device=tokens.device).requires_grad_()
        for name in names
        if name.rpartition(".")[2] in model.carried_sites
    }
    added = check_edits(model.sites, [Edit(name, "add", shift) for name, shift in shifts.items()], *tokens.shape)
    with torch.enable_grad():
        held = [parameter.requires_grad for parameter in model.parameters()]
        try:
            model.requires_grad_(False)
            # a leaf below gives every site a gradient and no weight one; replaced sites cut it off and get it again
            leaf = torch.zeros((), device=tokens.device, requires_grad=True)
            replaced = {edit.target for edit in edits if edit.mode == "replace"}
            added += [Edit(name, "add", leaf) for name in sorted({*model.first_sites, *replaced} - shifts.keys())]
            tap = Tap(names, [*edits, *added])
            logits, _ = model.trace(tokens, tap, None, logits_at)
        finally:
            for parameter, was in zip(model.parameters(), held, strict=True):
                parameter.requires_grad_(was)
        ends = [shifts.get(name, tap.values[name]) for name in names]
        found = torch.autograd.grad(metric(logits).sum(), ends, allow_unused=True)
    values = {name: tap.values[name].detach() for name in names}
    return values, {
        name: torch.zeros_like(values[name]) if grad is None else grad for name, grad in zip(names, found, strict=True)
    }
