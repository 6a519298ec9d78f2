"""The command ``latents``: writes features for other programs, contexts to explain, and scores of explanations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...analyses.dictionaries.exchange.contexts import HELD_OUT, SHOWN, write_contexts
from ...analyses.dictionaries.exchange.dashboards import write_dashboards
from ...analyses.dictionaries.exchange.detection import Judge, score
from ...analyses.dictionaries.exchange.explanations import read_explanations, read_held_out
from ...analyses.dictionaries.exchange.stored_latents import Latents, read_run
from ...analyses.dictionaries.stored import load_given
from ...models.loading.load import load
from ...utils import files
from ...utils.checkpoint_step import name_of
from ...utils.errors import MechintError, did_you_mean, shown
from ...utils.options import Parser, add_flags, flag, flag_lines, from_flags, option
from ...utils.rundir import check_writable, weights_digest
from ...utils.statistics import said, said_p

TITLE = "Writes features of dictionaries for other programs, and scores explanations of them."
WORK = {
    "dashboards": "features as the JSON that SAEDashboard writes and Neuronpedia imports",
    "contexts": "contexts of latents to explain, and held-out ones to judge explanations on",
    "score": "scores of explanations by detection, with a local model as the judge",
}
SCORES = "detection.json"


@dataclass(frozen=True)
class LatentsConfig:
    """The run, and what is made of its features."""

    run: str = option("", "Finished analysis of dictionaries (sae) whose features were read", path=True)
    names: str = option("", "Names or patterns of dictionaries, separated by commas; empty takes all that were read")
    output_dir: str = option("mechint_latents", "Directory of the files", path=True)
    model_id: str = option("", "Name of the model in dashboards; empty takes the checkpoint's")
    set_id: str = option("", "Name of the dictionary in dashboards; empty takes its own")
    batch: int = option(128, "Features of one file of dashboards", unit="features", low=1, high=1_000_000)
    checkpoint: str = option(
        "", "Model of the run, for contexts; empty takes the checkpoint that the run names", path=True
    )
    explanations: str = option(
        "", "Explanations to score: JSON lines with latent, explanation and dictionary", path=True
    )
    held_out: str = option(
        "", "Contexts to judge them on; empty takes held_out.jsonl of the output directory", path=True
    )
    judge: str = option("", "Local model that judges explanations, with its tokenizer", path=True)
    device: str = option("auto", "Where to run; auto takes a GPU when there is one", choices=("auto", "cpu", "cuda"))
    seed: int = option(0, "Seed of contexts, exchanges and bootstraps", low=0, high=2**31 - 1)
    bootstrap: int = option(1000, "Bootstrap draws for the intervals", unit="draws", low=100, high=100_000)


def parser() -> Parser:
    top = Parser(description=TITLE)
    top.add_argument("work", nargs="?", help=", ".join(f"{name}: {what}" for name, what in WORK.items()))
    top.add_argument("path", nargs="?", help="the same as --run")
    top.add_argument("--help-all", action="help", help="show every option and exit")
    add_flags(top, LatentsConfig)
    return top


def sections(short: bool) -> list[tuple[str, list[str]]]:
    """The flags that the command's own help shows."""
    return [
        ("Work", [f"  {name:<12}{what}" for name, what in WORK.items()]),
        ("Options", flag_lines(LatentsConfig, short=short)),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Does what the arguments say.

    Raises:
        MechintError: no such work, or what it needs is not given.
    """
    flags = parser().parse_all(arguments)
    if flags.path is not None:
        flags.run = flags.path
    config = from_flags(flags, LatentsConfig)
    work = flags.work
    if work not in WORK:
        asked = "name what to do" if work is None else f"latents: no work {shown(work)}{did_you_mean(work, WORK)}"
        raise MechintError(f"{asked}; take {', '.join(WORK)}, such as: latents dashboards RUN")
    needed = ("explanations", "judge") if work == "score" else ("run",)
    for name in needed:
        if not getattr(config, name):
            raise MechintError(f"latents {work} needs {flag('', name)}")
    output = Path(config.output_dir)
    check_writable(output)
    {"dashboards": dashboards, "contexts": contexts, "score": judged}[work](config, output)


def dashboards(config: LatentsConfig, output: Path) -> list[Path]:
    """A directory for each dictionary, with its features in files of ``config.batch``."""
    every, written = read_run(config.run, config.names), []
    if config.set_id and len(every) > 1:
        raise MechintError(
            f"{flag('', 'set_id')} names one dictionary, and there are {len(every)}; choose one with "
            f"{flag('', 'names')}"
        )
    for latents in every:
        model_id = config.model_id or name_of(str(latents.raw["checkpoint"]))
        place = output / latents.name
        some = write_dashboards(latents, place, model_id, config.set_id or latents.name, config.batch)
        print(f"{place}: {len(latents.features):,} features in {len(some)} files")
        written += some
    return written


def contexts(config: LatentsConfig, output: Path) -> list[Path]:
    """Both files of contexts, of the latents that have enough."""
    every = read_run(config.run, config.names)
    raw = every[0].raw
    model = load(config.checkpoint or str(raw["checkpoint"]), device=config.device).requires_grad_(False)
    if weights_digest(model) != raw["model"]["sha256"]:
        raise MechintError(
            f"{model.source} is not the model of {config.run} (its weights are others); name that one with "
            f"{flag('', 'checkpoint')}"
        )
    stored = load_given(config.run, raw["config"].get("flatten", "all"), model)
    count, left_out, written = write_contexts(pairs(every, stored, model.device), model, output, config.seed)
    print(f"{output / SHOWN}: the strongest contexts of {count:,} latents, to explain")
    print(f"{output / HELD_OUT}: other contexts of them, to judge explanations on; show them to no explainer")
    if left_out:
        print(f"note: {left_out:,} latents have too few contexts and were left out")
    return written


def pairs(every: Sequence[Latents], stored: dict[str, Any], device: Any) -> list[tuple[Latents, Any]]:
    """The features with their dictionaries."""
    for latents in every:
        if latents.name not in stored:
            raise MechintError(f"{latents.directory}: the dictionary {latents.name} is missing; run the analysis again")
    return [(latents, stored[latents.name].to(device)) for latents in every]


def judged(config: LatentsConfig, output: Path) -> list[Path]:
    """The scores of the explanations, as ``detection.json``."""
    asked = read_explanations(config.explanations, read_held_out(config.held_out or output / HELD_OUT))
    judge = Judge(load(config.judge, device=config.device).requires_grad_(False))
    found = score(asked, judge, config.seed, config.bootstrap)
    path = files.write_json(output / SCORES, {"schema": 1, "judge": config.judge, **found})
    for name, words in (("balanced_accuracy", "balanced accuracy"), ("auroc", "AUROC")):
        print(f"  {words:<18} {said(found[name])}")
        if "p" in found:
            print(f"  {'  exchanged':<18} {said(found[f'exchanged_{name}'])}; {said_p(found['p'][name])}")
    print(*(f"note: {note}" for note in found["notes"]), f"{path}: {len(asked):,} explanations", sep="\n")
    return [path]
