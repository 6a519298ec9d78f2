"""Steps 6 to 9 of a study: interventions on the candidates, and what their layers do over time."""

from __future__ import annotations

import torch

from .dynamics import dynamics
from .errors import MechintError
from .influence import run_temporal_causality_analysis
from .necessity import DIRECTIONS, adjusted, necessity, robustness
from .study_context import Context, Found
from .temporal import check_lag, linearise

SHOWN = 32
"""Prompts that temporal derivatives and dynamics are taken on."""


def tests(context: Context) -> Found:
    """Necessity and sufficiency of every tested candidate, on the held-out prompts that the model answers."""
    c, tested = context.config, context.tested
    found = [
        necessity(
            context.held, candidate, test, mean=context.mean(candidate.site) if test == "necessity" else None,
            draws=c.draws, bootstrap=c.bootstrap, seed=context.seed,
        )
        for candidate in tested
        for test in DIRECTIONS
    ]  # fmt: skip
    rows = [test.report() | {"p_holm": p} for test, p in zip(found, adjusted(found), strict=True)]
    good = sum(row["p_holm"] <= 0.05 for row in rows)
    said = (
        f"{len(rows)} tests of {len(tested)} candidates on {len(context.held.prompts)} answered prompts; {good} beat "
        f"random subspaces of the same rank and norm (5 %, Holm over the step)."
    )
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
        f"Principal directions that hold 90 % of a candidate's effect, the fewest: {', '.join(least)}."
        if least
        else "No candidate has an effect that could be cut."
    )
    return {"report": {"candidates": rows, "metric": context.config.metric, "said": said}, "keep": {}}


def few_tokens(context: Context) -> torch.Tensor:
    return torch.cat([batch.tokens for batch in context.train])[:SHOWN]


def temporal(context: Context) -> Found:
    """Exact derivatives by lag, of each layer's candidates and of all its channels."""
    tokens, c = few_tokens(context), context.config
    check_lag(c.max_lag, tokens.shape[1])
    layers = {}
    for layer in context.sites:
        groups = context.groups(layer)
        units = sorted({unit for group in groups.values() for unit in group})
        found = run_temporal_causality_analysis(
            context.model, tokens, layer, units, c.max_lag, draws=c.bootstrap, seed=context.seed
        )
        keep = {name: entry for name, entry in found["groups"].items() if not name.startswith("channel ")}
        singles = {name: entry for name, entry in found["groups"].items() if name.startswith("channel ")}
        memory = {
            name: {path: entry[path]["mean_lag"] for path in ("direct", "total")} for name, entry in singles.items()
        }
        layers[str(layer)] = {**found, "groups": keep, "channels": memory, "of_candidates": groups}
    shares = [
        f"layer {layer}: {share['value']:.0%}"
        for layer, entry in layers.items()
        if (share := entry["groups"]["all channels"]["total"]["long_range"]) is not None
    ]
    said = f"Influence from further back than {c.max_lag // 2} tokens: {', '.join(shares) or 'none at all'}."
    return {"report": {"layers": layers, "max_lag": c.max_lag, "said": said}, "keep": {}}


def modes(context: Context) -> Found:
    """Time scales, Gramians and drop errors of each layer, and which modes the candidates use."""
    tokens = few_tokens(context)
    layers = {
        str(layer): dynamics(linearise(context.model, tokens, layer), context.groups(layer)) for layer in context.sites
    }
    memory = []
    for entry in layers.values():
        for name, group in entry["groups"].items():
            if name != "all channels":
                memory.append(f"{name}: {sum(group['memory_tokens']) / len(group['memory_tokens']):.1f} tokens")
    said = f"Memory of the candidates' modes, weighted by their use: {'; '.join(memory) or 'no candidates'}."
    return {"report": {"layers": layers, "said": said}, "keep": {}}


def check_mamba(context: Context) -> None:
    if context.model.config.family != "mamba":
        raise MechintError(f"a {context.model.config.family} model has no scan; its attention is its own map")
