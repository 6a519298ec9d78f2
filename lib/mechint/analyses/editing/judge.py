"""Scores of an edit, as CounterFact defines them (Meng et al. 2022, section 3.3).

With new the answer that is written and old the one before:

* efficacy: P(new) > P(old) behind the edited prompt; the magnitude is P(new) − P(old); accuracy: new is the likeliest;
* rewrite: (P(new) after − before) / (1 − P(new) before), the score of Hase et al. 2023. It has no lower bound: behind a
  prompt that says the new answer already it may be thousands below zero. Gain is the difference alone, from −1 to 1;
* paraphrase: the same behind other prompts of the fact;
* neighbourhood (specificity): P(their own answer) > P(new) behind prompts about other subjects; kept: the share of them
  whose own answer is still the likeliest; subject kept: the same of other facts of the same subject;
* fluency: the mean of 2/3 of the entropy of bigrams and 4/3 of that of trigrams of a generated text, in bits.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...interventions.model import Model
from ...interventions.run import generate, run
from ...utils.statistics import Array
from .requests import Asked, Request
from .values import padded

MEASURES = (
    "efficacy", "magnitude", "accuracy", "rewrite", "paraphrase", "paraphrase_magnitude", "paraphrase_rewrite",
    "neighbourhood", "neighbourhood_magnitude", "kept", "subject_kept", "fluency",
    "fluency_change", "gain", "paraphrase_gain",
)  # fmt: skip
DIGITS = 6
"""Digits behind the point of a score: the probabilities of float32 logits have no more."""
ROWS = 256
"""Prompts in one forward."""
WEIGHTS = {2: 2 / 3, 3: 4 / 3}
"""Weights of the entropies of n-grams."""


def prompts_of(request: Request) -> list[tuple[tuple[int, ...], int, int]]:
    """(tokens, position, right answer before the edit) of every prompt that it is judged on, the edited one first."""
    own: list[Asked] = [*request.paraphrases, *request.neighbours, *request.others]
    return [(request.tokens, request.at, request.old), *((one.tokens, one.at, one.answer) for one in own)]


class Said(NamedTuple):
    """The answers of a model behind the prompts that one edit is judged on, the edited one first; each [prompt]."""

    new: Array  # P(new answer)
    own: Array  # P(the right answer before the edit)
    first: Array  # 1 where the new answer is the likeliest token
    right: Array  # 1 where the right answer before the edit is


@torch.no_grad()
def said_of(model: Model, requests: Sequence[Request]) -> list[Said]:
    """The model's answers to every request's prompts; each different prompt is run once."""
    every = [entry[:2] for request in requests for entry in prompts_of(request)]
    distinct = list(dict.fromkeys(every))
    logits: dict[tuple[tuple[int, ...], int], Tensor] = {}
    for start in range(0, len(distinct), ROWS):
        part = distinct[start : start + ROWS]
        tokens = padded([tokens for tokens, _ in part]).to(model.device)
        at = torch.tensor([[at] for _, at in part], device=model.device)
        found = run(model, tokens, logits_at=at).logits[:, 0].double().cpu()
        logits |= dict(zip(part, found, strict=True))
    result = []
    for request in requests:
        own = prompts_of(request)
        rows = torch.stack([logits[tokens, at] for tokens, at, _ in own])
        chance, first = rows.softmax(-1), rows.argmax(-1)
        right = torch.tensor([answer for _, _, answer in own])
        likeliest = (first == request.new, first == right)
        result.append(Said(
            chance[:, request.new].numpy(), chance.gather(1, right[:, None])[:, 0].numpy(),
            *(each.double().numpy() for each in likeliest),
        ))  # fmt: skip
    return result


def mean(values: Array) -> float:
    """The mean, NaN of nothing."""
    return float(np.mean(values)) if len(values) else math.nan


def scores(request: Request, before: Said, after: Said, fluency: tuple[float, float] = (math.nan, math.nan)) -> Array:
    """The measures of one edit in the order of :data:`MEASURES`; NaN where there are no such prompts.

    Args:
        fluency: Before and after.
    """
    p, n = 1 + len(request.paraphrases), 1 + len(request.paraphrases) + len(request.neighbours)
    room = 1 - before.new
    gain = after.new - before.new
    rewrite = np.divide(gain, room, out=np.zeros_like(room), where=room > 0)
    apart = after.new - after.own
    found = [
        float(apart[0] > 0), apart[0], after.first[0], rewrite[0],
        mean((apart[1:p] > 0).astype(np.float64)), mean(apart[1:p]), mean(rewrite[1:p]),
        mean((apart[p:n] < 0).astype(np.float64)), mean(-apart[p:n]), mean(after.right[p:n]), mean(after.right[n:]),
        fluency[1], fluency[1] - fluency[0], gain[0], mean(gain[1:p]),
    ]  # fmt: skip
    return np.round(np.array(found), DIGITS)


@torch.no_grad()
def fluencies(model: Model, requests: Sequence[Request], count: int, seed: int) -> list[float]:
    """The fluency of ``count`` tokens that are drawn behind each request's prompt; NaN of none."""
    if not count:
        return [math.nan] * len(requests)
    found = []
    for k, request in enumerate(requests):
        tokens = torch.tensor([request.tokens[: request.at + 1]], device=model.device)
        made = generate(model, tokens, count, temperature=1.0, seed=seed + k).tokens[0, tokens.shape[1] :]
        found.append(ngram_entropy(made.tolist()))
    return found


def ngram_entropy(tokens: Sequence[int]) -> float:
    """The weighted mean entropy of the bigrams and trigrams of a text, in bits."""
    total = 0.0
    for size, weight in WEIGHTS.items():
        counts = np.array(list(Counter(zip(*(tokens[k:] for k in range(size)), strict=False)).values()), dtype=float)
        share = counts / counts.sum() if len(counts) else np.ones(1)
        total += weight * float(-(share * np.log2(share)).sum())
    return total / len(WEIGHTS)
