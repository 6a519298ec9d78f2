"""The entries of a profile in results.json: these classes write them and read them.

The analyzer fills a :class:`Profile`, whose :meth:`Profile.entries` stand in the file; pages and comparisons read a
finished run by :func:`profile_of`. The file's ``schema`` is the version of these classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...report.finished import FinishedRun, valid
from ...report.results import of_entries
from ...utils.statistics import Number


@dataclass(frozen=True)
class Training:
    """Facts that a checkpoint has about its training; None where it has none.

    Attributes:
        steps: Steps that were made.
        budget: A hash of task, data and options but for seed and learning rate.
        lr: The learning rate.
        held_out_loss: The lowest loss on held-out prompts, in nats.
    """

    seed: int | None = None
    steps: int | None = None
    budget: str | None = None
    lr: float | None = None
    held_out_loss: float | None = None


UNKNOWN = Training()
"""A checkpoint without such metadata; the file has an empty object for it."""


@dataclass(frozen=True)
class Cell:
    """Sparsity at one site of one layer, each measure by its name.

    Attributes:
        role: The site's part in its layer, which sites of other families share.
        units: Number of its units.
        percentiles: ``p50``, the median over units of the variance over tokens, as a share of its mean; empty where no
            unit varies.
    """

    layer: int
    site: str
    role: str
    units: int
    measures: dict[str, Number]
    percentiles: dict[str, Number] = field(default_factory=dict)


@dataclass(frozen=True)
class Memory:
    """Bytes that a prompt of a length leaves in memory; None where the model cannot have such a prompt."""

    length: int
    bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The measurements of one model.

    Attributes:
        metrics: Loss, accuracy, and counted costs, by name.
        bytes_per_token: Bytes of text of a token, on average.
        tokenizer, prompts: Hashes that equal ones share.
        label: The group of models of its family and size.
        curves: By name a number for each layer; None where a layer has none.
        cka: Similarity of the streams after every two layers, [layer, layer].
        control: The same quantities on shuffled weights; None where they were not measured.
    """

    metric: str
    ablation: str
    metrics: dict[str, Number]
    bytes_per_token: float
    tokenizer: str
    prompts: str
    label: str
    training: Training
    curves: dict[str, list[Number | None]]
    cka: list[list[Number]]
    sparsity: list[Cell]
    memory: list[Memory]
    notes: list[str]
    control: Mapping[str, Any] | None = None

    @property
    def layers(self) -> int:
        return len(self.curves["update"])

    def of_role(self, role: str) -> list[Cell]:
        return [cell for cell in self.sparsity if cell.role == role]

    def entries(self) -> dict[str, Any]:
        """The fields of results.json, without its header."""
        said = {} if self.training == UNKNOWN else dataclasses.asdict(self.training)
        return {"report": "compare", **dataclasses.asdict(self), "training": said}

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> Profile:
        """The profile that results.json holds.

        Raises:
            KeyError, TypeError: an entry is missing, or is of another kind.
        """
        parts = {
            "training": of_entries(Training, raw["training"]),
            "sparsity": [of_entries(Cell, cell) for cell in raw["sparsity"]],
            "memory": [of_entries(Memory, entry) for entry in raw["memory"]],
        }
        return of_entries(cls, {**raw, **parts})


def profile_of(run: FinishedRun) -> Profile:
    """The profile of a finished run.

    Raises:
        MechintError: an entry of its results.json is missing, or is of another kind.
    """
    with valid(run.directory / "results.json"):
        return Profile.read(run.raw)
