"""Moments of activations that rankings by attention weight; see :mod:`mechint.analyses.circuits.methods.attention`."""

from __future__ import annotations

import torch
from torch import Tensor

from ...interventions.model import Model
from ...interventions.run import run
from ...tasks import Prompts


def moments(model: Model, prompts: Prompts, units: dict[str, Tensor]) -> dict[str, Tensor]:
    """Moments over a prompt's tokens of the activations of chosen units, by ``{site} {method}``.

    Returns:
        ``size …``, ``mean …`` (of |a| and a) [unit, prompt] and ``product …`` (of every two) [unit, unit, prompt].
    """
    sites = list(dict.fromkeys(name.split(" ")[0] for name in units))
    values = run(model, prompts.tokens, sites, logits_at=prompts.positions[:, :0]).values
    found: dict[str, Tensor] = {}
    for name, chosen in units.items():
        a = values[name.split(" ")[0]][:, :, chosen.to(prompts.tokens.device)].double().cpu()
        a = a if a.dim() == 3 else a.flatten(3).sum(-1)  # [prompt, position, unit]; of a head the sum of its dimensions
        found[f"size {name}"], found[f"mean {name}"] = a.abs().mean(1).T, a.mean(1).T
        found[f"product {name}"] = torch.einsum("bte,btf->efb", a, a) / a.shape[1]
    return found
