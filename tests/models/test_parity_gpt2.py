"""Our GPT-2 against transformers' own, in float32 and float64: logits and the gradient of every parameter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechint.models.gpt2 import GPT2
from mechint.models.loading.load import from_state_dict, hf_config, to_hf_state_dict
from tests.helpers.builders import KV, tiny_gpt2, tokens
from tests.helpers.examples import examples
from tests.helpers.parity import gradients

transformers = pytest.importorskip("transformers")

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}
SHAPES = st.fixed_dictionaries(
    {
        "n_embd": st.sampled_from([6, 12, 24]),
        "n_head": st.sampled_from([1, 2, 3]),
        "n_layer": st.integers(1, 3),
        "n_inner": st.sampled_from([None, 1, 6, 17]),
        "activation_function": st.sampled_from(["gelu_new", "gelu", "gelu_pytorch_tanh"]),
        "layer_norm_epsilon": st.sampled_from([1e-5, 1e-3]),
        "tie_word_embeddings": st.booleans(),
    }
)


def hf_model(seed: int = 0, **sizes: Any) -> Any:
    """transformers' model with random weights under which every path moves the logits."""
    config = transformers.GPT2Config(vocab_size=23, n_positions=16, bos_token_id=0, eos_token_id=0, **sizes)
    torch.manual_seed(seed)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
            elif parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
            else:
                embedding = name.endswith(("wte.weight", "wpe.weight"))
                parameter.normal_(std=1.0 if embedding else 1.5 * parameter.shape[0] ** -0.5)
    return model


def compare(theirs: Any, dtype: torch.dtype, length: int = 11) -> tuple[float, float]:
    """The largest errors of logits and gradients."""
    tolerance, theirs = TOLERANCE[dtype], theirs.to(dtype)
    ours = from_state_dict(theirs.state_dict(), theirs.config.to_dict(), "theirs", dtype=dtype)
    assert isinstance(ours, GPT2)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 23, (2, length), generator=generator)
    expected, logits = theirs(tokens).logits, ours(tokens)
    assert expected.std() > 0.1  # a real test: the logits are not all about zero
    torch.testing.assert_close(logits, expected, atol=tolerance, rtol=0)
    weights = torch.randn(logits.shape, generator=generator, dtype=dtype) / length
    wanted, found = gradients(theirs, expected, weights), gradients(ours, logits, weights)
    # the same renaming and turning, of the gradients
    renamed = from_state_dict(wanted, theirs.config.to_dict(), "gradients", dtype=dtype)
    assert {name for name, _ in renamed.named_parameters()} == set(found)
    worst = 0.0
    for name, gradient in renamed.named_parameters():
        error = (found[name] - gradient.data).abs().max().item() / max(1, gradient.data.abs().max().item())
        assert error <= tolerance, (name, error)
        worst = max(worst, error)
    return (logits - expected).abs().max().item(), worst


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=examples(12), deadline=None, derandomize=True)
@given(sizes=SHAPES, seed=st.integers(0, 99))
def test_random_shapes_give_the_same_logits_and_gradients(dtype: torch.dtype, sizes: dict[str, Any], seed: int) -> None:
    compare(hf_model(seed, **sizes), dtype)


@pytest.mark.parametrize("tied", KV[1:], ids=["per head", "globally"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tied_variant_is_their_model_with_the_projection_repeated(tied: dict[str, Any], dtype: torch.dtype) -> None:
    """Theirs has keys and values for every head; with the same weights in all of them it is the variant.

    The gradient of a shared weight is the sum of those of its copies.
    """
    tolerance, ours, plain = TOLERANCE[dtype], tiny_gpt2(4, dtype, **tied), tiny_gpt2(4, dtype)
    heads, d = ours.config.n_head, ours.config.d_head
    copies = heads // ours.config.n_kv_head
    whole = {}
    for name, tensor in ours.state_dict().items():
        if ".c_attn." in name:
            q, shared = tensor[: heads * d], tensor[heads * d :].unflatten(0, (-1, d)).repeat_interleave(copies, 0)
            tensor = torch.cat([q, shared.flatten(0, 1), shared.flatten(0, 1)])
        whole[name] = tensor
    plain.load_state_dict(whole)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**hf_config(plain))).eval().to(dtype)
    theirs.load_state_dict({**theirs.state_dict(), **to_hf_state_dict(plain)})
    ids = tokens(2, 11)
    expected, logits = theirs(ids).logits, ours(ids)
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, atol=tolerance, rtol=0)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1), dtype=dtype) / 11
    wanted, found = gradients(theirs, expected, weights), gradients(ours, logits, weights)
    renamed = from_state_dict(wanted, theirs.config.to_dict(), "gradients", dtype=dtype)
    for name, gradient in renamed.named_parameters():
        correct = gradient.data
        if ".c_attn." in name:
            q, *copied = correct.split(heads * d)
            correct = torch.cat([q, sum(copied).unflatten(0, (-1, copies, d)).sum(1).flatten(0, 1)])  # type: ignore[union-attr]
        assert (found[name] - correct).abs().max() <= tolerance * max(1, correct.abs().max()), name


def test_the_comparison_can_fail() -> None:
    theirs = hf_model(n_embd=12, n_layer=2, n_head=3)
    tokens = torch.arange(8)[None]
    for name in ("attn.c_attn.bias", "mlp.c_fc.weight", "ln_2.bias"):
        ours = from_state_dict(theirs.state_dict(), theirs.config.to_dict(), "theirs")
        with torch.no_grad():
            ours.get_parameter(f"layers.1.{name}").add_(torch.arange(ours.get_parameter(f"layers.1.{name}").shape[-1]))
            assert (ours(tokens) - theirs(tokens).logits).abs().max() > 10 * TOLERANCE[torch.float32], name
    for wrong in ({"n_head": 2}, {"activation_function": "gelu"}, {"layer_norm_epsilon": 0.1}):
        ours = from_state_dict(theirs.state_dict(), {**theirs.config.to_dict(), **wrong}, "theirs")
        assert (ours(tokens) - theirs(tokens).logits).abs().max() > TOLERANCE[torch.float32], wrong


def test_our_configuration_and_weights_make_their_model() -> None:
    theirs = hf_model(n_embd=12, n_layer=2, n_head=3, n_inner=17, activation_function="gelu", tie_word_embeddings=False)
    ours = from_state_dict(theirs.state_dict(), theirs.config.to_dict(), "theirs")
    written = hf_config(ours)
    again = transformers.GPT2LMHeadModel(transformers.GPT2Config(**written)).eval()
    again.load_state_dict(to_hf_state_dict(ours), strict=True)
    tokens = torch.arange(9)[None]
    assert torch.equal(again(tokens).logits, theirs(tokens).logits)
    for name, value in written.items():
        assert getattr(theirs.config, name) == value or name == "architectures", name


@pytest.mark.slow
def test_the_published_shape() -> None:
    """GPT-2 124M with random weights: 12 layers of width 768, 12 heads, 50257 tokens, 1024 positions."""
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(initializer_range=0.05)).eval()
    ours = from_state_dict(theirs.state_dict(), theirs.config.to_dict(), "theirs")
    tokens = torch.randint(0, 50257, (1, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(tokens).logits
        assert expected.std() > 0.1
        torch.testing.assert_close(ours(tokens), expected, atol=1e-4, rtol=0)
