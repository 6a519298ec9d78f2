"""Source prompts with the position that is read, and target prompts with the position that is replaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...interventions.model import Model
from ...models.loading.tokenizer import Encoder, lacking
from ...tasks import Prompts, Task
from ...tasks.base import generator
from ...utils.errors import MechintError, shown
from ...utils.options import named
from ..loader import PromptLoader
from .options import DESCRIPTION, IDENTITY, OTHER, ScopeConfig

RECIPES = {
    IDENTITY: ("cat -> cat; 135 -> 135; hello -> hello; ?", "?"),
    DESCRIPTION: (
        "Syria: Country in the Middle East, Leonardo DiCaprio: American actor, Samsung: South Korean multinational "
        "major appliance and consumer electronics corporation, x",
        "x",
    ),
}
"""The target prompts of Ghandeharioun et al. 2024 ("Patchscopes"), with their placeholders."""
PAIRS = 3
"""Pairs of equal tokens where a task's own tokens make the prompt."""


@dataclass(frozen=True)
class Source:
    """Source prompts that are read at one position.

    Attributes:
        rows: Their numbers among all source prompts, [m].
        prompts: The prompts, each asked for one answer.
        at: Position that the representation is taken from.
        answer: Position that predicts the answer.
    """

    rows: Tensor
    prompts: Prompts
    at: int
    answer: int


@dataclass(frozen=True)
class Target:
    """Rows of a target prompt; what the model says is read at their last position.

    Attributes:
        tokens: [m, position].
        position: Position whose representation is replaced.
    """

    tokens: Tensor
    position: int

    @property
    def read_there(self) -> bool:
        """True if what the model says is read where the representation is put."""
        return self.position == self.tokens.shape[1] - 1


def sources(config: ScopeConfig, loader: PromptLoader) -> list[Source]:
    """All source prompts, in parts that are read at one position and answered at one.

    Raises:
        MechintError: nothing says what a prompt is about, or it is too short.
    """
    found, start = [], 0
    for batch in loader:
        asked = batch.last()
        answer = asked.positions[:, 0].cpu()
        at = (answer if config.source == "answer" else subject_end(asked, loader.task)) - config.back
        if int(at.min()) < 0:
            raise MechintError(
                f"patchscope: {config.back} tokens before the {config.source} there is no token in prompts of "
                f"{loader.task.name!r}; lower {named('patchscope', 'back')}"
            )
        places = torch.stack([at, answer], 1)
        for place in places.unique(dim=0):
            own = (places == place).all(1).nonzero().squeeze(1)
            found.append(Source(start + own, asked[own.to(asked.tokens.device)], int(place[0]), int(place[1])))
        start += len(batch)
    return found


def subject_end(prompts: Prompts, task: Task) -> Tensor:
    """The last token of what each prompt is about, not behind its answer, [n]."""
    about = prompts.about()
    if about is not None:
        length = about.shape[1]
        about = about & (torch.arange(length, device=about.device) <= prompts.positions[:, :1])
    if about is None or not bool(about.any(1).all()):
        raise MechintError(
            f"patchscope: nothing says what the prompts of {task.name!r} are about; set "
            f"{named('patchscope', 'source')} to answer"
        )
    return (length - 1 - about.flip(1).int().argmax(1)).cpu()


def fixed_target(config: ScopeConfig, model: Model, loader: PromptLoader, seed: int) -> tuple[list[int], int] | None:
    """The tokens of the target prompt and the position of its placeholder; None where each source has its own.

    Raises:
        MechintError: text that no tokenizer reads, without the placeholder, or too long for the model.
    """
    if config.target == OTHER:
        return None
    task = loader.task
    tokenizer = task.tokenizer if task.tokenizer is not None else model.tokenizer
    if config.target == IDENTITY and tokenizer is None:
        found = pairs(loader, seed)
    else:
        text, placeholder = RECIPES.get(config.target, (config.text, config.placeholder))
        bos = task.config is None or task.config.bos
        found = read_text(model, None if tokenizer is None else Encoder(tokenizer, bos), text, placeholder)
    model.check_length(len(found[0]) + max(config.generate - 1, 0))
    return found


def pairs(loader: PromptLoader, seed: int) -> tuple[list[int], int]:
    """``a a b b c c d``: pairs of equal tokens of the prompts, and one more in the place of the representation."""
    known = torch.cat([batch.tokens.flatten().cpu() for batch in loader]).unique()
    known = known[~torch.isin(known, torch.tensor([*loader.task.front], dtype=known.dtype))]
    if len(known) <= PAIRS:
        raise MechintError(
            f"patchscope: prompts of {loader.task.name!r} have {len(known)} different tokens, and pairs of equal "
            f"tokens take {PAIRS + 1}; set {named('patchscope', 'target')} to other"
        )
    order = torch.randperm(len(known), generator=generator("patchscope pairs", seed))[: PAIRS + 1]
    *first, last = known[order].tolist()
    ids = [*loader.task.front, *(token for token in first for _ in range(2)), last]
    return ids, len(ids) - 1


def read_text(model: Model, encoder: Encoder | None, text: str, placeholder: str) -> tuple[list[int], int]:
    """The tokens of a text, and the last one of the last occurrence of the placeholder (empty is the last token)."""
    if encoder is None:
        raise MechintError(f"patchscope: {model.source} has no tokenizer to read the target prompt with; {lacking()}")
    made = encoder.prompt(text)
    if len(made.ids) == len(encoder.front):
        raise MechintError("patchscope: the target prompt is without tokens; write some text")
    if not placeholder:
        return made.ids, len(made.ids) - 1
    start = text.rfind(placeholder)
    if start < 0:
        raise MechintError(
            f"patchscope: the target prompt {shown(text)} does not contain the placeholder {shown(placeholder)}; write "
            f"it there, or leave the placeholder empty"
        )
    end = start + len(placeholder)
    return made.ids, max(k for k, (low, high) in enumerate(made.offsets) if low < end and high > start)


def partners(
    clusters: Tensor, ids: Tensor, count: int, seed: int, what: str, fits: Tensor | None = None
) -> Tensor | None:
    """Draws prompts of another template that look for none of the same tokens, with replacement.

    Args:
        clusters: Template of each prompt, [n].
        ids: Tokens that each prompt looks for, [n, A]; -1 is none.
        count: Draws for each prompt.
        what: Names the draw, so that two draws of one seed differ.
        fits: The prompts that each prompt can be given, [n, n]; None for all.

    Returns:
        Numbers of prompts, [count, n]; None where a prompt has no partner.
    """
    allowed = (clusters[:, None] != clusters) & ~sharing(ids)
    if fits is not None:
        allowed = allowed & fits
    if not bool(allowed.any(1).all()):
        return None
    drawn = torch.multinomial(allowed.double(), count, replacement=True, generator=generator(what, seed))
    return drawn.T


def sharing(ids: Tensor) -> Tensor:
    """True where two prompts accept a common token, [n, n]; ids [n, A], -1 is none."""
    known, place = ids.unique(return_inverse=True)
    member = torch.zeros(len(ids), len(known)).scatter_(1, place, 1.0)
    return (member[:, known >= 0] @ member[:, known >= 0].T) > 0


def targets(
    parts: Sequence[Source], fixed: tuple[list[int], int] | None, hosts: Tensor | None, tokens: Sequence[Tensor]
) -> list[Target]:
    """The target prompts of each part of the source prompts.

    Args:
        fixed: As :func:`fixed_target` gives it.
        hosts: Number of the prompt that each source is put into, [n], where no target is fixed.
        tokens: The tokens of all source prompts, each [position].
    """
    found = []
    for part in parts:
        if fixed is not None:
            ids, position = fixed
            row = torch.tensor(ids, dtype=torch.long, device=part.prompts.tokens.device)
            found.append(Target(row.expand(len(part.rows), -1), position))
            continue
        assert hosts is not None
        front = torch.stack([tokens[int(hosts[row])][: part.at + 1] for row in part.rows])
        found.append(Target(torch.cat([front, part.prompts.tokens[:, part.at + 1 : part.answer + 1]], 1), part.at))
    return found
