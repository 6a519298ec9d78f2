"""Norms, and models without them: in front of a layer's parts, and behind the last layer.

Weights of 1 are no absent norm: they divide by the size of the stream. Without a norm the stream is read as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import scan
from ...scan.checks import accumulate
from ...utils.errors import MechintError, shown

NORM_CLAIMS: dict[str, tuple[str, ...]] = {
    "norms": ("use_norm", "use_norms", "use_layernorm", "use_layer_norm", "use_ln", "layer_norms", "norms"),
    "final_norm": ("final_norm", "use_final_norm", "final_layer_norm", "use_ln_f", "use_norm_f"),
}
"""Fields of every family's configuration, and under which names a checkpoint's may state them."""
NORM_KINDS: dict[str, type] = {"norms": bool, "final_norm": bool}
KINDS = ("norm", "norm_type", "normalization")
"""Names of the kind of norm, of which ``none`` and ``identity`` are understood here."""
ABSENT = ("none", "identity", "no", "off", "null")
NEGATED = ("no_norm", "no_norms", "no_layernorm", "no_ln", "identity_norm", "identity_norms")
NORM_KEYS = frozenset({*NEGATED, "no_final_norm"})


def norm_kinds(*present: str) -> dict[str, tuple[str, ...]]:
    """Keys that name a kind of norm, with the values that are understood: the family's own, or none."""
    return dict.fromkeys(KINDS, (*present, *ABSENT))


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang & Sennrich 2019), computed in the precision of what it gets.

    Args:
        size: Entries of the last axis.
        eps: Added to the mean square.
        plus: Added to the weight: 1 where a checkpoint stores the weight less one (Gemma, Qwen3.5).
    """

    def __init__(self, size: int, eps: float, plus: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((size,), 1.0 - plus))
        self.eps = eps
        self.plus = plus

    def forward(self, r: Tensor) -> Tensor:  # [..., D]
        r = r * torch.rsqrt(r.square().mean(-1, keepdim=True) + self.eps)
        if self.plus:
            return (r * (self.plus + self.weight.to(r.dtype))).to(self.weight.dtype)
        return self.weight * r.to(self.weight.dtype)


class WeightlessRMSNorm(nn.Module):
    """Root-mean-square norm without a weight, computed in the precision of what it gets."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, r: Tensor) -> Tensor:  # [..., D]
        return r * torch.rsqrt(r.square().mean(-1, keepdim=True) + self.eps)


class LayerNorm(nn.Module):
    """Layer norm (Ba et al. 2016), computed in the precision of what it gets."""

    def __init__(self, size: int, eps: float, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if bias else None
        self.eps = eps

    def forward(self, r: Tensor) -> Tensor:  # [..., D]
        bias = None if self.bias is None else self.bias.to(r.dtype)
        return F.layer_norm(r, self.weight.shape, self.weight.to(r.dtype), bias, self.eps).to(self.weight.dtype)


class HeadsLayerNorm(nn.Module):
    """Layer norm of each head, with a weight of its own for every head and no bias (StableLM, Command R).

    Args:
        heads, size: Heads, and entries of each.
        eps: Added to the variance.
    """

    def __init__(self, heads: int, size: int, eps: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(LayerNorm(size, eps, bias=False) for _ in range(heads))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # [..., H, d]
        weight = torch.stack([cast(LayerNorm, norm).weight for norm in self.norms])
        return (F.layer_norm(x, x.shape[-1:], eps=self.eps) * weight.to(x.dtype)).to(weight.dtype)


class WeightlessLayerNorm(nn.Module):
    """Layer norm without weight and bias (OLMo), computed in the precision of what it gets.

    It gives the precision of the weights that read it.
    """

    weight = None
    bias = None

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.readers: list[nn.Module] = []  # in a list, so that torch does not register them as submodules

    def forward(self, r: Tensor) -> Tensor:  # [..., D]
        return F.layer_norm(r, r.shape[-1:], eps=self.eps).to(next(self.readers[0].parameters()).dtype)


class GatedRMSNorm(nn.Module):
    """RMS norm of each group of a gated tensor (Dao & Gu 2024, section 7; Yang et al. 2024).

    Args:
        size: Entries of the last axis.
        eps: Added to the mean square.
        groups: Groups that are normed apart.
        norm_first: True if the gate multiplies what the norm gives; False if the norm reads the product.
    """

    def __init__(self, size: int, eps: float, groups: int = 1, norm_first: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps, self.groups, self.norm_first = eps, groups, norm_first

    def forward(self, y: Tensor, gate: Tensor) -> Tensor:
        """y, gate [..., size] -> [..., size], computed in at least float32; the gate is behind its activation."""
        normed = scan.gated_norm(
            accumulate(y), accumulate(gate), accumulate(self.weight), self.eps, self.groups, self.norm_first
        )
        return normed.to(y.dtype)


def unit_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x [..., d] divided by its length; ``eps`` is added to the square (as in the published gated delta rules)."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)


class NoNorm(nn.Module):
    """In a norm's place: the stream as it is, in the precision of the weights that read it."""

    weight = None
    bias = None

    def __init__(self) -> None:
        super().__init__()
        self.readers: list[nn.Module] = []  # in a list, so that torch does not register them as submodules

    def forward(self, r: Tensor) -> Tensor:  # [..., D]
        return r.to(next(self.readers[0].parameters()).dtype)


def tell_readers(norm: nn.Module, reader: nn.Module) -> None:
    """Tells a norm without a weight, or in the place of one, which module reads behind it."""
    if isinstance(norm, NoNorm | WeightlessLayerNorm):
        norm.readers.append(reader)


def read_norms(config: Mapping[str, Any], said: dict[str, Any], where: str) -> dict[str, Any]:
    """``said`` with what other words of a configuration mean for ``norms`` and ``final_norm``.

    Where a kind of norm is said to be none, there is none behind the last layer either, unless that is said.

    Raises:
        MechintError: two words contradict each other, or a value is no switch.
    """
    found = dict(said)
    for name in (*NEGATED, "no_final_norm"):
        value = config.get(name)
        if value is None:
            continue
        if not isinstance(value, bool):
            raise MechintError(f"{where}: the configuration has {name} = {shown(value)}, which is no bool; correct it")
        for field in ("final_norm",) if name == "no_final_norm" else ("norms",):
            if found.get(field, not value) != (not value):
                raise MechintError(f"{where}: the configuration has {name} = {value} and says the contrary elsewhere")
            found[field] = not value
    for name in KINDS:
        if isinstance(config.get(name), str) and config[name].lower() in ABSENT:
            if found.get("norms", False):
                raise MechintError(f"{where}: the configuration has {name} = {shown(config[name])} and norms; which?")
            found["norms"] = False
    if found.get("norms") is False:
        found.setdefault("final_norm", False)
    return found


def said_norms(config: Any) -> dict[str, bool]:
    """The keys of a ``config.json`` for a model without norms; none for one with norms, as other programs expect."""
    return {} if config.norms and config.final_norm else {"use_norm": config.norms, "final_norm": config.final_norm}
