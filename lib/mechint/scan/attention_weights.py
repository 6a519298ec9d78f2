"""The scan as attention, exactly, and its states at chosen positions: neither ever holds [position, channel, state].

The hidden attention of one Mamba layer (Ali, Zimerman & Wolf 2024, "The Hidden Attention of Mamba Models") is, for
channel e and j ≤ i (0 above the diagonal),

    α_e[i, j] = Σ_n C_i[n] · exp(A_e[n] · Σ_{k=j+1..i} Δ_k[e]) · Δ_j[e] · B_j[n],
    scan_out_i[e] = Σ_j α_e[i, j] u_j[e] + Σ_n C_i[n] exp(A_e[n] Σ_{k=0..i} Δ_k[e]) initial[e, n].

The ways to reduce its E maps to what can be looked at, all exact (g the gate SiLU(z), W = W_out, d a direction):

=========== =================================== ================ ===========================================
reduce      formula                             shape            needs
=========== =================================== ================ ===========================================
"weights"   Σ_e w_e α_e[i, j]                   [batch, i, j]    nothing; ``weights`` are ones when left out
"direction" Σ_e g_i[e] (Wᵀd)_e α_e[i, j] u_j[e] [batch, i, j]    direction, u, gate, W_out
"energy"    ‖W (g_i ⊙ α[i, j] ⊙ u_j)‖₂          [batch, i, j]    u, gate, W_out
"channels"  α_e[i, j] for e in ``channels``     [batch, e, i, j] channels, their numbers
=========== =================================== ================ ===========================================

The rows of "direction" add up to d · W(g_i ⊙ scan_out_i), from an empty state: for a logit, d is its row of the
unembedding times the final norm's weight (and 1/rms). D u has no part in these maps.

Between a j before a boundary and an i behind it the decay is a product, up to the boundary and from there. So a
rectangle of the map is one matrix product over E·N, and no exponent is above 0 (Δ ≥ 0, A < 0): no length overflows.
A tile on the diagonal is halved down to single entries. Exponents are summed from the boundary on, in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.errors import MechintError, did_you_mean
from . import selective
from .checks import CHANNELS, RATES, SHARED, STATE, Shapes, check_range, check_sizes, widest

NEEDS = {"weights": "", "direction": "direction u gate W_out", "energy": "u gate W_out", "channels": "channels"}
TILE, ENERGY_TILE = 512, 64
"""Sides of a tile. Smaller, exponentials cost more than products; "energy" holds D numbers for each of its pairs."""
FACTOR_BYTES = 4 << 20  # of a factor of a product, or of the maps apart: above, it falls out of the cache
Part = Sequence[Tensor]  # of some positions: Δ [..., i, c], B or C [..., i, N], weights [..., i, c]


@torch.no_grad()
def hidden_attention(
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    reduce: str = "weights",
    *,
    weights: Tensor | None = None,
    channels: Sequence[int] | None = None,
    direction: Tensor | None = None,
    u: Tensor | None = None,
    gate: Tensor | None = None,
    W_out: Tensor | None = None,
    tile: int | None = None,
    memory_mib: float = 512,
) -> Tensor:
    """The map of one layer, reduced as the table above says; without gradients.

    In float32, or in float64 where an argument is. Multiplications for each pair of positions: E·N; for "energy"
    E·(N + D), 50 times as many in mamba-130m.

    Args:
        dt, A, B, C: As for :func:`mechint.scan.selective.selective_scan`, with Δ ≥ 0.
        reduce, weights, channels, direction: A name from the table; [channel]; numbers of channels; [model].
        u, gate, W_out: Input of the scan and SiLU(z), [batch, position, channel]; [model, channel].
        tile: Side of the tiles; None for the largest sensible one.
        memory_mib: The most that is held at once beside the arguments and the result.

    Raises:
        MechintError: an unknown ``reduce``, or arguments that do not fit it, each other or the memory.
    """
    name = "hidden_attention"
    if reduce not in NEEDS:
        raise MechintError(f"{name}: no reduce {reduce!r}{did_you_mean(reduce, NEEDS)}; there are {', '.join(NEEDS)}")
    shapes: Shapes = {"dt": (dt, CHANNELS), "A": (A, RATES), "B": (B, SHARED), "C": (C, SHARED)}
    shapes |= {"W_out": (W_out, ("model", "channel")), "direction": (direction, ("model",))}
    shapes |= {"u": (u, CHANNELS), "gate": (gate, CHANNELS), "weights": (weights, ("channel",))}
    given = {key for key, (tensor, _) in shapes.items() if tensor is not None} - {"dt", "A", "B", "C"}
    given, needs = given | ({"channels"} if channels is not None else set()), set(NEEDS[reduce].split())
    if needs - given or given - needs - {reduce}:
        raise MechintError(f"{name}: reduce={reduce!r} takes {NEEDS[reduce] or 'at most weights'}; got {sorted(given)}")
    if (tile is not None and tile < 1) or (channels is not None and not len(channels)):
        raise MechintError(f"{name}: tile is {tile} and channels are {channels}; at least 1 is needed")
    check_sizes(name, shapes)
    chosen = check_range(name, "channel", range(len(A)) if channels is None else channels, 0, len(A))
    dtype = widest(*(x for x, _ in shapes.values()))
    if direction is not None and W_out is not None:
        weights = direction.to(dtype) @ W_out.to(dtype)
    share = torch.ones_like(A[:, 0], dtype=dtype) if weights is None else weights.to(dtype)
    apart, out = reduce in ("channels", "energy"), W_out if reduce == "energy" else None
    width, length, N = 0 if out is None else len(out), dt.shape[1], A.shape[1]
    side = min((TILE if out is None else ENERGY_TILE) if tile is None else tile, length)
    square = (1 << (side - 1).bit_length()) ** 2  # a tile on the diagonal is padded to a power of two
    one_channel = 4 * side * N + width + length + 40 * side + 3 * square * apart  # in numbers held
    fixed = (4 + 2 * width) * square + 16 * side * N + len(A)
    room = int(memory_mib * 2**20) // dtype.itemsize
    if fixed + one_channel > room:
        need = -(-(fixed + one_channel) * dtype.itemsize // 2**20)
        raise MechintError(f"{name}: tile={side} needs memory_mib of at least {need}, not {memory_mib:g}")
    count = max(1, min((room - fixed) // one_channel, FACTOR_BYTES // (side * (side if apart else N) * dtype.itemsize)))
    groups = torch.tensor(chosen, device=dt.device).split(count)
    result = dt.new_zeros(len(dt), *[len(chosen)] * (channels is not None), length, length, dtype=dtype)
    spans = [slice(start, min(start + side, length)) for start in range(0, length, side)]

    def one(row: int, i: slice, j: slice, group: Tensor) -> Tensor:
        """The tile [i, j], or apart [c, i, j], of some channels."""
        steps, wrote = (dt[row, span][:, group].to(dtype) for span in (i, j))
        read = share[group].expand_as(steps) if gate is None else share[group] * gate[row, i][:, group]
        between = dt[row, j.stop : i.start][:, group].sum(0, dtype=torch.float64) if i != j else None
        keys = (wrote, B[row, j].to(dtype), wrote if u is None else wrote * u[row, j][:, group])
        return _tile(A[group].to(dtype), (steps, C[row, i].to(dtype), read), keys, between, apart)

    for row, i, j in ((row, i, j) for row in range(len(dt)) for i in spans for j in spans if j.start <= i.start):
        if channels is not None:
            for group, into in zip(groups, result[row].split(count), strict=True):
                into[:, i, j] = one(row, i, j, group)
        elif out is None:
            for group in groups:
                result[row, i, j] += one(row, i, j, group)
        else:
            vectors = result.new_zeros(width, result[row, i, j].numel())
            for group in groups:
                vectors.addmm_(out[:, group].to(dtype), one(row, i, j, group).flatten(1))
            result[row, i, j] = torch.linalg.vector_norm(vectors, dim=0).view_as(result[row, i, j])
    return result


def _tile(A: Tensor, queries: Part, keys: Part, between: Tensor | None, apart: bool) -> Tensor:
    """[i, j], or apart [c, i, j]; ``between``: Σ Δ [c] from behind the keys up to the queries; None: same positions."""
    if between is not None:
        return _rectangles(A, [x[None] for x in queries], [x[None] for x in keys], between, apart)[0]
    length, side = len(queries[0]), 1 << (len(queries[0]) - 1).bit_length()
    own = (queries[1] * keys[1]).sum(-1, keepdim=True) * queries[2] * keys[2]  # [i, c]
    tile = torch.diag_embed(F.pad(own.T if apart else own.sum(-1), (0, side - length)))
    queries_, keys_ = ([F.pad(x, (0, 0, 0, side - length)) for x in y] for y in (queries, keys))
    for half in (1 << k for k in range(side.bit_length() - 1)):
        pairs = side // (2 * half)
        behind, before = ([x.unflatten(0, (pairs, 2, half))[:, k] for x in y] for k, y in ((1, queries_), (0, keys_)))
        blocks = tile.unflatten(-1, (pairs, 2 * half)).unflatten(-3, (pairs, 2 * half)).diagonal(dim1=-4, dim2=-2)
        blocks[..., half:, :half, :] = _rectangles(A, behind, before, 0.0, apart).movedim(0, -1)
    return tile[..., :length, :length]


def _rectangles(A: Tensor, queries: Part, keys: Part, between: Tensor | float, apart: bool) -> Tensor:
    """Queries behind a boundary with keys before it, many pairs of them: [pair, i, j], or apart [pair, c, i, j]."""
    after = queries[0].cumsum(1, dtype=torch.float64) + between  # Σ_{k ≤ i} from the boundary
    before = torch.zeros_like(keys[0], dtype=torch.float64)  # Σ_{k > j} up to the boundary
    before[:, :-1] = keys[0][:, 1:].flip(1).cumsum(1, dtype=torch.float64).flip(1)
    factors = []
    for sums, (_, vector, scale) in ((after, queries), (before, keys)):
        sums = sums.to(A.dtype)
        if apart:
            sums, scale = sums.mT.contiguous(), scale.mT
        factor = torch.mul(sums.unsqueeze(-1), A.unsqueeze(1) if apart else A).exp_()
        factor.mul_(vector.unsqueeze(1 if apart else 2)).mul_(scale.unsqueeze(-1))
        factors.append(factor if apart else factor.flatten(2))
    return factors[0] @ factors[1].mT


def states(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    initial: Tensor | None = None,
    positions: Sequence[int] | None = None,
    reduce: str | None = None,
    chunk: int = 64,
) -> Any:
    """The scan's states, only those asked for; gradients follow torch's ambient mode.

    Args:
        u, dt, A, B, initial: As for :func:`mechint.scan.selective.selective_scan`.
        positions: Negative ones count from the end; None for all of them, ``chunk`` positions at a time.
        reduce: None; "channel" or "state" for the mean square over that axis, taken as it streams.

    Returns:
        [batch, len(positions), channel, state] less the reduced axis; without ``positions`` an iterator of (first
        position, the same for a chunk).
    """
    if reduce not in (None, "channel", "state") or chunk < 1:
        raise MechintError(f"states: reduce is {reduce!r} (None, channel, state) and chunk {chunk} (at least 1)")
    shapes: Shapes = {"u": (u, CHANNELS), "dt": (dt, CHANNELS), "A": (A, RATES), "B": (B, SHARED)}
    check_sizes("states", {**shapes, "initial": (initial, STATE)})
    dtype = widest(u, dt, A, B, initial)
    state = u.new_zeros(len(u), *A.shape, dtype=dtype) if initial is None else initial.to(dtype)
    length, axis = u.shape[1], {"channel": 1, "state": 2}.get(reduce or "")

    def some(wanted: Sequence[int], begin: int, state: Tensor) -> tuple[Tensor, Tensor]:
        """At the wanted positions, from the state before ``begin``; and the last state."""
        held = state.new_empty(len(u), len(wanted), *(size for k, size in enumerate(A.shape, 1) if k != axis))
        for t, k in sorted((t, k) for k, t in enumerate(wanted)):
            if t >= begin:  # B in C's place: the read-out is not looked at
                u_, dt_, B_ = (x[:, begin : t + 1] for x in (u, dt, B))
                state, begin = selective.selective_scan(u_, dt_, A, B_, B_, state)[1], t + 1
            held[:, k] = state if axis is None else state.square().mean(axis)
        return held, state

    def chunks(state: Tensor) -> Iterator[tuple[int, Tensor]]:
        for first in range(0, length, chunk):
            held, state = some(range(first, min(first + chunk, length)), first, state)
            yield first, held
            del held  # only the caller keeps it

    wanted = check_range("states", "position", () if positions is None else positions, -length, length)
    return chunks(state) if positions is None else some(wanted, 0, state)[0]
