"""Steps 1 to 5 of a study: from activations to candidates."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...interventions.model import Model
from ...interventions.run import run
from ...interventions.units import Units
from ...sae import SAEConfig, SparseAutoencoder
from ...sae.training import Training, train_grid
from ...utils.errors import MechintError
from ...utils.options import listed, named
from ...utils.statistics import ClusterBootstrap, Number
from ..loader import PromptLoader
from ..metrics import answered
from ..probes.fitting import Labelled, Probe, probe
from ..spectra import participation_ratio
from .candidates import (
    Candidate,
    by_site,
    closeness,
    mask_search,
    merge,
    of_clusters,
    of_mask,
    of_probe,
    of_sae,
    site_kinds,
)
from .context import Context, Found, from_plain, plain
from .subspaces import traffic

SHARE = 0.01
"""Part of the effect below which a proposal is not a candidate."""


def setup(context: Context) -> Found:
    """Measures the model's accuracy on held-out prompts beside chance."""
    accuracy, other = accuracy_and_chance(context, context.val, context.model)
    said = (
        f"The model answers {accuracy['value']:.0%} of {accuracy['n']} held-out prompts; chance: {other['value']:.0%}."
    )
    return {"report": {"accuracy": accuracy, "chance": other, "seed": context.seed, "said": said}}


def accuracy_and_chance(context: Context, loader: PromptLoader, model: Model) -> tuple[Number, Number]:
    """The accuracy of a model on the prompts of a loader, and the accuracy by chance; see :func:`.claims.does_task`
    for which of the two must be the larger."""
    right, chance = answered(loader, model)
    boot = ClusterBootstrap(loader.templates(), context.config.bootstrap, context.seed)
    return boot.share(right.numpy()), boot.interval(lambda mean: mean, chance.numpy())


def activations(context: Context) -> Found:
    """Collects activations, gradients and effects of the sites, and statistics of the activations."""
    found = traffic(context.model, context.train.batches, list(context.sites.values()), context.config.metric)
    layers = {}
    for layer, carried in zip(context.sites, found, strict=True):
        layers[str(layer)] = baseline(carried.clean) | {"site": carried.site}
    report = {
        "layers": layers,
        "answered": int(found[0].right.sum()),
        "n": len(found[0].effect),
        "effect": float(found[0].effect.mean()),
        "said": f"{len(found[0].effect)} discovery prompts at {len(found)} sites, and their twins.",
    }
    names = ("site", "clean", "twin", "slope", "effect", "right")
    return {"report": report, "keep": {"traffic": {f.site: {n: getattr(f, n) for n in names} for f in found}}}


def baseline(values: Tensor) -> Found:
    """Statistics of activations [prompt, position, unit].

    ``rank`` is the participation ratio of the covariance's eigenvalues, ``rank_99`` how many of them hold 99 % of the
    variance; outliers are units whose standard deviation is six times the median one (after Dettmers et al. 2022).
    """
    rows = values.flatten(0, 1)
    centred = rows - rows.mean(0)
    deviation = centred.std(0)
    eigen = torch.linalg.eigvalsh(centred.T @ centred / len(rows)).clamp(min=0).flip(0)
    total = float(eigen.sum())
    alive = deviation > 1e-12
    z = centred[:, alive] / deviation[alive]
    share = eigen.cumsum(0) / max(total, 1e-300)
    return {
        "n": len(rows),
        "units": int(rows.shape[1]),
        "mean": float(rows.mean()),
        "variance": float(deviation.square().mean()),
        "rank": participation_ratio(eigen),
        "rank_99": int((share < 0.99).sum()) + 1 if total > 0 else 0,
        "kurtosis_median": float(np.median(z.pow(4).mean(0).numpy())) if bool(alive.any()) else None,
        "dead_units": int((~alive).sum()),
        "outlier_units": torch.nonzero(deviation > 6 * float(np.median(deviation.numpy()))).flatten().tolist(),
        "norm_by_position": values.norm(dim=-1).mean(0).tolist(),
        "spectrum": (eigen[:64] / max(total, 1e-300)).tolist(),
    }


class Kept:
    """Activations that are there already, as a source for training."""

    def __init__(self, site: str, rows: Tensor) -> None:
        self.count: int | None = 1
        self.sites, self.widths, self.rows = [site], {site: int(rows.shape[1])}, rows.float()
        self.fingerprint = f"{site} {tuple(rows.shape)}"

    def pool(self, i: int) -> dict[str, Tensor]:
        return {self.sites[0]: self.rows}


def dictionary(
    rows: Tensor, site: str, width: float, k: int, steps: int, seed: int, penalty: float = 0.0
) -> SparseAutoencoder:
    """A TopK dictionary of activations [row, unit], with an L1 penalty on its active latents where that is above 0.

    Raises:
        MechintError: more active latents than there are.
    """
    d_in = int(rows.shape[1])
    d_sae = max(2, round(width * d_in))
    if k > d_sae:
        raise MechintError(
            f"a dictionary of {d_sae} latents ({width:g} for each of {d_in} units) has no {k} active ones"
        )
    config = SAEConfig("topk", d_in, d_sae, k=k, penalty=penalty, site=site, seed=seed)
    batch = min(1024, len(rows))
    training = Training(tokens=steps * batch, batch=batch, dead_after=10 * len(rows), seed=seed)
    return train_grid({"study": config}, Kept(site, rows), training, title=f"dictionary of {site}")[0].sae


def sae_numbers(sae: SparseAutoencoder, values: Tensor, templates: Any, draws: int, seed: int) -> Found:
    """Evaluates a dictionary on activations [prompt, position, unit] that it was not trained on."""
    with torch.no_grad():
        f = sae.encode(values.float())
        rest = (sae.decode(f).double() - values).square().sum(-1).mean(1)
    total = (values - values.mean((0, 1))).square().sum(-1).mean(1)
    boot = ClusterBootstrap(templates, draws, seed)
    return {
        "variance_explained": boot.interval(lambda a, b: 1 - a / b, rest.numpy(), total.numpy(), within=(-np.inf, 1.0)),
        "l0": boot.interval(lambda a: a, (f > 0).double().sum(-1).mean(1).numpy()),
        "latents": int(sae.config.d_sae),
        "silent": int((f > 0).flatten(0, 1).any(0).logical_not().sum()),
    }


def sae(context: Context) -> Found:
    """A dictionary of each site, and the latents that carry the effect."""
    c, layers, proposals = context.config, {}, []
    held = collected(context, context.val)
    for layer, site in context.sites.items():
        carried = context.carried[site]
        found = dictionary(
            carried.clean.flatten(0, 1), site, c.sae_width, c.sae_k, c.sae_steps, context.seed, c.sae_penalty
        )
        layers[str(layer)] = sae_numbers(found, held[site], context.val.templates(), c.bootstrap, context.seed)
        mine = of_sae(carried, layer, found, c.rank)
        layers[str(layer)]["proposals"] = [p.name for p in mine]
        proposals += mine
    said = f"{len(layers)} dictionaries; {len(proposals)} of them have latents that carry the effect."
    return {"report": {"layers": layers, "said": said}, "keep": {"proposals": [plain(p) for p in proposals]}}


def collected(context: Context, loader: PromptLoader, model: Model | None = None) -> dict[str, Tensor]:
    """The sites on the prompts of a loader, [prompt, position, unit], in the studied model or another one."""
    parts: dict[str, list[Tensor]] = {site: [] for site in context.sites.values()}
    with torch.no_grad():
        for batch in loader:
            found = run(model or context.model, batch.tokens, list(parts), logits_at=batch.positions[:, :0])
            for site, values in parts.items():
                values.append(found[site].flatten(2).double().cpu())
    return {site: torch.cat(values) for site, values in parts.items()}


def labelled(context: Context, loader: PromptLoader, values: Tensor, label: str) -> Labelled:
    """Activations at the last answer's position, with a label of the task."""
    names = [context.train.task.labels(batch)[label].cpu().numpy() for batch in loader]
    at = torch.cat([batch.positions[:, -1].cpu() for batch in loader])
    return Labelled(values[torch.arange(len(values)), at].numpy(), np.concatenate(names), loader.templates())


def probe_methods(context: Context) -> list[str]:
    return listed(context.config.probes, named("study", "probes"))


def probes(context: Context) -> Found:
    """Probes of every label of the task at the last answer's position of each site."""
    c = context.config
    methods = probe_methods(context)
    draws = max(c.bootstrap, context.draws)
    held = collected(context, context.val)
    labels = list(context.train.task.labels(context.train.batches[0]))
    reports, notes, proposals = [], [], []
    hits: dict[str, tuple[float, Any]] = {}
    for layer, site in context.sites.items():
        for label in labels:
            train = labelled(context, context.train, context.carried[site].clean, label)
            test = labelled(context, context.val, held[site], label)
            best: Probe | None = None
            for method in methods:
                try:
                    found = probe(train, test, method, label, shuffles=c.shuffles, draws=draws, seed=context.seed)
                except MechintError as reason:
                    notes.append(f"layer {layer}, {method}: {reason}")
                    break
                reports.append(found.report() | {"layer": layer, "site": site})
                if best is None or found.across_folds > best.across_folds:
                    best = found
                if label not in hits or found.across_folds > hits[label][0]:
                    hits[label] = (found.across_folds, found.hits)
            if best is not None:
                proposals += of_probe(best, layer, site, c.rank)
    if not reports:
        raise MechintError("; ".join(notes) or "the task has no labels")
    top = max(reports, key=lambda r: r["selectivity"]["value"])
    said = (
        f"{len(reports)} probes of {', '.join(labels)}; the most selective is {top['method']} of {top['label']} at "
        f"layer {top['layer']}: it scores {top['score']['value']:.2f}, {top['selectivity']['value']:.2f} above "
        f"shuffled labels."
    )
    keep = {
        "proposals": [plain(p) for p in proposals],
        "hits": {label: torch.from_numpy(mine) for label, (_, mine) in hits.items()},
    }
    return {"report": {"probes": reports, "notes": notes, "said": said}, "keep": keep}


CLOSE = 0.9
"""Share of the KL that a mask must make up for to be close to the model."""


def mask_said(budget: int, close: Found) -> str:
    """Describes how close the units of the mask search are to the model."""
    text = f"The {budget} units of the mask search, kept alone, are {close['kl']:.3g} nats from the model"
    if close["share"] is None:
        return f"{text}; the model without any of them is as close."
    verdict = "" if close["share"] >= CLOSE else ": use them as proposals, not as a circuit"
    return f"{text}; without any of them the model is {close['kl_none']:.3g} nats away{verdict}."


def candidates(context: Context) -> Found:
    """All proposals, merged under one evidence score; the strongest are tested."""
    c = context.config
    proposals: list[Candidate] = []
    for step in (3, 4):
        try:
            proposals += [from_plain(value) for value in context.keep(step)["proposals"]]
        except MechintError:
            continue  # its own entry says why; the other sources go on
    sites = list(context.sites.values())
    units = Units(context.model, *site_kinds(sites))
    budget = min(c.rank * units.layers, units.total)
    mask = mask_search(context.model, context.train, sites, budget, c.mask_steps, context.seed)
    close = closeness(context.model, context.train, sites, mask)
    kept = by_site(context.model, sites, mask)
    for layer, site in context.sites.items():
        carried = context.carried[site]
        proposals += [*of_mask(carried, layer, kept[site], c.rank), *of_clusters(carried, layer, c.rank)]
    found, table = merge(proposals, context.carried)
    few = [candidate for candidate in found if candidate.share >= SHARE]
    tested = few[: c.candidates]
    shares = {site: carried.by_unit().tolist() for site, carried in context.carried.items()}
    said = (
        f"{len(proposals)} proposals of {len({s for p in proposals for s in p.sources})} sources; {len(few)} carry at "
        f"least {SHARE:.0%} of the effect to first order, {len(tested)} are tested. {mask_said(budget, close)}"
    )
    report = {
        "candidates": [candidate.report() | {"tested": candidate in tested} for candidate in found],
        "overlap": table,
        "share_by_unit": shares,
        "mask": {"units": budget, **close},
        "said": said,
    }
    return {"report": report, "keep": {"candidates": [plain(candidate) for candidate in tested], "mask": mask}}
