"""Edges on the scorecard: which position reads which (flows), and which channel reads which (links).

Every way of scoring flows gives a number for each layer, ``conv`` or ``state``, reader i and source j ≤ i of each
prompt; every way of scoring links one for each pair of channels of an earlier and a later layer.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ..cross_layer import unit_effects
from ..errors import MechintError
from ..interchange import answer_metric
from ..interventions import Edit
from ..run import run
from ..scan.attention import attention_map
from ..sweep import gradients
from ..tasks import Prompts
from ..tasks.ground_truth import Compiled, score_units
from ..tasks.ground_truth.flows import clear, flows, links
from ..temporal import lags, linearise
from .methods import Budget, interchange

PATHS = ("conv", "state")
LINK_PROMPTS = 64
"""Discovery prompts that methods see which score links; 16 leave large sums unseen, and their links with them."""
Cell = tuple[int, str]
Edge = tuple[int, str, int, int]
"""(layer, path, reader i, source j)."""


@dataclass(frozen=True)
class EdgeMethod:
    """One way of scoring edges.

    Attributes:
        title: In tables.
        kind: ``flow`` or ``link``.
        scores: (compiled, prompts, asked) -> for flows [n, i, j] by (layer, path), right at least where they are asked
            for; for links [layer, e, layer, f].
        paths: Those it speaks of.
        writer, reader: Ablations by which it tries the two ends of a link; a link whose end is the same under them, so
            that nothing changes, is not asked for. ``zero`` is blind to none.
    """

    title: str
    kind: str
    scores: Callable[[Compiled, Prompts, list[Edge]], Any]
    paths: tuple[str, ...] = PATHS
    writer: str = "zero"
    reader: str = "zero"


# ---- flows -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def flow_cuts(compiled: Compiled, prompts: Prompts, asked: list[Edge]) -> dict[Cell, Tensor]:
    """What the logit difference loses when one position's reading of one other is cut (attention knock-out)."""
    model, last = compiled.model, prompts.last()
    n, length = last.tokens.shape
    metric = answer_metric("logit_diff", last)

    def measure(edits: list[Edit]) -> Tensor:
        return metric(run(model, last.tokens, edits=edits, logits_at=last.positions).logits)

    clean = measure([])
    maps = {(layer, path): torch.zeros(n, length, length) for layer in range(model.config.n_layer) for path in PATHS}
    for layer, path, i, j in asked:
        cut = Edit(f"layers.{layer}.{path}", "cut", positions=[i], sources=[j])
        maps[layer, path][:, i, j] = (clean - measure([cut])).abs()
    return maps


def hidden_attention(compiled: Compiled, prompts: Prompts, asked: list[Edge]) -> dict[Cell, Tensor]:
    """‖what j gives i through the scan‖ with Δ, B, C and the gate held (Ali, Zimerman & Wolf 2024)."""
    layers = range(compiled.model.config.n_layer)
    return {(k, "state"): attention_map(compiled.model, prompts.tokens, k, "energy").float() for k in layers}


def derivatives(compiled: Compiled, prompts: Prompts, asked: list[Edge], *, which: str) -> dict[Cell, Tensor]:
    """Length of the exact derivative of a layer's scan at i by its input at j; ``direct`` holds Δ, B and C."""
    n, length = prompts.tokens.shape
    found = {}
    for layer in range(compiled.model.config.n_layer):
        square = torch.zeros(n, length, length, dtype=torch.float64)
        for slab in lags(linearise(compiled.model, prompts.tokens, layer), length - 1):
            norm = slab.norm[which].double()
            i = torch.arange(slab.first, slab.first + norm.shape[1])
            square[:, i, i - slab.lag] = norm.square().sum(-1)
        found[layer, "state"] = square.sqrt()
    return found


# ---- links -------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def cross_layer(model: Any, prompts: Prompts) -> dict[str, Tensor]:
    """What every channel's output, ablated by its mean, does to u of every later channel, [layer, e, layer, f]."""
    layers, width = range(model.config.n_layer), model.config.d_inner
    units = {layer: list(range(width)) for layer in layers}
    seen = {f"layers.{k}.u" for k in layers}
    values = run(model, prompts.tokens, [*seen, *(f"layers.{k}.gated" for k in layers)]).values
    fills = {f"layers.{k}.gated": values[f"layers.{k}.gated"].mean(0) for k in layers}
    scale = {site: values[site].double().std((0, 1)) for site in seen}
    found = unit_effects(model, prompts, "gated", units, fills, scale, seen="u")
    whole = {way: torch.zeros(len(layers), width, len(layers), width) for way in ("patched", "linear")}
    for name, effect in found.items():
        i, j, way = name.split()
        whole[way][int(i), :, int(j)] = effect.mean(0).float()
    return whole


def traffic(compiled: Compiled, prompts: Prompts, asked: list[Edge], *, way: str) -> Tensor:
    return cross_layer(compiled.model, prompts)[way]


def traffic_to_the_answer(compiled: Compiled, prompts: Prompts, asked: list[Edge]) -> Tensor:
    """The change of a channel times what that channel does to the answer: its exact effect with the twin's values."""
    model = compiled.model
    budget = Budget(1, len(prompts), len(prompts), 1, compiled.unit)
    effect = interchange(model, compiled.task, budget, direction="noise").view(model.config.n_layer, -1)
    return cross_layer(model, prompts)["patched"] * effect


def weight_products(compiled: Compiled, prompts: Prompts, asked: list[Edge]) -> Tensor:
    """|W_in of the reader · norm weights · W_out of the writer|, from the weights alone."""
    model = compiled.model
    layers, width = range(model.config.n_layer), model.config.d_inner
    found = torch.zeros(len(layers), width, len(layers), width)
    for j in layers:
        reads = model.layers[j].in_proj.weight[:width] * model.layers[j].norm.weight
        for i in range(j):
            found[i, :, j] = (reads @ model.layers[i].out_proj.weight).T.abs()
    return found


def edge_attribution(compiled: Compiled, prompts: Prompts, asked: list[Edge], *, points: int = 5) -> Tensor:
    """(what the writer gives in the twin's run less in the clean one) · ∂m/∂(x of the reader), summed over tokens.

    Edge attribution patching (Syed et al. 2023) with gradients averaged on the way from the clean embeddings to the
    twin's (Hanna et al. 2024), the size of the mean over prompts; the 1/rms of the norm is held.
    """
    model, last = compiled.model, prompts.last()
    if last.twins is None:
        raise MechintError("edge attribution needs counterfactual twins")
    layers, width = range(model.config.n_layer), model.config.d_inner
    gated, read = [f"layers.{k}.gated" for k in layers], [f"layers.{k}.x" for k in layers]
    residual = [f"layers.{k}.resid_pre" for k in layers]
    clean, twin = (run(model, tokens, ["embed", *gated, *residual]).values for tokens in (last.tokens, last.twins))
    slopes = {site: torch.zeros_like(clean[gated[0]]) for site in read}
    for k in range(points):
        share = (k + 0.5) / points
        start = Edit("embed", "replace", clean["embed"] + share * (twin["embed"] - clean["embed"]))
        _, found = gradients(model, last.tokens, read, answer_metric("logit_diff", last), [start], last.positions)
        slopes = {site: slopes[site] + found[site] / points for site in read}
    scores = torch.zeros(len(layers), width, len(layers), width)
    for j in layers:
        norm = model.layers[j].norm
        rms = (clean[residual[j]].square().mean(-1, keepdim=True) + norm.eps).sqrt()  # [n, L, 1]
        reads = model.layers[j].in_proj.weight[:width] * norm.weight
        for i in range(j):
            change = twin[gated[i]] - clean[gated[i]]  # [n, L, e]
            through = torch.einsum("nle,nlf->nef", change, slopes[read[j]] / rms)
            weight = (reads @ model.layers[i].out_proj.weight).T  # [e, f]
            scores[i, :, j] = (through * weight).mean(0).abs()
    return scores


EDGE_METHODS: dict[str, EdgeMethod] = {
    "flow_cut": EdgeMethod("flow, cut", "flow", flow_cuts),
    "hidden_attention": EdgeMethod("flow, hidden attention", "flow", hidden_attention, ("state",)),
    "derivative_direct": EdgeMethod(
        "flow, derivative, direct", "flow", functools.partial(derivatives, which="direct"), ("state",)
    ),
    "derivative_total": EdgeMethod(
        "flow, derivative, total", "flow", functools.partial(derivatives, which="total"), ("state",)
    ),
    "edge_attribution": EdgeMethod("link, edge attribution", "link", edge_attribution, writer="counterfactual"),
    "cross_layer_patched": EdgeMethod(
        "link, cross-layer, patched", "link", functools.partial(traffic, way="patched"), writer="mean"
    ),
    "cross_layer_linear": EdgeMethod(
        "link, cross-layer, linear", "link", functools.partial(traffic, way="linear"), writer="mean"
    ),
    "cross_layer_answer": EdgeMethod(
        "link, cross-layer × effect", "link", traffic_to_the_answer, writer="mean", reader="counterfactual"
    ),
    "weight_products": EdgeMethod("link, product of weights", "link", weight_products),
}


# ---- scores ------------------------------------------------------------------------------------------------------


def score_edges(
    compiled: Compiled, count: int, others: int, seed: int, methods: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """AUROC, average precision and exact recovery of each method, or of those named, that is asked of this model.

    Of flows these are means over ``count`` prompts whose answer has one way only, and of the edges that any of these
    needs and ``others`` drawn at random from all the rest; of links they are of all pairs of channels.
    """
    prompts = clear(compiled, compiled.task.sample(8 * count, "evaluation", seed))[slice(count)]
    needed, linked = flows(compiled, prompts), links(compiled)
    asked = asked_for(compiled, prompts, needed, others, seed)
    shown = compiled.task.sample(LINK_PROMPTS, "discovery", seed)
    found = []
    for key in methods or EDGE_METHODS:
        method = EDGE_METHODS[key]
        start = time.perf_counter()
        if method.kind == "flow":
            edges = [edge for edge in asked if edge[1] in method.paths]
            if not any(path in method.paths for _, path in needed):
                continue
            row = flow_score(method.scores(compiled, prompts, edges), needed, prompts, edges, method)
        else:
            blind = linked & ~seeing(compiled, method)
            if not bool((linked & ~blind).any()):
                continue
            later = torch.ones(len(linked), len(linked)).triu(1).bool()[:, None, :, None].expand_as(linked) & ~blind
            score = score_units(linked[later].float(), method.scores(compiled, shown, asked)[later], method.title)
            row = dataclasses.asdict(score) | {"exact": float(score.exact)}
        found.append({"method": key, **row, "seconds": time.perf_counter() - start})
    cross_layer.cache_clear()
    return found


def links_by_chance(compiled: Compiled, random: Any, seed: int) -> list[dict[str, Any]]:
    """AUROC of each way of scoring links on a model of random weights, against the links that are declared.

    The mean over the pairs of layers that have any: which channels of a layer are declared is a matter of the seed
    alone, so 0.5 is expected whatever the method. Flows have no such number: on any weights near positions are read
    more than far ones.
    """
    linked = links(compiled)
    shown, other = compiled.task.sample(LINK_PROMPTS, "discovery", seed), dataclasses.replace(compiled, model=random)
    found = []
    for key, method in EDGE_METHODS.items():
        if method.kind != "link":
            continue
        wanted = linked & seeing(compiled, method)
        pairs = [(i, j) for i in range(len(linked)) for j in range(i + 1, len(linked)) if bool(wanted[i, :, j].any())]
        if not pairs:
            continue
        scores = method.scores(other, shown, [])
        parts = [(wanted[i, :, j].float().flatten(), scores[i, :, j].flatten()) for i, j in pairs]
        found.append({"method": key, "auroc": fmean(score_units(*part, method.title).auroc for part in parts)})
    cross_layer.cache_clear()
    return found


def asked_for(compiled: Compiled, prompts: Prompts, needed: Any, others: int, seed: int) -> list[Edge]:
    """The edges that any prompt needs, and some of all others that there are, drawn by the seed."""
    config, end = compiled.model.config, int(prompts.positions[:, -1].max())
    every = {
        (layer, path, i, j)
        for layer in range(config.n_layer)
        for path in PATHS
        for i in range(end + 1)
        for j in range(i + 1)
        if path == "state" or i - j < config.d_conv
    }
    wanted = {(layer, path, i, j) for (layer, path), there in needed.items() for _, i, j in there.nonzero().tolist()}
    rest = sorted(every - wanted)
    order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))[:others].tolist()
    return sorted(wanted) + [rest[k] for k in order]


def seeing(compiled: Compiled, method: EdgeMethod) -> Tensor:
    """Which pairs of declared channels a method can see at both ends, [layer, e, layer, f] bool."""
    shape = (compiled.model.config.n_layer, -1)
    writer, reader = (
        compiled.truth.mask(compiled.model, "channel", name).view(shape).bool()
        for name in (method.writer, method.reader)
    )
    return writer[:, :, None, None] & reader[None, None]


def flow_score(
    scores: dict[Cell, Tensor], needed: Any, prompts: Prompts, edges: list[Edge], method: EdgeMethod
) -> dict[str, Any]:
    """Means over the prompts; edges that end behind the query can't matter and are not asked for."""
    every = []
    for row, end in enumerate(prompts.positions[:, -1].tolist()):
        inside = [(layer, path, i, j) for layer, path, i, j in edges if i <= end]
        truth = [bool((layer, path) in needed and needed[layer, path][row, i, j]) for layer, path, i, j in inside]
        values = [float(scores[layer, path][row, i, j]) for layer, path, i, j in inside]
        every.append(score_units(torch.tensor(truth).float(), values, f"{method.title}, prompt {row}"))
    return {
        name: fmean(float(getattr(score, name)) for score in every)
        for name in ("auroc", "average_precision", "exact", "units", "total")
    }
