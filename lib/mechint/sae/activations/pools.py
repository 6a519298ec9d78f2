"""Activations of any site, streamed from contexts in pools of bounded size, or read from a cache on disk.

A pool is the activations of a fixed number of context batches, at every wanted site in one forward; batches for
training are drawn from it in a random order (a shuffle buffer that is filled, emptied, and filled again). Pool and
order follow from numbers alone, so a killed run resumes with the very same batches, and a cache holds the same bits.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ...interventions.model import Model
from ...interventions.sites import find_sites
from ...interventions.taps import Tap
from ...tasks import mix
from ...utils import workers
from ...utils.errors import MechintError
from .contexts import Contexts, excluded
from .flattening import flat_width, flatten


class Pools(Protocol):
    """The source of activations.

    Attributes:
        sites: Their names.
        widths: d_in of each site.
        count: Pools there are; None when there is no end.
        fingerprint: Hash of all that decides the activations.
    """

    sites: list[str]
    widths: dict[str, int]
    count: int | None
    fingerprint: str

    def pool(self, i: int) -> dict[str, Tensor]:
        """Activations of pool i at each site, [rows, d_in] float32, in the order of the contexts."""
        ...


# --- streaming -------------------------------------------------------------------------------------------------------


class Streamed:
    """Pools computed by the model whenever they are asked for.

    Args:
        model: From :func:`mechint.load`.
        sites: Names or shell patterns; all are taken from one forward.
        contexts: Source of the tokens.
        pool_batches: Context batches of a pool.
        flatten: Rule for sites with several axes; see :func:`mechint.sae.activations.flattening.flatten`.
        exclude: Kinds of token that are left out, separated by commas; see :data:`.contexts.KINDS`.
        weights: Hash of the model's weights, for the fingerprint.

    Raises:
        MechintError: no such site, rule or kind of token; or the vocabulary is too small.
    """

    def __init__(
        self,
        model: Model,
        sites: Sequence[str],
        contexts: Contexts,
        pool_batches: int = 16,
        flatten: str = "all",
        exclude: str = "bos,boundary,padding",
        weights: str = "",
    ) -> None:
        self.model, self.contexts, self.pool_batches, self.rule = model, contexts, pool_batches, flatten
        self.sites = find_sites(model.sites, sites)
        self.widths = {name: flat_width(model.sites[name], flatten) for name in self.sites}
        self.exclude, self.excluded = exclude, excluded(exclude)
        self.count = None if contexts.batches is None else -(-contexts.batches // pool_batches)
        facts = {
            "weights": weights, "sites": self.sites, "flatten": flatten, "exclude": exclude,
            "contexts": contexts.fingerprint, "pool_batches": pool_batches,
        }  # fmt: skip
        self.facts: dict[str, Any] = facts
        self.fingerprint = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        depths = [int(match[1]) for name in self.sites if (match := re.match(r"layers\.(\d+)\.", name))]
        inside = len(depths) == sum(name != "embed" for name in self.sites)
        self.layers = max(depths, default=-1) + 1 if inside else None  # None: also what is after the layers

    def pool(self, i: int) -> dict[str, Tensor]:
        """Processes take turns at the batches and hand one another their rows."""
        rank, world = workers.team()
        parts: dict[str, list[Tensor]] = {name: [] for name in self.sites}
        for j in range(i * self.pool_batches, (i + 1) * self.pool_batches):
            if self.contexts.batches is not None and j >= self.contexts.batches:
                break
            tokens, keep = self.tokens(j)
            mine = self.rows(tokens, keep, j) if j % world == rank else None
            for name in self.sites:
                parts[name].append(workers.hand_out(None if mine is None else mine[name], j % world))
        return {name: torch.cat(rows) for name, rows in parts.items()}

    def tokens(self, j: int) -> tuple[Tensor, Tensor]:
        """Tokens of batch j of the contexts, and which of them count, [rows, L] bool."""
        tokens, kinds = self.contexts.batch(j)
        keep = torch.ones_like(kinds, dtype=torch.bool)
        for kind in self.excluded:
            keep &= kinds != kind
        return tokens, keep

    @torch.no_grad()
    def rows(self, tokens: Tensor, keep: Tensor, j: int) -> dict[str, Tensor]:
        """Activations of the tokens that count, [rows, d_in] for each site."""
        values = self.record(tokens.to(self.model.device))
        rows = {}
        for name, value in values.items():
            flat = flatten(value, self.rule)[keep.to(value.device)]
            rows[name] = flat.reshape(-1, self.widths[name]).float()
            bad = (~torch.isfinite(rows[name])).any(-1).nonzero()
            if len(bad):
                raise MechintError(
                    f"activations of {name} are NaN or infinite in batch {j} of the contexts, row {int(bad[0])}; load "
                    f"the weights in a wider precision, or check the model"
                )
        return rows

    def record(self, tokens: Tensor) -> dict[str, Tensor]:
        """The sites' values; the forward ends after the last layer that is wanted."""
        tap = Tap(self.sites)
        if self.layers is None:
            self.model.trace(tokens, tap)
        else:
            r = self.model.begin(tokens, tap)
            for layer in range(self.layers):
                r, _ = self.model.block(layer, r, self.model.empty_cache(layer, len(tokens)), tap)
        return {name: tap.values[name] for name in self.sites}


# --- batches ---------------------------------------------------------------------------------------------------------


class Batches:
    """Batches of activations without an end, in a random order within each pool.

    A finite source is gone through again, in another order each time. Rows that do not fill a batch go on to the next
    pool's. ``state`` and ``restore`` are all that a killed run needs.

    Raises:
        MechintError: all the source holds is less than one batch.
    """

    def __init__(self, pools: Pools, batch: int, seed: int, device: torch.device | str = "cpu") -> None:
        self.pools, self.size, self.seed, self.device = pools, batch, seed, torch.device(device)
        self.number, self.at = 0, 0
        self.rest: dict[str, Tensor] = {}
        self.now: dict[str, Tensor] = {}
        self.fill()

    def fill(self) -> None:
        """The next pool in random order, after what the last one left."""
        epoch_rows = 0
        while True:
            count = self.pools.count
            index = self.number if count is None else self.number % count
            pool = self.pools.pool(index)
            random = torch.Generator().manual_seed(mix(self.seed, "order", self.number))
            now = {}
            for name, rows in pool.items():
                again = random.clone_state()
                order = torch.randperm(len(rows), generator=again).to(rows.device)
                shuffled = rows[order].to(self.device)
                now[name] = torch.cat([self.rest[name], shuffled]) if name in self.rest else shuffled
            rows_there = min(len(rows) for rows in now.values())
            if rows_there >= self.size:
                self.now = now
                return
            epoch_rows += 1
            if count is not None and epoch_rows >= count:
                raise MechintError(
                    f"the corpus has {rows_there} activations at {self.pools.sites[0]}, less than one batch of "
                    f"{self.size}; take more text or a smaller batch"
                )
            if count is None and epoch_rows >= 1000:
                raise MechintError("the contexts give no activations: every token is excluded")
            self.rest, self.number = now, self.number + 1

    def next(self) -> dict[str, Tensor]:
        """The next batch of every site, [batch, d_in]."""
        if any(self.at + self.size > len(rows) for rows in self.now.values()):
            self.rest = {name: rows[self.at :][: self.size - 1].clone() for name, rows in self.now.items()}
            self.number, self.at = self.number + 1, 0
            self.fill()
        batch = {name: rows[self.at : self.at + self.size] for name, rows in self.now.items()}
        self.at += self.size
        return batch

    def state(self) -> dict[str, Any]:
        return {"number": self.number, "at": self.at, "rest": {name: rows.cpu() for name, rows in self.rest.items()}}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on where :meth:`state` was taken; the pool is made again."""
        self.number, self.at = state["number"], state["at"]
        self.rest = {name: rows.to(self.device) for name, rows in state["rest"].items()}
        self.fill()
