"""Ablation studies: variants of one model, trained one after another as the steps V0, V1, V2 …"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..tasks import TaskConfig
from ..utils.errors import MechintError, an, did_you_mean, short
from ..utils.files import natural_key, read_json
from ..utils.options import listed, named, options, value_of
from .files import Paths
from .options import ARCHITECTURES, Architecture, TrainConfig
from .trainer import plan, train

BASELINE = "baseline"
OF_TRAINING: dict[str, type] = {"seed": int, "lr": float}
"""Options of the training that a variant may change; all others are the architecture's."""


def read_object(path: Path) -> dict[str, Any]:
    """The metrics of one step."""
    if not path.is_file():
        raise MechintError(f"{named('train', 'baseline')}: {path} does not exist; name a finished training run")
    value = read_json(path)
    if not isinstance(value, dict) or "task" not in value:
        raise MechintError(f"{path} holds no training metrics; name a training_metrics_step*.json")
    return value


@dataclass(frozen=True)
class Step:
    """One model of a study."""

    variant: str
    config: TrainConfig
    architecture: Architecture


def steps(config: TrainConfig, architecture: Architecture) -> list[Step]:
    """The steps that ``config.variants`` names; without any, the one model that the options describe.

    A variant is ``baseline`` (the options as they are) or changes to the architecture, the seed or the learning
    rate: ``kv=tied``, ``kv=tied+n_head=2``, ``seed=1``, ``lr=0.001+seed=1``. ``family=gpt2`` begins from that
    family's default architecture: a twin that is trained on the same prompts for as many steps.

    Raises:
        MechintError: a variant does not parse, changes what is not there, or is there twice.
    """
    if not config.variants.strip():
        return [Step("", config, architecture)]
    name = named("train", "variants")
    if config.step_name != TrainConfig.step_name:
        raise MechintError(f"{named('train', 'step_name')} names one model; with {name} the steps are V0, V1, …")
    found: list[Step] = []
    for number, variant in enumerate(listed(config.variants, name)):
        parts = [] if variant == BASELINE else variant.split("+")
        base = next((twin(part, name) for part in parts if part.strip().startswith("family=")), architecture)
        changes = dict(change(part, base, name) for part in parts if not part.strip().startswith("family="))
        training = {name: changes.pop(name) for name in OF_TRAINING if name in changes}
        step = Step(
            variant,
            dataclasses.replace(config, variants="", step_name=f"V{number}", **training),
            dataclasses.replace(base, **changes),
        )
        for other in found:
            same = all(getattr(other.config, name) == getattr(step.config, name) for name in OF_TRAINING)
            if same and other.architecture == step.architecture:
                raise MechintError(f"{name}: {other.variant} and {variant} are the same model; remove one of them")
        found.append(step)
    return found


def twin(text: str, name: str) -> Architecture:
    """The default architecture of the family that ``family=gpt2`` names."""
    family = text.partition("=")[2].strip()
    if family not in ARCHITECTURES:
        raise MechintError(
            f"{name}: no family {family!r}{did_you_mean(family, ARCHITECTURES)}; there are {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[family]()


def change(text: str, architecture: Architecture, name: str) -> tuple[str, Any]:
    """(field, value) of ``kv=tied``; the range of the value is for the options' own check."""
    fields = {field.name: kind for field, kind, _ in options(type(architecture))} | OF_TRAINING
    field, equals, value = (part.strip() for part in text.partition("="))
    known = ", ".join(fields)
    if not equals or not value:
        raise MechintError(
            f"{name}: {text!r} does not parse; a variant is baseline, or FIELD=VALUE with more after a + "
            f"(fields: {known}, family)"
        )
    if field not in fields:
        raise MechintError(
            f"{name}: {an(architecture.family)} has no {field!r}{did_you_mean(field, fields)}; it has {known}"
        )
    try:
        return field, value_of(fields[field], value)
    except ValueError:
        whole = {"bool": "it must be y or n", "float": f"{field} is a number"}
        kind = whole.get(fields[field].__name__, f"{field} is a whole number")
        raise MechintError(f"{name}: {short(text)} is not allowed; {kind}") from None


def train_steps(task: TaskConfig, config: TrainConfig, architecture: Architecture) -> list[Path]:
    """Trains every step that is not trained yet; all are checked before the first begins."""
    study = steps(config, architecture)
    if len(study) > 1:
        plan_steps(task, config, architecture)
    known = baseline_metrics(config.baseline)
    paths = []
    for step in study:
        if step.variant:
            print(f"step {step.config.step_name} of {len(study)}: {step.variant}", flush=True)
        paths.append(train(task, step.config, step.architecture, step.variant))
    if known:
        ours = [read_object(Paths.of(step.config).metrics) for step in study]
        print(against(known, ours, [step.config.step_name for step in study]), flush=True)
    return paths


def baseline_metrics(baseline: str) -> dict[str, dict[str, Any]]:
    """The metrics of a finished training run by the names of its steps.

    Raises:
        MechintError: there are none, or it has not finished.
    """
    if not baseline:
        return {}
    path = Path(baseline)
    found = (
        sorted(path.glob("training_metrics_step*.json"), key=lambda p: natural_key(p.name)) if path.is_dir() else [path]
    )
    metrics = {file.stem.removeprefix("training_metrics_"): read_object(file) for file in found}
    unfinished = [name for name, values in metrics.items() if "held_out_loss" not in values]
    if not metrics or unfinished:
        what = f"{unfinished[0]} has not finished" if unfinished else "it holds no training_metrics_step*.json"
        raise MechintError(f"{named('train', 'baseline')} {baseline}: {what}; name the directory of a finished run")
    return metrics


def against(known: dict[str, dict[str, Any]], ours: list[dict[str, Any]], names: list[str]) -> str:
    """Held-out losses beside those of the first step of the baseline, as lines of a table."""
    first, reference = next(iter(known.items()))
    lines = [f"{'held-out loss':<28}{'nats':>9}{'accuracy':>10}{'against ' + first:>20}"]
    rows = [(f"baseline {name}", values) for name, values in known.items()]
    rows += [
        (f"step{name} {values.get('variant', '')}".strip(), values) for name, values in zip(names, ours, strict=True)
    ]
    for name, values in rows:
        change = values["held_out_loss"] - reference["held_out_loss"]
        lines.append(f"{name:<28}{values['held_out_loss']:>9.4f}{values['held_out_accuracy']:>10.1%}{change:>+20.4f}")
    if any(values["task"] != reference["task"] or values["data"] != reference["data"] for _, values in rows):
        lines.append("the runs were trained on different tasks or texts: their losses are NOT comparable")
    return "\n".join(lines)


def plan_steps(task: TaskConfig, config: TrainConfig, architecture: Architecture) -> str:
    """Says what :func:`train_steps` would do; raises what it would raise before its first step."""
    lines = []
    for step in steps(config, architecture):
        lines += [f"step     {step.config.step_name}: {step.variant}"] if step.variant else []
        lines.append(plan(task, step.config, step.architecture))
    return "\n".join(lines)
