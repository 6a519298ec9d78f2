"""Latents of dictionaries as units of a circuit, with what each leaves unexplained, its error, as a unit of its own.

At a site with a dictionary, x = decode(f) + error. A mask over [latents…, error] keeps or replaces each of them:
x ← x + decode(f′) − decode(f) + error′ − error (Marks et al. 2024, "Sparse Feature Circuits"). A mask of ones leaves x
as it is to the bit, and one without the error unit says what the features alone explain.

A transcoder's latents f are encoded from what the same run has at the site that it reads, r, with all that is replaced
before it, and stand for their part f W_dec of the site that it writes, x. Its skip connection is one unit more, which
stands for W_skip r, and the error is what neither explains: x = decode(f) + W_skip r + error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...interventions.edits import Edit
from ...interventions.model import Model
from ...interventions.sites import find_sites
from ...interventions.unit_kinds import Block, UnitKind
from ...interventions.units import Units
from ...sae import Transcoder
from ...sae.activations.flattening import check_fit, flatten, rule_of, unflatten
from ...utils.errors import MechintError
from ..dictionaries.evaluation import SEQUENTIAL

KIND = UnitKind(
    "latent",
    (),
    "a latent of a sparse autoencoder or transcoder, and at each site a skip connection and the error that is left",
    plural="latents and errors",
    at_sites=False,
)


class FeatureUnits(Units):
    """All latents of some dictionaries of one model, site after site; skip connection and error come last.

    Args:
        model: From :func:`mechint.load`.
        dictionaries: For each site, a finished dictionary in raw activation units; for the site that it writes, a
            transcoder that is attached to this model.

    Raises:
        MechintError: no dictionary, a site that there is not, one of another width, two dictionaries of one site, or a
            transcoder that reads another layer than it writes.
    """

    def __init__(self, model: Model, dictionaries: Mapping[str, Any]) -> None:
        if not dictionaries:
            raise MechintError("a circuit of features needs a dictionary; name at least one")
        named: dict[str, Any] = {}
        reads: dict[str, str] = {}
        for pattern, sae in dictionaries.items():
            [site] = find_sites(model.sites, [pattern])
            if isinstance(sae, Transcoder):
                check_transcoder(sae, model, site)
                reads[site] = sae.config.site
            check_fit(sae, model, reads.get(site, site))
            if site.rpartition(".")[2] in SEQUENTIAL:
                raise MechintError(f"{site}: a circuit's ablations are values of the clean run, and a state has none")
            if site in named:
                raise MechintError(f"{site} has two dictionaries; a circuit of features takes one for each site")
            named[site] = sae
        self.dictionaries = {site: named[site] for site in model.sites if site in named}
        self.sites = list(self.dictionaries)
        self.reads = {site: reads.get(site, site) for site in self.sites}
        """For each site the one that its latents are encoded from: itself, but for transcoders."""
        self.needs = list(dict.fromkeys([*self.reads.values(), *self.sites]))
        self.kind = replace(KIND, blocks=(Block(tuple(self.sites)),))
        self.skips = [site for site, sae in self.dictionaries.items() if isinstance(sae, Transcoder) and sae.has_skip]
        """Sites whose transcoder has a skip connection, which is their last unit but one."""
        self.sizes = [int(sae.config.d_sae) + 1 + (site in self.skips) for site, sae in self.dictionaries.items()]
        self.counted, self.total = self.sizes, sum(self.sizes)
        self.layers = self.rows = len(self.sites)
        self.said_layers = list(range(self.layers))
        self.layer_names = self.sites
        self.about = [{"site": site, **({"skip": True} if site in self.skips else {})} for site in self.sites]

    def read(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sites [batch, position, unit, …] -> latents and error side by side, [batch, position, …, d_sae + width].

        The output of a skip connection stands between the two; it has as many numbers as the error.
        """
        return {site: self.code(site, values[site], values[self.reads[site]]) for site in self.sites}

    def code(self, site: str, x: Tensor, given: Tensor) -> Tensor:
        """Latents, skip connection and error of a site x, with the latents encoded from the site ``given``."""
        sae = self.dictionaries[site]
        read = flatten(given, rule_of(sae))
        f = sae.encode(read)
        left = flatten(x, rule_of(sae)) - sae.decode(f)
        if site not in self.skips:
            return torch.cat([f, left], -1)
        skipped = sae.skipped(read)
        return torch.cat([f, skipped, left - skipped], -1)

    def other(self, site: str) -> str:
        """The site that a transcoder of this one reads; empty where the latents are encoded from the site itself."""
        return "" if self.reads[site] == site else self.reads[site]

    def edits(self, mask: Tensor, fills: dict[str, Any]) -> list[Edit]:
        """Replacements at every site.

        Args:
            mask: [units], 1 keeps a unit and 0 replaces it.
            fills: Value that replaces it, for each site: a number, or latents and error as :meth:`read` gives them.
        """
        return [
            Edit(site, "replace", self._change(site, part, fills[site]), reads=self.other(site))
            for site, part in zip(self.sites, mask.split(self.sizes), strict=True)
        ]

    def _change(self, site: str, mask: Tensor, fill: Any) -> Any:
        sae = self.dictionaries[site]
        d_sae, width = sae.W_dec.shape
        # the error, and a skip connection, is one unit of as many numbers as the site
        wide = torch.cat([mask[:d_sae], mask[d_sae:].repeat_interleave(width)])

        def change(x: Tensor, given: Tensor | None = None) -> Tensor:
            code = self.code(site, x, x if given is None else given)
            # where a unit is kept the difference is exactly zero, and decoding it too
            moved = (1 - wide).to(code) * (torch.as_tensor(fill, device=x.device).to(code) - code)
            back = moved[..., :d_sae] @ sae.W_dec.to(code) + moved[..., d_sae:].unflatten(-1, (-1, width)).sum(-2)
            rule = rule_of(sae)
            return unflatten(flatten(x, rule) + back.to(x), x, rule)

        return change

    def dropping(self, unit: int, fills: dict[str, Any]) -> list[Edit]:
        """The replacement at the site of one latent or error that replaces it alone."""
        sample = next(iter(fills.values()))
        mask = torch.ones(self.total, device=sample.device if isinstance(sample, Tensor) else None)
        ends = torch.tensor(self.sizes).cumsum(0)
        site = self.sites[int((ends <= unit).sum())]
        return [edit for edit in self.edits(mask.index_fill(0, torch.tensor([unit], device=mask.device), 0.0), fills)
                if edit.site == site]  # fmt: skip

    def removals(self, mask: Tensor, units: list[int], fills: dict[str, Any]) -> tuple[list[Edit], list[list[Edit]]]:
        """As for other units; what is left of a site's latents is one replacement, so no edit is shared."""
        return [], [
            self.edits(mask.index_fill(0, torch.tensor([unit], device=mask.device), 0.0), fills) for unit in units
        ]

    def errors(self) -> Tensor:
        """1 at the errors and 0 elsewhere, [units]."""
        ends = torch.tensor(self.sizes).cumsum(0) - 1
        return torch.zeros(self.total).index_fill_(0, ends, 1.0)

    def skip_connections(self) -> Tensor:
        """1 at the skip connections and 0 elsewhere, [units]."""
        ends = torch.tensor(self.sizes).cumsum(0)[[site in self.skips for site in self.sites]] - 2
        return torch.zeros(self.total).index_fill_(0, ends, 1.0)

    def by_layer(self, values: Tensor) -> list[Tensor]:
        return list(values.split(self.sizes))

    def groups(self) -> list[Tensor]:
        return list(torch.arange(self.total).split(self.sizes))

    def names(self, mask: Tensor) -> list[list[Any]]:
        """The kept latents of each site by number, ``"skip"`` and ``"error"``."""
        found = []
        for site, part in zip(self.sites, mask.split(self.sizes), strict=True):
            others = ["skip", "error"] if site in self.skips else ["error"]
            latents: list[Any] = part[: -len(others)].nonzero()[:, 0].tolist()
            kept = part[-len(others) :].tolist()
            found.append(latents + [name for name, value in zip(others, kept, strict=True) if value])
        return found


def check_transcoder(transcoder: Transcoder, model: Model, site: str) -> None:
    """Raises :class:`MechintError` unless a transcoder writes this site and reads an earlier one of its layer."""
    c, order, layer = transcoder.config, list(model.sites), site.rpartition(".")[0]
    if c.site_out != site:
        raise MechintError(f"the transcoder for {site} writes {c.site_out or 'no site it names'}; attach it to {site}")
    if c.site not in model.sites or c.site.rpartition(".")[0] != layer or order.index(c.site) >= order.index(site):
        raise MechintError(
            f"the transcoder of {site} reads {c.site or 'no site it names'}; a circuit takes transcoders that read an "
            f"earlier site of the layer they write"
        )
