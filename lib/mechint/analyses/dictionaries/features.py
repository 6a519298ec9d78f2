"""Descriptions of a dictionary's features: where, how often and how strongly they fire, what they raise, neighbours.

Three passes over the text, none of which holds more than a batch: the strongest windows of every feature; a random
sample of windows from equal intervals of activation (Bricken et al. 2023, "Towards Monosemanticity"); and the
activations on the tokens of the windows that were chosen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...interventions.model import Model
from ...interventions.prefix import up_to
from ...sae.activations.flattening import check_fit, flatten, rule_of, strongest, unflatten
from ...sae.base import SparseAutoencoder
from ...sae.transcoder import Transcoder
from ...utils.errors import MechintError
from ...utils.files import write_text
from ...utils.progress import Progress
from .evaluation import CODES_AT_ONCE, Windows, as_windows
from .logits import direct_map, extreme_tokens, has_direct_path

SCHEMA = 1
BINS = 20
"""Bins of the histogram of a feature's activations, from 0 to its largest."""


@dataclass(frozen=True)
class Wanted:
    """Numbers of examples that describe each feature.

    Attributes:
        top: Windows with the strongest activations.
        intervals: Equal intervals of activation, from 0 to the strongest, that samples are drawn from.
        samples: Windows drawn at random from each interval, by the strongest activation of the feature in a window.
        before, after: Tokens shown around the strongest one.
        tokens: Next tokens raised, and lowered.
        neighbours: Features of similar direction.
        seed: Seed of the samples.
    """

    top: int = 8
    intervals: int = 4
    samples: int = 2
    before: int = 20
    after: int = 8
    tokens: int = 8
    neighbours: int = 5
    seed: int = 0


class _Text:
    """The windows of a text one after another, with the activations of the features on them."""

    def __init__(
        self,
        sae: SparseAutoencoder | Transcoder,
        model: Model,
        batches: Sequence[Windows | Tensor],
        site: str,
        features: Tensor,
    ) -> None:
        self.sae, self.model, self.site, self.features = sae, model, site, features
        self.windows = [as_windows(batch) for batch in batches]

    @torch.no_grad()
    def each(self, title: str, rows: set[int] | None = None) -> Any:
        """Yields (number of the first row, f [row, position, feature], keep [row, position], tokens) in pieces.

        f is zero where a position does not count, and the strongest one where a position has several activations.
        ``rows`` leaves out the others.
        """
        start = 0
        with Progress(title, len(self.windows)) as progress:
            for window in self.windows:
                count = len(window.tokens)
                if rows is None or not rows.isdisjoint(range(start, start + count)):
                    x = flatten(up_to(self.model, window.tokens, self.site)[0], rule_of(self.sae))
                    size = max(1, CODES_AT_ONCE // (x[0, ..., 0].numel() * self.sae.config.d_sae))
                    for low in range(0, count, size):
                        part, keep = x[low : low + size], window.kept()[low : low + size]
                        f = self.sae.encode(part.flatten(0, -2))[:, self.features]
                        f = strongest(f.view(*part.shape[:-1], -1)) * keep.unsqueeze(-1)
                        if not torch.isfinite(f).all():
                            raise MechintError(f"the dictionary's latents on {self.site} are not finite")
                        yield start + low, f, keep, window.tokens[low : low + size]
                start += count
                progress.step()


def read_features(
    sae: SparseAutoencoder | Transcoder,
    model: Model,
    batches: Sequence[Windows | Tensor],
    site: str,
    decode: Callable[[int], str],
    *,
    features: Sequence[int] | None = None,
    wanted: Wanted = Wanted(),
) -> dict[str, Any]:
    """Everything that a page says of a dictionary's features, as a JSON object.

    Args:
        sae: A finished dictionary, in raw activation units; of a transcoder, latents raise what they raise where it
            writes.
        model: From :func:`mechint.load`.
        batches: Token ids [row, position] or :class:`.evaluation.Windows`; gone through three times.
        site: A name of ``model.sites``.
        decode: A readable name of a token.
        features: Numbers of the latents to read; None for all.
        wanted: Number of contexts of each kind.

    Returns:
        ``{"schema", "site", "architecture", "d_in", "d_sae", "tokens", "windows", "vocabulary": {id: text}, "rows":
        {row: [token ids]}, "logits": what the attribution is, "features": [...]}``; of a transcoder also
        ``"writes"``, the site that it writes. A feature has ``id``, ``density`` (share of tokens), ``max``, ``mean``
        (where active), ``histogram`` (counts of :data:`BINS` equal bins up to max), ``top`` and ``samples`` (lists of
        ``{"row", "from", "to", "peak", "acts": [[position, activation]]}``, the samples with the ``interval`` they were
        drawn from), ``raises`` and ``lowers`` ([[token, logits for each unit of activation]]), ``neighbours`` ([[id,
        cosine]]).

    Raises:
        MechintError: no such site, a dictionary of another width, a feature that there is not, or no text.
    """
    check_fit(sae, model, site)
    written = sae.config.site_out if isinstance(sae, Transcoder) else site
    d_sae = int(sae.config.d_sae)
    chosen = list(range(d_sae)) if features is None else [int(number) for number in features]
    if bad := [number for number in chosen if not 0 <= number < d_sae]:
        raise MechintError(f"feature {bad[0]} does not exist; the dictionary has {d_sae} (0 to {d_sae - 1})")
    device = sae.W_dec.device
    text = _Text(sae, model, batches, site, torch.tensor(chosen, device=device))
    if not text.windows:
        raise MechintError("there is no text to read features on")
    counts = _strongest(text, wanted)
    drawn = _samples(text, counts, wanted)
    found, rows = _windows(text, counts, drawn, wanted)
    tokens = _attribution(sae, model, text, written, chosen, wanted)
    near = _neighbours(sae, chosen, wanted.neighbours)
    told = []
    for i, number in enumerate(chosen):
        fired = int(counts["fired"][i])
        entry: dict[str, Any] = {
            "id": number, "density": fired / int(counts["tokens"]), "max": _short(float(counts["max"][i])),
            "mean": _short(float(counts["sum"][i]) / fired) if fired else 0.0,
            "histogram": drawn["histogram"][i].tolist() if fired else [],
            "top": found["top"][i], "samples": found["samples"][i], "neighbours": near[i],
        }  # fmt: skip
        if tokens is not None:
            entry |= {"raises": tokens[0][i], "lowers": tokens[1][i]}
        told.append(entry)
    used = {token for ids in rows.values() for token in ids}
    used |= {pair[0] for entry in told for side in ("raises", "lowers") for pair in entry.get(side, ())}
    return {
        "schema": SCHEMA, "site": site, "architecture": sae.config.architecture, "d_in": int(sae.config.d_in),
        "d_sae": d_sae, "tokens": int(counts["tokens"]), "windows": int(counts["windows"]),
        "vocabulary": {str(token): decode(token) for token in sorted(used)},
        "rows": {str(row): ids for row, ids in sorted(rows.items())},
        "logits": "direct path through the final norm, logits for each unit of activation" if tokens is not None
        else f"{written} has no direct path to the logits" if not has_direct_path(model, written)
        else f"a direction shared by every {model.sites[written].axes[2]} raises no fixed tokens",
        "features": told, **({"writes": written} if isinstance(sae, Transcoder) else {}),
    }  # fmt: skip


def save_features(found: dict[str, Any], path: str | Path) -> Path:
    """Writes what :func:`read_features` found, whole or not at all."""
    return write_text(path, json.dumps(found, allow_nan=False, separators=(",", ":")) + "\n")


def _short(value: float) -> float:
    """Four significant digits: what a reader can use, and a third of the file."""
    return float(f"{value:.4g}")


def _strongest(text: _Text, wanted: Wanted) -> dict[str, Tensor]:
    """Per feature: tokens it fires on, sum, largest, and its strongest windows with their rows, [feature, top]."""
    n, device = len(text.features), text.features.device
    found = {
        "fired": torch.zeros(n, dtype=torch.long, device=device),
        "sum": torch.zeros(n, dtype=torch.float64, device=device),
        "tokens": torch.zeros((), dtype=torch.long), "windows": torch.zeros((), dtype=torch.long),
        "value": torch.zeros(n, 0, device=device), "row": torch.zeros(n, 0, dtype=torch.long, device=device),
    }  # fmt: skip
    for start, f, keep, _ in text.each("features: strongest windows"):
        found["fired"] += (f > 0).sum((0, 1))
        found["sum"] += f.double().sum((0, 1))
        found["tokens"] += keep.sum().cpu()
        found["windows"] += len(f)
        peaks = f.amax(1).T  # [feature, row]
        value = torch.cat([found["value"].to(peaks), peaks], 1)
        row = torch.cat([found["row"], torch.arange(start, start + len(f), device=device).expand(n, -1)], 1)
        # stable, so that of equal windows the first stays wherever the batches are cut
        best = torch.sort(value, dim=1, descending=True, stable=True).indices[:, : wanted.top]
        found["value"], found["row"] = value.gather(1, best), row.gather(1, best)
    if not int(found["tokens"]):
        raise MechintError("every position of the text is left out; there is nothing to read features on")
    return {**found, "max": found["value"][:, 0]}


def _samples(text: _Text, counts: dict[str, Tensor], wanted: Wanted) -> dict[str, Tensor]:
    """Histogram of activations [feature, bin]; random windows of each interval [feature, interval, sample], or −1."""
    n, device = len(text.features), text.features.device
    histogram = torch.zeros(n, BINS, dtype=torch.long, device=device)
    shape = (n, wanted.intervals, wanted.samples)
    key, row = torch.full(shape, -1.0, device=device), torch.full(shape, -1, dtype=torch.long, device=device)
    top = counts["max"].clamp_min(1e-30)
    for start, f, _, _ in text.each("features: samples"):
        at = (f > 0).nonzero(as_tuple=True)
        where = (f[at] / top[at[2]] * BINS).long().clamp(0, BINS - 1)
        histogram += torch.bincount(at[2] * BINS + where, minlength=n * BINS).view(n, BINS)
        peaks = f.amax(1).T  # [feature, row]
        interval = (peaks / top[:, None] * wanted.intervals).long().clamp(0, wanted.intervals - 1)
        rows = torch.arange(start, start + len(f), device=device)
        luck = _luck(rows, text.features, wanted.seed)
        for level in range(wanted.intervals):
            mine = torch.where((interval == level) & (peaks > 0), luck, torch.full_like(luck, -1.0))
            both = torch.cat([key[:, level], mine], 1)
            best = both.topk(wanted.samples, 1).indices
            row[:, level] = torch.cat([row[:, level], rows.expand(n, -1)], 1).gather(1, best)
            key[:, level] = both.gather(1, best)
    return {"histogram": histogram.cpu(), "row": torch.where(key >= 0, row, torch.full_like(row, -1))}


def _luck(rows: Tensor, features: Tensor, seed: int) -> Tensor:
    """A number in [0, 1) that seed, row and feature alone decide, [feature, row]: batches may be cut anywhere."""
    value = (features[:, None] * 1_000_003 + rows[None, :] + seed * 7_919) * 0x1B03738712FAD5C9
    value = (value ^ (value >> 29)) * 0x369DEA0F31A53F85
    return ((value ^ (value >> 32)) & 0xFFFFFF).float() / (1 << 24)


def _windows(
    text: _Text, counts: dict[str, Tensor], drawn: dict[str, Tensor], wanted: Wanted
) -> tuple[dict[str, list[Any]], dict[int, list[int]]]:
    """The chosen windows with the activations on their tokens, and the tokens of each row that is shown."""
    n = len(text.features)
    asked: dict[int, list[tuple[int, str, int]]] = {}  # row -> (feature, where it belongs, place there)
    value, rows = counts["value"].cpu(), counts["row"].cpu().tolist()
    for i in range(n):
        for place in range(value.shape[1]):
            if value[i, place] > 0:
                asked.setdefault(rows[i][place], []).append((i, "top", place))
    for i, levels in enumerate(drawn["row"].cpu().tolist()):
        for level, some in enumerate(levels):
            for row in some:
                if row >= 0:
                    asked.setdefault(row, []).append((i, "samples", level))
    found: dict[str, list[list[tuple[int, dict[str, Any]]]]] = {
        "top": [[] for _ in range(n)], "samples": [[] for _ in range(n)]
    }  # fmt: skip
    tokens: dict[int, list[int]] = {}
    top = counts["max"].cpu().tolist()
    for start, f, _, ids in text.each("features: contexts", set(asked)):
        f = f.cpu()
        for k in range(len(f)):
            for i, kind, place in asked.get(start + k, ()):
                shown = _window(f[k, :, i], start + k, wanted)
                if kind == "samples":
                    step = top[i] / wanted.intervals
                    shown["interval"] = [_short(place * step), _short((place + 1) * step)]
                found[kind][i].append((place, shown))
            if start + k in asked:
                tokens[start + k] = ids[k].tolist()
    order = lambda pair: (pair[0], pair[1]["row"])
    sorted_ = {kind: [[shown for _, shown in sorted(one, key=order)] for one in every] for kind, every in found.items()}
    return {"top": sorted_["top"], "samples": [one[::-1] for one in sorted_["samples"]]}, tokens


def _window(f: Tensor, row: int, wanted: Wanted) -> dict[str, Any]:
    peak = int(f.argmax())
    low, high = max(0, peak - wanted.before), min(len(f), peak + wanted.after + 1)
    active = f[low:high].nonzero()[:, 0].tolist()
    return {
        "row": row,
        "from": low,
        "to": high,
        "peak": peak,
        "acts": [[low + t, _short(float(f[low + t]))] for t in active],
    }


def _attribution(
    sae: SparseAutoencoder | Transcoder, model: Model, text: _Text, site: str, chosen: list[int], wanted: Wanted
) -> tuple[list[Any], list[Any]] | None:
    """Next tokens raised and lowered by each feature; None where the site has no direct path, or many at once."""
    rule, units = rule_of(sae), model.sites[site].units
    if not has_direct_path(model, site) or (rule == "last" and len(units) > 1):
        return None
    first = text.windows[0]
    effect = direct_map(model, first.tokens, site, first.kept())
    directions = sae.W_dec.detach()[chosen]
    whole = unflatten(directions.unsqueeze(1), directions.new_zeros(len(directions), 1, *units), rule).flatten(1)
    up, raised, down, lowered = extreme_tokens(effect, whole, wanted.tokens)
    pairs = lambda values, ids: [
        [[int(t), _short(v)] for t, v in zip(*both, strict=True)]
        for both in zip(ids.tolist(), values.tolist(), strict=True)
    ]
    return pairs(up, raised), pairs(down, lowered)


def _neighbours(sae: SparseAutoencoder | Transcoder, chosen: list[int], count: int) -> list[list[Any]]:
    """The features whose decoder directions have the largest cosines with each."""
    unit = torch.nn.functional.normalize(sae.W_dec.detach().float(), dim=-1)
    count = min(count, len(unit) - 1)
    found: list[list[Any]] = []
    for piece in torch.tensor(chosen, device=unit.device).split(1024):
        cosine = unit[piece] @ unit.T
        cosine[torch.arange(len(piece)), piece] = -torch.inf
        best = cosine.topk(count, 1)
        for ids, values in zip(best.indices.tolist(), best.values.tolist(), strict=True):
            found.append([[j, round(v, 4)] for j, v in zip(ids, values, strict=True)])
    return found
