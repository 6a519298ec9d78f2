"""The units of a network that are to carry the variables of a causal model, and runs that intervene on them.

The causal model stands beside the tasks that it is of, in :mod:`mechint.tasks.looked_up`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..interventions.edits import Edit
from ..interventions.model import Model
from ..interventions.run import run
from ..interventions.units import Units
from ..tasks.answers import Prompts
from ..tasks.looked_up import INPUTS, LookedUp, lookup


@dataclass(frozen=True)
class Variable:
    """Units that carry a variable of the causal model.

    Attributes:
        meaning: In words.
        kind: Kind of the units, a key of :attr:`~mechint.models.base.LanguageModel.unit_kinds`.
        units: Their numbers.
        inputs: Those of :data:`~mechint.tasks.looked_up.INPUTS` that come from the source when these units do; none
            where nothing may change.
    """

    meaning: str
    kind: str
    units: tuple[int, ...]
    inputs: tuple[str, ...]

    def expected(self, prompts: Prompts, source: Prompts) -> tuple[Tensor, Tensor]:
        """The answers [n, Q] when these units come from the source, and which of them the causal model defines."""
        before, values, query = (source.tokens if name in self.inputs else prompts.tokens for name in INPUTS)
        return lookup(before, values, query, prompts.positions)

    def edits(self, model: Model, fills: dict[str, Any]) -> list[Edit]:
        """Puts other values, by site, in the place of these units."""
        units = Units(model, model.unit_kinds[self.kind])
        mask = torch.ones(units.total).index_fill_(0, torch.tensor(self.units), 0.0)
        return [edit for edit in units.edits(mask, fills) if not bool((torch.as_tensor(edit.value) == 1).all())]


@dataclass(frozen=True)
class Alignment:
    """An assignment of variables to units; all other units are to be idle.

    Attributes:
        variables: The variables and their units.
        kinds: Kinds of unit that share out the network: of each, all that no variable of this kind has are idle.
    """

    variables: tuple[Variable, ...]
    kinds: tuple[str, ...]

    def described(self) -> list[dict[str, Any]]:
        """The variables as plain values, for a checkpoint."""
        return [{"meaning": v.meaning, "kind": v.kind, "units": list(v.units)} for v in self.variables]

    def with_units(self, units: Sequence[Sequence[int]]) -> Alignment:
        """The same variables, carried by other units."""
        pairs = zip(self.variables, units, strict=True)
        return dataclasses.replace(
            self, variables=tuple(dataclasses.replace(variable, units=tuple(own)) for variable, own in pairs)
        )

    def used(self, model: Model, kind: str) -> Tensor:
        """1 for the units of a kind that carry a variable, [units]."""
        mask = torch.zeros(Units(model, model.unit_kinds[kind]).total)
        for variable in self.variables:
            if variable.kind == kind:
                mask[list(variable.units)] = 1.0
        return mask

    def sites(self, model: Model) -> list[str]:
        """Every site that some unit is at."""
        kinds = dict.fromkeys([*self.kinds, *(variable.kind for variable in self.variables)])
        return [site for kind in kinds for site in Units(model, model.unit_kinds[kind]).sites]

    def idle_edits(self, model: Model, fills: dict[str, Any], random: torch.Generator | None = None) -> list[Edit]:
        """Puts other values in the place of all idle units, or of a random half of them."""
        edits = []
        for kind in self.kinds:
            units, keep = Units(model, model.unit_kinds[kind]), self.used(model, kind)
            if random is not None:
                keep = torch.maximum(keep, (torch.rand(units.total, generator=random) < 0.5).float())
            edits += units.edits(keep, fills)
        return edits


def values_of(model: Model, tokens: Tensor, sites: Collection[str]) -> dict[str, Tensor]:
    """Records the values of sites [batch, position, …], with the graph where gradients are on."""
    return run(model, tokens, record=sites, logits_at=tokens[:, :0]).values


def said_by(model: Model, prompts: Prompts, edits: Sequence[Edit]) -> Tensor:
    """The logits of a run under edits, [n, Q, V]."""
    return run(model, prompts.tokens, edits=edits, logits_at=prompts.positions).logits


def said_by_each(model: Model, prompts: Prompts, cells: Sequence[Sequence[Edit]]) -> list[Tensor]:
    """The logits under each of several lists of edits, [n, Q, V] each, from one run of that many times the rows."""
    n, times = len(prompts), len(cells)
    edits = [edit.on_rows(range(k * n, (k + 1) * n)) for k, cell in enumerate(cells) for edit in cell]
    tokens, positions = (part.repeat(times, 1) for part in (prompts.tokens, prompts.positions))
    return list(run(model, tokens, edits=edits, logits_at=positions).logits.split(n))


@torch.no_grad()
def importances(
    model: Model, prompts: Prompts, variable: Variable, fills: dict[str, Any], task: LookedUp
) -> list[float]:
    """For each unit of a variable how far the logits of answers change where it alone is replaced, root mean square.

    Measured from the mean of those logits: a change of all logits alike does not count.
    """

    def logits(edits: Sequence[Edit]) -> Tensor:
        found = said_by(model, prompts, edits)[..., task.sayable.start : task.sayable.stop].double()
        return found - found.mean(-1, keepdim=True)

    whole = logits([])
    alone = (dataclasses.replace(variable, units=(unit,)).edits(model, fills) for unit in variable.units)
    return [float((logits(edits) - whole).square().mean().sqrt()) for edits in alone]
