"""Finds the checkpoints that a path, a glob or a hub id names, in the order a reader would list them."""

from __future__ import annotations

import functools
import glob
import sys
from collections.abc import Iterable
from pathlib import Path

from ...utils.errors import MechintError
from ...utils.files import each_once
from ...utils.options import named
from .checkpoints import WEIGHTS, has_name_of_checkpoint, is_checkpoint_file, is_model_directory, refuse_masks
from .hub import at_home, is_hub_id, refuse_dangling, refuse_missing_path, todays_name


def find_checkpoints(pattern: str) -> list[str]:
    """Lists the checkpoints that ``pattern`` names, in natural order; no weights are read.

    Args:
        pattern: A checkpoint file, a glob, a model directory, a directory of checkpoints (masks and trainers' states
            to resume from are passed over), or a hub id.

    Raises:
        MechintError: nothing matches, or what does is a finished analysis.
    """
    path = at_home(pattern)
    if path.is_dir():
        return _in_directory(path)
    if path.is_file():
        refuse_masks(path)
        return [str(path)]
    if glob.has_magic(pattern):
        matches = [Path(match) for match in glob.glob(str(path), recursive=True)]
        found = _checkpoints(matches)
        if found:
            return _sorted(found)
        if matches:
            raise MechintError(f"{pattern} matches {len(matches)} paths, none of them a checkpoint ({matches[0]} …)")
        raise MechintError(
            f"no checkpoint matches {pattern}; train one with make train, or name others with {named('', 'checkpoint')}"
        )
    refuse_missing_path(pattern)
    if is_hub_id(pattern):
        return [pattern]
    raise MechintError(
        f"{pattern}: no such file or directory; name a file, a glob or a directory with {named('', 'checkpoint')}"
        f"{todays_name(pattern)}"
    )


def _in_directory(path: Path) -> list[str]:
    if is_model_directory(path):
        return [str(path)]
    refuse_masks(path)
    found = _checkpoints(path.iterdir())
    if not found:
        what = (
            "a config.json but no weights"
            if (path / "config.json").is_file()
            else "no checkpoint (*.pt, *.safetensors)"
        )
        raise MechintError(f"{path} holds {what}; name a file, a glob or a directory with {named('', 'checkpoint')}")
    return _sorted(found)


def _checkpoints(paths: Iterable[Path]) -> list[Path]:
    """Those of some paths that are checkpoints.

    Raises:
        MechintError: one has the name of a checkpoint and is a link to nothing, so that one would be missing unsaid.
    """
    found = []
    for path in paths:
        if is_checkpoint_file(path) or (path.is_dir() and is_model_directory(path)):
            found.append(path)
        elif has_name_of_checkpoint(path):
            refuse_dangling(path)
    return found


def _sorted(paths: list[Path]) -> list[str]:
    """The paths of different checkpoints; of links to one another, one is taken, and it is said which are left out."""
    inside = {path / name for path in paths if path.is_dir() for name in WEIGHTS}
    found = [path for path in dict.fromkeys(paths) if path not in inside]  # a glob finds a model's directory and files
    once = each_once(found)
    for path in sorted(set(found) - set(once)):
        same = next(other for other in once if other.samefile(path))
        say_once(f"note: {path} is the same checkpoint as {same}, and is analysed once")
    return list(map(str, once))


@functools.cache
def say_once(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
