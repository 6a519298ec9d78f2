"""The tuned lens: one affine map for each layer, which takes its residual stream to the basis of the last one.

After Belrose et al. 2023 ("Eliciting Latent Predictions from Transformers with the Tuned Lens"). The translator of
layer i reads what the layer reads, as r + W r + b, and is trained to make KL(model ‖ lens) small over all positions of
the discovery prompts. It begins as the logit lens (W = 0, b = 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ...interventions.model import Model
from ...interventions.prefix import divergence
from ...interventions.run import run
from ...tasks import Prompts, mix
from ...utils.errors import MechintError
from ...utils.progress import Progress
from ...utils.rundir import Stages
from ..adam import Adam
from .reading import float_logits, stream_sites

BETAS = (0.9, 0.999)


@dataclass(frozen=True)
class TunedLens:
    """The translators of all layers.

    Attributes:
        weights: [layer, model, model].
        biases: [layer, model].
    """

    weights: Tensor
    biases: Tensor

    def layer(self, site: str) -> int | None:
        """The translator that reads a site: that of the layer above it; None inside of layers.

        Behind the last layer there is nothing to translate: the number is that of the layers.
        """
        _, layer, kind = site.split(".")
        return {"resid_pre": int(layer), "resid_post": int(layer) + 1}.get(kind)

    def has(self, site: str) -> bool:
        return self.layer(site) is not None

    def translated(self, site: str, r: Tensor) -> Tensor:
        layer = self.layer(site)
        if layer is None:
            raise ValueError(f"a tuned lens has no translator for {site}")
        if layer == len(self.weights):
            return r
        return translated(r, self.weights[layer].to(r), self.biases[layer].to(r))

    def to(self, device: torch.device) -> TunedLens:
        return TunedLens(self.weights.to(device), self.biases.to(device))


def translated(r: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """r + W r + b of the residual stream [..., model]."""
    return r + F.linear(r, weight, bias)


class Training(Protocol):
    """The options of a training; see :class:`~.options.LensConfig`."""

    @property
    def steps(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def batch(self) -> int: ...


def train(model: Model, batches: Sequence[Prompts], training: Training, seed: int, stages: Stages) -> TunedLens:
    """Trains a translator for each layer; a killed training resumes.

    Each step takes whole prompts of one length, drawn at random, with about ``training.batch`` tokens in all.

    Args:
        batches: Prompts whose tokens are read; their answers are not.

    Raises:
        MechintError: the loss is not finite.
    """
    width, layers = model.config.d_model, model.num_layers
    dtype = torch.promote_types(next(model.parameters()).dtype, torch.float32)
    weights = torch.zeros(layers, width, width, dtype=dtype, device=model.device)
    biases = torch.zeros(layers, width, dtype=dtype, device=model.device)
    lots = by_length(batches)
    movers = {"weights": Adam(weights, training.lr, BETAS), "biases": Adam(biases, training.lr, BETAS)}
    with Progress("tuned lens", training.steps) as progress:
        if (saved := stages.part("tuned lens")) is not None:
            for name, mover in movers.items():
                mover.values.copy_(saved[name]["values"])
                mover.restore(saved[name])
            progress.skip_to(movers["weights"].steps)
        while (step := movers["weights"].steps) < training.steps:
            loss, slopes = slope(model, drawn(lots, training.batch, seed, step), weights, biases)
            if not (torch.isfinite(loss) and all(torch.isfinite(one).all() for one in slopes)):
                raise MechintError(f"tuned lens: the loss of step {step} is not finite; choose a smaller learning rate")
            for mover, one in zip(movers.values(), slopes, strict=True):
                mover.lr = training.lr * (1 - step / training.steps)
                mover.step(one)
            state = lambda: {name: {**m.state(), "values": m.values.clone()} for name, m in movers.items()}
            stages.save_part("tuned lens", state)
            progress.step(f"KL {float(loss) / layers:.3f}")
    return TunedLens(weights.cpu(), biases.cpu())


def by_length(batches: Sequence[Prompts]) -> list[Tensor]:
    """The tokens of all prompts, those of one length together, [prompt, position] each: batches are only how they were
    dealt out, and a training does not depend on that."""
    lots: dict[int, list[Tensor]] = {}
    for batch in batches:
        lots.setdefault(batch.tokens.shape[1], []).append(batch.tokens)
    return [torch.cat(parts) for parts in lots.values()]


def drawn(lots: Sequence[Tensor], count: int, seed: int, step: int) -> Tensor:
    """Random prompts of one length with about ``count`` tokens in all, [row, position]; each token is as likely as any
    other to be the one whose length is taken."""
    random = torch.Generator().manual_seed(mix(seed, "tuned lens", step))
    ends = torch.tensor([tokens.numel() for tokens in lots]).cumsum(0)
    tokens = lots[int((ends <= torch.randint(int(ends[-1]), (1,), generator=random)).sum())]
    rows = torch.randperm(len(tokens), generator=random)[: max(1, round(count / tokens.shape[1]))]
    return tokens[rows.to(tokens.device)]


def slope(model: Model, tokens: Tensor, weights: Tensor, biases: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The sum over layers of the mean KL(model ‖ lens) in nats, and its gradient by weights and biases."""
    with torch.no_grad():
        sites = [f"layers.{i}.resid_pre" for i in range(model.num_layers)]
        last = stream_sites(model)[-1]
        values = run(model, tokens, [*sites, last], logits_at=tokens[:, :0]).values
        final = float_logits(model, values[last]).log_softmax(-1)
        chances = final.exp()
    total, slopes = torch.zeros((), dtype=weights.dtype, device=weights.device), []
    for site, weight, bias in zip(sites, weights, biases, strict=True):
        with torch.enable_grad():
            leaves = [weight.detach().requires_grad_(), bias.detach().requires_grad_()]
            scores = float_logits(model, translated(values[site], *leaves)).log_softmax(-1)
            loss = divergence(final, scores, chances).mean()
            slopes.append(torch.autograd.grad(loss, leaves))
        total += loss.detach()
    return total, [torch.stack(column) for column in zip(*slopes, strict=True)]


def plain(lens: TunedLens) -> dict[str, Any]:
    """The lens as plain tensors, for a stage."""
    return {"weights": lens.weights, "biases": lens.biases}
