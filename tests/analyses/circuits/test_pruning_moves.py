"""The moves of a pruning, one by one, in games whose faithfulness is a sum over units."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mechint.analyses.circuits.search.pruning import Pruning, Spent, evaluations, key_of, less, windows


class Game(Pruning):
    """A pruning whose circuits are measured by a function of their units; each new one costs one evaluation."""

    sample = None

    def __init__(self, kept: list[int], total: int, value: Callable[[set[int]], float], target: float, **more: Any):
        self.bench: Any = SimpleNamespace(units=SimpleNamespace(total=total))
        self.mask = torch.zeros(total).index_fill(0, torch.tensor(kept), 1.0)
        self.order = torch.arange(total, 0, -1).double()
        self.target, self.size, self.limit = target, more.get("size", 1), more.get("limit", 1000)
        self.value, self.slopes_are = value, more.get("slopes", torch.zeros(total))
        self.seen, self.used, self.far, self.spent, self.exchanges = {}, set(), {}, 0.0, 0
        self.window = more.get("window", 4)
        self.whole: Any = SimpleNamespace(prompts=10)

    def measured(self, shares: Any, masks: list[Tensor], cells: Any) -> list[float]:
        keys = [key_of(mask) for mask in masks]
        for key in keys:
            if key not in self.seen:
                self.spent += 1
            self.seen[key] = [self.value(set(key)), 7.0]
        self.used |= set(keys)
        return [self.seen[key][0] for key in keys]

    def slope(self, mask: Tensor) -> Tensor:
        return self.slopes_are

    @property
    def kept(self) -> list[int]:
        return list(key_of(self.mask))


def worth(**units: float) -> Callable[[set[int]], float]:
    """The sum of what units are worth, by ``u3=0.5``; others nothing."""
    values = {int(name[1:]): value for name, value in units.items()}
    return lambda chosen: sum(values.get(unit, 0.0) for unit in chosen)


def test_idle_units_go_and_needed_ones_stay() -> None:
    game = Game([0, 1, 2, 3, 4, 5], 8, worth(u1=0.5, u4=0.45), 0.9)
    assert game.run() and game.kept == [1, 4] and game.minimal()
    many = Game(list(range(30)), 40, worth(u1=0.5, u24=0.45), 0.9, window=4, limit=2000)
    many.mask = many.shrunk(many.mask)
    assert many.kept == [1, 24]
    floor = Game([0, 1, 2, 3], 8, worth(), math.inf, size=3)
    floor.mask = floor.shrunk(floor.mask)
    assert len(floor.kept) == 3  # of a given size no more go


def test_a_circuit_is_minimal_when_no_unit_may_go_and_all_were_tried() -> None:
    game = Game([1, 4], 6, worth(u1=0.5, u4=0.45), 0.9)
    assert not game.minimal()
    game.faithful([less(game.mask, [1])])
    assert not game.minimal()
    game.faithful([less(game.mask, [4])])
    assert game.minimal()
    idle = Game([1, 4, 5], 6, worth(u1=0.5, u4=0.45), 0.9)
    idle.faithful([less(idle.mask, [unit]) for unit in (1, 4, 5)])
    assert not idle.minimal()
    game.target = math.inf
    assert not game.minimal()


def test_the_best_of_all_circuits_of_one_unit_fewer() -> None:
    """Of five units each pair of (0, 1) reaches 0.95, (2, 3) 0.92 and (3, 4) 1.3, which overshoots by more."""
    pairs = {(0, 1): 0.95, (2, 3): 0.92, (3, 4): 1.3, (0, 2, 4): 1.0}
    value = lambda chosen: pairs.get(tuple(sorted(chosen)), 0.2)
    game = Game([0, 2, 4], 5, value, 0.9)
    assert game.exhaust() and game.kept == [0, 1]
    assert not game.exhaust() and game.kept == [0, 1]  # no single unit does
    high = Game([0, 2, 4], 5, value, 0.96)
    assert high.exhaust() and high.kept == [3, 4]
    poor = Game([0, 2, 4], 5, value, 0.9, limit=9)
    assert not poor.exhaust()  # there are ten pairs
    sized = Game([2, 3], 5, value, math.inf, size=2)
    assert sized.exhaust() and sized.kept == [0, 1] and not sized.exhaust()


def test_the_first_units_that_can_go_together_are_counted() -> None:
    game = Game(list(range(8)), 8, worth(**{f"u{k}": 0.125 for k in range(8)}), 0.5)
    assert game.longest(game.mask, [7, 6, 5, 4, 3, 2, 1], 7) == 3  # four of eight miss the target by the rounding
    game.target = 0.49
    assert game.longest(game.mask, [7, 6, 5, 4, 3, 2, 1], 7) == 4 and game.longest(game.mask, [7, 6], 2) == 2
    game.target = 0.99
    assert game.longest(game.mask, [7, 6], 2) == 0
    game.target = math.inf
    assert game.longest(game.mask, [7, 6], 2) == 2


def test_the_unit_that_costs_least_goes() -> None:
    game = Game([0, 1, 2], 4, worth(u0=0.5, u1=0.1, u2=0.4), 0.85)
    assert game.one_of(game.mask, [0, 1, 2]) == [1] and game.one_of(game.mask, [0, 2]) is None
    over = Game([0, 1, 2], 4, worth(u0=0.9, u1=0.3, u2=0.05), 0.85)
    assert over.one_of(over.mask, [1, 2]) == [1]  # 0.95 is nearer to the model than 1.2


def test_circuits_are_better_when_smaller_or_nearer() -> None:
    game = Game([0, 1], 4, worth(u0=0.5, u1=0.4, u2=0.402, u3=0.4005), 0.5)
    mask = lambda *units: torch.zeros(4).index_fill(0, torch.tensor(units), 1.0)
    assert game.better(mask(0)) and not game.better(mask(0, 1, 2))
    assert game.better(mask(0, 2)) and not game.better(mask(0, 3)) and not game.better(mask(0, 1))


def test_dropped_units_are_tried_as_the_gradient_and_the_order_say_in_turn() -> None:
    slopes = torch.tensor([0.0, 5.0, -1.0, 3.0, -2.0, 0.5])
    game = Game([0], 6, worth(), 0.5, slopes=slopes, window=4)
    assert game.promising() == [4, 1, 2, 5]  # by slope 4 2 5 3 1, by order 1 2 3 4 5
    game.mask = torch.ones(6)
    assert game.promising() == []


def test_exchanges_take_a_unit_for_one_or_two() -> None:
    swap = Game([0, 1], 4, worth(u0=0.45, u1=0.3, u2=0.6, u3=0.1), math.inf, size=2)
    assert swap.exchange() and swap.kept == [0, 2] and swap.exchanges >= 1
    two = Game([0, 1, 2], 4, worth(u0=0.3, u1=0.3, u2=0.3, u3=0.6), 0.85)
    assert two.exchange() and len(two.kept) == 2 and 3 in two.kept
    done = Game([0, 1], 4, worth(u0=0.5, u1=0.4999), math.inf, size=2)
    assert not done.exchange() and done.exchanges == 0  # near enough to the model


@pytest.mark.parametrize(
    ("kept", "spent", "limit", "told"), [(3, 7, 10, True), (3, 8, 10, False), (10, 9, 10, True), (9, 2, 10, False)]
)
def test_enough_is_left_to_remove_every_unit(kept: int, spent: float, limit: int, told: bool) -> None:
    game = Game(list(range(kept)), 12, worth(), 0.5, limit=limit)
    game.spent = spent
    assert game.affordable() == told
    game.target = math.inf
    assert game.affordable()


def test_what_stops_a_pruning_leaves_it_unfinished() -> None:
    game = Game([0, 1], 4, worth(), 0.5)

    def spent(*arguments: Any) -> list[float]:
        raise Spent

    game.measured = spent  # type: ignore[method-assign]
    assert game.run() is False and game.kept == [0, 1]


def test_the_bound_of_the_work_by_hand() -> None:
    assert [evaluations(total) for total in (16, 17, 200, 1000, 10_000)] == [1024, 192, 163, 40, 40]
    assert evaluations(17, steps=30) == 60 and evaluations(1000, steps=10) == 20
    assert list(windows([1, 2, 3, 4, 5], 2)) == [[1, 2], [3, 4], [5]] and list(windows([], 2)) == []
