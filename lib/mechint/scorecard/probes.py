"""Probes on the scorecard: is a known causal variable read out where it is, and nothing where labels are shuffled?"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from ..analyses.probes.fitting import Labelled, probe
from ..ground_truth import Compiled, score_units
from ..ground_truth.planted import planted
from ..interventions.model import Model
from ..interventions.run import run
from ..models import gpt2
from ..models.parts.attention import Attention
from ..models.parts.delta import GatedDelta
from ..models.parts.feed_forward import GatedMLP
from ..models.parts.mamba1 import Mamba1Mixer
from ..models.parts.mamba2 import Mamba2Mixer
from ..tasks import Prompts, Task
from ..utils.errors import MechintError
from .cost import cost

METHODS = ("lasso", "logistic")
"""Probes of planted features; on compiled models only the first, whose weights point at units."""
SHUFFLES, DRAWS = 9, 199


def labelled(values: Any, task: Task, prompts: Prompts) -> Labelled:
    """Activations [n, unit] with the last answer, the causal variable of every task here, as their label."""
    answer = task.labels(prompts)["answer"].numpy()
    return Labelled(np.asarray(values.double().numpy()), answer, prompts.template.numpy())


@torch.no_grad()
def speakers(compiled: Compiled) -> tuple[str, torch.Tensor]:
    """The site where the circuit's last layer writes answers, and the channels that write them, [channel] bool.

    The site is ``gated`` of a recurrence; of attention ``head_out``, its heads laid out side by side, or ``mlp_post``
    where neurons say them.
    """
    model, truth = compiled.model, compiled.truth
    layer = max(at for at, _ in truth.units("layer"))
    here = lambda kind: [unit for at, unit in truth.units(kind) if at == layer]
    norm, head = model.ending
    head = head * (cast(torch.Tensor, norm.weight) + getattr(norm, "plus", 0.0))  # [V, D]
    found = []
    for part in model.parts_of(layer).values():
        for site, writes, units in writers(part, here):
            declared = torch.zeros(writes.shape[1], dtype=torch.bool)
            declared[units] = True
            found.append((f"layers.{layer}.{site}", declared & ((head @ writes).abs().amax(0) > 1e-6)))
    return max(found, key=lambda place: int(place[1].sum()))


Here = Callable[[str], list[tuple[int, ...]]]
"""The declared units of a kind in one layer."""
Writers = list[tuple[str, torch.Tensor, list[int]]]
"""Sites of a part, what it adds to the stream for each number there [model, channel], and the declared channels."""


@functools.singledispatch
def writers(part: nn.Module, here: Here) -> Writers:
    """The sites of a part that a linear map takes to the stream.

    Raises:
        MechintError: none is known of parts of this kind.
    """
    raise MechintError(f"no site is known where a {type(part).__name__} says answers; leave its model out")


@writers.register
def mamba_writers(part: Mamba1Mixer, here: Here) -> Writers:
    return [("gated", part.out_proj.weight, [e for (e,) in here("channel")])]


@writers.register(Mamba2Mixer)
@writers.register(GatedDelta)
def memory_writers(part: Any, here: Here) -> Writers:
    return [("gated", part.out_proj.weight, [h * part.value_size + e for h, e in here("ssm_channel")])]


@writers.register
def head_writers(part: gpt2.Attention, here: Here) -> Writers:
    width = part.c.d_head
    return [("head_out", part.c_proj.weight, [h * width + e for value, h, e in here("kv") if value])]


@writers.register
def attention_writers(part: Attention, here: Here) -> Writers:
    shared = part.n_head // part.n_kv_head  # heads that read the same values
    units = [(h, e) for value, h, e in here("kv") if value]
    each = [(h * shared + k) * part.d_head + e for h, e in units for k in range(shared)]
    return [("head_gated" if part.gated else "head_out", part.o_proj.weight, each)]


@writers.register
def neuron_writers(part: gpt2.MLP, here: Here) -> Writers:
    return [("mlp_post", part.c_proj.weight, [n for (n,) in here("mlp")])]


@writers.register
def gated_writers(part: GatedMLP, here: Here) -> Writers:
    return [("mlp_post", part.down_proj.weight, [n for (n,) in here("mlp")])]


def score_probes(compiled: Compiled, count: int, seed: int) -> list[dict[str, Any]]:
    """For each kind of probe: accuracy on held-out prompts, how it ranks channels, and p-values of shuffled labels.

    The probe reads the site of :func:`speakers` at the answer's position. Shuffled: among prompts, on both sides,
    before the probe sees anything.
    """
    task, model = compiled.task, compiled.model
    site, says = speakers(compiled)
    train, test = (
        labelled(at_last(model, site, prompts), task, prompts)
        for prompts in (task.sample(count, split, seed).last() for split in ("discovery", "evaluation"))
    )
    rng = np.random.default_rng(seed)
    mixed, other = (dataclasses.replace(data, y=rng.permutation(data.y)) for data in (train, test))
    found = []
    for method in METHODS[:1]:
        with cost() as spent:
            fitted = probe(train, test, method, "answer", shuffles=SHUFFLES, draws=DRAWS, seed=seed)
        score = score_units(says.float(), np.abs(fitted.weights).max(0), f"{method} probe")
        nothing = probe(mixed, other, method, "shuffled answer", shuffles=1, draws=DRAWS, seed=seed)
        found.append(
            {
                "method": method, "accuracy": float(fitted.score["value"]), "chance": float(fitted.shuffled["value"]),
                "auroc": score.auroc, "average_precision": score.average_precision, "exact": float(score.exact),
                "units": score.units, "total": score.total, "p": fitted.p, "p_shuffled": nothing.p,
                **spent,
            }
        )  # fmt: skip
    return found


def at_last(model: Model, site: str, prompts: Prompts) -> torch.Tensor:
    """A site at the last answer's position, units of several axes laid out, [n, unit]."""
    values = run(model, prompts.tokens, record=[site], logits_at=prompts.positions[:, :0]).values[site]
    return values[torch.arange(len(prompts)), prompts.positions[:, -1]].flatten(1)


def score_planted_probes(seed: int, count: int) -> list[dict[str, Any]]:
    """The class of planted features: at the query, where it is (state, stream after the layer) and where it is not."""
    source = planted(seed=seed)
    sides = [source.task.sample(count, split, seed) for split in ("discovery", "evaluation")]
    rows = []
    for site in source.directions:
        train, test = (labelled(source.read(site, prompts.tokens)[:, -1], source.task, prompts) for prompts in sides)
        for method in METHODS:
            fitted = probe(train, test, method, "class", shuffles=SHUFFLES, draws=DRAWS, seed=seed)
            rows.append({"site": site, "method": method, "accuracy": float(fitted.score["value"]), "p": fitted.p})
    return rows
