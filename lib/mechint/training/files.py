"""The files of a training run: the run that they belong to, the state that a killed run resumes from, and the cases in
which they must not be touched."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..utils import files
from ..utils.errors import MechintError
from ..utils.options import named
from .options import TrainConfig

OTHERWISE = {"data": "another text", "imposed": "another way to impose a circuit"}
"""Words for the parts of a recipe that no option names."""


@dataclass(frozen=True)
class Paths:
    """The files of one training run."""

    final: Path
    best: Path
    metrics: Path
    resume: Path
    """The state from which a killed run resumes; not a checkpoint, and removed when training ends."""
    trajectory: Path
    """Directory of the checkpoints on the way, where they are kept."""

    @staticmethod
    def of(config: TrainConfig) -> Paths:
        name, directory = config.step_name, Path(config.output_dir)
        if not name or "/" in name or name.startswith("."):
            raise MechintError(f"{named('train', 'step_name')} is {name!r}; give a name without '/' such as V0")
        return Paths(
            directory / f"final_model_step{name}.pt",
            directory / f"best_model_step{name}.pt",
            directory / f"training_metrics_step{name}.json",
            directory / f"step{name}.resume.pt",
            directory / f"trajectory_step{name}",
        )


def inspect(paths: Paths, recipe: dict[str, Any]) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The finished checkpoint and the state to resume from, where they exist; ``recipe`` is what the run is to do.

    Raises:
        MechintError: a file of this run's name was made by another recipe, or can't be read.
    """
    found = {}
    for path in (paths.final, paths.best, paths.resume):
        if path.exists():
            found[path] = read(path)
            theirs = found[path].get("recipe") or found[path].get("config")
            refuse_other_recipe(path, theirs if isinstance(theirs, dict) else {}, recipe)
    return found.get(paths.final), found.get(paths.resume)


def read(path: Path) -> dict[str, Any]:
    files.check_regular(path, None, "checkpoint", "delete it and run again")
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:  # the file may be intact, so it must not be deleted
        raise
    except OSError as error:  # likewise: no permission, or a missing disk
        raise MechintError(f"{path} can't be read ({error.strerror or error}); nothing was overwritten") from error
    except Exception as error:  # torch raises a different type for every way in which a file can be broken
        raise MechintError(f"{path} can't be read ({type(error).__name__}); delete it and run again") from error
    if not isinstance(value, dict):
        raise MechintError(
            f"{path} was not made by this trainer; move it away, or choose another {named('train', 'output_dir')}"
        )
    return value


def refuse_other_recipe(path: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Raises :class:`MechintError` that names the options which differ."""
    different = []
    for group, wanted in ours.items():
        had = theirs.get(group)
        if isinstance(wanted, dict):
            known = had if isinstance(had, dict) else {}
            different += [
                f"{named(group, name)} {known.get(name, '(none)')}, not {value}"
                for name, value in wanted.items()
                if name not in known or known[name] != value
            ]
        elif had != wanted:
            different.append(OTHERWISE.get(group, f"--{group} {had}, not {wanted}"))
    if different:
        more = f" and {len(different) - 3} more differences" if len(different) > 3 else ""
        raise MechintError(
            f"{path} was trained with {'; '.join(different[:3])}{more}. Nothing was overwritten: choose another "
            f"{named('train', 'step_name')} or {named('train', 'output_dir')}, or delete it to train anew"
        )


def plain(value: Any) -> Any:
    """A copy in which no two strings are one object by accident: pickles of equal values are then equal bytes."""
    return json.loads(json.dumps(value))
