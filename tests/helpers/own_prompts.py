"""Prompts of a user, and a model that answers them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import mechint
from tests.helpers.builders import tiny_mamba
from tests.helpers.standins import save_hf, save_tokenizer

PROMPT = "The Eiffel Tower is located in the city of"


def says(checkpoint: Path, prompt: str = PROMPT) -> str:
    model = mechint.load(checkpoint)
    ids = torch.tensor([model.tokenizer.encode(prompt).ids])
    return str(model.tokenizer.decode([int(model(ids)[0, -1].argmax())]))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that goes on with the beginning of a word."""
    at = save_tokenizer(tmp_path_factory.mktemp("model"), 300)
    return next(at for seed in range(99) if says(save_hf(tiny_mamba(seed, vocab_size=300), at)).startswith(" "))
