"""The registry of analyses, and the base classes of analyzers."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import pkgutil
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol

import torch
from torch import Tensor

from ..interventions.model import Model, having
from ..interventions.run import run
from ..report.finished import CIRCUIT, Drawn
from ..report.results import Cell, no_cell
from ..report.to_log import ToLog, metrics_to_log
from ..report.values import read_object
from ..tasks import Prompts
from ..tasks.config import TaskConfig
from ..utils import files, options, workers
from ..utils.errors import MechintError, an, shown
from ..utils.plugins import plugins
from ..utils.rundir import Stages
from .loader import PromptLoader
from .options import AnalysisOptions, Config


class Analyzer(Protocol):
    """The protocol of every analysis: made from a model, run on two loaders, saved into a run directory."""

    def run_analysis(self, train_loader: PromptLoader, val_loader: PromptLoader) -> dict[str, Any]: ...

    def save_results(self) -> list[Path]: ...


class StagedAnalyzer(Analyzer, Generic[Config]):
    """The base of analyzers: a frozen model, a seed, and a run directory in which finished stages survive a kill.

    Args:
        model: From :func:`mechint.load`; its weights are frozen.
        config: The options.
        device: Device to run on.
        seed: Seed of everything drawn at random.
        run_dir: Directory of the results, and of the stages until the results exist; None keeps nothing on disk.
        key: Fingerprint of what the stages depend on beside the configuration (weights, prompts).
    """

    def __init__(
        self,
        model: Model,
        config: Config,
        device: str | torch.device = "cpu",
        *,
        seed: int = 0,
        run_dir: str | Path | None = None,
        key: str = "",
    ) -> None:
        self.model = model.to(device).eval().requires_grad_(False)
        self.config, self.seed = config, seed
        self.run_dir = None if run_dir is None else Path(run_dir)
        self.stages = Stages(None if self.run_dir is None else self.run_dir / ".stages", key)
        self.results: dict[str, Any] = {}
        self.shared = False
        """True if all processes of torchrun work on this one analysis."""
        self.title = ""
        """Title of the run, where it says more than that of the analysis does; empty takes that one."""

    def check(self, train_loader: PromptLoader, val_loader: PromptLoader) -> None:
        """Refuses, before any work, prompts that the analysis cannot use.

        Raises:
            MechintError: they lack something that the options ask for.
        """

    def assist(self, train_loader: PromptLoader, val_loader: PromptLoader) -> None:
        """Does the share of another process than the first, where the work is shared."""

    def together(self) -> contextlib.AbstractContextManager[None]:
        """The context of work that all processes share, if they are at this one analysis."""
        return workers.together() if self.shared else contextlib.nullcontext()

    @property
    def directory(self) -> Path:
        """The run directory.

        Raises:
            MechintError: there is none.
        """
        if self.run_dir is None:
            raise MechintError("this analysis was made without a run directory, so there is nowhere to save to")
        return self.run_dir


@dataclass(frozen=True)
class Later:
    """A function that is imported when it is first called, so that nothing of matplotlib is imported before it draws.

    Attributes:
        place: Its module below ``mechint`` and its name there, as in ``analyses.tracing.report:write_trace``.
    """

    place: str

    def find(self) -> Any:
        """The function, or what else has this name.

        Raises:
            ImportError, AttributeError: there is no such module, or nothing of that name in it.
        """
        module, _, name = self.place.partition(":")
        found: Callable[..., Any] = getattr(importlib.import_module(f"mechint.{module}"), name)
        return found

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.find()(*arguments, **named)


@dataclass(frozen=True)
class Analysis(Generic[Config]):
    """An entry of the registry.

    Attributes:
        name: Group of its flags (``--ssm-steps``), its switch (``--ssm``), and its command (``python -m mechint ssm``).
        title: For people.
        report: ``report(run_dir, drawn)`` writes the figures and pages of a finished run and returns their paths,
            report.html last; ``drawn`` is a :class:`~mechint.report.finished.Drawn`. The default shows any results:
            numbers as tables, cells as maps, curves as lines (:mod:`mechint.report.tables.generic`).
        headline: ``headline(run_dir)`` says in one sentence what a finished run found.
        config: Frozen dataclass of its options.
        analyzer: ``analyzer(model, config, device)``.
        needs: Kinds of site that at least one layer of a model must have; empty for any model.
        refuse: Says, before any work, why this task and configuration can't be analysed; None when they can.
        work: The estimated work in words, for a dry run.
        summary: Lines for the terminal, from the results; the metrics by default.
        lacks: Says, before any work, what the analysis needs from the experiment's other analyses (given by name) and
            does not get; None when nothing is missing.
        shares: True if the processes of torchrun can work on one checkpoint together; the others' analyzers then get
            :meth:`StagedAnalyzer.assist` called.
        default: True if the runner runs it when no analysis is named.
        learns: True if it chooses anything by the discovery prompts; an analysis that does not evaluates all prompts of
            a file.
        lone: True if it can report numbers without intervals, for prompts of one template.
    """

    name: str
    title: str
    config: type[Config]
    analyzer: Callable[..., StagedAnalyzer[Config]]
    refuse: Callable[[Config, TaskConfig], str | None]
    work: Callable[[Config], str]
    summary: Callable[[dict[str, Any]], list[str]] = Later("report.tables.generic:metric_lines")
    report: Callable[[Path, Drawn], list[Path]] = Later("report.tables.generic:write_results")
    headline: Callable[[Path], str] = Later("report.tables.generic:headline")
    needs: tuple[str, ...] = ()
    lacks: Callable[[Config, Collection[str]], str | None] = lambda config, chosen: None
    shares: bool = False
    default: bool = False
    lone: bool = False
    learns: bool = True
    after: tuple[str, ...] = ()
    """Names of the analyses whose results it takes, so that they are made before it."""
    aliases: tuple[str, ...] = ()
    """Other names of its command, where its own is short for something."""
    inputs: Callable[[Config, Path], dict[str, str]] = lambda config, run_dir: {}
    """Digests of contents, by name, that its results depend on beside options, weights and prompts; from the
    options and the run directory. None of it depends on where files lie."""
    compare: Callable[[Sequence[Path], Path], list[Path]] | None = Later("report.tables.generic:write_comparison")
    """``compare(run_dirs, output)`` writes the pages of several finished runs, comparison.html last; the default
    follows the metrics along the training step. None where there is no comparison."""
    to_log: Callable[[Path], ToLog] = metrics_to_log
    """Gives what goes to Weights & Biases from a finished run."""
    cell: Cell = no_cell
    """Says what a number of results.json belongs to, beyond its surrounding entries: ``cell(raw, address, index)``."""
    entries: Later | None = None
    """The dataclass that the entries of its results.json are written from and read into; None where there is none."""
    report_kind: str = ""
    """The entry ``report`` of its results.json; analyses of one kind share their pages. Empty is the name."""

    @property
    def kind(self) -> str:
        return self.report_kind or self.name

    def fits(self, model: Model) -> bool:
        """True if a layer of this model has all the sites that it needs."""
        return bool(having(model, *self.needs))


@functools.cache
def analyses() -> dict[str, Analysis[Any]]:
    """Every analysis by its name, each behind those that it takes results of.

    Each folder beside this file is one: its ``analyzer.py`` has an :class:`Analysis` called ``ANALYSIS``, or each of
    the modules that the folder's ``__init__.py`` names in ``ANALYSES`` has one. Installed packages add others through
    entry points of the group ``mechint.analyses``, each of which names an :class:`Analysis`.

    Raises:
        MechintError: a plug-in has the name of another analysis, or is none.
    """
    package = importlib.import_module(__package__ or "mechint.analyses")
    found = {}
    for room in sorted(module.name for module in pkgutil.iter_modules(package.__path__) if module.ispkg):
        folder = importlib.import_module(f"{package.__name__}.{room}")
        for module in getattr(folder, "ANALYSES", ("analyzer",)):
            entry = importlib.import_module(f"{folder.__name__}.{module}").ANALYSIS
            found[entry.name] = entry
    for name, entry in plugins("mechint.analyses").items():
        if not isinstance(entry, Analysis) or entry.name in found:
            why = f"declares a second {entry.name!r}" if isinstance(entry, Analysis) else "names no Analysis"
            raise MechintError(f"the plug-in {name!r} of the group mechint.analyses {why}; correct it or uninstall it")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", entry.name):
            raise MechintError(
                f"the plug-in {name!r} of the group mechint.analyses has an analysis called {shown(entry.name)}, which "
                "is no name of a command and an option; take lower-case letters and digits, or uninstall it"
            )
        found[entry.name] = entry
    try:
        return in_order(found)
    except ValueError as error:
        raise MechintError(f"{error}; correct the plug-in of these, or uninstall it") from None


def in_order(found: dict[str, Analysis[Any]]) -> dict[str, Analysis[Any]]:
    """The analyses, each behind those that it declares itself ``after``; otherwise as they come.

    Raises:
        ValueError: one comes after another that there is not, or after itself.
    """
    left, placed = dict(found), dict[str, Analysis[Any]]()
    while left:
        ready = next((name for name, entry in left.items() if set(entry.after) <= set(placed)), None)
        if ready is None:
            said = "; ".join(f"{name} after {', '.join(entry.after)}" for name, entry in left.items())
            raise ValueError(f"no order fits what the analyses declare: {said}")
        placed[ready] = left.pop(ready)
    return placed


def analysis_of(run_dir: str | Path) -> Analysis[Any]:
    """The analysis that made a finished run; of one that has another name now, the first with the same pages.

    Raises:
        MechintError: results.json is missing or not valid, or no analysis has such results.
    """
    path = Path(run_dir) / "results.json"
    raw = read_object(path)
    kind = raw.get("report", CIRCUIT)
    alike = [entry for entry in analyses().values() if entry.kind == kind]
    if not alike:
        raise MechintError(f"{path} holds results of the kind {kind!r}, which no analysis of this version has")
    return next((entry for entry in alike if entry.name == raw.get("analysis")), alike[0])


def entries_of_analyses() -> dict[str, type]:
    """The dataclasses of entries of results.json, by the kind of page, for the schema of the file."""
    return {entry.kind: entry.entries.find() for entry in analyses().values() if entry.entries is not None}


def check_model(chosen: Iterable[Analysis[Any]], model: Model, where: str) -> None:
    """Raises :class:`MechintError` for the first analysis that no layer of the model can be given to."""
    for analysis in chosen:
        if not analysis.fits(model):
            raise MechintError(
                f"{where} is {an(model.config.family)} model; the analysis {analysis.name!r} ({analysis.title}) needs "
                f"a layer with the sites {', '.join(analysis.needs)}; choose another checkpoint, or switch it off"
            )


def group_of(config: AnalysisOptions) -> str:
    """The name of the analysis whose options these are, which is the group of its flags; '' for none."""
    return next((name for name, analysis in analyses().items() if analysis.config is type(config)), "")


class ControlledAnalyzer(StagedAnalyzer[Config], ABC):
    """An analyzer that is repeated on models with random weights, and keeps the numbers of every prompt."""

    name = ""

    def __init__(self, model: Model, config: Config, device: str | torch.device = "cpu", **others: Any) -> None:
        options.check(config, self.name)
        super().__init__(model, config, device, **others)
        self.tensors: dict[str, Tensor] = {}

    @abstractmethod
    def run_analysis(self, train_loader: PromptLoader, val_loader: PromptLoader) -> dict[str, Any]:
        """Ranks and sets thresholds on ``train_loader``, measures on ``val_loader``; returns the results."""

    def control_config(self) -> Config:
        """The options of the same analysis on shuffled weights."""
        return dataclasses.replace(self.config, controls=0)

    def save_results(self) -> list[Path]:
        """Writes ``effects.pt`` (the numbers of every prompt) into the run directory; the runner writes the rest."""
        return [files.write_torch(self.directory / "effects.pt", self.tensors)]


@torch.no_grad()
def values_of(model: Model, prompts: Prompts, sites: Iterable[str]) -> dict[str, Tensor]:
    """The sites of a run, each [prompt, position, unit]: heads and their dimensions are one axis of units."""
    found = run(model, prompts.tokens, list(sites), logits_at=prompts.positions[:, :0]).values
    return {name: value.flatten(2) for name, value in found.items()}


def width(model: Model, site: str) -> int:
    """Units of a site: heads times their dimensions."""
    return int(torch.tensor(model.sites[site].units).prod())
