"""The base of compiled models of every family: checked sizes, and the steps from a drawing to a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor

from ..interventions.model import Model
from ..tasks.base import Task
from ..utils.errors import MechintError
from .questions import Questions, Share
from .truth import GroundTruth, Part, answers
from .verification import verify

GAIN = 12.0
"""Logit that one answer is written with; the token that stands there has 1 and all others have 0."""
TWINS = ("counterfactual",)
ALWAYS = ("mean", "resample", "counterfactual")
"""Ablations that are blind to what is the same on both twins, and to what is the same on every prompt."""


@dataclass(frozen=True)
class Compiled:
    """A model, what it does, and what is true of it.

    Attributes:
        model: A model of any family.
        task: The task that it does.
        truth: The circuit that does it.
    """

    model: Model
    task: Task
    truth: GroundTruth

    @property
    def unit(self) -> str:
        """The kind of unit that methods are asked to score."""
        return self.model.scored_unit


class Sizes:
    """A dataclass of sizes, all of them in total; what a circuit does not need is idle."""

    def check(self, least: Any, title: str) -> None:
        """Raises :class:`MechintError`, which names every size that is below the least, and that."""
        mine, wanted = asdict(self), asdict(least)  # type: ignore[call-overload]
        small = [f"{name} {wanted[name]} (it has {mine[name]})" for name in mine if mine[name] < wanted[name]]
        if small:
            raise MechintError(f"{title}: the model is too small; it needs at least {', '.join(small)}")


class Drawn(Protocol):
    """A model with a circuit drawn on it, see :class:`mechint.ground_truth.mamba.canvas.Canvas`."""

    model: Model
    layers: list[int]
    """Those of the circuit."""

    def fill(self, tokens: Tensor, noise: float) -> None:
        """Gives everything idle its weights."""


class Blueprint(ABC):
    """A circuit that can be drawn.

    Attributes:
        active: The layers it has.
        margin: The logit of every answer is above all others by at least this.
        tolerance: Removing all that is idle changes no logit of an answer by more than this.
        codes: Residual directions that it writes between, groups and their sizes.
        without_layer: Share of answers that are right without one of its layers, at most.
        idle: Kinds of unit that it has none of, where the model has some.
    """

    name: ClassVar[str]
    active: ClassVar[int] = 1
    margin: float = GAIN - 1.1
    tolerance: float = 1e-3
    without_layer: float = 0.0
    idle: ClassVar[tuple[str, ...]] = ()
    task: Task

    def __init__(self) -> None:
        self.codes: dict[str, int] = {}

    @abstractmethod
    def least(self) -> Any:
        """The smallest model that holds the circuit."""

    def least_beside(self, size: Any) -> Any:
        """The same where sizes depend on each other, given some of those that are wanted."""
        return self.least()

    @abstractmethod
    def canvas(self, size: Any, seed: int) -> Any:
        """A model of that size without weights."""

    @abstractmethod
    def draw(self, canvas: Any) -> list[Part]:
        """Draws the circuit and declares it."""

    def questions(self, parts: list[Part]) -> Questions | None:
        """The units that are needed alone, together and to suffice, of what was drawn; None where these are one."""
        return None

    def shares(self, parts: list[Part]) -> tuple[Share, ...]:
        """The parts of the answers' logits that units of what was drawn give them; empty where none is declared."""
        return ()

    def compile(self, size: Any = None, *, noise: float = 0.0, seed: int = 0) -> Compiled:
        """The model, its task and its truth.

        Args:
            size: Sizes of the model; units that the circuit does not need are idle. None takes
                ``least().comfortable()``.
            noise: Weights are drawn exactly; this much Gaussian noise comes on top of the projections, as the standard
                deviation of what it does to a projection of inputs of size 1. With it idle units are only nearly idle:
                removing them may take half the margin.
            seed: Seed of places, idle weights and noise.

        Raises:
            MechintError: the size is too small for the circuit (the least one is said), or the noise takes more than
                half of the margin, or so much that the declared truth no longer stands up to ablations.
        """
        size = size or self.least().comfortable()
        size.check(self.least_beside(size), f"compiled {self.name} ({self.task.description})")
        canvas: Drawn = self.canvas(size, seed)
        parts = self.draw(canvas)
        canvas.fill(self.task.sample(32, "train", seed).tokens, noise)
        model = canvas.model
        model.source = f"compiled {self.name}"
        said = {part.layer for part in parts if part.kind == "layer"}
        rest = [layer for layer in canvas.layers if layer not in said]
        parts += [Part("the layer", "layer", layer, accuracy=self.without_layer) for layer in rest]
        beside = (self.questions(parts), self.shares(parts))
        if not noise:
            return Compiled(
                model, self.task, GroundTruth(tuple(parts), self.margin, self.tolerance, self.idle, *beside)
            )
        left = answers(model, self.task, 256).margin
        if left < self.margin / 2:
            raise MechintError(
                f"compiled {self.name}: noise of {noise:g} leaves a margin of {left:.3g} of {self.margin:.3g}, less "
                "than half; add less"
            )
        truth = GroundTruth(tuple(parts), self.margin / 2, self.margin / 2, self.idle, *beside)
        try:
            verify(model, truth, self.task)
        except MechintError as error:
            raise MechintError(f"with noise of {noise:g} {error}; add less noise") from None
        return Compiled(model, self.task, truth)


def by_chance(symbols: int) -> float:
    """The most often that two of so many symbols are the same in the few prompts that a removal is tried on."""
    return 1 / symbols + 0.25
