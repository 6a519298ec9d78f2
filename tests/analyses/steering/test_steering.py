"""Steering as an analysis: both sides of a contrast, every number by hand, one push, the page, and what is refused."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mechint
from mechint import Edit
from mechint.analyses.loader import PromptLoader
from mechint.analyses.metrics import answer_metric
from mechint.analyses.options import fixed_kinds, fixed_sites
from mechint.analyses.steering import analyzer, once, report, results, stored
from mechint.analyses.steering.analyzer import ANALYSIS, Steerer
from mechint.analyses.steering.contrasts import property_of, read_prompts
from mechint.analyses.steering.figures import profile_strength
from mechint.analyses.steering.options import SteerConfig, refuse, strengths
from mechint.analyses.steering.side_effects import LENGTH, unrelated
from mechint.interventions.steering import Direction, project_out
from mechint.report import write_report
from mechint.tasks import Prompts, TaskConfig, make_task
from mechint.utils.errors import MechintError
from mechint.utils.files import write_json, write_torch
from mechint.utils.statistics import ClusterBootstrap
from tests.helpers.builders import tiny_gpt2, tiny_mamba
from tests.helpers.families import falcon_h1
from tests.helpers.run_files import write_results

TASK = TaskConfig(name="recall", pairs=2, keys=12, values=12)
LABEL = TaskConfig(name="long_copy", values=4, length=8)
SMALL = SteerConfig(strengths="-1,1", random=3, prompts=16, eval_prompts=16, bootstrap=100, text_prompts=4, once=2)


def loaders(task: TaskConfig = TASK, count: int = 16, batch: int = 7) -> list[PromptLoader]:
    return [PromptLoader(make_task(task), split, count, batch, 0) for split in ("discovery", "evaluation")]


def logits_at_answer(model: Any, tokens: torch.Tensor, prompts: Prompts, edits: Any = ()) -> torch.Tensor:
    whole = mechint.run(model, tokens, edits=list(edits)).logits
    return whole[torch.arange(len(tokens)), prompts.positions[:, -1]].unsqueeze(1)


# ---- the two sides -----------------------------------------------------------------------------------------------


def test_a_label_has_prompts_with_its_value_on_one_side_and_all_others_on_the_other() -> None:
    learnt, asked = loaders(LABEL, 64, 50)
    found = property_of(dataclasses.replace(SMALL, towards="answer = v2"), learnt, asked)
    assert found.said == "answer = v2" and not found.paired
    first = [row for batch in asked for row in batch.tokens.tolist()]
    having = [row for batch in found.having for row in batch.tokens.tolist()]
    lacking = [row for batch in found.lacking for row in batch.tokens.tolist()]
    assert having == [row for row in first if row[0] == 2] and lacking == [row for row in first if row[0] != 2]
    for batch in (*found.having, *found.lacking):
        assert batch.accepted is not None and batch.rejected is not None
        assert batch.accepted.flatten().unique().tolist() == [2] == batch.answers.flatten().unique().tolist()
        assert batch.rejected[0, 0].tolist() == [0, 1, 3]
    by_number = property_of(dataclasses.replace(SMALL, towards="answer=2"), learnt, asked)
    assert sum(map(len, by_number.having)) == len(having)


def test_twins_lack_what_the_prompts_have() -> None:
    learnt, asked = loaders()
    found = property_of(SMALL, learnt, asked)
    assert found.paired
    for batch, lacks, has in zip(asked, found.lacking, found.having, strict=True):
        assert batch.twins is not None and torch.equal(lacks.tokens, batch.twins)
        assert torch.equal(has.tokens, batch.tokens) and torch.equal(lacks.answers, batch.answers[:, -1:])


@pytest.mark.parametrize(("towards", "said"), [
    ("answre=v1", "no label 'answre' .did you mean answer.*they have answer, latest"),
    ("answer=v9", "no discovery prompt has 'answer' = 'v9'.*v0, v1, v2, v3"),
    ("latest=1", "have the same answers, so no answer shows the property; choose another label, such as answer=v"),
])  # fmt: skip
def test_properties_that_there_are_not_are_one_line(towards: str, said: str) -> None:
    with pytest.raises(MechintError, match=said) as refused:
        property_of(dataclasses.replace(SMALL, towards=towards), *loaders(LABEL, 64))
    assert "\n" not in str(refused.value)


def test_prompts_of_files_are_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "with.jsonl"
    path.write_text('{"prompt": [1, 2, 3], "note": "x"}\n\n{"prompt": [4]}\n')
    assert [row.tolist() for row in read_prompts(str(path), tiny_mamba(), "positive")] == [[1, 2, 3], [4]]


@pytest.mark.parametrize(("text", "said"), [
    ("", "is empty; name a file with a prompt on each line"),
    ("a text\n", "line 1 is text, and a random model has no tokenizer"),
    ('{"prompt": [1]}\n{"text": 1}\n', "line 2 has no prompt"),
    ('{"prompt": [1]}\n{"prompt": []}\n', "line 2 has no prompt"),
    ('{"prompt": [1]}\nhello\n', "line 2 is not a JSON object as the first line is"),
    ('{"prompt": [99]}\n', "token id 99 is outside the vocabulary"),
])  # fmt: skip
def test_files_that_hold_no_prompts_are_one_line(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "with.txt"
    path.write_text(text)
    with pytest.raises(MechintError, match=said):
        read_prompts(str(path), tiny_mamba(), "positive")
    with pytest.raises(MechintError, match=r"missing|no such|not exist"):
        read_prompts(str(tmp_path / "none"), tiny_mamba(), "positive")


# ---- the numbers -------------------------------------------------------------------------------------------------


def steered(model: Any, config: SteerConfig, task: TaskConfig = TASK, **others: Any) -> tuple[Steerer, dict[str, Any]]:
    analyzer = Steerer(model, config, **others)
    return analyzer, analyzer.run_analysis(*loaders(task))


def test_many_short_measurements_show_how_far_they_are(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them is long enough to say anything itself, and a real model has dozens."""
    monkeypatch.setattr(analyzer, "Progress", functools.partial(analyzer.Progress, quiet=0.0, every=0.0))
    found, _ = steered(tiny_mamba().requires_grad_(False), dataclasses.replace(SMALL, sites="out"))
    count = len(found.sites) + len(found.once_layers())
    told = capsys.readouterr().err
    assert f"100% directions {count}/{count}" in told and found.sites[0] in told and "one push at layer" in told


@pytest.mark.parametrize("where", ["answer", "all"])
def test_every_number_of_a_site_by_hand(where: str) -> None:
    model = tiny_mamba(dtype=torch.float64).requires_grad_(False)
    config = dataclasses.replace(SMALL, sites="out", layers="0", where=where, metric="answer_logprob", once=0)
    analyzer, raw = steered(model, config)
    learnt, asked = loaders()
    site, ends = "layers.0.out", ([], [])
    for batch in learnt:
        for side, tokens in zip(ends, (batch.tokens, batch.twins), strict=True):
            assert tokens is not None
            side.append(mechint.run(model, tokens, [site])[site][:, -1])
    vector = torch.cat(ends[0]).mean(0) - torch.cat(ends[1]).mean(0)
    assert torch.allclose(analyzer.found[site]["vector"], vector, atol=1e-12)
    assert raw["directions"][0]["length"] == pytest.approx(float(vector.norm()))
    positions = None if where == "all" else [learnt.batches[0].tokens.shape[1] - 1]
    pushes: dict[float, list[torch.Tensor]] = {-1.0: [], 1.0: []}
    gone = []
    for batch in asked:
        last = batch.last()
        score = answer_metric("answer_logprob", last)
        assert batch.twins is not None
        value = lambda tokens, *edits, last=last, score=score: score(logits_at_answer(model, tokens, last, edits))
        for strength, changes in pushes.items():
            edit = Edit(site, "add", strength * vector, positions=positions)
            changes.append(value(batch.twins, edit) - value(batch.twins))
        gone.append(value(batch.tokens, *project_out(Direction(site, vector), positions)) - value(batch.tokens))
    for row in raw["curves"]:
        assert row["effect"]["value"] == pytest.approx(float(torch.cat(pushes[row["strength"]]).mean()), rel=1e-9)
        assert row["effect"]["low"] < row["effect"]["value"] < row["effect"]["high"] and row["p"] >= 0.25
        assert row["others"]["n"] == 3 and row["kl"]["value"] > 0
    [projection] = raw["projections"]
    assert projection["effect"]["value"] == pytest.approx(float(torch.cat(gone).mean()), rel=1e-9)
    assert "3 directions beside cannot show" in " ".join(raw["notes"])


def test_equal_strengths_by_hand() -> None:
    grid = torch.linspace(0, 1, once.STEPS + 1, dtype=torch.float64)
    assert once.equal_strengths([2 * grid, grid]) == pytest.approx([0.5, 1.0])
    bent = torch.where(grid < 0.5, 4 * grid, 4 - 4 * grid)  # up to 2, then down
    assert once.equal_strengths([bent, grid]) == pytest.approx([0.25, 1.0])
    assert once.equal_strengths([-grid, grid]) is None


def test_one_push_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Effects at the answer are those of single runs, and at once both are equal on the discovery prompts."""
    monkeypatch.setattr(once, "STEPS", 8)
    model = tiny_mamba(2, dtype=torch.float64, vocab_size=5).requires_grad_(False)
    config = dataclasses.replace(SMALL, towards="answer=v1", sites="state", layers="0", once=3, random=0)
    analyzer = Steerer(model, config)
    learnt, asked = (property_of(config, loaders(LABEL)[0], loader) for loader in loaders(LABEL))
    found = analyzer.once(0, learnt, asked)
    assert found["strengths"] is not None
    first = learnt.lacking
    effects = []
    for site in once.SITES:
        direction = analyzer.direction(f"layers.0.{site}", learnt).direction
        strength = found["strengths"][site]
        value = lambda batch, *edits: answer_metric("logit_diff", batch)(
            logits_at_answer(model, batch.tokens, batch, edits)
        )
        edit = lambda at: Edit(direction.site, "add", strength * direction.vector, positions=[at])  # noqa: B023
        effects.append(float(torch.cat([value(batch, edit(7)) - value(batch) for batch in first]).mean()))
        for k in (0, 3):
            by_hand = torch.cat([value(batch, edit(7 - k)) for batch in asked.lacking])
            torch.testing.assert_close(found["after"][site][k], by_hand, rtol=1e-9, atol=1e-10)
    assert effects[0] == pytest.approx(effects[1], rel=0.05) and effects[0] > 0


def test_a_push_before_the_prompt_is_not_measured() -> None:
    model = tiny_mamba(2, vocab_size=5).requires_grad_(False)
    config = dataclasses.replace(SMALL, towards="answer=v1", once=9, random=0, layers="0", text="none")
    _, raw = steered(model, config, LABEL)
    [layer] = raw["once"]
    assert {push["after"] for push in layer["pushes"]} <= set(range(8)) and "kl" not in raw["best"]
    assert raw["best"]["p"] is None and "No other directions" in " ".join(raw["notes"])
    assert all(row["others"] is None for row in raw["curves"])


def test_the_control_of_shuffled_contrasts_is_as_long() -> None:
    model = tiny_mamba(dtype=torch.float64).requires_grad_(False)
    analyzer = Steerer(model, dataclasses.replace(SMALL, control="shuffled", random=4))
    found = analyzer.direction("layers.1.state", property_of(SMALL, *[loaders()[0]] * 2))
    lengths = [float(one.vector.norm()) for one in found.others]
    assert lengths == pytest.approx([float(found.direction.vector.norm())] * 4)
    # all lie in the span of the pairs' differences
    learnt = property_of(SMALL, *[loaders()[0]] * 2)
    from mechint.analyses.steering.contrasts import values_at

    ends = [values_at(model, rows, "layers.1.state").flatten(1) for rows in learnt.rows()]
    span = torch.linalg.qr((ends[0] - ends[1]).T)[0]
    for one in found.others:
        flat = one.vector.flatten()
        assert float((flat - span @ (span.T @ flat)).norm()) < 1e-9 * float(flat.norm())


def test_sites_of_hybrids_and_of_transformers() -> None:
    hybrid, gpt2 = falcon_h1(), tiny_gpt2()
    assert fixed_sites(hybrid, "usual", [1], "here") == ["layers.1.state", "layers.1.resid_post"]
    assert fixed_sites(gpt2, "usual", [0], "here") == ["layers.0.resid_post"]
    assert "pattern" not in fixed_kinds(gpt2) and "k" in fixed_kinds(gpt2)
    for text, said in (("resid", "no site 'resid'.*did you mean"), ("pattern", "no site 'pattern' of fixed width"),
                       ("state", "no site 'state'")):  # fmt: skip
        with pytest.raises(MechintError, match=said):
            fixed_sites(gpt2, text, [0], "here")


# ---- the page, the saved directions, and a notebook ---------------------------------------------------------------


def finished(directory: Path, config: SteerConfig) -> dict[str, Any]:
    """A run directory as the runner leaves it."""
    model = tiny_mamba(2, vocab_size=5).requires_grad_(False)
    analyzer, found = steered(model, config, LABEL, run_dir=directory, key="a")
    analyzer.save_results()
    return write_results(directory, "steer", "Steering", config, found, task="long_copy")


@pytest.mark.slow
def test_the_report_and_directions_that_are_used_again(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, towards="answer=v1")
    raw = finished(tmp_path, config)
    assert len(ANALYSIS.summary(raw)) >= 5
    written = {path.name for path in write_report(tmp_path)}
    assert written >= {"steering.png", "steer_report.md", "report.html"}
    page = (tmp_path / "report.html").read_text()
    assert "&lt;b&gt;x.pt" in page and "<b>x.pt" not in page and 'src="http' not in page
    rows = mechint.results(tmp_path).rows()
    best = raw["best"]
    assert any(row["value"] == best["effect"]["value"] and row["layer"] == best["layer"] for row in rows)
    again = Steerer(
        tiny_mamba(2, vocab_size=5).requires_grad_(False),
        dataclasses.replace(config, directions=str(tmp_path / stored.FILE), sites="state", layers="1"),
    )
    assert again.sites == ["layers.1.state"]
    second = again.run_analysis(*loaders(LABEL))
    value = lambda found: [r["effect"]["value"] for r in found["curves"] if r["name"] == "layers.1.state"]
    assert value(second) == pytest.approx(value(raw)) and second["once"] == []
    write_json(tmp_path / "results.json", {**raw, "best": {}})
    with pytest.raises(MechintError, match=r"results\.json"):
        write_report(tmp_path)


@pytest.mark.parametrize(("content", "said"), [
    ({"layers.0.out": torch.ones(3)}, r"has the shape \[3\], and that site of a random model has \[10\]"),
    ({"layers.7.out": torch.ones(10)}, "no site 'layers.7.out'"),
    ({"layers.0.out": torch.zeros(10)}, "is zero, so it pushes nowhere"),
    ({"layers.0.out": torch.full((10,), torch.nan)}, "NaN or infinite"),
    ({"layers.0.out": [1.0]}, "does not hold directions by site"),
    ({}, "does not hold directions by site"),
    ({"layers.1.out": torch.ones(10)}, "has none at layers.0.out"),
])  # fmt: skip
def test_directions_of_another_model_width_or_site_are_refused_before_work(
    content: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "directions.pt"
    write_torch(path, content)
    with pytest.raises(MechintError, match=said):
        Steerer(tiny_mamba(), dataclasses.replace(SMALL, directions=str(path), sites="out", layers="0"))


def test_contrast_files_of_unequal_number_are_refused_where_pairs_are_needed(tmp_path: Path) -> None:
    names = {}
    for name, count in (("positive", 3), ("negative", 2)):
        path = tmp_path / name
        path.write_text("".join(json.dumps({"prompt": [k + 1, 3 if count == 3 else 8]}) + "\n" for k in range(count)))
        names[name] = str(path)
    with pytest.raises(MechintError, match=r"has 3 prompts and .* 2, and pca compares pairs"):
        Steerer(tiny_mamba(), dataclasses.replace(SMALL, method="pca", **names))
    _, raw = steered(tiny_mamba().requires_grad_(False), dataclasses.replace(SMALL, layers="0", once=0, **names))
    assert "3 contrast prompts of two files with the property and 2 without" in raw["source"]


def test_a_notebook_steers_a_generation() -> None:
    model = tiny_mamba(dtype=torch.float64).requires_grad_(False)
    ends = [[torch.tensor([k, last]) for k in range(4)] for last in (3, 8)]
    direction = mechint.contrast(model, *ends, "layers.0.resid_post")
    pushed, tokens = mechint.steer(model, direction, 3.0), torch.tensor([[1, 2]])
    edit = Edit("layers.0.resid_post", "add", 3.0 * direction.vector)
    assert torch.equal(pushed.generate(tokens, 5).tokens, mechint.generate(model, tokens, 5, edits=[edit]).tokens)
    gone = mechint.steer(model, direction, None).run(tokens, ["layers.0.resid_post"])["layers.0.resid_post"]
    assert float((gone @ direction.unit).abs().max()) < 1e-12
    with pytest.raises(MechintError, match="has no tokenizer"):
        mechint.contrast(model, ["a"], ["b"], "layers.0.resid_post")
    with pytest.raises(MechintError, match="2 prompts with the property and 1 without, and pca compares pairs"):
        mechint.contrast(model, ends[0][:2], ends[1][:1], "layers.0.resid_post", "pca")
    with pytest.raises(MechintError, match="has the shape"):
        mechint.steer(tiny_mamba(d_model=6), direction)
    with pytest.raises(MechintError, match="wide as the prompt is long"):
        mechint.steer(tiny_gpt2(), Direction("layers.0.pattern", torch.ones(3)))


# ---- options -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "said"), [
    ("", "no strength is named"), ("a", "'a' is not a finite number"), ("0,1", "is the model itself"),
    ("1,1", "named twice"), ("inf", "not a finite number"),
])  # fmt: skip
def test_strengths_that_are_none(text: str, said: str) -> None:
    with pytest.raises(MechintError, match=said):
        strengths(text)


def test_strengths_are_in_order() -> None:
    assert strengths("2, -1 0.5") == [-1.0, 0.5, 2.0] and profile_strength([-1.0, 0.5, 2.0]) == 0.5


@pytest.mark.parametrize(("change", "task", "said"), [
    ({"positive": "a"}, TASK, "two files"),
    ({"positive": "a", "negative": "b", "directions": "c"}, TASK, "two sources"),
    ({"towards": "answer"}, TASK, "give a label and its value"),
    ({"towards": "answer=1", "method": "pca"}, TASK, "pca compares pairs"),
    ({"directions": "a", "control": "shuffled"}, TASK, "no contrast to shuffle"),
    ({}, TaskConfig(name="text"), "plain text has no counterfactual twins"),
    ({}, TaskConfig(name="prompt"), "one prompt has no counterfactual twins"),
    ({"towards": "answer=1"}, TaskConfig(name="prompt"), "no others with or without"),
    ({"directions": "a"}, TaskConfig(name="text"), "no wrong answer"),
    ({}, TaskConfig(name="file", answers="whole"), "whole answer"),
])  # fmt: skip
def test_requests_that_contradict_themselves(change: dict[str, Any], task: TaskConfig, said: str) -> None:
    assert said in str(refuse(dataclasses.replace(SMALL, **change), task))


def test_requests_that_can_be_done() -> None:
    for change, task in (({}, TASK), ({"directions": "a", "metric": "answer_logprob"}, TaskConfig(name="text")),
                         ({"towards": "answer=1", "directions": "a"}, TASK)):  # fmt: skip
        assert refuse(dataclasses.replace(SMALL, **change), task) is None


def test_prompts_without_twins_are_refused() -> None:
    model, sets = tiny_mamba(), loaders()
    sets[1].batches[0] = dataclasses.replace(sets[1].batches[0], twins=None)
    with pytest.raises(MechintError, match="no counterfactual twins for a contrast; name a label"):
        Steerer(model, SMALL).run_analysis(*sets)


def test_rows_of_text_that_a_model_cannot_read_are_refused_before_any_work() -> None:
    model = tiny_gpt2(vocab_size=256, n_ctx=24)  # its tokens are bytes, so that the rows are of a text
    with pytest.raises(MechintError, match="32 positions are too many: this model has embeddings for 24"):
        Steerer(model, dataclasses.replace(SMALL, text="usual")).check(*loaders())
    Steerer(model, dataclasses.replace(SMALL, text="none")).check(*loaders())


def test_a_site_that_the_property_has_not_reached_is_left_out_and_named(tmp_path: Path) -> None:
    """As below a layer that reads no further back than a window or a short convolution; the other sites stay."""
    model = tiny_mamba().requires_grad_(False)
    model.layers[0].out_proj.weight.zero_()
    config = dataclasses.replace(SMALL, sites="out,state", once=2)
    found, done = steered(model, config, run_dir=tmp_path)
    assert "layers.0.out" not in found.found and {"layers.1.out", "layers.0.state"} <= found.found.keys()
    assert {row["name"] for row in done["curves"]} == set(found.found)
    [note] = [note for note in done["notes"] if "no direction" in note]
    assert note.startswith("Left out") and note.endswith(": layers.0.out")
    found.save_results()
    assert set(torch.load(tmp_path / "directions.pt")) == set(found.found)
    model.layers[1].out_proj.weight.zero_()
    with pytest.raises(MechintError, match=r"layers\.0\.out: .* so there is no direction; choose another site"):
        steered(model, dataclasses.replace(SMALL, sites="out", once=0))


def test_p_of_every_strength_beside_the_draws_by_hand() -> None:
    """The step-down of Westfall and Young as loops: a push of -1 counts where it lowers the metric."""
    random = np.random.default_rng(0)
    prompts, draws, strengths_ = 6, 9, (-1.0, 2.0)
    lacks = random.normal(size=prompts)
    pushed_ = lacks + np.array([[-0.2], [0.25]]) + random.normal(0, 0.1, (2, prompts))
    others = lacks + random.normal(0, 0.5, (draws, 2, prompts))
    stage = {"pushed": torch.from_numpy(pushed_), "others": torch.from_numpy(others)}
    bootstrap = ClusterBootstrap(range(prompts), 50, 0)
    sides = results.Sides(bootstrap, bootstrap, lacks, lacks)
    rows = results.curves({"layers.0.out": stage}, strengths_, sides)
    cells = []  # of each strength the observed value and those of the draws, in standard deviations of all ten
    for k, sign in enumerate((-1.0, 1.0)):
        own = [sign * float(np.mean([pushed_[k, i] - lacks[i] for i in range(prompts)]))]
        own += [sign * float(np.mean([others[d, k, i] - lacks[i] for i in range(prompts)])) for d in range(draws)]
        middle = sum(own) / len(own)
        spread = math.sqrt(sum((x - middle) ** 2 for x in own) / len(own))
        cells.append([(x - middle) / spread for x in own])
    first, second = sorted((0, 1), key=lambda k: -cells[k][0])
    expected = {first: sum(max(a, b) >= cells[first][0] for a, b in zip(*cells, strict=True)) / 10}
    expected[second] = max(expected[first], sum(x >= cells[second][0] for x in cells[second]) / 10)
    assert [row["p"] for row in rows] == [expected[0], expected[1]] and max(expected.values()) < 1
    assert [row["strength"] for row in rows] == [-1.0, 2.0]
    assert [row["effect"]["value"] for row in rows] == pytest.approx((pushed_ - lacks).mean(1).tolist())


def test_a_label_value_that_every_prompt_has_or_none_is_one_line() -> None:
    """Both sides are asked for: without a prompt on either there is nothing to push, or nothing to project out of."""
    learnt, asked = loaders(LABEL, 64, 50)
    for side, keep in (
        ("with", lambda batch: batch.tokens[:, 0] != 2),
        ("without", lambda batch: batch.tokens[:, 0] == 2),
    ):
        less = loaders(LABEL, 64, 50)[1]
        less.batches = [batch[keep(batch).nonzero().squeeze(1)] for batch in asked.batches]
        with pytest.raises(MechintError, match=f"no evaluation prompt {side} answer = v2"):
            property_of(dataclasses.replace(SMALL, towards="answer = v2"), learnt, less)


def test_a_model_of_bytes_reads_text_and_one_of_symbols_random_tokens() -> None:
    """Neither has a tokenizer; 256 tokens are bytes."""
    task = make_task(LABEL)
    rows, said = unrelated(tiny_mamba(3, vocab_size=256), SMALL, task, 0)
    assert rows is not None and rows.shape == (4, LENGTH) and "of the text topics" in said
    assert bytes(rows[0].tolist()).decode().isascii()
    rows, said = unrelated(tiny_mamba(3), SMALL, task, 0)
    assert rows is not None and rows.shape == (4, task.length) and "random tokens" in said


def test_one_push_is_of_the_layers_that_are_asked_for_but_the_last() -> None:
    for layers, expected in (("all", [0, 1]), ("1", [1]), ("2", [])):
        steerer = Steerer(tiny_mamba(3, n_layer=3), dataclasses.replace(SMALL, layers=layers))
        assert steerer.once_layers() == expected


def test_prompts_without_a_wrong_answer_can_be_steered_by_another_metric() -> None:
    """The logit difference alone needs a wrong answer."""
    learnt, asked = loaders()
    bare = [[dataclasses.replace(batch, wrong=None) for batch in loader.batches] for loader in (learnt, asked)]
    learnt.batches, asked.batches = bare
    made = tiny_mamba(3)
    Steerer(made, dataclasses.replace(SMALL, metric="answer_logprob")).check(learnt, asked)
    with pytest.raises(MechintError, match="no wrong answer for a logit difference"):
        Steerer(made, dataclasses.replace(SMALL, metric="logit_diff")).check(learnt, asked)


def test_the_surest_push_is_the_largest_of_the_sure_ones() -> None:
    row = lambda strength, value, p: {"strength": strength, "effect": {"value": value}, "p": p}
    rows = [row(-1.0, -9.0, 0.01), row(1.0, 3.0, 0.02), row(2.0, 5.0, 0.4), row(0.5, 2.0, 0.01)]
    assert results.best_of(rows) is rows[1] and results.best_of(rows[:1]) is rows[0]
    assert results.best_of([row(1.0, -1.0, None), row(2.0, 1.0, None)])["strength"] == 2.0


@pytest.mark.parametrize(("p", "title", "text"), [
    (0.025, "Largest sure effect", "layers.1.out, strength 2"),
    (0.67, "Surest effect", "layers.1.out, strength 2; not sure, p 0.67"),
    (None, "Surest effect", "layers.1.out, strength 2"),
])  # fmt: skip
def test_the_page_calls_an_effect_sure_only_where_it_is(p: float | None, title: str, text: str) -> None:
    best = {"name": "layers.1.out", "strength": 2.0, "effect": {"value": 0.128}, "p": p}
    assert report.best_card(best) == (title, "0.128", text)


@pytest.mark.parametrize(("value", "said"), [
    (-0.5, "at 0 of 1 sites (of the same size); most at layers.1.out, "),
    (0.5, "at 0 of 1 sites (of the same size); the metric is nowhere lower without it."),
])  # fmt: skip
def test_a_projection_that_raises_the_metric_does_not_lower_it_most(value: float, said: str) -> None:
    effect = {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 8}
    row = {"name": "layers.1.out", "layer": 1, "site": "out", "strength": 1.0, "effect": effect, "p": 0.5}
    raw = {
        "best": row, "curves": [row], "projections": [row], "draws": 3, "others": "random", "metric": "logit_diff",
        "once": [], "metrics": {"having": {"value": 2.0}, "lacking": {"value": 0.0}}, "property": "twins",
    }  # fmt: skip
    assert any(said in text for _, text in report.findings(raw))


def test_layers_where_a_push_has_no_effect_at_once_are_named() -> None:
    sides = results.Sides(*[results.ClusterBootstrap(list(range(8)), 100, 0)] * 2, *[np.zeros(8)] * 2)
    [row] = results.lasts({1: {"strengths": None, "after": {}}}, sides)
    assert row["layer"] == 1 and row["difference"] is None
