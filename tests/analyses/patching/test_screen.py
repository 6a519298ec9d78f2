"""Scores of the units that are measured, and how prompts are cut, by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mechint.analyses.patching.analyzer import Patcher
from mechint.analyses.unit_groups import Parts, screened
from mechint.utils.errors import MechintError


def test_a_unit_s_score_is_its_larger_mean_estimate_over_answered_prompts() -> None:
    """Four prompts in two batches, of which the second is not answered; unit 0 is necessary, unit 1 suffices."""
    estimates = {
        "noise": torch.tensor([[3.0, 99, -6, 0], [1.0, 99, 1, 1]]),
        "denoise": torch.tensor([[0.0, 99, 0, 1], [-2.0, 99, -2, -5]]),
    }
    right = torch.tensor([True, False, True, True])

    class Batch:
        def __init__(self, at: list[int]) -> None:
            self.at = at

        def __getitem__(self, rows: torch.Tensor) -> Batch:
            return Batch([self.at[k] for k in rows.tolist()])

    class Loader:
        task = SimpleNamespace(roles=lambda batch: (("a",), torch.tensor(batch.at)))

        def __iter__(self) -> Any:
            return iter([Batch([0, 1]), Batch([2, 3])])

    def pair(prompts: Any, direction: str, parts: Any, roles: torch.Tensor) -> Any:
        assert roles.tolist() == prompts.at
        return SimpleNamespace(direction=direction, at=prompts.at, right=right[prompts.at])

    def of(pair: Any, points: int) -> torch.Tensor:
        assert points == 5
        return estimates[pair.direction][:, pair.at]

    parts: Any = SimpleNamespace(total=2, estimates=of)
    pieces = lambda batch: [torch.tensor([0]), torch.tensor([1])]
    patcher: Any = SimpleNamespace(pieces=pieces, pair=pair, config=SimpleNamespace(values="twin"))
    # (3 - 6 + 0) / 3 and 1 / 3; (1 + 1 + 1) / 3 and (-2 - 2 - 5) / 3
    assert Patcher.scores(patcher, parts, Loader()).tolist() == pytest.approx([1.0, 3.0])  # type: ignore[arg-type]


def test_prompts_are_cut_into_as_few_pieces_as_memory_allows() -> None:
    """8 values of 10 units at 4 tokens are 320 numbers of 4 bytes each: a MiB holds 819 prompts."""
    sites = {"a": SimpleNamespace(units=(2, 3)), "b": SimpleNamespace(units=(4,))}
    parts = [SimpleNamespace(sites=("a", "b")), SimpleNamespace(sites=("b",))]
    patcher: Any = SimpleNamespace(
        model=SimpleNamespace(sites=sites), parts=parts, config=SimpleNamespace(memory_mib=1)
    )

    class Batch:
        tokens = torch.zeros(1, 4)

        def __init__(self, count: int) -> None:
            self.count = count

        def __len__(self) -> int:
            return self.count

    sizes = lambda count: [len(rows) for rows in Patcher.pieces(patcher, Batch(count))]  # type: ignore[arg-type]
    assert sizes(819) == [819] and sizes(820) == [410, 410]
    patcher.config.memory_mib = 0
    assert sizes(3) == [1, 1, 1]


def test_the_highest_scores_are_kept_and_equal_ones_by_number() -> None:
    parts = Parts("u", ("a", "b"), (2, 2), "channel", (0, 1, 2, 3))
    assert screened(parts, torch.tensor([0.1, 0.5, 0.5, 0.9]), 2) == (1, 3) and parts.total == 4
    assert screened(parts, torch.tensor([0.5, 0.5, 0.5, 0.1]), 9) == (0, 1, 2, 3)
    with pytest.raises(MechintError, match="3 scores for 4 units of u"):
        screened(parts, torch.zeros(3), 2)
