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


def layer_axis(axes: Axes, layers: int) -> None:
    step = -(-layers // 8)
    axes.set_xticks(range(0, layers, step), [str(layer) for layer in range(0, layers, step)])
    axes.tick_params(axis="x", labelbottom=True)
    axes.set_xlabel("layer")
