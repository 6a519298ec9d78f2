"""Models that were trained to have a known circuit, as the trainer does where ``--train-impose`` is set."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import torch

from ..interventions.model import Model
from ..interventions.units import Units
from ..models.loading.load import load
from ..tasks import TaskConfig, make_task
from ..tasks.looked_up import LookedUp
from ..training import Alignment, ImposedCircuit, NotImposed, Variable, imposed_circuit
from ..training.files import Paths
from ..training.imposed_verify import CHANCE
from ..training.options import Architecture, GPT2Architecture, MambaArchitecture, OtherArchitecture, TrainConfig
from ..training.trainer import train
from ..utils.rundir import fingerprint
from .blueprint import ALWAYS, TWINS, Compiled
from .truth import STEPS, GroundTruth, Part

FOLDER = Path("output/ground_truth/imposed")
RECALL = TaskConfig(name="recall", pairs=3, keys=6, values=6)
MARKED = TaskConfig(name="marked", values=6, length=10)
ALONE = 1.0
"""Share of answers that may stay right without one channel: others may tell the same."""
ATTEMPTS = 3
"""Trainings, each from weights of its own, before a circuit is given up."""
APART = 1_000_000
"""Seeds of two attempts are so far apart."""


class Imposed(ABC):
    """A trained model with an imposed circuit, of a lookup over two layers.

    Attributes:
        asked: The task and its sizes.
        options: Options of the training. A menu configuration with these options and the same seed trains the same
            bytes.
        architecture: Architecture of the model.
    """

    name: ClassVar[str]
    options: ClassVar[TrainConfig]
    architecture: ClassVar[Architecture]
    asked: ClassVar[TaskConfig] = RECALL

    def __init__(self, config: TaskConfig | None = None) -> None:
        self.config = config or self.asked
        task = make_task(self.config)
        assert isinstance(task, LookedUp)
        self.task = task

    @classmethod
    def family(cls) -> str:
        """The name of the model's family."""
        found = cls.architecture
        return found.model_type if isinstance(found, OtherArchitecture) else found.family

    @abstractmethod
    def declare(self, model: Model, alignment: Alignment) -> list[Part]:
        """The units of the circuit, and ablations that may or may not reach them."""

    def unsure(self, *inputs: str) -> tuple[str, ...]:
        """The ablations that may or may not reach units which depend on these inputs of the causal model alone.

        A unit that depends on none is the same on every prompt, and some are the same on twins. But trained units also
        tell other things: training imposes that answers stay right where all of them are exchanged, not logits.
        """
        if not inputs:
            return ALWAYS
        return TWINS if set(inputs) <= set(self.task.alike) else ()

    def compile(self, *, seed: int = 0, folder: Path | str = FOLDER) -> Compiled:
        """The trained model, from a checkpoint in ``folder`` or trained and left there, checked in both cases.

        Training that did not impose the circuit begins again from another seed, :data:`ATTEMPTS` times in all.

        Raises:
            NotImposed: training never imposed the circuit (what fails at last is named).
        """
        attempts = list(self.attempts(seed, Path(folder)))
        config = next((config for config in attempts if self.paths(config).finished), None)
        if config is None:
            config = self.trained(attempts)
        path = self.paths(config).final
        model = load(path)
        model.source = f"{self.name}, seed {seed}"
        imposed = self.circuit(config)
        alignment = imposed.align(model).with_units([own["units"] for own in model.metadata["circuit"]])
        imposed.check(model.requires_grad_(False), alignment, model.source)
        return Compiled(model, self.task, GroundTruth(tuple(self.declare(model, alignment)), -math.inf, math.inf))

    def paths(self, config: TrainConfig) -> Paths:
        return Paths.of(config, self.architecture.suffix)

    def circuit(self, config: TrainConfig) -> ImposedCircuit:
        found = imposed_circuit(self.task, config, self.architecture)
        assert found is not None  # all options here impose one
        return found

    def attempts(self, seed: int, folder: Path) -> Iterator[TrainConfig]:
        """The trainings for a seed, the later ones for where those before fail; each has a directory of its own."""
        options = [dataclasses.asdict(part) for part in (self.config, self.options, self.architecture)]
        recipe = [*options, self.circuit(self.options).recipe]
        for attempt in range(ATTEMPTS):
            own = seed + attempt * APART
            directory = folder / f"{self.name}_{fingerprint(recipe)[:8]}_seed{own}"
            yield dataclasses.replace(self.options, seed=own, output_dir=str(directory))

    def trained(self, attempts: list[TrainConfig]) -> TrainConfig:
        """The first of the trainings that imposes the circuit; by one thread, so that a seed is one model anywhere."""
        first, *others = attempts
        try:
            with one_thread():
                train(self.config, first, self.architecture)
        except NotImposed as error:
            if not others:
                raise
            print(f"note: {error}; begun again from seed {others[0].seed}", file=sys.stderr, flush=True)
            return self.trained(others)
        return first


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class GPT2Recall(Imposed):
    """A GPT-2: one head of the first layer says what stood before, one of the second what follows it."""

    name = "siit_gpt2_recall"
    architecture = GPT2Architecture(n_embd=32)
    options = TrainConfig(steps=1000, lr=0.01, beta2=0.98, impose=True, impose_match=0.1, device="cpu")

    def declare(self, model: Model, alignment: Alignment) -> list[Part]:
        c = model.config
        keys, values = (self.unsure(), self.unsure("before")), (self.unsure("before"), self.unsure("values"))
        parts = []
        for layer in range(2):
            (head,) = alignment.variables[layer].units
            meaning = alignment.variables[layer].meaning
            parts += whole_head(meaning, layer, head % c.n_head, c.d_head, (keys[layer], values[layer]))
        return parts


class MambaRecall(Imposed):
    """A Mamba: channels of the first layer say what stood before, channels of the second what follows it."""

    name = "siit_mamba_recall"
    options = TrainConfig(
        steps=4000, lr=0.01, beta2=0.98, impose=True, impose_strictness=2.0, impose_match=0.1, device="cpu"
    )
    architecture = MambaArchitecture(d_model=32, dt_rank=4)

    def declare(self, model: Model, alignment: Alignment) -> list[Part]:
        E = model.config.d_inner
        return [  # training decides whose steps carry something
            Part(
                variable.meaning,
                "channel",
                unit // E,
                (unit % E,),
                accuracy=ALONE,
                unsure=self.unsure(*variable.inputs) + STEPS,
            )
            for variable in alignment.variables
            for unit in variable.units
        ]


class Mamba2Recall(Imposed):
    """A Mamba-2: value channels of a head of the first layer say what stood before, of the second what follows it."""

    name = "siit_mamba2_recall"
    options = dataclasses.replace(MambaRecall.options, steps=600)
    architecture = OtherArchitecture(model_type="mamba2", d_model=32, d_state=32)

    def declare(self, model: Model, alignment: Alignment) -> list[Part]:
        pairs = enumerate(alignment.variables)
        return [part for layer, own in pairs for part in memory_head(model, own, layer, self.unsure(*own.inputs))]


class HybridRecall(Imposed):
    """A hybrid: value channels of a Mamba-2's head say what stood before, an attention head what follows it."""

    name = "siit_hybrid_recall"
    options = dataclasses.replace(MambaRecall.options, steps=600)
    architecture = OtherArchitecture(model_type="nemotron_h", layers="mamba2 attention", d_model=32)

    def declare(self, model: Model, alignment: Alignment) -> list[Part]:
        before, said, *_ = alignment.variables
        (head,) = said.units  # only the second layer has such
        unsure = (self.unsure("before"), self.unsure("values"))
        reads = whole_head(said.meaning, 1, head, model.config.d_head, unsure)
        return [*memory_head(model, before, 0, unsure[0]), *reads]


class GPT2Marked(GPT2Recall):
    """The same GPT-2, which looks up what followed a marker."""

    name = "siit_gpt2_marked"
    options = dataclasses.replace(GPT2Recall.options, steps=500)
    asked = MARKED


class HybridMarked(HybridRecall):
    """The same hybrid, which looks up what followed a marker."""

    name = "siit_hybrid_marked"
    asked = MARKED


def whole_head(
    meaning: str, layer: int, head: int, size: int, unsure: tuple[tuple[str, ...], tuple[str, ...]]
) -> list[Part]:
    """An attention head and all its key and value channels; ``unsure`` of the keys and of the values."""
    channels = [
        Part(meaning, "kv", layer, (block, head, e), accuracy=ALONE, unsure=unsure[block])
        for block in range(2)
        for e in range(size)
    ]
    return [Part(meaning, "head", layer, (head,), accuracy=CHANCE), *channels]


def memory_head(model: Model, variable: Variable, layer: int, unsure: tuple[str, ...]) -> list[Part]:
    """The head of a layer's recurrence whose value channels carry a variable, and these channels."""
    units = Units(model, model.unit_kinds["ssm_channel"])
    row = next(row for row in units.by_row if row.layer == layer)
    found = [divmod(unit - row.start, row.shape[1]) for unit in variable.units]
    heads = sorted({head for head, _ in found})
    return [
        *(Part(variable.meaning, "ssm_head", layer, (head,), accuracy=CHANCE, unsure=unsure) for head in heads),
        *(Part(variable.meaning, "ssm_channel", layer, unit, accuracy=ALONE, unsure=unsure) for unit in found),
    ]
