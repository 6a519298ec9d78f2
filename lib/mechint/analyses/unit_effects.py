"""Effects of the single units of a layer: each ablated alone, each kept alone, and estimated by one backward pass.

A unit is one number for each token at one site: a channel of a Mamba's ``x``, ``u``, ``y``, ``gate`` or ``gated``, an
entry of what a mixer adds (``out``), an MLP neuron, or a whole attention head at ``head_out``. With m the metric of a
prompt, m_∅ with all units of this layer's site ablated, and m_-e, m_+e with unit e alone ablated or kept:

    necessary_e = m - m_-e,    sufficient_e = m_+e - m_∅,    estimate_e = Σ_t ∂m/∂a_t[e] · (a_t[e] - ablated_t[e]).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..interventions.edits import Edit
from ..interventions.gradients import gradients
from ..interventions.model import Model
from ..interventions.run import run
from ..interventions.sweep import sweep
from ..interventions.unit_kinds import Block, UnitKind
from ..interventions.units import Units
from ..tasks import Prompts
from .ablation import Ablation
from .metrics import answer_metric

METRICS = ("answer_logprob", "logit_diff")


def unit_kind(kind: str) -> UnitKind:
    """One unit for each entry of a site; at ``head_out`` for each head."""
    return UnitKind(kind, (Block((kind,), axes=1),), f"one unit of {kind}")


@dataclass(frozen=True)
class Group:
    """The units of one site of one layer."""

    site: str
    units: int

    @property
    def kind(self) -> str:
        return self.site.rpartition(".")[2]


class Effects:
    """The units of some sites and layers, with their replacements.

    Args:
        model: From :func:`mechint.load`, frozen.
        kinds: Sites of a layer.
        layers: Layers.
        ablation: One of :data:`mechint.analyses.ablation.ABLATIONS`.
        reference: Batches of discovery prompts, for means.
        aligned: True if a position means the same in every prompt.
        metric: One of :data:`METRICS`.
        memory_mib: Memory of one sweep, beside the weights.
    """

    def __init__(
        self, model: Model, kinds: list[str], layers: list[int], ablation: str, reference: list[Prompts], aligned: bool,
        metric: str, memory_mib: float = 1024,
    ) -> None:  # fmt: skip
        self.model, self.metric, self.memory_mib = model, metric, memory_mib
        self.groups = [
            Group(site, model.sites[site].units[0])
            for kind in kinds
            for layer in layers
            if (site := f"layers.{layer}.{kind}") in model.sites
        ]
        """The units of each kind of site and of each layer that has it."""
        self.ablations = {
            kind: Ablation(model, Units(model, unit_kind(kind)), ablation, reference, aligned) for kind in kinds
        }

    def fills(self, prompts: Prompts) -> dict[str, Any]:
        """The replacement of the units of each site; broadcasts to [prompt, position, unit …]."""
        found: dict[str, Any] = {}
        for ablation in self.ablations.values():
            found |= ablation.fills(prompts)
        return found

    def clean(self, prompts: Prompts) -> Tensor:
        """The metric of the model as it is, [prompt]."""
        return self.sweep(prompts, [[]])[0]

    def sweep(self, prompts: Prompts, cells: list[list[Edit]], title: str = "units") -> Tensor:
        """The metric in each cell, [cell, prompt], in float64."""
        return sweep(
            self.model, prompts.tokens, cells, answer_metric(self.metric, prompts), logits_at=prompts.positions,
            memory_mib=self.memory_mib, title=title,
        ).double()  # fmt: skip

    def necessary(self, prompts: Prompts, group: Group, fill: Any, units: list[int] | None = None) -> Tensor:
        """Computes the effect of ablating each unit alone, [unit, prompt]."""
        chosen = range(group.units) if units is None else units
        cells = [[Edit(group.site, "replace", part(fill, e, self.axes(group)), units=[e])] for e in chosen]
        found = self.sweep(prompts, [*cells, []], f"ablating {group.site}")
        return found[-1] - found[:-1]

    def sufficient(self, prompts: Prompts, group: Group, fill: Any, units: list[int] | None = None) -> Tensor:
        """Computes the effect of keeping each unit alone while the others of its site are ablated, [unit, prompt]."""
        chosen = range(group.units) if units is None else units
        cells = [[self.mask(group, [e], fill)] for e in chosen]
        found = self.sweep(prompts, [*cells, [self.mask(group, [], fill)]], f"keeping one of {group.site}")
        return found[:-1] - found[-1]

    def mask(self, group: Group, kept: Any, fill: Any) -> Edit:
        """The edit that keeps these units of a site and ablates the others."""
        index = torch.as_tensor(kept, dtype=torch.long, device=self.model.device)
        value = torch.zeros(group.units, device=self.model.device).index_fill(0, index, 1.0)
        return Edit(group.site, "mask", value.reshape(-1, *[1] * (self.axes(group) - 1)), fill=fill)

    def axes(self, group: Group) -> int:
        """Unit axes of a site: 2 at ``head_out``, whose units are heads."""
        return len(self.model.sites[group.site].units)

    def estimates(self, prompts: Prompts, fills: dict[str, Any]) -> dict[str, Tensor]:
        """Attribution patching's estimate of ``necessary`` for all units of all groups, [unit, prompt] by site."""
        sites = [group.site for group in self.groups]
        values, slopes = gradients(
            self.model, prompts.tokens, sites, answer_metric(self.metric, prompts), logits_at=prompts.positions
        )
        return {site: along(slopes[site], values[site], fills[site]) for site in sites}

    def kept_estimates(self, prompts: Prompts, group: Group, fill: Any) -> Tensor:
        """Estimates ``sufficient`` by gradients, from the run with all units of a group ablated, [unit, prompt]."""
        value_of = answer_metric(self.metric, prompts)
        with torch.no_grad():
            clean = run(self.model, prompts.tokens, [group.site], logits_at=prompts.positions[:, :0])[group.site]
        empty = [self.mask(group, [], fill)]
        _, slopes = gradients(self.model, prompts.tokens, [group.site], value_of, empty, prompts.positions)
        return along(slopes[group.site], clean, fill)


def along(slope: Tensor, value: Tensor, fill: Any) -> Tensor:
    """Σ over tokens of slope · (value - fill), [unit, prompt] in float64; of heads summed over their dimensions."""
    change = (
        slope.double() * (value - torch.as_tensor(fill, device=value.device)).double()
    )  # [prompt, position, unit …]
    return change.sum(1).flatten(2).sum(-1).T.cpu() if change.dim() > 3 else change.sum(1).T.cpu()


def part(fill: Any, unit: int, axes: int) -> Any:
    """The replacement of one unit, with its axis kept; a number serves every unit."""
    return fill if not isinstance(fill, Tensor) else fill.narrow(fill.dim() - axes, unit, 1)
