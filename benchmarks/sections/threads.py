"""A circuit of the tiny Mamba as a command, with both kinds of waiting threads, on an idle and on a shared machine."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import MambaConfig, MambaForCausalLM

from ..pairs import Question, Skipped, Target

FLAGS = [
    "--ssm-search=budget", "--ssm-budget=26", "--ssm-steps=20", "--ssm-prompts=64", "--ssm-eval-prompts=64",
    "--ssm-random-circuits=4", "--ssm-removed-units=16", "--ssm-min-accuracy=0",
]  # fmt: skip
IDLE, BUSY = "mechint, idle", "mechint, a core busy"
ONE, DEFAULT = "one thread, idle", "OpenMP's own waiting, a core busy"
OWN_WAITING = {"GOMP_SPINCOUNT": "300000"}
"""The looks of GNU's OpenMP where nothing is set and there are no more threads than cores."""
SET = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def questions() -> Iterator[Question]:
    if (os.cpu_count() or 1) < 2:
        raise Skipped("there is one core, so nothing waits and none can be kept busy")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder, "model")
        torch.manual_seed(0)
        sizes = {"vocab_size": 24, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 16}
        MambaForCausalLM(MambaConfig(**sizes)).save_pretrained(checkpoint)
        run = lambda busy, **variables: lambda: command(checkpoint, busy, variables)
        yield Question(
            "threads",
            "a circuit of a tiny Mamba as a command, half of the cores busy or none",
            {
                IDLE: run(0), BUSY: run(half()), ONE: run(0, OMP_NUM_THREADS="1"), DEFAULT: run(half(), **OWN_WAITING),
            },
            [Target(IDLE, ONE, 1.1, at_most=True), Target(BUSY, IDLE, 1.5, at_most=True), Target(DEFAULT, BUSY, 1.0)],
            rounds=3,
            limit=400.0,
            cold=(IDLE, BUSY, ONE, DEFAULT),
        )  # fmt: skip


def half() -> int:
    """Half of the cores, which other programs keep busy."""
    return (os.cpu_count() or 2) // 2


def command(checkpoint: Path, busy: int, variables: dict[str, str]) -> None:
    """Runs the command beside so many processes that never wait."""
    kept = {name: value for name, value in os.environ.items() if name not in SET}
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        with tempfile.TemporaryDirectory() as output:
            words = ["-m", "mechint", "mamba-circuit", "--checkpoint", str(checkpoint), "--output-dir", output, *FLAGS]
            done = subprocess.run(
                [sys.executable, *words], env={**kept, **variables}, capture_output=True, text=True, check=False
            )
    finally:
        for other in others:
            other.kill()
            other.wait()
    if done.returncode:
        raise RuntimeError(f"the command stopped: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
