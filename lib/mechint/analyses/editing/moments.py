"""Second moments of what maps read, C = E[k kᵀ] over the tokens of a text, cached by content."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...interventions.model import Model
from ...models.loading.tokenizer import Encoder, check_bytes
from ...tasks.files.token_file import read_tokens
from ...tasks.text import read_text, tokenise
from ...utils import files
from ...utils.errors import MechintError, short
from ...utils.progress import Progress
from ...utils.rundir import fingerprint, kept, weights_digest
from .maps import WeightMap, watching

TOKENS_PER_INPUT = 4
"""Tokens of text that a second moment takes for each input of the map."""


def check_enough(maps: Sequence[WeightMap], texts: Sequence[Tensor], more: str) -> None:
    """Refuses a text that is too short for the second moments of some maps.

    Args:
        texts: Batches of tokens [row, position].
        more: Advice on how to take more of it, for the message.

    Raises:
        MechintError: says how many tokens are needed.
    """
    there, widest = sum(rows.numel() for rows in texts), max(maps, key=lambda one: one.width)
    needed = TOKENS_PER_INPUT * widest.width
    if there < needed:
        raise MechintError(
            f"edit: {widest} reads {widest.width} numbers, whose second moment takes at least {needed} tokens of text "
            f"({TOKENS_PER_INPUT} for each), and there are {there}; {more}"
        )


@torch.no_grad()
def moment(model: Model, one: WeightMap, texts: Sequence[Tensor]) -> Tensor:
    """C [in, in] in float64 on the CPU, over all tokens of the batches [row, position]."""
    total = torch.zeros(one.width, one.width, dtype=torch.float64, device=model.device)
    count = 0
    for tokens in texts:
        with watching(one) as caught:
            model(tokens.to(model.device))
        keys = caught.inputs.flatten(0, 1).double()
        total += keys.T @ keys
        count += len(keys)
    return (total / count).cpu()


def ridged(found: Tensor, ridge: float) -> Tensor:
    """C with ``ridge`` times its mean diagonal added to the diagonal, so that it can be inverted.

    Raises:
        MechintError: C is zero.
    """
    level = float(found.diagonal().mean())
    if not level > 0:
        raise MechintError("edit: the map reads nothing but zeros on this text; take another text or map")
    return found + ridge * level * torch.eye(len(found), dtype=found.dtype)


class Moments:
    """The second moments of the maps of one model on one text, each computed when it is first asked for.

    Args:
        model: From :func:`mechint.load`; with its own weights whenever a moment is asked for.
        texts: Batches of tokens, [row, position] each.
        ridge: Share of the mean diagonal that is added to the diagonal.
        cache: Directory in which moments are kept under a digest of weights, tokens and map; "" for none.
    """

    def __init__(self, model: Model, texts: Sequence[Tensor], ridge: float, cache: str | Path = "") -> None:
        self.model, self.texts, self.ridge = model, texts, ridge
        self.cache = Path(cache) if str(cache) else None
        self.content = ""
        if self.cache is not None:
            tokens = [tokens_digest(rows) for rows in texts]
            self.content = fingerprint([weights_digest(model), tokens])

    def of(self, one: WeightMap) -> Tensor:
        """C [in, in] of a map in float64, with its ridge.

        Raises:
            MechintError: it reads nothing but zeros.
        """
        if self.cache is None:
            return ridged(self.computed(one), self.ridge)
        path = self.cache / f"{fingerprint([self.content, str(one)])[:32]}.pt"
        if (known := kept(path, self.content)) is not None:
            return ridged(known[0], self.ridge)
        found = self.computed(one)
        files.write_sealed(path, found, self.content)
        return ridged(found, self.ridge)

    def computed(self, one: WeightMap) -> Tensor:
        with Progress(f"second moment of {one}", 1) as progress:
            found = moment(self.model, one, self.texts)
            progress.step()
        return found


def tokens_digest(tokens: Tensor) -> str:
    """A digest of token ids."""
    return fingerprint(tokens.tolist())


WINDOW = 64
"""Tokens of text in one row."""
ROWS = 32
"""Rows in one forward."""


def text_batches(model: Model, source: str, count: int) -> list[Tensor]:
    """About ``count`` tokens of a text in rows of :data:`WINDOW`, evenly from its beginning to its end.

    Args:
        source: As the option ``text`` of tasks has it: a file, ``topics`` or ``sotu``.

    Raises:
        MechintError: the text can't be read, or the model has no tokenizer to read it with.
    """
    model.check_length(WINDOW)
    front: Sequence[int] = ()
    if source.endswith(".bin"):
        every = torch.from_numpy(read_tokens(Path(source).expanduser(), model.config.vocab_size).tokens.astype("int64"))
    else:
        if model.tokenizer is None:
            check_bytes(model.config.vocab_size)
        else:
            front = Encoder(model.tokenizer).front
        every = tokenise(read_text(source), model.tokenizer)
    if len(every) and int(every.max()) >= model.config.vocab_size:
        raise MechintError(
            f"edit: the text {short(source)} has the token {int(every.max())}, and the model has "
            f"{model.config.vocab_size}; take the tokens of its own tokenizer"
        )
    own = WINDOW - len(front)
    rows = every[: len(every) // own * own].view(-1, own)
    wanted = min(len(rows), -(-count // WINDOW))
    rows = rows[torch.linspace(0, max(len(rows) - 1, 0), wanted).long()]
    rows = torch.cat([torch.tensor(list(front), dtype=torch.long).expand(len(rows), -1), rows], 1)
    return [part for part in rows.split(ROWS) if len(part)]
