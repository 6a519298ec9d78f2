"""The run directory: finished stages of a killed run, the manifest, and who may write."""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any, Protocol

import torch

from . import files
from .errors import MechintError, one_line
from .options import named
from .version import __version__


def fingerprint(value: Any) -> str:
    """Hex digest of a JSON value: equal configurations have equal digests."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def peak_memory_mib() -> int | None:
    """The most memory that this process has had at once, in MiB; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most // (1 << 20 if sys.platform == "darwin" else 1 << 10)  # bytes there, KiB elsewhere


class HasWeights(Protocol):
    def state_dict(self) -> Mapping[str, torch.Tensor]: ...


def weights_digest(model: HasWeights) -> str:
    """Hex digest of all weights: the same whatever file format they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


PAGES = frozenset({"report", "pages", "figures", "feature_browser", "wandb"})
"""Files and rooms that write reports."""


@functools.cache
def code_digest() -> str:
    """Digest of the sources that compute results: other code, other results.

    It is of what stands in the files, not of where they lie: import statements and paths are left out, so that moved
    code is the same code. Reports and their words change no number and are left out, too.
    """
    root = Path(__file__).resolve().parents[1]
    paths = (path for kind in ("*.py", "*.c") for path in root.rglob(kind))
    drawn = lambda path: path.stem in PAGES or not PAGES.isdisjoint(path.relative_to(root).parts)
    return fingerprint(sorted(hashlib.sha256(body(path)).hexdigest() for path in paths if not drawn(path)))[:16]


IMPORTS = re.compile(r"^[ \t]*(?:from [.\w]+ import (?:\([^)]*\)|[^\n(]*)|import [^\n]*)$", re.MULTILINE)


def body(path: Path) -> bytes:
    """A source file without its import statements and empty lines."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        text = "\n".join(line for line in IMPORTS.sub("", text).splitlines() if line.strip())
    return text.encode()


class Stages:
    """Results of the finished stages of one analysis, so that a killed run resumes where it was.

    Everything in here depends on the fingerprint alone; with another one it is thrown away.

    Args:
        directory: Directory of the stages until the analysis is finished; None keeps nothing.
        key: Fingerprint of all that the stages depend on: configuration, weights, prompts, versions.
        every: Least seconds between two saves of an unfinished stage.
    """

    def __init__(self, directory: str | Path | None, key: str = "", every: float = 15.0) -> None:
        self.directory = None if directory is None else Path(directory)
        self.key, self.every, self.saved = key, every, time.monotonic()
        self.resumed: list[str] = []
        if self.directory is not None and noted(self.directory) != key:
            if any(self.directory.glob("*.pt")) or self.directory.is_file():
                print(f"note: {self.directory} holds unfinished work of another request: dropped", flush=True)
            files.remove(self.directory)
            files.write_text(self.directory / "fingerprint", key)

    def _path(self, name: str, kind: str) -> Path | None:
        return None if self.directory is None else self.directory / f"{name}.{kind}.pt"

    def has(self, name: str) -> bool:
        """True if an earlier run finished the stage ``name`` and it can be read."""
        path = self._path(name, "done")
        return path is not None and kept(path, self.key) is not None

    def get(self, name: str, compute: Callable[[], Any]) -> Any:
        """The result of the stage ``name``, from an earlier run or from ``compute()``; of a damaged file, that."""
        path = self._path(name, "done")
        if path is not None and (found := kept(path, self.key)) is not None:
            self.resumed.append(name)
            return found[0]
        result = compute()
        if path is not None:
            files.write_sealed(path, result, self.key)
            unfinished = self._path(name, "part")
            if unfinished is not None:
                unfinished.unlink(missing_ok=True)
        return result

    def part(self, name: str) -> Any:
        """The last saved state of an unfinished stage, or None."""
        path = self._path(name, "part")
        found = None if path is None else kept(path, self.key)
        return None if found is None else found[0]

    def save_part(self, name: str, state: Callable[[], Any]) -> None:
        """Saves the state of an unfinished stage, unless one was saved a moment ago."""
        path = self._path(name, "part")
        if path is not None and time.monotonic() - self.saved >= self.every:
            files.write_sealed(path, state(), self.key)
            self.saved = time.monotonic()

    def clear(self) -> None:
        if self.directory is not None:
            shutil.rmtree(self.directory)


def kept(path: Path, owner: str = "") -> tuple[Any] | None:
    """The value of a sealed file of unfinished work; None where there is none, or a damaged one, which is removed."""
    if not os.path.lexists(path):
        return None
    try:
        return (files.read_sealed(path, owner),)
    except MechintError as error:
        print(f"note: {one_line(error).split(';')[0]}: dropped, and computed again", flush=True)
        files.remove(path)
        return None


FINGERPRINT_LIMIT = 1000
"""Bytes that are read of the note of whose work a directory holds."""
UNKNOWN = "unknown"
"""Instead of a fingerprint that is missing or can't be read."""


def noted(directory: Path) -> str | None:
    """The fingerprint of the request whose unfinished work a directory holds, or :data:`UNKNOWN`; None for no work."""
    try:
        return files.read_regular(directory / "fingerprint", FINGERPRINT_LIMIT, "fingerprint").decode("ascii")
    except (MechintError, UnicodeDecodeError):
        empty = not os.path.lexists(directory) or (directory.is_dir() and not any(directory.iterdir()))
        return None if empty else UNKNOWN


def manifest(**facts: Any) -> dict[str, Any]:
    """Records what is needed to understand and repeat a run: command, versions, git state, machine; and ``facts``."""
    return {
        "mechint": __version__,
        "argv": sys.argv,
        "packages": packages(),
        "processor": processor(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy", "transformers", "matplotlib")},
        },
        "git": git_state(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **facts,
    }


def packages() -> list[str]:
    """``NAME==VERSION`` of every installed package, in the alphabet's order."""
    found = {(str(one.metadata["Name"]).lower(), str(one.version)) for one in distributions() if one.metadata["Name"]}
    return [f"{name}=={number}" for name, number in sorted(found)]


@functools.cache
def processor() -> str:
    """The model of the processor, as the system names it; its kind where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # no Linux
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


MOST_NAMED = 50
"""Untracked files of a checkout that a manifest names; of more it has the number."""


def git_state() -> dict[str, Any] | None:
    """Commit of the library's checkout, whether it has uncommitted changes, and its untracked files; None outside a
    checkout."""
    root = Path(__file__).resolve().parents[1]
    ask = lambda *words: subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
    try:
        commit, status = ask("rev-parse", "HEAD"), ask("status", "--porcelain", "-z", "--no-renames")
    except FileNotFoundError:  # no git on this machine
        return None
    if commit.returncode or status.returncode:
        return None
    entries = [entry for entry in status.stdout.split("\0") if entry]
    untracked = sorted(entry[3:] for entry in entries if entry.startswith("??"))
    return {
        "commit": commit.stdout.strip(),
        "changed": len(untracked) < len(entries),
        "untracked": untracked[:MOST_NAMED],
        "untracked_count": len(untracked),
    }


def check_writable(directory: str | Path, setting: str = "", dry: bool = False) -> None:
    """Raises :class:`MechintError` before any work when results could not be written.

    Args:
        directory: The directory to test; nothing is left there.
        setting: Option with which the user chooses it.
        dry: Go by the permissions alone, and write nothing.
    """
    made = [path for path in (Path(directory).absolute(), *Path(directory).absolute().parents) if not path.exists()]
    setting = setting or named("", "output_dir")
    existing = made[-1].parent if made else Path(directory).absolute()
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise MechintError(f"{directory} can't be written to; choose another directory with {setting}")
    if dry:
        return
    try:
        files.write_text(Path(directory) / ".writable", "")
        (Path(directory) / ".writable").unlink()
        files.remove_empty(made)
    except OSError as error:
        raise MechintError(f"{directory} can't be written to ({error.strerror}); choose another {setting}") from None
