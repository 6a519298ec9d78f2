"""Costs of a model: parameters, FLOPs and bytes for each token, memory of the prompt by length, measured seconds.

Counted, for a prompt of L tokens (⊙ and + are one each; exponentials, activations and norms are left out, as usual):

===================== ============================================================================================
what                  count for each token
===================== ============================================================================================
a weight matrix       2 · entries (Kaplan et al. 2020, section 2.1); the unembedding is one, the embedding none
Mamba's convolution   2 · channel · taps
Mamba's scan          channel · (6 · state + 4): Δ A, Δ u ⊗ B, Ā h + write and h · C; Δ u, y + D u and the gate
attention             4 · heads · dimension · (L + 1) / 2: q · k and pattern · v with the tokens so far, on average
===================== ============================================================================================

While generating, a token reads every weight once (of the embeddings one row) and the memory of the prompt: a Mamba's
state and convolution inputs, the same at any length; a transformer's keys and values, which grow with it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn

from ...interventions.model import Model
from ...interventions.run import run
from ...scan.checks import accumulate
from ...utils.errors import MechintError
from ...utils.memory import peak_bytes

ACTIVE = 0.01
"""A parameter of less than this share of its tensor's RMS counts as inactive."""


@dataclass(frozen=True)
class Parameters:
    """Counts of parameters; ``active`` are those of at least :data:`ACTIVE` of their tensor's RMS, or as asked."""

    total: int
    embedding: int
    active: int


def parameters(model: nn.Module, share: float = ACTIVE) -> Parameters:
    """Counts parameters, tied ones once."""
    total = embedding = active = 0
    for name, weight in model.named_parameters():
        wide = weight.detach().double()
        total += weight.numel()
        active += int((wide.abs() >= share * wide.square().mean().sqrt()).logical_and(wide != 0).sum())
        embedding += weight.numel() if is_embedding(name) else 0
    return Parameters(total, embedding, active)


def is_embedding(name: str) -> bool:
    return name.split(".")[0] in ("embedding", "embed_tokens", "wte", "wpe")


def flops(model: Model, length: int) -> dict[str, float]:
    """FLOPs for each token of a prompt, by part: ``weights``, ``unembedding``, ``mixing`` and their ``total``."""
    c = model.config
    weights = sum(2 * m.weight.numel() for layer in model.layers for m in layer.modules() if isinstance(m, nn.Linear))
    if c.family == "mamba":
        mixing = float(c.n_layer * c.d_inner * (2 * c.d_conv + 6 * c.d_state + 4))
    else:
        mixing = 4.0 * c.n_layer * c.n_head * c.d_head * (length + 1) / 2
    head = 2 * c.d_model * c.vocab_size
    return {"weights": weights, "mixing": mixing, "unembedding": head, "total": weights + mixing + head}


def memory_bytes(model: Model, length: int) -> int:
    """Bytes that one prompt of this length leaves to resume from: state and convolution inputs, or keys and values."""
    c = model.config
    weight = next(model.parameters())
    if c.family == "mamba":
        wide = accumulate(weight.new_zeros(0)).element_size()
        return int(c.n_layer * c.d_inner * (c.d_state * wide + (c.d_conv - 1) * weight.element_size()))
    heads = getattr(c, "n_kv_head", c.n_head)
    return int(2 * c.n_layer * length * heads * c.d_head * weight.element_size())


def token_bytes(model: Model, length: int) -> int:
    """Bytes that generating one token after ``length`` others reads: weights, and the memory of the prompt."""
    read = 0
    tied = model.config.tied
    for name, weight in model.named_parameters():
        row = is_embedding(name) and not (tied and weight is model.embeddings)
        read += (weight.shape[1] if row else weight.numel()) * weight.element_size()
    return read + memory_bytes(model, length)


@dataclass(frozen=True)
class Measured:
    """Seconds (median, least, most over the repeats) and the largest number of bytes of tensors alive, of one forward
    of a prompt, and the seconds of one further token after it."""

    length: int
    seconds: tuple[float, float, float]
    peak_bytes: int
    next_token_seconds: tuple[float, float, float]
    repeats: int


@torch.no_grad()
def measure(model: Model, lengths: Sequence[int], repeats: int = 5, seed: int = 0) -> list[Measured]:
    """Times one forward of random tokens at each length, after a warm-up, and of one token after it.

    Raises:
        MechintError: no length, or one that the model cannot have.
    """
    if not lengths or min(lengths) < 1:
        raise MechintError(f"measure: lengths are {list(lengths)}; give at least one, each at least 1")
    found = []
    for length in lengths:
        model.check_length(length + 1)
        random = torch.Generator().manual_seed(seed)
        tokens = torch.randint(0, model.config.vocab_size, (1, length + 1), generator=random).to(model.device)
        prompt, last = tokens[:, :-1], torch.full((1, 1), length - 1, device=tokens.device)
        peak = peak_bytes(lambda p=prompt, at=last: run(model, p, logits_at=at))  # warms up, too
        cache = run(model, prompt, logits_at=last).cache
        whole = seconds(model.device, repeats, functools.partial(run, model, prompt, logits_at=last))
        more = seconds(model.device, repeats, functools.partial(run, model, tokens[:, -1:], cache=cache))
        found.append(Measured(length, whole, peak, more, repeats))
    return found


def seconds(device: torch.device, repeats: int, work: Callable[[], object]) -> tuple[float, float, float]:
    took = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took.append(time.perf_counter() - start)
    return median(took), min(took), max(took)
