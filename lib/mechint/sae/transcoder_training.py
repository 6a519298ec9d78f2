"""Training of transcoders: latents of one site that predict another one.

1. Scale both sites so that E‖x‖² is their width; directions of W_enc are drawn, W_dec and the skip connection begin at
   zero, and b_dec at the mean of what is written.
2. Lower ‖y − ŷ‖² with the k largest latents of every activation (Gao et al. 2024), by Adam at the pace that
   dictionaries are trained at; silent latents learn the error that is left.
3. Take the scales into the weights, which are then for raw activations.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..tasks import mix
from ..utils.errors import MechintError
from ..utils.progress import Progress
from .activations.pools import Batches, Pools
from .base import revival, squared_error
from .topk import top
from .training import Training, pace, peak_lr, scale_of
from .transcoder import Transcoder, TranscoderConfig


def train_transcoders(
    configs: dict[str, TranscoderConfig],
    skips: dict[str, bool],
    pools: Pools,
    training: Training,
    device: torch.device | str = "cpu",
    title: str = "training",
) -> dict[str, Transcoder]:
    """Trains transcoders with TopK on the same batches.

    Args:
        configs: By name, of the architecture ``topk``; their two sites are among ``pools.sites``.
        skips: For each name, True for one with a skip connection.
        pools: Source of the activations of both sites, row by row of the same tokens.
        training: Options; ``warmup``, ``decay``, ``clip`` and ``dead_after`` are as for dictionaries.
        device: Device of the training.
        title: Title of the progress bar.

    Raises:
        MechintError: a site is missing or of another width, all its activations are zero, or there is less than a
            batch.
    """
    for name, c in configs.items():
        for site, width in ((c.site, c.d_in), (c.site_out, c.d_out)):
            if pools.widths.get(site) != width:
                raise MechintError(f"transcoder {name}: there are no activations of {site!r} of width {width}")
    batches = Batches(pools, training.batch, training.seed, device)
    learners = {name: _Learner(c, skips[name], batches.now, training, device) for name, c in configs.items()}
    with Progress(f"{title}: {len(configs)} transcoders", training.steps, 2.0) as progress:
        for step in range(training.steps):
            batch = batches.next()
            for name, learner in learners.items():
                note = f"{name}: error {learner.step(batch, pace(training, step)):.3f}"
            progress.step(note)
    return {name: learner.finished() for name, learner in learners.items()}


class _Learner:
    """One transcoder while it is trained, on scaled activations."""

    def __init__(
        self, c: TranscoderConfig, skip: bool, rows: dict[str, Tensor], training: Training, device: torch.device | str
    ) -> None:
        self.config, self.training = c, training
        self.scales = [scale_of(rows[site], site) for site in (c.site, c.site_out)]
        random = torch.Generator().manual_seed(mix(training.seed, "transcoder", c.site_out))
        directions = torch.nn.functional.normalize(torch.randn(c.d_sae, c.d_in, generator=random), dim=1)
        self.tensors = {
            "W_enc": directions.t().contiguous().to(device), "b_enc": torch.zeros(c.d_sae, device=device),
            "W_dec": torch.zeros(c.d_sae, c.d_out, device=device), "b_dec": rows[c.site_out].mean(0) * self.scales[1],
        }  # fmt: skip
        if skip:
            self.tensors["W_skip"] = torch.zeros(c.d_out, c.d_in, device=device)
        for tensor in self.tensors.values():
            tensor.requires_grad_()
        self.rate = peak_lr(training, c.d_sae)
        self.optimizer = torch.optim.Adam(self.tensors.values(), lr=self.rate)
        self.silent = torch.zeros(c.d_sae, dtype=torch.long, device=device)

    def step(self, batch: dict[str, Tensor], speed: float) -> float:
        """One step on raw activations by site; returns the error as a share of E‖y‖²."""
        t, c = self.tensors, self.config
        x, y = (batch[site] * by for site, by in zip((c.site, c.site_out), self.scales, strict=True))
        pre = x @ t["W_enc"] + t["b_enc"]
        f = top(pre, c.k)
        made = f @ t["W_dec"] + t["b_dec"]
        if "W_skip" in t:
            made = made + x @ t["W_skip"].T
        error = squared_error(y, made)
        dead = (self.silent >= self.training.patience).nonzero()[:, 0]
        loss = error
        if len(dead):
            loss = loss + revival(pre[:, dead], t["W_dec"][dead], y - made)
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(t.values(), self.training.clip)
        if not math.isfinite(norm):
            raise MechintError(f"transcoder of {c.site_out}: the gradient is {float(norm)}; lower its learning rate")
        self.optimizer.param_groups[0]["lr"] = self.rate * speed
        self.optimizer.step()
        self.silent += len(x)
        self.silent[(f > 0).any(0)] = 0
        return float(error.detach()) / c.d_out

    def finished(self) -> Transcoder:
        """The transcoder for raw activations."""
        read, written = self.scales
        factors = {"W_enc": read, "b_enc": 1.0, "W_dec": 1 / written, "b_dec": 1 / written, "W_skip": read / written}
        return Transcoder(self.config, {name: tensor.detach() * factors[name] for name, tensor in self.tensors.items()})
