"""Options that every analysis shares."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol, SupportsIndex, TypeVar

from ..interventions.model import Model, layer_kinds, layer_sites
from ..tasks.config import TaskConfig
from ..utils import options
from ..utils.errors import MechintError, an, check_type, did_you_mean, shown
from ..utils.options import Dataclass, listed, named, option


class AnalysisOptions(Dataclass, Protocol):
    """The options of any analysis: a dataclass that says at least how many prompts there are."""

    @property
    def prompts(self) -> int:
        """Prompts that it ranks, learns or takes means on."""

    @property
    def eval_prompts(self) -> int:
        """Prompts that it measures on."""


Config = TypeVar("Config", bound=AnalysisOptions)
"""The options of one analysis."""


@dataclass(frozen=True)
class RunConfig:
    """The options of a run: checkpoints, directories, device, and what is drawn."""

    mode: str = option(
        "posttrain",
        "Analyse checkpoints, or draw and report a finished analysis again from its directory",
        choices=("posttrain", "from_runs"),
    )
    checkpoint: str = option(
        "output/final_model_step*.pt",
        "A checkpoint file, a glob, a directory of checkpoints, a model directory, or a hub id such as "
        "state-spaces/mamba-130m-hf",
        path=True,
    )
    run_dir: str = option("", "Finished analysis directory to draw again, for the mode from_runs", path=True)
    output_dir: str = option(
        "mechint_analysis", "Directory of the results; one directory below it for each checkpoint", path=True
    )
    label: str = option("", "Subdirectory of the results for the checkpoints that MODELS= chose; empty for none")
    baseline: str = option(
        "", "Finished analysis, or several in a directory, that the results are compared with", path=True
    )
    device: str = option("auto", "Where to run; auto takes a GPU when there is one", choices=("auto", "cpu", "cuda"))
    devices: str = option(
        "",
        "Devices that the layers of a model too large for one are placed on in order, such as cuda:0,cuda:1; empty for "
        "the one that is chosen above",
    )
    dtype: str = option(
        "float32",
        "Precision of the weights; the scan and the residual stream stay in float32",
        choices=("float32", "bfloat16", "float16"),
    )
    batch_size: int = option(64, "Prompts in one forward; fewer need less memory", unit="prompts", low=1, high=65536)
    seed: int = option(0, "Seed of prompts, searches and bootstraps", low=0, high=2**31 - 1)
    rerun: bool = option(False, "Repeat finished analyses instead of skipping them")
    save_masks: bool = option(True, "Write final_masks.pt")
    visualize_heatmaps: bool = option(True, "Draw the importance heatmaps")
    visualize_curves: bool = option(True, "Draw the curves of the search")
    visualize_faithfulness: bool = option(True, "Draw the faithfulness curve")
    figure_formats: str = option(
        "png", "Formats of the figures: png, which is always written, and for a paper svg, pdf or both beside it"
    )
    visualize_wandb: bool = option(False, "Log to Weights & Biases; WANDB_MODE=offline needs no account")
    wandb_project: str = option("mechint", "Project that the runs are logged to")

    @property
    def place(self) -> str:
        """The device, or all devices of a model whose layers are on several."""
        return self.devices or self.device

    @property
    def folder(self) -> Path:
        """The directory of the results of these checkpoints."""
        return Path(self.output_dir) / self.label


@dataclass(frozen=True)
class Source:
    """The models of one analysis: the base of the options of analyses that may have models of their own."""

    mode: str = option(
        "posttrain",
        "Analyse checkpoints, or draw and report this analysis again from its directory",
        choices=("posttrain", "from_runs"),
    )
    checkpoint: str = option(
        "",
        "Checkpoints of this analysis: a file, glob or directory; empty takes the checkpoints of all analyses",
        path=True,
    )
    run_dir: str = option(
        "", "Finished analysis directory to draw again; empty takes the directory of all analyses", path=True
    )


@dataclass(frozen=True)
class OwnTask:
    """The task of one analysis: the base of the options of analyses that may have a task of their own."""

    task: str = option(
        "same",
        "Task of this analysis, if it differs from the task of the other analyses",
        choices=("same", "indirect_object", "greater_than", "file", "prompt"),
    )


TEXTS = {
    "file": ("file", "answers", "space"),
    "prompt": ("prompt", "subject", "occurrence", "answer", "answers", "space"),
}
"""Options that only these tasks use."""


def own(run: RunConfig, config: AnalysisOptions) -> RunConfig:
    """The shared options, with the models that an analysis names for itself."""
    said = {field.name: getattr(config, field.name) for field in fields(Source)} if isinstance(config, Source) else {}
    return replace(run, **{name: value for name, value in said.items() if value not in ("", "posttrain")})


def asked(task: TaskConfig, config: AnalysisOptions) -> TaskConfig:
    """The task of an analysis, its own or that of all; options of other tasks are at their defaults, since they change
    nothing."""
    name = config.task if isinstance(config, OwnTask) and config.task != "same" else task.name
    idle = {option for texts in TEXTS.values() for option in texts} - {*TEXTS.get(name, ())}
    return replace(task, name=name, **{option: getattr(TaskConfig, option) for option in idle})


def elsewhere(config: Config) -> Config:
    """The options of an analysis with the models and the task of all analyses instead of its own."""
    return replace(config, **shared(config))


def request(config: AnalysisOptions) -> dict[str, Any]:
    """The options of an analysis as plain values, without those of its models and its task."""
    return {name: value for name, value in asdict(config).items() if name not in shared(config)}


def shared(config: AnalysisOptions) -> dict[str, Any]:
    """The options of an analysis that may replace those of all, with the values that leave these in place."""
    return {k: v for base in (Source, OwnTask) if isinstance(config, base) for k, v in asdict(base()).items()}


def unfit(task: TaskConfig, metric: str) -> str | None:
    """Says why clean and corrupted runs of this task can't be compared by this metric; None when they can."""
    if task.name == "text":
        return "plain text has neither subjects nor counterfactual twins; choose recall, facts or another such task"
    if task.name == "prompt" and not task.subject:
        return f"nothing says what the prompt is about; set {named('task', 'subject')}"
    if task.name in ("file", "prompt") and task.answers == "whole" and metric == "logit_diff":
        return "the logit difference is of one answer token; choose answer_logprob or the first token of the answers"
    return None


NO_UNITS = ("scores", "pattern", "conv_state", "decay", "write", "state", "readout")  # more than one number for a unit


def layer_list(said: str | int | Iterable[int], layers: int, where: str) -> list[int]:
    """The layers that an option names, ascending: ``all``, or numbers separated by commas or spaces.

    In a notebook it may be a number or several.

    Raises:
        MechintError: something that is not a number, a missing number, or no such layer.
    """
    if not isinstance(said, str):
        check_type(said, (SupportsIndex, Iterable), f"{where}: layers", "all, a number, or several")
        said = str(said) if isinstance(said, int) or not isinstance(said, Iterable) else ",".join(map(str, said))
    if said.strip() == "all":
        return list(range(layers))
    found = []
    for part in listed(said, f"{where}: layers") or [""]:
        layer = options.whole_number(part)
        if layer is None:
            raise MechintError(
                f"{where}: layers are {shown(said)}, and {shown(part)} is not a layer; give all, or numbers such as 0,2"
            )
        if layer >= layers:
            raise MechintError(f"{where}: no layer {layer}; this model has {layers} (0 to {layers - 1})")
        found.append(layer)
    return sorted(set(found))


def unit_sites(model: Model, said: str, usual: Iterable[str], where: str) -> list[str]:
    """Kinds of site whose last axes number the units of a layer, as an option names them.

    Raises:
        MechintError: the family has no such site, or one with several numbers for each unit.
    """
    known = [kind for kind in layer_kinds(model) if kind not in NO_UNITS]
    kinds = list(usual) if said.strip() == "usual" else list(dict.fromkeys(listed(said, f"{where}: sites")))
    for kind in kinds:
        if kind not in known:
            raise MechintError(
                f"{where}: {an(model.config.family)} model has no site {shown(kind)} with one number for each unit"
                f"{did_you_mean(kind, known)}; it has {', '.join(known)}"
            )
    if not kinds:
        raise MechintError(f"{where}: no site is named; leave it at 'usual', or choose from {', '.join(known)}")
    return kinds


USUAL_SITES: tuple[str, ...] = ("resid_post", "state")
"""Kinds of site that steering and probes take where nothing else is asked for."""


def fixed_kinds(model: Model) -> list[str]:
    """The kinds of site of a layer whose width does not depend on the prompt."""
    sources = {name.rpartition(".")[2] for name, site in model.sites.items() if site.has_sources}
    return [kind for kind in layer_kinds(model) if kind not in sources]


def fixed_sites(model: Model, said: str, layers: Iterable[int], where: str) -> list[str]:
    """The sites of fixed width that an option names by kind, in the forward's order; ``usual`` is :data:`USUAL_SITES`.

    Raises:
        MechintError: no such kind, or none of the layers has one.
    """
    known, chosen = fixed_kinds(model), list(layers)
    usual = [kind for kind in USUAL_SITES if kind in known]
    kinds = usual if said.strip() == "usual" else list(dict.fromkeys(listed(said, f"{where}: sites")))
    for kind in kinds:
        if kind not in known:
            raise MechintError(
                f"{where}: {an(model.config.family)} model has no site {shown(kind)} of fixed width in its layers"
                f"{did_you_mean(kind, known)}; it has {', '.join(known)}"
            )
    wanted = {site for kind in kinds for site in layer_sites(model, kind) if int(site.split(".")[1]) in chosen}
    if not wanted:
        raise MechintError(
            f"{where}: layers {', '.join(map(str, chosen))} have none of the sites {', '.join(kinds) or 'named'}; "
            f"choose other layers, or of the sites {', '.join(known)}"
        )
    return [site for site in model.sites if site in wanted]
