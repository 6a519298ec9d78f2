"""Direct logit attribution: what every part of the model adds to the answer's logit, with the final norm's scale held.

The residual stream behind the last layer is the sum of the embeddings and of what every part adds. With the scale 1/rms
(or 1/σ) of the final norm held, the norm is a linear map and a bias, so the logit is the sum of the shares of the
parts, of that bias and of the head's own (Elhage et al. 2021; nostalgebraist 2020). Where logits are capped, each
logit's ratio of behind to before the cap is held, too.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...interventions.model import Model
from ...interventions.run import run
from ...interventions.taps import wanted
from ...models.parts.norms import LayerNorm, NoNorm, RMSNorm, WeightlessLayerNorm, WeightlessRMSNorm
from ...tasks import Prompts
from ...utils.errors import MechintError
from .reading import ROOM, stream_sites

BIAS = "norm bias"
"""The name of what the bias of the final norm gives."""
HEAD_BIAS = "head bias"
"""The name of what the bias of the head gives."""


@dataclass(frozen=True)
class HeldNorm:
    """A norm at given residual vectors, as the linear map and the bias that it is while its scale is held.

    Attributes:
        scale: [..., 1].
        weight: [model] or a number.
        centred: True if it takes the mean away.
        bias: [model]; None for none.
    """

    scale: Tensor
    weight: Tensor | float
    centred: bool = False
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """The image of a part x [..., model] of the residual stream."""
        return (x - x.mean(-1, keepdim=True) if self.centred else x) * self.scale * self.weight


@functools.singledispatch
def held(norm: nn.Module, r: Tensor) -> HeldNorm:
    """The final norm with its scale at the residual stream r [..., model] held.

    Raises:
        MechintError: there is no rule for this norm.
    """
    raise MechintError(
        f"direct attribution has no rule for the final norm {type(norm).__name__}; add one to {__name__}"
    )


def reciprocal(r: Tensor, eps: float) -> Tensor:
    return torch.rsqrt(r.square().mean(-1, keepdim=True) + eps)


@held.register
def _(norm: RMSNorm, r: Tensor) -> HeldNorm:
    return HeldNorm(reciprocal(r, norm.eps), norm.plus + norm.weight.to(r))


@held.register
def _(norm: WeightlessRMSNorm, r: Tensor) -> HeldNorm:
    return HeldNorm(reciprocal(r, norm.eps), 1.0)


@held.register
def _(norm: LayerNorm, r: Tensor) -> HeldNorm:
    scale = reciprocal(r - r.mean(-1, keepdim=True), norm.eps)
    return HeldNorm(scale, norm.weight.to(r), True, None if norm.bias is None else norm.bias.to(r))


@held.register
def _(norm: WeightlessLayerNorm, r: Tensor) -> HeldNorm:
    return HeldNorm(reciprocal(r - r.mean(-1, keepdim=True), norm.eps), 1.0, True)


@held.register
def _(norm: NoNorm, r: Tensor) -> HeldNorm:
    return HeldNorm(torch.ones_like(r[..., :1]), 1.0)


def part_sites(model: Model) -> list[str]:
    """Every site whose values add up to the residual stream behind the last layer, in the forward's order."""
    inside = [name for name in model.sites if name.startswith("layers.") and model.added_at(name) == name]
    return [*model.first_sites, *inside]


@dataclass(frozen=True)
class Contributions:
    """The contributions of all parts to a quantity of each prompt.

    Attributes:
        parts: Names: sites, :data:`BIAS` where the final norm has one, and :data:`HEAD_BIAS` where the head has one.
        values: [prompt, part], in float64; the mean over the answers of a prompt.
        total: The quantity itself, from the model's own logits, [prompt].
    """

    parts: list[str]
    values: Tensor
    total: Tensor

    @property
    def remainder(self) -> float:
        """The largest difference between the sum of the parts and the quantity: what rounding leaves."""
        return float((self.values.sum(-1) - self.total).abs().max())


@torch.no_grad()
def contributions(model: Model, prompts: Prompts, difference: bool) -> Contributions:
    """The contribution of every part to the answer's logit.

    Args:
        prompts: Where several ids are right (or wrong), the mean of their logits counts.
        difference: Subtract the logit of the wrong answer.

    Raises:
        MechintError: the difference is asked for, and the prompts have no wrong answer.
    """
    if difference and prompts.bad() is None:
        raise MechintError("a logit difference needs a wrong answer, and these prompts have none; take the logit")
    rows = max(1, ROOM // (prompts.positions.shape[1] * len(model.embeddings)))
    every = torch.arange(len(prompts), device=prompts.tokens.device)
    return joined([of_some(model, prompts[some], difference) for some in every.split(rows)])


def of_some(model: Model, prompts: Prompts, difference: bool) -> Contributions:
    """:func:`contributions` of prompts whose logits are held at once."""
    good, bad = prompts.good(), prompts.bad()
    sites, last = part_sites(model), stream_sites(model)[-1]
    seen = run(model, prompts.tokens, [*sites, last], logits_at=prompts.positions)
    at = lambda site: wanted(seen[site], prompts.positions).double()
    norm = held(model.ending[0], at(last))
    ids, signs = good, torch.ones_like(good, dtype=torch.float64)
    signs = signs.masked_fill(good < 0, 0) / (good >= 0).sum(-1, keepdim=True)
    if difference and bad is not None:
        against = torch.ones_like(bad, dtype=torch.float64).masked_fill(bad < 0, 0) / (bad >= 0).sum(-1, keepdim=True)
        ids, signs = torch.cat([good, bad], -1), torch.cat([signs, -against], -1)
    ids = ids.clamp(min=0)
    total = (seen.logits.gather(-1, ids).double() * signs).sum(-1).mean(-1)
    direction = direction_of(model, norm, at(last), ids, signs)  # [n, Q, model]
    shares = {site: (norm(at(site)) * direction).sum(-1) for site in sites}
    if norm.bias is not None:
        shares[BIAS] = (norm.bias * direction).sum(-1)
    if model.head_bias is not None:
        shares[HEAD_BIAS] = (model.head_bias[ids].double() * factors_of(model, norm, at(last), ids, signs)).sum(-1)
    values = torch.stack([share.mean(-1) for share in shares.values()], -1)
    return Contributions(list(shares), values.cpu(), total.cpu())


def direction_of(model: Model, norm: HeldNorm, r: Tensor, ids: Tensor, signs: Tensor) -> Tensor:
    """The direction behind the final norm along which the signed sum of some logits is read, [n, Q, model].

    Args:
        r: The residual stream behind the last layer [n, Q, model].
        ids, signs: Tokens and the factors of their logits, [n, Q, A].
    """
    rows = model.ending[1][ids].double()  # [n, Q, A, model]
    return (rows * factors_of(model, norm, r, ids, signs).unsqueeze(-1)).sum(-2)


def factors_of(model: Model, norm: HeldNorm, r: Tensor, ids: Tensor, signs: Tensor) -> Tensor:
    """The factors of what the head gives, its bias included, in the signed sum of some logits, [n, Q, A].

    The arguments are those of :func:`direction_of`.
    """
    factors = signs * model.logit_scale
    if not model.logit_cap:
        return factors
    read = norm(r) if norm.bias is None else norm(r) + norm.bias
    given = (model.ending[1][ids].double() @ read.unsqueeze(-1)).squeeze(-1)
    given = given if model.head_bias is None else given + model.head_bias[ids].double()
    before = given * model.logit_scale / model.logit_cap
    return factors * torch.where(before == 0, 1.0, torch.tanh(before) / before)


def joined(found: Sequence[Contributions]) -> Contributions:
    """Contributions to several batches as one."""
    return Contributions(
        found[0].parts, torch.cat([one.values for one in found]), torch.cat([one.total for one in found])
    )
