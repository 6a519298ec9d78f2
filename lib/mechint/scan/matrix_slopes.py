"""The gradients of a matrix memory that erases nothing, in matrix products: a chunk of positions at a time.

With one decay a head and S the state before a chunk, the read-outs of its positions i are (Dao & Gu 2024, section 6)::

    y_i = P[i, 0] q_iᵀ S + Σ_{j ≤ i} P[i, j] (q_i · k_j) v_j        P[i, j] = a_i … a_{j+1}; P[i, 0] = a_i … a_1

so nearly all of the work is matrix products, and those with keys and queries are done once for all heads of a group.
Decays are multiplied one after another and never divided or taken as logarithms: zero and negative ones are exact, too.

Axes: B batch, C chunk, Q position of a chunk, G group, E head of a group, K key, V value.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

LONGEST = 64
"""Positions of a chunk, at most: products within a chunk cost as much as those with states at about twice as many."""
HELD = 1 << 20
"""Numbers of the states that are worked on at once, at most, if it is more than one state; more leave the cache."""
SHORTEST, SMALLEST, FEWEST = 16, 1 << 11, 1 << 22
"""Positions, numbers of a head's state, and updates of all states below which a plain loop in C costs less."""

Slopes = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def pays(length: int, state: int, updates: int) -> bool:
    """True if products cost less than a plain loop in C.

    Args:
        length: Positions.
        state: Numbers of a head's state.
        updates: Updates of numbers of states, in all.
    """
    return length >= SHORTEST and state >= SMALLEST and updates >= FEWEST


def chunk_of(length: int) -> int:
    """The positions of a chunk of a sequence of that length: at most LONGEST, and chunks of about equal length."""
    return -(-length // max(1, -(-length // LONGEST)))


def slopes(
    decay: Tensor, key: Tensor, value: Tensor, query: Tensor, before: Tensor, dy: Tensor, dlast: Tensor
) -> Slopes:
    """The gradients of decay, key, value, query and the initial state, of the shapes of these.

    Args:
        decay: a [B, L, H].
        key, query: k and q [B, L, G, K]; G divides H.
        value: v [B, L, H, V].
        before: The states before each chunk of :func:`chunk_of` L positions, [B, H, C, K, V].
        dy: The gradient of the read-outs, [B, L, H, V].
        dlast: The gradient of the last state, [B, H, K, V].
    """
    (B, L, G, K), (H, V), chunk = key.shape, value.shape[2:], chunk_of(key.shape[1])
    found = [torch.empty_like(x) for x in (decay, key, value, query)]
    dinitial = torch.empty_like(dlast)
    chunks = before.shape[2]
    for rows, all_steps in pieces(B, chunks, H * K * V):
        of_state = grouped(dlast[rows].unsqueeze(2), G)[:, 0]  # [B, G, K, E, V]
        for steps in all_steps:
            here = rows, slice(steps.start * chunk, min(steps.stop * chunk, L))
            cut = lambda x, fill=0.0: in_chunks(x[here], chunk, G, fill)  # noqa: B023
            states = grouped(before[rows, :, steps], G)
            *made, of_state = of_chunks(
                cut(decay, 1.0), cut(key)[..., 0, :], cut(value), cut(query)[..., 0, :], states, cut(dy), of_state
            )
            for whole, part in zip(found, made, strict=True):
                joined = part.transpose(2, 3).flatten(1, 2)[:, : here[1].stop - here[1].start]
                whole[here] = joined.reshape(whole[here].shape)
        dinitial[rows] = of_state.transpose(2, 3).flatten(1, 2)
    return (*found, dinitial)  # type: ignore[return-value]


def pieces(rows: int, chunks: int, state: int) -> Iterator[tuple[slice, list[slice]]]:
    """Rows and, for each, chunks from the last to the first, so that HELD numbers of states are held at once.

    Args:
        state: The numbers of one row's state.
    """
    long = max(1, min(chunks, HELD // max(state, 1)))
    many = max(1, HELD // max(state * long, 1))
    steps = [slice(max(0, end - long), end) for end in range(chunks, 0, -long)]
    for row in range(0, rows, many):
        yield slice(row, min(row + many, rows)), steps


def in_chunks(x: Tensor, chunk: int, groups: int, fill: float) -> Tensor:
    """x [B, L, H, …] as [B, C, G, Q, E, …], or keys [B, L, G, K] with E 1; missing positions are ``fill``."""
    missing = -x.shape[1] % chunk
    if missing:
        x = torch.cat([x, x.new_full((len(x), missing, *x.shape[2:]), fill)], 1)
    return x.unflatten(1, (-1, chunk)).unflatten(3, (groups, -1)).transpose(2, 3).contiguous()


def of_chunks(
    decay: Tensor, key: Tensor, value: Tensor, query: Tensor, before: Tensor, dy: Tensor, dlast: Tensor
) -> Slopes:
    """The gradients of decay, key, value, query and the state before the first of some chunks.

    Args:
        decay: [B, C, G, Q, E].
        key, query: [B, C, G, Q, K].
        value, dy: [B, C, G, Q, E, V].
        before: The states before these chunks, [B, C, G, K, E, V].
        dlast: The gradient of the state behind the last chunk, [B, G, K, E, V].
    """
    flat = lambda x: x.flatten(-2)  # [..., E, V] -> [..., E · V]
    apart = lambda x: x.unflatten(-1, value.shape[-2:])
    by_head = lambda x: x.transpose(-2, -3)  # [..., Q, E, V] <-> [..., E, Q, V]
    decays = decay.mT.contiguous()  # [B, C, G, E, Q]
    P = chain(decays)  # [B, C, G, E, Q, 1 + Q]
    whole = P[..., -1, 0]  # [B, C, G, E]: what is left of a state behind a chunk
    from_start, to_end = P[..., 0].mT.unsqueeze(-1), P[..., -1, 1:].mT.unsqueeze(-1)  # [B, C, G, Q, E, 1]
    read, written = flat(from_start * dy), flat(to_end * value)

    into_states = apart(query.mT @ read)  # [B, C, G, K, E, V]: of the state before a chunk, by its own read-outs
    behind, state = torch.empty_like(before), dlast
    for c in range(before.shape[1] - 1, -1, -1):
        behind[:, c] = state
        state = torch.addcmul(into_states[:, c], whole[:, c, :, None, :, None], state)

    by_write = apart(key @ flat(behind))  # [B, C, G, Q, E, V]: of what each position writes, by the state behind
    dquery, dkey, dvalue = read @ flat(before).mT, written @ flat(behind).mT, to_end * by_write
    dP = torch.empty_like(P)
    dP[..., 0] = (apart(query @ flat(before)) * dy).sum(-1).mT

    meet = (query @ key.mT).unsqueeze(3)  # [B, C, G, 1, Q, Q]
    reads, values = by_head(dy).contiguous(), by_head(value).contiguous()
    pairs, kept = reads @ values.mT, P[..., 1:]  # [B, C, G, E, Q, Q]
    both = (kept * pairs).sum(3)  # [B, C, G, Q, Q]
    dquery += both @ key
    dkey += both.mT @ query
    dvalue += by_head((kept * meet).mT @ reads)
    torch.mul(pairs, meet, out=dP[..., 1:])
    dP[..., -1, 0] += (behind * before).sum((3, 5))
    dP[..., -1, 1:] += (by_write * value).sum(-1).mT
    return chain_slopes(decays, P, dP).mT, dkey, dvalue, dquery, state


def grouped(states: Tensor, groups: int) -> Tensor:
    """States [B, H, C, K, V] as [B, C, G, K, E, V]."""
    B, H, C, K, V = states.shape
    return states.reshape(B, groups, H // groups, C, K, V).permute(0, 3, 1, 4, 2, 5).contiguous()


def chain(decay: Tensor) -> Tensor:
    """P [..., Q, 1 + Q] of decays [..., Q]: column 0 for the state before the chunk, column 1 + j for position j."""
    length = decay.shape[-1]
    found = decay.new_zeros(*decay.shape, 1 + length)
    found[..., 0, 0] = decay[..., 0]
    found.diagonal(1, -2, -1).fill_(1.0)
    for i in range(1, length):
        torch.mul(found[..., i - 1, : 1 + i], decay[..., i, None], out=found[..., i, : 1 + i])
    return found


def chain_slopes(decay: Tensor, chained: Tensor, slopes: Tensor) -> Tensor:
    """The gradients of the decays of :func:`chain` from those of what it gave; ``slopes`` is overwritten."""
    for i in range(decay.shape[-1] - 2, -1, -1):
        here = slopes[..., i, : 1 + i]
        here.addcmul_(slopes[..., i + 1, : 1 + i], decay[..., i + 1, None])
    first = slopes[..., 0, :1]
    return torch.cat([first, (slopes[..., 1:, :] * chained[..., :-1, :]).sum(-1)], -1)
