"""Scores explanations by detection: a judge reads an explanation and says which of some contexts activate the latent.

The score of Paulo et al. 2024 ("Automatically Interpreting Millions of Features in Large Language Models"): the
balanced accuracy over contexts with and without an activation, here with one context in a question. The judge is a
local model; its answer is the likelier of " Yes" and " No" behind the question, and the area under the ROC curve of the
difference of their logits stands beside, since small models prefer one of the two.

1. Ask the judge about every held-out context of every explained latent.
2. Ask again with the explanation of another latent, drawn so that none keeps its own: the control.
3. Average over latents, with intervals from a bootstrap of latents; p is of "own and other explanations do alike".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ....interventions.model import Model
from ....interventions.run import run
from ....models.loading.tokenizer import Encoder, lacking
from ....tasks.base import generator
from ....utils.errors import MechintError
from ....utils.multiple_tests import ABOVE, max_t_of
from ....utils.progress import Progress
from ....utils.statistics import Array, ClusterBootstrap, Number
from ..answer_auroc import auroc
from .explanations import Asked

ROWS = 16
"""Questions of one forward."""
QUESTION = (
    "A detector looks for one thing in texts. Its description is given; answer whether a text has that thing.\n\n"
    "Description: words for colours\nText: The door was painted red\nAnswer: Yes\n\n"
    "Description: words for colours\nText: He counted the money twice\nAnswer: No\n\n"
    "Description: the word of\nText: a glass of water\nAnswer: Yes\n\n"
    "Description: questions\nText: I will be there at noon\nAnswer: No\n\n"
    "Description: {explanation}\nText: {text}\nAnswer:"
)
"""Examples stand before the question, since models that were not taught to answer go on with what they see."""
ANSWERS = (" Yes", " No")


class Judge:
    """A local model that answers questions with yes or no.

    Args:
        model: From :func:`mechint.load`, with its tokenizer.

    Raises:
        MechintError: it has no tokenizer, or one that gives both answers the same tokens.
    """

    def __init__(self, model: Model) -> None:
        if model.tokenizer is None:
            raise MechintError(f"the judge {model.source} has no tokenizer to read explanations with; {lacking()}")
        self.model, self.encoder = model, Encoder(model.tokenizer)
        context = QUESTION.format(explanation="a", text="b")
        yes, no = (self.encoder.behind(context, answer) or [] for answer in ANSWERS)
        same = next((k for k, (a, b) in enumerate(zip(yes, no, strict=False)) if a != b), None)
        if same is None:
            raise MechintError(
                f"the judge {model.source}: its tokenizer does not tell {' and '.join(map(repr, ANSWERS))} apart; take "
                f"another judge"
            )
        self.common, self.yes, self.no = yes[:same], yes[same], no[same]

    def prompt(self, explanation: str, text: str) -> list[int]:
        """The tokens of a question, and those that both answers begin with."""
        return [*self.encoder.prompt(QUESTION.format(explanation=explanation, text=text)).ids, *self.common]

    @torch.no_grad()
    def leanings(self, questions: Sequence[tuple[str, str]], title: str) -> Array:
        """The logit of yes less that of no for each (explanation, text), [question]."""
        prompts = [self.prompt(explanation, text) for explanation, text in questions]
        found = np.empty(len(prompts))
        lengths: dict[int, list[int]] = {}
        for k, ids in enumerate(prompts):
            self.model.check_length(len(ids))
            lengths.setdefault(len(ids), []).append(k)
        with Progress(title, len(prompts)) as progress:
            for alike in lengths.values():
                for some in (alike[k : k + ROWS] for k in range(0, len(alike), ROWS)):
                    tokens = torch.tensor([prompts[k] for k in some], device=self.model.device)
                    last = torch.full_like(tokens[:, :1], tokens.shape[1] - 1)
                    logits = run(self.model, tokens, logits_at=last).logits[:, 0].double()
                    found[some] = (logits[:, self.yes] - logits[:, self.no]).cpu().numpy()
                    progress.step(count=len(some))
        return found


def exchanged(asked: Sequence[Asked], seed: int) -> list[str] | None:
    """The explanation of another latent for each; None for fewer than two latents."""
    if len(asked) < 2:
        return None
    order = torch.randperm(len(asked), generator=generator("exchanged explanations", seed)).tolist()
    found = [""] * len(asked)
    for own, other in zip(order, [*order[1:], order[0]], strict=True):
        found[own] = asked[other].explanation
    return found


def score(asked: Sequence[Asked], judge: Judge, seed: int, draws: int) -> dict[str, Any]:
    """The detection scores of explained latents.

    Returns:
        ``latents`` (for each its ``balanced_accuracy`` with an interval over contexts, ``auroc``, and both with another
        latent's explanation), ``balanced_accuracy``, ``auroc``, ``exchanged_balanced_accuracy``, ``exchanged_auroc``,
        ``difference`` and ``auroc_difference`` (numbers over latents), ``p``, ``says_yes`` (share of all questions) and
        ``notes``.
    """
    others = exchanged(asked, seed)
    flat = lambda words: [(said, text) for one, said in zip(asked, words, strict=True) for text, _ in one.contexts]
    own = judge.leanings(flat([one.explanation for one in asked]), "judging explanations")
    control = None if others is None else judge.leanings(flat(others), "judging exchanged explanations")
    rows, start = [], 0
    for k, one in enumerate(asked):
        place = slice(start, start := start + len(one.contexts))
        active = np.array([float(there) for _, there in one.contexts])
        row: dict[str, Any] = {
            "dictionary": one.dictionary, "latent": one.latent, "explanation": one.explanation,
            "contexts": len(active), **of_latent(active, own[place], seed, draws),
        }  # fmt: skip
        if control is not None and others is not None:
            row["exchanged"] = {"explanation": others[k], **of_latent(active, control[place], seed, draws)}
        rows.append(row)
    return {"latents": rows, **summary(rows, own, seed, draws), "notes": notes(rows, own)}


def of_latent(active: Array, leaning: Array, seed: int, draws: int) -> dict[str, Any]:
    """The scores of one latent from the judge's leanings, [context]."""
    said = (leaning > 0).astype(np.float64)
    bootstrap = ClusterBootstrap(np.arange(len(active)), draws, seed, over="contexts")
    silent = 1 - active

    def statistic(hit: Array, there: Array, spared: Array, absent: Array) -> Array:
        with np.errstate(invalid="ignore", divide="ignore"):  # a draw may hold no active, or no silent, context
            return np.asarray((hit / there + spared / absent) / 2)

    value = bootstrap.interval(statistic, said * active, active, (1 - said) * silent, silent, within=(0.0, 1.0))
    area = auroc(torch.from_numpy(leaning)[:, None], torch.from_numpy(active == 1))
    return {"balanced_accuracy": value, "auroc": float(area[0])}


def summary(rows: Sequence[dict[str, Any]], own: Array, seed: int, draws: int) -> dict[str, Any]:
    """Means over latents, and their differences from exchanged explanations with p, adjusted for both scores."""
    bootstrap = ClusterBootstrap(np.arange(len(rows)), draws, seed, over="latents")
    mean = lambda values, within=(0.0, 1.0): bootstrap.interval(lambda m: m, np.array(values), within=within)
    accuracy = [row["balanced_accuracy"]["value"] for row in rows]
    area = [row["auroc"] for row in rows]
    found: dict[str, Any] = {
        "balanced_accuracy": mean(accuracy), "auroc": mean(area), "says_yes": float((own > 0).mean()),
    }  # fmt: skip
    if any("exchanged" not in row for row in rows):
        return found
    theirs = [row["exchanged"]["balanced_accuracy"]["value"] for row in rows]
    their_area = [row["exchanged"]["auroc"] for row in rows]
    for name, first, second in (("balanced_accuracy", accuracy, theirs), ("auroc", area, their_area)):
        gained: Number = mean([a - b for a, b in zip(first, second, strict=True)], (-1.0, 1.0))
        found |= {f"exchanged_{name}": mean(second), f"{name}_difference": gained}
    return found | {"p": p_values(bootstrap, np.array([accuracy, area]).T - np.array([theirs, their_area]).T)}


def p_values(bootstrap: ClusterBootstrap, differences: Array) -> dict[str, float | None]:
    """Adjusted p of "no better than exchanged explanations" for both scores, from [latent, 2]."""
    names = ("balanced_accuracy", "auroc")
    if bootstrap.too_few:
        return dict.fromkeys(names)
    found = max_t_of(bootstrap, bootstrap.tested(lambda m: m, differences), ABOVE)
    return {name: None if np.isnan(p) else float(p) for name, p in zip(names, found, strict=True)}


def notes(rows: Sequence[dict[str, Any]], own: Array) -> list[str]:
    found = []
    yes = float((own > 0).mean())
    if yes in (0.0, 1.0):
        found.append(
            f"The judge says {'yes' if yes else 'no'} to every question, so its balanced accuracy is 0.5 whatever the "
            f"explanations say; look at the AUROC, or take another judge"
        )
    if len(rows) < 2:
        found.append("One explanation has no other to be exchanged with, so there is no control")
    return found
