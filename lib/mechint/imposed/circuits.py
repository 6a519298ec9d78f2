"""What training imposes on a model of each family: which units, by which losses, and which weights stay as they are.

The loss is the sum of three: of the answers; of what the causal model says when units that carry a variable come from
another prompt (interchange intervention training, Geiger et al. 2022); and of the answers when all other units, or a
random half of them, come from another prompt (strictness, Gupta et al. 2024). Since an idle unit could also hold what
is the same on every prompt, some steps put zeros into all of them instead.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import MechintError
from ..options import flag
from ..tasks.base import Prompts, Task, generator, mix
from ..tasks.recall import Recall
from ..train_config import Architecture, MambaArchitecture, TrainConfig
from ..units import Units, unit_kinds
from .causal import INPUTS, Alignment, Variable, said_by, said_by_each, sources, values_of
from .verify import check

LAYERS = 2


class ImposedCircuit(ABC):
    """Associative recall over two layers: the first says what stood before, the second what is said.

    Attributes:
        turns: Whose interchange is trained at each step, over and over: numbers of variables; all in turn where empty.
        idle: What is put into idle units at each step, over and over: ``zero`` into all, or another prompt's values
            into ``all`` or a random ``half``.
        removed: Every how many steps the last variable that is said is removed, in place of an interchange: with zeros
            there, all tokens that can be said are to be equally likely; 0 for never.
        narrow_at: After which share of the steps the circuit is narrowed to the units that it uses; 0 for never.
    """

    turns: ClassVar[tuple[int, ...]] = ()
    idle: ClassVar[tuple[str, ...]] = ("zero", "half")
    removed: ClassVar[int] = 0
    narrow_at: ClassVar[float] = 0.0

    def __init__(self, task: Recall, config: TrainConfig) -> None:
        self.task = task
        self.config = config

    @property
    def recipe(self) -> dict[str, Any]:
        """What is imposed and how, beside the options: checkpoints made otherwise are others."""
        return {name: getattr(self, name) for name in ("turns", "idle", "removed", "narrow_at")}

    @abstractmethod
    def align(self, model: Any) -> Alignment:
        """Which units are to carry what; the seed of the training says where they are."""

    def narrow(self, model: Any, alignment: Alignment) -> Alignment:
        """The alignment without units that the model makes no use of, if any may be left out."""
        return alignment

    def constrain(self, model: Any) -> None:
        """Sets weights that are not to be learned, before and behind every step; here none."""
        return

    def next(self, model: Any, alignment: Alignment, step: int) -> Alignment:
        """The alignment of a step, of that of the step before."""
        narrowed = self.narrow_at and step == round(self.narrow_at * self.config.steps)
        return self.narrow(model, alignment) if narrowed else alignment

    def check(self, model: Any, alignment: Alignment, name: str) -> None:
        """Holds a trained model against the causal model; see :func:`mechint.imposed.verify.check`."""
        check(model, alignment, self.task, self.config.seed, name)

    def loss(self, model: Any, alignment: Alignment, prompts: Prompts, step: int) -> Tensor:
        """What a step makes smaller, in nats."""
        behaviour, interchange, strict = self.losses(model, alignment, prompts, step)
        return behaviour + interchange + self.config.impose_strictness * strict

    def losses(self, model: Any, alignment: Alignment, prompts: Prompts, step: int) -> list[Tensor]:
        """Behaviour, interchange and strictness of one step, each a mean cross-entropy in nats.

        The third has, besides, ``impose_match`` times the mean squared change of the logits: an idle unit then has no
        vote that others overrule.
        """
        seed = mix(self.config.seed, "impose", step)
        source = sources(self.task, prompts, seed)
        there = values_of(model, source.tokens, alignment.sites(model))
        turns = self.turns or range(len(alignment.variables))
        variable, fill = alignment.variables[turns[step % len(turns)]], self.idle[step % len(self.idle)]
        said, defined = variable.expected(prompts, source)
        fills = dict.fromkeys(there, 0.0) if fill == "zero" else there
        idle = alignment.idle_edits(model, fills, generator("idle", seed) if fill == "half" else None)
        remove = bool(self.removed) and step % self.removed == 0
        if remove:
            [variable] = [each for each in alignment.variables if each.inputs == INPUTS]
        swap = variable.edits(model, dict.fromkeys(there, 0.0) if remove else there)
        whole, swapped, without = said_by_each(model, prompts, [[], swap, idle])
        second = unsaid(swapped, self.task) if remove else cross_entropy(swapped, said, defined)
        strict = cross_entropy(without, prompts.answers)
        if self.config.impose_match:
            strict = strict + self.config.impose_match * F.mse_loss(without, whole)
        return [cross_entropy(whole, prompts.answers), second, strict]


def cross_entropy(logits: Tensor, answers: Tensor, defined: Tensor | None = None) -> Tensor:
    """Mean over those of the answers [n, Q] that are defined."""
    each = F.cross_entropy(logits.float().flatten(0, 1), answers.flatten(), reduction="none")
    return each.mean() if defined is None else each[defined.flatten()].mean()


def unsaid(logits: Tensor, task: Recall) -> Tensor:
    """Mean cross-entropy, beyond its least, with values that are all equally likely."""
    likely = logits.float().log_softmax(-1)[..., task.keys : task.keys + task.values]
    return -likely.mean() - math.log(task.values)


class HeadCircuit(ImposedCircuit):
    """Of a GPT-2: one head of the first layer says what stood before, one of the second what follows it."""

    def align(self, model: Any) -> Alignment:
        c = model.config
        random = (generator("heads", self.config.seed, layer) for layer in range(LAYERS))
        first, second = (i * c.n_head + int(torch.randint(c.n_head, (), generator=g)) for i, g in enumerate(random))
        every = lambda head: tuple(range(head * c.d_head, (head + 1) * c.d_head))
        return Alignment(
            (
                Variable("what stood before", "head", (first,), ("before",)),
                Variable("what is said", "head", (second,), INPUTS),
                Variable("the keys of positions", "k", every(first), ()),
                Variable("the keys of what stood before", "k", every(second), ("before",)),
                Variable("the values", "v", every(second), ("values",)),
                Variable("what is asked for", "q", every(second), ("query",)),
            ),
            ("head", "mlp"),
        )


class ChannelCircuit(ImposedCircuit):
    """Of a Mamba: some channels of the first layer say what stood before, some of the second what follows it.

    The second layer's convolution reads the current token alone: else it says itself what stood before, and sooner.
    What the first variable says is learned slowest, so three of four interchanges are its own. Training makes use of
    some of the channels that it may use, so from the middle on it may use those alone.

    Attributes:
        offered: Channels of each layer that may carry something at first, where they are drawn.
        kept: And in the end.
    """

    turns = (1, 0, 0, 0)
    idle = ("all", "zero", "all")
    removed = 8
    narrow_at = 0.4
    offered: ClassVar[tuple[int, int]] = (16, 32)
    kept: ClassVar[tuple[int, int]] = (10, 16)

    @property
    def recipe(self) -> dict[str, Any]:
        return super().recipe | {"offered": self.offered, "kept": self.kept}

    @torch.no_grad()
    def constrain(self, model: Any) -> None:
        model.layers[1].conv1d.weight[..., :-1] = 0.0

    def align(self, model: Any) -> Alignment:
        units = Units(model, unit_kinds(model)["channel"])
        chosen = []
        for layer, count in enumerate(self.offered):
            random = generator("carriers", self.config.seed, layer)
            some = torch.randperm(units.per_layer, generator=random)[:count]
            chosen.append(tuple(sorted((layer * units.per_layer + some).tolist())))
        return Alignment(
            (
                Variable("what stood before", "channel", chosen[0], ("before",)),
                Variable("what is said", "channel", chosen[1], INPUTS),
            ),
            ("channel",),
        )

    @torch.no_grad()
    def narrow(self, model: Any, alignment: Alignment) -> Alignment:
        """Of each variable the channels whose mean ablation costs the answers most."""
        prompts = self.task.sample(512, "train", mix(self.config.seed, "narrow")).to(model.embeddings.device)
        mean = {site: value.mean(0) for site, value in values_of(model, prompts.tokens, alignment.sites(model)).items()}

        def cost(variable: Variable, unit: int) -> float:
            edits = dataclasses.replace(variable, units=(unit,)).edits(model, mean)
            return float(cross_entropy(said_by(model, prompts, edits), prompts.answers))

        return alignment.with_units(
            [
                sorted(sorted(variable.units, key=lambda unit: -cost(variable, unit))[:count])
                for variable, count in zip(alignment.variables, self.kept, strict=True)
            ]
        )


CIRCUITS: dict[str, type[ImposedCircuit]] = {"gpt2": HeadCircuit, "mamba": ChannelCircuit}


def imposed_circuit(task: Task, config: TrainConfig, architecture: Architecture) -> ImposedCircuit | None:
    """The circuit that a training is to impose; None where it is not to.

    Raises:
        MechintError: there is no causal model of the task, or the model is too small or too deep.
    """
    if not config.impose:
        return None
    name, family = flag("train", "impose"), architecture.family
    if not isinstance(task, Recall):
        raise MechintError(f"{name}: there is no causal model of {task.name}; set --task-name recall")
    if architecture.n_layer != LAYERS:
        raise MechintError(
            f"{name}: the circuit is one of {LAYERS} layers, not {architecture.n_layer}; set "
            f"{flag(family, 'n_layer')} to {LAYERS}"
        )
    if isinstance(architecture, MambaArchitecture):
        channels, least = architecture.expand * architecture.d_model, max(ChannelCircuit.offered)
        if channels < least:
            raise MechintError(
                f"{name}: {channels} channels of a layer are too few, {least} are the least; raise "
                f"{flag(family, 'd_model')}"
            )
    return CIRCUITS[family](task, config)
