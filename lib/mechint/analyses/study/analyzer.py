"""The study: sixteen steps from activations to claims; this module runs them in order and passes results on.

1. Setup: accuracy on held-out prompts beside chance. A model that does not do the task ends the study here.
2. Activations of each studied site, and the part of the effect that passes through it.
3-5. Dictionaries, probes and mask search propose candidates; the strongest are tested.
6. Necessity and sufficiency of each candidate on held-out prompts, against random subspaces.
7-11. Descriptions: robustness, influence over time, dynamics, reproducibility, transfer to other tasks.
12. Figures. 13. Controls: random units, shuffled tokens, random weights. 14. Other checkpoints, and cost.
15. Claims with verdicts, from the other steps' results (:mod:`.claims`). 16. The combined circuit.

A step whose input another step did not find says why, and the study goes on. Finished steps survive a kill.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...attribution.attention import scans
from ...attribution.jacobians import check_lag
from ...interventions.model import Model
from ...models.loading.discover import find_checkpoints
from ...models.loading.load import load
from ...tasks.config import TaskConfig
from ...utils import files
from ...utils.errors import MechintError, NotAnswered, an
from ...utils.options import named
from ...utils.rundir import fingerprint, weights_digest
from ...utils.statistics import draws_needed, said
from ..base import Analysis, Later, StagedAnalyzer
from ..circuits import time_estimate
from ..loader import PromptLoader
from ..metrics import remedy
from ..options import layer_list
from . import steps_circuit as study_circuit
from . import steps_controls as study_controls
from . import steps_discovery as study_discovery
from . import steps_tests as study_tests
from .claims import claims, task_not_done
from .context import Context, Found
from .options import DESCRIBES, STEPS, TITLES, StudyConfig, skipped
from .results import Claims, StudyResults
from .subspaces import study_site

Step = Callable[[Context], Found]
WORK: dict[int, Step] = {
    1: study_discovery.setup,
    2: study_discovery.activations,
    3: study_discovery.sae,
    4: study_discovery.probes,
    5: study_discovery.candidates,
    6: study_tests.tests,
    7: study_tests.shaken,
    8: study_tests.temporal,
    9: study_tests.modes,
    10: study_controls.reproducibility,
    11: study_controls.transfer,
    13: study_controls.controls,
    14: study_controls.scale,
    16: study_circuit.circuit,
}
"""The function of each step; step 12 is the report's, and 15 follows from the others."""
DOCUMENTED = {
    "sae": "sae_results",
    "probes": "probe_results",
    "candidates": "candidate_circuits",
    "necessity": "patching_results",
    "temporal": "temporal_results",
}
"""Steps whose results are also written for each layer, under these names."""


class Study(StagedAnalyzer[StudyConfig]):
    """Runs the steps on a model and a task; see :class:`mechint.analyses.study.options.StudyConfig`."""

    def __init__(self, model: Model, config: StudyConfig, device: Any = "cpu", **others: Any) -> None:
        super().__init__(model, config, device, **others)
        self.skip = skipped(config.skip_steps)
        layers = layer_list(config.layers, self.model.num_layers, "study")
        self.sites = {layer: study_site(self.model, layer, config.site) for layer in layers}
        self.times: dict[str, float] = {}
        self.context: Context | None = None

    def check(self, train_loader: PromptLoader, val_loader: PromptLoader) -> None:
        """Checks the request against the prompts, before any work.

        Raises:
            MechintError: no twins; a lag longer than the prompts.
        """
        for loader in (train_loader, val_loader):
            if loader.task.name == "text" or any(batch.twins is None for batch in loader):
                raise MechintError(
                    f"a study compares prompts with counterfactual twins, and those of {loader.task.name!r} have none; "
                    f"choose recall, facts or another such task"
                )
            if 8 not in self.skip and self.recurrent:
                check_lag(self.config.max_lag, min(int(batch.tokens.shape[1]) for batch in loader))

    @property
    def recurrent(self) -> bool:
        """True if a layer of the model has a recurrence."""
        return any(scans(self.model, layer) for layer in range(self.model.num_layers))

    def begin(self, train_loader: PromptLoader, val_loader: PromptLoader) -> Context:
        """Prepares the context that the steps share."""
        val_loader.check_intervals()
        self.check(train_loader, val_loader)
        task_config = getattr(train_loader.task, "config", None)
        self.context = Context(
            self.model, self.config, self.seed, train_loader, val_loader, self.sites, task_config, self.stages
        )
        return self.context

    def run_step(self, number: int) -> Found:
        """One step, from an earlier run where that finished it; its report is returned."""
        assert self.context is not None
        name = STEPS[number]
        if number in self.skip:
            entry: Found = {"report": {"status": "skipped", "said": "Left out, as asked."}}
        else:
            begin = time.monotonic()
            entry = self.stages.get(f"step {number:02}", functools.partial(self.attempt, number))
            self.times[name] = time.monotonic() - begin
        self.context.found[name] = entry
        report: Found = entry["report"]
        return report

    def attempt(self, number: int) -> Found:
        """Runs a step; where it cannot be done, the reason is its result, and the study goes on."""
        assert self.context is not None
        if number in (8, 9) and not self.recurrent:
            return nothing(f"{an(self.model.config.family)} model has no recurrence to differentiate")
        try:
            entry = WORK[number](self.context)
        except MechintError as reason:
            return nothing(str(reason))
        entry["report"] = {"status": "done", **entry["report"]}
        if number in DESCRIBES:
            entry["report"]["said"] += " No claim rests on this step."
        return entry

    def run_analysis(self, train_loader: PromptLoader, val_loader: PromptLoader) -> dict[str, Any]:
        """All steps; returns the results."""
        context = self.begin(train_loader, val_loader)
        for number in WORK:
            report = self.run_step(number)
            print(f"  {number:>2} {TITLES[number]:<26} {report['said']}", flush=True)
            if number == 1:
                self.check_answers(report)
        self.finish(context)
        return self.results

    def check_answers(self, setup: Found) -> None:
        """Ends the study of a model that does not do the task, before anything that takes long.

        Raises:
            NotAnswered: its accuracy is below the least one, or no better than chance.
        """
        least, accuracy = self.config.min_accuracy, setup["accuracy"]
        if least == 0:
            return
        assert self.context is not None
        what = f"{getattr(self.model, 'source', 'the model')} on the task {self.context.train.task.name!r}"
        instead = f"{remedy(self.model, self.context.train.task)}, or set {named('study', 'min_accuracy')} to 0"
        if float(accuracy["value"]) < least:
            raise NotAnswered(
                f"{what}: it answers {accuracy['value']:.1%} of the held-out prompts, below the {least:.0%} asked for. "
                f"{instead}"
            )
        if reason := task_not_done({"setup": setup}):
            raise NotAnswered(f"{what}: {reason}. {instead}")

    def finish(self, context: Context) -> None:
        """The claims, from what the steps reported."""
        reports = {name: entry["report"] for name, entry in context.found.items()}
        verdicts = claims(reports, self.config, context.train.task.name)
        print(f"  15 {TITLES[15]:<26} {verdicts['said']}", flush=True)
        metrics = {}
        if "accuracy" in reports["setup"]:
            metrics = {"accuracy_full": reports["setup"]["accuracy"], "accuracy_chance": reports["setup"]["chance"]}
        self.results = StudyResults(
            unit="subspace of a site",
            metric=self.config.metric,
            ablation=self.config.ablation,
            metrics=metrics,
            steps=reports,
            claims=Claims.read(verdicts),
            notes=[],
        ).entries()

    def save_results(self) -> list[Path]:
        """``claims.json`` and the documented files of each step and layer, beside what the runner writes."""
        assert self.context is not None
        out = self.directory
        written = [
            files.write_json(out / "claims.json", self.results["claims"]),
            files.write_json(out / "comprehensive_report.json", self.results),
        ]
        for number, name in STEPS.items():
            if name in self.context.found:
                written += self.step_files(number)
        files.write_json(out / "times.json", {name: round(seconds, 2) for name, seconds in self.times.items()})
        return written

    def step_files(self, number: int) -> list[Path]:
        """The documented files of one step that was made."""
        assert self.context is not None
        name, out = STEPS[number], self.directory
        entry = self.context.found[name]
        written = []
        if name == "activations":
            written.append(files.write_json(out / "baseline_stats.json", entry["report"]))
            if "keep" in entry:
                values = {site: carried.clean.float() for site, carried in self.context.carried.items()}
                written.append(files.write_torch(out / "activations.pt", values))
        if name in DOCUMENTED:
            for layer in self.sites:
                path = out / f"{DOCUMENTED[name]}_layer_{layer}.json"
                written.append(files.write_json(path, of_layer(entry["report"], layer)))
        return written

    def save_step(self, number: int) -> list[Path]:
        """The documented files of one step, and those of all steps so far in ``comprehensive_report.json``."""
        assert self.context is not None
        steps = {name: entry["report"] for name, entry in self.context.found.items()}
        report = {"report": "study", "status": f"{len(steps)} of {len(STEPS)} steps", "steps": steps}
        written = files.write_json(self.directory / "comprehensive_report.json", report)
        return [*self.step_files(number), written]


def nothing(reason: str) -> Found:
    return {"report": {"status": "nothing", "said": f"Nothing to say: {reason}."}}


def of_layer(report: Found, layer: int) -> Found:
    """The part of a step's report about one layer."""
    found = {name: value for name, value in report.items() if name in ("status", "said", "metric", "ablation", "notes")}
    if "layers" in report:
        found["layer"] = report["layers"].get(str(layer))
    for name in ("probes", "candidates"):
        if name in report:
            found[name] = [row for row in report[name] if row.get("layer") == layer]
    if "tests" in report:
        found["tests"] = [row for row in report["tests"] if row["candidate"].startswith(f"L{layer} ")]
    return found


def refuse(config: StudyConfig, task: TaskConfig) -> str | None:
    skipped(config.skip_steps)
    if task.name in ("text", "prompt"):
        return f"the task {task.name} has no counterfactual twins; choose recall, facts or another such task"
    return None


def inputs(config: StudyConfig, run_dir: Path) -> dict[str, str]:
    """Digests of the weights of the checkpoints of other seeds and of earlier steps, in their order."""
    found = {}
    for name in ("peers", "trajectory"):
        pattern = getattr(config, name)
        if pattern:
            models = (load(path, dtype="float32") for path in find_checkpoints(pattern))
            found[name] = fingerprint([weights_digest(model) for model in models])
    return found


def work(config: StudyConfig) -> str:
    left = [n for n in STEPS if n not in skipped(config.skip_steps)]
    combined = time_estimate.work(study_circuit.circuit_options(config)) if 16 in left else ""
    return (
        f"{len(left)} steps; among them {2 * config.candidates} tests against "
        f"{max(config.draws, draws_needed(config.candidates + 1))} random subspaces or more, as their claims need, on "
        f"{config.eval_prompts} prompts" + (f"; for the combined circuit {combined}" if combined else "")
    )


def summary(results: dict[str, Any]) -> list[str]:
    """The claims."""
    lines, found = [], Claims.read(results["claims"])
    for claim in found.claims:
        lines.append(f"  {claim.verdict:<13} {said(claim.effect, '.2f')} {claim.claim}")
    return lines or [f"  {found.said}"]


ANALYSIS = Analysis(
    name="study",
    title="Study",
    config=StudyConfig,
    analyzer=Study,
    refuse=refuse,
    work=work,
    summary=summary,
    inputs=inputs,
    report=Later("analyses.study.report:write_study"),
    headline=Later("analyses.study.report:headline"),
    compare=Later("analyses.study.compare:write_study_comparison"),
    to_log=Later("analyses.study.report:to_log"),
    entries=Later("analyses.study.results:StudyResults"),
)
