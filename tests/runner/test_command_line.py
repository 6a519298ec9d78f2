"""``python -m mechint``: one prompt in a few words, and the same flags as everywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mechint
from mechint.runner.command_line import parse
from tests.helpers.builders import tiny_mamba
from tests.helpers.paths import ROOT
from tests.helpers.standins import save_hf, save_tokenizer

PROMPT = ["--prompt", "The Eiffel Tower is located in the city of", "--subject", "Eiffel Tower"]


def answer_of(checkpoint: Path) -> str:
    model = mechint.load(checkpoint)
    ids = torch.tensor([model.tokenizer.encode(PROMPT[1]).ids])
    return str(model.tokenizer.decode([int(model(ids)[0, -1].argmax())]))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that goes on with the beginning of a word."""
    at = save_tokenizer(tmp_path_factory.mktemp("model"), 300)
    return next(at for seed in range(99) if answer_of(save_hf(tiny_mamba(seed, vocab_size=300), at)).startswith(" "))


def call(*arguments: str, at: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mechint", *arguments],
        cwd=at,
        env={**os.environ, "PYTHONPATH": str(ROOT / "lib"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_one_prompt_is_traced(checkpoint: Path, tmp_path: Path) -> None:
    few = ["--trace-draws", "2", "--trace-sites", "resid_post,state", "--trace-bootstrap", "100", "--device", "cpu"]
    done = call("--checkpoint", str(checkpoint), *PROMPT, *few, at=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = answer_of(checkpoint)
    assert f"the model's own answer: {answer!r}" in done.stdout
    where = tmp_path / "mechint_analysis" / "the-eiffel-tower-is-located-in-the-city-of"
    found = json.loads((where / "results.json").read_text())
    assert found["analysis"] == "trace" and found["metric"] == "answer_logprob" and found["ablation"] == "noise"
    assert found["metrics"]["prompts_used"]["value"] == 1 and (where / "report.html").exists()
    example = json.loads((where / "examples.json").read_text())[0]
    assert "".join(example["tokens"]) == PROMPT[1] and example["answer"] == answer


@pytest.mark.slow
def test_bad_prompts_are_one_line(checkpoint: Path, tmp_path: Path) -> None:
    lost = call("--checkpoint", str(checkpoint), *PROMPT[:3], "Louvre", at=tmp_path)
    assert lost.returncode == 2 and lost.stderr.strip().count("\n") == 0
    assert "the subject 'Louvre' is not in the prompt, whose tokens are [" in lost.stderr
    assert not (tmp_path / "mechint_analysis" / "results.json").exists()
    alone = call(*PROMPT[2:], at=tmp_path)
    assert alone.returncode == 2 and "give --prompt too" in alone.stderr


def test_what_is_said_beside_a_prompt_is_kept() -> None:
    flags = parse([*PROMPT, "--answer", "Paris", "--no-trace", "--patch", "--patch-metric", "answer_prob"])
    assert (flags.run_trace, flags.run_patch, flags.run_ssm) == (False, True, False)
    assert (flags.task_name, flags.task_answer, flags.task_subject) == ("prompt", "Paris", "Eiffel Tower")
    assert (flags.patch_metric, flags.patch_units, flags.trace_corruption) == ("answer_prob", "", "noise")
    plain = parse([])
    assert plain.run_ssm and not plain.run_trace and plain.task_name == "recall" and plain.trace_corruption == "twin"
