"""SSM circuits: the fewest units of a recurrence that still do what the whole model does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ...interventions.model import Model
from ...interventions.unit_kinds import MEMORY_UNITS, SSM_UNITS
from ...interventions.units import Units, kind_named
from ...tasks.config import TaskConfig
from ...utils.options import option
from ..base import Analysis
from .analyzer import CircuitAnalyzer
from .options import BudgetOptions, method_option, refuse_method, refuse_without_twins
from .pages import PAGES
from .results import summary
from .time_estimate import work

KINDS = {**SSM_UNITS, "head": MEMORY_UNITS["ssm_head"]}
"""Kinds of unit by the option's words; those of matrix memories (Mamba-2, delta rules) are called ``ssm_…``."""


@dataclass(frozen=True)
class SSMCircuitConfig(BudgetOptions):
    """The search for the circuit, and its evidence."""

    unit: str = option(
        "channel",
        "Units that are kept or dropped: SSM channels, heads of a Mamba-2 or delta rule, modes (entries of the state "
        "as it is read), the paths x z dt B C of a Mamba-1's layer, or layers",
        choices=("channel", "head", "mode", "path", "layer"),
    )
    method: str = method_option(KINDS)


class SSMCircuitAnalyzer(CircuitAnalyzer[SSMCircuitConfig]):
    """Circuits of channels, heads, modes, paths or layers of models with a recurrence."""

    def __init__(
        self,
        model: Model,
        config: SSMCircuitConfig,
        device: str | torch.device = "cpu",
        **others: Any,
    ) -> None:
        super().__init__(
            model, config, device, units=Units(model, kind_named(model, f"ssm_{config.unit}", config.unit)), **others
        )


def refuse(config: SSMCircuitConfig, task: TaskConfig) -> str | None:
    """Says why this task cannot be analysed so; None when it can."""
    return refuse_without_twins(config, task) or refuse_method(config, KINDS[config.unit], task)


ANALYSIS = Analysis(
    name="ssm",
    title="SSM circuit",
    config=SSMCircuitConfig,
    analyzer=SSMCircuitAnalyzer,
    aliases=("mamba-circuit",),
    needs=("readout",),
    refuse=refuse,
    work=work,
    summary=summary,
    default=True,
    **PAGES,
)
