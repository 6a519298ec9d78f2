"""Families of layers made of parts against their matrix products and against Hugging Face: Mamba-2 and a delta rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mechint.interventions.run import run
from mechint.models.loading.load import from_state_dict

from ..pairs import Question, Target
from ..shapes import FLOOR, HF, OURS

LAYERS, TOKENS, VOCABULARY, STREAMED = 2, 1024, 2048, 16
STATES = "mechint, states recorded"


def mamba2() -> Any:
    """Layers of mamba2-130m's shape."""
    from transformers import Mamba2Config, Mamba2ForCausalLM

    return Mamba2ForCausalLM(
        Mamba2Config(
            vocab_size=VOCABULARY, hidden_size=768, num_hidden_layers=LAYERS, state_size=128, num_heads=24, head_dim=64,
            n_groups=1, chunk_size=256,
        )
    )  # fmt: skip


def qwen() -> Any:
    """Delta layers of Qwen3.5-0.8B's shape."""
    from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

    return Qwen3_5ForCausalLM(
        Qwen3_5TextConfig(
            vocab_size=VOCABULARY, hidden_size=1024, intermediate_size=3584, num_hidden_layers=LAYERS,
            num_attention_heads=8, num_key_value_heads=2, head_dim=256, linear_num_key_heads=16,
            linear_num_value_heads=16, linear_key_head_dim=128, linear_value_head_dim=128,
            layer_types=["linear_attention"] * LAYERS,
        )
    )  # fmt: skip


def products(model: nn.Module, length: int, backward: bool = False) -> Callable[[], None]:
    """The matrix products of a forward, or of a forward and backward, and nothing else."""
    maps = [module for module in model.modules() if isinstance(module, nn.Linear)]
    inputs = [torch.ones(1, length, module.in_features) for module in maps]
    slopes = [torch.ones(length, module.out_features) for module in maps]

    def run() -> None:
        for module, x, slope in zip(maps, inputs, slopes, strict=True):
            module(x)
            if backward:
                slope @ module.weight, slope.t() @ x[0]  # of what is read, and of the weights

    return run


def questions() -> Iterator[Question]:
    for name, make, least in (("mamba2-130m", mamba2, 3.0), ("Qwen3.5-0.8B, its delta rules", qwen, 1.0)):
        torch.manual_seed(0)
        theirs = make().eval().requires_grad_(False)
        ours = from_state_dict(theirs.state_dict(), theirs.config.to_dict(), "random weights").requires_grad_(False)
        tokens = torch.randint(0, VOCABULARY, (1, TOKENS))
        yield Question(
            "families",
            f"{name}: forward of {LAYERS} layers, 1 x {TOKENS} tokens",
            {
                OURS: lambda m=ours, t=tokens: m(t),
                FLOOR: products(ours, TOKENS),
                HF: lambda m=theirs, t=tokens: m(t, use_cache=False),
            },
            [Target(HF, OURS, least), Target(OURS, FLOOR, 1.5, at_most=True)],
            rounds=3,
        )
        places = range(TOKENS // STREAMED - 1, TOKENS, TOKENS // STREAMED)
        yield Question(
            "families",
            f"{name}: forward with {STREAMED} states of each of {LAYERS} layers recorded, 1 x {TOKENS} tokens",
            {
                OURS: lambda m=ours, t=tokens: m(t),
                STATES: lambda m=ours, t=tokens, p=tuple(places): run(m, t, record={"layers.*.state": p}),
            },
            [Target(STATES, OURS, 1.2, at_most=True)],
            rounds=3,
        )
        yield Question(
            "families",
            f"{name}: forward and backward of {LAYERS} layers, 1 x {TOKENS} tokens",
            {
                OURS: lambda m=ours, t=tokens: step(m, lambda: m(t)),
                FLOOR: products(ours, TOKENS, backward=True),
                HF: lambda m=theirs, t=tokens: step(m, lambda: m(t, use_cache=False).logits),
            },
            # Hugging Face's own time is less than 3 times that of the products, so there is no such ratio to aim at
            [Target(HF, OURS, 1.0), Target(OURS, FLOOR, 1.5, at_most=True)],
            rounds=3,
        )


def step(model: Any, logits: Callable[[], Tensor]) -> None:
    """A forward, and the gradients of all weights."""
    with torch.enable_grad():
        model.requires_grad_(True)
        logits().logsumexp(-1).sum().backward()
    model.zero_grad(set_to_none=True)
    model.requires_grad_(False)
