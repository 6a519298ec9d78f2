"""Requests of a scorecard: a finished card is not lost, and a refusal is one line."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mechint.scorecard import METHODS, ScorecardConfig, card, requests, scorecard
from mechint.utils import files, workers
from mechint.utils.errors import MechintError, exit_status
from scripts import ground_truth
from tests.helpers.paths import ROOT

OTHER = r"choose another --output-dir \(SCORE=\"… --output-dir output/…\"\), or say --rerun"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that were measured, by a stand-in that takes no time; the one called ``dies`` is interrupted."""
    calls: list[str] = []
    part = {
        "random": [], "positions": {}, "null": {"random": {"trace": [1.0]}}, "same_twins": 0.0,
        "seconds": 1.0, "edges": [], "probes": [], "best": {"cpr": 1.0, "cmd": 0.0},
    }  # fmt: skip
    cell = {
        "auroc": 1.0, "average_precision": 1.0, "exact": True, "units": 1, "total": 2, "cpr": 1.0,
        "cmd": 0.0, "peak_mib": None, "seconds": 0.0,
    }  # fmt: skip

    def measure(name: str, seed: int, config: ScorecardConfig, methods: dict[str, Any]) -> dict[str, Any]:
        calls.append(name)
        if config.steps == 13 and name == "latch":
            raise KeyboardInterrupt
        random = [{"method": key, "auroc": 0.5} for key in methods]
        return {
            **part, "model": name, "seed": seed, "random": random,
            "compiled": [{**cell, "method": key} for key in methods],
        }  # fmt: skip

    monkeypatch.setattr(card, "measure", measure)
    monkeypatch.setattr(card, "METHODS", {"one": METHODS["weight_magnitude"]})
    monkeypatch.setattr(card, "write_scorecard", lambda folder, results: [])
    return calls


@pytest.fixture
def config(tmp_path: Path) -> ScorecardConfig:
    return ScorecardConfig(models="shift,latch", seeds=1, sae_tokens=0, output_dir=str(tmp_path / "card"))


def test_a_finished_card_is_not_scored_again(
    measured: list[str], config: ScorecardConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    results = scorecard(config)
    assert capsys.readouterr().out == ""
    assert scorecard(dataclasses.replace(config, models="shift, latch")) == results
    assert measured == ["shift", "latch"]
    assert f"finished in {config.output_dir}: nothing is scored" in capsys.readouterr().out
    scorecard(dataclasses.replace(config, rerun=True))
    assert measured == ["shift", "latch"] * 2


@pytest.mark.parametrize("change", [{"seeds": 2}, {"models": "latch"}, "code", "old"])
def test_a_finished_card_of_another_request_is_kept(
    change: Any, measured: list[str], config: ScorecardConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorecard(config)
    path = Path(config.output_dir) / "results.json"
    if change == "code":
        monkeypatch.setattr(requests, "code_digest", lambda: "other")
    elif change == "old":  # written before the request was
        files.write_json(path, {name: v for name, v in json.loads(path.read_text()).items() if name != "key"})
    else:
        config = dataclasses.replace(config, **change)
    before = path.read_bytes()
    with pytest.raises(MechintError, match=f"holds the finished results of another request.*; {OTHER}") as error:
        scorecard(config)
    assert "\n" not in str(error.value)
    if isinstance(change, dict):
        assert f"{next(iter(change))} is" in str(error.value)
    assert path.read_bytes() == before and measured == ["shift", "latch"]
    scorecard(dataclasses.replace(config, rerun=True))
    assert path.read_bytes() != before


def test_unfinished_work_of_another_request_is_kept(measured: list[str], config: ScorecardConfig) -> None:
    killed = dataclasses.replace(config, steps=13)
    with pytest.raises(KeyboardInterrupt):
        scorecard(killed)
    stages = Path(config.output_dir) / ".stages"
    before = {path.name: path.read_bytes() for path in stages.iterdir()}
    assert "finished already, not scored again: 1" in requests.plan(killed)
    for ask in (scorecard, requests.plan, lambda config: scorecard(config, {"mine": print})):
        with pytest.raises(MechintError, match=f"holds the unfinished work of another request.*; {OTHER}"):
            ask(config)
    assert {path.name: path.read_bytes() for path in stages.iterdir()} == before
    assert "would be replaced (--rerun)" in requests.plan(dataclasses.replace(config, rerun=True))
    with pytest.raises(KeyboardInterrupt):
        scorecard(killed)
    assert measured == ["shift", "latch", "latch"]  # that request itself goes on
    scorecard(dataclasses.replace(config, rerun=True))
    assert measured[3:] == ["shift", "latch"] and not stages.exists()


def test_methods_of_others_overwrite_nothing(measured: list[str], config: ScorecardConfig) -> None:
    mine: dict[str, Callable[[Any, Any], Any]] = {"mine": lambda model, task: 0}
    scorecard(config)
    for _ in range(2):
        with pytest.raises(MechintError, match=r"whether mine would score the same is not known.*rerun=True"):
            scorecard(config, mine)
        results = scorecard(dataclasses.replace(config, rerun=True), mine)
    assert set(results["methods"]) == {"one", "mine"}
    with pytest.raises(MechintError, match="holds the finished results of another request"):
        scorecard(config)


def test_stages_that_a_rerun_replaced_do_not_come_back(measured: list[str], config: ScorecardConfig) -> None:
    """Else the request that they are of would take the results, which are of methods of others, for its own."""
    killed = dataclasses.replace(config, steps=13)
    with pytest.raises(KeyboardInterrupt):
        scorecard(killed)
    scorecard(dataclasses.replace(config, rerun=True), {"mine": lambda model, task: 0})
    with pytest.raises(MechintError, match="holds the finished results of another request"):
        scorecard(killed)


def test_what_the_first_process_refuses_all_refuse(
    measured: list[str], config: ScorecardConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorecard(config)
    told: list[Any] = []
    other = dataclasses.replace(config, seeds=2)
    monkeypatch.setattr(workers, "join", lambda: None)
    monkeypatch.setattr(workers, "exchange", lambda part: [told.append(part) or part, None])
    with pytest.raises(MechintError, match="of another request"):
        scorecard(other)
    refused = told.pop()
    assert isinstance(refused, MechintError)
    monkeypatch.setattr(workers, "worker", lambda: (1, 2))
    monkeypatch.setattr(workers, "exchange", lambda part: [refused, told.append(part) or part])
    with pytest.raises(MechintError, match="of another request"):
        scorecard(other)
    assert told == [None] and measured == ["shift", "latch"]


# ---- the command line --------------------------------------------------------------------------------------------


def score(*options: str, processes: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scripts.kconfig", "score", f"--processes={processes}", "--", *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "lib"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--seeds x", "argument --seeds: 'x' is not a whole number; --help"),
        ("--seeds 0", "seeds is 0; it must be a whole number at least 1"),
        ("--bogus 1", "no option --bogus; --help lists all"),
        ("--seed 1", "no option --seed (did you mean seeds"),
        ("--models gpt2 shift", "'shift' follows no option; separate names by commas"),
        ("--models foo", "no model 'foo'; take all, mamba, gpt2, trained, hard, memories, short, shift"),
        ("--models gpt", "no model 'gpt' (did you mean gpt2"),
        ("--models mambas", "no model 'mambas' (did you mean mamba"),
        ("--models shift,", "models is 'shift,', where a word is missing beside a comma"),
        (f"--output-dir {ROOT}/Makefile", "Makefile can't be written to; choose another directory with --output-dir"),
    ],
)
def test_what_can_not_be_met_is_one_line(
    options: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["ground_truth.py", "--output-dir", str(tmp_path / "out"), *options.split()])
    assert exit_status(ground_truth.main) == 2
    out, error = capsys.readouterr()
    [line] = error.splitlines()
    assert line.startswith("error: ") and says in line and out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_it_is_one_line_of_two_processes(tmp_path: Path) -> None:
    """From the parser, which both have, and from the output, which only the first tries."""
    for options in (["--seeds", "x"], ["--output-dir", "/proc/none/made/here"]):
        done = score("--output-dir", str(tmp_path / "out"), *options, processes="2")
        assert done.returncode == 2 and done.stdout == ""
        [line] = done.stderr.splitlines()
        assert line.startswith("error: ") and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_dry_run_says_what_would_be_scored_and_writes_nothing(tmp_path: Path) -> None:
    options = ["--models=mamba,shift", "--seeds=2", "--output-dir", str(tmp_path / "out"), "--dry-run"]
    done = score(*options, processes="2")
    assert (done.returncode, done.stderr) == (0, "")
    assert "models × seeds: 8 × 2, and planted features for each seed; items: 18" in done.stdout
    assert "models: shift, latch," in done.stdout and "seeds: 100 to 101" in done.stdout
    assert f"results: {tmp_path / 'out' / 'results.json'}" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_processes_print_a_finished_card_once(measured: list[str], config: ScorecardConfig) -> None:
    scorecard(config)
    before = {path: path.stat().st_mtime_ns for path in Path(config.output_dir).glob("[!.]*")}
    same = ["--models=shift,latch", "--seeds=1", "--sae-tokens=0", f"--output-dir={config.output_dir}"]
    done = score(*same, processes="2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("nothing is scored") == 1 and done.stdout.count("| method |") == 1
    assert {path: path.stat().st_mtime_ns for path in Path(config.output_dir).glob("[!.]*")} == before
    with pytest.raises(MechintError, match="steps is 70 and was 60"):
        scorecard(dataclasses.replace(config, steps=70))


def test_a_file_of_scores_is_in_the_key_by_its_content(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    keys = []
    for number in (0.1, 0.2):
        file.write_text(json.dumps({"method": "mine", "scores": {"latch 100": [number]}}))
        keys.append(requests.key_of(ScorecardConfig(scores=str(file))))
    file.rename(tmp_path / "other.json")
    keys.append(requests.key_of(ScorecardConfig(scores=str(tmp_path / "other.json"))))
    assert keys[0] != keys[1] == keys[2]
    for wrong, said in (({"methods": "attributoin"}, "no method"), ({"scores": str(file)}, "mine.json")):
        with pytest.raises(MechintError, match=said):
            requests.check_request(ScorecardConfig(**wrong))  # type: ignore[arg-type]
    one, same = (ScorecardConfig(methods=text) for text in ("attribution, removal", "attribution,removal"))
    assert requests.key_of(one) == requests.key_of(same)
