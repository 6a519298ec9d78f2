"""A trained checkpoint is asked what it says it was trained on; what contradicts it is an error that names both."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import mechint
from mechint.analyses.loader import PromptLoader
from mechint.models.loading.tokenizer import size_of
from mechint.tasks import TaskConfig, task_of
from mechint.tasks.stored import as_stored, check_loss
from mechint.training.options import GPT2Architecture, TrainConfig
from mechint.training.variants import train_steps
from mechint.utils.errors import MechintError, NotAnswered
from tests.helpers.tokenizers import CORPUS, llama_like

RECALL = {"task": {"name": "recall", "pairs": 6, "keys": 12, "values": 9, "facts": 200, "text": "topics"}}
TEXT = {"task": {"name": "text", "text": "own.txt", "tokenizer": "tok.json", "length": 64, "bos": False, "keys": 8}}


@pytest.mark.parametrize(
    ("metadata", "options", "changes"),
    [
        ({}, {}, {}),
        (RECALL, {}, {"pairs": 6, "keys": 12, "values": 9}),
        (RECALL, {"pairs": 3}, {"keys": 12, "values": 9}),  # fewer pairs are of the same tokens
        (RECALL, {"keys": 12}, {"pairs": 6, "values": 9}),
        (RECALL, {"facts": 999}, {"pairs": 6, "keys": 12, "values": 9}),  # recall has no facts
        (RECALL, {"stored": False}, {}),
        (TEXT, {}, {"name": "text", "text": "own.txt", "tokenizer": "tok.json", "length": 64, "bos": False}),
        (
            TEXT,
            {"name": "text", "length": 32, "text": "own.txt"},
            {"tokenizer": "tok.json", "length": 64, "bos": False},
        ),
        (TEXT, {"name": "text", "length": 16}, {"text": "own.txt", "tokenizer": "tok.json", "bos": False}),
        (TEXT, {"name": "file", "file": "f"}, {"tokenizer": "tok.json", "bos": False}),
        (TEXT, {"name": "prompt", "prompt": "a"}, {"tokenizer": "tok.json", "bos": False}),
        ({"task": {"name": "text", "tokenizer": "t"}}, {}, {"name": "text", "tokenizer": "t", "bos": False}),  # older
        ({"task": {"name": "text"}}, {"name": "text"}, {}),
        ({"task": "x"}, {}, {}),
        ({"task": {"name": ["x"]}}, {}, {}),
    ],
)
def test_defaults_are_the_checkpoints(metadata: Any, options: dict[str, Any], changes: dict[str, Any]) -> None:
    asked = TaskConfig(**options)
    assert as_stored(asked, metadata) == dataclasses.replace(asked, **changes)


@pytest.mark.parametrize(
    ("metadata", "options", "says"),
    [
        (RECALL, {"name": "induction"}, "trained on the task recall, and induction is asked"),
        (RECALL, {"name": "prompt"}, "trained on the task recall, and prompt is asked"),
        (RECALL, {"keys": 10}, r"keys = 12, and 10 is asked; leave keys"),
        (TEXT, {"text": "other.txt"}, "text = 'own.txt', and 'other.txt' is asked"),
        (TEXT, {"name": "file", "tokenizer": "other"}, "tokenizer = 'tok.json', and 'other' is asked"),
        ({"task": {"name": "recall", "keys": "x"}}, {}, "stores keys = x, which is none"),
    ],
)
def test_contradictions_name_both(metadata: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(MechintError, match=says):
        as_stored(TaskConfig(**options), metadata)
    asked = TaskConfig(**options, stored=False)
    assert as_stored(asked, metadata) == asked


def test_a_checkpoint_trained_on_tokens_is_asked_in_them(tmp_path: Path) -> None:
    tokenizer = llama_like()
    tokenizer.save(str(tmp_path / "tok.json"))
    (tmp_path / "own.txt").write_text("\n".join(CORPUS))
    asked = TaskConfig(name="text", text=str(tmp_path / "own.txt"), tokenizer=str(tmp_path / "tok.json"), length=16)
    short = TrainConfig(
        steps=30, batch_size=8, warmup=1, eval_prompts=16, eval_every=30, device="cpu", output_dir=str(tmp_path / "out")
    )
    [checkpoint] = train_steps(asked, short, GPT2Architecture(n_layer=1, n_head=2, n_embd=16))
    model = mechint.load(checkpoint)
    assert 0 <= model.config.vocab_size - size_of(tokenizer) < 8  # padded
    task = task_of(model, TaskConfig())
    assert task.config == asked and task.front == [1]
    loader = PromptLoader(task, "evaluation", 16, 16, 0)
    check_loss(model, task, loader)
    prompt = task_of(model, TaskConfig(name="prompt", prompt="The Eiffel Tower is in", subject="Tower", answer="the"))
    assert prompt.tokenizer.to_str() == tokenizer.to_str()  # the model itself has none
    with torch.no_grad():
        model.wte.weight.mul_(-40)  # weights that do not belong to the text
    with pytest.raises(NotAnswered, match="nats a token, and the checkpoint stores"):
        check_loss(model, task, loader)
    check_loss(SimpleNamespace(metadata={}), task, loader)
    (tmp_path / "own.txt").write_text("\n".join(CORPUS[::-1]))
    with pytest.raises(MechintError, match="had another content; restore them"):
        task_of(model, TaskConfig())
    assert task_of(model, dataclasses.replace(asked, stored=False)).front == [1]
