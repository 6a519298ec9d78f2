"""Reads and checks a run directory of a circuit analysis: results.json and the files beside it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...report import words
from ...report.finished import CIRCUIT, FinishedRun, read_finished
from ...report.results import Address
from ...report.values import Value, read_text, read_value
from ...utils.errors import MechintError
from ...utils.files import parse_json, read_torch
from ...utils.statistics import MANY_TIMES, said

REQUIRED_METRICS = ("units_total", "units_kept", "faithfulness")
REQUIRED = {
    "analysis": str,
    "title": str,
    "checkpoint": str,
    "model": dict,
    "task": dict,
    "config": dict,
    "unit": str,
    "ablation": str,
    "metric": str,
    "curve": dict,
    "layers": list,
    "searches": list,
    "notes": list,
}
COMPLEMENT = "complement_faithfulness"
"""A metric of earlier releases: 1 less the completeness, which says the same."""
SEARCH = "search"
"""The method that learns a mask, and has a history."""
CURVES = ("learned", "attribution", "random")
PATHS = ("x", "z", "dt", "B", "C")  # the order of a layer's paths in its mask


@dataclass(frozen=True)
class Layer:
    """Kept units of one layer, (channel,) or (channel, state), sorted; or latents of a site, its error the last.

    Attributes:
        skip: True if the last unit but one is a transcoder's skip connection.
    """

    layer: int
    total: int
    units: tuple[tuple[int, ...], ...]
    site: str = ""
    skip: bool = False

    @property
    def label(self) -> str:
        return self.site or str(self.layer)

    @property
    def key(self) -> str:
        """Its entry of final_masks.pt."""
        return self.site or f"layers.{self.layer}"

    @property
    def kept(self) -> int:
        return len(self.units)


@dataclass(frozen=True)
class Search:
    """One search of the mask: its weights are ``trained`` or ``random`` (the control)."""

    name: str
    weights: str
    budget: int
    faithfulness: float  # on the discovery prompts, where the search was made
    units: frozenset[tuple[int, ...]]
    went_back: bool = False  # to the order it began in, having found nothing better


@dataclass(frozen=True)
class Removed:
    """The loss of the circuit without one of its units: the drop in faithfulness, and p, adjusted, of none."""

    layer: int
    unit: tuple[int, ...]
    drop: Value
    p: float


@dataclass(frozen=True)
class Results(FinishedRun):
    """A finished circuit analysis, checked."""

    sizes: list[int] = field(default_factory=list)
    curves: dict[str, list[Value]] = field(default_factory=dict)
    layers: list[Layer] = field(default_factory=list)
    searches: list[Search] = field(default_factory=list)
    removed: list[Removed] = field(default_factory=list)

    @property
    def method(self) -> str:
        """The method that found the circuit; results of earlier releases know the search alone."""
        return str(self.raw["config"].get("method", SEARCH))

    @property
    def total(self) -> int:
        return sum(layer.total for layer in self.layers)

    @property
    def kept(self) -> int:
        return sum(layer.kept for layer in self.layers)

    @property
    def circuit(self) -> frozenset[tuple[int, ...]]:
        """Every kept unit as (layer, channel) or (layer, channel, state)."""
        return frozenset((layer.layer, *unit) for layer in self.layers for unit in layer.units)

    def of_weights(self, weights: str) -> list[Search]:
        return [search for search in self.searches if search.weights == weights]

    @property
    def chosen(self) -> Search | None:
        """The search that found the circuit; the first one on the trained weights when none matches it exactly."""
        trained = self.of_weights("trained")
        return next((search for search in trained if search.units == self.circuit), trained[0] if trained else None)


def load_results(run_dir: str | Path) -> Results:
    """Reads results.json, manifest.json and, where there is one, config.

    Raises:
        MechintError: a file is missing, is not valid, has another schema, or contradicts itself.
    """
    found = read_finished(run_dir, CIRCUIT)
    raw, metrics, path = found.raw, found.metrics, found.directory / "results.json"
    for key, kind in REQUIRED.items():
        if not isinstance(raw.get(key), kind):
            raise MechintError(f"{path} has no {key!r} of type {kind.__name__}; run the analysis again")
    metrics.pop(COMPLEMENT, None)
    for name in REQUIRED_METRICS:
        if name not in metrics:
            raise MechintError(f"{path} lacks the metric {name!r}; run the analysis again")
    sizes, curves = _curves(raw["curve"], path)
    layers = _each(raw["layers"], path, "layers", _layer)
    results = Results(
        **vars(found),
        sizes=sizes,
        curves=curves,
        layers=layers,
        searches=_each(raw["searches"], path, "searches", lambda search: _search(search, layers)),
        removed=_each(raw.get("leave_one_out", []), path, "leave_one_out", partial(_removed, path=path, layers=layers)),
    )
    for name, counted in (("units_total", results.total), ("units_kept", results.kept)):
        if metrics[name].value != counted:
            raise MechintError(
                f"{path} contradicts itself: {name} is {metrics[name].value:g} and its layers add up to {counted}"
            )
    return results


def load_masks(results: Results) -> dict[int, Tensor]:
    """Importance of every unit by layer, [units] or [channel, state], from final_masks.pt.

    Raises:
        MechintError: the file is missing, can't be read, or does not hold the circuit of results.json.
    """
    path = results.directory / "final_masks.pt"
    masks = read_masks(path)
    importance = {}
    for layer in results.layers:
        entry = masks.get(layer.key)
        if entry is None:
            raise MechintError(f"{path} has no importance and mask for {layer.key}; run the analysis again")
        scores = entry["importance"].detach().to(torch.float64)
        kept = {tuple(unit) for unit in entry["mask"].nonzero().tolist()}
        if scores.numel() != layer.total or kept != set(layer.units):
            raise MechintError(
                f"{path} keeps {len(kept)} of {scores.numel()} units in layer {layer.layer}, not the {layer.kept} of"
                f" {layer.total} that results.json names; the two are from different runs, so run the analysis again"
            )
        if not bool(torch.isfinite(scores).all()):
            raise MechintError(
                f"{path} has an importance that is not finite in layer {layer.layer}; run the analysis again"
            )
        importance[layer.layer] = scores
    return importance


def read_masks(path: Path) -> dict[str, dict[str, Any]]:
    """final_masks.pt as it was written: for each layer its logits, mask and importance, and its sparsity.

    Raises:
        MechintError: the file is missing, can't be read, would run code, or is not of this form.
    """
    if not os.path.lexists(path):
        raise MechintError(f"{path} is missing; run the analysis with save_masks on, or turn the heatmaps off")
    masks = read_torch(path, "masks", "run the analysis again")
    for name, entry in masks.items() if isinstance(masks, dict) else [("layers.0", None)]:
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), Tensor) for key in ("importance", "mask")):
            raise MechintError(f"{path} has no importance and mask for {name}; run the analysis again")
    return dict(masks)


HISTORY_FIELDS = ("step", "loss", "metric", "budget", "kept")
OPTIONAL_FIELDS = ("temperature",)  # gates without one have none to log


@dataclass(frozen=True)
class Trace:
    """The steps of one search: ``weights`` is ``trained`` or ``random``; ``final`` says that its circuit is reported.

    Each step has :data:`HISTORY_FIELDS`, and those of :data:`OPTIONAL_FIELDS` that were logged.
    """

    name: str
    weights: str
    final: bool
    steps: list[dict[str, float]]

    def column(self, field: str) -> list[float]:
        return [step[field] for step in self.steps]


def load_history(results: Results) -> list[Trace]:
    """history.jsonl by search, in the order the searches first appear.

    Raises:
        MechintError: the file is missing or empty, or a line is not valid.
    """
    path = results.directory / "history.jsonl"
    lines = [line for line in read_text(path).splitlines() if line.strip()]
    traces: dict[str, Trace] = {}
    known = {search.name: search.weights for search in results.searches}
    for number, line in enumerate(lines, 1):
        try:
            entry = parse_json(line, f"{path} line {number}", "run the analysis again")
            values = {name: float(entry[name]) for name in HISTORY_FIELDS}
            values |= {name: float(entry[name]) for name in OPTIONAL_FIELDS if name in entry}
            name = str(entry["search"])
            weights = str(entry.get("weights", known.get(name, "trained")))
        except (ValueError, KeyError, TypeError) as error:
            raise MechintError(
                f"{path} line {number} is not a step of a search: {error!r}; run the analysis again"
            ) from None
        if not all(map(math.isfinite, values.values())):
            raise MechintError(f"{path} line {number} has a number that is not finite; run the analysis again")
        traces.setdefault(name, Trace(name, weights, name in known, [])).steps.append(values)
    if not traces:
        raise MechintError(f"{path} is empty; run the analysis again")
    return [_with_its_seed(trace, results, set(traces)) for trace in traces.values()]


def _with_its_seed(trace: Trace, results: Results, names: set[str]) -> Trace:
    """The first seed's search is the last one that looked for the size, and may be logged as that: ``size 16``."""
    for search in results.searches:
        if search.name not in names and trace.name == f"size {search.budget}" and trace.weights == search.weights:
            return replace(trace, name=search.name, final=True)
    return trace


def cell(raw: Mapping[str, Any], address: Address, index: tuple[int, ...]) -> dict[str, Any]:
    """The horizontal axis of the faithfulness curve: the number of units kept."""
    if address[0] != "curve" or not isinstance(address[-1], int):
        return {}
    return {"name": f"{raw['curve']['size'][address[-1]]} units kept"}


def overlap(one: frozenset[tuple[int, ...]], other: frozenset[tuple[int, ...]]) -> float:
    """Jaccard index of two sets of units; two empty circuits are the same circuit."""
    union = len(one | other)
    return len(one & other) / union if union else 1.0


def _curves(raw: dict[str, Any], path: Path) -> tuple[list[int], dict[str, list[Value]]]:
    """Sizes and the curves that were measured; a curve that is absent was not."""
    sizes = raw.get("size")
    if not isinstance(sizes, list) or not all(isinstance(size, int) for size in sizes) or sizes != sorted(set(sizes)):
        raise MechintError(f"{path}: curve.size must be a rising list of whole numbers; run the analysis again")
    curves = {}
    for name in CURVES:
        points = raw.get(name) or []
        if points and len(points) != len(sizes):
            raise MechintError(
                f"{path}: curve.{name} has {len(points)} points for {len(sizes)} sizes; run the analysis again"
            )
        if points:
            curves[name] = [read_value(point, path, f"curve.{name}[{i}]") for i, point in enumerate(points)]
    return sizes, curves


def _each(raw: list[Any], path: Path, where: str, parse: Any) -> list[Any]:
    try:
        return [parse(entry) for entry in raw]
    except (KeyError, TypeError, ValueError) as error:
        raise MechintError(f"{path}: an entry of {where} is not valid ({error!r}); run the analysis again") from None


def _layer(raw: dict[str, Any]) -> Layer:
    units = tuple(sorted(_unit(unit, int(raw["total"])) for unit in raw["units"]))
    if len(set(units)) != int(raw["kept"]):
        raise ValueError(f"layer {raw['layer']} lists {len(set(units))} units and says it keeps {raw['kept']}")
    return Layer(int(raw["layer"]), int(raw["total"]), units, str(raw.get("site", "")), bool(raw.get("skip", False)))


def _removed(raw: dict[str, Any], path: Path, layers: list[Layer]) -> Removed:
    drop = read_value(raw["drop"], path, f"leave_one_out, layer {raw['layer']}")
    [total] = [layer.total for layer in layers if layer.layer == int(raw["layer"])]
    return Removed(int(raw["layer"]), _unit(raw["unit"], total), drop, float(raw["p"]))


def _search(raw: dict[str, Any], layers: list[Layer]) -> Search:
    """``units`` lists the kept units of layer 0, of layer 1, and so on."""
    units = frozenset(
        (layer.layer, *_unit(unit, layer.total))
        for layer, kept in zip(layers, raw["units"], strict=True)
        for unit in kept
    )
    if len(units) != int(raw["budget"]):
        raise ValueError(f"search {raw['name']} lists {len(units)} units for a budget of {raw['budget']}")
    return Search(
        str(raw["name"]),
        str(raw["weights"]),
        int(raw["budget"]),
        float(raw["faithfulness_discovery"]),
        units,
        bool(raw.get("went_back", False)),
    )


def _unit(raw: int | str | Sequence[int], total: int) -> tuple[int, ...]:
    """A unit as its indices in a layer of ``total``: 7 is (7,), [7, 3] (7, 3), the path "z" (1,), an error the last."""
    if raw in ("error", "skip"):
        return (total - (1 if raw == "error" else 2),)
    if isinstance(raw, str):
        return (PATHS.index(raw),)
    return (raw,) if isinstance(raw, int) else tuple(int(index) for index in raw)


ON_ONE_SCALE = {
    "faithfulness": "the circuit",
    "faithfulness_unpruned": "the circuit before pruning",
    "faithfulness_random": "the median of the random circuits",
    "mask_on_random_weights": "the mask on random weights",
    "faithfulness_latents": "the circuit's latents alone",
    "faithfulness_errors": "the circuit's errors alone",
    "faithfulness_all_latents": "every latent",
    "faithfulness_skips": "the circuit's skip connections alone",
    "faithfulness_explained": "the circuit's latents and skip connections",
    "faithfulness_all_explained": "every latent and skip connection",
}
"""Shares between the metric of the model without any unit, at 0, and of the whole model, at 1; and whose they are."""


def beside_small_effect(results: Mapping[str, Any]) -> list[str]:
    """Says of each share beyond :data:`~mechint.utils.statistics.MANY_TIMES` what the metric itself is, and how small
    the effect is that it is a share of; empty where there is none."""
    metrics, name = results["metrics"], results["metric"]
    ends = [metrics.get(end) for end in ("metric_empty", "metric_full")]
    if any(end is None for end in ends):
        return []
    empty, full = (float(end["value"]) for end in ends)
    unit = words.METRICS.get(name, (name, ""))[1]
    there = [
        f"{whose} {words.number(empty + float(metrics[key]['value']) * (full - empty), 3)}"
        for key, whose in ON_ONE_SCALE.items()
        if key in metrics and abs(float(metrics[key]["value"])) > MANY_TIMES
    ]
    if not there:
        return []
    return [
        f"Shares of many times the whole come of a small effect: the metric {name} is {words.number(full, 3)} in the "
        f"whole model and {words.number(empty, 3)} with every unit dropped; {', '.join(there)}"
        f"{f' ({unit})' if unit else ''}. Read these, and ask whether that effect is large enough to explain."
    ]


def summary(results: dict[str, Any]) -> list[str]:
    """The figures a user wants to see at once."""
    metrics = results["metrics"]

    def say(name: str, form: str = ".3f") -> str:
        entry = metrics.get(name)
        if entry is None:
            return "not measured"
        return said(entry, form)

    kept, total = metrics["units_kept"]["value"], metrics["units_total"]["value"]
    lines = [f"  kept            {kept} of {total} {results['units']} ({kept / total:.1%})"]
    for title, name in (
        ("faithfulness", "faithfulness"),
        ("before pruning", "faithfulness_unpruned"),
        ("random circuits", "faithfulness_random"),
        ("random weights", "mask_on_random_weights"),
        ("exchanged", "mask_for_exchanged_answers"),
        ("completeness", "completeness"),
        ("minimality", "minimality"),
        ("stability", "jaccard"),
    ):
        lines.append(f"  {title:<16}{say(name)}")
    return [*lines, *(f"  {note}" for note in beside_small_effect(results))]
