"""Path patching: the effect of what one part of a model gives another one directly.

Goldowsky-Dill et al. 2023, "Localizing model behavior with path patching"; Wang et al. 2023, "Interpretability in the
wild". Parts read and write the residual stream alone, so no pair of a sender and a receiver needs a run to find what
the receiver reads:

1. Run the prompts and their counterparts, and keep the stream wherever parts read it, and all that is added to it.
2. Take each sender's change of the stream: what its part adds with the counterpart's value at the sender's site, less
   what it adds in the prompts' own run.
3. Add the change to the stream where a receiver's part reads it, and let that part alone compute the receiver's site.
   All that other parts have written on the way keeps its value. One pass of a layer serves many senders, and all
   receivers that read the same stream.
4. Put the receiver's value into a run of the prompts, in which everything behind the receiver responds, and measure the
   metric. These runs are cells of one sweep. For the logits, the norm and the head read the changed stream themselves.

A longer path takes steps 2 and 3 again with each part on its way: what the part adds once it has read the change, less
what it adds in the prompts' own run.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..utils.errors import MechintError, did_you_mean
from .edits import Edit
from .model import Model
from .run import check_tokens, first_not_finite
from .sweep import sweep
from .taps import Tap

END = "logits"
"""The receiver that is the end of every path."""
TOGETHER = 4096
"""Tokens that one pass of a layer holds, where senders go through it together: more make no product faster."""
ROUNDING = 64
"""Changes within so many roundings of the metric count as 0: other batches add numbers in another order."""
WRITTEN = re.compile(r"(?P<site>[^\[\]@]+)(?:\[(?P<unit>\d+)\])?(?:@(?P<position>-?\d+))?")


@dataclass(frozen=True)
class Node:
    """A sender, a receiver, or a part on the way of a path: a site, one unit of it or all, some positions or all.

    ``str(node)`` is ``layers.1.q``, ``layers.1.q[2]`` for one unit, ``layers.1.q[2]@-1`` for one position of it.
    """

    site: str
    unit: int | None = None
    positions: tuple[int, ...] | None = None

    @staticmethod
    def parse(text: str) -> Node:
        """Reads a node as :meth:`__str__` writes it.

        Raises:
            MechintError: the text is not of this form.
        """
        found = WRITTEN.fullmatch(text.strip())
        if found is None:
            raise MechintError(
                f"paths: {text!r} is not a site; write layers.1.q, layers.1.q[2] for one unit, or layers.1.q[2]@-1 for "
                "one position"
            )
        unit, position = found["unit"], found["position"]
        return Node(found["site"], unit and int(unit), None if position is None else (int(position),))  # type: ignore[arg-type]

    def __str__(self) -> str:
        unit = "" if self.unit is None else f"[{self.unit}]"
        return self.site + unit + ("" if self.positions is None else f"@{'+'.join(map(str, self.positions))}")

    def edit(self, value: Tensor) -> Edit:
        """The replacement of this node by its entries of the site's value [row, position, unit …]."""
        positions = None if self.positions is None else [p % value.shape[1] for p in self.positions]
        entries = value if positions is None else value[:, positions]
        units = None if self.unit is None else [self.unit]
        if self.unit is not None:
            entries = entries[:, :, self.unit : self.unit + 1]
        # a recurrence applies it position by position, so it must know how many its entries are of
        return Edit(self.site, "replace", entries, positions=positions, units=units).resolved(value.shape[1])


@dataclass(frozen=True)
class Place:
    """The step of a layer that a site belongs to.

    Attributes:
        layer: -1 in front of the layers, and their number behind them.
        step: The number of the step within the layer.
        stream: The site of the residual stream that the step reads.
        added: The sites that the step adds to the stream.
    """

    layer: int
    step: int
    stream: str
    added: tuple[str, ...]

    @property
    def order(self) -> tuple[int, int]:
        """A part reads what was written in a smaller order."""
        return self.layer, self.step


def places(model: Model) -> dict[str, Place]:
    """The place of every site that can be a sender or a receiver, in the order of the forward."""
    found = {site: Place(-1, 0, "", (site,)) for site in model.first_sites}
    stream = ""
    for layer in range(model.num_layers):
        prefix = f"layers.{layer}."
        steps: list[tuple[str, list[str]]] = []
        for kind in (name.removeprefix(prefix) for name in model.sites if name.startswith(prefix)):
            if kind.startswith("resid_"):
                stream = prefix + kind
                steps.append((stream, []))
            elif steps and kind != "conv_state":
                steps[-1][1].append(prefix + kind)
        for number, (reads, sites) in enumerate(steps[:-1]):
            added = tuple(site for site in sites if site.removeprefix(prefix) in model.mixers)
            usable = [site for site in sites if not model.sites[site].has_sources]
            found |= dict.fromkeys(usable, Place(layer, number, reads, added))
    found[END] = Place(model.num_layers, 0, stream, ())
    return found


def check_node(model: Model, known: dict[str, Place], node: Node, length: int, what: str) -> None:
    """Raises :class:`MechintError` unless the model has the site, the unit and the positions of a node."""
    if node.site not in known:
        reason = (
            "it is the residual stream, or what only some positions of it are read by"
            if node.site in model.sites
            else f"this model has no such site{did_you_mean(node.site, known)}"
        )
        raise MechintError(f"paths: {node.site!r} is no {what}: {reason}; see model.sites")
    if node.site == END and (what != "receiver" or node.unit is not None or node.positions is not None):
        raise MechintError(f"paths: {node} is no {what}; {END} stands at the end of a path, without unit or position")
    size = model.sites[node.site].units[0]
    if node.unit is not None and node.unit >= size:
        raise MechintError(f"paths: {node} does not exist; {node.site} has {size} units (0 to {size - 1})")
    for position in node.positions or ():
        if not -length <= position < length:
            raise MechintError(f"paths: {node} does not exist; the prompts have {length} positions")


def check_path(model: Model, known: dict[str, Place], path: Sequence[Node], length: int) -> None:
    """Raises :class:`MechintError` unless every part of a path reads the stream after the one before it has written."""
    if len(path) < 2:
        raise MechintError("paths: a path has at least a sender and a receiver; give both")
    for number, node in enumerate(path):
        what = "sender" if number == 0 else "receiver" if number == len(path) - 1 else "part on the way"
        check_node(model, known, node, length, what)
    for one, then in itertools.pairwise(path):
        if known[one.site].order >= known[then.site].order:
            raise MechintError(f"paths: {then} reads the stream before {one} writes to it; no path leads there")


@dataclass(frozen=True)
class Message:
    """A change of the residual stream behind a place, [row, position, model].

    Attributes:
        whole: True if it is a change of the embeddings, which some models read beside the stream too.
    """

    order: tuple[int, int]
    change: Tensor
    whole: bool = False


class Walk:
    """One run, with the sites that are asked for and the input of every layer."""

    def __init__(self, model: Model, tokens: Tensor, record: Iterable[str]) -> None:
        check_tokens(model, tokens)
        tap = Tap(record)
        r = model.begin(tokens, tap)
        self.inputs = []
        for layer in range(model.num_layers):
            self.inputs.append(r)
            r, _ = model.block(layer, r, model.empty_cache(layer, len(tokens)), tap)
        self.inputs.append(r)
        if not torch.isfinite(r).all():
            raise MechintError(first_not_finite(model, tokens, (), None))
        self.values = tap.values


class PathPatching:
    """Prompts, and counterparts whose values senders are given.

    Args:
        model: From :func:`mechint.load`.
        tokens, others: The prompts and their counterparts, [row, position] each.
        senders: All nodes that paths may begin at.
        metric: Turns logits [cell, row, wanted, vocabulary] into [cell, row].
        logits_at: Positions whose logits the metric reads, [row, wanted].
        memory_mib: MiB of one sweep, weights not counted; a quarter as much again holds the values of senders.

    Raises:
        MechintError: tokens do not fit the model or each other; a sender does not exist.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: Model,
        tokens: Tensor,
        others: Tensor,
        senders: Sequence[Node],
        metric: Callable[[Tensor], Tensor],
        logits_at: Tensor,
        memory_mib: float = 1024.0,
    ) -> None:
        if tokens.shape != others.shape:
            raise MechintError(
                f"paths: prompts of shape {list(tokens.shape)} and counterparts of {list(others.shape)}; they must be "
                "as many and as long"
            )
        self.model, self.tokens, self.metric, self.logits_at = model, tokens, metric, logits_at
        self.memory_mib = memory_mib
        self.places = places(model)
        for node in senders:
            check_node(model, self.places, node, tokens.shape[1], "sender")
        needed = {site for place in self.places.values() for site in (place.stream, *place.added)} - {""}
        given = [node.site for node in senders]
        self.own = Walk(model, tokens, needed | set(given))
        self.other = Walk(model, others, given)

    def given(self, sender: Node) -> Message:
        """The change of the stream once a sender has the counterpart's value."""
        place = self.places[sender.site]
        return Message(place.order, self.added(sender, self.other.values[sender.site]), place.layer < 0)

    def added(self, node: Node, value: Tensor) -> Tensor:
        """The change of what a step adds to the stream once a node has its entries of a value, [row, position, model].

        value: That of the whole site, [row, position, unit …].
        """
        place, edit = self.places[node.site], node.edit(value)
        own, wide = self.own.values, self.own.inputs[0].dtype
        if node.site in place.added:
            changed = {node.site: edit.apply(own[node.site])}
        else:
            tap = Tap(place.added, [edit])
            self.pass_layer(place.layer, self.own.inputs[place.layer], tap)
            changed = tap.values
        return torch.stack([new.to(wide) - own[site].to(wide) for site, new in changed.items()]).sum(0)

    def read(self, place: Place, messages: Sequence[Message], sites: Sequence[str]) -> dict[str, Tensor]:
        """The sites of a step that has read each message alone, by site [message, row, position, unit …]."""
        most = max(1, TOGETHER // self.tokens.numel())
        parts: dict[str, list[Tensor]] = {site: [] for site in sites}
        for start in range(0, len(messages), most):
            some = messages[start : start + most]
            stream = torch.cat([self.own.values[place.stream] + message.change for message in some])
            tap = Tap(sites, [Edit(place.stream, "replace", stream)])
            self.pass_layer(place.layer, torch.cat([self.beside(message, place.layer) for message in some]), tap)
            for site in sites:
                parts[site].append(tap.values[site].unflatten(0, (len(some), -1)))
        return {site: torch.cat(values) for site, values in parts.items()}

    def pass_layer(self, layer: int, r: Tensor, tap: Tap) -> None:
        self.model.block(layer, r, self.model.empty_cache(layer, len(r)), tap)

    def beside(self, message: Message, layer: int) -> Tensor:
        """The input of a layer, whose stream is edited apart: embeddings may stand behind it."""
        own, width = self.own.inputs[layer], message.change.shape[-1]
        if own.shape[-1] == width or not message.whole:
            return own
        return torch.cat([own[..., :width], own[..., width:] + message.change.to(own.device)], -1)

    @torch.no_grad()
    def effects(self, senders: Sequence[Node], receivers: Sequence[Node], title: str = "paths") -> Tensor:
        """The change of the metric by every direct path, [sender, receiver, row] on the CPU.

        NaN where the receiver reads the stream before the sender has written.
        """
        largest = max(int(torch.tensor(self.model.sites[node.site].units).prod()) for node in receivers)
        each = 4 * self.tokens.numel() * (self.model.config.d_model + 2 * largest * len(receivers))
        most = max(1, int(self.memory_mib * 2**20 / 4) // each)
        groups = [senders[start : start + most] for start in range(0, len(senders), most)]
        return torch.cat([self.measured([self.given(node) for node in group], receivers, title) for group in groups])

    @torch.no_grad()
    def totals(self, senders: Sequence[Node], title: str = "senders") -> Tensor:
        """The change of the metric once a sender has the counterpart's value in a run that responds, [sender, row].

        That is the effect of all paths that begin there.
        """
        cells = [[node.edit(self.other.values[node.site])] for node in senders]
        return self.swept(cells, title)

    @torch.no_grad()
    def along(self, path: Sequence[Node], title: str = "path") -> Tensor:
        """The change of the metric by one path, in which every part reads the one before it alone, [row].

        Raises:
            MechintError: it has fewer than two nodes, or one that reads before the last one has written.
        """
        check_path(self.model, self.places, path, self.tokens.shape[1])
        message = self.given(path[0])
        for node in path[1:-1]:
            place = self.places[node.site]
            value = self.read(place, [message], [node.site])[node.site][0]
            message = Message(place.order, self.added(node, value))
        return self.measured([message], path[-1:], title)[0, 0]

    def measured(self, messages: Sequence[Message], receivers: Sequence[Node], title: str) -> Tensor:
        """The change of the metric once one receiver has read one message, [message, receiver, row]."""
        for node in receivers:
            check_node(self.model, self.places, node, self.tokens.shape[1], "receiver")
        found = torch.full((len(messages), len(receivers), len(self.tokens)), torch.nan, dtype=torch.float64)
        at: dict[Place, list[int]] = {}
        for k, node in enumerate(receivers):
            at.setdefault(self.places[node.site], []).append(k)
        for place, there in at.items():
            before = [k for k, message in enumerate(messages) if message.order < place.order]
            if not before:
                continue
            some = [messages[k] for k in before]
            change = (
                self.at_the_end(some)[:, None]
                if receivers[there[0]].site == END
                else self.at_parts(place, some, [receivers[k] for k in there], title)
            )
            found[torch.tensor(before)[:, None], torch.tensor(there)] = change
        return found

    def at_the_end(self, messages: Sequence[Message]) -> Tensor:
        """The change of the metric where the norm and the head read each message alone, [message, row]."""
        model, end = self.model, self.places[END].stream
        r = self.own.inputs[-1]
        values = []
        for change in (None, *(message.change for message in messages)):
            tap = Tap() if change is None else Tap((), [Edit(end, "add", change)])
            logits = model.finish(model.at_stream(tap, end, r), Tap(), self.logits_at)
            values.append(self.metric(logits.unsqueeze(0)).cpu())
        return self.less_own(torch.cat([*values[1:], values[0]]))

    def at_parts(self, place: Place, messages: Sequence[Message], receivers: Sequence[Node], title: str) -> Tensor:
        """The change of the metric in runs with one receiver's value each, [message, receiver, row]."""
        values = self.read(place, messages, list(dict.fromkeys(node.site for node in receivers)))
        cells: list[list[Edit]] = [
            [node.edit(values[node.site][k])] for k in range(len(messages)) for node in receivers
        ]
        return self.swept(cells, title).unflatten(0, (len(messages), len(receivers)))

    def swept(self, cells: list[list[Edit]], title: str) -> Tensor:
        """The change of the metric in every cell, [cell, row]."""
        # an empty cell is the prompts' own run, so that changes without an effect are exactly zero
        options: dict[str, Any] = {"logits_at": self.logits_at, "memory_mib": self.memory_mib, "title": title}
        return self.less_own(sweep(self.model, self.tokens, [*cells, []], self.metric, **options))

    def less_own(self, values: Tensor) -> Tensor:
        """Values [cell, row] less those of the last cell, without it; exactly 0 within the rounding of it."""
        change, base = (values[:-1] - values[-1]).double(), values[-1].double().abs().clamp(min=1.0)
        double = next(self.model.parameters()).dtype == torch.float64
        eps = torch.finfo(torch.float64 if double else torch.float32).eps
        return change.where(change.abs() > ROUNDING * eps * base, change.new_zeros(())) + 0.0
