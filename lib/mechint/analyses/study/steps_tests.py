"""Steps 6 to 9 of a study: interventions on the candidates, and the dynamics of their layers over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...attribution.attention import channel_site
from ...attribution.dynamics import dynamics, effective_memory
from ...attribution.jacobians import check_lag, linearise, no_derivatives
from ...attribution.lag_influence import reference, run_temporal_causality_analysis
from ...attribution.modes import memory_of
from ...interventions.model import Model
from ...utils.errors import MechintError
from ...utils.multiple_tests import holm
from ...utils.statistics import ClusterBootstrap, Number, said
from ..random_weights import shuffled_numbers
from .ablation_tests import DIRECTIONS, necessity, robustness
from .context import Context, Found
from .options import RANDOM_MODELS

SHOWN = 32
"""Prompts that temporal derivatives and dynamics are taken on."""


def tests(context: Context) -> Found:
    """Necessity and sufficiency of every tested candidate, on the held-out prompts that the model answers."""
    c, tested = context.config, context.tested
    found = [
        necessity(
            context.held, candidate, test, mean=context.mean(candidate.site) if test == "necessity" else None,
            draws=context.draws, bootstrap=c.bootstrap, seed=context.seed,
        )
        for candidate in tested
        for test in DIRECTIONS
    ]  # fmt: skip
    p_values = holm([test.p for test in found])
    rows = [test.report() | {"p_holm": p} for test, p in zip(found, p_values, strict=True)]
    good = sum(row["p_holm"] <= 0.05 for row in rows)
    said = (
        f"{len(rows)} tests of {len(tested)} candidates on {len(context.held.prompts)} answered prompts; {good} beat "
        f"{context.draws} random subspaces of the same rank and norm (5 %, Holm over the step)."
    )
    if context.draws > c.draws:
        said += f" {c.draws} subspaces were asked for, too few for p ≤ 0.05 after Holm over all claims."
    return {"report": {"tests": rows, "metric": c.metric, "ablation": c.ablation, "said": said}, "keep": {}}


def shaken(context: Context) -> Found:
    """Noise and rotations inside and outside every tested candidate, and how small it can be cut."""
    rows = []
    for candidate in context.tested:
        found = robustness(context.held, candidate, draws=20, seed=context.seed)
        rows.append({"candidate": candidate.name, "rank": candidate.rank, **found})
    cut = [(row["granularity"], row["rank"]) for row in rows if row["granularity"]["least_rank"]]
    least = [f"{g['least_rank']} of {rank}{'' if g['every_rank'] else ' (not all ranks tried)'}" for g, rank in cut]
    said = (
        f"Fewest principal directions that hold 90 % of a candidate's effect: {', '.join(least)}."
        if least
        else "No candidate has an effect that could be cut."
    )
    return {"report": {"candidates": rows, "metric": context.config.metric, "said": said}, "keep": {}}


def few_tokens(context: Context) -> torch.Tensor:
    return torch.cat([batch.tokens for batch in context.train])[:SHOWN]


def few_templates(context: Context) -> list[int]:
    found: list[int] = context.train.templates()[:SHOWN].tolist()
    return found


def recurrent_layers(context: Context) -> tuple[list[int], list[str]]:
    """The studied layers with a recurrence to differentiate, and why others are left out.

    Raises:
        MechintError: there is none.
    """
    reasons = {layer: no_derivatives(context.model, layer) for layer in context.sites}
    layers = [layer for layer, reason in reasons.items() if not reason]
    if not layers:
        raise MechintError(next(iter(reasons.values())))
    return layers, [reason for reason in reasons.values() if reason]


def channel_groups(context: Context, layer: int) -> dict[str, list[int]]:
    """The channels of a layer's recurrence that the tested candidates consist of; none where their units are others,
    heads of attention, say."""
    return context.groups(layer) if channel_site(context.model, layer, context.sites[layer]) else {}


def temporal(context: Context) -> Found:
    """Exact derivatives by lag, of each layer's candidates and of all its channels, beside shuffled weights."""
    tokens, c = few_tokens(context), context.config
    studied, notes = recurrent_layers(context)
    max_lag = c.max_lag or tokens.shape[1] - 1
    check_lag(max_lag, tokens.shape[1])

    def of_layer(model: Model, layer: int, units: Sequence[int] = ()) -> Found:
        clusters, draws, seed = few_templates(context), c.bootstrap, context.seed
        return run_temporal_causality_analysis(model, tokens, layer, units, max_lag, draws, seed, clusters)

    def far(found: Found) -> Number | None:
        share: Number | None = found["groups"]["all channels"]["total"]["long_range"]
        return share

    beside = untrained(context, studied, lambda model: {layer: far(of_layer(model, layer)) for layer in studied})
    layers, shares = {}, []
    for layer in studied:
        groups = channel_groups(context, layer)
        found = of_layer(context.model, layer, sorted({unit for group in groups.values() for unit in group}))
        keep = {name: entry for name, entry in found["groups"].items() if not name.startswith("channel ")}
        singles = {name: entry for name, entry in found["groups"].items() if name.startswith("channel ")}
        memory = {
            name: {path: entry[path]["mean_lag"] for path in ("direct", "total")} for name, entry in singles.items()
        }
        own, random = far(found), beside[layer]
        layers[str(layer)] = {**found, "groups": keep, "channels": memory, "of_candidates": groups}
        layers[str(layer)] |= {"long_range_shuffled": random}
        if own is not None:
            shares.append(f"layer {layer}: {said(own, '.0%')}{against(random, '.0%')}")
    about = reference(max_lag, tokens.shape[1])
    sentence = (
        f"Share of the influence at lags 1 to {max_lag} ({left_out(about)}) that comes from more than "
        f"{about['long_range_beyond']} tokens back (a flat profile has {about['flat_long_range'] or 0:.0%}): "
        f"{'; '.join(shares) or 'no layer has any influence'}."
    )
    report = {"layers": layers, "max_lag": max_lag, "reference": about, "said": sentence}
    return {"report": noted(report, notes), "keep": {}}


def noted(report: Found, notes: list[str]) -> Found:
    """A report with the layers that it leaves out, if there are any."""
    if not notes:
        return report
    return report | {"said": f"{report['said']} Left out: {'; '.join(notes)}.", "notes": notes}


def left_out(about: Found) -> str:
    """Says how much of the prompts' past a range of lags covers."""
    if not about["left_out"]:
        return "all lags of the prompts"
    return f"{about['left_out']} longer lags, up to {about['length'] - 1}, are left out"


def untrained(
    context: Context, layers: Sequence[int], measure: Callable[[Any], dict[int, Number | None]]
) -> dict[int, Number | None]:
    """A number of each studied layer on models with shuffled weights; None where these are not asked for."""
    count = RANDOM_MODELS if context.config.random_weights else 0
    return shuffled_numbers(context.model, context.seed, count, layers, measure)


def against(random: Number | None, form: str) -> str:
    return "" if random is None else f" (shuffled weights {said(random, form)})"


def modes(context: Context) -> Found:
    """Time scales, Gramians and drop errors of each layer, and which modes the candidates use."""
    tokens, c = few_tokens(context), context.config
    studied, notes = recurrent_layers(context)

    def of_layer(model: Model, layer: int, groups: dict[str, list[int]]) -> Found:
        local = linearise(model, tokens, layer)
        return dynamics(local, groups, few_templates(context), c.bootstrap, context.seed)

    def all_memory(model: Model, layer: int) -> Number:
        local = linearise(model, tokens, layer)
        boot = ClusterBootstrap(few_templates(context), c.bootstrap, context.seed)
        return memory_of(effective_memory(local), range(local.width), local.length, boot)

    beside = untrained(context, studied, lambda model: {layer: all_memory(model, layer) for layer in studied})
    layers, memory = {}, []
    for layer in studied:
        found = of_layer(context.model, layer, channel_groups(context, layer))
        layers[str(layer)] = {**found, "memory_shuffled": beside[layer]}
        for name, group in found["groups"].items():
            where = f"layer {layer}, all channels" if name == "all channels" else name
            random = against(beside[layer], ".3g") if name == "all channels" else ""
            longer = ", longer than a prompt" if group["memory"]["extrapolated"] else ""
            memory.append(f"{where}: {said(group['memory'], '.3g')}{longer}{random}")
    sentence = (
        f"Time constants of the modes, weighted by their use, extrapolated from the decay in prompts of "
        f"{tokens.shape[1]} tokens: {'; '.join(memory)}."
    )
    return {"report": noted({"layers": layers, "length": tokens.shape[1], "said": sentence}, notes), "keep": {}}
