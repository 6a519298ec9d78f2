"""Llama: the forward against NumPy in float64 and transformers in float32, its edits, sweeps and loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mechint
from mechint import Edit
from mechint.interventions.gradients import gradients
from mechint.interventions.sweep import sweep
from mechint.models.loading.load import from_state_dict, hf_config, to_hf_state_dict
from tests.helpers.builders import LLAMA_SIZES, tiny_llama, tokens
from tests.helpers.examples import examples
from tests.helpers.llama_oracle import oracle
from tests.helpers.parity import gradients as parameter_gradients
from tests.helpers.refusals import refusal
from tests.helpers.standins import save_hf
from tests.helpers.steps import by_steps
from tests.helpers.sweeps import LENGTH, ROWS, edits, one_by_one


@given(sizes=LLAMA_SIZES, batch=st.integers(1, 2), length=st.integers(1, 8), seed=st.integers(0, 99))
@settings(max_examples=examples(20), deadline=None)
def test_every_site_equals_numpy(sizes: dict, batch: int, length: int, seed: int) -> None:
    model, ids = tiny_llama(seed, torch.float64, **sizes), tokens(batch, length, seed)
    with torch.no_grad():
        run = mechint.run(model, ids, record=["*"])
    expected = oracle(model, ids.numpy())
    assert set(expected) == set(model.sites) == set(run.values)
    for name, correct in expected.items():
        assert run[name].shape[2:] == model.sites[name].of_length(length).units
        largest = np.abs(correct[np.isfinite(correct)]).max(initial=1)
        np.testing.assert_allclose(run[name].numpy(), correct, rtol=0, atol=1e-10 * largest, err_msg=name)


@pytest.mark.slow
@given(sizes=LLAMA_SIZES, seed=st.integers(0, 50))
@settings(max_examples=examples(6), deadline=None)
def test_recording_and_identity_edits_keep_every_bit(sizes: dict, seed: int) -> None:
    model, ids = tiny_llama(seed, **sizes), tokens(2, 7, seed)
    with torch.no_grad():
        plain = mechint.run(model, ids, record=["*"])
        assert torch.equal(plain.logits, model(ids))
        for name in model.sites:
            same = plain[name]
            for edit in [
                Edit(name, "replace", same),
                Edit(name, "replace", same[:, [4, 1]], positions=[4, 1]),
                Edit(name, "replace", same[[1]][:, :, :1], units=[0], rows=[1]),
                Edit(name, "mask", 1.0, fill=123.0),
            ]:
                assert torch.equal(mechint.run(model, ids, edits=[edit]).logits, plain.logits), (name, edit)


@pytest.mark.parametrize("name", [name for name in tiny_llama(n_layer=1).sites if name != "logits"])
def test_prefill_and_token_by_token_agree_under_an_edit_that_matters(name: str) -> None:
    model, ids = tiny_llama(dtype=torch.float64), tokens(2, 4)
    units: Any = [(0, 1), (1, 0)] if name.endswith(("scores", "pattern")) else [0, 1]
    change = [Edit(name, "add", 0.7, positions=[2, 6], units=units)]
    out = mechint.generate(model, ids, 5, edits=change)
    whole = mechint.run(model, out.tokens, edits=change).logits
    torch.testing.assert_close(out.logits, whole[:, :-1], rtol=0, atol=1e-12)
    torch.testing.assert_close(by_steps(model, out.tokens, change), whole, rtol=0, atol=1e-12)
    changed = (whole - model(out.tokens)).abs().amax((0, 2)) > 1e-5
    assert not changed[:2].any() and changed[2:].any()


@pytest.mark.slow
@settings(max_examples=examples(30), deadline=None)
@given(st.data(), LLAMA_SIZES, st.integers(0, 10_000))
def test_any_cells_over_any_base_equal_one_run_each(data: st.DataObject, sizes: dict[str, Any], seed: int) -> None:
    model, prompts = tiny_llama(seed, torch.float64, **sizes), tokens(ROWS, LENGTH, seed)
    base = data.draw(st.lists(edits(model, seed), max_size=1))
    cells = [[data.draw(edits(model, seed + k))] for k in range(data.draw(st.integers(1, 5)))]
    found = sweep(model, prompts, cells, base=base)
    expected = one_by_one(model, prompts, cells, base)
    assert float((found - expected).abs().max()) <= 1e-10 * max(1.0, float(expected.abs().max()))


def test_gradients_of_all_sites_at_once_are_those_of_each() -> None:
    model, prompts = tiny_llama(dtype=torch.float64), tokens(2, 5)
    metric = lambda logits: logits[:, -1, 4]
    values, found = gradients(model, prompts, ["*"], metric)
    for name in model.sites:
        moved = torch.zeros_like(values[name], requires_grad=True)
        run = mechint.run(model, prompts, [], [Edit(name, "add", moved)])
        (expected,) = torch.autograd.grad(metric(run.logits).sum(), moved)
        assert float((expected - found[name]).abs().max()) <= 1e-12 and found[name].any(), name


@settings(max_examples=examples(10), deadline=None, derandomize=True)
@given(sizes=LLAMA_SIZES, seed=st.integers(0, 99))
def test_parity_with_transformers(sizes: dict[str, Any], seed: int) -> None:
    transformers = pytest.importorskip("transformers")
    ours = tiny_llama(seed, **{**sizes, "d_model": 8})  # theirs must be a multiple of the heads
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**hf_config(ours))).eval()
    theirs.load_state_dict({**theirs.state_dict(), **to_hf_state_dict(ours)})
    ours = from_state_dict(theirs.state_dict(), theirs.config.to_dict(), "theirs")
    ids = tokens(2, 11, seed)
    logits, expected = ours(ids), theirs(ids).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)) / 11
    wanted = parameter_gradients(theirs, expected, weights)
    found = parameter_gradients(ours, logits, weights)
    for name, gradient in found.items():
        correct = wanted[name if name == "lm_head.weight" else f"model.{name}"]
        assert (gradient - correct).abs().max() <= 1e-4 * max(1, correct.abs().max()), name


@pytest.mark.parametrize("scaling", ["linear", "llama3"])
def test_a_stretched_rotation_is_that_of_transformers(scaling: str, tmp_path: Path) -> None:
    """In float64 to 1e-12: Llama 3 stretches long wavelengths alone, and transformers' frequencies are made exact."""
    transformers = pytest.importorskip("transformers")
    from tests.helpers.judges.base import exact_frequencies, logits_of, randomise

    said = {"rope_type": scaling, "rope_theta": 100.0, "factor": 8.0}
    if scaling == "llama3":
        said |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    config = transformers.LlamaConfig(
        vocab_size=24, hidden_size=24, intermediate_size=14, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, rope_parameters=said, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    theirs = transformers.LlamaForCausalLM(config).eval().double()
    randomise(theirs, 1)
    for module in theirs.modules():
        exact_frequencies(module)
    theirs.save_pretrained(tmp_path)
    ours, ids = mechint.load(tmp_path, dtype="float64"), tokens(2, 20)
    with torch.no_grad():
        assert float((ours(ids) - logits_of(theirs, ids)).abs().max()) <= 1e-12
    assert transformers.LlamaConfig(**hf_config(ours)).rope_parameters == theirs.config.rope_parameters


def test_loading(tmp_path: Path) -> None:
    long = {"rope_factor": 8.0, "rope_low": 1.0, "rope_high": 3.0, "rope_original": 16}
    for k, sizes in enumerate(
        (
            {},
            {"tied": False},
            {"attention_bias": True, "mlp_bias": True, "rope_theta": 500.0},
            {"rope_factor": 4.0},
            long,
        )
    ):
        model = tiny_llama(2, **sizes)
        loaded = mechint.load(save_hf(model, tmp_path / str(k)))
        assert loaded.config == model.config
        assert torch.equal(loaded(tokens(2, 9)), model(tokens(2, 9)))


def test_bad_checkpoints() -> None:
    model = tiny_llama()
    state, config = to_hf_state_dict(model), hf_config(model)
    refused = lambda state, **more: refusal(lambda: from_state_dict(state, {**config, **more}, "m.pt"))
    less = {name: tensor for name, tensor in state.items() if "layers.1.mlp.up_proj" not in name}
    assert "not exactly a Llama of 2 layers; tensors missing: 1 (model.layers.1.mlp.up_proj.weight)" in refused(less)
    assert "not used: 1 (model.extra)" in refused({**state, "model.extra": torch.ones(2)})
    assert "does not say how many heads" in refused(state, num_attention_heads=None)
    assert "can't be divided" in refused(state, num_attention_heads=5)
    assert "num_key_value_heads = 4, but the tensors have 2" in refused(state, num_key_value_heads=4)
    assert "rope_type is 'yarn'" in refused(state, rope_parameters={"rope_type": "yarn", "rope_theta": 1e4})
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    assert "its original_max_position_embeddings is None; it needs a number above 0" in refused(
        state, rope_parameters={**llama3, "rope_theta": 1e4}
    )
    assert "the rotation: the configuration has factor = 2.0, which may change" in refused(
        state, rope_parameters={"rope_type": "default", "factor": 2.0}
    )
    assert "model_type is 'opt'" in refused(state, model_type="opt")
    state["model.layers.1.mlp.up_proj.weight"] = torch.ones(3, 3)
    assert "model.layers.1.mlp.up_proj.weight is [3, 3] and should be [14, 10]" in refused(state)
