"""Finished runs of circuits, invented."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mechint.analyses.circuits.hybrid import HybridCircuitAnalyzer, HybridCircuitConfig
from mechint.analyses.circuits.kv import KVCircuitAnalyzer, KVCircuitConfig
from mechint.interventions.units import Units
from mechint.utils import files


def write_run(directory: Path, model: Any, unit: str, mask: torch.Tensor) -> Path:
    """The files of a finished analysis that found ``mask`` [units]; ``head+ssm_head`` are units side by side."""
    units = Units(model, *(model.unit_kinds[name] for name in unit.split("+")))
    config = HybridCircuitConfig(kinds=unit.replace("+", ",")) if "+" in unit else KVCircuitConfig(unit=unit)
    analyzer: Any = (HybridCircuitAnalyzer if "+" in unit else KVCircuitAnalyzer)(model, config, run_dir=directory)  # type: ignore[arg-type]
    analyzer.keep_masks(mask, mask, mask)
    analyzer.save_results()
    value = {"value": 1.0, "low": 1.0, "high": 1.0, "n": 1}
    rows = [
        {"layer": i, "total": total, "kept": len(names), "units": names, **about}
        for i, total, names, about in zip(units.said_layers, units.sizes, units.names(mask), units.about, strict=True)
    ]
    counts = {"units_total": units.total, "units_kept": int(mask.sum())}
    found = {
        "schema": 1, "analysis": "kv", "title": "KV circuit", "checkpoint": "here", "status": "complete",
        "model": {"family": model.config.family}, "task": {}, "config": {}, "unit": unit, "ablation": "mean",
        "metric": "kl", "curve": {"size": []}, "layers": rows, "searches": [], "notes": [],
        "metrics": {"faithfulness": value, **{name: value | {"value": count} for name, count in counts.items()}},
    }  # fmt: skip
    files.write_json(directory / "results.json", found)
    files.write_json(directory / "manifest.json", {})
    return directory
