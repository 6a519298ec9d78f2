"""Edges on the scorecard: which position reads which (flows), and which channel reads which (links).

Every way of scoring flows gives a number for each layer, ``conv``, ``state`` or head, reader i and source j ≤ i of
each prompt; every way of scoring links one for each pair of channels of an earlier and a later layer. Those of a GPT-2
alone are in :mod:`mechint.scorecard.gpt2_edges`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ..analyses.metrics import answer_metric
from ..analyses.neurons.cross_layer import unit_effects
from ..attribution.attention import attention_map
from ..attribution.jacobians import lags, linearise
from ..ground_truth import Compiled, score_units
from ..ground_truth.edge_masks import Cell, Edge, Flows
from ..ground_truth.edges import clear, flows, is_gpt2, is_memory, link_blocks, link_ends, link_pairs, links, shares
from ..ground_truth.memories.links import products as memory_products
from ..interventions.edits import Edit
from ..interventions.gradients import gradients
from ..interventions.model import Model, having
from ..interventions.run import run
from ..interventions.sweep import sweep
from ..interventions.units import Units
from ..tasks import Prompts
from ..utils.errors import MechintError
from . import gpt2_edges as gpt2
from .cost import cost
from .hard import memory_links as memories
from .methods import Budget, patched

ATTENTION = ("pattern",)
SCAN = ("state",)
HEADS = ("head",)
LINK_PROMPTS = 64
"""Discovery prompts that methods see which score links; 16 leave large sums unseen, and their links with them."""


@dataclass(frozen=True)
class EdgeMethod:
    """One way of scoring edges.

    Attributes:
        title: In tables.
        kind: ``flow`` or ``link``.
        scores: (compiled, prompts, asked) -> for flows [n, i, j] by (layer, path), right at least where they are asked
            for; for links [layer, e, layer, f].
        paths: Ways of reading that it speaks of, all heads as ``head``; empty for all.
        gives: True if it sees no more than what a source gives, so that it is not asked for flows whose source only
            takes attention from others.
        needs: Sites of a layer, without which it can't be asked.
        barred: A site with which it can't.
        memories: True if it can be asked for links of the newer memories.
        writer, reader: Ablations by which it tries the two ends of a link; a link whose end is the same under them, so
            that nothing changes, is not asked for. ``zero`` is blind to none.
    """

    title: str
    kind: str
    scores: Callable[[Compiled, Prompts, list[Edge]], Any]
    paths: tuple[str, ...] = ()
    gives: bool = False
    needs: tuple[str, ...] = ()
    barred: str = ""
    memories: bool = False
    writer: str = "zero"
    reader: str = "zero"

    def speaks_of(self, path: str) -> bool:
        return not self.paths or ("head" if path.startswith("h") else path) in self.paths

    def fits(self, compiled: Compiled) -> bool:
        if is_memory(compiled) and self.kind == "link" and not self.memories:
            return False
        barred = bool(self.barred) and bool(having(compiled.model, self.barred))
        return bool(having(compiled.model, *self.needs)) and not barred


# ---- flows -------------------------------------------------------------------------------------------------------


def flow_cuts(compiled: Compiled, prompts: Prompts, asked: list[Edge], *, at: str = "scores") -> dict[Cell, Tensor]:
    """The loss of logit difference when one position's reading of another is cut (attention knock-out).

    ``at``: For a head, the site of the cut: at ``scores`` the reader's other sources share what is free, at ``pattern``
    they keep their weights.
    """
    last = prompts.last()
    n, length = last.tokens.shape
    cells = [[cut(edge, at)] for edge in asked]
    metric = answer_metric("logit_diff", last)
    # an empty cell is the clean run itself, so that cuts without an effect are exactly zero
    found = sweep(compiled.model, last.tokens, [*cells, []], metric, logits_at=last.positions, title="cuts of flows")
    lost = (found[-1] - found[:-1]).abs()
    maps: dict[Cell, Tensor] = {}
    for (layer, path, i, j), effect in zip(asked, lost, strict=True):
        maps.setdefault((layer, path), torch.zeros(n, length, length))[:, i, j] = effect
    return maps


def cut(edge: Edge, at: str = "scores") -> Edit:
    """The edit that removes an edge between positions on all prompts; ``at``: the site, where it is a head's."""
    layer, path, i, j = edge
    if not path.startswith("h"):
        return Edit(f"layers.{layer}.{path}", "cut", positions=[i], sources=[j])
    return Edit(f"layers.{layer}.{at}", "cut", positions=[i], sources=[j], units=[int(path[1:])])


def hidden_attention(compiled: Compiled, prompts: Prompts, asked: list[Edge]) -> dict[Cell, Tensor]:
    """‖what j gives i through the scan‖ with Δ, B, C and the gate held (Ali, Zimerman & Wolf 2024)."""
    model, tokens = compiled.model, prompts.tokens
    if not is_memory(compiled):
        return {(k, "state"): attention_map(model, tokens, k, "energy").float() for k in having(model, "state")}
    heads = {row.layer: range(row.shape[0]) for row in Units(model, model.unit_kinds["ssm_head"]).by_row}
    maps = {k: attention_map(model, tokens, k, "channels", channels=own) for k, own in heads.items()}
    return {(k, "state"): weights.norm(dim=1).float() for k, weights in maps.items()}  # over the heads


def derivatives(compiled: Compiled, prompts: Prompts, asked: list[Edge], *, which: str) -> dict[Cell, Tensor]:
    """Length of the exact derivative of a layer's scan at i by its input at j; ``direct`` holds Δ, B and C."""
    n, length = prompts.tokens.shape
    found = {}
    for layer in having(compiled.model, "state"):
        square = torch.zeros(n, length, length, dtype=torch.float64)
        for slab in lags(linearise(compiled.model, prompts.tokens, layer), length - 1):
            norm = slab.norm[which].double()
            i = torch.arange(slab.first, slab.first + norm.shape[1])
            square[slab.rows][:, i, i - slab.lag] = norm.square().sum(-1)
        found[layer, "state"] = square.sqrt()
    return found


# ---- links -------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def cross_layer(model: Model, prompts: Prompts) -> dict[str, Tensor]:
    """The effect of mean-ablating every channel's output on u of every later channel, [layer, e, layer, f]."""
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
    if is_memory(compiled):
        return memories.patched(compiled.model, prompts)
    return cross_layer(compiled.model, prompts)[way]


def traffic_to_the_answer(compiled: Compiled, prompts: Prompts, asked: list[Edge]) -> Tensor:
    """The change of a channel times what that channel does to the answer: its exact effect with the twin's values."""
    model = compiled.model
    if is_memory(compiled):
        return memories.to_the_answer(model, prompts)
    budget = Budget(1, len(prompts), len(prompts), 1, compiled.unit)
    effect = patched(model, compiled.task, budget, name="patching_noise").view(model.config.n_layer, -1)
    return cross_layer(model, prompts)["patched"] * effect


def weight_products(compiled: Compiled, prompts: Prompts, asked: list[Edge]) -> Tensor:
    """|W_in of the reader · norm weights · W_out of the writer|, from the weights alone."""
    model = compiled.model
    if is_memory(compiled):
        return memory_products(model)
    layers, width = range(model.config.n_layer), model.config.d_inner
    found = torch.zeros(len(layers), width, len(layers), width)
    for j in layers:
        reads = model.layers[j].in_proj.weight[:width] * scale_of(model.layers[j].norm)
        for i in range(j):
            found[i, :, j] = (reads @ model.layers[i].out_proj.weight).T.abs()
    return found


def scale_of(norm: Any) -> Tensor | float:
    """The norm's weights [d_model]; 1 of a model without norms."""
    return 1.0 if norm.weight is None else norm.weight


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
        norm, r = model.layers[j].norm, clean[residual[j]]
        rms = (
            torch.ones_like(r[..., :1])
            if norm.weight is None
            else (r.square().mean(-1, keepdim=True) + norm.eps).sqrt()
        )
        reads = model.layers[j].in_proj.weight[:width] * scale_of(norm)  # rms is [n, L, 1]
        for i in range(j):
            change = twin[gated[i]] - clean[gated[i]]  # [n, L, e]
            through = torch.einsum("nle,nlf->nef", change, slopes[read[j]] / rms)
            weight = (reads @ model.layers[i].out_proj.weight).T  # [e, f]
            scores[i, :, j] = (through * weight).mean(0).abs()
    return scores


Scores = Callable[..., Any]


def either(mamba: Scores, transformer: Scores) -> Scores:
    """The same question, asked of each family in its own way."""
    return lambda compiled, *rest: (transformer if is_gpt2(compiled) else mamba)(compiled, *rest)


EDGE_METHODS: dict[str, EdgeMethod] = {
    "flow_cut": EdgeMethod("flow, cut", "flow", flow_cuts),
    "flow_cut_pattern": EdgeMethod(
        "flow, cut, weights kept",
        "flow",
        functools.partial(flow_cuts, at="pattern"),
        HEADS,
        gives=True,
        needs=ATTENTION,
    ),
    "attention": EdgeMethod("flow, attention", "flow", gpt2.attention, HEADS, needs=ATTENTION),
    "attention_norm": EdgeMethod(
        "flow, attention × value", "flow", gpt2.attention_norm, HEADS, True, ATTENTION, barred="attn_gate"
    ),
    "attention_gradient": EdgeMethod(
        "flow, attention × gradient", "flow", gpt2.attention_gradient, HEADS, gives=True, needs=ATTENTION
    ),
    "hidden_attention": EdgeMethod("flow, hidden attention", "flow", hidden_attention, ("state",), needs=SCAN),
    **{
        f"derivative_{which}": EdgeMethod(
            f"flow, derivative, {which}",
            "flow",
            functools.partial(derivatives, which=which),
            ("state",),
            needs=SCAN,
        )
        for which in ("direct", "total")
    },
    "edge_attribution": EdgeMethod(
        "link, edge attribution", "link", either(edge_attribution, gpt2.attribution), writer="counterfactual"
    ),
    "cross_layer_patched": EdgeMethod(
        "link, cross-layer, patched",
        "link",
        either(functools.partial(traffic, way="patched"), gpt2.traffic),
        memories=True,
        writer="mean",
    ),
    "cross_layer_linear": EdgeMethod(
        "link, cross-layer, linear", "link", functools.partial(traffic, way="linear"), writer="mean", needs=SCAN
    ),
    "cross_layer_answer": EdgeMethod(
        "link, cross-layer × effect",
        "link",
        either(traffic_to_the_answer, gpt2.traffic_to_the_answer),
        memories=True,
        writer="mean",
        reader="counterfactual",
    ),
    "weight_products": EdgeMethod(
        "link, product of weights", "link", either(weight_products, gpt2.products), memories=True
    ),
}


# ---- scores ------------------------------------------------------------------------------------------------------


def score_edges(
    compiled: Compiled, count: int, others: int, seed: int, methods: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """AUROC, average precision and exact recovery of each method, or of those named, that is asked of this model.

    For flows these are means over ``count`` prompts whose answer has one way only, and of the edges that any of these
    needs and ``others`` drawn at random from all the rest; of links they are of all pairs of channels.
    """
    prompts = clear(compiled, compiled.task.sample(8 * count, "evaluation", seed))[slice(count)]
    needed, taken = flows(compiled, prompts), shares(compiled, prompts)
    linked = links(compiled)
    asked = asked_for(compiled, prompts, needed, others, seed)
    shown = compiled.task.sample(LINK_PROMPTS, "discovery", seed)
    found = []
    for key in methods or EDGE_METHODS:
        method = EDGE_METHODS[key]
        if not method.fits(compiled):
            continue
        if method.kind == "flow":
            edges = [edge for edge in asked if method.speaks_of(edge[1])]
            if not any(method.speaks_of(path) for _, path in needed):
                continue
            with cost() as spent:
                scores = method.scores(compiled, prompts, edges)
            row = flow_score(scores, needed, taken if method.gives else {}, prompts, edges, method.title)
        else:
            blind = linked & ~seeing(compiled, method)
            if not bool((linked & ~blind).any()):
                continue
            wanted = link_pairs(compiled) & ~blind
            with cost() as spent:
                scores = method.scores(compiled, shown, asked)
            score = score_units(linked[wanted].float(), scores[wanted], method.title)
            row = dataclasses.asdict(score) | {"exact": float(score.exact)}
        found.append({"method": key, **row, **spent})
    forget()
    return found


def forget() -> None:
    """Lets go of what several methods share."""
    cross_layer.cache_clear()
    gpt2.patched.cache_clear()
    memories.patched.cache_clear()


def links_by_chance(compiled: Compiled, random: Any, seed: int) -> list[dict[str, Any]]:
    """AUROC of each way of scoring links on a model of random weights, against the links that are declared.

    The mean over the pairs of layers, and of kinds of unit, that have any: which channels of a layer are declared is a
    matter of the seed alone, so 0.5 is expected whatever the method. Flows have no such number: on any weights near
    positions are read more than far ones.
    """
    linked = links(compiled)
    shown, other = compiled.task.sample(LINK_PROMPTS, "discovery", seed), dataclasses.replace(compiled, model=random)
    found = []
    for key, method in EDGE_METHODS.items():
        if method.kind != "link" or not method.fits(compiled):
            continue
        wanted = linked & seeing(compiled, method)
        places = [place for place in link_blocks(compiled) if bool(wanted[place].any())]
        if not places:
            continue
        scores = method.scores(other, shown, [])
        parts = [(wanted[place].float().flatten(), scores[place].flatten()) for place in places]
        found.append({"method": key, "auroc": fmean(score_units(*part, method.title).auroc for part in parts)})
    forget()
    return found


def asked_for(compiled: Compiled, prompts: Prompts, needed: Any, others: int, seed: int) -> list[Edge]:
    """The edges that any prompt needs, and some of all others that there are, drawn by the seed."""
    every = every_edge(compiled, int(prompts.positions[:, -1].max()))
    wanted = {(layer, path, i, j) for (layer, path), there in needed.items() for _, i, j in there.nonzero().tolist()}
    rest = sorted(every - wanted)
    order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))[:others].tolist()
    return sorted(wanted) + [rest[k] for k in order]


def every_edge(compiled: Compiled, end: int) -> set[Edge]:
    """All edges between positions up to ``end`` that the model has."""
    config, model = compiled.model.config, compiled.model
    reach: dict[int, dict[str, int]] = {
        **{k: {"conv": config.d_conv, "state": end + 1} for k in having(model, "state")},
        **{k: {f"h{head}": end + 1 for head in range(config.n_head)} for k in having(model, "pattern")},
    }
    return {
        (layer, path, i, j)
        for layer, ways in sorted(reach.items())
        for path, back in ways.items()
        for i in range(end + 1)
        for j in range(max(0, i - back + 1), i + 1)
    }


def seeing(compiled: Compiled, method: EdgeMethod) -> Tensor:
    """The pairs of declared units that a method can see at both ends, [layer, e, layer, f] bool."""
    writer, reader = link_ends(compiled, method.writer, method.reader)
    return writer[:, :, None, None] & reader[None, None]


def flow_score(
    scores: dict[Cell, Tensor], needed: Flows, left_out: Flows, prompts: Prompts, edges: list[Edge], title: str
) -> dict[str, Any]:
    """Means over the prompts; edges that end after the query can't matter and are not asked for."""
    says = lambda flows, row, layer, path, i, j: (layer, path) in flows and bool(flows[layer, path][row, i, j])
    every = []
    for row, end in enumerate(prompts.positions[:, -1].tolist()):
        inside = [edge for edge in edges if edge[2] <= end and not says(left_out, row, *edge)]
        truth = torch.tensor([says(needed, row, *edge) for edge in inside]).float()
        values = [float(scores[layer, path][row, i, j]) for layer, path, i, j in inside]
        every.append(score_units(truth, values, f"{title}, prompt {row}"))
    return {
        name: fmean(float(getattr(score, name)) for score in every)
        for name in ("auroc", "average_precision", "exact", "units", "total")
    }
