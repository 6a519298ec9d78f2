"""The summaries of units by loops over made-up measurements of six prompts in two batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mechint.analyses.circuits.methods.attention import CONTROL
from mechint.analyses.circuits.methods.delta import RANKINGS
from mechint.analyses.neurons import results
from mechint.analyses.neurons.deletion_curves import SHARES
from mechint.analyses.neurons.results import EDGES, Found
from mechint.analyses.neurons.tokens import TERMS
from mechint.analyses.patching.results import NAMES

SITE = "layers.0.gated"


def measured(values: dict[str, np.ndarray], **more: Any) -> Found:
    """Measurements [..., prompt], cut into batches of two and four."""
    cut = lambda part: {
        name: torch.from_numpy(np.ascontiguousarray(value[..., part])) for name, value in values.items()
    }
    settings: dict[str, Any] = {
        "parts": [], "layers": [0, 1, 2], "ranked": [0, 1, 2], "deltas": [], "orders": {}, "top": {},
        "main": "gated", "family": "mamba",
        "templates": np.arange(6), "draws": 20, "seed": 0, "top_k": 2, "random": 2, "depth": 3, "steps": {},
    } | more  # fmt: skip
    return Found([cut(slice(0, 2)), cut(slice(2, 6))], **settings)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_rankings_by_the_step_size() -> None:
    """Sizes (1, 3, 2) by gradient and (3, 2, 1) by intervention; variances from the moments of all prompts."""
    site = "layers.1.dt"
    spread = np.linspace(-0.3, 0.3, 6)
    mean, square = 1 + 0.1 * random(3, 6), 2 + np.abs(random(3, 6, seed=1))
    values = {
        f"{site} gradient": np.array([1.0, 3, 2])[:, None] + spread, f"{site} mean": mean, f"{site} square": square,
        f"{site} do_mean": np.array([-3.0, 2, 1])[:, None] + spread, f"{site} output mean": 2 * mean,
        f"{site} output square": 9 * square, **{f"{site} token {name}": random(2, 4, 6, seed=k)
                                               for k, name in enumerate(("gradient", "do_mean", "step"))},
    }  # fmt: skip
    found = results.delta(measured(values, steps={site: [2, 0]}), site)
    rankings = found["rankings"]
    assert rankings["gradient"]["value"] == pytest.approx([1, 3, 2])
    assert rankings["do_mean"]["value"] == pytest.approx([-3, 2, 1])
    variance = square.mean(1) - mean.mean(1) ** 2
    assert rankings["variance"]["value"] == pytest.approx(variance.tolist())
    assert rankings["output_variance"]["value"] == pytest.approx((9 * square.mean(1) - 4 * mean.mean(1) ** 2).tolist())
    assert all(low < value for low, value in zip(*(rankings["gradient"][k] for k in ("low", "value")), strict=True))
    assert (found["layer"], found["site"], found["n"]) == (1, "dt", 6)
    assert found["top"]["gradient"] == [1, 2] and found["top"]["do_mean"] == [0, 1]
    at = {name: k for k, name in enumerate(RANKINGS)}
    assert found["spearman"][at["gradient"]][at["do_mean"]] == pytest.approx(-0.5)
    assert found["jaccard"][at["gradient"]][at["do_mean"]] == pytest.approx(1 / 3)
    assert found["jaccard"][at["variance"]][at["variance"]] == 1
    sizes = np.abs(values[f"{site} do_mean"])
    profile = found["profile"]["do_mean"]
    assert profile["size"]["value"] == pytest.approx(sizes.mean())
    # of mean sizes 1, 2, 3: (-2 · 1 + 0 · 2 + 2 · 3) / (3 · 6)
    assert profile["gini"]["value"] == pytest.approx(4 / 18)
    tokens = found["tokens"]
    assert tokens["channels"] == [2, 0] and tokens["tokens"] == [-4, -3, -2, -1]
    assert np.array(tokens["step"]["value"]) == pytest.approx(random(2, 4, 6, seed=2).mean(-1))


def test_deletion_curves_and_what_they_are_above() -> None:
    names = ["rollout", CONTROL, "random 0", "random 1"]
    curves = {f"curve {SITE} {name}": random(2, len(SHARES), 6, seed=k) for k, name in enumerate(names)}
    sizes = {f"size {SITE} {name}": np.abs(random(2, 6, seed=k)) for k, name in enumerate(names)}
    # unit 1 is -1 or 3 with unit 0's 1 or -1 half of the time, and its own otherwise: moments of two units
    means = {f"mean {SITE} {name}": np.array([[0.0] * 6, [1.0] * 6]) for name in names}
    moment = np.array([[4.0, -3.0], [-3.0, 10.0]])  # variances 4 and 9, covariance -3: |correlation| 1/2
    products = {f"product {SITE} {name}": np.repeat(moment[..., None], 6, 2) for name in names}
    orders = {f"{SITE} {name}": torch.tensor([3, 1, 0, 2]) for name in names}
    done = measured({**curves, **sizes, **means, **products}, orders=orders)
    first, control, chance = results.attention(done, 0)
    area = {}
    for name in names:
        gap = curves[f"curve {SITE} {name}"][1] - curves[f"curve {SITE} {name}"][0]
        area[name] = sum((gap[k] + gap[k + 1]) / 2 * (SHARES[k + 1] - SHARES[k]) for k in range(len(SHARES) - 1))
    noise = (area["random 0"] + area["random 1"]) / 2
    assert (first["method"], control["method"], chance["method"]) == ("rollout", CONTROL, "random")
    assert first["layer"] == 0 and first["site"] == "gated" and first["top"] == [3, 1] and chance["top"] == []
    assert first["area"]["value"] == pytest.approx(area["rollout"].mean())
    assert first["over_random"]["value"] == pytest.approx((area["rollout"] - noise).mean())
    assert first["over_random"]["interval"].endswith("2 random rankings")
    assert first["over_gradient_x_input"]["value"] == pytest.approx((area["rollout"] - area[CONTROL]).mean())
    assert control["over_gradient_x_input"]["value"] == 0 and chance["over_random"]["value"] == 0
    assert chance["area"]["value"] == pytest.approx(noise.mean())
    assert chance["over_gradient_x_input"]["value"] == pytest.approx((noise - area[CONTROL]).mean())
    assert first["mean_activation"]["value"] == pytest.approx(sizes[f"size {SITE} rollout"].mean())
    assert first["diversity"]["value"] == pytest.approx(0.5)
    assert first["shares"] == list(SHARES)
    for k, name in enumerate(("morf", "lerf")):
        own = curves[f"curve {SITE} rollout"][k].mean(-1)
        both = (curves[f"curve {SITE} random 0"][k] + curves[f"curve {SITE} random 1"][k]).mean(-1) / 2
        assert [entry["value"] for entry in first[name]] == pytest.approx(own.tolist())
        assert [entry["value"] for entry in chance[name]] == pytest.approx(both.tolist())


def test_the_diversity_of_three_units_is_over_every_two() -> None:
    """Correlations 1, -1/2 and -1/2 of units 0, 1 and 2; a unit that does not vary correlates with none."""
    matrix = np.array([[4.0, 6.0, -2.0], [6.0, 9.0, -3.0], [-2.0, -3.0, 4.0]])
    entry = {"mean x": np.zeros((3, 6)), "product x": np.repeat(matrix[..., None], 6, 2)}
    found = results.diversity(measured(entry), "x")
    assert found is not None and found["value"] == pytest.approx(1 - (1 + 0.5 + 0.5) / 3)
    entry["product x"] = np.repeat(np.diag([1.0, 4.0, 0.0])[..., None], 6, 2)
    entry["product x"][0, 1] = entry["product x"][1, 0] = 2.0
    found = results.diversity(measured(entry), "x")
    assert found is not None and found["value"] == pytest.approx(1 - 1 / 3)
    assert results.diversity(measured({"mean x": np.zeros((1, 6)), "product x": np.ones((1, 1, 6))}), "x") is None


def test_terms_of_tokens() -> None:
    values = {
        "relevance": random(2, 3, 6), "relevance bias": random(2, 6, seed=1),
        "relevance error": np.array([0.1, 0.3, 0.2, 0.0, 0.0, 0.25]), "sources 1": random(3, 6, seed=2),
        "terms 1": random(len(TERMS), 6, seed=3), "missed 1": np.array([0.0, 0.01, 0.02, 0.0, 0.04, 0.03]),
    }  # fmt: skip
    found = results.shared_out(measured(values))
    assert found is not None and found["tokens"] == [-3, -2, -1] and found["missed"] == 0.3
    assert np.array(found["relevance"]["value"]) == pytest.approx(values["relevance"].mean(-1))
    assert [entry["value"] for entry in found["bias"]] == pytest.approx(values["relevance bias"].mean(-1).tolist())
    [block] = found["blocks"]
    assert (block["layer"], block["n"], block["missed"], found["relevance"]["n"]) == (1, 6, 0.04, 6)
    assert block["sources"]["value"] == pytest.approx(values["sources 1"].mean(-1).tolist())
    for k, name in enumerate(TERMS):
        assert block[name]["value"] == pytest.approx(values["terms 1"][k].mean())
    assert results.shared_out(measured({"clean": random(6)})) is None


def test_effects_across_layers_are_listed_by_their_size() -> None:
    values = {"layers": random(3, 3, 6)}
    for k, (i, j) in enumerate(((0, 1), (0, 2), (1, 2))):
        values[f"across {i} {j} patched"] = np.abs(random(3, 4, 6, seed=k))
        values[f"across {i} {j} linear"] = np.abs(random(3, 4, 6, seed=9 + k))
    top = {0: [5, 6, 7, 8], 1: [1, 2, 3, 4], 2: [9, 8, 7, 6]}
    found = results.across(measured(values, top=top))
    assert found is not None and found["site"] == "gated"
    assert np.array(found["layers"]["value"]) == pytest.approx(values["layers"].mean(-1))
    assert [(pair["source"], pair["target"]) for pair in found["pairs"]] == [(0, 1), (0, 2), (1, 2)]
    middle = found["pairs"][1]
    assert middle["patched"]["value"] == pytest.approx(values["across 0 2 patched"].mean())
    assert middle["linear"]["value"] == pytest.approx(values["across 0 2 linear"].mean())
    ranks = [np.argsort(np.argsort(values[f"across 0 2 {way}"].mean(-1).ravel())) for way in ("patched", "linear")]
    assert middle["spearman"] == pytest.approx(1 - 6 * ((ranks[0] - ranks[1]) ** 2).sum() / (12 * 143))
    every = []
    for i, j in ((0, 1), (0, 2), (1, 2)):
        patched, linear = (values[f"across {i} {j} {way}"].mean(-1) for way in ("patched", "linear"))
        every += [(patched[e, f], linear[e, f], i, top[i][e], j, top[j][f]) for e in range(3) for f in range(4)]
    every.sort(reverse=True)
    assert len(every) > EDGES == len(found["edges"])
    keys = ("value", "linear", "source", "source_unit", "target", "target_unit")
    for edge, expected in zip(found["edges"], every, strict=False):
        assert tuple(edge[key] for key in keys) == pytest.approx(expected)
        assert edge["low"] < edge["value"] < edge["high"]
    assert results.across(measured({"clean": random(6)})) is None


def test_what_the_top_units_keep() -> None:
    """All ablated the metric falls from 4 to about 1, the top alone give 3, without them it is 2."""
    wobble = np.linspace(-0.2, 0.2, 6)
    circuits = {
        "full": 4 + wobble, "empty": 1 - wobble, "top": 3 + wobble, "without": 2 + 0 * wobble,
        "random": [np.full(6, 1.0 + 0.3 * k) for k in range(11)],
    }  # fmt: skip
    metrics: dict[str, Any] = {}
    notes: list[str] = []
    done = measured({"clean": random(6)})
    random_shares = results.circuit_numbers(done, circuits, metrics, notes)["random"]
    assert random_shares == pytest.approx([0.1 * k for k in range(11)]) and notes == []
    assert metrics["effect_of_all_units"]["value"] == pytest.approx(3)
    assert metrics["faithfulness_top_k"]["value"] == pytest.approx(2 / 3)
    assert metrics["completeness_top_k"]["value"] == pytest.approx(1 - 1 / 3)
    chance = metrics["faithfulness_random"]
    assert (chance["value"], chance["low"], chance["high"], chance["n"]) == pytest.approx((0.5, 0.025, 0.975, 11))
    nothing = {**circuits, "empty": 4 + np.linspace(0.2, -0.2, 6)}
    metrics = {}
    assert results.circuit_numbers(done, nothing, metrics, notes) == {"random": []} and "may be nothing" in notes[0]
    assert set(metrics) == {"effect_of_all_units"}
    harm = {**circuits, "full": circuits["empty"], "empty": circuits["full"]}  # removing all helps, and surely
    metrics = {}
    assert results.circuit_numbers(done, harm, metrics, [])["random"] and "faithfulness_top_k" in metrics


def test_every_quantity_is_compared_with_shuffled_weights_once() -> None:
    number = iter(range(100))
    value = lambda: {"value": next(number)}
    profile = lambda: {name: {"size": value(), "gini": value()} for name in (*NAMES, "gradient", "do_mean")}
    made: dict[str, Any] = {
        "metric": "loss", "metrics": {"clean": value(), "completeness_top_k": value()}, "circuit": {"site": "gated"},
        "units": [{"name": "C", **{name: {"profile": {"size": value()}} for name in NAMES}}],
        "delta": [{"layer": 1, "profile": profile()}],
        "attention": [{"method": "random", "layer": 0}, {"method": "by_size", "layer": 2, "over_random": value()}],
        "across": {"pairs": [{"source": 0, "target": 2, "patched": value()}]},
    }  # fmt: skip
    delta = made["delta"][0]["profile"]
    expected = [
        ("loss", None, None, made["metrics"]["clean"]),
        ("completeness_top_k", "gated", None, made["metrics"]["completeness_top_k"]),
        *((f"size of effects, {name}", "C", None, made["units"][0][name]["profile"]["size"]) for name in NAMES),
        ("gini of gradient", "dt", 1, delta["gradient"]["gini"]),
        ("size of do_mean", "dt", 1, delta["do_mean"]["size"]),
        ("gini of do_mean", "dt", 1, delta["do_mean"]["gini"]),
        ("by_size over random", "gated", 2, made["attention"][1]["over_random"]),
        ("effect on layer 2", "gated", 0, made["across"]["pairs"][0]["patched"]),
    ]
    assert [tuple(entry.values()) for entry in results.quantities(made)] == expected
    assert [tuple(entry.values()) for entry in results.quantities(made | {"across": None})] == expected[:-1]
