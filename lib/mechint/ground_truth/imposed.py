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
from ..models.loading.load import load
from ..tasks.config import TaskConfig
from ..tasks.recall import Recall
from ..training import Alignment, ImposedCircuit, NotImposed, imposed_circuit
from ..training.files import Paths, read
from ..training.options import Architecture, GPT2Architecture, MambaArchitecture, TrainConfig
from ..training.trainer import train
from ..utils.rundir import fingerprint
from .blueprint import ALWAYS, TWINS, Compiled
from .truth import STEPS, GroundTruth, Part

FOLDER = Path("output/ground_truth/imposed")
ATTEMPTS = 3
"""Trainings, each from weights of its own, before a circuit is given up."""
APART = 1_000_000
"""Seeds of two attempts are so far apart."""


class Imposed(ABC):
    """A trained model with an imposed circuit, of associative recall over two layers.

    Attributes:
        options: Options of the training. A menu configuration with these options and the same seed trains the same
            bytes.
        architecture: Architecture of the model.
    """

    name: ClassVar[str]
    options: ClassVar[TrainConfig]
    architecture: ClassVar[Architecture]

    def __init__(self, config: TaskConfig | None = None) -> None:
        self.config = config or TaskConfig(name="recall", pairs=3, keys=6, values=6)
        self.task = Recall(self.config)

    @abstractmethod
    def declare(self, model: Model, alignment: Alignment) -> list[Part]:
        """The units of the circuit, and ablations that may or may not reach them.

        The previous token is the same on twins, and the reading of places on every prompt, but trained units also tell
        other things, and what is imposed is that the answers stay right where all of them are exchanged, not logits.
        """

    def compile(self, *, seed: int = 0, folder: Path | str = FOLDER) -> Compiled:
        """The trained model, from a checkpoint in ``folder`` or trained and left there, checked in both cases.

        Training that did not impose the circuit begins again from another seed, :data:`ATTEMPTS` times in all.

        Raises:
            NotImposed: training never imposed the circuit (what fails at last is named).
        """
        attempts = list(self.attempts(seed, Path(folder)))
        config = next((config for config in attempts if Paths.of(config).final.exists()), None)
        if config is None:
            config = self.trained(attempts)
        path = Paths.of(config).final
        model = load(path)
        model.source = f"{self.name}, seed {seed}"
        imposed = self.circuit(config)
        alignment = imposed.align(model).with_units([own["units"] for own in read(path)["circuit"]])
        imposed.check(model.requires_grad_(False), alignment, model.source)
        return Compiled(model, self.task, GroundTruth(tuple(self.declare(model, alignment)), -math.inf, math.inf))

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
    options = TrainConfig(steps=1000, lr=0.01, beta2=0.98, impose=True, impose_match=0.1, device="cpu")
    architecture = GPT2Architecture(n_embd=32)

    def declare(self, model: Model, alignment: Alignment) -> list[Part]:
        c, parts = model.config, []
        for layer, unsure in ((0, (ALWAYS, TWINS)), (1, (TWINS, ()))):
            (head,) = alignment.variables[layer].units
            parts.append(Part(alignment.variables[layer].meaning, "head", layer, (head % c.n_head,)))
            for block in range(2):
                for e in range(c.d_head):
                    unit = (block, head % c.n_head, e)
                    parts.append(Part(alignment.variables[layer].meaning, "kv", layer, unit, unsure=unsure[block]))
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
            Part(variable.meaning, "channel", unit // E, (unit % E,), unsure=(TWINS if k == 0 else ()) + STEPS)
            for k, variable in enumerate(alignment.variables)
            for unit in variable.units
        ]
