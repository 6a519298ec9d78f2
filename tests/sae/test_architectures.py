"""Dictionaries: the six architectures, the sparse step against the dense one, and files that are whole or absent."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mechint import sae
from mechint.sae import ARCHITECTURES, JumpReLU, SAEConfig, SparseAutoencoder, Step, batch_topk, make, sparse
from mechint.sae.formats import saelens as files
from mechint.sae.jumprelu import BANDWIDTH
from mechint.sae.matryoshka import nested
from mechint.utils.errors import MechintError
from tests.helpers.examples import examples
from tests.helpers.sae import inputs, small


def learned(architecture: str, steps: int = 20) -> SparseAutoencoder:
    made = small(architecture)
    optimizer = torch.optim.Adam(made.parameters(), 1e-2)
    for step in range(steps):
        loss = made.loss(inputs(64, 12, step), Step())
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        made.normalise()
        made.observe(loss)
    return made


@pytest.fixture
def dense(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sparse, "usable", lambda x: False)
    yield


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_lowers_the_loss_and_a_code_is_sparse(architecture: str) -> None:
    before, after = small(architecture), learned(architecture)
    x = inputs(256, 12, 99)
    error = lambda made: float(made.loss(x, Step()).terms["mse"].detach())
    assert error(after) < 0.8 * error(before)
    used = after.inference()
    f = used.encode(x)
    assert f.shape == (256, 40) and bool((f >= 0).all()) and bool((f == 0).any())
    torch.testing.assert_close(used(x), f @ used.W_dec + used.b_dec)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_folding_is_a_change_of_units(architecture: str) -> None:
    """A dictionary trained on a · s, folded, gives the same codes and reconstructions of a, divided by s."""
    made, scale = learned(architecture), 3.7
    raw = inputs(50, 12) / scale
    folded, unscaled = made.fold(scale), made.inference()
    torch.testing.assert_close(folded.encode(raw), unscaled.encode(raw * scale) / scale)
    torch.testing.assert_close(folded(raw), unscaled(raw * scale) / scale)
    assert folded.config.scale == scale


def test_topk_is_the_k_largest_positive() -> None:
    made = small("topk", k=5)
    x = inputs(30, 12)
    pre, f = made.pre_activations(x), made.encode(x)
    for row, code in zip(pre, f, strict=True):
        kept = row.sort(descending=True).indices[:5]
        expected = torch.zeros(40).index_put_((kept,), row[kept].clamp_min(0))
        torch.testing.assert_close(code, expected, rtol=0, atol=0)


def test_batch_topk_keeps_k_on_average_and_its_threshold_follows() -> None:
    made = small("batch_topk", k=3)
    for step in range(300):
        loss = made.loss(inputs(128, 12, step), Step())
        assert abs(float(loss.l0) - 3) < 0.05
        made.observe(loss)
    used = made.inference()
    assert used.config.architecture == "jumprelu" and used.config.trained_as == "batch_topk"
    assert float((used.encode(inputs(4000, 12, 7)) > 0).sum(1).float().mean()) == pytest.approx(3, abs=0.3)


@pytest.mark.parametrize("architecture", ["batch_topk", "matryoshka"])
@settings(max_examples=examples(20), deadline=None)
@given(rows=st.integers(1, 200), k=st.integers(1, 40), chunk=st.integers(1, 500), seed=st.integers(0, 99))
def test_calibration_gives_k_active_latents_on_average(
    architecture: str, rows: int, k: int, chunk: int, seed: int
) -> None:
    """Whatever the moving average was; where fewer than k are positive, all of these."""
    made, x = small(architecture, k=k, seed=seed), inputs(rows, 12, seed)
    made.threshold.fill_(5.0)
    before, batch_topk.CHUNK = batch_topk.CHUNK, chunk
    try:
        made.calibrate(x)
    finally:
        batch_topk.CHUNK = before
    positive = int((made.pre_activations(x) > 0).sum())
    active = int((made.inference().encode(x) > 0).sum())
    assert abs(active - min(k * rows, positive)) <= 1  # products of other sizes may round the edge differently


def test_matryoshka_is_the_mean_error_of_its_prefixes(dense: None) -> None:
    made, x = small("matryoshka", k=6), inputs(64, 12)
    f, _ = made.select(made.pre_activations(x))
    errors = [(x - f[:, :width] @ made.W_dec[:width] - made.b_dec).square().sum(-1).mean() for width in nested(40)]
    torch.testing.assert_close(made.loss(x, Step()).terms["mse"], torch.stack(errors).mean())


class Jump(torch.autograd.Function):
    """pre · H(pre − θ) and H(pre − θ), with the gradients of equations 11 and 12 of Rajamanoharan et al. 2024."""

    @staticmethod
    def forward(ctx: Any, pre: torch.Tensor, threshold: torch.Tensor) -> Any:
        ctx.save_for_backward(pre, threshold)
        return torch.relu(pre) * (pre > threshold), (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, by_f: torch.Tensor, by_step: torch.Tensor) -> Any:  # type: ignore[override]
        pre, threshold = ctx.saved_tensors
        near = ((pre - threshold).abs() < BANDWIDTH / 2).to(pre.dtype) / BANDWIDTH
        return by_f * (pre > threshold), -(near * (threshold * by_f * (pre > 0) + by_step)).sum(0)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("architecture", ["relu", "jumprelu"])
def test_the_lean_dense_step_equals_plain_autograd(
    architecture: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(sparse, "usable", lambda x: False)
    made, x = learned(architecture), inputs(200, 12)
    made.zero_grad()
    found = made.loss(x, Step(warmth=0.5))
    found.total.backward()
    ours = [parameter.grad.clone() for parameter in made.parameters()]
    made.zero_grad()
    pre = made.pre_activations(x)
    if isinstance(made, JumpReLU):
        f, step = Jump.apply(pre, made.threshold.clamp_min(0))
        penalty = 12 * (step.sum(-1).mean() / 5 - 1).square()
    else:
        f = torch.relu(pre)
        penalty = f.sum(-1).mean()
    total = (x - made.decode(f)).square().sum(-1).mean() + 0.5 * penalty
    total.backward()
    torch.testing.assert_close(found.total, total)
    for mine, parameter in zip(ours, made.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.fired, (f > 0).sum(0))


def test_l1_of_a_gated_code_is_on_the_gate_and_the_decoder_is_frozen_there() -> None:
    made, x = small("gated"), inputs(64, 12)
    terms = made.loss(x, Step()).terms
    terms["gate"].backward()
    assert made.W_dec.grad is None and made.W_enc.grad is not None
    assert float(made.W_enc.grad.abs().max()) > 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_auxiliary_loss_moves_dead_latents_and_no_others(architecture: str) -> None:
    made, x = small(architecture), inputs(64, 12)
    dead = torch.zeros(40, dtype=torch.bool)
    dead[[3, 17]] = True
    made.loss(x, Step(dead=dead)).terms["aux"].backward()
    moved = made.W_dec.grad.abs().sum(1) > 0
    assert set(moved.nonzero().squeeze(1).tolist()) <= {3, 17} and bool(moved.any())
    assert "aux" not in made.loss(x, Step(dead=torch.zeros(40, dtype=torch.bool))).terms


# --- the sparse step -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(bool(sparse.missing()), reason="no C compiler")
@settings(max_examples=examples(40), deadline=None)
@given(
    architecture=st.sampled_from(["topk", "batch_topk"]),
    rows=st.integers(1, 300),
    d_in=st.integers(1, 40),
    d_sae=st.integers(1, 700),
    share=st.floats(0.001, 1.0),
    threads=st.sampled_from([1, 2]),
    seed=st.integers(0, 1000),
)
def test_the_sparse_step_equals_the_dense_one(
    architecture: str, rows: int, d_in: int, d_sae: int, share: float, threads: int, seed: int
) -> None:
    made = small(architecture, d_in, d_sae, max(1, round(share * d_sae)), seed)
    x = inputs(rows, d_in, seed + 1)
    dead = torch.rand(d_sae, generator=torch.Generator().manual_seed(seed)) < 0.3
    found = []
    usable, before, work = sparse.usable, torch.get_num_threads(), sparse.SMALL
    try:
        for sparsely in (True, False):
            sparse.usable = (lambda x: True) if sparsely else (lambda x: False)
            sparse.SMALL = 0
            torch.set_num_threads(threads)
            made.zero_grad()
            loss = made.loss(x, Step(dead=dead))
            loss.total.backward()
            found.append([loss.total.detach(), loss.fired, loss.l0, *(p.grad.clone() for p in made.parameters())])
    finally:
        sparse.usable, sparse.SMALL = usable, work
        torch.set_num_threads(before)
    for ours, oracle in zip(*found, strict=True):
        torch.testing.assert_close(ours, oracle, rtol=1e-4, atol=1e-4 * (1 + float(oracle.abs().max())))


@pytest.mark.skipif(bool(sparse.missing()), reason="no C compiler")
@settings(max_examples=examples(40), deadline=None)
@given(rows=st.integers(1, 40), width=st.integers(1, 150), half=st.floats(1e-3, 3.0), seed=st.integers(0, 999))
def test_jumprelu_in_two_passes_is_jumprelu(rows: int, width: int, half: float, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    pre, threshold = torch.randn(rows, width, generator=random), torch.rand(width, generator=random) - 0.3
    pre[0, 0], pre[-1, -1] = threshold[0], float("nan")  # on the edge, and what must not vanish
    near = ((pre - threshold).abs() < half).view(-1).nonzero().squeeze(1)
    expected = torch.where((pre > threshold) & (pre > 0) | pre.isnan(), pre, 0.0)
    f = pre.clone()
    at, values = sparse.jump(f, threshold, half)
    assert torch.equal(at, near) and torch.equal(values, pre.view(-1)[near])
    torch.testing.assert_close(f, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(sparse.fired(f), torch.count_nonzero(expected, 0))


@pytest.mark.skipif(bool(sparse.missing()), reason="no C compiler")
def test_gradients_of_the_sparse_step_against_differences_in_float64(dense: None) -> None:
    """The dense path, which is the oracle above, is itself held by finite differences."""
    made, x = small("topk", 6, 15, 4).double(), inputs(20, 6).double()
    made.loss(x, Step()).total.backward()
    for parameter in made.parameters():
        flat, step = parameter.data.view(-1) if parameter.is_contiguous() else parameter.data.t().view(-1), 1e-6
        grad = parameter.grad if parameter.is_contiguous() else parameter.grad.t()
        for i in range(0, flat.numel(), 7):
            ends = []
            for sign in (1, -1):
                flat[i] += sign * step
                ends.append(float(made.loss(x, Step()).total.detach()))
                flat[i] -= sign * step
            assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(float(grad.reshape(-1)[i]), abs=1e-5, rel=1e-4)


def test_without_a_compiler_a_line_says_so_and_the_dense_path_serves(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    sparse.library.cache_clear()
    sparse.missing.cache_clear()
    try:
        loss = small("topk").loss(inputs(8, 12), Step())
        assert torch.isfinite(loss.total)
        assert "dense products instead of sparse ones" in capfd.readouterr().err
    finally:
        sparse.library.cache_clear()
        sparse.missing.cache_clear()


# --- bad shapes and files --------------------------------------------------------------------------------------------


def test_bad_shapes_are_one_line() -> None:
    with pytest.raises(MechintError, match="k is 50, more than the 40 latents"):
        make(SAEConfig("topk", 12, 40, k=50))
    with pytest.raises(MechintError, match="needs k ≥ 1"):
        make(SAEConfig("batch_topk", 12, 40))
    with pytest.raises(MechintError, match="did you mean topk"):
        make(SAEConfig("topkk", 12, 40, k=3))
    with pytest.raises(MechintError, match="ascend and end in the width 40"):
        make(SAEConfig("matryoshka", 12, 40, k=3, groups=(10, 5, 40)))
    with pytest.raises(MechintError, match="of s takes activations of width 12; got width 13"):
        small("topk").encode(inputs(3, 13))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_files_give_back_every_bit_and_every_fact(architecture: str, tmp_path: Path) -> None:
    folded = learned(architecture).fold(2.0)
    back = sae.load(sae.save(folded, tmp_path / "d"))
    assert back.config == folded.config
    x = inputs(40, 12)
    torch.testing.assert_close(back.encode(x), folded.encode(x), rtol=0, atol=0)
    torch.testing.assert_close(back(x), folded(x), rtol=0, atol=0)
    raw = json.loads((tmp_path / "d" / "cfg.json").read_text())
    assert raw["architecture"] in ("standard", "topk", "jumprelu", "gated")


def test_a_full_disk_leaves_nothing_and_keeps_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = learned("topk", 2).fold(1.0)
    sae.save(first, tmp_path / "d")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        sae.save(learned("topk", 3).fold(1.0), tmp_path / "d")
    assert [path.name for path in tmp_path.iterdir()] == ["d"]
    torch.testing.assert_close(sae.load(tmp_path / "d").W_dec, first.W_dec, rtol=0, atol=0)


def test_bad_files_are_one_line(tmp_path: Path) -> None:
    sae.save(learned("gated", 2).fold(1.0), tmp_path / "d")
    weights = tmp_path / "d" / "sae_weights.safetensors"
    good = load_file(weights)

    def with_tensors(**changed: torch.Tensor | None) -> None:
        save_file({k: v for k, v in {**good, **changed}.items() if v is not None}, weights)

    with_tensors(b_mag=None)
    with pytest.raises(MechintError, match="lacks b_mag"):
        sae.load(tmp_path / "d")
    with_tensors(threshold=torch.zeros(40))
    with pytest.raises(MechintError, match="has threshold"):
        sae.load(tmp_path / "d")
    with_tensors(b_dec=torch.zeros(13))
    with pytest.raises(MechintError, match=r"b_dec is \[13\]"):
        sae.load(tmp_path / "d")
    with_tensors(b_dec=torch.full((12,), float("nan")))
    with pytest.raises(MechintError, match="b_dec holds NaN"):
        sae.load(tmp_path / "d")
    weights.write_bytes(b"no safetensors")
    with pytest.raises(MechintError, match="cut short or damaged"):
        sae.load(tmp_path / "d")
    with pytest.raises(MechintError, match="is not a dictionary"):
        sae.load(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(MechintError, match="files that are not a dictionary"):
        sae.save(learned("topk", 2).fold(1.0), tmp_path / "other")
