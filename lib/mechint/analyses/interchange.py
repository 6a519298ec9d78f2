"""Interchange: a clean and a corrupted run of each prompt, and parts of one put into the other.

The two directions of causal mediation (Vig et al. 2020; Meng et al. 2022; Zhang & Nanda 2024):

* ``denoise``: the corrupted run gets the clean value of a part; what comes back is what the part suffices for;
* ``noise``: the clean run gets the corrupted value; what is lost is what the part is needed for.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ..interventions.edits import Edit
from ..interventions.gradients import gradients
from ..interventions.model import Model
from ..interventions.run import run
from ..interventions.sweep import sweep
from ..tasks import Prompts, mix
from ..utils.errors import MechintError, did_you_mean
from .metrics import answer_metric

AT_ONCE = 1 << 22
"""Entries of the embedding matrix that are held in float64 at once."""
CORRUPTIONS = ("twin", "noise", "mean")
"""Corruptions that an option can name; the code also uses ``values`` and ``none``, which need no other prompt."""
METRICS = ("logit_diff", "answer_logprob", "answer_prob")
DIRECTIONS = ("denoise", "noise")
HELD = 10
"""Copies of a site that are held at once where gradients are taken of it: values, slopes, and the graph between."""


@dataclass(frozen=True)
class Corruption:
    """The corruption of the tokens that a prompt is about.

    Args:
        method: ``twin`` runs the counterfactual twin instead; ``noise`` adds normal noise to the embeddings of these
            tokens; ``mean`` puts the mean embedding there; ``values`` puts given values at given sites; ``none`` leaves
            the run as it is, for what needs one run.
        scale: Standard deviation of the noise, in standard deviations of the embedding matrix; 3 in Meng et al.
        draws: Noisy runs of each prompt; effects are means over them.
        seed: Seed of the noise.
        mean: Mean embedding, [model]; for ``mean``.
        values: By site, what stands there in every layer at once, [row, position, unit …]; for ``values``.
    """

    method: str = "twin"
    scale: float = 3.0
    draws: int = 1
    seed: int = 0
    mean: Tensor | None = None
    values: Mapping[str, Tensor] | None = None


def known(value: str, allowed: Sequence[str], what: str) -> None:
    if value not in allowed:
        raise MechintError(f"no {what} {value!r}{did_you_mean(value, allowed)}; take {', '.join(allowed)}")


def twins_of(rows: Prompts) -> Tensor:
    """The counterfactual twins of prompts, [n, L].

    Raises:
        MechintError: they have none.
    """
    if rows.twins is None:
        raise MechintError("the corruption 'twin' needs counterfactual twins; choose noise or mean")
    return rows.twins


class Interchange:
    """Prompts of one length, each with its clean and its corrupted run; the last answer of each is what is measured.

    Where a task's answers are the tokens of one answer (``whole``), all of them are: the metric is that of the whole
    answer, each token read on from the right ones before it.

    Args:
        model: From :func:`mechint.load`.
        prompts: With a subject or twins.
        corruption: Difference between the corrupted and the clean run.
        direction: ``denoise`` or ``noise``: which of the two receives parts of the other.
        metric: One of :data:`METRICS`.
        whole: Measure all answers of a prompt as one.

    Raises:
        MechintError: the prompts lack what is asked for, or one of the names is unknown.

    Attributes:
        rows: Prompts × draws; a prompt's draws lie side by side.
        receiver, donor: (tokens [row, L], edits) of the run that is edited, and of the one its values come from.
    """

    def __init__(
        self, model: Model, prompts: Prompts, corruption: Corruption, direction: str, metric: str, whole: bool = False
    ) -> None:
        known(corruption.method, (*CORRUPTIONS, "values", "none"), "corruption")
        known(direction, DIRECTIONS, "direction")
        prompts = dataclasses.replace(prompts, whole=whole).last()
        self.model, self.prompts = model, prompts
        self.draws = corruption.draws if corruption.method == "noise" else 1
        every = torch.arange(len(prompts), device=prompts.tokens.device).repeat_interleave(self.draws)
        rows = prompts[every]
        self.rows, self.logits_at, self.asked = len(rows), rows.positions, (metric, rows)
        self.metric = answer_metric(metric, rows)
        clean: tuple[Tensor, list[Edit]] = (rows.tokens, [])
        corrupted = self.corrupted(rows, corruption)
        self.receiver, self.donor = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
        with torch.no_grad():
            logits = [run(model, tokens, (), edits, logits_at=self.logits_at).logits for tokens, edits in
                      (clean, corrupted)]  # fmt: skip
        self.clean, self.corrupted_value = (self.by_prompt(self.metric(found)) for found in logits)
        """The metric of the two runs, [prompt]."""
        self.right = self.by_prompt(rows.correct(logits[0])) == 1
        """True where the clean run says the right answer, [prompt]."""

    def corrupted(self, rows: Prompts, corruption: Corruption) -> tuple[Tensor, list[Edit]]:
        if corruption.method == "none":
            return rows.tokens, []
        if corruption.method == "twin":
            return twins_of(rows), []
        if corruption.method == "values":
            if not corruption.values:
                raise MechintError(
                    "the corruption 'values' needs the values of at least one site; give values={site: …}"
                )
            return rows.tokens, [Edit(site, "replace", value) for site, value in corruption.values.items()]
        about = rows.about()
        if about is None:
            raise MechintError(f"the corruption {corruption.method!r} needs to know what the prompts are about")
        weight = self.model.embeddings
        if corruption.method == "mean":
            if corruption.mean is None or corruption.mean.shape != weight.shape[1:]:
                raise MechintError(
                    f"the corruption 'mean' needs the mean embedding of the subjects; give mean=, a tensor of "
                    f"[{weight.shape[1]}]"
                )
            value = torch.where(about[..., None], corruption.mean.to(weight), weight[rows.tokens])
            return rows.tokens, [Edit("embed", "replace", value)]
        value = self.noise(corruption.seed, weight.shape[1]).to(weight)
        value = value * (corruption.scale * deviation(self.model)) * about[..., None]
        return rows.tokens, [Edit("embed", "add", value)]

    def noise(self, seed: int, width: int) -> Tensor:
        """Standard normal noise [row, L, width]. A prompt's own tokens decide it, not the prompts beside it."""
        found = []
        for tokens in self.prompts.tokens.tolist():
            random = torch.Generator().manual_seed(mix(seed, *tokens))
            found.append(torch.randn(self.draws, len(tokens), width, generator=random, dtype=torch.float64))
        return torch.cat(found)

    def by_prompt(self, values: Tensor) -> Tensor:
        """Means over the draws of each prompt, [..., row] -> [..., prompt], on the CPU in float64."""
        return values.double().cpu().unflatten(-1, (len(self.prompts), self.draws)).mean(-1)

    @torch.no_grad()
    def values(self, of: tuple[Tensor, list[Edit]], sites: Sequence[str]) -> dict[str, Tensor]:
        """The sites of the receiver or the donor."""
        return run(self.model, of[0], sites, of[1], logits_at=self.logits_at[:, :0]).values

    def sweep(self, cells: Sequence[Sequence[Edit]], **options: Any) -> Tensor:
        """The metric of the receiver under each cell, [cell, prompt]; options of :func:`.sweep.sweep`."""
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

    def of_rows(self, rows: Tensor) -> Interchange:
        """The same of some rows, whose values are not averaged over draws."""
        part = copy.copy(self)
        name, prompts = self.asked
        part.asked = name, prompts[rows]
        part.rows, part.logits_at, part.metric = len(rows), self.logits_at[rows], answer_metric(*part.asked)
        part.receiver, part.donor = (
            (tokens[rows], [dataclasses.replace(edit, value=rows_of(edit, rows)) for edit in edits])
            for tokens, edits in (self.receiver, self.donor)
        )
        return part

    def estimates(
        self, sites: Sequence[str], points: int = 1, by_unit: bool = False, memory_mib: float = 1024.0
    ) -> dict[str, Tensor]:
        """Attribution patching (Nanda 2023): gradient · (donor - receiver) for each position of each site.

        Args:
            points: 1 takes the gradient at the receiver. More average it over that many midpoints of the straight
                line of the embeddings from the receiver to the donor (integrated gradients, Sundararajan et al.
                2017; Hanna et al. 2024), which corrects for saturation. Where both have the same embeddings they are
                all the same gradient.
            by_unit: Sums over the positions instead of the units.
            memory_mib: MiB that the sites and the graph of their gradients may take, about; rows run in such parts.

        Returns:
            The estimated change of the metric by site, [position, prompt]; [unit, prompt] for ``by_unit``, where
            units are the entries of the first axis after the position.
        """
        length = self.receiver[0].shape[1]
        entries = sum(math.prod(self.model.sites[site].of_length(length).units) for site in sites) * length
        most = max(1, int(memory_mib * 2**20 / (HELD * 4 * entries)))
        parts = [self.of_rows(rows).change(sites, points, by_unit) for rows in torch.arange(self.rows).split(most)]
        return {site: self.by_prompt(torch.cat([part[site] for part in parts], -1)) for site in sites}

    def change(self, sites: Sequence[str], points: int, by_unit: bool) -> dict[str, Tensor]:
        """:meth:`estimates` of every row, [position or unit, row]."""
        ours, theirs = (self.values(of, [*sites, "embed"]) for of in (self.receiver, self.donor))
        total = {site: torch.zeros_like(ours[site]) for site in sites}
        tokens, base = self.receiver[0], [edit for edit in self.receiver[1] if edit.site != "embed"]
        for k in range(points):
            share = 0.0 if points == 1 else (k + 0.5) / points
            start = Edit("embed", "replace", ours["embed"] + share * (theirs["embed"] - ours["embed"]))
            _, slopes = gradients(self.model, tokens, sites, self.metric, [*base, start], self.logits_at)
            for site in sites:
                total[site] += slopes[site].to(total[site]) / points
        kept, found = 2 if by_unit else 1, dict[str, Tensor]()
        for site in sites:
            change = total.pop(site).double() * (theirs.pop(site) - ours.pop(site)).double()
            found[site] = change.movedim(kept, 1).flatten(2).sum(-1).T
        return found


def rows_of(edit: Edit, rows: Tensor) -> Tensor:
    """Some rows of an edit's value [row, position, unit …]; a value with one row stands for all."""
    value = cast(Tensor, edit.value)
    return value if len(value) == 1 else value[rows.to(value.device)]


def deviation(model: Model) -> float:
    """Standard deviation of the entries of the embedding matrix, measured on the loaded model.

    Some rows at a time are in float64: those of a large vocabulary would need as much memory as the whole model.
    """
    rows = model.embeddings.detach()
    some = rows.split(max(1, AT_ONCE // rows.shape[1]))
    mean = sum(float(part.double().sum()) for part in some) / rows.numel()
    squares = sum(float((part.double() - mean).square_().sum()) for part in some)
    return math.sqrt(squares / (rows.numel() - 1))
