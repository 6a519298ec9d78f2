"""Figures of a finished study: one for each step that has numbers to show."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...report import figure_style as style
from .results import CandidateClaim, Claim, CombinedClaim, StudyResults

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Found = Mapping[str, Any]
VERDICT = {"supported": style.GREEN, "refuted": style.RED, "underpowered": style.GREY}


def short(name: str, most: int = 34) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def whisker(axes: Axes, y: float, value: Found, colour: str, marker: str = "o", label: str = "") -> None:
    """A horizontal interval with its value."""
    axes.plot([value["low"], value["high"]], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
    axes.plot([value["value"]], [y], color=colour, marker=marker, markersize=5, linestyle="none", label=label or None)


def rows_axis(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), [short(name, 60) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)


def claims_figure(figure: Figure, made: Sequence[Claim]) -> None:
    """Every claim's effect with its interval; hollow marks are the upper ends of its controls."""
    axes = figure.subplots()
    axes.axvline(0, color=style.GREY, linewidth=0.8)
    for y, claim in enumerate(made):
        whisker(axes, y, claim.effect, VERDICT[claim.verdict])
        for control in claim.controls.values():
            axes.plot([control["high"]], [y], marker="|", markersize=11, color=style.INK, linestyle="none")
    rows_axis(axes, [claim_label(claim) for claim in made])
    for verdict, colour in VERDICT.items():
        axes.plot([], [], marker="o", color=colour, label=verdict)
    axes.plot([], [], marker="|", markersize=9, color=style.INK, linestyle="none", label="upper end of a control")
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.16 - 0.4 / len(made)), ncols=4)
    axes.set_xlabel("effect (share of the metric; probes: score above models with random weights), 95 % interval")


def claim_label(claim: Claim) -> str:
    """The subject of a claim in a few words."""
    if isinstance(claim, CombinedClaim):
        return f"the combined circuit, {claim.kept} units"
    return claim.candidate if isinstance(claim, CandidateClaim) else claim.claim


def circuit_figure(figure: Figure, found: Found) -> None:
    """Effects kept by the circuit and its controls alone; and the closeness to the model of circuits of every size."""
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    left.axvline(0, color=style.GREY, linewidth=0.8)
    rows = circuit_rows(found)
    for y, (_, effect, accuracy) in enumerate(rows):
        whisker(left, y - 0.12, effect, style.BLUE, "o", "effect kept" if y == 0 else "")
        if accuracy is not None:
            whisker(left, y + 0.12, accuracy, style.ORANGE, "s", "accuracy" if y == 0 else "")
    left.axvline(found["chance"]["value"], color=style.ORANGE, linewidth=0.9, linestyle=":", label="accuracy by chance")
    rows_axis(left, [name for name, _, _ in rows])
    left.set(title="Kept alone", xlabel="share, 95 % interval")
    style.percent_axis(left, "x")
    left.legend(loc="upper center", bbox_to_anchor=(0.3, -0.2), ncols=3)
    curve = found["curve"]
    for name, colour, label in (("random", style.GREY, "random units"), ("learned", style.BLUE, "circuits")):
        low, value, high = ([point[k] for point in curve[name]] for k in ("low", "value", "high"))
        if None not in low and None not in high:
            right.fill_between(curve["size"], low, high, color=colour, alpha=0.18)
        right.plot(curve["size"], value, color=colour, marker="o", markersize=3, label=label)
    right.axvline(found["kept"], color=style.INK, linewidth=0.9, linestyle="--", label=f"{found['kept']} units")
    right.set_xscale("log")
    right.set(title="By size", xlabel=f"units kept, of {found['total']}", ylabel="effect kept")
    style.percent_axis(right)
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3)


def circuit_rows(found: Found) -> list[tuple[str, Found, Found | None]]:
    """(what is kept, effect, accuracy) of the circuit and of what it stands beside."""
    rows: list[tuple[str, Found, Found | None]] = [
        (f"the circuit, {found['kept']} units", found["effect"], found["accuracy"]),
        (f"as many random units ({found['random_units']['n']} draws)", found["random_units"], None),
        (f"all but the circuit, {found['total'] - found['kept']}", *kept_of(found["complement"])),
    ]
    if found["candidates"] is not None:
        rows.append((f"tested candidates, {found['candidates']['units']} units", *kept_of(found["candidates"])))
    return rows


def kept_of(entry: Found) -> tuple[Found, Found]:
    return entry["effect"], entry["accuracy"]


def activations_figure(figure: Figure, found: Found) -> None:
    left, right = figure.subplots(1, 2)
    for k, (layer, entry) in enumerate(found["layers"].items()):
        colour = style.CYCLE[k % len(style.CYCLE)]
        left.plot(
            range(1, len(entry["spectrum"]) + 1), np.cumsum(entry["spectrum"]), color=colour, label=f"layer {layer}"
        )
        right.plot(entry["norm_by_position"], color=colour, marker="o", markersize=2.5)
    left.set(title="Variance held", xlabel="principal directions", ylabel="share of the variance")
    style.percent_axis(left)
    left.legend()
    right.set(title="Norm by position", xlabel="position", ylabel="mean norm")
    right.set_yscale("log")


def sae_figure(figure: Figure, found: Found) -> None:
    axes = figure.subplots()
    names = list(found["layers"])
    for y, layer in enumerate(names):
        whisker(axes, y, found["layers"][layer]["variance_explained"], style.BLUE)
    rows_axis(axes, [f"layer {n} (L0 {found['layers'][n]['l0']['value']:.1f})" for n in names])
    axes.set_xlabel("variance explained on held-out prompts, 95 % interval")
    style.percent_axis(axes, "x")


def probes_figure(figure: Figure, found: Found) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
    rows = found["probes"]
    for y, row in enumerate(rows):
        whisker(left, y, row["shuffled"], style.GREY, "s", "shuffled labels" if y == 0 else "")
        whisker(left, y, row["score"], style.BLUE, "o", "held-out templates" if y == 0 else "")
    rows_axis(left, [f"{row['label']}, {row['method']}, layer {row['layer']}" for row in rows])
    left.set(title="Score", xlabel="accuracy (R² of quantities)")
    left.legend(loc="lower right")
    for k, label in enumerate(dict.fromkeys(row["label"] for row in rows)):
        mine = [row for row in rows if row["label"] == label and row["method"] != "logistic"] or rows
        best = max(mine, key=lambda row: row["score"]["value"])
        points = [p for p in best["path"] if p["units"] > 0]
        right.plot([p["units"] for p in points], [p["score"] for p in points], marker="o", markersize=3,
                   color=style.CYCLE[k % len(style.CYCLE)], label=label)  # fmt: skip
    right.set(title="Regularisation path", xlabel="units used", ylabel="score across folds")
    right.legend()


def candidates_figure(figure: Figure, found: Found) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.2))
    rows = found["candidates"][:16]
    names = [f"{row['name']} ({', '.join(row['sources'])})" for row in rows]
    values = [row["evidence"] for row in rows]
    left.barh(range(len(rows)), values, color=[style.BLUE if row["tested"] else style.GREY for row in rows], height=0.6)
    rows_axis(left, names)
    left.set(title="Evidence (blue: tested)", xlabel="share · (1 + agreement) / 2")
    table = np.array(found["overlap"])[: len(rows), : len(rows)]
    image = right.imshow(table, cmap="Blues", vmin=0, vmax=1)
    right.grid(False)
    right.set_xticks(range(len(rows)), [str(k + 1) for k in range(len(rows))])
    right.set_yticks(range(len(rows)), [str(k + 1) for k in range(len(rows))])
    right.set(title="Overlap", xlabel="candidate, strongest first")
    figure.colorbar(image, ax=right, shrink=0.8, label="‖AᵀB‖² / smaller rank")


def necessity_figure(figure: Figure, found: Found) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
    rows = found["tests"]
    left.axvline(0, color=style.GREY, linewidth=0.8)
    for y, row in enumerate(rows):
        whisker(left, y, row["random"], style.GREY, "s", "random subspaces, same rank and norm" if y == 0 else "")
        whisker(left, y, row["effect"], style.BLUE, "o", "candidate" if y == 0 else "")
    rows_axis(left, [f"{row['test']}: {short(row['candidate'], 44)}" for row in rows])
    left.set(title="Effect", xlabel=f"share of the {found['metric'].replace('_', ' ')} between prompt and twin")
    left.legend(loc="upper center", bbox_to_anchor=(0.4, -0.16))
    for k, row in enumerate(rows):
        colour = style.CYCLE[(k // 2) % len(style.CYCLE)]
        line = "-" if row["test"] == "necessity" else "--"
        right.plot([0, *row["doses"]], [0, *(d["value"] for d in row["dose"])], color=colour, linestyle=line,
                   marker="o", markersize=3)  # fmt: skip
    right.set(title="Dose (dashed: sufficiency)", xlabel="share of the candidate's part moved", ylabel="effect")


def robustness_figure(figure: Figure, found: Found) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
    kinds = ["noise inside", "noise outside", "rotation inside", "rotation outside"]
    rows = found["candidates"]
    for k, row in enumerate(rows):
        for i, kind in enumerate(kinds):
            if kind in row:
                y = i + (k - (len(rows) - 1) / 2) * 0.18
                whisker(left, y, row[kind], style.CYCLE[k % len(style.CYCLE)])
        g = row["granularity"]
        right.plot(g["ranks"], g["effect"], marker="o", markersize=3.5, color=style.CYCLE[k % len(style.CYCLE)],
                   label=short(row["candidate"], 44))  # fmt: skip
    rows_axis(left, kinds)
    left.set(title="Perturbations of the same size", xlabel="mean size of the change, share of the effect")
    right.set(title="Granularity", xlabel="first principal directions", ylabel="effect of ablating them")
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16))


def temporal_figure(figure: Figure, found: Found) -> None:
    layers = found["layers"]
    columns = max(2, len(layers))
    axes = figure.subplots(2, columns, squeeze=False)
    for k, (layer, entry) in enumerate(layers.items()):
        place = axes[0][k]
        for i, (name, group) in enumerate(sorted(entry["groups"].items())):
            for path, line in (("direct", "--"), ("total", "-")):
                curve = [max(point["value"], 1e-12) for point in group[path]["curve"]]
                who = {"circuit": "channels of the tested candidates"}.get(name, name)
                label = f"{who}, {path}" if k == 0 else None
                place.plot(curve, linestyle=line, color=style.CYCLE[i], marker="o", markersize=2.5, label=label)
        place.set_yscale("log")
        place.xaxis.get_major_locator().set_params(integer=True)
        place.set(title=f"Layer {layer}: influence by lag", xlabel="lag (tokens)", ylabel="‖∂y/∂u‖")
        maps = entry["maps"]["total"]
        below = axes[1][k]
        if maps:
            values = np.array([[math.nan if v is None else v for v in row] for row in next(iter(maps.values()))])
            below.set_facecolor("#D0D0D0")
            below.grid(False)
            image = below.imshow(np.ma.masked_invalid(values), cmap="Blues", vmin=0, aspect="auto")
            below.xaxis.get_major_locator().set_params(integer=True)
            below.set(title="Candidates' channels, one prompt", xlabel="source position", ylabel="position")
            figure.colorbar(image, ax=below, label="‖∂y/∂u‖, total")
        else:
            below.set_visible(False)
    for k in range(len(layers), columns):
        axes[0][k].set_visible(False)
        axes[1][k].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2)


def dynamics_figure(figure: Figure, found: Found) -> None:
    left, middle, right = figure.subplots(1, 3)
    for k, (layer, entry) in enumerate(found["layers"].items()):
        colour = style.CYCLE[k % len(style.CYCLE)]
        left.plot(entry["tau"], marker="o", markersize=3, color=colour, label=f"layer {layer}")
        middle.plot(range(1, len(entry["hankel"]) + 1), [max(v, 1e-12) for v in entry["hankel"]], marker="o",
                    markersize=3, color=colour)  # fmt: skip
        group = entry["groups"]["all channels"]
        right.plot(group["drop_error"], marker="o", markersize=3, color=colour, label=f"layer {layer}")
        right.plot(group["drop_error_refitted"], marker="o", markersize=3, color=colour, linestyle="--")
    for axes in (left, middle, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
    entries = list(dict.fromkeys(entry.get("tau_of", "state entry") for entry in found["layers"].values()))
    left.set(title="Time scales", xlabel=" or ".join(entries), ylabel="τ = 1 / (Δ |A|) (tokens)")
    left.set_yscale("log")
    left.legend()
    middle.set(title="Hankel singular values", xlabel="direction", ylabel="σ, mean over channels")
    middle.set_yscale("log")
    right.set(title="Dropping one entry", xlabel="state entry (dashed: refitted)", ylabel="error, share of the energy")
    right.set_yscale("symlog", linthresh=1e-4)


def reproducibility_figure(figure: Figure, found: Found) -> None:
    axes = figure.subplots()
    rows = found["rows"]
    layers = sorted({row["layer"] for row in rows})
    for k, name in enumerate(("jaccard", "rank_correlation")):
        points = [(row["layer"] + (k - 0.5) * 0.2, row[name]) for row in rows if row[name] is not None]
        label = {"jaccard": "Jaccard of the top units", "rank_correlation": "rank correlation of all units"}[name]
        axes.plot([x for x, _ in points], [y for _, y in points], marker="os"[k], linestyle="none", markersize=5,
                  color=style.CYCLE[k], label=label)  # fmt: skip
    axes.axhline(found["mask_jaccard"]["value"], color=style.INK, linewidth=1.2, label="Jaccard of the masks")
    axes.axhline(
        found["mask_jaccard_chance"], color=style.GREY, linestyle="--", linewidth=1.0, label="masks, by chance"
    )
    axes.set_xticks(layers, [f"layer {layer}" for layer in layers])
    axes.set(ylabel="agreement with the first discovery", ylim=(-0.1, 1.05))
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def transfer_figure(figure: Figure, found: Found) -> None:
    axes = figure.subplots()
    tasks = list(dict.fromkeys(row["task"] for row in found["rows"]))
    names = list(dict.fromkeys(row["candidate"] for row in found["rows"]))
    table = np.array([[next(r["effect"]["value"] for r in found["rows"] if (r["task"], r["candidate"]) == (t, c))
                       for t in tasks] for c in names])  # fmt: skip
    limit = max(1.0, float(np.abs(table).max()))
    image = axes.imshow(table, cmap=style.DIVERGING, vmin=-limit, vmax=limit, aspect="auto")
    axes.grid(False)
    axes.set_xticks(range(len(tasks)), tasks)
    axes.set_yticks(range(len(names)), [short(name, 44) for name in names])
    for row in found["rows"]:
        e = row["effect"]
        axes.text(tasks.index(row["task"]), names.index(row["candidate"]), f"{e['value']:.2f}\n[{e['low']:.2f}, "
                  f"{e['high']:.2f}]", ha="center", va="center", fontsize=7)  # fmt: skip
    figure.colorbar(image, ax=axes, label="effect lost without the candidate")


def controls_figure(figure: Figure, found: Found) -> None:
    axes = figure.subplots()
    axes.axvline(0, color=style.GREY, linewidth=0.8)
    rows = found["candidates"]
    for y, row in enumerate(rows):
        for k, (name, colour) in enumerate((("random_units", style.GREY), ("shuffled_tokens", style.PURPLE))):
            if row[name] is not None:
                whisker(axes, y + 0.2 * (k + 1) - 0.2, row[name], colour, "s", name.replace("_", " ") if y == 0 else "")
        whisker(axes, y - 0.2, row["effect"], style.BLUE, "o", "candidate" if y == 0 else "")
    rows_axis(axes, [row["candidate"] for row in rows])
    axes.set_xlabel("share of the effect lost")
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.2), ncols=3)


def trajectory_figure(figure: Figure, found: Found) -> None:
    axes = figure.subplots()
    rows = found["trajectory"]
    x = [row["step"] if row["step"] is not None else k for k, row in enumerate(rows)]
    right = axes.twinx()
    for name, place, colour in (("accuracy", axes, style.BLUE), ("carried", right, style.ORANGE)):
        values = [row[name] for row in rows]
        place.fill_between(x, [v["low"] for v in values], [v["high"] for v in values], color=colour, alpha=0.18)
        place.plot(x, [v["value"] for v in values], color=colour, marker="o", markersize=4)
        place.tick_params(axis="y", colors=colour)
    axes.set(xlabel="training step", ylabel="accuracy", ylim=(0, 1.02))
    right.set_ylabel("metric lost without the candidate", color=style.ORANGE)
    right.grid(False)
    style.percent_axis(axes)


def transfer_size(found: Found) -> tuple[float, float]:
    tasks, names = ({row[name] for row in found["rows"]} for name in ("task", "candidate"))
    return 3.5 + 1.5 * len(tasks), 1.4 + 0.5 * len(names)


def figures(study: StudyResults) -> list[tuple[str, str, tuple[float, float], Callable[[Figure], None]]]:
    """(step, caption, size, draw) of every figure that the results have numbers for, in the order of the steps."""
    steps = study.steps
    plan: list[tuple[str, str, tuple[float, float], Callable[[Figure], None]]] = []
    known: list[tuple[str, str, Callable[[Found], tuple[float, float]], Any]] = [
        ("circuit", "Effect that the combined circuit keeps alone, its controls, and circuits of every size.",
         lambda e: (9.5, 3.2), circuit_figure),
        ("activations", "Spread of the activations at each site.", lambda e: (7.5, 2.8), activations_figure),
        ("sae", "Variance of held-out activations that each dictionary explains.",
         lambda e: (6.5, 1.2 + 0.35 * len(e["layers"])), sae_figure),
        ("probes", "Scores of probes of the task's labels, beside shuffled labels; and scores from few units.",
         lambda e: (9.0, 1.6 + 0.24 * len(e["probes"])), probes_figure),
        ("candidates", "Proposals merged under one evidence score, and how they overlap.",
         lambda e: (10.0, 1.8 + 0.3 * min(16, len(e["candidates"]))), candidates_figure),
        ("necessity", "Tested candidates on held-out prompts, against random subspaces of the same rank and norm.",
         lambda e: (9.5, 1.9 + 0.32 * len(e["tests"])), necessity_figure),
        ("robustness", "Noise and rotations inside and outside each candidate, and the smallest candidate that keeps "
                       "the effect.",
         lambda e: (9.5, 3.6), robustness_figure),
        ("temporal", "Exact derivatives of the scan's output by its inputs, lag by lag.",
         lambda e: (max(8.0, 3.6 * len(e["layers"])), 6.0), temporal_figure),
        ("dynamics", "Time scales, past directions that later outputs tell apart, and the "
                     "cost of dropping a state entry.",
         lambda e: (10.0, 2.9), dynamics_figure),
        ("reproducibility", "Discoveries repeated with other prompts and seeds.", lambda e: (7.5, 3.0),
         reproducibility_figure),
        ("transfer", "Candidates tried on other tasks, 95 % intervals.", transfer_size, transfer_figure),
        ("controls", "The candidates beside their controls.", lambda e: (8.0, 1.6 + 0.5 * len(e["candidates"])),
         controls_figure),
    ]  # fmt: skip
    for name, caption, size, draw in known:
        if study.done(name) and not (name == "controls" and not steps[name]["candidates"]):
            plan.append((name, caption, size(steps[name]), partial(draw, found=steps[name])))
    if steps.get("scale", {}).get("trajectory"):
        plan.append(("scale", "The strongest candidate along training.", (6.5, 3.0),
                     partial(trajectory_figure, found=steps["scale"])))  # fmt: skip
    return plan


def draw_study(study: StudyResults, directory: Path) -> dict[str, tuple[Path, str]]:
    """Draws all figures; (path, caption) by step, ``claims`` among them."""
    found = {}
    if made := study.claims.claims:
        size = (10.0, 1.5 + 0.36 * len(made))
        path = style.save_figure(directory / "study_claims.png", size, partial(claims_figure, made=made))
        found["claims"] = (path, "Every claim's effect with its interval; ticks are the upper ends of its controls.")
    for name, caption, size, draw in figures(study):
        found[name] = (style.save_figure(directory / f"study_{name}.png", size, draw), caption)
    return found
