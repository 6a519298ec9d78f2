"""Stored dictionaries of other libraries, and what reads them."""

from __future__ import annotations

from pathlib import Path

from mechint import sae

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "sae"


LOAD = {
    "saelens": sae.load, "dictionary_learning": sae.load_dictionary_learning, "sparsify": sae.load_sparsify,
}  # fmt: skip
