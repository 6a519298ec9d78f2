"""Single units: every number against one run by hand, definitions in loops, known circuits, the report and refusals."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import mechint
from mechint import Edit
from mechint.analyses.circuits.methods.attention import METHODS, attention_units
from mechint.analyses.circuits.methods.delta import delta_units, mean_step, rankings
from mechint.analyses.metrics import answer_metric
from mechint.analyses.neurons.analyzer import NeuronAnalyzer
from mechint.analyses.neurons.cross_layer import layer_effects, unit_effects
from mechint.analyses.neurons.deletion_curves import SHARES, areas, curves
from mechint.analyses.neurons.options import refuse
from mechint.analyses.unit_effects import Effects
from mechint.attribution.attention import attention_maps, normalised
from mechint.ground_truth import BLUEPRINTS
from mechint.interventions.gradients import gradients
from mechint.tasks import Prompts, TaskConfig
from mechint.utils.errors import MechintError
from tests.helpers.builders import tiny_gpt2, tiny_llama, tiny_mamba
from tests.helpers.circuits import KEPT, known_circuit
from tests.helpers.neurons import SMALL, by_hand, prompts
from tests.helpers.tracing import TASK, loaders


def effects(
    model: Any, kinds: list[str], batch: Prompts, ablation: str = "mean", metric: str = "answer_logprob"
) -> Effects:
    return Effects(model, kinds, list(range(model.num_layers)), ablation, [batch], False, metric)


@pytest.mark.parametrize(
    ("build", "kinds", "ablation", "metric"),
    [
        (tiny_mamba, ["x", "gate", "out"], "mean", "answer_logprob"),
        (tiny_mamba, ["u", "y", "gated"], "counterfactual", "logit_diff"),
        (tiny_gpt2, ["mlp_post", "head_out"], "resample", "answer_logprob"),
        (tiny_llama, ["head_out", "mlp_out"], "zero", "logit_diff"),
    ],
)
def test_every_unit_is_one_run_by_hand(build: Any, kinds: list[str], ablation: str, metric: str) -> None:
    model = build(2, torch.float64).requires_grad_(False)
    batch = prompts(model)
    test = effects(model, kinds, batch, ablation, metric)
    fills = test.fills(batch)
    clean = by_hand(model, batch, metric, [])
    torch.testing.assert_close(test.clean(batch), clean, rtol=0, atol=1e-10)
    for group in test.groups:
        own = mechint.run(model, batch.tokens, [group.site])[group.site]
        fill = torch.as_tensor(fills[group.site], dtype=torch.float64).expand_as(own)
        lost, back = (f(batch, group, fills[group.site]) for f in (test.necessary, test.sufficient))
        none = by_hand(model, batch, metric, [Edit(group.site, "replace", fill)])
        for e in range(group.units):
            gone, alone = own.clone(), fill.clone()
            gone[:, :, e], alone[:, :, e] = fill[:, :, e], own[:, :, e]
            without, only = (by_hand(model, batch, metric, [Edit(group.site, "replace", v)]) for v in (gone, alone))
            torch.testing.assert_close(lost[e], clean - without, rtol=0, atol=1e-10)
            torch.testing.assert_close(back[e], only - none, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("build", "kinds"), [(tiny_mamba, ["u", "gated"]), (tiny_gpt2, ["mlp_post", "head_out"])])
def test_estimates_are_the_slopes_towards_the_ablation(build: Any, kinds: list[str]) -> None:
    model = build(3, torch.float64).requires_grad_(False)
    batch = prompts(model)
    test = effects(model, kinds, batch)
    fills, step = test.fills(batch), 1e-6
    guess = test.estimates(batch, fills)
    for group in test.groups:
        own = mechint.run(model, batch.tokens, [group.site])[group.site]
        fill = fills[group.site].expand_as(own)
        kept = test.kept_estimates(batch, group, fills[group.site])
        for e in (0, group.units - 1):
            small = torch.zeros_like(own)
            small[:, :, e] = step * (fill - own)[:, :, e]
            clean, moved = (
                by_hand(model, batch, test.metric, [Edit(group.site, "replace", own + s)]) for s in (0, small)
            )
            torch.testing.assert_close(guess[group.site][e], (clean - moved) / step, rtol=1e-3, atol=1e-6)
            none, moved = (
                by_hand(model, batch, test.metric, [Edit(group.site, "replace", fill - s)]) for s in (0, small)
            )
            torch.testing.assert_close(kept[e], (moved - none) / step, rtol=1e-3, atol=1e-6)


def test_delta_is_the_derivative_by_the_step_and_its_mean_an_intervention() -> None:
    model = tiny_mamba(4, torch.float64).requires_grad_(False)
    batch = prompts(model)
    means = mean_step(model, [batch, batch], [0, 1])
    found = delta_units(model, batch, means, "answer_logprob")
    for site, mean in means.items():
        own = mechint.run(model, batch.tokens, [site, site.replace("dt", "gated")])
        dt, gated = own[site], own[site.replace("dt", "gated")]
        torch.testing.assert_close(mean, dt.mean((0, 1)))
        clean = by_hand(model, batch, "answer_logprob", [])
        for e in (0, 7):
            held = by_hand(model, batch, "answer_logprob", [Edit(site, "replace", float(mean[e]), units=[e])])
            torch.testing.assert_close(found[f"{site} do_mean"][e], clean - held, rtol=0, atol=1e-10)
            total = torch.zeros(len(batch), dtype=torch.float64)
            for t in range(7):
                ends = [
                    by_hand(model, batch, "answer_logprob", [Edit(site, "add", s, positions=[t], units=[e])])
                    for s in (1e-6, -1e-6)
                ]
                total += ((ends[0] - ends[1]) / 2e-6).abs()
            torch.testing.assert_close(found[f"{site} gradient"][e], total, rtol=1e-4, atol=1e-7)
        ranked = rankings(found, site)
        torch.testing.assert_close(ranked["variance"], dt.var((0, 1), correction=0))
        torch.testing.assert_close(ranked["output_variance"], gated.var((0, 1), correction=0))


@pytest.mark.parametrize("build", [tiny_mamba, tiny_gpt2])
def test_attention_methods_are_their_definitions(build: Any) -> None:
    """Loops over tokens and channels, with the attention of a Mamba from the recurrence itself."""
    model = build(5, torch.float64).requires_grad_(False)
    batch = prompts(model, 2)
    mamba = model.config.family == "mamba"
    kind, L = ("gated" if mamba else "mlp_post"), 7
    names = ["dt", "B", "C", "u", "scan_out"] if mamba else ["pattern"]
    sites = [f"layers.{i}.{name}" for i in range(2) for name in [*names, kind]]
    values, slopes = gradients(
        model, batch.tokens, sites, answer_metric("answer_logprob", batch), logits_at=batch.positions
    )
    found = attention_units(model, batch, [0, 1], "answer_logprob", kind)
    for row in range(2):
        maps = []
        for i in range(2):
            v, g = ({n: t[f"layers.{i}.{n}"][row] for n in [*names, kind]} for t in (values, slopes))
            if mamba:
                A = -torch.exp(model.layers[i].A_log)
                alpha = torch.zeros(14, L, L, dtype=torch.float64)
                for a in range(L):
                    for b in range(a + 1):
                        decay = torch.exp(A * v["dt"][b + 1 : a + 1].sum(0)[:, None])
                        alpha[:, a, b] = (decay * v["C"][a] * v["B"][b]).sum(-1) * v["dt"][b]
                slope = g["scan_out"].T[:, :, None] * v["u"].T[:, None, :]
            else:
                alpha, slope = v["pattern"].transpose(0, 1), g["pattern"].transpose(0, 1)
            maps.append([m / m.sum(-1, keepdim=True).clamp(min=1e-300) for m in
                         (alpha.abs().mean(0), (alpha * slope).clamp(min=0).mean(0))])  # fmt: skip
        eye = torch.eye(L, dtype=torch.float64)
        for i in range(2):
            a, push = values[f"layers.{i}.{kind}"][row], slopes[f"layers.{i}.{kind}"][row]
            onward = eye
            for later in range(1, i - 1, -1):
                onward = onward @ (eye + maps[later][0]) / 2
            weights = {"attention_weighted": maps[i][0], "gradient_guided": maps[i][1], "rollout": onward}
            for method in METHODS:
                w = torch.stack([weights[method][p] for p in batch.positions[row]]).mean(0)
                size = (a * push).abs() if method == "gradient_guided" else a.abs()
                expected = sum(w[j] * size[j] for j in range(L))
                torch.testing.assert_close(found[f"layers.{i}.{kind} {method}"][row], expected, rtol=1e-8, atol=1e-12)
            control = found[f"layers.{i}.{kind} gradient_x_input"][row]
            torch.testing.assert_close(control, (a * push).abs().sum(0), rtol=1e-8, atol=1e-12)


def test_groups_of_channels_change_no_map(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_mamba(6).requires_grad_(False)
    batch = prompts(model)
    names = [f"layers.0.{name}" for name in ("dt", "B", "C", "u", "scan_out")]
    both = gradients(model, batch.tokens, names, answer_metric("logit_diff", batch), logits_at=batch.positions)
    whole = attention_maps(model, 0, *both)
    monkeypatch.setattr("mechint.attribution.attention.NUMBERS", 300)
    torch.testing.assert_close(attention_maps(model, 0, *both), whole)
    assert float(normalised(torch.zeros(1, 2, 2)).sum()) == 0.0


def test_curves_delete_from_both_ends_and_areas_know_the_better_ranking() -> None:
    model = tiny_mamba(7, torch.float64, d_inner=20).requires_grad_(False)
    batch = prompts(model)
    test = effects(model, ["gated"], batch)
    fills, group = test.fills(batch), test.groups[1]
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    found = curves(test, batch, [group], {f"{group.site} mine": order}, fills)[f"curve {group.site} mine"]
    own = mechint.run(model, batch.tokens, [group.site])[group.site]
    for least, sequence in enumerate((order, order.flip(0))):
        for k, share in enumerate(SHARES):
            value = own.clone()
            gone = sequence[: round(share * 20)]
            value[..., gone] = fills[group.site].expand_as(own)[..., gone]
            expected = by_hand(model, batch, test.metric, [Edit(group.site, "replace", value)])
            torch.testing.assert_close(found[least, k], expected, rtol=0, atol=1e-10)
    assert areas(torch.stack([found[0], found[0]])).abs().max() == 0
    flat = torch.zeros(2, len(SHARES), 1, dtype=torch.float64)
    flat[1] = 3.0
    assert float(areas(flat)) == pytest.approx(3.0)


@pytest.mark.parametrize("build", [tiny_mamba, tiny_gpt2])
def test_effects_between_layers_by_hand(build: Any) -> None:
    model = build(8, torch.float64, n_layer=3).requires_grad_(False)
    batch = prompts(model)
    kind = "gated" if model.config.family == "mamba" else "mlp_post"
    top, name = {0: [1, 3], 2: [0, 5, 6]}, lambda i: f"layers.{i}.{kind}"
    clean = mechint.run(model, batch.tokens, ["layers.*"])
    scale = {name(i): clean[name(i)].flatten(0, 1).std(0) for i in top}
    found = unit_effects(model, batch, kind, top, dict.fromkeys(scale, 0.0), scale)
    assert set(found) == {"0 2 patched", "0 2 linear"}
    for a, e in enumerate(top[0]):
        moved = mechint.run(model, batch.tokens, [name(2)], [Edit(name(0), "replace", 0.0, units=[e])])[name(2)]
        change = ((moved - clean[name(2)])[..., top[2]] / scale[name(2)][top[2]]).square().mean(1).sqrt()
        torch.testing.assert_close(found["0 2 patched"][:, a], change)
        wide = [
            mechint.run(model, batch.tokens, [name(2)], [Edit(name(0), "scale", 1 + s, units=[e])])[name(2)]
            for s in (1e-5, -1e-5)
        ]
        slope = ((wide[0] - wide[1])[..., top[2]] / 2e-5 / scale[name(2)][top[2]]).square().mean(1).sqrt()
        torch.testing.assert_close(found["0 2 linear"][:, a], slope, rtol=1e-4, atol=1e-7)
    layers = layer_effects(model, batch)
    mixers = lambda i: [f"layers.{i}.{m}" for m in model.mixers]
    added = lambda run, i: sum(run[m] for m in mixers(i))
    gone = mechint.run(model, batch.tokens, ["layers.*"], [Edit(m, "replace", 0.0) for m in mixers(0)])
    ratio = (added(gone, 2) - added(clean, 2)).flatten(1).norm(dim=1) / added(clean, 2).flatten(1).norm(dim=1)
    torch.testing.assert_close(layers[:, 0, 2], ratio)
    assert not layers.tril().any()


@pytest.mark.parametrize("build", [tiny_mamba, tiny_gpt2])
def test_derivatives_between_layers_are_right_in_single_precision(build: Any) -> None:
    """A difference over a 1/1000 of the change is mostly rounding where activations are much larger than the change."""
    sizes = {"n_layer": 3}
    double, single = (build(0, dtype, **sizes).requires_grad_(False) for dtype in (torch.float64, torch.float32))
    single.load_state_dict(double.state_dict())
    batch, kind = prompts(double), "gated" if double.config.family == "mamba" else "mlp_post"
    names = [f"layers.{i}.{kind}" for i in range(3)]
    clean = mechint.run(double, batch.tokens, names)
    scale = {name: clean[name].flatten(0, 1).std(0) for name in names}
    units = {layer: [0, 1, 2] for layer in range(3)}
    wide, narrow = (
        unit_effects(model, batch, kind, units, {name: torch.zeros(()).to(weight) for name in names}, scale)
        for model, weight in ((double, torch.zeros((), dtype=torch.float64)), (single, torch.zeros(())))
    )
    for name in (name for name in wide if name.endswith("linear")):
        torch.testing.assert_close(narrow[name], wide[name], rtol=0.015, atol=1e-6)


def test_effects_of_heads_on_heads_are_of_all_their_dimensions() -> None:
    model = tiny_gpt2(2, torch.float64).requires_grad_(False)
    batch, name = prompts(model), "layers.{}.head_out".format
    clean = mechint.run(model, batch.tokens, ["layers.*"])
    scale = {name(i): torch.tensor([0.5, 2.0, 4.0], dtype=torch.float64) for i in (0, 1)}
    found = unit_effects(model, batch, "head_out", {0: [1], 1: [2, 0]}, dict.fromkeys(scale, 0.0), scale)
    moved = mechint.run(model, batch.tokens, [name(1)], [Edit(name(0), "replace", 0.0, units=[1])])[name(1)]
    change = (moved - clean[name(1)])[:, :, [2, 0]].square().mean((1, 3)).sqrt() / scale[name(1)][[2, 0]]
    torch.testing.assert_close(found["0 1 patched"][:, 0], change)


def test_layers_that_have_a_site_are_told_and_none_has_a_site_without_a_name() -> None:
    some: Any = SimpleNamespace(layers=[0, 2], model=SimpleNamespace(sites={"layers.2.u": 0, "layers.1.u": 0}))
    assert NeuronAnalyzer.having(some, "u") == [2] and NeuronAnalyzer.having(some, "") == []


def test_only_the_units_of_a_known_circuit_have_an_effect() -> None:
    model = known_circuit()
    discovery, evaluation = loaders(model, 8, 8)
    config = dataclasses.replace(SMALL, sites="gated", top_k=4)
    results = NeuronAnalyzer(model, config).run_analysis(discovery, evaluation)
    [kind] = results["units"]
    truth = {(layer, unit) for layer, kept in enumerate(KEPT) for unit in kept}
    for direction in ("necessary", "sufficient"):
        moved = {
            place for *place, value in zip(kind["layer"], kind["unit"], kind[direction]["value"], strict=True)
            for place in [tuple(place)] if abs(value) > 1e-6
        }  # fmt: skip
        assert moved == truth
    assert [sorted(units) for units in results["circuit"]["units"]] == [sorted(kept) for kept in KEPT]
    share = results["metrics"]["faithfulness_top_k"]
    assert share["value"] == pytest.approx(1, abs=1e-4) and results["metrics"]["completeness_top_k"]["value"] > 0.99
    for entry in results["attention"]:
        if entry["method"] == "gradient_x_input":
            assert set(entry["top"]) == set(KEPT[entry["layer"]]) and entry["over_random"]["value"] > 0


def test_units_that_are_not_measured_are_those_with_the_smallest_estimates() -> None:
    model = tiny_mamba(3)
    discovery, evaluation = loaders(model, 8, 8)
    every = NeuronAnalyzer(model, dataclasses.replace(SMALL, attention=False, cross_layer=False, sites="u"))
    some = NeuronAnalyzer(
        model, dataclasses.replace(SMALL, attention=False, cross_layer=False, sites="u", max_units=5, layers="1")
    )
    whole, part = (study.run_analysis(discovery, evaluation)["units"][0] for study in (every, some))
    assert len(whole["unit"]) == 28 and len(part["unit"]) == 5 and set(part["layer"]) == {1}
    test = effects(model, ["u"], discovery.batches[0])
    scores = test.estimates(discovery.batches[0], test.fills(discovery.batches[0]))["layers.1.u"].mean(1).abs()
    assert set(part["unit"]) <= set(scores.topk(6).indices.tolist())  # by-position means differ a little from these
    for k, (layer, unit) in enumerate(zip(part["layer"], part["unit"], strict=True)):
        same = whole["unit"].index(unit, 14 * layer)
        assert part["necessary"]["value"][k] == pytest.approx(whole["necessary"]["value"][same], abs=1e-6)


def test_delta_finds_the_gates_of_a_compiled_model_and_variance_does_not() -> None:
    """Selective copy writes by its step sizes: |∂m/∂Δ| is nothing at channels that no one reads."""
    compiled = BLUEPRINTS["selective_copy"]().compile(seed=1)
    compiled.model.requires_grad_(False)
    batch = compiled.task.sample(16, "discovery", 0)
    layers = list(range(compiled.model.num_layers))
    found = delta_units(compiled.model, batch, mean_step(compiled.model, [batch], layers), "logit_diff")
    truth = compiled.truth.mask(compiled.model, "channel").view(len(layers), -1)
    for layer in layers:
        ranked = rankings(found, f"layers.{layer}.dt")
        idle = ~truth[layer].bool()
        if truth[layer].any():
            assert ranked["gradient"][~idle].max() > ranked["gradient"][idle].max()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"top_k": 15}, "top_k is 15, and a layer of this model has 14 units at gated; choose 1 to 14"),
        ({"layers": "0,,1"}, "a word is missing beside a comma"),
        ({"layers": "last"}, "'last' is not a layer"),
        ({"sites": "mlp_post"}, "a mamba model has no site 'mlp_post'"),
        ({"attention_methods": "attention_weight"}, "did you mean attention_weighted"),
        ({"attention_methods": " "}, "no attention method is named"),
    ],
)
def test_bad_options_are_refused_before_any_work(change: dict[str, Any], said: str) -> None:
    with pytest.raises(MechintError, match=said):
        NeuronAnalyzer(tiny_mamba(), dataclasses.replace(SMALL, **change))


def test_tasks_without_twins_are_refused() -> None:
    for change in ({"metric": "logit_diff"}, {"ablation": "counterfactual"}):
        assert "no counterfactual twins" in str(refuse(dataclasses.replace(SMALL, **change), TaskConfig(name="text")))
    assert refuse(SMALL, TASK) is None
