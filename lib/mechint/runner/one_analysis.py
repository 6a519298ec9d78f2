"""Makes one analysis of one checkpoint: request, compute, write, draw; a finished one is skipped."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import scan
from ..analyses.base import Analysis, StagedAnalyzer, analyses
from ..analyses.effect_tables import few_notes
from ..analyses.loader import PromptLoader
from ..analyses.options import AnalysisOptions, elsewhere, request
from ..models.loading.load import find_devices
from ..models.placement import devices_of
from ..report.figure_style import VECTOR
from ..report.finished import CIRCUIT, COMPLETE
from ..report.results import Header, Model
from ..tasks import Task
from ..tasks.config import TaskConfig
from ..tasks.stored import check_loss, differences
from ..utils import files, progress, workers
from ..utils.checkpoint_step import training_step
from ..utils.options import named
from ..utils.rundir import fingerprint, manifest, peak_memory_mib
from ..utils.statistics import effective
from .drawing import draw
from .preparation import Prepared, is_finished, key_of, loaders, prompts_digest
from .request import Experiment

OF_ANOTHER_RUN = (COMPLETE, "manifest.json", "results.json", "final_masks.pt", "effects.pt", "claims.json")
"""Files of an earlier run that go before the work."""


@dataclasses.dataclass(frozen=True)
class Request:
    """One analysis of one checkpoint: what is asked, of which model, and where the results go.

    Attributes:
        experiment, analysis: The request.
        checkpoint: The model, by its name.
        directory: Directory of the results.
        prepared: The loaded model and the tasks.
        prompts: The discovery and the evaluation prompts.
        key: All that the results depend on, by content.
        by_all: True if all processes share the work.
    """

    experiment: Experiment
    analysis: Analysis[Any]
    checkpoint: str
    directory: Path
    prepared: Prepared
    prompts: tuple[PromptLoader, PromptLoader]
    key: dict[str, Any]
    by_all: bool

    @property
    def config(self) -> AnalysisOptions:
        return self.experiment.configs[self.analysis.name]

    @property
    def task(self) -> Task:
        return self.prepared.tasks[self.analysis.name]

    @property
    def asks(self) -> TaskConfig:
        """The options of the task, as the checkpoint says them where it does."""
        return self.task.config or self.experiment.asked(self.analysis.name)

    @property
    def device(self) -> torch.device:
        return find_devices(self.experiment.run.place)[0]

    @property
    def scan(self) -> str:
        """The kernel that runs the recurrence on this device."""
        return scan.chosen(torch.empty(0, device=self.device))

    @property
    def helper(self) -> bool:
        """True if another process leads the work, and this one takes a part of it."""
        return self.by_all and workers.worker()[0] > 0


def analyse_one(
    experiment: Experiment, name: str, checkpoint: str, directory: Path, prepared: Prepared, by_all: bool
) -> None:
    """Makes one analysis of one checkpoint, unless it is finished.

    Args:
        by_all: True if all processes share its work.
    """
    prompts = loaders(experiment.run, analyses()[name], experiment.configs[name], prepared.tasks[name])
    key = key_of(experiment, name, prepared, directory, prompts)
    wanted = Request(experiment, analyses()[name], checkpoint, directory, prepared, prompts, key, by_all)
    if skipped(wanted):
        return
    if wanted.helper:
        analyzer_of(wanted).assist(*prompts)
        return
    with files.lock(directory, again=True):
        make(wanted)


def make(wanted: Request) -> None:
    """Computes, writes and draws one analysis, in a directory that no other process writes to."""
    experiment, directory = wanted.experiment, wanted.directory
    start = time.monotonic()
    analyzer = analyzer_of(wanted)
    title = analyzer.title or wanted.analysis.title
    announce(wanted, title)
    found, written = compute(wanted, analyzer)
    results = write_results(wanted, title, found)
    write_manifest(wanted, analyzer.stages.resumed, written, time.monotonic() - start)
    draw(experiment.run, directory)
    files.write_text(directory / COMPLETE, "")  # last of all: nothing is missing now
    if not analyzer.stages.resumed:
        progress.current().measured()
    analyzer.stages.clear()
    few = (f"  note            {text}" for text in found["few"])
    print(*wanted.analysis.summary(results), *few, f"  report: {directory / 'report.html'}", sep="\n", flush=True)


def skipped(wanted: Request) -> bool:
    """True if the directory holds the results of this very request, which the first process decides for all."""
    rerun = wanted.experiment.run.rerun
    with workers.together() if wanted.by_all else contextlib.nullcontext():
        done = workers.from_first(None if wanted.helper else is_finished(wanted.directory, wanted.key, rerun))
    if done and not wanted.helper:
        print(
            f"{wanted.checkpoint}: {made_title(wanted.directory)} is finished in {wanted.directory}, skipped "
            f"({named('', 'rerun')} repeats it)",
            flush=True,
        )
    return bool(done)


def made_title(directory: Path) -> str:
    """The title of a finished run."""
    return str(files.read_json(directory / "results.json")["title"])


def announce(wanted: Request, title: str) -> None:
    """Says what is analysed, and which options of the task the checkpoint has changed."""
    if wanted.helper:
        return
    print(f"{wanted.checkpoint}: {title} on the task {wanted.task.name!r} -> {wanted.directory}", flush=True)
    if taken := differences(wanted.experiment.asked(wanted.analysis.name), wanted.asks):
        print(f"note: asked what the checkpoint says it was trained on: {taken}", flush=True)


def analyzer_of(wanted: Request) -> StagedAnalyzer[Any]:
    """The analyzer, whose stages belong to the request, the number of threads and the kernel.

    Raises:
        MechintError: the prompts have no loss that the analysis could use.
    """
    stages = {**wanted.key, "threads": torch.get_num_threads(), "scan": wanted.scan}
    analyzer = wanted.analysis.analyzer(
        wanted.prepared.model,
        wanted.config,
        wanted.device,
        seed=wanted.experiment.run.seed,
        run_dir=None if wanted.helper else wanted.directory,
        key=fingerprint(stages),
    )
    analyzer.shared = wanted.by_all
    check_loss(wanted.prepared.model, wanted.task, wanted.prompts[1])
    return analyzer


def compute(wanted: Request, analyzer: StagedAnalyzer[Any]) -> tuple[dict[str, Any], list[Path]]:
    """The analysis's own results, and the files that it has written."""
    for old in OF_ANOTHER_RUN:
        (wanted.directory / old).unlink(missing_ok=True)
    for figure in wanted.directory.glob("*.png"):
        for end in ("csv", *VECTOR):  # nothing draws them again where they are no longer asked for
            figure.with_suffix(f".{end}").unlink(missing_ok=True)
    found = analyzer.run_analysis(*wanted.prompts)
    written = analyzer.save_results()
    if not wanted.experiment.run.save_masks:
        (wanted.directory / "final_masks.pt").unlink(missing_ok=True)
    if "few" not in found:  # whether all of the prompts are few; an analysis of some of them says it of these
        found["few"] = few_notes(wanted.prompts[1].templates(), "measured")
        found["notes"] = [*found.get("notes", ()), *found["few"]]
    if "report" not in found and wanted.analysis.kind != CIRCUIT:
        found["report"] = wanted.analysis.kind
    return found, written


def write_results(wanted: Request, title: str, found: dict[str, Any]) -> dict[str, Any]:
    """Writes results.json, and the configuration that repeats it; returns the results."""
    name, run = wanted.analysis.name, wanted.experiment.run
    results = Header(
        analysis=name,
        title=title,
        checkpoint=wanted.checkpoint,
        key=wanted.key,
        model=described(wanted),
        task=describe(wanted.task, *wanted.prompts),
        config=request(wanted.config),
    ).with_results(found)
    files.write_json(wanted.directory / "results.json", results)
    if wanted.experiment.defconfig is not None:
        one = dataclasses.replace(
            run, checkpoint=wanted.checkpoint, output_dir=str(wanted.directory), label="", baseline=""
        )  # fmt: skip
        text = wanted.experiment.defconfig(one, wanted.asks, {name: elsewhere(wanted.config)})
        files.write_text(wanted.directory / "config", text)
    return results


def described(wanted: Request) -> Model:
    """Describes the model for the results."""
    model = wanted.prepared.model
    return Model(
        family=model.config.family,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        n_layer=model.config.n_layer,
        d_model=model.config.d_model,
        sha256=wanted.prepared.digest,
        variant=model.metadata.get("variant") or None,
        step=training_step(model.metadata, wanted.checkpoint),
    )


def write_manifest(wanted: Request, resumed: list[str], written: list[Path], seconds: float) -> None:
    """Writes manifest.json: how, where and by which versions the results were made."""
    run, directory = wanted.experiment.run, wanted.directory
    facts = manifest(
        device=devices_of(wanted.prepared.model),
        scan=wanted.scan,
        dtype=run.dtype,
        seed=run.seed,
        configuration=fingerprint(wanted.key),
        weights=wanted.prepared.digest,
        prompts=prompts_digest(*wanted.prompts),
        resumed=resumed,
        seconds=round(seconds, 1),
        peak_memory_mib=peak_memory_mib(),
        files=sorted(path.name for path in written),
        results_sha256=files.sha256(directory / "results.json"),
    )
    files.write_json(directory / "manifest.json", facts)


def describe(task: Task, discovery: PromptLoader, evaluation: PromptLoader) -> dict[str, Any]:
    """Describes the task and its prompts for the results."""
    return {
        "name": task.name,
        "description": task.description,
        "discovery_prompts": len(discovery.templates()),
        "evaluation_prompts": len(evaluation.templates()),
        "evaluation_templates": len(set(evaluation.templates().tolist())),
        "evaluation_templates_effective": round(
            float(effective(np.unique(evaluation.templates(), return_counts=True)[1].astype(np.float64))), 3
        ),
        "answers_per_prompt": int(evaluation.groups[0].answers.shape[1]),
    }
