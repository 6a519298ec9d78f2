"""Ways of scoring the links of a newer memory: one number for each writer and each reader of
:mod:`mechint.ground_truth.memories.links`."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ...analyses.circuits.methods.single_units import exchange_effects
from ...ground_truth.memories.links import ends, laid_out, later
from ...interventions.edits import Edit
from ...interventions.model import Model
from ...interventions.run import run
from ...interventions.units import Units
from ...tasks import Prompts

KINDS = ("ssm_channel", "q", "kv", "mlp")


@functools.lru_cache(maxsize=1)
@torch.no_grad()
def patched(model: Model, prompts: Prompts) -> Tensor:
    """The effect of mean-ablating each writer on each reader after it, [1, writer, 1, reader].

    Root mean square over tokens in standard deviations of the reader, the mean over prompts; of a gated neuron the root
    of the sum of both its projections' squares.
    """
    writers, readers = ends(model)
    there, nowhere = later(model), prompts.positions[:, :0]
    names, written = ([name for end in side for name in end.names] for side in (readers, writers))
    clean = run(model, prompts.tokens, [*names, *written], logits_at=nowhere).values
    spread = {name: clean[name].flatten(2).std((0, 1)).clamp(min=torch.finfo().tiny) for name in names}
    found = torch.zeros(there.shape)
    for end, site in zip(writers, written, strict=True):
        behind = [reader for reader in readers if reader.place > end.place]
        if not behind:
            continue
        sites = [name for reader in behind for name in reader.names]
        mean = clean[site].mean(0)  # [L, …]
        for number, unit in enumerate(units_of(mean)):
            edit = Edit(site, "replace", mean[(slice(None), *unit)][:, None], units=[unit])
            moved = run(model, prompts.tokens, sites, [edit], logits_at=nowhere).values
            for reader in behind:
                squares = sum(
                    ((moved[name] - clean[name]).flatten(2) / spread[name]).square().mean(1) for name in reader.names
                )
                assert isinstance(squares, Tensor)  # every reader has a site
                found[0, end.units.start + number, 0, reader.units] = squares.sqrt().mean(0)
    return found


def units_of(values: Tensor) -> list[Any]:
    """The unit axes' indices of a site's values [L, …], in their order."""
    return [tuple(unit) for unit in torch.ones(values.shape[1:]).nonzero().tolist()]


def to_the_answer(model: Model, prompts: Prompts) -> Tensor:
    """The change of a reader times what that does to the answer: its exact effect with the twin's values."""
    kinds = [kind for kind in KINDS if kind in model.unit_kinds]
    effects = {
        kind: exchange_effects(model, prompts, Units(model, model.unit_kinds[kind]), each=True).abs().mean(1).float()
        for kind in kinds
        if kind != "ssm_channel"  # no readers
    }
    _, readers = ends(model)
    return patched(model, prompts) * laid_out(model, readers, effects)
