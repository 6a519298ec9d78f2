"""Computes Mamba-1's mixer where a circuit drops channels: only those that are left.

A dropped channel is replaced at ``u`` and at ``gated`` (:data:`mechint.interventions.unit_kinds.SSM_UNITS`), the only
two places where others read it, so nothing between the two needs it. With k of E channels left it computes

1. k channels of the projection in, their convolution, scan and gate;
2. Δ, B, C and the output as W_k v_k + W f, with v_k the values of the k channels and f those that replace the others. f
   is most often the same for all prompts, and W f is computed once.

This is exact: only the order of sums differs from the whole mixer's, which is the reference in the tests.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import scan
from ...interventions.edits import Edit
from ...interventions.taps import Scope
from ...scan.checks import accumulate

LEAST_WORK = 1 << 26
"""Multiply-adds of a mixer below which choosing channels costs as much as it saves."""
MOST_KEPT = 0.5
"""Share of the channels above which all are computed."""
READ = ("u", "gated")
"""Sites where a channel is read by others."""


class Memory(Protocol):
    """The memory of a mixer of the positions before."""

    conv: Tensor  # [B, K-1, E]
    state: Tensor  # [B, E, N]

    def whole(self) -> Memory: ...


class Mixer(Protocol):
    """The parts of :class:`.mamba1.Mamba1Mixer` that its kept channels need."""

    sizes: list[int]
    in_proj: nn.Linear
    conv1d: Any
    x_proj: nn.Linear
    dt_proj: nn.Linear
    A_log: nn.Parameter
    D: nn.Parameter
    out_proj: nn.Linear

    def normed_selection(self, selected: Tensor) -> list[Tensor]: ...


def kept_channels(mixer: Mixer, n: Tensor, at: Scope, inside: tuple[str, ...]) -> Tensor | None:
    """The numbers of the channels that must be computed, ascending; None where the whole mixer runs.

    Args:
        n: The mixer's input [B, L, D].
        inside: Sites between the projections.
    """
    channels, states = mixer.A_log.shape
    entries = 3 * channels * n.shape[-1] + channels * (2 * mixer.sizes[0] + 2 * states)
    if at.goes_on or n.shape[0] * n.shape[1] * entries < LEAST_WORK or torch.is_autocast_enabled(n.device.type):
        return None
    if any(at.wants(name) for name in inside if name != "u") or any(at.records(name) for name in READ):
        return None
    if at.cuts("out"):
        return None
    needed = torch.zeros(channels, dtype=torch.bool, device=n.device)
    for name in READ:
        edits = at.edits(name)
        shut = edits[0].replaces_always(channels) if edits else None
        if shut is None or (torch.is_grad_enabled() and any(edit.asks_gradient for edit in edits[1:])):
            return None
        needed |= ~shut.to(n.device)
    kept = needed.nonzero().flatten()
    return kept if len(kept) <= MOST_KEPT * channels else None


def mix_kept(mixer: Mixer, n: Tensor, cache: Memory, at: Scope, kept: Tensor) -> Tensor:
    """The mixer's output [B, L, D], from the channels ``kept`` [k] alone; it leaves no memory."""
    channels, module = len(mixer.D), cast(nn.Module, mixer)
    if not len(kept):
        nothing = n.new_zeros(*n.shape[:-1], 0)
        for site in READ:
            whole = spread(nothing, kept, channels, at, site)
        return reduced(mixer.out_proj, whole, kept, alike(at, "gated"))
    cache = cache.whole()
    both = torch.cat([kept, channels + kept])
    x, z = F.linear(n, *some(mixer.in_proj, both)).chunk(2, dim=-1)  # [B, L, k]
    weight, bias = some(mixer.conv1d, kept)
    taps = weight[:, 0], bias
    memory, state = cache.conv.index_select(2, kept), cache.state.index_select(1, kept)
    A, D = -torch.exp(accumulate(mixer.A_log.index_select(0, kept))), mixer.D.index_select(0, kept)
    conv = scan.convolved(x, memory, *taps) if scan.one_pass(x, module) else scan.silu(scan.convolve(x, memory, *taps))
    u = spread(conv, kept, channels, at, "u")  # [B, L, E]
    low, B, C = mixer.normed_selection(reduced(mixer.x_proj, u, kept, alike(at, "u")))
    u = u.index_select(-1, kept)
    step = F.linear(low, *some(mixer.dt_proj, kept))  # [B, L, k]
    if scan.one_pass(u, module):
        inner, _ = scan.gated(u, step, A, B, C, D, z, state, False)
    else:
        u, dt, B, C = (accumulate(tensor) for tensor in (u, scan.softplus(step), B, C))
        read, _ = scan.selective_scan(u, dt, A, B, C, state)
        inner = (read + accumulate(D) * u).to(x.dtype) * scan.silu(z)
    return reduced(mixer.out_proj, spread(inner, kept, channels, at, "gated"), kept, alike(at, "gated"))


def some(module: nn.Module, rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """Some rows of a module's weight, and of its bias if it has one."""
    weight, bias = cast(Tensor, module.weight), cast("Tensor | None", module.bias)
    return weight.index_select(0, rows), None if bias is None else bias.index_select(0, rows)


def spread(part: Tensor, kept: Tensor, channels: int, at: Scope, site: str) -> Tensor:
    """The values of a site [B, L, E] behind its edits, from those of some channels [B, L, k]."""
    whole = part.new_zeros(*part.shape[:-1], channels)
    return at(site, whole.index_copy(-1, kept, part))


def alike(at: Scope, site: str) -> bool:
    """True if a site's dropped channels are known to be the same for all prompts: of a single mask with one fill."""
    edit, *others = at.edits(site)
    if others or not isinstance(edit, Edit):
        return False
    return not isinstance(edit.fill, Tensor) or edit.fill.dim() < 3 or len(edit.fill) == 1


def reduced(linear: nn.Linear, value: Tensor, kept: Tensor, alike: bool) -> Tensor:
    """``linear`` of ``value`` [B, L, E], whose channels but those kept are mostly the same for all prompts.

    A dropped channel that differs between prompts, because an edit put another value there, is counted with those kept.
    """
    found, columns = value.detach(), kept
    apart = torch.zeros(value.shape[-1], dtype=torch.bool, device=value.device)
    if not alike:
        apart = (found != found[:1]).flatten(0, 1).any(0)
        columns = apart.index_fill(0, kept, True).nonzero().flatten()
    if len(columns) > MOST_KEPT * len(apart):  # each prompt has replacements of its own
        return linear(value)
    fixed = found[:1].index_fill(-1, columns, 0.0)
    if bool((fixed == fixed[:, :1]).all()):
        fixed = fixed[:, :1]
    return linear(fixed) + F.linear(value.index_select(-1, columns), linear.weight.index_select(1, columns))
