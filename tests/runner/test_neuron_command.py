"""The documented command: its flags, its JSON, its plots, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import main
from mechint.models.loading.load import hf_config, to_hf_state_dict
from mechint.runner.neuron_command import NeuronCommand, analyse
from mechint.utils.errors import MechintError
from mechint.utils.files import write_torch
from tests.helpers.builders import tiny_mamba
from tests.helpers.commands import Here
from tests.helpers.paths import ROOT


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    model = tiny_mamba(vocab_size=256)
    return str(write_torch(tmp_path / "mamba.pt", {"model": to_hf_state_dict(model), "config": hf_config(model)}))


def test_documented_flags_are_understood() -> None:
    """The custom configuration of the documentation, word for word."""
    words = (
        "--model state-spaces/mamba-130m-hf --layer 2 --enable_attention --attention_methods attention_weighted "
        "gradient_guided --text_limit 200 --save_results --plots_dir my_plots"
    )
    flags = main.parser().parse_args(words.split())
    assert flags.model == ["state-spaces/mamba-130m-hf"] and flags.attention_methods[1] == "gradient_guided"
    assert (flags.layer, flags.text_limit, flags.plots_dir, flags.top_k) == (2, 200, "my_plots", 10)
    plain = main.parser().parse_args([])
    assert plain.model == ["state-spaces/mamba-130m-hf"] and not plain.enable_attention and plain.plots_dir == "plots"


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_results_and_plots_are_where_they_were_documented(checkpoint: str, tmp_path: Path) -> None:
    command = NeuronCommand(
        (checkpoint,), top_k=3, text_limit=8, length=8, enable_attention=True, save_results=True,
        plots_dir=str(tmp_path / "plots"),
    )  # fmt: skip
    found = analyse(command, tmp_path / "analysis_outputs")
    saved = json.loads((tmp_path / "analysis_outputs" / "analysis_results.json").read_text())
    assert saved == json.loads(json.dumps(found.analysis_results))
    entry = saved[checkpoint]
    assert entry["key_metrics"]["total_parameters"] == entry["compare"]["metrics"]["parameters"]["value"]
    assert {e["method"] for e in entry["key_metrics"]["attention_neurons"]} >= {"attention_weighted", "rollout"}
    assert {c["layer"] for c in entry["key_metrics"]["sparsity"]} == {0, 1}
    plots = {path.name for path in (tmp_path / "plots").iterdir()}
    assert {"neuron_delta.png", "sparsity_profile.png", "profile.png"} <= plots
    assert entry["efficiency_measured"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--top_k", "15"], "top_k is 15, and a layer of this model has 14 units"),
        (["--layer", "7"], "--layer is 7"),
        (["--text_limit", "3"], "give at least 8"),
        (["--enable_attention", "--attention_methods", "rolout"], "did you mean rollout"),
        (["--text", "EMPTY"], "has 0 bytes, too few for prompts of 32"),
    ],
)
def test_mistakes_are_one_line(checkpoint: str, tmp_path: Path, more: list[str], said: str, here: Here) -> None:
    (tmp_path / "empty.txt").write_text("")
    words = [str(tmp_path / "empty.txt") if word == "EMPTY" else word for word in more]
    run = here(main.main, "--model", checkpoint, *words, at=tmp_path, checkpoint="--model")
    assert run.status == 2 and said in run.err and run.err.count("error:") == 1
    assert "Traceback" not in run.err


@pytest.mark.slow
def test_a_mistake_at_the_shell_is_one_line(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), "--model", "nowhere.pt"], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "lib")},
    )  # fmt: skip
    assert run.returncode == 2 and "nowhere.pt" in run.stderr and run.stderr.count("\n") == 1


def test_two_models_of_one_name_are_refused(checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(MechintError, match="two models are called mamba"):
        analyse(NeuronCommand((checkpoint, checkpoint)), tmp_path)
