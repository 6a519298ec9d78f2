"""The effects of paths on the prompts of a batch, for the analysis and for notebooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...interventions.model import Model
from ...interventions.path_patching import Node, PathPatching
from ...tasks import Prompts
from ...utils.errors import MechintError, check_type
from ..interchange import Corruption, Interchange
from . import nodes


@dataclass(frozen=True)
class PathEffects:
    """The effects of direct paths, in the units of the metric; on the CPU in float64.

    ``found["embed", "layers.1.q[2]"]`` are those of one pair, [prompt].

    Attributes:
        senders, receivers: The nodes, in the order of the forward.
        effects: [sender, receiver, prompt]: what is lost in the clean run (``noise``), or comes back in the twin's
            (``denoise``). NaN where the receiver reads before the sender writes.
        totals: The effect of all paths out of a sender, [sender, prompt].
        named: The effect of each further path, [path, prompt].
        clean, corrupted: The metric of the prompts and of their twins, [prompt].
        right: True where the model says the right answer, [prompt].
    """

    senders: list[Node]
    receivers: list[Node]
    effects: Tensor
    totals: Tensor
    named: Tensor
    clean: Tensor
    corrupted: Tensor
    right: Tensor
    along: list[list[Node]] = field(default_factory=list)

    def __getitem__(self, pair: tuple[str, str]) -> Tensor:
        found = []
        for name, known in zip(pair, (self.senders, self.receivers), strict=True):
            texts = [str(node) for node in known]
            if name not in texts:
                raise MechintError(f"paths: {name!r} was not measured; there are {', '.join(texts)}")
            found.append(texts.index(name))
        return self.effects[found[0], found[1]]

    def strongest(self, count: int = 10) -> list[tuple[str, str, float]]:
        """The pairs of the largest mean effects: (sender, receiver, mean over the answered prompts)."""
        mean = self.effects[:, :, self.right].mean(-1)
        order = mean.abs().nan_to_num(-1.0).flatten().sort(descending=True, stable=True).indices.tolist()
        width = len(self.receivers)
        every = [(str(self.senders[k // width]), str(self.receivers[k % width]), mean.flatten()[k]) for k in order]
        return [(sender, receiver, float(value)) for sender, receiver, value in every if value == value][:count]


@torch.no_grad()
def paths(
    model: Model,
    prompts: Prompts,
    senders: nodes.Said = "usual",
    receivers: nodes.Said = "usual",
    *,
    along: nodes.Said = (),
    direction: str = "noise",
    metric: str = "logit_diff",
    heads: bool = True,
    memory_mib: float = 1024.0,
    whole: bool = False,
) -> PathEffects:
    """Measures the effects of what senders give receivers directly, on prompts with twins; docs/paths.md has more.

    Args:
        model: From :func:`mechint.load`.
        prompts: Prompts of one length, from a task: ``mechint.tasks.make_task(...).sample(64, "evaluation", 0)``.
        senders, receivers: Kinds of site (``head_out``, ``q``), single sites (``layers.0.head_out[2]``, with ``@-1``
            for one position), several with commas or in a list; ``usual`` takes those that the model's parts have.
        along: Further paths, each as ``embed > layers.0.attn_out > logits``.
        direction: ``noise`` gives the twin's part to the clean run, ``denoise`` the clean part to the twin's run.
        metric: ``logit_diff``, ``answer_logprob`` or ``answer_prob``.
        heads: True splits kinds of site that have heads.
        memory_mib: MiB of one sweep.
        whole: True measures all answers of a prompt as one.

    Raises:
        MechintError: prompts without twins; a site, unit, path, direction or metric that there is not.
    """
    check_type(prompts, Prompts, "paths: prompts", 'those of a task: make_task(…).sample(64, "evaluation", 0)')
    froms, tos = nodes.senders(model, senders, heads), nodes.receivers(model, receivers, heads)
    further = nodes.paths(model, along)
    if prompts.twins is None:
        raise MechintError("paths: the prompts have no counterfactual twins, whose values senders are given; add them")
    pair = Interchange(model, prompts, Corruption("twin"), direction, metric, whole or prompts.whole)
    every = list(dict.fromkeys([*froms, *(path[0] for path in further)]))
    tokens, others = pair.receiver[0], pair.donor[0]
    patching = PathPatching(model, tokens, others, every, pair.metric, pair.logits_at, memory_mib)
    sign = -1.0 if direction == "noise" else 1.0
    signed = lambda change: sign * change + 0.0
    named = [signed(patching.along(path)) for path in further]
    return PathEffects(
        senders=froms,
        receivers=tos,
        effects=signed(patching.effects(froms, tos)),
        totals=signed(patching.totals(froms)),
        named=torch.stack(named) if named else torch.zeros(0, len(prompts), dtype=torch.float64),
        clean=pair.clean,
        corrupted=pair.corrupted_value,
        right=pair.right,
        along=further,
    )


@torch.no_grad()
def of_directions(
    model: Model,
    prompts: Prompts,
    directions: Mapping[str, str],
    senders: nodes.Said,
    receivers: nodes.Said,
    **options: Any,
) -> dict[str, Tensor]:
    """The effects on a batch by what each direction is called, for :class:`~.results.Finished`.

    ``NAME paths`` [sender, receiver, prompt], ``NAME totals`` [sender, prompt], ``NAME named`` [path, prompt]; and the
    ends ``clean``, ``corrupted`` and ``right``, [prompt].

    Args:
        directions: For each name ``noise`` or ``denoise``.
        options: The others of :func:`paths`.
    """
    parts: dict[str, Tensor] = {}
    for name, direction in directions.items():
        found = paths(model, prompts, senders, receivers, direction=direction, **options)
        parts |= {f"{name} paths": found.effects, f"{name} totals": found.totals, f"{name} named": found.named}
        parts |= {"clean": found.clean, "corrupted": found.corrupted, "right": found.right}
    return parts


def pairs(model: Model, froms: Sequence[Node], tos: Sequence[Node]) -> int:
    """The pairs of a sender and a receiver that reads after it writes."""
    order = {site: place.order for site, place in nodes.places(model).items()}
    return sum(order[one.site] < order[then.site] for one in froms for then in tos)
