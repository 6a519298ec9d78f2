"""Circuits of mamba-130m's shape: the channels that are left alone, beside mixers that compute all of them; and the
metrics of their answers, beside the head's product, which they need."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from mechint.analyses.metrics import Answers
from mechint.interventions.run import read_by_head
from mechint.interventions.unit_kinds import SSM_UNITS
from mechint.interventions.units import Units
from mechint.models.parts import mamba1_kept
from mechint.tasks import Prompts

from ..pairs import Question, Target
from ..shapes import LAYERS, OURS, last, model

ROWS, LENGTH, VOCABULARY = 4, 32, 2048
WHOLE = "mechint, whole mixers"
WORDS, WIDTH = 49_152, 768
PRODUCT = "the head's products alone"


def questions() -> Iterator[Question]:
    yield from metrics()
    mamba = model(LAYERS, VOCABULARY)
    units = Units(mamba, SSM_UNITS["channel"])
    tokens = torch.randint(0, VOCABULARY, (ROWS, LENGTH))
    random = torch.Generator().manual_seed(1)
    fills = {site: torch.randn(1, units.per_layer, generator=random) for site in units.sites}

    def forward(mask: Tensor) -> Tensor:
        edits = [dataclasses.replace(edit, zeros_fixed=True) for edit in units.edits(mask, fills)]
        return read_by_head(mamba, tokens, edits, last(tokens))

    def step(mask: Tensor) -> Tensor:
        mask = mask.clone().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(forward(mask)[..., 0].sum(), mask)[0] * (mask.detach() > 0)

    def whole(compute: Callable[[Tensor], Tensor], mask: Tensor) -> Tensor:
        with mock.patch.object(mamba1_kept, "LEAST_WORK", 1 << 62):
            return compute(mask)

    for share, least in ((0.01, 4.0), (0.1, 2.5), (0.4, 1.2)):
        mask = (torch.rand(units.total, generator=random) < share).float()
        for what, compute in (("forward", forward), ("forward and gradient of the gates", step)):
            apart = float((compute(mask) - whole(compute, mask)).abs().max() / whole(compute, mask).abs().max())
            print(f"{share:.0%} of the channels, {what}: largest difference {apart:.1e} of the largest", flush=True)
            assert apart < 1e-3
            yield Question(
                "kept",
                f"{what} of a circuit of {share:.0%} of mamba-130m's channels, {ROWS} x {LENGTH} tokens",
                {OURS: lambda m=mask, c=compute: c(m), WHOLE: lambda m=mask, c=compute: whole(c, m)},
                [Target(WHOLE, OURS, least)],
                rounds=5,
            )


def metrics() -> Iterator[Question]:
    head = torch.randn(WORDS, WIDTH) / WIDTH**0.5
    tokens = torch.randint(0, WORDS, (ROWS, LENGTH))
    prompts = Prompts(tokens, torch.arange(LENGTH).expand(ROWS, -1), tokens, None, None, torch.zeros(ROWS).long())
    answers = Answers(prompts, torch.randn(ROWS, LENGTH, WIDTH), head)
    answers.keep_logs()
    read = torch.randn(ROWS, LENGTH, WIDTH)
    flat, up = read.flatten(0, 1), torch.randn(ROWS * LENGTH, WORDS)

    def slope() -> Tensor:
        leaf = read.clone().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(answers.metrics(leaf, "kl")["kl"].sum(), leaf)[0]

    what = f"{ROWS * LENGTH} answers of {WORDS:,} tokens"
    for said, ours, floor, most in (
        ("metrics", lambda: answers.metrics(read), lambda: F.linear(flat, head), 1.4),
        ("metrics and a gradient", slope, lambda: (F.linear(flat, head), up @ head), 1.4),
    ):
        yield Question("kept", f"{said} of {what}", {OURS: ours, PRODUCT: floor},
                       [Target(OURS, PRODUCT, most, at_most=True)], rounds=9)  # fmt: skip
