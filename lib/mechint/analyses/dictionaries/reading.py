"""Reading the best dictionaries of a grid: features, causal checks of some of them, and features against labels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...interventions.model import Model
from ...interventions.prefix import up_to
from ...sae.activations.contexts import excluded, special_kinds
from ...sae.activations.flattening import latents_at, strongest
from ...sae.base import SparseAutoencoder
from ...sae.transcoder import Transcoder
from ...tasks import Prompts, Task
from ...utils import files
from ...utils.errors import MechintError
from .answer_auroc import label_scores
from .causal import causal_effects
from .evaluation import Windows
from .features import read_features, save_features

RAISED = 3
"""Tokens of a feature's attribution whose logits the causal check looks at."""


def best_at(members: Sequence[Mapping[str, Any]], site: str, count: int) -> list[str]:
    """The dictionaries of a site that lose the model least, of those trained whole; by name."""
    here = [member for member in members if member["site"] == site and not member["baseline"]]
    here.sort(key=lambda member: (member["metrics"]["ce_increase"]["value"], member["name"]))
    return [str(member["name"]) for member in here[:count]]


NEARLY = 0.9
"""Share of the best dictionary's recovered loss that the one whose features are read recovers at least."""
LEAST = f"the sparsest that recovers at least {NEARLY:.0%} as much of the loss as the best one"
THEN = "after these, those with the smallest rise of the loss"


def rule_in_words(members: Sequence[Mapping[str, Any]]) -> str:
    """Says by which rule :func:`to_read` chooses; neurons and PCA are named where they stand beside a dictionary."""
    beside = any(member.get("baselines") for member in members)
    return f"{LEAST}{', and more than neurons and principal components of as many numbers' * beside}; {THEN}"


def to_read(members: Sequence[Mapping[str, Any]], site: str, count: int) -> list[str]:
    """Chooses the dictionaries of a site whose features are read, by :func:`rule_in_words`; names, at most ``count``.

    The one that loses the model least is nearly always the least sparse, whose features are the hardest to read.
    """
    order = best_at(members, site, len(members))
    by_name = {member["name"]: member for member in members}
    recovered = {name: _recovered(by_name[name]["metrics"]) for name in order}
    best = max((value for value in recovered.values() if value is not None), default=None)
    good = []
    for name in order:
        mine = recovered[name]
        rivals = [_recovered(peer["metrics"]) for peer in by_name[name].get("baselines", {}).values()]
        nearly = mine is not None and best is not None and mine >= NEARLY * best
        if nearly and all(rival is None or mine is None or rival < mine for rival in rivals):
            good.append(name)
    good.sort(key=lambda name: by_name[name]["metrics"]["l0"]["value"])  # stable: of equal ones the better
    return [*good, *(name for name in order if name not in good)][:count]


def _recovered(metrics: Mapping[str, Any]) -> float | None:
    return float(metrics["ce_recovered_mean"]["value"]) if "ce_recovered_mean" in metrics else None


def window_of(prompts: Prompts, task: Task, exclude: str) -> Windows:
    """A batch of a task's prompts without the tokens of the kinds that ``exclude`` names."""
    kinds = special_kinds(prompts.tokens, task.tokenizer)
    left_out = torch.tensor(excluded(exclude), dtype=torch.uint8, device=kinds.device)
    answers = None
    if task.name != "text":  # elsewhere the task asks nothing, and the model was taught nothing
        answers = torch.full_like(prompts.tokens, -1).scatter(1, prompts.positions, prompts.answers)
    return Windows(prompts.tokens, ~torch.isin(kinds, left_out), prompts.template, answers)


def read_dictionary(
    sae: SparseAutoencoder | Transcoder, model: Model, site: str, name: str, contexts: Sequence[Windows],
    held_out: Sequence[Windows], task: Task, *, density: Tensor, checked: int, controls: int = 16, draws: int = 1000,
    seed: int = 0, directory: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Reads one dictionary and writes ``{name}.json`` and ``{name}.causal.json`` into ``directory``.

    Args:
        sae: In raw activation units; a transcoder is attached.
        model: From :func:`mechint.load`.
        site: Site that it reads.
        name: Name of the dictionary.
        contexts: Text that features are read in.
        held_out: Text that the causal checks are made on.
        task: Spells the tokens.
        density: Share of tokens on which each latent is active, [d_sae].
        checked: Features whose causal effect is measured: random ones of those active on a token in a thousand.
        controls, draws, seed: Options of the causal checks.
        directory: None writes nothing.

    Returns:
        Result of :func:`mechint.analyses.dictionaries.causal.causal_effects`, with the dictionary's name.
    """
    found = read_features(sae, model, contexts, site, task.decode)
    common = (density >= 1e-3).nonzero()[:, 0]
    order = torch.randperm(len(common), generator=torch.Generator().manual_seed(seed))
    chosen = sorted(common[order[:checked]].tolist())
    effects: dict[str, Any] = {"site": site, "mode": "ablate", "features": []}
    if chosen:
        told = {feature["id"]: feature for feature in found["features"]}
        raises = {i: [token for token, _ in told[i].get("raises", ())[:RAISED]] for i in chosen}
        effects = causal_effects(
            sae,
            model,
            held_out,
            site,
            chosen,
            raises=raises,
            density=density,
            controls=controls,
            draws=draws,
            seed=seed,
        )
    if directory is not None:
        save_features(found, directory / f"{name}.json")
        files.write_text(directory / f"{name}.causal.json", json.dumps(effects, sort_keys=True, allow_nan=False) + "\n")
    return {"name": name, **effects}


def labels_of(
    sae: SparseAutoencoder | Transcoder, model: Model, site: str, discovery: Sequence[Prompts],
    evaluation: Sequence[Prompts], task: Task, seed: int = 0,
) -> dict[str, Any] | None:  # fmt: skip
    """Latents at the answer's position that tell which answer it is; None for plain text, which has no labels.

    Features are chosen on the prompts of one split and measured on those of another; see
    :func:`mechint.analyses.dictionaries.answer_auroc.label_scores`.
    """
    if task.name == "text":
        return None
    (f, y, own), (g, z, other) = (_at_answers(sae, model, site, batches) for batches in (discovery, evaluation))
    names = {int(token): task.decode(int(token)) for token in y.unique()}
    try:
        return label_scores(f, y, g, z, best=5, seed=seed, names=names, clusters=(own, other), over="templates")
    except MechintError as error:  # no answer is common enough, which the report says
        return {"classes": [], "note": str(error)}


@torch.no_grad()
def _at_answers(
    sae: SparseAutoencoder | Transcoder, model: Model, site: str, batches: Sequence[Prompts]
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents at the positions of the answers [answer, latent], the answers and their templates [answer]."""
    found, answers, templates = [], [], []
    for batch in batches:
        x = up_to(model, batch.tokens, site)[0]
        at = x[torch.arange(len(x), device=x.device)[:, None], batch.positions]
        found.append(strongest(latents_at(sae, at)).flatten(0, 1).cpu())
        answers.append(batch.answers.flatten().cpu())
        templates.append(batch.template.cpu().repeat_interleave(batch.positions.shape[1]))
    return torch.cat(found), torch.cat(answers), torch.cat(templates)
