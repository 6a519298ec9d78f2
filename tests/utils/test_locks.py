"""One holder of a directory: within a process, among processes, and among machines that share a file system."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from mechint.utils import files
from mechint.utils.errors import MechintError
from mechint.utils.files import LEASE, LOCK, STALE, lock
from mechint.utils.rundir import peak_memory_mib
from tests.helpers.paths import ROOT

REFUSED = "another run.* is writing to"


def elsewhere(directory: Path, age: float = 0.0, machine: str = "node7 abc") -> Path:
    """The sign that a run on another machine leaves in a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    lease = directory / LEASE
    lease.write_text(f"{machine}\n123 0f\n")
    then = time.time() - age
    os.utime(lease, (then, then))
    return lease


def test_a_second_holder_is_refused_and_a_later_one_is_not(tmp_path: Path) -> None:
    with lock(tmp_path):
        assert (tmp_path / LEASE).is_file()
        with pytest.raises(MechintError, match=REFUSED), lock(tmp_path):
            pass
        with lock(tmp_path, again=True):  # the same work goes on deeper
            pass
        assert (tmp_path / LEASE).is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK]
    with lock(tmp_path):
        pass


def test_again_is_of_this_directory_alone(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    with lock(a), lock(b, again=True), pytest.raises(MechintError, match=REFUSED), lock(b):
        pass
    assert not files._held


def test_a_run_on_another_machine_is_named(tmp_path: Path) -> None:
    lease = elsewhere(tmp_path / "run")
    before = lease.read_text()
    with (
        pytest.raises(MechintError, match=r"another run on node7 is writing to .*run; wait for it"),
        lock(lease.parent),
    ):
        pass
    assert lease.read_text() == before


def test_a_run_that_shows_no_sign_of_life_has_ended(tmp_path: Path) -> None:
    lease = elsewhere(tmp_path, age=STALE + 5)
    with lock(tmp_path):
        assert "node7" not in lease.read_text()
    assert not lease.exists() and sorted(path.name for path in tmp_path.iterdir()) == [LOCK]


def test_a_killed_run_of_this_machine_is_taken_over_at_once(tmp_path: Path) -> None:
    lease = elsewhere(tmp_path, machine=files._machine())
    with lock(tmp_path):
        assert lease.read_text().split("\n")[1] != "123 0f"


@pytest.mark.parametrize("kind", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_the_file_system_has_no_locks_the_lease_holds_alone(
    kind: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(file: object, operation: int) -> None:
        raise OSError(kind, os.strerror(kind))

    monkeypatch.setattr(fcntl, "flock", none)
    elsewhere(tmp_path)
    with pytest.raises(MechintError, match=REFUSED), lock(tmp_path):
        pass


def test_a_lease_that_someone_else_has_now_is_left(tmp_path: Path) -> None:
    """A holder that was thought dead removes nothing of the one that took its place."""
    with lock(tmp_path):
        lease = elsewhere(tmp_path)
    assert lease.read_text().startswith("node7")


@pytest.mark.slow
def test_a_system_without_unix_modules_imports_everything_and_holds_by_the_lease(tmp_path: Path) -> None:
    code = (
        "import importlib, pkgutil, sys\n"
        "sys.modules.update(dict.fromkeys(['fcntl', 'resource', 'termios', 'pwd', 'grp']))\n"
        "import mechint\n"
        "from mechint.utils.files import lock\n"
        "from mechint.utils.rundir import peak_memory_mib\n"
        "names = [m.name for m in pkgutil.walk_packages(mechint.__path__, 'mechint.')]\n"
        "for name in names: name.endswith('__main__') or importlib.import_module(name)\n"
        "assert peak_memory_mib() is None and len(names) > 100\n"
        "with lock(sys.argv[1]): pass\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "lib")}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    elsewhere(tmp_path)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True)
    assert re.search(REFUSED, done.stderr)


@pytest.mark.parametrize(("system", "unit"), [("linux", 1 << 10), ("darwin", 1 << 20)])
def test_the_peak_of_memory_is_in_mib_on_every_system(system: str, unit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=3 * unit + 1))
    assert peak_memory_mib() == 3


def test_signs_of_life_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BEAT", 0.01)
    with lock(tmp_path):
        os.utime(tmp_path / LEASE, (1.0, 1.0))
        deadline = time.monotonic() + 20
        while (tmp_path / LEASE).stat().st_mtime == 1.0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (tmp_path / LEASE).stat().st_mtime > 1.0


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_nothing_to_clean_up(tmp_path: Path) -> None:
    code = (
        "import sys, time; from mechint.utils.files import lock\n"
        "with lock(sys.argv[1]): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "lib")},
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with pytest.raises(MechintError, match=REFUSED), lock(tmp_path):
        pass
    process.kill()
    process.wait()
    assert (tmp_path / LEASE).exists()
    with lock(tmp_path):
        pass


def test_without_a_lock_of_the_kernel_a_living_process_of_this_machine_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    lease = elsewhere(tmp_path, machine=files._machine())
    lease.write_text(f"{files._machine()}\n{child.pid} 0f\n")
    with pytest.raises(MechintError, match=REFUSED), lock(tmp_path):
        pass
    child.communicate(b"\n")
    with lock(tmp_path):
        assert str(os.getpid()) in lease.read_text()
    assert not lease.exists()
