"""LFM2 with experts: both layouts of its files, and configurations that contradict themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from mechint.models.loading.load import from_state_dict, hf_config, to_hf_state_dict
from mechint.models.parts.experts import MixtureOfExperts
from mechint.models.parts.feed_forward import GatedMLP
from mechint.utils.errors import MechintError
from tests.models.families.test_parity import prompt, random_model


def mixed(path: Path) -> Any:
    """A random model with a layer of experts."""
    for seed in range(9):
        model = random_model("lfm2_moe", seed, path / str(seed)).requires_grad_(False)
        if model.config.dense < model.config.n_layer and model.config.routing.corrected:
            return model
    raise AssertionError


def test_experts_one_by_one_or_stacked_are_the_same(tmp_path: Path) -> None:
    model = mixed(tmp_path)
    config, state = hf_config(model), to_hf_state_dict(model)
    layer = model.config.n_layer - 1
    front = f"model.layers.{layer}.feed_forward."
    assert {f"{front}experts.0.w1.weight", f"{front}gate.weight", f"{front}expert_bias"} <= set(state)
    stacked = {name: tensor for name, tensor in state.items() if f"{layer}.feed_forward.experts." not in name}
    one = lambda name: [state[f"{front}experts.{x}.{name}.weight"] for x in range(model.config.experts)]
    pairs = zip(one("w1"), one("w3"), strict=True)
    stacked[f"{front}experts.gate_up_proj"] = torch.stack([torch.cat(pair) for pair in pairs])
    stacked[f"{front}experts.down_proj"] = torch.stack(one("w2"))
    for tensors in (state, stacked):
        assert torch.equal(from_state_dict(tensors, config, "m", dtype="float64")(prompt()), model(prompt()))
    for i in range(model.config.n_layer):
        kind = GatedMLP if i < model.config.dense else MixtureOfExperts
        assert isinstance(model.parts_of(i)["feed_forward"], kind)


def test_weights_are_divided_by_their_sum_and_a_little(tmp_path: Path) -> None:
    model = mixed(tmp_path)
    routing = model.config.routing
    logits = torch.tensor([[[-20.0, -21.0, -40.0]]], dtype=torch.float64)
    scores = torch.sigmoid(logits)[0, 0]
    two = type(routing)(2, "sigmoid", True, 1.5, floor=1e-6)
    wanted = torch.cat([scores[:2] / (scores[:2].sum() + 1e-6) * 1.5, torch.zeros(1)])
    torch.testing.assert_close(two.weights(logits)[0, 0], wanted)
    assert routing.floor == 1e-6


def test_more_chosen_experts_than_there_are_is_refused(tmp_path: Path) -> None:
    model = mixed(tmp_path)
    state, config = to_hf_state_dict(model), hf_config(model)
    with pytest.raises(MechintError, match="num_experts_per_tok = 9, and there are"):
        from_state_dict(state, {**config, "num_experts_per_tok": 9}, "m")
    with pytest.raises(MechintError, match="unknown_key = 3"):
        from_state_dict(state, {**config, "unknown_key": 3}, "m")
