"""write_report: every figure and page of one finished run, beside its results; and the pages that compare runs."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import html
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..analyses.base import analyses, analysis_of
from ..analyses.options import AnalysisOptions, RunConfig, request
from ..report.figure_style import formats_of, in_formats
from ..report.finished import CIRCUIT, Drawn, drawing, edited, kind_of
from ..report.members import member_lines
from ..tasks.config import TaskConfig
from ..utils import files
from ..utils.errors import MechintError, say_failure
from ..utils.files import write_text
from ..utils.options import named
from ..utils.progress import listener, listening
from ..utils.rundir import check_writable
from ..utils.wandb_run import Logged, run_name, started
from .index import link_again, write_index
from .wandb import log_wandb


def comparisons() -> dict[str, Callable[[Sequence[Any], Any], list[Path]]]:
    """Writers of comparisons of several finished runs, by their kind: ``compare(run_dirs, output_dir)``."""
    return {entry.kind: entry.compare for entry in analyses().values() if entry.compare is not None}


def __getattr__(name: str) -> Any:
    if name == "COMPARISONS":
        return comparisons()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def write_report(
    run_dir: str | Path,
    *,
    heatmaps: bool = True,
    curves: bool = True,
    faithfulness: bool = True,
    formats: str | None = None,
) -> list[Path]:
    """Writes the figures, the Markdown report and report.html of a finished run into its directory.

    The same results give the same bytes, whenever and wherever they are drawn; where an index lists the run, its page
    begins with links to other pages.

    Args:
        run_dir: Holds results.json, manifest.json, and what the figures below need.
        heatmaps: Draw the heat maps; those of a circuit need final_masks.pt.
        curves: Draw the curves; those of a circuit's search need history.jsonl.
        faithfulness: Draw faithfulness_curve.png of a circuit.
        formats: Formats of the figures, such as ``"png svg pdf"``; None takes those of the run under way.

    Returns:
        The paths written, report.html last; beside each PNG lie its data as CSV and its other formats.

    Raises:
        MechintError: a file is missing, invalid, of another schema, or from another run.
    """
    directory = Path(run_dir)
    vector = contextlib.nullcontext() if formats is None else in_formats(formats_of(formats, "formats"))
    with vector, drawing(directory):
        written = analysis_of(directory).report(directory, Drawn(heatmaps, curves, faithfulness))
    if said := edited(directory):
        print(f"warning: {said}", file=sys.stderr, flush=True)
        for path in written:
            mark(path, said)
    link_again(directory)
    return written


def mark(page: Path, said: str) -> None:
    """Puts a warning at the head of a finished page; other files are left as they are."""
    if page.suffix == ".html":
        head, body, rest = page.read_text(encoding="utf-8").partition("</h1>")
        write_text(page, f'{head}{body}\n<p class="warning"><b>{html.escape(said)}.</b></p>{rest}')
    elif page.suffix == ".md":
        head, line, rest = page.read_text(encoding="utf-8").partition("\n")
        write_text(page, f"{head}{line}\n**{said}.**\n{rest}")


def draw(run: RunConfig, directory: Path) -> None:
    """Writes the report of one run directory, and logs it to W&B where that is asked for."""
    drawable = kind_of(directory) != CIRCUIT or (directory / "final_masks.pt").exists()
    write_report(
        directory,
        heatmaps=run.visualize_heatmaps and drawable,
        curves=run.visualize_curves,
        faithfulness=run.visualize_faithfulness,
    )
    if run.visualize_wandb:
        live = listener()
        log_wandb(directory, run.wandb_project, live=live if isinstance(live, Logged) else None)


@contextlib.contextmanager
def logging(run: RunConfig, task: TaskConfig, checkpoint: str, name: str, config: AnalysisOptions) -> Iterator[None]:
    """Logs an analysis to Weights & Biases while it is under way, where that is asked for."""
    if not run.visualize_wandb:
        yield
        return
    options = {
        "analysis": name, "checkpoint": checkpoint, **request(config),
        "run": {option: getattr(run, option) for option in ("dtype", "batch_size", "seed")},
        "task": dataclasses.asdict(task),
    }  # fmt: skip
    start = functools.partial(
        started, run.wandb_project, run_name(checkpoint, name), name, Path(checkpoint).parent.name, options,
        (task.name,),
    )  # fmt: skip
    with Logged(start) as logged, listening(logged):
        yield


def redraw(run: RunConfig, dry_run: bool) -> None:
    """Writes the reports of finished analyses again; masks and numbers stay as they are.

    Raises:
        MechintError: some of them could not be drawn, after the others were.
    """
    top = Path(run.run_dir or run.folder)
    found = finished_below(top, "run_dir")
    for directory in found:
        print(f"{'would draw' if dry_run else 'drawing'} {directory} again", flush=True)
    if dry_run:
        return
    check_writable(top)
    with files.lock(top):
        drawn = [directory for directory in found if draw_again(run, directory, len(found) == 1)]
        if len(drawn) > 1:
            write_comparisons(drawn, top)
        say_index(top, top)
    if lost := [str(directory) for directory in found if directory not in drawn]:
        raise MechintError(
            f"{len(lost)} of {len(found)} analyses could not be drawn ({', '.join(lost)}); the lines above say why"
        )


def draw_again(run: RunConfig, directory: Path, only: bool) -> bool:
    """Draws one finished analysis; False if it could not be drawn, for which standard error has the reason.

    Args:
        only: There is no other one: its failure is raised.
    """
    try:
        draw(run, directory)
        said = analysis_of(directory).headline(directory)
    except (MechintError, OSError) as error:
        if only:
            raise
        say_failure(error, str(directory))
        return False
    print(f"  {said}", f"report: {directory / 'report.html'}", sep="\n")
    return True


def say_index(top: Path, own: Path, asked: Mapping[Path, tuple[str, str]] | None = None) -> None:
    """Writes the index of a directory and prints where it is; arguments as of :func:`write_index`."""
    if page := write_index(top, own, asked):
        print(f"index: {page}", flush=True)


def finished_below(top: str | Path, option: str) -> list[Path]:
    """The finished analyses in a directory and below it: by label, checkpoint and analysis."""
    found = sorted(
        files.each_once(p.parent for depth in range(4) for p in Path(top).glob("*/" * depth + "results.json"))
    )
    if not found:
        raise MechintError(
            f"{top} holds no finished analysis (no results.json in it or below it); run one first, or name another "
            f"with {named('', option)}"
        )
    return found


def comparison_lines(directory: Path) -> list[str]:
    """Lines for the terminal: what a comparison found, and what the compared runs' own reports warn of."""
    raw = files.read_json(directory / "comparison.json")
    warned = [(str(text), list(names)) for text, names in raw["warnings"]]
    found = [f"  {text}" for text in (*raw.get("findings", ()), *raw.get("notes", ()))]
    return [*found, *member_lines(warned, len(raw["runs"]))]


def write_comparisons(directories: list[Path], target: Path) -> None:
    """Writes a comparison for each analysis of which there are several finished runs."""
    by_name: dict[str, list[Path]] = {}
    for directory in directories:
        by_name.setdefault(analysis_of(directory).name, []).append(directory)
    kinds = [analyses()[name].kind for name in by_name]
    for name, alike in by_name.items():
        entry = analyses()[name]
        if len(alike) < 2:
            continue
        if entry.compare is None:
            print(f"no comparison is written of several results of {entry.title}; each has its own report")
            continue
        changed = [said for directory in alike if (said := edited(directory))]
        for said in changed:
            print(f"warning: {said}", file=sys.stderr, flush=True)
        place = entry.kind if kinds.count(entry.kind) == 1 else name
        with drawing(*alike):
            written = entry.compare(alike, target if len(alike) == len(directories) else target / place)
        for path in written:
            for said in changed:
                mark(path, said)
            if path.suffix == ".html":
                print(f"comparison: {path}", *comparison_lines(path.parent), sep="\n", flush=True)
