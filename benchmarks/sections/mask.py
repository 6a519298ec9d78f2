"""One step of learning a mask on GPT-2 124M's shape: the gates' gradient of the KL to the full model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import mechint
from mechint.analyses.ablation import Ablation
from mechint.analyses.circuits.bench import Bench
from mechint.interventions.unit_kinds import KV_UNITS
from mechint.interventions.units import Units
from mechint.models.gpt2 import GPT2, GPT2Config
from mechint.tasks import Prompts

from ..pairs import Question, Target

VOCABULARY, WIDTH, LAYERS, HEADS = 50257, 768, 12, 12
BATCH, LENGTH, FEW = 8, 256, 32
PLAIN, ALL, SOME, HALF = (
    "all logits, autograd",
    "mechint",
    f"mechint, {FEW} positions read",
    "mechint, bfloat16 autocast",
)


def gpt2() -> GPT2:
    torch.manual_seed(0)
    config = GPT2Config(VOCABULARY, LENGTH, WIDTH, LAYERS, HEADS, 4 * WIDTH)
    return GPT2(config).eval().requires_grad_(False)


def prompts(answers: int) -> Prompts:
    """Random tokens with answers at the last positions."""
    window = torch.randint(0, VOCABULARY, (BATCH, LENGTH + 1))
    positions = torch.arange(LENGTH - answers, LENGTH).expand(BATCH, -1)
    return Prompts(window[:, :-1], positions, window[:, 1:].gather(1, positions), None, None, torch.arange(BATCH))


def bench(model: GPT2, units: Units, answers: int) -> Bench:
    torch.manual_seed(1)
    batches = [prompts(answers)]
    return Bench(model, units, Ablation(model, units, "mean", batches, True), batches)


def plain(test: Bench, full: Tensor, mask: Tensor) -> Tensor:
    """Every logit of the masked model, and the backward that autograd makes of the KL."""
    batch = test.batches[0]
    logits = mechint.run(test.model, batch.tokens, edits=test.units.edits(mask, test.fills[0])).logits
    reference = full.log_softmax(-1)
    kl = (reference.exp() * (reference - logits.log_softmax(-1))).sum(-1).mean()
    return torch.autograd.grad(kl, mask)[0]


def ours(test: Bench, mask: Tensor, half: bool = False) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        kl = test.values(0, mask, "kl")["kl"].mean()
    return torch.autograd.grad(kl, mask)[0]


def questions() -> Iterator[Question]:
    model = gpt2()
    units = Units(model, KV_UNITS["kv"])
    every, few = bench(model, units, LENGTH), bench(model, units, FEW)
    with torch.no_grad():
        full = model(every.batches[0].tokens)
    torch.manual_seed(2)
    mask = torch.rand(units.total).requires_grad_()
    slope = plain(every, full, mask)
    for name, found, bound in (("float32", ours(every, mask), 0.999999), ("bfloat16", ours(every, mask, True), 0.999)):
        cosine = float(torch.cosine_similarity(found, slope, 0))
        print(f"gradient of the mask, {name}: cosine to the plain way's {cosine:.7f}", flush=True)
        assert cosine > bound
    candidates: dict[str, Any] = {
        PLAIN: lambda: plain(every, full, mask),
        ALL: lambda: ours(every, mask),
        SOME: lambda: ours(few, mask),
        HALF: lambda: ours(every, mask, True),
    }
    targets: list[Any] = [Target(PLAIN, ALL, 1.6), Target(PLAIN, ALL, 3.0, of="memory"), Target(PLAIN, SOME, 2.0)]
    if amx():
        targets.append(Target(PLAIN, HALF, 4.0))
    yield Question(
        "mask",
        f"one step of a KV mask, GPT-2 124M's shape, {BATCH} x {LENGTH} tokens, {units.total} gates, KL",
        candidates,
        targets,
        rounds=3,
    )


def amx() -> bool:
    """Whether the processor multiplies bfloat16 matrices in hardware tiles."""
    return bool(torch.cpu._is_amx_tile_supported())
