"""Dictionaries and transcoders that are there already: all of a directory, and one dictionary for each site."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ... import sae
from ...interventions.model import Model
from ...models.loading.hub import path_exists
from ...sae import SparseAutoencoder, Transcoder
from ...sae.formats.circuit_tracer import CONFIG
from ...sae.formats.detect import FILES, directories, hub_folder, locate
from ...sae.formats.saelens import CONFIG as SAE_LENS
from ...sae.formats.transcoders import is_transcoder
from ...utils import files
from ...utils.errors import MechintError, did_you_mean
from ...utils.options import listed, named
from .evaluation import SEQUENTIAL
from .reading import best_at

GIVEN = (*FILES, (CONFIG,))
"""The files of a dictionary, a transcoder or a set of transcoders, format by format."""


def load_all(directory: str | Path, flatten: str = "all", model: Model | None = None) -> dict[str, SparseAutoencoder]:
    """:func:`load_given` where dictionaries of one site alone are of use.

    Raises:
        MechintError: as there, or one is a transcoder.
    """
    top, found = folder(locate(directory, GIVEN)), dict[str, SparseAutoencoder]()
    for path in (top, *directories(top)):
        if is_set(path) or is_transcoder(path):
            raise MechintError(
                f"{directory}: {path.name} is of transcoders, which write another site than they read, and a circuit "
                f"replaces latents where they are read; take dictionaries of one site, or read these with "
                f"{named('sae', 'dictionaries')} or sae.load_transcoder"
            )
    for name, one in load_given(directory, flatten, model).items():
        assert isinstance(one, SparseAutoencoder)
        found[name] = one
    return found


def is_set(directory: Path) -> bool:
    """True if a directory is a set of transcoders of circuit-tracer."""
    return (directory / CONFIG).is_file() and not (directory / SAE_LENS).is_file()


def load_given(
    directory: str | Path, flatten: str = "all", model: Model | None = None, layers: Collection[int] | None = None
) -> dict[str, SparseAutoencoder | Transcoder]:
    """Every dictionary and transcoder in a directory, or the one it is; or the one of a hub id.

    Args:
        directory: Directory, or a hub id as :func:`mechint.sae.load` takes it.
        flatten: Rule that flattens the axes of its site, if the dictionary's own file does not say.
        model: Model whose sites the dictionaries of other libraries are attached to.
        layers: Layers that are read of a set with a transcoder for each; None for all.

    Raises:
        MechintError: there is none, or one can't be read.
    """
    top, found = folder(locate(directory, GIVEN)), dict[str, SparseAutoencoder | Transcoder]()
    if is_set(top):
        found = {f"layer_{layer}": one for layer, one in sae.load_transcoders(top, layers).items()}
    for path in [] if found else directories(top):
        name = name_of(path, directory)
        if is_transcoder(path):
            found[name] = sae.load_transcoder(path)
            continue
        dictionary = sae.load(path)
        dictionary.config = replace(dictionary.config, flatten=dictionary.config.flatten or flatten)
        found[name] = dictionary
    if not found:
        raise MechintError(f"{directory} holds no dictionary (no cfg.json in it or below it); train a grid first")
    if model is None:
        return found
    return {name: at_site(name, one, model) for name, one in found.items()}


def name_of(path: Path, asked: str | Path) -> str:
    """The name of a dictionary: that of its directory, or of its folder on the hub."""
    found = None if path_exists(asked) else hub_folder(str(asked))
    return path.name if found is None else found[1].replace("/", "-") or found[0].rpartition("/")[2]


def at_site(name: str, dictionary: SparseAutoencoder | Transcoder, model: Model) -> SparseAutoencoder | Transcoder:
    """The dictionary; attached to the model where its file is of another library, and every transcoder.

    Raises:
        MechintError: it does not fit the model, or a transcoder writes what the forward makes position by position or
            comes before what it reads.
    """
    if isinstance(dictionary, Transcoder):
        try:
            at = dictionary.attach(model)
        except MechintError as error:
            raise MechintError(f"transcoder {name}: {error}") from None
        c, order = at.config, list(model.sites)
        if c.site_out.rpartition(".")[2] in SEQUENTIAL or order.index(c.site) >= order.index(c.site_out):
            raise MechintError(
                f"transcoder {name} reads {c.site} and writes {c.site_out}; what is written must come behind what is "
                f"read, and be no state, to be replaced by what the transcoder makes of it"
            )
        return at
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
