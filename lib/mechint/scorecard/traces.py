"""Causal traces on the scorecard: do they point at the declared position, and do they find nothing where nothing is?"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import torch

from ..analyses.circuits.methods.single_units import exchange_effects
from ..analyses.tracing.analyzer import CausalTracer
from ..analyses.tracing.options import TraceConfig
from ..analyses.tracing.results import role_means
from ..ground_truth import Compiled
from ..ground_truth.truth import POSITIONS
from ..interventions.model import Model
from ..interventions.run import run
from ..interventions.units import units_named
from ..tasks import Prompts, Task
from ..tasks.base import generator, mix
from ..utils.multiple_tests import max_t

NEAR = 0.99
"""A state restored later than it was written restores as much; its first position within 1 % of the most counts."""
NOTICED = 1e-3
"""Changes of a value, and shares of attention, above what rounding and idle units leave."""
NULL_DRAWS = 199
"""Bootstrap draws of one trial without effects: p-values are multiples of 1/200."""
POOL = 4
"""Prompts whose effects are measured for each prompt of a trial."""


PROJECTIONS = (
    *("in_proj", "x_proj", "dt_proj", "out_proj", "conv1d", "c_attn", "c_proj", "c_fc", "lm_head"),
    *("in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "q_proj", "k_proj", "v_proj", "o_proj"),
    *("gate_proj", "up_proj", "down_proj"),
)
NORMS = (
    *("norm", "norm_f", "ln_1", "ln_2", "ln_f"),
    *("input_layernorm", "post_attention_layernorm", "q_norm", "k_norm"),
)

"""Sites of a trace that must find nothing: the stream, and what later tokens read."""


def tracer(model: Model, sites: str) -> CausalTracer:
    return CausalTracer(model, TraceConfig(sites=sites, sever="", direction="denoise", attribution=False))


def positions(compiled: Compiled, count: int) -> dict[str, float]:
    """Share of prompts whose largest denoising effect, over all layers and positions, is at the declared place.

    A place is declared where either twin has it. Prompts are asked whose twin's run reads anything at these places that
    they have otherwise: where ticks alone differ a marker's write is the same, and of ticks that the twin's queries do
    not read the values restore nothing.

    Returns:
        ``write``, or ``v`` of a transformer: of the effects there, the largest is at a declared layer and position;
        ``state``: of the effects of states, the first that is ``NEAR`` the largest is. Empty when nothing is declared,
        no prompt is asked, or layers remember in different ways.
    """
    declared = [part for part in compiled.truth.parts if part.kind in POSITIONS and part.where is not None]
    if not declared or not kind_read(compiled.model):
        return {}
    prompts = compiled.task.sample(count, "evaluation", 0)
    assert prompts.wrong is not None  # every compiled task has twins
    last = prompts.last()
    assert last.twins is not None and last.wrong is not None
    twins = dataclasses.replace(last, tokens=last.twins, answers=last.wrong)
    there = torch.zeros(compiled.model.config.n_layer, *prompts.tokens.shape, dtype=torch.bool)
    for part in declared:
        assert part.where is not None
        there[part.layer] |= part.where.of(last) | part.where.of(twins)
    asked = (read_otherwise(compiled, last) & there).any(0).any(1)
    if not asked.any():
        return {}
    last, there = last[asked], there[:, asked]
    sites = ("write", "state") if kind_read(compiled.model) == "write" else ("v",)
    found = tracer(compiled.model, ",".join(sites)).trace(last, None)["denoise"]  # [panel, layer, position, prompt]
    shares = {}
    for name, effects in zip(sites, found, strict=True):
        flat = effects.flatten(0, 1)  # [layer · position, prompt]
        top = flat.amax(0)
        first = (flat >= NEAR * top).int().argmax(0) if name == "state" else flat.argmax(0)
        hit = there.transpose(1, 2).flatten(0, 1).gather(0, first[None])[0]
        shares[name] = float((hit & (top > 0)).double().mean())
    return shares


def kind_read(model: Model) -> str:
    """The site that later positions read: ``write`` where all layers have states, ``v`` where all attend, or none."""
    every = range(model.num_layers)
    return next((kind for kind in ("write", "v") if all(f"layers.{i}.{kind}" in model.sites for i in every)), "")


@torch.no_grad()
def read_otherwise(compiled: Compiled, prompts: Prompts) -> torch.Tensor:
    """True where a prompt differs from its twin in a value that the twin's run reads there, [layer, n, L] bool.

    For a Mamba these are writes, of which every later state keeps a part; of a transformer the declared value channels
    of heads that give the position any attention.
    """
    model = compiled.model
    assert prompts.twins is not None  # every compiled task has twins
    kinds = ("write",) if kind_read(model) == "write" else ("v", "pattern")
    sites = [f"layers.{layer}.{kind}" for layer in range(model.config.n_layer) for kind in kinds]
    nowhere = prompts.positions[:, :0]
    ours, theirs = (run(model, tokens, sites, logits_at=nowhere).values for tokens in (prompts.tokens, prompts.twins))
    if kinds == ("write",):
        return torch.stack([(ours[site] != theirs[site]).flatten(2).any(-1) for site in sites])
    c, found = model.config, []
    declared = compiled.truth.mask(model, "kv").view(c.n_layer, 2, c.n_head, c.d_head)[:, 1]
    for layer in range(c.n_layer):
        change = (ours[f"layers.{layer}.v"] - theirs[f"layers.{layer}.v"]).abs() * declared[layer]
        read = theirs[f"layers.{layer}.pattern"].amax(1).transpose(1, 2)  # [n, source, head]
        found.append(((change.amax(-1) > NOTICED) & (read > NOTICED)).any(-1))
    return torch.stack(found)


def random_model(like: Any, seed: int) -> Any:
    """A model of the same sizes with random weights, drawn large enough that every path matters.

    Not its own weights shuffled: those of a compiled GPT-2 pin its norms, and elsewhere make logits of 10⁷.
    """
    random = generator("random weights", seed)
    model = copy.deepcopy(like)
    with torch.no_grad():
        for module in model.modules():
            if getattr(module, "eps", 0.0) > 1:  # it divided by a constant
                module.eps = 1e-6
        for name, parameter in model.named_parameters():
            *_, kind, tensor = f".{name}".split(".")
            parameter.normal_(generator=random)
            if kind in PROJECTIONS and parameter.dim() > 1:
                parameter.mul_(2 / parameter[0].numel() ** 0.5)
            elif kind in NORMS:
                parameter.mul_(0.1).add_(float(tensor == "weight"))
            elif kind == "dt_proj":
                parameter.sub_(1)
    model.source = "random weights"
    return model.eval().requires_grad_(False)


def null_trials(model: Model, task: Task, count: int, trials: int, seed: int) -> dict[str, list[float]]:
    """The least adjusted p-value of each of several samples of real effects whose means are taken away.

    The corrupted run of each prompt is an unrelated one, from a second draw. Effects of :data:`POOL` times ``count``
    prompts are measured once, and their means over these prompts subtracted: they keep their skewness, their tails and
    what they have in common, and no mean is other than zero. Each trial draws ``count`` of the prompts; a fair test
    calls a cell significant at 5 % in at most 5 % of the trials. Cells that take fewer values than a trial has prompts
    are left out: one that is zero but for a rare prompt is, with its mean taken away, most often a constant that is not
    zero, and no test can tell.

    Returns:
        ``trace``: of causal traces of residual and memory; ``units``: of patching every unit alone. Empty where no cell
        is left.
    """
    prompts, others = (task.sample(POOL * count, "train", 2 * seed + draw) for draw in (0, 1))
    mixed = unrelated(prompts, others)
    random = np.random.default_rng(mix("centred effects", task.name, model.source, seed))
    samples = random.integers(POOL * count, size=(trials, count))
    seeds = random.integers(2**31, size=trials)  # draws of one seed would err alike in all trials
    each = np.arange(count)

    def least(means: Any) -> list[float]:
        flat = np.asarray(means, dtype=np.float64).reshape(len(prompts), -1)
        various = [len(np.unique(cell[~np.isnan(cell)].round(6))) >= count for cell in flat.T]
        if not any(various):
            return []
        flat = flat[:, various]
        centred = flat - np.nanmean(flat, 0)
        return [
            float(np.nanmin(max_t(centred[rows], each, NULL_DRAWS, int(s)), initial=1.0))
            for rows, s in zip(samples, seeds, strict=True)
        ]

    scored = units_named(model, model.scored_unit)
    units = exchange_effects(model, mixed, scored).numpy()
    return {"trace": least(effects(model, task, mixed)), "units": least(units.T)}


def unrelated(prompts: Prompts, others: Prompts) -> Prompts:
    """Prompts with others as twins. Last answers only."""
    return dataclasses.replace(
        prompts,
        positions=prompts.positions[:, -1:],
        twins=others.tokens,
        answers=prompts.answers[:, -1:],
        wrong=others.answers[:, -1:],
    )


def effects(model: Model, task: Task, prompts: Prompts) -> Any:
    """Effects of a trace of residual and memory, [prompt, panel, layer, role]; all prompts count, answered or not."""
    found = tracer(model, f"resid_post,{model.memory[0]}").trace(prompts, None)["denoise"]
    _, roles = task.roles(prompts)
    wanted = sorted({int(role) for role in roles.unique()} - {-1})
    return role_means(found.numpy(), roles.numpy(), wanted)


def same_twins(model: Model, task: Task, count: int, seed: int) -> float:
    """The largest effect of any cell when every twin is the prompt itself: zero, or the trace adds something."""
    prompts = task.sample(count, "evaluation", seed)
    assert prompts.wrong is not None  # every compiled task has twins
    same = dataclasses.replace(prompts, twins=prompts.tokens)
    found = tracer(model, f"resid_post,{model.memory[0]}").trace(same, None)["denoise"].numpy()
    return float(np.nanmax(np.abs(found)))  # layers without the site have no number
