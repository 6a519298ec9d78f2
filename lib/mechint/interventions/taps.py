"""Sites: the named tensors of a forward, and the tap that reads and edits them.

One glossary of axes for every family:

=========== ====== ==================================================
axis        letter meaning
=========== ====== ==================================================
batch       B      prompts
position    L      tokens of a prompt (i, j, t)
model       D      width of the residual stream
channel     E      inner width of a Mamba mixer
state       N      entries of one channel's recurrent state
tap         K-1    inputs the convolution remembers, oldest first
head        H      attention heads; of k and v, the heads that have their own
dimension   d      width of one head
source      S      positions that attention reads from (j); as many as the run has
neuron      M      inner width of an MLP
vocabulary  V      next tokens
=========== ====== ==================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from .edits import Edit, told


class SiteEdit(Protocol):
    """An edit as a tap applies it to one site: an :class:`.Edit` that is no cut, or many of them at once."""

    @property
    def is_cut(self) -> bool: ...
    @property
    def positions(self) -> Sequence[int] | None:
        """The positions it applies to, counted from the start of the run; None for all."""

    @property
    def length(self) -> int | None:
        """Positions of the whole run, where known."""

    @property
    def anywhere(self) -> bool:
        """True if it takes tensors of any device, whichever its own values are on."""

    @property
    def asks_gradient(self) -> bool:
        """True if a value of it may ask for a gradient."""

    def replaces_always(self, size: int) -> Tensor | None:
        """The units [size] that it replaces at every row and position, whatever they hold; None if that is unknown."""

    def apply(self, tensor: Tensor, offset: int = 0) -> Tensor:
        """The edited tensor [batch, position, …], whose first column is the position ``offset``."""

    def on_share(self) -> SiteEdit:
        """The same edit of the part of a state that a cut removes."""


class Moved:
    """An edit as it is applied to a tensor of another device than its own: there and back."""

    is_cut = False
    anywhere = True

    def __init__(self, edit: SiteEdit, home: torch.device) -> None:
        self.edit, self.home = edit, home

    @property
    def positions(self) -> Sequence[int] | None:
        return self.edit.positions

    @property
    def length(self) -> int | None:
        return self.edit.length

    @property
    def asks_gradient(self) -> bool:
        return self.edit.asks_gradient

    def replaces_always(self, size: int) -> None:
        """Not known of values on another device."""

    def apply(self, tensor: Tensor, offset: int = 0) -> Tensor:
        return self.edit.apply(tensor.to(self.home), offset).to(tensor.device)

    def on_share(self) -> Moved:
        return Moved(self.edit.on_share(), self.home)


class Tap:
    """The records and edits of one run; a forward passes each of its sites through it, one line each.

    ``tap.within("layers.3")`` gives the forward of a layer its own view: ``at("dt", dt)`` is the site
    ``layers.3.dt``. With nothing asked for, ``at`` returns its argument.
    """

    def __init__(
        self, record: Iterable[str] | Mapping[str, Sequence[int] | None] = (), edits: Sequence[Edit] = (),
        offset: int = 0,
    ) -> None:  # fmt: skip
        self.record = frozenset(record)
        some = record.items() if isinstance(record, Mapping) else ()
        self.recorded_at = {name: positions for name, positions in some if positions is not None}
        """The positions, ascending and counted from the start, of sites that are recorded at some alone."""
        self.edits: dict[str, list[SiteEdit]] = {}
        for edit in told(edits):
            self.edits.setdefault(edit.target, []).append(edit)
        self.offset = offset
        """Position of the first token of this forward: above 0 when it goes on from a cache."""
        self.goes_on = True
        """True if a later forward may go on from this one; if not, layers need not keep their memory."""
        self.values: dict[str, Tensor] = {}
        self.fused = False
        """True if attention may be one fused product where nothing inside it is read: other bits, less memory."""
        self.home: torch.device | None = None
        """The device of recorded values and of the values of edits, in a model of several; None where there is one."""

    def come_home(self, home: torch.device) -> None:
        """Sets :attr:`home`."""
        self.home = home

    def within(self, prefix: str) -> Scope:
        return Scope(self, prefix + ".")

    def positions(self, tensor: Tensor) -> Tensor:
        """The positions [L] that stand along the second axis of a tensor [batch, L, …] of this forward."""
        return torch.arange(self.offset, self.offset + tensor.shape[1], device=tensor.device)

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        for edit in self.edits_at(name):
            tensor = edit.apply(tensor, self.offset)
        return self.keep(name, tensor)

    def edits_at(self, name: str) -> list[SiteEdit]:
        """The edits at a site in the order they were given, for tensors of any device.

        Cuts are not among them: the forward makes them itself, since they need the layer's other tensors.
        """
        found = [edit for edit in self.edits.get(name, ()) if not edit.is_cut]
        home = self.home
        return found if home is None else [edit if edit.anywhere else Moved(edit, home) for edit in found]

    def keep(self, name: str, tensor: Tensor) -> Tensor:
        """Records without editing: for a site whose edits the forward has applied itself."""
        if name not in self.record:
            return tensor
        places = self.places(name, tensor.shape[1])
        if places is None:
            kept = self.store(name, tensor)
            # gradients are asked for at what is recorded, so the forward goes on from there
            return kept.to(tensor.device) if kept.requires_grad else tensor
        index = torch.tensor(places, dtype=torch.long, device=tensor.device)
        kept = self.store(name, tensor.index_select(1, index))
        return tensor.index_copy(1, index, kept.to(tensor.device)) if kept.requires_grad else tensor

    def places(self, name: str, length: int) -> list[int] | None:
        """The columns of this forward's positions that are recorded of a site; None for all."""
        if name not in self.recorded_at:
            return None
        return [p - self.offset for p in self.recorded_at[name] if 0 <= p - self.offset < length]

    def store(self, name: str, tensor: Tensor) -> Tensor:
        """Stores the recorded positions of a site, on the device of the results."""
        self.values[name] = tensor if self.home is None else tensor.to(self.home)
        return self.values[name]


class SideBySide(Tap):
    """The tap of several forwards that share their matrix products, each with rows, positions and a tap of its own.

    Its tensors are [1, token, …]: the positions of all rows of the first forward, then those of the second, and so on.
    Nothing is recorded.
    """

    def __init__(self, taps: Sequence[Tap], shapes: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.taps = taps
        self.shapes = shapes
        """Rows and positions of each forward."""
        self.only: Sequence[Tensor] | None = None
        """The places [row, wanted] of each forward's tokens that are wanted behind this layer; None for all."""
        self.edits = {name: [] for tap in taps for name in tap.edits}  # the sites that any of them edits

    def come_home(self, home: torch.device) -> None:
        super().come_home(home)
        for tap in self.taps:
            tap.come_home(home)

    def split(self, tensor: Tensor) -> list[Tensor]:
        """[1, token, …] -> the [row, position, …] of each forward."""
        return apart(tensor, self.shapes)

    def join(self, parts: Iterable[Tensor]) -> Tensor:
        """The [row, position, …] of each forward -> [1, token, …]."""
        return torch.cat([part.flatten(0, 1) for part in parts]).unsqueeze(0)

    def wanted(self, tensor: Tensor) -> Tensor:
        """Selects from [1, token, …] the tokens that are wanted behind this layer."""
        if self.only is None:
            return tensor
        parts = zip(self.split(tensor), self.only, strict=True)
        return self.join(part[torch.arange(len(part), device=part.device)[:, None], places] for part, places in parts)

    def behind(self, tensor: Tensor) -> list[Tensor]:
        """Splits the wanted tokens [1, token, …] into the [row, wanted, …] of each forward."""
        return apart(tensor, self.shapes if self.only is None else [(len(p), p.shape[1]) for p in self.only])

    def positions(self, tensor: Tensor) -> Tensor:
        each = zip(self.taps, self.split(tensor), strict=True)
        return torch.cat([tap.positions(part).repeat(len(part)) for tap, part in each])

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        if name not in self.edits:
            return tensor
        return self.join(tap(name, part) for tap, part in zip(self.taps, self.split(tensor), strict=True))


def apart(tensor: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """[1, token, …] -> tensors [row, position, …] of these shapes."""
    parts = tensor[0].split([rows * length for rows, length in shapes])
    return [part.unflatten(0, shape) for part, shape in zip(parts, shapes, strict=True)]


class Scope:
    """A :class:`Tap` seen from one layer."""

    def __init__(self, tap: Tap, prefix: str) -> None:
        self.tap, self.prefix = tap, prefix
        self.active = any(name.startswith(prefix) for name in (*tap.record, *tap.edits))

    @property
    def offset(self) -> int:
        return self.tap.offset

    @property
    def goes_on(self) -> bool:
        return self.tap.goes_on

    def positions(self, tensor: Tensor) -> Tensor:
        return self.tap.positions(tensor)

    def wanted(self, tensor: Tensor) -> Tensor:
        """Selects the tokens that are read behind this layer: all, but where forwards side by side end."""
        return self.tap.wanted(tensor) if isinstance(self.tap, SideBySide) else tensor

    def each(self) -> list[Scope]:
        """The views of forwards that run side by side."""
        assert isinstance(self.tap, SideBySide)
        return [Scope(tap, self.prefix) for tap in self.tap.taps]

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        return self.tap(self.prefix + name, tensor) if self.active else tensor

    def keep(self, name: str, tensor: Tensor) -> Tensor:
        return self.tap.keep(self.prefix + name, tensor) if self.active else tensor

    def wants(self, *names: str) -> bool:
        """True if any of these sites is recorded or edited."""
        return self.active and any(
            self.prefix + name in self.tap.record or self.prefix + name in self.tap.edits for name in names
        )

    def records(self, name: str) -> bool:
        return self.prefix + name in self.tap.record

    def places(self, name: str, length: int) -> list[int] | None:
        """The columns of this forward's positions that are recorded of a site; None for all."""
        return self.tap.places(self.prefix + name, length)

    def store(self, name: str, tensor: Tensor) -> None:
        """Stores the recorded positions of a site."""
        self.tap.store(self.prefix + name, tensor)

    def stops(self, name: str, length: int) -> list[int] | None:
        """The columns of this forward's positions at which a site is recorded or edited; None for all of them."""
        edits = self.edits(name)
        places = self.places(name, length) if self.records(name) else []
        if places is None or self.cuts(name) or any(edit.positions is None for edit in edits):
            return None
        each = {p - self.offset for edit in edits for p in edit.positions or ()}
        return sorted({p for p in each if 0 <= p < length} | set(places))

    def edits(self, name: str) -> list[SiteEdit]:
        """The edits at a site that are not cuts, in the order they were given."""
        return self.tap.edits_at(self.prefix + name)

    def cuts(self, name: str) -> list[Edit]:
        return [edit for edit in self.tap.edits.get(self.prefix + name, ()) if isinstance(edit, Edit) and edit.is_cut]

    def from_start(self) -> Scope:
        """The same edits with nothing recorded and no cut: for a second, masked pass over a layer from position 0."""
        tap = Tap()
        tap.home = self.tap.home
        others = {name: [edit for edit in edits if not edit.is_cut] for name, edits in self.tap.edits.items()}
        tap.edits = {name: edits for name, edits in others.items() if edits}
        return Scope(tap, self.prefix)


def wanted(r: Tensor, logits_at: Tensor | None) -> Tensor:
    """The positions [batch, wanted] of r [batch, position, model] whose logits are wanted; None for all."""
    return r if logits_at is None else r.gather(1, logits_at.unsqueeze(-1).expand(-1, -1, r.shape[-1]))
