"""Reports and comparisons of finished analyses, drawn where they are made and again from their run directories."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..analyses.options import RunConfig, request
from ..report import COMPARISONS, kind_of, log_wandb, write_report
from ..report.finished import drawing as drawn_from
from ..report.members import member_lines
from ..utils import files, live
from ..utils.errors import MechintError
from ..utils.options import named
from ..utils.rundir import check_writable, edited
from ..utils.wandb_run import Logged, run_name, started
from .drawing import mark


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
