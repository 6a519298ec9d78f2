"""Summarises probes into results: accuracy and selectivity with intervals, p adjusted for all probes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...utils.multiple_tests import holm
from ..random_weights import Quantities, quantity


def adjusted(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The probes with their p-values adjusted for the number of them (Holm)."""
    return [{**row, "p": p} for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True)]


def best_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The best probe of each label across folds of the discovery prompts, so that held-out prompts choose nothing."""
    labels = list(dict.fromkeys(row["label"] for row in rows))
    return [max((row for row in rows if row["label"] == one), key=lambda row: row["across_folds"]) for one in labels]


def quantities(results: dict[str, Any]) -> Quantities:
    """The accuracies, which are compared with shuffled weights."""
    rows = results["probes"]
    return [quantity(f"accuracy of {row['label']}", row["accuracy"], row["site"], row["layer"]) for row in rows]
