"""Small measures that several analyses share, by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mechint.analyses import interchange
from mechint.analyses.loader import PromptLoader
from mechint.analyses.metrics import by_chance, faithfulness, shares, side_by_side
from mechint.utils.memory import peak_bytes


def test_the_slope_of_a_pooled_answer_is_shared_by_its_ids() -> None:
    """Of logits log 1, log 3 and log 4 the ids 1 and 2 have 3/7 and 4/7; -1 is no id, and 0 is one."""
    logits = torch.log(torch.tensor([[1.0, 3.0, 4.0], [1.0, 3.0, 4.0]]))
    found = shares(logits, torch.tensor([[1, 2, -1], [0, 1, -1]]))
    assert found.flatten().tolist() == pytest.approx([3 / 7, 4 / 7, 0, 1 / 4, 3 / 4, 0])
    assert shares(logits, torch.tensor([[2], [0]])).tolist() == [[1.0], [1.0]]


def test_chance_is_the_share_of_the_other_prompts_that_accept_what_is_said() -> None:
    right, chance = by_chance(torch.tensor([1, 2, 2, 5]), torch.tensor([[1, 2], [2, -1], [3, 3], [2, -1]]))
    assert right.tolist() == [1, 1, 0, 0] and chance.tolist() == pytest.approx([0, 2 / 3, 1, 0])
    assert by_chance(torch.tensor([1]), torch.tensor([[1]]))[1].tolist() == [0.0]
    assert side_by_side([torch.tensor([[1, 2]]), torch.tensor([[3]])]).tolist() == [[1, 2], [3, -1]]
    assert faithfulness(2.0, 3.0, 1.0) == 0.5 and faithfulness(4.0, 3.0, 1.0) == 1.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_deviation_of_embeddings_holds_some_rows_in_float64(dtype: torch.dtype, monkeypatch: Any) -> None:
    rows = (3 + torch.randn(300, 7, generator=torch.Generator().manual_seed(0))).to(dtype)
    model: Any = SimpleNamespace(embeddings=rows)
    whole = peak_bytes(lambda: rows.double().std())
    for at_once in (1 << 22, 70, 1):
        monkeypatch.setattr(interchange, "AT_ONCE", at_once)
        assert interchange.deviation(model) == pytest.approx(float(rows.double().std()), rel=1e-13)
    monkeypatch.setattr(interchange, "AT_ONCE", 70)
    assert peak_bytes(lambda: interchange.deviation(model)) <= 0.2 * whole


def test_bytes_behind_an_answer_are_means_of_each_prompt() -> None:
    task: Any = SimpleNamespace(bytes_of=lambda answers: answers * 2)
    group = lambda *rows: SimpleNamespace(answers=torch.tensor(rows))
    loader: Any = SimpleNamespace(task=task, groups=[group([1, 2], [3, 3]), group([5, 1])])
    assert PromptLoader.bytes(loader).tolist() == [3.0, 6.0, 6.0]  # type: ignore[union-attr]
    task.bytes_of = lambda answers: None if answers.shape[0] == 1 else answers
    assert PromptLoader.bytes(loader) is None


def test_a_loader_cuts_groups_into_even_batches() -> None:
    class Group:
        def __init__(self, rows: list[int]) -> None:
            self.rows = rows

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, part: torch.Tensor) -> Group:
            return Group([self.rows[k] for k in part.tolist()])

        def to(self, device: Any) -> Group:
            return self

    task: Any = SimpleNamespace(groups=lambda count, split, seed: [Group(list(range(count))), Group([7])])
    loader = PromptLoader(task, "discovery", 10, 4, 0)
    assert [batch.rows for batch in loader] == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9], [7]] and len(loader) == 4  # type: ignore[attr-defined]
