"""Steps 10, 11, 13 and 14 of a study: does it come out again, elsewhere, and not where it must not."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .candidates import Candidate, from_units, mask_search, merge, of_clusters, of_mask
from .errors import MechintError
from .interchange import Corruption, Interchange
from .loader import PromptLoader
from .necessity import Held, deltas, moved, necessity
from .probes import probe
from .statistics import ClusterBootstrap, jaccard, number, rank_correlation, spread
from .study_context import Context, Found
from .study_discovery import collected, labelled
from .subspaces import Traffic, answered, linear_cka, shuffled_weights, traffic
from .tasks import make_task
from .tasks.base import generator


def reproducibility(context: Context) -> Found:
    """Discoveries again: with other prompts, with other seeds of the search, and in models of other training seeds."""
    c, sites = context.config, list(context.sites.values())
    kind = sites[0].split(".", 2)[2]
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
        masks.append(mask_search(context.model, loader, kind, budget, c.mask_steps, seed))
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
    chance = budget / masks[0].numel()
    report: Found = {
        "rows": rows,
        "mask_jaccard": number(float(np.mean(pairs)), min(pairs), max(pairs), len(pairs), "least and most alike pair"),
        "mask_jaccard_chance": chance / (2 - chance),
        "peers": peers(context),
    }
    mean = float(np.mean([row["jaccard"] for row in rows]))
    report["said"] = (
        f"The {c.rank} units of a layer with the largest share: Jaccard {mean:.2f} across {c.seeds} draws of prompts; "
        f"masks {report['mask_jaccard']['value']:.2f}, by chance {report['mask_jaccard_chance']:.2f}. "
        f"{report['peers']['said']}"
    )
    return {"report": report, "keep": {}}


def peers(context: Context) -> Found:
    """Similarity of the sites to those of other training seeds, on the same held-out prompts."""
    if not context.config.peers:
        return {"models": [], "said": "No models of other training seeds were given (PEERS)."}
    rows = []
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


def values_of(model: Any, prompts: Any, sites: list[str]) -> dict[str, Tensor]:
    pair = Interchange(model, prompts, Corruption("none"), "noise", "answer_logprob")
    return {site: value.flatten(2).double().cpu() for site, value in pair.values(pair.receiver, sites).items()}


def models_of(context: Context, pattern: str) -> Any:
    """(path, model) of the checkpoints of a glob, each checked to be of the same sizes."""
    from .discover import find_checkpoints
    from .models.load import load

    for path in find_checkpoints(pattern):
        other = load(path, dtype="float32", device=context.model.device).eval().requires_grad_(False)
        if (a := dataclasses.asdict(other.config)) != (b := dataclasses.asdict(context.model.config)):
            name = next(n for n in b if a.get(n) != b[n])
            raise MechintError(f"{path}: {name} is {a.get(name)} and the studied model's is {b[name]}; give others")
        yield path, other


def changed_task(context: Context, text: str) -> Any:
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
            raise MechintError(f"TRANSFER: the task has no option {name!r}; take {', '.join(types)}")
        try:
            changes[name] = types[name](value)
        except ValueError:
            raise MechintError(f"TRANSFER: {name}={value!r} is no {types[name].__name__}") from None
    return dataclasses.replace(context.task_config, **changes)


def transfer(context: Context) -> Found:
    """Candidates of this task tried on others: their effect there, as a share of the model's effect there."""
    c = context.config
    rows, notes = [], []
    for text in [word.strip() for word in c.transfer.split(",") if word.strip()]:
        try:
            config = changed_task(context, text)
            if config == context.task_config:
                continue
            task = make_task(config, context.model.tokenizer, context.model.config.vocab_size)
            loader = PromptLoader(
                task, "evaluation", c.eval_prompts, c.eval_prompts, context.seed, context.model.device
            )
            held = Held.of(context.model, loader.batches, list(context.sites.values()), c.metric)
        except MechintError as reason:
            notes.append(f"{text}: {reason}")
            continue
        boot = ClusterBootstrap(held.prompts.template.cpu().numpy(), c.bootstrap, context.seed)
        for candidate in context.tested:
            effect = effect_of(held, candidate, boot)
            rows.append({"task": text, "candidate": candidate.name, "effect": effect, "n": len(held.prompts)})
    said = f"{len({row['task'] for row in rows})} other tasks that the model does; {len(notes)} that it does not."
    if not rows:
        raise MechintError("no other task that the model does: " + ("; ".join(notes) or "none was asked for"))
    return {"report": {"rows": rows, "notes": notes, "said": said, "ablation": "counterfactual"}, "keep": {}}


def effect_of(held: Held, candidate: Candidate, boot: ClusterBootstrap) -> Any:
    """Share of the effect that is lost when the candidate's part comes from the twin."""
    move = moved(deltas(held, candidate, "necessity", None), candidate.basis)
    part = held.measure("necessity", candidate.site, iter([move]), "transfer")[0] * held.effect.mean()
    return boot.interval(lambda p, whole: p / whole, part.numpy(), held.effect.numpy())


def controls(context: Context) -> Found:
    """Random units, prompts whose tokens are shuffled, and the same study on shuffled weights."""
    c, held = context.config, context.held
    rows: list[Found] = []
    boot = ClusterBootstrap(held.prompts.template.cpu().numpy(), c.bootstrap, context.seed)
    moved_tokens = shuffled_tokens(context)
    for candidate in context.tested:
        width, site = len(candidate.basis), candidate.site
        delta = deltas(held, candidate, "necessity", None)
        draws = []
        for k in range(50):
            g = generator("random units", candidate.name, k, context.seed)
            units = torch.randperm(width, generator=g)[: candidate.rank].tolist()
            draws.append(moved(delta, from_units("", "", candidate.layer, site, units, width).basis))
        effect = held.measure("necessity", site, iter(draws), "random units").mean(1)
        move = moved(deltas(moved_tokens, candidate, "necessity", None), candidate.basis)
        change = moved_tokens.measure("necessity", site, iter([move]), "shuffled tokens")[0]
        scale = float(moved_tokens.effect.mean() / held.effect.mean())
        rows.append(
            {
                "candidate": candidate.name,
                "random_units": spread(effect.tolist(), "50 sets of as many units of the layer"),
                "shuffled_tokens": boot.interval(lambda mean: mean, (change * scale).numpy()),
            }
        )
    report: Found = {"candidates": rows, "random_weights": random_weights(context) if c.random_weights else None}
    largest = max(float(row["random_units"]["high"]) for row in rows)
    said = f"Random units of the same number: at most {largest:.2f} of the effect in 97.5 % of the draws."
    if report["random_weights"]:
        said += f" Shuffled weights: {report['random_weights']['said']}"
    return {"report": {**report, "said": said}, "keep": {}}


def shuffled_tokens(context: Context) -> Held:
    """The held-out prompts with their tokens in a random order, the same for a prompt and its twin."""
    prompts = context.held.prompts
    g = generator("shuffled tokens", context.seed)
    order = torch.argsort(torch.rand(prompts.tokens.shape, generator=g), 1).to(prompts.tokens.device)
    twins = None if prompts.twins is None else prompts.twins.gather(1, order)
    other = dataclasses.replace(prompts, tokens=prompts.tokens.gather(1, order), twins=twins)
    return unfiltered(context, context.model, other)


def unfiltered(context: Context, model: Any, prompts: Any) -> Held:
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
    """Accuracy, effect and the best candidate of the same model with shuffled weights."""
    c, model = context.config, shuffled_weights(context.model, context.seed + 104_729)
    right, _ = answered(context.val, model)
    sites, kind = list(context.sites.values()), next(iter(context.sites.values())).split(".", 2)[2]
    found: dict[str, Traffic] = {t.site: t for t in traffic(model, context.train.batches, sites, c.metric)}
    total = model.num_layers * next(iter(found.values())).clean.shape[-1]
    kept = mask_search(model, context.train, kind, min(c.rank * model.num_layers, total), c.mask_steps, context.seed)
    proposals = []
    for layer, site in context.sites.items():
        proposals += [*of_mask(found[site], layer, kept[layer], c.rank), *of_clusters(found[site], layer, c.rank)]
    report: Found = {"accuracy": float(right.mean()), "n": len(right), "candidate": None, "tests": []}
    report["probes"] = probes_of(context, model)
    try:
        held = Held.of(model, context.val.batches, sites, c.metric)
    except MechintError as reason:
        return report | {"said": f"no claim can be made, because {reason}"}
    candidates, _ = merge(proposals, found)
    if not candidates:
        return report | {"said": "nothing is proposed."}
    best = candidates[0]
    rows = [necessity(held, best, t, draws=99, bootstrap=c.bootstrap, seed=context.seed).report()
            for t in ("necessity", "sufficiency")]  # fmt: skip
    worst = max(row["p"] for row in rows)
    return report | {
        "candidate": best.name, "tests": rows, "said": f"the best candidate has p = {worst:.2f} on answered prompts."
    }  # fmt: skip


def best_probes(rows: list[Found]) -> list[Found]:
    """The most selective probe of each label."""
    labels = dict.fromkeys(row["label"] for row in rows)
    return [max((r for r in rows if r["label"] == label), key=lambda r: r["selectivity"]["value"]) for label in labels]


def probes_of(context: Context, model: Any) -> list[Found]:
    """The best probe of each label, fitted anew on another model's activations: what needs no training to be read."""
    rows = best_probes(context.found.get("probes", {}).get("report", {}).get("probes", []))
    if not rows:
        return []
    train, test = (collected(context, loader, model) for loader in (context.train, context.val))
    found = []
    for row in rows:
        a, b = (labelled(context, loader, values[row["site"]], row["label"])
                for loader, values in ((context.train, train), (context.val, test)))  # fmt: skip
        c = context.config
        made = probe(a, b, row["method"], row["label"], shuffles=c.shuffles, draws=c.bootstrap, seed=context.seed)
        found.append({"label": row["label"], "site": row["site"], "selectivity": made.selectivity, "n": len(b)})
    return found


def scale(context: Context) -> Found:
    """Cost of the study's parts, and along a training run when the circuit appears."""
    model, c = context.model, context.config
    size = sum(parameter.numel() for parameter in model.parameters())
    length = int(context.val.batches[0].tokens.shape[1])
    runs = len(context.tested) * 2 * c.draws * len(context.held.prompts)
    report: Found = {
        "parameters": size,
        "length": length,
        "runs_of_one_prompt": runs,
        "flops": 2.0 * size * length * runs,
        "trajectory": [],
    }
    for path, other in models_of(context, c.trajectory) if c.trajectory else ():
        report["trajectory"].append(moment(context, path, other))
    appears = next((row["checkpoint"] for row in report["trajectory"] if row["present"]), None)
    report["appears"] = appears
    said = f"{size:,} parameters; the tests are {runs:,} runs of one prompt, about {report['flops']:.1e} operations."
    if c.trajectory:
        said += f" The circuit {'appears at ' + str(appears) if appears else 'appears at none of the checkpoints'}."
    return {"report": {**report, "said": said}, "keep": {}}


def moment(context: Context, path: str, other: Any) -> Found:
    """One checkpoint: accuracy, and whether a candidate of the finished model already carries its effect."""
    right, _ = answered(context.val, other)
    boot = ClusterBootstrap(context.val.templates(), context.config.bootstrap, context.seed)
    held = unfiltered(context, other, joined(context))
    best = context.tested[0]
    total = boot.interval(lambda mean: mean, held.effect.numpy())
    move = moved(deltas(held, best, "necessity", None), best.basis)
    lost = held.measure("necessity", best.site, iter([move]), str(path))[0] * held.effect.mean()
    carried = boot.interval(lambda mean: mean, lost.numpy())
    step = re.findall(r"\d+", str(path).rsplit("/", 1)[-1])
    return {
        "checkpoint": path,
        "step": int(step[-1]) if step else None,
        "accuracy": boot.share(right.numpy()),
        "effect": total,
        "carried": carried,
        "present": float(carried["low"]) > 0
        and float(carried["value"]) >= context.config.min_effect * float(total["value"]) > 0,
    }


def joined(context: Context) -> Any:
    from .necessity import together

    return together(context.val.batches)
