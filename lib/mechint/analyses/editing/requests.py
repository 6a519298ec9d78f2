"""Requests: the facts that are edited, each with the prompts on which its edit is judged.

A fact is what prompts of one subject and one answer say, unless the task knows better
(:meth:`mechint.tasks.Task.fact`).
For each edited prompt the other prompts of the task are

* its **paraphrases**: prompts of the same fact, which should follow the edit;
* its **neighbourhood**: prompts about other subjects, which should not (Meng et al. 2022, section 3.2); those with the
  same answer come first, since these are nearest to the old fact, and those whose answer is the new one are left out;
* **other facts of the subject**, which should not follow it either.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...interventions.model import Model
from ...interventions.run import generate, run
from ...tasks import Prompts, Task, mix
from ...utils.errors import MechintError


@dataclass(frozen=True)
class Asked:
    """A prompt with its answer.

    Attributes:
        tokens: Up to the answer, and what of the prompt follows.
        at: The position behind which the answer stands.
        subject: The position of the subject's last token.
        about: The subject's tokens.
        answer: The right answer before any edit; of several the one that the model says, if it says one of them.
        fact: The fact that it says.
        answered: True if the model says the right answer.
        wrong: The twin's answer; None without.
        accepted: All right answers.
    """

    tokens: tuple[int, ...]
    at: int
    subject: int
    about: tuple[int, ...]
    answer: int
    fact: int
    answered: bool = True
    wrong: int | None = None
    accepted: tuple[int, ...] = ()


@dataclass(frozen=True)
class Request:
    """A fact that is edited: behind its prompt the answer ``new`` should stand instead of ``old``."""

    tokens: tuple[int, ...]
    at: int
    subject: int
    old: int
    new: int
    fact: int
    paraphrases: Sequence[Asked] = ()
    neighbours: Sequence[Asked] = ()
    others: Sequence[Asked] = ()
    prefixes: Sequence[tuple[int, ...]] = ()
    front: int = 0
    """Tokens in front of the prompt that prefixes stand behind."""
    variants: Sequence[tuple[int, ...]] = field(init=False, default=())
    """The prompt alone, and behind each prefix."""

    def __post_init__(self) -> None:
        begin, rest = self.tokens[: self.front], self.tokens[self.front :]
        object.__setattr__(self, "variants", [self.tokens, *((*begin, *one, *rest) for one in self.prefixes)])


@torch.no_grad()
def pool_of(model: Model, batches: Iterable[Prompts], task: Task) -> list[Asked]:
    """Every prompt, asked for its last answer, with whether the model answers it.

    Raises:
        MechintError: nothing says what the prompts are about, or their answers are several tokens.
    """
    found: list[Asked] = []
    for batch in batches:
        if batch.whole or task.whole:
            raise MechintError(
                f"edit: the answers of {task.name!r} are several tokens, and an edit writes one; ask for the first "
                "token of the answers"
            )
        asked = batch.last()
        about = asked.about()
        if about is None or not about.any(1).all():
            raise MechintError(
                f"edit: nothing says what the prompts of {task.name!r} are about; give each a subject, at whose last "
                "token an edit is made"
            )
        logits = run(model, asked.tokens, logits_at=asked.positions).logits
        right = asked.correct(logits) == 1
        answers = torch.where(right.to(logits.device), logits[:, 0].argmax(-1), asked.answers[:, 0])
        facts = task.fact(asked)
        for k in range(len(asked)):
            tokens = tuple(asked.tokens[k].tolist())
            places = about[k].nonzero()[:, 0].tolist()
            wrong = None if asked.wrong is None else int(asked.wrong[k, 0])
            found.append(Asked(
                tokens, int(asked.positions[k, 0]), places[-1], tuple(asked.tokens[k, places].tolist()),
                int(answers[k]), int(facts[k]), bool(right[k]), wrong,
                tuple(one for one in asked.good()[k, 0].tolist() if one >= 0),
            ))  # fmt: skip
    return found


def distinct(prompts: Iterable[Asked]) -> list[Asked]:
    """Every prompt once."""
    found: dict[tuple[int, ...], Asked] = {}
    for one in prompts:
        found.setdefault(one.tokens, one)
    return list(found.values())


def requests_of(
    edited: Sequence[Asked], pool: Sequence[Asked], count: int, most: int, seed: int, target: int | None = None
) -> list[Request]:
    """The first ``count`` answered prompts, of different facts, as requests.

    The new answer is that of the prompt's twin, or else that of another prompt of the pool.

    Args:
        edited: Prompts to edit.
        pool: All prompts, these among them.
        most: Prompts of each kind that an edit is judged on.
        target: The new answer of all; None for one of each fact's own.

    Raises:
        MechintError: no prompt's answer is known that a fact could get.
    """
    chosen: dict[int, Asked] = {}
    for one in edited:
        if one.answered and len(chosen) < count:
            chosen.setdefault(one.fact, one)
    answers = sorted({one.answer for one in pool})
    return [request_of(one, pool, most, new_answer(one, answers, seed) if target is None else target)
            for one in chosen.values()]  # fmt: skip


def new_answer(one: Asked, answers: Sequence[int], seed: int) -> int:
    right = {one.answer, *one.accepted}
    if one.wrong is not None and one.wrong not in right:
        return one.wrong
    others = [answer for answer in answers if answer not in right]
    if not others:
        raise MechintError(
            "edit: all prompts have one answer, so nothing says which other one an edit should write; give twins, or a "
            "target"
        )
    return others[mix(seed, "target", *one.tokens) % len(others)]


def request_of(one: Asked, pool: Sequence[Asked], most: int, new: int, front: int = 0) -> Request:
    """The request that a prompt says another answer, with the pool's prompts on which it is judged."""
    outside = tuple(token for k, token in enumerate(one.tokens) if token not in one.about)
    same = lambda other: tuple(token for token in other.tokens if token not in other.about) == outside
    own = [other for other in pool if other.tokens != one.tokens and other.answered]
    far = [other for other in own if other.about != one.about and other.answer != new and other.fact != one.fact]
    # prompts that say the same of another subject, with the same answer, are nearest
    far.sort(key=lambda other: (other.answer != one.answer, not same(other), mix(*one.tokens, *other.tokens)))
    return Request(
        one.tokens, one.at, one.subject, one.answer, new, one.fact,
        [other for other in own if other.fact == one.fact][:most],
        far[:most],
        [other for other in own if other.about == one.about and other.fact != one.fact and other.answer != new][:most],
        front=front,
    )  # fmt: skip


def with_prefixes(
    model: Model, requests: Sequence[Request], count: int, length: int, seed: int, front: int
) -> list[Request]:
    """The requests with ``count`` texts of ``length`` tokens that the model generates, to stand in front of prompts.

    Each begins with what the model says behind its first tokens (or, where no token is in front of a text, with the
    first token of one of the prompts), drawn at temperature 1.

    Raises:
        MechintError: a prompt behind a prefix is longer than the model can read.
    """
    if not count:
        return list(requests)
    longest = max(len(request.tokens) for request in requests) + length
    model.check_length(longest)
    begin = [request.tokens[:front] if front else request.tokens[:1] for request in requests]
    rows = torch.tensor([begin[k % len(begin)] for k in range(count)], device=model.device)
    made = generate(model, rows, length, temperature=1.0, seed=mix(seed, "prefixes") % 2**31).tokens[:, front:]
    prefixes = [tuple(row[-length:]) for row in made.tolist()]
    own = lambda r: Request(r.tokens, r.at, r.subject, r.old, r.new, r.fact, r.paraphrases, r.neighbours, r.others,
                            prefixes, front)  # fmt: skip
    return [own(request) for request in requests]


def used(requests: Sequence[Request]) -> Tensor:
    """The fact of each request, for bootstraps, [request]."""
    return torch.tensor([request.fact for request in requests])
