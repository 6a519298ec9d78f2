"""One number for one question: which answers are right, and what they are worth, is the same in every analysis."""

from __future__ import annotations

import dataclasses
import math
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mechint
from mechint.analyses.ablation import Ablation
from mechint.analyses.circuits.bench import Bench
from mechint.analyses.circuits.ssm import SSMCircuitAnalyzer, SSMCircuitConfig
from mechint.analyses.comparison.analyzer import Profiler
from mechint.analyses.comparison.options import CompareConfig
from mechint.analyses.interchange import Corruption, Interchange
from mechint.analyses.loader import PromptLoader
from mechint.analyses.metrics import LEARNT, METRICS, Answers, answer_metric, answered, logit_differences, logprobs
from mechint.analyses.patching.analyzer import Patcher
from mechint.analyses.patching.options import PatchConfig
from mechint.analyses.study.ablation_tests import together
from mechint.analyses.study.analyzer import Study
from mechint.analyses.study.options import StudyConfig
from mechint.analyses.study.steps_discovery import setup
from mechint.analyses.tracing.analyzer import CausalTracer
from mechint.analyses.tracing.options import TraceConfig
from mechint.analyses.unit_effects import Effects
from mechint.interventions import prefix
from mechint.interventions.prefix import divergence
from mechint.interventions.units import Units
from mechint.tasks import TASKS, Prompts, TaskConfig, make_task
from mechint.tasks.answers import accepted_by
from mechint.training.trainer import evaluate
from mechint.utils.errors import MechintError
from tests.helpers.answers import HalfRight, by_hand, reference
from tests.helpers.builders import tiny_mamba
from tests.helpers.examples import examples

WITH_TOKENIZER = ("file", "prompt")
SWEPT = ("greater_than",)
"""Tasks on which the whole sweeps run, which cost seconds; elsewhere what they start from is compared."""


@pytest.fixture(scope="module", params=[name for name in TASKS if name not in WITH_TOKENIZER])
def asked(request: pytest.FixtureRequest) -> tuple[Any, PromptLoader, PromptLoader]:
    """A random model, and loaders of one task of which it answers about half."""
    task = make_task(TaskConfig(name=request.param, length=12))
    model = tiny_mamba(3, vocab_size=task.vocab_size).requires_grad_(False).eval()
    loaders = (HalfRight(model, task, split, 8, 4, 0) for split in ("discovery", "evaluation"))
    return model, *loaders


@pytest.mark.slow_except("recall|counters|greater_than|text")
def test_every_analysis_has_one_accuracy(asked: tuple[Any, PromptLoader, PromptLoader]) -> None:
    """Over all answers of a prompt, or over the last one where an analysis asks for that alone."""
    model, train, val = asked
    found: dict[str, float] = {}
    config = CompareConfig(prompts=8, eval_prompts=8, bootstrap=100, lengths="4", measure=False)
    found["compare"] = Profiler(model, config).run_analysis(train, val)["metrics"]["accuracy"]["value"]
    circuit = SSMCircuitAnalyzer(model, SSMCircuitConfig(min_accuracy=0.0, bootstrap=100)).check_accuracy(val)
    every = reference(model, val.batches, "accuracy")
    assert 0 < sum(every) < len(every)
    kind = next(iter(model.unit_kinds.values()))
    units = Units(model, kind)
    bench = Bench(model, units, Ablation(model, units, "zero", train.batches, False), val.batches)
    found["masks"] = float(torch.cat([bench.values(k, None)["accuracy"] for k in range(len(bench.batches))]).mean())
    found["training"] = evaluate(model, together(val.batches), 8)[1]
    if val.task.name != "text":
        assert circuit is not None
        found["circuit"] = circuit["value"]
    assert found == pytest.approx({name: sum(every) / len(every) for name in found})
    last = [batch.last() for batch in val]
    alone = reference(model, last, "accuracy")
    right, _ = answered(val, model)
    assert right.tolist() == alone
    if val.task.has_twins:
        share = sum(alone) / len(alone)
        if val.task.name in SWEPT:
            traced = CausalTracer(model, TraceConfig(bootstrap=100, corruption="twin", sites="out", sever=""))
            patched = Patcher(model, PatchConfig(bootstrap=100))
            for analyzer in (traced, patched):
                metrics = analyzer.run_analysis(train, val)["metrics"]
                assert metrics["accuracy_full"]["value"] == pytest.approx(share)
        study = Study(model, StudyConfig(bootstrap=100, skip_steps="8,9"))
        assert setup(study.begin(train, val))["report"]["accuracy"]["value"] == pytest.approx(share)
        pair = [Interchange(model, batch, Corruption("twin"), "noise", "answer_logprob").right for batch in val]
        assert torch.cat(pair).double().tolist() == alone


@pytest.mark.parametrize("name", ["answer_logprob", "logit_diff"])
def test_every_analysis_has_one_metric(asked: tuple[Any, PromptLoader, PromptLoader], name: str) -> None:
    model, train, val = asked
    if name == "logit_diff" and not val.task.has_twins:
        pytest.skip("no wrong answers")
    every = reference(model, val.batches, name)
    kind = next(iter(model.unit_kinds.values()))
    units = Units(model, kind)
    bench = Bench(model, units, Ablation(model, units, "zero", train.batches, False), val.batches)
    masks = torch.cat([bench.values(k, None)[name] for k in range(len(bench.batches))])
    assert masks.tolist() == pytest.approx(every, abs=1e-4)
    effects = Effects(model, ["gated"], [0], "zero", train.batches, False, name)
    assert torch.cat([effects.clean(batch) for batch in val]).tolist() == pytest.approx(every, abs=1e-4)
    last = [batch.last() for batch in val]
    pair = [Interchange(model, b, Corruption("none"), "noise", name).clean for b in val]
    assert torch.cat(pair).tolist() == pytest.approx(reference(model, last, name), abs=1e-4)


def whole_answers() -> tuple[Any, Prompts]:
    """Prompts whose answers are three tokens of one: the first two prompts say all, the third two of three."""
    model = tiny_mamba(5).requires_grad_(False)
    tokens = torch.randint(24, (4, 9), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(6, 9).expand(4, -1)
    said = mechint.run(model, tokens, logits_at=positions).logits.argmax(-1)
    said[2, 0] = (said[2, 0] + 1) % 24
    said[3] = (said[3] + 1) % 24
    return model, Prompts(tokens, positions, said, None, None, torch.arange(4), whole=True)


def test_a_whole_answer_is_right_when_all_of_it_is() -> None:
    model, prompts = whole_answers()
    logits = mechint.run(model, prompts.tokens, logits_at=prompts.positions).logits
    assert prompts.correct(logits).tolist() == [1, 1, 0, 0] == by_hand(prompts, logits, "accuracy")
    assert evaluate(model, prompts, 4)[1] == 0.5
    units = Units(model, next(iter(model.unit_kinds.values())))
    found = Bench(model, units, Ablation(model, units, "zero", [prompts], False), [prompts]).values(0, None)
    logprob = by_hand(prompts, logits, "answer_logprob")
    assert found["accuracy"].tolist() == [1, 1, 0, 0]
    assert found["answer_logprob"].tolist() == pytest.approx(logprob, abs=1e-4)
    assert found["loss"].tolist() == pytest.approx([-value / 3 for value in logprob], abs=1e-4)
    assert answer_metric("loss", prompts)(logits).tolist() == pytest.approx(found["loss"].tolist(), abs=1e-4)
    assert answer_metric("answer_prob", prompts)(logits).tolist() == pytest.approx([math.exp(v) for v in logprob])
    with pytest.raises(MechintError, match="one answer token"):
        answer_metric("logit_diff", prompts)


def test_several_right_answers_by_hand() -> None:
    """Chances 0.1 0.2 0.3 0.4; 1 and 2 are right, 0 and 3 wrong: 0.5 against 0.5, and the likeliest is wrong."""
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().view(1, 1, 4)
    one = torch.zeros(1, 1, dtype=torch.long)
    prompts = Prompts(
        one,
        one,
        one + 1,
        one,
        one,
        one[0],
        accepted=torch.tensor([[[1, 2, -1]]]),
        rejected=torch.tensor([[[0, 3, -1]]]),
    )
    values = {name: float(answer_metric(name, prompts)(logits)) for name in METRICS}
    assert values == pytest.approx(
        {"logit_diff": 0.0, "answer_logprob": math.log(0.5), "answer_prob": 0.5, "loss": -math.log(0.5)}, abs=1e-6
    )
    assert float(prompts.correct(logits)) == 0
    assert float(prompts.correct(logits.flip(-1))) == 0  # 0, which is rejected
    assert float(prompts.correct(torch.tensor([[[0.0, 0, 1, 0]]]))) == 1


def test_divergence_by_hand() -> None:
    """KL((½, ½) ‖ (¼, ¾)) = ½ log 2 + ½ log ⅔."""
    even, other = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert float(divergence(even, other)) == pytest.approx(expected, abs=1e-6)
    assert float(divergence(even, other, even.exp())) == float(divergence(even, other))


@given(rows=st.integers(1, 40), least=st.integers(1, 6), held=st.integers(1, 400), wide=st.booleans())
@settings(max_examples=examples(30), deadline=None)
def test_blocks_hold_every_row_once(rows: int, least: int, held: int, wide: bool) -> None:
    tensor = torch.zeros(rows, 11 if wide else 1)
    with mock.patch.multiple(prefix, FEWEST_ROWS=least, IN_CACHE=held):
        found = prefix.blocks(tensor)
    assert [k for rows_of in found for k in range(rows)[rows_of]] == list(range(rows))
    assert all(one.stop - one.start >= min(least, rows) for one in found)


@pytest.mark.parametrize("learn", [None, *LEARNT])
@pytest.mark.parametrize("exchanged", [False, True])
def test_metrics_and_their_gradients_are_the_same_in_blocks_and_whole(learn: str | None, exchanged: bool) -> None:
    """Every bit of one pass over all rows; beside it the gradient of the plain formula, by autograd in float64."""
    random = torch.Generator().manual_seed(5)
    normal = lambda *shape: torch.randn(*shape, generator=random)
    ids = lambda *shape: torch.randint(0, 50, shape, generator=random)
    prompts = Prompts(ids(6, 4), torch.arange(4).expand(6, -1), ids(6, 4), ids(6, 4), ids(6, 4), ids(6))
    head, full, read = normal(50, 8), normal(6, 4, 8), normal(6, 4, 8)
    order = torch.randperm(50, generator=random)

    def measured(held: int) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        with mock.patch.object(prefix, "IN_CACHE", held):
            answers = Answers(prompts, full, head, 0.7, 9.0)
            answers = answers.exchanged(order) if exchanged else answers
            leaf = read.clone().requires_grad_(learn is not None)
            found = answers.metrics(leaf, learn)
            slope = None if learn is None else torch.autograd.grad(found[learn].sum(), leaf)[0]
        return {name: value.detach() for name, value in found.items()}, slope

    (small, small_slope), (whole, whole_slope) = measured(900), measured(1 << 20)
    assert small.keys() == whole.keys() and all(torch.equal(small[name], whole[name]) for name in whole)
    if learn is None:
        return
    assert small_slope is not None and whole_slope is not None and torch.equal(small_slope, whole_slope)
    leaf = read.double().requires_grad_()
    logits = lambda x: 9.0 * torch.tanh(x @ head.double().T * 0.7 / 9.0)
    logs = logits(leaf).log_softmax(-1)
    become = order if exchanged else torch.arange(50)
    right, wrong = (logs.gather(-1, become[each].unsqueeze(-1))[..., 0] for each in (prompts.answers, prompts.wrong))
    asked = logits(full.double()).log_softmax(-1)[..., torch.argsort(become)]
    plain = {"kl": (asked.exp() * (asked - logs)).sum(-1), "answer_logprob": right, "loss": -right,
             "logit_diff": right - wrong}[learn]  # fmt: skip
    (expected,) = torch.autograd.grad(plain.mean(-1).sum(), leaf)
    torch.testing.assert_close(small_slope.double(), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(small[learn].double(), plain.mean(-1).detach(), rtol=1e-4, atol=1e-5)


def test_one_of_several_ids_is_accepted_and_no_id_is_none() -> None:
    said = torch.tensor([[3], [0], [2]])
    accepted = torch.tensor([[[1, 3]], [[1, -1]], [[2, -1]]])
    assert accepted_by(said, accepted).tolist() == [[True], [False], [True]]


def test_the_terms_of_the_metrics_by_hand() -> None:
    """Chances 0.1 0.2 0.3 0.4 where 1 and 2 are right and 0 is wrong: log 0.5, and log 0.5 - log 0.1."""
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().view(1, 1, 4) + 7.0
    one = torch.zeros(1, 1, dtype=torch.long)
    prompts = Prompts(one, one, one + 1, one, one, one[0], accepted=torch.tensor([[[1, 2]]]))
    assert logprobs(logits, prompts).tolist() == [[pytest.approx(math.log(0.5), abs=1e-6)]]
    assert logit_differences(logits, prompts).tolist() == [[pytest.approx(math.log(5.0), abs=1e-6)]]
    with pytest.raises(ValueError, match="no wrong answers"):
        logit_differences(logits, dataclasses.replace(prompts, wrong=None))
