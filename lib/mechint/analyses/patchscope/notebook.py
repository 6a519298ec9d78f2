"""``mechint.patchscope``: a representation of one prompt, read in another prompt, for notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...interventions.continuations import continuations
from ...interventions.model import Model
from ...interventions.run import check_tokens
from ...interventions.transplant import placed, taken
from ...models.loading.tokenizer import Encoder
from ...report.results import frame_of
from ...utils.errors import MechintError, check_type
from ..lens.figures import clipped
from ..lens.notebook import encoder_of, given, token_rows, word
from ..lens.reading import ROOM, logits_of
from ..options import fixed_sites, layer_list
from .reading import places, read_at_end, seen
from .results import named
from .targets import RECIPES, read_text

SHOWN_TOKENS = 3
MEMORY = 1024.0
"""MiB of the sweep, beside the weights."""


@dataclass(frozen=True)
class Reading:
    """The model's next tokens in the target prompt with the representation of one site in a layer.

    Attributes:
        site, into: The site that it is taken from, and the one that it is put into.
        top: The likeliest tokens as text, and ``probability`` theirs.
        answer, rank: Probability and rank of the token that is looked for.
        text: The continuation; empty where nothing is generated.
    """

    site: str
    into: str
    top: list[str]
    probability: list[float]
    answer: float
    rank: int
    text: str


class ScopeReading:
    """A representation read in a target prompt, layer by layer; printed as a table.

    Attributes:
        source: Tokens of the source prompt as text, and ``position`` the one that is read.
        target: Tokens of the target prompt as text, and ``placeholder`` the one that is replaced.
        answer: The token that is looked for.
        unpatched: The reading of the target prompt as it is.
        readings: One :class:`Reading` for each site and layer that it is put into.
    """

    def __init__(
        self, source: list[str], position: int, target: list[str], placeholder: int, answer: str, unpatched: Reading,
        readings: Sequence[Reading],
    ) -> None:  # fmt: skip
        self.source, self.position, self.target, self.placeholder = source, position, target, placeholder
        self.answer, self.unpatched, self.readings = answer, unpatched, list(readings)

    def rows(self) -> list[dict[str, Any]]:
        """A row for each site and layer that it is put into."""
        layer = lambda site: int(site.split(".")[1])
        return [
            {
                "site": one.site, "layer": layer(one.site), "into": layer(one.into), "top": one.top[0],
                "top_probability": one.probability[0], "answer": self.answer, "probability": one.answer,
                "rank": one.rank, "text": one.text,
            }
            for one in self.readings
        ]  # fmt: skip

    def frame(self) -> Any:
        """:meth:`rows` as a pandas DataFrame."""
        return frame_of(self.rows())

    def __repr__(self) -> str:
        head = ["taken from", "likeliest", f"P({clipped(self.answer)})", "rank", "goes on with"]
        lines = [(named(one.site, one.into), one) for one in self.readings]
        table = [head]
        for name, one in [*lines, ("target as it is", self.unpatched)]:
            best = list(zip(one.top, one.probability, strict=True))[:SHOWN_TOKENS]
            likeliest = ", ".join(f"{clipped(token)} {chance:.2f}" for token, chance in best)
            table.append([name, likeliest, f"{one.answer:.3f}", str(one.rank), clipped(one.text, 60)])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in table)


@torch.no_grad()
def patchscope(
    model: Model,
    prompt: str | Tensor,
    target: str | Tensor = "identity",
    *,
    position: int = -1,
    placeholder: str | int = "",
    sites: str = "resid_post",
    layers: str | int | Sequence[int] = "all",
    into: str = "same",
    answer: str | int | None = None,
    generate: int = 0,
    top: int = 5,
) -> ScopeReading:
    """Reads what the model makes of a representation of one prompt in the place of a token of another prompt.

    Args:
        model: From :func:`mechint.load`.
        prompt: The source prompt: a text, or token ids [position].
        target: The target prompt: ``identity`` or ``description`` (the recipes of Ghandeharioun et al. 2024), a text,
            or token ids [position]. It is read at its end.
        position: Position of the source prompt that the representation is taken from.
        placeholder: Text in the target prompt, or a position there, in whose place it is put; empty is the last token.
        sites: Kinds of site, separated by commas, such as ``resid_post,state``.
        layers, into: Layers it is taken from, and put into (``same``, ``all``, or numbers separated by commas).
        answer: The token that is looked for: an id, or text as it follows the source prompt; None takes the model's.
        generate: Tokens that the model goes on with.
        top: Likeliest tokens that are kept.

    Raises:
        MechintError: a text without a tokenizer, or a site, layer, position or token that does not exist.
    """
    check_type(prompt, (str, Tensor), "patchscope: prompt", "a text, or a tensor of token ids [position]")
    check_type(target, (str, Tensor), "patchscope: target", "a text, or a tensor of token ids [position]")
    check_type(placeholder, (str, int, np.integer), "patchscope: placeholder", "text, or a position")
    for name, value in (("position", position), ("top", top), ("generate", generate)):
        check_type(value, (int, np.integer), f"patchscope: {name}", "a whole number")
    for name, value, least in (("top", top, 1), ("generate", generate, 0)):
        if value < least:
            raise MechintError(f"patchscope: {name} is {value}; it must be at least {least}")
    texts = [prompt] if isinstance(prompt, str) else None
    [tokens] = token_rows(model, prompt[None] if isinstance(prompt, Tensor) else None, texts, "patchscope")
    ids, at = target_of(model, target, placeholder)
    position = checked(position, len(tokens), "the source prompt")
    chosen = fixed_sites(model, sites, layer_list(layers, model.num_layers, "patchscope"), "patchscope")
    found = given(model, texts, answer, 1, "answer", "patchscope")
    wanted = int(model(tokens[None])[0, -1].argmax()) if found is None else found[0]
    looked = torch.tensor([[wanted]], device=tokens.device)
    values = taken(model, tokens[None], chosen, position)
    say = lambda token: word(model, token)

    each = [(place.site, there) for place in places(model, chosen, into, "patchscope") for there in place.into]
    cells = [placed({there: values[site]}, at) for site, there in each] + [[]]  # the last one is the target as it is
    reads = read_at_end(model, ids[None], cells, MEMORY).flatten(0, 1).to(model.device)
    parts = reads.split(max(1, ROOM // len(model.embeddings)))
    said = [one for part in parts for one in seen(logits_of(model, part), looked.expand(len(part), -1), top)]
    longer: list[list[int]] = [[]] * len(cells)
    if generate:
        longer = continuations(model, ids[None], cells, generate, memory_mib=MEMORY)[:, 0].tolist()
    between = " " if model.tokenizer is None else ""
    *found_there, bare = [
        Reading(
            site, there, [say(token) for token in cell.top], cell.probability, cell.answer, cell.rank,
            between.join(map(say, tokens)),
        )
        for (site, there), cell, tokens in zip([*each, ("", "")], said, longer, strict=True)
    ]  # fmt: skip
    return ScopeReading(
        [say(token) for token in tokens.tolist()], position, [say(token) for token in ids.tolist()], at, say(wanted),
        bare, found_there,
    )  # fmt: skip


def target_of(model: Model, target: str | Tensor, placeholder: str | int) -> tuple[Tensor, int]:
    """The token ids of a target prompt, and the position of its placeholder."""
    if isinstance(target, Tensor):
        check_tokens(model, target[None])
        if isinstance(placeholder, str) and placeholder:
            raise MechintError("patchscope: the target is token ids, so its placeholder is a position; give a number")
        at = -1 if isinstance(placeholder, str) else placeholder
        return target, checked(at, len(target), "the target prompt")
    encoder: Encoder = encoder_of(model)
    text, usual = RECIPES.get(target, (target, ""))
    inside = placeholder if isinstance(placeholder, str) else ""
    ids, at = read_text(model, encoder, text, inside or usual)
    if not isinstance(placeholder, str):
        at = checked(placeholder, len(ids), "the target prompt")
    return torch.tensor(ids, dtype=torch.long, device=model.device), at


def checked(position: int, length: int, where: str) -> int:
    """A position counted from the start.

    Raises:
        MechintError: it does not exist.
    """
    if not -length <= position < length:
        raise MechintError(f"patchscope: position {position} does not exist in {where}; it has {length} tokens")
    return position % length
