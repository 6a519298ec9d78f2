"""Run directories of invented numbers, as an analysis leaves them, for the tests of reports."""

from __future__ import annotations

import html.parser
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mechint.utils.errors import MechintError

Json = dict[str, Any]


def value(x: float, half: float = 0.01, n: int = 256) -> Json:
    return {"value": x, "low": x - half, "high": x + half, "n": n, "interval": "95 % bootstrap over templates"}


def build_run(
    directory: Path,
    layers: int = 2,
    channels: int = 128,
    states: int = 1,
    kept: int = 16,
    unit: str = "channel",
    seeds: int = 3,
    checkpoint: str = "output/final_model_stepV0.pt",
    text: bool = False,
    seed: int = 0,
    shape: tuple[int, ...] | None = None,
) -> Path:
    """A finished run as the analysis writes it: heavy-tailed importance, rising curves, searches and a control."""
    generator = torch.Generator().manual_seed(seed)
    shape = shape or ((channels, states) if states > 1 else (channels,))
    size = math.prod(shape)
    importance = []
    for layer in range(layers):
        heavy = torch.randn(shape, generator=generator, dtype=torch.float64) ** 3 * 0.002 * (1 + (layer % 5 == 1) * 3)
        importance.append(heavy)
    flat = torch.cat([scores.flatten() for scores in importance])
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[flat.abs().topk(kept).indices] = True

    def listed(chosen: torch.Tensor) -> list[Any]:
        units = chosen.reshape(shape).nonzero().tolist()
        if unit == "path":
            return [("x", "z", "dt", "B", "C")[index] for (index,) in units]
        return [unit[0] for unit in units] if len(shape) == 1 else units

    rows, masks = [], {}
    for layer in range(layers):
        chosen = mask[layer * size : (layer + 1) * size]
        rows.append({"layer": layer, "total": size, "kept": int(chosen.sum()), "units": listed(chosen)})
        masks[f"layers.{layer}"] = {
            "logits": torch.where(chosen, 3.0, -3.0).reshape(shape),
            "mask": chosen.reshape(shape),
            "importance": importance[layer],
            "sparsity": 1 - float(chosen.double().mean()),
        }
    total = layers * size
    searches: list[Json] = []
    for index in range(seeds):
        other = mask.clone()
        if index:  # a few units differ
            on, off = mask.nonzero().flatten(), (~mask).nonzero().flatten()
            swap = min(max(1, kept // 6), len(on), len(off))
            other[on[torch.randperm(len(on), generator=generator)[:swap]]] = False
            other[off[torch.randperm(len(off), generator=generator)[:swap]]] = True
        units = [listed(other[layer * size : (layer + 1) * size]) for layer in range(layers)]
        searches.append(
            {
                "name": f"seed {index}",
                "weights": "trained",
                "budget": kept,
                "chosen": index == 0,
                "faithfulness_discovery": 0.96 - 0.004 * index,
                "units": units,
            }
        )
    sizes = sorted(
        {max(1, round(total * share)) for share in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)} | {kept}
    )
    learned = [1 - math.exp(-3.2 * size_ / kept) for size_ in sizes]
    results: Json = {
        "schema": 1,
        "analysis": "ssm",
        "title": "SSM circuit",
        "checkpoint": checkpoint,
        "status": "complete",
        "model": {"family": "mamba", "parameters": 70_912, "n_layer": layers, "d_model": 64, "sha256": "ab" * 32},
        "task": {
            "name": "text" if text else "recall",
            "description": "the next token of plain text" if text else "multi-query associative recall, 4 pairs",
            "discovery_prompts": 256,
            "evaluation_prompts": 256,
            "accuracy": None if text else 0.998,
        },
        "config": {
            "unit": unit,
            "ablation": "mean",
            "search": "smallest",
            "target_faithfulness": 0.95,
            "seeds": seeds,
            "steps": 200,
        },
        "unit": unit,
        "ablation": "mean",
        "metric": "kl",
        "metrics": {
            "units_total": value(total, 0, total),
            "units_kept": value(kept, 0, total),
            "faithfulness": value(0.961 - 0.01 * seed),
            "completeness": value(0.93, 0.02),
            "kl": value(0.118, 0.02),
            "metric_full": value(0.0, 0.0),
            "metric_empty": value(3.04, 0.05),
            "faithfulness_random": {"value": 0.041, "low": -0.02, "high": 0.11, "n": 20},
            "mask_on_random_weights": value(-0.71, 0.08),
            "mask_for_exchanged_answers": value(0.21, 0.03),
            "jaccard": {"value": 0.78, "low": 0.71, "high": 0.86, "n": seeds},
            "cpr": value(0.93),
            "cmd": value(0.07),
        },
        "curve": {
            "size": sizes,
            "fraction": [size_ / total for size_ in sizes],
            "learned": [value(y, 0.02 * (1 - y) + 0.004) for y in learned],
            "attribution": [value(y**1.8, 0.03 * (1 - y) + 0.004) for y in learned],
            "random": [
                {
                    "value": (s / total) ** 1.5,
                    "low": (s / total) ** 1.5 - 0.06 * (1 - s / total),
                    "high": (s / total) ** 0.8,
                    "n": 20,
                }
                for s in sizes
            ],
        },
        "layers": rows,
        "searches": searches,
        "notes": ["The random-weights control keeps the trained model's embedding scale."],
    }
    if not text:
        results["metrics"] |= {"accuracy_full": value(0.998, 0.004), "accuracy_circuit": value(0.974, 0.012)}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "results.json").write_text(json.dumps(results))
    torch.save(masks, directory / "final_masks.pt")
    history = []
    for number, (name, goal) in enumerate(
        [
            ("descent", 1),
            (f"size {2 * kept}", 2 * kept),
            *((s["name"], kept) for s in searches),
            ("random weights", kept),
            ("exchanged answers", kept),
        ]
    ):
        for step in range(0, 200, 5):
            budget = max(goal, total * (goal / total) ** min(1.0, step / 150))
            metric = (0.004 if name.startswith("random") else 0.1 + 0.02 * number) * (1 - math.exp(-step / 60))
            metric *= 1 + 0.05 * math.sin(step + number)
            history.append(
                {
                    "search": name,
                    "weights": {"random weights": "random", "exchanged answers": "exchanged"}.get(name, "trained"),
                    "step": step,
                    "loss": metric + (0 if text else 0.3 * math.exp(-step / 50)),
                    "metric": metric,
                    "budget": budget,
                    "kept": round(budget * (1.02 + 0.01 * number)),
                }
            )
    (directory / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history))
    manifest = {
        "versions": {"mechint": "0.1.0", "torch": "2.13.0", "python": "3.11.2"},
        "git": {"commit": "0123abc", "dirty": False},
        "device": "cpu",
        "dtype": "float32",
        "seeds": list(range(seeds)),
        "data": {"discovery": "cd" * 32},
        "date": "2026-11-21T10:00:00+00:00",
        "resumed": ["descent"],
        "peak_memory_mib": 612,
        "seconds": 41.5,
    }
    (directory / "manifest.json").write_text(json.dumps(manifest))
    (directory / "config").write_text("CONFIG_KNLP_MECHINT=y\nCONFIG_KNLP_MECHINT_SSM=y\n")
    return directory


PNGS = ["faithfulness_curve.png", "ssm_channel_importance.png", "sparsity_curves.png"]
FILES = [*PNGS, "circuit_analysis_report.md", "report.html"]


def edit(run: Path, **changes: Any) -> None:
    """Changes entries of results.json; ``a__b`` is the entry b of a, and None removes an entry."""
    path = run / "results.json"
    raw = json.loads(path.read_text())
    for key, new in changes.items():
        *parents, last = key.split("__")
        entry = raw
        for parent in parents:
            entry = entry[parent]
        if new is None:
            del entry[last]
        else:
            entry[last] = new
    path.write_text(json.dumps(raw))


def one_line(error: pytest.ExceptionInfo[MechintError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


class Page(html.parser.HTMLParser):
    """Collects what a browser would fetch, the text, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "img", "input", "line", "circle", "polygon", "polyline", "path"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
