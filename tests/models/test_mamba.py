"""The forward against a NumPy recurrence in float64, and its bookkeeping."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mechint
from mechint.utils.errors import MechintError
from tests.helpers import oracle
from tests.helpers.builders import SIZES, tiny_mamba, tokens
from tests.helpers.examples import examples


@given(sizes=SIZES, batch=st.integers(1, 3), length=st.integers(1, 9), seed=st.integers(0, 99))
@settings(max_examples=examples(25), deadline=None)
def test_every_site_equals_the_numpy_recurrence(sizes: dict, batch: int, length: int, seed: int) -> None:
    model = tiny_mamba(seed, torch.float64, **sizes)
    ids = tokens(batch, length, seed)
    with torch.no_grad():
        run = mechint.run(model, ids, record=["*"])
    expected = oracle.forward(model, ids.numpy())
    assert set(expected) == set(model.sites) == set(run.values)
    for name, value in expected.items():
        assert run[name].shape[2:] == model.sites[name].units
        np.testing.assert_allclose(
            run[name].numpy(), value, rtol=0, atol=1e-10 * np.abs(value).max(initial=1), err_msg=name
        )


def test_recording_changes_nothing_to_the_bit() -> None:
    model, ids = tiny_mamba(), tokens(3, 11)
    plain = model(ids)
    for name in model.sites:
        assert torch.equal(mechint.run(model, ids, record=[name]).logits, plain), name


def test_a_run_goes_on_from_a_cache() -> None:
    model, ids = tiny_mamba(dtype=torch.float64), tokens(2, 12)
    whole = mechint.run(model, ids, record=["layers.*.state"])
    first = mechint.run(model, ids[:, :5])
    rest = mechint.run(model, ids[:, 5:], record=["layers.*.state"], cache=first.cache)
    torch.testing.assert_close(rest.logits, whole.logits[:, 5:], rtol=0, atol=1e-12)
    torch.testing.assert_close(rest["layers.1.state"], whole["layers.1.state"][:, 5:], rtol=0, atol=1e-12)


def test_logits_at_chosen_positions() -> None:
    model, ids = tiny_mamba(), tokens(3, 8)
    wanted = torch.tensor([[0, 7], [3, 3], [6, 1]])
    got = mechint.run(model, ids, logits_at=wanted).logits
    assert torch.equal(got.argmax(-1), model(ids).argmax(-1).gather(1, wanted))
    with pytest.raises(MechintError, match="logits_at leaves out positions"):
        mechint.run(model, ids, logits_at=wanted, record=["logits"])


def test_generation_is_the_greedy_continuation() -> None:
    model, ids = tiny_mamba(dtype=torch.float64), tokens(2, 5)
    out = mechint.generate(model, ids, 6, record=["layers.0.dt"])
    logits = model(out.tokens[:, :-1])
    assert torch.equal(logits[:, 4:].argmax(-1), out.tokens[:, 5:])
    torch.testing.assert_close(out.logits, logits, rtol=0, atol=1e-12)
    assert out.values["layers.0.dt"].shape == (2, 10, 14)
    drawn = [mechint.generate(model, ids, 6, temperature=1.0, seed=s).tokens for s in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_scan_and_the_stream_in_float32(dtype: torch.dtype) -> None:
    model, ids = tiny_mamba(), tokens(2, 9)
    full = model(ids)
    run = mechint.run(model.to(dtype), ids, record=["layers.0.state", "layers.0.resid_post", "layers.0.y"])
    assert run["layers.0.state"].dtype == run["layers.0.resid_post"].dtype == torch.float32
    assert run["layers.0.y"].dtype == run.logits.dtype == dtype
    assert (run.logits.float() - full).abs().max() < 0.1 * full.abs().max()


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(3, dtype=torch.long), "shape \\[batch, position\\]"),
        (torch.zeros(1, 3), "whole numbers"),
        (torch.zeros(1, 0, dtype=torch.long), "shape \\[batch, position\\]"),
        (torch.full((1, 2), 24), "token id 24 is outside the vocabulary of 24"),
        (torch.full((1, 2), -1), "token id -1"),
    ],
)
def test_wrong_tokens_are_refused(ids: torch.Tensor, message: str) -> None:
    with pytest.raises(MechintError, match=message):
        mechint.run(tiny_mamba(), ids)


def test_a_wrong_site_name_suggests_the_right_one() -> None:
    model, ids = tiny_mamba(), tokens(1, 4)
    with pytest.raises(MechintError, match=r"no site 'layers.1.sate'.*layers.1.state"):
        mechint.run(model, ids, record=["layers.1.sate"])
    with pytest.raises(MechintError, match="was not recorded"):
        mechint.run(model, ids, record=["layers.1.state"])["layers.0.state"]
    with pytest.raises(MechintError, match="count is 0"):
        mechint.generate(model, ids, 0)
