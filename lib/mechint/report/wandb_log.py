"""A finished run to Weights & Biases: curves, summary, figures, tables and the masks. Works offline, too."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import MechintError
from .patch import Patching, load_patching
from .results import Results, load_history, load_masks, load_results
from .sae import Grid, load_grid
from .study_page import StudyResults, load_study
from .trace import Trace, load_trace
from .words import flat
from .write import kind_of

CONNECT_SECONDS = 30.0
Read = Trace | Patching | StudyResults


def log_wandb(run_dir: str | Path, project: str, name: str) -> Path:
    """Logs a finished run; call it after :func:`mechint.report.write_report`, whose figures it takes along.

    History: ``mechint/loss/{search}``, ``mechint/sparsity/{search}`` and so on, against ``mechint/step``.
    Summary: ``mechint/{metric}``, ``mechint/{metric}_low``, ``mechint/{metric}_high`` for every metric, and
    ``mechint/sparsity`` (share of units dropped) and ``mechint/loss`` (last loss of the search that found the circuit).
    With ``WANDB_MODE=offline`` everything goes to a directory that ``wandb sync`` sends later.

    Returns:
        W&B's own directory of the run; below ``WANDB_DIR`` when that is set.

    Raises:
        MechintError: W&B is not installed, refuses the login, or can't be reached; or the run can't be read.
    """
    read: dict[str, Callable[[Any], Results | Read | Grid]] = {
        "trace": load_trace, "patch": load_patching, "sae": load_grid, "study": load_study,
    }  # fmt: skip
    results = read.get(kind_of(run_dir), load_results)(run_dir)
    try:
        import wandb
    except ImportError:
        raise MechintError(
            "logging to Weights & Biases needs its package; run `pip install wandb`, or turn visualize_wandb off"
        ) from None
    with _started(wandb, results, project, name) as run:
        if isinstance(results, Grid):
            _log_grid(wandb, run, results)
        elif not isinstance(results, Results):
            run.summary.update(metric_values(results))
            for title, best in strongest(results).items():
                table = wandb.Table(columns=list(best[0]), data=[list(entry.values()) for entry in best])
                run.log({f"mechint/tables/{title}": table})
        else:
            _log_history(run, results)
            run.summary.update(summary(results))
            _log_tables(wandb, run, results)
        for path in sorted(results.directory.glob("*.png")):
            run.log({f"mechint/figures/{path.stem}": wandb.Image(str(path))})
        _log_files(wandb, run, results, name)
        directory = Path(run.settings.sync_dir)
    return directory


@contextlib.contextmanager
def _started(wandb: Any, results: Results | Read | Grid, project: str, name: str) -> Iterator[Any]:
    """A W&B run that asks nothing on the terminal and gives up after :data:`CONNECT_SECONDS`."""
    hint = "run `wandb login`, or set WANDB_MODE=offline"
    settings = wandb.Settings(
        silent=True,
        console="off",
        init_timeout=CONNECT_SECONDS,
        disable_git=True,
        disable_code=True,
        x_disable_stats=True,
    )
    mode = os.environ.get("WANDB_MODE") or wandb.setup().settings.mode  # setup() remembers the mode of its first call
    if mode not in ("offline", "disabled", "dryrun") and not wandb.login(prompt=False, verify=False):
        raise MechintError(f"not logged in to Weights & Biases; {hint}")
    options = {"analysis": results.raw["analysis"], "checkpoint": results.raw["checkpoint"], **results.raw["config"]}
    try:
        run = wandb.init(
            project=project,
            name=name,
            mode=mode,
            config=options,
            dir=os.environ.get("WANDB_DIR"),  # W&B remembers that of its first run in a process
            job_type=results.raw["analysis"],
            settings=settings,
            reinit="create_new",
        )
    except wandb.Error as error:
        raise MechintError(f"Weights & Biases could not be started: {str(error).splitlines()[0]}; {hint}") from None
    try:
        yield run
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()


def summary(results: Results) -> dict[str, float]:
    """Every key that is queried later, as plain numbers."""
    values = {"mechint/sparsity": 1 - results.kept / results.total, **metric_values(results)}
    found = results.chosen.name if results.chosen else None
    for trace in load_history(results):
        if trace.name == found:
            values["mechint/loss"] = trace.steps[-1]["loss"]
    return values


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


def _log_grid(wandb: Any, run: Any, grid: Grid) -> None:
    """Training curves of all dictionaries against one axis of activations, and what each is worth."""
    run.define_metric("mechint/tokens", hidden=True)
    run.define_metric("mechint/*", step_metric="mechint/tokens")
    by_tokens: dict[int, dict[str, float]] = {}
    history = grid.directory / "history.jsonl"
    for line in history.read_text().splitlines() if history.exists() else ():
        entry = json.loads(line)
        name, tokens = entry.pop("member"), int(entry.pop("tokens"))
        entry.pop("step")
        by_tokens.setdefault(tokens, {}).update({f"mechint/{field}/{name}": value for field, value in entry.items()})
    for tokens, row in sorted(by_tokens.items()):
        run.log({"mechint/tokens": tokens, **row})
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


def _log_history(run: Any, results: Results) -> None:
    """All searches against one step axis, so that W&B draws them into the same panels."""
    run.define_metric("mechint/step", hidden=True)
    run.define_metric("mechint/*", step_metric="mechint/step")
    by_step: dict[int, dict[str, float]] = {}
    for trace in load_history(results):
        for entry in trace.steps:
            row = by_step.setdefault(int(entry["step"]), {})
            row[f"mechint/sparsity/{trace.name}"] = 1 - entry["kept"] / results.total
            for field in ("loss", "metric", "budget", "kept", "temperature"):
                if field in entry:
                    row[f"mechint/{field}/{trace.name}"] = entry[field]
    for step, row in sorted(by_step.items()):
        run.log({"mechint/step": step, **row})


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


def _log_files(wandb: Any, run: Any, results: Results | Read | Grid, name: str) -> None:
    """The masks, or every prompt's effects, and the results as one artifact, to be downloaded and read back."""
    kind = "masks" if isinstance(results, Results) else "effects"
    title = re.sub(r"[^A-Za-z0-9_.-]", "-", f"{name}-{kind}")[:128]
    artifact = wandb.Artifact(title, type=kind, description=f"{results.raw['title']} of {results.raw['checkpoint']}")
    for file in ("final_masks.pt", "effects.pt", "claims.json", "results.json"):
        if (results.directory / file).exists():
            artifact.add_file(str(results.directory / file))
    run.log_artifact(artifact)
