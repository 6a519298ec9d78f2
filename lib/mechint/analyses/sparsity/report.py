"""The report of a sparsity study: profiles by layer, percentiles, and where measures disagree."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...report import figure_style as style
from ...report.compose import write_page
from ...report.content import Section, between, figure, study, table_section
from ...report.control import control_findings, control_sections
from ...report.finished import ALL_FIGURES, Drawn, read_finished
from ...report.values import Value
from ...report.words import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCALE_FREE = ("gini", "hoyer", "entropy", "participation", "below_rms")
NAMES = {
    "gini": "Gini ↑", "hoyer": "Hoyer ↑", "entropy": "entropy ↓", "participation": "participation ↓",
    "below_rms": "below ε·RMS ↑", "below_optimal": "below optimal τ ↑", "below_fixed": "below fixed τ ↑",
}  # fmt: skip
"""↑: higher is sparser."""


def write_sparsity(run_dir: str | Path, drawn: Drawn = ALL_FIGURES) -> list[Path]:
    """Writes sparsity_profile.png, sparsity_map_agreement.png, sparsity_report.md and report.html."""
    run = read_finished(run_dir, "sparsity")
    raw, cells = run.raw, run.raw["cells"]
    sites = list(dict.fromkeys(cell["site"] for cell in cells))
    figures = [
        figure(
            "sparsity_profile.png",
            "Scale-free measures by layer at matched sites, with 95 % intervals over prompts; arrows point to sparser. "
            "Dotted: models with the same weights, shuffled. Last panel: variance of units over tokens at percentiles "
            "of the units, as multiples of their mean.",
            (11.0, 6.4),
            profile_figure,
            cells,
            sites,
            raw["control"],
        ),
        figure(
            "sparsity_map_agreement.png",
            "Spearman's correlation of every two measures over layers and sites, each turned so that higher is "
            "sparser. Grey: a measure that is the same everywhere.",
            (5.6, 4.8),
            agreement_figure,
            raw["agreement"],
        ),
    ]
    content = study(run, top(raw), findings(raw), sections(raw), figures, caveats(raw))
    return write_page(run.directory, content, "sparsity_report.md", drawn)


def top(raw: dict[str, Any]) -> list[tuple[str, str, str]]:
    found = [("Prompts measured", number(raw["metrics"]["prompts_used"]["value"]), "held-out")]
    for cell in raw["cells"]:
        if cell["layer"] == max(c["layer"] for c in raw["cells"]):
            entry = cell["measures"]["gini"]
            found.append((f"Gini of {cell['site']}, layer {cell['layer']}", number(entry["value"], 3), between(entry)))
    return found


def findings(raw: dict[str, Any]) -> list[tuple[bool, str]]:
    agree = raw["agreement"]
    found = []
    names = [name for name in agree["measures"] if name in SCALE_FREE]
    where = [agree["measures"].index(name) for name in names]
    values = [agree["spearman"][i][j] for i in where for j in where if i < j and agree["spearman"][i][j] is not None]
    if values:
        found.append(
            (min(values) > 0, f"Scale-free measures rank the {agree['n']} layers and sites with correlations from "
             f"{min(values):.2f} to {max(values):.2f}.")
        )  # fmt: skip
    apart = [entry for entry in raw["disagreements"] if set(entry["measures"]) <= set(SCALE_FREE)]
    said = (
        f"{len(apart)} of 10 pairs of scale-free measures rank at least two sites in opposite order, with "
        f"intervals that do not overlap."
    )
    return [*found, (not apart, said), *control_findings(raw["control"])]


def sections(raw: dict[str, Any]) -> list[Section]:
    measures = list(raw["agreement"]["measures"])
    rows = [
        (str(c["layer"]), c["site"], c["role"], str(c["units"]), *(between(c["measures"][m]) for m in measures))
        for c in raw["cells"]
    ]
    percent = sorted({p for c in raw["cells"] for p in c["percentiles"]}, key=lambda p: int(p[1:]))
    shares = [
        (
            str(c["layer"]),
            c["site"],
            *(between(c["percentiles"][p]) for p in percent),
            number(c["optimal_threshold"], 3),
        )
        for c in raw["cells"]
        if c["percentiles"]
    ]
    said = lambda place: f"layer {place['layer']} {place['site']}"
    odd = [
        (NAMES[e["measures"][0]], NAMES[e["measures"][1]], f"{e['pairs']} of {e['of']}", said(e["sparser_by_first"]),
         said(e["by_second"]))
        for e in raw["disagreements"]
    ]  # fmt: skip
    config = raw["config"]
    return [
        table_section(
            "Every measure", f"Means over tokens of held-out prompts, with 95 % intervals. ε = {config['epsilon']:g}; "
            f"the optimal τ reaches {config['target']:g} on discovery prompts; the fixed τ is the documented "
            f"{raw['fixed_threshold']:g} and is not comparable between families.",
            ("layer", "site", "role", "units", *(NAMES[m] for m in measures)), rows, range(3, 4 + len(measures)),
        ),
        table_section(
            "Percentiles of the units' variance", "Variance over tokens, as multiples of the mean over units.",
            ("layer", "site", *(p.upper() for p in percent), "optimal τ"), shares, range(2, 3 + len(percent)), True,
        ),
        table_section(
            "Where measures disagree", "Pairs of sites that two measures rank in opposite order, with intervals that "
                                       "do not overlap under either measure; and the clearest pair: the site that is "
                                       "sparser by the first measure, and the site that is sparser by the second.",
            ("first measure", "second measure", "pairs", "sparser by the first", "sparser by the second"), odd, (2,),
        ),
        *control_sections(raw["control"]),
    ]  # fmt: skip


def caveats(raw: dict[str, Any]) -> list[str]:
    return [
        "By definition p % of the units lie below their own p-th percentile; the profile therefore shows the values "
        "at the percentiles.",
        "A value near one half does not make a measure better; the report shows all measures that were fixed "
        "beforehand.",
        "Sites of different width can be compared in measures that are normalised by width; the residual stream has a "
        "few large "
        "entries in most models, which scale-free measures count as sparsity.",
    ]


def profile_figure(
    target: Figure, cells: list[dict[str, Any]], sites: list[str], control: dict[str, Any] | None
) -> None:
    axes = target.subplots(2, 3).flatten()
    for place, measure in zip(axes, SCALE_FREE, strict=False):
        for colour, site in zip(style.CYCLE * 9, sites, strict=False):
            own = [c for c in cells if c["site"] == site]
            points = [Value(**{k: c["measures"][measure][k] for k in ("value", "low", "high", "n")}) for c in own]
            style.band(place, [c["layer"] for c in own], points, colour, site)
            random = [
                row
                for row in (control["quantities"] if control else ())
                if (row["quantity"], row["site"]) == (measure, site) and row["shuffled"]
            ]
            x, theirs = [row["layer"] for row in random], [row["shuffled"]["value"] for row in random]
            place.plot(x, theirs, ":", color=colour, marker="x", markersize=3.5, linewidth=1.1)
        place.set_title(NAMES[measure])
        place.set_xlabel("layer")
        layers = sorted({c["layer"] for c in cells})
        place.set_xticks(layers[:: -(-len(layers) // 12)])
        place.set_xlim(min(layers) - 0.4, max(layers) + 0.4)
    place = axes[-1]
    for colour, site in zip(style.CYCLE * 9, sites, strict=False):
        own = [c for c in cells if c["site"] == site and c["percentiles"]]
        for k, c in enumerate(own):
            entries = sorted(c["percentiles"].items(), key=lambda item: int(item[0][1:]))
            x = [int(p[1:]) for p, _ in entries]
            values = np.array([max(entry["value"], 1e-12) for _, entry in entries])
            place.plot(x, values, color=colour, marker=".", alpha=0.35 + 0.65 * k / max(1, len(own) - 1), linewidth=1)
    place.set_yscale("log")
    place.set_title("variance of units (darker: later)")
    place.set_xlabel("percentile of the units")
    place.set_ylabel("multiple of the mean")
    handles, labels = axes[0].get_legend_handles_labels()
    target.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    target.suptitle("Sparsity of activations")


def agreement_figure(target: Figure, agree: dict[str, Any]) -> None:
    place = target.subplots()
    values = np.array([[np.nan if v is None else v for v in row] for row in agree["spearman"]])
    names = [NAMES[name][:-2] for name in agree["measures"]]
    place.set_facecolor("#999999")
    image = place.imshow(values, cmap=style.DIVERGING, vmin=-1, vmax=1)
    for i, j in np.ndindex(values.shape):
        if np.isfinite(values[i, j]):
            colour = "white" if abs(values[i, j]) > 0.6 else style.INK
            place.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", fontsize=7, color=colour)
    place.set_xticks(range(len(names)), names, rotation=40, ha="right")
    place.set_yticks(range(len(names)), names)
    place.grid(False)
    target.colorbar(image, ax=place, label="Spearman's correlation")
    target.suptitle("Do the measures agree?")


def headline(run_dir: str | Path) -> str:
    """The result in one sentence."""
    return findings(read_finished(run_dir, "sparsity").raw)[0][1]
