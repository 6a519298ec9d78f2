"""Candidate circuits: subspaces of a site that several methods propose, under one evidence score.

Four sources propose at the same site, so that their proposals can be compared and merged:

* ``sae``: the decoder directions of the latents that carry most of the effect,
* ``probe``: what the probes of the task's labels read,
* ``cluster``: units that act together (their changes from twin to prompt are correlated),
* ``mask``: the units that the mask search keeps.

evidence = share · (1 + agreement) / 2, where *share* is the part of the effect that passes through the subspace to
first order (integrated gradients from twin to prompt, cut at 0 and 1) and *agreement* the largest overlap with a
proposal of each other source, averaged over those sources. It is measured on discovery prompts alone and only decides
which candidates are tested: interventions on held-out prompts decide what is true.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...interventions.model import Model
from ...interventions.unit_kinds import Block, UnitKind
from ...interventions.units import Units
from ...sae import SparseAutoencoder
from ...utils.errors import MechintError
from ..ablation import Ablation
from ..circuits.bench import Bench, cost
from ..circuits.methods.starting_orders import further_orders, starting_scores
from ..circuits.search.learning import Search, SearchOptions
from ..loader import PromptLoader
from ..probes.fitting import Probe
from .subspaces import Traffic, orthonormal, overlap, unit_basis

SAME = 0.95
"""Overlap from which two proposals of similar rank are one candidate."""
TOGETHER = 0.5
"""Least mean correlation within a cluster."""
LEAST = 0.02
"""Units or latents that carry less than this share of the strongest one's are left out of a proposal."""
NOTHING = 1e-3
"""Share of the whole effect below which nothing is proposed."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A subspace of a site.

    Attributes:
        basis: Orthonormal, [unit, rank].
        units: The units it consists of, where it does; empty for directions.
        sources: Methods that proposed it.
        share, agreement, evidence: See the module.
    """

    name: str
    layer: int
    site: str
    basis: Tensor
    sources: tuple[str, ...]
    units: tuple[int, ...] = ()
    share: float = 0.0
    agreement: float = 0.0
    evidence: float = 0.0

    @property
    def rank(self) -> int:
        return int(self.basis.shape[1])

    def report(self) -> dict[str, Any]:
        """The candidate as plain values, for results.json."""
        names = ("name", "layer", "site", "rank", "share", "agreement", "evidence")
        return {n: getattr(self, n) for n in names} | {"sources": list(self.sources), "units": list(self.units)}


def from_units(name: str, source: str, layer: int, site: str, units: Sequence[int], width: int) -> Candidate:
    units = tuple(sorted(int(unit) for unit in units))
    return Candidate(name, layer, site, unit_basis(units, width), (source,), units)


def strongest(weights: Tensor, most: int) -> list[int]:
    """The largest positive entries, at most so many, without those that are next to nothing beside the largest."""
    order = torch.sort(weights, descending=True, stable=True).indices[:most].tolist()
    least = max(LEAST * float(weights.max()), NOTHING)
    return [i for i in order if float(weights[i]) > least]


def of_sae(found: Traffic, layer: int, dictionary: SparseAutoencoder, rank: int) -> list[Candidate]:
    """The span of the latents through which most of the effect passes, to first order.

    A latent's share is Σ ⟨slope, decoder row⟩ · (its activation on the prompt less that on the twin).
    """
    dictionary.check_input(found.clean)
    with torch.no_grad():
        change = (dictionary.encode(found.clean.float()) - dictionary.encode(found.twin.float())).double()
        rows = dictionary.W_dec.double()
        share = (change * (found.slope @ rows.T)).sum((0, 1)) / found.effect.sum()
    latents = strongest(share, rank)
    if not latents:
        return []
    basis = orthonormal(rows[latents])
    return [Candidate(f"L{layer} sae latents {listing(latents)}", layer, found.site, basis, ("sae",))]


def of_probe(found: Probe, layer: int, site: str, rank: int) -> list[Candidate]:
    """The candidate that a probe reads, if it reads more than a probe of shuffled labels."""
    if float(found.selectivity["low"]) <= 0 or not np.any(found.weights):
        return []
    basis = orthonormal(torch.as_tensor(found.weights), rank)
    return [Candidate(f"L{layer} {found.method} of {found.label}", layer, site, basis, ("probe",))]


def of_clusters(found: Traffic, layer: int, rank: int, most: int = 2) -> list[Candidate]:
    """Groups of units whose changes from twin to prompt are correlated, by the effect that passes through them.

    Average-linkage clustering on 1 - |correlation|; only units with a share above the threshold take part.
    """
    from sklearn.cluster import AgglomerativeClustering

    share = found.by_unit()
    units = strongest(share.abs(), min(len(share), 256))
    if len(units) < 2:
        return []
    change = found.change[..., units].flatten(0, 1).numpy()
    alive = change.std(0) > 1e-12
    units = [unit for unit, there in zip(units, alive, strict=True) if there]
    if len(units) < 2:
        return []
    distance = 1 - np.abs(np.corrcoef(change[:, alive].T))
    model = AgglomerativeClustering(
        n_clusters=None, distance_threshold=1 - TOGETHER, metric="precomputed", linkage="average"
    )
    label = model.fit_predict(np.clip(distance, 0, None))
    groups = [[units[i] for i in np.flatnonzero(label == k)] for k in range(label.max() + 1)]
    groups = [group for group in groups if len(group) > 1]
    groups.sort(key=lambda group: -float(share[group].sum()))
    chosen = [[group[i] for i in strongest(share[group], rank)] for group in groups[:most]]
    return [
        from_units(f"L{layer} cluster {listing(group)}", "cluster", layer, found.site, group, len(share))
        for group in chosen
        if group
    ]


def site_kinds(sites: Iterable[str], about: str = "one unit of the studied site") -> list[UnitKind]:
    """A kind of unit for each kind of site, in the order of the sites; of one kind it is called ``unit``."""
    kinds = list(dict.fromkeys(site.split(".", 2)[2] for site in sites))
    return [UnitKind(kind if len(kinds) > 1 else "unit", (Block((kind,)),), about) for kind in kinds]


def mask_bench(model: Model, loader: PromptLoader, sites: Iterable[str]) -> Bench:
    """The bench that measures masks over the units of sites like these, in all layers that have such; dropped units
    take their twins' values."""
    units = Units(model, *site_kinds(sites))
    ablation = Ablation(model, units, "counterfactual", loader.batches, loader.task.aligned)
    return Bench(model, units, ablation, loader.batches)


def closeness(model: Model, loader: PromptLoader, sites: Iterable[str], kept: Tensor) -> dict[str, float | None]:
    """Measures how far from the model the units of a mask [unit] are, kept alone.

    Returns:
        ``kl`` in nats, ``kl_none`` without any unit, and ``share``, the part of ``kl_none`` that the mask makes up for;
        None where there is nothing to make up for.
    """
    bench = mask_bench(model, loader, sites)
    mask = kept.flatten().float().to(bench.batches[0].tokens.device)
    kl, none = (cost(bench, "kl", each) for each in (mask, torch.zeros_like(mask)))
    return {"kl": kl, "kl_none": none, "share": 1 - kl / none if none > 1e-9 else None}


def mask_search(model: Model, loader: PromptLoader, sites: Iterable[str], budget: int, steps: int, seed: int) -> Tensor:
    """True for the units of sites like these, of all layers, that the search under a budget keeps: [unit]."""
    bench = mask_bench(model, loader, sites)
    units = bench.units
    if not 1 <= budget <= units.total:
        raise MechintError(f"a mask of {budget} units is asked for, and there are {units.total}; lower the rank")
    scores, _ = starting_scores(bench, "kl")
    others = further_orders(bench, "kl", scores, budget)
    search = Search(bench, "kl", scores, SearchOptions(steps=steps), seed, budget, others)
    mask = search.run("mask search")[budget]
    return mask.cpu() > 0


def by_site(model: Model, sites: Iterable[str], kept: Tensor) -> dict[str, Tensor]:
    """The parts of a mask of :func:`mask_search`, [unit] for each site of the model like these."""
    units = Units(model, *site_kinds(sites))
    return {row.sites[0]: part for row, part in zip(units.by_row, kept.split(units.sizes), strict=True)}


def of_mask(found: Traffic, layer: int, kept: Tensor, rank: int) -> list[Candidate]:
    """The units that the mask search kept in this layer, [unit] bool."""
    share = found.by_unit()
    units = [i for i in strongest(share.abs() * kept, rank) if kept[i]]
    if not units:
        return []
    return [from_units(f"L{layer} mask {listing(units)}", "mask", layer, found.site, units, len(share))]


def listing(numbers: Sequence[int], most: int = 4) -> str:
    shown = " ".join(str(n) for n in sorted(numbers)[:most])
    return shown if len(numbers) <= most else f"{shown} … ({len(numbers)})"


def merge(proposals: Sequence[Candidate], carried: dict[str, Traffic]) -> tuple[list[Candidate], list[list[float]]]:
    """Scores proposals, joins those that are the same subspace, and orders them by evidence.

    Args:
        carried: By site.

    Returns:
        The candidates, strongest first, and their overlaps [candidate][candidate] (0 between sites).
    """
    joined: list[Candidate] = []
    for proposal in sorted(proposals, key=lambda p: -carried[p.site].share(p.basis)):
        for k, other in enumerate(joined):
            alike = other.site == proposal.site and overlap(other.basis, proposal.basis) >= SAME
            if alike and min(other.rank, proposal.rank) >= 0.75 * max(other.rank, proposal.rank):
                joined[k] = replace(other, sources=tuple(sorted({*other.sources, *proposal.sources})))
                break
        else:
            joined.append(proposal)
    every = sorted({source for proposal in proposals for source in proposal.sources})
    scored = []
    for candidate in joined:
        share = min(max(carried[candidate.site].share(candidate.basis), 0.0), 1.0)
        agreement = []
        for source in every:
            if source in candidate.sources:
                agreement += [1.0] if len(candidate.sources) > 1 else []
                continue
            others = (p for p in proposals if source in p.sources and p.site == candidate.site)
            agreement.append(max((overlap(candidate.basis, p.basis) for p in others), default=0.0))
        agreed = float(np.mean(agreement)) if agreement else 0.0
        scored.append(replace(candidate, share=share, agreement=agreed, evidence=share * (1 + agreed) / 2))
    scored.sort(key=lambda candidate: (-candidate.evidence, candidate.name))
    table = [[overlap(a.basis, b.basis) if a.site == b.site else 0.0 for b in scored] for a in scored]
    return scored, table
