"""The Python that everything runs in: checks the one in use, or makes ``.venv`` from the pinned requirements.

Run by whatever ``python3`` there is, so it must at least parse on old ones, and it needs the standard library only:

    environment.py make VENV STAMP REQUIREMENTS   makes or updates VENV; writes STAMP once all is installed
    environment.py check REQUIREMENTS...          fails with one line when this Python lacks something
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys

OLDEST = (3, 10)


def main() -> int:
    command, arguments = sys.argv[1], sys.argv[2:]
    try:
        return make(*arguments) if command == "make" else check(arguments)
    except KeyboardInterrupt:
        return fail("interrupted; the same command goes on from there", 130)


def fail(message: str, status: int = 2) -> int:
    print(f"error: {message}", file=sys.stderr)
    return status


def version() -> str:
    return ".".join(map(str, sys.version_info[:3]))


def check(files: list[str]) -> int:
    """Checks that this Python is new enough and has every package of the requirements files."""
    if sys.version_info < OLDEST:
        return fail(f"Python 3.10 or newer is needed, and {sys.executable} is {version()}; choose one with PYTHON=")
    missing = [name for file in files for name in names(file) if not installed(name)]
    if missing:
        wanted = " ".join(f"-r {file}" for file in files)
        return fail(
            f"{sys.executable} lacks {', '.join(missing)}; run: {sys.executable} -m pip install {wanted} "
            "(or leave the virtual environment and unset PYTHON, and make sets up .venv itself)"
        )
    return 0


def installed(package: str) -> bool:
    """Returns True if a package is there: as a distribution (pytest-xdist, imported as xdist), or else under its own
    name."""
    try:
        importlib.metadata.distribution(package)
        return True
    except importlib.metadata.PackageNotFoundError:
        return importlib.util.find_spec(package.replace("-", "_")) is not None


def names(file: str) -> list[str]:
    """The packages of a requirements file that are for this machine, each once."""
    with open(file, encoding="utf-8") as lines:
        found = (re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line) for line in lines if for_this_machine(line))
        return list(dict.fromkeys(match.group() for match in found if match))


def for_this_machine(line: str) -> bool:
    """Returns True if the platform that a requirement names after its semicolon, if any, is this one."""
    here = {"platform_system": platform.system(), "platform_machine": platform.machine(), "sys_platform": sys.platform}
    asked = re.findall(r"(\w+)\s*==\s*[\"']([^\"']*)[\"']", line.partition(";")[2])
    return all(here.get(name, value) == value for name, value in asked)


def make(venv: str, stamp: str, requirements: str) -> int:
    """Installs ``requirements`` into ``venv``, making it first where needed; ``stamp`` is written last."""
    if sys.version_info < OLDEST:
        return _with_newer_python()
    python = os.path.join(venv, "bin", "python")
    if not _runs(python, "import sys, pip; sys.exit(sys.version_info < (3, 10))"):
        print(f"making {venv} with Python {version()}", flush=True)
        if subprocess.call([sys.executable, "-m", "venv", "--clear", venv]):
            return fail(f"Python's venv module could not make {venv}; on Debian and Ubuntu: apt install python3-venv")
    print(f"installing {requirements} into {venv} (the first time takes some minutes)", flush=True)
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "-r", requirements]
    if not sys.dont_write_bytecode:  # Python compiles what it imports and keeps it; most modules are never imported
        pip.append("--no-compile")
    status = subprocess.call(pip)
    if status:
        return fail(f"pip could not install {requirements} (its own message is above); the same command tries again")
    with open(stamp, "w", encoding="utf-8") as file:
        file.write(f"{requirements} is installed; remove this file to install it again\n")
    print(f"{venv} is ready", flush=True)
    return 0


def _runs(python: str, code: str) -> bool:
    try:
        return subprocess.call([python, "-c", code], stderr=subprocess.DEVNULL) == 0
    except OSError:
        return False


def _with_newer_python() -> int:
    for minor in range(14, OLDEST[1] - 1, -1):
        found = shutil.which(f"python3.{minor}")
        if found and _runs(found, "import venv, ensurepip"):
            return subprocess.call([found, *sys.argv])
    return fail(f"Python 3.10 or newer is needed, and {sys.executable} is {version()}; install one")


if __name__ == "__main__":
    sys.exit(main())
