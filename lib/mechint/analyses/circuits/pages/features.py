"""The part of a report that circuits of features have alone: what latents fire on and raise, a page a dictionary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ....report.words import gap, legible, number, percents
from ....utils.files import read_json
from ...dictionaries.feature_browser import write_dictionary_page
from ..results import Results, load_masks

FEATURES = ("site", "latent", "attribution", "faithfulness lost without it", "raises", "strongest context")
FEATURES_MEANING = (
    "Latents of the circuit, the highest attribution first; skip connections and reconstruction errors are not listed. "
    "Raised tokens count the direct path only; the strongest token of a context is in «»."
)
LISTED = 40
"""Latents written out in a report; the pages have all that were read."""
AROUND = 12
"""Tokens of a context before its strongest one, and half as many after it."""


def read_files(results: Results) -> dict[str, dict[str, Any]]:
    """Descriptions of the circuit's latents, by site."""
    names = {str(entry["name"]): str(entry["site"]) for entry in results.raw.get("dictionaries", ())}
    folder = results.directory / "features"
    return {site: read_json(path) for name, site in names.items() if (path := folder / f"{name}.json").is_file()}


def page_paths(results: Results) -> list[Path]:
    names = [str(entry["name"]) for entry in results.raw.get("dictionaries", ())]
    return [path for name in names if (path := results.directory / "features" / f"{name}.html").is_file()]


def write_feature_pages(results: Results) -> list[Path]:
    """features/{dictionary}.html with the latents of the circuit that were read."""
    paths = [results.directory / "features" / f"{entry['name']}.json" for entry in results.raw.get("dictionaries", ())]
    return [
        write_dictionary_page(path, path.with_suffix(".html"), title=f"Latents of the circuit: {path.stem}")
        for path in paths
        if path.is_file()
    ]


def feature_rows(results: Results) -> list[tuple[str, ...]]:
    """The latents of the circuit that were read, with attribution and removal where those were measured."""
    read = read_files(results)
    scores = load_masks(results) if read and (results.directory / "final_masks.pt").is_file() else {}
    drops = {(entry.layer, *entry.unit): entry.drop for entry in results.removed}
    rows = []
    for layer in results.layers:
        raw = read.get(layer.site, {"features": ()})
        for feature in raw["features"]:
            score = float(scores[layer.layer][feature["id"]]) if layer.layer in scores else None
            drop = drops.get((layer.layer, feature["id"]))
            cells = (
                layer.label, str(feature["id"]), "–" if score is None else number(score, 3),
                "–" if drop is None else " ".join(percents(drop.value, drop.low, drop.high)),
                ", ".join(token for token, _ in raised(raw, feature)) or "–", context(raw, feature),
            )  # fmt: skip
            rows.append((-abs(score or 0.0), cells))
    return [cells for _, cells in sorted(rows, key=lambda row: row[0])[:LISTED]]


def raised(raw: dict[str, Any], feature: dict[str, Any]) -> list[tuple[str, float]]:
    """The next tokens that a latent raises most, as the vocabulary spells them."""
    return [(raw["vocabulary"][str(token)], effect) for token, effect in feature.get("raises", ())[:4]]


def context(raw: dict[str, Any], feature: dict[str, Any]) -> str:
    """The strongest context of a latent, its strongest token in «»."""
    if not feature["top"]:
        return "never active here"
    words = legible({int(token): text for token, text in raw["vocabulary"].items()})
    window, ids = feature["top"][0], raw["rows"][str(feature["top"][0]["row"])]
    low, high = max(window["from"], window["peak"] - AROUND), min(window["to"], window["peak"] + AROUND // 2 + 1)
    shown = (f"«{words[ids[t]]}»" if t == window["peak"] else words[ids[t]] for t in range(low, high))
    return gap(words.values()).join(shown)
