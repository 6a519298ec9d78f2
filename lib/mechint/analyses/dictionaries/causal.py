"""Causal tests of features: each ablated or steered in the forward, beside other features of equal density."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...interventions.model import Model
from ...interventions.prefix import (
    LOGITS_AT_ONCE,
    behind,
    divergence,
    log_probs,
    losses_of,
    pieces,
    up_to,
    up_to_both,
)
from ...interventions.sweep import TOGETHER
from ...sae.activations.flattening import check_fit, flatten, latents_at, rule_of, strongest, unflatten
from ...sae.base import SparseAutoencoder
from ...sae.transcoder import Transcoder
from ...utils.errors import MechintError
from ...utils.progress import Progress
from ...utils.statistics import ClusterBootstrap, Number
from .evaluation import SEQUENTIAL, Windows, as_windows, documents_of, splice

MODES = ("ablate", "steer")
MEANING = {
    "loss": "rise of the next-token cross-entropy over all tokens, in nats",
    "loss_active": "rise of the next-token cross-entropy where the feature is active, in nats",
    "kl_active": "KL from the model's own next-token distribution where the feature is active, in nats",
    "logits": "rise of the logits of the tokens that the feature raises, over the mean of all logits",
}


class Change:
    """An intervention on one feature: x ← x + Δf · its decoder direction. The reconstruction's error stays as it is.

    Args:
        sae: In raw activation units.
        feature: Its number.
        mode: ``ablate`` sets the feature to zero; ``steer`` adds ``amount`` to it at every position.

    A transcoder reads x, and the direction is added to the site that it writes.
    """

    def __init__(self, sae: SparseAutoencoder | Transcoder, feature: int, mode: str, amount: float) -> None:
        self.sae, self.feature, self.mode, self.amount = sae, feature, mode, amount

    def amounts(self, x: Tensor) -> Tensor:
        """The feature's activations on [batch, position, unit, …], [batch, position]; of several the strongest."""
        return strongest(latents_at(self.sae, x)[..., self.feature, None]).squeeze(-1)

    def __call__(self, x: Tensor, written: Tensor | None = None) -> Tensor:
        """The changed site: x, or of a transcoder ``written`` [batch, position, unit, …]."""
        there, rule = x if written is None else written, rule_of(self.sae)
        flat, direction = flatten(there, rule), self.sae.W_dec[self.feature].to(there)
        amount = -latents_at(self.sae, x)[..., self.feature, None] if self.mode == "ablate" else self.amount
        return unflatten(flat + torch.as_tensor(amount).to(there) * direction, there, rule)


@torch.no_grad()
def causal_effects(
    sae: SparseAutoencoder | Transcoder,
    model: Model,
    batches: Sequence[Windows | Tensor],
    site: str,
    features: Sequence[int],
    *,
    mode: str = "ablate",
    amounts: Mapping[int, float] | None = None,
    raises: Mapping[int, Sequence[int]] | None = None,
    density: Tensor | None = None,
    controls: int = 16,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Effects of features on loss and logits, with the same of random features of about equal density.

    Args:
        sae: A finished dictionary with ``W_dec`` [d_sae, d_in], or an attached transcoder, whose features act where
            it writes.
        model: From :func:`mechint.load`.
        batches: Token ids or :class:`Windows`; at least four documents.
        site: Site that the dictionary reads.
        features: Numbers of the latents.
        mode: ``ablate``, or ``steer`` by ``amounts``.
        amounts: Activation added to each feature when steering, and to the controls that stand beside it.
        raises: Tokens whose logits each feature is said to raise; the controls of a feature are asked about the same.
        density: Share of tokens on which each latent is active, [d_sae]; its controls are drawn from the 4 × controls
            living latents of nearest log density. None draws from all latents.
        controls: Random features for each feature, none of them in ``features``; 0 for none.
        draws, seed: Draws and seed of the bootstrap and the controls.

    Returns:
        ``{"site", "mode", "documents", "features": [{"id", "active": tokens, "controls": [ids], "metrics": {name:
        Number}, "control": {name: {"values": [...], "p": share of controls with an effect at least as large}}}]}``;
        metrics are those of :data:`MEANING`. Where a feature never fires, those at its active tokens are left out.

    Raises:
        MechintError: an unknown mode or feature, steering without amounts, or text of fewer than four documents.
    """
    check_fit(sae, model, site)
    if mode not in MODES:
        raise MechintError(f"mode {mode!r} is not one of {', '.join(MODES)}")
    d_sae = int(sae.config.d_sae)
    if bad := [i for i in features if not 0 <= i < d_sae]:
        raise MechintError(f"feature {bad[0]} does not exist; the dictionary has {d_sae} (0 to {d_sae - 1})")
    if mode == "steer" and any(i not in (amounts or {}) for i in features):
        raise MechintError("steering needs an amount for each feature: amounts={feature: activation}")
    windows = [as_windows(batch) for batch in batches]
    bootstrap = ClusterBootstrap(documents_of(windows), draws, seed, over="documents")
    beside = {i: _controls(i, features, density, d_sae, controls, seed) for i in features}
    asked = [(i, j) for i in features for j in (i, *beside[i])]  # (whose tokens and amount, what is changed)
    rows = _measure(sae, model, windows, site, asked, mode, dict(amounts or {}), dict(raises or {}))
    told = []
    for i in features:
        metrics = _numbers(rows[i, i], bootstrap)
        found: dict[str, Any] = {"id": int(i), "active": int(rows[i, i]["active"].sum()), "controls": beside[i],
                                 "metrics": metrics, "control": {}}  # fmt: skip
        others = [_means(rows[i, j]) for j in beside[i]]
        for name, ours in metrics.items():
            values = [other[name] for other in others if name in other]
            if values:
                as_large = sum(abs(value) >= abs(float(ours["value"])) for value in values)
                found["control"][name] = {"values": values, "p": (1 + as_large) / (1 + len(values))}
        told.append(found)
    return {"site": site, "mode": mode, "documents": len(bootstrap.sizes), "features": told}


def _controls(
    feature: int, features: Sequence[int], density: Tensor | None, d_sae: int, count: int, seed: int
) -> list[int]:
    """Random latents that are none of ``features``, of about the density of one of them."""
    others = torch.tensor([j for j in range(d_sae) if j not in set(features)], dtype=torch.long)
    if density is not None:
        density = density.double().cpu()
        others = others[density[others] > 0]
        away = (density[others].log() - density[feature].clamp_min(1e-12).log()).abs()
        others = others[torch.sort(away, stable=True).indices[: 4 * count]]
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed * 1_000_003 + feature))
    return sorted(others[order[:count]].tolist())


def _measure(
    sae: SparseAutoencoder | Transcoder, model: Model, windows: Sequence[Windows], site: str,
    asked: Sequence[tuple[int, int]], mode: str, amounts: dict[int, float], raises: dict[int, Sequence[int]],
) -> dict[tuple[int, int], dict[str, np.ndarray[Any, Any]]]:  # fmt: skip
    """Sums by row of the text for every pair (whose tokens and amount, which feature is changed)."""
    found: dict[tuple[int, int], list[dict[str, Tensor]]] = {pair: [] for pair in asked}
    written = sae.config.site_out if isinstance(sae, Transcoder) else ""
    with Progress(f"causal check, {mode}", len(windows) * len(asked)) as progress:
        for window in windows:
            text = Text(model, window, site, written)
            waiting: list[Changed] = []
            for pair in asked:
                i, j = pair
                change = Change(sae, j, mode, amounts.get(i, 0.0))
                # a control is measured where it is active; steering acts everywhere
                active = change.amounts(text.x) > 0 if mode == "ablate" else torch.ones_like(text.counted)
                waiting.append(text.changed(pair, change, active & text.counted, raises.get(i, ())))
                if text.alone or sum(len(each.rows) for each in waiting) * text.length >= TOGETHER:
                    text.run(waiting, found)
                    progress.step(count=len(waiting))
                    waiting = []
            text.run(waiting, found)
            progress.step(count=len(waiting))
    return {pair: {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
            for pair, parts in found.items()}  # fmt: skip


@dataclass(frozen=True)
class Changed:
    """A change of a feature, to be run.

    Attributes:
        pair: Whose tokens and amount, and which feature is changed.
        rows: Rows of the text that it changes, [n]; the others are what they were.
        new: The site of these rows [n, position, unit, …], or a function that gives it.
        active: Positions that count, [row, position] of all rows.
        raised: Tokens that the feature is said to raise.
    """

    pair: tuple[int, int]
    rows: Tensor
    new: Any
    active: Tensor
    raised: Sequence[int]


class Text:
    """A window of text with what all changes of it share: what stands before the site, and the model's predictions.

    Args:
        model: From :func:`mechint.load`.
        window: The text.
        site: Site that is read.
        written: Site where the features act, if that is another one: the one that a transcoder writes.
    """

    def __init__(self, model: Model, window: Windows, site: str, written: str = "") -> None:
        self.model, self.site, self.tokens, self.keep = model, written or site, window.tokens, window.kept()
        self.there: Tensor | None = None
        """The clean value of the written site, None where features act at the site that is read."""
        if written:
            self.x, self.there, self.before = up_to_both(model, window.tokens, site, written)
        else:
            self.x, self.before = up_to(model, window.tokens, site)
        self.acted = self.x if self.there is None else self.there
        """The clean value of the site where features act, [row, position, unit, …]."""
        self.targets = window.targets()
        self.counted = self.targets >= 0
        self.clean = behind(model, window.tokens, self.before, self.site)
        self.length = window.tokens.shape[1]
        self.alone = not written and site.rpartition(".")[2] in SEQUENTIAL
        """True if a change of one position shows in the site at later ones, so that it must be made in passing."""
        few = self.targets.numel() * model.embeddings.shape[0] <= LOGITS_AT_ONCE
        self.known = log_probs(model, self.clean, slice(0, self.length)) if few else None
        """The model's log-probabilities [row, position, vocabulary], where they are few enough to be kept."""

    def changed(self, pair: tuple[int, int], change: Change, active: Tensor, raised: Sequence[int]) -> Changed:
        """A change, and the rows that it changes."""
        if self.alone:
            return Changed(pair, torch.arange(len(self.tokens), device=self.tokens.device), change, active, raised)
        new = change(self.x, self.there)
        moved = ((new != self.acted).flatten(2).any(-1) & self.keep).any(1)
        rows = moved.nonzero().flatten()
        return Changed(pair, rows, new[rows], active, raised)

    def own(self, piece: slice, rows: Tensor) -> Tensor:
        """The model's log-probabilities at some positions of some rows, [n, piece, vocabulary]."""
        return log_probs(self.model, self.clean[rows], piece) if self.known is None else self.known[rows, piece]

    def run(self, waiting: Sequence[Changed], found: dict[tuple[int, int], list[dict[str, Tensor]]]) -> None:
        """Runs changes together, and adds to ``found`` the sums over the positions of each row."""
        if not waiting:
            return
        rows = torch.cat([each.rows for each in waiting])
        sizes = [len(each.rows) for each in waiting]
        each_rise, each_kl, each_logits = (torch.zeros(len(rows), self.length, dtype=torch.float64) for _ in range(3))
        if len(rows):
            new = waiting[0].new if self.alone else torch.cat([each.new for each in waiting])
            edit = splice(self.site, new, self.keep[rows], self.acted.dim() - 2)
            r = behind(self.model, self.tokens[rows], self.before[rows], self.site, [edit])
            for piece in pieces(self.model, len(rows), self.length):
                target = self.targets[rows, piece]
                own, scores = self.own(piece, rows), log_probs(self.model, r, piece)
                each_rise[:, piece] = (losses_of(scores, target) - losses_of(own, target)).double().cpu()
                each_kl[:, piece] = divergence(own, scores).double().cpu()
                parts = zip(waiting, own.split(sizes), scores.split(sizes), each_logits.split(sizes), strict=True)
                for each, before, after, logits in parts:
                    if len(each.raised):
                        rises = [part[..., list(each.raised)].mean(-1) - part.mean(-1) for part in (before, after)]
                        logits[:, piece] = (rises[1] - rises[0]).double().cpu()
        of_each = (part.split(sizes) for part in (each_rise, each_kl, each_logits))
        for each, rise, kl, logits in zip(waiting, *of_each, strict=True):
            found[each.pair].append(self.sums(each, rise, kl, logits))

    def sums(self, change: Changed, rise: Tensor, kl: Tensor, logits: Tensor) -> dict[str, Tensor]:
        """Sums of values [n, position] of the changed rows over the positions of every row, [row]."""
        rows, counted, active = change.rows.cpu(), self.counted.double().cpu(), change.active.double().cpu()

        def total(values: Tensor, where: Tensor) -> Tensor:
            return where.new_zeros(len(where)).index_copy(0, rows, (values * where[rows]).sum(1))

        found = {
            "counted": counted.sum(1), "active": active.sum(1), "loss": total(rise, counted),
            "loss_active": total(rise, active), "kl_active": total(kl, active),
        }  # fmt: skip
        return found | {"logits": total(logits, active)} if len(change.raised) else found


def _over(name: str) -> str:
    return "counted" if name == "loss" else "active"


def _means(rows: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, float]:
    return {
        name: float(rows[name].sum() / rows[_over(name)].sum())
        for name in MEANING
        if name in rows and rows[_over(name)].sum() > 0
    }


def _numbers(rows: Mapping[str, np.ndarray[Any, Any]], bootstrap: ClusterBootstrap) -> dict[str, Number]:
    found = {}
    with np.errstate(divide="ignore", invalid="ignore"):  # a draw of documents may hold no active token
        for name in _means(rows):
            found[name] = bootstrap.interval(np.divide, rows[name], rows[_over(name)])
    return found
