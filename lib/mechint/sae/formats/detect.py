"""Reads a dictionary's directory, whichever library wrote it; the files in it say which."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ...models.loading.hub import fetch_folder, is_hub_id, path_exists, refuse_missing_path
from ...utils.errors import MechintError, short
from ..base import SparseAutoencoder
from . import dictionary_learning, gemma_scope, gemma_scope_2, saelens, sparsify, write_sae

WEIGHTS = {
    saelens.WEIGHTS: saelens.load,
    sparsify.WEIGHTS: sparsify.load_sparsify,
    dictionary_learning.WEIGHTS: dictionary_learning.load_dictionary_learning,
    gemma_scope.WEIGHTS: gemma_scope.load_gemma_scope,
    gemma_scope_2.WEIGHTS: gemma_scope_2.load_gemma_scope_2,
    **dict.fromkeys(write_sae.WEIGHTS, write_sae.load_write_sae),
}
"""Readers by the name of the weights' file."""
FILES = (
    (saelens.CONFIG, saelens.WEIGHTS),
    (sparsify.CONFIG, sparsify.WEIGHTS),
    (dictionary_learning.CONFIG, dictionary_learning.WEIGHTS),
    (gemma_scope.WEIGHTS,),
    (gemma_scope_2.CONFIG, gemma_scope_2.WEIGHTS),
    *((name,) for name in write_sae.WEIGHTS),
)
"""The files of a dictionary, format by format."""


def load(path_or_name: str | Path) -> SparseAutoencoder:
    """Reads a dictionary of mechint or of another library; frozen and in raw units.

    Args:
        path_or_name: Its directory, or its hub id: ``owner/name``, or ``owner/name:folder`` for a folder of it. Only
            the dictionary's own files are downloaded.

    Raises:
        MechintError: the directory has weights of no format or of several, or is refused by its format; there is no
            such folder on the hub, or the hub does not answer.
    """
    directory = locate(path_or_name)
    found = [name for name in WEIGHTS if (directory / name).is_file()]
    if len({WEIGHTS[name] for name in found}) > 1:
        raise MechintError(f"{directory} has {' and '.join(found)}, which are two dictionaries; keep one of them")
    return WEIGHTS[found[0] if found else saelens.WEIGHTS](directory)


def hub_folder(name: str) -> tuple[str, str] | None:
    """The repository and the folder that a hub id says, None for a name that is none."""
    repo, _, folder = name.partition(":")
    folder = folder.strip("/")
    if not is_hub_id(repo) or ".." in folder.split("/") or re.search(r"[\\\x00-\x1f?#%]", folder):
        return None
    return repo, folder


def locate(path_or_name: str | Path, files: Sequence[Sequence[str]] = FILES) -> Path:
    """The directory on this machine, fetched from the hub where the name is a hub id and not a path.

    Args:
        files: The names of files that go together, format by format.

    Raises:
        MechintError: there is no such directory, and the name is no hub id.
    """
    name = str(path_or_name)
    if path_exists(path_or_name):
        return Path(path_or_name).expanduser()
    refuse_missing_path(name)
    found = hub_folder(name)
    if found is None:
        raise MechintError(
            f"{short(name)}: no such directory, and not shaped like a hub id (owner/name or owner/name:folder)"
        )
    return fetch_folder(*found, files)


def directories(top: Path) -> list[Path]:
    """The directory itself, if it is a dictionary, or those directly below it that are."""
    configs = (saelens.CONFIG, dictionary_learning.CONFIG, gemma_scope.WEIGHTS, *write_sae.WEIGHTS)
    holds = lambda path: any((path / name).is_file() for name in configs)
    weights = (dictionary_learning.WEIGHTS, gemma_scope.WEIGHTS, gemma_scope_2.WEIGHTS, *write_sae.WEIGHTS)
    if any((top / name).is_file() for name in (saelens.CONFIG, *weights)):
        return [top]
    return sorted({path.parent for name in configs for path in top.glob(f"*/{name}") if holds(path.parent)})
