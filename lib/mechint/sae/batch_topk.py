"""BatchTopK: the k · batch largest latents of a whole batch (Bussmann et al. 2024).

Inputs may have more or fewer than k active latents. At inference a batch must not matter, so a threshold takes its
place. During training it is the moving average of the smallest activation that a batch kept. The moving average lags
behind weights that still change, so after the last step the threshold is set once more, where k latents are active on
average.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..utils import workers
from . import sparse
from .base import Loss, SAEConfig, Step, squared_error
from .jumprelu import JumpReLU
from .topk import TopK

CHUNK = 1 << 24
"""Pre-activations that calibration holds at a time."""
MOMENTUM = 0.95
"""Decay of the threshold's moving average: one batch is precise, and a longer memory would lag in a short training."""


class BatchTopK(TopK):
    """As :class:`TopK` with k on average; ``threshold`` is a scalar, negative until a batch was seen."""

    in_input_units = ("b_enc", "b_dec", "threshold")

    def __init__(self, config: SAEConfig) -> None:
        super().__init__(config)
        self.register_buffer("threshold", torch.tensor(-1.0))
        self.threshold: Tensor

    def activate(self, pre: Tensor) -> Tensor:
        return torch.relu(pre) * (pre > self.threshold)

    def select(self, pre: Tensor) -> tuple[Tensor, Tensor]:
        """f [batch, d_sae] with the k · batch largest of all processes' batches, and the smallest that was kept."""
        positive = torch.relu(pre)
        least = workers.kth_largest(positive.detach(), self.config.k * len(pre))
        return positive * (positive >= least), least

    def find(self, centred: Tensor) -> tuple[sparse.Codes, dict[str, Tensor]]:
        guess = float(self.threshold)
        found, least = sparse.batch_codes(centred, self.W_enc, self.b_enc, self.config.k, guess)
        return found, {"threshold": least}

    def loss(self, x: Tensor, step: Step) -> Loss:
        if sparse.usable(x):
            return self.sparse_loss(x, step)
        pre = self.pre_activations(x)
        f, least = self.select(pre)
        reconstruction = self.decode(f)
        terms = {
            "mse": squared_error(x, reconstruction),
            **self.auxiliary(x, x - reconstruction, step.dead),
        }
        fired = (f > 0).sum(0)
        return Loss(terms, fired, fired.sum() / len(x), {"threshold": least})

    @torch.no_grad()
    def observe(self, loss: Loss) -> None:
        least = loss.seen["threshold"]
        self.threshold.copy_(torch.where(self.threshold < 0, least, self.threshold.lerp(least, 1 - MOMENTUM)))

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """The threshold above which k latents of an activation are active on average, over all processes' x."""
        kept = x.new_zeros(0)
        for rows in x.split(max(1, CHUNK // self.config.d_sae)):
            above = torch.relu(self.pre_activations(rows)).flatten()
            kept = torch.cat([kept, above[above > 0]])
            kept = kept.topk(min(len(kept), self.config.k * len(x) * workers.team()[1] + 1), sorted=False).values
        # activations must exceed the threshold, so it is the largest inactive one
        self.threshold.copy_(workers.kth_largest(kept, self.config.k * len(x), beyond=1))

    @torch.no_grad()
    def inference(self) -> JumpReLU:
        """The JumpReLU with this threshold for every latent."""
        return as_jumprelu(self)


def as_jumprelu(sae: BatchTopK) -> JumpReLU:
    config = replace(sae.config, architecture="jumprelu", trained_as=sae.config.architecture)
    found = JumpReLU(config).to(sae.W_dec.device)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        getattr(found, name).data.copy_(getattr(sae, name))
    found.threshold.data.fill_(float(sae.threshold.clamp_min(0)))
    return found.requires_grad_(False).eval()
