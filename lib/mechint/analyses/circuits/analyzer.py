"""Finds one circuit of a model, whatever its units and its method, and measures it, in stages that survive a kill.

1. Refuse what cannot be measured: a metric that the prompts lack, a model that fails the task, an ablation without an
   effect.
2. Attribute the metric to every unit on the discovery prompts (:mod:`.methods.starting_orders`).
3. Find the circuit on the discovery prompts, by the method that the options name:
   a. ``search``: learn masks (:mod:`.search.learning`) at sizes that are halved between, for the smallest that reaches
      the target, again with other seeds, and prune the best one (:mod:`.search.pruning`);
   b. any other method of :mod:`.methods.all_methods`: rank the units, and take the top ones, as many as the budget says
      or as the fewest that reach the target.
4. Repeat step 3 at the same size where there is nothing to find: the controls of :mod:`.controls`.
5. Measure the circuit on the held-out prompts, with its intervals and controls (:mod:`.evidence`).
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...interventions.model import Model
from ...interventions.taps import Tap
from ...interventions.units import Units
from ...utils import files
from ...utils.errors import MechintError, NotAnswered
from ...utils.options import named
from ...utils.progress import Progress, point
from ...utils.statistics import ClusterBootstrap, Number, exact, number
from ..ablation import Ablation
from ..base import StagedAnalyzer, group_of
from ..loader import PromptLoader
from ..metrics import remedy
from .bench import Bench, attribute, check_bfloat16, check_effect
from .controls import EXCHANGED, METRIC_OF, RANDOM_WEIGHTS, ControlsBeside
from .evidence import Evidence
from .methods.all_methods import METHODS, SEARCH, scores_of
from .methods.all_methods import check as check_method
from .methods.evaluator import Evaluator
from .methods.found import FoundCircuit, how_pruned, how_ranked, went_back
from .methods.starting_orders import NOTES, further_orders, starting_scores
from .options import CircuitOptions
from .search.learning import Search
from .search.pruning import evaluations, pruned
from .time_estimate import announce

Masks = dict[str, Any]
Loaders = tuple[PromptLoader, PromptLoader]
C = TypeVar("C", bound=CircuitOptions)


CURVE = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Sizes of the faithfulness curve as shares of all units; those of the MIB benchmark (Mueller et al. 2025)."""


class CircuitAnalyzer(StagedAnalyzer[C]):
    """Finds the circuit of a model on a task and measures how much of the model it is.

    Args:
        model, config, device, others: As in :class:`StagedAnalyzer`; the seed is that of searches, controls and
            bootstraps.
        units: Units that masks cover.
    """

    name = "circuit"
    title = "Circuit"
    controls: tuple[str, ...] = (RANDOM_WEIGHTS, EXCHANGED)

    def __init__(
        self, model: Model, config: C, device: str | torch.device = "cpu", *, units: Units, **others: Any
    ) -> None:
        super().__init__(model, config, device, **others)
        self.units, self.learning, self.asked = units, config.learning, config.size(units.total)
        self.half = config.precision == "bfloat16"
        if self.half:
            check_bfloat16(self.model.device)
        if self.asked is not None:
            self.units.top(torch.zeros(self.units.total), self.asked)  # refuses a size that the model does not have
        self.masks: Masks = {}
        self.history: list[dict[str, Any]] = []

    # ---- the protocol -------------------------------------------------------------------------------------------

    def run_analysis(self, train_loader: PromptLoader, val_loader: PromptLoader) -> dict[str, Any]:
        """Searches on the prompts of ``train_loader`` and measures on those of ``val_loader``; returns the results."""
        val_loader.check_intervals()
        config, loaders = self.config, (train_loader, val_loader)
        self.check(train_loader, val_loader)
        accuracy = self.check_accuracy(val_loader)
        ablation = Ablation(self.model, self.units, config.ablation, train_loader.batches, train_loader.task.aligned)
        discovery = Bench(self.model, self.units, ablation, train_loader.batches, self.half)
        check_effect(discovery.ends, config.metric)
        held_out = Bench(self.model, self.units, ablation, val_loader.batches)
        controls = ControlsBeside(self, discovery, held_out, loaders)
        if config.method == SEARCH:
            announce(config, discovery, len(val_loader), controls.hands)
        with contextlib.closing(controls):
            return self.studied(discovery, held_out, loaders, controls, accuracy)

    def studied(
        self, discovery: Bench, held_out: Bench, loaders: Loaders, controls: ControlsBeside, accuracy: Number | None
    ) -> dict[str, Any]:
        """The results: of the circuit, of the controls, and of both on the held-out prompts."""
        config, (train_loader, val_loader) = self.config, loaders
        shares = [max(1, round(share * self.units.total)) for share in CURVE[:-1]]
        if config.method == SEARCH:
            found = self.searched(discovery, shares, controls.begin)
        else:
            found = self.ranked(discovery, shares, train_loader.task.aligned)
        size = int(found.mask.sum())
        controls.tell(size)
        order, ranking = self.ranking(discovery, found.attribution, size)
        evidence = self.evidence(held_out, val_loader)
        self.results = self.measured(evidence, found, ranking)
        made = controls.measured(found.size, size, found.begins_elsewhere)
        metrics, notes = self.results["metrics"], self.results["notes"]
        self.results["curve"]["attribution_order"] = order
        metrics |= {METRIC_OF[name]: c.number for name, c in made.items() if c.number is not None}
        if found.before_pruning is not None:
            metrics["faithfulness_unpruned"] = evidence.interval(found.before_pruning)
            metrics["units_kept_unpruned"] = exact(found.size)
        if accuracy is not None:
            metrics["accuracy_full"] = accuracy
        if self.half:
            cosine = discovery.half_cosine(config.metric)
            metrics["cosine_bfloat16"] = number(cosine, cosine, cosine, 1, "one batch")
        self.results |= found.results
        notes += [note for note in (*found.notes(self.results), *(c.note for c in made.values())) if note]
        self.keep_masks(found.mask, found.scores, found.importance)
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
        check_method(self.config.method, self.model, self.units, loader.batches)

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

    # ---- the evidence -------------------------------------------------------------------------------------------

    def evidence(self, bench: Bench, loader: PromptLoader) -> Evidence:
        """Gives what measures circuits on some held-out prompts."""
        return Evidence(bench, loader, self.config, self.seed)

    def measured(self, evidence: Evidence, found: FoundCircuit, ranking: Tensor) -> dict[str, Any]:
        """Every number of the circuit.

        Args:
            evidence: Measures on the held-out prompts.
            found: The circuit.
            ranking: Scores whose order is the attribution curve's, [units].
        """
        return evidence.measure(ranking, found.mask, found.moved, found.by_size)

    # ---- the circuit --------------------------------------------------------------------------------------------

    def searched(
        self, discovery: Bench, shares: list[int], sized: Callable[[int, bool], None] = lambda size, needed: None
    ) -> FoundCircuit:
        """The best circuit of several searches, pruned.

        Args:
            discovery: The discovery prompts.
            shares: Sizes of the faithfulness curve.
            sized: Is told, once it is known, the size that searches look for, and whether they have a further order to
                begin in.
        """
        config = self.config
        scores, how = self.stages.get("attribution", lambda: starting_scores(discovery, config.metric))
        given = self.asked is not None or config.price is not None  # the size is not read off the descent
        descent = self.search(
            discovery, scores, "descent", self.seed, 1, 2 * config.steps,
            shares if given else [*shares, *self.grid()], in_passing=given and min(shares) > 1,
        )  # fmt: skip
        priced = self.priced(discovery, scores)
        enough = next(iter(priced["masks"])) if priced else self.enough(discovery, descent["masks"])
        others = self.stages.get("needed", lambda: further_orders(discovery, config.metric, scores, enough))
        size = self.choose_size(discovery, scores, others, enough) if config.search == "smallest" else enough
        sized(size, bool(others))
        searches = [priced or self.search(discovery, scores, f"size {size}", self.seed, size, others=others)]
        searches += [
            self.search(discovery, scores, f"seed {k}", self.seed + k, size, others=others)
            for k in range(1, config.seeds)
        ]
        masks = [result["masks"][size] for result in searches]
        likeness = [discovery.faithful(mask, config.metric) for mask in masks]
        best = min(range(len(masks)), key=lambda k: abs(1 - likeness[k]))
        target = config.target_faithfulness if config.search == "smallest" else math.inf
        ended = self.pruned(discovery, "circuit", masks[best], searches[best]["logits"], target, size)
        circuit, logits = ended["mask"], searches[best]["logits"]
        by_size = self.by_size(discovery, sorted({*shares, int(circuit.sum())}), logits, descent["masks"])
        elsewhere = any(result["began_elsewhere"] for result in searches)
        return FoundCircuit(
            mask=circuit,
            size=size,
            scores=logits,
            importance=scores,
            attribution=scores,
            by_size=by_size | {int(circuit.sum()): circuit},
            moved=[mask for mask, result in zip(masks, searches, strict=True) if not result["went_back"]],
            before_pruning=masks[best],
            begins_elsewhere=bool(others),
            results={
                "pruning": {name: value for name, value in ended.items() if name != "mask"}
                | {
                    "units_searched": size,
                    "units": int(circuit.sum()),
                    "exchanged": int((circuit > masks[best]).sum()),
                    "faithfulness_discovery_searched": likeness[best],
                    "faithfulness_discovery": discovery.faithful(circuit, config.metric),
                },
                "searches": [
                    {
                        "name": f"seed {k}",
                        "weights": "trained",
                        "budget": size,
                        "chosen": k == best,
                        "faithfulness_discovery": likeness[k],
                        "units": self.units.names(mask),
                        "went_back": searches[k]["went_back"],
                    }
                    for k, mask in enumerate(masks)
                ],
            },
            notes=lambda results: [
                went_back(sum(bool(result["went_back"]) for result in searches), len(searches), elsewhere),
                how_pruned(results, target),
                NOTES[how],
                NOTES["needed"] if elsewhere else "",
            ],
        )

    def ranked(self, discovery: Bench, shares: list[int], aligned: bool) -> FoundCircuit:
        """The top units in the order of the method: the budget's number, or the fewest that reach the target.

        Args:
            discovery: The discovery prompts.
            shares: Sizes of the faithfulness curve.
            aligned: True if a position means the same in every prompt.
        """
        config, method = self.config, METHODS[self.config.method]
        attributed = self.stages.get("attribution", lambda: attribute(discovery, config.metric))
        evaluator = self.evaluator(discovery, aligned)
        scores = self.stages.get("ranking", lambda: scores_of(config.method, evaluator))
        size = self.fewest(discovery, scores) if self.asked is None else self.asked
        mask = self.units.top(scores, size)
        reached = discovery.faithful(mask, config.metric)
        scored_by = method.scored_by(evaluator)
        return FoundCircuit(
            mask=mask,
            size=size,
            scores=scores,
            importance=scores,
            attribution=attributed,
            by_size={each: self.units.top(scores, each) for each in sorted({*shares, size})},
            results={
                "ranking": {
                    "method": config.method,
                    "meaning": method.meaning,
                    "source": method.source,
                    "metric": scored_by or None,
                    "units": size,
                    "faithfulness_discovery": reached,
                },
                "searches": [],
            },
            notes=lambda results: [how_ranked(results)],
        )

    def evaluator(self, bench: Bench, aligned: bool) -> Evaluator:
        """Gives a method the prompts that it ranks the units on."""
        return Evaluator(bench, self.config.metric, self.asked or 1, self.learning, self.seed, aligned)

    def fewest(self, bench: Bench, scores: Tensor) -> int:
        """The fewest top units that reach the target on the discovery prompts, as all larger sizes of the grid do."""
        grid = self.grid()
        high = self.enough(bench, {size: self.units.top(scores, size) for size in grid})
        low = max((size for size in grid if size < high), default=0)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.reached(bench, self.units.top(scores, middle)) else (middle, high)
        return high

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
        others: Sequence[Tensor] = (), in_passing: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        """One stage: a search, its circuits by size, its logits, and its history; see :meth:`Search.run`."""
        config = self.config

        def compute() -> dict[str, Any]:
            how = replace(self.learning, steps=steps or config.steps, penalty=penalty)
            search = Search(bench, config.metric, scores, how, seed, size, others)
            part = self.stages.part(name)
            if part is not None:
                search.restore(part)

            def after_step() -> None:
                point(name, {**search.history[-1], "units": self.units.total})
                self.stages.save_part(name, search.state)

            masks = search.run(f"search, {name}", snapshots, after_step, in_passing)
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
        if self.config.price is None:
            return None
        half = max(1, self.units.total // 2)
        return self.search(bench, scores, "seed 0", self.seed, half, penalty=self.config.price)

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
        if self.asked is not None:
            return self.asked
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
        """Chooses the order of the units by attribution, for its curve: ``signed`` or by ``size``, and the scores of
        that order.

        The one whose circuit of this size is the better on the discovery prompts, as the searches choose their start:
        the learned mask is compared with the better of both. If both are equally good, it is the signed order.
        """
        orders = {"signed": scores, "size": scores.abs()}
        tops = {name: self.units.top(each, size) for name, each in orders.items()}
        best = max(tops, key=lambda name: bench.likeness(tops[name], self.config.metric))
        return best, orders[best]

    def units_of(self, random: Model, loader: PromptLoader) -> Units | None:
        """The units of the model with random weights; None where it is not to be searched."""
        return self.units

    def keep_masks(self, mask: Tensor, logits: Tensor, scores: Tensor) -> None:
        """Makes the tensors of ``final_masks.pt``, for each layer."""
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
