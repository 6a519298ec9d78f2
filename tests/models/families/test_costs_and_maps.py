"""What a declared family costs and what its positions read: counts against torch's own and a real memory, maps against
what a part computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import mechint
from mechint.analyses.comparison.cost import flops, memory_bytes, mixing_flops, parameters, reads, token_bytes
from mechint.attribution.attention import attention_map, attention_maps, map_sites, readers, scans
from mechint.interventions.gradients import gradients
from mechint.models.parts import experts
from mechint.models.parts.delta import GatedDelta
from mechint.models.parts.mamba2 import Mamba2Mixer
from mechint.models.parts.recurrence import Recurrence
from mechint.models.parts.short_conv import ShortConv

transformers = pytest.importorskip("transformers")

from tests.models.families.test_parity import JUDGES, error, prompt, saved  # noqa: E402

FEW = "(mamba2|jamba|nemotron_h|zamba2|qwen3_5|kimi_linear|lfm2|gemma3)"
"""One family of each kind of part, for the quick set."""

LONG_TAPS = 2
"""A seed whose short convolution has more than two taps."""


def tensors_of(memory: Any) -> list[Tensor]:
    """Every tensor in a memory of any make."""
    if isinstance(memory, Tensor):
        return [memory]
    items = memory.values() if isinstance(memory, dict) else memory if isinstance(memory, list | tuple) else (
        getattr(memory, "__dict__", {}).values()
    )  # fmt: skip
    return [tensor for item in items for tensor in tensors_of(item)]


@pytest.mark.slow_except(FEW)
@pytest.mark.parametrize("name", JUDGES)
def test_parameters_products_and_memory_are_counted_right(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parameters are transformers' own, products of weights are those that torch counts, and the memory of a prompt has
    the bytes of the tensors that a run leaves."""
    theirs, model = saved(JUDGES[name], 0, tmp_path)
    assert parameters(model).total == sum(weight.numel() for weight in theirs.parameters())
    monkeypatch.setattr(experts, "ROWS", 1)  # no rows of zeros are multiplied
    length = 7
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(prompt(1, length))
    counted = counter.get_flop_counts()["Global"]
    products = sum(count for op, count in counted.items() if str(op) in ("aten.mm", "aten.addmm"))
    found = flops(model, length)
    assert products == length * (found["weights"] + found["unembedding"])
    for dtype in (torch.float64, torch.float32):
        run = mechint.run(model.to(dtype), prompt(1, length))
        held = sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(run.cache.layers))
        assert memory_bytes(model, length) == held
    assert token_bytes(model, length) <= sum(w.numel() * w.element_size() for w in model.parameters()) + held


def test_products_of_attention_with_a_window_are_counted_by_hand() -> None:
    for length, window in ((1, 1), (5, 2), (5, 9), (9, 4), (6, 0)):
        every = [min(i + 1, window or length) for i in range(length)]
        assert reads(length, window) == pytest.approx(sum(every) / length)


def test_flops_of_memories_by_hand() -> None:
    """One product or addition at a time, of one head with two keys and three values."""
    mamba2 = Mamba2Mixer(4, heads=1, value_size=3, key_size=2, groups=1, taps=4)
    step = 3 + 2 * 3 + 2 * 3 + 2 * 3 + 2 * 2 * 3  # Δ u; k vᵀ; a S; + write; qᵀ S with its sums
    assert mixing_flops(mamba2, 9) == step + 2 * 3 + 3 + 2 * 4 * (3 + 2 * 2)  # y + D u; the gate; the convolution
    delta = GatedDelta(4, key_heads=1, heads=1, key_size=2, value_size=3, taps=4)
    erase = 2 * 3 + 2 * 2 * 3 + 2 * 2 * 3  # a S; rᵀ(a S); less p times it
    write = 2 * 3 + 2 * 3 + 2 * 2 * 3  # k vᵀ; added; qᵀ S
    assert mixing_flops(delta, 9) == erase + write + 2 + 2 + 3 + 3 + 2 * 4 * (2 + 2 + 3)  # β k, q's scale, β u, gate
    assert mixing_flops(ShortConv(4, 3), 9) == 4 * (2 * 3 + 2)


@pytest.mark.slow_except(FEW)
@pytest.mark.parametrize("name", JUDGES)
def test_the_sum_over_what_is_read_is_the_read_out(name: str, tmp_path: Path) -> None:
    """Of every matrix memory: Σ_j weight[i, j] u_j is its read-out to 1e-12; and every layer has maps."""
    _, model = saved(JUDGES[name], 1, tmp_path)
    model.requires_grad_(False)
    tokens = prompt()
    values, slopes = gradients(model, tokens, map_sites(model), lambda logits: logits[:, -1, 3])
    memories = 0
    for layer in range(model.num_layers):
        plain, guided = attention_maps(model, layer, values, slopes)
        assert plain.shape == guided.shape == (2, 11, 11) and (plain >= 0).all() and (guided >= 0).all()
        assert not plain.triu(1).any() and (plain.sum(-1) > 0).all()
        if not readers(model, layer):
            assert torch.equal(plain[0], torch.eye(11, dtype=torch.float64))
        for part in scans(model, layer):
            if isinstance(part, Recurrence):
                memories += 1
                heads = attention_map(model, tokens, layer, "channels", channels=range(part.heads))
                read = torch.einsum("bhij,bjhv->bihv", heads, values[f"layers.{layer}.u"])
                assert error(read, values[f"layers.{layer}.scan_out"]) <= 1e-12
                assert error(attention_map(model, tokens, layer), heads.sum(1)) <= 1e-12
    assert memories or name not in ("mamba2", "zamba2", "qwen3_5", "kimi_linear")


def test_guided_maps_are_the_gradient_of_the_weights_by_hand(tmp_path: Path) -> None:
    """∂m/∂weight of a head is Σ_v ∂m/∂scan_out_i[v] u_j[v]; what lowers the metric counts as nothing."""
    _, model = saved(JUDGES["qwen3_5"], 1, tmp_path)
    model.requires_grad_(False)
    layer = next(i for i in range(model.num_layers) if scans(model, i))
    tokens = prompt(1, 4)
    values, slopes = gradients(model, tokens, map_sites(model), lambda logits: logits[:, -1, 3])
    part = scans(model, layer)[0]
    assert isinstance(part, Recurrence)
    weights = attention_map(model, tokens, layer, "channels", channels=range(part.heads))
    u, slope = values[f"layers.{layer}.u"], slopes[f"layers.{layer}.scan_out"]
    expected = torch.zeros(4, 4, dtype=torch.float64)
    for i in range(4):
        for j in range(i + 1):
            for h in range(part.heads):
                push = float(weights[0, h, i, j]) * float((slope[0, i, h] * u[0, j, h]).sum())
                expected[i, j] += max(0.0, push) / part.heads
    assert error(attention_maps(model, layer, values, slopes)[1][0], expected) <= 1e-12


def test_a_short_convolution_reads_by_its_taps(tmp_path: Path) -> None:
    _, model = saved(JUDGES["lfm2"], LONG_TAPS, tmp_path)
    model.requires_grad_(False)
    layer = next(i for i in range(model.num_layers) if f"layers.{i}.conv_out" in model.sites)
    values, slopes = gradients(model, prompt(1, 5), map_sites(model), lambda logits: logits[:, -1, 3])
    plain, guided = attention_maps(model, layer, values, slopes)
    [part] = [part for part in model.parts_of(layer).values() if isinstance(part, ShortConv)]
    taps = part.conv.weight[:, 0]
    assert taps.shape[1] > 2  # of two taps a mistaken order could not be seen
    for i in range(5):
        for j in range(5):
            back = i - j
            there = 0 <= back < taps.shape[1]
            assert float(plain[0, i, j]) == pytest.approx(float(taps[:, -1 - back].abs().mean()) if there else 0.0)
            push = taps[:, -1 - back] * slopes[f"layers.{layer}.conv"][0, i] * values[f"layers.{layer}.u"][0, j] if (
                there
            ) else torch.zeros(1)  # fmt: skip
            assert float(guided[0, i, j]) == pytest.approx(float(push.clamp(min=0).mean()))


@pytest.mark.parametrize("name", ["falcon_h1", "zamba2"])
def test_a_layer_with_several_readers_has_the_mean_of_their_normalised_maps(name: str, tmp_path: Path) -> None:
    _, model = saved(JUDGES[name], 1, tmp_path)
    model.requires_grad_(False)
    layer = next(i for i in range(model.num_layers) if len(readers(model, i)) > 1)
    values, slopes = gradients(model, prompt(1, 5), map_sites(model), lambda logits: logits[:, -1, 3])
    found = attention_maps(model, layer, values, slopes)
    each = [reader.maps(layer, values, slopes) for reader in readers(model, layer)]
    for which in range(2):
        expected = torch.zeros(5, 5, dtype=torch.float64)
        for maps in each:
            for i in range(5):
                row = maps[which][0, i]
                expected[i] += (row / row.sum() if row.sum() > 0 else row) / len(each)
        torch.testing.assert_close(found[which][0], expected, rtol=1e-12, atol=1e-15)


def test_what_reads_nothing_and_what_is_unknown(tmp_path: Path) -> None:
    _, model = saved(JUDGES["qwen3_5"], 1, tmp_path)
    attention = next(i for i in range(model.num_layers) if not scans(model, i))
    with pytest.raises(mechint.MechintError, match=f"layer {attention} of this qwen3_5 model has no recurrence"):
        attention_map(model, prompt(), attention)
    scan = next(i for i in range(model.num_layers) if scans(model, i))
    for arguments in (("energy",), ("channels",), ("weights", [0])):
        with pytest.raises(mechint.MechintError, match="of a matrix memory there are 'weights', and 'channels'"):
            attention_map(model, prompt(), scan, arguments[0], **({"channels": [0]} if len(arguments) > 1 else {}))
    with pytest.raises(mechint.MechintError, match="head"):
        attention_map(model, prompt(), scan, "channels", channels=[99])
