"""Unrelated text, on which a direction should change nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from ...interventions.model import Model
from ...tasks import Task, TaskConfig, make_task
from ...tasks.base import generator
from .options import SteerConfig

LENGTH = 32
"""Tokens of a row of text."""
READS = 256
"""The vocabulary of a model whose tokens are bytes."""


def random_rows(model: Model, config: SteerConfig) -> bool:
    """True if the rows are random tokens, because the model reads no text."""
    return config.text == "usual" and model.tokenizer is None and model.config.vocab_size != READS


def row_length(model: Model, config: SteerConfig, task: Task) -> int:
    """The tokens of a row."""
    return task.length if random_rows(model, config) else LENGTH


def unrelated(model: Model, config: SteerConfig, task: Task, seed: int) -> tuple[Tensor | None, str]:
    """Rows of token ids [row, position], and what they are; None where side effects are not asked for.

    Raises:
        MechintError: a text that cannot be read, or a model without a tokenizer to read it with.
    """
    if config.text == "none":
        return None, "not measured"
    if random_rows(model, config):
        shape = (config.text_prompts, task.length)
        draw = generator("unrelated", seed)
        tokens = torch.randint(model.config.vocab_size, shape, generator=draw)
        return tokens.to(model.device), f"{len(tokens)} rows of {task.length} random tokens"
    source = "topics" if config.text == "usual" else config.text
    asked = TaskConfig(name="text", text=source, length=LENGTH)
    text = make_task(asked, model.tokenizer, model.config.vocab_size)
    tokens = text.sample(config.text_prompts, "evaluation", seed).tokens.to(model.device)
    return tokens, f"{len(tokens)} rows of {LENGTH} tokens of the text {source}"
