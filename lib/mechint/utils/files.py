"""Files that are whole or absent, hashes, and the lock that keeps two runs out of one directory.

One file: a run directory is made, held and taken away by one set of rules.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import platform
import re
import shutil
import stat
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from .errors import MechintError, short, shown

JSON_LIMIT = 500_000_000
"""Bytes that are read of a JSON file at the most."""
JSON_DEPTH = 64
"""Levels of lists and objects inside each other that a JSON file may have."""


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Writes ``data`` under a temporary name beside ``path``, syncs it, and renames: whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is None:  # write() and fsync() do not say which file
            error.filename = str(path)
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: str | Path, text: str) -> Path:
    return write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any) -> Path:
    """JSON with sorted keys and no NaN: a number that was not measured must not be written."""
    return write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def refuse_constant(name: str) -> Any:
    """Raises :class:`ValueError`: ``NaN`` and infinities are no JSON."""
    raise ValueError(f"{name} is not a JSON number")


def read_json(
    path: str | Path,
    advice: str = "delete it and run again",
    limit: int = JSON_LIMIT,
    constant: Callable[[str], Any] = refuse_constant,
) -> Any:
    """The value of a JSON file, strictly (:func:`parse_json`).

    Args:
        advice: Advice for a file that is not JSON.
        constant: As for :func:`parse_json`.

    Raises:
        MechintError: as for :func:`read_regular` and :func:`parse_json`.
    """
    try:
        text = read_regular(path, limit, "JSON file").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MechintError(f"{path} is not valid JSON: byte {error.start} is not UTF-8; {advice}") from None
    return parse_json(text, str(path), advice, constant)


def parse_json(
    text: str,
    where: str,
    advice: str = "delete it and run again",
    constant: Callable[[str], Any] = refuse_constant,
) -> Any:
    """The value of a JSON text, strictly: what comes back can be printed, compared and computed with.

    Args:
        where: The file (and line), for messages.
        constant: Gives the value of ``NaN``, ``Infinity`` or ``-Infinity``, which JSON does not have.

    Raises:
        MechintError: the text is not JSON, is nested deeper than :data:`JSON_DEPTH`, holds NaN, an infinite number or
            a whole number beyond 64 bits, half of a surrogate pair, or one key twice with two values.
    """
    try:
        value = json.loads(
            text, parse_constant=constant, parse_int=_whole, parse_float=_finite, object_pairs_hook=_once
        )
        _check_json(value)
    except RecursionError:
        raise MechintError(f"{where} is not valid JSON: nested deeper than {JSON_DEPTH} levels; {advice}") from None
    except ValueError as error:
        raise MechintError(f"{where} is not valid JSON: {short(error)}; {advice}") from None
    return value


def _whole(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= (number := int(digits)) < 2**64:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return number


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{shown(digits, 30)} is too large a number")
    return number


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found and found[name] != value:
            raise ValueError(f"the key {shown(name)} is there twice, with two values")
        found[name] = value
    return found


def _check_json(value: Any) -> None:
    """Raises where a value is nested too deep or holds half of a surrogate pair, which can't be printed."""
    level = [[value]]
    for _ in range(JSON_DEPTH + 1):
        below: list[Any] = []
        for container in level:
            for item in container:
                if isinstance(item, str) and not item.isascii():
                    item.encode()
                elif isinstance(item, dict):
                    below += [list(item), list(item.values())]
                elif isinstance(item, list):
                    below.append(item)
        if not below:
            return
        level = below
    raise RecursionError


NO_FAULT_OF_A_FILE = (MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit)
"""Errors of a reader that say nothing about the file."""


@contextlib.contextmanager
def reading(path: str | Path, advice: str = "copy or download it again") -> Iterator[None]:
    """Turns every exception of a reader of ``path`` into one line that names the file; :class:`MechintError` passes.

    Raises:
        MechintError: something else than :class:`MechintError` or a lack of memory was raised inside.
    """
    try:
        yield
    except (MechintError, *NO_FAULT_OF_A_FILE):
        raise
    except OSError as error:
        raise MechintError(f"{short(path)} can't be read ({error.strerror or error}); name another file") from None
    except BaseException as error:  # readers raise many types for broken files; Rust panics are no Exception
        reason = short(next(iter(str(error).splitlines()), ""))
        raise MechintError(
            f"{path} is cut short or damaged ({type(error).__name__}{': ' * bool(reason)}{reason}); {advice}"
        ) from None


def check_regular(path: str | Path, limit: int | None, what: str, remedy: str = "name another file") -> int:
    """The size in bytes of a regular file; a FIFO or a device, which may never end, is refused without a wait.

    Args:
        limit: The most bytes there may be; None for any number.
        what: Expected kind of the file, for messages.
        remedy: Advice if it is not of that kind, for messages.

    Raises:
        MechintError: there is no such file, it is not a regular file, it is larger than ``limit``, or it may not be
            read.
    """
    name = short(path)
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise MechintError(f"{what} {name}: no such file; {remedy}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise MechintError(f"{what} {name} can't be read ({reason}); {remedy}") from None
    try:
        status = os.fstat(handle)
    finally:
        os.close(handle)
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a pipe, a device or a socket"
        raise MechintError(f"{what} {name} is {kind}, not a regular file; {remedy}")
    if limit is not None and status.st_size > limit:
        raise MechintError(f"{what} {name} has {status.st_size} bytes; at most {limit} are read, so give a smaller one")
    return status.st_size


def read_regular(path: str | Path, limit: int, what: str, remedy: str = "name another file") -> bytes:
    """The bytes of a regular file of at most ``limit`` bytes; see :func:`check_regular` for what is refused."""
    check_regular(path, limit, what, remedy)
    with open(path, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise MechintError(f"{what} {short(path)} has more than {limit} bytes; give a smaller one")
    return data


def write_torch(path: str | Path, value: Any) -> Path:
    """``torch.save`` through a buffer: whole or not at all, and the same bytes whatever the file is called."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return write_bytes(path, buffer.getvalue())


def read_torch(path: str | Path, what: str, remedy: str) -> Any:
    """The plain values and tensors of a ``.pt`` file, on the CPU; a file that would run code is refused.

    Args:
        what: Expected kind of the file, for messages.
        remedy: Advice if it is not of that kind.

    Raises:
        MechintError: it is missing, no regular file, cut short, damaged, or holds something else.
    """
    check_regular(path, None, what, remedy)
    with reading(path, remedy):
        return torch.load(path, map_location="cpu", weights_only=True)


SEAL = 64
"""Bytes at the end of a sealed file: the SHA-256 of its name, its owner and all before, in hexadecimal digits."""


def write_sealed(path: str | Path, value: Any, owner: str = "") -> Path:
    """:func:`write_torch` with a hash at the end, by which :func:`read_sealed` knows that nothing has changed.

    Args:
        owner: Owner of the value, such as a fingerprint of all that it depends on.
    """
    buffer = io.BytesIO()
    torch.save(value, buffer)
    digest = _begun(path, owner)
    digest.update(buffer.getbuffer())
    buffer.write(digest.hexdigest().encode())
    return write_bytes(path, buffer.getvalue())


def read_sealed(path: str | Path, owner: str = "") -> Any:
    """The value that :func:`write_sealed` wrote under this very name for this owner.

    Raises:
        MechintError: it is not a regular file, or not what was written: cut short, changed or something else.
    """
    left = size = check_regular(path, None, "unfinished work", "delete it and run again") - SEAL
    digest = _begun(path, owner)
    with open(path, "rb") as file:
        while block := file.read(max(0, min(1 << 20, left))):
            digest.update(block)
            left -= len(block)
        if size <= 0 or file.read() != digest.hexdigest().encode():
            raise MechintError(f"{short(path)} is cut short or damaged; delete it and run again")
    with reading(path):
        return torch.load(path, weights_only=True)


def _begun(path: str | Path, owner: str) -> Any:
    return hashlib.sha256(f"{Path(path).name}\n{owner}\n".encode())


def remove(path: Path) -> None:
    """Removes a file, or a directory with all that is in it; what is not there is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_directory(directory: Path, marker: str | None, what: str) -> Iterator[Path]:
    """A temporary directory that takes the place of ``directory`` when all is written: whole or absent.

    Args:
        marker: A file that every ``what`` has; None if none may be replaced.

    Raises:
        MechintError: ``directory`` holds files but not the file ``marker``, or others than are written now: it is not a
            ``what``, and nothing in it is touched.
    """
    elsewhere = MechintError(f"{directory} holds files that are not a {what}; choose another directory")
    ours = marker is not None and (directory / marker).is_file()
    if directory.exists() and any(directory.iterdir()) and not ours:
        raise elsewhere
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary, aside = (Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}.")) for _ in range(2))
    try:
        yield temporary
        temporary.chmod(0o755)
        for path in (path for path in temporary.rglob("*") if path.is_file()):
            path.chmod(0o644)
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        if directory.exists():
            if not {path.name for path in directory.iterdir()} <= {path.name for path in temporary.iterdir()}:
                raise elsewhere
            os.replace(directory, aside)  # not removed before the new one is there
        os.replace(temporary, directory)
    except OSError as error:
        if error.filename is not None:
            error.filename = str(error.filename).replace(str(temporary), str(directory))
        raise
    finally:
        if not directory.exists() and any(aside.iterdir()):
            os.replace(aside, directory)
        for path in (temporary, aside):
            shutil.rmtree(path, ignore_errors=True)


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Writes a safetensors file inside :func:`whole_directory`.

    Raises:
        OSError: it could not be written; the library's own error is another one.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, path)
    except SafetensorError as error:
        if (number := re.search(r"\(os error (\d+)\)", str(error))) is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def sha256(path: str | Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(file)


def _sha256(file: Any) -> str:  # Python 3.10 has no file_digest
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def nothing_left(directory: str | Path) -> Iterator[None]:
    """Takes a directory, and those above it, away again where work that made it fails before it wrote a file."""
    made = [path for path in (Path(directory), *Path(directory).parents) if not path.exists()]
    try:
        yield
    except BaseException:
        written = (name for _, _, names in os.walk(directory) for name in names if name not in (LOCK, LEASE))
        if made and next(written, None) is None:
            shutil.rmtree(directory, ignore_errors=True)
            remove_empty(made)
        raise


def remove_empty(directories: Iterable[Path]) -> None:
    """Removes directories, the innermost first, up to one that holds something."""
    for path in directories:
        try:
            path.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            break


LOCK, LEASE = ".lock", ".lease"
BEAT, STALE = 20.0, 120.0
"""Seconds between two signs of life of a holder, and after which one without a sign of life has ended."""
_held: set[Path] = set()
"""Directories that this process holds."""


@contextlib.contextmanager
def lock(directory: str | Path, again: bool = False) -> Iterator[None]:
    """Holds ``directory`` for this process; another process, of this machine or another one, is refused at once.

    Two things together: a lock of the kernel, which it drops when the process ends, however it ends; and a file that
    only one process can make (``.lease``), which holds on shared file systems where the kernel's lock is each machine's
    own. A process that was killed leaves that file: on its machine the next holder takes it over at once, since the
    kernel's lock is free; elsewhere when it has shown no sign of life for :data:`STALE` seconds.

    Args:
        again: Enter at once where this process holds the directory already.
    """
    directory = Path(directory)
    place = Path(os.path.abspath(directory))
    if again and place in _held:
        yield
        return
    with nothing_left(directory), _locked(directory) as locked, _leased(directory, locked):
        _held.add(place)
        try:
            yield
        finally:
            _held.discard(place)


def _refused(directory: Path, where: str = "") -> MechintError:
    return MechintError(
        f"another run{where} is writing to {directory}; wait for it, or choose another output directory"
    )


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[bool]:
    """Holds the kernel's lock; yields False on a system or a file system that has none, where the lease holds alone."""
    locked = True
    directory.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows
        yield False
        return
    with open(os.open(directory / LOCK, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK, 0o666), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise _refused(directory) from None
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            locked = False
        yield locked


def _machine() -> str:
    """The name of this machine since it was started, by which another one of the same name is told apart."""
    try:
        started = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # no Linux
        started = ""
    return f"{platform.node()} {started}".strip()


@contextlib.contextmanager
def _leased(directory: Path, locked: bool) -> Iterator[None]:
    path = directory / LEASE
    own = f"{_machine()}\n{os.getpid()} {uuid.uuid4().hex}\n"
    _take(directory, path, own, locked)
    ended = threading.Event()

    def live() -> None:
        while not ended.wait(BEAT):
            with contextlib.suppress(OSError):  # the next sign of life may come through
                os.utime(path)

    beating = threading.Thread(target=live, name="lease", daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        with contextlib.suppress(OSError):
            if path.read_text() == own:
                path.unlink()


def _take(directory: Path, path: Path, own: str, locked: bool) -> None:
    """Makes the lease, or takes over that of a process that has ended; ``locked`` says that none of this machine lives.

    Raises:
        MechintError: another process holds it.
    """
    for _ in range(3):
        try:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "w") as file:
                file.write(own)
            return
        except FileExistsError:
            pass
        try:
            theirs, age = path.read_text(errors="replace"), _age(path)
        except FileNotFoundError:  # its holder has just ended
            continue
        machine = theirs.partition("\n")[0]
        if age < STALE and machine != _machine():
            raise _refused(directory, f" on {machine.partition(' ')[0] or 'another machine'}")
        if age < STALE and not locked and _lives(theirs):
            raise _refused(directory)
        aside = path.with_name(f"{LEASE}.{uuid.uuid4().hex}")
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, aside)  # of several that take over one alone succeeds
            if aside.read_text(errors="replace") != theirs:  # a new holder's, made since it was read
                os.rename(aside, path)
                raise _refused(directory)
            aside.unlink()
    raise _refused(directory)


def _lives(lease: str) -> bool:
    """True if the process of this machine that wrote a lease has not ended."""
    number = lease.partition("\n")[2].partition(" ")[0]
    if not number.isdecimal() or int(number) == os.getpid():
        return False
    try:
        os.kill(int(number), 0)
    except OSError as error:
        return error.errno == errno.EPERM  # another user's
    return True


def _age(path: Path) -> float:
    """Seconds since a file was touched, by the clock of its file system."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".clock.") as now:
        return os.stat(now.name).st_mtime - path.stat().st_mtime


def each_once(paths: Iterable[Path]) -> list[Path]:
    """The paths of different files or directories, in order of their names; of several that lead to one, the one that
    is no link, or else the first."""
    kept: dict[tuple[int, int], Path] = {}
    links = lambda path: sum(part.is_symlink() for part in (path, *path.parents))
    for path in sorted(paths, key=lambda path: (links(path), natural_key(str(path)))):
        status = path.stat()
        kept.setdefault((status.st_dev, status.st_ino), path)
    return sorted(kept.values(), key=lambda path: natural_key(str(path)))


def natural_key(text: str) -> tuple[list[str | int], str]:
    """Sorts numbers in names as numbers: step2 before step10, V2 before V10."""
    parts = re.split(r"(\d+)", text)  # text and digits alternate, so equal places have equal types
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], text
