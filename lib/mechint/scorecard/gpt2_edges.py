"""Ways of scoring the edges of a GPT-2: of flows one number for each layer, head, reader and source; of links one for
each writer and reader of :mod:`mechint.ground_truth.gpt2.links`."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ..analyses.circuits.methods.single_units import exchange_effects
from ..analyses.metrics import answer_metric
from ..ground_truth import Compiled
from ..ground_truth.edge_masks import Cell, Edge
from ..ground_truth.gpt2.links import kinds, later, reads, writes
from ..interventions.edits import Edit
from ..interventions.gradients import gradients
from ..interventions.model import Model, having
from ..interventions.run import run
from ..interventions.units import Units
from ..tasks import Prompts
from ..utils.errors import MechintError

# ---- flows -------------------------------------------------------------------------------------------------------


def sites(model: Model, kind: str) -> list[str]:
    return [f"layers.{layer}.{kind}" for layer in having(model, kind)]


def by_head(model: Model, maps: list[Tensor]) -> dict[Cell, Tensor]:
    """Maps of each layer that attends [n, i, head, j] -> [n, i, j] of each head."""
    pairs = zip(having(model, "pattern"), maps, strict=True)
    return {(k, f"h{h}"): part for k, square in pairs for h, part in enumerate(square.unbind(2))}


@torch.no_grad()
def attention(compiled: Compiled, prompts: Prompts, asked: list[Edge]) -> dict[Cell, Tensor]:
    """The weights of attention themselves."""
    names = sites(compiled.model, "pattern")
    values = run(compiled.model, prompts.tokens, names).values
    return by_head(compiled.model, [values[name] for name in names])


@torch.no_grad()
def attention_norm(compiled: Compiled, prompts: Prompts, asked: list[Edge]) -> dict[Cell, Tensor]:
    """‖what j gives i through a head‖: the weight times the length of the projected value (Kobayashi et al. 2020)."""
    model = compiled.model
    names = sites(model, "pattern"), sites(model, "v")
    values = run(model, prompts.tokens, [*names[0], *names[1]]).values
    maps = []
    for layer, pattern, v in zip(model.layers, *names, strict=True):
        projection = layer.attn.c_proj.weight.unflatten(1, (-1, model.config.d_head))  # [D, H, d]
        length = torch.einsum("nlhd,mhd->nlhm", values[v], projection).norm(dim=-1)  # [n, j, H]
        maps.append(values[pattern] * length.transpose(1, 2).unsqueeze(1))
    return by_head(model, maps)


def attention_gradient(compiled: Compiled, prompts: Prompts, asked: list[Edge]) -> dict[Cell, Tensor]:
    """|∂(logit difference)/∂(weight of attention) · weight|: a linear estimate of the cut at ``pattern``."""
    last, names = prompts.last(), sites(compiled.model, "pattern")
    metric = answer_metric("logit_diff", last)
    values, slopes = gradients(compiled.model, last.tokens, names, metric, logits_at=last.positions)
    return by_head(compiled.model, [(values[name] * slopes[name]).abs() for name in names])


# ---- links -------------------------------------------------------------------------------------------------------

WRITES = ("head_out", "mlp_post")
READS = ("q", "k", "v", "mlp_pre")
NORMED = {"ln_1": "resid_pre", "ln_2": "resid_mid"}
"""The stream that each norm of a layer takes its deviation from."""


def weights(model: Model, i: int, j: int) -> Tensor:
    """W of the readers · norm weights · W of the writers less its mean, as LayerNorm takes it, [writer, reader]."""
    written = writes(model, i)
    return (written - written.mean(1, keepdim=True)) @ reads(model, j).T


def products(compiled: Compiled, prompts: Prompts, asked: list[Edge]) -> Tensor:
    """|W of the reader · norm weights · W of the writer|, from the weights alone."""
    model = compiled.model
    there = later(model)
    found = torch.zeros(there.shape)
    for i in range(model.config.n_layer):
        for j in range(i, model.config.n_layer):
            found[i, :, j] = weights(model, i, j).abs()
    return found * there


def joined(values: Any, layer: int, names: tuple[str, ...]) -> Tensor:
    """Concatenates the values of several sites of a layer, heads laid out, [n, L, unit]."""
    return torch.cat([values[f"layers.{layer}.{name}"].flatten(2) for name in names], -1)


def attribution(compiled: Compiled, prompts: Prompts, asked: list[Edge], *, points: int = 5) -> Tensor:
    """(what the writer gives in the twin's run less in the clean one) · ∂m/∂(the reader), summed over tokens.

    Edge attribution patching with gradients averaged on the way to the twin's embeddings (Hanna et al. 2024), the size
    of the mean over prompts; the deviation that each norm divides by is held.
    """
    model, last = compiled.model, prompts.last()
    if last.twins is None:
        raise MechintError("edge attribution needs counterfactual twins")
    given = [site for kind in (*WRITES, *NORMED.values()) for site in sites(model, kind)]
    clean, twin = (run(model, tokens, ["embed", *given]).values for tokens in (last.tokens, last.twins))
    slopes: dict[str, Tensor] = {}
    for k in range(points):
        share = (k + 0.5) / points
        start = Edit("embed", "replace", clean["embed"] + share * (twin["embed"] - clean["embed"]))
        names = [site for kind in READS for site in sites(model, kind)]
        _, found = gradients(model, last.tokens, names, answer_metric("logit_diff", last), [start], last.positions)
        slopes = {name: slopes.get(name, 0.0) + found[name] / points for name in names}
    there = later(model)
    scores = torch.zeros(there.shape, dtype=clean["embed"].dtype)
    for j in range(model.config.n_layer):
        inner, outer = (
            (clean[f"layers.{j}.{stream}"].var(-1, correction=0, keepdim=True) + model.config.norm_eps).sqrt()
            for stream in NORMED.values()
        )  # [n, L, 1]
        slope = torch.cat([joined(slopes, j, READS[:3]) / inner, joined(slopes, j, READS[3:]) / outer], -1)
        for i in range(j + 1):
            change = joined(twin, i, WRITES) - joined(clean, i, WRITES)
            through = torch.einsum("nlw,nlr->wr", change, slope) / len(last)
            scores[i, :, j] = (through * weights(model, i, j)).abs()
    return scores * there


@functools.lru_cache(maxsize=1)
def patched(model: Model, prompts: Prompts) -> Tensor:
    """The effect of mean-ablating each writer on each reader after it, [layer, writer, layer, reader].

    Root mean square over tokens in standard deviations of the reader, the mean over prompts.
    """
    layers, (writers, _) = range(model.config.n_layer), kinds(model)
    read = [site for kind in READS for site in sites(model, kind)]
    written = [site for kind in WRITES for site in sites(model, kind)]
    nowhere, there = prompts.positions[:, :0], later(model)
    with torch.no_grad():
        clean = run(model, prompts.tokens, [*read, *written], logits_at=nowhere).values
        spread = [joined(clean, j, READS).std((0, 1)).clamp(min=torch.finfo().tiny) for j in layers]
        found = torch.zeros(there.shape)
        for i in layers:
            for w in range(writers["mlp"].stop):
                if not there[i, w].any():  # a neuron of the last layer
                    continue
                site, unit = unit_of(model, i, w)
                fill = clean[site].mean(0)[(slice(None), *unit)]  # [L]
                edit = Edit(site, "replace", fill[:, None], units=[unit])
                moved = run(model, prompts.tokens, read, [edit], logits_at=nowhere).values
                for j in range(i, model.config.n_layer):
                    change = joined(moved, j, READS) - joined(clean, j, READS)
                    found[i, w, j] = change.square().mean(1).sqrt().mean(0) / spread[j]
    return found * there


def unit_of(model: Model, layer: int, writer: int) -> tuple[str, Any]:
    """The site of a writer and its unit there: (head, dimension) or (neuron,)."""
    if writer < model.config.d_model:
        return f"layers.{layer}.head_out", divmod(writer, model.config.d_head)
    return f"layers.{layer}.mlp_post", (writer - model.config.d_model,)


def traffic(compiled: Compiled, prompts: Prompts, asked: list[Edge]) -> Tensor:
    return patched(compiled.model, prompts)


def traffic_to_the_answer(compiled: Compiled, prompts: Prompts, asked: list[Edge]) -> Tensor:
    """The change of a reader times what that does to the answer: its exact effect with the twin's values."""
    model = compiled.model
    each = [Units(model, model.unit_kinds[kind]) for kind in ("q", "kv", "mlp")]
    effects = [
        exchange_effects(model, prompts, units, each=True).abs().mean(1).float().view(model.config.n_layer, -1)
        for units in each
    ]
    return patched(model, prompts) * torch.cat(effects, 1)
