"""How cost grows: the scan and its states in positions, a forward in layers and rows, a sweep in cells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import mechint
from mechint import Edit, scan
from mechint.interventions.sweep import sweep

from ..pairs import Limit, Question, Slope
from ..shapes import INNER, STATES, last, model, scan_inputs

LENGTHS = (512, 2048, 8192)
VOCABULARY = 4096


def curve(title: str, size: str, sizes: tuple[int, ...], work: Callable[[Any], Any], *aims: Any) -> Question:
    """``work`` at each size; its seconds are to grow as the size itself, a tenth of a power allowed."""
    candidates: dict[str, Any] = {f"{size} {n}": lambda n=n: work(n) for n in sizes}
    return Question(
        "curves", title, candidates, [Slope(size, [float(n) for n in sizes], 1.1), *aims], rounds=3, curve=size
    )


def questions() -> Iterator[Question]:
    yield from in_positions()
    yield from in_layers_and_rows()
    yield in_cells()


def in_positions() -> Iterator[Question]:
    given = {length: scan_inputs(1, length) for length in LENGTHS}
    longest = max(LENGTHS)

    @torch.no_grad()
    def forward(length: int) -> None:
        scan.selective_scan(*given[length])

    def training(length: int) -> tuple[Tensor, ...]:
        leaves = [x.detach().requires_grad_() for x in given[length]]
        return torch.autograd.grad(scan.selective_scan(*leaves)[0].sum(), leaves)

    @torch.no_grad()
    def streamed(length: int) -> None:
        u, dt, A, B, _ = given[length]
        for _, part in scan.states(u, dt, A, B):
            del part

    yield curve(f"scan, forward, [1, L, {INNER}, {STATES}]", "L", LENGTHS, forward)
    # ∂y and the gradients of u, Δ, B and C; the states of all positions would be 768 MiB
    gradients = (3 * INNER + 2 * STATES) * longest * 4 / 2**20
    flat = Limit(f"L {longest}", round(1.25 * gradients), "MiB")
    title = f"scan, forward and backward, [1, L, {INNER}, {STATES}]; its gradients are {gradients:.0f} MiB"
    yield curve(f"{title} at L {longest}", "L", LENGTHS, training, flat)
    flat_states = Slope("L", [float(n) for n in LENGTHS], 0.01, of="memory")
    yield curve("all states, streamed by 64 positions", "L", LENGTHS, streamed, flat_states)


@torch.no_grad()
def in_layers_and_rows() -> Iterator[Question]:
    tokens = torch.randint(0, VOCABULARY, (16, 256))
    models = {layers: model(layers, VOCABULARY) for layers in (4, 8, 16)}

    def forward(layers: int, rows: int) -> None:
        mechint.run(models[layers], tokens[:rows], logits_at=last(tokens[:rows]))

    yield curve("forward of 1 x 256 tokens", "layers", tuple(models), lambda layers: forward(layers, 1))
    yield curve("forward of 4 layers, rows x 256 tokens", "rows", (1, 4, 16), lambda rows: forward(4, rows))


@torch.no_grad()
def in_cells() -> Question:
    """Cells at random places of one map, so that every number of them has the same mix of layers and positions."""
    length, rows, layers = 12, 4, 4
    ours = model(layers, VOCABULARY)
    prompts = torch.randint(0, VOCABULARY, (rows, length))
    places = torch.stack([torch.randint(0, layers, (1024,)), torch.randint(0, length, (1024,))], 1).tolist()
    cells = [[Edit(f"layers.{layer}.resid_post", "scale", 0.5, positions=[p])] for layer, p in places]

    def some(count: int) -> Tensor:
        return sweep(ours, prompts, cells[:count], logits_at=last(prompts), memory_mib=1024)

    return curve(f"sweep of {layers} layers, {rows} x {length} tokens", "cells", (64, 256, 1024), some)
