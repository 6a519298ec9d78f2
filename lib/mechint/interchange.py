"""Interchange: a clean and a corrupted run of each prompt, and what parts of one do in the other.

The two directions of causal mediation (Vig et al. 2020; Meng et al. 2022; Zhang & Nanda 2024):

* ``denoise``: the corrupted run gets the clean value of a part; what comes back is what the part suffices for;
* ``noise``: the clean run gets the corrupted value; what is lost is what the part is needed for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import MechintError
from .interventions import Edit
from .run import run
from .sweep import gradients, sweep
from .tasks import Prompts, mix

CORRUPTIONS = ("twin", "noise", "mean", "none")
METRICS = ("logit_diff", "answer_logprob", "answer_prob")


@dataclass(frozen=True)
class Corruption:
    """What happens to the tokens that a prompt is about.

    Args:
        method: ``twin`` runs the counterfactual twin instead; ``noise`` adds normal noise to the embeddings of these
            tokens; ``mean`` puts the mean embedding there; ``none`` leaves the run as it is, for what needs one run.
        scale: Standard deviation of the noise, in standard deviations of the embedding matrix; 3 in Meng et al.
        draws: Noisy runs of each prompt; effects are means over them.
        seed: Of the noise.
        mean: Mean embedding, [model]; for ``mean``.
    """

    method: str = "twin"
    scale: float = 3.0
    draws: int = 1
    seed: int = 0
    mean: Tensor | None = None


def answer_metric(name: str, answers: Tensor, wrong: Tensor | None) -> Callable[[Tensor], Tensor]:
    """The metric of logits [..., row, 1, vocabulary] as [..., row].

    Args:
        name: ``logit_diff`` (answer less the twin's answer, in logits), ``answer_logprob`` (in nats) or
            ``answer_prob``.
        answers, wrong: Token ids, [row].
    """
    if name == "logit_diff" and wrong is None:
        raise MechintError("the metric logit_diff needs counterfactual twins; choose answer_logprob or answer_prob")

    def of(logits: Tensor, tokens: Tensor) -> Tensor:
        return logits.gather(-1, tokens.expand(logits.shape[:-1]).unsqueeze(-1)).squeeze(-1)

    def metric(logits: Tensor) -> Tensor:
        last = logits[..., 0, :] if logits.dtype == torch.float64 else logits[..., 0, :].float()
        if name == "logit_diff":
            assert wrong is not None
            return of(last, answers) - of(last, wrong)
        log_probability = of(last, answers) - last.logsumexp(-1)
        return log_probability if name == "answer_logprob" else log_probability.exp()

    return metric


class Interchange:
    """Prompts of one length, each with its clean and its corrupted run; the last answer of each is what is measured.

    Args:
        model: From :func:`mechint.load`.
        prompts: With a subject or twins.
        corruption: How the corrupted run differs.
        direction: ``denoise`` or ``noise``: which of the two receives parts of the other.
        metric: One of :data:`METRICS`.

    Attributes:
        rows: Prompts × draws; a prompt's draws lie side by side.
        receiver, donor: (tokens [row, L], edits) of the run that is edited, and of the one its values come from.
    """

    def __init__(self, model: Any, prompts: Prompts, corruption: Corruption, direction: str, metric: str) -> None:
        self.model, self.prompts = model, prompts
        self.draws = corruption.draws if corruption.method == "noise" else 1
        every = torch.arange(len(prompts), device=prompts.tokens.device).repeat_interleave(self.draws)
        rows = prompts[every]
        self.rows, self.logits_at = len(rows), rows.positions[:, -1:]
        clean: tuple[Tensor, list[Edit]] = (rows.tokens, [])
        corrupted = self.corrupted(rows, corruption)
        self.receiver, self.donor = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
        wrong = None if rows.wrong is None else rows.wrong[:, -1]
        self.metric = answer_metric(metric, rows.answers[:, -1], wrong)
        with torch.no_grad():
            logits = [run(model, tokens, (), edits, logits_at=self.logits_at).logits for tokens, edits in
                      (clean, corrupted)]  # fmt: skip
        self.clean, self.corrupted_value = (self.by_prompt(self.metric(found)) for found in logits)
        """The metric of the two runs, [prompt]."""
        self.right = self.by_prompt((logits[0][:, 0].argmax(-1) == rows.answers[:, -1]).double()) == 1
        """Whether the clean run says the answer, [prompt]."""

    def corrupted(self, rows: Prompts, corruption: Corruption) -> tuple[Tensor, list[Edit]]:
        if corruption.method == "none":
            return rows.tokens, []
        if corruption.method == "twin":
            if rows.twins is None:
                raise MechintError("the corruption 'twin' needs counterfactual twins; choose noise or mean")
            return rows.twins, []
        about = rows.about()
        if about is None:
            raise MechintError(f"the corruption {corruption.method!r} needs to know what the prompts are about")
        weight = self.model.embeddings
        shape = (*rows.tokens.shape, weight.shape[1])
        if corruption.method == "mean":
            assert corruption.mean is not None
            value = torch.where(about[..., None], corruption.mean.to(weight), weight[rows.tokens])
            return rows.tokens, [Edit("embed", "replace", value)]
        seed = mix(corruption.seed, *rows.tokens[0].tolist())
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        value = noise.to(weight) * (corruption.scale * deviation(self.model)) * about[..., None]
        return rows.tokens, [Edit("embed", "add", value)]

    def by_prompt(self, values: Tensor) -> Tensor:
        """Means over the draws of each prompt, [..., row] -> [..., prompt], on the CPU in float64."""
        return values.double().cpu().unflatten(-1, (len(self.prompts), self.draws)).mean(-1)

    @torch.no_grad()
    def values(self, of: tuple[Tensor, list[Edit]], sites: Sequence[str]) -> dict[str, Tensor]:
        """The sites of the receiver or the donor."""
        return run(self.model, of[0], sites, of[1], logits_at=self.logits_at[:, :0]).values

    def sweep(self, cells: Sequence[Sequence[Edit]], **options: Any) -> Tensor:
        """The metric of the receiver under each cell, [cell, prompt]; options of :func:`mechint.sweep.sweep`."""
        tokens, base = self.receiver
        found = sweep(
            self.model,
            tokens,
            cells,
            lambda logits: self.metric(logits),
            base=base,
            logits_at=self.logits_at,
            **options,
        )
        return self.by_prompt(found)

    def estimates(self, sites: Sequence[str], points: int = 1, by_unit: bool = False) -> dict[str, Tensor]:
        """Attribution patching (Nanda 2023): gradient · (donor - receiver) for each position of each site.

        Args:
            points: 1 takes the gradient at the receiver. More average it over that many midpoints of the straight
                line of the embeddings from the receiver to the donor (integrated gradients, Sundararajan et al.
                2017; Hanna et al. 2024), which corrects for saturation.
            by_unit: Sums over the positions in place of the units.

        Returns:
            The estimated change of the metric by site, [position, prompt]; [unit, prompt] for ``by_unit``, where
            units are the entries of the first axis behind the position.
        """
        ours, theirs = (self.values(of, [*sites, "embed"]) for of in (self.receiver, self.donor))
        total = {site: torch.zeros_like(ours[site]) for site in sites}
        tokens = self.receiver[0]
        for k in range(points):
            share = 0.0 if points == 1 else (k + 0.5) / points
            start = Edit("embed", "replace", ours["embed"] + share * (theirs["embed"] - ours["embed"]))
            _, slopes = gradients(self.model, tokens, sites, self.metric, [start], self.logits_at)
            for site in sites:
                total[site] += slopes[site].to(total[site]) / points
        change = {site: total[site].double() * (theirs[site] - ours[site]).double() for site in sites}
        kept = 2 if by_unit else 1
        return {site: self.by_prompt(value.movedim(kept, 1).flatten(2).sum(-1).T) for site, value in change.items()}


def deviation(model: Any) -> float:
    """Standard deviation of the entries of the embedding matrix, measured on the loaded model."""
    return float(model.embeddings.detach().double().std())
