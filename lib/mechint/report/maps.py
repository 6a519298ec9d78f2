"""Maps of effects over layers, positions and roles, drawn as heat maps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import figure_style as style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


Grid = NDArray[np.float64]


def grid(panel: dict[str, Any], name: str) -> Grid:
    """[layer, role] with NaN for what no prompt has."""
    return np.array([[math.nan if value is None else value for value in row] for row in panel[name]], dtype=np.float64)


def broken(name: str) -> str:
    """A map's name in lines that narrow maps have room for."""
    return name.replace(" without ", "\nwithout ")


def heat(axes: Axes, values: Grid, limit: float) -> Any:
    """A map on a scale centred on zero; what no prompt has is grey."""
    axes.set_facecolor("#D0D0D0")
    axes.grid(False)
    return axes.imshow(
        np.ma.masked_invalid(values), cmap=style.DIVERGING, vmin=-limit, vmax=limit, aspect="auto",
        interpolation="nearest",
    )  # fmt: skip


def dots(axes: Axes, where: NDArray[np.bool_]) -> None:
    """A dot in each cell of a map that is marked, with an edge that shows it in the darkest ones, too."""
    at = np.argwhere(where)
    axes.plot(
        at[:, 1], at[:, 0], linestyle="none", marker="o", markersize=2.6, color=style.INK, markeredgecolor="white",
        markeredgewidth=0.5,
    )  # fmt: skip


def layer_axis(axes: Axes, layers: int) -> None:
    step = -(-layers // 8)
    axes.set_xticks(range(0, layers, step), [str(layer) for layer in range(0, layers, step)])
    axes.tick_params(axis="x", labelbottom=True)
    axes.set_xlabel("layer")


def colour(share: float) -> str:
    """A colour of the diverging scale for -1 … 1."""
    size, ends = min(1.0, abs(share)), (178, 24, 43) if share > 0 else (33, 102, 172)
    return f"rgb({','.join(str(round(247 + (end - 247) * size)) for end in ends)})"


MAP_STYLE = """
.flows { display: flex; flex-wrap: wrap; gap: 1.2rem 2rem; }
table.flow { width: auto; font-size: .75rem; border-spacing: 1px; border-collapse: separate; }
table.flow caption { text-align: left; font-weight: 650; } table.flow th { border: 0; padding: 0 .4rem 0 0;
  font-weight: 400; text-align: right; white-space: nowrap; color: var(--ink); }
table.flow thead th { vertical-align: bottom; padding: 0; } table.flow thead span { writing-mode: vertical-rl;
  transform: rotate(180deg); }
table.flow td { width: 1.5rem; height: 1.1rem; padding: 0; border: 0; } table.flow td.none { background: #999; }
table.flow td:hover, table.flow td:focus { outline: 2px solid var(--ink); }
"""
"""The style of maps in HTML: tables of the class ``flow``, beside each other in a ``flows``."""
