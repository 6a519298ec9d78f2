"""Meanings and forms of a circuit's numbers: shared by its page and by comparisons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ....report.values import Value
from ....report.words import METRICS, number, percent
from ..results import PATHS, SEARCH, Layer, Results, Search, beside_small_effect, overlap

UNITS = {
    "channel": "SSM channels",
    "mode": "(channel, state) modes",
    "path": "paths",
    "layer": "layers",
    "kv": "K and V channels",
    "k": "K channels",
    "v": "V channels",
    "q": "Q channels",
    "o": "O channels",
    "head": "attention heads",
    "mlp": "MLP neurons",
    "latent": "latents and errors",
}


SIDE_BY_SIDE = "+"
"""Sign between the names of kinds in the unit of a circuit that has several."""
HEADED = ("kv", "k", "v", "q", "o")
"""Units that are dimensions of heads."""


@dataclass(frozen=True)
class Meaning:
    """A metric's label, its form (``count``, ``share`` or ``metric``: in the metric's own unit) and its meaning."""

    label: str
    kind: str
    sentence: str


MEANINGS = {
    "units_total": Meaning("Units in the model", "count", "Everything that could be kept or dropped."),
    "units_kept": Meaning("Units kept", "count", "The size of the circuit, after its search and after pruning."),
    "units_kept_k": Meaning("K channels kept", "count", "Dimensions of heads' keys among them."),
    "units_kept_v": Meaning("V channels kept", "count", "Dimensions of heads' values among them."),
    "faithfulness": Meaning(
        "Faithfulness",
        "share",
        "Share of the effect, from no unit to the full model, that the circuit alone recovers; 100 % is the full "
        "model.",
    ),
    "units_kept_unpruned": Meaning(
        "Units kept before pruning", "count", "Units that the search kept, before pruning removed and exchanged units."
    ),
    "faithfulness_unpruned": Meaning(
        "Faithfulness before pruning",
        "share",
        "Faithfulness of the circuit as the search found it. Pruning chooses units on discovery prompts, which can "
        "lower the held-out faithfulness.",
    ),
    "completeness": Meaning(
        "Completeness",
        "share",
        "Share of the effect that is lost when only the circuit is dropped: 1 less the faithfulness of the other "
        "units. High: the other units do little of the work. Wang et al. (2023) compare instead circuit and model with "
        "the same subsets of the circuit removed from both.",
    ),
    "minimality": Meaning(
        "Minimality",
        "share",
        "Share of the circuit's units, tried one at a time, whose removal certainly costs faithfulness (one-sided "
        "p ≤ 0.05, adjusted for all of them); low: the circuit holds units that it does not need, or units that back "
        "each other up.",
    ),
    "removable_together": Meaning(
        "Units that can go together",
        "count",
        "The largest set of units whose joint removal does not certainly lower the held-out faithfulness (the "
        "interval of the drop contains 0). Units are taken in the order of their single costs, on the same prompts.",
    ),
    "kl": Meaning(
        "KL of the circuit", "nats", "Divergence of the circuit's predictions from the full model's; 0 is identical."
    ),
    "metric_full": Meaning("Metric, full model", "metric", "The upper anchor of faithfulness: nothing dropped."),
    "metric_empty": Meaning("Metric, empty circuit", "metric", "The lower anchor of faithfulness: every unit dropped."),
    "metric_circuit": Meaning("Metric, circuit", "metric", "The metric with only the circuit kept."),
    "faithfulness_random": Meaning(
        "Faithfulness, random circuits",
        "share",
        "Control: random units, as many in each layer as the circuit has; median and the middle 95 % of the draws.",
    ),
    "mask_on_random_weights": Meaning(
        "Mask on random weights",
        "share",
        "Control: the same search on the model with shuffled weights, asked for the trained model's predictions; on "
        "the scale of faithfulness, so below 0 it is further from them than the trained model without its units.",
    ),
    "mask_for_exchanged_answers": Meaning(
        "Mask for exchanged answers",
        "share",
        "Control: the same search on the trained model, asked for its predictions with the answers exchanged, each "
        "for another; it shows what a mask can fit that the model has not learned.",
    ),
    "faithfulness_random_weights": Meaning(
        "Predictions of random weights",
        "share",
        "Of older results: the share of its *own* predictions that a model with shuffled weights keeps in as many "
        "units. It shows that few units can carry any network's predictions; it is no test of the circuit.",
    ),
    "faithfulness_latents": Meaning(
        "Faithfulness, its latents alone",
        "share",
        "The circuit without the errors, and the skip connections, that it keeps: what its features explain.",
    ),
    "faithfulness_errors": Meaning(
        "Faithfulness, its errors alone",
        "share",
        "The reconstruction errors that the circuit keeps, without its latents: the part that the dictionaries do not "
        "explain.",
    ),
    "faithfulness_all_latents": Meaning(
        "Faithfulness, every latent",
        "share",
        "All latents, no error and no skip connection: the most that features of these dictionaries can explain.",
    ),
    "faithfulness_skips": Meaning(
        "Faithfulness, its skip connections alone",
        "share",
        "The skip connections of transcoders that the circuit keeps, without its latents and errors: what is linear in "
        "the site that is read.",
    ),
    "faithfulness_explained": Meaning(
        "Faithfulness, its latents and skip connections",
        "share",
        "The circuit without the errors that it keeps: what its transcoders explain.",
    ),
    "faithfulness_all_explained": Meaning(
        "Faithfulness, every latent and skip connection",
        "share",
        "All but the errors: the most that these transcoders can explain.",
    ),
    "jaccard": Meaning(
        "Stability (Jaccard)",
        "share",
        "Mean overlap of pairs of circuits from different seeds, before pruning; the interval is the least and the "
        "most alike pair.",
    ),
    "cpr": Meaning("CPR", "number", "Area under the faithfulness curve over circuit sizes; higher is better."),
    "cmd": Meaning("CMD", "number", "Area between the faithfulness curve and 100 %; lower is better."),
    "bits_per_byte_full": Meaning(
        "Bits per byte, full model",
        "number",
        "Loss in bits for each byte of the text's answers; it does not depend on the tokenizer.",
    ),
    "bits_per_byte_circuit": Meaning("Bits per byte, circuit", "number", "The same with only the circuit kept."),
    "cosine_bfloat16": Meaning(
        "Cosine of bfloat16",
        "number",
        "Between the mask's gradient in bfloat16, which the search used, and in float32.",
    ),
    "accuracy_full": Meaning("Accuracy, full model", "share", "Prompts the full model answers correctly."),
    "accuracy_circuit": Meaning("Accuracy, circuit", "share", "Prompts the circuit alone answers correctly."),
}


def units_name(results: Results) -> str:
    return UNITS.get(results.raw["unit"]) or str(results.raw.get("units") or f"{results.raw['unit']} units")


def curve_name(results: Results, curve: str) -> str:
    """A faithfulness curve in words; attribution has two orders, and the better one is drawn."""
    by_size = curve == "attribution" and results.raw["curve"].get("attribution_order") == "size"
    own = "learned mask" if results.method == SEARCH else f"ranking by {results.method}"
    names = {"learned": own, "attribution": "attribution ranking", "random": "random circuits"}
    return names[curve] + (" by size" if by_size else "")


def metric_name(results: Results) -> tuple[str, str]:
    """(name, physical unit) of the metric the circuit must preserve."""
    return METRICS.get(results.raw["metric"], (str(results.raw["metric"]), ""))


def amount(name: str, found: Value, results: Results, edge: float | None = None) -> str:
    """A metric's value, or an edge of its interval, as it is written: a count, a percentage, or a number with its
    unit."""
    meaning, value = MEANINGS.get(name), found.value if edge is None else edge
    if meaning is not None and meaning.kind == "share":
        return percent(value, () if found.alone else (found.value, found.low, found.high))
    unit = {"metric": metric_name(results)[1], "nats": "nats"}.get(meaning.kind if meaning else "", "")
    return f"{number(value)} {unit}".rstrip()


def interval(name: str, value: Value, results: Results) -> str:
    """``[95.1, 97.2]`` in the value's own unit; a dash for counts, which have none."""
    if MEANINGS.get(name, Meaning("", "", "")).kind == "count":
        return "–"
    if value.alone:
        return f"({value.interval})"
    low, high = (amount(name, value, results, edge).split(" ")[0] for edge in (value.low, value.high))
    return f"[{low}, {high}]"


def with_interval(name: str, results: Results) -> str:
    value = results.metrics[name]
    return f"{amount(name, value, results)} {interval(name, value, results)}"


def metric_rows(results: Results) -> list[tuple[str, str, str, str, str, str]]:
    """(name, label, value, interval, n, meaning) of every metric that was measured, in reading order."""
    known = [name for name in MEANINGS if name in results.metrics]
    others = sorted(set(results.metrics) - set(known))
    rows = []
    for name in (*known, *others):
        meaning, value = MEANINGS.get(name, Meaning(name, "number", "")), results.metrics[name]
        shown = amount(name, value, results)
        rows.append((name, meaning.label, shown, interval(name, value, results), f"{value.n:,}", meaning.sentence))
    return rows


def replacement(raw: Mapping[str, Any]) -> str:
    """The value that replaced a dropped unit, in the analysis' own words; older results name the ablation alone."""
    return str(raw.get("ablation_words", f"what the {raw['ablation']} ablation puts in its place"))


def headline(results: Results) -> str:
    """The result in one sentence."""
    raw, faithfulness = results.raw, results.metrics["faithfulness"]
    return (
        f"{results.kept:,} of {results.total:,} {units_name(results)} ({percent(results.kept / results.total)}) reach a"
        f" faithfulness of {with_interval('faithfulness', results)} on"
        f" {faithfulness.n:,} held-out prompts of {raw['task'].get('name', 'the task')}; every other unit is"
        f" replaced by {replacement(raw)}."
    )


@dataclass(frozen=True)
class Finding:
    """One control, read: it either supports the circuit or warns against it."""

    good: bool
    text: str


UNTOLD = "without intervals of both this cannot be told."
"""The verdict where a number has no interval."""


@dataclass(frozen=True)
class MaskControl:
    """A control that learns a mask once more.

    Attributes:
        label: Its name in figures.
        what: The subject of the sentence that reads it.
        verdict: The rest of that sentence where it supports the circuit.
        near: The same where it comes near the circuit, and as near.
        marker: Its marker in figures.
        sign: The same as a character.
    """

    label: str
    what: str
    verdict: str
    near: tuple[str, str]
    marker: str
    sign: str


MASKS = {
    "mask_on_random_weights": MaskControl(
        "mask on random weights",
        "The same search on random weights, asked for this model's predictions,",
        "the predictions need what the model has learned.",
        (
            "the circuit is better, but random weights come near it: either the mask does that, or the model without "
            "its units is further off than a guess. The exchanged answers tell which (docs/controls.md).",
            "random weights do as well, so faithfulness is NO evidence of a circuit here; take fewer units, more "
            "prompts, or another ablation.",
        ),
        "D",
        "◇",
    ),
    "mask_for_exchanged_answers": MaskControl(
        "mask for exchanged answers",
        "The same search for exchanged answers",
        "the mask finds the model's answers and cannot fit others as well.",
        (
            "the circuit is better, but a mask alone fits MOST of that; take fewer units or more prompts.",
            "a mask alone fits as much, so faithfulness is NO evidence of a circuit here; take fewer units or more "
            "prompts.",
        ),
        "^",
        "△",
    ),
}
"""Controls that search again, by the name of their number."""


def findings(results: Results) -> Iterator[Finding]:
    """The outcome of each control in plain words, by rules fixed beforehand: intervals that do not meet."""
    circuit = results.metrics["faithfulness"]
    random = results.metrics.get("faithfulness_random")
    if random is not None:
        good = circuit.low > random.high
        yield Finding(
            good,
            f"Random circuits of the same size reach {with_interval('faithfulness_random', results)}: "
            + (
                UNTOLD
                if circuit.alone or random.alone
                else "the circuit lies above the whole band."
                if good
                else "the circuit does NOT lie clearly above this band."
            ),
        )
    for name, control in MASKS.items():
        mask = results.metrics.get(name)
        if mask is not None:
            apart, half = circuit.low > mask.high, mask.value < circuit.value / 2
            yield Finding(
                apart and half,
                f"{control.what} reaches {with_interval(name, results)}: "
                + (
                    UNTOLD
                    if circuit.alone or mask.alone
                    else control.verdict
                    if apart and half
                    else control.near[0]
                    if apart
                    else control.near[1]
                ),
            )
    yield from _necessity_and_stability(results)


def _necessity_and_stability(results: Results) -> Iterator[Finding]:
    latents = results.metrics.get("faithfulness_latents")
    if latents is not None:
        good = latents.value > results.metrics["faithfulness"].value / 2
        skips = " and skip connections" if "faithfulness_skips" in results.metrics else ""
        yield Finding(
            good,
            f"Without the reconstruction errors{skips} that it keeps, the circuit reaches "
            f"{with_interval('faithfulness_latents', results)}"
            ": "
            + (
                "latents do most of the work."
                if good
                else f"MOST of the work is done by the errors{skips}, not by features."
            ),
        )
    lost = results.metrics.get("completeness")
    if lost is not None:
        good = 1 - lost.low < results.metrics["faithfulness"].low
        yield Finding(
            good,
            f"Without the circuit {with_interval('completeness', results)} of the model's effect is lost: "
            + (
                UNTOLD
                if lost.alone or results.metrics["faithfulness"].alone
                else "the circuit is needed, too."
                if good
                else "the other units do the task as well, so the circuit is NOT needed."
            ),
        )
    jaccard = results.metrics.get("jaccard")
    if jaccard is not None:
        chance = results.kept / (2 * results.total - results.kept)
        good = jaccard.low > chance
        yield Finding(
            good,
            f"Circuits from different seeds overlap by {with_interval('jaccard', results)} (Jaccard; by chance about"
            f" {percent(chance)}): "
            + (
                "one pair of searches has no interval, so this cannot be told."
                if jaccard.alone
                else "the search finds related units again."
                if good
                else "NOT more than by chance."
            ),
        )


def caveats(results: Results) -> list[str]:
    """The analysis' own notes, then what holds for every circuit of this kind."""
    raw = results.raw
    general = [
        f"Dropped units are replaced by {replacement(raw)} ({raw['ablation']} ablation)."
        " Circuits found with different ablations are not comparable in size.",
        f"The interval of the faithfulness is a {results.metrics['faithfulness'].interval}. Intervals cover the"
        " sampling of prompts (of circuits, for the random band), not the choice of task, metric or ablation.",
    ]
    if "accuracy_full" not in results.metrics:
        general.append("The task has no answers to be right or wrong about, so there is no accuracy.")
    return [*beside_small_effect(raw), *(str(note) for note in raw["notes"]), *general]


def search_name(search: Search) -> str:
    return search.name + (" (went back to the order it began in)" if search.went_back else "")


def seed_overlap(results: Results) -> tuple[list[str], list[list[float]]]:
    """Names of the searches on the trained weights and the matrix of their Jaccard indices."""
    trained = results.of_weights("trained")
    return [s.name for s in trained], [[overlap(a.units, b.units) for b in trained] for a in trained]


def unit_label(unit: tuple[int, ...], kind: str) -> str:
    """7, (7, 3), the name of a path, or K 2.13: head 2, dimension 13."""
    if kind in HEADED:
        *sort, head, dimension = unit
        return f"{'KV'[sort[0]] if sort else kind.upper()} {head}.{dimension}"
    if kind == "path" and len(unit) == 1 and unit[0] < len(PATHS):
        return PATHS[unit[0]]
    return str(unit[0]) if len(unit) == 1 else f"({', '.join(map(str, unit))})"


def kind_of(layer: Layer, kind: str) -> str:
    """The kind of a row's units: its own where the circuit has units of several kinds side by side."""
    return layer.site.rpartition(".")[2] if SIDE_BY_SIDE in kind else kind


def unit_in(layer: Layer, unit: tuple[int, ...], kind: str) -> str:
    """:func:`unit_label`, and of latents the error for the last one, a skip connection for the one before it."""
    kind = kind_of(layer, kind)
    last = {layer.total - 1: "error", **({layer.total - 2: "skip"} if layer.skip else {})}
    return last.get(unit[0], unit_label(unit, kind)) if kind == "latent" else unit_label(unit, kind)


def kept_units(layer: Layer, kind: str, most: int | None = None) -> str:
    """The kept units of a layer as text; ``most`` of them, and how many more."""
    if kind == "layer":
        return "kept" if layer.units else "dropped"
    shown = [unit_in(layer, unit, kind) for unit in layer.units[:most]]
    more = layer.kept - len(shown)
    return ", ".join(shown) + (f" … and {more:,} more" if more else "") if shown else "none"
