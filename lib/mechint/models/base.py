"""The parts of a forward that all families share; a family's file holds the rest."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..interventions.model import Cache
from ..interventions.sites import RESIDUAL, Site
from ..interventions.taps import SideBySide, Tap, wanted
from ..interventions.unit_kinds import UnitKind
from ..utils.errors import MechintError
from ..utils.program import suited
from .loading.tokenizer import Encoder, lacking
from .parts.rotation import crossing


class LanguageModel(nn.Module, ABC):
    """A language model in parts: a run goes through all of them, a sweep starts in the middle.

    ``model(tokens)`` gives the logits; :func:`mechint.run` and :func:`mechint.generate` read and edit.
    """

    first_sites: Sequence[str] = ()
    """Sites before the layers."""
    carried_sites: Collection[str] = ()
    """Sites of a layer whose recorded tensor is not the one that is read on."""
    local_sites: Collection[str] = ()
    """Sites of a layer whose edits no later position of the same layer sees."""
    late_sites: Mapping[str, tuple[str, str]] = {}
    """Sites of a layer that are read by a linear map into the residual stream alone: a site that they are multiplied by
    before it, and the map's module; empty where there is none."""
    side_by_side = False
    """True if forwards from several positions share the matrix products of a layer; see :meth:`blocks`."""
    mediators: Collection[str] = ()
    """Sites of a layer that are usually traced."""
    mixers: Collection[str] = ()
    """Sites of a layer that are added to the residual stream."""
    parts: Mapping[str, tuple[str, str]] = {}
    """Parts of a layer by the name users know, each with the sites of its input and output."""
    paths: Collection[str] = ()
    """Sites of a layer where a cut of the flow between two positions is usually made."""
    patched: Sequence[str] = ()
    """Sites of a layer whose units are usually patched one by one; the first is the one that is usually studied."""
    single: Sequence[str] = ()
    """Sites of a layer whose units are usually ablated one by one."""
    ranked: str = ""
    """The site of a layer whose units are ranked, put into circuits and followed through layers; empty for none."""
    memory: Sequence[str] = ()
    """Sites of a layer that hold what later positions read: states, inputs of a convolution, values and keys."""
    projected: Collection[str] = ()
    """Sites of a layer that its output projections read."""
    unit_kinds: Mapping[str, UnitKind] = MappingProxyType({})
    """The kinds of unit that a circuit can be made of, by name."""
    logit_scale = 1.0
    """Multiplies what the head gives, its bias included."""
    logit_cap = 0.0
    """Logits are cap · tanh(logit / cap); 0 leaves them as they are."""
    scored_unit: str = ""
    """The kind of unit that methods are asked to rank on models whose circuit is known."""

    border = 0
    """The longest run whose positions are read as those of short ones; longer ones read every position otherwise
    (longrope), so that no memory leads from one to the other. 0 where all runs are read alike."""
    placeable = False
    """True if :meth:`block` begins with :meth:`arrive` and ends with :meth:`leave`, and no layer uses another's
    weights, so that layers may be on several devices."""
    placement: Sequence[torch.device] = ()
    """The device of each layer, where they are on several; see :mod:`.placement`."""

    config: Any
    layers: nn.ModuleList
    _entries: int | None = None
    sites: Any
    """Every site of the forward by name, in its order: dict[str, Site]."""
    tokenizer: Any = None
    """The checkpoint's ``tokenizers.Tokenizer``; None where it came with none."""
    source: str = "the model"
    """The path or name it was loaded from, for messages."""
    metadata: Mapping[str, Any] = MappingProxyType({})
    """The checkpoint's configuration and other plain values."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids [batch, position] -> logits [batch, position, vocabulary]."""
        return self.trace(tokens, Tap())[0]

    def trace(
        self, tokens: Tensor, at: Tap, cache: Cache | None = None, logits_at: Tensor | None = None
    ) -> tuple[Tensor, Cache]:
        """The forward with a tap, behind a cache.

        Args:
            tokens: [batch, position].
            at: Records and edits; its offset must be ``cache.position``.
            cache: From an earlier call on the positions before; None at the start.
            logits_at: Positions of this call whose logits are wanted, [batch, wanted]; None for all.

        Returns:
            Logits [batch, position or wanted, vocabulary], and the cache behind these positions.
        """
        r, cache = self.through(tokens, at, cache)
        return self.finish(r, at, logits_at), cache

    def through(self, tokens: Tensor, at: Tap, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """The residual stream behind the last layer [batch, position, model], and the cache."""
        before = cache.layers if cache else [self.empty_cache(i, len(tokens)) for i in range(len(self.layers))]
        with suited(self.work(tokens.numel())):
            r = self.begin(tokens, at)
            after = []
            for i in range(len(self.layers)):
                r, memory = self.block(i, r, before[i], at)
                after.append(memory)
        return r, Cache(after, at.offset + tokens.shape[1])

    def read_by_head(self, tokens: Tensor, at: Tap, logits_at: Tensor) -> Tensor:
        """The input of the head: the final norm at the wanted positions, [batch, wanted, model].

        Attention is fused where nothing inside it is read, so the last bits may differ from those of :meth:`trace`.
        """
        at.fused = True
        return at("final_norm", self.ending[0](wanted(self.through(tokens, at)[0], logits_at)))

    def to_tokens(self, text: str | Sequence[str], bos: bool = True) -> Tensor:
        """Token ids of one text or of several, [text, position].

        Args:
            text: Texts of equally many tokens.
            bos: True if they begin with what the tokenizer puts in front of a text.

        Raises:
            MechintError: the model has no tokenizer, or texts have different numbers of tokens.
        """
        texts = [text] if isinstance(text, str) else list(text)
        if self.tokenizer is None:
            raise MechintError(f"{self.source} has no tokenizer to read text with; {lacking()}")
        encoder = Encoder(self.tokenizer, bos)
        rows = [encoder.prompt(each).ids for each in texts]
        if len({len(row) for row in rows}) != 1:
            raise MechintError(
                f"the texts have {', '.join(str(len(row)) for row in rows) or 'no'} tokens; a batch needs texts of one "
                "length, so give them one by one"
            )
        return torch.tensor(rows, device=self.device)

    def to_str_tokens(self, tokens: Tensor | Sequence[int] | str) -> list[str]:
        """The text of each token of a prompt [position], of a batch of one, or of a text."""
        if self.tokenizer is None:
            raise MechintError(f"{self.source} has no tokenizer to spell tokens with; {lacking()}")
        ids = self.to_tokens(tokens)[0] if isinstance(tokens, str) else torch.as_tensor(tokens)
        if ids.dim() > 1 and len(ids) > 1:
            raise MechintError(f"to_str_tokens takes one prompt, and these are {len(ids)}; give tokens[row]")
        encoder = Encoder(self.tokenizer)
        return [encoder.decode(int(token)) for token in ids.flatten()]

    def work(self, positions: int) -> int:
        """Multiply-adds of a layer's matrix products for so many positions of all rows, about."""
        if self._entries is None:
            self._entries = sum(parameter.numel() for parameter in self.layers.parameters())
        return positions * self._entries // max(1, len(self.layers))

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def device(self) -> torch.device:
        """The device of the weights; of several that of embeddings and head, where prompts and results are."""
        return self.embeddings.device

    def to(self, *arguments: Any, **named: Any) -> Any:
        """As torch does it; layers on several devices stay there, and asking for :attr:`device` changes nothing.

        Raises:
            MechintError: layers are on several devices, and another one is asked for.
        """
        device, dtype, *_ = torch._C._nn._parse_to(*arguments, **named)
        if not self.placement or device is None:
            return super().to(*arguments, **named)
        if device != self.device:
            raise MechintError(
                f"the layers of {self.source} are on several devices, and {device} is asked for; load it for that one"
            )
        return self if dtype is None else super().to(dtype)

    def arrive(self, i: int, r: Tensor, at: Tap) -> Tensor:
        """The residual stream on the device of layer i."""
        if not self.placement:
            return r
        at.come_home(self.device)
        return r.to(self.placement[i])

    def leave(self, i: int, r: Tensor) -> Tensor:
        """The residual stream behind layer i; behind the last one on the device of the head."""
        return r.to(self.device) if self.placement and i == len(self.layers) - 1 else r

    def parts_of(self, i: int) -> Mapping[str, nn.Module]:
        """The parts of layer i by name, which add to the residual stream; here the layer as a whole."""
        return {"layer": self.layers[i]}

    def norm_at(self, i: int, kind: str) -> nn.Module | None:
        """The norm of layer i that gives this site; None where none does."""
        return None

    @property
    @abstractmethod
    def embeddings(self) -> Tensor:
        """The embedding of every token, [vocabulary, model]."""

    def added_at(self, site: str) -> str | None:
        """The site, added to the residual stream, to which a linear map alone takes a site of a layer.

        It is the site itself where that is added as it is; None where anything else lies between.
        """
        prefix, _, kind = site.rpartition(".")
        if kind in self.mixers:
            return site
        behind = dict(zip(self.projected, self.mixers, strict=True)).get(kind)
        return behind and f"{prefix}.{behind}"

    def check_length(self, length: int) -> None:
        """Raises :class:`MechintError` for more positions than the model can have."""

    def check_behind(self, before: int, length: int) -> None:
        """Raises :class:`MechintError` where ``length`` positions cannot go on from a memory of ``before``."""
        if 0 < before <= self.border < length:
            raise crossing(self.border, before, length)

    @abstractmethod
    def begin(self, tokens: Tensor, at: Tap) -> Tensor:
        """Token ids [batch, position] -> the residual stream before the first layer [batch, position, model]."""

    @abstractmethod
    def empty_cache(self, i: int, rows: int) -> Any:
        """The memory of layer i before the first position."""

    @abstractmethod
    def block(self, i: int, r: Tensor, cache: Any, at: Tap) -> tuple[Tensor, Any]:
        """Layer i on the residual stream [batch, position, model]; returns it and the layer's memory behind it.

        It begins with ``r = self.arrive(i, r, at)`` and returns ``self.leave(i, r)``, where it is :attr:`placeable`.
        """

    def blocks(
        self,
        i: int,
        streams: Sequence[Tensor],
        caches: Sequence[Any],
        taps: Sequence[Tap],
        only: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """Layer i on several residual streams, each [batch, position, model] behind a memory and with a tap of its own.

        Where the family is :attr:`side_by_side`, all of them go through its matrix products at once; with ``only``
        [batch, wanted] for each it gives these positions alone, where nothing is edited at :attr:`local_sites`.
        """
        if not self.side_by_side:
            assert only is None
            with suited(self.work(max((r.shape[0] * r.shape[1] for r in streams), default=0))):
                return [self.block(i, *each)[0] for each in zip(streams, caches, taps, strict=True)]
        with suited(self.work(sum(r.shape[0] * r.shape[1] for r in streams))):
            return self.together(i, streams, caches, taps, only)

    def together(
        self, i: int, streams: Sequence[Tensor], caches: Sequence[Any], taps: Sequence[Tap],
        only: Sequence[Tensor] | None,
    ) -> list[Tensor]:  # fmt: skip
        """:meth:`blocks` with shared matrix products."""
        at = SideBySide(taps, [(r.shape[0], r.shape[1]) for r in streams])
        at.only = only if only is None or not self.placement else [places.to(self.placement[i]) for places in only]
        return at.behind(self.block(i, at.join(streams), list(caches), at)[0])

    def into_stream(self, i: int, kind: str, change: Tensor, units: Sequence[int] | None) -> Tensor:
        """Maps a change of a late site (times the other site) to its change of the residual stream behind layer i.

        Args:
            change: At some units or all of them, [..., unit].

        Returns:
            [..., model].
        """
        if module := self.late_sites[kind][1]:
            weight = cast(nn.Linear, self.layers[i].get_submodule(module)).weight  # [model, unit]
            weight = weight if units is None else weight[:, list(units)]
            return F.linear(change.to(weight.device), weight)
        if units is None:
            return change
        where = torch.as_tensor(list(units), device=change.device)
        return change.new_zeros(*change.shape[:-1], self.config.d_model).index_add_(-1, where, change)

    def at_stream(self, at: Tap, name: str, r: Tensor) -> Tensor:
        """The residual stream between two layers, passed through a site of it."""
        if self.placement:
            at.come_home(self.device)
        return at(name, r)

    def block_from_start(self, i: int, r: Tensor, starts: Sequence[int], at: Tap) -> tuple[Tensor, list[Any]]:
        """:meth:`block` on all positions, and its memory of the positions before each start (ascending, 0 first).

        Here in pieces; a family that can keep its memory in passing has matrix products of whole prompts.
        """
        memory, pieces, memories = self.empty_cache(i, len(r)), [], []
        for start, end in itertools.pairwise([*starts, r.shape[1]]):
            memories.append(memory)
            at.offset = start
            piece, memory = self.block(i, r[:, start:end], memory, at)
            pieces.append(piece)
        at.offset = 0
        return torch.cat(pieces, 1), memories

    def finish(self, r: Tensor, at: Tap, logits_at: Tensor | None = None) -> Tensor:
        """The logits [batch, position or wanted, vocabulary] of a residual stream behind the last layer."""
        return at("logits", self.unembed(at("final_norm", self.ending[0](wanted(r, logits_at)))))

    def unembed(self, read: Tensor) -> Tensor:
        """The logits [..., vocabulary] of what the head reads [..., model]."""
        logits = F.linear(read, self.ending[1], self.head_bias)
        logits = logits if self.logit_scale == 1.0 else logits * self.logit_scale
        return self.logit_cap * torch.tanh(logits / self.logit_cap) if self.logit_cap else logits

    @property
    @abstractmethod
    def ending(self) -> tuple[nn.Module, Tensor]:
        """The final norm and the head [vocabulary, model]."""

    @property
    def head_bias(self) -> Tensor | None:
        """The bias that is added to the head's products, before ``logit_scale``, [vocabulary]; None for none."""
        return None


if TYPE_CHECKING:
    from ..interventions.model import Model

    def provides(model: LanguageModel) -> Model:
        """Holds the class, for the type checker, to the interface that interventions and analyses ask for."""
        return model


def outer_sites(d_model: int, vocab_size: int) -> list[Site]:
    """The sites behind the layers, the same in every family."""
    return [
        Site("final_norm", RESIDUAL, (d_model,)),
        Site("logits", ("batch", "position", "vocabulary"), (vocab_size,)),
    ]
