"""Causal tracing: the maps against one run per cell, the statistics against brute force, and the report."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mechint
from mechint.analyses import interchange
from mechint.analyses.effect_tables import ratio
from mechint.analyses.interchange import Corruption, Interchange, deviation
from mechint.analyses.loader import PromptLoader
from mechint.analyses.metrics import answer_metric
from mechint.analyses.options import RunConfig
from mechint.analyses.tracing.analyzer import CausalTracer
from mechint.analyses.tracing.options import refuse
from mechint.analyses.tracing.panels import panels
from mechint.analyses.tracing.results import role_means
from mechint.interventions.edits import Edit
from mechint.interventions.gradients import gradients
from mechint.interventions.taps import Tap
from mechint.report import log_wandb, write_report
from mechint.runner.experiment import run_experiment
from mechint.runner.request import Experiment
from mechint.tasks import Task, TaskConfig, make_task
from mechint.utils.errors import MechintError
from mechint.utils.files import write_json
from tests.helpers.builders import tiny_gpt2, tiny_llama, tiny_mamba
from tests.helpers.run_files import write_results
from tests.helpers.tracing import SMALL, TASK, loaders, metric_by_hand


@pytest.mark.slow_except("(twin-logit_diff|noise-answer_logprob)")
@pytest.mark.parametrize("metric", ["logit_diff", "answer_logprob", "answer_prob"])
@pytest.mark.parametrize("corruption", ["twin", "mean", "noise"])
def test_every_cell_is_one_run_by_hand(metric: str, corruption: str) -> None:
    """Both directions, a window of three layers, a severed mixer; in float64."""
    model = tiny_mamba(2, torch.float64, n_layer=3).requires_grad_(False)
    config = dataclasses.replace(
        SMALL, sites="resid_post,state,conv", sever="gate", window=3, corruption=corruption, metric=metric, draws=2
    )
    tracer = CausalTracer(model, config)
    prompts = loaders(model, 4)[1].batches[0]
    mean = torch.linspace(-1, 1, 10)
    found = tracer.trace(prompts, mean)
    pair = Interchange(model, prompts, tracer.corruption(mean), "denoise", metric)
    (bad, bad_edits), (good, _) = pair.receiver, pair.donor
    assert torch.equal(good, prompts.tokens.repeat_interleave(pair.draws, 0))

    def last(tokens: torch.Tensor, edits: list[Edit]) -> torch.Tensor:
        every = dataclasses.replace(prompts)[torch.arange(len(prompts)).repeat_interleave(pair.draws)]
        value = metric_by_hand(metric, mechint.run(model, tokens, edits=edits).logits[:, -1], every)
        return value.view(len(prompts), pair.draws).mean(1)

    clean_sites, bad_sites = (
        mechint.run(model, tokens, ["layers.*"], edits).values for tokens, edits in ((good, []), (bad, bad_edits))
    )
    names = [panel.name for panel in panels(model, ["resid_post", "state", "conv"], ["gate"], 3, "denoise")]
    assert names == ["resid_post", "state", "conv", "resid_post without gate"]
    for layer, p in itertools.product(range(3), (0, 3, 6)):
        put = lambda site, values, p=p: Edit(site, "replace", values[site][:, [p]], positions=[p])
        window = range(max(0, layer - 1), min(3, layer + 2))
        for k, kinds in enumerate(([layer], window, window)):
            sites = [f"layers.{i}.{('resid_post', 'state', 'conv')[k]}" for i in kinds]
            restored = last(bad, [*bad_edits, *(put(site, clean_sites) for site in sites)])
            lost = last(good, [put(site, bad_sites) for site in sites])
            expected = restored - last(bad, bad_edits), last(good, []) - lost
            for direction, value in zip(("denoise", "noise"), expected, strict=True):
                torch.testing.assert_close(found[direction][k, layer, p], value, rtol=0, atol=1e-10)
        severed = [put(f"layers.{i}.gate", bad_sites) for i in range(layer + 1, 3)]
        value = last(bad, [*bad_edits, put(f"layers.{layer}.resid_post", clean_sites), *severed])
        expected_severed = value - last(bad, bad_edits)
        torch.testing.assert_close(found["denoise"][3, layer, p], expected_severed, rtol=0, atol=1e-10)


@pytest.mark.slow_except("twin")
@pytest.mark.parametrize("corruption", ["twin", "noise"])
def test_pieces_do_not_change_a_trace(corruption: str) -> None:
    model = tiny_mamba(1, torch.float64).requires_grad_(False)
    prompts = loaders(model, 3, 3)[1].batches[0]
    config = dataclasses.replace(SMALL, corruption=corruption, draws=2, metric="answer_logprob")
    whole = CausalTracer(model, config).trace(prompts, None)
    tracer = CausalTracer(model, config)
    tracer.pieces = lambda batch: list(torch.arange(len(batch)).split(1))  # type: ignore[method-assign]
    for name, value in tracer.trace(prompts, None).items():
        torch.testing.assert_close(value, whole[name], rtol=0, atol=1e-10, equal_nan=True)


@pytest.mark.parametrize("metric", ["answer_logprob", "answer_prob"])
@pytest.mark.parametrize("corruption", ["twin", "noise"])
def test_an_answer_of_several_tokens_against_one_forward_for_each(metric: str, corruption: str) -> None:
    """The sequence's log-probability: the sum over its tokens, each from a run that ends before it."""
    model = tiny_mamba(3, torch.float64).requires_grad_(False)
    prompts = make_task(TASK).sample(3, "evaluation", 0)
    length, many = prompts.tokens.shape[1], 3
    answers = torch.randint(24, (3, many), generator=torch.Generator().manual_seed(0))
    grown, twins = (torch.cat([part, answers[:, :-1]], 1) for part in (prompts.tokens, prompts.twins))  # type: ignore[list-item]
    positions = torch.arange(length - 1, length + many - 1).expand(3, -1)
    asked = dataclasses.replace(
        prompts, tokens=grown, twins=twins, answers=answers, positions=positions, wrong=None,
        subject=torch.tensor([[1, 3]] * 3),
    )  # fmt: skip
    pair = Interchange(model, asked, Corruption(corruption, draws=2), "denoise", metric, whole=True)
    (tokens, edits), draws = pair.receiver, pair.draws

    def by_hand(tokens: torch.Tensor, edits: list[Edit]) -> torch.Tensor:
        total = torch.zeros(3 * draws, dtype=torch.float64)
        for k in range(many):
            end = length + k
            cut = [dataclasses.replace(e, value=e.value[:, :end] if e.positions is None else e.value) for e in edits]  # type: ignore[index]
            logits = mechint.run(model, tokens[:, :end], edits=cut).logits[:, -1]
            total += torch.stack([logits[i].log_softmax(-1)[answers[i // draws, k]] for i in range(3 * draws)])
        return (total if metric == "answer_logprob" else total.exp()).view(3, draws).mean(1)

    every = grown.repeat_interleave(draws, 0)
    torch.testing.assert_close(pair.clean, by_hand(every, []), rtol=0, atol=1e-10)
    torch.testing.assert_close(pair.corrupted_value, by_hand(tokens, edits), rtol=0, atol=1e-10)
    clean = mechint.run(model, every, ["layers.0.state"])["layers.0.state"]
    cells = [[Edit("layers.0.state", "replace", clean[:, [p]], positions=[p])] for p in (2, length - 1)]
    for value, cell in zip(pair.sweep(cells), cells, strict=True):
        torch.testing.assert_close(value, by_hand(tokens, [*edits, *cell]), rtol=0, atol=1e-10)
    says = mechint.run(model, grown).logits.argmax(-1).gather(1, positions)
    assert pair.right.tolist() == (says == answers).all(1).tolist()


def test_noise_has_the_measured_size_and_only_on_the_subject() -> None:
    model = tiny_mamba(1).requires_grad_(False)
    prompts = make_task(TaskConfig(name="facts", facts=24, values=6)).sample(400, "evaluation", 0)
    model.embedding.weight.requires_grad_(False)
    big = tiny_mamba(1, vocab_size=128).requires_grad_(False)
    pair = Interchange(big, prompts, Corruption("noise", 3.0, 3, 0), "denoise", "answer_logprob")
    value = pair.receiver[1][0].value
    assert isinstance(value, torch.Tensor)
    about = prompts.about()
    assert about is not None and about.sum(1).eq(2).all()
    about = about.repeat_interleave(3, 0)
    assert not value[~about].any()
    assert float(value[about].std()) == pytest.approx(3 * deviation(big), rel=0.02)
    assert not torch.equal(value[0], value[1])  # the draws of one prompt


def test_estimates_add_up_and_are_gradients_times_differences() -> None:
    model = tiny_mamba(4, torch.float64).requires_grad_(False)
    prompts = loaders(model, 6, 6)[1].batches[0]
    pair = Interchange(model, prompts, Corruption("twin"), "noise", "logit_diff")
    site, moved, values = "layers.0.u", 1e-6, pair.values(pair.receiver, ["layers.0.u"])["layers.0.u"]
    step = moved * (pair.values(pair.donor, [site])[site] - values)
    slopes = pair.sweep([[Edit(site, "add", step[:, [p]], positions=[p])] for p in range(7)] + [[]])
    numeric = (slopes[:-1] - slopes[-1]) / moved
    torch.testing.assert_close(pair.estimates([site])[site], numeric, rtol=1e-4, atol=1e-6)
    fine = pair.estimates(["embed"], points=200)["embed"].sum(0)
    torch.testing.assert_close(fine, pair.corrupted_value - pair.clean, rtol=0, atol=2e-3)


@pytest.mark.parametrize("method", ["twin", "noise", "mean", "values"])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_estimates_in_parts_of_the_rows_are_those_of_all(
    method: str, direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_mamba(1, torch.float64).requires_grad_(False)
    prompts = loaders(model, 6, 6)[1].batches[0][torch.arange(3)]
    shape = (3, prompts.tokens.shape[1], model.config.d_model)
    values = {"layers.0.out": torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)}
    corruption = Corruption(method, draws=2, mean=model.embeddings.mean(0).detach(), values=values)
    pair = Interchange(model, prompts, corruption, direction, "answer_logprob")
    sites, ran = ["layers.0.state", "layers.1.u", "embed"], []
    monkeypatch.setattr(interchange, "gradients", lambda *given: ran.append(len(given[1])) or gradients(*given))
    whole = pair.estimates(sites, points=2)
    assert ran == [pair.rows] * 2
    ran.clear()
    parts = pair.estimates(sites, points=2, memory_mib=1e-6)
    assert ran == [1] * 2 * pair.rows
    for site in sites:
        assert whole[site].shape == (shape[1], 3)
        torch.testing.assert_close(parts[site], whole[site], rtol=1e-9, atol=1e-12)
    assert bool((whole["layers.1.u"] != 0).any())


def test_roles_of_subjects_and_of_recall() -> None:
    task = make_task(TaskConfig(name="facts", facts=24, values=6))
    prompts = task.sample(50, "evaluation", 0)
    names, roles = task.roles(prompts)
    for tokens, role in zip(prompts.tokens, roles, strict=True):
        words = [task.decode(int(token)) for token in tokens]
        said = [names[r] for r in role]
        first = next(k for k, word in enumerate(words) if word.endswith("o") and word[0].isupper())
        assert said[first] == "first subject token" and said[first + 1] == "last subject token"
        assert said[-1] == "last token" and set(said[:first]) <= {"before"}
    recall = make_task(TASK)
    prompts = recall.sample(50, "evaluation", 0)
    names, roles = recall.roles(prompts)
    for tokens, role, answer in zip(prompts.tokens, roles, prompts.answers[:, -1], strict=True):
        said = [names[r] for r in role]
        assert tokens[said.index("key asked for")] == tokens[-1] and tokens[said.index("its value")] == answer
        assert said.count("other keys") == said.count("other values") == 1


def test_a_subject_of_one_token_and_one_that_ends_the_prompt() -> None:
    about = torch.tensor([[0, 1, 0, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 1, 1]]).bool()
    from mechint.tasks.base import subject_roles

    roles = subject_roles(about, torch.tensor([3, 4, 4]))
    assert roles.tolist() == [[0, 3, 4, 5, -1], [0, 1, 2, 3, 5], [0, 0, 0, 1, 5]]


def test_role_means_and_shares_by_hand() -> None:
    rng = np.random.default_rng(0)
    effects, roles = rng.normal(size=(2, 3, 4, 5)), rng.integers(0, 3, (5, 4))
    roles[0] = 0  # a prompt without the roles 1 and 2
    found = role_means(effects, roles, [0, 2])
    for n, k, layer, r in itertools.product(range(5), range(2), range(3), range(2)):
        at = roles[n] == (0, 2)[r]
        expected = effects[k, layer, at, n].mean() if at.any() else np.nan
        np.testing.assert_allclose(found[n, k, layer, r], expected)
    from mechint.utils.statistics import ClusterBootstrap

    total = rng.uniform(1, 2, 5)
    point, low, high, _ = ratio(ClusterBootstrap(range(5), 200, 0), found, ~np.isnan(found), total)
    there = ~np.isnan(found[:, 1, 2, 1])
    assert point[1, 2, 1] == pytest.approx(found[there, 1, 2, 1].mean() / total[there].mean())
    assert ((low <= point) & (point <= high)).all()


@pytest.mark.slow
def test_the_results_and_their_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_mamba(1).requires_grad_(False)
    discovery, evaluation = loaders(model)
    tracer = CausalTracer(model, SMALL, run_dir=tmp_path, key="a")
    found = tracer.run_analysis(discovery, evaluation)
    assert found["metrics"]["prompts_used"]["value"] == 12
    assert found["trace"]["unit"] == "share of the total effect"
    panels = found["trace"]["directions"]["denoise"]["panels"]
    assert [panel["name"] for panel in panels] == ["resid_post", "state", "dt", "resid_post without out"]
    last = np.array(panels[0]["value"])[-1]
    role = found["trace"]["roles"].index("query")
    assert last[role] == pytest.approx(1, abs=1e-4)  # the last residual at the last token is all there is
    assert not np.delete(last, role).any()
    assert panels[0]["attribution_correlation"] is not None and panels[3]["attribution_correlation"] is None
    tracer.save_results()
    about = write_results(tmp_path, "trace", "Causal tracing", SMALL, found)
    written = write_report(tmp_path)
    before = {path: path.read_bytes() for path in written}
    assert {path.name for path in written} >= {"trace_roles_denoise.png", "trace_layers_noise.png", "report.html"}
    assert {path: path.read_bytes() for path in write_report(tmp_path)} == before
    page = (tmp_path / "report.html").read_text()
    assert "&lt;b&gt;x.pt" in page and "<b>x.pt" not in page and 'src="http' not in page
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    assert log_wandb(tmp_path, "project", "trace").is_dir()
    (tmp_path / "examples.json").unlink()
    with pytest.raises(MechintError, match=r"examples\.json"):
        write_report(tmp_path)
    broken = {**about, **found, "trace": {**found["trace"], "roles": ["one"]}}
    write_json(tmp_path / "results.json", broken)
    with pytest.raises(MechintError, match="not valid"):
        write_report(tmp_path)


@pytest.mark.slow
def test_a_killed_trace_goes_on_to_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_mamba(2).requires_grad_(False)
    discovery, evaluation = loaders(model)
    whole = CausalTracer(model, SMALL).run_analysis(discovery, evaluation)
    first = CausalTracer(model, SMALL, run_dir=tmp_path, key="k")
    trace, left = first.trace, [2]

    def dies(*arguments: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return trace(*arguments)

    monkeypatch.setattr(first, "trace", dies)
    with pytest.raises(KeyboardInterrupt):
        first.run_analysis(discovery, evaluation)
    again = CausalTracer(model, SMALL, run_dir=tmp_path, key="k")
    assert json.dumps(again.run_analysis(discovery, evaluation)) == json.dumps(whole)
    assert again.stages.resumed == ["batch 0"]


@pytest.mark.slow_except("tiny_gpt2")
@pytest.mark.parametrize("family", [tiny_gpt2, tiny_llama])
def test_transformers_are_traced(family: Any) -> None:
    model = family().requires_grad_(False)
    discovery, evaluation = loaders(model)
    config = dataclasses.replace(SMALL, sites="usual", direction="denoise", corruption="noise", metric="answer_logprob")
    found = CausalTracer(model, config).run_analysis(discovery, evaluation)
    panels = {panel["name"]: panel for panel in found["trace"]["directions"]["denoise"]["panels"]}
    assert {"pattern", "resid_post without attn_out", "resid_post without mlp_out"} < set(panels)
    total = 1 if found["trace"]["unit"] != "metric" else found["metrics"]["total_effect"]["value"]
    assert panels["resid_post"]["value"][-1][-1] == pytest.approx(total, rel=1e-4)


def test_a_corruption_that_does_not_hurt_is_reported() -> None:
    model = tiny_mamba(2).requires_grad_(False)
    discovery, evaluation = loaders(model)
    for k, batch in enumerate(evaluation.batches):
        evaluation.batches[k] = dataclasses.replace(batch, twins=batch.tokens.clone())
    found = CausalTracer(model, dataclasses.replace(SMALL, direction="denoise")).run_analysis(discovery, evaluation)
    assert found["trace"]["unit"] == "metric"
    assert any("does not certainly lower" in note for note in found["notes"])
    assert not np.array(found["trace"]["directions"]["denoise"]["panels"][1]["value"]).any()
    assert np.array(found["trace"]["directions"]["denoise"]["panels"][1]["p"]).min() == 1


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_mamba().requires_grad_(False)
    with pytest.raises(MechintError, match=r"has no site 'pattern'.*it has resid_pre, norm"):
        CausalTracer(model, dataclasses.replace(SMALL, sites="pattern"))
    with pytest.raises(MechintError, match=r"no site 'stat'.*state"):
        CausalTracer(model, dataclasses.replace(SMALL, sever="stat"))
    assert "neither subjects nor" in str(refuse(SMALL, TaskConfig(name="text")))
    assert "no counterfactual twin" in str(refuse(SMALL, TaskConfig(name="prompt")))
    prompts = loaders(model, 4)[1].batches[0]
    for changes, asks, line in (  # before any work: a dry run asks the same
        ({"twins": None, "wrong": None}, {"corruption": "twin"}, "the corruption 'twin' needs counterfactual twins"),
        ({"wrong": None}, {}, "logit_diff needs counterfactual twins"),
        ({"twins": None, "subject": None}, {"corruption": "noise"}, "no subject and no counterfactual twins say what"),
    ):
        lacking = loaders(model, 4)
        monkeypatch.setattr(lacking[1].task, "roles", functools.partial(Task.roles, lacking[1].task))
        lacking[1].batches[0] = dataclasses.replace(prompts, **changes)
        with pytest.raises(MechintError, match=line):
            CausalTracer(model, dataclasses.replace(SMALL, **asks)).check(*lacking)
    with pytest.raises(MechintError, match="logit_diff needs counterfactual twins"):
        answer_metric("logit_diff", dataclasses.replace(prompts, wrong=None))
    with pytest.raises(MechintError, match=r"no metric 'logit_dif' .did you mean logit_diff"):
        answer_metric("logit_dif", prompts)
    for arguments, line in (
        ((Corruption("noisy"), "denoise", "logit_diff"), r"no corruption 'noisy' .did you mean noise.*; take twin"),
        ((Corruption("mean"), "denoise", "logit_diff"), r"'mean' needs the mean embedding of the subjects; give mean="),
        ((Corruption("values"), "denoise", "logit_diff"), r"'values' needs the values of at least one site"),
        ((Corruption(), "denoising", "logit_diff"), "no direction 'denoising'"),
        ((Corruption(), "denoise", "answer"), "no metric 'answer'"),
    ):
        with pytest.raises(MechintError, match=line):
            Interchange(model, prompts, *arguments)
    whole = TaskConfig(name="file", answers="whole")
    assert "one answer token" in str(refuse(SMALL, whole))
    assert refuse(dataclasses.replace(SMALL, metric="answer_logprob"), whole) is None
    task = make_task(TASK)
    plain = [PromptLoader(task, split, 6, 6, 0) for split in ("discovery", "evaluation")]
    never = tiny_mamba(0, vocab_size=40).requires_grad_(False)
    for loader in plain:
        logits, _ = never.trace(loader.batches[0].tokens, Tap())
        loader.batches[0] = dataclasses.replace(loader.batches[0], answers=logits[:, -1].argmin(-1, keepdim=True))
    with pytest.raises(MechintError, match="answers none of the 6 prompts"):
        CausalTracer(never, SMALL).run_analysis(*plain)
    run = RunConfig(checkpoint=str(tmp_path / "no.pt"), output_dir=str(tmp_path / "out"))
    with pytest.raises(MechintError, match="plain text has neither"):
        run_experiment(Experiment(run, TaskConfig(name="text"), {"trace": SMALL}))
