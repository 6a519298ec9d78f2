"""Names say what the dictionaries of a run are: on pages, in figures, tables, terminal lines and at W&B."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """Names of the dictionaries of one run.

    Attributes:
        title: Title of the run.
        one, many: A dictionary of the run, and several.
    """

    title: str
    one: str
    many: str


AUTOENCODERS = Kind("Sparse autoencoders", "dictionary", "dictionaries")
TRANSCODERS = Kind("Transcoders", "transcoder", "transcoders")
BOTH = Kind("Sparse autoencoders and transcoders", "dictionary", "dictionaries")


def kind_of(transcoders: Iterable[bool]) -> Kind:
    """The names of a run's dictionaries; ``transcoders`` says of each whether it is one."""
    found = set(transcoders)
    return BOTH if len(found) == 2 else TRANSCODERS if True in found else AUTOENCODERS


def architecture_in_words(architecture: str) -> str:
    """The architecture of a results' entry, and what it is of: ``topk transcoders``, ``batch_topk dictionaries``."""
    plain = architecture.removesuffix("_transcoder")
    return f"{plain} {(AUTOENCODERS if plain == architecture else TRANSCODERS).many}"
