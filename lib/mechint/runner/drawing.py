"""write_report: every figure and page of one finished run, beside its results."""

from __future__ import annotations

import html
import sys
from pathlib import Path

from ..analyses.circuits.figures import draw_faithfulness, draw_search
from ..analyses.circuits.pages.compare import write_comparison
from ..analyses.circuits.pages.features import write_feature_pages
from ..analyses.circuits.pages.importance import draw_importance
from ..analyses.circuits.results import load_results
from ..analyses.comparison.report import write_model_comparison, write_profile
from ..analyses.dictionaries.report import write_sae
from ..analyses.neurons.report import write_neurons
from ..analyses.patching.report import write_patching
from ..analyses.sparsity.report import write_sparsity
from ..analyses.study.report import write_study
from ..analyses.tracing.compare import write_trace_comparison
from ..analyses.tracing.report import write_trace
from ..report.finished import drawing
from ..report.html import report_page
from ..report.markdown import markdown
from ..report.values import read_object
from ..utils.files import write_text
from ..utils.progress import Progress
from ..utils.rundir import edited

STUDIES = {
    "trace": write_trace,
    "patch": write_patching,
    "sae": write_sae,
    "sparsity": write_sparsity,
    "neuron": write_neurons,
    "compare": write_profile,
}
"""Reports of other kinds than a circuit's, by ``report`` in results.json."""


def kind_of(run_dir: str | Path) -> str:
    """Which report a finished run gets: ``circuit``, ``study``, or one of :data:`STUDIES`."""
    return str(read_object(Path(run_dir) / "results.json").get("report", "circuit"))


COMPARISONS = {
    "circuit": write_comparison,
    "trace": write_trace_comparison,
    "compare": write_model_comparison,
}
"""Pages of several finished runs of a kind, in a directory above them."""


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
