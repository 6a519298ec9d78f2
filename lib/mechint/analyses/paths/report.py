"""The report of a path patching: path_report.md and report.html, whose matrices show a value for every pair."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from html import escape
from pathlib import Path

from ...report.compose import write_page
from ...report.content import Checks, Content, Figure, Section, Widget, of_run, table_section
from ...report.finished import ALL_FIGURES, Drawn
from ...report.maps import MAP_STYLE, colour
from ...report.to_log import ToLog, metric_values, records
from ...report.words import chance, metric_label, number, value_cells
from ...utils.statistics import UNADJUSTED
from ..tracing.report import lowered, with_interval
from .figures import ALPHA, WAYS, Paths, draw_matrix, draw_strongest, load_paths, rows_of, short

STRONGEST = ("direction", "sender", "receiver", "effect", "interval", "n", "p (all pairs)")
SENDERS = ("sender", "effect of all its paths", "interval", "p (all senders)", "directly on the logits", "interval")
ALONG = ("path", "direction", "effect", "interval", "n", "p (all these paths)")
LISTED = 40  # senders in the table; results.json has all


def write_paths(run_dir: str | Path, drawn: Drawn = ALL_FIGURES) -> list[Path]:
    """Writes the figures, path_report.md and report.html of a finished path patching into its directory."""
    paths = load_paths(run_dir)
    return write_page(paths.directory, content(paths), "path_report.md", drawn)


def content(paths: Paths) -> Content:
    """The page: the strongest paths, a matrix of every pair, the senders, further paths and the figures."""
    unit = paths.unit
    strongest, every = tables(paths)
    sections = [Section("Evidence", [Checks(findings(paths))]), strongest, Section("Figures", figures(paths)), every]
    if paths.raw["along"]:
        sections.append(table_section(f"Further paths ({unit})", "", ALONG, along_rows(paths), (2, 3, 4, 5)))
    for direction in paths.matrices:
        title = f"Senders, {direction} ({unit})"
        sections.append(table_section(title, "", SENDERS, sender_rows(paths, direction), range(1, 6), folded=True))
    cards, said = list(top_cards(paths)), caveats(paths)
    return of_run(paths, sections, said, lead=headline_of(paths), cards=cards, facts=facts(paths))


def tables(paths: Paths) -> tuple[Section, Section]:
    """The strongest direct paths, and a matrix of every pair."""
    title = f"Strongest direct paths ({paths.unit})"
    return (
        table_section(title, "", STRONGEST, strongest_rows(paths), (3, 4, 5, 6)),
        Section("Every direct path", [Widget("\n".join(maps(paths)), MAP_STYLE + ".flows { overflow-x: auto; }")]),
    )


def figures(paths: Paths) -> list[Figure]:
    found = []
    for direction in paths.matrices:
        found.append(Figure(
            f"path_strongest_{direction}.png",
            f"The strongest direct paths, {direction}: {WAYS[direction]}. The name at an arrow is that of the input "
            f"it ends at; in front of →, of what it begins at, where a box stands for several.",
            partial(draw_strongest, paths, direction),
            kind="curves",
        ))  # fmt: skip
    for direction in paths.matrices:
        found.append(Figure(
            f"path_matrix_{direction}.png",
            f"Every direct path, {direction}: {WAYS[direction]}. Grey: the receiver reads before the sender writes.",
            partial(draw_matrix, paths, direction),
            kind="heatmaps",
        ))  # fmt: skip
    return found


def strongest_rows(paths: Paths) -> list[tuple[str, ...]]:
    return [
        (
            best["direction"], best["sender"], best["receiver"],
            *value_cells(best["value"], best["low"], best["high"]), str(best["n"]), chance(best["p"]),
        )
        for best in paths.raw["strongest"]
    ]  # fmt: skip


def along_rows(paths: Paths) -> list[tuple[str, ...]]:
    return [
        (
            entry["name"], entry["direction"], *value_cells(entry["value"], entry["low"], entry["high"]),
            str(entry["n"]), chance(entry["p"]),
        )
        for entry in paths.raw["along"]
    ]  # fmt: skip


def sender_rows(paths: Paths, direction: str) -> list[tuple[str, ...]]:
    """All paths of a sender beside the direct one to the logits, where that was asked for; the largest first."""
    totals, matrix = paths.raw["totals"][direction], paths.matrices[direction]
    ends = [k for k, node in enumerate(paths.receivers) if node["node"] == "logits"]
    rows: list[tuple[str, ...]] = []
    for k in sorted(range(len(paths.senders)), key=lambda k: -abs(totals["value"][k]))[:LISTED]:
        value, low, high, p = (totals[name][k] for name in ("value", "low", "high", "p"))
        direct = value_cells(*(matrix[name][k][ends[0]] for name in ("value", "low", "high"))) if ends else ("–", "–")
        rows.append((paths.senders[k]["node"], *value_cells(value, low, high), chance(p), *direct))
    return rows


def facts(paths: Paths) -> list[tuple[str, str]]:
    raw, metrics = paths.raw, paths.metrics
    names = ("clean", "corrupted", "total_effect", "accuracy_full")
    return [
        ("task", f"{raw['task']['name']}: {raw['task'].get('description', '')}"),
        ("metric", metric_label(raw["metric"])),
        *((name.replace("_", " "), with_interval(metrics[name])) for name in names if name in metrics),
        ("intervals", f"{metrics['clean'].interval}{UNADJUSTED}"),
        ("prompts measured", f"{metrics['prompts_used'].value:.0f}"),
        ("prompts left out (not answered)", f"{metrics['prompts_failed'].value:.0f}"),
    ]


def findings(paths: Paths) -> list[tuple[bool, str]]:
    total = paths.metrics["total_effect"]
    hurts = (total.value if total.alone else total.low) > 0
    found = [(hurts, lowered("The counterfactual prompt", total, str(paths.raw["metric"]), hurts))]
    if paths.metrics["clean"].alone:
        return [*found, (False, f"{paths.metrics['clean'].interval}, so nothing below can be tested.".capitalize())]
    return [*found, *tested(paths)]


def tested(paths: Paths) -> list[tuple[bool, str]]:
    """The number of paths of each direction that have an effect."""
    test, found = "step-down bootstrap of whole templates, adjusted for all of them", []
    for direction, matrix in paths.matrices.items():
        p = [value for row in matrix["p"] for value in row if value is not None]
        pairs = sum(count > 0 for row in matrix["n"] for count in row)
        sure = sum(value <= ALPHA for value in p)
        text = f"{direction.capitalize()}: {sure} of {pairs} direct paths have an effect (p ≤ {ALPHA:g}, {test})."
        found.append((sure > 0, text))
    return found


def caveats(paths: Paths) -> list[str]:
    return [*paths.raw["notes"], *LIMITS]


LIMITS = (
    "A direct path leaves out what other parts make of the sender's change on the way: it is small where a sender "
    "acts through others, and effects of paths of a model with norms and nonlinear parts do not add up to the "
    "total effect.",
    "What is behind the receiver responds to its change, so the effect of a path that ends at an early receiver "
    "holds everything that follows from it there.",
    "The strongest paths are chosen by their size, so their own intervals are too narrow for that choice; the "
    "p-values account for it.",
)


def top_cards(paths: Paths) -> Iterator[tuple[str, str, str]]:
    metrics = paths.metrics
    failed = f"{metrics['prompts_failed'].value:.0f} not answered, left out"
    yield ("Prompts measured", f"{metrics['prompts_used'].value:.0f}", failed)
    total = metrics["total_effect"]
    yield ("Total effect", number(total.value), f"{with_interval(total)}, {metric_label(paths.raw['metric'])}")
    for direction in paths.matrices:
        if found := paths.strongest(direction):
            best = max(found, key=lambda entry: abs(entry["value"]))
            where = f"{paths.unit}: {best['sender']} → {best['receiver']}"
            yield (f"Strongest, {direction}", number(best["value"], 3), where)


def maps(paths: Paths) -> Iterator[str]:
    """A matrix for each direction; every cell says its value, without scripts as its title."""
    yield (
        f'<p class="soft">Senders down, receivers across; {escape(paths.unit)}; red is positive, blue negative, one '
        "scale for all. Grey: the receiver reads before the sender writes.</p>"
    )
    for direction in paths.matrices:
        grids, cells = rows_of(paths, direction), []
        for s, sender in enumerate(paths.senders):
            row = [f'<th scope="row">{escape(short(sender))}</th>']
            for r, receiver in enumerate(paths.receivers):
                value = grids["value"][s, r]
                where = f"{sender['node']} → {receiver['node']}: "
                if value != value:
                    row.append(f'<td class="none" title="{escape(where)}no such path"></td>')
                    continue
                low, high, p, n = (grids[name][s, r] for name in ("low", "high", "p", "n"))
                said = f"{where}{value:.3g} " + (
                    f"n {n:.0f}, no interval" if low != low else f"[{low:.3g}, {high:.3g}], n {n:.0f}, p {p:.2g}"
                )
                row.append(f'<td style="background:{colour(value / paths.limit)}" title="{escape(said)}"></td>')
            cells.append(f"<tr>{''.join(row)}</tr>")
        head = "".join(f"<th><span>{escape(short(node))}</span></th>" for node in paths.receivers)
        yield (
            f'<h3>{escape(direction.capitalize())}</h3><div class="flows"><table class="flow">'
            f"<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(cells)}</tbody></table></div>"
        )


def headline(run_dir: str | Path) -> str:
    """The result in one sentence."""
    return headline_of(load_paths(run_dir))


def headline_of(paths: Paths) -> str:
    said: dict[str, list[str]] = {}
    for direction in paths.matrices:
        if found := paths.strongest(direction):
            best = max(found, key=lambda entry: abs(entry["value"]))
            pair = f"{best['sender']} → {best['receiver']}"
            said.setdefault(pair, []).append(f"{number(best['value'], 3)} {direction}")
    if not said:
        return "No direct path has an effect."
    each = "; ".join(f"{pair} ({', '.join(values)})" for pair, values in said.items())
    return f"The strongest direct path{'s are' if len(said) > 1 else ' is'} {each}, {paths.unit}."


def to_log(run_dir: str | Path) -> ToLog:
    """The metrics, and the strongest paths."""
    paths = load_paths(run_dir)
    return ToLog(metric_values(paths.metrics), records("strongest", paths.raw["strongest"]))
