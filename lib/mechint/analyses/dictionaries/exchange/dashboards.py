"""Features of a dictionary as SAEDashboard writes them and Neuronpedia imports them: ``batch-0.json`` and so on.

A batch has ``model_id``, ``layer``, ``sae_set`` and ``features``. Entries that this library does not measure in the
same way (correlated neurons and features, the histogram of all logits) are empty lists, as the format allows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ....utils import files
from ....utils.errors import MechintError
from .stored_latents import Latents

TOP = -1.0
"""Lower end and share of the bin that holds the strongest contexts, in this format."""
UNMEASURED = (
    "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1", "correlated_neurons_indices",
    "correlated_neurons_l1", "correlated_neurons_pearson", "correlated_features_indices", "correlated_features_l1",
    "correlated_features_pearson", "logits_hist_data_bar_heights", "logits_hist_data_bar_values",
    "decoder_weights_dist",
)  # fmt: skip


def dashboard(latents: Latents, feature: dict[str, Any], dataset: str) -> dict[str, Any]:
    """One feature in this format."""
    bins, largest = feature["histogram"], float(feature["max"])
    width = largest / len(bins) if bins else 0.0
    raises, lowers = ([(latents.words[int(t)], float(v)) for t, v in feature.get(s, ())] for s in ("raises", "lowers"))
    row_length = max((len(row) for row in latents.rows.values()), default=0)
    return {
        "feature_index": int(feature["id"]),
        **{name: [] for name in UNMEASURED},
        "pos_str": [word for word, _ in raises], "pos_values": [value for _, value in raises],
        "neg_str": [word for word, _ in lowers], "neg_values": [value for _, value in lowers],
        "frac_nonzero": float(feature["density"]),
        "freq_hist_data_bar_values": [round((k + 0.5) * width, 6) for k in range(len(bins))],
        "freq_hist_data_bar_heights": [float(count) for count in bins],
        "n_prompts_total": latents.windows, "n_tokens_in_prompt": row_length, "dataset": dataset,
        "activations": [
            *(activation(latents, shown, TOP, largest, TOP) for shown in feature["top"]),
            *(
                activation(latents, shown, low, high, share(bins, low, high, largest))
                for shown in feature["samples"]
                for low, high in [map(float, shown["interval"])]
            ),
        ],
    }  # fmt: skip


def activation(latents: Latents, shown: dict[str, Any], low: float, high: float, held: float) -> dict[str, Any]:
    """A context with the activation on each of its tokens."""
    ids, values = latents.window(shown)
    return {
        "bin_min": low, "bin_max": high, "bin_contains": held, "tokens": [latents.words[token] for token in ids],
        "values": values,
    }  # fmt: skip


def share(bins: list[int], low: float, high: float, largest: float) -> float:
    """The share of a feature's activations in an interval, to the nearest bins of its histogram."""
    total, width = sum(bins), largest / len(bins)
    first, last = (round(end / width) for end in (low, high))
    return sum(bins[first:last]) / total


def write_dashboards(latents: Latents, output: Path, model_id: str, set_id: str, size: int) -> list[Path]:
    """Writes the features of a dictionary into ``output``, at most ``size`` of them in a file."""
    dataset = str(latents.raw.get("task", {}).get("description", ""))
    numbers, written = sorted(latents.features), []
    if not numbers:
        raise MechintError(f"{latents.directory}: the dictionary {latents.name} has no features to write")
    for k, start in enumerate(range(0, len(numbers), size)):
        batch = {
            "model_id": model_id, "layer": latents.layer, "sae_set": set_id,
            "features": [dashboard(latents, latents.features[n], dataset) for n in numbers[start : start + size]],
        }  # fmt: skip
        text = json.dumps(batch, allow_nan=False, ensure_ascii=False)
        written.append(files.write_text(output / f"batch-{k}.json", text + "\n"))
    for old in output.glob("batch-*.json"):
        if old not in written:
            files.remove(old)  # of an earlier export with smaller batches
    return written
