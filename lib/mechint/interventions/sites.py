"""Sites: the named tensors of a forward, their axes, and the sites of a layer."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..utils.errors import MechintError, did_you_mean


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


def find_sites(sites: Mapping[str, Site], patterns: Iterable[str]) -> list[str]:
    """The site names that the names or shell patterns (``layers.*.dt``) say, each once, in the forward's order.

    Raises:
        MechintError: a name or pattern matches no site; the nearest right names are suggested.
    """
    wanted = set()
    for pattern in patterns:
        found = [pattern] if pattern in sites else fnmatch.filter(sites, pattern)
        if not found:
            raise MechintError(f"no site {pattern!r} in this model{did_you_mean(pattern, sites)}; see model.sites")
        wanted.update(found)
    return [name for name in sites if name in wanted]


RESIDUAL = ("batch", "position", "model")


def layer_windows(names: Sequence[str], width: int) -> tuple[tuple[str, ...], ...]:
    """For each layer's site, the sites of ``width`` layers around it; fewer at the first and the last layers.

    An even width reaches one layer further after the site's own than before it.
    """
    return tuple(tuple(names[max(0, k - (width - 1) // 2) : k + width // 2 + 1]) for k in range(len(names)))
