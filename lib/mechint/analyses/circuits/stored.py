"""A finished circuit, read back onto a model: its own, another training run's, or another step's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...interventions.edits import Edit
from ...interventions.model import Model
from ...interventions.unit_kinds import UnitKind
from ...interventions.units import Units
from ...models.loading.load import model_classes
from ...utils.errors import MechintError
from .results import load_results, read_masks


@dataclass(frozen=True)
class Circuit:
    """The units that a circuit keeps.

    Attributes:
        units: All units of the model.
        mask: [units], 1 for those that are kept.
        ablation: Ablation of the other units when the circuit was found.
    """

    units: Units
    mask: Tensor
    ablation: str

    def edits(self, fills: dict[str, Any] | None = None) -> list[Edit]:
        """The edits that leave the circuit alone, for :func:`mechint.run`, ``generate`` and sweeps.

        Args:
            fills: Values that replace dropped units, as :meth:`.Ablation.fills` gives it for some prompts;
                None for zeros.
        """
        return self.units.edits(self.mask, dict.fromkeys(self.units.sites, 0.0) if fills is None else fills)


def load_circuit(run_dir: str | Path, model: Model) -> Circuit:
    """Reads the circuit of a finished analysis for a model of the same shape, whatever its weights.

    >>> circuit = load_circuit("mechint_analysis_kv", model)
    >>> mechint.run(model, tokens, edits=circuit.edits()).logits  # with every other unit zero

    Args:
        run_dir: Holds results.json and final_masks.pt, or is that file.
        model: A loaded model.

    Raises:
        MechintError: files are missing or broken, the units are another family's, or layers or the units of a layer
            (heads, their dimensions) are not the model's.
    """
    directory = Path(run_dir).parent if Path(run_dir).name == "final_masks.pt" else Path(run_dir)
    results, path = load_results(directory), directory / "final_masks.pt"
    name, theirs = str(results.raw["unit"]), results.raw["model"].get("family")
    if name == "latent":
        raise MechintError(
            f"{path} is a circuit of features, whose units need their dictionaries: read its masks into "
            "mechint.analyses.circuits.feature_units.FeatureUnits"
        )
    kinds = [model.unit_kinds.get(part) for part in name.split("+")]
    known = model_classes().get(str(theirs))
    alike = theirs == model.config.family or (known is not None and known.unit_kinds == model.unit_kinds)
    if None in kinds or not alike:
        raise MechintError(
            f"{path} is a circuit of the unit {name!r} of a {theirs}, and {model.source} is a "
            f"{model.config.family}; name a circuit of this family"
        )
    units, masks = Units(model, *(kind for kind in kinds if kind is not None)), read_masks(path)
    shapes = [tuple(entry["mask"].shape) for entry in masks.values()]
    ours = [row.shape for row in units.by_row]
    if shapes != ours:
        raise MechintError(
            f"{path} has {_described(shapes, units.kind)}, and {model.source} has "
            f"{_described(ours, units.kind)}; name a circuit of a model of this shape"
        )
    if list(masks) != units.layer_names:
        raise MechintError(
            f"{path} has masks of {', '.join(masks)}, and {model.source} has such units in "
            f"{', '.join(units.layer_names)}; name a circuit of a model of this shape"
        )
    device = next(model.parameters()).device
    mask = torch.cat([masks[name]["mask"].flatten() for name in units.layer_names])
    return Circuit(units, mask.to(device, torch.float32), str(results.raw["ablation"]))


def _described(shapes: list[tuple[int, ...]], kind: UnitKind) -> str:
    """``2 layers of 2 x 3 x 4 (K and V, heads, dimensions)``."""
    each = " or ".join(" x ".join(map(str, shape)) for shape in sorted(set(shapes)))
    axes = ["K and V"] if kind.apart else []
    if kind.sites[0] in ("k", "v", "q", "head_out"):
        axes += ["heads", "dimensions"] if kind.blocks[0].axes is None else ["heads"]
    return f"{len(shapes)} layers of {each} {kind.several}" + (f" ({', '.join(axes)})" if axes else "")
