"""Reads a dictionary's directory, whichever library wrote it; the files in it say which."""

from __future__ import annotations

from pathlib import Path

from ...utils.errors import MechintError
from ..base import SparseAutoencoder
from . import dictionary_learning, saelens, sparsify

WEIGHTS = {
    saelens.WEIGHTS: saelens.load,
    sparsify.WEIGHTS: sparsify.load_sparsify,
    dictionary_learning.WEIGHTS: dictionary_learning.load_dictionary_learning,
}
"""Readers by the name of the weights' file."""


def load(directory: str | Path) -> SparseAutoencoder:
    """Reads a dictionary of mechint, SAELens, sparsify or dictionary_learning; frozen and in raw units.

    Raises:
        MechintError: the directory has weights of no format or of several, or is refused by its format.
    """
    found = [name for name in WEIGHTS if (Path(directory) / name).is_file()]
    if len(found) > 1:
        raise MechintError(f"{directory} has {' and '.join(found)}, which are two dictionaries; keep one of them")
    return WEIGHTS[found[0] if found else saelens.WEIGHTS](directory)


def directories(top: Path) -> list[Path]:
    """The directory itself, if it is a dictionary, or those directly below it that are."""
    configs = (saelens.CONFIG, dictionary_learning.CONFIG)
    holds = lambda path: any((path / name).is_file() for name in configs)
    if (top / saelens.CONFIG).is_file() or (top / dictionary_learning.WEIGHTS).is_file():
        return [top]
    return sorted({path.parent for name in configs for path in top.glob(f"*/{name}") if holds(path.parent)})
