"""The units that patching exchanges: one channel, head or neuron of one layer, at all positions."""

from __future__ import annotations

import bisect
import functools
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from ..interventions.edits import Edit
from ..interventions.model import Model, layer_kinds, layer_sites
from ..scan.checks import accumulate
from ..scan.selective import read_out
from ..utils.errors import MechintError
from .interchange import Interchange

# Memory of the positions before: replaced everywhere, a state acts by what C reads of it alone
ESTIMATED_AT = {"state": "readout"}
NOT_PATCHED = ("scores", "conv_state")  # -inf has no difference; all that the convolution remembers is x


@dataclass(frozen=True)
class Parts:
    """The units of one kind in all layers that have some, numbered layer by layer; ``chosen`` are measured.

    Attributes:
        kind: Kind of site.
        sites: The site of each of these layers.
        sizes: Units of each of them.
        axis: Name of the units' axis.
        chosen: Numbers of units.
    """

    kind: str
    sites: tuple[str, ...]
    sizes: tuple[int, ...]
    axis: str
    chosen: tuple[int, ...]

    @staticmethod
    def of(model: Model, kind: str) -> Parts:
        sites = tuple(layer_sites(model, kind))
        sizes = tuple(model.sites[site].units[0] for site in sites)
        return Parts(kind, sites, sizes, model.sites[sites[0]].axes[2], tuple(range(sum(sizes))))

    @property
    def total(self) -> int:
        return sum(self.sizes)

    @functools.cached_property
    def starts(self) -> list[int]:
        """The number of each site's first unit, and the number of all units."""
        return list(itertools.accumulate(self.sizes, initial=0))

    @functools.cached_property
    def layers(self) -> list[int]:
        """The number of each site's layer."""
        return [int(site.split(".")[1]) for site in self.sites]

    def place(self, number: int) -> tuple[int, int]:
        """The place of a unit's site among the sites, and its number within the site."""
        row = bisect.bisect_right(self.starts, number) - 1
        return row, number - self.starts[row]

    def layer_of(self, number: int) -> int:
        """The layer that holds a unit."""
        return self.layers[self.place(number)[0]]

    def chosen_of(self, row: int) -> list[int]:
        """The chosen units of a site, numbered within it."""
        return [unit for number in self.chosen for at, unit in [self.place(number)] if at == row]

    def cells(self, pair: Interchange) -> list[list[Edit]]:
        """A cell for each chosen unit: the donor's values of it at every position."""
        wanted = [self.sites[row] for row in sorted({self.place(unit)[0] for unit in self.chosen})]
        donor = pair.values(pair.donor, wanted)
        at = {site: site for site in wanted}
        if self.kind == "state":
            # a state replaced everywhere is seen by its reader alone; replacing what is read holds none in the sweep
            reader = "C" if donor[wanted[0]].dim() == 4 else "query"
            reads = {site: site.removesuffix("state") + reader for site in wanted}
            own = pair.values(pair.receiver, list(reads.values()))
            donor = {site: seen(donor[site], accumulate(own[query])) for site, query in reads.items()}
            at = {site: site.removesuffix("state") + "scan_out" for site in wanted}
        cells = []
        for number in self.chosen:
            row, unit = self.place(number)
            site = self.sites[row]
            cells.append([Edit(at[site], "replace", donor[site][:, :, unit : unit + 1], units=[unit])])
        return cells

    def estimates(self, pair: Interchange, points: int) -> Tensor:
        """Attribution patching's estimate of every unit's effect on the receiver, [unit, prompt]."""
        sites = [site.removesuffix(self.kind) + ESTIMATED_AT.get(self.kind, self.kind) for site in self.sites]
        found = pair.estimates(sites, points, by_unit=True)
        return torch.cat([found[site] for site in sites])


def seen(state: Tensor, query: Tensor) -> Tensor:
    """The read-out of a state: [B, L, channel, state] by C [B, L, state], or [B, L, head, key, value] by its query."""
    return read_out(state, query) if state.dim() == 4 else (query.unsqueeze(-2) @ state).squeeze(-2)


def part_kinds(model: Model) -> list[str]:
    """The sites of a layer whose units can be patched."""
    return [kind for kind in layer_kinds(model) if kind not in NOT_PATCHED]


def screened(parts: Parts, scores: Tensor, most: int) -> tuple[int, ...]:
    """The numbers of the ``most`` units with the highest scores [unit], ascending; equal scores by number."""
    if len(scores) != parts.total:
        raise MechintError(f"{len(scores)} scores for {parts.total} units of {parts.kind}")
    return tuple(sorted(torch.sort(scores, descending=True, stable=True).indices[:most].tolist()))
