"""Finished runs of dictionaries, invented."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mechint.analyses.dictionaries.evaluation import BINS


def results() -> dict[str, Any]:
    members = [member(k, width, seed) for k in (4, 12, 32, 64) for width in (256, 512, 1024, 2048) for seed in (0, 1)]
    members += [member(k, 512, 0, "frozen_decoder") for k in (12, 64)]
    agreed = {name: number(0.6) for name in ("largest", "shared", "matched")}
    random = {name: number(0.2) for name in agreed}
    stable = {"of": "topk-k12-512", "members": ["a", "b"], "pairs": 1, "same_above": 0.9, **agreed, "random": random}
    return {
        "schema": 1, "status": "complete", "report": "sae", "analysis": "sae", "title": "Sparse autoencoders",
        "checkpoint": "model.pt", "model": {"family": "mamba", "parameters": 1000}, 
        "task": {"name": "text", "description": "a text"},
        "metrics": {}, "notes": ["a note of the run"], "config": {"seeds": 2},
        "sae": {"members": members, "stability": [stable]},
    }  # fmt: skip


def features() -> dict[str, Any]:
    window = {"row": 3, "from": 0, "to": 3, "peak": 1, "acts": [[0, 0.5], [1, 2.0]]}
    told = [
        {"id": i, "density": 0.1 * i, "max": 2.0, "mean": 1.0, "histogram": [3, 1], "top": [window] * bool(i),
         "samples": [{**window, "interval": [1.0, 2.0]}] * bool(i), "raises": [[5, 1.5]], "lowers": [[6, -2.0]],
         "neighbours": [[1 - min(i, 1), 0.25]]} for i in range(3)
    ]  # fmt: skip
    return {
        "schema": 1, "site": "layers.0.out", "architecture": "topk", "d_in": 64, "d_sae": 3, "tokens": 100,
        "windows": 9,
        "vocabulary": {"5": "<b>", "6": "</script>", "7": "x"},
        "rows": {"3": [5, 6, 7]},
        "logits": "direct path", "features": told,
    }  # fmt: skip


def write_run(directory: Path, raw: dict[str, Any]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "results.json").write_text(json.dumps(raw))
    (directory / "manifest.json").write_text(json.dumps({"version": "0.1.0"}))
    return directory


def number(value: float, half: float = 0.01) -> dict[str, Any]:
    return {
        "value": value,
        "low": value - half,
        "high": value + half,
        "n": 64,
        "interval": "95 % bootstrap over documents",
    }


def member(k: int, width: int, seed: int = 0, baseline: str | None = None, kind: str = "topk") -> dict[str, Any]:
    good = 1 - 0.6 / k**0.6 - (0.15 if baseline else 0) + 0.03 * (width / 2048)
    metrics = {
        "variance_explained": number(good - 0.1), "ce_recovered_mean": number(good),
        "ce_recovered_zero": number(good + 0.02), "l0": number(k, 0.0), "kl": number((1 - good) * 0.8),
        "dead": number(width / 20_000, 0.0), "mse": number(1.2 - good), "norm_ratio": number(0.8 + 0.1 * good),
        "decoder_cosine": number(0.4), "ce": number(1.5), "ce_increase": number(1 - good),
    }  # fmt: skip
    peers = {
        name: {"latents": 64, "active": k, "metrics": {"l0": number(k, 0), "ce_recovered_mean": number(good - less)}}
        for name, less in (("pca_rank", 0.3), ("pca_top", 0.2), ("neurons", 0.4))
    }
    counts = [0] * (len(BINS) - 1)
    for step in range(10):
        counts[12 + step] = width // 40 + step * k
    return {
        "name": f"{kind}-k{k}-{width}-s{seed}{'-' + baseline if baseline else ''}", "architecture": kind,
        "site": "layers.0.out", "layer": 0, "d_in": 64, "d_sae": width, "seed": seed, "baseline": baseline,
        "sparsity": {"name": "k", "value": float(k)}, "directory": "dictionaries/x", "metrics": metrics,
        "baselines": peers,
        "density": {"log10_edges": BINS.tolist(), "latents": counts, "never": 3}, "tokens": 24_000, "documents": 256,
        "notes": [],
    }  # fmt: skip
