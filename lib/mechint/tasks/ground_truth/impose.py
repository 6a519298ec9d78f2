"""Training that imposes a known circuit: strict interchange intervention training, SIIT (Gupta et al. 2024).

The loss is the sum of three cross-entropies: of the answers; of what the causal model says when units that carry a
variable come from another prompt (interchange intervention training, Geiger et al. 2022); and of the answers when all
other units, or a random half of them, come from another prompt (strictness). Since an idle unit could also hold what is
the same on every prompt, some steps put zeros into all of them instead.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import files
from ...errors import MechintError
from ...interventions import Edit
from ...models.gpt2 import GPT2Config
from ...models.load import hf_config, load, to_hf_state_dict
from ...models.mamba import MambaConfig
from ...progress import Progress
from ...run import run
from ...rundir import fingerprint
from ...units import Units, unit_kinds
from ..base import Prompts, generator, mix
from ..config import TaskConfig
from ..recall import Recall
from .blueprint import ALWAYS, TWINS, Compiled
from .causal import INPUTS, Alignment, Variable, sources, values_of
from .truth import STEPS, GroundTruth, Part

FOLDER = Path("output/ground_truth/imposed")
ATTEMPTS = 3
"""Trainings, each from weights of its own, before a circuit is given up."""
CHANCE = 0.75
"""Without the units of a variable at most this share of the answers is right."""


@dataclass(frozen=True)
class Recipe:
    """How a circuit is imposed.

    Attributes:
        steps: Of the optimiser.
        batch: Prompts of a step.
        lr: Largest learning rate of AdamW; it rises over ``warmup`` steps and falls along a cosine.
        warmup: Steps.
        interchange, strictness: Weights of the second and third part of the loss; the first has 1.
        turns: Whose interchange is trained at each step, over and over: numbers of variables; all in turn where empty.
        idle: What is put into idle units at each step, over and over: ``zero`` into all, or another prompt's values
            into ``all`` or a random ``half``.
        match: Weight, in the third part, of the mean squared change of the logits: an idle unit then has no vote that
            others overrule.
        offered: How many units each variable may have at first, where they are drawn.
        kept: And in the end.
        narrow: The step from which the circuit is those that are kept; 0 for never.
    """

    steps: int
    batch: int = 64
    lr: float = 1e-2
    warmup: int = 50
    interchange: float = 1.0
    strictness: float = 1.0
    turns: tuple[int, ...] = ()
    idle: tuple[str, ...] = ("zero", "half")
    match: float = 0.0
    offered: tuple[int, ...] = ()
    kept: tuple[int, ...] = ()
    narrow: int = 0

    def rate(self, step: int) -> float:
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / (self.steps - self.warmup)))


class Imposed(ABC):
    """A trained model with an imposed circuit, of associative recall over two layers.

    Attributes:
        accuracy: Share of answers, and of interchange interventions, that must be right.
        tolerance: Share of answers that may change from right to wrong, or back, when all idle units are ablated.
    """

    name: ClassVar[str]
    accuracy: ClassVar[float] = 0.98
    tolerance: ClassVar[float] = 0.01
    recipe: ClassVar[Recipe]

    def __init__(self, config: TaskConfig | None = None) -> None:
        self.task: Recall = Recall(config or TaskConfig(name="recall", pairs=3, keys=6, values=6))

    @abstractmethod
    def new_model(self) -> Any:
        """An untrained model, drawn from torch's global generator."""

    def constrain(self, model: Any) -> None:
        """Sets weights that are not to be learned, before and behind every step; here none."""
        return

    @abstractmethod
    def align(self, model: Any, seed: int) -> Alignment:
        """Which units are to carry what."""

    def narrow(self, model: Any, alignment: Alignment, seed: int) -> Alignment:
        """The alignment without units that a trained model makes no use of, if any may be left out."""
        return alignment

    @abstractmethod
    def declare(self, model: Any, alignment: Alignment) -> list[Part]:
        """The units of the circuit, and what is blind to them."""

    def compile(self, *, seed: int = 0, folder: Path | str = FOLDER) -> Compiled:
        """The trained model, from a checkpoint in ``folder`` or trained and left there, checked in both cases.

        Training that did not impose the circuit begins again from other weights, :data:`ATTEMPTS` times in all.

        Raises:
            MechintError: training never imposed the circuit (what fails at last is named).
        """
        recipe = {"name": self.name, "seed": seed, "task": self.task.description, **dataclasses.asdict(self.recipe)}
        path = Path(folder) / f"{self.name}_seed{seed}_{fingerprint(recipe)[:8]}.pt"
        if path.exists():
            model = load(path)
            alignment = self.checked(model, seed)
        else:
            model, alignment = self.imposed(seed)
            config = {**hf_config(model), "recipe": recipe}
            files.write_torch(path, {"model": to_hf_state_dict(model), "config": config})
        return Compiled(model, self.task, GroundTruth(tuple(self.declare(model, alignment)), -math.inf, math.inf))

    def imposed(self, seed: int, attempt: int = 0) -> tuple[Any, Alignment]:
        """A trained model and the units of its circuit, of this attempt or a later one."""
        model = self.train(seed, attempt)
        try:
            return model, self.checked(model, seed)
        except MechintError as error:
            if attempt + 1 >= ATTEMPTS:
                raise
            print(f"note: {error}; begun again from other weights", file=sys.stderr, flush=True)
        return self.imposed(seed, attempt + 1)

    def checked(self, model: Any, seed: int) -> Alignment:
        """The units of the circuit, held against interventions."""
        model.source = f"{self.name}, seed {seed}"
        alignment = self.narrow(model, self.align(model, seed), seed)
        check(model.requires_grad_(False), alignment, self, seed)
        return alignment

    def train(self, seed: int, attempt: int = 0) -> Any:
        """Trains from random weights; everything random depends on the seed and the attempt alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix(seed, "weights", attempt) if attempt else mix(seed, "weights"))
            model = self.new_model()
        self.constrain(model)
        model.source = f"{self.name}, seed {seed}"
        alignment, recipe = self.align(model, seed), self.recipe
        decay = [p for p in model.parameters() if p.dim() > 1]
        rest = [p for p in model.parameters() if p.dim() <= 1]
        groups = [{"params": decay, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98))
        with Progress(f"imposing {self.name}", recipe.steps) as progress:
            for step in range(recipe.steps):
                if step and step == recipe.narrow:
                    alignment = self.narrow(model, alignment, seed)
                for group in optimizer.param_groups:
                    group["lr"] = recipe.rate(step)
                parts = losses(model, self.task, alignment, recipe, mix(seed, step), step)
                loss = parts[0] + recipe.interchange * parts[1] + recipe.strictness * parts[2]
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                if not math.isfinite(float(norm)):
                    raise MechintError(f"{self.name}: the gradient is not finite at step {step}; lower its lr")
                optimizer.step()
                self.constrain(model)
                progress.step("losses " + " ".join(f"{float(part.detach()):.3f}" for part in parts))
        return model.eval()


def losses(model: Any, task: Recall, alignment: Alignment, recipe: Recipe, seed: int, step: int) -> list[Tensor]:
    """Behaviour, interchange and strictness of one step, each a mean cross-entropy in nats."""
    prompts = task.sample(recipe.batch, "train", seed)
    source = sources(task, prompts, seed)
    there = values_of(model, source.tokens, alignment.sites(model))
    turns = recipe.turns or range(len(alignment.variables))
    variable, fill = alignment.variables[turns[step % len(turns)]], recipe.idle[step % len(recipe.idle)]
    said, defined = variable.expected(prompts, source)
    fills = dict.fromkeys(there, 0.0) if fill == "zero" else there
    idle = alignment.idle_edits(model, fills, generator("idle", seed) if fill == "half" else None)
    whole, without = (said_by(model, prompts, edits) for edits in ([], idle))
    strict = cross_entropy(without, prompts.answers)
    if recipe.match:
        strict = strict + recipe.match * F.mse_loss(without, whole)
    return [
        cross_entropy(whole, prompts.answers),
        cross_entropy(said_by(model, prompts, variable.edits(model, there)), said, defined),
        strict,
    ]


def said_by(model: Any, prompts: Prompts, edits: Sequence[Edit]) -> Tensor:
    """The logits of a run under edits, [n, Q, V]."""
    return run(model, prompts.tokens, edits=edits, logits_at=prompts.positions).logits


def cross_entropy(logits: Tensor, answers: Tensor, defined: Tensor | None = None) -> Tensor:
    """Mean over those of the answers [n, Q] that are defined."""
    each = F.cross_entropy(logits.flatten(0, 1), answers.flatten(), reduction="none")
    return each.mean() if defined is None else each[defined.flatten()].mean()


# ---- holding it against interventions ---------------------------------------------------------------------------


@torch.no_grad()
def check(model: Any, alignment: Alignment, imposed: Imposed, seed: int, count: int = 1000) -> dict[str, float]:
    """Holds a trained model against its causal model on prompts of the evaluation split.

    Returns:
        Accuracy of the answers, of every variable's interchange interventions, without every variable's units, and
        with all idle units ablated (for each of zero, mean, resample and counterfactual).

    Raises:
        MechintError: any of them contradicts what is declared; the first is named.
    """
    prompts = imposed.task.sample(count, "evaluation", seed)
    source = sources(imposed.task, prompts, seed)
    there = values_of(model, source.tokens, alignment.sites(model))
    found = {"answers": right(model, prompts, [])}
    expect(model, "of the answers are right", found["answers"], imposed.accuracy)
    for variable in alignment.variables:
        said, defined = variable.expected(prompts, source)
        share = right(model, prompts, variable.edits(model, there), said, defined)
        found[f"interchange, {variable.meaning}"] = share
        expect(model, f"of interchange interventions on {variable.meaning} are right", share, imposed.accuracy)
        if variable.inputs:
            share = right(model, prompts, variable.edits(model, dict.fromkeys(there, 0.0)))
            found[f"without {variable.meaning}"] = share
            if share > CHANCE:
                raise MechintError(
                    f"{model.source}: without {variable.meaning} {share:.1%} of the answers are still right, and at "
                    f"most {CHANCE:.0%} may be; the circuit was not imposed"
                )
    for name, fills in ablations(model, prompts, there).items():
        share = right(model, prompts, alignment.idle_edits(model, fills))
        found[f"idle, {name}"] = share
        if abs(share - found["answers"]) > imposed.tolerance:
            raise MechintError(
                f"{model.source}: with all idle units ablated ({name}) {share:.2%} of the answers are right in place "
                f"of {found['answers']:.2%}, a change of more than {imposed.tolerance:.0%}; they are not idle, train "
                "for more steps or with more strictness"
            )
    return found


def expect(model: Any, what: str, share: float, least: float) -> None:
    if share < least:
        raise MechintError(
            f"{model.source}: {share:.2%} {what}, and at least {least:.0%} must be; the circuit was not imposed, train "
            "for more steps"
        )


def ablations(model: Any, prompts: Prompts, there: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
    """What takes the place of idle units, by the name of the ablation and by site."""
    assert prompts.twins is not None  # recall has them
    return {
        "zero": dict.fromkeys(there, 0.0),
        "mean": {site: value.mean(0) for site, value in there.items()},
        "resample": there,
        "counterfactual": values_of(model, prompts.twins, list(there)),
    }


def right(
    model: Any, prompts: Prompts, edits: Sequence[Edit], answers: Tensor | None = None, defined: Tensor | None = None
) -> float:
    """Share of the answers [n, Q], of those that are defined, that a run under edits gives."""
    hits = said_by(model, prompts, edits).argmax(-1) == (prompts.answers if answers is None else answers)
    return float((hits if defined is None else hits[defined]).double().mean())


# ---- the models --------------------------------------------------------------------------------------------------


class GPT2Recall(Imposed):
    """A GPT-2 of two layers: one head of the first says what stood before, one of the second what follows it."""

    name = "siit_gpt2_recall"
    recipe = Recipe(steps=500)

    def new_model(self) -> Any:
        from ...train_models import make_model

        return make_model(GPT2Config(self.task.vocab_size, self.task.length, 32, 2, 4, 64), "unit")

    def heads(self, model: Any, seed: int) -> list[int]:
        return [int(torch.randint(model.config.n_head, (), generator=generator("heads", seed, k))) for k in range(2)]

    def align(self, model: Any, seed: int) -> Alignment:
        c = model.config
        first, second = (layer * c.n_head + head for layer, head in enumerate(self.heads(model, seed)))
        every = lambda head: tuple(range(head * c.d_head, (head + 1) * c.d_head))
        return Alignment(
            (
                Variable("what stood before", "head", (first,), ("before",)),
                Variable("what is said", "head", (second,), INPUTS),
                Variable("the keys of positions", "k", every(first), ()),
                Variable("the keys of what stood before", "k", every(second), ("before",)),
                Variable("the values", "v", every(second), ("values",)),
                Variable("what is asked for", "q", every(second), ("query",)),
            ),
            ("head", "mlp"),
        )

    def declare(self, model: Any, alignment: Alignment) -> list[Part]:
        c, parts = model.config, []
        for layer, blind in ((0, (ALWAYS, TWINS)), (1, (TWINS, ()))):
            (head,) = alignment.variables[layer].units
            parts.append(Part(alignment.variables[layer].meaning, "head", layer, (head % c.n_head,)))
            for block in range(2):
                for e in range(c.d_head):
                    unit = (block, head % c.n_head, e)
                    parts.append(Part(alignment.variables[layer].meaning, "kv", layer, unit, blind=blind[block]))
        return parts


class MambaRecall(Imposed):
    """A Mamba of two layers: some channels of the first say what stood before, some of the second what follows it.

    The second layer's convolution reads the current token alone: else it says itself what stood before, and sooner.
    What the first variable says is learned slowest, so three of four interchanges are its own. Training makes use of
    some of the channels that it may use, so from the middle on it may use those alone.
    """

    name = "siit_mamba_recall"
    recipe = Recipe(
        4000,
        strictness=2.0,
        turns=(1, 0, 0, 0),
        idle=("all", "zero", "all"),
        match=0.1,
        offered=(16, 32),
        kept=(10, 16),
        narrow=1600,
    )

    def new_model(self) -> Any:
        from ...train_models import make_model

        return make_model(MambaConfig(self.task.vocab_size, 32, 2, 64, 16, 4, 4), "unit")

    @torch.no_grad()
    def constrain(self, model: Any) -> None:
        model.layers[1].conv1d.weight[..., :-1] = 0.0

    def align(self, model: Any, seed: int) -> Alignment:
        units = Units(model, unit_kinds(model)["channel"])
        chosen = []
        for layer, count in enumerate(self.recipe.offered):
            some = torch.randperm(units.per_layer, generator=generator("carriers", seed, layer))[:count]
            chosen.append(tuple(sorted((layer * units.per_layer + some).tolist())))
        return Alignment(
            (
                Variable("what stood before", "channel", chosen[0], ("before",)),
                Variable("what is said", "channel", chosen[1], INPUTS),
            ),
            ("channel",),
        )

    @torch.no_grad()
    def narrow(self, model: Any, alignment: Alignment, seed: int) -> Alignment:
        """Of each variable the channels whose mean ablation costs the answers most."""
        prompts = self.task.sample(512, "train", mix(seed, "narrow"))
        mean = {site: value.mean(0) for site, value in values_of(model, prompts.tokens, alignment.sites(model)).items()}

        def cost(variable: Variable, unit: int) -> float:
            edits = dataclasses.replace(variable, units=(unit,)).edits(model, mean)
            return float(cross_entropy(said_by(model, prompts, edits), prompts.answers))

        found = [
            dataclasses.replace(v, units=tuple(sorted(sorted(v.units, key=lambda unit: -cost(v, unit))[:count])))
            for v, count in zip(alignment.variables, self.recipe.kept, strict=True)
        ]
        return dataclasses.replace(alignment, variables=tuple(found))

    def declare(self, model: Any, alignment: Alignment) -> list[Part]:
        E = model.config.d_inner
        return [  # training decides whose steps carry something
            Part(variable.meaning, "channel", unit // E, (unit % E,), blind=(TWINS if k == 0 else ()) + STEPS)
            for k, variable in enumerate(alignment.variables)
            for unit in variable.units
        ]
