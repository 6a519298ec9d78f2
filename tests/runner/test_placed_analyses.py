"""Whole analyses of a model whose layers are on two devices write what they write of the same model on one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from mechint import MechintError
from mechint.runner import command_line
from tests.helpers.devices import pretended_devices
from tests.helpers.experiments import checkpoint

CIRCUIT = (
    "min-accuracy=0", "steps=10", "prompts=4", "eval-prompts=8", "random-circuits=2", "removed-units=2",
    "bootstrap=100",
)  # fmt: skip
ASKED: dict[str, tuple[str, ...]] = {
    "ssm": ("search=budget", "budget=6", "seeds=1", *CIRCUIT),
    "kv": ("search=sparsity", "target-sparsity=0.5", "seeds=1", *CIRCUIT),
    "sae": (
        "layers=1", "sparsity=2", "tokens=200", "batch=50", "buffer=100", "prompts=2", "eval-prompts=4", "causal=0",
        "read=0", "bootstrap=100",
    ),
    "lens": ("prompts=8", "bootstrap=100"),
}  # fmt: skip
"""Small requests. They differ in what they make on a device: masks, dictionaries, affine maps, shuffled weights."""


def results(output: Path) -> dict[str, Any]:
    (path,) = output.glob("**/results.json")
    return json.loads(path.read_text())


def model_file(analysis: str, folder: Path) -> Path:
    """A small model with the parts that the analysis asks for."""
    if analysis != "kv":
        return checkpoint(folder / "mamba.pt")
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).save_pretrained(folder / "gpt2")
    return folder / "gpt2"


TIMES = ("seconds",)


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("analysis", ["ssm", "kv", "lens", pytest.param("sae", marks=pytest.mark.exhaustive)])
def test_an_analysis_of_a_placed_model_writes_that_of_one_device(analysis: str, tmp_path: Path) -> None:
    words = [
        f"--checkpoint={model_file(analysis, tmp_path)}", "--device=cpu", "--task-name=recall", "--task-pairs=2",
        "--task-keys=12", "--task-values=12", "--batch-size=8", "--no-ssm", f"--{analysis}",
        *["--no-sae-controls"] * (analysis == "sae"), *(f"--{analysis}-{word}" for word in ASKED[analysis]),
    ]  # fmt: skip
    command_line.main(arguments=[*words, f"--output-dir={tmp_path}/one"])
    with pretended_devices():
        command_line.main(arguments=[*words, f"--output-dir={tmp_path}/two", "--devices=cpu:0,cpu:1"])
    one, two = results(tmp_path / "one"), results(tmp_path / "two")
    assert one["status"] == "complete" and set(one) == set(two)
    assert {name: value for name, value in one.items() if name not in TIMES} == {
        name: value for name, value in two.items() if name not in TIMES
    }


def test_a_method_that_needs_one_device_is_refused_before_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"--checkpoint={model_file('ssm', tmp_path)}", "--device=cpu", "--devices=cpu:0,cpu:1",
             f"--output-dir={tmp_path}/out", "--task-name=recall", "--task-pairs=2", "--task-keys=12",
             "--task-values=12", "--ssm-method=relp", "--ssm-min-accuracy=0"]  # fmt: skip
    with pretended_devices(), pytest.raises(MechintError, match="the method relp: it reads the weights of all layers"):
        command_line.main(arguments=words)
    assert "attribution" not in capsys.readouterr().out and not list(tmp_path.glob("out/**/*.done.pt"))
