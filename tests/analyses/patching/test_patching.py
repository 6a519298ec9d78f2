"""Activation patching: every number against one run by hand, a known circuit, transplants, and the report."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mechint
from mechint.analyses.loader import PromptLoader
from mechint.analyses.options import RunConfig
from mechint.analyses.patching.analyzer import ANALYSIS, POINTS, Patcher
from mechint.analyses.patching.flow import paths, role_pairs
from mechint.analyses.patching.options import refuse
from mechint.analyses.patching.results import leading
from mechint.analyses.patching.role_means import RoleValues
from mechint.interventions.edits import Edit
from mechint.interventions.path_patching import Node
from mechint.runner.experiment import run_experiment
from mechint.runner.request import Experiment
from mechint.tasks import Prompts, TaskConfig, make_task
from mechint.utils.errors import MechintError
from mechint.utils.multiple_tests import max_t_of
from mechint.utils.statistics import FEWEST, FEWEST_TESTED, ClusterBootstrap
from tests.helpers.builders import tiny_gpt2, tiny_llama, tiny_mamba
from tests.helpers.circuits import KEPT, known_circuit
from tests.helpers.patching import SMALL
from tests.helpers.tracing import TASK, loaders, metric_by_hand

PAIRS_TASK = dataclasses.replace(TASK, pairs=3)


def three_pairs(model: Any, count: int = 6) -> Prompts:
    """Prompts of three pairs: the roles stand at other positions in each."""
    prompts = make_task(PAIRS_TASK).sample(count, "evaluation", 0)
    assert prompts.twins is not None
    own, twin = (model(tokens)[:, -1:] for tokens in (prompts.tokens, prompts.twins))
    return dataclasses.replace(
        prompts, positions=prompts.positions[:, -1:], answers=own.argmax(-1), wrong=(twin - own).argmax(-1)
    )


def last(model: Any, prompts: Prompts, row: int, metric: str, edits: list[Edit], twin: bool = False) -> float:
    """The metric of one prompt alone, or of its twin, in one run."""
    one = prompts[torch.tensor([row])]
    assert one.twins is not None
    logits = mechint.run(model, one.twins if twin else one.tokens, edits=edits).logits[:, -1]
    return float(metric_by_hand(metric, logits, one))


@pytest.mark.slow_where("tiny_mamba-out,state,conv-kept-2|llama")
@pytest.mark.parametrize(
    ("family", "flow", "decay", "window"),
    [
        (tiny_mamba, "out", "frozen", 1),
        (tiny_mamba, "out,state,conv", "kept", 2),
        (tiny_gpt2, "scores,pattern", "kept", 1),
        (tiny_llama, "usual", "kept", 2),
    ],
)
def test_every_cell_of_the_flow_is_one_run_by_hand(family: Any, flow: str, decay: str, window: int) -> None:
    """One prompt at a time, one edit for each single pair of positions where the way to cut allows it; in float64."""
    model = family(2, torch.float64, n_layer=3).requires_grad_(False)
    prompts = three_pairs(model, 3)
    names, roles = make_task(PAIRS_TASK).roles(prompts)
    assert len({tuple(row) for row in roles.tolist()}) > 1
    pairs = role_pairs([roles], len(names))
    patcher = Patcher(model, dataclasses.replace(SMALL, flow=flow, units="", decay=decay, window=window))
    found = patcher.patch(prompts, roles, pairs)["flow"]
    assert found.shape == (len(patcher.paths), 3, len(pairs), len(prompts))
    for k, path in enumerate(patcher.paths):
        reach = 3 if path.kind == "conv" else 99
        for c, (reader, source) in enumerate(pairs):
            for row, role in enumerate(roles.tolist()):
                readers = [i for i, r in enumerate(role) if r == reader]
                sources = [j for j, r in enumerate(role) if r == source]
                every = [(i, j) for i in readers for j in sources if 0 <= i - j <= reach]
                if not every:
                    assert found[k, :, c, row].isnan().all()
                    continue
                for layer in range(3):
                    there = range(layer, min(3, layer + window))
                    edits = [
                        Edit(f"layers.{one}.{path.kind}", "cut", positions=[i], sources=of, decay=decay)
                        for one in there
                        for i in readers
                        if (of := [j for j in sources if 0 <= i - j <= reach])
                    ]
                    lost = last(model, prompts, row, "logit_diff", []) - last(model, prompts, row, "logit_diff", edits)
                    assert float(found[k, layer, c, row]) == pytest.approx(lost, rel=0, abs=1e-10)


@pytest.mark.slow_where("llama")
@pytest.mark.parametrize(
    ("family", "units", "metric"),
    [
        (tiny_mamba, "gated,state,B,dt", "logit_diff"),
        (tiny_gpt2, "head_out,mlp_post,pattern", "answer_logprob"),
        (tiny_llama, "usual", "answer_prob"),
    ],
)
def test_every_unit_is_one_run_by_hand(family: Any, units: str, metric: str) -> None:
    model = family(3, torch.float64).requires_grad_(False)
    prompts = three_pairs(model, 3)
    assert prompts.twins is not None
    patcher = Patcher(model, dataclasses.replace(SMALL, flow="", units=units, metric=metric))
    found = patcher.patch(prompts, torch.zeros_like(prompts.tokens), [])
    clean, twin = (mechint.run(model, ids, ["layers.*"]).values for ids in (prompts.tokens, prompts.twins))
    both = [[last(model, prompts, row, metric, [], other) for other in (False, True)] for row in range(3)]
    for parts in patcher.parts:
        assert found[f"necessary {parts.kind}"].shape == (parts.total, 3)
        for name, direction, sign in (("necessary", "noise", -1), ("sufficient", "denoise", 1)):
            slopes = parts.estimates(patcher.pair(prompts, direction), POINTS[patcher.config.values])
            torch.testing.assert_close(found[f"{name} {parts.kind} estimates"], sign * slopes[list(parts.chosen)])
        for number in range(parts.total):
            at, unit = parts.place(number)
            site = parts.sites[at]
            for row, ends in enumerate(both):
                put = lambda values, row=row, site=site, unit=unit: Edit(
                    site, "replace", values[site][row : row + 1, :, [unit]], units=[unit]
                )
                lost = ends[0] - last(model, prompts, row, metric, [put(twin)])
                back = last(model, prompts, row, metric, [put(clean)], True) - ends[1]
                for name, value in (("necessary", lost), ("sufficient", back)):
                    got = float(found[f"{name} {parts.kind}"][number, row])
                    assert got == pytest.approx(value, rel=0, abs=1e-10), (name, site, unit)


@pytest.mark.slow_where("llama")
@pytest.mark.parametrize(
    ("family", "units"), [(tiny_mamba, "gated,state,B"), (tiny_gpt2, "head_out,mlp_post"), (tiny_llama, "usual")]
)
def test_means_are_those_of_the_role_and_every_unit_is_one_run_by_hand(family: Any, units: str) -> None:
    """Prompts without twins, in float64; means and both runs by one plain run a prompt."""
    model = family(3, torch.float64).requires_grad_(False)
    task, evaluation = make_task(PAIRS_TASK), dataclasses.replace(three_pairs(model, 3), twins=None)
    discovery = PromptLoader(task, "discovery", 5, 3, 0)
    config = dataclasses.replace(SMALL, flow="", units=units, values="mean")
    patcher = Patcher(model, config)
    sites = [site for parts in patcher.parts for site in parts.sites]
    patcher.usual = RoleValues(model, sites, discovery)
    roles = task.roles(three_pairs(model, 3))[1]
    assert (roles[:, None] != roles).any()
    found = patcher.patch(evaluation, roles, [])
    kept: dict[tuple[str, int], list[torch.Tensor]] = {}
    for batch in discovery:
        for row, tokens_of in zip(task.roles(batch)[1].tolist(), batch.tokens, strict=True):
            values = mechint.run(model, tokens_of[None], sites).values
            for site in sites:
                for p, role in enumerate(row):
                    kept.setdefault((site, role), []).append(values[site][0, p])
    usual = {key: torch.stack(rows).mean(0) for key, rows in kept.items()}

    def metric(row: int, edits: list[Edit]) -> float:
        one = evaluation[torch.tensor([row])]
        logits = mechint.run(model, one.tokens, edits=edits).logits[:, -1]
        return float(metric_by_hand("logit_diff", logits, one))

    for parts in patcher.parts:
        for row in range(3):
            means = {s: torch.stack([usual[s, role] for role in roles[row].tolist()])[None] for s in parts.sites}
            own = mechint.run(model, evaluation.tokens[[row]], parts.sites).values
            every = [Edit(site, "replace", value) for site, value in means.items()]
            clean, none = metric(row, []), metric(row, every)
            assert float(found[f"all {parts.kind}"][row]) == pytest.approx(clean - none, rel=0, abs=1e-10)
            for number in range(parts.total):
                at, unit = parts.place(number)
                site = parts.sites[at]
                lost = clean - metric(row, [Edit(site, "replace", means[site][:, :, [unit]], units=[unit])])
                mixed = means[site].clone()
                mixed[:, :, unit] = own[site][:, :, unit]
                swap = [Edit(site, "replace", mixed) if edit.site == site else edit for edit in every]
                back = metric(row, swap) - none
                for name, value in (("necessary", lost), ("sufficient", back)):
                    got = float(found[f"{name} {parts.kind}"][number, row])
                    assert got == pytest.approx(value, rel=0, abs=1e-10), (name, site, unit)
        assert found[f"necessary {parts.kind}"].abs().max() > 1e-6 < found[f"sufficient {parts.kind}"].abs().max()


@pytest.mark.parametrize("direction", ["noise", "denoise"])
def test_estimates_are_the_slopes_towards_the_means(direction: str) -> None:
    model = tiny_mamba(4, torch.float64).requires_grad_(False)
    task, prompts = make_task(PAIRS_TASK), three_pairs(model, 4)
    patcher = Patcher(model, dataclasses.replace(SMALL, values="mean"))
    sites = [site for parts in patcher.parts for site in parts.sites]
    patcher.usual = RoleValues(model, sites, PromptLoader(task, "discovery", 5, 3, 0))
    for parts in patcher.parts:
        pair = patcher.pair(prompts, direction, parts, task.roles(prompts)[1])
        cells = parts.cells(pair)
        own = pair.values(pair.receiver, sorted({edits[0].site for edits in cells}))
        steps = [
            [dataclasses.replace(edit, value=own[edit.site][..., edit.units] * (1 - 1e-6) + edit.value * 1e-6)]
            for [edit] in cells
        ]
        values = pair.sweep([*steps, []])
        torch.testing.assert_close(parts.estimates(pair, 1), (values[:-1] - values[-1]) / 1e-6, rtol=1e-4, atol=1e-5)


def test_estimates_are_the_slopes_towards_the_twin() -> None:
    """At a small step every unit's estimate is its effect; the state's estimate is that of what C reads."""
    model = tiny_mamba(4, torch.float64).requires_grad_(False)
    prompts = three_pairs(model, 4)
    patcher = Patcher(model, SMALL)
    pair = patcher.pair(prompts, "noise")
    for parts in patcher.parts:
        cells, site = parts.cells(pair), parts.cells(pair)[0][0].site
        own = pair.values(pair.receiver, sorted({edits[0].site for edits in cells}))
        steps = [
            [dataclasses.replace(edit, value=own[edit.site][..., edit.units] * (1 - 1e-6) + edit.value * 1e-6)]
            for [edit] in cells
        ]
        values = pair.sweep([*steps, []])
        assert site.endswith("scan_out" if parts.kind == "state" else "gated")
        torch.testing.assert_close(parts.estimates(pair, 1), (values[:-1] - values[-1]) / 1e-6, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_only_the_channels_of_a_known_circuit_have_an_effect() -> None:
    """Nothing reads any channel but these: they, and all of them, are necessary and sufficient."""
    discovery, evaluation = loaders(model := known_circuit())
    found = Patcher(model, dataclasses.replace(SMALL, flow="out", units="gated")).run_analysis(discovery, evaluation)
    [kind] = found["units"]
    truth = {(layer, channel) for layer, kept in enumerate(KEPT) for channel in kept}
    for name in ("necessary", "sufficient"):
        places = zip(kind["layer"], kind["unit"], strict=True)
        assert {at for at, value in zip(places, kind[name]["value"], strict=True) if value} == truth
        assert kind["correlation"][name] > 0.5
    model.layers[1].out_proj.weight.zero_()  # the last layer adds nothing: nobody gains by reading in it
    flow = Patcher(model, dataclasses.replace(SMALL, units="")).run_analysis(*loaders(model))["flow"]
    for path in flow["paths"]:
        assert not any(value for value in path["value"][1] if value is not None)
        assert {p for p in path["p"][1] if p is not None} == {1}
    assert any(value for value in flow["paths"][0]["value"][0] if value)


def test_the_screen_takes_the_units_that_gradients_rank_first() -> None:
    discovery, evaluation = loaders(model := known_circuit())
    config = dataclasses.replace(SMALL, flow="", units="gated", max_units=8)
    patcher = Patcher(model, config)
    whole = [parts.total for parts in patcher.parts]
    found = patcher.run_analysis(discovery, evaluation)
    [kind] = found["units"]
    assert whole == [28] and len(kind["unit"]) == 8
    truth = {(layer, channel) for layer, kept in enumerate(KEPT) for channel in kept}
    assert set(zip(kind["layer"], kind["unit"], strict=True)) == truth
    full = Patcher(model, dataclasses.replace(config, max_units=28)).run_analysis(discovery, evaluation)["units"][0]
    both = {at: k for k, at in enumerate(zip(full["layer"], full["unit"], strict=True))}
    for k, at in enumerate(zip(kind["layer"], kind["unit"], strict=True)):
        for name in ("necessary", "sufficient"):
            assert kind[name]["value"][k] == pytest.approx(full[name]["value"][both[at]], abs=1e-5)
            assert kind[name]["estimate"][k] == pytest.approx(full[name]["estimate"][both[at]], abs=1e-5)


def test_shares_and_p_values_by_hand() -> None:
    model = tiny_mamba(1, torch.float64).requires_grad_(False)
    discovery, evaluation = loaders(model)
    patcher = Patcher(model, dataclasses.replace(SMALL, flow="out,conv"))
    found = patcher.run_analysis(discovery, evaluation)
    assert found["scale"] == "share of the total effect"
    join = lambda name: torch.cat(
        [value for key, value in patcher.effects.items() if key.rpartition(".")[0] == name], -1
    )
    total = (join("clean") - join("corrupted")).numpy()
    assert found["metrics"]["total_effect"]["value"] == pytest.approx(total.mean())
    flow = np.moveaxis(join("flow").numpy(), -1, 0)  # [prompt, path, layer, pair]
    bootstrap, there = ClusterBootstrap(evaluation.templates(), 100, 0), ~np.isnan(flow)
    weights = there * total[:, None, None, None]
    with np.errstate(invalid="ignore"):
        own, least, _ = bootstrap.estimate(np.divide, weights, there.astype(float), present=there)
        sure = there & (np.where(np.isnan(least), own, least) > 0)  # whose own total effect is certain
        p = max_t_of(bootstrap, bootstrap.tested(np.divide, np.where(sure, flow, 0), sure * weights, present=sure))
    lost = int((there.any(0) & ~sure.any(0)).sum())
    assert [note.startswith(f"{lost} cells have no number") for note in found["notes"]].count(True) == (lost > 1)
    for k, path in enumerate(found["flow"]["paths"]):
        for layer in range(2):
            for c in range(len(found["flow"]["pairs"])):
                values = flow[:, k, layer, c]
                there = ~np.isnan(values)
                assert path["n"][layer][c] == there.sum()
                if sure[:, k, layer, c].any():
                    share = values[there].mean() / total[there].mean()
                    assert path["value"][layer][c] == pytest.approx(share)
                    low, high = path["low"][layer][c], path["high"][layer][c]
                    clusters = len(set(evaluation.templates()[there].tolist()))
                    assert (low is None) == (high is None) == (clusters < FEWEST)
                    assert low is None or (low <= share + 1e-12 and high >= share - 1e-12)
                    tested = None if clusters < FEWEST_TESTED else pytest.approx(p[k, layer, c])
                    assert path["p"][layer][c] == tested
                else:
                    assert path["value"][layer][c] is path["p"][layer][c] is path["low"][layer][c] is None
    assert lost > 1
    exact = np.concatenate([join(f"necessary {kind}").numpy() for kind in ("gated", "state")]).T  # [prompt, unit]
    listed = [value for kind in found["units"] for value in kind["necessary"]["value"]]
    np.testing.assert_allclose(listed, exact.mean(0) / total.mean())
    listed = [value for kind in found["units"] for value in kind["necessary"]["p"]]
    weights = np.broadcast_to(total[:, None], exact.shape)
    np.testing.assert_allclose(listed, max_t_of(bootstrap, bootstrap.tested(np.divide, exact, weights)))
    guess = join("necessary gated estimates").numpy().mean(1)
    expected = np.corrcoef(exact[:, :28].mean(0), guess)[0, 1]
    assert found["units"][0]["correlation"]["necessary"] == pytest.approx(expected)


def test_prompts_without_twins_have_a_flow_in_the_metric_and_no_units() -> None:
    model = tiny_mamba(1).requires_grad_(False)
    sets = loaders(model)
    task = sets[1].task
    roles = {id(batch): task.roles(batch) for loader in sets for batch in loader}
    for loader in sets:
        for k, batch in enumerate(loader.batches):
            bare = dataclasses.replace(batch, twins=None, wrong=None)
            roles[id(bare)] = roles[id(batch)]
            loader.batches[k] = bare
    config = dataclasses.replace(SMALL, units="", metric="answer_logprob")
    found = Patcher(model, config).run_analysis(*sets)
    assert found["scale"] == "metric" and found["units"] is None and "total_effect" not in found["metrics"]
    assert any(value for row in found["flow"]["paths"][0]["value"] for value in row)
    with pytest.raises(MechintError, match="no counterfactual twins to take units' values from"):
        Patcher(model, dataclasses.replace(config, units="gated")).run_analysis(*sets)
    with pytest.raises(MechintError, match="logit_diff needs counterfactual twins"):
        Patcher(model, dataclasses.replace(config, metric="logit_diff")).run_analysis(*sets)


def test_refusals(tmp_path: Path) -> None:
    model = tiny_mamba().requires_grad_(False)
    with pytest.raises(MechintError, match=r"no cut of the flow at 'scores'.*it has state, conv, out"):
        Patcher(model, dataclasses.replace(SMALL, flow="scores"))
    with pytest.raises(MechintError, match=r"no cut of the flow at 'out'.*it has scores, pattern"):
        Patcher(tiny_gpt2(), dataclasses.replace(SMALL, flow="out"))
    with pytest.raises(MechintError, match=r"units can be patched named 'gatd'.*did you mean gated.*it has resid_pre"):
        Patcher(model, dataclasses.replace(SMALL, units="gatd"))
    with pytest.raises(MechintError, match=r"decay is 'slow'; it must be one of kept, frozen"):
        Patcher(model, dataclasses.replace(SMALL, decay="slow"))
    with pytest.raises(MechintError, match="neither a flow nor units"):
        Patcher(model, dataclasses.replace(SMALL, flow="", units=" "))
    assert "neither subjects nor" in str(refuse(SMALL, TaskConfig(name="text")))
    one = TaskConfig(name="prompt", subject="Tower")
    assert "the metric answer_logprob" in str(refuse(SMALL, one))
    prob = dataclasses.replace(SMALL, metric="answer_prob")
    assert "leave the kinds of units empty" in str(refuse(prob, one))
    flow = dataclasses.replace(prob, units="")
    assert refuse(flow, one) is None and "set subject" in str(refuse(flow, TaskConfig(name="prompt")))
    sets = loaders(model)
    for batch in range(len(sets[1].batches)):
        one = sets[1].batches[batch]
        worst = mechint.run(model, one.tokens, logits_at=one.positions).logits.argmin(-1)
        sets[1].batches[batch] = dataclasses.replace(one, answers=worst)
    with pytest.raises(MechintError, match="answers none of the 12 prompts"):
        Patcher(model, SMALL).run_analysis(*sets)
    run = RunConfig(checkpoint=str(tmp_path / "no.pt"), output_dir=str(tmp_path / "out"))
    with pytest.raises(MechintError, match="plain text has neither"):
        run_experiment(Experiment(run, TaskConfig(name="text"), {"patch": SMALL}))


@pytest.mark.slow
def test_a_killed_patching_goes_on_to_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_mamba(2).requires_grad_(False)
    discovery, evaluation = loaders(model)
    config = dataclasses.replace(SMALL, flow="state", max_units=9)
    whole = Patcher(model, config).run_analysis(discovery, evaluation)
    first = Patcher(model, config, run_dir=tmp_path, key="k")
    patch, left = first.patch, [2]

    def dies(*arguments: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return patch(*arguments)

    monkeypatch.setattr(first, "patch", dies)
    with pytest.raises(KeyboardInterrupt):
        first.run_analysis(discovery, evaluation)
    again = Patcher(model, config, run_dir=tmp_path, key="k")
    assert json.dumps(again.run_analysis(discovery, evaluation)) == json.dumps(whole)
    assert again.stages.resumed == ["screen gated", "screen state", "batch 0"]


@pytest.mark.slow
def test_pieces_do_not_change_a_patching() -> None:
    model = tiny_mamba(1, torch.float64).requires_grad_(False)
    prompts = three_pairs(model)
    names, roles = make_task(PAIRS_TASK).roles(prompts)
    pairs = role_pairs([roles], len(names))
    whole = Patcher(model, SMALL).patch(prompts, roles, pairs)
    patcher = Patcher(model, SMALL)
    patcher.pieces = lambda batch: list(torch.arange(len(batch)).split(1))  # type: ignore[method-assign]
    for name, value in patcher.patch(prompts, roles, pairs).items():
        torch.testing.assert_close(value, whole[name], rtol=0, atol=1e-10, equal_nan=True)


def test_only_pairs_that_exist_are_cut() -> None:
    model = tiny_mamba()
    roles = torch.tensor([[0, 1, 0, 2, -1], [1, 0, 0, 2, -1]])
    assert role_pairs([roles], 3) == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]
    out, conv = paths(model, ["out", "conv"], 1)
    assert out.groups(roles, (0, 1)) == {((2,), (1,)): [0], ((1, 2), (0,)): [1]}
    assert out.groups(roles, (1, 0)) == {((1,), (0,)): [0]}  # nothing after a reader, and not the second prompt
    assert conv.groups(torch.tensor([[0, 1, 1, 1, 2]]), (2, 0)) == {}  # four back, beyond the taps
    assert out.present(roles, [(1, 0), (2, 1)]).tolist() == [[True, False], [True, True]]


# ---- direct paths between the strongest units -------------------------------------------------------------------


def test_the_leading_units_are_the_surest_then_the_largest_of_each_kind() -> None:
    def found(*values: float, p: tuple[float | None, ...]) -> dict[str, Any]:
        return {"value": list(values), "p": list(p)}

    heads = {
        "name": "head_out", "layer": [0, 0, 1, 1], "unit": [0, 1, 0, 1],
        "necessary": found(0.1, 0.9, 0.2, 0.0, p=(0.01, 0.5, 0.02, 1.0)),
        "sufficient": found(0.0, 0.0, 0.0, -0.3, p=(1.0, 1.0, None, 0.03)),
    }  # fmt: skip
    neurons = {"name": "mlp_post", "layer": [1], "unit": [7], "necessary": found(0.1, p=(None,)),
               "sufficient": found(0.2, p=(None,))}  # fmt: skip
    assert leading([heads, neurons], 3) == [
        "layers.1.head_out[1]", "layers.1.head_out[0]", "layers.0.head_out[0]", "layers.1.mlp_post[7]",
    ]  # fmt: skip
    assert leading([heads, neurons], 0) == []


@pytest.mark.parametrize(("family", "kind"), [(tiny_gpt2, "head_out"), (tiny_mamba, "gated"), (tiny_mamba, "state")])
def test_paths_between_the_strongest_units_are_those_of_path_patching(family: Any, kind: str) -> None:
    model = family(1).requires_grad_(False)
    config = dataclasses.replace(SMALL, flow="", units=kind, paths=2, metric="answer_logprob")
    sets = loaders(model)
    raw = Patcher(model, config).run_analysis(*sets)
    ordered = sorted(leading(raw["units"], 2), key=lambda name: (name.split("[")[0], Node.parse(name).unit))
    direct = raw["direct_paths"]
    senders, receivers = ([node["node"] for node in direct[side]] for side in ("senders", "receivers"))
    assert senders == ["embed", *ordered] and receivers == [*ordered, "logits"]
    batches = [mechint.paths(model, batch, senders, receivers, metric=config.metric) for batch in sets[1]]
    right = torch.cat([batch.right for batch in batches])
    effects = torch.cat([batch.effects for batch in batches], -1)[..., right].mean(-1)
    totals = torch.cat([batch.totals for batch in batches], -1)[..., right].mean(-1)
    scale = 1.0 if direct["scale"] == "metric" else raw["metrics"]["total_effect"]["value"]
    told = torch.tensor(
        [[float("nan") if v is None else v for v in row] for row in direct["paths"]["necessary"]["value"]]
    )
    torch.testing.assert_close(told.double(), effects / scale, equal_nan=True, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(torch.tensor(direct["totals"]["necessary"]["value"]).double(), totals / scale,
                               atol=1e-6, rtol=1e-5)  # fmt: skip
    assert told[1:, -1].isfinite().all() and any("not for this choice" in note for note in raw["notes"])
    # what all paths out of a unit do is what the patching says of the unit
    whole = raw["units"][0]
    at = {
        f"layers.{layer}.{kind}[{unit}]": k
        for k, (layer, unit) in enumerate(zip(whole["layer"], whole["unit"], strict=True))
    }
    for name, value in zip(senders[1:], direct["totals"]["necessary"]["value"][1:], strict=True):
        assert value == pytest.approx(whole["necessary"]["value"][at[name]], rel=1e-4, abs=1e-6)
    assert sum(" → " in line for line in ANALYSIS.summary(raw)) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [({"values": "mean"}, "take the twin's values"), ({"units": " "}, "name kinds of units")],
)
def test_paths_that_cannot_be_are_refused(change: dict[str, str], said: str) -> None:
    config = dataclasses.replace(SMALL, paths=3, **change)
    assert said in str(refuse(config, TASK)) and refuse(dataclasses.replace(config, paths=0), TASK) is None


def test_units_of_the_stream_alone_have_no_paths() -> None:
    model = tiny_gpt2()
    config = dataclasses.replace(SMALL, flow="", units="resid_post", paths=2)
    with pytest.raises(MechintError, match="no ends of direct paths; take a kind such as"):
        Patcher(model, config)
    raw = Patcher(model, dataclasses.replace(config, units="resid_post,mlp_out", metric="answer_logprob")).run_analysis(
        *loaders(model)
    )
    assert len(raw["direct_paths"]["senders"]) == 3
    assert any(note.startswith("No direct paths of layers.") for note in raw["notes"])
