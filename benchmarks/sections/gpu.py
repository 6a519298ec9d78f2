"""The scan on a GPU: against mamba-ssm's kernel, and its states against a copy of as many bytes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch

from mechint import scan

from ..pairs import Question, Skipped, Target
from ..shapes import INNER, STATES, scan_inputs

PEER, COPY = "mamba-ssm", "a copy of as many bytes"


def questions() -> Iterator[Question]:
    if not torch.cuda.is_available():
        raise Skipped("there is no CUDA device")
    if reason := scan.available()["triton"]:
        raise Skipped(f"the Triton scan cannot be used: {reason}")
    if importlib.util.find_spec("mamba_ssm") is None:
        raise Skipped("mamba-ssm is not installed, and it is what is compared with")
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    from mechint.scan import triton_kernel

    batch, length = 8, 2048
    u, dt, A, B, C = scan_inputs(batch, length, "cuda")
    channel_first = [x.mT.contiguous() for x in (u, dt, B, C)]
    initial = u.new_zeros(batch, INNER, STATES)
    source = u.new_zeros(batch, length, INNER, STATES)
    target = torch.empty_like(source)

    def finished(work: Callable[[], Any]) -> Callable[[], None]:
        """Ten times, to the end: a kernel's call comes back before it has run."""

        def run() -> None:
            with torch.no_grad():
                for _ in range(10):
                    work()
            torch.cuda.synchronize()

        return run

    def peer() -> Any:
        u_, dt_, B_, C_ = channel_first
        return selective_scan_fn(u_, dt_, A, B_, C_)

    sizes = f"[{batch}, {length}, {INNER}, {STATES}] on {torch.cuda.get_device_name()}, ten times"
    yield Question(
        "gpu",
        f"scan, forward, {sizes}",
        {"mechint, triton": finished(lambda: scan.selective_scan(u, dt, A, B, C)), PEER: finished(peer)},
        [Target("mechint, triton", PEER, 1.2, at_most=True)],
    )
    every = range(length)
    yield Question(
        "gpu",
        f"all states, {sizes}",
        {
            "mechint, triton": finished(lambda: triton_kernel.states_at(u, dt, A, B, initial, every)),
            COPY: finished(lambda: target.copy_(source)),
        },
        # the copy reads and writes, the scan writes: 70 % of its bandwidth is 1.4 of their times' ratio
        [Target(COPY, "mechint, triton", 1.4)],
    )
