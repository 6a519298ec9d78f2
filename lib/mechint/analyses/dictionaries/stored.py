"""Dictionaries that are there already: all of a directory, and one for each site."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ... import sae
from ...interventions.model import Model
from ...models.loading.hub import path_exists
from ...sae import SparseAutoencoder
from ...sae.formats.detect import directories, hub_folder, locate
from ...utils import files
from ...utils.errors import MechintError, did_you_mean
from ...utils.options import listed
from .reading import best_at


def load_all(directory: str | Path, flatten: str = "all", model: Model | None = None) -> dict[str, SparseAutoencoder]:
    """Every dictionary in a directory, or the one it is; or the one of a hub id.

    Args:
        directory: Directory, or a hub id as :func:`mechint.sae.load` takes it.
        flatten: Rule that flattens the axes of its site, if the dictionary's own file does not say.
        model: Model whose sites the dictionaries of other libraries are attached to.

    Raises:
        MechintError: there is none, or one can't be read.
    """
    top = folder(locate(directory))
    paths = directories(top)
    if not paths:
        raise MechintError(f"{directory} holds no dictionary (no cfg.json in it or below it); train a grid first")
    found = {name_of(path, directory): sae.load(path) for path in paths}
    for dictionary in found.values():
        dictionary.config = replace(dictionary.config, flatten=dictionary.config.flatten or flatten)
    if model is None:
        return found
    return {name: at_site(name, dictionary, model) for name, dictionary in found.items()}


def name_of(path: Path, asked: str | Path) -> str:
    """The name of a dictionary: that of its directory, or of its folder on the hub."""
    found = None if path_exists(asked) else hub_folder(str(asked))
    return path.name if found is None else found[1].replace("/", "-") or found[0].rpartition("/")[2]


def at_site(name: str, dictionary: SparseAutoencoder, model: Model) -> SparseAutoencoder:
    """The dictionary; attached to the model where its file is of another library."""
    if not dictionary.centred and (dictionary.config.site in model.sites or not dictionary.config.site):
        return dictionary
    try:
        return sae.attach(dictionary, model)
    except MechintError as error:
        raise MechintError(f"dictionary {name}: {error}") from None


def folder(directory: str | Path) -> Path:
    """Directories of the dictionaries of a run, or of a directory of dictionaries."""
    top = Path(directory)
    return top / "dictionaries" if (top / "dictionaries").is_dir() else top


def one_for_each_site(
    directory: str | Path, names: str, flatten: str = "all", model: Model | None = None
) -> dict[str, SparseAutoencoder]:
    """The dictionaries that ``names`` chooses, by name, one of each site.

    Args:
        directory: Directory of a finished analysis of dictionaries, or of dictionaries.
        names: Names or shell patterns, separated by commas; empty takes of each site the one that loses the model
            least, as the analysis beside the dictionaries measured it.
        flatten, model: As for :func:`load_all`.

    Raises:
        MechintError: no dictionary has such a name, several of one site are left, or one says no site.
    """
    every = load_all(directory, flatten, model)
    chosen = chosen_of(every, names) if names else best_of(every, directory)
    by_site: dict[str, list[str]] = {}
    for name in chosen:
        site = every[name].config.site
        if not site:
            raise MechintError(f"dictionary {name} does not say of which site it is; save it with its site")
        by_site.setdefault(site, []).append(name)
    for site, several in by_site.items():
        if len(several) > 1:
            raise MechintError(f"{site} has several dictionaries ({', '.join(several)}); name the one to take")
    return {name: every[name] for name in chosen}


def chosen_of(every: Mapping[str, Any], names: str) -> list[str]:
    found: set[str] = set()
    for pattern in listed(names):
        mine = fnmatch.filter(every, pattern)
        if not mine:
            raise MechintError(f"no dictionary {pattern!r}{did_you_mean(pattern, every)}; there are {', '.join(every)}")
        found.update(mine)
    return [name for name in every if name in found]


def best_of(every: dict[str, SparseAutoencoder], directory: str | Path) -> list[str]:
    """The dictionary of each site that loses the model least; without that measurement all that were trained whole."""
    top = Path(directory)
    results = next((path for path in (top, top.parent) if (path / "results.json").is_file()), None)
    members: list[dict[str, Any]] = files.read_json(results / "results.json")["sae"]["members"] if results else []
    named = {member["name"] for member in members}
    if not named >= set(every):
        return [name for name, dictionary in every.items() if not dictionary.config.baseline]
    return [name for site in {member["site"]: None for member in members} for name in best_at(members, site, 1)]
