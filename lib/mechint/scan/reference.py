"""The recurrence as the paper writes it: one step after another, any dtype, differentiable, editable."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def recurrence(
    decay: Tensor,
    write: Tensor,
    initial: Tensor,
    on_step: Callable[[int, Tensor], Tensor] | None = None,
) -> Tensor:
    """h_t = decay_t ⊙ h_{t-1} + write_t (Gu & Dao 2023, equation 2a, discretised).

    Args:
        decay, write: [batch, position, channel, state].
        initial: h before the first position, [batch, channel, state].
        on_step: Called as ``on_step(t, h_t)``; what it returns is h_t from there on.

    Returns:
        The states, [batch, position, channel, state].
    """
    state, states = initial, []
    for t in range(decay.shape[1]):
        state = decay[:, t] * state + write[:, t]
        if on_step is not None:
            state = on_step(t, state)
        states.append(state)
    return torch.stack(states, 1)
