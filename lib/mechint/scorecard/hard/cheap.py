"""Cheap rankings, which the hard models must not give in to: one product of weights, and one gradient.

On the easy compiled models both find the circuit (its idle units reach no logit): there a method that is exact has
shown only that it sees what can be reached.
"""

from __future__ import annotations

import functools
from typing import cast

import torch
from torch import Tensor, nn

from ...analyses.circuits.methods.evaluator import Evaluator
from ...analyses.circuits.methods.gradients import at_sites
from ...interventions.model import Model
from ...interventions.units import units_named
from ...models import gpt2
from ...models.mamba import Layer, Mamba
from ...models.parts import base as parts
from ...models.parts.attention import Attention
from ...models.parts.delta import GatedDelta
from ...models.parts.feed_forward import GatedMLP
from ...models.parts.mamba2 import Mamba2Mixer
from ...models.stack import Stack
from ...utils.errors import MechintError, an


def gradient_size(evaluator: Evaluator) -> Tensor:
    """Mean size of ∂(log-probability of the answers)/∂a over prompts and tokens, [units]."""
    return at_sites(evaluator, lambda value, slope: slope)


@functools.singledispatch
def reach(model: Model) -> Tensor:
    """The sum over all paths from a unit to the logits of the product of the sizes of their weights, [units].

    It looks at no prompt. Channels of a Mamba, key and value channels of a GPT-2, the scored units of a stack of parts.

    Raises:
        MechintError: the model is of another family.
    """
    raise MechintError(f"no product of weights is known of {an(model.config.family)} model; leave out the method reach")


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


@reach.register
@torch.no_grad()
def stack_reach(model: Stack) -> Tensor:
    norm, head = model.ending
    ahead = norm_weight(norm) * head.abs().amax(0)
    found: dict[tuple[int, str], Tensor] = {}
    for i in reversed(range(len(model.layers))):
        layer = cast(parts.Layer, model.layers[i])
        for step in reversed(layer.steps):
            back = torch.zeros_like(ahead)
            for branch in step:
                if branch.behind or not branch.norm:
                    raise MechintError(
                        f"no product of weights is known of layer {i}, whose parts have no norm in front or one "
                        "behind; leave out the method reach"
                    )
                for name in branch.parts:
                    own, into = through(layer.parts[name], ahead)
                    found |= {(i, kind): scores for kind, scores in own.items()}
                    back += norm_weight(layer[branch.norm]) * into
            ahead = ahead + back
    units = units_named(model, model.scored_unit)
    return torch.cat([found[row.layer, row.kind.name].flatten() for row in units.by_row])


@functools.singledispatch
def through(part: nn.Module, ahead: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The scores of a part's units by kind, and the sums over paths from each direction that it reads, [model].

    Args:
        ahead: The sums over paths from the residual stream behind the part, [model].

    Raises:
        MechintError: no rule is known for parts of this kind.
    """
    raise MechintError(f"no product of weights is known of {type(part).__name__}; leave out the method reach")


@through.register
def mamba2_through(part: Mamba2Mixer, ahead: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    inner, states, G = part.inner, part.groups * part.key_size, part.groups
    z, x, B, C, dt = part.in_proj.weight.abs().split([inner, inner, states, states, part.heads])
    own = part.out_proj.weight.abs().T @ ahead
    own = own if part.norm is None else own * norm_weight(part.norm)
    heads = own.view(part.heads, -1).sum(1)
    groups = heads.view(G, -1).sum(1).repeat_interleave(part.key_size)
    into = (x + z).T @ own + dt.T @ heads + B.T @ (C.norm(dim=1) * groups) + C.T @ (B.norm(dim=1) * groups)
    return {"ssm_channel": own * x.norm(dim=1)}, into


@through.register
def delta_through(part: GatedDelta, ahead: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    q, k, v = part.in_proj_qkv.weight.abs().split(part.sizes)
    own = (part.out_proj.weight.abs().T @ ahead) * norm_weight(part.norm).repeat(part.heads)
    heads = own.view(part.heads, -1).sum(1)
    keys = heads.view(part.key_heads, -1).sum(1).repeat_interleave(part.key_size)
    into = v.T @ own + k.T @ (q.norm(dim=1) * keys) + q.T @ (k.norm(dim=1) * keys)
    into = into + part.in_proj_z.weight.abs().T @ own
    into = into + (part.in_proj_a.weight.abs() + part.in_proj_b.weight.abs()).T @ heads
    return {"ssm_channel": own * v.norm(dim=1)}, into


@through.register
def attention_through(part: Attention, ahead: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    size, groups = part.d_head, part.n_kv_head
    own = part.o_proj.weight.abs().T @ ahead  # [H · d]
    query, gate = part.q_proj.weight.abs(), None
    if part.gated:
        query, gate = (half.flatten(0, 1) for half in query.unflatten(0, (part.n_head, 2, -1)).unbind(1))
    key, value = part.k_proj.weight.abs(), part.v_proj.weight.abs()
    shared = lambda each: each.view(groups, -1, size).sum(1).flatten()  # of heads that share keys and values
    heads = own.view(-1, size).sum(1).repeat_interleave(size)
    keys, values = shared(query.norm(dim=1) * heads), shared(own)
    keys_of = key.norm(dim=1).view(groups, 1, size).expand(-1, part.n_head // groups, -1).flatten()
    into = value.T @ values + key.T @ keys + query.T @ (keys_of * heads)
    into = into if gate is None else into + gate.T @ own
    return {"kv": torch.cat([keys * key.norm(dim=1), values * value.norm(dim=1)])}, into


@through.register
def neurons_through(part: GatedMLP, ahead: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    own = part.down_proj.weight.abs().T @ ahead
    return {}, (part.gate_proj.weight.abs() + part.up_proj.weight.abs()).T @ own


def norm_weight(norm: nn.Module) -> Tensor:
    """The factors of a norm, the largest of which counts as 1; some norms store it less one."""
    return relative(cast(Tensor, norm.weight) + getattr(norm, "plus", 0.0))


def relative(weight: Tensor) -> Tensor:
    """The weights of a norm, the largest of which counts as 1."""
    return weight.abs() / weight.abs().max()
