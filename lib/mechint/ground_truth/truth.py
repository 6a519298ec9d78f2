"""The known circuit of a model, declared as data; the edits that remove its parts, and the model's answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..interventions.edits import Edit
from ..interventions.model import Model
from ..interventions.run import run
from ..interventions.unit_kinds import PATHS
from ..interventions.units import Units, units_named
from ..tasks.answers import Prompts
from ..tasks.base import Task
from ..utils.errors import MechintError, did_you_mean
from .questions import Questions, Share

KINDS = (
    *("channel", "mode", "tap", "path", "ssm_head", "ssm_channel", "ssm_mode", "write", "decay", "erase"),
    *("kv", "q", "head", "mlp", "source", "layer"),
)
STEPS = ("step_zero", "step_mean")
"""Ablations of the step Δ of a channel alone."""
TIE = 1e-2
"""An answer counts as right when its logit is above all others by more than this, so that ties are wrong."""


@dataclass(frozen=True)
class Asked:
    """The answers that a part matters for; None is any.

    Attributes:
        token: The token at the position of the answer.
        answer: The answer.
        slot: Number of the answer in the prompt, counted from 0.
        first: First position in the prompt of the token at the answer's position.
        last: A token, and where it last stands in the prompt.
        begins: Tokens of which one begins the prompt.
        above, below: The tokens up to the position of the answer, added up, are more, or less, than this.
        rewritten: Only where the token at the answer's position stood, before the first answer, before another token.
    """

    token: int | None = None
    answer: int | None = None
    slot: int | None = None
    first: int | None = None
    last: tuple[int, int] | None = None
    begins: tuple[int, ...] | None = None
    above: int | None = None
    below: int | None = None
    rewritten: bool = False

    def of(self, prompts: Prompts) -> Tensor:
        """[n, Q] bool."""
        here = prompts.tokens.gather(1, prompts.positions)
        found = torch.ones_like(prompts.answers, dtype=torch.bool)
        if self.token is not None:
            found &= here == self.token
        if self.answer is not None:
            found &= prompts.answers == self.answer
        if self.slot is not None:
            found &= torch.arange(found.shape[1], device=found.device) == self.slot
        if self.first is not None:
            found &= (prompts.tokens[:, None] == here[:, :, None]).int().argmax(-1) == self.first
        if self.last is not None:
            token, place = self.last
            found &= (prompts.tokens[:, place] == token).unsqueeze(1)
            found &= (prompts.tokens[:, place + 1 :] != token).all(1, keepdim=True)
        if self.begins is not None:
            found &= torch.isin(prompts.tokens[:, :1], torch.tensor(self.begins, device=found.device))
        total = prompts.tokens.cumsum(1).gather(1, prompts.positions)
        if self.above is not None:
            found &= total > self.above
        if self.below is not None:
            found &= total < self.below
        if self.rewritten:
            ends, asked = torch.arange(1, prompts.tokens.shape[1], device=here.device), prompts.positions[:, :1]
            before, behind = prompts.tokens[:, None, :-1], prompts.tokens[:, None, 1:]
            same = (ends < asked).unsqueeze(1) & (before == here.unsqueeze(-1))  # [n, Q, L - 1]
            found &= (same & (behind != prompts.answers.unsqueeze(-1))).any(-1)
        return found


@dataclass(frozen=True)
class Where:
    """Positions, as a function of the prompt: those whose token ``back`` positions before is one of ``tokens``.

    Attributes:
        tokens: None is any.
        last: Only the last such position of a prompt.
        pairs: Only where the token is the answer to a question whose token stands before it.
    """

    tokens: tuple[int, ...] | None = None
    back: int = 0
    last: bool = False
    pairs: bool = False

    def of(self, prompts: Prompts) -> Tensor:
        """[n, L] bool."""
        tokens = prompts.tokens
        before = torch.full_like(tokens, -1)
        before[:, self.back :] = tokens[:, : tokens.shape[1] - self.back]
        found = before >= 0
        if self.tokens is not None:
            found &= torch.isin(before, torch.tensor(self.tokens, device=tokens.device))
        if self.pairs:
            asked = tokens.gather(1, prompts.positions)  # [n, Q]
            match = (tokens[:, :-1, None] == asked[:, None]) & (tokens[:, 1:, None] == prompts.answers[:, None])
            found[:, 0] = False
            found[:, 1:] &= match.any(-1)
        if self.last:
            steps = torch.arange(tokens.shape[1], device=tokens.device)
            found &= steps == torch.where(found, steps, -1).amax(1, keepdim=True)
        return found


@dataclass(frozen=True)
class Part:
    """One thing that the computation needs, and what removing it does.

    Attributes:
        meaning: Its function, in words.
        kind: A unit of :mod:`.interventions.units`: of a Mamba a ``channel`` (what u and the output of one channel
            carry), a ``mode`` (a (channel, state) entry as C reads it) or a ``path`` (x, z, dt, B or C of a layer); of
            a transformer ``kv`` (a key or value channel), ``q``, a ``head`` or a neuron of an ``mlp``; of a memory of
            heads an ``ssm_head``, ``ssm_channel`` or ``ssm_mode`` (a (head, key, value) entry as the query reads it);
            of all a ``layer``. Or else ``tap`` (of a channel's convolution, counted back from the current token),
            ``write`` (into all states of a layer, at some positions), ``decay`` (of all states of a layer), ``erase``
            (what its writes erase), or ``source`` (the values that a head reads, at some positions).
        layer: Number of the layer.
        unit: (channel,), (channel, state), (channel, taps back), (number in ``PATHS``,), (0 for K or 1 for V, head,
            dimension), (head, dimension), (head,), (head, key, value), (neuron,), or empty.
        asked: The answers it matters for: those that any of these says.
        accuracy: At most this share of them is right once it is removed. Removed means zero, and for ``decay`` one.
        where: For ``write`` and ``source``: at which positions.
        enough: For these two: whether all other positions are idle there.
        blind: Ablations that replace a unit by what stood there, so that nothing changes: ``mean`` and ``resample``
            where it is the same on all prompts, position by position, ``counterfactual`` where it is on both twins;
            and those of a channel's step Δ alone: ``step_zero`` where none of its states is read, ``step_mean`` (over
            prompts and tokens) also where its step is constant.
        unsure: Ablations of which it isn't known what they do to the unit: trained units may tell more than is imposed.
        way: Name of the way to the answers that it is on, where there are several; empty for what all ways share.
    """

    meaning: str
    kind: str
    layer: int
    unit: tuple[int, ...] = ()
    asked: tuple[Asked, ...] = (Asked(),)
    accuracy: float = 0.0
    where: Where | None = None
    enough: bool = True
    blind: tuple[str, ...] = ()
    unsure: tuple[str, ...] = ()
    way: str = ""

    @property
    def name(self) -> str:
        unit = "".join(f" {u}" for u in self.unit)
        if self.kind == "path":
            unit = f" {PATHS[self.unit[0]]}"
        elif self.kind == "kv":
            unit = f" {'KV'[self.unit[0]]} {self.unit[1]} {self.unit[2]}"
        return f"layer {self.layer}, {self.kind}{unit} ({self.meaning})"

    def affects(self, prompts: Prompts) -> Tensor:
        """The answers it matters for, [n, Q] bool."""
        own = prompts.tokens.gather(1, prompts.positions)  # the tied head gives the token itself when no unit writes
        return torch.stack([asked.of(prompts) for asked in self.asked]).any(0) & (own != prompts.answers)

    def removal(self, model: Model, prompts: Prompts) -> list[Edit]:
        """The edits that remove it."""
        if self.kind in NEUTRAL:
            return [Edit(f"layers.{self.layer}.{self.kind}", "replace", NEUTRAL[self.kind])]
        if self.kind == "tap":
            taps = torch.zeros(model.config.d_inner, model.config.d_conv)
            taps[self.unit] = 1
            return [remove_taps(model, self.layer, taps, prompts)]
        if self.kind in POSITIONS:
            assert self.where is not None
            return [only_at(model, self, ~self.where.of(prompts))]
        units = Units(model, model.unit_kinds[self.kind])
        return units.dropping(self.number(units), dict.fromkeys(units.sites, 0.0))

    def number(self, units: Units) -> int:
        """Its index among units of its kind, or of several kinds side by side."""
        return units.number(self.kind, self.layer, self.unit)


NEUTRAL = {"decay": 1.0, "erase": 0.0}
"""Kinds of part that are a site of a layer, and the value at which it does nothing."""
POSITIONS = ("write", "source")
"""Kinds of part that are some positions of a layer."""


def only_at(model: Model, part: Part, there: Tensor) -> Edit:
    """Removes all writes into the states of a layer, or all that a head reads, but for some positions [n, L]."""
    site = f"layers.{part.layer}.{'write' if part.kind == 'write' else 'v'}"
    value = there.float().view(*there.shape, *[1] * len(model.sites[site].units))
    return Edit(site, "scale", value) if part.kind == "write" else Edit(site, "scale", value, units=part.unit)


@torch.no_grad()
def remove_taps(model: Model, layer: int, taps: Tensor, prompts: Prompts) -> Edit:
    """Takes what some taps contribute out of the convolution of one layer; ``taps`` [E, K] from the current token on.

    The same as cuts at ``conv``, in one edit for all positions; layers before must not be edited.
    """
    x = run(model, prompts.tokens, record=[f"layers.{layer}.x"])[f"layers.{layer}.x"]  # [n, L, E]
    gone = torch.zeros_like(x)
    weights = model.layers[layer].conv1d.weight[:, 0].flip(1) * taps.to(x)  # [E, K]
    for back in range(taps.shape[1]):
        gone[:, back:] += weights[:, back] * x[:, : x.shape[1] - back]
    return Edit(f"layers.{layer}.conv", "add", -gone)


@dataclass(frozen=True)
class GroundTruth:
    """The parts that carry a computation; of the kinds that are declared, everything else is idle.

    Attributes:
        parts: Parts that it needs.
        margin: The logit of every answer is above all others by at least this.
        tolerance: Removing all idle units of a kind changes no logit of an answer's position by more than this.
        idle: Kinds of which no unit is declared and all are idle.
        questions: The units that are needed alone, together, and to suffice, where these are not the same; then parts
            whose removal alone changes no answer are declared with an accuracy of 1.
        shares: The parts of the answers' logits that units give them, where they are declared.
    """

    parts: tuple[Part, ...]
    margin: float
    tolerance: float = 1e-3
    idle: tuple[str, ...] = ()
    questions: Questions | None = None
    shares: tuple[Share, ...] = ()

    def units(self, kind: str) -> list[tuple[int, tuple[int, ...]]]:
        """(layer, unit) of every declared part of a kind."""
        if kind not in KINDS:
            raise MechintError(f"no kind of part {kind!r}{did_you_mean(kind, KINDS)}; take {', '.join(KINDS)}")
        return [(part.layer, part.unit) for part in self.parts if part.kind == kind]

    def mask(self, model: Model, kind: str, ablation: str = "zero", unsure: bool = False) -> Tensor:
        """1 for the units of the circuit and 0 for all others, numbered as :class:`.units.Units` does.

        ``ablation``: Leaves out the units of the circuit that are the same under it, and without ``unsure`` those of
        which that isn't known.
        """
        units = self._units(model, kind)
        mask = torch.zeros(units.total)
        for part in self.parts:
            if part.kind in kind.split("+") and ablation not in part.blind + (() if unsure else part.unsure):
                mask[part.number(units)] = 1.0
        return mask

    def asked(self, model: Model, kind: str, ablation: str = "zero") -> Tensor:
        """The units a method with this ablation is asked for, bool: all but those that it may or may not reach.

        These are neither to be found nor to be passed over. Units that are the same under it are to be passed over.
        """
        units = self._units(model, kind)
        asked = torch.ones(units.total, dtype=torch.bool)
        for part in self.parts:
            if part.kind in kind.split("+") and ablation in part.unsure:
                asked[part.number(units)] = False
        return asked

    def _units(self, model: Model, kind: str) -> Units:
        known = model.unit_kinds
        for name in kind.split("+"):
            if name not in known:
                raise MechintError(f"no kind of unit {name!r}{did_you_mean(name, known)}; take {', '.join(known)}")
        return units_named(model, kind)


class Answers(NamedTuple):
    """The answers of a model to prompts."""

    accuracy: float
    margin: float
    """The least, over all answers: logit of the answer minus the largest other."""
    prompts: int


@torch.no_grad()
def margins(model: Model, prompts: Prompts, edits: list[Edit] | None = None) -> tuple[Tensor, Tensor]:
    """Logit of each answer minus the largest other, [n, Q], and the logits there, [n, Q, V]."""
    logits = run(model, prompts.tokens, edits=edits or [], logits_at=prompts.positions).logits
    index = prompts.answers.unsqueeze(-1)
    others = logits.scatter(-1, index, -torch.inf).amax(-1)
    return logits.gather(-1, index).squeeze(-1) - others, logits


def answers(model: Model, task: Task, count: int = 10_000, batch: int = 500, seed: int = 0) -> Answers:
    """Accuracy and least margin of a model on ``count`` prompts of the training split, the largest one."""
    prompts = task.sample(count, "train", seed)
    found = torch.cat([margins(model, prompts[start : start + batch])[0] for start in range(0, count, batch)])
    return Answers(float((found > TIE).float().mean()), float(found.min()), count)
