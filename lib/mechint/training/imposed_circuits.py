"""The circuit that training imposes on a model of each family: its units, its losses, and the weights it fixes.

The loss is the sum of three: of the answers; of what the causal model says when units that carry a variable come from
another prompt (interchange intervention training, Geiger et al. 2022); and of the answers when all other units, or a
random half of them, come from another prompt (strictness, Gupta et al. 2024). Since an idle unit could also hold what
is the same on every prompt, some steps put zeros into all of them instead.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..interventions.edits import Edit
from ..interventions.model import Model
from ..interventions.units import Units
from ..models.parts.mamba2 import Mamba2Mixer
from ..tasks.answers import Prompts
from ..tasks.base import Task, generator, mix
from ..tasks.looked_up import INPUTS, LookedUp
from ..utils.errors import MechintError
from ..utils.options import named
from .imposed_causal import Alignment, Variable, importances, said_by_each, values_of
from .imposed_verify import check
from .models import make_model, model_config
from .options import Architecture, TrainConfig

LAYERS = 2
SEVERAL = 1.5
"""Several runs with idle units replaced weigh together as much as this many single runs, so that interchanges count,
too."""


class ImposedCircuit(ABC):
    """A lookup over two layers: the first layer carries the token before, the second layer the answer.

    Attributes:
        layers: Kinds of unit that each layer has, see :func:`kinds_of`.
        turns: Whose interchange is trained at each step, over and over: numbers of variables; all in turn where empty.
        idle: Values that idle units take at each step, in turns: ``zero`` into all, another prompt's values into
            ``all`` or a random ``half``, or those of the ``twins``, and then into all units, too, whose variable the
            twins have in common.
        settled: From the first narrowing on the same besides, in a further run of each step.
        removed: Every how many steps the last variable that is said is removed, instead of an interchange: with zeros
            there, all tokens that can be said are to be equally likely; 0 for never.
        narrowings: After which shares of the steps units of a variable become idle, and which: those whose ablation
            changes the logits by less than this share of what the variable's most important one does.
    """

    layers: ClassVar[tuple[str, ...]]
    turns: ClassVar[tuple[int, ...]] = ()
    idle: ClassVar[tuple[str, ...]] = ("zero", "half")
    settled: ClassVar[tuple[str, ...]] = ()
    removed: ClassVar[int] = 0
    narrowings: ClassVar[tuple[tuple[float, float], ...]] = ()

    def __init__(self, task: LookedUp, config: TrainConfig) -> None:
        self.task = task
        self.config = config

    @property
    def recipe(self) -> dict[str, Any]:
        """The parts of the recipe that no option names: a checkpoint with other values is another checkpoint."""
        return {name: getattr(self, name) for name in ("turns", "idle", "settled", "removed", "narrowings")}

    @classmethod
    def lacking(cls, model: Model) -> tuple[str, str] | None:
        """Says what the model has too little of, and which size is to be raised; None where all fits."""
        return None

    def drawn(self, model: Model, kind: str, layer: int) -> int:
        """The head of a layer, of a kind of unit, that the seed of the training chooses."""
        row = next(row for row in Units(model, model.unit_kinds[kind]).by_row if row.layer == layer)
        return int(torch.randint(row.shape[0], (), generator=generator("heads", self.config.seed, layer)))

    @abstractmethod
    def align(self, model: Model) -> Alignment:
        """Assigns variables to units; the seed of the training says where they are."""

    def begin(self, model: Model) -> None:
        """Sets weights that training begins from; here none."""
        return

    def constrain(self, model: Model) -> None:
        """Sets weights that are not to be learned, before and after every step; here none."""
        return

    def next(self, model: Model, alignment: Alignment, step: int) -> Alignment:
        """The alignment of a step, of that of the step before."""
        for share, least in self.narrowings:
            if step == round(share * self.config.steps):
                return self.narrow(model, alignment, least)
        return alignment

    @torch.no_grad()
    def narrow(self, model: Model, alignment: Alignment, least: float) -> Alignment:
        """Without the units whose importance is below a share of their variable's largest."""
        prompts = self.task.sample(256, "train", mix(self.config.seed, "narrow")).to(model.embeddings.device)
        mean = {site: value.mean(0) for site, value in values_of(model, prompts.tokens, alignment.sites(model)).items()}
        units = []
        for variable in alignment.variables:
            if variable.kind not in alignment.kinds:
                units.append(list(variable.units))
                continue
            found = importances(model, prompts, variable, mean, self.task)
            units.append([unit for unit, one in zip(variable.units, found, strict=True) if one >= least * max(found)])
        return alignment.with_units(units)

    def fills_at(self, step: int) -> list[str]:
        """The fills of idle units in a step, one run for each."""
        narrowed = bool(self.narrowings) and step >= round(self.narrowings[0][0] * self.config.steps)
        cycles = [self.idle, self.settled] if narrowed and self.settled else [self.idle]
        return [cycle[step % len(cycle)] for cycle in cycles]

    def check(self, model: Model, alignment: Alignment, name: str) -> None:
        """Holds a trained model against the causal model; see :func:`mechint.training.imposed_verify.check`."""
        check(model, alignment, self.task, self.config.seed, name)

    def loss(self, model: Model, alignment: Alignment, prompts: Prompts, step: int) -> Tensor:
        """The loss of a step, in nats."""
        behaviour, interchange, strict = self.losses(model, alignment, prompts, step)
        return behaviour + interchange + self.config.impose_strictness * strict

    def losses(self, model: Model, alignment: Alignment, prompts: Prompts, step: int) -> list[Tensor]:
        """Behaviour, interchange and strictness of one step, each a mean cross-entropy in nats.

        The third has, besides, ``impose_match`` times the mean squared change of the logits: idle units then do not
        change logits in ways that other units correct. For several runs it is :data:`SEVERAL` times the mean.
        """
        seed = mix(self.config.seed, "impose", step)
        source = self.task.sources(prompts, seed)
        there = values_of(model, source.tokens, alignment.sites(model))
        turns = self.turns or range(len(alignment.variables))
        variable = alignment.variables[turns[step % len(turns)]]
        said, defined = variable.expected(prompts, source)
        idle = [self.idle_cell(model, alignment, prompts, there, fill, seed) for fill in self.fills_at(step)]
        remove = bool(self.removed) and step % self.removed == 0
        if remove:
            [variable] = [each for each in alignment.variables if each.inputs == INPUTS]
        swap = variable.edits(model, dict.fromkeys(there, 0.0) if remove else there)
        whole, swapped, *without = said_by_each(model, prompts, [[], swap, *idle])
        second = unsaid(swapped, self.task) if remove else cross_entropy(swapped, said, defined)
        weight = 1.0 if len(without) == 1 else SEVERAL / len(without)
        strict = [cross_entropy(logits, prompts.answers) for logits in without]
        if self.config.impose_match:
            strict += [self.config.impose_match * F.mse_loss(logits, whole) for logits in without]
        return [cross_entropy(whole, prompts.answers), second, weight * torch.stack(strict).sum()]

    def idle_cell(
        self, model: Model, alignment: Alignment, prompts: Prompts, there: dict[str, Tensor], fill: str, seed: int
    ) -> list[Edit]:
        """The edits of units that must make no difference; ``there`` are the source's values."""
        if fill == "zero":
            return alignment.idle_edits(model, dict.fromkeys(there, 0.0))
        if fill == "twins":
            assert prompts.twins is not None  # every task that is looked up has them
            theirs = values_of(model, prompts.twins, list(there))
            common = [variable for variable in alignment.variables if set(variable.inputs) <= set(self.task.alike)]
            edits = [edit for variable in common for edit in variable.edits(model, theirs)]
            return [*alignment.idle_edits(model, theirs), *edits]
        some = generator("idle", seed) if fill == "half" else None
        return alignment.idle_edits(model, there, some)


def cross_entropy(logits: Tensor, answers: Tensor, defined: Tensor | None = None) -> Tensor:
    """Mean over those of the answers [n, Q] that are defined."""
    each = F.cross_entropy(logits.float().flatten(0, 1), answers.flatten(), reduction="none")
    return each.mean() if defined is None else each[defined.flatten()].mean()


def unsaid(logits: Tensor, task: LookedUp) -> Tensor:
    """Mean cross-entropy, beyond its least, with answers that are all equally likely."""
    likely = logits.float().log_softmax(-1)[..., task.sayable.start : task.sayable.stop]
    return -likely.mean() - math.log(len(task.sayable))


class HeadCircuit(ImposedCircuit):
    """A GPT-2's circuit: one head of the first layer names the token before, one of the second the one after it."""

    layers = ("head mlp", "head mlp")

    def align(self, model: Model) -> Alignment:
        first, second = (self.drawn(model, "head", layer) for layer in range(LAYERS))
        return Alignment(
            (
                Variable("what stood before", "head", whole(model, "head", 0, first), ("before",)),
                Variable("what is said", "head", whole(model, "head", 1, second), INPUTS),
                Variable("the keys of positions", "k", whole(model, "k", 0, first), ()),
                *read_by(model, 1, second),
            ),
            ("head", "mlp"),
        )


class NarrowedCircuit(ImposedCircuit):
    """A circuit of channels, of which training makes use of some: it is narrowed to these.

    From the middle of the training on it may use fewer and fewer, until each of them counts. The second layer's
    convolution, if it has one, reads the current token alone: otherwise it would supply the token before by itself, and
    learn it earlier.
    """

    idle = ("all", "zero", "all")
    settled = ("half", "twins")
    removed = 8
    narrowings = ((0.4, 0.1), (0.5, 0.2), (0.6, 0.3), (0.7, 0.3))

    @torch.no_grad()
    def constrain(self, model: Model) -> None:
        for module in convolutions(model, 1):
            module.weight[..., :-1] = 0.0


class ChannelCircuit(NarrowedCircuit):
    """A Mamba's circuit: channels of the first layer name the token before, some of the second the one after it.

    The first variable is learned slowest, so three of four interchanges are on it.

    Attributes:
        offered: Channels of each layer that may carry something at first, where they are drawn.
    """

    layers = ("channel", "channel")
    turns = (1, 0, 0, 0)
    offered: ClassVar[tuple[int, int]] = (16, 32)

    @property
    def recipe(self) -> dict[str, Any]:
        return super().recipe | {"offered": self.offered}

    @classmethod
    def lacking(cls, model: Model) -> tuple[str, str] | None:
        there, least = Units(model, model.unit_kinds["channel"]).per_layer, max(cls.offered)
        return (f"{there} channels of a layer are too few, {least} are the least", "d_model") if there < least else None

    def align(self, model: Model) -> Alignment:
        units = Units(model, model.unit_kinds["channel"])
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


class MemoryCircuit(NarrowedCircuit):
    """A Mamba-2's circuit: the same, of the value channels of one head of each layer.

    The first layer's convolution reads the token before alone: with two tokens it would bind a key to the value behind
    it, and answer by itself before the second layer can. The second layer begins with a memory that holds what it is
    told: with the published steps and decays, how fast it learns to depends on which head the seed draws.

    Attributes:
        first_step: The second layer's Δ before training, but for what the token adds to it.
        first_decay: The size of its A before training; the state decays by exp(-AΔ) at each token.
    """

    layers = ("ssm_channel", "ssm_channel")
    turns = (1, 0, 0, 0)
    first_step: ClassVar[float] = 1.0
    first_decay: ClassVar[float] = 0.05

    @property
    def recipe(self) -> dict[str, Any]:
        return super().recipe | {"first_step": self.first_step, "first_decay": self.first_decay}

    @classmethod
    def lacking(cls, model: Model) -> tuple[str, str] | None:
        alone = any(module.kernel_size[0] < 2 for module in convolutions(model, 0))
        return ("a convolution of one tap sees no token before, two are the least", "d_conv") if alone else None

    @torch.no_grad()
    def begin(self, model: Model) -> None:
        for module in model.layers[1].modules():
            if isinstance(module, Mamba2Mixer):
                module.dt_bias.fill_(math.log(math.expm1(self.first_step)))
                module.A_log.fill_(math.log(self.first_decay))

    @torch.no_grad()
    def constrain(self, model: Model) -> None:
        super().constrain(model)
        for module in convolutions(model, 0):
            own = module.weight[..., -2].clone()
            module.weight.zero_()[..., -2] = own

    def align(self, model: Model) -> Alignment:
        first, second = (self.drawn(model, "ssm_head", layer) for layer in range(LAYERS))
        return Alignment(
            (
                Variable("what stood before", "ssm_channel", whole(model, "ssm_channel", 0, first), ("before",)),
                Variable("what is said", "ssm_channel", whole(model, "ssm_channel", 1, second), INPUTS),
            ),
            ("ssm_channel",),
        )


class HybridCircuit(NarrowedCircuit):
    """A hybrid's circuit: channels of a recurrence's head name the token before, an attention head the one after it."""

    layers = ("ssm_channel", "head")

    def align(self, model: Model) -> Alignment:
        first, second = self.drawn(model, "ssm_head", 0), self.drawn(model, "head", 1)
        return Alignment(
            (
                Variable("what stood before", "ssm_channel", whole(model, "ssm_channel", 0, first), ("before",)),
                Variable("what is said", "head", whole(model, "head", 1, second), INPUTS),
                *read_by(model, 1, second),
            ),
            ("ssm_channel", "head"),
        )


def convolutions(model: Model, layer: int) -> list[nn.Conv1d]:
    """Lists the convolutions of a layer; the last tap is the current token's."""
    return [module for module in model.layers[layer].modules() if isinstance(module, nn.Conv1d)]


def read_by(model: Model, layer: int, head: int) -> tuple[Variable, ...]:
    """Assigns variables to what an attention head that says something reads: its keys, values and queries."""
    return (
        Variable("the keys of what stood before", "k", whole(model, "k", layer, head), ("before",)),
        Variable("the values", "v", whole(model, "v", layer, head), ("values",)),
        Variable("what is asked for", "q", whole(model, "q", layer, head), ("query",)),
    )


def whole(model: Model, kind: str, layer: int, head: int) -> tuple[int, ...]:
    """Lists the numbers of all units of a kind that a head of a layer has."""
    units = Units(model, model.unit_kinds[kind])
    row = next(row for row in units.by_row if row.layer == layer)
    each = math.prod(row.shape[1:])
    return tuple(range(row.start + head * each, row.start + (head + 1) * each))


CIRCUITS: tuple[type[ImposedCircuit], ...] = (HeadCircuit, ChannelCircuit, MemoryCircuit, HybridCircuit)
KINDS = ("channel", "ssm_channel", "head", "conv_channel", "mlp", "expert")
"""Kinds of unit of all that a layer may have: mixers, neurons and experts."""
KNOWN = "a GPT-2, a Mamba, or of another family two layers of Mamba-2 or one and one of attention, with no other part"
"""The models that have a circuit to impose."""


def imposed_circuit(task: Task, config: TrainConfig, architecture: Architecture) -> ImposedCircuit | None:
    """The circuit that a training is to impose, by what the layers have; None where it is not to.

    Raises:
        MechintError: there is no causal model of the task, no circuit of such layers, or the model is too small.
    """
    if not config.impose:
        return None
    name, family = named("train", "impose"), architecture.family
    if not isinstance(task, LookedUp):
        raise MechintError(
            f"{name}: there is no causal model of {task.name}; set {named('task', 'name')} to recall or marked"
        )
    with torch.device("meta"):
        model = make_model(model_config(architecture, task))
    layers = tuple(" ".join(kinds_of(model, layer)) for layer in range(model.num_layers))
    if len(layers) != LAYERS:
        raise MechintError(
            f"{name}: the circuit is one of {LAYERS} layers, not {len(layers)}; set {named(family, 'n_layer')} to "
            f"{LAYERS}"
        )
    circuit = next((circuit for circuit in CIRCUITS if circuit.layers == layers), None)
    if circuit is None:
        raise MechintError(f"{name}: no circuit can be imposed on such a model; train {KNOWN}")
    if problem := circuit.lacking(model):
        raise MechintError(f"{name}: {problem[0]}; raise {named(family, problem[1])}")
    return circuit(task, config)


def kinds_of(model: Model, layer: int) -> list[str]:
    """Lists the kinds of unit, of :data:`KINDS`, that a layer has."""
    known = model.unit_kinds
    return [kind for kind in KINDS if kind in known and known[kind].blocks_of(model.sites, layer)]
