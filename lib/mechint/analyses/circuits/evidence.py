"""The evidence for one circuit: every number of its report, on held-out prompts, each with its control or interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...utils.errors import MechintError
from ...utils.multiple_tests import ABOVE, max_t_of
from ...utils.progress import Progress
from ...utils.statistics import (
    FEWEST_TESTED,
    Array,
    ClusterBootstrap,
    Number,
    area,
    certain,
    exact,
    number,
    spread,
    stability,
)
from ..ablation import in_words
from ..loader import PromptLoader
from ..metrics import faithfulness
from .bench import METRICS, Bench, removed
from .options import CircuitOptions


class Evidence:
    """Measures circuits on the held-out prompts of a model.

    Args:
        bench: The held-out prompts, with the model's units and what replaces them.
        loader: The same prompts with their task and their templates, which intervals are over.
        options: Metric that the circuit preserves, and numbers of controls and draws.
        seed: Seed of the random circuits, the removed units and the bootstrap.
    """

    def __init__(self, bench: Bench, loader: PromptLoader, options: CircuitOptions, seed: int) -> None:
        self.bench, self.loader, self.options, self.seed = bench, loader, options, seed
        self.units, self.column = bench.units, METRICS[options.metric].column
        self.bootstrap = ClusterBootstrap(loader.templates(), options.bootstrap, seed)

    def check(self) -> None:
        """Refuses to measure shares of an effect that may be zero.

        Raises:
            MechintError: the interval of the effect of dropping every unit holds zero.
        """
        read = METRICS[self.options.metric].read
        effect = self.bootstrap.interval(lambda f, e: read(f) - read(e), *self.ends)
        if float(effect["low"]) <= 0 <= float(effect["high"]):
            raise MechintError(
                f"the effect of dropping every unit on {self.options.metric} is {effect['value']:.3g} "
                f"[{effect['low']:.3g}, {effect['high']:.3g}], which may be nothing; faithfulness is a share "
                f"of it. Use more EVAL_PROMPTS, another metric or another ablation"
            )

    @property
    def ends(self) -> list[Array]:
        """The metric's column of every prompt in the full model and in the one with every unit dropped, [prompts]."""
        return [end[self.column].numpy() for end in self.bench.ends]

    def values(self, mask: Tensor) -> Array:
        """The metric's column of every prompt under a mask [units], [prompts]."""
        return self.bench.measure(mask)[self.column].numpy()

    def interval(self, mask: Tensor) -> Number:
        """The faithfulness of a mask [units].

        Raises:
            MechintError: as :meth:`check` does.
        """
        self.check()
        return self.bootstrap.interval(self.share, self.values(mask), *self.ends)

    def share(self, circuit: Array, full: Array, empty: Array) -> Array:
        """Faithfulness from the means over prompts of the circuit, the full and the empty model."""
        return faithfulness(*map(METRICS[self.options.metric].read, (circuit, full, empty)))

    def measure(self, ranking: Tensor, mask: Tensor, found: list[Tensor], learned: dict[int, Tensor]) -> dict[str, Any]:
        """Every number of the report, on the held-out prompts.

        Args:
            ranking: Scores whose order is the attribution curve's, [units].
            mask: The circuit.
            found: The circuits of all seeds whose search has moved from where it began, for the stability.
            learned: Circuits by size.
        """
        self.check()
        options, units, bench, loader = self.options, self.units, self.bench, self.loader
        metric, read, bootstrap = self.column, METRICS[options.metric].read, self.bootstrap
        size = int(mask.sum())
        learned = {**learned, units.total: torch.ones_like(mask)}
        sizes = sorted(learned)
        wanted = 1 + (2 + options.random_circuits) * len(sizes)
        with Progress("evidence", wanted) as progress:

            def at(m: Tensor) -> dict[str, Array]:
                progress.step()
                return {name: value.numpy() for name, value in bench.measure(m).items()}

            full, empty = ({name: value.numpy() for name, value in end.items()} for end in bench.ends)
            without = at(1 - mask)
            curves = {
                "learned": [at(learned[s]) for s in sizes],
                "attribution": [at(units.top(ranking, s)) for s in sizes],
            }
            random = {s: self.random_band(at, learned[s], full[metric], empty[metric]) for s in sizes}

        def ratio(values: Array) -> Number:
            return bootstrap.interval(self.share, values, full[metric], empty[metric])

        chosen = curves["learned"][sizes.index(size)]
        shares = [s / units.total for s in sizes]
        stacked = np.stack([values[metric] for values in curves["learned"]], 1)  # [prompts, sizes]

        def cpr(c: Array, f: Array, e: Array) -> Array:
            return area(shares, self.share(c, f[:, None], e[:, None]))

        def cmd(c: Array, f: Array, e: Array) -> Array:
            return area(shares, np.abs(1 - self.share(c, f[:, None], e[:, None])))

        tried, least_needed = self.leave_one_out(mask)
        agreement = stability([set(m.nonzero().flatten().tolist()) for m in found])
        completeness = bootstrap.interval(
            lambda c, f, e: 1 - self.share(c, f, e), without[metric], full[metric], empty[metric]
        )
        metrics: dict[str, Number] = {
            "units_total": exact(units.total),
            "units_kept": exact(size),
            "faithfulness": ratio(chosen[metric]),
            "completeness": completeness,
            "kl": bootstrap.interval(lambda m: m, chosen["kl"], within=(0.0, math.inf)),
            "metric_full": bootstrap.interval(read, full[metric]),
            "metric_empty": bootstrap.interval(read, empty[metric]),
            "metric_circuit": bootstrap.interval(read, chosen[metric]),
            "faithfulness_random": random[size],
            "cpr": bootstrap.interval(cpr, stacked, full[metric], empty[metric]),
            "cmd": bootstrap.interval(cmd, stacked, full[metric], empty[metric]),
        }
        if (spelt := loader.bytes()) is not None:
            for name, nats in (("full", full["loss"]), ("circuit", chosen["loss"])):
                metrics[f"bits_per_byte_{name}"] = bootstrap.interval(lambda n, b: n / np.log(2) / b, nats, spelt)
        if loader.task.name != "text":
            metrics["accuracy_circuit"] = bootstrap.share(chosen["accuracy"])
        if tried:
            metrics["minimality"] = share_needed(tried, size, options.bootstrap, self.seed)
            metrics["removable_together"] = self.removable_together(mask, least_needed)
        if agreement is not None:
            metrics["jaccard"] = agreement
        for name, entry in metrics.items():
            if name not in ("units_total", "units_kept", "jaccard"):
                own = {"kl": "kl", "accuracy_circuit": "accuracy"}.get(name, options.metric)
                own = "loss" if name.startswith("bits_per_byte") else own
                entry |= {"metric": own, "ablation": options.ablation, "sites": ",".join(units.kind.sites)}
        if units.kind.apart:
            labels, counts = units.kind.labels, units.counts(mask)
            for number, label in enumerate(labels):
                metrics[f"units_kept_{label.lower()}"] = exact(sum(counts[number :: len(labels)]))
        return {
            "metrics": metrics,
            "unit": units.kind.name,
            "unit_meaning": units.kind.meaning,
            "units": units.kind.several,
            "ablation": options.ablation,
            "ablation_words": in_words(options.ablation, loader.task.aligned),
            "metric": options.metric,
            "curve": {
                "size": sizes,
                "fraction": shares,
                **{name: [ratio(values[metric]) for values in curve] for name, curve in curves.items()},
                "random": [random[s] for s in sizes],
            },
            "layers": [
                {"layer": layer, "total": total, "kept": len(names), "units": names, **about}
                for layer, total, names, about in zip(
                    units.said_layers, units.sizes, units.names(mask), units.about, strict=True
                )
            ],
            "leave_one_out": tried,
            "notes": []
            if agreement is not None
            else ["Stability was not measured: it needs at least two searches of different seeds."],
        }

    def random_band(self, at: Callable[[Tensor], dict[str, Array]], like: Tensor, full: Array, empty: Array) -> Number:
        """Faithfulness of random circuits that keep as many units in each layer (K and V apart) as ``like``."""
        counts = self.units.counts(like)
        generator = torch.Generator().manual_seed(self.seed + 15_485_863 + int(like.sum()))
        values = []
        for _ in range(self.options.random_circuits):
            mask = self.units.random(counts, generator).to(like.device)
            values.append(float(self.share(at(mask)[self.column].mean(), full.mean(), empty.mean())))
        return spread(values, "random circuits with as many units in each layer")

    def leave_one_out(self, mask: Tensor) -> tuple[list[dict[str, Any]], list[int]]:
        """Measures the drop in faithfulness without each of the circuit's units, or of as many as the options say, at
        random.

        Each entry has the unit's layer and name, the drop in faithfulness and its interval, and p of "its removal costs
        nothing", of one side and adjusted for all the units tried. The worst loss comes first. Beside them are the
        units' numbers, the least loss first. Both are empty where no p can be trusted.
        """
        options, units, bootstrap = self.options, self.units, self.bootstrap
        kept = mask.nonzero().flatten().tolist()
        if not options.removed_units or len(bootstrap.sizes) < FEWEST_TESTED:  # nothing that could be tested
            return [], []
        order = np.random.default_rng(self.seed + 32_452_843).permutation(len(kept))[: options.removed_units]
        numbers = sorted(kept[k] for k in order)
        circuit, (full, empty) = self.values(mask), self.ends
        without = removed(self.bench, mask, numbers, self.column).numpy()  # [prompts, units]

        def drop(c: Array, w: Array, f: Array, e: Array) -> Array:
            return self.share(c, f, e) - self.share(w, f, e)

        lost = bootstrap.tested(drop, circuit[:, None], without, full[:, None], empty[:, None])
        p_values = max_t_of(bootstrap, lost, ABOVE)
        if np.isnan(p_values).any():
            return [], []
        found = []
        for k, unit in enumerate(numbers):
            only = torch.zeros_like(mask).index_fill_(0, torch.tensor([unit], device=mask.device), 1.0)
            every = zip(units.said_layers, units.names(only), strict=True)
            ((layer, name),) = [(i, names[0]) for i, names in every if names]
            own = number(lost.value[k], lost.low[k], lost.high[k], bootstrap.n, bootstrap.kind)
            found.append({"layer": layer, "unit": name, "drop": bootstrap.counted(own), "p": float(p_values[k])})
        losses = [float(entry["drop"]["value"]) for entry in found]
        worst = sorted(range(len(found)), key=lambda k: -losses[k])
        return [found[k] for k in worst], [numbers[k] for k in reversed(worst)]

    def removable_together(self, mask: Tensor, least_needed: list[int]) -> Number:
        """The most units, in the order of what each alone costs, that can go together without a certain loss.

        Certain is a drop of faithfulness whose interval is above zero. A unit can be dispensable alone because another
        unit does the same; here all units of the set are removed at once.
        """
        circuit, (full, empty) = self.values(mask), self.ends

        def may_go(count: int) -> bool:
            rest = mask.index_fill(0, torch.tensor(least_needed[:count], device=mask.device), 0.0)
            drop = lambda c, r, f, e: self.share(c, f, e) - self.share(r, f, e)
            lost = self.bootstrap.interval(drop, circuit, self.values(rest), full, empty)
            return not certain(lost)

        count = largest(len(least_needed), may_go)
        of = "the circuit" if len(least_needed) == int(mask.sum()) else "those drawn to be removed"
        return {**exact(count), "n": len(least_needed), "interval": f"of {len(least_needed):,} units, {of}"}


SIGNIFICANT = 0.05


def largest(most: int, may: Callable[[int], bool]) -> int:
    """The largest count, up to ``most``, that may be; 0 always may. Counts of 1, 2, 4, … are tried, and where one may
    not, halves of what lies between it and the last that may."""
    low, high = 0, 1
    while high <= most and may(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if may(middle) else (low, middle)
    return low


def share_needed(tried: list[dict[str, Any]], size: int, draws: int, seed: int) -> Number:
    """The share of the units tried whose removal certainly costs faithfulness: minimality.

    A removal is certain where its p of one side, adjusted for all removals that were tried (the chance that any of them
    is named wrongly is 5 %), is at most :data:`SIGNIFICANT`.

    Known exactly when every unit of the circuit was tried; else with an interval over the units drawn.
    """
    needed = np.array([entry["p"] <= SIGNIFICANT and entry["drop"]["value"] > 0 for entry in tried], dtype=np.float64)
    if len(tried) == size:
        share = float(needed.mean())
        return number(share, share, share, size, "every unit was tried")
    return ClusterBootstrap(np.arange(len(needed)), draws, seed, over="tried units").share(needed)
