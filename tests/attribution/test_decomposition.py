"""The decomposition of a block: exact, against the game played by hand, other code, and runs with tokens removed."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import mechint
from mechint import Edit
from mechint.attribution.decomposition import Block, decompose, shapley
from mechint.scan import hidden_attention
from mechint.utils.errors import MechintError
from tests.helpers.builders import SIZES, tiny_gpt2, tiny_mamba, tokens
from tests.helpers.examples import examples


@settings(max_examples=examples(25), deadline=None)
@given(sizes=SIZES, batch=st.integers(1, 3), length=st.integers(1, 9), seed=st.integers(0, 99), double=st.booleans())
def test_terms_add_up_to_the_output_at_any_shape(sizes: dict, batch: int, length: int, seed: int, double: bool) -> None:
    model = tiny_mamba(seed, torch.float64 if double else torch.float32, **sizes).requires_grad_(False)
    ids = tokens(batch, length, seed)
    for layer in range(model.num_layers):
        found = decompose(model, ids, layer, "vectors")
        clean = mechint.run(model, ids, [f"layers.{layer}.resid_post"])[f"layers.{layer}.resid_post"]
        assert found.sources.shape == (batch, length, length, sizes["d_model"])
        assert found.error <= (1e-12 if double else 1e-5)
        assert float((found.total() - clean).abs().max() / clean.abs().max()) <= (1e-12 if double else 1e-5)
        later = torch.ones(length, length).triu(1).bool()
        assert not found.sources[:, later].any()


def test_shapley_is_the_mean_over_all_orders_of_joining() -> None:
    torch.manual_seed(0)
    players, empty = torch.randn(4, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    by_hand = torch.zeros_like(players)
    for order in itertools.permutations(range(4)):
        before = empty
        for k in order:
            by_hand[k] += (F.silu(before + players[k]) - F.silu(before)) / math.factorial(4)
            before = before + players[k]
    values, nothing = shapley(players, empty)
    torch.testing.assert_close(values, by_hand, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(values.sum(0) + nothing, F.silu(players.sum(0) + empty), rtol=1e-13, atol=1e-14)


def test_a_source_is_what_a_run_without_it_loses() -> None:
    """With one tap there is no game: the term is the change when x_j is removed and all it is weighed by is held."""
    model = tiny_mamba(3, torch.float64, d_conv=1).requires_grad_(False)
    ids, layer = tokens(2, 6, 1), 1
    found = decompose(model, ids, layer, "vectors")
    at = lambda name: f"layers.{layer}.{name}"
    clean = mechint.run(model, ids, [at(name) for name in ("dt", "B", "C", "gate", "u", "out")])
    hold = [Edit(at(name), "replace", clean[at(name)]) for name in ("dt", "B", "C", "gate")]
    own = model.layers[layer]
    for j in range(6):
        gone = mechint.run(model, ids, [at("out"), at("u")], [*hold, Edit(at("x"), "replace", 0.0, positions=[j])])
        skip = (clean[at("gate")] * own.D * (clean[at("u")] - gone[at("u")])) @ own.out_proj.weight.T
        lost = clean[at("out")] - gone[at("out")] - skip
        torch.testing.assert_close(found.sources[:, :, j], lost, rtol=0, atol=1e-12)


def test_the_attention_map_of_each_tap_gives_the_same() -> None:
    """Another implementation: tiles of the hidden attention, with each tap's share in the place of u."""
    model = tiny_mamba(5, torch.float64).requires_grad_(False)
    ids, direction = tokens(2, 9, 2), torch.randn(10, dtype=torch.float64)
    block = Block(model, ids, 0)
    taps, _ = block.split()
    at, K = block.at, len(taps)
    by_tap = [
        hidden_attention(
            at["dt"], block.A, at["B"], at["C"], "direction", direction=direction, u=tap, gate=at["gate"],
            W_out=model.layers[0].out_proj.weight,
        )
        for tap in taps
    ]  # fmt: skip
    expected = torch.zeros(2, 9, 9, dtype=torch.float64)
    for k, part in enumerate(by_tap):
        back = K - 1 - k  # the tap of position t looks at t - back
        expected[:, :, : 9 - back] += part[:, :, back:]
    found = decompose(model, ids, 0, "direction", direction)
    torch.testing.assert_close(found.sources, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.total(), found.output, rtol=1e-10, atol=1e-12)


def test_reductions_and_memory_change_nothing_else() -> None:
    model = tiny_mamba(7, torch.float64, proj_bias=True, d_inner=64).requires_grad_(False)
    ids, direction = tokens(2, 40, 3), torch.randn(10, dtype=torch.float64)
    vectors = decompose(model, ids, 1, "vectors")
    norms = decompose(model, ids, 1, "norm", memory_mib=1)
    along = decompose(model, ids, 1, "direction", direction)
    assert Block(model, ids, 1).at_once(1) < 40
    for name in ("sources", "skip", "bias", "residual", "output"):
        torch.testing.assert_close(getattr(norms, name), getattr(vectors, name).norm(dim=-1))
        torch.testing.assert_close(getattr(along, name), getattr(vectors, name) @ direction)
    assert norms.error <= 1e-12


def test_the_error_is_relative_to_the_largest_output() -> None:
    block = Block(tiny_mamba(7, torch.float64).requires_grad_(False), tokens(2, 5, 3), 1)
    block.at["resid_post"] = 2 * block.at["resid_post"]  # twice what the terms add up to
    assert block.decompose("vectors", None, 64.0).error == pytest.approx(0.5)


def test_as_many_tokens_are_held_as_the_memory_takes() -> None:
    """At 2 · 40 places six numbers per channel, two per state and two vectors of the model's width, of 8 bytes each."""
    model = tiny_mamba(7, torch.float64, d_inner=64, d_state=3).requires_grad_(False)
    block, one = Block(model, tokens(2, 40, 3), 1), 2 * 40 * (6 * 64 + 2 * 3 + 2 * 10) * 8 / 2**20
    assert [block.at_once(share * one) for share in (1, 1.99, 2, 5.5, 1000)] == [1, 1, 2, 5, 40]
    with pytest.raises(MechintError, match="needs memory_mib"):
        block.at_once(0.99 * one)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layer": 2}, "no layer 2; this model has 2"),
        ({"reduce": "norms"}, "did you mean norm"),
        ({"reduce": "direction"}, "takes one \\[10\\]"),
        ({"direction": torch.zeros(10)}, "'direction' takes one"),
        ({"memory_mib": 0.001}, "needs memory_mib of 1, not 0.001"),
    ],
)
def test_what_cannot_be_decomposed_is_refused(options: dict, said: str) -> None:
    with pytest.raises(MechintError, match=said):
        decompose(tiny_mamba(), tokens(1, 5), **{"layer": 0, **options})


def test_other_families_and_half_precision_are_refused() -> None:
    with pytest.raises(MechintError, match="gpt2 model has no recurrence to take apart"):
        decompose(tiny_gpt2(), tokens(1, 5), 0)
    with pytest.raises(MechintError, match="load in float32"):
        decompose(tiny_mamba(0, torch.bfloat16), tokens(1, 5), 0)
