"""The files of a training run: the run that they belong to, the state that a killed run resumes from, and the cases in
which they must not be touched."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from ..models.loading.checkpoints import NOTES, WEIGHTS, read_config, read_notes
from ..utils import files
from ..utils.errors import MechintError
from ..utils.options import named
from .options import TrainConfig

FIRST = WEIGHTS[0]
"""The weights of a directory."""
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
    suffix: str = ".pt"
    """End of a checkpoint's name; empty where it is a directory as transformers has them."""

    @staticmethod
    def of(config: TrainConfig, suffix: str = ".pt") -> Paths:
        name, directory = config.step_name, Path(config.output_dir)
        if not name or "/" in name or name.startswith("."):
            raise MechintError(f"{named('train', 'step_name')} is {name!r}; give a name without '/' such as V0")
        return Paths(
            directory / f"final_model_step{name}{suffix}",
            directory / f"best_model_step{name}{suffix}",
            directory / f"training_metrics_step{name}.json",
            directory / f"step{name}.resume.pt",
            directory / f"trajectory_step{name}",
            suffix,
        )

    @property
    def finished(self) -> bool:
        """True if the final checkpoint is there; a directory's weights come last."""
        return (self.final if self.suffix else self.final / FIRST).exists()

    def on_the_way(self, step: int) -> Path:
        """The checkpoint that stays of a step."""
        return self.trajectory / f"step{step:06}{self.suffix}"


def inspect(paths: Paths, recipe: dict[str, Any]) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The finished checkpoint and the state to resume from, where they exist; ``recipe`` is what the run is to do.

    Raises:
        MechintError: a file of this run's name was made by another recipe, or can't be read.
    """
    found: dict[Path, dict[str, Any]] = {}
    for path in (paths.final, paths.best, paths.resume):
        if path == paths.resume or paths.suffix:
            found |= {path: read(path)} if path.exists() else {}
        elif (path / FIRST).exists() or path.is_file():
            found[path] = read_directory(path)
        if path in found:
            theirs = found[path].get("recipe") or found[path].get("config")
            refuse_other_recipe(path, theirs if isinstance(theirs, dict) else {}, recipe)
    return found.get(paths.final), found.get(paths.resume)


def write_checkpoint(paths: Paths, path: Path, checkpoint: dict[str, Any], described: dict[str, Any]) -> None:
    """Writes a checkpoint: one file, or a directory as transformers has them.

    The weights of a directory are written last and at once, with all that is known of them in the file's header; until
    then there is no model in it.

    Args:
        path: One of ``paths``.
        checkpoint: ``model``, ``config`` and other plain values.
        described: The contents of ``config.json``, a part of that configuration.
    """
    if paths.suffix:
        files.write_torch(path, checkpoint)
    else:
        write_directory(path, checkpoint, described)


def write_directory(path: Path, checkpoint: dict[str, Any], described: dict[str, Any]) -> None:
    """Writes a checkpoint as a directory; arguments as of :func:`write_checkpoint`."""
    files.write_json(path / "config.json", finite(described))
    notes = {name: value for name, value in checkpoint["config"].items() if name not in described}
    others = {name: value for name, value in checkpoint.items() if name not in ("model", "config")}
    notes |= {name: value for name, value in others.items() if value != math.inf}  # a loss that is not there yet
    tensors = {name: tensor.contiguous().clone() for name, tensor in checkpoint["model"].items()}
    told = {"format": "pt", NOTES: json.dumps(notes, sort_keys=True, allow_nan=False)}
    files.write_bytes(path / FIRST, with_header(save(tensors), told))


def with_header(data: bytes, told: dict[str, str]) -> bytes:
    """The bytes of a safetensors file with these words in its header, in this order; the library's varies."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps({"__metadata__": told, **json.loads(data[8:end])}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the format asks for tensors at multiples of 8 bytes
    return len(header).to_bytes(8, "little") + header + data[end:]


def finite(value: Any) -> Any:
    """A copy with infinity as transformers writes it, since JSON has none."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return {"__float__": "Infinity"} if value == math.inf else value


def read_directory(path: Path) -> dict[str, Any]:
    """All that a checkpoint's directory says beside the weights."""
    notes = read_notes(path / FIRST) if path.is_dir() else {}
    if not notes:
        raise not_ours(path)
    return {**notes, "config": {**(read_config(path) or {}), **notes}}


def not_ours(path: Path) -> MechintError:
    return MechintError(
        f"{path} was not made by this trainer; move it away, or choose another {named('train', 'output_dir')}"
    )


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
        raise not_ours(path)
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
