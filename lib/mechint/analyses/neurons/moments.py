"""Moments of activations that rankings by attention weight; see :mod:`mechint.analyses.circuits.methods.attention`."""

from __future__ import annotations

import torch
from torch import Tensor

from ...interventions.model import Model
from ...tasks import Prompts
from ..base import values_of


def moments(model: Model, prompts: Prompts, units: dict[str, Tensor]) -> dict[str, Tensor]:
    """Moments over a prompt's tokens of the activations of chosen units, by ``{site} {method}``.

    Returns:
        ``size …``, ``mean …`` (of |a| and a) [unit, prompt] and ``product …`` (of every two) [unit, unit, prompt].
    """
    values = values_of(model, prompts, list(dict.fromkeys(name.split(" ")[0] for name in units)))
    found: dict[str, Tensor] = {}
    for name, chosen in units.items():
        a = (
            values[name.split(" ")[0]][:, :, chosen.to(prompts.tokens.device)].double().cpu()
        )  # [prompt, position, unit]
        a = a if a.dim() == 3 else a.flatten(3).sum(-1)  # of a head the sum of its dimensions
        found[f"size {name}"], found[f"mean {name}"] = a.abs().mean(1).T, a.mean(1).T
        found[f"product {name}"] = torch.einsum("bte,btf->efb", a, a) / a.shape[1]
    return found
