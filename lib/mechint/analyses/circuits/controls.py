"""Controls that repeat the search for a circuit where there is nothing to find: what can a mask fit by itself?

A mask is learned, so a good mask may be the search's own work. Both controls learn a mask of the same size in the same
way, and their shares are on the scale of faithfulness: 1 is the prediction that is asked for, 0 what the trained model
says with every unit dropped; a mask further from the prediction than that is below 0.

1. Random weights (Cao et al. 2021, after Zhang and Bowman 2018): the model with the entries of every weight tensor
   shuffled is asked for the *trained* model's predictions. Its share needs no learned weights.
2. Exchanged answers (a control task, after Hewitt and Liang 2019): the trained model is asked for its own predictions
   with the answers exchanged, each for another, the same one in all prompts. Its share is the mask's work, since
   the model has not learned these answers. Rankings learn no mask and have no such control.

The controls of a small model are made in processes beside this one (:mod:`mechint.utils.beside`), where the system
allows it, from the moment that the size of the circuit is known.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ...interventions.model import Model
from ...interventions.units import Units
from ...utils import beside
from ...utils.beside import Beside
from ...utils.errors import MechintError
from ...utils.program import suited
from ...utils.statistics import Number
from ..ablation import Ablation
from ..loader import PromptLoader
from ..random_weights import shuffled_weights
from .bench import Bench, check_effect
from .evidence import Evidence
from .methods.all_methods import SEARCH, scores_of
from .methods.evaluator import Evaluator
from .methods.starting_orders import NOTES, further_orders, starting_scores
from .options import CircuitOptions

RANDOM_WEIGHTS, EXCHANGED = "random weights", "exchanged answers"
METRIC_OF = {RANDOM_WEIGHTS: "mask_on_random_weights", EXCHANGED: "mask_for_exchanged_answers"}
"""Name of each control's number in results.json."""
TITLES = {RANDOM_WEIGHTS: "The control on random weights", EXCHANGED: "The control of exchanged answers"}


@dataclass(frozen=True)
class Control:
    """The number of a control, None where it was not measured, and a note, if any."""

    number: Number | None
    note: str = ""


class Searcher(Protocol):
    """The parts of :class:`.analyzer.CircuitAnalyzer` that a control repeats."""

    model: Model
    seed: int
    half: bool
    stages: Any
    controls: tuple[str, ...]
    history: list[dict[str, Any]]

    @property
    def config(self) -> CircuitOptions: ...

    def units_of(self, random: Model, loader: PromptLoader) -> Units | None: ...

    def evidence(self, bench: Bench, loader: PromptLoader) -> Evidence: ...

    def evaluator(self, bench: Bench, aligned: bool) -> Evaluator: ...

    def search(self, bench: Bench, scores: Tensor, name: str, seed: int, size: int, *, weights: str = "trained",
               others: Sequence[Tensor] = ()) -> dict[str, Any]: ...  # fmt: skip

    def pruned(
        self, bench: Bench, name: str, mask: Tensor, order: Tensor, target: float, size: int
    ) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Controls:
    """Repeats the search of a circuit.

    Attributes:
        analyzer: Searches and prunes.
        discovery, held_out: The trained model on the prompts of the two halves.
        loaders: The same prompts.
        size: Units that the search looked for.
        wanted: Gives the number of units of the circuit once it is pruned.
        needed: True if the search had a further starting order; those of controls then get one, too.
    """

    analyzer: Searcher
    discovery: Bench
    held_out: Bench
    loaders: tuple[PromptLoader, PromptLoader]
    size: int
    wanted: Callable[[], int]
    needed: bool

    def measured(self, name: str) -> Control:
        """A control by its name; one that cannot be made does not end the analysis."""
        way = {RANDOM_WEIGHTS: self.random_weights, EXCHANGED: self.exchanged_answers}[name]
        with suited(self.analyzer.model.work(self.discovery.batches[0].tokens.numel())):
            try:
                return way()
            except MechintError as reason:
                return Control(None, f"{TITLES[name]} was not measured: {reason}.")

    def random_weights(self) -> Control:
        """The model with the entries of every weight tensor shuffled, asked for the trained model's predictions."""
        own, (train, evaluation) = self.analyzer, self.loaders
        model = shuffled_weights(own.model, own.seed + 104_729)
        units = own.units_of(model, train)
        if units is None:
            return Control(None, f"{TITLES[RANDOM_WEIGHTS]} was not asked for.")
        ablation = Ablation(model, units, own.config.ablation, train.batches, train.task.aligned)
        bench, held_out = (
            Bench(model, units, ablation, loader.batches, own.half).asked_for(trained)
            for loader, trained in ((train, self.discovery), (evaluation, self.held_out))
        )
        return self.control(RANDOM_WEIGHTS, bench, held_out)

    def exchanged_answers(self) -> Control:
        """The trained model, asked for its predictions with the answers exchanged."""
        order = exchange([self.discovery, self.held_out], self.analyzer.seed)
        if order is None:
            return Control(None, f"{TITLES[EXCHANGED]} was not measured: all prompts have one answer.")
        return self.control(EXCHANGED, self.discovery.exchanged(order), self.held_out.exchanged(order))

    def control(self, name: str, bench: Bench, held_out: Bench) -> Control:
        """Ranks or searches on the discovery prompts, and measures on the held-out ones."""
        own = self.analyzer
        evidence = own.evidence(held_out, self.loaders[1])
        try:
            check_effect(bench.ends, own.config.metric)
            evidence.check()
        except MechintError:
            return Control(None, f"{TITLES[name]} was not measured: dropping all of its units has no clear effect.")
        if own.config.method != SEARCH:
            evaluator = own.evaluator(bench, self.loaders[0].task.aligned)
            scores = own.stages.get(f"{name} ranking", lambda: scores_of(own.config.method, evaluator))
            return Control(evidence.interval(bench.units.top(scores, self.wanted())))
        mask, notes = self.searched(name, bench)  # shuffled norms of some models make logits of 10⁷, which is refused
        where = "On random weights" if name == RANDOM_WEIGHTS else "For exchanged answers"
        return Control(evidence.interval(mask), " ".join(f"{where}: {note}" for note in notes if note))

    def searched(self, name: str, bench: Bench) -> tuple[Tensor, list[str]]:
        """The circuit of ``wanted`` units that a search for ``size`` and pruning find; and notes."""
        own, stages, metric = self.analyzer, self.analyzer.stages, self.analyzer.config.metric
        scores, how = stages.get(f"{name} attribution", lambda: starting_scores(bench, metric))
        others: list[Tensor] = []
        if self.needed:
            others = stages.get(f"{name} needed", lambda: further_orders(bench, metric, scores, self.size))
        weights = "random" if name == RANDOM_WEIGHTS else "exchanged"
        result = own.search(bench, scores, name, own.seed, self.size, weights=weights, others=others)
        wanted = self.wanted()
        mask: Tensor = own.pruned(bench, name, result["masks"][self.size], result["logits"], math.inf, wanted)["mask"]
        if int(mask.sum()) > wanted:  # at the bound of its evaluations
            mask = bench.units.top(result["logits"].masked_fill(mask == 0, -math.inf), wanted)
        return mask, [NOTES[how], NOTES["needed"] if result["began_elsewhere"] else ""]


Made = dict[str, tuple[Control, list[dict[str, Any]]]]
"""Controls by name, each with what it adds to the history of searches."""


class ControlsBeside:
    """The controls of one analysis, made in further processes while this one prunes and measures, where there are any.

    Args:
        analyzer, discovery, held_out, loaders: As of :class:`Controls`.
    """

    def __init__(
        self, analyzer: Searcher, discovery: Bench, held_out: Bench, loaders: tuple[PromptLoader, PromptLoader]
    ) -> None:
        self.analyzer, self.trained = analyzer, (discovery, held_out)
        self.controls = functools.partial(Controls, analyzer, discovery, held_out, loaders)
        ways = [RANDOM_WEIGHTS, *([EXCHANGED] if analyzer.config.method == SEARCH else [])]
        self.names = [name for name in analyzer.controls if name in ways]
        work = max(analyzer.model.work(batch.tokens.numel()) for batch in discovery.batches)
        self.hands = min(beside.hands(work, analyzer.model.device), len(self.names))
        """Further processes."""
        self.begun: list[Beside[Made]] = []

    def begin(self, size: int, needed: bool) -> None:
        """Begins, where there are processes for it; arguments as of :class:`Controls`."""
        for bench in self.trained:
            _ = bench.ends  # measured once, so that all processes have the same bits of it
        for k in range(self.hands):
            self.begun.append(Beside(functools.partial(self.make, self.names[k :: self.hands], size, needed)))

    def make(self, names: Sequence[str], size: int, needed: bool, wanted: Callable[[], int]) -> Made:
        """Some of the controls; arguments as of :class:`Controls`."""
        found, history = Made(), self.analyzer.history
        controls = self.controls(size, functools.cache(wanted), needed)  # it is told once
        for name in names:
            before = len(history)
            found[name] = controls.measured(name), history[before:]
        return found

    def tell(self, wanted: int) -> None:
        """Says how many units the pruned circuit has."""
        for each in self.begun:
            each.tell(wanted)

    def measured(self, size: int, wanted: int, needed: bool) -> dict[str, Control]:
        """Every control by name, whether a process beside this one made it or not; arguments as of
        :class:`Controls`."""
        made = Made()
        for each in self.begun:
            made |= (each.result() or [{}])[0]
        found, here = {}, self.controls(size, lambda: wanted, needed)
        for name in self.names:
            if name in made:
                found[name], history = made[name]
                self.analyzer.history += history
            else:
                found[name] = here.measured(name)
        return found

    def close(self) -> None:
        """Ends the processes, whatever they do."""
        for each in self.begun:
            each.stop()


def exchange(benches: list[Bench], seed: int) -> Tensor | None:
    """The id that each id of the vocabulary becomes, [V]: all answers of the prompts in one cycle, in a random order.

    Answers are the right and the wrong ids of every prompt; other ids stay. None where there are fewer than two.
    """
    answers = [each for bench in benches for each in bench.answers]
    said = torch.cat([ids.flatten() for each in answers for ids in (each.answers, each.wrong) if ids is not None])
    ids = said[said >= 0].unique()
    if len(ids) < 2:
        return None
    cycle = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed + 86_028_121)).to(ids.device)]
    order = torch.arange(len(answers[0].head), device=ids.device)
    order[cycle] = cycle.roll(-1)
    return order
