"""A language model of layers that are made of parts: one walk for every family that declares its layers.

Axes: B batch, L position, D model, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..interventions.sites import RESIDUAL, Site
from ..interventions.taps import Tap
from ..interventions.unit_kinds import Block, UnitKind
from ..scan.checks import accumulate
from .base import LanguageModel, outer_sites
from .parts.attention import LayerCache
from .parts.base import Layer, LayerMemory, Part
from .parts.norms import tell_readers


@dataclass(frozen=True, kw_only=True)
class StackConfig:
    """The fields that every family of layers made of parts has."""

    vocab_size: int
    d_model: int
    n_layer: int
    tied: bool = True
    """True if the head is the embedding."""
    head_bias: bool = False
    """True if the head has a bias, whether it is the embedding or not."""
    embed_scale: float = 1.0
    """Multiplies the embeddings."""
    embed_scale_rounded: bool = False
    """True if ``embed_scale`` has the precision of the embeddings (Gemma)."""
    logit_scale: float = 1.0
    """Multiplies the logits."""
    logit_cap: float = 0.0
    """Logits are cap · tanh(logit / cap) (Gemma 2); 0 leaves them as they are."""
    family = ""


class TiedHead(nn.Module):
    """The bias of a head whose matrix is the embedding."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(vocab_size))


class Stack(LanguageModel):
    """Embedding, layers, norm and head; a family's subclass says the layers and the last norm."""

    first_sites = ("embed",)
    placeable = True
    left_out = ""
    """Tensors of the file that belong to no part of the language model, for messages."""

    def __init__(self, config: Any, layer: Callable[[int], Layer], norm: nn.Module) -> None:
        super().__init__()
        c = self.config = config
        rows = torch.empty(c.vocab_size, c.d_model)
        self.embed_tokens = nn.Embedding(c.vocab_size, c.d_model, _weight=rows)
        self.layers: nn.ModuleList = nn.ModuleList(layer(i) for i in range(c.n_layer))
        self.norm = norm
        tell_readers(norm, self.embed_tokens)
        self.lm_head: nn.Linear | TiedHead | None = None
        if not c.tied:
            self.lm_head = nn.Linear(c.d_model, c.vocab_size, bias=c.head_bias)
        elif c.head_bias:
            self.lm_head = TiedHead(c.vocab_size)
        if not rows.is_meta:
            nn.init.normal_(self.embed_tokens.weight, std=0.02)

    def parts_of(self, i: int) -> Mapping[str, Part]:
        """The parts of a layer by attribute."""
        return cast(Layer, self.layers[i]).parts

    @functools.cached_property
    def every_part(self) -> list[Part]:
        """One part of each class and out site, in the order of the forward."""
        found: dict[tuple[type, str], Part] = {}
        for i in range(len(self.layers)):
            for part in self.parts_of(i).values():
                found.setdefault((type(part), part.out), part)
        return list(found.values())

    def union(self, what: str) -> tuple[str, ...]:
        """An attribute of all parts, each name once."""
        return tuple(dict.fromkeys(name for part in self.every_part for name in getattr(part, what)))

    @property
    def embeddings(self) -> Tensor:
        return self.embed_tokens.weight

    @functools.cached_property
    def sites(self) -> dict[str, Site]:
        """Every site of the forward, in its order."""
        c = self.config
        found = [Site("embed", RESIDUAL, (c.d_model,))]
        for i, layer in enumerate(self.layers):
            for name, axes, units, absent in cast(Layer, layer).sites(c.d_model):
                found.append(Site(f"layers.{i}.{name}", axes, units, absent))
        return {site.name: site for site in [*found, *outer_sites(c.d_model, c.vocab_size)]}

    @functools.cached_property
    def carried_sites(self) -> Collection[str]:  # type: ignore[override]
        return self.union("carried")

    @functools.cached_property
    def local_sites(self) -> Collection[str]:  # type: ignore[override]
        """Sites that are local in every layer that has them."""
        found: dict[str, bool] = {}
        for layer in cast("list[Layer]", list(self.layers)):
            for name, local in layer.local_sites():
                found[name] = found.get(name, True) and local
        return tuple(name for name, local in found.items() if local)

    @functools.cached_property
    def late_sites(self) -> Mapping[str, tuple[str, str]]:  # type: ignore[override]
        """Late sites of parts of a last step whose output is added as it is, where all layers that have them call the
        map alike."""
        found: dict[str, set[tuple[str, str] | None]] = {}
        for layer in cast("list[Layer]", list(self.layers)):
            for last, branch in [(step is layer.steps[-1], branch) for step in layer.steps for branch in step]:
                for name in branch.parts:
                    part, plain = layer.parts[name], branch.scale == 1.0 and name not in branch.behind
                    plain = plain and last
                    for site in {one.name for one in part.sites()} | {part.out}:
                        other, module = part.late.get(site, (None, ""))
                        said = None if other is None or not plain else (other, f"{name}.{module}" if module else "")
                        found.setdefault(site, set()).add(said)
        alike = {site: next(iter(said)) for site, said in found.items() if len(said) == 1}
        return {site: said for site, said in alike.items() if said is not None}

    @functools.cached_property
    def parts(self) -> Mapping[str, tuple[str, str]]:  # type: ignore[override]
        """The layer as ``block``, and every part by its attribute, with the sites of its input and its output."""
        found = {"block": ("resid_pre", "resid_post")}
        for layer in cast("list[Layer]", list(self.layers)):
            stream = "resid_pre"
            for number, step in enumerate(layer.steps):
                for branch in step:
                    for name in branch.parts:
                        found.setdefault(name, (branch.site or stream, layer.parts[name].out))
                stream = layer.behind_step(number)
        return found

    @functools.cached_property
    def mediators(self) -> Collection[str]:  # type: ignore[override]
        return ("resid_post", *self.union("mediators"))

    @functools.cached_property
    def mixers(self) -> Collection[str]:  # type: ignore[override]
        return tuple(dict.fromkeys(part.out for part in self.every_part))

    @functools.cached_property
    def paths(self) -> Collection[str]:  # type: ignore[override]
        return self.union("paths")

    @functools.cached_property
    def patched(self) -> Sequence[str]:  # type: ignore[override]
        return self.union("patched")

    @functools.cached_property
    def single(self) -> Sequence[str]:  # type: ignore[override]
        return self.union("single")

    @functools.cached_property
    def ranked(self) -> str:  # type: ignore[override]
        """The ranked site of the parts that most layers have; of several the last in a forward."""
        found: dict[str, tuple[int, int]] = {}  # layers that have the site, and its place from the end of a layer
        for i in range(len(self.layers)):
            parts = self.parts_of(i).values()
            for place, part in enumerate(parts, -len(parts)):
                if part.ranked:
                    layers, latest = found.get(part.ranked, (0, place))
                    found[part.ranked] = (layers + 1, max(latest, place))
        return max(found, key=lambda site: found[site], default="")

    @functools.cached_property
    def memory(self) -> Sequence[str]:  # type: ignore[override]
        return self.union("memory")

    @functools.cached_property
    def projected(self) -> Collection[str]:  # type: ignore[override]
        return self.union("projected")

    @functools.cached_property
    def border(self) -> int:  # type: ignore[override]
        return max((part.border for part in self.every_part), default=0)

    @functools.cached_property
    def unit_kinds(self) -> Mapping[str, UnitKind]:  # type: ignore[override]
        found = {name: kind for part in self.every_part for name, kind in part.unit_kinds.items()}
        whole = UnitKind("layer", (Block(tuple(self.mixers), axes=0),), "a whole layer: what its parts add", some=True)
        return {**found, "layer": whole}

    @functools.cached_property
    def scored_unit(self) -> str:  # type: ignore[override]
        """The kinds of unit of all parts that mix positions, side by side."""
        return "+".join(dict.fromkeys(part.scored_unit for part in self.every_part if part.scored_unit))

    @functools.cached_property
    def side_by_side(self) -> bool:  # type: ignore[override]
        """True if attention alone mixes positions, once in every layer and in its first step."""
        for layer in self.layers:
            mixing = [part for part in cast(Layer, layer).parts.values() if part.mixes]
            if len(mixing) != 1 or not isinstance(mixing[0].empty_cache(1), LayerCache):
                return False
            if not cast(Layer, layer).mixing[0]:
                return False
        return True

    def added_at(self, site: str) -> str | None:
        *prefix, kind = site.split(".")
        if len(prefix) < 2:
            return None
        layer = cast(Layer, self.layers[int(prefix[1])])
        for branch in (branch for step in layer.steps for branch in step):
            for name in branch.parts:
                part = layer.parts[name]
                if kind == part.out:
                    return site
                if kind in part.projected:
                    return None if name in branch.behind else ".".join((*prefix, part.out))
        return None

    def begin(self, tokens: Tensor, at: Tap) -> Tensor:
        rows, scale = accumulate(self.embed_tokens(tokens)), self.config.embed_scale
        if self.config.embed_scale_rounded:
            scale = float(torch.tensor(scale, dtype=self.embeddings.dtype))
        return at("embed", rows if scale == 1.0 else rows * scale)

    def empty_cache(self, i: int, rows: int) -> LayerMemory:
        return cast(Layer, self.layers[i]).empty_cache(rows)

    def block(self, i: int, r: Tensor, cache: Any, at: Tap) -> tuple[Tensor, Any]:
        r, memory = self.layers[i](self.arrive(i, r, at), cache, at.within(f"layers.{i}"))
        return self.leave(i, r), memory

    def norm_at(self, i: int, kind: str) -> nn.Module | None:
        layer: Any = self.layers[i]
        return next(
            (layer[branch.norm] for step in layer.steps for branch in step if branch.norm and branch.site == kind), None
        )

    def block_from_start(self, i: int, r: Tensor, starts: Sequence[int], at: Tap) -> tuple[Tensor, list[Any]]:
        if any(part.mixes and not hasattr(part.empty_cache(1), "before") for part in self.parts_of(i).values()):
            return super().block_from_start(i, r, starts, at)
        r, memory = self.block(i, r, self.empty_cache(i, len(r)), at)
        return r, [memory.before(start) for start in starts]

    @property
    def logit_scale(self) -> float:  # type: ignore[override]
        return float(self.config.logit_scale)

    @property
    def logit_cap(self) -> float:  # type: ignore[override]
        return float(self.config.logit_cap)

    @property
    def ending(self) -> tuple[nn.Module, Tensor]:
        return self.norm, self.lm_head.weight if isinstance(self.lm_head, nn.Linear) else self.embed_tokens.weight

    @property
    def head_bias(self) -> Tensor | None:
        return None if self.lm_head is None else self.lm_head.bias
