"""The dynamics of a layer with a recurrence in numbers: its modes, and the modes that groups of its channels use.

:mod:`.modes` measures a selective scan, :mod:`.memory_modes` a matrix memory, whose modes are the key channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..scan.selective import decays
from ..utils.statistics import ClusterBootstrap
from . import memory_modes, modes
from .jacobians import Linearised
from .memory_jacobians import LinearisedMemory
from .modes import ModeGram, effective_order, memory_of


@dataclass(frozen=True)
class Measured(ABC):
    """Numbers of a layer from which its dynamics are described.

    Attributes:
        tau: Time constants, [channel, mode].
        variation: Spread of the time constants over positions and prompts, [channel].
        hankel: Hankel singular values, means over prompts, [channel, mode].
        memory: Time constants by use, [prompt, channel].
        shown: Entries of the report about the whole layer, beside the rest.
    """

    gram: ModeGram
    tau: Tensor
    variation: Tensor
    hankel: Tensor
    memory: Tensor
    shown: dict[str, Any]

    @abstractmethod
    def lost(self, channels: Tensor) -> tuple[Tensor, Tensor]:
        """The mean square that each mode's dropping changes of some channels, and with the others refitted, [mode]."""


class OfScan(Measured):
    """Numbers of a selective scan."""

    @classmethod
    def of(cls, local: Linearised, at: int) -> OfScan:
        scales = modes.time_scales(local)
        shown = {
            "tau": scales["mean"].mean(0).tolist(),
            "decay_now": decays(local.dt, local.A).double().mean((0, 1)).mean(0).tolist(),
        }
        return cls(
            modes.mode_gram(local), scales["mean"], scales["variation"], modes.gramians(local, at).hankel().mean(0),
            modes.effective_memory(local), shown,
        )  # fmt: skip

    def lost(self, channels: Tensor) -> tuple[Tensor, Tensor]:
        count, size = self.gram.gram.shape[:2]
        singles = torch.eye(size).expand(len(channels), size, size)  # [channel, dropped mode, state]
        whole = torch.zeros(size, count, size, dtype=torch.float64)
        whole[:, channels] = singles.transpose(0, 1).double()
        lost, refitted = (f(whole)[:, channels].sum(-1) for f in (self.gram.drop, self.gram.drop_refitted))
        return lost, refitted


class OfMemory(Measured):
    """Numbers of a matrix memory. Its time constants are the decay's; ``memory`` has what is erased in it."""

    @classmethod
    def of(cls, local: LinearisedMemory, at: int) -> OfMemory:
        scales = memory_modes.time_scales(local)
        heads = scales["heads"]  # [head, key or 1]
        by_key = heads.shape[-1] > 1
        decay = local.wide_decay().double().mean((0, 1))
        shown = {
            "tau": (heads.mean(0) if by_key else heads[:, 0]).tolist(),
            "tau_of": "key channel" if by_key else "head",
            "decay_now": (decay.mean(0) if by_key else decay[:, 0]).tolist(),
        }
        hankel = memory_modes.per_channel(local, memory_modes.gramians(local, at).hankel().mean(0))
        return cls(
            memory_modes.mode_gram(local), scales["mean"], scales["variation"], hankel,
            memory_modes.effective_memory(local), shown,
        )  # fmt: skip

    def lost(self, channels: Tensor) -> tuple[Tensor, Tensor]:
        alone, refitted = memory_modes.dropped_alone(ModeGram(self.gram.gram[channels], self.gram.count))
        return alone.sum(-1), refitted.sum(-1)


def effective_memory(local: Linearised | LinearisedMemory) -> Tensor:
    """Time constant of each channel in tokens, [prompt, channel]."""
    if isinstance(local, LinearisedMemory):
        return memory_modes.effective_memory(local)
    return modes.effective_memory(local)


@torch.no_grad()
def dynamics(
    local: Linearised | LinearisedMemory,
    groups: dict[str, list[int]],
    clusters: Sequence[int] | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Describes the modes of a layer, and the modes that each group of channels uses.

    Numbers without an interval are of this very run (``n`` prompts): counts and means over its positions.

    Args:
        groups: Channels by name.
        clusters: The template of each prompt, which the bootstrap draws together; None where each is its own.
        draws, seed: Draws and seed of the bootstrap of the time constants.
    """
    at = local.length // 2
    measured = OfMemory.of(local, at) if isinstance(local, LinearisedMemory) else OfScan.of(local, at)
    gram, memory, order = measured.gram, measured.memory, effective_order(measured.hankel)
    singular = measured.hankel.mean(0).tolist()
    rank = sum(value > 0 for value in singular)
    bootstrap = ClusterBootstrap(range(len(memory)) if clusters is None else clusters, draws, seed)
    entries = {}
    for name, channels in {**groups, "all channels": list(range(len(order)))}.items():
        mine = torch.as_tensor(channels)
        tau, use = measured.tau[mine].flatten(), gram.use[mine].flatten()
        energy = float(gram.energy[mine].sum())
        lost, refitted = (square / max(energy, 1e-300) for square in measured.lost(mine))
        order_by_tau = tau.argsort()
        cumulative = (use[order_by_tau] / use.sum().clamp(min=1e-300)).cumsum(0)
        half = int((cumulative >= 0.5).nonzero()[0]) if len(cumulative) and float(cumulative[-1]) > 0.5 else 0
        entries[name] = {
            "channels": [int(c) for c in channels],
            "memory": memory_of(memory, channels, local.length, bootstrap),
            "memory_tokens": [float(m) for m in memory.mean(0)[mine]],
            "order": [float(o) for o in order[mine]],
            "tau_used_median": float(tau[order_by_tau][half]),
            "tau_variation": [float(v) for v in measured.variation[mine]],
            "mode_use": gram.use[mine].mean(0).tolist(),
            "drop_error": lost.tolist(),
            "drop_error_refitted": refitted.tolist(),
        }
    return {
        "position": at,
        "n": int(local.u.shape[0]),
        "length": local.length,
        "states": gram.gram.shape[-1],
        **measured.shown,
        "hankel": singular[:rank],
        "hankel_rank": rank,
        "groups": entries,
    }
