"""Planted features: a Mamba whose residual stream and state hold known sparse directions, one of which decides answers.

Each *content* token is a sum of a few features, directions of which there are more than dimensions. The layer's state
keeps those of the last content token, whatever fillers follow, and writes them back into dimensions of their own:

=========================  ======================================================  ====================
site                       features                                                width
=========================  ======================================================  ====================
``layers.0.resid_pre``     those of the token                                      ``dims``
``layers.0.state``         those of the last content token, one entry each of      ``dims``
                           ``dims`` channels
``layers.0.resid_post``    both, in two blocks                                     2 · ``dims``
=========================  ======================================================  ====================

One feature of each content token is its *class*; the answer at the query is the class of the last content token, which
the head reads from the second block: the class is a causal variable of the state and of ``resid_post``, and at the
query is nowhere in ``resid_pre``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..interventions.run import run
from ..models.mamba import Mamba, MambaConfig
from ..tasks.answers import Prompts
from ..tasks.base import Task, draw_in_split
from ..utils.errors import MechintError
from .mamba.canvas import ON, SHUT, SIGNAL

LIFT = 12.0
"""Bias under which SiLU is linear: SiLU(12 + x) is 12 + x to 5e-4 for |x| < 4."""
STEP = 4.0
"""Δ at a content token; the state forgets by exp(-16)."""
GAIN = 3.0
SITES = ("layers.0.resid_pre", "layers.0.state", "layers.0.resid_post")


@dataclass(frozen=True)
class PlantedSizes:
    """Sizes of a model with planted features.

    Attributes:
        features: Directions, the classes among them.
        classes: Features of which each content token has exactly one; their directions are orthogonal to all others.
        dims: Dimensions of a block; fewer than the features.
        active: Features of a content token besides its class, on average.
        contents, fillers: Tokens with features and without.
        length: Tokens of a prompt, the query last.
        idle: Channels that read at random and write where no unit reads.
    """

    features: int = 48
    classes: int = 4
    dims: int = 32
    active: float = 2.0
    contents: int = 512
    fillers: int = 16
    length: int = 12
    idle: int = 28

    def __post_init__(self) -> None:
        if not 2 <= self.classes < min(self.dims, self.features) or self.length < 3 or self.contents < 8 * self.classes:
            raise MechintError(
                f"planted features: {self.classes} classes of {self.features} features in {self.dims} dimensions, "
                f"{self.contents} contents and {self.length} tokens do not fit; it needs 2 classes at least, more "
                f"features and dimensions than classes, 8 contents for each, and 3 tokens"
            )


class PlantedTask(Task):
    """Contents and fillers in any order, then the query: the class of the last content token.

    Tokens: contents, fillers, the query, then one answer for each class.
    """

    name = "planted"
    has_twins = True
    order_matters = True

    def __init__(self, sizes: PlantedSizes, kind: Tensor) -> None:
        self.sizes, self.kind = sizes, kind  # [content]
        self.query = sizes.contents + sizes.fillers
        self.answer = self.query + 1
        self.vocab_size, self.length = self.answer + sizes.classes, sizes.length
        self.description = (
            f"Planted features: the class of the last of the content tokens among fillers in {sizes.length} tokens; "
            f"{sizes.features} directions in {sizes.dims} dimensions, {sizes.classes} of them classes"
        )

    def draw(self, count: int, split: str, random: torch.Generator) -> Prompts:
        s = self.sizes
        tokens, template = draw_in_split(
            lambda n: torch.randint(s.contents, (n, s.length), generator=random), count, split
        )
        filler = torch.rand(tokens.shape, generator=random) < 0.5
        filler[:, 0], filler[:, -1] = False, False
        last = torch.where(filler, -1, torch.arange(s.length))[:, :-1].amax(1, keepdim=True)
        content = torch.randint(s.contents, (count, 64), generator=random)  # of these one of another class
        here = self.kind[tokens.gather(1, last)]
        changed = content.gather(1, (self.kind[content] != here).int().argmax(1, keepdim=True))
        fillers = torch.randint(s.fillers, tokens.shape, generator=random) + s.contents
        tokens = torch.where(filler, fillers, tokens)
        tokens[:, -1] = self.query
        twins = tokens.scatter(1, last, changed)
        answers, wrong = (self.answer + self.kind[part.gather(1, last)] for part in (tokens, twins))
        positions = torch.full((count, 1), s.length - 1)
        return Prompts(tokens, positions, answers, twins, wrong, template)

    def decode(self, token: int) -> str:
        s = self.sizes
        names = (("c", 0, s.contents), ("f", s.contents, s.fillers), ("query", self.query, 1))
        for name, first, count in names:
            if token < first + count:
                return name if count == 1 else f"{name}{token - first}"
        return f"class {token - self.answer}"


@dataclass(frozen=True)
class Planted:
    """A model with planted features.

    Attributes:
        model: The Mamba.
        task: Its prompts.
        directions: By site, [feature, width]; of ``resid_post`` first the features of the token, then those kept.
        codes: Strengths of the features of each token, [vocabulary, feature].
        keepers: The channels whose state keeps the features, [dims].
    """

    model: Mamba
    task: PlantedTask
    directions: dict[str, Tensor]
    codes: Tensor
    keepers: Tensor

    @torch.no_grad()
    def read(self, site: str, tokens: Tensor) -> Tensor:
        """The dimensions of a site where features are, [n, L, width]: Σ strength · direction.

        A state is taken less its value without any feature, in units of a strength.
        """
        value = run(self.model, tokens, record=[site], logits_at=tokens[:, :0]).values[site]
        dims = self.task.sizes.dims
        if site == "layers.0.state":
            return value[..., self.keepers, 0] / STEP - LIFT
        return value[..., : dims if site == "layers.0.resid_pre" else 2 * dims]

    def strengths(self, site: str, tokens: Tensor) -> Tensor:
        """The true strength of each feature of a site, [n, L, feature], from the tokens alone."""
        now = self.codes[tokens]
        content = tokens < self.task.sizes.contents
        steps = torch.arange(tokens.shape[1]).expand_as(tokens)
        last = torch.where(content, steps, -1).cummax(1).values
        kept = now.gather(1, last.clamp(min=0)[..., None].expand_as(now)) * (last >= 0)[..., None]
        if site == "layers.0.resid_pre":
            return now
        return kept if site == "layers.0.state" else torch.cat([now, kept], -1)


def planted(sizes: PlantedSizes | None = None, seed: int = 0) -> Planted:
    """A model with features drawn anew for each seed."""
    s = sizes or PlantedSizes()
    random = torch.Generator().manual_seed(seed)
    directions, codes, kind = draw_features(s, random)
    task = PlantedTask(s, kind)
    codes = torch.cat([codes, torch.zeros(task.vocab_size - s.contents, s.features)])
    model, keepers = draw_model(s, task, directions, codes, random)
    model.source = "planted features"
    nothing = torch.zeros_like(directions)
    both = torch.cat([torch.cat([directions, nothing], 1), torch.cat([nothing, directions], 1)])
    return Planted(model, task, dict(zip(SITES, (directions, directions, both), strict=True)), codes, keepers)


def draw_features(s: PlantedSizes, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Unit directions [feature, dims], strengths [content, feature], and the class of each content token [content]."""
    basis = torch.linalg.qr(torch.randn(s.dims, s.dims, generator=random))[0].T
    others = torch.randn(s.features - s.classes, s.dims - s.classes, generator=random)
    others = torch.nn.functional.normalize(others, dim=-1) @ basis[s.classes :]
    on = torch.rand(s.contents, s.features, generator=random) < s.active / (s.features - s.classes)
    kind = torch.arange(s.contents) % s.classes
    on[:, : s.classes] = torch.nn.functional.one_hot(kind, s.classes).bool()
    strengths = on * (0.5 + torch.rand(s.contents, s.features, generator=random))
    return torch.cat([basis[: s.classes], others]), strengths, kind


@torch.no_grad()
def draw_model(
    s: PlantedSizes, task: PlantedTask, directions: Tensor, codes: Tensor, random: torch.Generator
) -> tuple[Mamba, Tensor]:
    """The weights, and the channels that keep the features, [dims].

    Residual dimensions: the token's features, those kept, then whether it is a content token, one that fills every
    embedding up to a root mean square of 1, so that the first norm changes nothing, and eight that no unit reads.
    """
    flag, fill, unread = 2 * s.dims, 2 * s.dims + 1, slice(2 * s.dims + 2, 2 * s.dims + 10)
    width, E = 2 * s.dims + 10, s.dims + 2 + s.idle
    sizes: dict[str, Any] = {"d_model": width, "n_layer": 1, "d_inner": E, "d_state": 2, "dt_rank": 1}
    config = MambaConfig(vocab_size=task.vocab_size, tied=False, proj_bias=True, **sizes)
    model = Mamba(config).requires_grad_(False).eval()
    for parameter in model.parameters():
        parameter.zero_()
    model.norm_f.weight.fill_(1.0)
    w: Any = model.layers[0]
    embedding = model.embedding.weight
    embedding[:, : s.dims] = codes @ directions
    embedding[: s.contents, flag] = 1.0
    embedding[:, unread] = torch.randn(task.vocab_size, 8, generator=random)
    square = width - embedding.square().sum(1)
    if not bool((square > 0).all()):
        raise MechintError("planted features: a token has so many that its norm cannot be filled up; lower active")
    embedding[:, fill] = square.sqrt()
    order = torch.randperm(E, generator=random)
    keepers, opener, always, idle = order[: s.dims], order[s.dims], order[s.dims + 1], order[s.dims + 2 :]
    draw_layer(w, s, keepers, int(opener), int(always), flag)
    draw_idle(w, idle, unread, random)
    # the head: each class along its direction among those kept
    assert model.lm_head is not None
    model.lm_head.weight[task.answer :, s.dims : 2 * s.dims] = GAIN * math.sqrt(width) * directions[: s.classes]
    return model, keepers


def draw_layer(w: Any, s: PlantedSizes, keepers: Tensor, opener: int, always: int, flag: int) -> None:
    """Keepers copy a dimension of the token into their state when the opener says that it is a content token."""
    E, dims = w.c.d_inner, torch.arange(s.dims)
    w.norm.weight.fill_(1.0)
    w.in_proj.weight[keepers, dims] = 1.0
    w.in_proj.weight[opener, flag] = SIGNAL
    w.in_proj.bias[E:] = SIGNAL  # gates are ON
    w.conv1d.weight[:, 0, -1] = 1.0
    w.conv1d.bias[keepers] = LIFT
    w.conv1d.bias[always] = SIGNAL
    closed, opened = (math.log(math.expm1(step)) for step in (SHUT, STEP))
    w.dt_proj.bias.fill_(closed)
    w.x_proj.weight[0, opener] = 1 / ON
    w.dt_proj.weight[keepers, 0] = opened - closed
    w.A_log.fill_(math.log(4.0))
    w.x_proj.weight[[1, 3], always] = 1 / ON  # B and C of state 0 are 1
    w.out_proj.weight[s.dims + dims, keepers] = 1 / (STEP * ON)
    w.out_proj.bias[s.dims : 2 * s.dims] = -LIFT


def draw_idle(w: Any, idle: Tensor, unread: slice, random: torch.Generator) -> None:
    """Channels that read everything and write where no unit reads; state 1 is written and never read."""
    E, width = w.c.d_inner, w.c.d_model
    normal = lambda *shape: torch.randn(shape, generator=random)
    w.in_proj.weight[idle] = normal(len(idle), width) / math.sqrt(width)
    w.in_proj.weight[E + idle] = normal(len(idle), width) / math.sqrt(width)
    w.conv1d.weight[idle, 0] = normal(len(idle), w.c.d_conv) / math.sqrt(w.c.d_conv)
    w.dt_proj.bias[idle] = torch.rand(len(idle), generator=random) * 2 - 3
    w.dt_proj.weight[idle, 0] = normal(len(idle))
    w.D[idle] = 1.0
    w.x_proj.weight[2] = normal(E) / math.sqrt(E)  # B of state 1
    w.out_proj.weight[unread, idle] = normal(unread.stop - unread.start, len(idle))
