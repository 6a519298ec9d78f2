"""Dynamics of a matrix memory: time scales, Gramians and what each key channel adds to what is read.

Positions pass S_t = A_t S_{t-1} + k_t (s_t u_t)ᵀ with A_t = T_t diag(a_t), a matrix over key channels that is the same
for all value channels of a head. So the Gramians of :mod:`.modes` are those of a head, with A_t instead of a diagonal:

    W_t = A_t W_{t-1} A_tᵀ + (s_t k_t)(s_t k_t)ᵀ,        M_t = q_t q_tᵀ + A_{t+1}ᵀ M_{t+1} A_{t+1}.

A value channel forgets at the rate -½ log (‖A_t S_{t-1}[:, v]‖² / ‖S_{t-1}[:, v]‖²), a mean over positions: the share
that a step takes from the square of its memory, decay and erasing together. With one decay a head and nothing erased
that is Δ |A|.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..scan.matrix import states
from ..utils.errors import MechintError
from .memory_jacobians import LinearisedMemory
from .modes import Gramians, ModeGram


def per_channel(local: LinearisedMemory, of_head: Tensor) -> Tensor:
    """A number of each head for each of its value channels, [..., head, …] -> [..., channel, …] at the first axis."""
    return of_head.repeat_interleave(local.u.shape[-1], 0)


@torch.no_grad()
def time_scales(local: LinearisedMemory) -> dict[str, Tensor]:
    """The decay's time constants in tokens, without what is erased besides.

    Returns:
        ``heads`` (1 over the mean rate, [head, key or 1]), ``mean`` (the same, [channel, key]) and ``variation``, the
        range from the 10 % to the 90 % quantile over the median, [channel].
    """
    rate = -local.log_decay.double()
    rate = (rate if rate.dim() == 4 else rate.unsqueeze(-1)).flatten(0, 1)  # [prompt · position, head, key or 1]
    heads = 1 / rate.mean(0).clamp(min=1e-300)
    low, middle, high = (1 / torch.quantile(rate, share, dim=0).clamp(min=1e-300) for share in (0.9, 0.5, 0.1))
    variation = ((high - low) / middle).mean(-1)
    mean = per_channel(local, heads).expand(local.width, local.key.shape[-1])
    return {"heads": heads, "mean": mean, "variation": per_channel(local, variation)}


@torch.no_grad()
def transition(local: LinearisedMemory, t: int) -> Tensor:
    """A_t, [prompt, head, key, key], in float64."""
    key, decay = local.key[:, t].double(), local.log_decay[:, t].double().exp()
    own = torch.eye(key.shape[-1], dtype=key.dtype, device=key.device).expand(*key.shape, -1)
    if local.erases:
        strength = local.strength[:, t, :, None, None].double()
        own = own - strength * key.unsqueeze(-1) * key.unsqueeze(-2)
    return own * (decay.unsqueeze(-2) if decay.dim() == 3 else decay[..., None, None])


@torch.no_grad()
def gramians(local: LinearisedMemory, at: int) -> Gramians:
    """Gramians of every head at one position, in float64: of the writes up to it, and of what is read from it on.

    Raises:
        MechintError: there is no such position.
    """
    if not 0 <= at < local.length:
        raise MechintError(f"position {at} does not exist; the prompts have {local.length} tokens")
    outer = lambda v: v.unsqueeze(-1) * v.unsqueeze(-2)
    written = local.strength.unsqueeze(-1).double() * local.key.double()
    W = torch.zeros_like(outer(written[:, 0]))
    for t in range(at + 1):
        A = transition(local, t)
        W = A @ W @ A.mT + outer(written[:, t])
    M = torch.zeros_like(W)
    for t in range(local.length - 1, at - 1, -1):
        M = M + outer(local.query[:, t].double())
        if t > at:
            A = transition(local, t)
            M = A.mT @ M @ A
    return Gramians(at, local.length, W, M)


@torch.no_grad()
def mode_gram(local: LinearisedMemory) -> ModeGram:
    """Streams the memory into the Gram matrix of its key channels: of what each adds to what is read of a channel."""
    K, V = local.key.shape[-1], local.u.shape[-1]
    gram = torch.zeros(local.key.shape[2], V, K, K, dtype=torch.float64, device=local.u.device)
    for t, state in enumerate(states(local.writes(), start(local))):
        read = (local.query[:, t].unsqueeze(-1) * state).double()  # [prompt, head, key, value]
        gram += torch.einsum("bhkv,bhlv->hvkl", read, read)
    count = local.u.shape[0] * local.length
    return ModeGram(gram.flatten(0, 1) / count, count)


def start(local: LinearisedMemory) -> Tensor:
    """The empty memory, [prompt, head, key, value]."""
    return local.u.new_zeros(local.u.shape[0], *local.key.shape[2:], local.u.shape[-1])


@torch.no_grad()
def effective_memory(local: LinearisedMemory) -> Tensor:
    """Time constant of each channel in tokens, [prompt, channel]: 1 over its mean rate of forgetting. It follows from
    rates, so it may be longer than the prompt: an extrapolation then.

    Raises:
        MechintError: prompts of one token, in which nothing is kept from one position to the next.
    """
    if local.length < 2:
        raise MechintError("the dynamics of a memory need prompts of two tokens or more")
    log_decay = local.log_decay.double()
    log_decay = log_decay if log_decay.dim() == 4 else log_decay.unsqueeze(-1)
    rate, count = (torch.zeros_like(local.u[:, 0], dtype=torch.float64) for _ in range(2))
    before = start(local).double()
    for t, state in enumerate(states(local.writes(), start(local))):
        square = before.square()
        size = square.sum(-2)  # [prompt, head, value]
        lost = -(torch.expm1(2 * log_decay[:, t]).unsqueeze(-1) * square).sum(-2)
        if local.erases:
            key, strength = local.key[:, t].double(), local.strength[:, t].double().unsqueeze(-1)
            along = (key.unsqueeze(-1) * log_decay[:, t].exp().unsqueeze(-1) * before).sum(-2)
            own = key.square().sum(-1, keepdim=True)
            lost = lost + strength * (2 - strength * own) * along.square()
        there = size > 0
        share = torch.where(there, lost / size.clamp(min=1e-300), 0.0).clamp(max=1 - 1e-12)
        rate += -torch.log1p(-share) / 2
        count += there
        before = state.double()
    return (count / rate.clamp(min=1e-300)).flatten(1)


@torch.no_grad()
def dropped_alone(gram: ModeGram) -> tuple[Tensor, Tensor]:
    """The mean square of the change of each channel when one mode is dropped, [mode, channel]; and when the others are
    weighted anew by least squares, as :meth:`.ModeGram.drop_refitted` has it, by one decomposition a channel."""
    values, vectors = torch.linalg.eigh(gram.gram)
    floor = gram.gram.shape[-1] * torch.finfo(values.dtype).eps * values[..., -1:].clamp(min=0)
    null = values <= floor
    # what a vector without a square can do, the others do instead
    replaced = (vectors.square() * null.unsqueeze(-2)).sum(-1) > 1e-9
    inverse = (vectors.square() / torch.where(null, torch.inf, values).unsqueeze(-2)).sum(-1)
    left = torch.where(replaced | (inverse == 0), 0.0, 1 / inverse.clamp(min=1e-300))
    return gram.gram.diagonal(dim1=-2, dim2=-1).T, left.T
