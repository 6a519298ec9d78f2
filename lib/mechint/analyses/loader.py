"""Loaders: the prompts of one split of a task, in batches of one length and nearly equal size."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from ..tasks import Prompts, Task
from ..utils.errors import MechintError
from ..utils.statistics import FEWEST, Array


class PromptLoader:
    """Batches of prompts of one length, drawn once; iterating again gives the same batches.

    Args:
        task: Source of the prompts.
        split: ``discovery`` or ``evaluation``; the two share no template.
        count: Prompts in all.
        batch_size: The most in one batch. Sizes differ by one at the most, so no batch is a leftover of one prompt.
        seed: Seed of the draw.
        device: Device of the batches.
    """

    def __init__(
        self, task: Task, split: str, count: int, batch_size: int, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        self.task, self.split = task, split
        self.groups = task.groups(count, split, seed)
        self.batches = []
        for group in self.groups:
            parts = torch.arange(len(group)).tensor_split(-(-len(group) // batch_size))
            self.batches += [group[part].to(device) for part in parts]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Prompts]:
        return iter(self.batches)

    def bytes(self) -> Array | None:
        """Bytes of text after an answer, on average of each prompt, [prompts]; None where answers are not text."""
        sizes = [self.task.bytes_of(group.answers) for group in self.groups]
        if any(size is None for size in sizes):
            return None
        return torch.cat([size.double().mean(-1) for size in sizes if size is not None]).numpy()

    def templates(self) -> NDArray[np.int64]:
        """Cluster of each prompt, for bootstraps, [prompts], in the order of the batches."""
        return torch.cat([group.template for group in self.groups]).numpy()

    def check_intervals(self) -> None:
        """Refuses, for an analysis whose every number has an interval, prompts that give none.

        Raises:
            MechintError: the prompts are of fewer than :data:`~mechint.utils.statistics.FEWEST` templates.
        """
        if (clusters := len(set(self.templates().tolist()))) < FEWEST:
            have = "one template (or subject)" if clusters == 1 else f"{clusters} templates (or subjects)"
            raise MechintError(
                f"the prompts of the task {self.task.name!r} to evaluate on have {have}: no number would have an "
                f"interval; give prompts of several, at least {FEWEST}"
            )
