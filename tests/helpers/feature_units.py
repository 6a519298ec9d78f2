"""Prompts and units of a dictionary."""

from __future__ import annotations

from typing import Any

import torch

from mechint.analyses.circuits.feature_units import FeatureUnits
from mechint.tasks import Prompts
from tests.helpers.builders import tokens
from tests.helpers.dictionaries import dictionary


def units_of(model: Any, sites: tuple[str, ...], d_sae: int = 16) -> FeatureUnits:
    widths = [int(torch.tensor(model.sites[site].units).prod()) for site in sites]
    return FeatureUnits(
        model, {site: dictionary(d, d_sae, k) for k, (site, d) in enumerate(zip(sites, widths, strict=True))}
    )


def prompts(rows: int, length: int, seed: int = 0) -> Prompts:
    text = tokens(rows, length + 1, seed)
    return Prompts(text[:, :-1], torch.arange(length).expand(rows, -1), text[:, 1:], tokens(rows, length, seed + 50),
                   None, torch.arange(rows))  # fmt: skip
