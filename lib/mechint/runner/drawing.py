"""write_report: every figure and page of one finished run, beside its results."""

from __future__ import annotations

import contextlib
import functools
import html
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..analyses.circuits.figures import draw_faithfulness, draw_search
from ..analyses.circuits.pages.compare import write_comparison
from ..analyses.circuits.pages.features import write_feature_pages
from ..analyses.circuits.pages.html import report_page
from ..analyses.circuits.pages.importance import draw_importance
from ..analyses.circuits.report import markdown
from ..analyses.circuits.results import load_results
from ..analyses.comparison.report import write_model_comparison, write_profile
from ..analyses.dictionaries.report import write_sae
from ..analyses.neurons.report import write_neurons
from ..analyses.options import RunConfig, request
from ..analyses.patching.report import write_patching
from ..analyses.sparsity.report import write_sparsity
from ..analyses.study.report import write_study
from ..analyses.tracing.compare import write_trace_comparison
from ..analyses.tracing.report import write_trace
from ..report.finished import drawing, kind_of
from ..report.finished import drawing as drawn_from
from ..report.members import member_lines
from ..utils import files, live
from ..utils.errors import MechintError
from ..utils.files import write_text
from ..utils.options import named
from ..utils.progress import Progress
from ..utils.rundir import check_writable, edited
from ..utils.wandb_run import Logged, run_name, started
from .wandb import log_wandb

COMPARISONS = {
    "circuit": write_comparison,
    "trace": write_trace_comparison,
    "compare": write_model_comparison,
}
"""Pages of several finished runs of a kind, in a directory above them."""


STUDIES = {
    "trace": write_trace,
    "patch": write_patching,
    "sae": write_sae,
    "sparsity": write_sparsity,
    "neuron": write_neurons,
    "compare": write_profile,
}
"""Reports of other kinds than a circuit's, by ``report`` in results.json."""


def write_report(
    run_dir: str | Path, *, heatmaps: bool = True, curves: bool = True, faithfulness: bool = True
) -> list[Path]:
    """Writes the figures, the Markdown report and report.html of a finished run into its directory.

    The same results give the same bytes, whenever and wherever they are drawn.

    Args:
        run_dir: Holds results.json, manifest.json, and what the figures below need.
        heatmaps: Draw ``{analysis}_channel_importance.png``; needs final_masks.pt.
        curves: Draw sparsity_curves.png; needs history.jsonl.
        faithfulness: Draw faithfulness_curve.png.

    Returns:
        The paths written, report.html last.

    Raises:
        MechintError: a file is missing, invalid, of another schema, or from another run.
    """
    with drawing(Path(run_dir)):
        written = write_pages(run_dir, heatmaps, curves, faithfulness)
    if said := edited(Path(run_dir)):
        print(f"warning: {said}", file=sys.stderr, flush=True)
        for path in written:
            mark(path, said)
    return written


def mark(page: Path, said: str) -> None:
    """Puts a warning at the head of a finished page; other files are left as they are."""
    if page.suffix == ".html":
        head, body, rest = page.read_text(encoding="utf-8").partition("</h1>")
        write_text(page, f'{head}{body}\n<p class="warning"><b>{html.escape(said)}.</b></p>{rest}')
    elif page.suffix == ".md":
        head, line, rest = page.read_text(encoding="utf-8").partition("\n")
        write_text(page, f"{head}{line}\n**{said}.**\n{rest}")


def write_pages(run_dir: str | Path, heatmaps: bool, curves: bool, faithfulness: bool) -> list[Path]:
    """The pages and figures of :func:`write_report`."""
    if (kind := kind_of(run_dir)) in STUDIES:
        return STUDIES[kind](run_dir, heatmaps=heatmaps, curves=curves)
    if kind == "study":
        return write_study(run_dir)
    results = load_results(run_dir)
    directory = results.directory
    plan = [
        (heatmaps, "importance", f"{results.raw['analysis']}_channel_importance.png", draw_importance),
        (curves, "search", "sparsity_curves.png", draw_search),
        (faithfulness, "faithfulness", "faithfulness_curve.png", draw_faithfulness),
    ]
    figures = {}
    with Progress("report", 2 + sum(wanted for wanted, *_ in plan)) as progress:
        for wanted, name, file, draw in plan:
            if wanted:
                figures[name] = draw(results, directory / file)
                progress.step(file)
        pages = write_feature_pages(results)
        text = markdown(results, [path.name for path in figures.values()])
        report = write_text(directory / "circuit_analysis_report.md", text)
        progress.step(report.name)
        page = write_text(directory / "report.html", report_page(results, figures))
        progress.step(page.name)
    return [*figures.values(), *pages, report, page]


def draw(run: RunConfig, directory: Path) -> None:
    """The report of one run directory, and its W&B run."""
    drawable = kind_of(directory) != "circuit" or (directory / "final_masks.pt").exists()
    write_report(
        directory,
        heatmaps=run.visualize_heatmaps and drawable,
        curves=run.visualize_curves,
        faithfulness=run.visualize_faithfulness,
    )
    if run.visualize_wandb:
        listener = live.listener()
        log_wandb(directory, run.wandb_project, live=listener if isinstance(listener, Logged) else None)


@contextlib.contextmanager
def logging(run: RunConfig, checkpoint: str, name: str, config: Any) -> Iterator[None]:
    """Logs an analysis to Weights & Biases while it is under way, where that is asked for."""
    if not run.visualize_wandb:
        yield
        return
    options = {"analysis": name, "checkpoint": checkpoint, **request(config)}
    start = functools.partial(
        started, run.wandb_project, run_name(checkpoint, name), name, Path(checkpoint).parent.name, options
    )
    with Logged(start) as logged, live.listening(logged):
        yield


def redraw(run: RunConfig, dry_run: bool) -> None:
    """Reports again from what finished analyses left; masks and numbers are not touched."""
    top = Path(run.run_dir or run.folder)
    found = finished_below(top, "run_dir")
    for directory in found:
        print(f"{'would draw' if dry_run else 'drawing'} {directory} again", flush=True)
    if dry_run:
        return
    check_writable(top)
    with files.lock(top):
        for directory in found:
            draw(run, directory)
            print(f"report: {directory / 'report.html'}")
        if len(found) > 1:
            write_comparisons(found, top)


def finished_below(top: str | Path, option: str) -> list[Path]:
    """The finished analyses in a directory and below it: by label, checkpoint and analysis."""
    found = sorted(path.parent for depth in range(4) for path in Path(top).glob("*/" * depth + "results.json"))
    if not found:
        raise MechintError(
            f"{top} holds no finished analysis (no results.json in it or below it); run one first, or name another "
            f"with {named('', option)}"
        )
    return found


def comparison_lines(directory: Path) -> list[str]:
    """What a comparison found, and what its members' own reports warn of, for the terminal."""
    raw = files.read_json(directory / "comparison.json")
    warned = [(str(text), list(names)) for text, names in raw["warnings"]]
    found = [f"  {text}" for text in (*raw.get("findings", ()), *raw.get("notes", ()))]
    return [*found, *member_lines(warned, len(raw["runs"]))]


def write_comparisons(directories: list[Path], target: Path) -> None:
    """A comparison for each kind of report there are several of."""
    for kind, write in COMPARISONS.items():
        alike = [directory for directory in directories if kind_of(directory) == kind]
        if len(alike) < 2:
            continue
        changed = [said for directory in alike if (said := edited(directory))]
        for said in changed:
            print(f"warning: {said}", file=sys.stderr, flush=True)
        with drawn_from(*alike):
            written = write(alike, target if len(alike) == len(directories) else target / kind)
        for path in written:
            for said in changed:
                mark(path, said)
            if path.suffix == ".html":
                print(f"comparison: {path}", *comparison_lines(path.parent), sep="\n", flush=True)
    if sum(kind_of(directory) == "patch" for directory in directories) > 1:
        print("no comparison is written of several patchings; each has its own report")
