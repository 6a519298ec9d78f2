"""Training of a grid of dictionaries: all members see the same batches, from one pass over the activations.

Good practice after Gao et al. 2024, Bricken et al. 2023 and Conerly et al. 2024: inputs with E‖x‖² = d_in by one fixed
scale, W_enc = W_decᵀ and b_dec at the geometric median to begin with, unit-norm rows of W_dec whose gradient has no
part along them, Adam with a warm-up and a linear decay in the last fifth, gradients clipped at norm 1, and an
auxiliary loss for latents that have been silent for long.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..tasks import mix
from ..utils import workers
from ..utils.errors import MechintError
from ..utils.progress import Progress
from ..utils.progress import point as to_log
from . import Loss, SAEConfig, SparseAutoencoder, Step, make
from .activations.pools import Batches, Pools

SAMPLE = 4096
"""Activations that the geometric median is taken of."""
CALIBRATION = 32768
"""Activations, at least, that follow training and set thresholds for inference."""
LONG = 10_000_000
"""Activations after which the field calls a silent latent dead (Gao et al. 2024)."""
CURVE = 200
"""Points of a training curve, about."""

FROZEN = {"frozen_decoder": "W_dec", "frozen_encoder": "W_enc"}
"""Baselines, and what is not trained in them."""


@dataclass(frozen=True)
class Training:
    """The length and speed of a training.

    Attributes:
        tokens: Activations to train on, each seen by every member.
        batch: Activations of a step, over all processes.
        lr: Peak learning rate of Adam; 0 takes 2e-4 · √(16384 / d_sae), after Gao et al. 2024.
        warmup: Share of the steps over which the learning rate rises.
        decay: Share of the steps, at the end, over which it falls to 0.
        penalty_warmup: Share of the steps over which penalties rise.
        clip: Largest norm of a gradient.
        dead_after: Activations after which a latent that has been silent is called dead; 0 takes the 10 million of the
            field, or a fifth of the training where that is less: a short run would otherwise revive none. With a much
            smaller number rare latents count as dead, and the loss that revives them pulls them away from their
            features.
        bfloat16: True if matrix products are in bfloat16 (mixed precision: weights and sums stay in float32).
        seed: Seed of the order of the activations.
    """

    tokens: int
    batch: int = 4096
    lr: float = 0.0
    warmup: float = 0.05
    decay: float = 0.2
    penalty_warmup: float = 0.1
    clip: float = 1.0
    dead_after: int = 0
    bfloat16: bool = False
    seed: int = 0

    @property
    def steps(self) -> int:
        return max(1, self.tokens // self.batch)

    @property
    def patience(self) -> int:
        """Activations after which a silent latent is dead."""
        return self.dead_after or max(self.batch, min(LONG, self.tokens // 5))


@dataclass
class Member:
    """One dictionary of the grid while it is trained."""

    name: str
    sae: SparseAutoencoder
    optimizer: torch.optim.Adam
    silent: Tensor
    """Activations since a latent was last active, [d_sae] int64."""
    history: list[dict[str, float]] = field(default_factory=list)

    def state(self) -> dict[str, Any]:
        return {
            "sae": self.sae.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "silent": self.silent,
            "history": self.history,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.sae.load_state_dict(state["sae"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.silent.copy_(state["silent"])
        self.history = state["history"]


@dataclass(frozen=True)
class Trained:
    """A finished dictionary, for raw activations.

    Attributes:
        silent: Activations since each latent was last active, at the end of training, [d_sae].
        history: Points of the training curve: step, tokens, the terms of the loss, l0, variance_explained, dead.
    """

    name: str
    sae: SparseAutoencoder
    silent: Tensor
    history: list[dict[str, float]]


@dataclass(frozen=True)
class Moments:
    """Moments of a site that all its members share: scale, centre, and variance after scaling."""

    scale: float
    center: Tensor
    variance: float

    @staticmethod
    def of(rows: Tensor, site: str) -> Moments:
        """Measures raw activations, [rows, d_in]: E‖x‖² = d_in after scaling (Conerly et al. 2024)."""
        scale = scale_of(rows, site)
        scaled = rows[:SAMPLE].float() * scale
        variance = float((scaled - scaled.mean(0)).square().sum(-1).mean())
        return Moments(scale, geometric_median(scaled), variance)


def scale_of(rows: Tensor, site: str) -> float:
    """The factor that makes E‖x‖² the width of raw activations [rows, width].

    Raises:
        MechintError: all of them are zero.
    """
    energy = float(rows.double().square().sum(-1).mean())
    if not energy > 0:
        raise MechintError(f"all activations of {site} are zero; there is nothing for a dictionary to learn")
    return math.sqrt(rows.shape[1] / energy)


def geometric_median(rows: Tensor, steps: int = 100, tolerance: float = 1e-5) -> Tensor:
    """The point with the least sum of distances to all rows, [rows, d] -> [d] (Weiszfeld's iteration)."""
    center = rows.mean(0)
    for _ in range(steps):
        weight = 1 / torch.linalg.vector_norm(rows - center, dim=1).clamp_min(1e-6)
        new = (weight[:, None] * rows).sum(0) / weight.sum()
        moved = torch.linalg.vector_norm(new - center)
        center = new
        if moved <= tolerance * torch.linalg.vector_norm(center).clamp_min(1e-6):
            break
    return center


def train_grid(
    configs: dict[str, SAEConfig],
    pools: Pools,
    training: Training,
    device: torch.device | str = "cpu",
    saved: Any = None,
    save: Callable[[Callable[[], Any]], None] = lambda state: None,
    title: str = "training",
) -> list[Trained]:
    """Trains every dictionary of the grid on the same batches.

    Args:
        configs: Name and configuration of each member; its ``site`` is one of ``pools.sites``.
        pools: Source of the activations.
        training: Options of the training.
        device: Device of the training.
        saved: The state that ``save`` was last given, to resume from: to the same bits on a CPU.
        save: Called after each step with a function that makes the state, and free to ignore it.
        title: Title of the progress bar.

    Raises:
        MechintError: a width does not fit its site, there is less than a batch, or a loss is NaN.
    """
    rank, world = workers.team()
    if training.batch % world:
        raise MechintError(f"a batch of {training.batch} can't be shared by {world} processes; choose a multiple")
    check_sites(configs, pools)
    batches = Batches(pools, training.batch, training.seed, device)
    sites = {config.site for config in configs.values()}
    moments = {site: Moments.of(batches.now[site], site) for site in sites} if saved is None else unpack(saved, device)
    members = [make_member(name, config, moments[config.site], training, device) for name, config in configs.items()]
    step = 0
    if saved is not None:
        step = saved["step"]
        batches.restore(saved["batches"])
        for member in members:
            member.restore(saved["members"][member.name])

    def state() -> dict[str, Any]:
        return {
            "step": step,
            "batches": batches.state(),
            "moments": {site: [m.scale, m.center.cpu(), m.variance] for site, m in moments.items()},
            "members": {member.name: member.state() for member in members},
        }

    quiet = math.inf if rank else 2.0  # the first process reports the progress of all
    with Progress(f"{title}: {len(members)} dictionaries", training.steps, quiet) as progress:
        progress.skip_to(step)
        while step < training.steps:
            batch = {site: share(rows) * moments[site].scale for site, rows in batches.next().items() if site in sites}
            notes = [one_step(member, batch, moments, training, step) for member in members]
            step += 1
            progress.step(notes[step % len(notes)])
            if step < training.steps:
                save(state)
    calibrate(members, batches, moments)
    return [finish(member, moments, training) for member in members]


def calibrate(members: list[Member], batches: Batches, moments: dict[str, Moments]) -> None:
    """Sets thresholds on the activations that would be trained on next: of a stream, none that training saw."""
    count = -(-CALIBRATION // batches.size)
    parts = [{site: share(rows) for site, rows in batches.next().items() if site in moments} for _ in range(count)]
    for site, moment in moments.items():
        x = torch.cat([part[site] for part in parts]) * moment.scale
        for member in members:
            if member.sae.config.site == site:
                member.sae.calibrate(x)


def unpack(saved: dict[str, Any], device: torch.device | str) -> dict[str, Moments]:
    return {
        site: Moments(scale, center.to(device), variance)
        for site, (scale, center, variance) in saved["moments"].items()
    }


def check_sites(configs: dict[str, SAEConfig], pools: Pools) -> None:
    for name, config in configs.items():
        if config.site not in pools.widths:
            raise MechintError(
                f"dictionary {name}: no activations of {config.site!r}; there are {', '.join(pools.sites)}"
            )
        if pools.widths[config.site] != config.d_in:
            raise MechintError(
                f"dictionary {name} takes activations of width {config.d_in}, but {config.site} has width "
                f"{pools.widths[config.site]}"
            )


def make_member(
    name: str, config: SAEConfig, moments: Moments, training: Training, device: torch.device | str
) -> Member:
    sae = make(replace(config, scale=moments.scale))
    sae.initialise(moments.center.cpu(), torch.Generator().manual_seed(mix(config.seed, "dictionary", config.site)))
    sae.to(device).train()
    if config.baseline:
        getattr(sae, FROZEN[config.baseline]).requires_grad_(False)
    learned = [parameter for parameter in sae.parameters() if parameter.requires_grad]
    return Member(
        name,
        sae,
        torch.optim.Adam(learned, lr=peak_lr(training, config.d_sae), fused=True),
        torch.zeros(config.d_sae, dtype=torch.long, device=device),
    )


def peak_lr(training: Training, d_sae: int) -> float:
    """The largest learning rate of a training of so many latents."""
    return training.lr or 2e-4 * math.sqrt(16384 / d_sae)


def pace(training: Training, step: int) -> float:
    """Factor of the peak learning rate in a step, 0 … steps - 1."""
    total = training.steps
    rise, fall = max(1, round(training.warmup * total)), max(1, round(training.decay * total))
    return min(1.0, (step + 1) / rise, (total - step) / fall)


def share(rows: Tensor) -> Tensor:
    """This process' part of a batch."""
    rank, world = workers.team()
    return rows[rank * (len(rows) // world) : (rank + 1) * (len(rows) // world)]


def one_step(
    member: Member, batch: dict[str, Tensor], moments: dict[str, Moments], training: Training, step: int
) -> str:
    """One step of one member; returns a note for the progress line."""
    sae, site = member.sae, member.sae.config.site
    x = batch[site]
    dead = member.silent >= training.patience
    warmth = min(1.0, (step + 1) / max(1, round(training.penalty_warmup * training.steps)))
    for group in member.optimizer.param_groups:
        group["lr"] = peak_lr(training, sae.config.d_sae) * pace(training, step)
    member.optimizer.zero_grad()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=training.bfloat16):
        loss = sae.loss(x, Step(warmth, dead if bool(dead.any()) else None))
        total = loss.total
    total.backward()
    _, world = workers.team()
    for parameter in sae.parameters():
        if world > 1 and parameter.grad is not None:
            parameter.grad.copy_(workers.sum_over(parameter.grad.contiguous()) / world)
    sae.remove_parallel_gradient()
    norm = torch.nn.utils.clip_grad_norm_(sae.parameters(), training.clip)
    if not math.isfinite(norm):
        raise MechintError(
            f"dictionary {member.name}: the gradient is {float(norm)} at step {step + 1}; lower its learning rate (now "
            f"{peak_lr(training, sae.config.d_sae):g})"
        )
    member.optimizer.step()
    if sae.W_dec.requires_grad:
        sae.normalise()
    sae.observe(loss)
    member.silent += training.batch
    member.silent[workers.sum_over(loss.fired) > 0] = 0
    if step % max(1, training.steps // CURVE) == 0 or step + 1 == training.steps:
        member.history.append(point(member, loss, moments[site], training, step))
        to_log(member.name, member.history[-1])
    latest = member.history[-1]
    return f"{member.name}: explained {latest['variance_explained']:.1%}, L0 {latest['l0']:.1f}"


def point(member: Member, loss: Loss, moments: Moments, training: Training, step: int) -> dict[str, float]:
    """A point of the training curve, of this batch."""
    means = {name: float(workers.mean_over(term.detach())) for name, term in loss.terms.items()}
    error = float(workers.mean_over(loss.seen.get("mse", loss.terms["mse"]).detach()))
    return {
        "step": step + 1,
        "tokens": (step + 1) * training.batch,
        **means,
        "loss": sum(means.values()),
        "l0": float(workers.mean_over(loss.l0.detach().float())),
        "variance_explained": 1 - error / moments.variance,
        "dead": float((member.silent >= training.patience).float().mean()),
        "lr": member.optimizer.param_groups[0]["lr"],
    }


def finish(member: Member, moments: dict[str, Moments], training: Training) -> Trained:
    """The dictionary for raw activations."""
    sae = member.sae.fold(moments[member.sae.config.site].scale)
    sae.config = replace(sae.config, tokens=training.steps * training.batch)
    return Trained(member.name, sae, member.silent.cpu(), member.history)
