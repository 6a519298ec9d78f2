"""``mechint.lens``: the lenses and the contributions of a few prompts, for notebooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...interventions.model import Model
from ...interventions.run import check_tokens
from ...models.loading.tokenizer import Encoder, lacking
from ...report.results import frame_of
from ...tasks import Prompts
from ...utils.errors import MechintError, check_type, shown
from ..options import layer_list
from . import tuned_files
from .contributions import Contributions, contributions
from .figures import clipped, row_name
from .reading import Lens, LogitLens, read_positions, stream_sites

SHOWN_TOKENS = 8
SHOWN_PROMPTS = 3
SHOWN_PARTS = 6


@dataclass(frozen=True)
class PromptReading:
    """One prompt as the lenses read it.

    Attributes:
        tokens: Its tokens as text.
        answer: The token that the probabilities, ranks and contributions are of.
        lenses: For each lens what :func:`~.reading.read_positions` gives, with tokens as text.
        parts: Contributions to the answer's logit behind the last token, or to its difference from a wrong answer's.
    """

    tokens: list[str]
    answer: str
    lenses: Mapping[str, dict[str, Any]]
    parts: Contributions


class LensReading:
    """A reading of some prompts by every layer and part; printed as a table of the last tokens.

    Attributes:
        prompts: One :class:`PromptReading` for each prompt.
        difference: True if contributions are to a logit difference.
    """

    def __init__(self, prompts: Sequence[PromptReading], difference: bool) -> None:
        self.prompts, self.difference = list(prompts), difference

    def rows(self) -> list[dict[str, Any]]:
        """A row for each prompt, lens, site and token: the likeliest next token, and the answer's numbers."""
        return [
            {
                "prompt": n, "lens": name, "site": site, "layer": int(site.split(".")[1]), "position": k,
                "token": token,
                "top": entry["top"][i][k][0], "top_probability": entry["probability"][i][k][0], "answer": one.answer,
                "probability": entry["answer"][i][k], "rank": entry["rank"][i][k], "kl": entry["kl"][i][k],
            }
            for n, one in enumerate(self.prompts)
            for name, entry in one.lenses.items()
            for i, site in enumerate(entry["sites"])
            for k, token in enumerate(one.tokens)
        ]  # fmt: skip

    def contribution_rows(self) -> list[dict[str, Any]]:
        """A row for each prompt and part; the contributions to a prompt add up to its ``total``."""
        return [
            {"prompt": n, "answer": one.answer, "part": part, "contribution": value, "total": float(one.parts.total[0])}
            for n, one in enumerate(self.prompts)
            for part, value in zip(one.parts.parts, one.parts.values[0].tolist(), strict=True)
        ]

    def frame(self) -> Any:
        """:meth:`rows` as a pandas DataFrame."""
        return frame_of(self.rows())

    def contribution_frame(self) -> Any:
        """:meth:`contribution_rows` as a pandas DataFrame."""
        return frame_of(self.contribution_rows())

    def __repr__(self) -> str:
        blocks = [self.block(one) for one in self.prompts[:SHOWN_PROMPTS]]
        more = len(self.prompts) - len(blocks)
        return "\n\n".join([*blocks, *([f"… and {more} more prompts"] if more else [])])

    def block(self, one: PromptReading) -> str:
        """A table of the likeliest tokens, the last layer on top, and the largest contributions."""
        skip = max(0, len(one.tokens) - SHOWN_TOKENS)
        lines = []
        for name, entry in one.lenses.items():
            head = [f"{name} lens", *map(clipped, one.tokens[skip:]), f"P({clipped(one.answer)})", "rank"]
            table = [
                [row_name(site.rpartition(".")[2], int(site.split(".")[1])),
                 *(clipped(cell[0]) for cell in entry["top"][i][skip:]), f"{entry['answer'][i][-1]:.3f}",
                 str(entry["rank"][i][-1])]
                for i, site in enumerate(entry["sites"])
            ]  # fmt: skip
            rows = [head, *reversed(table)]
            widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
            lines += ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        named = zip(one.parts.parts, one.parts.values[0].tolist(), strict=True)
        largest = sorted(named, key=lambda part: -abs(part[1]))[:SHOWN_PARTS]
        what = "logit difference" if self.difference else "logit"
        said = ", ".join(f"{part} {value:+.2f}" for part, value in largest)
        return "\n".join([*lines, f"{what} {float(one.parts.total[0]):.2f}: {said}"])


@torch.no_grad()
def lens(
    model: Model,
    prompts: str | Sequence[str] | Tensor,
    answers: str | int | Sequence[str | int] | None = None,
    wrong: str | int | Sequence[str | int] | None = None,
    *,
    tuned: str | Path = "",
    top: int = 5,
    layers: str | int | Sequence[int] = "all",
) -> LensReading:
    """Reads prompts layer by layer with the logit lens, and splits the answer's logit into what every part adds.

    Args:
        model: From :func:`mechint.load`.
        prompts: A text, several texts, or token ids [prompt, position].
        answers: The answer of each prompt: a token id, or text as it follows the prompt (" Paris", with its space), of
            which the first token counts; None takes the model's own next token.
        wrong: Wrong answers; contributions are then to the logit difference.
        tuned: Directory of a tuned lens to read with, too.
        top: Likeliest tokens kept for each layer and position.
        layers: Layers that are read: ``all``, or numbers separated by commas. Contributions are of all parts.

    Raises:
        MechintError: a text without a tokenizer, answers that do not fit the prompts, a tuned lens of another model, or
            no such layer.
    """
    check_type(prompts, (Tensor, Sequence), "lens: prompts", "a text, several texts, or a tensor of token ids")
    check_type(top, (int, np.integer), "lens: top", "a whole number")
    texts = [prompts] if isinstance(prompts, str) else None if isinstance(prompts, Tensor) else list(prompts)
    if texts == []:
        raise MechintError("lens: there is no prompt; give at least one text or row of token ids")
    rows = token_rows(model, prompts if isinstance(prompts, Tensor) else None, texts)
    if top < 1:
        raise MechintError(f"lens: top is {top}; it must be at least 1")
    lenses: dict[str, Lens] = {"logit": LogitLens()}
    if tuned:
        lenses["tuned"] = tuned_files.load(tuned, model).to(model.device)
    right, other = (
        given(model, texts, said, len(rows), what) for said, what in ((answers, "answers"), (wrong, "wrong"))
    )
    chosen, found = layer_list(layers, model.num_layers, "lens"), []
    sites = [site for site in stream_sites(model) if int(site.split(".")[1]) in chosen]
    for n, tokens in enumerate(rows):
        answer = int(model(tokens[None])[0, -1].argmax()) if right is None else right[n]
        read = read_positions(model, tokens, answer, sites, lenses, top)
        for entry in read.values():
            entry["top"] = [[[word(model, token) for token in cell] for cell in line] for line in entry["top"]]
        last = torch.tensor([[len(tokens) - 1]], device=model.device)
        at = lambda token, last=last: torch.full_like(last, token)
        asked = Prompts(tokens[None], last, at(answer), None, None if other is None else at(other[n]), last[:, 0])
        parts = contributions(model, asked, other is not None)
        found.append(PromptReading([word(model, token) for token in tokens.tolist()], word(model, answer), read, parts))
    return LensReading(found, other is not None)


def token_rows(model: Model, ids: Tensor | None, texts: Sequence[str] | None, where: str = "lens") -> list[Tensor]:
    """The token ids of every prompt, each [position]."""
    if ids is not None:
        check_tokens(model, ids)
        found = list(ids)
    else:
        for text in texts or ():
            check_type(text, str, f"{where}: a prompt", "text, or a tensor of token ids")
        encoder = encoder_of(model)
        found = [torch.tensor(encoder.prompt(text).ids, dtype=torch.long, device=model.device) for text in texts or ()]
    if any(len(row) == 0 for row in found):
        raise MechintError(f"{where}: a prompt is without tokens; write some text")
    return found


def encoder_of(model: Model) -> Encoder:
    if model.tokenizer is None:
        raise MechintError(f"{model.source} has no tokenizer to read text with; give token ids, or {lacking()}")
    return Encoder(model.tokenizer)


def given(
    model: Model,
    texts: Sequence[str] | None,
    said: str | int | Sequence[str | int] | None,
    count: int,
    what: str,
    where: str = "lens",
) -> list[int] | None:
    """The token of each prompt that ``answers`` or ``wrong`` names; None where it names none."""
    if said is None:
        return None
    check_type(said, (str, int, np.integer, Sequence, Tensor, np.ndarray), f"{where}: {what}", "one for each prompt")
    several: list[Any] = [said] if isinstance(said, (str, int, np.integer)) else list(said)
    each: list[Any] = [one.tolist() if isinstance(one, Tensor) else one for one in several]
    if len(each) != count:
        raise MechintError(f"{where}: {what} has {len(each)} entries, and there are {count} prompts; give one for each")
    found = []
    for n, one in enumerate(each):
        check_type(one, (str, int, np.integer), f"{where}: one of {what}", "text, or a token id")
        if isinstance(one, str):
            if texts is None:
                raise MechintError(
                    f"{where}: {what} is text, and the prompts are token ids; give a token id for each prompt"
                )
            behind = encoder_of(model).behind(texts[n], one)
            if not behind:
                raise MechintError(
                    f"{where}: the tokenizer gives {shown(one)} no token of its own behind the prompt "
                    f"{shown(texts[n])}; begin it with a space, or give a token id"
                )
            one = behind[0]
        if not 0 <= one < len(model.embeddings):
            raise MechintError(f"{where}: {what} has the token {one}; this model has 0 to {len(model.embeddings) - 1}")
        found.append(int(one))
    return found


def word(model: Model, token: int) -> str:
    """A token as text; its id where the model came without a tokenizer."""
    return str(token) if model.tokenizer is None else Encoder(model.tokenizer).decode(token)
