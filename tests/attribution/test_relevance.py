"""Relevance: it adds up at every layer, says what rules worked out by hand say, and refuses what does not add up."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mechint
from mechint.attribution import relevance as lrp
from mechint.attribution import relevance_rules as rules
from mechint.attribution.relevance import relevance
from mechint.utils.errors import MechintError
from tests.helpers.builders import GPT2_SIZES, LLAMA_SIZES, SIZES, tiny_gpt2, tiny_llama, tiny_mamba, tokens
from tests.helpers.examples import examples

FAMILIES = [(tiny_mamba, SIZES), (tiny_gpt2, GPT2_SIZES), (tiny_llama, LLAMA_SIZES)]


@pytest.mark.parametrize(("build", "shapes"), FAMILIES)
@settings(max_examples=examples(12), deadline=None)
@given(data=st.data(), length=st.integers(1, 9), seed=st.integers(0, 99), double=st.booleans())
def test_every_layer_adds_up_to_the_logit(
    build: Any, shapes: Any, data: Any, length: int, seed: int, double: bool
) -> None:
    model = build(seed, torch.float64 if double else torch.float32, **data.draw(shapes)).requires_grad_(False)
    ids = tokens(2, length, seed)
    found = relevance(model, ids, ids[:, 0])
    clean = model(ids)[torch.arange(2), -1, ids[:, 0]]
    torch.testing.assert_close(found.logit, clean)
    assert found.layers.shape == (model.num_layers + 1, 2, length)
    for layer in range(model.num_layers + 1):
        total = found.layers[layer].sum(-1) + found.bias[layer:].sum(0)
        size = found.layers[layer].abs().sum(-1) + clean.abs() + found.bias[layer:].sum(0).abs()
        if double:  # in float32 what units add may cancel in a token's share; the function checks it by their sizes
            assert bool(((total - clean).abs() <= 1e-11 * size).all())
    assert found.error <= (1e-12 if double else 1e-5)


def test_one_mamba_layer_by_hand() -> None:
    """The rules as matrices and loops, channel by channel."""
    model = tiny_mamba(2, torch.float64, n_layer=1, proj_bias=True).requires_grad_(False)
    ids, target = tokens(1, 5, 4), 7
    layer = model.layers[0]
    names = ("resid_pre", "norm", "x", "z", "conv", "u", "dt", "B", "C", "y", "gate", "resid_post")
    run = mechint.run(model, ids, [f"layers.0.{name}" for name in names])
    v = {name: run[f"layers.0.{name}"][0] for name in names}
    L, E, K = 5, 14, 4
    last = v["resid_post"][-1]
    # relevance of the last residual, and the weight of each of its entries in the logit
    slope = model.norm_f.weight * model.embedding.weight[target] / (last.square().mean() + 1e-5).sqrt()
    out = slope @ layer.out_proj.weight  # [E], of gated at the last position
    A = -torch.exp(layer.A_log)
    u_weight = torch.zeros(L, E, dtype=torch.float64)  # of u, through half of the product
    for t in range(L):
        decay = torch.exp(A[None] * v["dt"][t + 1 :, :, None]).prod(0)  # [E, N]
        alpha = (decay * v["C"][-1] * v["B"][t]).sum(-1) * v["dt"][t]
        u_weight[t] = (alpha + (layer.D if t == L - 1 else 0)) * out * v["gate"][-1] / 2
    x_weight = torch.zeros(L, E, dtype=torch.float64)
    for t in range(L):
        for k in range(K):
            if t - (K - 1) + k >= 0:
                x_weight[t - (K - 1) + k] += u_weight[t] * torch.sigmoid(v["conv"][t]) * layer.conv1d.weight[:, 0, k]
    z_weight = torch.zeros(L, E, dtype=torch.float64)
    z_weight[-1] = out * v["y"][-1] * torch.sigmoid(v["z"][-1]) / 2
    n_weight = torch.cat([x_weight, z_weight], 1) @ layer.in_proj.weight  # [L, D]
    rms = (v["resid_pre"].square().mean(-1, keepdim=True) + 1e-5).sqrt()
    r_weight = n_weight * layer.norm.weight / rms
    r_weight[-1] += slope
    found = relevance(model, ids, torch.tensor([target]))
    torch.testing.assert_close(found.tokens[0], (r_weight * v["resid_pre"]).sum(-1), rtol=1e-10, atol=1e-12)


def test_rows_positions_and_weights_are_left_alone() -> None:
    model = tiny_mamba(1, torch.float64)
    ids, targets, positions = tokens(3, 7), torch.tensor([1, 2, 3]), torch.tensor([2, 6, 4])
    every = relevance(model, ids, targets, positions)
    for row in range(3):
        here = slice(row, row + 1)
        alone = relevance(model, ids[here, : positions[row] + 1], targets[here])
        torch.testing.assert_close(every.tokens[row, : positions[row] + 1], alone.tokens[0])
        assert not every.tokens[row, positions[row] + 1 :].any()
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_shares_that_do_not_add_up_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that forgets to hold its factor: the gradient of SiLU itself."""
    monkeypatch.setattr(rules, "silu", lambda x: torch.nn.functional.silu(x))
    with pytest.raises(MechintError, match="miss the logit by"):
        relevance(tiny_mamba(), tokens(2, 6), torch.tensor([1, 2]))


def test_how_far_shares_miss_by_hand() -> None:
    """Of 4.5, missed by 0.5 at every layer, where products of 13, 5 and 6 are added; -20 is missed by 1."""
    layers = torch.tensor([[[1.0, 2], [-10, -9]], [[2, 2], [-10, -7]], [[3, 2], [-10, -7]]])
    bias = torch.tensor([[1.0, 2], [1, 0], [0, -2]])
    sizes = torch.tensor([[10.0, 1], [4, 1], [6, 1]]), torch.tensor([[2.0, 0], [1, 0], [0, 0]])
    found = lrp.checked(torch.tensor([4.5, -20.0]), layers, bias, sizes, 0.101)
    assert (found.error, found.of_logit) == pytest.approx((0.5 / 5, 0.5 / 4.5))
    assert torch.equal(found.tokens, layers[0])
    with pytest.raises(MechintError, match=r"at layer 1 the shares miss the logit by 1\.0e-01"):
        lrp.checked(torch.tensor([4.5, -20.0]), layers, bias, sizes, 0.09)


def test_half_precision_and_layers_without_rules_are_refused() -> None:
    ids, targets = tokens(1, 4), torch.tensor([1])
    with pytest.raises(MechintError, match="load in float32"):
        relevance(tiny_mamba(0, torch.bfloat16), ids, targets)
    model = tiny_llama()
    model.layers[1] = torch.nn.Identity()
    with pytest.raises(MechintError, match=r"no rules for layers of the kind Identity.*GPT-2"):
        relevance(model, ids, targets)


def test_gelu_and_product_keep_their_values() -> None:
    x = torch.tensor([-3.0, -0.1, 0.0, 1e-30, 2.0], dtype=torch.float64, requires_grad=True)
    for approximate in ("none", "tanh"):
        gelu = functools.partial(torch.nn.functional.gelu, approximate=approximate)
        value = rules.activated(x, gelu)
        torch.testing.assert_close(value, gelu(x))
        [slope] = torch.autograd.grad(value.sum(), x)
        torch.testing.assert_close(x * slope, value)
        assert float(slope[2]) == pytest.approx(0.5)
    product: Tensor = rules.half(x, x * 2)
    torch.testing.assert_close(product, 2 * x * x)
