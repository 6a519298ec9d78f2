"""The quality of a dictionary: reconstruction, sparsity, and what the model loses when it reads the reconstruction.

Nothing here holds more than one batch of activations. Every number is a ratio of sums over documents, and its interval
a bootstrap that draws whole documents. :data:`MEANING` defines each number.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ...interventions.edits import Edit
from ...interventions.model import Model
from ...interventions.prefix import behind, compare, up_to, up_to_both
from ...sae.activations.flattening import check_fit, flat_width, flatten, rule_of, unflatten
from ...sae.transcoder import Transcoder
from ...utils.errors import MechintError
from ...utils.progress import Progress
from ...utils.statistics import FEWEST, ClusterBootstrap, Number, number, spread
from .baselines import Moments, baselines_at

CODES_AT_ONCE = 1 << 24
"""Entries of [token, latent] that are encoded at a time, 64 MiB in float32."""
BINS = np.linspace(-7.0, 0.0, 29)
"""Edges of the density histogram, log10 of the share of tokens on which a latent is active."""
SEQUENTIAL = ("state", "conv_state")
"""Sites that the forward edits one position after another: a reconstruction there is of what the edit left."""

MEANING = {
    "mse": "mean squared error of an entry of the activation, in squared activation units",
    "variance_explained": "1 - Σ|x - x̂|² / Σ|x - mean|²: 0 is the mean activation, 1 is perfect",
    "l0": "latents active on one activation, which is a token, or one of its heads or channels",
    "cosine": "cosine between the activation and its reconstruction",
    "norm_ratio": "|x̂| / |x|; below 1 the reconstruction is shrunk",
    "reconstruction_bias": "Σ|x̂|² / Σ x·x̂, 1 when no common factor would improve it (Rajamanoharan et al. 2024)",
    "ce": "next-token cross-entropy of the model itself, in nats",
    "ce_sae": "next-token cross-entropy with the reconstruction in the activation's place, in nats",
    "ce_zero": "next-token cross-entropy with zero in the activation's place, in nats",
    "ce_mean": "next-token cross-entropy with the mean activation in its place, in nats",
    "ce_increase": "ce_sae - ce, in nats",
    "ce_recovered_zero": "(ce_zero - ce_sae) / (ce_zero - ce)",
    "ce_recovered_mean": "(ce_mean - ce_sae) / (ce_mean - ce)",
    "kl": "KL of the next-token distribution with the reconstruction from the model's own, in nats",
    "alive": "share of the latents active on at least one evaluated token",
    "dead": "share of the latents active on no evaluated token",
    "decoder_cosine": "largest cosine of a decoder direction with another one: median over latents",
}


class Dictionary(Protocol):
    """A dictionary: ``encode`` [token, d_in] -> [token, latent], ``decode`` back, both in raw activation units."""

    def encode(self, x: Tensor) -> Tensor: ...

    def decode(self, f: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Windows:
    """A batch of text: R rows of L tokens.

    Attributes:
        tokens: [row, position].
        keep: [row, position] bool: False at BOS, document boundaries and padding, whose activations count nowhere and
            are not replaced. None keeps all.
        document: [row] the document of each row, what intervals draw from; None takes each row of the corpus as one.
        answers: [row, position] the token that should follow, −1 where the task asks nothing: losses and KL are taken
            there alone. None takes the next token wherever it and the position are kept.
    """

    tokens: Tensor
    keep: Tensor | None = None
    document: Tensor | None = None
    answers: Tensor | None = None

    def targets(self) -> Tensor:
        """The token that follows each position, [row, position]; −1 where no loss is taken."""
        if self.answers is not None:
            return self.answers
        keep, none = self.kept(), torch.full_like(self.tokens[:, :1], -1)
        follows = self.tokens[:, 1:].where(keep[:, :-1] & keep[:, 1:], none)  # what follows a kept token, and is one
        return torch.cat([follows, none], 1)

    def with_tokens(self) -> Windows:
        """The rows with a kept token: one of padding alone says nothing, and is no document."""
        if self.keep is None or bool((rows := self.keep.any(1)).all()):
            return self
        some = lambda values: None if values is None else values[rows.to(values.device)]
        return Windows(self.tokens[rows], self.keep[rows], some(self.document), some(self.answers))

    def kept(self) -> Tensor:
        return torch.ones_like(self.tokens, dtype=torch.bool) if self.keep is None else self.keep


def as_windows(batch: Windows | Tensor) -> Windows:
    return batch if isinstance(batch, Windows) else Windows(batch)


def code_chunks(width: int, tokens: int) -> list[slice]:
    """Runs of tokens whose latents fit into :data:`CODES_AT_ONCE`."""
    size = max(1, CODES_AT_ONCE // max(width, 1))
    return [slice(start, start + size) for start in range(0, tokens, size)]


def splice(site: str, new: Callable[[Tensor], Tensor] | Tensor, keep: Tensor | None = None, axes: int = 1) -> Edit:
    """The edit that puts something else in a site's place at the kept positions.

    Args:
        site: Its name.
        new: A tensor of the site's shape [row, position, unit, …], or a function of what stands there.
        keep: [row, position] bool; None replaces at every position.
        axes: Unit axes of the site.
    """
    if keep is None or bool(keep.all()):
        return Edit(site, "replace", new)
    return Edit(site, "mask", (~keep).float().reshape(*keep.shape, *[1] * axes), fill=new)


def reconstruction(dictionary: Dictionary, x: Tensor, rule: str = "") -> Tensor:
    """x̂ of a site's value [batch, position, unit, …], of its shape and type, a few activations at a time.

    Args:
        rule: Rule of flattening; '' takes the dictionary's own.
    """
    rule = rule or rule_of(dictionary)
    flat = flatten(x, rule)
    parts = [dictionary.decode(dictionary.encode(piece)) for piece in flat.flatten(0, -2).split(4096)]
    return unflatten(torch.cat(parts).to(x.dtype).view_as(flat), x, rule)


@torch.no_grad()
def evaluate_all(
    dictionaries: Mapping[str, Any],
    model: Model,
    batches: Sequence[Windows | Tensor],
    site: str,
    *,
    baselines: bool = True,
    draws: int = 1000,
    seed: int = 0,
    title: str = "evaluation",
    read: str = "",
) -> dict[str, dict[str, Any]]:
    """Every number of every dictionary, on the same text; the model's own forwards are shared.

    Args:
        dictionaries: By name, all of one site. A dictionary trained with a frozen random decoder or encoder is one
            like the others: it is a baseline by its name.
        model: From :func:`mechint.load`.
        batches: Token ids [row, position], or :class:`Windows`. Gone through three times; at least four documents.
        site: A name of ``model.sites``; its axes are flattened as the dictionaries were trained, by one rule.
        baselines: Measure PCA and the neuron basis at each dictionary's L0, see :func:`sae_baselines.baselines_at`.
        draws: Draws of the bootstrap.
        seed: Seed of the bootstrap.
        title: Title of the progress line.
        read: Site that transcoders read, all of them the same, before ``site``, which they write: its replacement is
            made from what the clean run has there. PCA and neurons would see what is written, so they do not stand
            beside.

    Returns:
        For each name ``{"site", "ablation", "tokens", "activations", "documents", "d_in", "d_sae", "metrics": {name:
        Number}, "density": {...}, "baselines": {name: {"latents", "active", "metrics"}}, "notes"}``; the names of the
        metrics are those of :data:`MEANING`, the intervals 95 % over documents.

    Raises:
        MechintError: no such site, a dictionary of another width, dictionaries of several rules, fewer than two
            documents or no kept token, or numbers that are not finite.
    """
    for dictionary in dictionaries.values():
        check_fit(dictionary, model, read or site)
    baselines = baselines and not read
    rules = sorted({rule_of(dictionary) for dictionary in dictionaries.values()})
    if len(rules) > 1:
        raise MechintError(f"{site}: dictionaries flattened by {', '.join(rules)} are evaluated apart, not together")
    [rule] = rules
    every = [as_windows(batch) for batch in batches]
    windows = [some for window in every if len((some := window.with_tokens()).tokens)] or every
    documents = documents_of(windows)
    moments, mean = _moments(model, windows, site, rule, baselines, title)
    first = _Pass(dictionaries, model, windows, site, rule, mean, title, read).run()
    bootstrap = ClusterBootstrap(documents, draws, seed, over="documents")
    peers: dict[int, dict[str, dict[str, Any]]] = {}
    if baselines:
        asked = {count: baselines_at(moments, count) for count in sorted(set(map(first.active, dictionaries)))}
        named = {f"{count} {name}": made for count, group in asked.items() for name, made in group.items()}
        second = _Pass(named, model, windows, site, rule, mean, f"{title}, baselines").run()
        for count, group in asked.items():
            peers[count] = {
                name: {"latents": made.latents, "active": made.active,
                       "metrics": _numbers(second, f"{count} {name}", bootstrap, moments.size)}
                for name, made in group.items()
            }  # fmt: skip
    return {
        name: _result(first, name, dictionary, bootstrap, moments, site, peers.get(first.active(name), {}))
        for name, dictionary in dictionaries.items()
    }


def evaluate(
    sae: Dictionary, model: Model, batches: Sequence[Windows | Tensor], site: str, **options: Any
) -> dict[str, Any]:
    """:func:`evaluate_all` of one dictionary."""
    return evaluate_all({"sae": sae}, model, batches, site, **options)["sae"]


# ---- the passes over the text -----------------------------------------------------------------------------------


def documents_of(windows: Sequence[Windows]) -> np.ndarray[Any, Any]:
    """The document of each row of the text, [row]; refuses text that no interval can be drawn from."""
    if not windows:
        raise MechintError(f"there is no text to evaluate on; give at least {FEWEST} documents")
    rows, found = 0, []
    for window in windows:
        count = len(window.tokens)
        found.append(torch.arange(rows, rows + count) if window.document is None else window.document.cpu())
        rows += count
    documents = torch.cat(found).numpy()
    if (count := len(np.unique(documents))) < FEWEST:
        have = "one document" if count == 1 else f"{count} documents"
        raise MechintError(f"the text to evaluate on is {have}; intervals are over documents: give {FEWEST} or more")
    return documents


def _moments(
    model: Model, windows: Sequence[Windows], site: str, rule: str, second: bool, title: str
) -> tuple[Moments, Tensor]:
    """Mean and, for PCA, covariance of the activations; and the mean of each activation of a token, [..., d_in]."""
    moments, total = Moments(flat_width(model.sites[site], rule), second), torch.zeros((), dtype=torch.float64)
    with Progress(f"{title}: mean activation", len(windows)) as progress:
        for window in windows:
            flat = flatten(up_to(model, window.tokens, site)[0], rule)[window.kept()]
            total = total + flat.double().sum(0).cpu()
            moments.add(flat.flatten(0, -2))
            progress.step()
    if not moments.count:
        raise MechintError("every position of the text is left out; there is nothing to evaluate on")
    if not torch.isfinite(moments.mean).all():
        raise MechintError(f"the activations at {site} are NaN or infinite; load the weights in a wider precision")
    return moments, total / (moments.count * moments.size / total.numel())


class _Pass:
    """One pass over the text: sums by row for every dictionary, and for the model itself."""

    def __init__(
        self, dictionaries: Mapping[str, Any], model: Model, windows: Sequence[Windows], site: str, rule: str,
        mean: Tensor, title: str, read: str = "",
    ) -> None:  # fmt: skip
        self.read = read
        self.dictionaries, self.model, self.windows, self.site, self.title = dictionaries, model, windows, site, title
        self.rule, self.mean = rule, mean
        self.sums: dict[str, dict[str, list[Tensor]]] = {name: {} for name in dictionaries}
        self.own: dict[str, list[Tensor]] = {}
        self.fired: dict[str, Tensor] = {}
        self.tokens = sum(int(window.kept().sum()) for window in windows)

    def run(self) -> _Pass:
        with Progress(self.title, len(self.windows)) as progress:
            for window in self.windows:
                self.batch(window)
                progress.step()
        return self

    def batch(self, window: Windows) -> None:
        tokens, keep = window.tokens, window.kept()
        if self.read:
            given, x, before = up_to_both(self.model, tokens, self.read, self.site)
        else:
            x, before = up_to(self.model, tokens, self.site)
            given = x
        flat, back = flatten(x, self.rule), functools.partial(unflatten, value=x, rule=self.rule)
        centred = (flat[keep].double() - self.mean.to(x.device)).square().sum(-1).flatten()
        chosen = flat[keep].flatten(0, -2)
        inputs = flatten(given, self.rule)[keep].flatten(0, -2) if self.read else chosen
        rows = keep.nonzero()[:, 0].repeat_interleave(len(chosen) // max(1, int(keep.sum())))
        average = self.mean.to(x).expand_as(flat)
        new: list[Callable[[Tensor], Tensor] | Tensor] = [back(torch.zeros_like(flat)), back(average)]
        where = keep.view(*keep.shape, *[1] * (flat.dim() - 2))
        for name, dictionary in self.dictionaries.items():
            found = self.reconstruct(name, dictionary, inputs, chosen, rows, len(tokens))
            if self.site.rpartition(".")[2] in SEQUENTIAL:
                new.append(functools.partial(reconstruction, dictionary, rule=self.rule))
            else:
                new.append(back(flat.masked_scatter(where, found.to(flat))))
        clean, *changed = (
            behind(self.model, tokens, before, self.site, edits)
            for edits in ([], *([splice(self.site, value, keep, x.dim() - 2)] for value in new))
        )
        targets = window.targets()
        losses, divergences = compare(self.model, targets, clean, changed)
        counted = (targets >= 0).double()
        by_row = lambda values: (values.double() * counted).sum(-1).cpu()
        self.keep(self.own, tokens=_by_row(torch.ones_like(centred), rows, len(tokens)), predicted=counted.sum(1).cpu(),
                  variance=_by_row(centred, rows, len(tokens)), ce=by_row(losses[0]), ce_zero=by_row(losses[1]),
                  ce_mean=by_row(losses[2]))  # fmt: skip
        for k, name in enumerate(self.dictionaries):
            self.keep(self.sums[name], ce_sae=by_row(losses[3 + k]), kl=by_row(divergences[2 + k]))

    def reconstruct(
        self, name: str, dictionary: Dictionary, given: Tensor, x: Tensor, rows: Tensor, count: int
    ) -> Tensor:
        """x̂ of the kept activations x [token, d_in], from what is read there; adds what is summed over tokens."""
        parts: list[Tensor] = []
        sums: dict[str, list[Tensor]] = {}
        width = int(getattr(getattr(dictionary, "config", None), "d_sae", x.shape[-1]))
        for piece in code_chunks(width, len(x)):
            f = dictionary.encode(given[piece])
            back = dictionary.written(f, given[piece]) if isinstance(dictionary, Transcoder) else dictionary.decode(f)
            active = f != 0
            total = active.sum(0)
            self.fired[name] = self.fired[name] + total if name in self.fired else total
            wide, ours = x[piece].double(), back.double()
            norm, norm_hat, dot = wide.norm(dim=-1), ours.norm(dim=-1), (wide * ours).sum(-1)
            self.keep(sums, error=(wide - ours).square().sum(-1), l0=active.sum(-1).double(), dot=dot,
                      square=norm_hat.square(), norm_ratio=norm_hat / norm.clamp_min(1e-30),
                      cosine=dot / (norm * norm_hat).clamp_min(1e-30))  # fmt: skip
            parts.append(back)
        self.keep(self.sums[name], **{key: _by_row(torch.cat(value), rows, count) for key, value in sums.items()})
        return torch.cat(parts)

    def active(self, name: str) -> int:
        """Latents that a baseline may use on a token: the dictionary's mean L0, and at least one."""
        total = torch.cat(self.sums[name]["l0"]).sum() / torch.cat(self.own["tokens"]).sum()
        return max(1, round(float(total)))

    @staticmethod
    def keep(into: dict[str, list[Tensor]], **values: Tensor) -> None:
        for key, value in values.items():
            into.setdefault(key, []).append(value)


def _by_row(values: Tensor, rows: Tensor, count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.float64, device=values.device).index_add_(0, rows, values.double()).cpu()


# ---- the numbers ------------------------------------------------------------------------------------------------


def _numbers(done: _Pass, name: str, bootstrap: ClusterBootstrap, d_in: int) -> dict[str, Number]:
    own = {key: torch.cat(value).numpy() for key, value in done.own.items()}
    sums = {**own, **{key: torch.cat(value).numpy() for key, value in done.sums[name].items()}}
    for key in ("error", "ce_sae", "kl"):
        if not np.isfinite(sums[key]).all():
            row = int((~np.isfinite(sums[key])).argmax())
            raise MechintError(f"{name}: {key} is not finite on row {row} of the text")
    statistics: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
        "mse": (lambda e, n: e / (n * d_in), ("error", "tokens")),
        "variance_explained": (lambda e, v: 1 - e / v, ("error", "variance")),
        **{key: (np.divide, (key, "tokens")) for key in ("l0", "cosine", "norm_ratio")},
        "reconstruction_bias": (np.divide, ("square", "dot")),
        **{key: (np.divide, (key, "predicted")) for key in ("ce", "ce_sae", "ce_zero", "ce_mean", "kl")},
        "ce_increase": (lambda s, c, n: (s - c) / n, ("ce_sae", "ce", "predicted")),
        **{
            f"ce_recovered_{ablation}": (lambda a, s, c: (a - s) / (a - c), (f"ce_{ablation}", "ce_sae", "ce"))
            for ablation in ("zero", "mean")
        },
    }
    numbers = {}
    for key, (statistic, names) in statistics.items():
        values = [sums[value] for value in names]
        with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 is not a number; a draw may contain such a share
            if np.isfinite(statistic(*(value.mean() for value in values))):
                numbers[key] = bootstrap.interval(statistic, *values)
    return numbers


def _result(
    done: _Pass, name: str, dictionary: Dictionary, bootstrap: ClusterBootstrap, moments: Moments, site: str,
    peers: dict[str, dict[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    metrics = _numbers(done, name, bootstrap, moments.size)
    fired = done.fired[name].double().cpu().numpy()
    share = fired / moments.count
    alive = float((fired > 0).mean())
    over = f"exact over {moments.count} activations"
    metrics["alive"] = number(alive, alive, alive, len(fired), over)
    metrics["dead"] = number(1 - alive, 1 - alive, 1 - alive, len(fired), over)
    notes = [
        f"{key} was not measured: {MEANING[key]} has no denominator on this text."
        for key in ("ce_recovered_zero", "ce_recovered_mean", "reconstruction_bias")
        if key not in metrics
    ]
    own = float(metrics["ce"]["value"])
    notes += [
        f"Replacing {site} by {what} does not certainly raise the loss ({float(loss['low']):.3g} to "
        f"{float(loss['high']):.3g} nats, {own:.3g} without), so the CE recovered against it means little."
        for what, loss in (("zero", metrics["ce_zero"]), ("its mean", metrics["ce_mean"]))
        if float(loss["low"]) <= own
    ]
    if hasattr(dictionary, "W_dec") and len(fired) > 1:
        metrics["decoder_cosine"] = spread(largest_cosine(dictionary.W_dec).tolist(), "latents")
    counts, _ = np.histogram(np.log10(share[fired > 0]).clip(BINS[0], BINS[-1]), BINS)
    return {
        "site": site, "ablation": "reconstruction spliced in", "tokens": done.tokens, "activations": moments.count,
        "documents": len(bootstrap.sizes), "d_in": moments.size, "d_sae": len(fired), "metrics": metrics,
        "density": {"log10_edges": BINS.tolist(), "latents": counts.tolist(), "never": int((fired == 0).sum()),
                    "share": share.tolist()},
        "baselines": peers, "notes": notes,
    }  # fmt: skip


def largest_cosine(directions: Tensor, others: Tensor | None = None) -> Tensor:
    """For each of the directions [n, d], its largest cosine with one of ``others`` [m, d], [n].

    None compares with the other directions of the same set. A direction of no length has cosine 0 with all.
    """
    ours = torch.nn.functional.normalize(directions.detach().double(), dim=-1)
    theirs = ours if others is None else torch.nn.functional.normalize(others.detach().double(), dim=-1)
    best = []
    for start in range(0, len(ours), 1024):
        cosine = ours[start : start + 1024] @ theirs.T
        if others is None:
            cosine[torch.arange(len(cosine)), torch.arange(start, start + len(cosine))] = -torch.inf
        best.append(cosine.amax(-1))
    return torch.cat(best)
