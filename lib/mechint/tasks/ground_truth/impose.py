"""Training that imposes a known circuit: strict interchange intervention training, SIIT (Gupta et al. 2024).

The loss is the sum of three cross-entropies: of the answers; of what the causal model says when units that carry a
variable come from another prompt (interchange intervention training, Geiger et al. 2022); and of the answers when a
random half of all other units come from another prompt (strictness). Since an idle unit could also hold what is the
same on every prompt, every other step puts zeros into all of them instead.
"""

from __future__ import annotations

import dataclasses
import math
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
from ...progress import Progress
from ...run import run
from ...rundir import fingerprint
from ..base import Prompts, generator, mix
from ..config import TaskConfig
from ..recall import Recall
from .blueprint import ALWAYS, TWINS, Compiled
from .causal import INPUTS, Alignment, Variable, sources, values_of
from .truth import GroundTruth, Part

FOLDER = Path("output/ground_truth/imposed")
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
    """

    steps: int
    batch: int = 64
    lr: float = 1e-2
    warmup: int = 50
    interchange: float = 1.0
    strictness: float = 1.0

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

    @abstractmethod
    def align(self, model: Any, seed: int) -> Alignment:
        """Which units are to carry what."""

    @abstractmethod
    def declare(self, model: Any, alignment: Alignment) -> list[Part]:
        """The units of the circuit, and what is blind to them."""

    def compile(self, *, seed: int = 0, folder: Path | str = FOLDER) -> Compiled:
        """The trained model, from a checkpoint in ``folder`` or trained and left there, checked in both cases.

        Raises:
            MechintError: training did not impose the circuit (what fails is named).
        """
        recipe = {"name": self.name, "seed": seed, "task": self.task.description, **dataclasses.asdict(self.recipe)}
        path = Path(folder) / f"{self.name}_seed{seed}_{fingerprint(recipe)[:8]}.pt"
        model = load(path) if path.exists() else self.train(seed)
        model.source = f"{self.name}, seed {seed}"
        alignment = self.align(model, seed)
        check(model.requires_grad_(False), alignment, self, seed)
        if not path.exists():
            config = {**hf_config(model), "recipe": recipe}
            files.write_torch(path, {"model": to_hf_state_dict(model), "config": config})
        return Compiled(model, self.task, GroundTruth(tuple(self.declare(model, alignment)), -math.inf, math.inf))

    def train(self, seed: int) -> Any:
        """Trains from random weights; everything random depends on the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix(seed, "weights"))
            model = self.new_model()
        model.source = f"{self.name}, seed {seed}"
        alignment, recipe = self.align(model, seed), self.recipe
        decay = [p for p in model.parameters() if p.dim() > 1]
        rest = [p for p in model.parameters() if p.dim() <= 1]
        groups = [{"params": decay, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98))
        with Progress(f"imposing {self.name}", recipe.steps) as progress:
            for step in range(recipe.steps):
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
                progress.step("losses " + " ".join(f"{float(part.detach()):.3f}" for part in parts))
        return model.eval()


def losses(model: Any, task: Recall, alignment: Alignment, recipe: Recipe, seed: int, step: int) -> list[Tensor]:
    """Behaviour, interchange and strictness of one step, each a mean cross-entropy in nats."""
    prompts = task.sample(recipe.batch, "train", seed)
    source = sources(task, prompts, seed)
    there = values_of(model, source.tokens, alignment.sites(model))
    variable = alignment.variables[step % len(alignment.variables)]
    said, defined = variable.expected(prompts, source)
    random = generator("idle", seed)
    if step % 2:
        idle = alignment.idle_edits(model, there, random)
    else:
        idle = alignment.idle_edits(model, dict.fromkeys(there, 0.0))
    return [
        cross_entropy(model, prompts, [], prompts.answers),
        cross_entropy(model, prompts, variable.edits(model, there), said, defined),
        cross_entropy(model, prompts, idle, prompts.answers),
    ]


def cross_entropy(
    model: Any, prompts: Prompts, edits: Sequence[Edit], answers: Tensor, defined: Tensor | None = None
) -> Tensor:
    """Mean over those of the answers [n, Q] that are defined, of a run under edits."""
    logits = run(model, prompts.tokens, edits=edits, logits_at=prompts.positions).logits
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
    logits = run(model, prompts.tokens, edits=edits, logits_at=prompts.positions).logits
    hits = logits.argmax(-1) == (prompts.answers if answers is None else answers)
    return float((hits if defined is None else hits[defined]).double().mean())


# ---- the model ---------------------------------------------------------------------------------------------------


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
