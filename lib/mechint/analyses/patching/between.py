"""Direct paths between the strongest units of a patching, measured as path patching measures them.

The embeddings stand before the units and the logits behind them, so that what feeds a unit and what it does itself are
among the paths.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...interventions.model import Model
from ...interventions.path_patching import END, Node
from ...tasks import Prompts
from ...utils.errors import MechintError
from ..effect_tables import Answered
from ..paths import nodes
from ..paths.measure import of_directions
from ..paths.results import DIRECTIONS, Finished, numbers

CHOSEN = (
    "The units between which direct paths were measured are those with the largest effects on the same prompts; the "
    "p-values of these paths are adjusted for all pairs of the units, and not for this choice"
)


@dataclass(frozen=True)
class Between:
    """The embeddings, some units, and the logits.

    Attributes:
        senders, receivers: The ends of paths, in the order of the forward.
        left_out: Names of the units that no path leads through: those of the residual stream.
    """

    senders: list[Node]
    receivers: list[Node]
    left_out: list[str]

    @staticmethod
    def of(model: Model, units: Iterable[str]) -> Between:
        """The ends of paths between units that are named as ``layers.1.head_out[2]``."""
        known, every = nodes.places(model), list(units)
        inside = [name for name in every if Node.parse(name).site in known]
        return Between(
            nodes.senders(model, [model.first_sites[0], *inside]),
            nodes.receivers(model, [*inside, END]),
            [name for name in every if name not in inside],
        )

    def measure(self, model: Model, batch: Prompts, metric: str, memory_mib: int, whole: bool) -> dict[str, Tensor]:
        """Effects of one batch, see :func:`~mechint.analyses.paths.measure.of_directions`."""
        froms, tos = (list(map(str, ends)) for ends in (self.senders, self.receivers))
        return of_directions(model, batch, DIRECTIONS, froms, tos, metric=metric, memory_mib=memory_mib, whole=whole)

    def sections(
        self, model: Model, found: list[dict[str, Tensor]], like: Answered
    ) -> tuple[dict[str, Any], list[str]]:
        """The sections of results.json that an analysis of these paths has, and notes.

        Args:
            found: The effects of all batches.
            like: The patching of the same batches.
        """
        done = Finished(
            found=found,
            senders=self.senders,
            receivers=self.receivers,
            along=[],
            directions=list(DIRECTIONS),
            places=nodes.places(model),
            axes=nodes.axes(model),
            templates=like.templates,
            draws=like.draws,
            seed=like.seed,
        )
        notes = [CHOSEN]
        if self.left_out:
            notes.append(
                f"No direct paths of {', '.join(self.left_out)} were measured: paths lead through the residual stream"
            )
        return numbers(done)[0], notes


def check_kinds(model: Model, kinds: Iterable[str]) -> None:
    """Raises :class:`MechintError` where no unit of these kinds of site can be the end of a path."""
    known = {site.rpartition(".")[2] for site in nodes.places(model)}
    if not known & set(kinds):
        raise MechintError(
            f"patching: units of {', '.join(kinds)} are no ends of direct paths; take a kind such as "
            f"{next(kind for kind in model.patched if kind in known)}, or no paths"
        )
