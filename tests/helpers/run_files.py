"""Writes a run directory as the runner leaves it, from an analyzer's results."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from mechint.utils.files import write_json

SHOWN = "<b>x.pt"
"""Name of the checkpoint: a page must show its brackets as text."""


def write_results(
    directory: Path, analysis: str, title: str, config: Any, found: dict[str, Any], task: str = "recall",
    family: str = "mamba",
) -> dict[str, Any]:  # fmt: skip
    """Writes results.json and manifest.json; returns what results.json holds."""
    about = {
        "schema": 1, "analysis": analysis, "title": title, "checkpoint": SHOWN, "status": "complete",
        "task": {"name": task, "description": task}, "config": dataclasses.asdict(config),
        "model": {"family": family, "parameters": 1000, "n_layer": 2, "d_model": 10, "sha256": "0"},
    }  # fmt: skip
    write_json(directory / "results.json", {**about, **found})
    write_json(directory / "manifest.json", {"mechint": "0"})
    return {**about, **found}
