"""The scan without its states: decays, writes and read-outs a chunk at a time, and a backward that recomputes.

The recurrence itself stays sequential, in the same operations as :func:`~mechint.scan.reference.recurrence`, so
reading or editing a state never changes what is computed beside it, to the bit. Memory of a training step is one
chunk of states and one state for each chunk boundary, not the states of every position.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_BYTES = 4 << 20
"""Size of one chunk's states. Above, a chunk falls out of the cache; below, calls cost more than work."""


def _chunks(u: Tensor, states: int) -> list[slice]:
    per_step = u.shape[0] * u.shape[2] * states * u.element_size()
    size = max(1, min(u.shape[1], CHUNK_BYTES // max(per_step, 1)))
    return [slice(start, min(start + size, u.shape[1])) for start in range(0, u.shape[1], size)]


def _states(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
    """Decays and states of one chunk, time first: [position, batch, channel, state] each; u, dt, B come time first."""
    decay = torch.mul(dt.unsqueeze(-1), A).exp_()
    states = torch.mul((dt * u).unsqueeze(-1), B.unsqueeze(-2))
    state, carried = initial, torch.empty_like(initial)
    for t in range(len(states)):
        state = states[t].add_(torch.mul(decay[t], state, out=carried))
    return decay, states


def _time_first(*tensors: Tensor) -> list[Tensor]:
    """[batch, position, …] -> [position, batch, …], contiguous: the recurrence then runs over whole blocks."""
    return [tensor.transpose(0, 1).contiguous() for tensor in tensors]


class Scan(torch.autograd.Function):
    """As :func:`mechint.scan.selective.selective_scan`, whose arguments are ours."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor) -> Any:
        out, boundaries = torch.empty_like(u), []
        state = initial.contiguous()
        for part in _chunks(u, A.shape[1]):
            boundaries.append(state)
            u_, dt_, B_, C_ = _time_first(*(x[:, part] for x in (u, dt, B, C)))
            _, states = _states(u_, dt_, A, B_, state)
            state = states[-1].clone()
            out[:, part] = read_out(states, C_).transpose(0, 1)
        ctx.save_for_backward(u, dt, A, B, C, *boundaries)
        return out, state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor, grad_last: Tensor) -> Any:
        u, dt, A, B, C, *boundaries = ctx.saved_tensors
        d_u, d_dt, d_B, d_C = (torch.empty_like(x) for x in (u, dt, B, C))
        d_A, carry = torch.zeros_like(A), grad_last.contiguous()
        parts = _chunks(u, A.shape[1])
        for part, initial in zip(reversed(parts), reversed(boundaries), strict=True):
            u_, dt_, B_, C_, g = _time_first(*(x[:, part] for x in (u, dt, B, C, grad_out)))
            decay, states = _states(u_, dt_, A, B_, initial)
            d_C[:, part] = torch.matmul(g.unsqueeze(-2), states).squeeze(-2).transpose(0, 1)
            d_state = torch.mul(g.unsqueeze(-1), C_.unsqueeze(-2))  # ∂/∂h_t, the read-out's share first
            last = len(d_state) - 1
            d_state[last] += carry
            for t in reversed(range(last)):
                torch.addcmul(d_state[t], decay[t + 1], d_state[t + 1], out=d_state[t])
            carry = decay[0] * d_state[0]
            into_u = torch.matmul(d_state, B_.unsqueeze(-1)).squeeze(-1)
            d_B[:, part] = torch.matmul((dt_ * u_).unsqueeze(-2), d_state).squeeze(-2).transpose(0, 1)
            # ∂/∂(Δ_t A) = ∂/∂h_t ⊙ h_{t-1} ⊙ exp(Δ_t A)
            d_exponent = d_state.mul_(decay)
            d_exponent[1:].mul_(states[:-1])
            d_exponent[0].mul_(initial)
            d_dt[:, part] = ((d_exponent * A).sum(-1) + into_u * u_).transpose(0, 1)
            d_A += d_exponent.mul_(dt_.unsqueeze(-1)).sum((0, 1))
            d_u[:, part] = (into_u * dt_).transpose(0, 1)
        return d_u, d_dt, d_A, d_B, d_C, carry


def read_out(states: Tensor, C: Tensor) -> Tensor:
    """Σ_n C[n] h[…, n]: states [..., channel, state], C [..., state] -> [..., channel]."""
    return torch.matmul(states, C.unsqueeze(-1)).squeeze(-1)
