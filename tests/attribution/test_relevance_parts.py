"""Relevance of every family of parts: it adds up, and is what slow formulas give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("transformers")

import mechint
from mechint.attribution import relevance_rules as rules
from mechint.attribution.relevance import no_rules, relevance
from mechint.models.parts.attention import Attention
from mechint.models.parts.base import Layer
from mechint.models.parts.delta import GatedDelta, KimiDelta
from mechint.models.parts.experts import MixtureOfExperts
from mechint.models.parts.feed_forward import MLP, GatedMLP
from mechint.models.parts.latent_attention import LatentAttention
from mechint.models.parts.mamba2 import Mamba2Mixer
from mechint.models.parts.norms import LayerNorm, WeightlessLayerNorm
from mechint.models.parts.short_conv import ShortConv
from mechint.models.stack import Stack
from mechint.utils.errors import MechintError
from tests.models.families.test_parity import JUDGES, SEEDS, error, prompt, random_model

OWN_RULES = "(mamba2|falcon_h1|jamba|zamba2|qwen3_5|kimi_linear|lfm2|gemma2|phi|olmo|olmoe)-0"
"""Families with each kind of part that has a rule, for the quick set."""

# ---- all add up ------------------------------------------------------------------------------------------------------


@pytest.mark.slow_except(OWN_RULES)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", JUDGES)
def test_every_layer_of_every_family_adds_up_to_the_logit(name: str, seed: int, tmp_path: Path) -> None:
    model, ids = random_model(name, seed, tmp_path).requires_grad_(False), prompt()
    assert no_rules(model) is None
    found = relevance(model, ids, ids[:, 0], torch.tensor([10, 6]))
    clean = model(ids)[torch.arange(2), torch.tensor([10, 6]), ids[:, 0]]
    torch.testing.assert_close(found.logit, clean, rtol=1e-12, atol=0)
    for layer in range(model.num_layers + 1):
        total = found.layers[layer].sum(-1) + found.bias[layer:].sum(0)
        torch.testing.assert_close(total, clean, rtol=1e-9, atol=1e-11)
    assert not found.tokens[1, 7:].any() and found.tokens[0].any()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_hooks_go_where_a_run_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = random_model("qwen3_5_moe", 0, tmp_path), prompt()
    monkeypatch.setattr(rules, "half", torch.mul)  # the gradient of the product: both factors get all
    with pytest.raises(MechintError, match="miss the logit by"):
        relevance(model, ids, ids[:, 0])
    monkeypatch.setattr(rules, "half", lambda a, b: a.nope)
    with pytest.raises(AttributeError):
        relevance(model, ids, ids[:, 0])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_parts_without_rules_are_refused(tmp_path: Path) -> None:
    model = random_model("lfm2", 0, tmp_path)
    model.layers[0].parts["odd"] = nn.Identity()
    with pytest.raises(MechintError, match="no rules for parts of the kind Identity"):
        relevance(model, prompt(), torch.tensor([1, 2]))


# ---- slow formulas ---------------------------------------------------------------------------------------------------

At = Callable[[str], Tensor]
"""A site of the layer in a plain run: the coefficients that rules hold."""


def halves(a: Tensor, b: Tensor) -> Tensor:
    return 0.5 * a * b.detach() + 0.5 * a.detach() * b


def swish(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x.detach()))


def rooted(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / (x.detach().square().mean(-1, keepdim=True) + eps).sqrt()


def norm(module: Any, x: Tensor) -> Tensor:
    if isinstance(module, LayerNorm | WeightlessLayerNorm):
        x = x - x.mean(-1, keepdim=True)
        x = rooted(x, torch.ones(()).to(x) if module.weight is None else module.weight, module.eps)
        return x if module.bias is None else x + module.bias
    return rooted(x, module.weight + module.plus, module.eps)


def filtered(conv: Any, x: Tensor) -> Tensor:
    """One position and one tap after another."""
    K, out = conv.kernel_size[0], []
    for t in range(x.shape[1]):
        taps = [conv.weight[:, 0, K - 1 - back] * x[:, t - back] for back in range(min(K, t + 1))]
        out.append(sum(taps, torch.zeros_like(x[:, 0]) + (0 if conv.bias is None else conv.bias)))
    return torch.stack(out, 1)


def mamba2(part: Mamba2Mixer, n: Tensor, at: At) -> Tensor:
    split = part.in_proj(n * part.in_scale)
    if part.scales is not None:
        split = split * torch.cat([torch.full((size,), scale).to(split) for scale, size in part.scales])
    z, x, _ = split.split(part.sizes, -1)
    conv = filtered(part.conv1d, x)[..., : part.inner]
    u = (conv * (part.activation(conv) / conv).detach()).unflatten(-1, (part.heads, -1))
    state, read = torch.zeros_like(at("state")[:, 0]), []
    for t in range(n.shape[1]):
        write = torch.einsum("bhk,bhv->bhkv", at("key")[:, t], at("dt")[:, t, :, None] * u[:, t])
        state = at("decay")[:, t, :, None, None] * state + write
        read.append(torch.einsum("bhk,bhkv->bhv", at("query")[:, t], state))
    y, gate = (torch.stack(read, 1) + part.D[:, None] * u).flatten(2), swish(z)
    if part.norm is None:
        inner = halves(y, gate)
    else:
        wide = y if part.norm.norm_first else halves(y, gate)
        groups = wide.unflatten(-1, (part.norm.groups, -1))
        inner = rooted(groups, torch.ones(()).to(y), part.norm.eps).flatten(-2) * part.norm.weight
        inner = halves(inner, gate) if part.norm.norm_first else inner
    return part.out_proj(inner) * part.out_scale


def delta(part: GatedDelta, n: Tensor, at: At) -> Tensor:
    u = swish(filtered(part.conv1d, part.in_proj_qkv(n)))[..., -part.sizes[-1] :].unflatten(-1, (part.heads, -1))
    state, read = torch.zeros_like(at("state")[:, 0]), []
    for t in range(n.shape[1]):
        key, beta, decay = at("key")[:, t], at("beta")[:, t, :, None], at("decay")[:, t]
        turn = torch.eye(part.key_size).to(key) - (beta * key).unsqueeze(-1) * key.unsqueeze(-2)
        decay = decay[..., None] if decay.dim() == 3 else decay[..., None, None]
        state = turn @ (decay * state) + key.unsqueeze(-1) * (beta * u[:, t]).unsqueeze(-2)
        read.append(torch.einsum("bhk,bhkv->bhv", at("query")[:, t], state))
    normed = rooted(torch.stack(read, 1), part.norm.weight, part.norm.eps)
    if isinstance(part, KimiDelta):
        return part.out_proj((normed * at("gate")).flatten(2))
    return part.out_proj(halves(normed, swish(at_z(part, n))).flatten(2))


def at_z(part: GatedDelta, n: Tensor) -> Tensor:
    return part.in_proj_z(n).unflatten(-1, (part.heads, -1))


def attention(part: Attention, n: Tensor, at: At) -> Tensor:
    value = part.v_proj(n * part.in_scale)
    if part.clip is not None:
        limit = part.clip.limit
        value = value * torch.where(value.abs() > limit, limit / value.abs(), 1.0).detach()
    value = value.unflatten(-1, (-1, part.d_head))
    value = value.repeat_interleave(part.n_head // part.n_kv_head, 2)
    heads = torch.einsum("bihj,bjhd->bihd", at("pattern"), value)
    heads = heads * at("attn_gate") if part.gated else heads
    return part.o_proj(heads.flatten(2)) * part.out_scale


def latent_attention(part: LatentAttention, n: Tensor, at: At) -> Tensor:
    latent = norm(part.kv_a_layernorm, part.kv_a_proj_with_mqa(n)[..., : part.rank])
    value = part.kv_b_proj(latent).unflatten(-1, (part.n_head, -1))[..., part.own :]
    return part.o_proj(torch.einsum("bihj,bjhd->bihd", at("pattern"), value).flatten(2))


def short_convolution(part: ShortConv, n: Tensor, at: At) -> Tensor:
    B, C, x = part.in_proj(n).chunk(3, -1)
    return part.out_proj(halves(C, filtered(part.conv, halves(B, x))))


def plain(part: Any, n: Tensor, at: At) -> Tensor:
    pre = part.up_proj(n)
    return part.down_proj(pre * (part.activation(pre) / pre).detach())


def gated(part: Any, n: Tensor, at: At) -> Tensor:
    pre = part.gate_proj(n) * getattr(part, "gate_scale", 1.0)
    post = halves(pre * (part.activation(pre) / pre).detach(), part.up_proj(n))
    return part.down_proj(post) * getattr(part, "out_scale", 1.0)


def experts(part: MixtureOfExperts, n: Tensor, at: At) -> Tensor:
    """Every expert on every token."""
    inner = n if part.latent_in is None else part.latent_in(n)
    each = [(gated if expert.gated else plain)(expert, inner, at) for expert in part.experts]  # type: ignore[union-attr]
    out = sum(at("expert_weight")[..., x, None] * one for x, one in enumerate(each))
    out = out if part.latent_out is None else part.latent_out(out)
    if part.shared_expert is None:
        return out
    shared = (gated if isinstance(part.shared_expert, GatedMLP) else plain)(part.shared_expert, n, at)
    if part.shared_expert_gate is not None:
        shared = torch.sigmoid(part.shared_expert_gate(n)).detach() * shared
    return out + shared


SLOW: dict[type, Callable[[Any, Tensor, At], Tensor]] = {
    Mamba2Mixer: mamba2, GatedDelta: delta, KimiDelta: delta, Attention: attention, LatentAttention: latent_attention,
    ShortConv: short_convolution, MLP: plain, GatedMLP: gated, MixtureOfExperts: experts,
}  # fmt: skip


def slow_relevance(model: Stack, ids: Tensor, targets: Tensor) -> Tensor:
    """Gradient × input of a forward written anew, [row, position]."""
    sites = {"pattern", "attn_gate", "dt", "decay", "key", "query", "beta", "gate", "expert_weight", "state"}
    with torch.no_grad():
        values = mechint.run(model, ids, [name for name in model.sites if name.split(".")[-1] in sites])
    embedded = (F.embedding(ids, model.embeddings) * model.config.embed_scale).detach().requires_grad_()
    r = embedded
    for i, layer in enumerate(model.layers):
        assert isinstance(layer, Layer)
        at: At = lambda name, i=i: values[f"layers.{i}.{name}"]  # type: ignore[misc]
        for step in layer.steps:
            added = []
            for branch in step:
                n = norm(layer[branch.norm], r) if branch.norm else r
                for name in branch.parts:
                    out = SLOW[type(layer.parts[name])](layer.parts[name], n, at)
                    out = norm(layer[branch.behind[name]], out) if name in branch.behind else out
                    added.append(out * branch.scale)
            r = r + sum(added)
    last, head = model.ending
    logit = model.logit_scale * (norm(last, r)[:, -1] * head[targets]).sum(-1)
    if model.logit_cap:
        logit = logit * (model.logit_cap * torch.tanh(logit / model.logit_cap) / logit).detach()
    [grad] = torch.autograd.grad(logit.sum(), embedded)
    return (grad * embedded).sum(-1)


@pytest.mark.parametrize(
    "name",
    ["mamba2", "falcon_h1", "qwen3_5_moe", "qwen3_next", "olmo_hybrid", "kimi_linear", "lfm2", "nemotron_h", "gemma2",
     "granitemoehybrid", "gpt_neox", "phi", "olmo", "olmoe", "cohere"],
)  # fmt: skip
def test_tokens_have_what_slow_formulas_give_them(name: str, tmp_path: Path) -> None:
    model, ids = random_model(name, 1, tmp_path).requires_grad_(False), prompt(length=7)
    targets = torch.tensor([5, 9])
    assert error(relevance(model, ids, targets).tokens, slow_relevance(model, ids, targets)) <= 1e-11
