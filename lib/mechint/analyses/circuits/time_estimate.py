"""All work of a study of one circuit: in words for a dry run, and in seconds once a batch of prompts was timed."""

from __future__ import annotations

import math
import sys
import time

import torch

from ...utils import progress
from ...utils.progress import in_time
from .bench import Bench, loss_of
from .methods.all_methods import SEARCH
from .methods.starting_orders import EXACT_UNITS
from .options import CircuitOptions
from .search.gates import CLAMPED
from .search.pruning import FEWEST_EVALUATIONS, MOST_EVALUATIONS, SMALL_EVALUATIONS, SMALL_MODEL, evaluations

PRUNINGS = 3
"""Circuits that are pruned: the circuit, and those of the two controls that search again."""
SIZES = 11
"""Sizes at which faithfulness is measured: those of the curve, and the circuit's own."""
SETS = 14
"""Sets of units that minimality removes at the most, about."""
OPEN, CIRCUIT = 0.4, 0.1
"""Shares of the units: of open gates, in the mean of a search; and of a circuit whose size is not known yet."""
TRIES = 4
QUIET = 5.0
"""Estimates of fewer seconds are not printed."""


def searches(config: CircuitOptions) -> int:
    """About how many searches there are; one that descends through all sizes is worth two, and where the size is given,
    which ends it at the smallest size of the curve, one."""
    return config.seeds + (9 if config.search == "smallest" else 3)


def held_out(config: CircuitOptions) -> int:
    """About how many circuits are measured on the held-out prompts."""
    return SIZES * (2 + config.random_circuits) + 4


def work(config: CircuitOptions) -> str:
    """All work with its upper bounds, for a dry run."""
    if config.method != SEARCH:
        return (
            f"a ranking of all units by the method {config.method} on {config.prompts} prompts, on trained and on "
            f"random weights; then about {held_out(config)} evaluations, up to {config.removed_units:,} removals of "
            f"single units and {SETS} of sets of them on {config.eval_prompts} prompts"
        )
    return (
        f"about {searches(config)} searches of {config.steps} steps; where attribution misleads up to {EXACT_UNITS:,} "
        f"units removed one at a time to begin them with, and as many for each of two controls; {PRUNINGS} prunings of "
        f"at most {min(MOST_EVALUATIONS, 2 * config.steps)} circuits each on {config.prompts} prompts "
        f"({SMALL_EVALUATIONS:,} in models of up to {SMALL_MODEL} units, {FEWEST_EVALUATIONS} in large ones); then "
        f"about {held_out(config)} evaluations, up to {config.removed_units:,} removals of single units and {SETS} of "
        f"sets of them on {config.eval_prompts} prompts. The run prints the time that this takes once it has timed a "
        f"batch"
    )


def timed(bench: Bench, config: CircuitOptions) -> tuple[float, float]:
    """Seconds of a step of a search, and of a forward of a circuit, on the first batch: the shortest of a few, for a
    machine that does other things as well. Circuits of few units may take less than the model."""
    total, device = bench.units.total, bench.batches[0].tokens.device
    gates = (0.5 * spread(round(OPEN * total), total)).to(device).requires_grad_()
    circuit = spread(config.size(total) or max(1, round(CIRCUIT * total)), total).to(device)

    def step() -> None:
        loss, _ = loss_of(bench, config.metric, 0, gates, config.learning.gate in CLAMPED)
        torch.autograd.grad(loss, gates)

    def forward() -> None:
        with torch.no_grad():
            float(bench.measured(0, circuit, None)["kl"].sum())

    seconds = []
    for each in (step, forward):
        tries = []
        for _ in range(TRIES):
            start = time.perf_counter()
            each()
            tries.append(time.perf_counter() - start)
        seconds.append(min(tries))
    return seconds[0], seconds[1]


def spread(count: int, total: int) -> torch.Tensor:
    """A mask [units] of so many units, evenly spread."""
    return (torch.arange(total) * count % total < count).float()


def pruning(total: int, steps: int) -> int:
    """About how many circuits a pruning measures.

    A model of few units is allowed many more than it takes: those of 6 to 10 units ended behind 3 to 123 (tiny models,
    two seeds, targets 0.8 and 0.95), never far above all units removed alone once for every unit that went.
    """
    return min(evaluations(total, steps), total * (total + 1))


def estimate(
    config: CircuitOptions, total: int, batches: tuple[int, int], step: float, forward: float, hands: int = 0
) -> tuple[float, float]:
    """Seconds of all work, and of what is added where attribution misleads.

    Args:
        config: The options of the circuit.
        total: Units of the model.
        batches: Batches of the discovery and of the held-out prompts.
        step, forward: Seconds of a step of a search, and of a forward, on one batch.
        hands: Further processes, which make the controls while this one makes what follows their beginning.
    """
    discovery, evaluation = batches
    learning = (searches(config) * config.steps + PRUNINGS * 5 * discovery) * step  # 3 attributions of 5 points
    measured = PRUNINGS * pruning(total, config.steps) + 2 * SIZES + 8 * searches(config)
    held = held_out(config) + min(config.removed_units, total) + SETS
    misled = PRUNINGS * removable(total, config.size(total)) * discovery * forward
    whole = learning + (measured * discovery + held * evaluation) * forward
    if hands:
        controls, cut = PRUNINGS - 1, pruning(total, config.steps) * discovery * forward
        control = (config.steps + 5 * discovery) * step + cut
        beside = (
            (config.seeds - (config.search == "smallest")) * config.steps * step + cut + held * evaluation * forward
        )
        whole -= controls * control - max(0.0, math.ceil(controls / hands) * control - beside)
    return whole, misled


def removable(total: int, asked: int | None) -> int:
    """The most units that are removed one at a time where attribution misleads: all of a model of few units, or those
    of the largest circuit of twice, four times, … the size that is asked for (:func:`.starting_orders.further_orders`).

    Args:
        total: Units of the model.
        asked: Units of the circuit, None where the search chooses.
    """
    most = min(total, EXACT_UNITS)
    if total <= EXACT_UNITS or asked is None:
        return most
    size = asked
    while 2 * size <= most:
        size *= 2
    return size if size > asked else 0


def announce(config: CircuitOptions, bench: Bench, evaluation: int, hands: int = 0) -> None:
    """Says on standard error how long all work is going to take, unless it is a moment, and tells the lines of
    progress. It is in no result.

    Args:
        config: As in :func:`estimate`.
        bench: The discovery prompts.
        evaluation: Batches of held-out prompts.
        hands: As in :func:`estimate`.
    """
    whole, misled = estimate(
        config, bench.units.total, (len(bench.batches), evaluation), *timed(bench, config), hands
    )  # fmt: skip
    progress.current().expect(whole, "study")
    if whole > QUIET:
        more = f"; where attribution misleads up to {in_time(misled)} more" if misled else ""
        print(
            f"about {in_time(whole)} in all, by a timed batch: searches, prunings, evaluations and removals{more}",
            file=sys.stderr,
            flush=True,
        )
