"""Many checkpoints beside each other along the step of their training or the size of the models: a line for every
number, and when it changed.

The number of pairs grows as the square of the checkpoints, and a test of every pair has to pay for all of them. So
beyond :data:`MOST` checkpoints each one is compared with the first and the last of its own training run, and p-values
are adjusted for these tests alone.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy

from ..utils.checkpoint_step import named_step
from ..utils.files import write_json
from ..utils.multiple_tests import holm
from ..utils.statistics import LEVEL, rank_correlation
from . import figure_style as style
from .compose import write_page
from .content import Bullets, Content, Figure, Section, figure, table_section
from .finished import without_common_path
from .members import Warned, member_section
from .values import Value
from .words import chance, number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

MOST = 12
"""Checkpoints that are compared pair by pair; more are compared along the training step."""
ALPHA = 0.05
ROWS = 13
"""Checkpoints of a training run that the table shows, evenly spaced; comparison.json has all of them."""
COLUMNS = 3
STEP, SIZE, PLACE = "training step", "parameters", "place in the order given"
TESTED = (
    "Every checkpoint is compared with the first and the last checkpoint of {line}, by the 95 % intervals "
    "of the two (Zou & Donner 2008), as if they were measured on different prompts; on the same prompts this test is "
    "conservative. p-values are adjusted for all {tests:,} of these tests (Holm); pairs in between are not"
    " tested."
)


@dataclass(frozen=True)
class Track:
    """One number of every run, in the order in which the runs were given; None where a run does not have it.

    Attributes:
        tested: Its intervals are 95 % intervals of a mean, so that two of them can be told apart.
        share: It is written as a percentage.
    """

    name: str
    label: str
    values: list[Value | None]
    tested: bool = True
    share: bool = False

    def said(self, run: int) -> str:
        """The value of a run with its interval."""
        value = self.values[run]
        if value is None:
            return "–"
        write: Callable[[float], str] = percent if self.share else number
        if value.alone or value.low == value.value == value.high:
            return write(value.value)
        return f"{write(value.value)} [{write(value.low).split(' ')[0]}, {write(value.high).split(' ')[0]}]"


@dataclass(frozen=True)
class Line:
    """The checkpoints of one training run or family, in order: places among the runs given, and where each is on the
    axis."""

    name: str
    runs: list[int]
    at: list[int]


@dataclass(frozen=True)
class Axis:
    """The axis that checkpoints are laid along, one of :data:`STEP`, :data:`SIZE` and :data:`PLACE`; ``note`` says why,
    where it is the place."""

    label: str
    lines: list[Line]
    note: str = ""

    @property
    def steps(self) -> bool:
        return self.label == STEP

    @property
    def line(self) -> str:
        """Names what the checkpoints of one line share."""
        return {STEP: "training run", SIZE: "family", PLACE: "order given"}[self.label]

    @property
    def whose(self) -> str:
        return f"{'the' if self.label == PLACE else 'its'} {self.line}"

    def where(self, at: int) -> str:
        return {STEP: f"step {at:,}", SIZE: f"{at:,} parameters", PLACE: f"checkpoint {at:,}"}[self.label]


@dataclass(frozen=True)
class Change:
    """The change of one number over one training run.

    Attributes:
        first, last: Runs at both ends, of those that have the number.
        since: The earliest run that certainly differs from the first; None where none does.
        until: The latest run that certainly differs from the last.
        p: The smallest adjusted p-value of its tests; None where nothing could be tested.
        trend: Rank correlation with the place on the axis; None of two runs, which are always in some order.
    """

    track: Track
    line: Line
    first: int
    last: int
    since: int | None
    until: int | None
    p: float | None
    trend: float | None

    @property
    def sure(self) -> bool:
        return self.since is not None or self.until is not None


@dataclass(frozen=True)
class Added:
    """Additions of an analysis to a comparison: findings, notes, sections, and entries of comparison.json."""

    findings: Sequence[str] = ()
    notes: Sequence[str] = ()
    sections: Sequence[Section] = ()
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def step_of(raw: Mapping[str, Any]) -> int | None:
    """The training step of a finished run: what its checkpoint said, or is named."""
    said = raw["model"].get("step", raw.get("training", {}).get("steps"))
    return int(said) if isinstance(said, int) else named_step(str(raw["checkpoint"]))


def training_run(raw: Mapping[str, Any], step: int | None, by_name: bool) -> tuple[str, ...]:
    """A key that the checkpoints of one training run share: variant and directory, and the name but for its step."""
    path = Path(str(raw["checkpoint"]))
    rest = re.sub(r"\d+", lambda found: "#" if int(found[0]) == step else found[0], path.name) if by_name else ""
    return str(raw["model"].get("variant") or ""), str(path.parent), rest


def axis_of(raws: Sequence[Mapping[str, Any]]) -> Axis:
    """The training steps of all runs, a line for each training run; where steps do not tell them, the sizes of the
    models, a line for each family; where these do not, the order given."""
    steps = [step_of(raw) for raw in raws]
    unknown = sum(step is None for step in steps)
    if not unknown:
        for by_name in (True, False):
            found: dict[tuple[str, ...], list[int]] = {}
            for k, raw in enumerate(raws):
                found.setdefault(training_run(raw, steps[k], by_name), []).append(k)
            distinct = all(len({steps[k] for k in members}) == len(members) for members in found.values())
            if distinct and max(map(len, found.values())) > 1:
                return Axis(STEP, [line(key, runs, steps, list(found)) for key, runs in found.items()])
    if sizes := by_size(raws):
        return sizes
    why = (
        f"The training step of {unknown} of the {len(raws)} checkpoints is not known"
        if unknown
        else "Several checkpoints of one run have the same training step"
    )
    order = list(range(len(raws)))
    return Axis(PLACE, [Line("", order, [k + 1 for k in order])], f"{why}: they are compared in the order given.")


def by_size(raws: Sequence[Mapping[str, Any]]) -> Axis | None:
    """The numbers of parameters, a line for each family and variant; None where two models of a line have one size, or
    every line is one model."""
    found: dict[tuple[str, ...], list[int]] = {}
    for k, raw in enumerate(raws):
        key = str(raw["model"].get("family") or ""), str(raw["model"].get("variant") or "")
        found.setdefault(key, []).append(k)
    sizes = [raw["model"].get("parameters") for raw in raws]
    distinct = all(len({sizes[k] for k in members}) == len(members) for members in found.values())
    if None in sizes or not distinct or max(map(len, found.values())) < 2:
        return None
    return Axis(SIZE, [line(key, runs, sizes, list(found)) for key, runs in found.items()])


def line(key: tuple[str, ...], runs: list[int], steps: list[int | None], every: list[tuple[str, ...]]) -> Line:
    """A training run or a family, named by what tells it from the others."""
    ordered = sorted(runs, key=lambda k: steps[k] or 0)
    parts = [part for place, part in enumerate(key) if part and len({other[place] for other in every}) > 1]
    return Line(" ".join(parts), ordered, [steps[k] or 0 for k in ordered])


def apart(one: Value, other: Value) -> float | None:
    """Two-sided p-value of "both have one mean", from their 95 % intervals alone; None where one of them has none.

    The difference's interval ends where both ends that face each other meet: √((a - a_low)² + (b_high - b)²) from it
    (Zou & Donner 2008), which keeps intervals that are longer on one side.
    """
    if one.alone or other.alone:
        return None
    change = other.value - one.value
    ends = (other.value - other.low, one.high - one.value) if change > 0 else (
        other.high - other.value, one.value - one.low)  # fmt: skip
    half = math.hypot(*ends)
    if half == 0:
        return None if change else 1.0
    return float(2 * scipy.special.ndtr(-abs(change) / half * scipy.special.ndtri((1 + LEVEL) / 2)))


def changes(tracks: Sequence[Track], axis: Axis) -> tuple[list[Change], int]:
    """The change of every number along every training run, certain ones first; and the number of tests."""
    tests: list[tuple[int, int, str, int]] = []  # track, line, against which end, run
    p: list[float] = []
    ends: dict[tuple[int, int], list[int]] = {}
    for t, track in enumerate(tracks):
        for g, run in enumerate(axis.lines):
            there = [k for k in run.runs if track.values[k] is not None]
            if len(there) < 2:
                continue
            ends[t, g] = there
            for which, end, others in (("first", there[0], there[1:]), ("last", there[-1], there[1:-1])):
                for k in others if track.tested else ():
                    one, other = track.values[end], track.values[k]
                    found = apart(one, other) if one is not None and other is not None else None
                    if found is not None:
                        tests.append((t, g, which, k))
                        p.append(found)
    adjusted = dict(zip(tests, holm(p), strict=True))
    result = []
    for (t, g), there in ends.items():
        own = {(which, k): q for (a, b, which, k), q in adjusted.items() if (a, b) == (t, g)}
        since = next((k for k in there if own.get(("first", k), 1.0) <= ALPHA), None)
        ended = own.get(("first", there[-1]), 1.0) <= ALPHA  # the first and the last: one test says both
        until = next((k for k in reversed(there) if own.get(("last", k), 1.0) <= ALPHA), there[0] if ended else None)
        place = dict(zip(axis.lines[g].runs, axis.lines[g].at, strict=True))
        values = [tracks[t].values[k].value for k in there]  # type: ignore[union-attr]
        trend = rank_correlation([place[k] for k in there], values) if len(there) > 2 else None
        least = min(own.values()) if own else None
        result.append(Change(tracks[t], axis.lines[g], there[0], there[-1], since, until, least, trend))
    return sorted(result, key=lambda change: (not change.sure, change.p is None)), len(tests)


# ---- words ------------------------------------------------------------------------------------------------------


def headline(axis: Axis, found: Sequence[Change], count: int) -> str:
    """The changes in one sentence."""
    plural = "families" if axis.label == SIZE else "training runs"
    several = f"{len(axis.lines)} {plural}" if len(axis.lines) > 1 else f"one {axis.line}"
    places = [at for run in axis.lines for at in run.at]
    first, last = f"{min(places):,}", f"{max(places):,}"
    over = {
        STEP: f" of {several}, steps {first} to {last}",
        SIZE: f" of {several}, {first} to {last} parameters",
        PLACE: ", in the order given",
    }[axis.label]
    tested = [change for change in found if change.p is not None]
    sure = [change for change in tested if change.sure]
    if not tested:
        return f"{count} checkpoints{over}: no number has intervals, so no change can be tested."
    rest = (
        f"{len(sure)} of {len(tested)} numbers certainly change" if sure else "no number changes beyond its intervals"
    )
    return f"{count} checkpoints{over}: {rest} (p ≤ {ALPHA:g}, adjusted)."


def sentence(change: Change, axis: Axis) -> str:
    """Says from which value to which a number goes, since when it differs from the first and until when from the
    last."""
    place = dict(zip(change.line.runs, change.line.at, strict=True))
    where = lambda run: axis.where(place[run])
    named = f"{change.track.label}{f', {change.line.name}' if change.line.name else ''}"
    text = f"{named}: {change.track.said(change.first)} at {where(change.first)}, {change.track.said(change.last)} at"
    text += f" {where(change.last)}"
    if change.since is not None:
        text += f"; the earliest that differs from the first is {where(change.since)}"
        value = change.track.values[change.since]
        text += f" ({change.track.said(change.since)})" if value is not None and change.since != change.last else ""
    if change.until is not None:
        text += f", the latest that differs from the last is {where(change.until)}"
    elif change.since is not None:
        text += ", and none differs from the last"
    return f"{text}."


CHANGES = ("number", "first", "last", "differs from the first since", "from the last until", "rank correlation", "p")


def change_rows(found: Iterable[Change], axis: Axis) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for change in found:
        place = dict(zip(change.line.runs, change.line.at, strict=True))
        named = f"{change.track.label}{f', {change.line.name}' if change.line.name else ''}"
        untested = "not tested" if change.p is None else "–"
        since, until = (untested if run is None else f"{place[run]:,}" for run in (change.since, change.until))
        trend = "–" if change.trend is None else f"{change.trend:.2f}".replace("-", "\N{MINUS SIGN}")
        ends = (change.track.said(change.first), change.track.said(change.last))
        rows.append(
            (
                named,
                *ends,
                since,
                until,
                trend,
                "< 1e-15" if change.p is not None and change.p < 1e-15 else chance(change.p),
            )
        )
    return rows


def shown(axis: Axis, found: Sequence[Change]) -> list[tuple[int, int]]:
    """(place on the axis, run) of the table's rows: evenly spaced, with both ends and where something changes."""
    rows = []
    for run in axis.lines:
        even = {round(k) for k in np.linspace(0, len(run.runs) - 1, min(ROWS, len(run.runs)))}
        even |= {run.runs.index(c.since) for c in found if c.line is run and c.since is not None}
        rows += [(run.at[k], run.runs[k]) for k in sorted(even)]
    return rows[: 10 * ROWS]


def table_of(names: Sequence[str], tracks: Sequence[Track], axis: Axis, found: Sequence[Change]) -> Any:
    header = ("place" if axis.label == PLACE else axis.label, "run", *(track.label for track in tracks))
    return header, [(f"{at:,}", names[run], *(track.said(run) for track in tracks)) for at, run in shown(axis, found)]


# ---- the page ---------------------------------------------------------------------------------------------------


def write_along(
    output: Path,
    title: str,
    raws: Sequence[Mapping[str, Any]],
    directories: Sequence[Path],
    names: Sequence[str],
    tracks: Sequence[Track],
    warned: Warned,
    notes: Sequence[str] = (),
    tested: bool = True,
    extra: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]] = (),
    added: Added = Added(),
) -> list[Path]:
    """Writes comparison.json, .png, .md and .html of many finished runs along their training step.

    Args:
        raws, directories, names: results.json, directory and name of every run, in the order given.
        tracks: Numbers that are drawn and tested.
        warned: Warnings of the runs' own reports.
        tested: True if ends of training runs are tested; off where something else is.
        extra: Further tables, each with a heading.
        added: Additions of the analysis to these numbers.
    """
    axis = axis_of(raws)
    found, count = changes(tracks if tested else [dataclasses.replace(t, tested=False) for t in tracks], axis)
    sure = [sentence(change, axis) for change in found if change.sure]
    lead = headline(axis, found, len(raws)) if count else f"{len(raws)} checkpoints of one analysis."
    findings = [lead, *sure, *added.findings]
    notes = [
        *([axis.note] if axis.note else []),
        *notes,
        *added.notes,
        *([TESTED.format(tests=count, line=axis.whose)] if count else []),
    ]
    data = {
        "schema": 1, "analysis": raws[0]["analysis"], "along": axis.label, "tests": count,
        "findings": findings, "notes": notes, "warnings": warned,
        "runs": [
            {"name": name, "directory": Path(os.path.relpath(directory, output)).as_posix(),
             "checkpoint": raw["checkpoint"], "variant": raw["model"].get("variant", ""), "step": step_of(raw)}
            for name, directory, raw in zip(names, directories, raws, strict=True)
        ],
        "numbers": [
            {"name": track.name, "label": track.label, "tested": track.tested,
             "values": [None if value is None else plain(value) for value in track.values]}
            for track in tracks
        ],
        "changes": [
            {"number": change.track.name, "training_run": change.line.name, "p_adjusted": change.p,
             "trend": change.trend, **{end: names[run] if (run := getattr(change, end)) is not None else None
                                       for end in ("first", "last", "since", "until")}}
            for change in found
        ],
        **added.data,
    }  # fmt: skip
    written = [write_json(output / "comparison.json", data)]
    header, rows = table_of(names, tracks, axis, found)
    listed = f"Checkpoints ({len(rows)} of {len(raws)}; comparison.json has all)"
    sections = [
        Section("What changed, and how changes were tested", [Bullets(findings[1:]), Bullets(notes)]),
        Section("Figures", figures_along(tracks, axis, found, title)),
        member_section(warned, len(raws)),
        *added.sections,
        table_section("Changes", "", CHANGES, change_rows(found, axis), range(1, len(CHANGES))),
        table_section(listed, "", header, rows, range(2, len(header))),
        *(table_section(name, "", head, lines, range(2, len(head))) for name, head, lines in extra),
    ]
    content = Content(f"{title}: comparison of {len(raws)} checkpoints", sections, lead=lead)
    return [*written, *write_page(output, content, "comparison.md", page_name="comparison.html")]


def plain(value: Value) -> dict[str, Any]:
    """A value for JSON, which has no NaN."""
    edge = lambda x: None if math.isnan(x) else x
    return {"value": value.value, "low": edge(value.low), "high": edge(value.high), "n": value.n}


# ---- the figures ------------------------------------------------------------------------------------------------


def figures_along(tracks: Sequence[Track], axis: Axis, found: Sequence[Change], title: str) -> list[Figure]:
    """One figure of all numbers; of more lines than a panel can show apart, one of small multiples for each number."""
    dotted = "Dotted: the earliest checkpoint that certainly differs from the first."
    if len(axis.lines) <= style.MANY:
        caption = f"Every number along the {axis.label}, with 95 % intervals where it has them. {dotted}"
        size = (11.0, 1.4 + 2.2 * -(-len(tracks) // COLUMNS))
        return [figure("comparison.png", caption, size, figure_along, tracks, axis, found, title)]
    size, plots = style.multiples_size(len(axis.lines)), []
    for k, track in enumerate(tracks, 1):
        caption = (
            f"{track.label} along the {axis.label}, with 95 % intervals where it has them: a panel for each "
            f"{axis.line}, the others in grey. {dotted}"
        )
        plots.append(figure(f"comparison_{k}.png", caption, size, figure_apart, track, axis, found, title))
    return plots


def figure_apart(figure: Canvas, track: Track, axis: Axis, found: Sequence[Change], title: str) -> None:
    """One number, a panel for each training run."""
    curves = []
    shown = without_common_path([run.name for run in axis.lines])
    for name, run in zip(shown, axis.lines, strict=True):
        there = [(at, v) for at, k in zip(run.at, run.runs, strict=True) if (v := track.values[k]) is not None]
        curves.append(
            style.Curve(name, [at for at, _ in there], [v for _, v in there], mark=since_of(found, track, run))
        )
    places = [at for run in axis.lines for at in run.at]
    style.small_multiples(figure, curves, f"{title}: {track.label}", partial(dress, axis, track, places))


def since_of(found: Sequence[Change], track: Track, run: Line) -> int | None:
    """The place of the earliest checkpoint of a training run that certainly differs from its first; None without."""
    since = next((c.since for c in found if c.track.name == track.name and c.line is run and c.since), None)
    return None if since is None else run.at[run.runs.index(since)]


def dress(axis: Axis, track: Track, at: Sequence[int], place: Axes) -> None:
    """Labels and scales of a panel."""
    if track.share:
        style.percent_axis(place, "y")
    place.set_xlabel(axis.label)
    if axis.label == SIZE and max(at) > 4 * min(at):
        place.set_xscale("log")
    else:
        place.locator_params(axis="x", nbins=5, integer=True)


def figure_along(figure: Canvas, tracks: Sequence[Track], axis: Axis, found: Sequence[Change], title: str) -> None:
    """A panel for each number, a line for each training run."""
    rows = -(-len(tracks) // COLUMNS)
    places = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for place, track in zip(places, tracks, strict=False):
        for k, run in enumerate(axis.lines):
            colour = style.of_many(k, len(axis.lines))
            draw_line(place, track, run, colour)
            if (since := since_of(found, track, run)) is not None:
                place.axvline(since, color=colour, linewidth=0.9, linestyle=":")
        place.set_title(track.label)
        dress(axis, track, [at for line in axis.lines for at in line.at], place)
    for place in places[len(tracks) :]:
        place.set_visible(False)
    if len(axis.lines) > 1:
        handles, labels = places[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4))
    figure.suptitle(f"{title}: {sum(len(run.runs) for run in axis.lines)} checkpoints")


def draw_line(place: Axes, track: Track, run: Line, colour: Any) -> None:
    there = [(at, value) for at, k in zip(run.at, run.runs, strict=True) if (value := track.values[k]) is not None]
    x = [at for at, _ in there]
    low, high = ([math.nan if v.alone else getattr(v, end) for _, v in there] for end in ("low", "high"))
    place.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    marker = "." if len(there) <= 60 else ""
    place.plot(x, [v.value for _, v in there], color=colour, linewidth=1.2, marker=marker, label=run.name)
