"""A causal model of associative recall, and which units of a network are to carry its variables.

The causal model has two variables. *Before* is, at each position, the token that stood before it. *Said* is, at each
query, the token at that position whose *before* is the token asked for. An interchange intervention gives some of its
inputs the values that they have on another prompt, the source, and the causal model gives the answer in that case.
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
from ..tasks.base import mix
from ..tasks.recall import Recall

INPUTS = ("before", "values", "query")
"""The inputs of *said*: the tokens before, those that can be said, and those asked for."""


def lookup(before: Tensor, values: Tensor, query: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Looks up the token that is said, [n, Q], and True where it is the only one, [n, Q] bool.

    Args:
        before: Prompts [n, L] that say which token stood before each position.
        values: Prompts that say which token stands there.
        query: Prompts whose tokens at ``positions`` are asked for.
        positions: [n, Q]; later positions say nothing yet.
    """
    asked = query.gather(1, positions)  # [n, Q]
    at = torch.arange(1, before.shape[1], device=before.device)
    match = (before[:, None, :-1] == asked[:, :, None]) & (at <= positions[:, :, None])  # [n, Q, L - 1]
    first = match.int().argmax(-1)
    said = values[:, 1:].gather(1, first)
    alike = (values[:, None, 1:] == said[:, :, None]) | ~match
    return said, match.any(-1) & alike.all(-1)


def sources(task: Recall, prompts: Prompts, seed: int) -> Prompts:
    """For each prompt another one of the same keys: in another order, with other values, asked in another order."""
    random = torch.Generator().manual_seed(mix("sources", seed))
    count, pairs, device = len(prompts), task.pairs, prompts.tokens.device
    prompts = prompts.to("cpu")  # where the random numbers are drawn
    order = torch.rand(count, pairs, generator=random).argsort(1)
    keys = prompts.tokens[:, 0 : 2 * pairs : 2].gather(1, order)
    values = torch.randint(task.values, keys.shape, generator=random)
    asked = torch.randint(pairs, keys.shape, generator=random)
    answers = task.keys + values.gather(1, asked)
    source = Prompts(task.layout(keys, values, asked), prompts.positions, answers, None, None, prompts.template)
    return source.to(device)


@dataclass(frozen=True)
class Variable:
    """Units that carry a variable of the causal model.

    Attributes:
        meaning: In words.
        kind: Kind of the units, a key of :attr:`~mechint.models.base.LanguageModel.unit_kinds`.
        units: Their numbers.
        inputs: Those of :data:`INPUTS` that come from the source when these units do; none where nothing may change.
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
def importances(model: Model, prompts: Prompts, variable: Variable, fills: dict[str, Any], task: Recall) -> list[float]:
    """For each unit of a variable how far the logits of values change where it alone is replaced, root mean square.

    Measured from the mean of those logits: a change of all logits alike does not count.
    """

    def logits(edits: Sequence[Edit]) -> Tensor:
        found = said_by(model, prompts, edits)[..., task.keys : task.keys + task.values].double()
        return found - found.mean(-1, keepdim=True)

    whole = logits([])
    alone = (dataclasses.replace(variable, units=(unit,)).edits(model, fills) for unit in variable.units)
    return [float((logits(edits) - whole).square().mean().sqrt()) for edits in alone]
