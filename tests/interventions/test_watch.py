"""Watching parts of layers in a ``with`` block."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mechint
from mechint.utils.errors import MechintError
from tests.helpers.builders import tiny_gpt2, tiny_llama, tiny_mamba, tokens


@pytest.mark.parametrize("family", [tiny_mamba, tiny_gpt2, tiny_llama])
def test_every_part_is_its_sites(family: Any) -> None:
    model, prompts = family(), tokens(2, 5)
    expected = model(prompts)
    wanted = [(layer, name) for layer in range(model.num_layers) for name in model.parts]
    with mechint.watch(model, wanted) as parts:
        assert torch.equal(model(prompts), expected)
    assert "forward" not in vars(model) and torch.equal(model(prompts), expected)
    for (layer, name), part in parts.items():
        sites = [f"layers.{layer}.{site}" for site in model.parts[name]]
        run = mechint.run(model, prompts, sites)
        assert torch.equal(part.input, run[sites[0]]) and torch.equal(part.output, run[sites[1]])


def test_gradients_nesting_and_an_error_inside() -> None:
    model, prompts = tiny_mamba(), tokens(1, 4)
    with mechint.watch(model, [(0, "mixer")]) as outer, mechint.watch(model, [(1, "mixer")]) as inner:
        model(prompts).sum().backward()
        assert inner[1, "mixer"].output.requires_grad
    assert model.layers[0].out_proj.weight.grad is not None
    with pytest.raises(MechintError, match="not run inside the block"):
        outer[0, "mixer"].output  # noqa: B018  # the inner block ran the model
    with pytest.raises(ZeroDivisionError), mechint.watch(model, [(0, "block")]):
        raise ZeroDivisionError
    assert "forward" not in vars(model)
    assert model.device == torch.device("cpu")


@pytest.mark.parametrize(
    ("part", "message"),
    [((7, "mixer"), r"no layer 7; this model has 2"), ((0, "mixr"), r"has no part 'mixr'.*take block")],
)
def test_refusals(part: tuple[int, str], message: str) -> None:
    with pytest.raises(MechintError, match=message), mechint.watch(tiny_mamba(), [part]):
        pass
