"""Work in a second process: its result, what it is told, how it fails, and that it ends with the first one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mechint.utils import beside, program, progress, workers
from mechint.utils.beside import Beside, hands
from mechint.utils.progress import Progress
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems make no second process")
CPU = torch.device("cpu")


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a command of this package on two cores."""
    monkeypatch.setattr(program, "gives_way", True)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_a_copy_has_what_is_in_memory_and_is_told_the_rest(two_threads: None) -> None:
    held = torch.arange(6.0, dtype=torch.float64).requires_grad_()
    (held @ held).backward()  # with threads of OpenMP, and a graph, before the fork

    def work(told: Callable[[], Any]) -> dict[str, Any]:
        (slope,) = torch.autograd.grad((held * held * held).sum(), held)
        return {"slope": slope.tolist(), "told": [told(), told()], "threads": torch.get_num_threads()}

    copy = Beside(work)
    copy.tell({"a": 1})
    copy.tell(2)
    assert copy.result() == ({"slope": [0.0, 3.0, 12.0, 27.0, 48.0, 75.0], "told": [{"a": 1}, 2], "threads": 1},)


def test_large_products_do_not_wait_for_threads_that_the_fork_left_behind(two_threads: None) -> None:
    wide = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    here = wide @ wide  # by two threads
    found = Beside(lambda told: bool(torch.allclose(wide @ wide, here, rtol=1e-4, atol=1e-3))).result()
    assert found == (True,)


def test_points_of_curves_are_made_here_in_their_order() -> None:
    def work(told: Callable[[], Any]) -> int:
        for k in range(3):
            progress.point("loss", {"step": k})
        return 7

    heard: list[Any] = []
    with progress.listening(lambda curve, values: heard.append((os.getpid(), curve, dict(values)))):
        assert Beside(work).result() == (7,)
    assert heard == [(os.getpid(), "loss", {"step": k}) for k in range(3)]


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (lambda told: 1 // 0, "failed (ZeroDivisionError: "),
        (lambda told: os.kill(os.getpid(), signal.SIGKILL), "ended with status -9"),
        (lambda told: lambda: 0, "failed ("),  # a result that cannot be pickled
    ],
)
def test_a_copy_that_fails_or_dies_is_noted(work: Any, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert Beside(work).result() is None
    lines = capfd.readouterr().err.splitlines()
    assert lines[-1].startswith(f"note: a process beside this one {said}") and lines[-1].endswith("is done here")


def test_a_copy_is_ended_and_what_it_is_told_then_is_no_error() -> None:
    copy: Beside[None] = Beside(lambda told: time.sleep(600))
    number = copy._process.pid
    copy.stop()
    copy.stop()
    copy.tell(1)
    assert number is not None and not Path(f"/proc/{number}").exists()


KILLED = """
import os, signal, sys, time
from mechint.utils.beside import Beside
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets programs in its background ignore it
copy = Beside(lambda told: time.sleep(600))
print(copy._process.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_copy_ends_with_the_process_that_made_it(how: signal.Signals) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "lib")}
    with subprocess.Popen([sys.executable, "-c", KILLED], env=environment, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        copy = int(first.stdout.readline())
        first.send_signal(how)
        first.wait(60)
    for _ in range(600):
        try:
            if Path(f"/proc/{copy}/stat").read_text().split(")")[1].split()[0] == "Z":  # ended, and nobody asks for it
                return
        except OSError:
            return
        time.sleep(0.1)
    os.kill(copy, signal.SIGKILL)
    pytest.fail("the copy goes on")


def test_bars_on_a_terminal_are_drawn_by_one_process_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def work(told: Callable[[], Any]) -> None:
        for title in ("early", "late"):
            with Progress(title, 1, quiet=0.0) as progress:
                progress.step()
            told().touch()
            told()

    for terminal, expected in ((True, ["late"]), (False, ["early", "late"])):
        monkeypatch.setattr(type(sys.stderr), "isatty", lambda self, terminal=terminal: terminal, raising=False)
        copy, early = Beside(work), tmp_path / f"early {terminal}"
        copy.tell(early)
        while not early.exists():  # the first bar came and went
            time.sleep(0.01)
        copy._front[0] = 1
        for value in (None, tmp_path / "late", None):
            copy.tell(value)
        assert copy.result() == (None,)
        shown = capfd.readouterr().err
        assert [title for title in ("early", "late") if title in shown] == expected, shown


def test_cores_that_a_model_leaves_idle_are_counted(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    small = program.WORTH - 1
    assert hands(small, CPU) == 1 and hands(program.WORTH, CPU) == 0
    assert hands(small, torch.device("meta")) == 0
    torch.set_num_threads(5)
    assert hands(small, CPU) == 4
    torch.set_num_threads(1)
    assert hands(small, CPU) == 0
    torch.set_num_threads(2)
    for module, name, value in (
        (program, "gives_way", False), (workers, "_world", 2), (beside.sys, "platform", "darwin")
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            assert hands(small, CPU) == 0
    assert hands(small, CPU) == 1
