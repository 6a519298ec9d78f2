"""One checkpoint and two processes: dictionaries are trained by both and are those of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mechint import sae
from mechint.runner import command_line
from scripts.kconfig.__main__ import how_many
from scripts.kconfig.defconfigs import ConfigError
from tests.helpers.experiments import checkpoint
from tests.helpers.paths import ROOT

SMALL = [
    "--no-ssm", "--sae", "--sae-sites=out", "--sae-layers=1", "--sae-architectures=topk,batch_topk", "--sae-sparsity=3",
    "--sae-ratio=2", "--sae-tokens=4096", "--sae-batch=256", "--sae-buffer=1024", "--sae-lr=0.003", "--sae-read=0",
    "--sae-prompts=16", "--sae-eval-prompts=16", "--sae-bootstrap=100", "--no-sae-controls", "--sae-dead-after=1000",
    "--task-pairs=2", "--task-keys=12", "--task-values=12", "--batch-size=8", "--no-visualize-curves",
    "--no-visualize-heatmaps",
]  # fmt: skip


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = checkpoint(tmp_path / "model.pt")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "lib"), "OMP_NUM_THREADS": "1"}
    words = [*SMALL, f"--checkpoint={model}"]
    command_line.main(arguments=[*words, f"--output-dir={tmp_path / 'one'}"])
    words.append(f"--output-dir={tmp_path / 'two'}")
    both = [sys.executable, "-m", "scripts.kconfig.processes", "2", sys.executable]  # make's launcher, as torchrun
    command = [*both, str(ROOT / "scripts/run_mechint_analysis.py"), *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    said = capsys.readouterr().out
    assert said.count("report:") == done.stdout.count("report:") == 1 and "wait" not in said + done.stdout
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0 and again.stdout.count("is finished") == 1
    found = {name: json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")}
    names = [member["name"] for member in found["one"]["sae"]["members"]]
    assert names == [member["name"] for member in found["two"]["sae"]["members"]] and len(names) == 2
    for k, name in enumerate(names):
        one, two = (sae.load(tmp_path / run / "dictionaries" / name) for run in ("one", "two"))
        assert one.config == two.config
        for tensor in ("W_enc", "b_enc", "W_dec", "b_dec"):
            torch.testing.assert_close(getattr(two, tensor), getattr(one, tensor), rtol=2e-3, atol=2e-3, msg=name)
        a, b = (found[run]["sae"]["members"][k]["metrics"] for run in ("one", "two"))
        assert b["variance_explained"]["value"] == pytest.approx(a["variance_explained"]["value"], abs=1e-3)


def test_make_starts_as_many_processes_as_it_is_told() -> None:
    assert [how_many(said) for said in ("", " ", "1", "4", " 2 ")] == [1, 1, 1, 4, 2]
    for bad in ("0", "two", "-1", "²", "٣", "1_0", "1e1", "9" * 5000, "1025"):
        with pytest.raises(ConfigError, match="is not a number of processes"):
            how_many(bad)
