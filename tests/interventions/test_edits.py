"""Each intervention against a slow and obvious computation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mechint
from mechint import Edit, scan
from mechint.utils.errors import MechintError
from tests.helpers.builders import SIZES, tiny_gpt2, tiny_llama, tiny_mamba, tokens
from tests.helpers.examples import examples
from tests.helpers.sweeps import LENGTH, ROWS, in_pieces, whole_and_in_pieces

CUTS = [
    {"site": "layers.1.state", "positions": [6], "sources": [2]},
    {"site": "layers.1.conv", "positions": [4, 5], "sources": [3]},
    {"site": "layers.1.out", "positions": [4, 7], "sources": [2, 3]},
    {"site": "layers.1.out", "positions": [7], "sources": [2], "decay": "frozen"},
    {"site": "layers.1.out", "positions": [7], "sources": [2], "decay": "frozen", "units": [0, 3, 9]},
]


def value(model: Any, ids: Tensor, site: str, *edits: Edit) -> Tensor:
    return mechint.run(model, ids, record=[site], edits=edits)[site]


@pytest.mark.slow_where("chunked")
@pytest.mark.parametrize("name", [name for name, reason in scan.available().items() if not reason])
@given(sizes=SIZES, seed=st.integers(0, 50))
@settings(max_examples=examples(6), deadline=None)
def test_identity_edits_keep_every_bit(name: str, sizes: dict, seed: int) -> None:
    with scan.using(name):
        check_identity_edits(sizes, seed)


def check_identity_edits(sizes: dict, seed: int) -> None:
    model, ids = tiny_mamba(seed, **sizes), tokens(2, 7, seed)
    with torch.no_grad():
        plain = mechint.run(model, ids, record=["*"])
        for name in model.sites:
            same = plain[name]
            if not same.numel():  # the memory of a convolution with one tap
                continue
            edits = [
                Edit(name, "replace", same),
                Edit(name, "replace", lambda clean: clean),
                Edit(name, "replace", same[:, [4, 1]], positions=[4, 1]),
                Edit(
                    name, "replace", same[[1]][..., :1] if same.dim() == 3 else same[[1]][:, :, :1], units=[0], rows=[1]
                ),
                Edit(name, "scale", 1.0, positions=[-1]),
                Edit(name, "mask", 1.0, fill=123.0),
                Edit(name, "add", 0.0),
            ]
            for edit in edits:
                assert torch.equal(mechint.run(model, ids, edits=[edit]).logits, plain.logits), (name, edit)


@pytest.mark.parametrize("mode", ["prefill", "steps"])
def test_an_edit_that_matters_changes_the_logits_at_every_site(mode: str) -> None:
    model, ids = tiny_mamba(), tokens(2, 7)
    plain = model(ids)
    for name in model.sites:
        edit = Edit(name, "add", 1.0, positions=[3])
        if mode == "prefill":
            logits = mechint.run(model, ids, edits=[edit]).logits
        else:
            logits, cache = [], None
            for t in range(ids.shape[1]):
                step = mechint.run(model, ids[:, t : t + 1], edits=[edit] if t == 3 else [], cache=cache)
                logits.append(step.logits)
                cache = step.cache
            logits = torch.cat(logits, 1)
        changed = (logits - plain).abs().amax((0, 2)) > 1e-4
        assert not changed[:3].any(), name
        assert changed[3:].any(), name


@given(seed=st.integers(0, 200), at=st.integers(0, 6), layer=st.integers(0, 1))
@settings(max_examples=examples(20), deadline=None)
def test_a_replaced_state_equals_going_on_from_a_donor(seed: int, at: int, layer: int) -> None:
    """do(h_t := donor's h_t), checked by continuing from the receiver's cache with the donor's state in it."""
    model = tiny_mamba(seed, torch.float64)
    receiver, donor = tokens(2, 9, seed), tokens(2, 9, seed + 1)
    site = f"layers.{layer}.state"
    h = value(model, donor, site)[:, [at]]
    edited = mechint.run(model, receiver, edits=[Edit(site, "replace", h, positions=[at])])

    first = mechint.run(model, receiver[:, : at + 1])
    first.cache.layers[layer].state = h[:, 0]
    for t in range(at + 1, 9):  # the transplant changes later states of this layer; layers above follow from resid
        first = mechint.run(model, receiver[:, t : t + 1], cache=first.cache)
        # a read-out at t itself is not in the donor's continuation, so only the top layer can be compared further up
        if layer == 1:
            torch.testing.assert_close(first.logits[:, 0], edited.logits[:, t], rtol=0, atol=1e-12)
    torch.testing.assert_close(first.cache.layers[layer].state, edited.cache.layers[layer].state, rtol=0, atol=1e-12)


def test_a_replaced_state_equals_a_changed_write() -> None:
    model, ids = tiny_mamba(dtype=torch.float64), tokens(2, 8)
    run = mechint.run(model, ids, record=["layers.0.state", "layers.0.write"])
    target = torch.randn_like(run["layers.0.state"][:, [3]])
    write = run["layers.0.write"][:, [3]] + target - run["layers.0.state"][:, [3]]
    by_state = mechint.run(model, ids, edits=[Edit("layers.0.state", "replace", target, positions=[3])]).logits
    by_write = mechint.run(model, ids, edits=[Edit("layers.0.write", "replace", write, positions=[3])]).logits
    torch.testing.assert_close(by_state, by_write, rtol=0, atol=1e-12)


def test_readout_leaves_the_recurrence_alone_and_state_does_not() -> None:
    model, ids = tiny_mamba(), tokens(2, 8)
    plain = value(model, ids, "layers.0.state")
    star = torch.randn_like(plain[:, [3]])
    read = Edit("layers.0.state", "readout", star, positions=[3])
    assert torch.equal(value(model, ids, "layers.0.state", read), plain)
    outs = [
        value(model, ids, "layers.0.out", *edits)
        for edits in ([], [read], [Edit("layers.0.state", "replace", star, positions=[3])])
    ]
    changed = [(out - outs[0]).abs().amax((0, 2)) > 1e-6 for out in outs]
    assert changed[1].tolist() == [False] * 3 + [True] + [False] * 4
    assert changed[2].tolist() == [False] * 3 + [True] * 5
    same = mechint.run(model, ids, edits=[Edit("layers.0.readout", "replace", star, positions=[3])]).logits
    assert torch.equal(same, mechint.run(model, ids, edits=[read]).logits)


def test_decay_decides_what_survives() -> None:
    model, ids = tiny_mamba(dtype=torch.float64), tokens(1, 8)
    run = mechint.run(model, ids, record=["layers.0.*"])
    wiped = value(model, ids, "layers.0.state", Edit("layers.0.decay", "replace", 0.0, positions=[5]))
    torch.testing.assert_close(wiped[:, 5], run["layers.0.write"][:, 5], rtol=0, atol=1e-14)
    assert torch.equal(wiped[:, :5], run["layers.0.state"][:, :5])


def test_the_convolution_remembers_what_its_memory_is_told() -> None:
    """conv_state at t changes the taps of t+1 … t+K-1 that lie at or before t, and nothing at t."""
    model, ids = tiny_mamba(dtype=torch.float64), tokens(1, 9)
    layer = model.layers[0]
    x = value(model, ids, "layers.0.x")
    star = torch.randn(1, 1, 14, 3, dtype=torch.float64)
    got = value(model, ids, "layers.0.conv", Edit("layers.0.conv_state", "replace", star, positions=[4]))
    inputs = torch.cat([x[:, :2] * 0, star[:, 0].transpose(1, 2), x[:, 5:]], 1)  # positions 0, 1 do not matter
    weight = layer.conv1d.weight[:, 0]
    for t in range(5, 9):
        expected = layer.conv1d.bias + sum(weight[:, k] * inputs[:, t - 3 + k] for k in range(4))
        torch.testing.assert_close(got[:, t], expected, rtol=0, atol=1e-13)
    assert torch.equal(got[:, :5], value(model, ids, "layers.0.conv")[:, :5])


@pytest.mark.parametrize("decay", ["frozen", "kept"])
@pytest.mark.parametrize("channels", [None, [0, 3, 9]])
def test_a_complete_cut_has_a_zero_jacobian(decay: str, channels: list[int] | None) -> None:
    model, ids = tiny_mamba(dtype=torch.float64), tokens(2, 9)
    x = value(model, ids, "layers.1.x").detach()
    cut = Edit("layers.1.out", "cut", positions=[5, 8], sources=[2, 4], decay=decay, units=channels)

    def out(x: Tensor) -> Tensor:
        return value(model, ids, "layers.1.out", Edit("layers.1.x", "replace", x), cut)

    leaf = x.clone().requires_grad_()
    weights = torch.randn(2, 10, dtype=torch.float64)
    everything = list(range(14)) if channels is None else channels
    for target in (5, 8):
        (gradient,) = torch.autograd.grad((out(leaf)[:, target] * weights).sum(), leaf)
        if decay == "frozen":
            assert not gradient[:, [2, 4]][..., everything].any()
        assert (gradient[:, 3].abs() > 0).all()
        if channels is not None:
            others = [c for c in range(14) if c not in channels]
            assert (gradient[:, 4][..., others].abs() > 0).all()
    moved = x.clone()
    moved[:, [2, 4]] = moved[:, [2, 4]].index_fill(2, torch.tensor(everything), 7.0)
    same = torch.equal(out(moved)[:, [5, 8]], out(x)[:, [5, 8]])
    assert same == (decay == "frozen")  # a kept decay still responds to the sources, by name
    assert not torch.equal(out(moved)[:, [6]], out(x)[:, [6]])


def test_a_cut_of_the_scan_removes_alpha_u() -> None:
    """y_i loses α[i, j] u_j and nothing else (Ali et al. 2024, equation 11, on our own tensors)."""
    model, ids = tiny_mamba(dtype=torch.float64), tokens(2, 9)
    run = mechint.run(model, ids, record=["layers.0.*"])
    cut = Edit("layers.0.state", "cut", positions=[7], sources=[2, 4], units=[1, 5])
    got = value(model, ids, "layers.0.scan_out", cut)
    expected = run["layers.0.scan_out"].clone()
    for j in (2, 4):
        survived = run["layers.0.decay"][:, j + 1 : 8].prod(1)  # [B, E, N]
        alpha_u = (run["layers.0.C"][:, 7, None] * survived * run["layers.0.write"][:, j]).sum(-1)
        expected[:, 7, [1, 5]] -= alpha_u[:, [1, 5]]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_a_state_set_after_the_source_leaves_nothing_to_cut() -> None:
    model, ids = tiny_mamba(), tokens(1, 9)
    wipe = Edit("layers.0.state", "replace", torch.randn(14, 5), positions=[5])
    cut = Edit("layers.0.state", "cut", positions=[8], sources=[2])
    both = mechint.run(model, ids, edits=[wipe, cut]).logits
    torch.testing.assert_close(both, mechint.run(model, ids, edits=[wipe]).logits, rtol=0, atol=1e-6)


def test_a_cut_of_the_taps_is_a_convolution_without_them() -> None:
    model, ids = tiny_mamba(dtype=torch.float64), tokens(2, 9)
    x = value(model, ids, "layers.0.x").detach().requires_grad_()
    cut = Edit("layers.0.conv", "cut", positions=[5], sources=[3, 5])
    conv = value(model, ids, "layers.0.conv", Edit("layers.0.x", "replace", x), cut)
    (gradient,) = torch.autograd.grad(conv[:, 5].sum(), x)
    assert not gradient[:, [3, 5]].any()
    assert gradient[:, [2, 4]].abs().min() > 0


EDITS = [
    *({"site": f"layers.0.{name}", "mode": "add", "value": 0.7, "positions": [2, 6]} for name in (
        "x", "conv", "conv_state", "u", "dt", "B", "decay", "write", "state", "readout", "scan_out", "out")),
    {"site": "layers.1.state", "mode": "replace", "value": 0.3, "positions": [6], "units": [(0, 1), (3, 4)]},
    {"site": "layers.1.state", "mode": "scale", "value": 0.1},
    {"site": "layers.1.state", "mode": "readout", "value": 0.0, "positions": [5], "rows": [1]},
    *({"mode": "cut", **cut} for cut in CUTS),
]  # fmt: skip


@pytest.mark.parametrize("which", range(len(EDITS)))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_prefill_and_token_by_token_agree(which: int, dtype: torch.dtype) -> None:
    model, ids = tiny_mamba(dtype=dtype), tokens(2, 4)
    edits = [Edit(**EDITS[which])]  # type: ignore[arg-type]
    out = mechint.generate(model, ids, 6, edits=edits)
    whole = mechint.run(model, out.tokens[:, :-1], edits=edits).logits
    torch.testing.assert_close(
        out.logits, whole, rtol=0, atol=1e-12 if dtype == torch.float64 else 2e-6 * float(whole.detach().abs().max())
    )
    assert not torch.allclose(whole, model(out.tokens[:, :-1]), atol=1e-6)


@pytest.mark.parametrize("made", [tiny_mamba, tiny_gpt2, tiny_llama])
@given(data=st.data(), seed=st.integers(0, 500))
@settings(max_examples=examples(25), deadline=None)
def test_any_edits_together_agree_whole_and_in_pieces(made: Any, data: st.DataObject, seed: int) -> None:
    """A cut beside an edit inside its layer, too: the pass that the cut adds begins at position 0."""
    whole, pieces = data.draw(whole_and_in_pieces(made(seed, torch.float64, n_layer=1), tokens(ROWS, LENGTH, seed)))
    torch.testing.assert_close(pieces, whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("decay", ["kept", "frozen"])
@pytest.mark.parametrize(
    "name", ["conv", "u", "dt", "B", "C", "decay", "write", "state", "readout", "scan_out", "y", "gated"]
)
def test_a_complete_cut_beside_an_edit_inside_its_layer_holds_behind_a_cache(name: str, decay: str) -> None:
    model, ids = tiny_mamba(3, torch.float64), tokens(2, 6)
    cut = Edit("layers.0.out", "cut", positions=[5], sources=[0], decay=decay)
    edits = [cut, Edit(f"layers.0.{name}", "scale", 3.0, positions=[2, 5])]
    whole, pieces = in_pieces(model, ids, edits, [4])
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-12)
    apart = whole - mechint.run(model, ids, edits=[cut]).logits.detach()
    assert float(apart[:, 5].abs().max()) > 1e-6


def test_gradients_flow_through_every_site_and_edit() -> None:
    model, ids = tiny_mamba(dtype=torch.float64), tokens(1, 6)
    clean = mechint.run(model, ids, record=["*"])
    for name in model.sites:
        leaf = clean[name][:, [2]].detach().clone().requires_grad_()
        direction = torch.randn_like(leaf)

        def loss(v: Tensor, name: str = name) -> Tensor:
            edit = Edit(name, "replace", v, positions=[2])
            return mechint.run(model, ids, edits=[edit]).logits.square().mean()

        (gradient,) = torch.autograd.grad(loss(leaf), leaf)
        step = 1e-6
        with torch.no_grad():
            slope = (loss(leaf + step * direction) - loss(leaf - step * direction)) / (2 * step)
        assert abs(float((gradient * direction).sum() - slope)) < 1e-7 + 1e-6 * abs(float(slope)), name
        assert gradient.abs().sum() > 0, name


def test_rows_units_and_modes_touch_just_what_they_name() -> None:
    model, ids = tiny_mamba(), tokens(3, 6)
    clean = value(model, ids, "layers.0.u")
    got = value(model, ids, "layers.0.u", Edit("layers.0.u", "scale", torch.tensor([2.0, 3.0]), [1, 4], [5, 0], [2]))
    expected = clean.clone()
    for position in (1, 4):
        expected[2, position, 5] *= 2
        expected[2, position, 0] *= 3
    assert torch.equal(got, expected)
    masked = value(model, ids, "layers.0.u", Edit("layers.0.u", "mask", 0.25, fill=8.0))
    torch.testing.assert_close(masked, 0.25 * clean + 6.0)
    per_position = torch.randn(6, 14)
    whole = value(model, ids, "layers.0.u", Edit("layers.0.u", "replace", per_position))
    assert torch.equal(whole, per_position.expand(3, -1, -1))


BAD = [
    ({"site": "layers.0.stat", "value": 0.0}, "no site 'layers.0.stat'.*layers.0.state"),
    ({"site": "layers.0.u", "mode": "replce", "value": 0.0}, "mode 'replce' is not one of replace"),
    ({"site": "layers.0.u"}, "needs a value"),
    ({"site": "layers.0.u", "mode": "readout", "value": 0.0}, "'readout' is for the site 'state' alone"),
    ({"site": "layers.0.u", "value": 0.0, "positions": [6]}, "position 6 does not exist; there are 6"),
    ({"site": "layers.0.u", "value": 0.0, "positions": [-7]}, "position -1 does not exist"),
    ({"site": "layers.0.u", "value": 0.0, "positions": []}, "empty list of positions"),
    ({"site": "layers.0.u", "value": 0.0, "positions": [1, -5]}, "position 1 is named twice"),
    ({"site": "layers.0.u", "value": 0.0, "positions": 1}, r"positions is the number 1, not a list of them; say \[1\]"),
    ({"site": "layers.0.u", "value": 0.0, "units": 3}, "units is the number 3, not a list"),
    ({"site": "layers.0.u", "value": 0.0, "units": [14]}, "channel 14 does not exist; there are 14"),
    ({"site": "layers.0.u", "value": 0.0, "units": []}, "empty list of units"),
    ({"site": "layers.0.u", "value": 0.0, "units": [(1, 2)]}, "only the axis 'channel'"),
    ({"site": "layers.0.state", "value": 0.0, "units": [(1, 5)]}, "state 5 does not exist; there are 5"),
    ({"site": "layers.0.u", "value": 0.0, "rows": [2]}, "row 2 does not exist"),
    ({"site": "layers.0.u", "value": torch.zeros(13)}, "at the axis 'channel' \\(13 against 14\\)"),
    ({"site": "layers.0.u", "value": torch.zeros(5, 14)}, "at the axis 'position' \\(5 against 6\\)"),
    ({"site": "layers.0.u", "mode": "mask", "value": 1.0, "fill": torch.zeros(3)}, "the fill has shape \\[3\\]"),
    ({"site": "layers.0.u", "mode": "scale", "value": torch.abs}, "with a function use 'replace'"),
    ({"site": "layers.0.u", "mode": "cut", "positions": [3], "sources": [1]}, "cut is made at 'state', 'conv' or"),
    ({"site": "layers.0.out", "mode": "cut", "positions": [3]}, "needs positions .* and sources"),
    ({"site": "layers.0.out", "mode": "cut", "positions": [1], "sources": [3]}, "reads none of the sources"),
    ({"site": "layers.0.out", "mode": "cut", "positions": [3], "sources": [1], "units": [14]}, "channel 14"),
    ({"site": "layers.0.out", "mode": "cut", "positions": [3], "sources": [1], "decay": "x"}, "'kept' or 'frozen'"),
    ({"site": "layers.0.conv", "mode": "cut", "positions": [5], "sources": [1]}, "within the 4 taps"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "message"), BAD)
def test_impossible_edits_are_refused_in_one_line(edit: dict, message: str) -> None:
    with pytest.raises(MechintError, match=message) as error:
        mechint.run(tiny_mamba(), tokens(2, 6), edits=[Edit(**edit)])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("site", "first"),
    [("layers.1.dt", "layers.1.dt"), ("layers.0.state", "layers.0.scan_out"), ("embed", "embed"), ("logits", "logits")],
)
def test_numbers_that_are_not_finite_name_their_place(site: str, first: str) -> None:
    edit = Edit(site, "add", float("nan"), positions=[2], rows=[1])
    with pytest.raises(MechintError, match=rf"^{first} is NaN or infinite, first at position 2 \(row 1\)"):
        mechint.run(tiny_mamba(), tokens(2, 5), edits=[edit])
