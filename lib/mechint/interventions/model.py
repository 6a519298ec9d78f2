"""The interface of a model: all that interventions and analyses ask of one, whatever its family.

:class:`mechint.models.base.LanguageModel` provides it; a test double that does too can be analysed just as well.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .sites import Site, layer_windows
from .taps import Tap
from .unit_kinds import UnitKind


@dataclass
class Cache:
    """The memory of a prompt behind every layer, so that a forward can go on behind it."""

    layers: list[Any]
    position: int = 0


class Layers(Protocol):
    """The layers, bottom up. Each is a module of its family: a function that looks inside one is for that family."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]: ...
    def __getitem__(self, i: int, /) -> Any: ...


class Model(Protocol):
    """A language model in parts. :class:`mechint.models.base.LanguageModel` says what each member means."""

    tokenizer: Any
    source: str
    metadata: Mapping[str, Any]

    @property
    def config(self) -> Any: ...
    @property
    def layers(self) -> Layers: ...
    @property
    def sites(self) -> Mapping[str, Site]: ...
    @property
    def first_sites(self) -> Sequence[str]: ...
    @property
    def carried_sites(self) -> Collection[str]: ...
    @property
    def local_sites(self) -> Collection[str]: ...
    @property
    def late_sites(self) -> Mapping[str, tuple[str, str]]: ...
    @property
    def side_by_side(self) -> bool: ...
    @property
    def mediators(self) -> Collection[str]: ...
    @property
    def mixers(self) -> Collection[str]: ...
    @property
    def parts(self) -> Mapping[str, tuple[str, str]]: ...
    @property
    def paths(self) -> Collection[str]: ...
    @property
    def patched(self) -> Sequence[str]: ...
    @property
    def single(self) -> Sequence[str]: ...
    @property
    def ranked(self) -> str: ...
    @property
    def memory(self) -> Sequence[str]: ...
    @property
    def projected(self) -> Collection[str]: ...
    @property
    def unit_kinds(self) -> Mapping[str, UnitKind]: ...
    @property
    def scored_unit(self) -> str: ...
    @property
    def num_layers(self) -> int: ...

    def work(self, positions: int) -> int: ...

    def norm_at(self, i: int, kind: str) -> Any: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def placement(self) -> Sequence[torch.device]: ...
    @property
    def embeddings(self) -> Tensor: ...
    @property
    def ending(self) -> tuple[nn.Module, Tensor]: ...
    @property
    def logit_scale(self) -> float: ...
    @property
    def logit_cap(self) -> float: ...

    def __call__(self, tokens: Tensor) -> Tensor: ...
    def forward(self, tokens: Tensor) -> Tensor: ...
    def trace(
        self, tokens: Tensor, at: Tap, cache: Cache | None = None, logits_at: Tensor | None = None
    ) -> tuple[Tensor, Cache]: ...
    def read_by_head(self, tokens: Tensor, at: Tap, logits_at: Tensor) -> Tensor: ...
    def added_at(self, site: str) -> str | None: ...
    def check_length(self, length: int) -> None: ...
    def parts_of(self, i: int) -> Mapping[str, nn.Module]: ...
    def begin(self, tokens: Tensor, at: Tap) -> Tensor: ...
    def empty_cache(self, i: int, rows: int) -> Any: ...
    def block(self, i: int, r: Tensor, cache: Any, at: Tap) -> tuple[Tensor, Any]: ...
    def blocks(
        self,
        i: int,
        streams: Sequence[Tensor],
        caches: Sequence[Any],
        taps: Sequence[Tap],
        only: Sequence[Tensor] | None = None,
    ) -> list[Tensor]: ...
    def block_from_start(self, i: int, r: Tensor, starts: Sequence[int], at: Tap) -> tuple[Tensor, list[Any]]: ...
    def into_stream(self, i: int, kind: str, change: Tensor, units: Sequence[int] | None) -> Tensor: ...
    def at_stream(self, at: Tap, name: str, r: Tensor) -> Tensor: ...
    def finish(self, r: Tensor, at: Tap, logits_at: Tensor | None = None) -> Tensor: ...

    # of torch.nn.Module
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...
    def requires_grad_(self, requires_grad: bool = True) -> Any: ...
    def to(self, device: str | torch.device) -> Any: ...
    def eval(self) -> Any: ...
    def __hash__(self) -> int: ...


def layer_sites(model: Model, kind: str) -> list[str]:
    """The sites of one kind in all layers, bottom up."""
    return [name for layer in range(model.num_layers) if (name := f"layers.{layer}.{kind}") in model.sites]


def layer_kinds(model: Model) -> list[str]:
    """The kinds of site that the layers have, each once, in the forward's order: ``resid_pre``, ``out`` …."""
    found: list[str] = []
    after: dict[str, int] = {}  # for each layer, the place behind its last kind so far
    for name in model.sites:
        layer, _, kind = name.rpartition(".")
        if not layer:
            continue
        if kind in found:
            after[layer] = found.index(kind) + 1
        else:
            found.insert(after.get(layer, 0), kind)
            after[layer] = found.index(kind) + 1
    return found


def windows(model: Model, kind: str, width: int = 1) -> tuple[tuple[str, ...], ...]:
    """For each layer its site of a kind, with those of ``width`` layers around it that have one; none where the layer
    itself has none."""
    names = layer_sites(model, kind)
    found = dict(zip(names, layer_windows(names, width), strict=True))
    return tuple(found.get(f"layers.{layer}.{kind}", ()) for layer in range(model.num_layers))


def left_out(model: Model, kinds: Iterable[str], layers: Iterable[int] | None = None) -> list[str]:
    """A sentence for each kind of site that some of the layers do not have."""
    every = list(range(model.num_layers) if layers is None else layers)
    missing = {kind: [i for i in every if f"layers.{i}.{kind}" not in model.sites] for kind in dict.fromkeys(kinds)}
    return [
        f"Layers without the site {kind} are left out there: {', '.join(map(str, others))}"
        for kind, others in missing.items()
        if others
    ]


def added_sites(model: Model) -> list[list[str]]:
    """For each layer the sites of what its parts add to the residual stream."""
    every = ([f"layers.{layer}.{kind}" for kind in model.mixers] for layer in range(model.num_layers))
    return [[site for site in sites if site in model.sites] for sites in every]


def having(model: Model, *kinds: str) -> list[int]:
    """The numbers of the layers that have all these kinds of site."""
    sites, every = model.sites, range(model.num_layers)
    return [i for i in every if all(f"layers.{i}.{kind}" in sites for kind in kinds)]
