"""Permutation tests of variants of a study against the noise of seeds, adjusted for their number."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ....report.words import MINUS
from ....utils.multiple_tests import holm
from ....utils.statistics import permutation_test
from ..results import Results

TRAINING, SEARCH = "training", "search"
NOISE = {
    TRAINING: "models of a variant that were trained with different seeds",
    SEARCH: "searches with different seeds on the same model; this does not cover another training run",
}
ALPHA = 0.05


@dataclass(frozen=True)
class Difference:
    """Two variants in one quantity: means, their difference, and the chance of one as large among shuffled seeds."""

    quantity: str
    one: str
    other: str
    means: tuple[float, float]
    counts: tuple[int, int]
    p: float
    adjusted: float
    least: float
    """The smallest p that so many seeds can give."""

    @property
    def significant(self) -> bool:
        return self.adjusted <= ALPHA


def variant_of(run: Results) -> str:
    """The name of a run's variant without its seed: ``kv=tied`` of ``kv=tied+seed=1``; empty outside a study."""
    said = str(run.raw["model"].get("variant", ""))
    rest = [part.strip() for part in said.split("+") if not part.strip().startswith("seed=")]
    return "+".join(rest) or ("baseline" if said else "")


def differences(runs: Sequence[Results], names: Sequence[str]) -> tuple[str, list[Difference]]:
    """The kind of noise, of :data:`NOISE`, that variants are held against, and every pair of variants.

    Where each variant has several trained models these are compared; otherwise the searches of the models, with what
    they found on the discovery prompts. Empty where there are neither.
    """
    groups: dict[str, list[Results]] = {}
    for run, name in zip(runs, names, strict=True):
        groups.setdefault(variant_of(run) or name, []).append(run)
    if len(groups) < 2:
        return TRAINING, []
    if all(len(members) > 1 for members in groups.values()):
        noise, values = TRAINING, {name: [of_run(run) for run in members] for name, members in groups.items()}
    else:
        noise, values = SEARCH, {name: of_searches(members) for name, members in groups.items()}
    found: list[dict[str, Any]] = []
    for one, other in itertools.combinations(values, 2):
        shared = values[one][0].keys() & values[other][0].keys() if values[one] and values[other] else set()
        for quantity in sorted(shared):
            a, b = ([entry[quantity] for entry in values[name]] for name in (one, other))
            if min(len(a), len(b)) > 1:
                p, least = permutation_test(a, b)
                means = (sum(a) / len(a), sum(b) / len(b))
                found.append({"quantity": quantity, "one": one, "other": other, "means": means, "p": p, "least": least})
                found[-1]["counts"] = (len(a), len(b))
    adjusted = holm([entry["p"] for entry in found])
    return noise, [Difference(adjusted=p, **entry) for entry, p in zip(found, adjusted, strict=True)]


def of_run(run: Results) -> dict[str, float]:
    """The numbers of one model on the held-out prompts that are compared."""
    shown = {"faithfulness": "faithfulness", "cpr": "area under the faithfulness curve"}
    found = {label: run.metrics[name].value for name, label in shown.items() if name in run.metrics}
    return {**found, **of_circuit(run, run.circuit)}


def of_searches(runs: Sequence[Results]) -> list[dict[str, float]]:
    """The numbers of some models' searches on the discovery prompts that are compared."""
    return [
        {"faithfulness (discovery prompts)": search.faithfulness, **of_circuit(run, search.units)}
        for run in runs
        for search in run.of_weights("trained")
    ]


def of_circuit(run: Results, units: frozenset[tuple[int, ...]]) -> dict[str, float]:
    """The share of all units that a circuit keeps, where the size was free; and of a KV circuit, the share of keys."""
    found = {}
    if run.raw["config"].get("search") not in ("sparsity", "budget"):
        found["share of units kept"] = len(units) / run.total
    if run.raw["unit"] == "kv" and units:
        found["share of keys in the circuit"] = sum(unit[1] == 0 for unit in units) / len(units)
    return found


def sentence(noise: str, found: Sequence[Difference]) -> str:
    """The outcome of the tests in one sentence."""
    if not found:
        return (
            "Whether the differences exceed the noise of seeds was not tested: the test needs two or more seeds of "
            "each variant."
        )
    large = [d for d in found if d.significant]
    several = f"{len(found)} comparison{'s' * (len(found) > 1)}"
    text = f"Compared with {NOISE[noise]} (permutation tests, Holm over {several}), "
    text += f"{len(large)} exceed{'s' * (len(large) == 1)} the noise." if large else "no difference exceeds the noise."
    blind = [d for d in found if d.least * len(found) > ALPHA]
    if not large and blind:
        text += f" With so few seeds none could: the smallest p is {min(d.least for d in found):.2g} before adjustment."
    return text


def rows(found: Sequence[Difference]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table."""
    header = ["quantity", "variants", "means", "difference", "seeds", "p", "p, adjusted"]
    return header, [
        [
            d.quantity,
            f"{d.one} / {d.other}",
            f"{100 * d.means[0]:.1f} % / {100 * d.means[1]:.1f} %",
            f"{100 * (d.means[1] - d.means[0]):+.1f} points".replace("-", MINUS),
            f"{d.counts[0]} / {d.counts[1]}",
            f"{d.p:.3g}",
            f"{d.adjusted:.3g}{' *' * d.significant}",
        ]
        for d in found
    ]
