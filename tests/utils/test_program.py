"""What a program of this package sets before it imports torch, and what it leaves alone."""

from __future__ import annotations

import mmap
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mechint.utils import program
from tests.helpers.builders import tiny_mamba
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
    assert spins([str(command)]) in (program.FEW, program.MANY)
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
    monkeypatch.setattr(program, "gives_way", False)
    program.give_way()
    assert program.gives_way and os.environ["GOMP_SPINCOUNT"] in (program.FEW, program.MANY)
    monkeypatch.delenv("GOMP_SPINCOUNT")


def test_threads_look_longer_for_work_where_no_other_program_wants_a_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = tmp_path / "stat"
    monkeypatch.setattr(program, "STAT", said)
    assert program.shared()  # a system that does not say
    for running, expected in ((1, False), (2, True), (7, True)):
        said.write_text(f"cpu 1 2 3\nprocs_running {running}\nprocs_blocked 9\n")
        assert program.shared() is expected


@pytest.mark.parametrize("ours", [True, False])
def test_little_work_has_one_thread_and_the_number_comes_back(ours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "gives_way", ours)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with program.suited(program.WORTH):
            assert torch.get_num_threads() == 3
        with program.suited(program.WORTH - 1):
            assert torch.get_num_threads() == (1 if ours else 3)
            with program.suited(program.WORTH):  # never more than around it
                assert torch.get_num_threads() == (1 if ours else 3)
        with pytest.raises(ZeroDivisionError), program.suited(0):
            raise ZeroDivisionError
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_the_work_of_a_layer_is_its_weights_at_every_position() -> None:
    model = tiny_mamba()
    entries = sum(parameter.numel() for parameter in model.layers.parameters())
    assert model.work(60) == 60 * entries // model.num_layers


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
@pytest.mark.slow
def test_a_program_of_the_package_keeps_freed_memory_for_the_next_tensor(tmp_path: Path) -> None:
    command = tmp_path / "mechint"
    command.write_text(FAULTS)
    pages = 10 * 8 * (8 << 20) // mmap.PAGESIZE
    assert int(spins([str(command)])) < pages / 20


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_what_the_user_says_of_memory_stands(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: list[tuple[int, int]] = []
    library = SimpleNamespace(mallopt=lambda *change: changes.append(change))
    monkeypatch.setattr(program.ctypes, "CDLL", lambda _: library)
    monkeypatch.setenv(name, "1")
    program.keep_memory()
    assert not changes
    monkeypatch.delenv(name)
    program.keep_memory()
    assert changes == [(program.M_MMAP_THRESHOLD, program.FROM_HEAP), (program.M_TRIM_THRESHOLD, program.NEVER)]
    program.keep_memory(large=True)
    assert changes[2:] == [(program.M_MMAP_THRESHOLD, 16 << 20), (program.M_TRIM_THRESHOLD, 64 << 20)]
    del library.mallopt  # not glibc
    program.keep_memory()


def test_free_memory_is_given_back_by_programs_of_the_package_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed: list[int] = []
    library = SimpleNamespace(malloc_trim=trimmed.append)
    monkeypatch.setattr(program.ctypes, "CDLL", lambda _: library)
    program.give_back()
    assert not trimmed  # the tests are no program of the package
    monkeypatch.setattr(program, "is_ours", lambda: True)
    program.give_back()
    assert trimmed == [0]
    del library.malloc_trim  # not glibc
    program.give_back()
