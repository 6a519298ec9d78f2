"""Probes as an analysis: what is read, control labels by hand, the page, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mechint
from mechint.analyses.loader import PromptLoader
from mechint.analyses.probes import analyzer as module
from mechint.analyses.probes import fitting
from mechint.analyses.probes.analyzer import ANALYSIS, Prober, read
from mechint.analyses.probes.control_labels import distance, labeling, types
from mechint.analyses.probes.fitting import Labelled, probe
from mechint.analyses.probes.options import ProbeConfig, refuse
from mechint.analyses.probes.results import adjusted, best_of
from mechint.report import write_report
from mechint.tasks import TaskConfig, make_task
from mechint.utils.errors import MechintError
from mechint.utils.files import write_json
from tests.helpers.builders import tiny_mamba
from tests.helpers.run_files import write_results

TASK = TaskConfig(name="long_copy", values=3, length=8)
SMALL = ProbeConfig(
    labels="answer", sites="resid_post", layers="0", method="lasso", labelings=2, shuffles=2, controls=0, prompts=48,
    eval_prompts=48, bootstrap=100,
)  # fmt: skip


def loaders(count: int = 48, task: TaskConfig = TASK) -> list[PromptLoader]:
    return [PromptLoader(make_task(task), split, count, 20, 0) for split in ("discovery", "evaluation")]


def model() -> Any:
    return tiny_mamba(vocab_size=4, dtype=torch.float64).requires_grad_(False)


# ---- control labels ----------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 9), min_size=4, max_size=40), st.integers(2, 4), st.integers(0, 99))
def test_a_control_label_is_a_function_of_the_token_and_as_frequent_as_the_real_ones(
    kinds: list[int], classes: int, seed: int
) -> None:
    train = np.array([0, 1, *kinds])
    labels = np.arange(len(train)) % classes
    first, second = labeling(train, train[::-1].copy(), labels, seed)
    assert len(set(zip(train.tolist(), first.tolist(), strict=True))) == len(set(train.tolist()))
    assert (second == first[::-1]).all() and set(first.tolist()) <= set(labels.tolist())
    dealt = {kind: label for kind, label in zip(train.tolist(), first.tolist(), strict=True)}
    counts = np.bincount(list(dealt.values()), minlength=classes)
    assert counts.max() - counts.min() <= 2  # real labels are equally frequent
    again, _ = labeling(train, train, labels, seed)
    assert (again == first).all()


def test_the_control_token_is_the_nearest_that_differs() -> None:
    learnt, _ = loaders()
    assert distance(learnt.batches) == 1  # the query is always the same
    assert (types(learnt.batches, 1) == torch.cat([b.tokens[:, -2] for b in learnt]).numpy()).all()
    assert distance(loaders(task=TaskConfig(name="recall", pairs=2, keys=12, values=12))[0].batches) == 0
    same = dataclasses.replace(learnt.batches[0], tokens=torch.ones_like(learnt.batches[0].tokens))
    with pytest.raises(MechintError, match="all prompts have the same tokens"):
        distance([same])


@pytest.mark.parametrize("task", ["recall", "selective_copy", "induction"])
def test_control_labels_hang_on_the_token_at_the_answer_that_is_probed(task: str) -> None:
    """These tasks ask several times in a prompt, and sites are read where the last answer is predicted."""
    learnt, _ = loaders(task=TaskConfig(name=task, pairs=3, keys=12, values=12, length=12))
    back = distance(learnt.batches)
    expected, others = [], []
    for batch in learnt.batches:
        assert batch.positions.shape[1] > 1
        for row in range(len(batch)):
            expected.append(int(batch.tokens[row, int(batch.positions[row].max()) - back]))
            others.append(int(batch.tokens[row, int(batch.positions[row].min()) - back]))
    assert types(learnt.batches, back).tolist() == expected != others


def test_a_control_token_is_one_that_every_prompt_has() -> None:
    """Prompts of 8 tokens differ at the first one alone; with shorter ones beside them no token is that far back."""
    learnt, _ = loaders()
    long = learnt.batches[0]
    alike = torch.ones_like(long.tokens)
    alike[:, 0] = torch.arange(len(long)) % 3
    long = dataclasses.replace(long, tokens=alike)
    assert distance([long]) == 7
    short = dataclasses.replace(long, tokens=alike[:, 1:], positions=long.positions - 1)
    with pytest.raises(MechintError, match="all prompts have the same tokens"):
        distance([short, long])


def test_a_label_that_is_always_the_same_has_no_control() -> None:
    kinds = np.arange(6)
    with pytest.raises(MechintError, match="so frequent that no control labeling has two"):
        labeling(kinds, kinds, np.zeros(6, dtype=int), 0)


# ---- the numbers -------------------------------------------------------------------------------------------------


def test_a_site_is_read_where_the_last_answer_is_predicted() -> None:
    net, (learnt, _) = model(), loaders()
    found = read(net, learnt.batches, "layers.1.state")
    by_hand = [mechint.run(net, batch.tokens, ["layers.1.state"])["layers.1.state"][:, -1] for batch in learnt]
    np.testing.assert_allclose(found, torch.cat(by_hand).flatten(1).numpy(), rtol=1e-10, atol=1e-12)


def planted(monkeypatch: pytest.MonkeyPatch, value: Any) -> None:
    """Makes activations a function of the tokens, instead of a model's."""

    def read(net: Any, batches: Any, site: str) -> Any:
        tokens = torch.cat([batch.tokens for batch in batches])
        noise = torch.randn(len(tokens), 7, generator=torch.Generator().manual_seed(len(tokens)))
        return torch.cat([torch.nn.functional.one_hot(value(tokens), 3) + 0.0, noise], 1).double().numpy()

    monkeypatch.setattr(module, "read", read)


@pytest.mark.slow
def test_the_answer_is_selective_and_a_token_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a site holds the answer, control labels are not read; where it holds the token before, only they are."""
    planted(monkeypatch, lambda tokens: tokens[:, 0])
    row = Prober(model(), SMALL).run_analysis(*loaders())["probes"][0]
    assert row["accuracy"]["value"] == 1.0 and row["selectivity"]["low"] > 0.2 and row["p"] < 0.05
    assert row["classes"] == 3 and row["units_used"] >= 2
    planted(monkeypatch, lambda tokens: tokens[:, -2])
    row = Prober(model(), SMALL).run_analysis(*loaders())["probes"][0]
    assert row["control_labels"]["value"] > 0.9 and row["selectivity"]["high"] < 0


def test_numbers_are_those_of_the_probe_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "STRENGTHS", 3)
    net, (learnt, asked) = model(), loaders()
    analyzer = Prober(net, dataclasses.replace(SMALL, layers="all"), run_dir=tmp_path, key="a")
    raw = analyzer.run_analysis(learnt, asked)
    halves = []
    for loader in (learnt, asked):
        y = torch.cat([batch.answers[:, -1] for batch in loader]).numpy()
        halves.append(Labelled(read(net, loader.batches, "layers.1.resid_post"), y, loader.templates()))
    by_hand = probe(*halves, "lasso", "answer", shuffles=2, draws=100, seed=0)
    row = raw["probes"][1]
    said = [int(y) for batch in asked for y in batch.answers[:, -1]]
    assert row["most_frequent"] == max(said.count(y) for y in said) / len(said)
    assert row["layer"] == 1 and row["accuracy"] == by_hand.score and row["shuffled"] == by_hand.shuffled
    assert row["p"] == min(1.0, 2 * by_hand.p) or row["p"] == max(
        r["p"] for r in adjusted([{"p": by_hand.p}, {"p": by_hand.p}])
    )
    [path] = analyzer.save_results()
    weights = torch.load(path, weights_only=True)["answer layers.1.resid_post"]
    torch.testing.assert_close(weights.double(), torch.from_numpy(by_hand.weights), rtol=1e-5, atol=1e-6)
    assert "100 draws cannot show" not in " ".join(raw["notes"])


def test_the_best_is_chosen_without_held_out_prompts() -> None:
    row = lambda label, folds, accuracy: {"label": label, "across_folds": folds, "accuracy": accuracy}
    rows = [row("a", 0.5, 0.9), row("b", 0.1, 0.1), row("a", 0.6, 0.2)]
    assert best_of(rows) == [rows[2], rows[1]]


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("change", "said"), [
    ({"labels": "anser"}, "no label 'anser' .did you mean answer.*answer, latest"),
    ({"sites": "resid"}, "no site 'resid'"),
    ({"layers": "7"}, "no layer 7"),
    ({"labels": ""}, "no label is named"),
])  # fmt: skip
def test_labels_and_sites_that_there_are_not_are_refused_before_work(change: dict[str, str], said: str) -> None:
    with pytest.raises(MechintError, match=said):
        Prober(model(), dataclasses.replace(SMALL, **change)).check(*loaders())


def test_too_few_prompts_and_one_prompt_are_refused() -> None:
    with pytest.raises(MechintError, match="held-out templates are too few"):
        Prober(model(), SMALL).check(*loaders(8))
    assert "one prompt" in str(refuse(SMALL, TaskConfig(name="prompt"))) and refuse(SMALL, TASK) is None


# ---- the page ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_report(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, controls=1, labels="usual")
    analyzer = Prober(model(), config, run_dir=tmp_path, key="a")
    found = analyzer.run_analysis(*loaders())
    analyzer.save_results()
    about = write_results(tmp_path, "probe", "Probes", config, found, task="long_copy")
    assert len(ANALYSIS.summary(found)) >= 4
    assert {path.name for path in write_report(tmp_path)} == {"probe_profile.png", "probe_report.md", "report.html"}
    page = (tmp_path / "report.html").read_text()
    assert "&lt;b&gt;x.pt" in page and 'src="http' not in page and "control labels" in page
    rows = mechint.results(tmp_path).rows()
    assert any(row["value"] == found["probes"][0]["accuracy"]["value"] for row in rows)
    write_json(tmp_path / "results.json", {**about, **found, "probes": [{}]})
    with pytest.raises(MechintError, match=r"results\.json"):
        write_report(tmp_path)
