"""Damaged results are drawn again, or compared, or are one line that names their directory; nothing else.

Text in them may hold anything that a prompt, a token or the name of a checkpoint may.
"""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mechint.analyses.base import analyses
from mechint.analyses.options import RunConfig
from mechint.models.loading.load import hf_config, to_hf_state_dict
from mechint.report import figure_style as style
from mechint.report.finished import COMPLETE, drawing, finished
from mechint.runner.drawing import finished_below, redraw, write_comparisons
from mechint.runner.experiment import run_experiment
from mechint.runner.request import Experiment
from mechint.tasks import TaskConfig
from mechint.utils.errors import MechintError
from mechint.utils.files import sha256
from tests.helpers.builders import tiny_gpt2
from tests.helpers.dictionary_runs import features, results, write_run
from tests.helpers.fuzzing import EXTREME, STRINGS, TEXTS, damaged, tried
from tests.helpers.report_runs import build_run

SMALL: dict[str, Any] = {
    "prompts": 16, "eval_prompts": 64, "bootstrap": 100, "controls": 0, "measure": False, "lengths": "4,8",
    "examples": 2, "draws": 2, "random": 2, "removed_units": 2, "sites": "resid_post", "min_accuracy": 0.0,
}  # fmt: skip
NUMBERS = [0, 1, -1, 2, 0.5, -0.0, 1e300, -1e300, 1e-300, 10**9, 2**63 - 1]


def built(name: str, at: Path) -> Path:
    """A finished run of a kind: of invented numbers, or of a tiny model."""
    if name == "circuit":
        return build_run(at, channels=12, kept=3)
    if name == "sae":
        raw = results()
        raw["sae"]["members"] = raw["sae"]["members"][:3]
        write_run(at, raw)
        (at / "features").mkdir()
        (at / "features" / "one.json").write_text(json.dumps(features()))
        return at
    model = tiny_gpt2(3)  # which answers a quarter of the prompts right
    torch.save({"model": to_hf_state_dict(model), "config": hf_config(model)}, at.parent / "a.pt")
    made = analyses()[name].config
    config = made(**{key: value for key, value in SMALL.items() if key in {f.name for f in dataclasses.fields(made)}})
    run = RunConfig(checkpoint=str(at.parent / "a.pt"), output_dir=str(at), batch_size=8)
    run_experiment(Experiment(run, TaskConfig(name="recall", pairs=2, keys=12, values=4), {name: config}))
    return at


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything in a JSON value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]


def mutated(rng: random.Random, raw: Any) -> Any:
    """Results of which some entries are others: gone, of another kind, extreme, or text that nobody expects."""
    for _ in range(rng.choice((1, 1, 2, 5))):
        found = places(raw)
        near = [place for place in found if place[0] is raw or not isinstance(place[1], int)]
        if not found:
            break
        container, key = rng.choice(near if near and rng.random() < 0.7 else found)
        old, kind = container[key], rng.randrange(6)
        if kind == 0:
            container.pop(key)
        elif kind == 1:
            container[key] = rng.choice(EXTREME)
        elif isinstance(old, str):
            container[key] = rng.choice([rng.choice(STRINGS), old + rng.choice(STRINGS), "$x_{$ \\frac{ \\alpha"])
        elif isinstance(old, (int, float)) and not isinstance(old, bool):
            container[key] = rng.choice(NUMBERS)
        elif isinstance(old, list) and old:
            container[key] = rng.choice((old[:-1], old * 2, [], [old]))
        else:
            container[key] = rng.choice(EXTREME)
    return raw


def case_of(source: Path, figures: bool) -> Callable[[random.Random, Path], Callable[[], object]]:
    def case(rng: random.Random, at: Path) -> Callable[[], object]:
        target = Path(shutil.copytree(source, at / "run"))
        kept = (".json", ".jsonl", ".pt", "")
        files = sorted(path for path in target.rglob("*") if path.is_file() and path.suffix in kept)
        what = rng.randrange(8)
        file = target / "results.json" if what < 6 else rng.choice(files)
        if what < 5:
            file.write_text(json.dumps(mutated(rng, json.loads(file.read_text()))))
        elif what == 5:
            file.write_text(rng.choice(TEXTS))
        elif file.suffix == ".json" and rng.random() < 0.6:
            file.write_text(json.dumps(mutated(rng, json.loads(file.read_text()))))
        else:
            damaged(rng, file)
        return lambda: taken(target, source, rng, figures)

    return case


def taken(target: Path, source: Path, rng: random.Random, figures: bool) -> None:
    """Draws again, and at times compares, looks whether it is finished, and draws a directory of two."""
    run = RunConfig(mode="from_runs", run_dir=str(target))
    if not figures:
        run = dataclasses.replace(run, visualize_heatmaps=False, visualize_curves=False, visualize_faithfulness=False)
    redraw(run, dry_run=False)
    if rng.random() < 0.4:
        write_comparisons([source, target], target.parent / "both")
    if rng.random() < 0.2:
        finished(target, json.loads((target / "results.json").read_text()).get("key", {}), rerun=False)
        finished_below(target.parent, "BASELINE")


def test_damaged_results_are_drawn_or_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(path: Path, size: tuple[float, float], draw: Any) -> Path:  # all of a figure but its pixels
        from matplotlib.figure import Figure

        with style.plain_settings():
            draw(Figure(figsize=size))
        path.write_bytes(b"")
        return path

    monkeypatch.setattr(style, "save_figure", drawn)
    source = built("circuit", tmp_path / "source")
    ends = tried(case_of(source, figures=True), range(14), tmp_path)
    assert ends["refused in one line"] > 3 and ends["loaded"] > 3


KINDS = ("circuit", "sae", "trace", "patch", "sparsity", "neuron", "compare")


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_results_are_drawn_or_are_one_line(kind: str, tmp_path: Path) -> None:
    began = time.monotonic()
    source = built(kind, tmp_path / "source")
    ends = tried(case_of(source, figures=True), range(1_000, 1_300), tmp_path)
    took = time.monotonic() - began
    print(f"{kind}: {sum(ends.values())} tried in {took:.0f} s: {dict(ends)}, tracebacks 0, hangs 0")


def test_a_defect_of_a_drawing_is_one_when_the_analysis_draws(tmp_path: Path) -> None:
    run = built("circuit", tmp_path / "run")
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "results_sha256": sha256(run / "results.json")}))
    with pytest.raises(KeyError), drawing(run):
        raise KeyError("a defect")
    (run / COMPLETE).touch()
    with pytest.raises(MechintError, match=r"can't be drawn \(KeyError"), drawing(run):
        raise KeyError("a damaged file")
