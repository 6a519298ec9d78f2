"""Cheap rankings, which the hard models must not give in to: one product of weights, and one gradient.

On the easy compiled models both find the circuit (its idle units reach no logit): there a method that is exact has
shown only that it sees what can be reached.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ...analyses.circuits.methods.evaluator import Evaluator
from ...analyses.circuits.methods.gradients import at_sites
from ...interventions.model import Model
from ...models import gpt2
from ...models.mamba import Layer, Mamba
from ...utils.errors import MechintError


def gradient_size(evaluator: Evaluator) -> Tensor:
    """Mean size of ∂(log-probability of the answers)/∂a over prompts and tokens, [units]."""
    return at_sites(evaluator, lambda value, slope: slope)


@functools.singledispatch
def reach(model: Model) -> Tensor:
    """The sum over all paths from a unit to the logits of the product of the sizes of their weights, [units].

    It looks at no prompt. Channels of a Mamba, key and value channels of a GPT-2.

    Raises:
        MechintError: the model is of another family.
    """
    raise MechintError(f"no product of weights is known of a {model.config.family} model; leave out the method reach")


@reach.register
@torch.no_grad()
def mamba_reach(model: Mamba) -> Tensor:
    ahead, found = relative(model.norm_f.weight), []  # of each residual direction
    for layer in reversed(range(model.config.n_layer)):
        mixer: Layer = model.layers[layer]  # type: ignore[assignment]
        size, ranks = model.config.d_state, model.config.dt_rank
        own = mixer.out_proj.weight.abs().T @ ahead  # of each channel, by its output
        steps, writes, reads = mixer.x_proj.weight.abs().split([ranks, size, size])
        by_step = steps.T @ (mixer.dt_proj.weight.abs().T @ own)
        by_state = (writes.T @ reads.sum(1) + reads.T @ writes.sum(1)) * own.sum()
        every = own + by_step + by_state
        found.append(every * mixer.in_proj.weight[: len(every)].norm(dim=1))
        ahead = ahead + relative(mixer.norm.weight) * (mixer.in_proj.weight[: len(every)].abs().T @ every)
    return torch.cat(found[::-1])


@reach.register
@torch.no_grad()
def gpt2_reach(model: gpt2.GPT2) -> Tensor:
    config = model.config
    ahead, found = relative(model.ln_f.weight), []
    for layer in reversed(range(config.n_layer)):
        block: gpt2.Layer = model.layers[layer]  # type: ignore[assignment]
        neurons = block.mlp.c_proj.weight.abs().T @ ahead
        ahead = ahead + relative(block.ln_2.weight) * (block.mlp.c_fc.weight.abs().T @ neurons)
        query, key, value = block.attn.c_attn.weight.abs().chunk(3)
        bias = block.attn.c_attn.bias.abs().chunk(3)
        values = block.attn.c_proj.weight.abs().T @ ahead
        heads = values.view(config.n_head, -1).sum(1).repeat_interleave(len(values) // config.n_head)
        asked = query.norm(dim=1) + bias[0]
        keys = asked * heads
        found.append(torch.cat([keys * key.norm(dim=1), values * value.norm(dim=1)]))
        back = value.T @ values + key.T @ keys + query.T @ ((key.norm(dim=1) + bias[1]) * heads)
        ahead = ahead + relative(block.ln_1.weight) * back
    return torch.cat(found[::-1])


def relative(weight: Tensor) -> Tensor:
    """The weights of a norm, the largest of which counts as 1."""
    return weight.abs() / weight.abs().max()
