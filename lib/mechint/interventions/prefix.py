"""Parts of a forward: up to a site, and on from the layer that holds it. The layers before it run once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from ..utils.errors import MechintError
from .edits import Edit, check_edits
from .model import Model
from .run import check_tokens
from .sites import find_sites
from .taps import Tap

LOGITS_AT_ONCE = 1 << 25
"""Entries of [row, position, vocabulary] that are held at a time, 128 MiB in float32."""
IN_CACHE = 1 << 21
"""Bytes of a tensor of which a few stay in a processor's cache."""
FEWEST_ROWS = 4
"""Rows of a block at least."""


def layer_of(model: Model, site: str) -> int:
    """The layer that holds a site; -1 for sites before the layers.

    Raises:
        MechintError: the site lies behind the layers, or there is none of that name.
    """
    [site] = find_sites(model.sites, [site])
    if site in model.first_sites:
        return -1
    if not site.startswith("layers."):
        raise MechintError(f"the site {site!r} lies behind the layers; choose one of a layer, or {model.first_sites}")
    return int(site.split(".")[1])


def up_to(model: Model, tokens: Tensor, site: str) -> tuple[Tensor, Tensor]:
    """The forward as far as a site.

    Args:
        tokens: [batch, position].

    Returns:
        The site [batch, position, unit, …], and the residual stream before its layer [batch, position, model].
    """
    value, _, before = up_to_both(model, tokens, site, site)
    return value, before


def up_to_both(model: Model, tokens: Tensor, read: str, written: str) -> tuple[Tensor, Tensor, Tensor]:
    """The forward as far as a site, with another one that comes before it.

    Args:
        tokens: [batch, position].

    Returns:
        Both sites [batch, position, unit, …], and the residual stream before the layer of the second one.
    """
    check_tokens(model, tokens)
    layer, tap = layer_of(model, written), Tap([read, written])
    before = r = model.begin(tokens, tap)
    for i in range(layer + 1):
        before = r
        r, _ = model.block(i, r, model.empty_cache(i, len(tokens)), tap)
    return tap.values[read], tap.values[written], before


def behind(model: Model, tokens: Tensor, before: Tensor, site: str, edits: Sequence[Edit] = ()) -> Tensor:
    """The residual stream behind the last layer [batch, position, model], under edits of one site.

    Args:
        before: The residual stream before the site's layer, from :func:`up_to`.
        edits: All of them at ``site``.
    """
    tap, layer = Tap((), check_edits(model.sites, edits, *tokens.shape)), layer_of(model, site)
    r = before if layer >= 0 else model.begin(tokens, tap)
    for i in range(max(layer, 0), model.num_layers):
        r, _ = model.block(i, r, model.empty_cache(i, len(tokens)), tap)
    return r


def pieces(model: Model, rows: int, length: int) -> list[slice]:
    """Runs of positions whose logits fit into :data:`LOGITS_AT_ONCE`."""
    size = max(1, LOGITS_AT_ONCE // (rows * model.embeddings.shape[0]))
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def log_probs(model: Model, r: Tensor, piece: slice) -> Tensor:
    """Next-token log-probabilities at a run of positions [batch, piece, vocabulary], at least float32.

    Args:
        r: The residual stream behind the last layer [batch, position, model].
    """
    logits = model.finish(r[:, piece], Tap())
    return torch.log_softmax(logits if logits.dtype.itemsize > 2 else logits.float(), -1)


def losses_of(scores: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in nats of targets [batch, position] under log-probabilities; of any token where it is −1."""
    return -scores.gather(-1, targets.clamp_min(0).unsqueeze(-1)).squeeze(-1)


def divergence(reference: Tensor, scores: Tensor, chances: Tensor | None = None) -> Tensor:
    """KL(reference ‖ other) in nats of log-probabilities [..., vocabulary], [...].

    Args:
        chances: ``reference.exp()``, where it is known already.
    """
    if scores.requires_grad or reference.requires_grad:
        chances = reference.exp() if chances is None else chances
        return (chances * (reference - scores)).sum(-1)
    wide = torch.broadcast_shapes(reference.shape, scores.shape)
    logs, others = (tensor.expand(wide).reshape(-1, wide[-1]) for tensor in (reference, scores))
    known = None if chances is None else chances.expand(wide).reshape(-1, wide[-1])
    parts = []
    for rows in blocks(others):
        share = logs[rows].exp() if known is None else known[rows]
        parts.append((share * (logs[rows] - others[rows])).sum(-1))
    return torch.cat(parts).view(wide[:-1])


def blocks(tensor: Tensor) -> list[slice]:
    """Runs of the rows of a tensor [rows, width] that stay in a processor's cache; all of them on other devices.

    Work on each entry then reads memory once, however many steps it takes. Each run has :data:`FEWEST_ROWS` at least,
    if the tensor has: sums over fewer are split between threads, and end in other bits.
    """
    rows, width = tensor.shape
    size = max(FEWEST_ROWS, IN_CACHE // max(1, width * tensor.element_size()))
    count = max(1, rows // size) if tensor.device.type == "cpu" else 1
    ends = [rows * k // count for k in range(count + 1)]
    return [slice(*pair) for pair in itertools.pairwise(ends)]


def compare(model: Model, targets: Tensor, clean: Tensor, changed: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Loss and divergence of changed forwards beside the clean one.

    Args:
        targets: The token that should follow each position, [batch, position]; −1 where nothing is asked.
        clean: The residual stream behind the last layer [batch, position, model].
        changed: Others of the same shape.

    Returns:
        Cross-entropy of the targets in nats, of the clean forward and then of each changed one,
        [1 + changed, batch, position]; and KL(clean ‖ changed) in nats, [changed, batch, position].
    """
    losses, divergences = [], []
    for piece in pieces(model, *targets.shape):
        reference, target = log_probs(model, clean, piece), targets[:, piece]
        ce, kl = [losses_of(reference, target)], []
        for r in changed:
            scores = log_probs(model, r, piece)
            ce.append(losses_of(scores, target))
            kl.append(divergence(reference, scores))
        losses.append(torch.stack(ce))
        divergences.append(torch.stack(kl) if kl else reference.new_zeros(0, *target.shape))
    return torch.cat(losses, -1), torch.cat(divergences, -1)
