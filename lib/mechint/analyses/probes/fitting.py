"""Probes: linear decoding of a label of the task from a site, the units that it uses, and shuffled labels as control.

Lasso (Tibshirani 1996) and elastic net (Zou & Hastie 2005), on the classes' indicators with one set of units for all of
them, and logistic regression. The strength of the penalty is chosen on the training prompts alone, by folds that no
template crosses; scores are of held-out templates; selectivity is the score above that of the same probe on shuffled
labels (Hewitt & Liang 2019). A probe proposes: only an intervention says that the model uses what it found.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...utils.errors import MechintError, did_you_mean
from ...utils.statistics import ClusterBootstrap, Number, number, p_of_draws

Array = NDArray[np.float64]
Taken = ParamSpec("Taken")
Given = TypeVar("Given")
METHODS = ("lasso", "elasticnet", "logistic")
L1_RATIO = {"lasso": 1.0, "elasticnet": 0.5}
STRENGTHS = 12
"""Points of the regularisation path, evenly spaced on a logarithmic scale."""
FOLDS = 3
MIN_GROUPS = 10
"""Held-out templates below which no interval is given."""
MOST_CLASSES = 256


@dataclass(frozen=True)
class Labelled:
    """Activations of prompts with a label of each.

    Attributes:
        X: [prompt, unit].
        y: Whole numbers name classes; fractions are a quantity, [prompt].
        groups: The template of each prompt, which no split may cut, [prompt].
    """

    X: Array
    y: NDArray[Any]
    groups: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)

    def rows(self, at: NDArray[Any]) -> Labelled:
        return Labelled(self.X[at], self.y[at], self.groups[at])


@dataclass(frozen=True)
class Probe:
    """A fitted probe and what stands behind it.

    Attributes:
        score: Accuracy (classes) or R² (quantities) on held-out templates.
        shuffled: Mean score of the same probe on shuffled labels, and the central 95 % of them.
        selectivity: Score less the mean of the shuffled ones, with the score's interval.
        p: p-value of the null hypothesis that the predictions have nothing to do with the label: share of permutations
            of the held-out labels, among templates, that score as well; never below 1 / (draws + 1).
        strength: Chosen penalty, as ``path`` counts it.
        path: For each strength its score across the folds and how many units it uses.
        weights: [class, unit], of the activations as they are.
        units: Units with a weight, by the size of it, largest first.
        across_folds: Score across the folds of the training prompts with the chosen penalty, by which probes are
            chosen: held-out prompts choose nothing.
        permutations: Draws behind p.
        hits: Score of each held-out prompt, whose mean is the score: 1 or 0 of classes, [prompt].
    """

    method: str
    label: str
    classes: int
    score: Number
    shuffled: Number
    selectivity: Number
    p: float
    strength: float
    path: list[dict[str, float]]
    weights: Array
    units: list[int]
    across_folds: float
    permutations: int
    hits: Array

    def report(self) -> dict[str, Any]:
        """The probe as plain values, for results.json."""
        names = (
            "method", "label", "classes", "score", "shuffled", "selectivity", "p", "permutations", "strength",
            "across_folds", "path",
        )  # fmt: skip
        report = {name: getattr(self, name) for name in names}
        return report | {"units": self.units[:64], "units_used": len(self.units)}


def on_one_thread(work: Callable[Taken, Given]) -> Callable[Taken, Given]:
    """Gives a function one thread for NumPy's matrix products.

    Fits are thousands of small products: a second thread gains little, and takes several times as long where another
    program wants its core.
    """

    @functools.wraps(work)
    def alone(*args: Taken.args, **kwargs: Taken.kwargs) -> Given:
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1, user_api="blas"):
            return work(*args, **kwargs)

    return alone


@on_one_thread
def probe(
    train: Labelled,
    test: Labelled,
    method: str,
    label: str = "label",
    *,
    shuffles: int = 99,
    draws: int = 1000,
    seed: int = 0,
) -> Probe:
    """Fits a probe on ``train`` and scores it on ``test``.

    Raises:
        MechintError: one class; a template in both; too few prompts (says what they could show, and how many would
            do); a label that is a linear function of the activations.
    """
    check(train, test, method, label)
    fit = Fit(train, method)
    path, best = fit.chosen(train, seed)
    weights, offset = fit.solve(train, best["strength"])
    parts = fit.parts(test, weights, offset)
    bootstrap = ClusterBootstrap(test.groups, draws, seed)
    score = bootstrap.interval(fit.statistic, *parts) if fit.numeric else bootstrap.share(*parts)
    rng = np.random.default_rng(seed)
    null = []
    for _ in range(shuffles):
        a, b = (Labelled(d.X, shuffled(d, rng), d.groups) for d in (train, test))
        null.append(fit.score(fit.parts(b, *fit.solve(a, best["strength"]))))
    low, high = np.quantile(null, [0.025, 0.975])
    mean = float(np.mean(null))
    size = np.abs(weights).max(0)
    order = np.argsort(-size, kind="stable")
    value = float(score["value"])
    return Probe(
        method=method,
        label=label,
        classes=fit.classes,
        score=score,
        shuffled=number(mean, min(low, mean), max(high, mean), shuffles, "2.5 to 97.5 % over shuffled labels"),
        selectivity=number(
            value - mean, float(score["low"]) - mean, float(score["high"]) - mean, len(test), str(score["interval"])
        ),
        p=fit.permutation_p(test, weights, offset, draws, seed),
        strength=best["strength"],
        path=path,
        weights=weights,
        units=[int(u) for u in order if size[u] > 0],
        across_folds=best["score"],
        permutations=draws,
        hits=fit.hits(parts),
    )


@on_one_thread
def reading(train: Labelled, test: Labelled, method: str, *, seed: int = 0) -> tuple[float, Array]:
    """A probe's score across the folds of ``train``, and what each prompt of ``test`` adds to its held-out score.

    The same probe as :func:`probe`, without what stands behind its number.
    """
    fit = Fit(train, method)
    _, best = fit.chosen(train, seed)
    return best["score"], fit.hits(fit.parts(test, *fit.solve(train, best["strength"])))


@on_one_thread
def penalty(train: Labelled, method: str, seed: int) -> float:
    """The penalty that the folds of ``train`` choose."""
    return Fit(train, method).chosen(train, seed)[1]["strength"]


@on_one_thread
def hits_of(train: Labelled, test: Labelled, method: str, strength: float) -> Array:
    """The contribution of each prompt of ``test`` to the score of a probe with this penalty, [prompt]."""
    fit = Fit(train, method)
    return fit.hits(fit.parts(test, *fit.solve(train, strength)))


class Fit:
    """One method on one label: standardised units in, scores out."""

    def __init__(self, train: Labelled, method: str) -> None:
        self.method, self.numeric = method, train.y.dtype.kind == "f"
        self.names = np.unique(train.y)
        self.classes = 0 if self.numeric else len(self.names)
        self.mean, scale = train.X.mean(0), train.X.std(0)
        self.scale = np.where(scale > 1e-12 * max(float(scale.max(initial=0.0)), 1e-300), scale, np.inf)  # a dead unit

    def targets(self, y: NDArray[Any]) -> Array:
        """[prompt, class] indicators, or [prompt, 1]."""
        if self.numeric:
            return y[:, None].astype(np.float64)
        return (y[:, None] == self.names).astype(np.float64)

    def strengths(self) -> list[float]:
        """Penalties from that at which no unit is used; of logistic regression inverse weights of the data."""
        return [float(s) for s in np.logspace(0, -3, STRENGTHS)] if self.method in L1_RATIO else [
            float(s) for s in np.logspace(2, -3, STRENGTHS)
        ]  # fmt: skip

    def solve(self, data: Labelled, strength: float) -> tuple[Array, Array]:
        """Weights [class, unit] and offsets [class] of the activations as they are."""
        Z = (data.X - self.mean) / self.scale
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a path's weakest penalties need not converge to be ruled out
            W, b = self._linear(Z, data.y, strength) if self.method in L1_RATIO else self._logistic(Z, data.y, strength)
        W = W / self.scale
        return W, b - W @ self.mean

    def _linear(self, Z: Array, y: NDArray[Any], strength: float) -> tuple[Array, Array]:
        from sklearn.linear_model import enet_path

        Y = self.targets(y)
        offset, ratio = Y.mean(0), L1_RATIO[self.method]
        Zc = Z - Z.mean(0)
        largest = np.sqrt(((Zc.T @ (Y - offset)) ** 2).sum(1)).max() / (len(y) * ratio)
        if largest <= 0:
            return np.zeros((Y.shape[1], Z.shape[1])), offset
        target = Y - offset if Y.shape[1] > 1 else (Y - offset)[:, 0]
        _, coefficients, _ = enet_path(
            np.asfortranarray(Zc), np.asfortranarray(target), l1_ratio=ratio, alphas=[strength * largest], tol=1e-3,
            max_iter=500,
        )  # fmt: skip
        W = coefficients[..., 0].reshape(Y.shape[1], -1)
        return W, offset - W @ Z.mean(0)

    def _logistic(self, Z: Array, y: NDArray[Any], strength: float) -> tuple[Array, Array]:
        from sklearn.linear_model import LogisticRegression

        found = LogisticRegression(C=1 / strength / len(y), max_iter=200, tol=1e-3).fit(Z, y)
        W, b = found.coef_, found.intercept_
        if len(self.names) == 2:
            W, b = np.concatenate([-W, W]), np.concatenate([-b, b])
        whole, offset = np.zeros((len(self.names), Z.shape[1])), np.full(len(self.names), -1e9)
        at = np.searchsorted(self.names, found.classes_)  # a fold may lack a class
        whole[at], offset[at] = W, b
        return whole, offset

    def parts(self, data: Labelled, weights: Array, offset: Array) -> list[Array]:
        """The values of each prompt whose means :meth:`statistic` takes."""
        return self.judged(data.X @ weights.T + offset, data.y)

    def judged(self, said: Array, y: NDArray[Any]) -> list[Array]:
        if self.numeric:
            y = y.astype(np.float64)
            return [(said[:, 0] - y) ** 2, (y - y.mean()) ** 2]
        return [(self.names[said.argmax(1)] == y).astype(np.float64)]

    def chosen(self, train: Labelled, seed: int) -> tuple[list[dict[str, float]], dict[str, float]]:
        """The regularisation path, and its best point; of equals the sparsest."""
        path = self.cross_validated(train, self.strengths(), seed)
        return path, max(path, key=lambda point: (point["score"], point["strength"]))

    def hits(self, parts: list[Array]) -> Array:
        """The contribution of each prompt to the score, [prompt]; their mean is the score."""
        return 1 - parts[0] / parts[1].mean() if self.numeric else parts[0]

    def statistic(self, *means: Any) -> Any:
        return 1 - means[0] / means[1] if self.numeric else means[0]

    def score(self, parts: list[Array]) -> float:
        """Accuracy, or R² of a quantity, from :meth:`parts`."""
        return float(self.statistic(*(np.mean(part) for part in parts)))

    def permutation_p(self, data: Labelled, weights: Array, offset: Array, draws: int, seed: int) -> float:
        rng, said = np.random.default_rng(seed + 1), data.X @ weights.T + offset
        score = lambda y: self.score(self.judged(said, y))
        return p_of_draws(score(data.y), [score(shuffled(data, rng)) for _ in range(draws)])

    def cross_validated(self, data: Labelled, strengths: list[float], seed: int) -> list[dict[str, float]]:
        """The regularisation path: score across folds that no template crosses, and units used, of each strength.

        The score of classes is the mean of the folds' accuracies. That of a quantity is R² of all prompts, each
        predicted by the probe that has not seen its fold: within a fold the quantity may hardly vary, or not at all.
        """
        folds = group_folds(data.groups, FOLDS, seed)
        path = []
        for strength in strengths:
            scores, used, said = [], [], np.zeros((len(data), 1))
            for k in range(FOLDS):
                inside, outside = data.rows(folds != k), data.rows(folds == k)
                if not self.numeric and len(np.unique(inside.y)) < 2:
                    continue
                weights, offset = self.solve(inside, strength)
                used.append(int((np.abs(weights).max(0) > 0).sum()))
                if self.numeric:
                    said[folds == k] = outside.X @ weights.T + offset
                else:
                    scores.append(self.score(self.parts(outside, weights, offset)))
            score = self.score(self.judged(said, data.y)) if self.numeric else float(np.mean(scores))
            path.append({"strength": strength, "score": score, "units": float(np.mean(used))})
        return path


def shuffled(data: Labelled, rng: np.random.Generator) -> NDArray[Any]:
    """The labels in another order: among templates where all prompts of one share theirs, else among prompts."""
    _, first, group = np.unique(data.groups, return_index=True, return_inverse=True)
    if (data.y[first][group] == data.y).all():
        return np.asarray(data.y[first][rng.permutation(len(first))][group])
    return np.asarray(data.y[rng.permutation(len(data.y))])


def group_folds(groups: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """A fold for each prompt, the same for all prompts of a template."""
    _, group = np.unique(groups, return_inverse=True)
    order = np.random.default_rng(seed).permutation(int(group.max()) + 1)
    return np.asarray(order[group] % folds)


def split_by_group(data: Labelled, share: float, seed: int) -> tuple[Labelled, Labelled]:
    """(train, test): about ``share`` of the templates, with all their prompts, are for training."""
    names, group = np.unique(data.groups, return_inverse=True)
    train = np.random.default_rng(seed).permutation(len(names)) < round(share * len(names))
    return data.rows(train[group]), data.rows(~train[group])


# ---- what is refused ----------------------------------------------------------------------------------------------


def check(train: Labelled, test: Labelled, method: str, label: str) -> None:
    """Raises :class:`MechintError` for labels and activations that no probe can be fitted to or tested on."""
    where = f"probe of {label!r}"
    if method not in METHODS:
        raise MechintError(f"{where}: no method {method!r}{did_you_mean(method, METHODS)}; take {', '.join(METHODS)}")
    for data in (train, test):
        if data.X.ndim != 2 or len(data.X) != len(data.y) or len(data.groups) != len(data.y):
            raise MechintError(
                f"{where}: {data.X.shape} activations, {len(data.y)} labels and {len(data.groups)} groups do not "
                f"belong together; give one row, label and group for each prompt"
            )
        if not np.isfinite(data.X).all():
            raise MechintError(f"{where}: the activations are not finite; look at that run with mechint.run")
    numeric = train.y.dtype.kind == "f"
    if numeric and method == "logistic":
        raise MechintError(f"{where}: logistic regression needs classes and the label is a quantity; take lasso")
    for name, data in (("training", train), ("held-out", test)):
        if len(np.unique(data.y)) < 2:
            only = data.y[:1].tolist()[0] if len(data) else None
            raise MechintError(
                f"{where}: all {len(data)} {name} prompts have the label {only}, and one class cannot be "
                f"told from another; choose prompts or a label with at least two"
            )
    if not numeric and len(np.unique(train.y)) > MOST_CLASSES:
        raise MechintError(f"{where}: {len(np.unique(train.y))} classes are more than {MOST_CLASSES}; group them")
    if shared := set(train.groups.tolist()) & set(test.groups.tolist()):
        raise MechintError(
            f"{where}: {len(shared)} templates are in both splits, so a probe could remember them; split by template"
        )
    groups = len(np.unique(test.groups))
    if groups < MIN_GROUPS or len(np.unique(train.groups)) < FOLDS:
        chance = 0.0 if numeric else float(max(np.unique(test.y, return_counts=True)[1]) / len(test))
        raise MechintError(f"{where}: {power_note(groups, chance)}")
    if reason := derived(train, test):
        raise MechintError(
            f"{where}: {reason}, so it is a function of the probed activations and the probe would find itself; take "
            f"labels from the task"
        )


def detectable(n: int, chance: float, power: float = 0.8) -> float:
    """The least accuracy that a one-sided 5 % test against ``chance`` on n independent prompts finds with this power.

    Normal approximation of the binomial (Fleiss et al. 2003, section 2.3); above 1 when there is none.
    """
    z_alpha, z_power = 1.6449, {0.8: 0.8416, 0.9: 1.2816}[power]
    for accuracy in np.linspace(chance, 1.0, 1001):
        spread = z_alpha * np.sqrt(chance * (1 - chance) / n) + z_power * np.sqrt(accuracy * (1 - accuracy) / n)
        if accuracy - chance >= spread and accuracy > chance:
            return float(accuracy)
    return float("inf")


def needed(accuracy: float, chance: float, power: float = 0.8) -> int:
    """Counts the independent prompts that are needed to tell that accuracy from chance."""
    n = 2
    while detectable(n, chance, power) > accuracy:
        n += 1 + n // 8
    return n


def power_note(groups: int, chance: float) -> str:
    """Says which accuracy so few held-out templates could show, and how many would be enough."""
    least, chance = detectable(max(groups, 2), min(chance, 0.99)), min(chance, 0.99)
    aim = min(0.99, chance + 0.2)
    can = f"find an accuracy of {least:.2f} or more" if least <= 1 else "find no accuracy at all"
    return (
        f"{groups} held-out templates are too few: with 80 % power they could {can} where chance is {chance:.2f}; "
        f"{max(MIN_GROUPS, needed(aim, chance))} would find {aim:.2f}. Ask for more prompts"
    )


BY_CHANCE = 1e-6
"""Chance that a unit without any relation splits random labels exactly, above which that it does shows nothing."""


def derived(train: Labelled, test: Labelled) -> str:
    """Says why the label must be a function of the activations; empty when nothing shows it.

    A quantity that unseen rows give back to rounding by least squares; classes that are a unit's own side of its mean
    or median on every prompt, split exactly there, if that is beyond chance (:data:`BY_CHANCE`) and no other unit tells
    them apart with a gap.
    """
    X, y = np.concatenate([train.X, test.X]).astype(np.float64), np.concatenate([train.y, test.y])
    if y.dtype.kind == "f":
        if len(train) <= X.shape[1] + 1:
            return ""
        design = lambda data: np.column_stack([data.X, np.ones(len(data))])
        weights = np.linalg.lstsq(design(train), train.y.astype(np.float64), rcond=None)[0]
        rest = test.y - design(test) @ weights
        exact = float((rest**2).mean()) <= 1e-8 * float(test.y.var())
        return "a linear function of the activations gives it back exactly on unseen prompts" if exact else ""
    names = np.unique(y)
    if len(names) != 2 or len(y) < 16:
        return ""
    side = y == names[1]
    if 2 * X.shape[1] / math.comb(len(y), int(side.sum())) > BY_CHANCE:
        return ""
    for what, cut in (("median", np.median(X, 0)), ("mean", X.mean(0))):
        above = cut < X
        agree = np.flatnonzero((above == side[:, None]).all(0) | (above != side[:, None]).all(0))
        # units of two values only are on one side of any cut between them: that is reading, not cutting
        apart = {int(unit): gap(X[:, unit], cut[unit]) for unit in agree if len(np.unique(X[:, unit])) > 2}
        if apart and (what == "mean" or abs(side.mean() - 0.5) <= 1 / len(y)):
            widest = max(apart, key=lambda unit: apart[unit])
            if apart[widest] < 0.05:  # classes that the model tells apart leave a gap
                return f"it is whether unit {widest} is above its {what}, on all {len(y)} prompts"
    return ""


def gap(values: Array, cut: float) -> float:
    """The distance between the neighbours of a cut, as a share of the range of the values."""
    ordered = np.sort(values)
    at = int((ordered <= cut).sum())
    return float((ordered[min(at, len(ordered) - 1)] - ordered[at - 1]) / (ordered[-1] - ordered[0]))


def refuse_derived(shuffled_X: Array, y: Sequence[Any]) -> None:
    """The decisive test, where prompts with shuffled tokens were run too: what a task asks has no meaning there, so a
    label that the activations of these still give back exactly was made of activations.

    Args:
        shuffled_X: Activations of prompts whose tokens were shuffled, [prompt, unit].
        y: The labels given for them, [prompt].
    """
    half = len(shuffled_X) // 2
    values, groups = np.asarray(y), np.arange(len(shuffled_X))
    data = Labelled(np.asarray(shuffled_X, dtype=np.float64), values, groups)
    a, b = data.rows(groups < half), data.rows(groups >= half)
    if len(np.unique(values)) < 2 or half < 8:
        return
    exact = derived(a, b)
    if not exact and values.dtype.kind != "f":
        fit = Fit(a, "logistic")
        if len(np.unique(a.y)) > 1 and float(np.mean(fit.parts(b, *fit.solve(a, 1e-4))[0])) == 1.0:
            exact = "a linear function gives it back without an error on prompts whose tokens were shuffled"
    if exact:
        raise MechintError(f"the label is a function of the probed activations ({exact}); take labels from the task")
