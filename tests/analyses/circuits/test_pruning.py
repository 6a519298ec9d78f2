"""Pruning: units of a found circuit go, or are exchanged, against all subsets of small models."""

from __future__ import annotations

import math

import pytest
import torch

from mechint.analyses.ablation import Ablation
from mechint.analyses.circuits.bench import Bench, attribute
from mechint.analyses.circuits.search.pruning import Pruning, evaluations, pruned
from mechint.analyses.loader import PromptLoader
from mechint.interventions.unit_kinds import SSM_UNITS
from mechint.interventions.units import Units
from mechint.tasks import make_task
from mechint.utils.progress import Progress
from tests.helpers.builders import tiny_mamba
from tests.helpers.circuits import TASK, bench, known_circuit, truth


def small(seed: int, ablation: str, unit: str = "mode") -> Bench:
    """A model of 12 units, all of which do something."""
    sizes = {"d_model": 4, "d_inner": 3, "d_state": 2} if unit == "mode" else {"d_model": 6, "d_inner": 6}
    model = tiny_mamba(seed, **sizes).requires_grad_(False)
    with torch.no_grad():
        for layer in model.layers:
            layer.out_proj.weight *= 16
    units, task = Units(model, SSM_UNITS[unit]), make_task(TASK)
    loader = PromptLoader(task, "discovery", 12, 12, 0)
    return Bench(model, units, Ablation(model, units, ablation, loader.batches, task.aligned), loader.batches)


def every(test: Bench) -> tuple[list[torch.Tensor], list[float]]:
    """All subsets of 12 units but the empty one, and their faithfulness."""
    masks = [torch.tensor([float(number >> k & 1) for k in range(12)]) for number in range(1, 4096)]
    work = Pruning(test, ["kl"], masks[0], masks[0], 0.9, 0, 4096, {}, None, Progress("subsets", 4096))
    return masks, work.faithful(masks)


def agreement(test: Bench, targets: tuple[float, ...]) -> list[bool]:
    """For each target, whether the pruned circuit has the size of the smallest of all subsets that reach it."""
    masks, shares = every(test)
    scores, exact = attribute(test, "kl"), []
    for target in targets:
        smallest = min(int(mask.sum()) for mask, share in zip(masks, shares, strict=True) if share >= target)
        start = next(k for k in range(1, 13) if test.faithful(test.units.top(scores, k), "kl") >= target)
        found = pruned(test, "kl", test.units.top(scores, start), scores, target=target).mask
        assert test.faithful(found, "kl") >= target
        exact.append(int(found.sum()) == smallest)
    return exact


@pytest.mark.slow
@pytest.mark.parametrize(("ablation", "target"), [("zero", 0.95), ("mean", 0.8)])
def test_the_pruned_circuit_is_the_smallest_of_all_subsets(ablation: str, target: float) -> None:
    assert all(agreement(small(0, ablation), (target,)))


@pytest.mark.exhaustive
def test_nearly_every_pruned_circuit_is_the_smallest_of_all_subsets() -> None:
    exact = [
        one
        for seed in range(6)
        for unit in ("mode", "channel")
        for ablation in ("zero", "mean", "resample")
        for one in agreement(small(seed, ablation, unit), (0.5, 0.8, 0.9, 0.95))
    ]
    print(f"pruned circuits as small as the smallest of all subsets: {sum(exact)} of {len(exact)}")
    assert sum(exact) >= 0.95 * len(exact)


def test_passengers_go_and_the_known_circuit_stays() -> None:
    test = bench(known_circuit())
    found = pruned(test, "kl", torch.ones(28), truth(), target=0.999)
    assert torch.equal(found.mask, truth())
    assert found.minimal
    again = pruned(test, "kl", torch.ones(28), truth(), target=0.999)
    assert torch.equal(again.mask, found.mask) and again.evaluations == found.evaluations


def test_a_missing_unit_comes_back_for_idle_ones() -> None:
    """One unit of the circuit is dropped and idle ones are kept: an exchange finds it at the same size."""
    test, mask = bench(known_circuit()), truth()
    missing, idle = int(mask.nonzero()[0]), (mask == 0).nonzero().flatten()[:1]
    begun = mask.index_fill(0, torch.tensor([missing]), 0.0).index_fill(0, idle, 1.0)
    found = pruned(test, "kl", begun, truth(), size=8)
    assert torch.equal(found.mask, mask)


def test_to_a_size_as_many_units_are_left_as_are_asked_for() -> None:
    found = pruned(bench(known_circuit()), "kl", torch.ones(28), truth(), size=10)
    assert int(found.mask.sum()) == 10 and bool((found.mask >= truth()).all())


def test_a_circuit_below_the_target_is_left_alone() -> None:
    test, mask = bench(known_circuit()), 1 - truth()
    assert torch.equal(pruned(test, "kl", mask, truth(), target=0.9).mask, mask)


def test_it_measures_no_more_than_it_may_and_says_so() -> None:
    test, kept = bench(known_circuit()), []
    found = pruned(
        test, "kl", torch.ones(28), truth(), target=0.999, limit=30, save=lambda seen: kept.append(dict(seen))
    )
    assert found.evaluations == 30 and not found.whole and int(found.mask.sum()) < 28
    assert [evaluations(total) for total in (12, 17, 256, 30_000)] == [1024, 192, 128, 40]
    resumed = pruned(test, "kl", torch.ones(28), truth(), target=0.999, limit=30, seen=kept[2])
    assert torch.equal(resumed.mask, found.mask) and resumed.evaluations == 30


def test_a_target_is_one_of_faithfulness_and_a_size_has_none() -> None:
    test = bench(known_circuit())
    assert math.isclose(test.faithful(pruned(test, "kl", torch.ones(28), truth(), size=28).mask, "kl"), 1.0)
