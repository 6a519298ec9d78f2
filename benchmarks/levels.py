"""How often maps without any effect have a significant cell, on real effects: ``python -m benchmarks.levels FILE``.

Effects of removing single channels of a Mamba (KV channels of a transformer) are measured once, and their means over
all prompts taken away: they keep their skewness, their tails and what they have in common, and none has a mean. Maps
are cells and prompts drawn from these. Prints the table of docs/statistics.md, for a checkpoint of any task.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from numpy.typing import NDArray

import mechint
from mechint.analyses.ablation import Ablation
from mechint.analyses.circuits.bench import Bench, removed
from mechint.analyses.loader import PromptLoader
from mechint.interventions.units import FAMILY_UNITS, Units
from mechint.tasks import TaskConfig, task_of
from mechint.utils.multiple_tests import ABOVE, BOTH, max_t

METRICS = ("logit_diff", "answer_logprob")
CLUSTERS, CELLS, DRAWS = (8, 16, 32, 64), (64, 1024), 199


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", metavar="FILE")
    parser.add_argument("--prompts", type=int, default=768, help="in the pool")
    parser.add_argument("--units", type=int, default=1024, help="tried at most")
    parser.add_argument("--maps", type=int, default=200, help="of each size")
    parser.add_argument("--unit", help="kind of unit; the family's first where none is named")
    asked = parser.parse_args()
    for metric, effects in pools(asked.checkpoint, asked.unit, asked.prompts, asked.units).items():
        print(f"{metric}: {effects.shape[1]} cells, median kurtosis {np.median(kurtosis(effects)):.0f}")
        for cells in dict.fromkeys(min(count, effects.shape[1]) for count in CELLS):
            for clusters in CLUSTERS:
                both, above = (error(effects, cells, clusters, asked.maps, side) for side in (BOTH, ABOVE))
                print(
                    f"  {cells:>5} cells, {clusters:>2} clusters: {both:.3f} (above zero alone {above:.3f})", flush=True
                )


def pools(checkpoint: str, unit: str | None, prompts: int, most: int) -> dict[str, NDArray[np.float64]]:
    """Re-centred effects of each metric, [prompt, unit], of units that take different values."""
    model = mechint.load(checkpoint).requires_grad_(False)
    kinds = FAMILY_UNITS[model.config.family]
    units = Units(model, kinds[unit or next(iter(kinds))])
    loader = PromptLoader(task_of(model, TaskConfig()), "discovery", prompts, 32, 1)
    bench = Bench(model, units, Ablation(model, units, "mean", loader.batches, loader.task.aligned), loader.batches)
    tried = np.sort(np.random.default_rng(0).permutation(units.total)[:most]).tolist()
    ones, found = torch.ones(units.total), dict[str, NDArray[np.float64]]()
    for metric in METRICS:
        effects = bench.measure(ones)[metric].numpy()[:, None] - removed(bench, ones, tried, metric).numpy()
        effects = effects[:, [len(np.unique(cell.round(6))) >= min(CLUSTERS) * 2 for cell in effects.T]]
        found[metric] = effects - effects.mean(0)
    return found


def kurtosis(effects: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((effects**4).mean(0) / (effects**2).mean(0) ** 2)


def error(effects: NDArray[np.float64], cells: int, clusters: int, maps: int, side: str) -> float:
    """Share of maps in which some cell is significant at 5 %."""
    hits = 0
    for trial in range(maps):
        rng = np.random.default_rng((trial, clusters, cells))
        chosen = rng.integers(len(effects), size=clusters)
        sample = effects[np.ix_(chosen, rng.permutation(effects.shape[1])[:cells])]
        hits += bool(np.nanmin(max_t(sample, np.arange(clusters), DRAWS, trial, side), initial=1.0) <= 0.05)
    return hits / maps


if __name__ == "__main__":
    main()
