"""Maps of two models: differences and correlations against sums by hand, what is paired, and what is not there."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy

from mechint.analyses.map_comparison import (
    CellPair,
    EffectMap,
    MapPair,
    Measured,
    RunPair,
    compared,
    findings,
    sections,
)
from mechint.report.content import Table

CELLS = [(layer, name) for layer in range(3) for name in ("a", "b")]
TEMPLATES = np.arange(12)
EVERY = np.ones(12, dtype=bool)


def noise(seed: int, scale: float = 1.0, count: int = 12) -> np.ndarray:
    return scale * np.random.default_rng(seed).standard_normal((count, len(CELLS)))


def one_map(effects: np.ndarray, cells: list[tuple[int, str]] | None = None, **more: object) -> Measured:
    parts = {"answered": EVERY, "templates": TEMPLATES, "total": None, **more}
    return Measured(maps=[EffectMap("m", cells or CELLS, effects)], **parts)  # type: ignore[arg-type]


def test_differences_and_correlations_are_those_of_the_mean_maps() -> None:
    first, second = noise(1) + np.arange(6), noise(2) - np.arange(6) ** 2
    [found] = compared(one_map(first), one_map(second))
    a, b = first.mean(0), second.mean(0)
    assert [cell.value for cell in found.cells] == pytest.approx((b - a).tolist())
    assert [(cell.one, cell.other) for cell in found.cells] == [pytest.approx(pair) for pair in zip(a, b, strict=True)]
    assert found.pearson is not None and found.pearson["value"] == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert found.spearman is not None and found.spearman["value"] == pytest.approx(
        scipy.stats.spearmanr(a, b).statistic
    )
    for number in (found.pearson, found.spearman):
        assert -1 <= number["low"] <= number["value"] <= number["high"] <= 1 and "12 templates" in number["interval"]
    assert [cell.value for cell in found.largest(2)] == pytest.approx(sorted(b - a, key=lambda x: -abs(x))[:2])


def test_only_the_planted_cell_differs_and_noise_on_the_same_prompts_cancels() -> None:
    """Both models share the noise of their prompts, which is far larger than the difference that was planted."""
    shared = noise(3, 50.0)
    planted = np.zeros(6)
    planted[4] = 1.0
    [found] = compared(one_map(shared), one_map(shared + planted + noise(4, 0.01)))
    assert [cell.p <= 0.05 for cell in found.cells] == [k == 4 for k in range(6)] and found.differing == 1
    assert found.largest(1)[0].value == pytest.approx(1.0, abs=0.05)
    text = findings([RunPair("two", "one", [found])])
    assert text[0].startswith("two less one: 1 of 6 cells certainly differ") and "layer 2, a" in text[0]


def test_a_map_differs_from_itself_by_nothing_and_is_alike() -> None:
    effects = noise(5) + np.arange(6)
    [found] = compared(one_map(effects), one_map(effects.copy()))
    assert {cell.value for cell in found.cells} == {0.0} and {cell.p for cell in found.cells} == {1.0}
    assert found.pearson is not None and found.pearson["value"] == pytest.approx(1.0)


def test_prompts_that_one_of_them_fails_do_not_count() -> None:
    answered = EVERY.copy()
    answered[[2, 7]] = False
    first, second = noise(6), noise(7)
    [found] = compared(one_map(first[answered], answered=answered), one_map(second))
    assert [cell.value for cell in found.cells] == pytest.approx(
        (second[answered].mean(0) - first[answered].mean(0)).tolist()
    )
    assert {cell.n for cell in found.cells} == {10}
    assert compared(one_map(first[answered], answered=answered), one_map(second[~answered], answered=~answered)) == []


def test_shares_are_divided_by_the_total_of_the_same_prompts() -> None:
    total, effects = np.linspace(1, 4, 12), noise(8) + 2
    effects[3, 1] = math.nan  # this prompt lacks the cell, so its total does not count there
    [found] = compared(one_map(effects, total=total), one_map(effects, total=2 * total))
    there = np.arange(12) != 3
    share = effects[there, 1].sum() / total[there].sum()
    assert found.cells[1].one == pytest.approx(share) and found.cells[1].value == pytest.approx(share / 2 - share)
    assert found.cells[1].n == 11


def test_a_cell_whose_own_prompts_may_have_no_effect_is_not_compared() -> None:
    """Four of the twelve prompts have nearly no total effect, and one cell is theirs alone."""
    total = np.where(np.arange(12) < 4, [0.01, -0.01, 0.02, -0.01] * 3, 2.0)
    effects = 1 + noise(5, 0.1)
    effects[4:, 2] = np.nan
    [found] = compared(one_map(effects, total=total), one_map(effects + 1, total=np.full(12, 2.0)))
    assert [(cell.layer, cell.name) for cell in found.cells] == [cell for k, cell in enumerate(CELLS) if k != 2]
    [found] = compared(one_map(effects), one_map(effects + 1))
    assert [(cell.layer, cell.name) for cell in found.cells] == CELLS


def test_common_cells_are_found_by_their_names_and_others_left_out() -> None:
    first, second = noise(9), noise(10)
    order = [5, 0, 3]
    [found] = compared(one_map(first), one_map(second[:, order], [CELLS[k] for k in order]))
    assert [(cell.layer, cell.name) for cell in found.cells] == [CELLS[0], CELLS[3], CELLS[5]]
    assert [cell.other for cell in found.cells] == pytest.approx(second.mean(0)[[0, 3, 5]].tolist())
    assert found.pearson is None and found.spearman is None  # three cells are too few
    other = Measured(EVERY, TEMPLATES, None, [EffectMap("another", CELLS, second)])
    assert compared(one_map(first), other) == []


def test_a_cell_that_no_prompt_has_is_not_a_number_and_few_templates_have_no_interval() -> None:
    gone = noise(11)
    gone[:, 2] = math.nan
    [found] = compared(one_map(gone), one_map(noise(12)))
    assert math.isnan(found.cells[2].value) and found.cells[2].n == 0
    assert found.pearson is not None and all(cell is not found.cells[2] for cell in found.largest(9))
    [few] = compared(*(one_map(noise(k), templates=TEMPLATES % 2) for k in (13, 14)))
    assert all(math.isnan(cell.low) and math.isnan(cell.p) for cell in few.cells) and few.differing == 0
    assert few.pearson is not None and few.pearson["low"] is None
    entries = RunPair("two", "one", [found, few]).entries()
    assert entries["maps"][1]["largest"][0]["low"] is None


def test_the_tables_say_every_map_and_its_largest_differences() -> None:
    cell = CellPair(1, "a ← b", 0.5, 0.1, -0.4, -0.6, -0.2, 0.003, 9)
    alike = {"value": 0.8, "low": 0.6, "high": 0.9, "n": 9, "interval": "x"}
    pair = RunPair("<two>", "one", [MapPair("cut at out", alike, None, [cell])])
    alike_table, differences = (
        block for part in sections([pair], "share") for block in part.blocks if isinstance(block, Table)
    )
    assert alike_table.rows[0] == ("<two>", "one", "cut at out", "1", "0.80 [0.60, 0.90]", "–", "9", "1")
    assert differences.rows[0][3:] == ("1", "a ← b", "−0.40", "−0.60 to −0.20", "9", "0.003", "0.1 and 0.5")
    assert sections([], "share") == [] and findings([RunPair("two", "one", [])]) == [
        "two and one: the models answer no prompt in common."
    ]
