"""Causal tracing of the edited facts, and its correlation with the success of edits (Hase et al. 2023).

The effect of a layer is what the metric gains when, in the run with a corrupted subject, the clean value of a site is
put back at the subject's last token (Meng et al. 2022, section 2). It is measured for the residual stream behind the
layer and for what the map's own part adds to it, where the edit is made.

Three correlations by rank (Spearman), each with an interval over facts:

* ``layers``: mean effects and mean scores, over the layers: is the layer that tracing shows the one to edit?
* ``facts``: within each layer over the facts, averaged over the layers: does tracing say which facts can be edited
  there? Ranks are those of all facts.
* ``all``: over every pair of a fact and a layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...interventions.edits import Edit
from ...interventions.model import Model, windows
from ...tasks import Prompts
from ...utils.statistics import (
    Array,
    ClusterBootstrap,
    Estimate,
    pearson_along,
    pearson_moments,
    pearson_of_means,
    ranks,
)
from ..interchange import Corruption, Interchange
from .requests import Request

STREAM = "resid_post"
FEWEST_LAYERS = 4
"""Layers without which they are not correlated: of two or three every order is likely by chance."""


def traced_prompts(requests: Sequence[Request], batches: Sequence[Prompts]) -> list[tuple[Prompts, list[int]]]:
    """The requests' prompts as the loader has them, of one length each, with the numbers of their requests."""
    number = {request.tokens: k for k, request in enumerate(requests)}
    found, seen = [], set[int]()
    for batch in batches:
        rows, which = [], []
        for k, tokens in enumerate(batch.tokens.tolist()):
            request = number.get(tuple(tokens))
            if request is not None and request not in seen:
                seen.add(request)
                rows.append(k)
                which.append(request)
        if rows:
            found.append((batch[torch.tensor(rows, device=batch.tokens.device)], which))
    return found


def effects(
    model: Model,
    requests: Sequence[Request],
    batches: Sequence[Prompts],
    kinds: Sequence[str],
    corruption: Corruption,
    metric: str,
    window: int,
    memory_mib: float,
) -> dict[str, Tensor]:
    """The effect of restoring each kind of site at the subject's last token.

    Returns:
        For each kind [request, layer], NaN where a layer has no such site; ``clean`` and ``corrupted``, the metric of
        the two runs, [request].
    """
    shape = (len(requests), model.num_layers)
    found = {kind: torch.full(shape, torch.nan, dtype=torch.float64) for kind in kinds}
    found |= {name: torch.full(shape[:1], torch.nan, dtype=torch.float64) for name in ("clean", "corrupted")}
    sites = {kind: windows(model, kind, 1 if kind == STREAM else window) for kind in kinds}
    for prompts, which in traced_prompts(requests, batches):
        pair = Interchange(model, prompts, corruption, "denoise", metric)
        rows = torch.tensor(which)
        found["clean"][rows], found["corrupted"][rows] = pair.clean, pair.corrupted_value
        places = torch.tensor([requests[k].subject for k in which])
        for kind, layers in sites.items():
            values = pair.values(pair.donor, sorted({site for together in layers for site in together}))
            for place in places.unique().tolist():
                cells = [
                    [Edit(site, "replace", values[site][:, place : place + 1], positions=[place]) for site in together]
                    for together in layers
                ]
                # an empty cell is the corrupted run itself, so that a layer without effect is exactly zero
                got = pair.sweep([*cells, []], memory_mib=memory_mib, title=f"tracing {kind}")
                change = (got[:-1] - got[-1]).T  # [prompt, layer]
                change[:, [not together for together in layers]] = torch.nan
                here = places == place
                found[kind][rows[here]] = change[here]
    return found


# ---- correlations ------------------------------------------------------------------------------------------------


def layers_correlation(bootstrap: ClusterBootstrap, effect: Array, score: Array) -> Estimate:
    """The correlation of the means over the layers, of [fact, layer] each."""
    return bootstrap.tested(lambda a, b: pearson_along(ranks(a, -1), ranks(b, -1)), effect, score)


def facts_correlation(bootstrap: ClusterBootstrap, effect: Array, score: Array) -> tuple[Estimate, Estimate]:
    """The correlation over the facts within each layer [layer], and the mean of those over the layers."""
    moments = pearson_moments(ranks(effect, 0), ranks(score, 0))
    mean = bootstrap.tested(lambda *means: mean_known(pearson_of_means(*means)), *moments)
    return bootstrap.tested(pearson_of_means, *moments), mean


def all_correlation(bootstrap: ClusterBootstrap, effect: Array, score: Array) -> Estimate:
    """The correlation over all facts and layers."""
    moments = pearson_moments(ranks(effect), ranks(score))
    return bootstrap.tested(lambda *means: pearson_of_means(*(mean.mean(-1) for mean in means)), *moments)


def mean_known(values: Array) -> Array:
    """The mean over the last axis of what is a number."""
    there = ~np.isnan(values)
    count = there.sum(-1)
    return np.divide(np.where(there, values, 0).sum(-1), count, out=np.full(count.shape, np.nan), where=count > 0)
