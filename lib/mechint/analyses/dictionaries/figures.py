"""A finished grid of sparse autoencoders: read and checked, and its figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...report import figure_style as style
from ...report.finished import FinishedRun, read_finished, valid
from ...report.values import Value, read_value
from .kinds import Kind, architecture_in_words, kind_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Shown:
    """A metric's name, its form and the scale of its colours."""

    label: str
    share: bool = False
    scale: str = "viridis"
    middle: float | None = None
    """Value at the centre of a diverging scale."""


METRICS = {
    "ce_recovered_mean": Shown("CE recovered, against the mean", True),
    "ce_recovered_zero": Shown("CE recovered, against zero", True),
    "variance_explained": Shown("variance explained", True),
    "kl": Shown("KL from the model (nats)", scale="viridis_r"),
    "l0": Shown("L0 (latents)", scale="cividis"),
    "dead": Shown("dead latents", True, "viridis_r"),
    "norm_ratio": Shown("norm, reconstructed / measured", scale=style.DIVERGING, middle=1.0),
    "mse": Shown("mean squared error", scale="viridis_r"),
    "decoder_cosine": Shown("largest decoder cosine (median)", scale="viridis_r"),
}
"""Panels of the heatmaps, in their order."""
BASELINES = {
    "pca_rank": ("PCA, first components", style.GREY, "--"),
    "pca_top": ("PCA, largest components", style.GREY, ":"),
    "neurons": ("neurons, largest", "#A6A6A6", "-."),
}
FROZEN = {"frozen_decoder": ("frozen random decoder", "x"), "frozen_encoder": ("frozen random encoder", "+")}


@dataclass(frozen=True)
class Member:
    """One dictionary of the grid."""

    raw: dict[str, Any]
    metrics: dict[str, Value]
    baselines: dict[str, dict[str, Value]]

    @property
    def name(self) -> str:
        return str(self.raw["name"])

    @property
    def group(self) -> tuple[str, str]:
        return str(self.raw["site"]), str(self.raw["architecture"])

    @property
    def reads(self) -> str:
        """The site that a transcoder reads; empty for a dictionary, which reads the site that it reconstructs."""
        return str(self.raw.get("reads", ""))

    @property
    def sparsity(self) -> float:
        return float(self.raw["sparsity"]["value"])

    @property
    def width(self) -> int:
        return int(self.raw["d_sae"])

    @property
    def baseline(self) -> str:
        return str(self.raw.get("baseline") or "")


@dataclass(frozen=True)
class Grid(FinishedRun):
    """A finished grid of dictionaries."""

    members: list[Member] = field(default_factory=list)

    @property
    def trained(self) -> list[Member]:
        return [member for member in self.members if not member.baseline]

    @property
    def groups(self) -> list[tuple[str, str]]:
        """Site and architecture of the trained dictionaries, in the order of the results."""
        return list(dict.fromkeys(member.group for member in self.trained))

    @property
    def kind(self) -> Kind:
        """Names of the members: dictionaries or transcoders."""
        return kind_of(member.reads != "" for member in self.members)

    def of(self, group: tuple[str, str]) -> list[Member]:
        return [member for member in self.trained if member.group == group]


def load_grid(run_dir: str | Path) -> Grid:
    """Reads a finished grid.

    Raises:
        MechintError: a file is missing, is not valid, or has another schema.
    """
    found = read_finished(run_dir, "sae")
    path = found.directory / "results.json"
    with valid(path):
        members = [_member(entry, path) for entry in found.raw["sae"]["members"]]
        if not members:
            raise ValueError("no dictionaries")
    return Grid(**vars(found), members=members)


def _member(entry: dict[str, Any], path: Path) -> Member:
    values = lambda some, where: {name: read_value(v, path, f"{where}.{name}") for name, v in sorted(some.items())}
    where = f"sae.members.{entry['name']}"
    peers = {name: values(peer["metrics"], f"{where}.{name}") for name, peer in entry.get("baselines", {}).items()}
    member = Member(entry, values(entry["metrics"], where), peers)
    _ = member.group, member.sparsity, member.width, entry["density"]["latents"], entry["seed"]
    return member


def called(group: tuple[str, str]) -> str:
    """Site and architecture of a group in words."""
    return f"{architecture_in_words(group[1])} at {group[0]}"


# ---- heatmaps ---------------------------------------------------------------------------------------------------


def table_of(members: Sequence[Member], metric: str) -> tuple[list[float], list[int], np.ndarray[Any, Any]]:
    """Mean over seeds of a metric: sparsities, widths and [sparsity, width], NaN where none was trained."""
    sparsities = sorted({member.sparsity for member in members})
    widths = sorted({member.width for member in members})
    cells: dict[tuple[float, int], list[float]] = {}
    for member in members:
        if metric in member.metrics:
            cells.setdefault((member.sparsity, member.width), []).append(member.metrics[metric].value)
    values = [[float(np.mean(cells.get((s, w), [math.nan]))) for w in widths] for s in sparsities]
    return sparsities, widths, np.array(values)


def draw_heatmaps(grid: Grid, group: tuple[str, str], path: Path) -> Path:
    """One panel for each metric: sparsity down, width across, every number written in its cell."""
    members = grid.of(group)
    shown = [name for name in METRICS if any(name in member.metrics for member in members)]
    sparsities, widths, _ = table_of(members, shown[0])
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    size = (columns * max(2.9, 1.35 + 0.62 * len(widths)), 0.6 + rows * max(1.9, 1.15 + 0.33 * len(sparsities)))
    return style.save_figure(path, size, partial(heatmaps, members=members, shown=shown, columns=columns, group=group))


def heatmaps(figure: Figure, members: list[Member], shown: list[str], columns: int, group: tuple[str, str]) -> None:
    places = figure.subplots(-(-len(shown) // columns), columns, squeeze=False)
    seeds = len({member.raw["seed"] for member in members})
    more = f", mean of {seeds} seeds" if seeds > 1 else ""
    figure.suptitle(f"{called(group)}{more}")
    kind = members[0].raw["sparsity"]["name"]
    for k, name in enumerate(shown):
        axes = places[k // columns][k % columns]
        sparsities, widths, values = table_of(members, name)
        image = _heat(axes, values, METRICS[name])
        axes.set_title(METRICS[name].label + (" (%)" if METRICS[name].share else ""), fontsize=9)
        axes.set_xticks(range(len(widths)), [f"{width:,}" for width in widths])
        axes.set_yticks(range(len(sparsities)), [f"{value:g}" for value in sparsities])
        axes.grid(False)
        if k % columns == 0:
            axes.set_ylabel(kind)
        if k >= len(shown) - columns:
            axes.set_xlabel("latents")
        bar = figure.colorbar(image, ax=axes, shrink=0.85, pad=0.02)
        bar.ax.tick_params(labelsize=7)
        if METRICS[name].share:
            style.percent_axis(bar.ax)
    for k in range(len(shown), places.size):
        places[k // columns][k % columns].set_axis_off()


def _heat(axes: Axes, values: np.ndarray[Any, Any], look: Shown) -> Any:
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if look.middle is not None:
        reach = max(abs(high - look.middle), abs(low - look.middle)) or 1.0
        low, high = look.middle - reach, look.middle + reach
    elif high - low < (least := 0.01 if look.share else 0.01 * abs(high)):  # or noise would look like a difference
        middle, reach = (low + high) / 2, max(least, 1e-9) / 2
        low, high = middle - reach, middle + reach
    image = axes.imshow(values, cmap=look.scale, vmin=low, vmax=high, aspect="auto")
    axes.patch.set_facecolor("#DDDDDD")
    for (row, column), value in np.ndenumerate(values):
        if not math.isnan(value):
            colour = image.cmap(image.norm(value))
            dark = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] < 0.5
            text = f"{100 * value:.1f}" if look.share else f"{value:.3g}"
            axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color="white" if dark else "black")
    return image


# ---- curves -----------------------------------------------------------------------------------------------------


def draw_curves(grid: Grid, group: tuple[str, str], path: Path) -> Path:
    """CE recovered over L0, one line for each width, with 95 % intervals and the baselines at equal L0."""
    return style.save_figure(path, (9.6, 4.3), partial(curves, grid=grid, group=group))


def curves(figure: Figure, grid: Grid, group: tuple[str, str]) -> None:
    panels = figure.subplots(1, 2, sharex=True)
    figure.suptitle(f"{called(group)}: loss with the reconstruction in place")
    members = grid.of(group)
    for axes, ablation, letter in zip(panels, ("mean", "zero"), "ab", strict=True):
        metric = f"ce_recovered_{ablation}"
        for k, width in enumerate(sorted({member.width for member in members})):
            line = sorted((m for m in members if m.width == width and metric in m.metrics), key=_l0)
            _points(axes, line, metric, style.CYCLE[k % len(style.CYCLE)], f"{width:,} latents")
        _baselines(axes, members, metric)
        for name, (label, marker) in FROZEN.items():
            frozen = [m for m in grid.members if m.baseline == name and m.group[0] == group[0] and metric in m.metrics]
            _scatter(axes, frozen, metric, label, marker)
        axes.set(title=f"against the {ablation} activation" if ablation == "mean" else "against zero",
                 xlabel="L0 (active latents on a token)", ylabel="CE recovered")  # fmt: skip
        every = [_l0(member) for member in members]
        style.log_count_axis(axes, max(min(every), 0.5), max(max(every), min(every) * 1.5, 1.0))
        style.percent_axis(axes)
        style.panel_letter(axes, letter)
    figure.legend(*_once(panels), loc="outside lower center", ncols=4)


def _l0(member: Member) -> float:
    return member.metrics["l0"].value


def _points(axes: Axes, members: Iterable[Member], metric: str, colour: str, label: str) -> None:
    """Every seed with its interval, and a line through the means over seeds."""
    members = list(members)
    points, x = [member.metrics[metric] for member in members], [_l0(member) for member in members]
    errors = [[p.value - p.low for p in points], [p.high - p.value for p in points]]
    axes.errorbar(x, [p.value for p in points], yerr=np.maximum(errors, 0), color=colour, marker="o", markersize=4,
                  capsize=2.5, elinewidth=1.0, linestyle="none", label=label)  # fmt: skip
    means = []
    for sparsity in sorted({member.sparsity for member in members}):
        same = [member for member in members if member.sparsity == sparsity]
        means.append((np.mean([_l0(m) for m in same]), np.mean([m.metrics[metric].value for m in same])))
    if means:
        axes.plot(*zip(*sorted(means), strict=True), color=colour)


def _baselines(axes: Axes, members: Sequence[Member], metric: str) -> None:
    for name, (label, colour, dashes) in BASELINES.items():
        found = {}
        for member in members:
            peer = member.baselines.get(name, {})
            if metric in peer:
                found[peer["l0"].value] = peer[metric]
        x = sorted(found)
        if x:
            axes.plot(x, [found[at].value for at in x], color=colour, linestyle=dashes, linewidth=1.3, marker=".",
                      markersize=4, label=label, zorder=1)  # fmt: skip


def _scatter(axes: Axes, members: Sequence[Member], metric: str, label: str, marker: str) -> None:
    if members:
        x, y = [_l0(member) for member in members], [member.metrics[metric].value for member in members]
        axes.plot(x, y, color=style.PURPLE, marker=marker, linestyle="none", markersize=6, label=label)


def _once(panels: Iterable[Axes]) -> tuple[list[Any], list[str]]:
    """Legend entries of several panels, each name once."""
    found: dict[str, Any] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        found |= {label: handle for handle, label in zip(handles, labels, strict=True) if label not in found}
    return list(found.values()), list(found)


# ---- densities --------------------------------------------------------------------------------------------------


def draw_densities(grid: Grid, group: tuple[str, str], path: Path) -> Path:
    """Histogram of the density of the living latents, one panel for each width, one line for each sparsity."""
    widths = len({member.width for member in grid.of(group)})
    columns = 2 if widths == 4 else min(3, widths)
    size = (3.2 * columns + 0.4, 0.9 + 2.3 * -(-widths // columns))
    return style.save_figure(path, size, partial(densities, grid=grid, group=group, columns=columns))


def densities(figure: Figure, grid: Grid, group: tuple[str, str], columns: int) -> None:
    members = grid.of(group)
    widths = sorted({member.width for member in members})
    places = figure.subplots(-(-len(widths) // columns), columns, squeeze=False, sharex=True)
    figure.suptitle(f"{called(group)}: how often latents are active")
    sparsities = sorted({member.sparsity for member in members})
    kind, first = members[0].raw["sparsity"]["name"], min(int(member.raw["seed"]) for member in members)
    used: list[float] = []
    for k, width in enumerate(widths):
        axes = places[k // columns][k % columns]
        for member in sorted((m for m in members if m.width == width and m.raw["seed"] == first), key=_sparsity):
            density = member.raw["density"]
            edges, counts = np.array(density["log10_edges"]), np.array(density["latents"])
            used += [float(edges[i]) for i in np.flatnonzero(counts)]
            colour = style.CYCLE[sparsities.index(member.sparsity) % len(style.CYCLE)]
            label = f"{kind} {member.sparsity:g}"
            axes.stairs(counts, edges, color=colour, linewidth=1.4, label=label)
        axes.set_title(f"{width:,} latents", fontsize=9)
        if k % columns == 0:
            axes.set_ylabel("latents")
        if k >= len(widths) - columns:
            axes.set_xlabel("share of tokens")
            axes.tick_params(labelbottom=True)
    axes = places[0][0]
    low = math.floor(min(used, default=-1.0))
    axes.set_xlim(low, 0)
    axes.set_xticks(range(low, 1), [f"{style.share_label(10.0**power)}" for power in range(low, 1)])
    for k in range(len(widths), places.size):
        places[k // columns][k % columns].set_axis_off()
    figure.legend(*_once(places.flat), loc="outside lower center", ncols=5)


def _sparsity(member: Member) -> float:
    return member.sparsity


def worth_drawing(grid: Grid, group: tuple[str, str], name: str) -> bool:
    """False for a figure that compares the members of a group, where there is one and nothing beside it."""
    members = grid.of(group)
    beside = any(member.baselines for member in members) or any(
        member.baseline and member.group[0] == group[0] for member in grid.members
    )
    return len(members) > 1 or name == "densities" or (name == "curves" and beside)


PLAN: tuple[tuple[str, str, Callable[[Grid, tuple[str, str], Path], Path]], ...] = (
    ("curves", "CE recovered over L0, by width, with 95 % intervals over documents; baselines, if drawn, at equal L0.",
     draw_curves),
    ("heatmaps", "Every metric over the grid: sparsity down, width across. Grey: none was trained.", draw_heatmaps),
    ("densities", "Histograms of the share of tokens a latent is active on; dead latents are not in them.",
     draw_densities),
)  # fmt: skip
"""Figures of each group: name, caption, and what draws them."""
