"""The dictionaries of a grid: every architecture x sparsity x width x seed at every site, and the controls."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from ...interventions.model import Model
from ...interventions.sites import Site, find_sites
from ...sae import ARCHITECTURES, SAEConfig, make
from ...sae.activations.flattening import flat_width
from ...sae.architectures import BY_COUNT
from ...sae.training import FROZEN
from ...utils.errors import MechintError, shown
from ...utils.options import finite, listed
from ..options import layer_list


def numbers_of(text: str, what: str) -> list[float]:
    """The numbers of a list such as ``8,16,32``.

    Raises:
        MechintError: it is empty, or one is not a positive number.
    """
    found = []
    for word in listed(text, what):
        value = finite(word)
        if value is None or value <= 0:
            raise MechintError(f"dictionaries: {what} is {shown(text)}; write positive numbers separated by commas")
        found.append(value)
    if not found:
        raise MechintError(f"dictionaries: {what} is empty; write numbers separated by commas")
    return found


def sites_of(model: Model, kinds: str, layers: str) -> list[str]:
    """The sites of a kind list (``resid_post,out``; a full name counts, too) at the layers ``all`` or ``0,5``.

    Raises:
        MechintError: there is no such layer or site.
    """
    count = len(model.layers)
    chosen = layer_list(layers, count, "dictionaries")
    names = [kind if kind in model.sites else f"layers.{layer}.{kind}" for kind in listed(kinds) for layer in chosen]
    if not names:
        raise MechintError("dictionaries: no site is named; write kinds such as resid_post or out")
    return find_sites(model.sites, names)


def layer_of(site: str) -> int:
    return int(site.split(".")[1]) if site.startswith("layers.") else -1


def grid(model: Model, sites: list[Site], c: Any, about: dict[str, Any]) -> dict[str, SAEConfig]:
    """Name and configuration of every member.

    Args:
        model: Model of the activations.
        sites: Sites of the activations.
        c: The analysis' options: architectures, sparsity, penalty, ratio, flatten, seeds, controls.
        about: Metadata that all members share.

    Raises:
        MechintError: a k is larger than its width, the rule of flattening does not fit a site, or an architecture or
            number makes no sense.
    """
    members: dict[str, SAEConfig] = {}
    for site, architecture, ratio in itertools.product(sites, listed(c.architectures), numbers_of(c.ratio, "ratio")):
        d_in = flat_width(site, c.flatten)
        d_sae = max(1, round(ratio * d_in))
        for value in numbers_of(c.sparsity if architecture in BY_COUNT else c.penalty, "sparsity"):
            named = f"{site.name}-{architecture}-{label(architecture, value)}-x{ratio:g}"
            shape = shape_of(architecture, d_sae, value)
            base = {"d_in": d_in, "d_sae": d_sae, "site": site.name, "layer": layer_of(site.name), **shape, **about}
            for seed in range(c.seeds):
                members[f"{named}-s{seed}"] = checked(SAEConfig(**base, seed=seed))
            for baseline in FROZEN if c.controls else ():
                members[f"{named}-{baseline.replace('_', '-')}"] = checked(SAEConfig(**base, seed=0, baseline=baseline))
    return members


def label(architecture: str, value: float) -> str:
    return f"k{value:g}" if architecture in BY_COUNT else f"l{value:g}"


def shape_of(architecture: str, d_sae: int, value: float) -> dict[str, Any]:
    """Sparsity of a member: active latents (a share of all below 1), or the weight of the penalty."""
    if architecture not in BY_COUNT:
        return {"architecture": architecture, "penalty": value}
    k = max(1, round(value * d_sae)) if value < 1 else round(value)
    return {"architecture": architecture, "k": k, "penalty": 1.0 if architecture == "jumprelu" else 0.0}


def checked(config: SAEConfig) -> SAEConfig:
    """The configuration, if a dictionary can be made of it; costs no memory."""
    with torch.device("meta"):
        make(config)
    return config


def warnings(members: dict[str, SAEConfig]) -> list[str]:
    """Notes on options that are known to give poor dictionaries."""
    narrow = sorted(
        {f"{c.site} ({c.d_sae} latents of {c.d_in} dimensions)" for c in members.values() if c.d_sae < c.d_in}
    )
    found = []
    if narrow:
        found.append(
            f"Fewer latents than dimensions at {', '.join(narrow)}: such a dictionary can't even "
            f"be an orthogonal basis, so features are lost or merged; take a ratio of 4 or more"
        )
    weak = sorted({f"{c.penalty:g}" for c in members.values() if c.architecture not in BY_COUNT and c.penalty < 0.1})
    if weak:
        found.append(
            f"The penalty {', '.join(weak)} hardly makes anything sparse, since activations are scaled to a "
            f"squared norm of their width and the error is a sum over it; take 1 to 20"
        )
    return found


def unknown_architecture(text: str) -> str | None:
    """Why a list of architectures can't be trained; None when it can."""
    for name in listed(text) or [""]:
        if name not in ARCHITECTURES:
            return f"no dictionary architecture {name!r}; take {', '.join(ARCHITECTURES)}"
    return None
