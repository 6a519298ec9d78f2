"""Edits: what to do at a site, on which rows, positions and units."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..utils.errors import MechintError, check_type, did_you_mean, shown
from .sites import Site, whole_numbers

MODES = ("replace", "add", "scale", "mask", "readout", "cut")
CUTS = ("state", "conv", "out", "scores", "pattern")

Value = Tensor | float | Callable[..., Tensor]


@dataclass(frozen=True, eq=False)
class Edit:
    """One intervention.

    Args:
        site: A name of ``model.sites``, such as ``"layers.3.state"``.
        mode: ``replace`` puts ``value`` there; ``add`` adds it; ``scale`` multiplies by it; ``mask`` gives
            ``value * x + (1 - value) * fill``. ``readout`` (on ``state`` only) lets C read ``value`` at these
            positions while the recurrence goes on untouched; the same as ``replace`` at the site ``readout``.
            ``cut`` removes what ``positions`` read from ``sources``, see below.
        value: A tensor or number that broadcasts to [rows, positions, units …], or a function of the clean
            selection of that shape (in token-by-token generation it is called with one position at a time).
        positions: Positions of the prompt, negative ones from its end; None for all.
        units: Indices on the axis after position; for a site with two unit axes also pairs: (channel, state),
            (head, dimension), (head, source). None for all.
        rows: Rows of the batch; None for all.
        fill: The value that ``mask`` puts where its own is 0; broadcasts like ``value``.
        sources: For ``cut``: the positions whose contribution is removed; none later than a target.
        decay: For a ``cut`` at ``out``: ``kept`` (the decays still respond to the sources) or ``frozen`` (the
            decays are those of the layer without the sources, so nothing of them is left).
        zeros_fixed: For a ``mask`` whose value asks for a gradient: True if entries of 0 do not, so that a forward may
            leave out what they drop.
        reads: A site of the same layer that comes before; the value is then a function of two tensors: the whole clean
            site, and what the same run has at that one, edited or not. For ``replace`` of all positions and units.

    Edits of one site are applied in the order given. An edit of ``state`` is carried on by the recurrence; the
    edits of ``write`` and ``decay`` are too, since the state is computed from them. An edit of ``k`` or ``v`` is seen
    by every later position. No edit of ``scores`` or ``pattern`` makes a position read what comes after it. The cuts:

    * at ``state``: C at a target reads the state without the decayed writes of the sources (the scan path alone);
    * at ``conv``: the convolution at a target does without the taps that hold the sources;
    * at ``out``: the whole mixer output at a target is that of the layer with the sources' ``x`` removed, at the
      given channels or all: ∂out_i/∂x_j is exactly zero when the decay is frozen;
    * at ``scores``: attention at a target, of the given heads or all, is shared among the other positions: it is that
      of a prompt without the sources (a position left with none reads nothing);
    * at ``pattern``: the sources' attention is lost and the others keep theirs.
    """

    site: str
    mode: str = "replace"
    value: Value | None = None
    positions: Sequence[int] | None = None
    units: Sequence[int] | Sequence[tuple[int, int]] | None = None
    rows: Sequence[int] | None = None
    fill: Value = 0.0
    sources: Sequence[int] | None = None
    decay: str = "kept"
    zeros_fixed: bool = False
    reads: str = ""
    length: int | None = None
    """Positions of the whole run, set when the edit is checked; values that name every position have this many."""
    _cache: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def target(self) -> str:
        """The site this edit is applied at: ``readout`` edits of ``state`` belong to the site ``readout``."""
        return self.site.removesuffix("state") + "readout" if self.mode == "readout" else self.site

    @property
    def is_cut(self) -> bool:
        return self.mode == "cut"

    @property
    def anywhere(self) -> bool:
        """False where the value is a function: it may hold tensors of a device of its own."""
        return not callable(self.value) and not callable(self.fill)

    @property
    def asks_gradient(self) -> bool:
        """True if a value of this edit asks for a gradient, or is a function."""
        parts = (self.value, self.fill)
        return any(callable(part) or (isinstance(part, Tensor) and part.requires_grad) for part in parts)

    def replaces_always(self, size: int) -> Tensor | None:
        """The units [size] that every row and position loses, whatever they hold, bool; None if that is not known.

        A gradient with respect to such an entry of a mask needs what the entry drops, so it is known only of masks
        without gradient, and of those whose zeros are said to be fixed.
        """
        whole = self.positions is None and self.units is None and self.rows is None
        if self.mode != "mask" or not whole or not isinstance(self.value, Tensor) or callable(self.fill):
            return None
        if self.value.numel() != size or self.value.shape[-1] != size:
            return None
        if self.value.requires_grad and not self.zeros_fixed:
            return None
        if isinstance(self.fill, Tensor) and self.fill.requires_grad:
            return None
        return self.value.detach().flatten() == 0

    def resolved(self, length: int) -> Edit:
        """The same edit with negative positions counted from ``length``."""

        def absolute(positions: Sequence[int] | None) -> list[int] | None:
            return None if positions is None else [int(p) + length if p < 0 else int(p) for p in positions]

        names = ("site", "mode", "value", "units", "rows", "fill", "decay", "zeros_fixed", "reads")
        values = {name: getattr(self, name) for name in names}
        return Edit(**values, positions=absolute(self.positions), sources=absolute(self.sources), length=length)

    def here(self, offset: int, length: int) -> list[int]:
        """The (resolved) positions of this edit in ``offset … offset + length - 1``, as absolute numbers."""
        if self.positions is None:
            return list(range(offset, offset + length))
        return [p for p in self.positions if offset <= p < offset + length]

    def apply(self, tensor: Tensor, offset: int = 0) -> Tensor:
        """The edited tensor [batch, position, …]; ``offset`` is the position of its first column.

        Positions outside the tensor are left for the forward that holds them.
        """
        if self.positions is None and self.units is None and self.rows is None:
            whole = self.length is None or (offset == 0 and tensor.shape[1] == self.length)
            here = None if whole else list(range(offset, offset + tensor.shape[1]))
            return self._new(tensor, tensor.dim(), here)
        index, keep, selected = self._select(tensor, offset)
        if selected is None:
            return tensor
        return tensor.index_put(index, self._new(selected, selected.dim(), keep).to(tensor.dtype))

    def change(self, tensor: Tensor, offset: int = 0) -> Tensor:
        """The difference that this edit makes to its selection, [row, position, unit …], which must not be empty."""
        index, keep = self._index(tensor, offset)
        selected = tensor[index]
        return self._new(selected, selected.dim(), self._kept(tensor, keep)).to(tensor.dtype) - selected

    def selection(self, tensor: Tensor, offset: int = 0) -> Tensor:
        """The rows, positions and units of this edit, [row, position, unit …]."""
        return tensor[self._index(tensor, offset)[0]]

    def plus(self, tensor: Tensor, added: Tensor, offset: int = 0) -> Tensor:
        """The tensor with ``added`` [row, position, …] on the rows and positions of this edit, all units."""
        if self.positions is None and self.rows is None:
            return tensor + added
        index, _ = Edit(self.site, positions=self.positions, rows=self.rows, length=self.length)._index(tensor, offset)
        return tensor.index_put(index, added, accumulate=True)

    def changes_nothing(self, tensor: Tensor, offset: int = 0) -> bool:
        """True if this edit leaves the tensor as it is.

        A replacement may differ by 64 roundings of the largest entry it meets: the same quantity from a run of
        another batch or length does (matrix products add in another order). Every other edit must keep each bit.
        """
        _, keep, selected = self._select(tensor, offset)
        if selected is None:
            return True
        new = self._new(selected, selected.dim(), keep)
        new = new.to(tensor.dtype)
        if self.mode not in ("replace", "readout"):
            return torch.equal(new, selected)
        largest = selected.abs().nan_to_num(posinf=0.0).amax()  # a score that was cut is -inf
        rounding = 64 * torch.finfo(tensor.dtype).eps * largest
        return bool(((new == selected) | ((new - selected).abs() <= rounding)).all())

    def on_rows(self, rows: Sequence[int]) -> Edit:
        """The same edit on other rows, as many of them."""
        return dataclasses.replace(self, rows=rows)

    def own(self, tensor: Tensor) -> Tensor:
        """The rows of this edit."""
        return tensor if self.rows is None else tensor[list(self.rows)]

    def graft(self, base: Tensor, other: Tensor, offset: int = 0) -> Tensor:
        """``base`` with the selection taken from ``other``, which has this edit's rows alone; whole positions for a
        cut at ``out``."""
        where = Edit(self.site, positions=self.positions, rows=self.rows) if self.site.endswith(".out") else self
        index, keep = where._index(base, offset)
        if not keep:
            return base
        row = torch.arange(len(other), device=other.device).view(index[0].shape)
        return base.index_put(index, other[(row, *index[1:])])

    def on_share(self) -> Edit:
        """The same edit of a state for one of its summands: a replaced state holds nothing of the summand."""
        selection = {"positions": self.positions, "units": self.units, "rows": self.rows, "length": self.length}
        if self.mode == "replace":
            return Edit(self.site, "scale", 0.0, **selection)  # type: ignore[arg-type]
        if self.mode == "add":
            return Edit(self.site, "scale", 1.0, **selection)  # type: ignore[arg-type]
        return Edit(self.site, "scale", self.value, **selection)  # type: ignore[arg-type]

    def _select(self, tensor: Tensor, offset: int) -> tuple[tuple[Tensor, ...], list[int] | None, Tensor | None]:
        """Index of the selection, which of our positions it holds (None: all), and the selection (None: empty)."""
        index, keep = self._index(tensor, offset)
        return index, self._kept(tensor, keep), tensor[index] if keep else None

    def _kept(self, tensor: Tensor, keep: list[int]) -> list[int] | None:
        """Indices of our positions that the tensor holds; None for all."""
        asked = len(self.positions) if self.positions is not None else self.length or tensor.shape[1]
        return keep if len(keep) < asked else None

    def _index(self, tensor: Tensor, offset: int) -> tuple[tuple[Tensor, ...], list[int]]:
        """Advanced index of the selection [rows, positions, units], and which of our positions it holds."""
        key = (tuple(tensor.shape[:2]), offset, tensor.device)
        if key in self._cache:
            return self._cache[key]
        length = tensor.shape[1]
        asked = range(self.length or length) if self.positions is None else self.positions
        every = [int(p) - offset for p in asked]
        keep = [k for k, p in enumerate(every) if 0 <= p < length]
        rows = list(range(tensor.shape[0])) if self.rows is None else list(self.rows)
        as_index = lambda values: torch.as_tensor(values, dtype=torch.long, device=tensor.device)
        row, position = as_index(rows), as_index([every[k] for k in keep])
        index: tuple[Tensor, ...]
        if self.units is None:
            index = (row[:, None], position[None, :])
        else:
            units = as_index(list(self.units)).reshape(len(self.units), -1)  # [U, 1] or, for pairs, [U, 2]
            index = (row[:, None, None], position[None, :, None], *(axis[None, None, :] for axis in units.T))
        self._cache[key] = (index, keep)
        return index, keep

    def _new(self, clean: Tensor, dims: int, keep: list[int] | None) -> Tensor:
        """The new values of the selection ``clean``.

        ``keep``: which of the positions asked for ``clean`` holds, None for all of them.
        """

        def operand(value: Any) -> Tensor:
            if callable(value):
                return value(clean).to(clean)
            value = torch.as_tensor(value, dtype=clean.dtype, device=clean.device)
            axis = value.dim() - dims + 1  # the position axis of a value that may lack leading axes
            if keep is None or axis < 0 or value.shape[axis] == 1:
                return value
            return value.index_select(axis, torch.as_tensor(keep, device=value.device))

        value = operand(self.value)
        if self.mode in ("replace", "readout"):
            return value.expand(clean.shape)
        if self.mode == "add":
            return clean + value
        if self.mode == "scale":
            return clean * value
        return value * clean + (1 - value) * operand(self.fill)


class Seen:
    """Holds what one run has at a site, for an edit of a later one that reads it.

    Args:
        value: The function of that edit.
    """

    def __init__(self, value: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.value = value
        self.latest: Tensor | None = None

    def keep(self, tensor: Tensor) -> Tensor:
        """Keeps what stands at the site that is read, [row, position, …], and leaves it as it is."""
        self.latest = tensor
        return tensor

    def given(self, clean: Tensor) -> Tensor:
        """The value of the edit, from the clean site [row, position, …] and what was kept.

        Raises:
            MechintError: what was kept is of other rows or positions.
        """
        if self.latest is None or self.latest.shape[:2] != clean.shape[:2]:
            raise MechintError("an edit that reads another site was applied where that site has other positions")
        return self.value(clean, self.latest)


def told(edits: Sequence[Edit]) -> list[Edit]:
    """Makes two of each edit that reads another site: one that keeps what is there, behind all others of that site, and
    one that is told. Each call makes new pairs, for one batch of rows."""
    found, readers = [], []
    for edit in edits:
        if edit.reads:
            assert callable(edit.value)
            seen = Seen(edit.value)
            readers.append(Edit(edit.reads, "replace", seen.keep, length=edit.length))
            edit = dataclasses.replace(edit, value=seen.given, reads="")
        found.append(edit)
    return found + readers


def check_edits(sites: Mapping[str, Site], edits: Sequence[Edit], rows: int, length: int) -> list[Edit]:
    """The edits with absolute positions, after checking each against the model and the prompt.

    Args:
        sites: ``model.sites``.
        edits: The edits as the caller gave them.
        rows: Batch size.
        length: Positions there will be, generated ones included.

    Raises:
        MechintError: an unknown site or mode, a position, unit or row that does not exist, a value of a shape
            that does not fit (the axis is named), a cut without sources or into the past, two replacements of the
            same place.
    """
    if isinstance(edits, Edit):
        raise MechintError(f"the edits are one edit of {edits.site!r}, not a list; say [edit]")
    check_type(edits, Iterable, "what is edited", "a list of mechint.Edit")
    checked = [_checked(sites, edit, rows, length) for edit in edits]
    _check_contradictions(checked)
    return checked


def _check_contradictions(edits: Sequence[Edit]) -> None:
    """Refuses two replacements of one place, of which the last would win silently."""
    by_target: dict[str, list[Edit]] = {}
    for edit in edits:
        if edit.mode in ("replace", "readout"):
            for other in by_target.setdefault(edit.target, []):
                if all(_meet(getattr(edit, axis), getattr(other, axis)) for axis in ("rows", "positions", "units")):
                    raise MechintError(
                        f"edit of {edit.site!r}: two edits replace the same place (positions {edit.positions} and "
                        f"{other.positions}, units {edit.units} and {other.units}); leave one out"
                    )
            by_target[edit.target].append(edit)


def _meet(some: Sequence[Any] | None, others: Sequence[Any] | None) -> bool:
    """True if two selections of an axis share a member; a channel shares all its (channel, state) pairs."""
    if some is None or others is None:
        return True
    a, b = list(some), list(others)
    if isinstance(a[0], (tuple, list)) != isinstance(b[0], (tuple, list)):
        a, b = ([unit[0] if isinstance(unit, (tuple, list)) else unit for unit in units] for units in (a, b))
    key = lambda unit: tuple(map(int, unit)) if isinstance(unit, (tuple, list)) else int(unit)
    return not {key(unit) for unit in a}.isdisjoint(key(unit) for unit in b)


SELECTIONS = ("units", "positions", "rows", "sources")
"""Fields of an edit that are indices of an axis."""


def _checked(sites: Mapping[str, Site], edit: Edit, rows: int, length: int) -> Edit:
    check_type(edit, Edit, "an edit", "a mechint.Edit")
    where = f"edit of {edit.site!r}"
    check_type(edit.site, str, "the site of an edit", "a name of model.sites")
    if edit.site not in sites:
        raise MechintError(f"no site {edit.site!r} in this model{did_you_mean(edit.site, sites)}; see model.sites")
    check_type(edit.mode, str, f"{where}: mode", f"one of {', '.join(MODES)}")
    if edit.mode not in MODES:
        raise MechintError(f"{where}: mode {edit.mode!r} is not one of {', '.join(MODES)}")
    for name in SELECTIONS:
        if isinstance(number := getattr(edit, name), int):
            raise MechintError(f"{where}: {name} is the number {number}, not a list of them; say [{number}]")
    chosen = {name: whole_numbers(f"{where}: {name}", getattr(edit, name), name == "units") for name in SELECTIONS}
    if any(chosen[name] is not getattr(edit, name) for name in SELECTIONS):
        edit = dataclasses.replace(edit, **chosen)
    kind = edit.site.rpartition(".")[2]
    if edit.mode == "readout" and kind != "state":
        raise MechintError(f"{where}: mode 'readout' is for the site 'state' alone")
    if edit.reads:
        _check_reads(where, edit, sites)
    site = sites[edit.site].of_length(length)
    edit = edit.resolved(length)
    _in_range(where, "position", edit.positions, length)
    _in_range(where, "row", edit.rows, rows)
    if edit.units is not None:
        # the units of a cut at `out` are the channels whose x is removed
        units = sites[edit.site.removesuffix("out") + "x"] if edit.is_cut and kind == "out" else site
        _check_units(where, units, edit)
    if edit.is_cut:
        _check_cut(where, kind, edit, sites, length)
        if site.has_sources:
            return _cut_of_attention(site, edit)
    elif callable(edit.value) and edit.mode in ("scale", "mask"):
        raise MechintError(f"{where}: the value of {edit.mode!r} is a number or tensor; with a function use 'replace'")
    elif edit.value is None:
        raise MechintError(f"{where}: mode {edit.mode!r} needs a value")
    else:
        _check_shape(where, "value", edit.value, _selection(site, edit, rows, length))
        if edit.mode == "mask":
            _check_shape(where, "fill", edit.fill, _selection(site, edit, rows, length))
    return edit


def _check_reads(where: str, edit: Edit, sites: Mapping[str, Site]) -> None:
    """Refuses what an edit cannot read: a site of another layer, or one that does not come before."""
    if edit.reads not in sites:
        raise MechintError(f"{where}: it reads {edit.reads!r}, which is no site{did_you_mean(edit.reads, sites)}")
    layer, order = edit.site.rpartition(".")[0], list(sites)
    if not layer or edit.reads.rpartition(".")[0] != layer or order.index(edit.reads) >= order.index(edit.site):
        raise MechintError(f"{where}: it reads {edit.reads!r}; it can read a site of its own layer that comes before")
    if edit.mode != "replace" or not callable(edit.value) or (edit.positions, edit.units, edit.rows) != (None,) * 3:
        raise MechintError(f"{where}: an edit that reads another site replaces all of its own, by a function")


def _in_range(where: str, axis: str, values: Sequence[int] | None, size: int) -> None:
    if values is None:
        return
    if len(values) == 0:
        raise MechintError(f"{where}: an empty list of {axis}s edits nothing; leave it out to mean all of them")
    if len(set(values)) != len(values) and axis in ("position", "row"):
        raise MechintError(f"{where}: {axis} {max(values, key=list(values).count)} is named twice")
    bad = [value for value in values if not 0 <= value < size]
    if bad:
        raise MechintError(f"{where}: {axis} {bad[0]} does not exist; there are {size} (0 to {size - 1})")


def _check_units(where: str, site: Site, edit: Edit) -> None:
    if not edit.units:
        raise MechintError(f"{where}: an empty list of units edits nothing; leave it out to mean all of them")
    units = torch.as_tensor(list(edit.units)).reshape(len(edit.units), -1)  # [U, 1] or, for pairs, [U, 2]
    if units.shape[1] > len(site.units):
        raise MechintError(f"{where}: units are pairs, but the site has only the axis {site.axes[2]!r}")
    for axis in range(units.shape[1]):
        _in_range(where, site.axes[2 + axis], units[:, axis].tolist(), site.units[axis])


def _check_cut(where: str, kind: str, edit: Edit, sites: Mapping[str, Site], length: int) -> None:
    known = [name for name in CUTS if any(site.endswith("." + name) for site in sites)]
    if kind not in known:
        raise MechintError(
            f"{where}: a cut is made at {', '.join(map(repr, known[:-1]))} or {known[-1]!r}, not at {kind!r}"
        )
    if not edit.positions or not edit.sources:
        raise MechintError(f"{where}: a cut needs positions (the readers) and sources (what they no longer read)")
    _in_range(where, "source position", edit.sources, length)
    if min(edit.positions) < min(edit.sources):
        raise MechintError(f"{where}: position {min(edit.positions)} reads none of the sources: all come after it")
    if edit.decay not in ("kept", "frozen"):
        raise MechintError(f"{where}: decay is {edit.decay!r}; it must be 'kept' or 'frozen'")
    reach = sites[edit.site + "_state"].units[1] if kind == "conv" else length
    if not any(0 <= i - j <= reach for i in edit.positions for j in edit.sources):
        raise MechintError(f"{where}: no position is within the {reach + 1} taps of a source; there is nothing to cut")


def _cut_of_attention(site: Site, edit: Edit) -> Edit:
    """A cut at ``scores`` or ``pattern`` in the words of other modes, of which one place may get several."""
    heads = torch.arange(site.units[0]) if edit.units is None else torch.as_tensor(list(edit.units))
    if heads.dim() > 1:
        raise MechintError(f"edit of {edit.site!r}: the units of a cut are heads here, and sources= has their sources")
    mode, value = ("add", -math.inf) if site.absent else ("scale", 0.0)
    units = list(itertools.product(heads.tolist(), edit.sources or ()))
    return dataclasses.replace(edit, mode=mode, value=value, units=units, sources=None)


def _selection(site: Site, edit: Edit, rows: int, length: int) -> tuple[tuple[str, int], ...]:
    """The axes and sizes that the value of an edit must broadcast to."""
    sizes = [rows if edit.rows is None else len(edit.rows), length if edit.positions is None else len(edit.positions)]
    if edit.units is None:
        sizes += site.units
        axes = site.axes
    else:
        pairs = torch.as_tensor(list(edit.units)).dim() == 2
        sizes += [len(edit.units), *site.units[2 if pairs else 1 :]]
        axes = (*site.axes[:2], "unit", *site.axes[4 if pairs else 3 :])
    return tuple(zip(axes, sizes, strict=True))


def _check_shape(where: str, what: str, value: Any, selection: tuple[tuple[str, int], ...]) -> None:
    if callable(value):
        return
    try:
        shape = tuple(torch.as_tensor(value).shape)
    except (TypeError, ValueError, RuntimeError):
        raise MechintError(f"{where}: the {what} is {shown(value)}; give a tensor, a number or a function") from None
    expected = ", ".join(f"{axis}={size}" for axis, size in selection)
    if len(shape) > len(selection):
        raise MechintError(f"{where}: the {what} has shape {list(shape)}, more axes than the selection [{expected}]")
    for size, (axis, full) in zip(reversed(shape), reversed(selection), strict=False):
        if size not in (1, full):
            raise MechintError(
                f"{where}: the {what} has shape {list(shape)}, which does not broadcast to [{expected}] "
                f"at the axis {axis!r} ({size} against {full})"
            )
