"""The whole memory of a declared family moved into another run makes it go on as the donor; a part of it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import mechint
from mechint.interventions.model import layer_sites
from mechint.interventions.transplant import transplant_state

pytest.importorskip("transformers")

from tests.models.families.test_parity import JUDGES, error, prompt, random_model

FEW = "(mamba2|jamba|zamba2|kimi_linear|lfm2)"


@pytest.mark.slow_except(FEW)
@pytest.mark.parametrize("name", JUDGES)
def test_a_transplant_of_everything_is_the_donor_s_continuation(name: str, tmp_path: Path) -> None:
    model = random_model(name, 1, tmp_path)
    suffix = prompt(2, 5, 3)
    both = [torch.cat([prompt(2, 6, seed), suffix], 1) for seed in (1, 2)]
    with torch.no_grad():
        expected, own = (model(tokens) for tokens in both)
    got = transplant_state(model, both[0], both[1], position=5)
    assert error(got[:, 6:], expected[:, 6:]) <= 1e-12
    assert error(got[:, :5], own[:, :5]) <= 1e-12
    assert error(own[:, 6:], expected[:, 6:]) > 1e-6
    for kind in model.memory:
        assert layer_sites(model, kind), f"no layer has the memory {kind}"
        mixed = transplant_state(model, both[0], both[1], position=5, memory=[kind])
        assert error(mixed[:, 6:], own[:, 6:]) > 1e-9  # every kind of memory carries something
        if len(model.memory) > 1:
            assert error(mixed[:, 6:], expected[:, 6:]) > 1e-9


def test_layers_without_the_memory_are_named(tmp_path: Path) -> None:
    model = random_model("qwen3_5", 1, tmp_path)
    attention = next(i for i in range(model.num_layers) if f"layers.{i}.state" not in model.sites)
    with pytest.raises(mechint.MechintError, match=f"layers .{attention}. keep no memory state"):
        transplant_state(model, prompt(), prompt(), layers=[attention], memory=["state"])
