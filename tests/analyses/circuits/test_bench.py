"""What a bench measures against one forward for each mask, on batches of several sizes."""

from __future__ import annotations

import dataclasses
import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import mechint
from mechint.analyses.circuits import bench as benches
from mechint.analyses.circuits.bench import METRICS, Bench, attribute, check_effect, cost, loss_of, removed
from mechint.analyses.circuits.evidence import Evidence
from mechint.analyses.loader import PromptLoader
from mechint.tasks import make_task
from mechint.utils.errors import MechintError
from tests.helpers.circuits import SMALL, TASK, uneven


@pytest.fixture(scope="module")
def bench() -> Bench:
    return uneven()


def mask(seed: int = 0) -> torch.Tensor:
    return (torch.rand(28, generator=torch.Generator().manual_seed(seed)) < 0.6).double()


def by_hand(bench: Bench, gates: torch.Tensor, part: int | None = None) -> dict[str, torch.Tensor]:
    """The metrics of every prompt, from the logits of a forward whose channels are multiplied by the gates."""
    found: dict[str, list[torch.Tensor]] = {name: [] for name in ("kl", "loss", "accuracy")}
    for batch in bench.batches if part is None else [bench.batches[part]]:
        edits = [
            mechint.Edit(f"layers.{i}.{site}", "scale", own)
            for i, own in enumerate(gates.view(2, 14))
            for site in ("u", "gated")
        ]
        full, logits = (
            mechint.run(bench.model, batch.tokens, edits=given, logits_at=batch.positions).logits.log_softmax(-1)
            for given in ((), edits)
        )
        right = logits.gather(-1, batch.answers[..., None])[..., 0]
        found["kl"].append((full.exp() * (full - logits)).sum(-1).mean(-1))
        found["loss"].append(-right.mean(-1))
        found["accuracy"].append((logits.argmax(-1) == batch.answers).double().mean(-1))
    return {name: torch.cat(parts) for name, parts in found.items()}


def test_every_prompt_counts_once_whatever_its_batch(bench: Bench) -> None:
    expected, full = by_hand(bench, mask()), by_hand(bench, torch.ones(28))
    found = bench.measure(mask())
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, atol=1e-5, rtol=1e-5, check_dtype=False)
    assert cost(bench, "kl", mask()) == pytest.approx(float(expected["kl"].mean()), rel=1e-4)
    square = (expected["loss"] - full["loss"]).square()
    assert cost(bench, "loss", mask()) == pytest.approx(float(square.mean()), rel=1e-4)
    assert cost(bench, "accuracy", mask()) == pytest.approx(float(square.mean()), rel=1e-4)
    loss, metric = loss_of(bench, "perplexity", 1, mask())
    part, of_full = by_hand(bench, mask(), 1)["loss"], by_hand(bench, torch.ones(28), 1)["loss"]
    assert float(loss) == pytest.approx(float((part - of_full).square().mean()), rel=1e-4)
    assert metric == pytest.approx(float(np.exp(part.mean())), rel=1e-5)
    assert len(bench) == 10


def test_a_circuit_is_measured_once_and_gates_between_0_and_1_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    forwards, run = [0], benches.read_by_head

    def counted(*arguments: Any) -> torch.Tensor:
        forwards[0] += 1
        return run(*arguments)

    monkeypatch.setattr(benches, "read_by_head", counted)
    own, fresh = uneven(), uneven()
    first, forwards[0] = own.measure(mask()), 0
    for again in (own.measure(mask().clone()), fresh.measure(mask())):
        assert all(torch.equal(again[name], values) for name, values in first.items())
    assert forwards[0] == 3  # those of the fresh one
    cost(own, "kl", mask())
    assert forwards[0] == 3
    own.values(0, mask(), "kl")  # what is learnt from needs a forward
    own.values(0, mask().requires_grad_())
    own.values(0, 0.5 * mask())
    own.values(0, 0.5 * mask())
    assert forwards[0] == 7
    assert not torch.equal(own.values(0, mask())["kl"], own.values(0, mask(1))["kl"])
    assert not torch.equal(own.values(0, mask())["kl"], own.values(1, mask())["kl"][:1])


def test_other_answers_are_measured_anew(bench: Bench) -> None:
    order = torch.arange(len(bench.answers[0].head)).roll(1)
    before = bench.measure(mask())
    other = bench.exchanged(order).measure(mask())
    assert not torch.allclose(before["answer_logprob"], other["answer_logprob"])
    assert torch.equal(bench.measure(mask())["answer_logprob"], before["answer_logprob"])


@pytest.mark.parametrize("metric", ["kl", "loss", "perplexity"])
def test_faithfulness_is_the_share_of_the_way_from_nothing_to_the_model(bench: Bench, metric: str) -> None:
    column, read = METRICS[metric].column, METRICS[metric].read
    circuit, full, empty = (
        float(read(by_hand(bench, gates)[column].mean())) for gates in (mask(), torch.ones(28), torch.zeros(28))
    )
    share = (circuit - empty) / (full - empty)
    assert bench.faithful(mask(), metric) == pytest.approx(share, rel=1e-3)
    assert bench.likeness(mask(), metric) == pytest.approx(-abs(1 - share), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(("metric", "sign"), [("kl", -1), ("loss", -1), ("answer_logprob", 1), ("accuracy", -1)])
def test_attributions_are_slopes_half_way_between_points(bench: Bench, metric: str, sign: int) -> None:
    """Two points: all gates at 1/4 and at 3/4; a prompt counts once, whatever its batch."""
    found, step = attribute(bench, metric, points=2), 1e-4
    name = "loss" if metric in ("answer_logprob", "accuracy") else metric
    flip = -1 if metric == "answer_logprob" else 1
    for unit in (20,):
        slope = 0.0
        for point in (0.25, 0.75):
            ends = []
            for side in (step, -step):
                gates = torch.full((28,), point, dtype=torch.float64)
                gates[unit] += side
                ends.append(float(by_hand(bench, gates)[name].mean()))
            slope += (ends[0] - ends[1]) / (2 * step) / 2
        assert float(found[unit]) == pytest.approx(sign * flip * slope, rel=2e-2, abs=1e-6)


def test_one_unit_more_is_dropped_in_each_column(bench: Bench) -> None:
    units = [k for k in range(28) if mask()[k]][:3]
    found = removed(bench, mask(), units, "loss")
    assert found.shape == (10, 3)
    for k, unit in enumerate(units):
        without = mask()
        without[unit] = 0
        torch.testing.assert_close(found[:, k], by_hand(bench, without)["loss"], atol=1e-5, rtol=1e-5)


def test_a_sample_keeps_a_share_of_each_length_and_at_least_two(bench: Bench) -> None:
    assert [len(part) for part in bench.sample(3).batches] == [3] and len(bench.sample(1)) == 2
    assert len(bench.sample(100)) == 4  # no more than the first batch has
    assert torch.equal(bench.sample(3).batches[0].tokens, bench.batches[0].tokens[:3])


def test_an_effect_of_nothing_is_refused() -> None:
    ends = lambda gap: ({"loss": torch.tensor([1.0, 2.0]).double()}, {"loss": torch.tensor([1.0, 2.0]).double() + gap})
    check_effect(ends(1.1e-6), "loss")
    check_effect(ends(-1.1e-6), "loss")
    with pytest.raises(MechintError, match="no effect to explain"):
        check_effect(ends(0.9e-6), "loss")


@pytest.mark.parametrize(("shift", "told"), [(0.9, True), (-0.9, True), (0.02, False)])
def test_no_share_is_told_of_an_effect_that_may_be_nothing(shift: float, told: bool) -> None:
    full = torch.linspace(-0.3, 0.3, 8).double()
    made: Any = SimpleNamespace(ends=({"loss": full + shift}, {"loss": torch.zeros(8).double()}), units=None)
    loader: Any = SimpleNamespace(templates=lambda: np.arange(8))
    evidence = Evidence(made, loader, dataclasses.replace(SMALL, metric="loss", bootstrap=50), 0)
    if told:
        evidence.check()
    else:
        with pytest.raises(MechintError, match="which may be nothing"):
            evidence.check()


def test_every_number_of_the_evidence(bench: Bench) -> None:
    """Three circuits, one in another, and the full model; the chosen one loses units one at a time."""
    loader = PromptLoader(make_task(TASK), "discovery", 10, 4, 0)
    options = dataclasses.replace(
        SMALL, metric="loss", ablation="zero", bootstrap=50, random_circuits=3, removed_units=100
    )
    chosen, small = mask(), mask() * mask(1)
    ranking = torch.linspace(1, 0, 28).double()
    half = torch.zeros(28).double()
    half[: int(chosen.sum())] = 1
    learned = {int(m.sum()): m for m in (small, chosen)}
    assert len(learned) == 2
    found = Evidence(bench, loader, options, 3).measure(ranking, chosen, [chosen, small], learned)
    mean = lambda gates, name="loss": float(by_hand(bench, gates)[name].mean())
    full, empty = mean(torch.ones(28)), mean(torch.zeros(28))
    share = lambda gates: (mean(gates) - empty) / (full - empty)
    metrics, near = found["metrics"], {"rel": 1e-3, "abs": 1e-4}
    value = lambda name: metrics[name]["value"]
    assert (value("units_total"), value("units_kept")) == (28, int(chosen.sum()))
    assert value("faithfulness") == pytest.approx(share(chosen), **near)
    assert value("completeness") == pytest.approx(1 - share(1 - chosen), **near)
    assert value("kl") == pytest.approx(mean(chosen, "kl"), **near)
    assert (value("metric_full"), value("metric_empty")) == pytest.approx((full, empty), **near)
    assert value("metric_circuit") == pytest.approx(mean(chosen), **near)
    assert value("accuracy_circuit") == pytest.approx(mean(chosen, "accuracy"), **near)
    points = [(int(m.sum()) / 28, share(m)) for m in (small, chosen, torch.ones(28))]
    steps = [(b[0] - a[0], a[1], b[1]) for a, b in itertools.pairwise(points)]
    width = points[-1][0] - points[0][0]
    assert value("cpr") == pytest.approx(sum(w * (a + b) / 2 for w, a, b in steps) / width, **near)
    gaps = sum(w * (abs(1 - a) + abs(1 - b)) / 2 for w, a, b in steps) / width
    assert value("cmd") == pytest.approx(gaps, **near)
    curve = found["curve"]
    assert curve["size"] == [int(small.sum()), int(chosen.sum()), 28]
    assert curve["fraction"] == pytest.approx([x for x, _ in points])
    assert [entry["value"] for entry in curve["learned"]] == pytest.approx([y for _, y in points], **near)
    assert curve["attribution"][1]["value"] == pytest.approx(share(half), **near)
    assert curve["random"][2]["low"] == pytest.approx(1, **near) == pytest.approx(curve["random"][2]["high"], **near)
    assert value("faithfulness_random") == curve["random"][1]["value"] and metrics["faithfulness_random"]["n"] == 3
    both = float((chosen * small).sum() / ((chosen + small) > 0).sum())
    assert value("jaccard") == pytest.approx(both) and metrics["faithfulness"]["metric"] == "loss"
    assert metrics["kl"]["metric"] == "kl" and metrics["accuracy_circuit"]["metric"] == "accuracy"
    tried = found["leave_one_out"]
    assert len(tried) == int(chosen.sum())
    drops = [entry["drop"]["value"] for entry in tried]
    assert drops == sorted(drops, reverse=True)
    for entry in (tried[0], tried[-1]):
        without = chosen.clone()
        without[14 * entry["layer"] + entry["unit"]] = 0
        assert entry["drop"]["value"] == pytest.approx(share(chosen) - share(without), **near)
    sure = sum(entry["p"] <= 0.05 and entry["drop"]["value"] > 0 for entry in tried)
    assert value("minimality") == pytest.approx(sure / len(tried)) and metrics["removable_together"]["n"] == len(tried)
    layers = found["layers"]
    assert [layer["kept"] for layer in layers] == [int(part.sum()) for part in chosen.view(2, 14)]
    assert layers[1]["units"] == chosen.view(2, 14)[1].nonzero().flatten().tolist() and layers[1]["total"] == 14
