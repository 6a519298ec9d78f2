"""Circuits of hybrids: units of several kinds side by side, such as attention heads and heads of a recurrence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ...interventions.model import Model
from ...interventions.unit_kinds import EVERY_KIND, UnitKind, side_by_side
from ...interventions.units import Units, kind_named
from ...tasks.config import TaskConfig
from ...utils.errors import MechintError, did_you_mean
from ...utils.options import listed, named, option
from ..base import Analysis
from .analyzer import CircuitAnalyzer
from .options import BudgetOptions, method_option, refuse_method, refuse_without_twins
from .pages import PAGES
from .results import summary
from .time_estimate import work

NAME = "hybrid"


@dataclass(frozen=True)
class HybridCircuitConfig(BudgetOptions):
    """The kinds of unit, the search for the circuit, and its evidence."""

    kinds: str = option(
        "head,ssm_head",
        "Kinds of unit that are kept or dropped side by side, separated by commas: head, kv, k, v, q or o of "
        "attention, ssm_head, ssm_channel or ssm_mode of a Mamba-2 or delta rule, channel or mode of a Mamba-1, "
        "conv_channel, mlp, expert",
    )
    method: str = method_option({"head+ssm_head": side_by_side((EVERY_KIND["head"], EVERY_KIND["ssm_head"]))})

    @property
    def unit(self) -> str:
        return "+".join(listed(self.kinds, named(NAME, "kinds")))


class HybridCircuitAnalyzer(CircuitAnalyzer[HybridCircuitConfig]):
    """Circuits of units of several kinds, each counted layer by layer and kind by kind."""

    def __init__(
        self, model: Model, config: HybridCircuitConfig, device: str | torch.device = "cpu", **others: Any
    ) -> None:
        kinds = [kind_named(model, kind.name) for kind in chosen(config.kinds)]
        super().__init__(model, config, device, units=Units(model, *kinds), **others)


def chosen(kinds: str) -> tuple[UnitKind, ...]:
    """The kinds of a comma list.

    Raises:
        MechintError: fewer than two, one twice, one that no family has, or two that are replaced at the same site.
    """
    where = named(NAME, "kinds")
    names = listed(kinds, where)
    for name in names:
        if name not in EVERY_KIND:
            raise MechintError(
                f"{where}: no kind of unit is called {name!r}{did_you_mean(name, EVERY_KIND)}; "
                f"choose among {', '.join(EVERY_KIND)}"
            )
    if len(names) < 2 or len(set(names)) < len(names):
        raise MechintError(
            f"{where}: {kinds!r} does not name two or more different kinds; for one kind take the analyses ssm or kv"
        )
    found = tuple(EVERY_KIND[name] for name in names)
    side_by_side(found)
    return found


def refuse(config: HybridCircuitConfig, task: TaskConfig) -> str | None:
    """Says why this task or these kinds cannot be analysed so; None when they can."""
    try:
        kinds = chosen(config.kinds)
    except MechintError as error:
        return str(error)
    return refuse_without_twins(config, task) or refuse_method(config, side_by_side(kinds), task)


ANALYSIS = Analysis(
    name=NAME,
    title="Hybrid circuit",
    config=HybridCircuitConfig,
    analyzer=HybridCircuitAnalyzer,
    refuse=refuse,
    work=work,
    summary=summary,
    **PAGES,
)
