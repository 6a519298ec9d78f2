"""Costs of a model: parameters, FLOPs and bytes for each token, memory of the prompt by length, measured seconds.

Counted, for a prompt of L tokens (⊙ and + are one each; exponentials, activations and norms are left out, as usual):

===================== ============================================================================================
what                  count for each token
===================== ============================================================================================
a weight matrix       2 · entries (Kaplan et al. 2020, section 2.1); the unembedding is one, the embedding none; of
                      experts, those that a token goes through
a convolution         2 · channel · taps
a selective scan      channel · (6 · state + 4): Δ A, Δ u ⊗ B, Ā h + write and h · C; Δ u, y + D u and the gate
Mamba-2's memory      head · value · (5 · key + 4): Δ u, k vᵀ, a S + write and qᵀ S; y + D u and the gate
a delta rule's memory head · (9 · key · value + 2 · key + 2 · value): k vᵀ, T (a S) + write and qᵀ S; β k, the scale of
                      q, β u and the gate
a short convolution   2 · channel more, for its two gates
attention             2 · heads · (width of keys + width of values) · positions read, on average over the prompt
===================== ============================================================================================

While generating, a token reads every weight once (of the embeddings one row, of experts the chosen ones) and the memory
of the prompt: states and inputs of convolutions, the same at any length; keys and values, which grow with it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from ...interventions.model import Model
from ...interventions.run import run
from ...models import gpt2, llama
from ...models.parts.attention import Attention
from ...models.parts.base import Part
from ...models.parts.delta import GatedDelta
from ...models.parts.experts import MixtureOfExperts, Router
from ...models.parts.latent_attention import LatentAttention
from ...models.parts.mamba1 import Mamba1Mixer
from ...models.parts.mamba2 import Mamba2Mixer
from ...models.parts.recurrence import Recurrence
from ...models.parts.shared import BlockThenMamba
from ...models.parts.short_conv import ShortConv
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
    weights = sum(2 * entries(layer) for layer in model.layers)
    mixing = float(sum(mixing_flops(part, length) for part in every_part(model)))
    head = 2 * c.d_model * c.vocab_size
    return {"weights": weights, "mixing": mixing, "unembedding": head, "total": weights + mixing + head}


def memory_bytes(model: Model, length: int) -> int:
    """Bytes that one prompt of this length leaves to resume from: states and convolution inputs, keys and values."""
    weight = next(model.parameters())
    return sum(kept_bytes(part, length, weight) for part in every_part(model))


def token_bytes(model: Model, length: int) -> int:
    """Bytes that generating one token after ``length`` others reads: weights, and the memory of the prompt."""
    read = 0
    tied, idle = model.config.tied, idle_weights(model)
    for name, weight in model.named_parameters():
        row = is_embedding(name) and not (tied and weight is model.embeddings)
        read += (weight.shape[1] if row else weight.numel()) * weight.element_size()
    return read - idle + memory_bytes(model, length)


# ---- parts -------------------------------------------------------------------------------------------------------


def every_part(model: Model) -> list[nn.Module]:
    """The parts of all layers; of a shared block its attention and its mixer, at each of its uses."""
    found: list[nn.Module] = []
    for layer in range(model.num_layers):
        for part in model.parts_of(layer).values():
            found += [part.block.self_attn, part.mamba] if isinstance(part, BlockThenMamba) else [part]
    return found


def entries(layer: nn.Module) -> int:
    """Entries of the weight matrices that a token goes through in a layer, those of a shared block at each use."""
    found = sum(m.weight.numel() for m in layer.modules() if isinstance(m, nn.Linear | Router))
    for m in layer.modules():
        if isinstance(m, MixtureOfExperts):
            found -= idle_experts(m)
        if isinstance(m, BlockThenMamba):
            found += shared_entries(m)
    return found


def idle_experts(part: MixtureOfExperts) -> int:
    """Entries of the experts that a token does not go through."""
    one = sum(m.weight.numel() for m in part.experts[0].modules() if isinstance(m, nn.Linear))
    return (len(part.experts) - part.routing.chosen) * one


def idle_weights(model: Model) -> int:
    """Bytes of experts that a token does not go through."""
    parts = [part for part in every_part(model) if isinstance(part, MixtureOfExperts)]
    return sum(idle_experts(part) * next(part.parameters()).element_size() for part in parts)


def shared_entries(part: BlockThenMamba) -> int:
    """Entries of a shared block that another layer holds, less those of the additions of its other uses."""
    matrices = {
        name: m.weight.numel() for name, m in part.block.named_modules() if isinstance(m, nn.Linear)
    }  # fmt: skip
    others = sum(
        size for name, size in matrices.items()
        if "_adapter_list." in name and name.split("_adapter_list.")[1].split(".")[0] != str(part.use)
    )  # fmt: skip
    return (sum(matrices.values()) if part.shared_transformer is None else 0) - others


def reads(length: int, window: int = 0) -> float:
    """Positions that a token of a prompt reads, itself included, on average."""
    if not window or window >= length:
        return (length + 1) / 2
    return (window * (window + 1) / 2 + (length - window) * window) / length


@functools.singledispatch
def mixing_flops(part: nn.Module, length: int) -> float:
    """FLOPs for each token in which positions meet, beside weight matrices; 0 where none do."""
    if isinstance(part, Part) and not part.mixes:
        return 0.0
    raise MechintError(f"costs: no rule says what parts of the kind {type(part).__name__} compute")


@functools.singledispatch
def kept_bytes(part: nn.Module, length: int, weight: Tensor) -> int:
    """Bytes that a part remembers of a prompt; 0 where it remembers nothing.

    Args:
        weight: Any of the model's, for its precision.
    """
    if isinstance(part, Part) and not part.mixes:
        return 0
    raise MechintError(f"costs: no rule says what parts of the kind {type(part).__name__} remember")


@mixing_flops.register(gpt2.MLP)
@mixing_flops.register(llama.MLP)
def no_flops(part: nn.Module, length: int) -> float:
    return 0.0


@kept_bytes.register(gpt2.MLP)
@kept_bytes.register(llama.MLP)
def no_bytes(part: nn.Module, length: int, weight: Tensor) -> int:
    return 0


@mixing_flops.register
def scan_flops(part: Mamba1Mixer, length: int) -> float:
    channels, states = part.A_log.shape
    return float(channels * (2 * taps(part.conv1d) + 6 * states + 4))


@mixing_flops.register
def mamba2_flops(part: Mamba2Mixer, length: int) -> float:
    convolution = 2 * part.conv1d.out_channels * taps(part.conv1d)
    return float(convolution + part.heads * part.value_size * (5 * part.key_size + 4))


@mixing_flops.register
def delta_flops(part: GatedDelta, length: int) -> float:
    K, V = part.key_size, part.value_size
    convolution = 2 * part.conv1d.out_channels * taps(part.conv1d)
    return float(convolution + part.heads * (9 * K * V + 2 * K + 2 * V))


@mixing_flops.register
def short_flops(part: ShortConv, length: int) -> float:
    return float(part.conv.out_channels * (2 * taps(part.conv) + 2))


@mixing_flops.register(gpt2.Attention)
@mixing_flops.register(llama.Attention)
def plain_flops(part: Any, length: int) -> float:
    return 4.0 * part.c.n_head * part.c.d_head * reads(length)


@mixing_flops.register
def attention_flops(part: Attention, length: int) -> float:
    return 4.0 * part.n_head * part.d_head * reads(length, part.how.window)


@mixing_flops.register
def latent_flops(part: LatentAttention, length: int) -> float:
    return 2.0 * part.n_head * (part.own + part.shared + part.values) * reads(length)


@kept_bytes.register
def scan_bytes(part: Mamba1Mixer, length: int, weight: Tensor) -> int:
    channels, states = part.A_log.shape
    wide = accumulate(weight.new_zeros(0)).element_size()
    return int(channels * (states * wide + (taps(part.conv1d) - 1) * weight.element_size()))


@kept_bytes.register
def recurrence_bytes(part: Recurrence, length: int, weight: Tensor) -> int:
    wide = accumulate(weight.new_zeros(0)).element_size()
    inputs = part.conv1d.out_channels * (taps(part.conv1d) - 1) * weight.element_size()
    return int(part.heads * part.key_size * part.value_size * wide + inputs)


@kept_bytes.register
def short_bytes(part: ShortConv, length: int, weight: Tensor) -> int:
    return int(part.conv.out_channels * (taps(part.conv) - 1) * weight.element_size())


@kept_bytes.register(gpt2.Attention)
@kept_bytes.register(llama.Attention)
def plain_bytes(part: Any, length: int, weight: Tensor) -> int:
    return int(2 * length * part.c.n_kv_head * part.c.d_head * weight.element_size())


@kept_bytes.register
def attention_bytes(part: Attention, length: int, weight: Tensor) -> int:
    return int(2 * length * part.n_kv_head * part.d_head * weight.element_size())


@kept_bytes.register
def latent_bytes(part: LatentAttention, length: int, weight: Tensor) -> int:
    return int(length * part.n_head * (part.own + part.shared + part.values) * weight.element_size())


def taps(convolution: nn.Conv1d) -> int:
    return convolution.kernel_size[0]


# ---- measured ----------------------------------------------------------------------------------------------------


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
