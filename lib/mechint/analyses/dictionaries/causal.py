"""Causal tests of features: each ablated or steered in the forward, beside other features of equal density."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...interventions.model import Model
from ...interventions.prefix import behind, divergence, log_probs, losses_of, pieces, up_to, up_to_both
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
        batches: Token ids or :class:`Windows`; at least two documents.
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
    changed = sae.config.site_out if isinstance(sae, Transcoder) else site
    with Progress(f"causal check, {mode}", len(windows) * len(asked)) as progress:
        for window in windows:
            keep = window.kept()
            y: Tensor | None = None
            if isinstance(sae, Transcoder):
                x, y, before = up_to_both(model, window.tokens, site, changed)
            else:
                x, before = up_to(model, window.tokens, site)
            targets = window.targets()
            counted = targets >= 0
            clean = behind(model, window.tokens, before, changed)
            for i, j in asked:
                change = Change(sae, j, mode, amounts.get(i, 0.0))
                new = change if site.rpartition(".")[2] in SEQUENTIAL and y is None else change(x, y)
                axes = (x if y is None else y).dim() - 2
                r = behind(model, window.tokens, before, changed, [splice(changed, new, keep, axes)])
                # a control is measured where it is active; steering acts everywhere
                active = change.amounts(x) > 0 if mode == "ablate" else torch.ones_like(counted)
                found[i, j].append(_sums(model, targets, clean, r, counted, active & counted, raises.get(i, ())))
                progress.step()
    return {pair: {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
            for pair, parts in found.items()}  # fmt: skip


def _sums(
    model: Model,
    targets: Tensor,
    clean: Tensor,
    changed: Tensor,
    counted: Tensor,
    active: Tensor,
    raised: Sequence[int],
) -> dict[str, Tensor]:
    """Sums over the positions of each row."""
    parts: dict[str, list[Tensor]] = {"rise": [], "kl": [], "logits": []}
    for piece in pieces(model, *targets.shape):
        target = targets[:, piece]
        own, new = (log_probs(model, r, piece) for r in (clean, changed))
        parts["rise"].append((losses_of(new, target) - losses_of(own, target)).double())
        parts["kl"].append(divergence(own, new).double())
        if len(raised):
            centred = [scores[..., list(raised)].mean(-1) - scores.mean(-1) for scores in (own, new)]
            parts["logits"].append((centred[1] - centred[0]).double())
    rise, kl = torch.cat(parts["rise"], 1), torch.cat(parts["kl"], 1)
    found = {
        "counted": counted.double().sum(1), "active": active.double().sum(1), "loss": (rise * counted).sum(1),
        "loss_active": (rise * active).sum(1), "kl_active": (kl * active).sum(1),
    }  # fmt: skip
    if parts["logits"]:
        found["logits"] = (torch.cat(parts["logits"], 1) * active).sum(1)
    return {name: value.cpu() for name, value in found.items()}


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
