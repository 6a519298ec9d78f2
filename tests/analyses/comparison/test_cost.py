"""Costs: counts against torch's own counter, loops over the scan, and the tensors of a real memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import mechint
from mechint.analyses.comparison.cost import (
    entries,
    flops,
    latent_bytes,
    latent_flops,
    measure,
    memory_bytes,
    parameters,
    reads,
    token_bytes,
)
from mechint.models.parts.shared import BlockThenMamba
from mechint.utils.errors import MechintError
from tests.helpers.builders import GPT2_SIZES, LLAMA_SIZES, SIZES, tiny_gpt2, tiny_llama, tiny_mamba, tokens
from tests.helpers.examples import examples

FAMILIES = [(tiny_mamba, SIZES), (tiny_gpt2, GPT2_SIZES), (tiny_llama, LLAMA_SIZES)]


def cache_bytes(cache: Any) -> int:
    """Bytes of the tensors in the memory of a run: measured."""

    def tensors(value: Any) -> list[Tensor]:
        if isinstance(value, Tensor):
            return [value]
        items = value if isinstance(value, (list, tuple)) else list(getattr(value, "__dict__", {}).values())
        return [tensor for item in items for tensor in tensors(item)]

    return sum(tensor.numel() * tensor.element_size() for layer in cache.layers for tensor in tensors(layer))


@pytest.mark.parametrize(("build", "shapes"), FAMILIES)
@settings(max_examples=examples(10), deadline=None)
@given(data=st.data(), length=st.integers(1, 12))
def test_flops_of_products_are_what_torch_counts(build: Any, shapes: Any, data: Any, length: int) -> None:
    model = build(**data.draw(shapes)).requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        model(tokens(1, length))
    ours = flops(model, length)
    expected = length * (ours["weights"] + ours["unembedding"])
    if model.config.family != "mamba":  # the forward multiplies with what comes later, too, before it masks it
        expected += length * ours["mixing"] * 2 * length / (length + 1)
    assert counter.get_total_flops() == pytest.approx(expected)
    assert ours["total"] == ours["weights"] + ours["mixing"] + ours["unembedding"]


def test_flops_of_the_scan_by_hand() -> None:
    """One channel at a time, one addition or product at a time."""
    model = tiny_mamba(n_layer=1, d_inner=3, d_state=2, d_conv=4)
    count = 0
    for _ in range(3):
        count += 2 * 4  # a product and an addition (of the bias, the first) for each tap
        count += 1  # Δ u
        for _ in range(2):
            count += 1 + 1 + 2 + 2  # Δ A; times B; Ā h + write; h C and its sum
        count += 2 + 1  # y + D u, and the gate
    assert flops(model, 9)["mixing"] == count


@pytest.mark.parametrize(("build", "shapes"), FAMILIES)
@settings(max_examples=examples(8), deadline=None)
@given(data=st.data(), length=st.integers(1, 12), double=st.booleans())
def test_memory_is_that_of_the_cache(build: Any, shapes: Any, data: Any, length: int, double: bool) -> None:
    model = build(0, torch.float64 if double else torch.float32, **data.draw(shapes)).requires_grad_(False)
    cache = mechint.run(model, tokens(1, length)).cache
    assert memory_bytes(model, length) == cache_bytes(cache)
    grows = memory_bytes(model, 2 * length) / memory_bytes(model, length)
    assert grows == (1 if model.config.family == "mamba" else 2)


def test_parameters_are_counted_once_and_small_ones_are_inactive() -> None:
    for tied in (True, False):
        model = tiny_mamba(tied=tied)
        found = parameters(model)
        assert found.total == sum(p.numel() for p in model.parameters())
        assert found.embedding == 24 * 10
    with torch.no_grad():
        model.layers[0].out_proj.weight[:5] = 1e-6
        model.layers[1].D.zero_()
    fewer = parameters(model)
    assert found.active - fewer.active >= 5 * 14 and fewer.total == found.total
    assert parameters(model, 0.0).active == found.total - 14  # exact zeros are never active


def test_a_generated_token_reads_weights_once_and_rows_of_embeddings() -> None:
    model = tiny_gpt2(tied=False)
    inside = sum(p.numel() for n, p in model.named_parameters() if not n.startswith(("wte", "wpe")))
    assert token_bytes(model, 7) == 4 * (inside + 2 * 12) + memory_bytes(model, 7)
    tied = tiny_mamba()
    assert token_bytes(tied, 7) == 4 * sum(p.numel() for p in tied.parameters()) + memory_bytes(tied, 7)


def test_measuring_gives_times_in_order_and_refuses_impossible_lengths() -> None:
    found = measure(tiny_gpt2().requires_grad_(False), [4, 12], repeats=3)
    assert [m.length for m in found] == [4, 12]
    assert all(0 < m.seconds[1] <= m.seconds[0] <= m.seconds[2] and m.peak_bytes > 0 for m in found)
    assert found[1].peak_bytes > found[0].peak_bytes
    with pytest.raises(MechintError, match="17 positions are too many"):
        measure(tiny_gpt2(), [16])
    with pytest.raises(MechintError, match="each at least 1"):
        measure(tiny_gpt2(), [])


def test_active_weights_are_those_of_a_share_of_their_tensors_size_whatever_its_scale() -> None:
    """1, 2 and 3 have a root mean square of 2.16."""
    layer = torch.nn.Linear(3, 1, bias=False)
    for scale in (1e-3, 1.0, 1e3):
        layer.weight.data = scale * torch.tensor([[1.0, -2.0, 3.0]])
        assert [parameters(layer, share).active for share in (0.4, 0.9, 1.0, 1.4)] == [3, 2, 1, 0]


def test_a_window_shortens_what_a_token_reads() -> None:
    """With a window of three, ten tokens read 1, 2, 3, 3, … positions: 27."""
    assert reads(10, 3) == pytest.approx(2.7) and reads(1) == 1 and reads(4, 1) == 1
    for length in (1, 2, 7):
        for window in (0, 1, 2, 6, 7, 9):
            counted = sum(min(at, window or length) for at in range(1, length + 1))
            assert reads(length, window) == pytest.approx(counted / length)


def test_latent_attention_keeps_keys_and_values_of_every_head() -> None:
    """Two heads of 3 own and 1 shared key and 5 values: 18 numbers for a token; a token of 7 reads 4 positions."""
    part: Any = SimpleNamespace(n_head=2, own=3, shared=1, values=5)
    assert latent_flops(part, 7) == 2 * 18 * 4
    assert latent_bytes(part, 7, torch.zeros(1)) == 7 * 18 * 4
    assert latent_bytes(part, 7, torch.zeros(1, dtype=torch.float64)) == 7 * 18 * 8


def test_a_shared_block_counts_at_each_use_with_its_own_additions_alone() -> None:
    """6 entries of the block, an addition of 2 at its first use and of 1 at its second, and 8 entries of each layer."""
    line = lambda a, b: nn.Linear(a, b, bias=False)
    block: Any = nn.Module()
    block.o_proj, block.q_adapter_list = line(2, 3), nn.ModuleDict({"0": line(2, 1), "1": line(1, 1)})
    mamba: Any = line(2, 2)
    first, second = BlockThenMamba(2, 1e-6, mamba, 0, block), BlockThenMamba(2, 1e-6, mamba, 1, None)
    second.elsewhere = [block]
    assert entries(first) == 6 + 2 + 8 and entries(second) == 6 + 1 + 8
