"""The recurrence of matrix memories: any precision, differentiable, editable; in C for float32 on a CPU.

One formula stands behind state-space duality (Dao & Gu 2024) and the gated delta rules (Yang et al. 2024, Kimi Team
2025), with state S [batch, head, key, value]::

    S_t = T_t (a_t ⊙ S_{t-1}) + k_t v_tᵀ        T_t = I − p_t r_tᵀ, or I where nothing is erased
    y_t = q_tᵀ S_t
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor

from . import matrix_native
from .checks import check_sizes
from .matrix_native import each_head

HEADS = ("batch", "position", "head")
KEYS = (*HEADS, "key")
SHARED = ("batch", "position", "group", "key")


class Writes(NamedTuple):
    """The inputs of a recurrence at every position, in at least float32."""

    decay: Tensor
    """a [B, L, H], or [B, L, H, K] where every key channel has its own."""
    key: Tensor
    """k [B, L, H, K]."""
    value: Tensor
    """v [B, L, H, V]; the step size or write strength is in it."""
    erase: Tensor | None = None
    """p [B, L, H, K]; None where nothing is erased."""
    erased: Tensor | None = None
    """r [B, L, H, K], the direction that is erased."""


def check(w: Writes, query: Tensor, initial: Tensor) -> None:
    """Raises :class:`MechintError` for shapes that disagree; the axis is named."""
    keys = SHARED if in_groups(w, query) else KEYS
    check_sizes(
        "the recurrence",
        {
            "decay": (w.decay, HEADS if w.decay.dim() == 3 else KEYS), "key": (w.key, keys),
            "value": (w.value, (*HEADS, "value")), "query": (query, keys), "erase": (w.erase, KEYS),
            "erased": (w.erased, KEYS), "initial": (initial, ("batch", "head", "key", "value")),
        },
        empty=True,
    )  # fmt: skip


def in_groups(w: Writes, query: Tensor) -> bool:
    """True if keys and queries are those of groups of neighbouring heads, of equal size."""
    if w.key.dim() != 4 or query.dim() != 4 or w.value.dim() != 4:
        return False
    heads, groups = w.value.shape[2], w.key.shape[2]
    return 0 < groups < heads and groups == query.shape[2] and heads % groups == 0


def decayed(state: Tensor, w: Writes, t: int) -> Tensor:
    """T_t (a_t ⊙ S): what position t keeps of a state [B, H, K, V]."""
    erase = None if w.erase is None else w.erase[:, t]
    erased = None if w.erased is None else w.erased[:, t]
    arguments = w.decay[:, t], erase, erased, state
    if matrix_native.serves(*arguments):
        return cast(Tensor, matrix_native.Native.apply(matrix_native.decayed, plain_decayed, *arguments))
    return plain_decayed(*arguments)


def plain_decayed(decay: Tensor, erase: Tensor | None, erased: Tensor | None, state: Tensor) -> Tensor:
    """T (a ⊙ S) in torch: decay [B, H] or [B, H, K], erase and erased [B, H, K], state [B, H, K, V]."""
    kept = decay[..., None, None] * state if decay.dim() == 2 else decay[..., None] * state
    if erase is None or erased is None:
        return kept
    gone = torch.matmul(erased.unsqueeze(-2), kept)  # [B, H, 1, V]
    return kept - erase.unsqueeze(-1) * gone


def written(w: Writes, t: int) -> Tensor:
    """k_t v_tᵀ, [B, H, K, V]."""
    return w.key[:, t].unsqueeze(-1) * w.value[:, t].unsqueeze(-2)


def read_at(query: Tensor, state: Tensor, t: int) -> Tensor:
    """q_tᵀ S, [B, H, V]: query [B, L, H, K], state [B, H, K, V]."""
    if matrix_native.serves(query, state):
        return cast(Tensor, matrix_native.Native.apply(matrix_native.read, plain_read, query[:, t], state))
    return plain_read(query[:, t], state)


def plain_read(query: Tensor, state: Tensor) -> Tensor:
    """qᵀ S in torch, [B, H, V]: query [B, H, K], state [B, H, K, V]."""
    return torch.matmul(query.unsqueeze(-2), state).squeeze(-2)


def states(w: Writes, initial: Tensor) -> Iterator[Tensor]:
    """S_t [B, H, K, V] of one position after another; only one is held.

    Args:
        initial: The state before the first position, [B, H, K, V].
    """
    state = initial
    for t in range(w.key.shape[1]):
        state = decayed(state, w, t) + written(w, t)
        yield state


def matrix_scan(w: Writes, query: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
    """y_t = q_tᵀ S_t, [B, L, H, V], and the last state [B, H, K, V].

    Keys and queries may be those of groups of neighbouring heads, [B, L, G, K] with G a divisor of H.

    Args:
        query: q [B, L, H, K] or [B, L, G, K].
        initial: The state before the first position, [B, H, K, V].
    """
    check(w, query, initial)
    arguments = *w, query, initial
    if matrix_native.serves(*arguments):
        y, last = matrix_native.Scan.apply(*arguments)
        return y, last
    heads = w.value.shape[2]
    return plain_scan(*w._replace(key=each_head(w.key, heads)), each_head(query, heads), initial)


def plain_scan(
    decay: Tensor, key: Tensor, value: Tensor, erase: Tensor | None, erased: Tensor | None, query: Tensor,
    initial: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """:func:`matrix_scan` in torch, one step after another."""
    state, read = initial, []
    for t in range(key.shape[1]):
        p, r = (None, None) if erase is None or erased is None else (erase[:, t], erased[:, t])
        state = plain_decayed(decay[:, t], p, r, state) + key[:, t].unsqueeze(-1) * value[:, t].unsqueeze(-2)
        read.append(plain_read(query[:, t], state))
    return torch.stack(read, 1), state


def matrix_map(w: Writes, query: Tensor) -> Tensor:
    """The exact attention map: y_i = Σ_j M[i, j] v_j with M[i, j] = q_iᵀ T_i a_i … T_{j+1} a_{j+1} k_j.

    Returns:
        M [B, H, reader, source]; the value's write strength is in v.
    """
    B, L, H, _ = w.key.shape
    found = w.key.new_zeros(B, H, L, L)
    reads = query.transpose(1, 2).clone()  # [B, H, L, K]: what each reader reads of a state at j
    for j in range(L - 1, -1, -1):
        here = reads[:, :, j:]
        found[:, :, j:, j] = (here @ w.key[:, j].unsqueeze(-1)).squeeze(-1)
        if w.erase is not None and w.erased is not None:
            here = here - (here @ w.erase[:, j].unsqueeze(-1)) * w.erased[:, j].unsqueeze(-2)
        a = w.decay[:, j]
        reads[:, :, j:] = here * (a.unsqueeze(-2) if a.dim() == 3 else a[..., None, None])
    return found
