"""Flattening: how the axes of a site become the d_in numbers that a dictionary reads, and back."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor

from ...interventions.model import Model
from ...interventions.sites import Site, find_sites
from ...utils.errors import MechintError, shown


def flat_width(site: Site, rule: str) -> int:
    """d_in of a site under a flattening rule; see :func:`flatten`.

    Raises:
        MechintError: the rule does not fit the site.
    """
    if site.has_sources:
        raise MechintError(f"site {site.name} has as many entries as there are positions; no dictionary fits that")
    check_rule(rule)
    if rule == "all":
        return math.prod(site.units)
    if rule == "last":
        return site.units[-1]
    unit = int(rule.partition(":")[2])
    if len(site.units) < 2:
        raise MechintError(f"flatten {rule!r}: {site} has one axis of units alone; take all")
    if unit >= site.units[0]:
        raise MechintError(
            f"flatten {rule!r}: {site} has no {site.axes[2]} {unit}; there are {site.units[0]} "
            f"(0 to {site.units[0] - 1})"
        )
    return math.prod(site.units[1:])


def check_rule(rule: str) -> None:
    """Raises :class:`MechintError` where a rule is none."""
    if not re.fullmatch(r"all|last|unit:[0-9]{1,9}", rule):
        raise MechintError(f"no flattening rule {shown(rule)}; take all, last or unit:NUMBER")


def flatten(value: Tensor, rule: str) -> Tensor:
    """A site's value [batch, position, *units] -> [batch, position, ..., d_in].

    ``all``: all axes become one, [channel, state] -> E·N; a state as a whole. ``last``: each entry of the earlier axes
    is an activation of its own; a dictionary that all channels share. ``unit:5``: one entry of the first axis alone; a
    dictionary of one channel's state.
    """
    if rule == "all":
        return value.flatten(2)
    if rule == "last":
        return value
    return value[:, :, int(rule.partition(":")[2])].flatten(2)


def unflatten(flat: Tensor, value: Tensor, rule: str) -> Tensor:
    """The inverse of :func:`flatten`: ``value`` [batch, position, *units] with ``flat`` in its place."""
    if rule == "all":
        return flat.view_as(value)
    if rule == "last":
        return flat
    unit, whole = int(rule.partition(":")[2]), value.clone()
    whole[:, :, unit] = flat.view_as(whole[:, :, unit])
    return whole


def rule_of(dictionary: Any) -> str:
    """The rule that a dictionary was trained with; ``all`` where it says none."""
    return getattr(getattr(dictionary, "config", None), "flatten", "") or "all"


def check_fit(dictionary: Any, model: Model, site: str) -> Site:
    """The site that a dictionary is to be read at.

    Raises:
        MechintError: there is no such site, its axes do not fit the dictionary's rule, or the dictionary is of another
            width; both widths are named.
    """
    [name] = find_sites(model.sites, [site])
    found, rule = model.sites[name], rule_of(dictionary)
    width, config = flat_width(found, rule), getattr(dictionary, "config", None)
    d_in, trained = getattr(config, "d_in", width), getattr(config, "site", "")
    if d_in != width:
        raise MechintError(
            f"the dictionary reads {d_in} numbers at a position, and the site {found} of {model.source} has {width}"
            f"{'' if rule == 'all' else f', flattened by {rule!r}'}; choose the site it was trained on"
            f"{trained and ', ' + trained}"
        )
    matrix = tuple(getattr(dictionary, "keys_and_values", ()))
    if matrix and tuple(found.units[-2:]) != matrix:
        raise MechintError(
            f"the dictionary reads a matrix of {matrix[0]} keys and {matrix[1]} values, and the site {found} of "
            f"{model.source} has other ones"
        )
    return found


def latents_at(dictionary: Any, x: Tensor) -> Tensor:
    """Latents of a site's value [batch, position, *units]: [batch, position, …, d_sae], a set for each activation."""
    return torch.as_tensor(dictionary.encode(flatten(x, rule_of(dictionary))))


def strongest(f: Tensor) -> Tensor:
    """[batch, position, …, latent] -> [batch, position, latent]: of the activations of a position, the strongest."""
    return f.flatten(2, -2).amax(2) if f.dim() > 3 else f
