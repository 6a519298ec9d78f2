"""Sites: the named tensors of a forward, their axes, and the sites of a layer."""

from __future__ import annotations

import fnmatch
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..utils.errors import MechintError, check_type, did_you_mean, shown


@dataclass(frozen=True)
class Site:
    """A named tensor. ``axes`` names its dimensions and ``units`` holds the sizes after batch and position.

    The size of an axis ``source`` is 0 there: it is the number of positions of the run, see :meth:`of_length`.
    """

    name: str
    axes: tuple[str, ...]
    units: tuple[int, ...]
    absent: float = 0.0
    """The value at the sources that come after the position."""

    @property
    def has_sources(self) -> bool:
        return self.axes[-1] == "source"

    def of_length(self, length: int) -> Site:
        """The same site in a run of that many positions."""
        return replace(self, units=(*self.units[:-1], length)) if self.has_sources else self

    def __str__(self) -> str:
        sizes = ["", "", *(f"={size}" if size else "" for size in self.units)]
        return f"{self.name} [{', '.join(a + s for a, s in zip(self.axes, sizes, strict=True))}]"


def find_sites(sites: Mapping[str, Site], patterns: str | Iterable[str]) -> list[str]:
    """The site names that a name or shell pattern (``layers.*.dt``), or several, say: each once, in a run's order.

    Raises:
        MechintError: a name or pattern matches no site; the nearest right names are suggested.
    """
    check_type(patterns, Iterable, "what names sites", "a list of names")
    wanted = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        check_type(pattern, str, "the name of a site", "a name of model.sites")
        found = [pattern] if pattern in sites else fnmatch.filter(sites, pattern)
        if not found:
            raise MechintError(f"no site {pattern!r} in this model{did_you_mean(pattern, sites)}; see model.sites")
        wanted.update(found)
    return [name for name in sites if name in wanted]


Wanted = Iterable[str] | Mapping[str, Sequence[int] | None]
"""Sites to record: names or shell patterns, or each with the positions that are wanted of it (None for all)."""


def recorded_sites(
    sites: Mapping[str, Site], wanted: Wanted, length: int, offset: int = 0
) -> dict[str, tuple[int, ...] | None]:
    """The sites that a run of the positions ``offset … length - 1`` records, in the forward's order.

    Args:
        wanted: Negative positions count from the end. A site that several patterns name has all of their positions.

    Returns:
        The positions of each site, ascending, counted from the start; None for all.

    Raises:
        MechintError: no such site, or no such position in this run.
    """
    if not isinstance(wanted, Mapping):
        return dict.fromkeys(find_sites(sites, wanted))
    found: dict[str, set[int] | None] = {}
    for pattern, positions in wanted.items():
        if positions is not None and not (
            isinstance(positions, Sequence) and all(isinstance(p, int) for p in positions)
        ):
            raise MechintError(
                f"record of {pattern!r}: positions are a list of whole numbers or None, not {shown(positions)}; for "
                "all positions of all sites give list(record)"
            )
        for p in positions or ():
            if not offset <= (p + length if p < 0 else p) < length:
                raise MechintError(
                    f"record of {pattern!r}: position {p} is not in this run, which has the positions {offset} … "
                    f"{length - 1}"
                )
        some = None if positions is None else {p + length if p < 0 else p for p in positions}
        for name in find_sites(sites, [pattern]):
            before = found.get(name, set())
            found[name] = None if some is None or before is None else before | some
    return {name: None if (some := found[name]) is None else tuple(sorted(some)) for name in sites if name in found}


RESIDUAL = ("batch", "position", "model")


def layer_windows(names: Sequence[str], width: int) -> tuple[tuple[str, ...], ...]:
    """For each layer's site, the sites of ``width`` layers around it; fewer at the first and the last layers.

    An even width reaches one layer further after the site's own than before it.
    """
    return tuple(tuple(names[max(0, k - (width - 1) // 2) : k + width // 2 + 1]) for k in range(len(names)))


def whole_numbers(where: str, said: Any, pairs: bool) -> Any:
    """Indices, or ``pairs`` of them, as Python's whole numbers; lists of these and None come back as they are.

    Raises:
        MechintError: something else, such as a mask of truth values or fractions, which would be cut to whole numbers.
    """
    if said is None or (isinstance(said, (list, tuple, range)) and all(type(one) is int for one in said)):
        return said
    try:
        if isinstance(said, (str, Mapping)):
            raise TypeError
        plain = said.tolist() if hasattr(said, "tolist") else said
        return [tuple(map(_whole, one)) if pairs and isinstance(one, (list, tuple)) else _whole(one) for one in plain]
    except (TypeError, AttributeError):
        raise MechintError(f"{where} is {shown(said)}, not a list of whole numbers; give their indices") from None


def _whole(said: Any) -> int:
    plain: Any = said.item() if hasattr(said, "item") else said
    if isinstance(plain, bool):
        raise TypeError
    return operator.index(plain)
