"""Toy tasks: answers by an independent solver, twins that differ, labels from the prompt."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechint.tasks import SPLITS, Task, TaskConfig, make_task
from mechint.utils.errors import MechintError
from tests.helpers.examples import examples


def solve(task: Task, tokens: list[int], config: TaskConfig) -> int:
    if task.name == "counters":
        return 3 + tokens[:-1].count(0) % config.values
    if task.name == "long_copy":
        return tokens[0]
    if task.name == "marked":
        first, last = (at for at, token in enumerate(tokens) if token == config.values)  # two markers, one at the end
        assert last == len(tokens) - 1
        return tokens[first + 1]
    stack: list[int] = []
    for token in tokens:
        if token < config.keys:
            stack.append(token)
            assert len(stack) <= config.pairs
        else:
            assert stack.pop() == token - config.keys
    return config.keys + stack[-1]


CONFIGS: Any = st.builds(
    TaskConfig,
    name=st.sampled_from(["counters", "brackets", "long_copy", "marked"]),
    pairs=st.integers(1, 4),
    keys=st.integers(2, 5),
    values=st.integers(2, 9),
    length=st.integers(13, 30),
)


@settings(max_examples=examples(30), deadline=None)
@given(CONFIGS, st.sampled_from(SPLITS), st.integers(0, 99))
def test_answers_are_right_and_twins_differ(config: TaskConfig, split: str, seed: int) -> None:
    task = make_task(config)
    prompts = task.sample(40, split, seed)
    assert prompts.twins is not None and prompts.wrong is not None
    assert prompts.tokens.shape == prompts.twins.shape == (40, task.length)
    for tokens, answers in ((prompts.tokens, prompts.answers), (prompts.twins, prompts.wrong)):
        assert [solve(task, row, config) for row in tokens.tolist()] == answers[:, 0].tolist()
    assert bool((prompts.answers != prompts.wrong).all())
    assert int(prompts.tokens.max()) < task.vocab_size and int(prompts.answers.max()) < task.vocab_size
    assert torch.equal(prompts.tokens, task.sample(40, split, seed).tokens)
    assert len({task.decode(token) for token in range(task.vocab_size)}) == task.vocab_size
    assert all(len(label) == 40 for label in task.labels(prompts).values())


def test_labels_are_of_the_prompt() -> None:
    task = make_task(TaskConfig(name="brackets", keys=3, pairs=3, length=15))
    prompts = task.sample(60, "discovery", 0)
    opens = (prompts.tokens < 3).sum(1) - (prompts.tokens >= 3).sum(1)
    assert torch.equal(task.labels(prompts)["depth"], opens)
    task = make_task(TaskConfig(name="counters", values=4, length=12))
    prompts = task.sample(60, "discovery", 0)
    labels = task.labels(prompts)
    assert torch.equal(labels["parity"], (prompts.tokens == 0).sum(1) % 2) and set(labels["half"].tolist()) == {0, 1, 2}
    recall = make_task(TaskConfig())
    prompts = recall.sample(60, "discovery", 0)
    place = recall.labels(prompts)["place"]
    assert torch.equal(prompts.tokens.gather(1, 2 * place[:, None])[:, 0], prompts.tokens[:, -1])
    assert torch.equal(prompts.tokens.gather(1, 2 * place[:, None] + 1)[:, 0], prompts.answers[:, -1])


def test_roles_and_places_of_marked_symbols() -> None:
    task = make_task(TaskConfig(name="marked", values=5, length=9))
    prompts = task.sample(60, "discovery", 0)
    names, roles = task.roles(prompts)
    place = task.labels(prompts)["place"]
    assert set(place.tolist()) == set(range(7))
    for tokens, row, at, answer in zip(prompts.tokens, roles, place, prompts.answers[:, 0], strict=True):
        said = [names[role] for role in row]
        behind = ["symbols after"] * (6 - int(at))
        assert said == ["symbols before"] * int(at) + ["marker", "symbol after it", *behind, "query"]
        assert tokens[at] == tokens[-1] == 5 and tokens[at + 1] == answer


def test_too_few_prompts_are_refused() -> None:
    with pytest.raises(MechintError, match="2 symbols in 2 places are too few prompts; raise the values or the length"):
        make_task(TaskConfig(name="marked", length=4, values=2))
    for name in ("counters", "brackets"):
        with pytest.raises(MechintError, match="too few prompts"):
            make_task(TaskConfig(name=name, length=5, keys=2))
