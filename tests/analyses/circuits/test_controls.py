"""Controls that search again: what they ask for, on which scale, and what they say of a known circuit."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mechint.analyses.circuits.bench import Bench
from mechint.analyses.circuits.controls import EXCHANGED, METRIC_OF, RANDOM_WEIGHTS, Controls, exchange
from mechint.analyses.circuits.ssm import SSMCircuitAnalyzer
from mechint.analyses.metrics import LEARNT, Answers
from mechint.analyses.random_weights import shuffled_weights
from mechint.tasks import Prompts
from mechint.utils import beside, program, progress
from mechint.utils.errors import MechintError
from tests.helpers.circuits import SMALL, bench, known_circuit, loaders, truth

VOCABULARY = 11


def some_answers(seed: int, scale: float = 1.0, cap: float = 0.0) -> tuple[Answers, Answers, torch.Tensor]:
    """The answers of two models with heads of their own on the same prompts, and inputs of the second one's head."""
    g = torch.Generator().manual_seed(seed)
    right = torch.randint(VOCABULARY, (4, 3), generator=g)
    wrong = (right + 1 + torch.randint(VOCABULARY - 1, (4, 3), generator=g)) % VOCABULARY
    prompts = Prompts(right, right, right, right, wrong, right[:, 0])
    full, other, read = (torch.randn(4, 3, 6, generator=g) for _ in range(3))
    heads = [torch.randn(VOCABULARY, 6, generator=g) for _ in range(2)]
    return Answers(prompts, full, heads[0], scale, cap), Answers(prompts, other, heads[1], scale, cap), read


@given(seed=st.integers(0, 10**6), kept=st.booleans(), learn=st.sampled_from(LEARNT))
def test_another_models_predictions_are_asked_for(seed: int, kept: bool, learn: str) -> None:
    theirs, mine, read = some_answers(seed)
    if kept:
        theirs.keep_logs()
    read.requires_grad_()
    found = mine.instead(theirs).metrics(read, learn)
    logs = (read @ mine.head.T).log_softmax(-1)
    wanted = (theirs.full @ theirs.head.T).log_softmax(-1).view_as(logs)
    kl = (wanted.exp() * (wanted - logs)).sum(-1).mean(-1)
    assert torch.allclose(found["kl"], kl, atol=1e-5)
    (slope,) = torch.autograd.grad(found[learn].sum(), read, retain_graph=True)
    own = kl.sum() if learn == "kl" else mine.metrics(read, learn)[learn].sum()
    assert torch.allclose(slope, torch.autograd.grad(own, read)[0], atol=1e-5)
    assert torch.equal(mine.instead(theirs).metrics(None)["accuracy"], theirs.metrics(None)["accuracy"])


@given(seed=st.integers(0, 10**6), kept=st.booleans(), scale=st.sampled_from([1.0, 0.5]), cap=st.sampled_from([0.0, 3]))
def test_exchanged_answers_are_those_of_a_head_with_exchanged_rows(
    seed: int, kept: bool, scale: float, cap: float
) -> None:
    """What says ``v`` in the model says ``order[v]`` in one whose head's row ``order[v]`` is its row ``v``."""
    own, _, read = some_answers(seed, scale, cap)
    if kept:
        own.keep_logs()
    order = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(seed))
    head = torch.empty_like(own.head)
    head[order] = own.head
    test = own.exchanged(order)
    twin = Answers(own.prompts, own.full.view_as(read), head, scale, cap)  # says by itself what is asked for
    wanted = own.instead(twin).metrics(read)["kl"]
    assert torch.allclose(test.metrics(read)["kl"], wanted, atol=1e-5)
    logits = own.logits_of(read)
    said = logits.log_softmax(-1).gather(-1, order[own.prompts.answers].unsqueeze(-1)).squeeze(-1).mean(-1)
    assert torch.allclose(test.metrics(read)["answer_logprob"], said, atol=1e-5)
    assert torch.equal(test.metrics(None)["answer_logprob"], own.metrics(None)["answer_logprob"])


def test_one_exchange_serves_all_prompts_and_moves_every_answer() -> None:
    benches = [bench(known_circuit()), bench(known_circuit())]
    order = exchange(benches, 0)
    assert order is not None and torch.equal(order.sort().values, torch.arange(len(order)))
    said = torch.cat(
        [ids.flatten() for b in benches for a in b.answers for ids in (a.answers, a.wrong) if ids is not None]
    )
    ids = said[said >= 0].unique()
    assert (order[ids] != ids).all() and set(order[ids].tolist()) == set(ids.tolist())
    rest = torch.ones(len(order), dtype=torch.bool).index_fill(0, ids, False)
    assert torch.equal(order[rest], torch.arange(len(order))[rest])
    for each in benches[0].answers:
        each.answers, each.wrong = torch.zeros_like(each.answers), None
    assert exchange(benches[:1], 0) is None


def test_shares_of_random_weights_are_of_the_trained_models_effect() -> None:
    trained = bench(known_circuit())
    model = shuffled_weights(trained.model, 1)
    random = Bench(model, trained.units, trained.ablation, trained.batches).asked_for(trained)
    mask = truth()
    kl = float(random.measure(mask)["kl"].mean())
    empty = float(trained.measure(torch.zeros_like(mask))["kl"].mean())
    assert random.faithful(mask, "kl") == pytest.approx(1 - kl / empty)
    assert random.ends is trained.ends
    some = random.sample(8)
    assert len(some) < len(random) and some.scale is not None and some.ends[1]["kl"].shape == (len(some),)
    first = random.measure(mask)["kl"][: len(some)]
    assert torch.allclose(some.measure(mask)["kl"], first, atol=1e-5)


def test_a_part_of_the_prompts_is_asked_for_the_same_exchange() -> None:
    own = bench(known_circuit())
    order = exchange([own], 3)
    assert order is not None
    test, mask = own.exchanged(order), truth()
    some = test.sample(8)
    assert torch.allclose(some.measure(mask)["kl"], test.measure(mask)["kl"][: len(some)], atol=1e-5)
    assert test.faithful(mask, "kl") < own.faithful(mask, "kl")


@pytest.mark.slow
def test_neither_control_reaches_a_known_circuit() -> None:
    config = dataclasses.replace(SMALL, search="budget", budget=8, seeds=1, steps=60)
    metrics: dict[str, Any] = SSMCircuitAnalyzer(known_circuit(), config).run_analysis(*loaders())["metrics"]
    for name in (RANDOM_WEIGHTS, EXCHANGED):
        assert metrics[METRIC_OF[name]]["high"] < metrics["faithfulness"]["low"], name


def test_a_control_that_fails_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise MechintError("no such dictionary")

    monkeypatch.setattr(SSMCircuitAnalyzer, "units_of", fail)
    config = dataclasses.replace(SMALL, search="budget", budget=8, seeds=1, steps=2, method="weight_magnitude")
    results: dict[str, Any] = SSMCircuitAnalyzer(known_circuit(), config).run_analysis(*loaders())
    assert METRIC_OF[RANDOM_WEIGHTS] not in results["metrics"] and METRIC_OF[EXCHANGED] not in results["metrics"]
    assert "The control on random weights was not measured: no such dictionary." in results["notes"]


# ---- in processes beside this one -------------------------------------------------------------------------------


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Sets the number of threads, as in a command of this package on so many cores."""
    if sys.platform != "linux":
        pytest.skip("other systems make no second process")
    monkeypatch.setattr(program, "gives_way", True)
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def studied(run_dir: Path) -> tuple[dict[str, Any], str, list[Any]]:
    """The results of a small search, its history.jsonl, and the points of its curves by curve."""
    points: dict[str, list[Any]] = {}
    config = dataclasses.replace(SMALL, search="smallest", seeds=2, steps=4)
    with progress.listening(lambda curve, values: points.setdefault(curve, []).append(dict(values))):
        analyzer = SSMCircuitAnalyzer(known_circuit(), config, run_dir=run_dir)
        results = analyzer.run_analysis(*loaders())
        analyzer.save_results()
    return results, (run_dir / "history.jsonl").read_text(), sorted(points.items())


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_controls_made_in_processes_beside_this_one_are_those_made_here(
    count: int, tmp_path: Path, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    here, made = os.getpid(), tmp_path / "made"
    measured = Controls.measured

    def noted(self: Controls, name: str) -> Any:
        with made.open("a") as file:
            file.write(f"{name} {'here' if os.getpid() == here else 'beside'}\n")
        return measured(self, name)

    monkeypatch.setattr(Controls, "measured", noted)
    threads(count)
    found = {}
    for place in ("beside", "here"):
        with monkeypatch.context() as patch:
            if place == "here":
                patch.setattr(beside, "hands", lambda work, device: 0)
            found[place] = studied(tmp_path / f"{count} {place}")
        assert sorted(made.read_text().splitlines()) == [f"{name} {place}" for name in (EXCHANGED, RANDOM_WEIGHTS)]
        made.unlink()
    assert found["here"] == found["beside"]
    assert {RANDOM_WEIGHTS, EXCHANGED} <= {curve for curve, _ in found["beside"][2]}
    assert METRIC_OF[EXCHANGED] in found["beside"][0]["metrics"]
    assert "its work is done here" not in capfd.readouterr().err


@pytest.mark.parametrize("lost", [pytest.param(RANDOM_WEIGHTS, marks=pytest.mark.slow), EXCHANGED])
def test_a_control_whose_process_dies_is_made_here(
    lost: str, tmp_path: Path, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    threads(2)
    whole = studied(tmp_path / "whole")
    here, control = os.getpid(), Controls.control

    def killed(self: Controls, name: str, bench: Any, held_out: Any) -> Any:
        if os.getpid() != here and name == lost:
            os._exit(9)
        return control(self, name, bench, held_out)

    monkeypatch.setattr(Controls, "control", killed)
    results, history, _ = studied(tmp_path / "killed")
    assert (results, history) == whole[:2]
    assert "note: a process beside this one ended with status 9; its work is done here" in capfd.readouterr().err


def test_no_process_is_left_where_the_analysis_fails(
    tmp_path: Path, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads(2)

    def fail(*_: Any) -> None:
        raise MechintError("no evidence")

    monkeypatch.setattr(SSMCircuitAnalyzer, "measured", fail)
    with pytest.raises(MechintError, match="no evidence"):
        studied(tmp_path)
    assert not multiprocessing.active_children()
