"""Edits of prompts that have several right answers: the old answer is the one that the model says."""

from __future__ import annotations

import pytest
import torch

import mechint
from mechint.analyses.editing.judge import said_of
from mechint.analyses.editing.requests import pool_of, requests_of
from mechint.tasks import TaskConfig, make_task
from tests.helpers.answers import half_right
from tests.helpers.builders import tiny_mamba
from tests.helpers.tracing import loaders


def test_before_any_edit_every_answered_prompt_keeps_its_own_answer() -> None:
    """Half of the prompts are answered by an id that is not the first of the accepted ones; a loop finds it."""
    task = make_task(TaskConfig(name="greater_than"))
    model = tiny_mamba(3, vocab_size=task.vocab_size).requires_grad_(False).eval()
    prompts = half_right(model, task.sample(24, "evaluation", 0))
    pool = pool_of(model, [prompts], task)
    logits = mechint.run(model, prompts.tokens).logits
    for row, one in enumerate(pool):
        said = int(logits[row, int(prompts.positions[row, 0])].argmax())
        accepted = [token for token in prompts.good()[row, 0].tolist() if token >= 0]
        assert one.answered == (said in accepted) and sorted(one.accepted) == sorted(accepted)
        assert one.answer == (said if said in accepted else int(prompts.answers[row, 0]))
    assert any(one.answered and one.answer != int(prompts.answers[row, 0]) for row, one in enumerate(pool))
    requests = requests_of(pool, pool, 5, 5, 0)
    known = {one.tokens: one for one in pool}
    for request, before in zip(requests, said_of(model, requests), strict=True):
        assert request.new not in known[request.tokens].accepted
        assert before.right.tolist() == [1.0] * len(before.right) and len(before.right) > 2


@pytest.mark.parametrize("several", [False, True])
def test_prompts_of_one_answer_are_asked_as_before(several: bool) -> None:
    """One accepted id is the answer itself, listed or not."""
    model = tiny_mamba(3).requires_grad_(False).eval()
    loader = loaders(model, batch=12)[1]
    batches = [
        batch.last()
        if not several
        else mechint.tasks.Prompts(**{**vars(batch.last()), "accepted": batch.last().good()})
        for batch in loader
    ]
    pool = pool_of(model, batches, loader.task)
    assert [one.answer for one in pool] == torch.cat([batch.answers[:, -1] for batch in batches]).tolist()
