"""Mixtures of experts (Shazeer et al. 2017): a router chooses a few feed-forward experts for each token.

Axes: B batch, L position, D model, X expert, T tokens that chose one expert.
Sites: ``router`` (logits [B, L, X]), ``expert_weight`` (what each expert's output is multiplied by [B, L, X], 0 where
it is not chosen), the shared expert's own and ``shared_out``, where there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...interventions.sites import RESIDUAL
from ...interventions.taps import Scope
from ...interventions.unit_kinds import EXPERT_UNITS, NEURON_UNITS
from ...scan.checks import accumulate
from ...utils.errors import MechintError
from .base import Part, PartSite
from .feed_forward import ACTIVATIONS

EXPERTS = ("batch", "position", "expert")
ROWS = 8
"""An expert's tokens, in the order of their positions, are filled up to a multiple of this: products of other numbers
of rows may round otherwise, and what a later token chooses must not change a bit of an earlier one."""


@dataclass(frozen=True)
class Routing:
    """The rule by which a token's experts and their weights follow from the logits of its router."""

    chosen: int
    """Experts for each token: those of the largest scores."""
    scores: str = "softmax"
    """``softmax``: weights are probabilities among all experts (Jamba, Qwen); ``chosen``: among the chosen ones
    (Granite); ``sigmoid``: each expert's logit apart (Kimi, Nemotron-H)."""
    normalised: bool = False
    """True if the chosen ones' weights are divided by their sum."""
    scale: float = 1.0
    """Multiplies the weights."""
    corrected: bool = False
    """True if a number of each expert is added to its score in the choice, and not in the weight."""
    groups: int = 1
    """Experts stand in so many groups of equal size."""
    chosen_groups: int = 1
    """Groups that a token chooses first, by the sum of their two largest scores."""
    floor: float = 1e-20
    """Added to the sum that sigmoids are divided by."""

    def check(self, experts: int, where: str) -> None:
        """Raises :class:`MechintError` for more chosen experts or groups than there are."""
        if experts % self.groups or self.chosen_groups > self.groups:
            raise MechintError(
                f"{where}: {self.chosen_groups} of {self.groups} groups of {experts} experts are chosen; correct it"
            )
        if self.chosen > (there := experts // self.groups * self.chosen_groups):
            raise MechintError(f"{where}: {self.chosen} experts are chosen for a token, of {there}; correct it")

    def weights(self, logits: Tensor, correction: Tensor | None = None) -> Tensor:
        """The weight of each expert, 0 for those that are not chosen: logits [B, L, X] -> [B, L, X]."""
        scores = logits if self.scores == "chosen" else logits.sigmoid() if self.scores == "sigmoid" else (
            logits.softmax(-1)
        )  # fmt: skip
        choice = scores if correction is None else scores + correction
        if self.groups > 1:
            grouped = choice.unflatten(-1, (self.groups, -1))
            best = grouped.topk(2, -1).values.sum(-1).topk(self.chosen_groups, -1).indices
            lost = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(-1, best, False)
            choice = grouped.masked_fill(lost.unsqueeze(-1), -torch.inf).flatten(-2)
        where = choice.topk(self.chosen, -1).indices  # [B, L, chosen]
        weights = scores.gather(-1, where)
        if self.scores == "chosen":
            weights = weights.softmax(-1)
        if self.normalised:
            weights = weights / (weights.sum(-1, keepdim=True) + (self.floor if self.scores == "sigmoid" else 0.0))
        weights = weights if self.scale == 1.0 else weights * self.scale
        return torch.zeros_like(scores).scatter(-1, where, weights)


class Router(nn.Module):
    """The logit of every expert, in at least float32, and the correction of the choice, if there is one."""

    e_score_correction_bias: Tensor | None

    def __init__(self, d_model: int, experts: int, wide: bool, corrected: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, d_model))
        self.wide = wide
        self.register_buffer("e_score_correction_bias", torch.zeros(experts) if corrected else None)
        if not self.weight.is_meta:
            nn.init.normal_(self.weight, std=0.02)

    def forward(self, n: Tensor) -> Tensor:  # [B, L, D] -> [B, L, X]
        if self.wide:
            return F.linear(accumulate(n), accumulate(self.weight))
        return accumulate(F.linear(n, self.weight))


class Expert(nn.Module):
    """One feed-forward network, gated or plain, on the tokens that chose it."""

    def __init__(self, d_in: int, d_mlp: int, activation: str, gated: bool) -> None:
        super().__init__()
        if gated:
            self.gate_proj = nn.Linear(d_in, d_mlp, bias=False)
        self.up_proj = nn.Linear(d_in, d_mlp, bias=False)
        self.down_proj = nn.Linear(d_mlp, d_in, bias=False)
        self.gated, self.activation = gated, ACTIVATIONS[activation]

    def forward(self, n: Tensor) -> Tensor:  # [T, D]
        if self.gated:
            return self.down_proj(self.activation(self.gate_proj(n)) * self.up_proj(n))
        return self.down_proj(self.activation(self.up_proj(n)))


class MixtureOfExperts(Part):
    """The chosen experts' outputs, summed by weight, and the shared expert's, if there is one.

    Parameters: ``router.weight``, ``experts.N.{gate_proj,up_proj,down_proj}.weight``, ``shared_expert.…``,
    ``shared_expert_gate.weight``, ``latent_in``, ``latent_out``; :func:`mechint.models.family.stacked` says how a file
    holds all experts as one. Each expert is computed for the tokens with a weight other than 0 alone: an edit of
    ``expert_weight`` takes out an expert or brings one in, an edit of ``router`` changes the choice, and the gradient
    by the weight of an expert that is not chosen is 0.

    Args:
        d_model, d_mlp, experts: D, neurons of an expert, and X.
        routing: The rule that chooses experts and weights.
        activation: Our name, as of the other feed-forward parts.
        gated: True if experts have a gate, as :class:`.GatedMLP` has, and not one projection in, as :class:`.MLP`.
        shared: A feed-forward part that every token goes through; its sites are this part's.
        shared_gate: True if a sigmoid of one more projection multiplies the shared one's output (Qwen).
        latent: Width of what the experts read and give, where it is not D; two maps stand around them (Nemotron-H).
        latent_bias: True if these maps have biases.
    """

    out = "mlp_out"
    mediators = ("mlp_out", "expert_weight")
    single: Sequence[str] = ("expert_weight", "mlp_out")
    ranked = "expert_weight"

    def __init__(
        self,
        d_model: int,
        d_mlp: int,
        experts: int,
        routing: Routing,
        activation: str = "silu",
        gated: bool = True,
        *,
        shared: Part | None = None,
        shared_gate: bool = False,
        latent: int = 0,
        latent_bias: bool = False,
    ) -> None:
        super().__init__()
        self.routing = routing
        self.router = Router(d_model, experts, routing.scores == "sigmoid", routing.corrected)
        width = latent or d_model
        self.experts = nn.ModuleList(Expert(width, d_mlp, activation, gated) for _ in range(experts))
        self.latent_in = nn.Linear(d_model, latent, bias=latent_bias) if latent else None
        self.latent_out = nn.Linear(latent, d_model, bias=latent_bias) if latent else None
        self.shared_expert = shared
        self.shared_expert_gate = nn.Linear(d_model, 1, bias=False) if shared_gate else None
        late = {"mlp_out": ("", "")}
        self.local = ("router", "expert_weight", "mlp_out")
        self.unit_kinds = EXPERT_UNITS
        if shared is not None:
            if not shared_gate:
                late |= {
                    site: (other, f"shared_expert.{module}")
                    for site, (other, module) in shared.late.items()
                    if site != shared.out
                }
            late["shared_out"] = ("", "")
            self.local = (*self.local, *(site for site in shared.local if site != shared.out), "shared_out")
            self.projected = shared.projected
            self.single, self.ranked = ("expert_weight", *shared.single), shared.ranked
            self.unit_kinds = {**EXPERT_UNITS, **NEURON_UNITS}
        self.late = dict(late)

    def sites(self) -> list[PartSite]:
        size = (len(self.experts),)
        found = [PartSite("router", EXPERTS, size), PartSite("expert_weight", EXPERTS, size)]
        if self.shared_expert is not None:
            found += [*self.shared_expert.sites(), PartSite("shared_out", RESIDUAL, (self.router.weight.shape[1],))]
        return found

    def forward(self, n: Tensor, cache: Any, at: Scope) -> tuple[Tensor, Any]:
        logits = at("router", self.router(n))
        weight = at("expert_weight", self.routing.weights(logits, self.router.e_score_correction_bias).to(n.dtype))
        out = self.mixed(n if self.latent_in is None else self.latent_in(n), weight)
        out = out if self.latent_out is None else self.latent_out(out)
        if self.shared_expert is None:
            return out, None
        shared, _ = self.shared_expert(n, None, at)
        if self.shared_expert_gate is not None:
            shared = torch.sigmoid(self.shared_expert_gate(n)) * shared
        return out + at("shared_out", shared), None

    def mixed(self, n: Tensor, weight: Tensor) -> Tensor:
        """The experts' outputs on n [B, L, ·], summed by weight [B, L, X] -> [B, L, ·]."""
        rows, weights = (x.transpose(0, 1).flatten(0, 1) for x in (n, weight))  # [token, ·], [token, X]; see ROWS
        out = torch.zeros_like(rows)
        for x in (weights != 0).any(0).nonzero().flatten().tolist():
            tokens = weights[:, x].nonzero().flatten()  # [T]
            filled = F.pad(rows[tokens], (0, 0, 0, -len(tokens) % ROWS))
            out = out.index_add(0, tokens, self.experts[x](filled)[: len(tokens)] * weights[tokens, x, None])
        return out.unflatten(0, (n.shape[1], n.shape[0])).transpose(0, 1).contiguous()
