"""Edits of a model's weights, each judged and taken back: ROME one fact at a time, MEMIT all facts over several layers.

ROME at one map (Meng et al. 2022):

1. Find each fact's key and shift at the map (:mod:`.values`), side by side.
2. For each fact add ROME's update (:mod:`.update`) to the weight, judge (:mod:`.judge`), and put the weight back.
3. The same with controls: the update with a random direction in the place of C⁻¹k, of the same size, which meets no
   key; and the update added to the same map of another layer, drawn at random.

MEMIT, with all facts at once, over the layers of a window that ends at one map (Meng et al. 2023, algorithm 1):

1. Find each fact's shift of what the last layer's map adds to the residual stream.
2. For each layer of the window, from below: read every fact's key and how far the last layer's output still is from
   what it should be, and add the update that makes up its share of that, 1 / (layers left).
3. Judge every fact, and put the weights back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...interventions.model import Model
from ...interventions.run import run
from ...tasks import mix
from ...utils.statistics import Array
from . import judge
from .judge import Said
from .maps import WeightMap, changed, watching
from .moments import Moments
from .requests import Request
from .update import memit_update, rome_direction, rome_update, solver
from .values import Descent, Values, mean_by, rows_of, values

CONTROLS = ("random direction", "other layer")


@dataclass(frozen=True)
class Before:
    """The model's answers to each request's prompts before any edit, and its fluency."""

    said: Sequence[Said]
    fluency: Sequence[float]


def before_of(model: Model, requests: Sequence[Request], generated: int, seed: int) -> Before:
    return Before(judge.said_of(model, requests), judge.fluencies(model, requests, generated, seed))


def random_direction(like: Tensor, seed: int) -> Tensor:
    """A random vector of the same length, [in]."""
    noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return noise * (like.norm() / noise.norm())


def elsewhere(one: WeightMap, others: Sequence[WeightMap], seed: int) -> WeightMap | None:
    """The map of another layer of the same shape, drawn at random; None where there is none."""
    alike = [other for other in others if other.layer != one.layer and other.weight.shape == one.weight.shape]
    return alike[mix(seed, "other layer", str(one)) % len(alike)] if alike else None


def rome(
    model: Model,
    one: WeightMap,
    others: Sequence[WeightMap],
    requests: Sequence[Request],
    before: Before,
    moments: Moments,
    descent: Descent,
    *,
    generated: int,
    batch: int,
    seed: int,
) -> dict[str, Tensor]:
    """Edits each fact at one map and judges it.

    Args:
        others: The same map of all layers.
        generated: Tokens of the text whose fluency is measured.
        batch: Facts whose shifts are found side by side.

    Returns:
        ``edit`` and each of :data:`CONTROLS` that there is: [fact, measure]; ``chance``, the probability of the new
        answer with the shift itself, and ``size``, ‖Δ‖ / ‖W‖, [fact].
    """
    solve = solver(moments.of(one), str(one))
    other = elsewhere(one, others, seed)
    rows: dict[str, list[Array]] = {"edit": [], CONTROLS[0]: [], **({CONTROLS[1]: []} if other else {})}
    chance, sizes = [], []
    for start in range(0, len(requests), batch):
        part = range(start, min(start + batch, len(requests)))
        found = values(model, one, [requests[k] for k in part], descent)
        chance.append(found.chance)
        for key, shift, k in zip(found.keys, found.shifts, part, strict=True):
            direction = rome_direction(key, solve)
            aside = random_direction(direction, mix(seed, str(one), k))
            update = shift[:, None] * direction[None]
            sizes.append(float(update.norm() / one.weight.double().norm().clamp(min=1e-12)))
            tried = {"edit": (one, update), CONTROLS[0]: (one, shift[:, None] * aside[None])}
            if other is not None:
                tried[CONTROLS[1]] = (other, update)
            for name, (place, change) in tried.items():
                with changed([(place, change)]):
                    fluent = judge.fluencies(model, [requests[k]], generated if name == "edit" else 0, seed + k)[0]
                    [after] = judge.said_of(model, [requests[k]])
                rows[name].append(judge.scores(requests[k], before.said[k], after, (before.fluency[k], fluent)))
    return {
        **{name: torch.from_numpy(np.stack(each)) for name, each in rows.items()},
        "chance": torch.cat(chance),
        "size": torch.tensor(sizes, dtype=torch.float64),
    }


def rome_of(model: Model, one: WeightMap, request: Request, moments: Moments, descent: Descent) -> tuple[Tensor, float]:
    """ROME's update of one fact [out, in], and the probability of the new answer with the shift itself."""
    found = values(model, one, [request], descent)
    return rome_update(found.keys[0], found.shifts[0], solver(moments.of(one), str(one))), float(found.chance[0])


# ---- MEMIT -------------------------------------------------------------------------------------------------------


def window(one: WeightMap, others: Sequence[WeightMap], layers: int) -> list[WeightMap]:
    """The maps of up to ``layers`` layers that end with this one, bottom up."""
    below = [other for other in others if other.layer <= one.layer]
    return below[-layers:]


@torch.no_grad()
def memit_updates(
    model: Model,
    maps: Sequence[WeightMap],
    requests: Sequence[Request],
    moments: Sequence[Tensor],
    found: Values,
    weight: float,
) -> list[tuple[WeightMap, Tensor]]:
    """MEMIT's update of each map of a window, bottom up; the weights are as they were afterwards.

    Args:
        moments: C of each map, of the model before any edit.
        found: The shifts of what the last map gives.
        weight: Keys that C stands for.
    """
    last, rows, count = maps[-1], rows_of(requests, model.device), len(requests)
    each = torch.arange(len(rows.tokens), device=model.device)

    def read(one: WeightMap) -> tuple[Tensor, Tensor]:
        """Every fact's key at a map, and the stream behind the window, [fact, …]."""
        with watching(one) as caught:
            behind = run(model, rows.tokens, [last.stream], logits_at=rows.at[:, :0])[last.stream]
        return tuple(mean_by(x[each, rows.subject].double(), rows.fact, count).cpu() for x in (caught.inputs, behind))  # type: ignore[return-value]

    made: list[tuple[WeightMap, Tensor]] = []
    wanted = read(last)[1] + found.shifts
    with contextlib.ExitStack() as inside:
        for k, (one, moment) in enumerate(zip(maps, moments, strict=True)):
            keys, behind = read(one)
            update = memit_update(keys, (wanted - behind) / (len(maps) - k), moment, weight)
            made.append((one, update))
            inside.enter_context(changed([made[-1]]))
    return made


def memit(
    model: Model,
    one: WeightMap,
    others: Sequence[WeightMap],
    requests: Sequence[Request],
    before: Before,
    moments: Moments,
    descent: Descent,
    *,
    layers: int,
    weight: float,
    generated: int,
    batch: int,
    seed: int,
) -> dict[str, Tensor]:
    """Edits all facts at once over a window of layers that ends at one map, and judges each; returns as :func:`rome`.

    The control ``other layer`` is left out: the updates are of several layers already.
    """
    updates, found = memit_of(model, one, others, requests, moments, descent, layers=layers, weight=weight, batch=batch)
    aside = [(each, randomised(update, mix(seed, str(each)))) for each, update in updates]
    rows: dict[str, Tensor] = {}
    for name, tried in {"edit": updates, CONTROLS[0]: aside}.items():
        with changed(tried):
            fluent = judge.fluencies(model, requests, generated if name == "edit" else 0, seed)
            after = judge.said_of(model, requests)
        rows[name] = torch.from_numpy(np.stack([
            judge.scores(request, was, now, (flow, then))
            for request, was, now, flow, then in zip(requests, before.said, after, before.fluency, fluent, strict=True)
        ]))  # fmt: skip
    size = sum(float(update.norm() / each.weight.double().norm().clamp(min=1e-12)) for each, update in updates)
    return {**rows, "chance": found.chance, "size": torch.full((len(requests),), size, dtype=torch.float64)}


def memit_of(
    model: Model,
    one: WeightMap,
    others: Sequence[WeightMap],
    requests: Sequence[Request],
    moments: Moments,
    descent: Descent,
    *,
    layers: int,
    weight: float,
    batch: int,
) -> tuple[list[tuple[WeightMap, Tensor]], Values]:
    """MEMIT's updates of all facts at once, and the facts' keys and shifts at the last map."""
    maps = window(one, others, layers)
    parts = [requests[start : start + batch] for start in range(0, len(requests), batch)]
    pieces = [values(model, one, part, descent) for part in parts]
    found = Values(*(torch.cat([getattr(piece, name) for piece in pieces]) for name in ("keys", "shifts", "chance")))
    moment = [moments.of(each) for each in maps]
    return memit_updates(model, maps, requests, moment, found, weight), found


def randomised(update: Tensor, seed: int) -> Tensor:
    """An update [out, in] whose directions in the space of keys are turned at random; its size stays."""
    generator = torch.Generator().manual_seed(seed)
    turned, _ = torch.linalg.qr(torch.randn(update.shape[1], update.shape[1], generator=generator, dtype=torch.float64))
    return update @ turned
