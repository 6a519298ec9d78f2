"""Evaluation of dictionaries: oracles in float64, dictionaries whose every number is known, and bad input."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mechint import Edit, MechintError, run
from mechint.analyses.dictionaries.baselines import Moments, baselines_at
from mechint.analyses.dictionaries.evaluation import Windows, evaluate, evaluate_all, largest_cosine
from tests.helpers.builders import tiny_gpt2, tiny_llama, tiny_mamba, tokens
from tests.helpers.examples import examples

DRAWS = 200


class Linear:
    """x̂ = matrix x + bias, with x itself or what is given as the code."""

    def __init__(self, matrix: torch.Tensor, bias: torch.Tensor | float = 0.0, site: str = "") -> None:
        self.matrix, self.bias = matrix, bias
        self.config = SimpleNamespace(d_in=len(matrix), d_sae=len(matrix), site=site)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.matrix.to(x)

    def decode(self, f: torch.Tensor) -> torch.Tensor:
        return f + torch.as_tensor(self.bias).to(f)


def identity(d: int) -> Linear:
    return Linear(torch.eye(d))


def site_width(model: Any, site: str) -> int:
    return int(np.prod(model.sites[site].units))


def value(result: dict[str, Any], name: str) -> float:
    return float(result["metrics"][name]["value"])


CASES = [
    (tiny_mamba, "layers.0.out"), (tiny_mamba, "layers.1.conv"), (tiny_mamba, "layers.0.state"), (tiny_mamba, "embed"),
    (tiny_mamba, "layers.1.write"), (tiny_gpt2, "layers.1.resid_mid"), (tiny_gpt2, "layers.0.head_out"),
    (tiny_llama, "layers.0.mlp_post"),
]  # fmt: skip


@pytest.mark.parametrize(("builder", "site"), CASES)
def test_perfect_dictionary_recovers_all_and_the_mean_recovers_nothing(builder: Any, site: str) -> None:
    model = builder(dtype=torch.float64)
    if site not in model.sites:
        site = next(name for name in model.first_sites)
    batches = [tokens(3, 9, 1), tokens(2, 9, 2)]
    width = site_width(model, site)
    moments = Moments(width)
    for batch in batches:
        moments.add(run(model, batch, [site])[site].flatten(2).flatten(0, 1))
    nothing = torch.zeros(width, width)
    found = evaluate_all(
        {"perfect": identity(width), "mean": Linear(nothing, moments.mean), "zero": Linear(nothing)},
        model, batches, site, draws=DRAWS, baselines=False,
    )  # fmt: skip
    perfect, mean, zero = found["perfect"], found["mean"], found["zero"]
    assert value(perfect, "ce_recovered_zero") == pytest.approx(1, abs=1e-12)
    assert value(perfect, "ce_recovered_mean") == pytest.approx(1, abs=1e-12)
    assert value(perfect, "kl") == pytest.approx(0, abs=1e-12) and value(perfect, "mse") == pytest.approx(0, abs=1e-20)
    assert value(perfect, "variance_explained") == pytest.approx(1, abs=1e-12)
    assert value(perfect, "norm_ratio") == pytest.approx(1, abs=1e-12)
    assert value(mean, "ce_recovered_mean") == pytest.approx(0, abs=1e-9)
    assert value(mean, "variance_explained") == pytest.approx(0, abs=1e-9)
    assert value(zero, "ce_recovered_zero") == pytest.approx(0, abs=1e-9)
    assert value(zero, "norm_ratio") == 0 and "reconstruction_bias" not in zero["metrics"]
    assert any(note.startswith("reconstruction_bias was not measured") for note in zero["notes"])


@settings(max_examples=examples(5), deadline=None)
@given(seed=st.integers(0, 99), rows=st.lists(st.integers(1, 3), min_size=1, max_size=3), length=st.integers(3, 8))
def test_every_number_is_that_of_a_plain_loop(seed: int, rows: list[int], length: int) -> None:
    """One position at a time in float64, with positions left out and rows that share a document."""
    model, site = tiny_mamba(seed, torch.float64), "layers.1.out"
    d = site_width(model, site)
    random = torch.Generator().manual_seed(seed)
    batches = []
    for number, count in enumerate([6, *rows]):
        keep = torch.rand(count, length, generator=random) < 0.8
        keep[:, :2] = True
        batches.append(Windows(tokens(count, length, seed + number), keep, torch.arange(count) // 2 + 10 * number))
    directions = torch.randn(d, d, generator=random, dtype=torch.float64)
    dictionary = Linear(torch.relu(directions), 0.1)
    found = evaluate(dictionary, model, batches, site, draws=DRAWS, baselines=False)

    model.requires_grad_(False)
    xs, backs, codes = [], [], []
    for batch in batches:
        x = run(model, batch.tokens, [site])[site][batch.keep]
        xs.append(x), codes.append(dictionary.encode(x)), backs.append(dictionary.decode(codes[-1]))
    x, back, code = torch.cat(xs), torch.cat(backs), torch.cat(codes)
    mean = x.mean(0)
    ce: dict[str, list[float]] = {"own": [], "sae": [], "mean": [], "zero": []}
    kl = []
    for batch in batches:
        assert batch.keep is not None
        for row in range(len(batch.tokens)):
            text, keep = batch.tokens[row : row + 1], batch.keep[row]
            clean = run(model, text, [site])
            news = {"own": clean[site], "zero": torch.zeros_like(clean[site]), "mean": mean.expand_as(clean[site]),
                    "sae": dictionary.decode(dictionary.encode(clean[site]))}  # fmt: skip
            at = keep.nonzero().squeeze(1).tolist()
            for name, new in news.items():
                logits = (
                    run(model, text, edits=[Edit(site, "replace", new[:, at], positions=at)]).logits[0].log_softmax(-1)
                )
                for t in range(length - 1):
                    if keep[t] and keep[t + 1]:
                        ce[name].append(-float(logits[t, text[0, t + 1]].detach()))
                        if name == "sae":
                            own = clean.logits[0, t].log_softmax(-1)
                            kl.append(float(F.kl_div(logits[t], own, log_target=True, reduction="sum").detach()))
    own, sae, zero, average = (float(np.mean(ce[name])) for name in ("own", "sae", "zero", "mean"))
    expected = {
        "mse": float((x - back).square().mean()),
        "variance_explained": 1 - float((x - back).square().sum() / (x - mean).square().sum()),
        "l0": float((code != 0).sum(-1).double().mean()),
        "cosine": float(F.cosine_similarity(x, back).mean()),
        "norm_ratio": float((back.norm(dim=-1) / x.norm(dim=-1)).mean()),
        "reconstruction_bias": float(back.square().sum() / (x * back).sum()),
        "ce": own, "ce_sae": sae, "ce_zero": zero, "ce_mean": average, "ce_increase": sae - own,
        "ce_recovered_zero": (zero - sae) / (zero - own), "ce_recovered_mean": (average - sae) / (average - own),
        "kl": float(np.mean(kl)), "alive": float((code != 0).any(0).double().mean()),
    }  # fmt: skip
    for name, number in expected.items():
        assert value(found, name) == pytest.approx(number, rel=1e-8, abs=1e-10), name
    assert found["tokens"] == len(x) and sum(found["density"]["latents"]) + found["density"]["never"] == d
    share = (code != 0).double().mean(0)
    assert np.allclose(found["density"]["share"], share)


def test_losses_are_taken_where_the_task_asks() -> None:
    """Counts one answer in each row, which no later token repeats, and at the last position, too."""
    model, site, text = tiny_mamba(dtype=torch.float64).requires_grad_(False), "layers.0.out", tokens(4, 6)
    answers = torch.full_like(text, -1)
    answers[:, 5], answers[1, 2] = torch.tensor([3, 1, 4, 1]), 9
    found = evaluate(identity(10), model, [Windows(text, answers=answers)], site, draws=DRAWS, baselines=False)
    scores = model(text).log_softmax(-1)
    asked = [(0, 5, 3), (1, 5, 1), (2, 5, 4), (3, 5, 1), (1, 2, 9)]
    assert value(found, "ce") == pytest.approx(-np.mean([float(scores[row, t, token]) for row, t, token in asked]))
    assert found["tokens"] == 24


def test_intervals_draw_documents() -> None:
    model, site = tiny_mamba(), "layers.0.out"
    text = tokens(8, 6)
    by_row = evaluate(identity(10), model, [text], site, draws=DRAWS, baselines=False)["metrics"]["ce"]
    pairs = [Windows(text, None, torch.arange(8) // 2)]
    by_pair = evaluate(identity(10), model, pairs, site, draws=DRAWS, baselines=False)["metrics"]["ce"]
    assert by_row["value"] == by_pair["value"] and by_row["low"] != by_pair["low"]
    assert by_row["low"] < by_row["value"] < by_row["high"] and "over 8 documents" in str(by_row["interval"])


def test_batches_may_be_cut_anywhere() -> None:
    model, site, text = tiny_gpt2(dtype=torch.float64), "layers.0.mlp_out", tokens(6, 7)
    dictionary = Linear(torch.diag(torch.linspace(0, 1, 12)))
    whole = evaluate(dictionary, model, [text], site, draws=DRAWS)
    split = evaluate(dictionary, model, [text[:1], text[1:4], text[4:]], site, draws=DRAWS)
    for name, number in whole["metrics"].items():
        assert split["metrics"][name]["value"] == pytest.approx(number["value"], rel=1e-9, abs=1e-12), name
        assert split["metrics"][name]["low"] == pytest.approx(number["low"], rel=1e-9, abs=1e-12), name


@pytest.mark.parametrize("cut", [[8], [6, 2], [2, 4, 2]])
def test_rows_of_padding_alone_change_nothing(cut: list[int]) -> None:
    """The last two rows have no kept token: they are no documents, be they a batch of their own or not."""
    model, site, text = tiny_gpt2(dtype=torch.float64), "layers.0.mlp_out", tokens(8, 7)
    keep = torch.rand(8, 7, generator=torch.Generator().manual_seed(0)) < 0.8
    keep[6:] = False
    dictionary = Linear(torch.diag(torch.linspace(0, 1, 12)))
    alone = evaluate(dictionary, model, [Windows(text[:6], keep[:6])], site, draws=DRAWS, baselines=False)
    pairs = zip(text.split(cut), keep.split(cut), strict=True)
    padded = evaluate(dictionary, model, [Windows(*pair) for pair in pairs], site, draws=DRAWS, baselines=False)
    assert padded["documents"] == alone["documents"] == 6
    for name, number in alone["metrics"].items():
        for edge in ("value", "low", "high"):
            assert padded["metrics"][name][edge] == pytest.approx(number[edge], rel=1e-9, abs=1e-12), (name, edge)


# ---- baselines --------------------------------------------------------------------------------------------------


def test_moments_are_those_of_all_rows_at_once() -> None:
    x = torch.randn(50, 6, dtype=torch.float64) * torch.arange(1, 7) + 1e6
    moments = Moments(6)
    for piece in x.split([1, 7, 30, 12]):
        moments.add(piece)
    assert torch.allclose(moments.mean, x.mean(0), rtol=1e-14)
    assert torch.allclose(moments.scatter, (x - x.mean(0)).T @ (x - x.mean(0)), rtol=1e-8)


@pytest.mark.parametrize("count", [1, 3, 6, 99])
def test_baselines_are_as_good_as_their_theory(count: int) -> None:
    x = torch.randn(200, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64) + 3
    moments = Moments(6)
    moments.add(x)
    found = baselines_at(moments, count)
    kept = min(count, 6)
    centred = x - x.mean(0)
    singular = torch.linalg.svdvals(centred).square()
    error = {name: float((x - made.decode(made.encode(x))).square().sum()) for name, made in found.items()}
    assert error["pca_rank"] == pytest.approx(float(singular[kept:].sum()), abs=1e-8)  # Eckart & Young 1936
    assert error["pca_top"] <= error["pca_rank"] + 1e-8
    assert error["neurons"] == pytest.approx(float(centred.square().sort(-1).values[:, : 6 - kept].sum()), abs=1e-8)
    for made in found.values():
        assert ((made.encode(x) != 0).sum(-1) <= kept).all()


def test_baselines_are_measured_at_the_dictionarys_l0() -> None:
    model, site = tiny_mamba(), "layers.0.out"
    keep = torch.zeros(10)
    keep[:3] = 1
    found = evaluate(Linear(torch.diag(keep)), model, [tokens(6, 7)], site, draws=DRAWS)
    assert value(found, "l0") == 3 and set(found["baselines"]) == {"neurons", "pca_rank", "pca_top"}
    for baseline in found["baselines"].values():
        assert baseline["active"] == 3 and baseline["metrics"]["l0"]["value"] == pytest.approx(3)
        assert baseline["metrics"]["variance_explained"]["value"] > 0
    wide = Moments(5000)
    wide.add(torch.randn(3, 5000))
    assert set(baselines_at(wide, 2)) == {"neurons"}


def test_largest_cosine() -> None:
    directions = torch.tensor([[1.0, 0], [2, 0], [0, 3], [-1, 0], [0, 0]])
    assert largest_cosine(directions).tolist() == pytest.approx([1, 1, 0, 0, 0])
    assert largest_cosine(directions, torch.tensor([[0.0, 1]])).tolist() == pytest.approx([0, 0, 1, 0, 0])
    many = torch.randn(1500, 4, dtype=torch.float64)
    unit = F.normalize(many, dim=-1)
    expected = (unit @ unit.T).fill_diagonal_(-2).amax(-1)
    assert torch.allclose(largest_cosine(many), expected)


# ---- bad input --------------------------------------------------------------------------------------------------


def test_refusals() -> None:
    model, text = tiny_mamba(), [tokens(4, 6)]
    with pytest.raises(MechintError, match=r"reads 7 numbers.*layers.0.out \[batch.*has 10.*trained on, layers.1.u"):
        evaluate(Linear(torch.eye(7), site="layers.1.u"), model, text, "layers.0.out")
    with pytest.raises(MechintError, match=r"no site 'layers.0.outt'.*did you mean"):
        evaluate(identity(10), model, text, "layers.0.outt")
    with pytest.raises(MechintError, match="lies behind the layers"):
        evaluate(identity(10), model, text, "final_norm")
    with pytest.raises(MechintError, match="one document"):
        evaluate(identity(10), model, [tokens(1, 6)], "layers.0.out")
    with pytest.raises(MechintError, match="no text"):
        evaluate(identity(10), model, [], "layers.0.out")
    nothing = Windows(text[0], torch.zeros(4, 6, dtype=torch.bool))
    with pytest.raises(MechintError, match="every position of the text is left out"):
        evaluate(identity(10), model, [nothing], "layers.0.out")
    with pytest.raises(MechintError, match=r"sae: error is not finite on row 0"):
        evaluate(Linear(torch.eye(10), float("nan")), model, text, "layers.0.out")
    broken = tiny_mamba()
    with torch.no_grad():
        broken.layers[0].out_proj.weight[0, 0] = float("inf")
    with pytest.raises(MechintError, match=r"layers\.0\.out are NaN or infinite"):
        evaluate(identity(10), broken, text, "layers.0.out")
