"""GPT-2: the forward against NumPy in float64, what its edits mean, and sweeps over them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mechint
from mechint import Edit
from mechint.interventions.gradients import gradients
from mechint.interventions.sweep import sweep
from mechint.models.gpt2 import GPT2, GPT2Config
from mechint.models.parts.attention import grown
from mechint.utils.errors import MechintError
from tests.helpers import gpt2_oracle
from tests.helpers.builders import GPT2_SIZES, tiny_gpt2, tokens
from tests.helpers.examples import examples
from tests.helpers.steps import by_steps
from tests.helpers.sweeps import LENGTH, ROWS, edits, one_by_one

KINDS = [name for name in tiny_gpt2(n_layer=1).sites if name != "logits"]


def value(model: Any, ids: Tensor, site: str, *edits: Edit) -> Tensor:
    return mechint.run(model, ids, record=[site], edits=edits)[site]


@given(sizes=GPT2_SIZES, batch=st.integers(1, 3), length=st.integers(1, 9), seed=st.integers(0, 99))
@settings(max_examples=examples(25), deadline=None)
def test_every_site_equals_numpy(sizes: dict, batch: int, length: int, seed: int) -> None:
    model = tiny_gpt2(seed, torch.float64, **sizes)
    ids = tokens(batch, length, seed)
    with torch.no_grad():
        run = mechint.run(model, ids, record=["*"])
    expected = gpt2_oracle.forward(model, ids.numpy())
    assert set(expected) == set(model.sites) == set(run.values)
    for name, correct in expected.items():
        assert run[name].shape[2:] == model.sites[name].of_length(length).units
        largest = np.abs(correct[np.isfinite(correct)]).max(initial=1)
        np.testing.assert_allclose(run[name].numpy(), correct, rtol=0, atol=1e-10 * largest, err_msg=name)


@pytest.mark.slow
@given(sizes=GPT2_SIZES, seed=st.integers(0, 50))
@settings(max_examples=examples(6), deadline=None)
def test_recording_and_identity_edits_keep_every_bit(sizes: dict, seed: int) -> None:
    model, ids = tiny_gpt2(seed, **sizes), tokens(2, 7, seed)
    with torch.no_grad():
        logits = model(ids)
        plain = mechint.run(model, ids, record=["*"])
        assert torch.equal(plain.logits, logits)
        for name in model.sites:
            same = plain[name]
            assert torch.equal(mechint.run(model, ids, record=[name]).logits, logits), name
            for edit in [
                Edit(name, "replace", same),
                Edit(name, "replace", lambda clean: clean),
                Edit(name, "replace", same[:, [4, 1]], positions=[4, 1]),
                Edit(name, "replace", same[[1]][:, :, :1], units=[0], rows=[1]),
                Edit(name, "scale", 1.0, positions=[-1]),
                Edit(name, "mask", 1.0, fill=123.0),
                Edit(name, "add", 0.0),
            ]:
                assert torch.equal(mechint.run(model, ids, edits=[edit]).logits, logits), (name, edit)


@pytest.mark.parametrize("mode", ["prefill", "steps"])
@pytest.mark.parametrize("sizes", [{}, {"kv_tied": True, "bias": False, "tied": False}])
def test_an_edit_that_matters_changes_the_logits_at_every_site(mode: str, sizes: dict) -> None:
    model, ids = tiny_gpt2(**sizes), tokens(2, 7)
    plain = model(ids)
    for name, site in model.sites.items():
        # one amount for all scores, or for all logits, would change no comparison between them
        amount = torch.arange(1.0, 1 + math.prod(site.of_length(7).units)).view(site.of_length(7).units) / 3
        edit = Edit(name, "add", amount, positions=[3])
        logits = mechint.run(model, ids, edits=[edit]).logits if mode == "prefill" else by_steps(model, ids, [edit])
        changed = (logits - plain).abs().amax((0, 2)) > 1e-4
        assert not changed[:3].any(), name
        assert changed[3:].any(), name


def test_keys_and_values_are_read_by_every_later_position_and_patterns_by_one() -> None:
    model, ids = tiny_gpt2(), tokens(1, 7)
    for kind, later in {"k": True, "v": True, "q": False, "pattern": False, "scores": False, "head_out": False}.items():
        scale = Edit(f"layers.1.{kind}", "scale", 0.3, positions=[2])
        changed = (mechint.run(model, ids, edits=[scale]).logits - model(ids)).abs().amax((0, 2)) > 1e-5
        assert changed.tolist() == [False, False, True, *[later] * 4], kind


def test_a_replaced_key_and_value_equal_the_donors_cache() -> None:
    model, receiver, donor = tiny_gpt2(dtype=torch.float64), tokens(2, 9, 1), tokens(2, 9, 2)
    given = mechint.run(model, donor, record=["layers.1.k", "layers.1.v"])
    swap = [Edit(f"layers.1.{kind}", "replace", given[f"layers.1.{kind}"][:, [4]], positions=[4]) for kind in "kv"]
    edited = mechint.run(model, receiver, edits=swap).logits
    cache = mechint.run(model, receiver[:, :5]).cache
    for kind, pieces in (("k", cache.layers[1].keys), ("v", cache.layers[1].values)):
        whole = torch.cat(pieces, 1)
        whole[:, 4] = given[f"layers.1.{kind}"][:, 4]
        pieces[:] = [whole]
    rest = mechint.run(model, receiver[:, 5:], cache=cache).logits
    torch.testing.assert_close(rest, edited[:, 5:], rtol=0, atol=1e-12)


CUTS = [
    {"site": "layers.1.scores", "positions": [4, 7], "sources": [2, 3]},
    {"site": "layers.1.scores", "positions": [4, 7], "sources": [2, 3], "units": [0, 2]},
    {"site": "layers.1.pattern", "positions": [4, 7], "sources": [2, 3], "units": [1]},
    {"site": "layers.0.scores", "positions": [3], "sources": [0, 1, 2, 3]},
]
EDITS = [
    *({"site": name, "mode": "add", "value": 0.7, "positions": [2, 6],
       "units": [(0, 1), (2, 0)] if name.endswith(("scores", "pattern")) else [0, 2]} for name in KINDS),
    {"site": "layers.1.scores", "mode": "replace", "value": torch.randn(9, 3, 9)},
    {"site": "layers.1.scores", "mode": "replace", "value": lambda clean: clean.flip(-1)},
    {"site": "layers.1.pattern", "mode": "replace", "value": 1 / 9},
    {"site": "layers.0.pattern", "mode": "mask", "value": 0.5, "fill": torch.rand(9), "rows": [1]},
    {"site": "layers.1.scores", "mode": "replace", "value": -math.inf, "positions": [5], "units": [(0, 2), (1, 8)]},
    {"site": "layers.1.v", "mode": "scale", "value": 0.1, "units": [(0, 1), (2, 3)]},
    *({"mode": "cut", **cut} for cut in CUTS),
]  # fmt: skip


@pytest.mark.parametrize("which", range(len(EDITS)))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_prefill_and_token_by_token_agree(which: int, dtype: torch.dtype) -> None:
    model, ids = tiny_gpt2(dtype=dtype), tokens(2, 4)
    edits = [Edit(**EDITS[which])]  # type: ignore[arg-type]
    out = mechint.generate(model, ids, 5, edits=edits)
    whole = by_steps(model, out.tokens, edits)[:, :-1]
    prefill = mechint.run(model, out.tokens, edits=edits).logits[:, :-1]
    tolerance = 1e-12 if dtype == torch.float64 else 4e-6 * float(whole.detach().abs().max())
    torch.testing.assert_close(out.logits, prefill, rtol=0, atol=tolerance)
    torch.testing.assert_close(whole, prefill, rtol=0, atol=tolerance)
    assert not torch.allclose(prefill, model(out.tokens)[:, :-1], atol=1e-6)


def test_a_cut_of_scores_is_attention_without_the_sources() -> None:
    """∂attn_out_i/∂(k_j, v_j) is zero, and the others share what j had."""
    model, ids = tiny_gpt2(dtype=torch.float64), tokens(2, 8)
    clean = mechint.run(model, ids, record=["layers.1.*"])
    for kind in ("scores", "pattern"):
        cut = Edit(f"layers.1.{kind}", "cut", positions=[5, 7], sources=[2, 4], units=[0, 2])
        pattern = value(model, ids, "layers.1.pattern", cut)
        expected = clean["layers.1.pattern"].clone()
        for i in (5, 7):
            for head in (0, 2):
                expected[:, i, head, [2, 4]] = 0
                if kind == "scores":
                    expected[:, i, head] /= expected[:, i, head].sum(-1, keepdim=True)
        torch.testing.assert_close(pattern, expected, rtol=0, atol=1e-14)
        whole = Edit(f"layers.1.{kind}", "cut", positions=[5], sources=[2])
        for other in "kv":
            leaf = clean[f"layers.1.{other}"].detach().requires_grad_()
            out = value(model, ids, "layers.1.attn_out", Edit(f"layers.1.{other}", "replace", leaf), whole)
            (gradient,) = torch.autograd.grad(out[:, 5].square().sum(), leaf)
            zero = kind == "scores" or other == "v"  # a cut pattern still responds to the source's key
            assert gradient[:, 2].any() != zero
            assert gradient[:, 3].any()


def test_cuts_of_one_place_by_several_edits_are_one_cut() -> None:
    model, ids = tiny_gpt2(), tokens(1, 6)
    cut = lambda *sources: Edit("layers.0.scores", "cut", positions=[4, 5], sources=sources)
    together = mechint.run(model, ids, edits=[cut(1, 2, 3)]).logits
    assert torch.equal(mechint.run(model, ids, edits=[cut(1, 2), cut(2, 3)]).logits, together)


def test_a_position_that_may_read_nothing_reads_nothing() -> None:
    model, ids = tiny_gpt2(), tokens(1, 5)
    alone = Edit("layers.0.scores", "cut", positions=[0], sources=[0])
    run = mechint.run(model, ids, record=["layers.0.head_out"], edits=[alone])
    assert not run["layers.0.head_out"][:, 0].any() and run["layers.0.head_out"][:, 1].all()
    run.logits.sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_no_edit_lets_a_position_read_the_future() -> None:
    model, ids = tiny_gpt2(), tokens(1, 6)
    other = ids.clone()
    other[:, 4:] = (other[:, 4:] + 1) % 24
    for kind, number in (("scores", 5.0), ("pattern", 0.2)):
        edit = Edit(f"layers.0.{kind}", "replace", number)
        runs = [mechint.run(model, prompt, record=[f"layers.0.{kind}"], edits=[edit]) for prompt in (ids, other)]
        assert torch.equal(runs[0].logits[:, :4], runs[1].logits[:, :4])
        behind = torch.triu(torch.ones(6, 6, dtype=torch.bool), 1)
        absent = runs[0][f"layers.0.{kind}"].transpose(1, 2)[..., behind]
        assert (absent == model.sites[f"layers.0.{kind}"].absent).all()


def test_what_is_recorded_in_generation_is_what_a_whole_run_records() -> None:
    model, ids = tiny_gpt2(dtype=torch.float64), tokens(2, 5)
    out = mechint.generate(model, ids, 6, record=["*"])
    whole = mechint.run(model, out.tokens[:, :-1], record=["*"])
    assert torch.equal(whole.logits[:, 4:].argmax(-1), out.tokens[:, 5:])
    for name in model.sites:
        torch.testing.assert_close(out.values[name], whole[name], rtol=0, atol=1e-12, msg=name)


def test_a_run_goes_on_from_a_cache_more_than_once() -> None:
    model, ids = tiny_gpt2(dtype=torch.float64), tokens(2, 12)
    whole = mechint.run(model, ids, record=["layers.*.pattern"])
    first = mechint.run(model, ids[:, :5])
    for _ in range(2):
        rest = mechint.run(model, ids[:, 5:], record=["layers.*.pattern"], cache=first.cache)
        torch.testing.assert_close(rest.logits, whole.logits[:, 5:], rtol=0, atol=1e-12)
        torch.testing.assert_close(rest["layers.1.pattern"], whole["layers.1.pattern"][:, 5:], rtol=0, atol=1e-12)


def test_a_memory_is_kept_in_few_pieces_that_others_share() -> None:
    pieces: list[Tensor] = []
    for t in range(100):
        before, pieces = pieces, grown(pieces, torch.full((1, 1, 1, 1), float(t)))
        assert len(pieces) <= math.log2(t + 1) + 1
        assert t % 2 or all(old is new for old, new in zip(before, pieces, strict=False))
    assert torch.equal(torch.cat(pieces, 1).flatten(), torch.arange(100.0))


def test_gradients_flow_through_every_site_and_edit() -> None:
    model, ids = tiny_gpt2(dtype=torch.float64), tokens(1, 6)
    clean = mechint.run(model, ids, record=["*"])
    for name in model.sites:
        leaf = clean[name][:, [2]].detach().clone().requires_grad_()
        leaf.data[leaf == -math.inf] = 0.0
        direction = torch.randn_like(leaf)

        def loss(v: Tensor, name: str = name) -> Tensor:
            edit = Edit(name, "replace", v, positions=[2])
            return mechint.run(model, ids, edits=[edit]).logits.square().mean()

        (gradient,) = torch.autograd.grad(loss(leaf), leaf)
        step = 1e-6
        with torch.no_grad():
            slope = (loss(leaf + step * direction) - loss(leaf - step * direction)) / (2 * step)
        assert abs(float((gradient * direction).sum() - slope)) < 1e-6 + 1e-6 * abs(float(slope)), name
        assert gradient.abs().sum() > 0, name


@pytest.mark.slow
@settings(max_examples=examples(60), deadline=None)
@given(st.data(), GPT2_SIZES, st.integers(0, 10_000))
def test_any_cells_over_any_base_equal_one_run_each(data: st.DataObject, sizes: dict[str, Any], seed: int) -> None:
    model = tiny_gpt2(seed, torch.float64, **sizes)
    prompts = tokens(ROWS, LENGTH, seed)
    base = data.draw(st.lists(edits(model, seed), max_size=1))
    cells = [[data.draw(edits(model, seed + k))] for k in range(data.draw(st.integers(1, 5)))]
    at = torch.tensor([[LENGTH - 1, 2]] * ROWS) if data.draw(st.booleans()) else None
    found = sweep(model, prompts, cells, base=base, logits_at=at)
    expected = one_by_one(model, prompts, cells, base, at)
    assert float((found - expected).abs().max()) <= 1e-10 * max(1.0, float(expected.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("memory", [64.0, 0.35])
def test_a_sweep_of_every_attention_edge_and_site(memory: float) -> None:
    model, prompts = tiny_gpt2(3, torch.float64, n_layer=3), tokens(3, 7)
    cells = [
        [Edit(f"layers.{i}.{kind}", "cut", positions=[t], sources=[j], units=[h])]
        for i in range(3)
        for kind in ("scores", "pattern")
        for h in range(3)
        for t in range(7)
        for j in range(t + 1)
    ]
    with torch.no_grad():
        donor = mechint.run(model, tokens(3, 7, 5), ["*"])
    names = [name for name in donor.values if not name.startswith(("final", "logits"))]
    cells += [[Edit(name, "replace", donor[name][:, [p]], positions=[p])] for name in names for p in range(7)]
    base = [Edit("embed", "add", 0.1, positions=[2, 3]), Edit("layers.1.scores", "cut", positions=[6], sources=[1])]
    found = sweep(model, prompts, cells, base=base, memory_mib=memory)
    assert float((found - one_by_one(model, prompts, cells, base)).abs().max()) <= 1e-10


def test_gradients_of_all_sites_at_once_are_those_of_each() -> None:
    model, prompts = tiny_gpt2(dtype=torch.float64), tokens(2, 5)
    metric = lambda logits: logits[:, -1, 4]
    values, found = gradients(model, prompts, ["*"], metric)
    assert set(found) == set(model.sites)
    for name in model.sites:
        moved = torch.zeros_like(values[name], requires_grad=True)
        run = mechint.run(model, prompts, [], [Edit(name, "add", moved)])
        (expected,) = torch.autograd.grad(metric(run.logits).sum(), moved)
        assert float((expected - found[name]).abs().max()) <= 1e-12, name
        assert found[name].any(), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_stream_and_the_softmax_in_float32(dtype: torch.dtype) -> None:
    model, ids = tiny_gpt2(), tokens(2, 9)
    full = model(ids)
    run = mechint.run(model.to(dtype), ids, record=["layers.0.pattern", "layers.0.resid_post", "layers.0.v"])
    assert run["layers.0.pattern"].dtype == run["layers.0.resid_post"].dtype == torch.float32
    assert run["layers.0.v"].dtype == run.logits.dtype == dtype
    assert (run.logits.float() - full).abs().max() < 0.1 * full.abs().max()


def test_a_prompt_longer_than_the_context_is_refused() -> None:
    model = tiny_gpt2(n_ctx=8)
    message = "9 positions are too many: this model has embeddings for 8"
    assert model(tokens(1, 8)).shape == (1, 8, 24)
    assert mechint.generate(model, tokens(1, 5), 4).tokens.shape == (1, 9)  # the last one is never read
    for action in (
        lambda: model(tokens(1, 9)),
        lambda: mechint.run(model, tokens(1, 9)),
        lambda: mechint.generate(model, tokens(1, 5), 5),
        lambda: mechint.run(model, tokens(1, 4), cache=mechint.run(model, tokens(1, 5)).cache),
        lambda: sweep(model, tokens(1, 9), [[Edit("embed", "scale", 0.0)]]),
        lambda: gradients(model, tokens(1, 9), ["embed"], lambda logits: logits.sum()),
    ):
        with pytest.raises(MechintError, match=message) as error:
            action()  # type: ignore[no-untyped-call]
        assert "\n" not in str(error.value)


BAD = [
    ({"site": "layers.0.score", "value": 0.0}, "no site 'layers.0.score'.*layers.0.scores"),
    ({"site": "layers.0.q", "mode": "cut", "positions": [3], "sources": [1]}, "at 'scores' or 'pattern', not at 'q'"),
    ({"site": "layers.0.scores", "mode": "cut", "positions": [1], "sources": [3]}, "reads none of the sources"),
    ({"site": "layers.0.scores", "mode": "cut", "positions": [3]}, "needs positions .* and sources"),
    ({"site": "layers.0.scores", "mode": "cut", "positions": [3], "sources": [1], "units": [3]}, "head 3 does not"),
    ({"site": "layers.0.scores", "mode": "cut", "positions": [3], "sources": [1], "units": [(0, 1)]}, "are heads"),
    ({"site": "layers.0.scores", "value": 0.0, "units": [(0, 6)]}, "source 6 does not exist; there are 6"),
    ({"site": "layers.0.pattern", "value": torch.zeros(3, 5)}, "at the axis 'source' \\(5 against 6\\)"),
    ({"site": "layers.0.k", "value": 0.0, "units": [(0, 4)]}, "dimension 4 does not exist; there are 4"),
    ({"site": "layers.0.mlp_pre", "value": 0.0, "units": [20]}, "neuron 20 does not exist"),
    ({"site": "layers.0.k", "mode": "readout", "value": 0.0}, "'readout' is for the site 'state' alone"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "message"), BAD)
def test_impossible_edits_are_refused_in_one_line(edit: dict, message: str) -> None:
    with pytest.raises(MechintError, match=message) as error:
        mechint.run(tiny_gpt2(), tokens(2, 6), edits=[Edit(**edit)])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("site", "first"),
    [("layers.1.k", "layers.1.k"), ("layers.0.scores", "layers.0.head_out"), ("pos_embed", "pos_embed")],
)
def test_numbers_that_are_not_finite_name_their_place(site: str, first: str) -> None:
    edit = Edit(site, "add", float("nan"), positions=[2], rows=[1])
    with pytest.raises(MechintError, match=rf"^{first} is NaN or infinite, first at position 2 \(row 1\)"):
        mechint.run(tiny_gpt2(), tokens(2, 5), edits=[edit])


def test_the_published_initialisation() -> None:
    model = GPT2(GPT2Config(vocab_size=100, n_ctx=32, d_model=64, n_layer=8, n_head=4, d_mlp=256))
    weight = model.layers[3].mlp.c_proj.weight
    assert abs(float(weight.detach().std()) / (0.02 / 4) - 1) < 0.05
    assert abs(float(model.wte.weight.detach().std()) / 0.02 - 1) < 0.05
    assert not model.layers[3].attn.c_attn.bias.any()
    with pytest.raises(MechintError, match="width of 10 can't be divided among 3 heads"):
        GPT2(GPT2Config(vocab_size=5, n_ctx=4, d_model=10, n_layer=1, n_head=3, d_mlp=8))
