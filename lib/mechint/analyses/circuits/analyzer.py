"""The study of one circuit, whatever its units: search, evidence and controls, in stages that survive a kill."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...interventions.taps import Tap
from ...interventions.units import Units
from ...utils import files, live
from ...utils.errors import MechintError, NotAnswered
from ...utils.options import named
from ...utils.progress import Progress
from ...utils.statistics import ClusterBootstrap, Number, exact, number, said
from ..ablation import Ablation
from ..base import group_of
from ..loader import PromptLoader
from ..metrics import remedy
from ..random_weights import shuffled_weights
from .bench import Bench, check_bfloat16, check_effect
from .evidence import CircuitEvidence
from .methods.starting_orders import NOTES, further_orders, starting_scores
from .pruning import evaluations, pruned
from .search import NotFinite, Search, SearchOptions
from .work import announce

CURVE = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Sizes of the faithfulness curve as shares of all units; those of the MIB benchmark (Mueller et al. 2025)."""

Masks = dict[str, Any]


class CircuitAnalyzer(CircuitEvidence):
    """Finds the circuit of a model on a task and measures how much of the model it is.

    Args:
        arguments: As in :class:`CircuitEvidence`; the seed is that of searches, controls and bootstraps.
    """

    name = "circuit"
    title = "Circuit"

    def __init__(self, *arguments: Any, **others: Any) -> None:
        super().__init__(*arguments, **others)
        config = self.config
        self.half = config.precision == "bfloat16"
        if self.half:
            check_bfloat16(self.model.device)
        if config.search == "budget":
            self.units.top(torch.zeros(self.units.total), config.budget)  # refuses a budget that there is not
        self.masks: Masks = {}
        self.history: list[dict[str, Any]] = []

    # ---- the protocol -------------------------------------------------------------------------------------------

    def run_analysis(self, train_loader: PromptLoader, val_loader: PromptLoader) -> dict[str, Any]:
        """Searches on the prompts of ``train_loader`` and measures on those of ``val_loader``; returns the results."""
        config = self.config
        self.check(train_loader, val_loader)
        accuracy = self.check_accuracy(val_loader)
        ablation = Ablation(self.model, self.units, config.ablation, train_loader.batches, train_loader.task.aligned)
        discovery = Bench(self.model, self.units, ablation, train_loader.batches, self.half)
        check_effect(discovery.ends, config.metric)
        announce(config, discovery, len(val_loader))

        scores, how = self.stages.get("attribution", lambda: starting_scores(discovery, config.metric))
        shares = [max(1, round(share * self.units.total)) for share in CURVE[:-1]]
        descent = self.search(discovery, scores, "descent", self.seed, 1, 2 * config.steps, [*shares, *self.grid()])
        priced = self.priced(discovery, scores)
        enough = next(iter(priced["masks"])) if priced else self.enough(discovery, descent["masks"])
        others = self.stages.get("needed", lambda: further_orders(discovery, config.metric, scores, enough))
        size = self.choose_size(discovery, scores, others, enough) if config.search == "smallest" else enough
        searches = [priced or self.search(discovery, scores, f"size {size}", self.seed, size, others=others)]
        searches += [
            self.search(discovery, scores, f"seed {k}", self.seed + k, size, others=others)
            for k in range(1, config.seeds)
        ]
        found = [result["masks"][size] for result in searches]
        on_discovery = [discovery.faithful(mask, config.metric) for mask in found]
        best = min(range(len(found)), key=lambda k: abs(1 - on_discovery[k]))
        target = config.target_faithfulness if config.search == "smallest" else math.inf
        ended = self.pruned(discovery, "circuit", found[best], searches[best]["logits"], target, size)
        circuit, searched, size = ended["mask"], size, int(ended["mask"].sum())
        sizes = sorted({*shares, size})
        learned = self.by_size(discovery, sizes, searches[best]["logits"], descent["masks"])
        learned[size] = circuit
        order, ranking = self.ranking(discovery, scores, size)
        control, control_note = self.random_weights(train_loader, val_loader, searched, size, bool(others))

        bench = Bench(self.model, self.units, ablation, val_loader.batches)
        moved = [mask for mask, result in zip(found, searches, strict=True) if not result["went_back"]]
        elsewhere = any(result["began_elsewhere"] for result in searches)
        self.results = self.measure(bench, val_loader, ranking, circuit, moved, learned)
        if len(moved) < len(found):
            begun = "order" if elsewhere else "attribution's order"
            self.results["notes"].append(
                f"{len(found) - len(moved)} of {len(found)} searches ended with a worse circuit on the discovery "
                f"prompts than the {begun}, which they begin with, and went back to that one. They are left "
                "out of the stability: nothing in it depends on the seed. More STEPS, or another LR, may find a better "
                "circuit."
            )
        self.results["curve"]["attribution_order"] = order
        if control is not None:
            self.results["metrics"]["faithfulness_random_weights"] = control
        unpruned = self.interval(bench, val_loader, found[best])
        self.results["metrics"] |= {"faithfulness_unpruned": unpruned, "units_kept_unpruned": exact(searched)}
        self.results["pruning"] = {name: value for name, value in ended.items() if name != "mask"} | {
            "units_searched": searched,
            "units": size,
            "exchanged": int((circuit > found[best]).sum()),
            "faithfulness_discovery_searched": on_discovery[best],
            "faithfulness_discovery": discovery.faithful(circuit, config.metric),
        }
        self.results["notes"].append(how_pruned(self.results, target))
        notes = (NOTES[how], NOTES["needed"] if elsewhere else "", control_note)
        self.results["notes"] += [note for note in notes if note]
        if accuracy is not None:
            self.results["metrics"]["accuracy_full"] = accuracy
        if self.half:
            cosine = discovery.half_cosine(config.metric)
            self.results["metrics"]["cosine_bfloat16"] = number(cosine, cosine, cosine, 1, "one batch")
        self.results["searches"] = [
            {"name": f"seed {k}", "weights": "trained", "budget": searched, "chosen": k == best,
             "faithfulness_discovery": on_discovery[k], "units": self.units.names(mask),
             "went_back": searches[k]["went_back"]}
            for k, mask in enumerate(found)
        ]  # fmt: skip
        self.keep_masks(circuit, searches[best]["logits"], scores)
        return self.results

    def save_results(self) -> list[Path]:
        """Writes ``history.jsonl`` and ``final_masks.pt`` into the run directory; the runner writes the rest."""
        lines = "".join(json.dumps(entry, sort_keys=True) + "\n" for entry in self.history)
        return [
            files.write_text(self.directory / "history.jsonl", lines),
            files.write_torch(self.directory / "final_masks.pt", self.masks),
        ]

    # ---- before the work ----------------------------------------------------------------------------------------

    def check(self, train_loader: PromptLoader, val_loader: PromptLoader) -> None:
        """Refuses a metric that the prompts do not have."""
        loader = train_loader
        if self.config.metric == "logit_diff" and any(batch.bad() is None for batch in loader):
            raise MechintError(
                f"the metric logit_diff compares with a counterfactual twin's answer, and the task "
                f"{loader.task.name!r} has none of one token; choose kl, answer_logprob or loss"
            )

    @torch.no_grad()
    def check_accuracy(self, loader: PromptLoader) -> Number | None:
        """Accuracy of the full model on the evaluation prompts, None for plain text; refuses a failed task."""
        if loader.task.name == "text":
            return None
        right = []
        for batch in loader:
            logits, _ = self.model.trace(batch.tokens, Tap(), logits_at=batch.positions)
            right.append(batch.correct(logits).cpu())
        bootstrap = ClusterBootstrap(loader.templates(), self.config.bootstrap, self.seed)
        accuracy = bootstrap.share(torch.cat(right).numpy())
        if float(accuracy["value"]) < self.config.min_accuracy:
            raise NotAnswered(
                f"{self.model.source}: the model answers {accuracy['value']:.1%} of the held-out prompts of "
                f"{loader.task.name!r}, below the {self.config.min_accuracy:.0%} asked for; there is no circuit to "
                f"explain. {remedy(self.model, loader.task)}, or lower {named(group_of(self.config), 'min_accuracy')}"
            )
        return accuracy

    # ---- the search ---------------------------------------------------------------------------------------------

    def grid(self) -> list[int]:
        """Sizes the smallest circuit is looked for at: about 20 % apart."""
        sizes, size = [], float(self.units.total)
        while size >= 1:
            sizes.append(max(1, round(size)))
            size /= 1.2
        return sorted(set(sizes))

    def search(
        self, bench: Bench, scores: Tensor, name: str, seed: int, size: int, steps: int | None = None,
        snapshots: list[int] | None = None, weights: str = "trained", penalty: float | None = None,
        others: Sequence[Tensor] = (),
    ) -> dict[str, Any]:  # fmt: skip
        """One stage: a search, its circuits by size, its logits, and its history."""
        config = self.config

        def compute() -> dict[str, Any]:
            how = SearchOptions(
                config.gate, steps or config.steps, config.lr, config.budgets, config.temperature, config.hold, penalty
            )
            search = Search(bench, config.metric, scores, how, seed, size, others)
            part = self.stages.part(name)
            if part is not None:
                search.restore(part)

            def after_step() -> None:
                live.point(name, {**search.history[-1], "units": self.units.total})
                self.stages.save_part(name, search.state)

            masks = search.run(f"search, {name}", snapshots, after_step)
            logits = search.logits.detach().clone()
            return {
                "masks": masks,
                "logits": logits,
                "history": search.history,
                "went_back": search.went_back,
                "began_elsewhere": search.began_elsewhere,
            }

        result = self.stages.get(name, compute)
        if name not in {entry["search"] for entry in self.history}:
            self.history += [{"search": name, "weights": weights, **entry} for entry in result["history"]]
        return result

    def priced(self, bench: Bench, scores: Tensor) -> dict[str, Any] | None:
        """The search whose penalty chooses the number of units; None where something else does."""
        if self.config.search != "penalty":
            return None
        half = max(1, self.units.total // 2)
        return self.search(bench, scores, "seed 0", self.seed, half, penalty=self.config.penalty)

    def pruned(self, bench: Bench, name: str, mask: Tensor, order: Tensor, target: float, size: int) -> dict[str, Any]:
        """One stage: a circuit as a search found it, pruned to the target or, where that is infinite, to the size."""
        stage = f"pruned {name}"

        def compute() -> dict[str, Any]:
            result = pruned(
                bench, self.preserved(), mask, order, target=target, size=1 if math.isfinite(target) else size,
                limit=evaluations(self.units.total, self.config.steps),
                seen=self.stages.part(stage), save=lambda seen: self.stages.save_part(stage, lambda: dict(seen)),
                title=f"pruning, {name}",
            )  # fmt: skip
            return {
                "mask": result.mask,
                "evaluations": result.evaluations,
                "exchanges": result.exchanges,
                "minimal": result.minimal,
                "whole": result.whole,
            }

        return dict(self.stages.get(stage, compute))

    def preserved(self) -> list[str]:
        """The metrics in which a circuit has to reach the target."""
        return [self.config.metric]

    def reached(self, bench: Bench, mask: Tensor) -> bool:
        return all(bench.faithful(mask, metric) >= self.config.target_faithfulness for metric in self.preserved())

    def enough(self, bench: Bench, descent: dict[int, Tensor]) -> int:
        """The budget, or the smallest size on the grid from which the descent, in passing, reached the target."""
        if self.config.search == "budget":
            return int(self.config.budget)
        grid = self.grid()
        short = [at for at, size in enumerate(grid) if not self.reached(bench, descent[size])]
        return grid[max(short, default=-1) + 1]

    def choose_size(self, bench: Bench, scores: Tensor, others: Sequence[Tensor], enough: int) -> int:
        """The smallest size on the grid whose own search reaches the target on the discovery prompts.

        By bisection between 1 and the size that is known to be enough.
        """
        grid = self.grid()

        def searched(size: int) -> bool:
            found = self.search(bench, scores, f"size {size}", self.seed, size, others=others)
            return self.reached(bench, found["masks"][size])

        low, high = -1, grid.index(enough)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if searched(grid[middle]) else (middle, high)
        return grid[high]

    def by_size(self, bench: Bench, sizes: list[int], logits: Tensor, passed: dict[int, Tensor]) -> dict[int, Tensor]:
        """A circuit of each size: the top of the logits or, where it is closer to the model on the discovery prompts,
        the one that the descent had as it passed that size."""
        found = {}
        with Progress("circuits by size", len(sizes)) as progress:
            for size in sizes:
                at_hand = [self.units.top(logits, size), *([passed[size]] if size in passed else [])]
                found[size] = max(at_hand, key=lambda mask: bench.likeness(mask, self.config.metric))
                progress.step()
        return found

    def ranking(self, bench: Bench, scores: Tensor, size: int) -> tuple[str, Tensor]:
        """How attribution ranks the units, for its curve: ``signed`` or by ``size``, and the scores of that order.

        The one whose circuit of this size is the better on the discovery prompts, as the searches choose their start:
        a learned mask is to be held against the better of both. Of equally good ones it is the signed order.
        """
        orders = {"signed": scores, "size": scores.abs()}
        tops = {name: self.units.top(each, size) for name, each in orders.items()}
        best = max(tops, key=lambda name: bench.likeness(tops[name], self.config.metric))
        return best, orders[best]

    def random_weights(
        self, train_loader: PromptLoader, val_loader: PromptLoader, size: int, wanted: int, needed: bool
    ) -> tuple[Number | None, str]:
        """The same search on the same model with the entries of every weight tensor shuffled; and a note, if any.

        Args:
            train_loader, val_loader, size: As of the search on the trained weights.
            wanted: Units of the circuit once it is pruned.
            needed: Whether that one had a further order to begin in, so that this one is to have it as well.
        """
        model = shuffled_weights(self.model, self.seed + 104_729)
        units = self.units_of(model, train_loader)
        if units is None:
            return None, "The control on random weights was not asked for."
        ablation = Ablation(model, units, self.config.ablation, train_loader.batches, train_loader.task.aligned)
        bench = Bench(model, units, ablation, train_loader.batches, self.half)
        held_out = Bench(model, units, ablation, val_loader.batches)
        try:
            check_effect(bench.ends, self.config.metric)
            self.check_denominator(held_out, val_loader)
        except MechintError:
            return (
                None,
                "The control on random weights was not measured: dropping all of its units has no clear effect.",
            )
        scores, how = self.stages.get("random weights attribution", lambda: starting_scores(bench, self.config.metric))
        others: list[Tensor] = []
        if needed:
            others = self.stages.get(
                "random weights needed", lambda: further_orders(bench, self.config.metric, scores, size)
            )
        try:
            result = self.search(bench, scores, "random weights", self.seed, size, weights="random", others=others)
        except NotFinite as error:  # shuffled norms of some models make logits of 10⁷; the trained one's circuit stands
            return None, f"The control on random weights was not measured: {error}."
        ended = self.pruned(bench, "random weights", result["masks"][size], result["logits"], math.inf, wanted)
        mask = ended["mask"]
        if int(mask.sum()) > wanted:  # at the bound of its evaluations
            mask = self.units.top(result["logits"].masked_fill(mask == 0, -math.inf), wanted)
        number = self.interval(held_out, val_loader, mask)
        notes = (NOTES[how], NOTES["needed"] if result["began_elsewhere"] else "")
        return number, " ".join(f"On random weights: {note}" for note in notes if note)

    def units_of(self, random: Any, loader: PromptLoader) -> Units | None:
        """The units of the model with random weights; None where it is not to be searched."""
        return self.units

    def keep_masks(self, mask: Tensor, logits: Tensor, scores: Tensor) -> None:
        """What ``final_masks.pt`` holds, for each layer."""
        parts = [self.units.by_layer(tensor.detach().cpu()) for tensor in (logits, mask, scores)]
        self.masks = {
            name: {
                "logits": own[0].clone(),
                "mask": own[1].clone(),
                "importance": own[2].clone(),
                "sparsity": 1.0 - float(own[1].mean()),
            }
            for name, *own in zip(self.units.layer_names, *parts, strict=True)
        }


def how_pruned(results: dict[str, Any], target: float) -> str:
    """What pruning made of the circuit, and what of it is certain, in words.

    Args:
        results: With the metrics of the circuit, and what was done to it.
        target: Faithfulness that a circuit had to keep on the discovery prompts; infinite where the size is given.
    """
    metrics, done = results["metrics"], results["pruning"]
    before, after = (f"{metrics[name]['value']:.3f}" for name in ("faithfulness_unpruned", "faithfulness"))
    tried = f"none of the exchanges that were tried ({done['exchanges']:,}) makes it"
    if math.isinf(target):
        text = (
            f"Exchanges of single units on the discovery prompts put {done['exchanged']:,} others into the circuit of "
            f"the search: held-out faithfulness {before} before, {after} after."
        )
        end = f"In the end {tried} more like the model."
    elif done["faithfulness_discovery_searched"] < target:
        return (
            f"No unit was removed or exchanged: on the discovery prompts the faithfulness of the search's circuit is "
            f"{done['faithfulness_discovery_searched']:.3f}, below the target {target:g}."
        )
    else:
        text = (
            f"The search kept {done['units_searched']:,} units, with a held-out faithfulness of {before}; removing and "
            f"exchanging units on the discovery prompts left {done['units']:,}, with {after}."
        )
        end = f"On these prompts no single unit can go, and {tried} smaller." if done["minimal"] else ""
    if done["whole"] and end:
        return f"{text} {end}"
    bound = f"at the bound of its work, {done['evaluations']:,} circuits measured"
    if done["minimal"]:
        return f"{text} On these prompts no single unit can go; exchanges stopped {bound}."
    return (
        f"{text} It stopped {bound}, so a smaller circuit, or a better one of its size, may be found by the same steps."
    )


def summary(results: dict[str, Any]) -> list[str]:
    """The figures a user wants to see at once."""
    metrics = results["metrics"]

    def say(name: str, form: str = ".3f") -> str:
        entry = metrics.get(name)
        if entry is None:
            return "not measured"
        return said(entry, form)

    kept, total = metrics["units_kept"]["value"], metrics["units_total"]["value"]
    lines = [f"  kept            {kept} of {total} {results['units']} ({kept / total:.1%})"]
    for title, name in (
        ("faithfulness", "faithfulness"),
        ("before pruning", "faithfulness_unpruned"),
        ("random circuits", "faithfulness_random"),
        ("random weights", "faithfulness_random_weights"),
        ("completeness", "completeness"),
        ("minimality", "minimality"),
        ("stability", "jaccard"),
    ):
        lines.append(f"  {title:<16}{say(name)}")
    return lines
