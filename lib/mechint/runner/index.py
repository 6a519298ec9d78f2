"""index.html over all runs of an output directory, and the links between the pages below it.

index.json beside it lists the same runs, so that a page that is drawn alone gets its links again. A run that cannot be
read is a row that says so.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..analyses.base import analyses, analysis_of
from ..report.along_training import step_of
from ..report.compose import write_page
from ..report.content import Content, Links, Section, Table, Text
from ..report.finished import drawing, edited, read_finished
from ..report.html import with_links
from ..report.markdown import checked
from ..report.values import optional_text
from ..report.words import Linked, number
from ..utils import files
from ..utils.errors import MechintError, one_line
from ..utils.files import natural_key, write_json, write_text

INDEX = "index.json"
DEPTH = 4
"""Levels below an output directory at which runs lie: label, checkpoint, analysis."""
HEADER = ("checkpoint", "step", "task", "analysis", "headline", "verdict", "seconds", "page")
NUMERIC = (1, 6)
FINISHED, BROKEN, UNFINISHED = "finished", "broken", "not finished"
Groups = list[tuple[str, list[tuple[str, str]]]]


@dataclass(frozen=True)
class Entry:
    """A run of the directory.

    Attributes:
        place: Its directory, below the output directory.
        state: ``finished``, ``broken`` (it cannot be read) or ``not finished``.
        analysis, title: Name and title of the analysis.
        headline: The result in one sentence, or what is wrong.
        good, checks: Checks of its report that hold, and all of them.
        note: A warning about its results, if there is one.
    """

    place: str
    state: str
    checkpoint: str = ""
    step: int | None = None
    task: str = ""
    analysis: str = ""
    title: str = ""
    headline: str = ""
    good: int = 0
    checks: int = 0
    seconds: float | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """The checks of its report that hold, or its state."""
        if self.state != FINISHED:
            return self.state
        if self.note:
            return self.note
        return f"{self.good} of {self.checks} checks hold" if self.checks else "–"


def write_index(top: Path, own: Path, asked: Mapping[Path, tuple[str, str]] | None = None) -> Path | None:
    """Writes index.html, index.md and index.json over all runs below a directory, and links their pages to each other.

    Args:
        own: Directory whose pages get links: those elsewhere may be drawn by another command at this moment.
        asked: (checkpoint, analysis) of the runs that were asked for, by directory: one that is not finished is a row.

    Returns:
        The page; None where there are fewer than two runs, or no results.
    """
    entries = entries_of(top, asked or {})
    if len(entries) < 2 or all(entry.state == UNFINISHED for entry in entries):
        return None
    compared = comparisons(top)
    listed = {"schema": 1, "runs": [dataclasses.asdict(entry) for entry in entries], "comparisons": compared}
    write_json(top / INDEX, listed)
    write_page(top, content(top, entries, compared), "index.md", page_name="index.html")
    for place in (entry.place for entry in entries if (top / entry.place).is_relative_to(own)):
        relink(top / place / "report.html", links_of(place, entries, compared))
    for place in (place for place in compared if (top / place).is_relative_to(own)):
        relink(top / place / "comparison.html", [("", [("All runs", up(place, "index.html"))])])
    return top / "index.html"


def entries_of(top: Path, asked: Mapping[Path, tuple[str, str]]) -> list[Entry]:
    """Every run below a directory in the order of their checkpoints and analyses, numbers in names as numbers."""
    directories = files.each_once(p.parent for depth in range(DEPTH) for p in top.glob("*/" * depth + "results.json"))
    found = [entry_of(directory, top) for directory in directories]
    for directory, (checkpoint, name) in asked.items():
        if directory not in directories:
            said = "It could not be made, or was stopped; what the command printed says why."
            title = analyses()[name].title
            found.append(Entry(below(directory, top), UNFINISHED, checkpoint, None, "", name, title, said))
    order = {name: k for k, name in enumerate(analyses())}
    return sorted(found, key=lambda entry: (natural_key(entry.checkpoint), order.get(entry.analysis, -1), entry.place))


def below(directory: Path, top: Path) -> str:
    return Path(os.path.relpath(directory, top)).as_posix()


def entry_of(directory: Path, top: Path) -> Entry:
    """A run as its files describe it; one that cannot be read says why, and stops no other."""
    place = below(directory, top)
    try:
        with drawing(directory):
            run, analysis = read_finished(directory), analysis_of(directory)
            seconds = run.manifest.get("seconds")
            told = [checked(optional_text(path) or "") for path in directory.glob("*_report.md")]
            return Entry(
                place,
                FINISHED,
                checkpoint=str(run.raw["checkpoint"]),
                step=step_of(run.raw),
                task=str(run.raw["task"]["name"]),
                analysis=analysis.name,
                title=str(run.raw["title"]),
                headline=one_line(analysis.headline(directory)),
                good=sum(good for good, _ in told),
                checks=sum(checks for _, checks in told),
                seconds=float(seconds) if isinstance(seconds, (int, float)) else None,
                note="changed after it was written" if edited(directory) else "",
            )
    except (MechintError, OSError) as error:
        return Entry(place, BROKEN, checkpoint=place, headline=one_line(error))


def comparisons(top: Path) -> dict[str, list[str]]:
    """Directories of the comparisons below a directory, each with the places of the runs that it compares."""
    found: dict[str, list[str]] = {}
    for path in sorted(path for depth in range(DEPTH) for path in top.glob("*/" * depth + "comparison.json")):
        try:
            runs = files.read_json(path)["runs"]
            members = [below(path.parent / run["directory"], top) for run in runs if "directory" in run]
        except (MechintError, KeyError, TypeError) as error:
            print(f"note: {path} is not valid ({one_line(error)}); the index leaves it out", file=sys.stderr)
            continue
        if (path.parent / "comparison.html").is_file():
            found[below(path.parent, top)] = members
    return found


# ---- the page ---------------------------------------------------------------------------------------------------


def content(top: Path, entries: Sequence[Entry], compared: Mapping[str, Sequence[str]]) -> Content:
    done = sum(entry.state == FINISHED for entry in entries)
    others = [f"{count} {state}" for state in (BROKEN, UNFINISHED) if (count := sum(e.state == state for e in entries))]
    lead = f"{len(entries)} runs" + (f": {', '.join([f'{done} finished', *others])}" if others else "") + "."
    explained = (
        "The verdict counts the checks of a run's own report that hold; the report names those that do not. Seconds are"
        " those of the analysis itself, without loading and drawing. – marks what a run does not have."
    )
    rows = [row(entry, top) for entry in entries]
    links = [(comparison_title(at, entries, compared), Path(at, "comparison.html").as_posix()) for at in compared]
    sections = [
        Section("Comparisons", [Links(links)]),
        Section("Runs", [Text(explained, soft=True), Table(HEADER, rows, NUMERIC, sortable=True)]),
    ]
    return Content("All runs", sections, lead=lead)


def row(entry: Entry, top: Path) -> list[str | Linked]:
    page = f"{entry.place}/report.html"
    opened = Linked("report", page) if (top / page).is_file() else "–"
    return [
        entry.checkpoint or "–",
        "–" if entry.step is None else f"{entry.step:,}",
        entry.task or "–",
        entry.title or "–",
        entry.headline,
        entry.verdict,
        "–" if entry.seconds is None else number(entry.seconds),
        opened,
    ]


def comparison_title(place: str, entries: Sequence[Entry], compared: Mapping[str, Sequence[str]]) -> str:
    """The analysis that is compared, and of how many runs."""
    members = set(compared[place])
    titles = dict.fromkeys(entry.title for entry in entries if entry.place in members and entry.title)
    return f"{', '.join(titles) or place}: comparison of {len(members)} runs"


# ---- links between pages ----------------------------------------------------------------------------------------


def links_of(place: str, entries: Sequence[Entry], compared: Mapping[str, Sequence[str]]) -> Groups:
    """The links of a report: the index, other analyses of its checkpoint, other checkpoints, and comparisons."""
    here = next((entry for entry in entries if entry.place == place and entry.state == FINISHED), None)
    groups: Groups = [("", [("All runs", up(place, "index.html"))])]
    if here is None:
        return groups
    done = [entry for entry in entries if entry.state == FINISHED]
    page: Callable[[Entry], str] = lambda e: "" if e is here else up(place, f"{e.place}/report.html")
    alike = [entry for entry in done if entry.checkpoint == here.checkpoint]
    if len(alike) > 1:
        groups.append(("This checkpoint", [(entry.title, page(entry)) for entry in alike]))
    row = [entry for entry in done if entry.analysis == here.analysis]
    k = row.index(here)
    near = [(f"← {row[k - 1].checkpoint}", page(row[k - 1]))] if k else []
    near += [(f"{row[k + 1].checkpoint} →", page(row[k + 1]))] if k + 1 < len(row) else []
    if near:
        groups.append(("Other checkpoints", near))
    within = [at for at, members in compared.items() if place in members]
    of = [(comparison_title(at, entries, compared), up(place, f"{at}/comparison.html")) for at in within]
    return [*groups, ("Compared", of)] if of else groups


def up(place: str, address: str) -> str:
    """The address of a page of the output directory, from a directory below it."""
    return Path(os.path.relpath(address, place)).as_posix()


def relink(page: Path, groups: Groups) -> None:
    """Puts links at the head of a page, where there is one."""
    if not page.is_file():
        return
    before = page.read_text(encoding="utf-8")
    after = with_links(before, groups)
    if after != before:
        write_text(page, after)


def link_again(directory: Path) -> None:
    """Puts the links at the head of a report that was drawn alone, where an index above it lists the run."""
    for top in list(directory.absolute().parents)[: DEPTH - 1]:
        if not (top / INDEX).is_file():
            continue
        try:
            raw = files.read_json(top / INDEX)
            entries = [Entry(**entry) for entry in raw["runs"]]
            compared = {str(place): list(map(str, members)) for place, members in raw["comparisons"].items()}
        except (MechintError, KeyError, TypeError, AttributeError) as error:
            print(f"note: {top / INDEX} is not valid ({one_line(error)}): no links from it", file=sys.stderr)
            continue
        place = below(directory.absolute(), top)
        if any(entry.place == place for entry in entries):
            relink(directory / "report.html", links_of(place, entries, compared))
            return
