"""The scan alone, forward, and forward with the gradients of all inputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from mambapy.mamba import MambaBlock, MambaConfig
from torch import Tensor

from mechint import scan

from ..pairs import Question, Target
from ..shapes import INNER, PEER, STATES, WIDTH, scan_inputs


def questions() -> Iterator[Question]:
    block = MambaBlock(MambaConfig(d_model=WIDTH, n_layers=1))
    skip = torch.zeros(INNER)
    there = [name for name in ("native", "chunked") if not scan.available()[name]]
    for batch, length in ((4, 256), (1, 2048)):
        given = scan_inputs(batch, length)

        def ours(backward: bool, back_end: str, given: list[Tensor] = given) -> None:
            with scan.using(back_end), torch.set_grad_enabled(backward):
                leaves = [x.clone().requires_grad_(backward) for x in given]
                y, _ = scan.selective_scan(*leaves)
                if backward:
                    y.sum().backward()

        def peer(backward: bool, given: list[Tensor] = given) -> None:
            with torch.set_grad_enabled(backward):
                u, dt, A, B, C = (x.clone().requires_grad_(backward) for x in given)
                y = block.selective_scan(u, dt, A, B, C, skip)
                if backward:
                    y.sum().backward()

        for backward in (False, True):
            candidates: dict[str, Any] = {
                f"mechint, {name}": lambda name=name, b=backward, f=ours: f(b, name) for name in there
            }
            candidates[PEER] = lambda b=backward, f=peer: f(b)
            what = "forward and backward" if backward else "forward"
            title = f"scan, {what}, [{batch}, {length}, {INNER}, {STATES}]"
            yield Question("scan", title, candidates, [Target(PEER, f"mechint, {there[0]}", 10.0)], rounds=3)
