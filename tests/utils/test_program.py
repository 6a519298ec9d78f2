"""What a program of this package sets before it imports torch, and what it leaves alone."""

from __future__ import annotations

import os
import subprocess
import sys

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
