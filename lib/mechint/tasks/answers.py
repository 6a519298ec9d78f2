"""Prompts with their answers, and when a model's answer is right."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..utils.errors import MechintError, shown


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts of equal length: n prompts, L tokens, Q answers each."""

    tokens: Tensor  # [n, L] long
    positions: Tensor  # [n, Q] the logits at this position should say the answer
    answers: Tensor  # [n, Q] token ids
    twins: Tensor | None  # [n, L] counterfactual twins: every answer differs from the original's
    wrong: Tensor | None  # [n, Q] the twins' answers
    template: Tensor  # [n] the cluster of each prompt, for bootstraps
    subject: Tensor | None = None  # [n, 2] first position of what the prompt is about, and the position after its last
    accepted: Tensor | None = None  # [n, Q, A] all ids that are right, where several are; -1 fills up
    rejected: Tensor | None = None  # [n, Q, A] the ids that they are compared with; -1 fills up
    whole: bool = False  # the answers of a prompt are the tokens of one answer, right only if all are

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        with_them = [name for name in ("twins", "subject", "accepted") if getattr(self, name) is not None]
        n, length = self.tokens.shape
        also = f", with {', '.join(with_them)}" if with_them else ""
        return f"Prompts({n} of {length} tokens, {self.answers.shape[1]} answers each{also})"

    @classmethod
    def from_list(
        cls,
        tokens: Sequence[Sequence[int]],
        answers: Sequence[int],
        twins: Sequence[Sequence[int]] | None = None,
        wrong: Sequence[int] | None = None,
        subject: Sequence[tuple[int, int]] | None = None,
        groups: Sequence[int] | None = None,
    ) -> Prompts:
        """Prompts from lists of token ids of one length, each with one answer behind its last token.

        Args:
            tokens: The prompts.
            answers: The token that should follow each.
            twins, wrong: Their counterfactual twins, and the twins' answers.
            subject: The first position of what each is about, and the one after its last.
            groups: The cluster of each, which intervals are over; each prompt is its own by default.

        Raises:
            MechintError: prompts differ in length, or lists in the number of prompts; or what is given is no token id.
        """
        n, lengths = len(tokens), {len(row) for row in [*tokens, *(twins or ())]}
        if n == 0 or len(lengths) != 1:
            raise MechintError(
                f"prompts of {sorted(lengths) or 'no'} tokens: all need one length, and at least one prompt; group "
                "them by length, or write them to a file (docs/tasks.md)"
            )
        ids = [token for row in [*tokens, *(twins or ()), answers, wrong or ()] for token in row]
        if bad := [token for token in ids if not is_id(token)]:
            raise MechintError(f"{shown(bad[0])} is no token id; give whole numbers from 0")
        given = {"answers": answers, "twins": twins, "wrong": wrong, "subject": subject, "groups": groups}
        for name, value in given.items():
            if value is not None and len(value) != n:
                raise MechintError(f"there are {n} prompts and {len(value)} {name}; give one for each")
        if (twins is None) != (wrong is None):
            raise MechintError("twins and their answers (wrong) go together; give both or none")
        column = lambda values: None if values is None else torch.tensor(values).unsqueeze(1)
        return cls(
            torch.tensor(tokens), torch.full((n, 1), lengths.pop() - 1), torch.tensor(answers).unsqueeze(1),
            None if twins is None else torch.tensor(twins), column(wrong),
            torch.arange(n) if groups is None else torch.tensor(groups),
            None if subject is None else torch.tensor(subject),
        )  # fmt: skip

    def __getitem__(self, rows: slice | Tensor) -> Prompts:
        """Some of the prompts: a slice, or a tensor of indices or booleans."""
        return self._map(lambda tensor: tensor[rows])

    def to(self, device: str | torch.device) -> Prompts:
        return self._map(lambda tensor: tensor.to(device))

    def _map(self, change: Callable[[Tensor], Tensor]) -> Prompts:
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        changed = (change(value) if isinstance(value, Tensor) else value for value in values)
        return Prompts(*changed)  # type: ignore[arg-type]

    def last(self) -> Prompts:
        """The same prompts asked for their last answer alone; a whole answer stays whole."""
        if self.whole:
            return self
        names = ("positions", "answers", "wrong", "accepted", "rejected")
        some: dict[str, Any] = {name: value[:, -1:] for name in names if (value := getattr(self, name)) is not None}
        return dataclasses.replace(self, **some)

    def good(self) -> Tensor:
        """The ids that count as right, [n, Q, A]; -1 is none."""
        return self.answers.unsqueeze(-1) if self.accepted is None else self.accepted

    def bad(self) -> Tensor | None:
        """The ids that the logit difference compares with, [n, Q, A]: the twins' answers unless the task says so."""
        if self.rejected is not None:
            return self.rejected
        return None if self.wrong is None else self.wrong.unsqueeze(-1)

    def right(self, logits: Tensor) -> Tensor:
        """True where the likeliest token is an accepted one; logits [..., n, Q, V] -> [..., n, Q] bool."""
        return accepted_by(logits.argmax(-1), self.good())

    def share_right(self, right: Tensor) -> Tensor:
        """The share of a prompt's answers [..., n, Q] that is right, [..., n] in float64; of a whole answer 0 or 1."""
        return right.all(-1).double() if self.whole else right.double().mean(-1)

    def correct(self, logits: Tensor) -> Tensor:
        """:meth:`share_right` of what the logits [..., n, Q, V] say, [..., n] in float64.

        This is what every analysis calls accuracy.
        """
        return self.share_right(self.right(logits))

    def about(self) -> Tensor | None:
        """Marks the tokens it is about, [n, L] bool: its subject, or where its twin differs; None without both."""
        if self.subject is not None:
            at = torch.arange(self.tokens.shape[1], device=self.tokens.device)
            return (at >= self.subject[:, :1]) & (at < self.subject[:, 1:])
        return None if self.twins is None else self.tokens != self.twins


def is_id(token: object) -> bool:
    """True for a whole number from 0, of Python, NumPy or torch; -1 would be measured at another token."""
    try:
        return not isinstance(token, bool) and operator.index(token) >= 0  # type: ignore[arg-type]
    except TypeError:
        return False


def begun(prompts: Prompts, front: Sequence[int]) -> Prompts:
    """The prompts with the same tokens in front of each, and of its twin."""
    if not front:
        return prompts
    start = lambda tokens: torch.cat([torch.tensor(front).expand(len(tokens), -1), tokens], 1)
    return dataclasses.replace(
        prompts,
        tokens=start(prompts.tokens),
        positions=prompts.positions + len(front),
        twins=None if prompts.twins is None else start(prompts.twins),
        subject=None if prompts.subject is None else prompts.subject + len(front),
    )


def accepted_by(said: Tensor, accepted: Tensor) -> Tensor:
    """True where a said id [..., n, Q] is among the accepted ids [n, Q, A] (-1 is not an id), [..., n, Q].

    Every analysis decides by this function whether an answer is right.
    """
    return (said.unsqueeze(-1) == accepted).any(-1)


def pooled(logits: Tensor, ids: Tensor) -> Tensor:
    """log Σ exp of the logits [..., n, Q, V] at ids [n, Q, A], [..., n, Q]; of one id its logit. -1 is not an id."""
    shape = (*logits.shape[:-1], ids.shape[-1])
    found = logits.gather(-1, ids.clamp(min=0).expand(shape))
    return found.squeeze(-1) if ids.shape[-1] == 1 else found.masked_fill(ids < 0, -torch.inf).logsumexp(-1)
