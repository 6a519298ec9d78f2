"""Our Mamba against transformers' own, in float32: logits and the gradient of every parameter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechint.models.loading.load import from_state_dict, hf_config
from mechint.models.mamba import Mamba
from tests.helpers.examples import examples
from tests.helpers.parity import gradients

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
SHAPES = st.fixed_dictionaries(
    {
        "hidden_size": st.integers(3, 20),
        "expand": st.sampled_from([1, 2, 3]),
        "state_size": st.integers(1, 8),
        "conv_kernel": st.integers(1, 5),
        "time_step_rank": st.integers(1, 6),
        "num_hidden_layers": st.integers(1, 3),
        "use_bias": st.booleans(),
        "use_conv_bias": st.booleans(),
        "tie_word_embeddings": st.booleans(),
        "layer_norm_epsilon": st.sampled_from([1e-5, 1e-3]),
    }
)


def hf_model(seed: int = 0, intermediate_size: int | None = None, **sizes: Any) -> Any:
    """transformers' model with random weights under which every path moves the logits."""
    config = transformers.MambaConfig(vocab_size=23, use_cache=False, **sizes)
    if intermediate_size is not None:
        config.intermediate_size = intermediate_size
    torch.manual_seed(seed)
    model = transformers.MambaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("A_log"):
                parameter.uniform_(-1, 1.5)
            elif name.endswith("norm.weight") or name.endswith("norm_f.weight"):
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("dt_proj.bias"):
                parameter.uniform_(-3, 0.5)
            elif parameter.dim() == 1 or "conv1d" in name:
                parameter.normal_(std=0.5)
            else:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return model


def compare(theirs: Any, length: int = 11) -> None:
    ours = from_state_dict(theirs.state_dict(), theirs.config.to_dict(), "theirs")
    assert isinstance(ours, Mamba)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 23, (2, length), generator=generator)
    expected, logits = theirs(tokens).logits, ours(tokens)
    assert expected.std() > 0.1  # a real test: the logits are not all about zero
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)
    weights = torch.randn(logits.shape, generator=generator) / length
    wanted, found = gradients(theirs, expected, weights), gradients(ours, logits, weights)
    renamed = from_state_dict(wanted, theirs.config.to_dict(), "gradients")  # the same renaming, of the gradients
    assert {name for name, _ in renamed.named_parameters()} == set(found)
    for name, gradient in renamed.named_parameters():
        error = (found[name] - gradient.data).abs().max().item()
        assert error <= TOLERANCE * max(1, gradient.data.abs().max().item()), (name, error)


@settings(max_examples=examples(12), deadline=None, derandomize=True)
@given(sizes=SHAPES, seed=st.integers(0, 99))
def test_random_shapes_give_the_same_logits_and_gradients(sizes: dict[str, Any], seed: int) -> None:
    compare(hf_model(seed, **sizes))


@pytest.mark.parametrize("kernel", [1, 2, 4, 5])
def test_every_convolution_width(kernel: int) -> None:
    compare(hf_model(hidden_size=8, num_hidden_layers=2, state_size=4, conv_kernel=kernel), length=7)


def test_an_inner_width_that_is_no_multiple() -> None:
    compare(hf_model(intermediate_size=13, hidden_size=8, num_hidden_layers=2, state_size=4, time_step_rank=3))


def test_the_comparison_can_fail() -> None:
    theirs = hf_model(hidden_size=8, num_hidden_layers=2, state_size=4)
    tokens = torch.arange(8)[None]
    for name in ("A_log", "D", "conv1d.weight", "dt_proj.bias"):
        ours = from_state_dict(theirs.state_dict(), None, "theirs")
        with torch.no_grad():
            ours.get_parameter(f"layers.1.{name}").add_(0.05)
            assert (ours(tokens) - theirs(tokens).logits).abs().max() > 10 * TOLERANCE, name


def test_our_configuration_builds_their_model() -> None:
    theirs = hf_model(hidden_size=8, num_hidden_layers=1, state_size=4, use_bias=True, time_step_rank=2)
    written = hf_config(from_state_dict(theirs.state_dict(), theirs.config.to_dict(), "theirs"))
    again = transformers.MambaForCausalLM(transformers.MambaConfig(**written))
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in theirs.named_parameters()}
    for name, value in written.items():
        assert getattr(theirs.config, name) == value or name == "architectures", name
