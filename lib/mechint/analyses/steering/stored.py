"""Directions on disk: a ``.pt`` file of one tensor for each site, as ``directions.pt`` of a finished run is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ...interventions.model import Model
from ...interventions.steering import Direction, check_direction
from ...utils import files
from ...utils.errors import MechintError, did_you_mean

FILE = "directions.pt"


def save(directions: Mapping[str, torch.Tensor], directory: Path) -> Path:
    return files.write_torch(directory / FILE, dict(directions))


def load(path: str, model: Model) -> dict[str, Direction]:
    """The directions of a file, by site, each checked against the model.

    Raises:
        MechintError: no such file, something else in it, or a direction of another model, width or site.
    """
    remedy = f"name a {FILE} of a finished run, or a .pt file that holds a dict of site and tensor"
    found = files.read_torch(Path(path).expanduser(), "directions", remedy)
    fits = isinstance(found, dict) and all(
        isinstance(site, str) and isinstance(vector, torch.Tensor) and vector.is_floating_point()
        for site, vector in found.items()
    )
    if not fits or not found:
        raise MechintError(f"{path} does not hold directions by site; {remedy}")
    directions = {site: Direction(site, vector.to(model.device)) for site, vector in found.items()}
    for direction in directions.values():
        check_direction(model, direction)
    return directions


def chosen(directions: Mapping[str, Direction], sites: Sequence[str], usual: bool) -> dict[str, Direction]:
    """The directions of the chosen sites; all of the file for the usual ones."""
    if usual:
        return dict(directions)
    if missing := [site for site in sites if site not in directions]:
        raise MechintError(
            f"steering: the file of directions has none at {missing[0]}{did_you_mean(missing[0], directions)}; it has "
            f"{', '.join(directions)}"
        )
    return {site: directions[site] for site in sites}
