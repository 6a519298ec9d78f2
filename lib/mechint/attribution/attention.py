"""Attention maps: how much each position reads of each other position, in attention and in every kind of recurrence.

====================== ============================================== =====================================
part                   weight with which i reads what j gives          what it multiplies
====================== ============================================== =====================================
attention              the pattern of each head                        its value v_j
selective scan         α_e[i, j] (:mod:`mechint.scan.attention_weights`)  u_j of the channel
matrix memory          M_h[i, j] · Δ_j or β_j (:func:`matrix_map`)     u_j of the head, before Δ or β
short convolution      the filter's tap w_e[i - j]                     u_j of the channel
====================== ============================================== =====================================

All are exact: the sum over j is what the part reads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..interventions.model import Model
from ..interventions.run import run
from ..models import gpt2, llama
from ..models.parts.attention import Attention
from ..models.parts.base import Part
from ..models.parts.delta import GatedDelta
from ..models.parts.latent_attention import LatentAttention
from ..models.parts.mamba1 import Mamba1Mixer
from ..models.parts.mamba2 import Mamba2Mixer
from ..models.parts.recurrence import Recurrence
from ..models.parts.shared import BlockThenMamba
from ..models.parts.short_conv import ShortConv
from ..models.placement import near
from ..scan.attention_weights import NEEDS, hidden_attention
from ..scan.checks import accumulate, check_range
from ..scan.matrix import Writes, matrix_map
from ..utils.errors import MechintError

Values = Mapping[str, Tensor]
Maps = tuple[Tensor, Tensor]
"""(|α|, max(0, ∂m/∂α · α)), means over channels or heads, [prompt, i, j]."""
NUMBERS = 1 << 24
"""Entries of the maps of a group of channels, held at once."""


# ---- one layer's maps --------------------------------------------------------------------------------------------


@torch.no_grad()
def attention_map(model: Model, tokens: Tensor, layer: int, reduce: str = "weights", **options: Any) -> Tensor:
    """The weights with which positions of one layer read each other, on tokens [batch, position].

    Args:
        model: From :func:`mechint.load`.
        layer: One with a selective scan, or with one matrix memory.
        reduce, options: As for :func:`hidden_attention`, which is given u, gate and W_out where it needs them. A
            matrix memory has ``weights`` (the sum over heads) and ``channels`` (with ``channels``, numbers of heads).

    Returns:
        [batch, i, j], or [batch, channel or head, i, j].

    Raises:
        MechintError: no such layer, no such part in it, or no such reduction.
    """
    check_range("attention_map", "layer", [layer], 0, len(model.layers))
    parts = scans(model, layer)
    if len(parts) != 1:
        raise MechintError(
            f"attention_map: layer {layer} of this {model.config.family} model has no recurrence; the weights of its "
            "attention are the site pattern"
        )
    if isinstance(parts[0], Recurrence):
        return memory_map(model, tokens, layer, parts[0], reduce, **options)
    part = near(parts[0], model.device)
    sites = [f"layers.{layer}.{name}" for name in ("dt", "B", "C", "u", "gate")]
    found = run(model, tokens, record=sites, logits_at=tokens.new_zeros(len(tokens), 1).long())
    values = {site.split(".")[2]: found[site] for site in sites} | {"W_out": part.out_proj.weight}
    options |= {name: values[name] for name in NEEDS.get(reduce, "").split() if name in values}
    return hidden_attention(
        values["dt"], -torch.exp(accumulate(part.A_log)), values["B"], values["C"], reduce, **options
    )


def memory_map(
    model: Model, tokens: Tensor, layer: int, part: Recurrence, reduce: str, channels: Sequence[int] | None = None
) -> Tensor:
    """:func:`attention_map` of a matrix memory."""
    if reduce not in ("weights", "channels") or (reduce == "channels") != (channels is not None):
        raise MechintError(
            f"attention_map: reduce is {reduce!r} with channels {channels}; of a matrix memory there are 'weights', "
            "and 'channels' with the numbers of heads; the terms of a direction are those of decompose"
        )
    needs = [f"layers.{layer}.{name}" for name in memory_needs(part)]
    values = run(model, tokens, record=needs, logits_at=tokens.new_zeros(len(tokens), 0).long()).values
    found = memory_weights(part, layer, values)
    if channels is None:
        return found.sum(1)
    return found[:, check_range("attention_map", "head", channels, 0, part.heads)]


def scans(model: Model, layer: int) -> list[Mamba1Mixer | Recurrence]:
    """The recurrences of a layer: selective scans and matrix memories."""
    found: list[Mamba1Mixer | Recurrence] = []
    for part in model.parts_of(layer).values():
        part = part.mamba if isinstance(part, BlockThenMamba) else part
        if isinstance(part, Mamba1Mixer | Recurrence):
            found.append(part)
    return found


CHANNELS = ("u", "scan_out", "y", "z", "gate", "gated")
"""Sites of a recurrence that have a unit for each of its channels."""


def channel_site(model: Model, layer: int, site: str) -> bool:
    """True if the units of a site are the channels of the layer's recurrence, heads times value channels."""
    kind = site.rpartition(".")[2]
    return bool(scans(model, layer)) and kind in CHANNELS


def selective_scan_of(model: Model, layer: int) -> Mamba1Mixer | None:
    """The part of a layer with a selective scan (a Mamba-1's mixer); None where there is none."""
    return next((part for part in scans(model, layer) if isinstance(part, Mamba1Mixer)), None)


def selective_layers(model: Model) -> list[int]:
    """The numbers of the layers that have a selective scan."""
    return [layer for layer in range(model.num_layers) if selective_scan_of(model, layer) is not None]


# ---- what a part reads -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reader:
    """A part, or a piece of one, in which positions read others.

    Attributes:
        needs: Sites of the layer whose values and gradients its maps are made of.
        maps: (number of the layer, values, gradients by site) -> the maps.
    """

    needs: tuple[str, ...]
    maps: Callable[[int, Values, Values], Maps]


@functools.singledispatch
def readers_of(part: nn.Module) -> list[Reader]:
    """The readers of a part of a layer; none where each position reads itself alone."""
    if isinstance(part, Part) and not part.mixes:
        return []
    raise MechintError(f"attention maps: no rule says what parts of the kind {type(part).__name__} read")


@readers_of.register(gpt2.MLP)
@readers_of.register(llama.MLP)
def no_readers(part: nn.Module) -> list[Reader]:
    return []


@readers_of.register(gpt2.Attention)
@readers_of.register(llama.Attention)
@readers_of.register(Attention)
@readers_of.register(LatentAttention)
def attention_readers(part: nn.Module) -> list[Reader]:
    def maps(layer: int, values: Values, slopes: Values) -> Maps:
        name = f"layers.{layer}.pattern"
        pattern, slope = values[name].double().cpu(), slopes[name].double().cpu()
        return pattern.mean(2), (pattern * slope).clamp(min=0).mean(2)

    return [Reader(("pattern",), maps)]


@readers_of.register
def scan_readers(part: Mamba1Mixer) -> list[Reader]:
    def maps(layer: int, values: Values, slopes: Values) -> Maps:
        at = lambda name: f"layers.{layer}.{name}"
        dt, B, C, u = (values[at(name)] for name in ("dt", "B", "C", "u"))
        A = -torch.exp(accumulate(part.A_log))
        rows, length, channels = dt.shape
        plain, guided = (torch.zeros(rows, length, length, dtype=torch.float64) for _ in range(2))
        count = max(1, NUMBERS // (rows * length * length))
        for some in torch.arange(channels).split(count):
            alpha = hidden_attention(dt, A, B, C, "channels", channels=some.tolist())  # [prompt, e, i, j]
            plain += alpha.abs().sum(1).double().cpu()
            slope = slopes[at("scan_out")][..., some].mT.unsqueeze(-1) * u[..., some].mT.unsqueeze(-2)
            guided += (alpha * slope).clamp(min=0).sum(1).double().cpu()
        return plain / channels, guided / channels

    return [Reader(("scan_out", "u", "dt", "B", "C"), maps)]


@readers_of.register
def memory_readers(part: Recurrence) -> list[Reader]:
    def maps(layer: int, values: Values, slopes: Values) -> Maps:
        slope = slopes[f"layers.{layer}.scan_out"].double()  # [prompt, i, h, v]
        each = memory_weights(part, layer, values).double()  # [prompt, h, i, j]
        # of a head's weight all its value channels read the same
        push = torch.einsum("bihv,bjhv->bhij", slope, values[f"layers.{layer}.u"].double())
        return each.abs().mean(1).cpu(), (each * push).clamp(min=0).mean(1).cpu()

    return [Reader(("scan_out", *memory_needs(part)), maps)]


@readers_of.register
def convolution_readers(part: ShortConv) -> list[Reader]:
    def maps(layer: int, values: Values, slopes: Values) -> Maps:
        u, slope = (x[f"layers.{layer}.{name}"].double().cpu() for x, name in ((values, "u"), (slopes, "conv")))
        taps = part.conv.weight[:, 0].double().cpu()  # [channel, tap], the last is the own position's
        rows, length, _ = u.shape
        plain, guided = (torch.zeros(rows, length, length, dtype=torch.float64) for _ in range(2))
        for back in range(min(taps.shape[1], length)):
            weight = taps[:, -1 - back]
            push = (weight * slope[:, back:] * u[:, : length - back]).clamp(min=0).mean(-1)  # [prompt, i - back]
            where = torch.arange(back, length)
            plain[:, where, where - back] = weight.abs().mean()
            guided[:, where, where - back] = push
        return plain, guided

    return [Reader(("conv", "u"), maps)]


@readers_of.register
def shared_readers(part: BlockThenMamba) -> list[Reader]:
    return [*readers_of(part.block.self_attn), *readers_of(part.mamba)]


def memory_needs(part: Recurrence) -> tuple[str, ...]:
    """The sites that the weights of a matrix memory are made of, and u, which they multiply."""
    return ("u", strength_of(part), "decay", "key", "query", *["erase"] * part.erases)


@functools.singledispatch
def strength_of(part: nn.Module) -> str:
    """The site that multiplies what a head writes, one number a head."""
    raise MechintError(f"attention maps: no rule says how strongly parts of the kind {type(part).__name__} write")


@strength_of.register
def step_of(part: Mamba2Mixer) -> str:
    return "dt"


@strength_of.register
def beta_of(part: GatedDelta) -> str:
    return "beta"


def memory_weights(part: Recurrence, layer: int, values: Values) -> Tensor:
    """The exact weight with which i reads u_j of each head, [batch, head, i, j]: scan_out_i = Σ_j weight u_j."""
    at = lambda name: accumulate(values[f"layers.{layer}.{name}"])
    erase, erased = (at("erase"), at("key")) if part.erases else (None, None)
    strength = at(strength_of(part))  # [batch, j, head]
    found = matrix_map(Writes(at("decay"), at("key"), at("u"), erase, erased), at("query"))
    return found * strength.transpose(1, 2).unsqueeze(-2)


# ---- maps of a layer ---------------------------------------------------------------------------------------------


def readers(model: Model, layer: int) -> list[Reader]:
    """The readers of all parts of a layer."""
    return [reader for part in model.parts_of(layer).values() for reader in readers_of(part)]


def map_sites(model: Model) -> list[str]:
    """The sites whose values and gradients :func:`attention_maps` is given for all layers."""
    return [
        f"layers.{layer}.{name}"
        for layer in range(model.num_layers)
        for name in dict.fromkeys(name for reader in readers(model, layer) for name in reader.needs) or ("resid_post",)
    ]


def attention_maps(model: Model, layer: int, values: Values, slopes: Values) -> Maps:
    """(|α|, max(0, ∂m/∂α · α)), means over the channels or heads, [prompt, i, j] in float64 on the CPU.

    A layer with several readers has the mean of their maps, with rows divided by their sums. In one with none each
    position reads itself.
    """
    parts = [near(part, model.device) for part in model.parts_of(layer).values()]
    found = [reader.maps(layer, values, slopes) for part in parts for reader in readers_of(part)]
    if len(found) == 1:
        return found[0]
    if not found:
        value = values[f"layers.{layer}.resid_post"]
        own = torch.eye(value.shape[1], dtype=torch.float64).expand(len(value), -1, -1)
        return own, own
    plain, guided = (torch.stack([normalised(maps[k]) for maps in found]).mean(0) for k in range(2))
    return plain, guided


def normalised(weights: Tensor) -> Tensor:
    """Rows divided by their sums; a row of zeros stays one."""
    return weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
