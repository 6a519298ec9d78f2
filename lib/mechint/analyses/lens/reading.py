"""The logit lens: what the final norm and the unembedding make of the residual stream at each of its sites.

After nostalgebraist 2020 ("interpreting GPT: the logit lens"). The last site gives the model's own logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ...interventions.model import Model
from ...interventions.prefix import divergence
from ...interventions.run import run
from ...interventions.taps import Tap, wanted
from ...tasks import Prompts
from ..dictionaries.logits import in_stream
from ..metrics import logprobs

MEASURES = ("probability", "logprob", "rank", "right", "kl")
"""Numbers of a prompt at its answers: mean probability, log-probability in nats (of a whole answer the sum over its
tokens), logarithm of the rank, share of right answers, and KL(model ‖ lens) in nats."""
ROOM = 1 << 25
"""Entries of logits that are held at a time, 128 MiB in float32."""


class Lens(Protocol):
    """A lens that changes the residual stream before the final norm reads it."""

    def has(self, site: str) -> bool:
        """True if it can read this site."""

    def translated(self, site: str, r: Tensor) -> Tensor:
        """The residual stream [..., model] of a site in the basis of the last site."""


class LogitLens:
    """The logit lens: the residual stream as it is."""

    def has(self, site: str) -> bool:
        return True

    def translated(self, site: str, r: Tensor) -> Tensor:
        return r


def stream_sites(model: Model) -> list[str]:
    """The sites of the residual stream in the forward's order: before the first layer, then behind every step."""
    first = "layers.0.resid_pre"
    inside = [name for name in model.sites if name.startswith("layers.") and in_stream(name)]
    return [name for name in inside if name == first or not name.endswith(".resid_pre")]


def depth(sites: Sequence[str], site: str) -> float:
    """The layers below a site; a site inside a layer counts the steps before it as a share of the layer."""
    layer, kind = int(site.split(".")[1]), site.rpartition(".")[2]
    if kind == "resid_pre":
        return float(layer)
    steps = [name for name in sites if name.startswith(f"layers.{layer}.") and not name.endswith(".resid_pre")]
    return layer + (steps.index(site) + 1) / len(steps)


def float_logits(model: Model, r: Tensor) -> Tensor:
    """The logits of a residual stream [row, position, model], in at least float32."""
    logits = model.finish(r, Tap())
    return logits if logits.dtype.itemsize > 2 else logits.float()


def logits_of(model: Model, read: Tensor) -> Tensor:
    """The logits [..., vocabulary] of what the head reads [..., model], in at least float32."""
    logits = model.unembed(read)
    return logits if logits.dtype.itemsize > 2 else logits.float()


@torch.no_grad()
def read_answers(model: Model, prompts: Prompts, sites: Sequence[str], lenses: Mapping[str, Lens]) -> dict[str, Tensor]:
    """Reads the answers of prompts at every site.

    Returns:
        For each lens the numbers of :data:`MEASURES` [prompt, site, measure], in float64; NaN at sites that it cannot
        read.
    """
    values = run(model, prompts.tokens, sites, logits_at=prompts.positions[:, :0]).values
    rows = max(1, ROOM // (prompts.positions.shape[1] * len(model.embeddings)))
    found: dict[str, list[Tensor]] = {name: [] for name in lenses}
    for some in torch.arange(len(prompts), device=prompts.tokens.device).split(rows):
        part = prompts[some]
        at = {site: wanted(values[site][some], part.positions) for site in sites}
        final = float_logits(model, at[sites[-1]]).log_softmax(-1)
        for name, lens in lenses.items():
            numbers = [
                measured(float_logits(model, lens.translated(site, at[site])), final, part)
                if lens.has(site)
                else torch.full((len(part), len(MEASURES)), torch.nan, dtype=torch.float64)
                for site in sites
            ]
            found[name].append(torch.stack(numbers, 1))
    return {name: torch.cat(parts) for name, parts in found.items()}


def measured(logits: Tensor, final: Tensor, prompts: Prompts) -> Tensor:
    """The numbers of :data:`MEASURES` of logits [n, Q, vocabulary], [n, measure]; ``final`` are log-probabilities."""
    each = logprobs(logits, prompts)
    value = each.sum(-1) if prompts.whole else each.mean(-1)
    kl = divergence(final, logits.log_softmax(-1)).mean(-1)
    columns = [
        value.exp() if prompts.whole else each.exp().mean(-1),
        value,
        ranks(logits, prompts.good()).double().log().mean(-1),
        prompts.correct(logits),
        kl,
    ]
    return torch.stack([column.double().cpu() for column in columns], -1)


def ranks(logits: Tensor, ids: Tensor) -> Tensor:
    """The rank of the best of the ids [n, Q, A], from 1; logits [n, Q, vocabulary] -> [n, Q]; -1 is not an id."""
    best = logits.gather(-1, ids.clamp(min=0)).masked_fill(ids < 0, -torch.inf).amax(-1, keepdim=True)
    return 1 + (logits > best).sum(-1)


@torch.no_grad()
def every_position_kl(
    model: Model, tokens: Tensor, sites: Sequence[str], lenses: Mapping[str, Lens]
) -> dict[str, Tensor]:
    """KL(model ‖ lens) in nats, averaged over all positions, [prompt, site]; NaN where a lens has no map."""
    values = run(model, tokens, sites, logits_at=tokens[:, :0]).values
    rows = max(1, ROOM // (tokens.shape[1] * len(model.embeddings)))
    found: dict[str, list[Tensor]] = {name: [] for name in lenses}
    for some in torch.arange(len(tokens), device=tokens.device).split(rows):
        final = float_logits(model, values[sites[-1]][some]).log_softmax(-1)
        for name, lens in lenses.items():
            kls = [
                divergence(final, float_logits(model, lens.translated(site, values[site][some])).log_softmax(-1)).mean(
                    -1
                )
                if lens.has(site)
                else torch.full((len(some),), torch.nan)
                for site in sites
            ]
            found[name].append(torch.stack([kl.double().cpu() for kl in kls], -1))
    return {name: torch.cat(parts) for name, parts in found.items()}


@torch.no_grad()
def read_positions(
    model: Model, tokens: Tensor, answer: int, sites: Sequence[str], lenses: Mapping[str, Lens], top: int
) -> dict[str, dict[str, Any]]:
    """Reads one prompt at every site and position.

    Args:
        tokens: [position].
        answer: The token whose probability and rank are taken.
        top: Likeliest tokens that are listed.

    Returns:
        For each lens its ``sites``, and by site and position ``top`` (ids), ``probability`` (of these), ``answer`` (the
        probability of the answer), ``rank`` and ``kl``.
    """
    ran = run(model, tokens[None], sites)
    values, logits = ran.values, ran.logits
    final = (logits if logits.dtype.itemsize > 2 else logits.float()).log_softmax(-1)[0]
    ids = torch.full((1, len(tokens), 1), answer, device=tokens.device)
    found: dict[str, dict[str, Any]] = {}
    for name, lens in lenses.items():
        own = [site for site in sites if lens.has(site)]
        entry: dict[str, Any] = {key: [] for key in ("top", "probability", "answer", "rank", "kl")}
        for site in own:
            logits = float_logits(model, lens.translated(site, values[site]))
            scores = logits.log_softmax(-1)[0]
            best = scores.topk(min(top, scores.shape[-1]), -1)
            entry["top"].append(best.indices.tolist())
            entry["probability"].append(best.values.exp().tolist())
            entry["answer"].append(scores[:, answer].exp().tolist())
            entry["rank"].append(ranks(logits, ids)[0].tolist())
            entry["kl"].append(divergence(final, scores).clamp(min=0).tolist())
        found[name] = {"sites": own, **entry}
    return found
