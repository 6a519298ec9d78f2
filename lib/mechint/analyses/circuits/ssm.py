"""SSM circuits: the fewest units of a Mamba that still do what the whole model does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ...interventions.model import Model
from ...interventions.units import SSM_UNITS, Units
from ...utils.options import option
from ..base import Analysis
from .analyzer import CircuitAnalyzer, summary
from .options import CircuitOptions, refuse_without_twins
from .pages import PAGES
from .work import work


@dataclass(frozen=True)
class SSMCircuitConfig(CircuitOptions):
    """How the circuit is searched and judged."""

    unit: str = option(
        "channel",
        "What is kept or dropped: SSM channels, (channel, state) modes, the paths x z dt B C of a layer, or layers",
        choices=("channel", "mode", "path", "layer"),
    )


class SSMCircuitAnalyzer(CircuitAnalyzer):
    """Circuits of SSM channels, (channel, state) modes, paths or layers of a Mamba."""

    def __init__(
        self,
        model: Model,
        config: SSMCircuitConfig,
        device: str | torch.device = "cpu",
        **others: Any,
    ) -> None:
        super().__init__(model, config, device, units=Units(model, SSM_UNITS[config.unit]), **others)


ANALYSIS = Analysis(
    name="ssm",
    title="SSM circuit",
    config=SSMCircuitConfig,
    analyzer=SSMCircuitAnalyzer,
    aliases=("mamba-circuit",),
    families=("mamba",),
    refuse=refuse_without_twins,
    work=work,
    summary=summary,
    default=True,
    **PAGES,
)
