"""The terms of every token in a declared family's recurrence add up to its output, and are what its weights say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import mechint
from mechint.attribution.decomposition import decompose, recurrences
from mechint.models.parts.recurrence import Recurrence

pytest.importorskip("transformers")

from tests.models.families.test_parity import JUDGES, error, prompt, random_model

RECURRENT = (
    "mamba2", "falcon_h1", "qwen3_5", "qwen3_next", "olmo_hybrid", "kimi_linear", "falcon_mamba", "jamba", "zamba2",
    "nemotron_h", "bamba", "granitemoehybrid",
)  # fmt: skip
FEW = "(falcon_h1|kimi_linear|jamba|granitemoehybrid|zamba2|olmo_hybrid)"


@pytest.mark.slow_except(FEW)
@pytest.mark.parametrize("name", RECURRENT)
def test_terms_add_up_to_the_output_and_are_causal(name: str, tmp_path: Path) -> None:
    seed = 2 if name == "granitemoehybrid" else 1
    model, tokens = random_model(name, seed, tmp_path).requires_grad_(False), prompt()
    layers = [layer for layer in range(model.num_layers) if recurrences(model, layer)]
    assert layers
    for layer in layers:
        found = decompose(model, tokens, layer, "vectors")
        assert found.error <= 1e-12
        assert error(found.total(), found.output) <= 1e-12
        above = torch.ones(11, 11).triu(1).bool()
        assert not found.sources[:, above].any() and found.sources[:, ~above].any()
        small = decompose(model, tokens, layer, "vectors", memory_mib=0.1)  # few tokens at once
        assert error(small.sources, found.sources) <= 1e-12
        direction = torch.randn(model.config.d_model, generator=torch.Generator().manual_seed(0)).double()
        along = decompose(model, tokens, layer, "direction", direction)
        assert error(along.sources, found.sources @ direction) <= 1e-12


@pytest.mark.parametrize("name", ["falcon_h1", "kimi_linear", "zamba2"])
def test_a_token_s_term_is_what_a_cut_of_it_takes_from_the_read_out(name: str, tmp_path: Path) -> None:
    """With filters of one tap a token is in its own write alone: its term is what the cut of that write takes, times
    gate and held norm, through the output projection."""
    model, tokens = random_model(name, 1, tmp_path).requires_grad_(False), prompt()
    layer = next(i for i in range(model.num_layers) for place in recurrences(model, i)
                 if isinstance(place.part, Recurrence))  # fmt: skip
    [place] = recurrences(model, layer)
    part = place.part
    part.conv1d.weight[..., :-1] = 0.0
    if part.conv1d.bias is not None:
        part.conv1d.bias.zero_()
    at = lambda site: f"layers.{layer}.{site}"
    clean = mechint.run(model, tokens, record=[at("scan_out"), at("y"), at("gated")])
    cut = mechint.Edit(at("state"), "cut", positions=[9], sources=[2])
    less = clean[at("scan_out")] - mechint.run(model, tokens, record=[at("scan_out")], edits=[cut])[at("scan_out")]
    factor = clean[at("gated")].flatten(2) / clean[at("y")].flatten(2)
    out = torch.nn.functional.linear(factor * less.flatten(2), part.out_proj.weight)
    expected = (out * getattr(part, "out_scale", 1.0) * place.scale)[:, 9]
    found = decompose(model, tokens, layer, "vectors").sources[:, 9, 2]
    assert place.norm is None and error(found, expected) <= 1e-12


def test_layers_without_a_recurrence_are_refused(tmp_path: Path) -> None:
    model = random_model("qwen2", 0, tmp_path)
    with pytest.raises(mechint.MechintError, match="layer 0 of this qwen2 model has no recurrence to take apart"):
        decompose(model, prompt(), 0)
    assert set(RECURRENT) < JUDGES.keys()
