"""Runs: one forward with sites recorded and edits applied, whole or token by token."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.errors import MechintError, check_type, did_you_mean
from .edits import Edit, check_edits
from .model import Model
from .sites import Site, Wanted, recorded_sites
from .taps import Tap


@dataclass
class Run:
    """The outcome of a run: ``run.logits``, ``run["layers.0.state"]``, and the cache to go on from."""

    logits: Tensor
    values: dict[str, Tensor]
    cache: Any

    def __getitem__(self, site: str) -> Tensor:
        if site not in self.values:
            raise MechintError(
                f"site {site!r} was not recorded in this run{did_you_mean(site, self.values)}; name it in record=[...]"
            )
        return self.values[site]

    def keys(self) -> list[str]:
        """The recorded sites, in the order of the forward."""
        return list(self.values)

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    def __len__(self) -> int:
        return len(self.values)

    def __contains__(self, site: object) -> bool:
        return site in self.values

    def __repr__(self) -> str:
        return shortly("Run", {"logits": self.logits, **self.values})


@dataclass
class Generation:
    """Prompt and generated tokens [batch, position], and the logits of all positions but the last."""

    tokens: Tensor
    logits: Tensor
    values: dict[str, Tensor]

    def __repr__(self) -> str:
        return shortly("Generation", {"tokens": self.tokens, "logits": self.logits, **self.values})


NAMED = 6
"""Tensors that a short description names."""


def shortly(kind: str, tensors: Mapping[str, Tensor]) -> str:
    """``Run(logits [2, 5, 24], layers.0.state [2, 5, 128, 16])``: shapes, and of many sites the first few."""
    parts = [f"{name} {list(value.shape)}" for name, value in list(tensors.items())[:NAMED]]
    more = len(tensors) - len(parts)
    return f"{kind}({', '.join(parts)}{f' and {more} more' if more else ''})"


def run(
    model: Model,
    tokens: Tensor,
    record: Wanted = (),
    edits: Sequence[Edit] = (),
    cache: Any = None,
    logits_at: Tensor | None = None,
) -> Run:
    """One forward with sites recorded and edits applied.

    Gradients follow torch's ambient mode: under ``torch.no_grad()`` none are kept, otherwise they flow through
    every site, edit and edit value.

    Args:
        model: From :func:`mechint.load`.
        tokens: Token ids, [batch, position].
        record: Site names or shell patterns such as ``"layers.*.dt"``; or each with its positions, as in
            ``{"layers.*.state": [5, -1]}``, of which nothing else is held: ``run["layers.0.state"]`` is then
            [batch, 2, …], positions ascending.
        edits: Applied in the order given.
        cache: ``run(...).cache`` of the positions before; positions of edits then count from the very start.
        logits_at: Positions whose logits are wanted, [batch, wanted]; None for all.

    Raises:
        MechintError: tokens, site, edit or cache do not fit the model; see :func:`.edits.check_edits`;
            the logits are not finite (the first site that is not is named).
    """
    check_tokens(model, tokens)
    offset = cache.position if cache is not None else 0
    model.check_behind(offset, offset + tokens.shape[1])
    edits = check_edits(model.sites, edits, tokens.shape[0], offset + tokens.shape[1])
    names = recorded_sites(model.sites, record, offset + tokens.shape[1], offset)
    if logits_at is not None and any(name in ("final_norm", "logits") for name in (*names, *(e.site for e in edits))):
        raise MechintError(
            "logits_at leaves out positions, so final_norm and logits can't be recorded or edited with it"
        )
    tap = Tap(names, edits, offset)
    before = cache
    logits, cache = model.trace(tokens, tap, cache, logits_at)
    if not torch.isfinite(logits).all():
        raise MechintError(first_not_finite(model, tokens, edits, before))
    return Run(logits, tap.values, cache)


def read_by_head(model: Model, tokens: Tensor, edits: Sequence[Edit], logits_at: Tensor) -> Tensor:
    """The input of the head under edits, [batch, wanted, model]: a run without the product with the vocabulary.

    Raises:
        MechintError: as for :func:`run`.
    """
    check_tokens(model, tokens)
    edits = check_edits(model.sites, edits, *tokens.shape)
    tap = Tap((), edits)
    tap.goes_on = False
    read = model.read_by_head(tokens, tap, logits_at)
    if not torch.isfinite(read).all():
        raise MechintError(first_not_finite(model, tokens, edits, None))
    return read


@torch.no_grad()
def first_not_finite(model: Model, tokens: Tensor, edits: Sequence[Edit], cache: Any) -> str:
    """Says which site is the first with NaN or infinite numbers, one layer looked at after another."""
    groups: dict[str, list[str]] = {}
    for name, site in model.sites.items():
        if not {"state", "tap", "source"} & set(site.axes):  # a fault in these large sites shows at others
            groups.setdefault(name.rpartition(".")[0] or name, []).append(name)
    for small in groups.values():
        tap = Tap(small, edits, cache.position if cache is not None else 0)
        model.trace(tokens, tap, cache)
        for name in small:
            bad = (~torch.isfinite(tap.values[name])).flatten(2).any(-1).nonzero()  # rows, positions
            if len(bad):
                position = int(bad[:, 1].min())
                row = int(bad[bad[:, 1] == position][0, 0])
                return (
                    f"{name} is NaN or infinite, first at position {tap.offset + position} (row {row}); nothing before "
                    "it is, so look at the edits there, or load the weights in a wider precision"
                )
    return "the logits are NaN or infinite"


def generate(
    model: Model,
    tokens: Tensor,
    count: int,
    record: Wanted = (),
    edits: Sequence[Edit] = (),
    temperature: float = 0.0,
    seed: int = 0,
    gradients: bool = False,
) -> Generation:
    """Goes on from a prompt, token by token, with the same edits a whole run would have.

    Args:
        model: From :func:`mechint.load`.
        tokens: The prompt, [batch, position].
        count: Tokens to generate.
        record: As for :func:`run`; the sites of the positions 0 … position + count - 2, and negative ones from the end
            of these.
        edits: As for :func:`run`; negative positions count from the end of the generated text.
        temperature: 0 takes the likeliest token; above, tokens are drawn from softmax(logits / temperature).
        seed: The seed of the draws.
        gradients: True keeps what gradients of logits and values need, for every position so far: as much memory as
            training takes. Without, they are plain numbers, whatever torch's ambient mode.
    """
    with torch.set_grad_enabled(gradients and torch.is_grad_enabled()):
        return _generate(model, tokens, count, record, edits, temperature, seed)


def _generate(
    model: Model,
    tokens: Tensor,
    count: int,
    record: Wanted,
    edits: Sequence[Edit],
    temperature: float,
    seed: int,
) -> Generation:
    check_tokens(model, tokens)
    check_type(count, (int, np.integer), "generate: count", "a whole number")
    check_type(seed, (int, np.integer), "generate: seed", "a whole number")
    check_type(temperature, (int, float, np.number), "generate: temperature", "a number")
    if count < 1:
        raise MechintError(f"generate: count is {count}; it must be at least 1")
    if not 0 <= temperature < math.inf:
        raise MechintError(f"generate: temperature is {temperature}; it must be 0 or more")
    model.check_length(tokens.shape[1] + count - 1)
    model.check_behind(tokens.shape[1], tokens.shape[1] + count - 1)
    names = recorded_sites(model.sites, record, tokens.shape[1] + count - 1)
    edits = check_edits(model.sites, edits, tokens.shape[0], tokens.shape[1] + count)
    generator = torch.Generator(tokens.device).manual_seed(int(seed))
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    step, logits, cache = tokens, [], None
    for _ in range(count):
        tap = Tap(names, edits, cache.position if cache is not None else 0)
        latest, cache = model.trace(step, tap, cache)
        logits.append(latest)
        for name, value in tap.values.items():
            parts[name].append(value)
        if temperature > 0:
            chances = torch.softmax(latest[:, -1].float() / temperature, -1)
            step = torch.multinomial(chances, 1, generator=generator)
        else:
            step = latest[:, -1].argmax(-1, keepdim=True)
        tokens = torch.cat([tokens, step], 1)
    values = {name: join(model.sites[name], pieces) for name, pieces in parts.items()}
    return Generation(tokens, torch.cat(logits, 1), values)


def join(site: Site, pieces: list[Tensor]) -> Tensor:
    """Joins a site's values of successive forwards along the positions; earlier pieces had fewer sources."""
    if site.has_sources:
        width = pieces[-1].shape[-1]
        pieces = [F.pad(piece, (0, width - piece.shape[-1]), value=site.absent) for piece in pieces]
    return torch.cat(pieces, 1)


def check_tokens(model: Model, tokens: Tensor) -> None:
    """Raises :class:`MechintError` unless ``tokens`` is a non-empty [batch, position] of ids that the model has."""
    check_type(tokens, Tensor, "tokens", "a tensor of token ids [batch, position]: torch.tensor([[…]])")
    if tokens.dim() != 2 or tokens.dtype not in (torch.long, torch.int) or tokens.numel() == 0:
        raise MechintError(
            f"tokens must be whole numbers of shape [batch, position]; got {tokens.dtype} of shape {list(tokens.shape)}"
        )
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= model.config.vocab_size:
        raise MechintError(
            f"token id {low if low < 0 else high} is outside the vocabulary of {model.config.vocab_size}"
        )
