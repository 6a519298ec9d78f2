"""A whole model against its matrix products and against Hugging Face; a training step of two layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from mambapy.mamba import Mamba, MambaConfig
from torch import Tensor

from mechint.interventions.taps import Tap

from ..pairs import Question, Target
from ..shapes import FLOOR, HF, INNER, LAYERS, OURS, PEER, RANK, VOCABULARY, WIDTH, last, pair


def questions() -> Iterator[Question]:
    yield from forwards()
    yield training()


def products(model: Any, batch: int, length: int, last_only: bool = False) -> None:
    """The matrix products of a forward and nothing else; logits of last positions only, if so."""
    n, x, u = torch.ones(batch, length, WIDTH), torch.ones(batch, length, INNER), torch.ones(batch, length, RANK)
    for layer in model.layers:
        layer.in_proj(n), layer.x_proj(x), layer.dt_proj(u), layer.out_proj(x)
    F.linear(n[:, -1:] if last_only else n, model.embedding.weight)


def forwards() -> Iterator[Question]:
    theirs, ours = pair(LAYERS)
    for batch, length in ((1, 256), (1, 1024)):
        tokens = torch.randint(0, VOCABULARY, (batch, length))
        yield Question(
            "model",
            f"mamba-130m forward, {batch} x {length} tokens, all logits",
            {
                OURS: lambda t=tokens: ours(t),
                FLOOR: lambda b=batch, n=length: products(ours, b, n),
                HF: lambda t=tokens: theirs(t, use_cache=False),
            },
            [Target(OURS, FLOOR, 1.25, at_most=True), Target(HF, OURS, 3.0)],
            rounds=3,
        )


def training() -> Question:
    """The layers are what is compared, so the vocabulary shrinks with them, and only last positions have logits."""
    layers, rows, length = 2, 4, 256
    vocabulary = VOCABULARY * layers // LAYERS
    theirs, ours = pair(layers, vocabulary)
    peer = Mamba(MambaConfig(d_model=WIDTH, n_layers=layers))
    tokens = torch.randint(0, vocabulary, (rows, length))

    def step(models: list[Any], logits: Callable[[], Tensor]) -> None:
        with torch.enable_grad():
            for model in models:
                model.requires_grad_(True)
            logits().logsumexp(-1).sum().backward()
            for model in models:
                model.zero_grad(set_to_none=True)

    def peer_logits() -> Tensor:  # it has no vocabulary of its own
        return F.linear(ours.norm_f(peer(ours.embedding(tokens))[:, -1:]), ours.embedding.weight)

    def floor() -> None:
        """What any of them needs: the products, and each again for its input's and its weight's gradient."""
        for _ in range(3):
            products(ours, rows, length, last_only=True)

    candidates: dict[str, Any] = {
        OURS: lambda: step([ours], lambda: ours.trace(tokens, Tap(), None, last(tokens))[0]),
        PEER: lambda: step([peer, ours.embedding, ours.norm_f], peer_logits),
        HF: lambda: step([theirs], lambda: theirs(tokens, use_cache=False, logits_to_keep=1).logits),
        FLOOR: floor,
    }
    return Question(
        "model",
        f"{layers} of {LAYERS} layers, forward and backward of all weights, {rows} x {length} tokens, last logits",
        candidates,
        [Target(HF, OURS, 60.0), Target(PEER, OURS, 10.0)],
        rounds=3,
        limit=20.0,  # one turn for Hugging Face, whose backward takes a minute or more
        cold=(HF,),
    )
