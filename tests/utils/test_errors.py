"""A user reads one line about a failure, no longer than can be read, with advice that fits."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mechint.utils.errors import INTERRUPTED, LONG_LINE, MechintError, an, exit_status, one_line, say_failure
from tests.helpers.paths import ROOT


def said(error: BaseException, capsys: pytest.CaptureFixture[str]) -> str:
    def fails() -> None:
        raise error

    assert exit_status(fails) in (2, 130)
    [line] = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("number", "advice", "not_said"),
    [
        (errno.ENOSPC, "free space", "path"),
        (errno.EROFS, "choose another path", "free"),
        (errno.EACCES, "choose another path", "free"),
        (errno.ENOENT, "correct the path", "free"),
        (errno.EIO, "run the same command again", "free"),
    ],
)
def test_the_advice_fits_what_the_system_says(
    number: int, advice: str, not_said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = said(OSError(number, os.strerror(number), "some/file"), capsys)
    assert line.startswith(f"error: {os.strerror(number)} (some/file); ") and advice in line
    assert not_said not in line.partition("; ")[2]


def test_a_missing_file_is_not_a_full_disk(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        Path("/no/such/file").read_text()
    assert "space" not in said(caught.value, capsys)


@pytest.mark.parametrize("message", ["x" * 5000 + " is too long", "word " * 5000, "two\nlines\tand \x1b[2J a bell\x07"])
def test_a_message_is_one_readable_line(message: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = said(MechintError(message), capsys)
    assert len(line) <= LONG_LINE + 60 and line.isprintable()
    assert line.removeprefix("error: ")[:3] == message[:3] and line[-3:] == one_line(message)[-3:]
    assert one_line("short enough") == "short enough"


def test_one_of_several_pieces_of_work_says_which_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    for error, says in (
        (MechintError("no use"), "error: a.pt: no use"),
        (MechintError("a.pt holds nothing"), "error: a.pt holds nothing"),
        (OSError(errno.ENOSPC, "No space left", "x"), "error: a.pt: No space left (x); free space"),
    ):
        say_failure(error, "a.pt")
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith(says)
    say_failure(RuntimeError("a defect"), "a.pt")
    said = capsys.readouterr().err
    assert said.startswith("RuntimeError") or "Traceback" in said
    assert said.splitlines()[-1].startswith("error: a.pt: RuntimeError: a defect")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "no such backend"])
def test_a_backend_of_the_environment_loses_no_figure(backend: str, tmp_path: Path) -> None:
    code = "from mechint.report.figure_style import save_figure; save_figure('a.png', (1, 1), lambda figure: None)"
    environment = {**os.environ, "MPLBACKEND": backend, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "lib")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "a.png").exists(), done.stderr


@pytest.mark.parametrize("words", [["-m", "mechint", "--help"], ["scripts/train.py", "--help"]])
def test_an_interrupt_during_imports_is_one_line(words: list[str]) -> None:
    process = subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "lib")},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a shell's background ignores it
    )  # fmt: skip
    mapped = Path(f"/proc/{process.pid}/maps")
    while "libtorch" not in mapped.read_text():
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1].splitlines() == [f"error: {INTERRUPTED}"]
    assert process.returncode == 130


@pytest.mark.slow
def test_an_interrupt_while_another_program_imports_the_package_is_its_own() -> None:
    code = "import signal, mechint; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    before = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "lib")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, preexec_fn=before)


def test_an_error_is_one_line_wherever_it_is_read() -> None:
    for message in ("x" * 5000, "word " * 5000, "two\nlines", "a\x00b\x1b[2J\u2028", "half \ud800 a character"):
        text = str(MechintError(message))
        assert text.isprintable() and len(text) <= LONG_LINE + 60
    assert str(MechintError("a  b")) == "a  b"


@pytest.mark.parametrize(
    "said", ["an OLMo", "an ERNIE 4.5", "an LFM2", "an olmoe", "an lfm2_moe", "a GPT-2", "a gptj", "a Qwen2", "a phi",
             "a Command R", "a Mamba-2", "a 9b", "a llama"],
)  # fmt: skip
def test_names_have_the_article_that_they_are_said_with(said: str) -> None:
    assert an(said.split(" ", 1)[1]) == said
