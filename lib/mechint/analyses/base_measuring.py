"""What analyses of units, sparsity and comparisons share: their frame, their layers and sites, their means."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..interventions.run import run
from ..tasks import Prompts
from ..utils import files, options
from ..utils.errors import MechintError, did_you_mean, shown
from .base import StagedAnalyzer
from .loader import PromptLoader
from .tracing.analyzer import listed

NO_UNITS = ("scores", "pattern", "conv_state", "decay", "write", "state", "readout")  # more than one number for a unit


class Study(StagedAnalyzer, ABC):
    """An analyzer of units, sparsity or whole models: checked options, and the numbers of every prompt to keep."""

    name = ""

    def __init__(self, model: Any, config: Any, device: str | torch.device = "cpu", **others: Any) -> None:
        options.check(config, self.name)
        super().__init__(model, config, device, **others)
        self.tensors: dict[str, Tensor] = {}

    @abstractmethod
    def run_analysis(self, train_loader: PromptLoader, val_loader: PromptLoader) -> dict[str, Any]:
        """Ranks and sets thresholds on ``train_loader``, measures on ``val_loader``; returns the results."""

    def control_config(self) -> Any:
        """The options of the same study on shuffled weights."""
        return dataclasses.replace(self.config, controls=0)

    def save_results(self) -> list[Path]:
        """Writes ``effects.pt`` (the numbers of every prompt) into the run directory; the runner writes the rest."""
        return [files.write_torch(self.directory / "effects.pt", self.tensors)]


def layer_list(said: str, layers: int, where: str) -> list[int]:
    """The layers that an option names: ``all``, or numbers separated by commas.

    Raises:
        MechintError: something that is no number, a hole between commas, or no such layer.
    """
    if said.strip() == "all":
        return list(range(layers))
    found = []
    for part in said.split(","):
        layer = options.whole_number(part)
        if layer is None:
            raise MechintError(
                f"{where}: layers are {shown(said)}, and {shown(part)} is no layer; give all, or numbers such as 0,2"
            )
        if layer >= layers:
            raise MechintError(f"{where}: no layer {layer}; this model has {layers} (0 to {layers - 1})")
        found.append(layer)
    return sorted(set(found))


def unit_sites(model: Any, said: str, usual: Iterable[str], where: str) -> list[str]:
    """Kinds of site whose last axes number the units of a layer, as an option names them.

    Raises:
        MechintError: the family has no such site, or one with several numbers for each unit.
    """
    names = [name.partition("layers.0.")[2] for name in model.sites if name.startswith("layers.0.")]
    known = [name for name in names if name not in NO_UNITS]
    kinds = list(usual) if said.strip() == "usual" else list(dict.fromkeys(listed(said)))
    for kind in kinds:
        if kind not in known:
            raise MechintError(
                f"{where}: a {model.config.family} model has no site {shown(kind)} with one number for each unit"
                f"{did_you_mean(kind, known)}; it has {', '.join(known)}"
            )
    if not kinds:
        raise MechintError(f"{where}: no site is named; leave it at 'usual', or choose from {', '.join(known)}")
    return kinds


@torch.no_grad()
def values_of(model: Any, prompts: Prompts, sites: Iterable[str]) -> dict[str, Tensor]:
    """The sites of a run, each [prompt, position, unit]: heads and their dimensions are one axis of units."""
    found = run(model, prompts.tokens, sites, logits_at=prompts.positions[:, :0]).values
    return {name: value.flatten(2) for name, value in found.items()}


def width(model: Any, site: str) -> int:
    """Units of a site: heads times their dimensions."""
    return int(torch.tensor(model.sites[site].units).prod())
