"""Effects of the units of one layer on those of later layers, for all pairs of layers, by patching and by gradient.

With σ_f the standard deviation of unit f over tokens and prompts, unit e of layer i ablated changes unit f of layer
j > i by

    patched[e, f] = RMS over tokens of (a_f - a_f with e ablated) / σ_f,
    linear[e, f]  = the same of Σ_s ∂a_f[t]/∂a_e[s] · (a_e[s] - ablated_e[s]), by a difference of both
                    sides, each a small part of the change (:func:`step_of`).

And of whole layers: the relative change ‖out_j - out_j without what layer i adds‖ / ‖out_j‖.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...interventions.edits import Edit
from ...interventions.model import Model, added_sites
from ...interventions.run import run
from ...tasks import Prompts

PART = 1 / 200
"""The size of a change that a unit makes beside that of what it is added to, for which :func:`step_of` is right."""


def step_of(dtype: torch.dtype) -> float:
    """The step of a two-sided difference that estimates a derivative, as a part of the change.

    Its error is of the order of the step's square, and rounding adds ε / (:data:`PART` · step): the two are about equal
    at the cube root of ε / PART, which is 0.03 in single precision and 0.00004 in double.
    """
    return min(0.3, (torch.finfo(dtype).eps / PART) ** (1 / 3))


@torch.no_grad()
def unit_effects(
    model: Model,
    prompts: Prompts,
    kind: str,
    units: dict[int, list[int]],
    fills: dict[str, Any],
    scale: dict[str, Tensor],
    seen: str = "",
) -> dict[str, Tensor]:
    """Effects of the chosen units of every layer on those of every later one.

    Args:
        kind: Site of the units, such as ``gated``.
        units: Chosen units of each layer.
        fills: Values that replace them, by site.
        scale: σ of all units, [unit] by site.
        seen: Site where the later units are looked at; that of the units unless said otherwise. The output of a Mamba's
            channel (``gated``) reaches ``u`` of a later one by the residual stream alone.

    Returns:
        ``{i} {j} patched`` and ``{i} {j} linear`` [prompt, e, f] for i < j.
    """
    site = lambda layer: f"layers.{layer}.{kind}"
    there = lambda layer: f"layers.{layer}.{seen or kind}"
    layers = sorted(units)
    names = list(dict.fromkeys([*map(site, layers), *map(there, layers)]))
    clean = run(model, prompts.tokens, names, logits_at=prompts.positions[:, :0]).values
    found: dict[str, Tensor] = {}
    step = step_of(next(model.parameters()).dtype)
    for i in layers[:-1]:
        later = [j for j in layers if j > i]
        change = (
            torch.as_tensor(fills[site(i)], device=clean[site(i)].device).expand_as(clean[site(i)]) - clean[site(i)]
        )
        rows: dict[str, list[Tensor]] = {f"{i} {j} {way}": [] for j in later for way in ("patched", "linear")}
        for e in units[i]:
            sites = [there(j) for j in later]
            own = change[:, :, e : e + 1]
            whole, up, down = (
                recorded(model, prompts, [Edit(site(i), "add", share * own, units=[e])], sites)
                for share in (1.0, step, -step)
            )
            for j in later:
                those = units[j]
                by = scale[there(j)][those].clamp(min=torch.finfo(torch.float32).tiny)
                by = by.reshape(*by.shape, *[1] * (clean[there(j)].dim() - 2 - by.dim()))  # one number for a head
                size = lambda tensor, by=by, those=those: mean_size(tensor[:, :, those].double().cpu() / by)
                rows[f"{i} {j} patched"].append(size(whole[there(j)] - clean[there(j)]))
                rows[f"{i} {j} linear"].append(size((up[there(j)] - down[there(j)]) / (2 * step)))
        found |= {name: torch.stack(parts, 1) for name, parts in rows.items()}
    return found


def mean_size(change: Tensor) -> Tensor:
    """RMS over tokens, and over the entries of a unit with several: [prompt, position, unit …] -> [prompt, unit]."""
    squares = change.square().mean(1)
    return (squares if squares.dim() == 2 else squares.flatten(2).mean(-1)).sqrt()


def recorded(model: Model, prompts: Prompts, edits: list[Edit], sites: list[str]) -> dict[str, Tensor]:
    return run(model, prompts.tokens, sites, edits, logits_at=prompts.positions[:, :0]).values


@torch.no_grad()
def layer_effects(model: Model, prompts: Prompts) -> Tensor:
    """Computes the relative change of layer j's output when layer i's is removed, [prompt, i, j]; 0 for j ≤ i."""
    names = added_sites(model)
    every = [name for group in names for name in group]
    added = lambda values: torch.stack([sum(values[n].double() for n in group) for group in names], 1)
    clean = added(recorded(model, prompts, [], every))  # [prompt, layer, position, model]
    found = torch.zeros(len(prompts), model.num_layers, model.num_layers, dtype=torch.float64)
    for i, group in enumerate(names):
        edits = [Edit(name, "replace", 0.0) for name in group]
        moved = added(recorded(model, prompts, edits, every))
        change = (moved - clean).flatten(2).norm(dim=-1) / clean.flatten(2).norm(dim=-1)
        found[:, i, i + 1 :] = change[:, i + 1 :].cpu()
    return found
