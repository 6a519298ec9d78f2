"""Two nodes that torchrun joins, here two launches of it on this machine, write what one process writes."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mechint.runner import command_line
from tests.helpers.experiments import SSM, checkpoint
from tests.helpers.paths import ROOT

ASKED = (
    *(f"--ssm-{field.name.replace('_', '-')}={getattr(SSM, field.name)}" for field in dataclasses.fields(SSM)),
    "--task-pairs=2", "--task-keys=12", "--task-values=12", "--batch-size=8", "--no-visualize-heatmaps",
    "--no-visualize-curves", "--no-visualize-faithfulness", "--device=cpu",
)  # fmt: skip


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.mark.slow
def test_two_nodes_share_a_glob_and_write_what_one_process_writes(tmp_path: Path) -> None:
    """As docs/cluster.md starts them: the node 1 before the node 0, which all of them wait for."""
    for k in range(2):
        checkpoint(tmp_path / f"runs/step{k}.pt", k)
    words = [*ASKED, f"--checkpoint={tmp_path}/runs/*.pt"]
    start = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1",
             "--master-port", str(free_port())]  # fmt: skip
    script = str(ROOT / "scripts/run_mechint_analysis.py")
    nodes = [
        subprocess.Popen(
            [sys.executable, *start, "--node-rank", rank, script, *words, f"--output-dir={tmp_path}/two"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT / "lib"), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in "10"
    ]
    try:
        said = [node.communicate(timeout=300)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()  # one that has ended stays as it is
    assert [node.returncode for node in nodes] == [0, 0], said
    command_line.main(arguments=[*words, f"--output-dir={tmp_path}/one"])
    one, two = ({p.relative_to(top): p for p in top.rglob("*.json")} for top in (tmp_path / "one", tmp_path / "two"))
    assert one.keys() == two.keys() and len([path for path in one if path.name == "results.json"]) == 2
    for path in (path for path in one if path.name in ("results.json", "comparison.json")):
        assert one[path].read_text().replace("/one/", "/two/") == two[path].read_text(), path
    made = [json.loads(path.read_text())["argv"] for path in two.values() if path.name == "manifest.json"]
    assert len(made) == 2 and all(f"--output-dir={tmp_path}/two" in argv for argv in made)
    assert sum(text.count("report:") for text in said) == 2  # each checkpoint once
