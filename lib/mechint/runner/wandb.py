"""A finished run to Weights & Biases: curves, summary, figures, tables and the masks. Works offline, too."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..analyses.circuits.results import Results, load_history, load_masks, load_results
from ..analyses.dictionaries.figures import Grid, load_grid
from ..analyses.patching.figures import Patching, load_patching
from ..analyses.study.report import StudyResults, load_study
from ..analyses.tracing.figures import Trace, load_trace
from ..report.finished import kind_of
from ..report.values import optional_text
from ..report.words import flat
from ..utils.files import parse_json
from ..utils.wandb_run import Logged, artifact_name, run_name, started

Read = Trace | Patching | StudyResults


def log_wandb(run_dir: str | Path, project: str, name: str = "", live: Logged | None = None) -> Path:
    """Logs a finished run; call it after :func:`mechint.report.write_report`, whose figures it takes along.

    History: ``mechint/search/loss/{search}``, ``mechint/search/sparsity/{search}`` and so on, against ``mechint/step``
    (of dictionaries ``mechint/training/…`` against ``mechint/tokens``).
    Summary: ``mechint/{metric}``, ``mechint/{metric}_low``, ``mechint/{metric}_high`` for every metric, and
    ``mechint/sparsity`` (share of units dropped) and ``mechint/loss`` (the circuit's own, on held-out prompts).
    With ``WANDB_MODE=offline`` everything goes to a directory that ``wandb sync`` sends later.

    Args:
        name: Of the run; empty makes it from the checkpoint and the analysis.
        live: What a run that is under way has logged already; the rest goes to that run.

    Returns:
        W&B's own directory of the run; below ``WANDB_DIR`` when that is set.

    Raises:
        MechintError: W&B is not installed, refuses the login, or can't be reached; or the run can't be read.
    """
    read: dict[str, Callable[[Any], Results | Read | Grid]] = {
        "trace": load_trace, "patch": load_patching, "sae": load_grid, "study": load_study,
    }  # fmt: skip
    results = read.get(kind_of(run_dir), load_results)(run_dir)
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

        if isinstance(results, Grid):
            _log_grid(wandb, logged, results)
        elif not isinstance(results, Results):
            run.summary.update(metric_values(results))
            for title, best in strongest(results).items():
                table = wandb.Table(columns=list(best[0]), data=[list(entry.values()) for entry in best])
                run.log({f"mechint/tables/{title}": table})
        else:
            for trace in load_history(results):
                for entry in trace.steps:
                    logged(trace.name, {**entry, "units": results.total})
            run.summary.update(summary(results))
            _log_tables(wandb, run, results)
        for path in sorted(results.directory.glob("*.png")):
            run.log({f"mechint/figures/{path.stem}": wandb.Image(str(path))})
        _log_files(wandb, run, results)
        return Path(run.settings.sync_dir)


def summary(results: Results) -> dict[str, float]:
    """Every key that is queried later, as plain numbers."""
    found = {"mechint/sparsity": 1 - results.kept / results.total, **metric_values(results)}
    own = next((name for name in ("metric_circuit", results.raw["metric"]) if name in results.metrics), None)
    return found if own is None else found | {"mechint/loss": results.metrics[own].value}


def metric_values(results: Results | Read) -> dict[str, float]:
    """Every metric with the ends of its interval; counts have none."""
    values: dict[str, float] = {}
    for name, value in results.metrics.items():
        values[f"mechint/{name}"] = value.value
        if value.interval != "exact count" and not name.startswith("units_") and not value.alone:
            values |= {f"mechint/{name}_low": value.low, f"mechint/{name}_high": value.high}
    return values


def strongest(results: Read) -> dict[str, list[dict[str, Any]]]:
    """The tables of what matters most, without empty ones."""
    if isinstance(results, Trace):
        return {"strongest": results.raw["trace"]["strongest"]}
    if isinstance(results, StudyResults):
        names = ("verdict", "claim", "why", "p_holm")
        rows = [{n: claim[n] for n in names} | {"effect": claim["effect"]["value"]}
                for claim in results.raw["claims"]["claims"]]  # fmt: skip
        return {"claims": rows} if rows else {}
    return {f"strongest_{name}": best for name, best in results.raw["strongest"].items() if best}


def _log_grid(wandb: Any, logged: Logged, grid: Grid) -> None:
    """Training curves of all dictionaries against one axis of activations, and what each is worth."""
    run = logged.run
    history = grid.directory / "history.jsonl"
    for number, line in enumerate((optional_text(history) or "").splitlines(), 1):
        entry = parse_json(line, f"{history} line {number}")
        logged(entry.pop("member"), entry)
    metrics = list(grid.members[0].metrics)
    columns = ["dictionary", "d_sae", *(f"{name}{end}" for name in metrics for end in ("", "_low", "_high"))]
    data = []
    for member in grid.members:
        cells: list[Any] = [member.raw["name"], member.raw["d_sae"]]
        for name in metrics:
            value = member.metrics.get(name)
            cells += [None] * 3 if value is None else [value.value, value.low, value.high]
            if value is not None:
                run.summary.update({f"mechint/{name}/{member.raw['name']}": value.value})
        data.append(cells)
    run.log({"mechint/tables/dictionaries": wandb.Table(columns=columns, data=data)})


def _log_tables(wandb: Any, run: Any, results: Results) -> None:
    """Metrics, layers, the faithfulness curve and the manifest as tables."""
    metrics = [(n, v.value, v.low, v.high, v.n) for n, v in results.metrics.items()]
    importance = load_masks(results) if (results.directory / "final_masks.pt").exists() else {}
    layers = []
    for layer in results.layers:
        scores = importance.get(layer.layer)
        mean = None if scores is None else float(scores.abs().mean())
        layers.append((layer.label, layer.total, layer.kept, 1 - layer.kept / layer.total, mean))
    curve = [
        (name, results.sizes[i], results.sizes[i] / results.total, point.value, point.low, point.high, point.n)
        for name, points in results.curves.items()
        for i, point in enumerate(points)
    ]
    tables: dict[str, tuple[list[str], list[Any]]] = {
        "metrics": (["metric", "value", "low", "high", "n"], metrics),
        "layers": (["layer", "units", "kept", "sparsity", "mean |importance|"], layers),
        "faithfulness": (["circuit", "units kept", "share", "faithfulness", "low", "high", "n"], curve),
        "manifest": (["entry", "value"], list(flat(results.manifest))),
    }
    for title, (columns, rows) in tables.items():
        run.log({f"mechint/tables/{title}": wandb.Table(columns=columns, data=[list(row) for row in rows])})


def _log_files(wandb: Any, run: Any, results: Results | Read | Grid) -> None:
    """The masks, or every prompt's effects, and the results as one artifact, to be downloaded and read back."""
    kind, raw = "masks" if isinstance(results, Results) else "effects", results.raw
    title = artifact_name(raw["checkpoint"], raw["analysis"], kind, str(raw.get("model", {}).get("sha256", "")))
    artifact = wandb.Artifact(title, type=kind, description=f"{raw['title']} of {raw['checkpoint']}")
    for file in ("final_masks.pt", "effects.pt", "claims.json", "results.json"):
        if (results.directory / file).exists():
            artifact.add_file(str(results.directory / file))
    run.log_artifact(artifact)
