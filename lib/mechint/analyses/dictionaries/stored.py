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
from ...sae import SAEConfig, SparseAutoencoder, Transcoder
from ...sae.formats.circuit_tracer import CONFIG, read_set
from ...sae.formats.detect import FILES, directories, hub_folder, locate
from ...sae.formats.saelens import CONFIG as SAE_LENS
from ...sae.formats.transcoders import is_transcoder
from ...sae.transcoder import TranscoderConfig
from ...utils import files
from ...utils.errors import MechintError, did_you_mean
from ...utils.options import listed
from .evaluation import SEQUENTIAL
from .reading import best_at

GIVEN = (*FILES, (CONFIG,))
"""The files of a dictionary, a transcoder or a set of transcoders, format by format."""


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


def changed(config: SAEConfig | TranscoderConfig) -> str:
    """The site in whose place the reconstruction stands: of a transcoder the one that it writes."""
    return config.site_out if isinstance(config, TranscoderConfig) else config.site


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
) -> dict[str, SparseAutoencoder | Transcoder]:
    """The dictionaries and transcoders that ``names`` chooses, by name, one of each site that is changed.

    Args:
        directory: Directory of a finished analysis of dictionaries, or of dictionaries.
        names: Names or shell patterns, separated by commas; empty takes of each site the one that loses the model
            least, as the analysis beside the dictionaries measured it. A set with a transcoder for each layer
            (``layer_5``) is read at those layers alone.
        flatten, model: As for :func:`load_given`.

    Raises:
        MechintError: no dictionary has such a name, several of one site are left, or one says no site.
    """
    every = load_given(directory, flatten, model, layers_named(directory, names))
    chosen = chosen_of(every, names) if names else best_of(every, directory)
    by_site: dict[str, list[str]] = {}
    for name in chosen:
        site = changed(every[name].config)
        if not site:
            raise MechintError(f"dictionary {name} does not say of which site it is; save it with its site")
        by_site.setdefault(site, []).append(name)
    for site, several in by_site.items():
        if len(several) > 1:
            raise MechintError(f"{site} has several dictionaries ({', '.join(several)}); name the one to take")
    return {name: every[name] for name in chosen}


def layers_named(directory: str | Path, names: str) -> list[int] | None:
    """The layers that are read of a set of transcoders: those that ``names`` chooses; None for all.

    Raises:
        MechintError: no transcoder of the set has such a name.
    """
    top = folder(locate(directory, GIVEN))
    if not names or not is_set(top):
        return None
    by_name = {f"layer_{layer}": layer for layer in read_set(top).places}
    return [by_name[name] for name in chosen_of(by_name, names)]


def check_given(directory: str | Path, names: str) -> None:
    """Raises :class:`MechintError` where :func:`one_for_each_site` would, before there is a model."""
    load_given(directory, layers=layers_named(directory, names))


def chosen_of(every: Mapping[str, Any], names: str) -> list[str]:
    found: set[str] = set()
    for pattern in listed(names):
        mine = fnmatch.filter(every, pattern)
        if not mine:
            raise MechintError(f"no dictionary {pattern!r}{did_you_mean(pattern, every)}; there are {', '.join(every)}")
        found.update(mine)
    return [name for name in every if name in found]


def best_of(every: Mapping[str, SparseAutoencoder | Transcoder], directory: str | Path) -> list[str]:
    """The dictionary of each site that loses the model least; without that measurement all that were trained whole."""
    top = Path(directory)
    results = next((path for path in (top, top.parent) if (path / "results.json").is_file()), None)
    members: list[dict[str, Any]] = files.read_json(results / "results.json")["sae"]["members"] if results else []
    named = {member["name"] for member in members}
    if not named >= set(every):
        return [name for name, one in every.items() if isinstance(one, Transcoder) or not one.config.baseline]
    return [name for site in {member["site"]: None for member in members} for name in best_at(members, site, 1)]
