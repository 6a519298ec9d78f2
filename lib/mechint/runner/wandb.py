"""Logs a finished run to Weights & Biases: curves, summary, figures, tables and files. Works offline, too."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..analyses.base import analysis_of
from ..report.finished import FinishedRun, read_finished
from ..report.to_log import ToLog
from ..utils.wandb_run import Logged, artifact_name, run_name, started, tags_of


def log_wandb(run_dir: str | Path, project: str, name: str = "", live: Logged | None = None) -> Path:
    """Logs a finished run; call it after :func:`mechint.report.write_report`, whose figures it takes along.

    History: ``mechint/search/loss/{search}``, ``mechint/search/sparsity/{search}`` and so on, against ``mechint/step``
    (of dictionaries ``mechint/training/…`` against ``mechint/tokens``).
    Summary: ``mechint/{metric}``, ``mechint/{metric}_low``, ``mechint/{metric}_high`` for every metric, and
    ``mechint/sparsity`` (share of units dropped) and ``mechint/loss`` (the circuit's own, on held-out prompts).
    Configuration: the options of the analysis, and below ``run``, ``task`` and ``model`` all else that the results
    depend on. Tags: analysis, task, family and variant.
    With ``WANDB_MODE=offline`` everything goes to a directory that ``wandb sync`` sends later.

    Args:
        name: Name of the run; empty makes it from the checkpoint and the analysis.
        live: The run under way, which has logged some values already; the rest goes to that run.

    Returns:
        W&B's own directory of the run; below ``WANDB_DIR`` when that is set.

    Raises:
        MechintError: W&B is not installed, refuses the login, or can't be reached; or the run can't be read.
    """
    results = read_finished(run_dir)
    given = analysis_of(run_dir).to_log(results.directory)
    raw = results.raw
    checkpoint, analysis = str(raw["checkpoint"]), str(raw["analysis"])
    with contextlib.ExitStack() as stack:
        logged = live or stack.enter_context(
            Logged(
                lambda: started(
                    project,
                    name or run_name(checkpoint, analysis),
                    analysis,
                    Path(checkpoint).parent.name,
                    {"analysis": analysis, "checkpoint": checkpoint, **raw["config"]},
                )
            )
        )
        run = logged.run
        import wandb

        describe(run, raw)
        log_numbers(wandb, logged, given)
        for path in sorted(results.directory.glob("*.png")):
            run.log({f"mechint/figures/{path.stem}": wandb.Image(str(path))})
        log_files(wandb, run, results, given.files)
        return Path(run.settings.sync_dir)


def describe(run: Any, raw: Mapping[str, Any]) -> None:
    """Adds to the run's configuration what its results depend on beside the options of the analysis, and tags."""
    key, model, task = raw.get("key", {}), raw.get("model", {}), raw.get("task", {})
    whole = {"run": key.get("run", {}), "task": {**key.get("task", {}), **task}, "model": model}
    run.config.update(whole, allow_val_change=True)
    names = (raw["analysis"], task.get("name"), model.get("family"), model.get("variant"))
    run.tags = tuple(tags_of(*(run.tags or ()), *names))


def log_numbers(wandb: Any, logged: Logged, given: ToLog) -> None:
    """Logs the curves, the summary and the tables of a run."""
    for series, point in given.history:
        logged(series, point)
    logged.run.summary.update(dict(given.summary))
    for title, (columns, rows) in given.tables.items():
        table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
        logged.run.log({f"mechint/tables/{title}": table})


def log_files(wandb: Any, run: Any, results: FinishedRun, kind: str) -> None:
    """Logs the masks, or every prompt's effects, and the results as one artifact, to be downloaded and read back."""
    raw = results.raw
    title = artifact_name(raw["checkpoint"], raw["analysis"], kind, str(raw.get("model", {}).get("sha256", "")))
    artifact = wandb.Artifact(title, type=kind, description=f"{raw['title']} of {raw['checkpoint']}")
    for file in ("final_masks.pt", "effects.pt", "claims.json", "results.json"):
        if (results.directory / file).exists():
            artifact.add_file(str(results.directory / file))
    run.log_artifact(artifact)
