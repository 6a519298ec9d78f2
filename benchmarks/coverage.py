"""How often intervals hold the truth and adjusted p-values are wrong: ``python -m benchmarks.coverage``.

Every kind of interval that a report prints is taken of many samples from populations whose truth is known, with prompts
in clusters: of unequal sizes, and alike within a cluster. Every adjustment of p-values is tried on effects without a
mean. Prints the tables of docs/statistics.md; needs no model.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mechint.analyses.dictionaries.answer_auroc import DRAWS as SHUFFLES
from mechint.analyses.dictionaries.answer_auroc import FEWEST, p_values, single
from mechint.report.along_training import apart
from mechint.report.values import Value
from mechint.utils.multiple_tests import ABOVE, BOTH, benjamini_hochberg, holm, max_t
from mechint.utils.statistics import (
    ClusterBootstrap,
    Number,
    area,
    auroc_over_clusters,
    cluster_shuffles,
    over_seeds,
    permutation_test,
)

Array = NDArray[np.float64]
Random = np.random.Generator
DRAWS = 399
CLUSTERS = (8, 16, 32, 64)
NOMINAL, LEAST = 0.95, 0.93
LEVEL = 0.05
ALIKE = 0.5
"""Share of the variance that prompts of one cluster have in common."""
CELLS = 40
"""Cells of a map of effects."""
HEAVY = 100
"""A prompt in so many carries a rare effect."""


@dataclass(frozen=True)
class Population:
    """Independent numbers [...] with mean 0 and variance 1, and their name."""

    name: str
    draw: Callable[[Random, tuple[int, ...]], Array]


def lognormal(random: Random, shape: tuple[int, ...]) -> Array:
    mean, variance = np.exp(0.5), (np.e - 1) * np.e
    return np.asarray((random.lognormal(size=shape) - mean) / np.sqrt(variance))


POPULATIONS = (
    Population("normal", lambda random, shape: random.normal(size=shape)),
    Population("exponential", lambda random, shape: random.exponential(size=shape) - 1),
    Population("lognormal", lognormal),
)


def clusters_of(random: Random, count: int) -> NDArray[np.int64]:
    """The cluster of each prompt: clusters of one to six prompts."""
    return np.repeat(np.arange(count), random.integers(1, 7, size=count))


def clustered(random: Random, population: Population, cluster: NDArray[np.int64], cells: int = 1) -> Array:
    """Numbers [prompt, cell] with mean 0 and variance 1, which prompts of a cluster share in part."""
    shared = population.draw(random, (int(cluster.max()) + 1, cells))[cluster]
    own = population.draw(random, (len(cluster), cells))
    return np.asarray(np.sqrt(ALIKE) * shared + np.sqrt(1 - ALIKE) * own)


# ---- intervals: each gives the truth and the interval of one sample ------------------------------------------------

Drawn = tuple[float, Number]


def mean(random: Random, population: Population, count: int) -> Drawn:
    cluster = clusters_of(random, count)
    values = 1 + clustered(random, population, cluster)[:, 0]
    return 1.0, ClusterBootstrap(cluster, DRAWS, 0).interval(lambda m: m, values)


def difference(random: Random, population: Population, count: int) -> Drawn:
    """Of two means on the same prompts."""
    cluster = clusters_of(random, count)
    first, second = clustered(random, population, cluster, 2).T
    return 1.0, ClusterBootstrap(cluster, DRAWS, 0).interval(lambda a, b: a - b, 1 + first, second)


def ratio(random: Random, population: Population, count: int) -> Drawn:
    """Of two means, such as a faithfulness: (circuit - nothing) / (model - nothing)."""
    cluster = clusters_of(random, count)
    model, lost, nothing = clustered(random, population, cluster, 3).T
    model, nothing = 8 + 2 * model, 0.5 * nothing
    values = (model - 1.6 + 0.8 * lost, model, nothing)
    return 0.8, ClusterBootstrap(cluster, DRAWS, 0).interval(lambda c, m, n: (c - n) / (m - n), *values)


def under_curve(random: Random, population: Population, count: int) -> Drawn:
    """The area under the means at six sizes."""
    cluster, x = clusters_of(random, count), [0.01, 0.05, 0.1, 0.2, 0.5, 1.0]
    base = clustered(random, population, cluster)
    values = np.sqrt(x)[None] * (1 + base) + 0.1 * clustered(random, population, cluster, len(x))
    truth = float(area(x, np.sqrt(np.array([x])))[0])
    return truth, ClusterBootstrap(cluster, DRAWS, 0).interval(lambda m: area(x, m), values)


def right(random: Random, population: Population, count: int) -> Drawn:
    """A share of right answers, of which clusters have more or fewer."""
    cluster = clusters_of(random, count)
    shares = random.beta(4.5, 0.5, size=count)[cluster]
    return 0.9, ClusterBootstrap(cluster, DRAWS, 0).share((random.random(len(cluster)) < shares).astype(np.float64))


def baselines(random: Random, population: Population, count: int) -> Drawn:
    """A mean less that of five random baselines on the same prompts."""
    cluster = clusters_of(random, count)
    values = 2 + clustered(random, population, cluster)[:, 0]
    shifts = 0.3 * random.normal(size=(5, 1))
    others = 1 + shifts + clustered(random, population, cluster, 5).T
    return 1.0, ClusterBootstrap(cluster, DRAWS, 0).over_baselines(values, others, "circuits")


def seeds(random: Random, population: Population, count: int) -> Drawn:
    """A mean over seeds, which are independent."""
    return 1.0, over_seeds(1 + population.draw(random, (count,)), "seeds")[0]


def latent(random: Random, population: Population, count: int, apart_from: bool) -> Drawn:
    """The AUROC of a latent of a class, of independent prompts or of prompts in clusters that share a class."""
    cluster = np.arange(4 * count) if apart_from else clusters_of(random, count)
    positive = (np.arange(int(cluster.max()) + 1) % 2 == 0)[cluster]
    while min(positive.sum(), (~positive).sum()) < FEWEST:  # fewer are refused
        cluster = clusters_of(random, count)
        positive = (np.arange(int(cluster.max()) + 1) % 2 == 0)[cluster]
    values = clustered(random, population, cluster)[:, 0] + positive
    return true_auroc(population), auroc_over_clusters(values, positive, cluster, "templates")


@functools.cache
def true_auroc(population: Population) -> float:
    """The chance that a prompt of the class has a larger latent than another one, from a large sample."""
    random = np.random.default_rng(0)
    draw = lambda: clustered(random, population, np.arange(1_000_000))[:, 0]
    return float((draw() + 1 > draw()).mean())


INTERVALS: dict[str, Callable[[Random, Population, int], Drawn]] = {
    "mean over prompts": mean,
    "difference of paired means": difference,
    "ratio (faithfulness)": ratio,
    "area under a curve": under_curve,
    "share of right answers": right,
    "difference from baselines": baselines,
    "mean over seeds": seeds,
    "AUROC of a latent, independent prompts": functools.partial(latent, apart_from=True),
    "AUROC of a latent, prompts in clusters": functools.partial(latent, apart_from=False),
}


def covered(name: str, population: Population, count: int, samples: int) -> float:
    """The share of samples whose interval holds the truth."""
    hits = 0
    for sample in range(samples):
        truth, found = INTERVALS[name](np.random.default_rng((sample, count)), population, count)
        assert found["low"] is not None
        hits += found["low"] <= truth <= found["high"]
    return hits / samples


# ---- p-values: each gives those of one sample in which nothing is to be found -------------------------------------


def rare(random: Random, shape: tuple[int, ...]) -> Array:
    """Effects that few prompts carry, as of single units on log-probabilities, less their mean."""
    carries = random.random(shape) < 1 / HEAVY
    return np.asarray(np.where(carries, random.exponential(10.0, shape), 0.1 * random.normal(size=shape)) - 10 / HEAVY)


EFFECTS = (*POPULATIONS, Population("rare", rare))
TESTS = 6
"""Tests that are adjusted together by Holm's method."""
LATENTS = 50
"""Latents whose AUROCs are adjusted together by Benjamini and Hochberg's method."""


def one_cell(random: Random, population: Population, count: int) -> Array:
    """The p-value of one cell chosen in advance, from the bootstrap that gives its interval."""
    cluster = clusters_of(random, count)
    return np.asarray(ClusterBootstrap(cluster, DRAWS, 0).tested(lambda m: m, clustered(random, population, cluster)).p)


def cells(random: Random, population: Population, count: int, side: str) -> Array:
    """The cells of a map, adjusted by the largest t."""
    cluster = clusters_of(random, count)
    return max_t(clustered(random, population, cluster, CELLS), cluster, DRAWS, 0, side)


def along_training(random: Random, population: Population, count: int) -> Array:
    """Means at several checkpoints against the last, each with the interval of its prompts (Holm)."""
    cluster = clusters_of(random, count)
    bootstrap = ClusterBootstrap(cluster, DRAWS, 0)
    points = []
    for values in clustered(random, population, cluster, TESTS + 1).T:
        found = bootstrap.interval(lambda m: m, values)
        points.append(Value(found["value"], found["low"], found["high"], count))
    p = [apart(points[-1], point) for point in points[:-1]]
    return np.array(holm([value for value in p if value is not None]))


def two_groups(random: Random, population: Population, count: int) -> Array:
    """Quantities of half as many seeds each of two groups of models, by permutations (Holm)."""
    half = max(2, count // 8)
    sides = population.draw(random, (TESTS, 2, half))
    return np.array(holm([permutation_test(a.tolist(), b.tolist())[0] for a, b in sides]))


def paired_seeds(random: Random, population: Population, count: int) -> Array:
    """Quantities of two groups of models with the same seeds, by the bootstrap of their differences (Holm)."""
    half = max(2, count // 8)
    sides = population.draw(random, (TESTS, 2, half))
    return np.array(holm([over_seeds((a - b).tolist(), "seeds")[1] for a, b in sides]))


def latents(random: Random, population: Population, count: int, apart_from: bool) -> Array:
    """AUROCs of latents of a class (Benjamini-Hochberg).

    ``apart_from``: prompts are independent; else both latents and class are alike within clusters.
    """
    cluster = np.arange(4 * count) if apart_from else clusters_of(random, count)
    positive = (random.random(int(cluster.max()) + 1) < 0.5)[cluster]
    if positive.all() or not positive.any():
        return np.ones(1)
    values = clustered(random, population, cluster, LATENTS)
    exchanged = None if single(cluster) else cluster_shuffles(cluster, SHUFFLES, 0)
    return benjamini_hochberg(p_values(torch.tensor(values), torch.tensor(positive), exchanged))


ADJUSTED: dict[str, Callable[[Random, Population, int], Array]] = {
    "one cell, not adjusted": one_cell,
    "largest t, both sides": functools.partial(cells, side=BOTH),
    "largest t, above zero": functools.partial(cells, side=ABOVE),
    "Holm, checkpoints of a training run": along_training,
    "Holm, permutations of clusters / 8 seeds a side": two_groups,
    "Holm, clusters / 8 paired seeds": paired_seeds,
    "Benjamini-Hochberg, AUROC of latents, independent prompts": functools.partial(latents, apart_from=True),
    "Benjamini-Hochberg, AUROC of latents, prompts in clusters": functools.partial(latents, apart_from=False),
}


def wrong(name: str, population: Population, count: int, samples: int) -> float:
    """The share of samples without any effect in which some p is at most 0.05."""
    hits = 0
    for sample in range(samples):
        p = ADJUSTED[name](np.random.default_rng((sample, count, 1)), population, count)
        hits += bool(np.nanmin(p, initial=1.0) <= LEVEL)
    return hits / samples


def table(title: str, rows: dict[str, Callable[[Population, int], float]], of: tuple[Population, ...]) -> Iterator[str]:
    """Lines of Markdown: a row for each kind and population, a column for each number of clusters."""
    yield f"| {title} | effects | {' | '.join(map(str, CLUSTERS))} |"
    yield "|---" * (2 + len(CLUSTERS)) + "|"
    for name, measure in rows.items():
        for population in of:
            yield f"| {name} | {population.name} | {' | '.join(f'{measure(population, n):.3f}' for n in CLUSTERS)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=800, help="of each interval")
    parser.add_argument("--maps", type=int, default=300, help="of each adjustment")
    asked = parser.parse_args()
    intervals = {name: lambda p, n, name=name: covered(name, p, n, asked.samples) for name in INTERVALS}
    adjusted = {name: lambda p, n, name=name: wrong(name, p, n, asked.maps) for name in ADJUSTED}
    for line in table("interval", intervals, POPULATIONS):
        print(line, flush=True)
    print()
    for line in table("adjusted p", adjusted, EFFECTS):
        print(line, flush=True)


if __name__ == "__main__":
    main()
