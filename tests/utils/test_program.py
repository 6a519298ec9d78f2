"""What a program of this package sets before it imports torch, and what it leaves alone."""

from __future__ import annotations

import mmap
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from mechint.utils import program
from tests.helpers.paths import ROOT


def spins(arguments: list[str], **environment: str) -> str:
    """The variable that a program sees behind the imports of the package."""
    own = {name: value for name, value in os.environ.items() if name not in program.WAITING}
    own |= {"PYTHONPATH": str(ROOT / "lib"), **environment}
    done = subprocess.run([sys.executable, *arguments], env=own, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


SHOW = "import mechint.utils.version, os; print(os.environ.get('GOMP_SPINCOUNT'))"


@pytest.mark.slow
def test_a_program_of_the_package_lets_threads_sleep_and_others_are_left_alone(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    command = tmp_path_factory.mktemp("bin") / "mechint"
    command.write_text(SHOW)
    assert spins([str(command)]) == program.SPINS
    assert spins([str(command)], OMP_NUM_THREADS="2") == "None"
    assert spins(["-c", SHOW]) == "None"


@pytest.mark.parametrize("name", program.WAITING)
def test_a_variable_of_the_user_is_kept(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in program.WAITING:
        monkeypatch.delenv(each, raising=False)
    with monkeypatch.context() as patch:
        patch.setenv(name, "7")
        program.give_way()
        assert {each: os.environ.get(each) for each in program.WAITING} == {
            each: "7" if each == name else None for each in program.WAITING
        }
    program.give_way()
    assert os.environ["GOMP_SPINCOUNT"] == program.SPINS
    monkeypatch.delenv("GOMP_SPINCOUNT")


FAULTS = """
import resource, sys
import mechint.utils.version
import torch

held = lambda: [torch.ones(2 << 20) for _ in range(8)]
held()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    held()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
"""Eight tensors of 8 MiB, made and freed ten times: how many pages the system gave for the last nine."""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep freed memory")
def test_a_program_of_the_package_keeps_freed_memory_for_the_next_tensor(tmp_path: Path) -> None:
    command = tmp_path / "mechint"
    command.write_text(FAULTS)
    pages = 10 * 8 * (8 << 20) // mmap.PAGESIZE
    assert int(spins([str(command)])) < pages / 20
    assert int(spins([str(command)], MALLOC_ARENA_MAX="8")) > pages / 2  # the user's own settings stand
    assert int(spins(["-c", FAULTS])) > pages / 2
