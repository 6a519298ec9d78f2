"""Attention maps averaged over channels or heads, against sums by hand."""

from __future__ import annotations

import math

import pytest
import torch

from mechint.attribution.attention import attention_maps, normalised
from tests.helpers.builders import tiny_gpt2, tiny_mamba


def test_maps_of_a_mamba_are_means_over_channels_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """α_ij = Δ_j Σ_n C_in exp(A_n Σ_{j<k≤i} Δ_k) B_jn of every channel, and the share of the slope that it carries."""
    model = tiny_mamba(3, torch.float64).requires_grad_(False)
    A = -torch.exp(model.layers[0].A_log.double())
    channels, states = A.shape
    g = torch.Generator().manual_seed(0)
    rand = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
    rows, length = 2, 3
    values = {"dt": rand(rows, length, channels).abs() / 4, "u": rand(rows, length, channels)}
    values |= {"B": rand(rows, length, states), "C": rand(rows, length, states)}
    slope = rand(rows, length, channels)
    plain, guided = torch.zeros(rows, length, length).double(), torch.zeros(rows, length, length).double()
    for b in range(rows):
        for i in range(length):
            for j in range(i + 1):
                for e in range(channels):
                    kept = [math.exp(A[e, n] * values["dt"][b, j + 1 : i + 1, e].sum()) for n in range(states)]
                    read = sum(float(values["C"][b, i, n] * values["B"][b, j, n]) * kept[n] for n in range(states))
                    alpha = float(values["dt"][b, j, e]) * read
                    plain[b, i, j] += abs(alpha) / channels
                    guided[b, i, j] += max(0.0, alpha * float(slope[b, i, e] * values["u"][b, j, e])) / channels
    named = {f"layers.0.{name}": value for name, value in values.items()}
    for numbers in (1 << 24, 4 * rows * length * length):  # all channels at once, and four at a time
        monkeypatch.setattr("mechint.attribution.attention.NUMBERS", numbers)
        found = attention_maps(model, 0, named, {"layers.0.scan_out": slope})
        torch.testing.assert_close(found, (plain, guided), rtol=1e-9, atol=1e-12)


def test_maps_of_a_transformer_are_means_over_heads_by_hand() -> None:
    model = tiny_gpt2(3, torch.float64)
    # one prompt of one position that reads two, in two heads: [prompt, i, head, j]
    pattern = torch.tensor([[[[0.25, 0.75], [0.5, 0.5]]]], dtype=torch.float64)
    slope = torch.tensor([[[[4.0, -4.0], [2.0, 6.0]]]], dtype=torch.float64)
    plain, guided = attention_maps(model, 0, {"layers.0.pattern": pattern}, {"layers.0.pattern": slope})
    assert plain.tolist() == [[[0.375, 0.625]]]
    assert guided.tolist() == [[[(1.0 + 1.0) / 2, (0.0 + 3.0) / 2]]]  # what lowers the metric counts as nothing


def test_normalised_rows_sum_to_one_and_a_row_of_zeros_stays() -> None:
    rows = torch.tensor([[[2.0, 6.0], [0.0, 0.0]], [[1.0, 0.0], [3.0, 1.0]]])
    assert normalised(rows).tolist() == [[[0.25, 0.75], [0.0, 0.0]], [[1.0, 0.0], [0.75, 0.25]]]
