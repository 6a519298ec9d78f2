"""TopK: the k largest latents of each input (Makhzani & Frey 2014; Gao et al. 2024), with the auxiliary loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..utils.errors import MechintError
from . import sparse
from .base import Loss, SAEConfig, SparseAutoencoder, Step, squared_error


def top(pre: Tensor, k: int) -> Tensor:
    """The k largest of each row that are positive, the others zero: [..., d_sae] -> [..., d_sae]."""
    values, at = pre.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(pre).scatter(-1, at, torch.relu(values))


class TopK(SparseAutoencoder):
    """f keeps the k largest pre-activations, as far as they are positive."""

    def __init__(self, config: SAEConfig) -> None:
        super().__init__(config)
        if config.k < 1:
            raise MechintError(f"dictionary: {config.architecture} needs k ≥ 1, the number of active latents")

    def activate(self, pre: Tensor) -> Tensor:
        return top(pre, self.config.k)

    def loss(self, x: Tensor, step: Step) -> Loss:
        if not self.config.penalty and sparse.usable(x):
            return self.sparse_loss(x, step)
        pre = self.pre_activations(x)
        f = self.activate(pre)
        reconstruction = self.decode(f)
        terms = {
            "mse": squared_error(x, reconstruction),
            **self.auxiliary(x, x - reconstruction, step.dead),
        }
        if self.config.penalty:
            terms["l1"] = self.config.penalty * step.warmth * f.sum() / len(x)
        fired = (f > 0).sum(0)
        return Loss(terms, fired, fired.sum() / len(x))

    def sparse_loss(self, x: Tensor, step: Step) -> Loss:
        """:meth:`loss`, touching only the active latents."""
        self.check_input(x)
        centred = (x - self.b_dec).detach().contiguous()
        found, seen = self.find(centred)
        reconstruction = sparse.Reconstruct.apply(centred, self.W_enc, self.b_enc, self.W_dec, self.b_dec, found)
        terms = {
            "mse": squared_error(x, reconstruction),
            **self.auxiliary(x, x - reconstruction, step.dead),
        }
        fired = torch.bincount(found.at, minlength=self.config.d_sae)
        return Loss(terms, fired, fired.sum() / len(x), seen)

    def find(self, centred: Tensor) -> tuple[sparse.Codes, dict[str, Tensor]]:
        """The active latents of x − b_dec [batch, d_in], and what is seen on the way."""
        return sparse.top_codes(centred, self.W_enc, self.b_enc, self.config.k), {}

    def extra_config(self) -> dict[str, Any]:
        return {"k": self.config.k, "rescale_acts_by_decoder_norm": False}
