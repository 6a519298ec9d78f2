"""A training step of a dictionary: ours, SAELens' and dictionary_learning's trainers, plain torch, and its products.

Activations are in memory and random; a step has everything that training has: dead latents are tracked, the gradient's
part along the decoder is removed, gradients are clipped, rows of the decoder are brought back to norm 1.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from mechint.sae import SAEConfig
from mechint.sae.training import LONG, Moments, Training, make_member, one_step

from ..pairs import Question, Skipped, Target
from ..shapes import OURS, WIDTH

BATCH, ACTIVE, STEPS = 4096, 32, 100
LENS, LEARNING = "SAELens", "dictionary_learning"
PLAIN, PRODUCTS = "plain torch", "five dense products alone"
Step = Callable[[], Any]


def questions() -> Iterator[Question]:
    try:
        import dictionary_learning.trainers  # noqa: F401
        import sae_lens.training.sae_trainer  # noqa: F401
    except (ImportError, RuntimeError) as error:  # what they import may be built for another torch
        raise Skipped(
            f"a peer can't be imported ({str(error).splitlines()[0]}); remove .venv-bench, so that it is made again"
        ) from None
    x = torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(0))
    for ratio in (8, 32):
        latents = ratio * WIDTH
        for kind in ("topk", "batch_topk", "relu", "jumprelu"):
            if kind == "jumprelu" and ratio > 8:
                continue
            yield question(kind, latents, x)


def question(kind: str, latents: int, x: Tensor) -> Question:
    dense = kind in ("relu", "jumprelu")
    candidates: dict[str, Step] = {
        OURS: ours(kind, latents, x),
        LENS: sae_lens_step(kind, latents, x),
        LEARNING: dictionary_learning_step(kind, latents, x),
        PRODUCTS: products(latents, x),
    }
    if kind == "topk":
        candidates[PLAIN] = plain(latents, x)
    least = 1.2 if dense else 4.0
    targets: list[Any] = [Target(peer, OURS, least) for peer in (LENS, LEARNING)]
    targets += [Target(peer, OURS, 1.0, of="memory") for peer in (LENS, LEARNING)]
    if not dense:
        targets.append(Target(OURS, PRODUCTS, 1.0, at_most=True))
    sparsity = "L1" if kind == "relu" else "L0 penalty" if kind == "jumprelu" else f"k = {ACTIVE}"
    title = f"{kind} step, {WIDTH} -> {latents} latents, {sparsity}, batch {BATCH}"
    return Question("sae", title, candidates, targets, rounds=3, limit=60.0)


def ours(kind: str, latents: int, x: Tensor) -> Step:
    config = SAEConfig(kind, WIDTH, latents, k=0 if kind == "relu" else ACTIVE, penalty=5.0, site="x")
    training = Training(BATCH * STEPS, BATCH, dead_after=LONG)
    moments = Moments(1.0, torch.zeros(WIDTH), float(WIDTH))
    member = make_member(kind, config, moments, training, "cpu")
    count = iter(range(1, 10**6))
    return lambda: one_step(member, {"x": x}, {"x": moments}, training, next(count))


def sae_lens_step(kind: str, latents: int, x: Tensor) -> Step:
    from sae_lens import saes
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    name, options = {
        "topk": ("TopK", {"k": ACTIVE, "rescale_acts_by_decoder_norm": False}),
        "batch_topk": ("BatchTopK", {"k": ACTIVE, "rescale_acts_by_decoder_norm": False}),
        "relu": ("Standard", {"l1_coefficient": 5.0}),
        "jumprelu": ("JumpReLU", {"l0_coefficient": 5.0}),
    }[kind]
    config = getattr(saes, f"{name}TrainingSAEConfig")(d_in=WIDTH, d_sae=latents, **options)
    trainer = SAETrainer(
        SAETrainerConfig(BATCH * STEPS, BATCH, lr_end=3e-5, logger=LoggingConfig(log_to_wandb=False)),
        getattr(saes, f"{name}TrainingSAE")(config),
        iter([]),
    )

    def step() -> None:
        with torch.enable_grad():
            trainer.step(x)
        trainer.n_training_steps += 1

    return step


def dictionary_learning_step(kind: str, latents: int, x: Tensor) -> Step:
    from dictionary_learning import trainers
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer

    kinds: dict[str, Any] = {
        "topk": (trainers.TopKTrainer, {"k": ACTIVE}),
        "batch_topk": (trainers.BatchTopKTrainer, {"k": ACTIVE}),
        "relu": (trainers.StandardTrainer, {"l1_penalty": 5.0}),
        "jumprelu": (JumpReluTrainer, {"target_l0": float(ACTIVE)}),
    }
    maker, options = kinds[kind]
    size = {"activation_dim": WIDTH, "dict_size": latents, "layer": 0, "lm_name": "none", "device": "cpu"}
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = maker(steps=100 * STEPS, warmup_steps=10, decay_start=80 * STEPS, **size, **options)
    count = iter(range(1, 10**6))

    def step() -> None:
        with torch.enable_grad():
            trainer.update(next(count), x)

    return step


def plain(latents: int, x: Tensor) -> Step:
    """TopK as one writes it first: dense products, autograd, Adam; nothing else."""
    encoder = torch.nn.Linear(WIDTH, latents)
    decoder = torch.nn.Linear(latents, WIDTH)
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-4)

    def step() -> None:
        with torch.enable_grad():
            pre = encoder(x)
            values, at = pre.topk(ACTIVE)
            f = torch.zeros_like(pre).scatter(-1, at, torch.relu(values))
            optimizer.zero_grad()
            (x - decoder(f)).square().sum(-1).mean().backward()
            optimizer.step()

    return step


def products(latents: int, x: Tensor) -> Step:
    """Encode, decode, the gradient by the latents, and two weight gradients."""
    W = torch.randn(latents, WIDTH)

    def step() -> None:
        f = x @ W.t()
        error = f @ W
        back = error @ W.t()
        f.t() @ error, back.t() @ x

    return step
