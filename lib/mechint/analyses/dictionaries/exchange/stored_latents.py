"""Reads the features of finished dictionaries, as their analysis wrote them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....report.finished import valid
from ....report.values import read_object
from ....report.words import gap, legible
from ....utils.errors import MechintError, shown
from ..features import SCHEMA
from ..stored import chosen_of

FOLDER = "features"
"""Features of the dictionaries of a run, below its directory; a file for each."""


@dataclass(frozen=True)
class Latents:
    """The features of one dictionary.

    Attributes:
        name: Name of the dictionary.
        directory: The run that they are of.
        raw: The run's results.json.
        site, d_sae, windows, tokens: Site and number of latents of the dictionary; size of the text.
        words: Text of each token by its id.
        rows: Token ids of each row of the text that is shown, by its number.
        features: The features by their number, as :func:`mechint.analyses.dictionaries.features.read_features` gives
            them.
    """

    name: str
    directory: Path
    raw: dict[str, Any]
    site: str
    d_sae: int
    windows: int
    tokens: int
    words: dict[int, str]
    rows: dict[int, list[int]]
    features: dict[int, dict[str, Any]]

    @property
    def layer(self) -> int:
        """The layer of the site; 0 for the embeddings."""
        return int(self.site.split(".")[1]) if self.site.startswith("layers.") else 0

    def text(self, ids: Sequence[int]) -> str:
        return gap(self.words.values()).join(self.words[token] for token in ids)

    def window(self, shown_: dict[str, Any]) -> tuple[list[int], list[float]]:
        """The token ids of a context, and the activation on each."""
        low, high = int(shown_["from"]), int(shown_["to"])
        values = {int(at): float(value) for at, value in shown_["acts"]}
        return self.rows[int(shown_["row"])][low:high], [values.get(at, 0.0) for at in range(low, high)]


def read_run(directory: str | Path, names: str = "") -> list[Latents]:
    """The dictionaries of a finished run whose features were read.

    Args:
        directory: The run directory.
        names: Names or patterns, separated by commas; empty for all.

    Raises:
        MechintError: no finished run, no features in it, no such name, or a file that is damaged or of a newer version.
    """
    top = Path(directory)
    raw = read_object(top / "results.json")
    paths = {
        path.stem: path for path in sorted((top / FOLDER).glob("*.json")) if not path.name.endswith(".causal.json")
    }
    if not paths:
        raise MechintError(
            f"{top} holds no features of a dictionary (no {FOLDER}/*.json); name a finished analysis of dictionaries "
            f"(sae) that read some"
        )
    return [read_one(top, raw, name, paths[name]) for name in (chosen_of(paths, names) if names else paths)]


def read_one(top: Path, raw: dict[str, Any], name: str, path: Path) -> Latents:
    found = read_object(path)
    if found.get("schema") != SCHEMA:
        raise MechintError(
            f"{path} has the schema {shown(found.get('schema'))}, and this version reads {SCHEMA}; take the version of "
            f"mechint that wrote it, or run the analysis again"
        )
    with valid(path):
        words = legible({int(token): str(text) for token, text in found["vocabulary"].items()})
        latents = Latents(
            name, top, raw, str(found["site"]), int(found["d_sae"]), int(found["windows"]), int(found["tokens"]), words,
            {int(row): [int(token) for token in ids] for row, ids in found["rows"].items()},
            {int(feature["id"]): feature for feature in found["features"]},
        )  # fmt: skip
        for feature in latents.features.values():
            for shown_ in (*feature["top"], *feature["samples"]):
                latents.window(shown_)
                int(shown_["peak"])
    return latents
