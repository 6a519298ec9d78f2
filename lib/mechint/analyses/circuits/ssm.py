"""SSM circuits: the fewest units of a Mamba that still do what the whole model does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ...interventions.model import Model
from ...interventions.unit_kinds import SSM_UNITS
from ...interventions.units import Units
from ...tasks.config import TaskConfig
from ...utils.options import option
from ..base import Analysis
from .analyzer import CircuitAnalyzer
from .options import BudgetOptions, method_option, refuse_method, refuse_without_twins
from .pages import PAGES
from .results import summary
from .work import work


@dataclass(frozen=True)
class SSMCircuitConfig(BudgetOptions):
    """The search for the circuit, and its evidence."""

    unit: str = option(
        "channel",
        "Units that are kept or dropped: SSM channels, (channel, state) modes, the paths x z dt B C of a layer, or "
        "layers",
        choices=("channel", "mode", "path", "layer"),
    )
    method: str = method_option(SSM_UNITS)


class SSMCircuitAnalyzer(CircuitAnalyzer[SSMCircuitConfig]):
    """Circuits of SSM channels, (channel, state) modes, paths or layers of a Mamba."""

    def __init__(
        self,
        model: Model,
        config: SSMCircuitConfig,
        device: str | torch.device = "cpu",
        **others: Any,
    ) -> None:
        super().__init__(model, config, device, units=Units(model, SSM_UNITS[config.unit]), **others)


def refuse(config: SSMCircuitConfig, task: TaskConfig) -> str | None:
    """Says why this task cannot be analysed so; None when it can."""
    return refuse_without_twins(config, task) or refuse_method(config, SSM_UNITS[config.unit], task)


ANALYSIS = Analysis(
    name="ssm",
    title="SSM circuit",
    config=SSMCircuitConfig,
    analyzer=SSMCircuitAnalyzer,
    aliases=("mamba-circuit",),
    families=("mamba",),
    refuse=refuse,
    work=work,
    summary=summary,
    default=True,
    **PAGES,
)
