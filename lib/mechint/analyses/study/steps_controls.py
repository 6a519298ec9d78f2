"""Steps 10, 11, 13 and 14 of a study: reproducibility, transfer to other tasks, controls, and other checkpoints."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...interventions.model import Model
from ...tasks import Prompts, make_task
from ...tasks.base import generator
from ...tasks.config import TaskConfig
from ...utils.checkpoint_step import training_step
from ...utils.errors import MechintError, shown
from ...utils.multiple_tests import holm
from ...utils.options import listed, named, value_of
from ...utils.statistics import (
    ClusterBootstrap,
    Number,
    chance_jaccard,
    jaccard,
    number,
    p_of_draws,
    rank_correlation,
    spread,
)
from ..interchange import Corruption, Interchange
from ..loader import PromptLoader
from ..probes.fitting import reading
from ..random_weights import beside, random_models
from .ablation_tests import ALPHA, Held, deltas, moved, necessity, together
from .candidates import Candidate, mask_search
from .claims import best_probes, does_task
from .context import Context, Found
from .steps_discovery import accuracy_and_chance, collected, labelled
from .subspaces import linear_cka, traffic, unit_basis


def reproducibility(context: Context) -> Found:
    """Discoveries again: with other prompts, with other seeds of the search, and in models of other training seeds."""
    c, sites = context.config, list(context.sites.values())
    budget = int(context.keep(5)["mask"].sum())
    first = context.carried
    top = lambda carried: set(torch.sort(carried.by_unit(), descending=True).indices[: c.rank].tolist())
    rows: list[Found] = []
    masks = [context.keep(5)["mask"]]
    for k in range(1, c.seeds):
        seed = context.seed + k
        loader = PromptLoader(
            context.train.task, "discovery", c.prompts, len(context.train.batches[0]), seed, context.model.device
        )
        again = traffic(context.model, loader.batches, sites, c.metric)
        masks.append(mask_search(context.model, loader, sites, budget, c.mask_steps, seed))
        for layer, carried in zip(context.sites, again, strict=True):
            before = first[carried.site]
            rows.append(
                {
                    "of": "prompts",
                    "seed": seed,
                    "layer": layer,
                    "jaccard": jaccard(top(before), top(carried)),
                    "rank_correlation": rank_correlation(before.by_unit().tolist(), carried.by_unit().tolist()),
                }
            )
    kept = [set(torch.nonzero(mask.flatten()).flatten().tolist()) for mask in masks]
    pairs = [jaccard(a, b) for i, a in enumerate(kept) for b in kept[i + 1 :]]
    report: Found = {
        "rows": rows,
        "mask_jaccard": number(float(np.mean(pairs)), min(pairs), max(pairs), len(pairs), "least and most alike pair"),
        "mask_jaccard_chance": chance_jaccard([budget], masks[0].numel()),
        "peers": peers(context),
    }
    mean = float(np.mean([row["jaccard"] for row in rows]))
    report["said"] = (
        f"The {c.rank} units with the largest share in a layer agree across {c.seeds} draws of prompts with Jaccard "
        f"{mean:.2f}; masks agree with {report['mask_jaccard']['value']:.2f}, by chance "
        f"{report['mask_jaccard_chance']:.2f}. "
        f"{report['peers']['said']}"
    )
    return {"report": report, "keep": {}}


def peers(context: Context) -> Found:
    """Similarity of the sites to those of other training seeds, on the same held-out prompts."""
    if not context.config.peers:
        return {"models": [], "said": "No models of other training seeds were given (PEERS)."}
    rows: list[Found] = []
    own = at_answers(context.held, context.held.clean)
    for path, other in models_of(context, context.config.peers):
        held = Held.of(other, [context.held.prompts], list(context.sites.values()), context.config.metric, least=2)
        mine = {site: values for site, values in own.items()}
        theirs = values_of(other, context.held.prompts, list(context.sites.values()))
        cka = {site: linear_cka(mine[site].numpy(), at(theirs[site], context.held).numpy()) for site in mine}
        rows.append({"checkpoint": path, "answered": len(held.prompts), "cka": cka})
    mean = np.mean([value for row in rows for value in row["cka"].values()])
    return {"models": rows, "said": f"CKA with {len(rows)} models of other training seeds: {mean:.2f} on average."}


def at(values: Tensor, held: Held) -> Tensor:
    return values[torch.arange(len(values)), held.prompts.positions[:, -1].cpu()]


def at_answers(held: Held, values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {site: at(value, held) for site, value in values.items()}


def values_of(model: Model, prompts: Prompts, sites: list[str]) -> dict[str, Tensor]:
    pair = Interchange(model, prompts, Corruption("none"), "noise", "answer_logprob")
    return {site: value.flatten(2).double().cpu() for site, value in pair.values(pair.receiver, sites).items()}


def models_of(context: Context, pattern: str) -> Iterator[tuple[str, Model]]:
    """(path, model) of the checkpoints of a glob, each checked to be of the same sizes."""
    from ...models.loading.discover import find_checkpoints
    from ...models.loading.load import load

    for path in find_checkpoints(pattern):
        other = load(path, dtype="float32", device=context.model.device).eval().requires_grad_(False)
        if (a := dataclasses.asdict(other.config)) != (b := dataclasses.asdict(context.model.config)):
            name = next(n for n in b if a.get(n) != b[n])
            raise MechintError(f"{path}: {name} is {a.get(name)} and the studied model's is {b[name]}; give others")
        yield path, other


def changed_task(context: Context, text: str) -> TaskConfig:
    """The task's options with changes such as ``name=induction+keys=8``."""
    if context.task_config is None:
        raise MechintError("the study was not told the task's options, so it cannot change them")
    types = {
        field.name: type(getattr(context.task_config, field.name)) for field in dataclasses.fields(context.task_config)
    }
    changes = {}
    for word in text.split("+"):
        name, _, value = word.strip().partition("=")
        if name not in types:
            raise MechintError(f"TRANSFER: the task has no option {shown(name)}; take {', '.join(types)}")
        try:
            changes[name] = value_of(types[name], value)
        except ValueError:
            raise MechintError(f"TRANSFER: {name}={shown(value)} is no {types[name].__name__}") from None
    return dataclasses.replace(context.task_config, **changes)


USUAL_TRANSFER = {
    "recall": "pairs=3,pairs=5,name=induction",
    "induction": "length=24,length=48,name=recall",
    "selective_copy": "length=24,length=48,pairs=3",
    "facts": "name=recall,name=induction",
    "counters": "length=24,length=48",
    "brackets": "length=24,length=48,pairs=3",
    "long_copy": "length=24,length=48",
    "marked": "length=24,length=48",
    "indirect_object": "name=greater_than",
    "greater_than": "name=indirect_object",
}
"""Other tasks that candidates of each task are tried on unless the study is told others."""


def other_tasks(context: Context) -> list[str]:
    """The changes of the task's options that TRANSFER asks for."""
    text = context.config.transfer
    if text.strip() == "usual":
        text = USUAL_TRANSFER.get(context.train.task.name, "")
    return listed(text, named("study", "transfer"))


def prompts_made(loader: PromptLoader) -> str:
    """A fingerprint of what a loader asks and accepts: equal where two tasks make the same prompts."""
    digest = hashlib.blake2b(digest_size=16)
    for batch in loader.groups:
        for name in ("tokens", "positions", "answers", "twins", "accepted"):
            value = getattr(batch, name)
            digest.update(repr((name, None if value is None else value.tolist())).encode())
    return digest.hexdigest()


def transfer(context: Context) -> Found:
    """Candidates of this task tried on others that the model does: their effect there, as a share of the model's."""
    c, tested = context.config, context.tested
    rows: list[Found] = []
    notes, tasks, seen = [], [], {prompts_made(context.val): "the studied task"}
    # what the studied task makes of the same number of prompts: a task that makes these is no other one
    for text in other_tasks(context):
        try:
            task = make_task(changed_task(context, text), context.model.tokenizer, context.model.config.vocab_size)
            loader, alike = (
                PromptLoader(which, "evaluation", c.eval_prompts, c.eval_prompts, context.seed, context.model.device)
                for which in (task, context.val.task)
            )
            seen.setdefault(prompts_made(alike), "the studied task")
            made = prompts_made(loader)
            if made in seen:
                raise MechintError(f"it makes the same prompts as {seen[made]}")
            seen[made] = text
            accuracy, chance = accuracy_and_chance(context, loader, context.model)
            if not does_task(accuracy, chance):
                raise MechintError(
                    f"the model answers {accuracy['value']:.0%} of its prompts where chance gives "
                    f"{chance['value']:.0%}, so it does not do this task"
                )
            held = Held.of(context.model, loader.batches, list(context.sites.values()), c.metric)
        except MechintError as reason:
            notes.append(f"{text}: {reason}")
            continue
        tasks.append({"task": text, "accuracy": accuracy, "chance": chance, "answered": len(held.prompts)})
        for candidate in tested:
            found = necessity(
                held, candidate, "necessity", draws=context.draws, bootstrap=c.bootstrap, seed=context.seed
            )
            rows.append({"task": text, "candidate": candidate.name, "effect": found.effect, "random": found.random,
                         "p": found.p, "n": len(held.prompts)})  # fmt: skip
    if not rows:
        raise MechintError("no other task that the model does: " + ("; ".join(notes) or "none was asked for"))
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
        row["carries"] = carries(row, c.min_effect)
    report = {"rows": rows, "tasks": tasks, "notes": notes, "ablation": "counterfactual", "metric": c.metric}
    return {"report": report | {"said": said_of_transfer(report, len(tested), c.min_effect)}, "keep": {}}


def carries(row: Found, least: float) -> bool:
    """True if a candidate is needed for another task: at least so much of the effect is surely lost without it, and
    random subspaces of its rank and norm do less (5 %, Holm)."""
    low = row["effect"]["low"]
    return row["p_holm"] <= ALPHA and low is not None and float(low) >= least


def said_of_transfer(report: Found, tested: int, least: float) -> str:
    """Describes the results of transfer."""
    parts = []
    for task in report["tasks"]:
        names = [row["candidate"] for row in report["rows"] if row["task"] == task["task"] and row["carries"]]
        parts.append(f"{task['task']}: {len(names)} of {tested}")
    said = (
        f"Candidates without which at least {least:.0%} of the effect on another task is lost (interval, and random "
        f"subspaces at 5 %, Holm), {'; '.join(parts)}."
    )
    if report["notes"]:
        said += f" Not tried: {'; '.join(report['notes'])}."
    return said


def controls(context: Context) -> Found:
    """Random units, shuffled tokens and random weights. Each needs other steps, and none waits for what it does not.

    Raises:
        MechintError: none of them could be measured.
    """
    report: Found = {"candidates": [], "random_weights": None, "notes": []}
    said = []
    try:
        tested, matters = context.tested, context.val.task.order_matters
        mixed = shuffled_tokens(context) if matters else None
        report["candidates"] = [control_candidate(context, candidate, mixed) for candidate in tested]
        asked = [row["random_units"] for row in report["candidates"] if row["random_units"] is not None]
        if asked:
            largest = max(float(random["high"]) for random in asked)
            said.append(f"Random units of the same number: at most {largest:.2f} of the effect in 97.5 % of the draws.")
        report["notes"] += sorted({why for row in report["candidates"] for why in row["not_asked"]})
    except MechintError as reason:
        report["notes"].append(f"controls of candidates: {reason}")
    if context.config.random_weights:
        report["random_weights"] = random_weights(context)
        said.append(report["random_weights"]["said"])
    if not said:
        raise MechintError("; ".join(report["notes"]) or "no control was asked for")
    return {"report": {**report, "said": " ".join(said)}, "keep": {}}


def control_candidate(context: Context, candidate: Candidate, mixed: Held | None) -> Found:
    """A candidate's necessity beside that of random units of its layer, and on prompts with shuffled tokens.

    Args:
        mixed: The prompts with shuffled tokens; None where the task does not say that order matters.

    Returns:
        ``effect`` (necessity, by the twin's value), ``random_units`` and ``random_units_p``, ``shuffled_tokens`` and
        ``above_shuffled_tokens`` (the paired difference); None for what was not asked, with the reason in
        ``not_asked``.
    """
    held, site = context.held, candidate.site
    boot = ClusterBootstrap(held.prompts.template.cpu().numpy(), context.config.bootstrap, context.seed)
    delta = deltas(held, candidate, "necessity", None)
    total = held.effect.numpy()
    lost = held.measure("necessity", site, iter([moved(delta, candidate.basis)]), "candidate")[0] * held.effect.mean()
    share = lambda part, whole: part / whole
    row: Found = {
        "candidate": candidate.name,
        "effect": boot.interval(share, lost.numpy(), total),
        **dict.fromkeys(("random_units", "random_units_p", "shuffled_tokens", "above_shuffled_tokens")),
        "not_asked": [],
    }
    others = other_units(candidate)
    if len(others) >= candidate.rank:
        moves = (moved(delta, unit_basis(units, len(delta[0, 0]))) for units in unit_sets(context, candidate, others))
        effects = held.measure("necessity", site, moves, "random units").mean(1)
        row["random_units"] = spread(effects.tolist(), f"{context.draws} sets of as many other units of the layer")
        own = float(lost.mean() / held.effect.mean())
        row["random_units_p"] = p_of_draws(own, effects.tolist(), held.rounding)
    else:
        row["not_asked"].append(f"random units: {candidate.name} leaves {len(others)} units of its layer, fewer than "
                                f"its own {candidate.rank}")  # fmt: skip
    if mixed is not None:
        move = moved(deltas(mixed, candidate, "necessity", None), candidate.basis)
        other = mixed.measure("necessity", site, iter([move]), "shuffled tokens")[0] * mixed.effect.mean()
        row["shuffled_tokens"] = boot.interval(share, other.numpy(), total)
        row["above_shuffled_tokens"] = boot.interval(
            lambda own, theirs, whole: (own - theirs) / whole, lost.numpy(), other.numpy(), total
        )
    else:
        task = context.val.task
        why = (
            "does not say whether the order of tokens matters" if task.order_matters is None else "does not need order"
        )
        row["not_asked"].append(f"shuffled tokens: this control is for tasks in which order matters; {task.name} {why}")
    return row


def other_units(candidate: Candidate) -> list[int]:
    """Units of the layer that the candidate does not consist of; of directions, without those it lies in most."""
    own = set(candidate.units)
    if not own:
        weight = candidate.basis.square().sum(1)
        own = set(torch.sort(weight, descending=True, stable=True).indices[: candidate.rank].tolist())
    return [unit for unit in range(len(candidate.basis)) if unit not in own]


def unit_sets(context: Context, candidate: Candidate, others: list[int]) -> Iterator[list[int]]:
    """Random sets of the given units, as many in each as the candidate's rank."""
    for k in range(context.draws):
        order = torch.randperm(len(others), generator=generator("random units", candidate.name, k, context.seed))
        yield [others[i] for i in order[: candidate.rank].tolist()]


def shuffled_tokens(context: Context) -> Held:
    """The held-out prompts with their tokens in a random order, the same for a prompt and its twin."""
    prompts = context.held.prompts
    g = generator("shuffled tokens", context.seed)
    order = torch.argsort(torch.rand(prompts.tokens.shape, generator=g), 1).to(prompts.tokens.device)
    twins = None if prompts.twins is None else prompts.twins.gather(1, order)
    other = dataclasses.replace(prompts, tokens=prompts.tokens.gather(1, order), twins=twins)
    return unfiltered(context, context.model, other)


def unfiltered(context: Context, model: Model, prompts: Prompts) -> Held:
    """Prompts as they are, answered or not."""
    sites = list(context.sites.values())
    pairs = {name: Interchange(model, prompts, Corruption("twin"), way, context.config.metric)
             for name, way in (("necessity", "noise"), ("sufficiency", "denoise"))}  # fmt: skip
    pair = pairs["necessity"]
    clean, twin = (
        {site: value.flatten(2).double().cpu() for site, value in pair.values(of, sites).items()}
        for of in (pair.receiver, pair.donor)
    )
    return Held(model, prompts, clean, twin, pairs, pair.clean - pair.corrupted_value)


def random_weights(context: Context) -> Found:
    """Models with random weights: whether they do the task, and how well labels are read from them.

    Each is probed as the studied model was: for each label the layer and the method that read best across folds of
    the discovery prompts, scored on the held-out ones.
    """
    models, scores = [], []
    for weights, model in random_models(context.model, context.seed):
        accuracy, chance = accuracy_and_chance(context, context.val, model)
        models.append({"weights": weights, "accuracy": accuracy, "chance": chance, "does": does_task(accuracy, chance)})
        scores.append(best_readings(context, model))
    rows = best_probes(context.found.get("probes", {}).get("report", {}).get("probes", []))
    own = context.keep(4)["hits"] if rows else {}
    found = []
    for row in rows:
        label = row["label"]
        random = np.stack([mine[label] for mine in scores])
        compared = beside(own[label].numpy(), random, context.val.templates())
        found.append({"label": label, "site": row["site"], "method": row["method"], **compared})
    doing = sum(bool(row["does"]) for row in models)
    said = f"{len(models)} models with random weights: {doing} of them do the task"
    for row in found:
        said += (
            f"; probes read {row['label']} with {np.mean(row['random']):.2f} there and with {row['score']:.2f} in "
            f"this model"
        )
    return {"models": models, "probes": found, "said": said + "."}


def best_readings(context: Context, model: Model) -> dict[str, Any]:
    """The contribution of each held-out prompt to the score of the best probe of each label, [prompt] by label."""
    rows = context.found.get("probes", {}).get("report", {}).get("probes", [])
    if not rows:
        return {}
    train, test = (collected(context, loader, model) for loader in (context.train, context.val))
    found: dict[str, tuple[float, Any]] = {}
    for row in rows:  # the layers, labels and methods that the studied model was probed with
        a, b = (labelled(context, loader, values[row["site"]], row["label"])
                for loader, values in ((context.train, train), (context.val, test)))  # fmt: skip
        score, hits = reading(a, b, row["method"], seed=context.seed)
        if row["label"] not in found or score > found[row["label"]][0]:
            found[row["label"]] = (score, hits)
    return {label: hits for label, (_, hits) in found.items()}


def scale(context: Context) -> Found:
    """Cost of the study's parts, and along a training run when the circuit appears."""
    model, c = context.model, context.config
    size = sum(parameter.numel() for parameter in model.parameters())
    length = int(context.val.batches[0].tokens.shape[1])
    runs = len(context.tested) * 2 * context.draws * len(context.held.prompts)
    report: Found = {
        "parameters": size,
        "length": length,
        "runs_of_one_prompt": runs,
        "flops": 2.0 * size * length * runs,
        "trajectory": [],
    }
    for path, other in models_of(context, c.trajectory) if c.trajectory else ():
        report["trajectory"].append(moment(context, path, other))
    said = f"{size:,} parameters; the tests are {runs:,} runs of one prompt, about {report['flops']:.1e} operations."
    if c.trajectory:
        report |= appearance(report["trajectory"])
        said += f" {report['appearance']}"
    return {"report": {**report, "said": said}, "keep": {}}


def appearance(rows: list[Found]) -> Found:
    """From which checkpoint of a run on the candidate is there: ``appears`` (the first), and ``appearance`` in words.

    Args:
        rows: Results of :func:`moment`, in the order of training.
    """
    there = [k for k, row in enumerate(rows) if row["present"]]
    if not there:
        return {"appears": None, "appearance": "The strongest candidate is present at none of the checkpoints."}
    first = str(rows[there[0]]["checkpoint"])
    gone = [str(row["checkpoint"]) for row in rows[there[0] :] if not row["present"]]
    said = f"The strongest candidate is first present at {first}"
    said += f", and later not at {', '.join(gone)}." if gone else " and at every later checkpoint."
    if there[-1] == 0 and not gone:
        said = f"The strongest candidate is present at {first}, the only checkpoint."
    return {"appears": first, "appearance": said}


def present(accuracy: Number, chance: Number, total: Number, share: Number, least: float) -> bool:
    """True if a candidate is present at a checkpoint: the model does the task, tells prompts from their twins, and
    surely loses at least so large a share of that difference without the candidate."""
    if not does_task(accuracy, chance) or total["low"] is None or share["low"] is None:
        return False
    return float(total["low"]) > 0 and float(share["low"]) >= least


def moment(context: Context, path: str, other: Model) -> Found:
    """One checkpoint: accuracy, and whether a candidate of the finished model already carries the effect there."""
    accuracy, chance = accuracy_and_chance(context, context.val, other)
    boot = ClusterBootstrap(context.val.templates(), context.config.bootstrap, context.seed)
    held = unfiltered(context, other, together(context.val.batches))
    best = context.tested[0]
    effect = held.effect.numpy()
    total = boot.interval(lambda mean: mean, effect)
    move = moved(deltas(held, best, "necessity", None), best.basis)
    lost = (held.measure("necessity", best.site, iter([move]), str(path))[0] * held.effect.mean()).numpy()
    share = boot.interval(lambda part, whole: part / whole, lost, effect)
    return {
        "checkpoint": path,
        "step": training_step(getattr(other, "metadata", None) or {}, str(path)),
        "accuracy": accuracy,
        "chance": chance,
        "effect": total,
        "carried": boot.interval(lambda mean: mean, lost),
        "share": share,
        "present": present(accuracy, chance, total, share, context.config.min_effect),
    }
