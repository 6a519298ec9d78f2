"""The circuit without each of its units alone: those that cost it most, and how many of them it does not need."""

from __future__ import annotations

from ....report.words import number, percents
from ..results import Removed, Results
from .words import unit_in

ALPHA = 0.05
WORST = 10  # rows of the table; results.json has every unit that was tried
HEADER = ("layer", "unit", "faithfulness lost", "interval", "p, adjusted")
TITLE = "Removed one at a time"


def needed(entry: Removed) -> bool:
    """True if its removal certainly costs faithfulness."""
    return entry.p <= ALPHA and entry.drop.value > 0


def removed_sentence(results: Results) -> str:
    """A sentence with the number of tried units that the circuit needs, and of those that it does not."""
    tried = len(results.removed)
    hurts = sum(map(needed, results.removed))
    every = f"All {tried:,} units" if tried == results.kept else f"{tried:,} of the {results.kept:,} units, at random,"
    idle = (
        f" {tried - hurts:,} {'is' if tried - hurts == 1 else 'are'} not certainly needed: they may do nothing,"
        " others may stand in for them, or their loss may be too small for this many prompts."
    )
    return (
        f"{every} were removed from the circuit one at a time. The removal of {hurts:,} certainly costs faithfulness"
        f" (one-sided p ≤ {ALPHA}, adjusted for all that were tried).{idle if hurts < tried else ''}"
        + (f" The {WORST} that cost most:" if tried > WORST else "")
    )


def removed_rows(results: Results) -> list[tuple[str, ...]]:
    """The worst losses, the worst one first, as :data:`HEADER` says."""
    kind = results.raw["unit"]
    layers = {layer.layer: layer for layer in results.layers}
    worst = sorted(results.removed, key=lambda entry: -entry.drop.value)[:WORST]
    return [
        (
            layers[entry.layer].label,
            "the whole layer" if kind == "layer" else unit_in(layers[entry.layer], entry.unit, kind),
            *percents(entry.drop.value, entry.drop.low, entry.drop.high),
            number(entry.p, 2),
        )
        for entry in worst
    ]
