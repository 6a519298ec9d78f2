"""Path patching as an analysis: what is chosen, every number by hand, notebooks, pages, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import mechint
from mechint.analyses.paths import nodes
from mechint.analyses.paths.analyzer import ANALYSIS, PathAnalyzer
from mechint.analyses.paths.figures import Paths, box_label, boxes, drawn, label, load_paths, reach, reaches, spot
from mechint.analyses.paths.options import PathConfig, refuse
from mechint.interventions.edits import Edit
from mechint.report import write_report
from mechint.tasks import Prompts, TaskConfig
from mechint.utils.errors import MechintError
from mechint.utils.files import write_json
from tests.helpers.builders import tiny_gpt2, tiny_llama, tiny_mamba
from tests.helpers.families import falcon_h1
from tests.helpers.run_files import write_results
from tests.helpers.tracing import TASK, loaders, metric_by_hand

SMALL = PathConfig(eval_prompts=12, prompts=8, bootstrap=100)
ALONG = "embed > layers.0.out > logits"


def names(found: list[Any]) -> list[str]:
    return list(map(str, found))


# ---- what is chosen ----------------------------------------------------------------------------------------------


def test_the_usual_ends_are_the_parts_of_the_model() -> None:
    mamba, gpt2, llama, hybrid = tiny_mamba(), tiny_gpt2(), tiny_llama(), falcon_h1()
    assert names(nodes.senders(mamba)) == ["embed", "layers.0.out", "layers.1.out"]
    inputs = [f"layers.{i}.{kind}" for i in range(2) for kind in ("x", "z", "dt", "B", "C")]
    assert names(nodes.receivers(mamba)) == [*inputs, "logits"]
    heads = [[f"layers.{i}.head_out[{head}]" for head in range(3)] for i in range(2)]
    senders = ["embed", *heads[0], "layers.0.mlp_out", *heads[1], "layers.1.mlp_out"]
    assert names(nodes.senders(gpt2)) == senders
    assert names(nodes.senders(gpt2, heads=False))[1:3] == ["layers.0.head_out", "layers.0.mlp_out"]
    assert len(nodes.receivers(gpt2)) == 2 * (9 + 1) + 1 and len(nodes.receivers(gpt2, heads=False)) == 2 * 4 + 1
    assert len(nodes.receivers(llama)) == 2 * (4 + 2 + 2 + 1) + 1  # keys and values are shared by two heads each
    found = names(nodes.receivers(hybrid, heads=False))[:8]
    sites = ["key", "value", "query", "decay", "z", "q", "k", "v"]
    assert found == [f"layers.0.{name}" for name in sites] and "layers.0.mlp_out" in names(nodes.receivers(hybrid))
    assert names(nodes.senders(hybrid))[1:4] == ["layers.0.ssm_out", "layers.0.head_out[0]", "layers.0.head_out[1]"]


def test_names_are_kinds_or_sites_and_come_in_the_order_of_the_forward() -> None:
    model = tiny_gpt2()
    asked = "layers.1.mlp_out, q, layers.0.v, logits, layers.0.q[1]"
    wanted = [*(f"layers.0.q[{h}]" for h in range(3)), "layers.0.v", *(f"layers.1.q[{h}]" for h in range(3)),
              "layers.1.mlp_out", "logits"]  # fmt: skip
    assert names(nodes.receivers(model, asked)) == wanted == names(nodes.receivers(model, asked.split(", ")))
    assert names(nodes.paths(model, "embed > layers.0.v[1]>logits, embed>logits")[0]) == [
        "embed", "layers.0.v[1]", "logits"
    ]  # fmt: skip


@pytest.mark.parametrize(("options", "said"), [
    ({"senders": "mlp_outt"}, "no kind of site 'mlp_outt'.*mlp_out"),
    ({"senders": ""}, "no sender is named"),
    ({"receivers": "resid_post"}, "residual stream"),
    ({"receivers": "pattern"}, "no receiver"),
    ({"receivers": "layers.5.q"}, "no such site"),
    ({"receivers": "layers.0.q[7]"}, "has 3 units"),
    ({"senders": "layers.1.mlp_out", "receivers": "q"}, "every receiver reads before any sender writes"),
    ({"along": "embed"}, "at least a sender and a receiver"),
    ({"along": "layers.1.mlp_out > layers.0.q[0]"}, "no path leads there"),
    ({"metric": "accuracy"}, "metric"),
])  # fmt: skip
def test_ends_that_there_are_not_are_refused_before_work(options: dict[str, str], said: str) -> None:
    with pytest.raises(MechintError, match=said):
        PathAnalyzer(tiny_gpt2(), dataclasses.replace(SMALL, **options))


def test_tasks_without_twins_are_refused() -> None:
    assert "twin" in str(refuse(SMALL, TaskConfig(name="prompt")))
    assert refuse(SMALL, TaskConfig(name="text")) and refuse(SMALL, TASK) is None
    model = tiny_mamba()
    sets = loaders(model)
    for index, prompts in enumerate(sets[1].batches):
        sets[1].batches[index] = dataclasses.replace(prompts, twins=None)
    with pytest.raises(MechintError, match="no counterfactual twins"):
        PathAnalyzer(model, SMALL).run_analysis(*sets)
    with pytest.raises(MechintError, match="no counterfactual twins"):
        mechint.paths(model, sets[1].batches[0])


# ---- the numbers -------------------------------------------------------------------------------------------------


def prompts_of(model: Any) -> Prompts:
    return loaders(model)[1].batches[0]


@pytest.mark.parametrize("direction", ["noise", "denoise"])
def test_a_notebook_gets_what_is_lost_and_what_comes_back(direction: str) -> None:
    """The direct effect of the last layer on the logits: everything before it is as it was."""
    model = tiny_mamba(dtype=torch.float64)
    prompts = prompts_of(model)
    found = mechint.paths(model, prompts, "layers.1.out,embed", "logits,layers.1.C", direction=direction, along=[ALONG])
    assert prompts.twins is not None
    run = lambda tokens, *edits: mechint.run(model, tokens, ["layers.1.out"], list(edits))
    value = lambda logits: metric_by_hand("logit_diff", logits[:, -1], prompts)
    clean, twin = run(prompts.tokens), run(prompts.twins)
    ours, theirs = (clean, twin) if direction == "noise" else (twin, clean)
    tokens = prompts.tokens if direction == "noise" else prompts.twins
    changed = run(tokens, Edit("layers.1.out", "replace", theirs["layers.1.out"]))
    wanted = value(ours.logits) - value(changed.logits)
    wanted = wanted if direction == "noise" else -wanted
    assert torch.allclose(found["layers.1.out", "logits"], wanted, atol=1e-10, rtol=0)
    assert torch.allclose(found.clean, value(clean.logits)) and torch.allclose(found.corrupted, value(twin.logits))
    # nothing lies between the last layer and the logits, so all its paths are this one; embeddings have all there is
    assert torch.allclose(found.totals[names(found.senders).index("layers.1.out")], wanted, atol=1e-10, rtol=0)
    assert torch.allclose(found.totals[0], found.clean - found.corrupted, atol=1e-10, rtol=0)
    assert found["layers.1.out", "layers.1.C"].isnan().all() and found.named.shape == (1, len(prompts))
    assert found.named.abs().max() > 1e-6
    best = found.strongest(9)
    assert len(best) == 3 and [abs(v) for *_, v in best] == sorted((abs(v) for *_, v in best), reverse=True)
    with pytest.raises(MechintError, match="was not measured"):
        found["embed", "layers.0.x"]


def test_answers_of_several_tokens_are_measured_as_one_on_request() -> None:
    """The log-probability of a whole answer is the sum of those of its tokens; otherwise the last one counts."""
    model = tiny_gpt2(dtype=torch.float64)
    prompts = prompts_of(model)
    assert prompts.twins is not None
    at = torch.tensor([[prompts.tokens.shape[1] - 2, prompts.tokens.shape[1] - 1]]).expand(len(prompts), 2)
    two = dataclasses.replace(prompts, positions=at, answers=prompts.tokens[:, :2], wrong=prompts.twins[:, :2])
    one = dataclasses.replace(two, positions=at[:, :1], answers=two.answers[:, :1], wrong=prompts.twins[:, :1])
    first, last, whole = (
        mechint.paths(model, asked, "layers.1.mlp_out", "logits", metric="answer_logprob", whole=asked_whole)
        for asked, asked_whole in ((one, False), (two, False), (two, True))
    )
    torch.testing.assert_close(whole.clean, first.clean + last.clean)
    torch.testing.assert_close(whole.effects, first.effects + last.effects)
    assert last.named.shape == (0, len(two)) == whole.named.shape
    usual = mechint.paths(model, two, "layers.1.mlp_out", "logits", metric="answer_logprob")
    assert torch.equal(usual.effects, last.effects)


def test_reported_effects_are_means_over_the_answered_prompts() -> None:
    model = tiny_mamba(dtype=torch.float64)
    sets = loaders(model, batch=8)
    # one prompt that the model does not answer
    first = sets[1].batches[0]
    sets[1].batches[0] = dataclasses.replace(first, answers=first.answers.index_fill(0, torch.tensor([1]), 5))
    raw = PathAnalyzer(model, dataclasses.replace(SMALL, along=ALONG, receivers="x,logits")).run_analysis(*sets)
    parts = [mechint.paths(model, batch, receivers="x,logits") for batch in sets[1]]
    right = torch.cat([part.right for part in parts])
    assert raw["metrics"]["prompts_failed"]["value"] == int((~right).sum()) > 0
    effects = torch.cat([part.effects for part in parts], -1)[..., right]
    total = torch.cat([part.clean - part.corrupted for part in parts])[right].mean()
    scale = total if raw["scale"] != "metric" else torch.ones(())
    found = raw["paths"]["necessary"]
    for s, row in enumerate(found["value"]):
        for r, value in enumerate(row):
            wanted = effects[s, r].mean() / scale
            assert (value is None) == bool(wanted.isnan()) and (value is None or abs(value - float(wanted)) < 1e-9)
            assert found["n"][s][r] == (0 if value is None else int(right.sum()))
    totals = torch.cat([part.totals for part in parts], -1)[..., right].mean(-1) / scale
    assert torch.allclose(torch.tensor(raw["totals"]["necessary"]["value"], dtype=torch.float64), totals, atol=1e-9)
    assert [entry["direction"] for entry in raw["along"]] == ["necessary", "sufficient"]


# ---- the page ----------------------------------------------------------------------------------------------------


def finished(directory: Path, model: Any, config: PathConfig) -> dict[str, Any]:
    """A run directory as the runner leaves it."""
    analyzer = PathAnalyzer(model, config, run_dir=directory, key="a")
    found = analyzer.run_analysis(*loaders(model, batch=12))
    analyzer.save_results()
    return write_results(directory, "path", "Path patching", config, found)


@pytest.mark.slow_except("tiny_gpt2")
@pytest.mark.parametrize("family", [tiny_gpt2, tiny_mamba])
def test_the_report(tmp_path: Path, family: Any) -> None:
    along = "embed > layers.0.out > logits" if family is tiny_mamba else "embed > layers.0.head_out[1] > logits"
    config = dataclasses.replace(SMALL, along=along, direction="both" if family is tiny_mamba else "noise", heads=False)
    raw = finished(tmp_path, family(1), config)
    ways = ["necessary", "sufficient"] if family is tiny_mamba else ["necessary"]
    assert list(raw["paths"]) == ways and len(ANALYSIS.summary(raw)) == 2 + 3 * len(ways)
    written = write_report(tmp_path)
    figures = {f"path_{kind}_{way}.png" for kind in ("strongest", "matrix") for way in ways}
    assert {path.name for path in written} == figures | {"path_report.md", "report.html"}
    page = (tmp_path / "report.html").read_text()
    assert "&lt;b&gt;x.pt" in page and "<b>x.pt" not in page and 'src="http' not in page
    assert "no such path" in page and along.replace(">", "&gt;") in page
    assert page.count('table class="flow"') == len(ways)
    rows = mechint.results(tmp_path).rows()
    named = {row["name"]: row for row in rows if row["entry"].startswith("paths.necessary")}
    best = raw["strongest"][0]
    row = named[f"{best['sender']} → {best['receiver']}"]
    assert row["value"] == best["value"] and row["metric"] == "necessary"
    for broken in ({"receivers": raw["receivers"][1:]}, {"totals": {way: {} for way in ways}},
                   {"strongest": [{**best, "sender": "layers.9.out"}]}):  # fmt: skip
        write_json(tmp_path / "results.json", {**raw, **broken})
        with pytest.raises(MechintError, match=r"results\.json"):
            write_report(tmp_path)


def test_the_drawing_has_one_box_for_a_head_and_arrows_that_go_up(tmp_path: Path) -> None:
    finished(tmp_path, tiny_gpt2(1), SMALL)
    paths = load_paths(tmp_path)
    entries = drawn(paths, "necessary")
    assert 0 < len(entries) <= 12
    spots = boxes(paths, entries)
    for entry in entries:
        ends = [paths.node(side, entry[side[:-1]]) for side in ("senders", "receivers")]
        below, above = (spots[spot(node)] for node in ends)
        assert below[1] < above[1]
    labels = [box_label(paths, one) for one in spots]
    assert len(set(labels)) == len(labels) and len(set(spots.values())) == len(spots)


def test_a_box_says_what_its_unit_is_and_an_arrow_which_site_it_begins_at() -> None:
    node = {"layer": 0, "step": 0, "part": "out", "head": 5, "axis": "channel"}
    end = {"node": "logits", "kind": "logits", "layer": 2, "step": 0, "part": "", "head": None, "axis": "vocabulary"}
    senders = [{**node, "node": f"layers.0.{kind}[5]", "kind": kind} for kind in ("state", "gated")]
    neuron = {**node, "node": "layers.0.mlp_post[5]", "kind": "mlp_post", "axis": "neuron"}
    wide = {**node, "node": "layers.0.out[5]", "kind": "out", "axis": "model"}
    raw = {"senders": [*senders, neuron, wide], "receivers": [end]}
    paths = Paths(Path(), raw, {}, {})
    entries = [{"sender": one["node"], "receiver": "logits", "value": 0.25} for one in raw["senders"]]
    said = [box_label(paths, one) for one in boxes(paths, entries)]
    assert said == ["layer 0\nchannel 5", "layer 0\nneuron 5", "layer 0\nunit 5", "logits"]
    assert [label(paths, entry, entries) for entry in entries] == [
        "state → logits 0.25", "gated → logits 0.25", "0.25", "0.25",
    ]  # fmt: skip
    older = {name: value for name, value in node.items() if name != "axis"}
    assert box_label(paths, spot(older)) == "layer 0\nhead 5"


def test_an_arrow_ends_at_the_edge_of_a_box_whatever_side_it_comes_from() -> None:
    name = "layer 0\nchannel 101"
    beside, above = reach(name, 1.0, 0.0), reach(name, 0.0, -1.0)
    assert beside > 1.5 * above > 12 and reach("logits", 1.0, 0.0) < beside
    assert reach(name, 1.0, 1.0) == pytest.approx(2 + (above - 2) * 2**0.5)
    assert reaches([name, name], (0.0, 0.0), (3.0, 0.0), 0.0) == pytest.approx((beside, beside))
    assert max(reaches([name, name], (0.0, 0.0), (3.0, 0.0), 0.9)) < beside  # bent: from above
