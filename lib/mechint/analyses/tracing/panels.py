"""The cells of a causal trace: one panel for each kind of site, a cell for each layer and token."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ...interventions.edits import Edit
from ...interventions.model import Model, having, windows
from ..interchange import Interchange

RESIDUAL = ("resid_pre", "resid_mid", "resid_post")


@dataclass(frozen=True)
class Panel:
    """One map.

    Attributes:
        kind: Name of the site within its layer.
        sites: For each layer, the sites that are exchanged together: a window around it; none where it has no such
            site.
        sever: Kind of site that stays as the receiver has it in all layers above, at the same token; '' for none.
        held: For each layer, those sites.
    """

    kind: str
    sites: tuple[tuple[str, ...], ...]
    sever: str = ""
    held: tuple[tuple[str, ...], ...] = ()

    @property
    def name(self) -> str:
        return f"{self.kind} without {self.sever}" if self.sever else self.kind

    def cells(self, pair: Interchange, length: int) -> list[list[Edit]]:
        """Cells in the order of [layer, position]."""
        donor = pair.values(pair.donor, sorted({site for sites in self.sites for site in sites}))
        own = pair.values(pair.receiver, sorted({site for sites in self.held for site in sites}))
        rows = []
        for layer, sites in enumerate(self.sites):
            held = self.held[layer] if self.sever else ()
            for p in range(length):
                values = [(site, donor[site]) for site in sites] + [(site, own[site]) for site in held]
                rows.append([Edit(site, "replace", value[:, p : p + 1], positions=[p]) for site, value in values])
        return rows


def panels(model: Model, kinds: list[str], severed: list[str], window: int, direction: str) -> list[Panel]:
    """The panels that the options ask for: all kinds, then the residual with each severed kind.

    Severing is for ``denoise``: does a restored residual still help when the mixers above stay corrupted?
    """
    found = []
    for kind in kinds:
        found.append(Panel(kind, windows(model, kind, 1 if kind in RESIDUAL else window)))
    for kind in severed if direction == "denoise" else ():
        there = having(model, kind)
        above = tuple(
            tuple(f"layers.{other}.{kind}" for other in there if other > layer) for layer in range(model.num_layers)
        )
        found.append(dataclasses.replace(Panel("resid_post", windows(model, "resid_post")), sever=kind, held=above))
    return found
