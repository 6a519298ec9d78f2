"""The selective scan, with one entry point for each of its three quantities. Back ends are files beside this one.

========= ============================================== =======================================================
back end  where                                          how
========= ============================================== =======================================================
native    float32 on a CPU, with a C compiler            C, states in registers; compiled once, in a second
triton    float32 on a CUDA device, with Triton          one kernel, states in registers; agrees to rounding
mamba_ssm the same, with the package mamba-ssm           its kernel, and causal-conv1d's; forwards alone
chunked   any device and precision                       plain torch, a chunk of states at a time
========= ============================================== =======================================================

Within one back end the scan, its decays and its read-outs come from the same operations, so that recording or
identically editing a state keeps every bit of the logits. Between back ends the last bits differ. That holds on a CPU;
on a CUDA device, whose compilers may order a sum in another way for each shape, equality of the last bit is not
demanded: the scan and its pieces agree to rounding there, whichever the back end.
"""

from __future__ import annotations

import importlib
from typing import Any

from .attention_weights import hidden_attention, states
from .choice import available, chosen, using
from .mixer import convolve, convolved, finished, gated, gated_norm, one_pass, silu, softplus
from .reference import recurrence
from .selective import decays, read_out, selective_scan

__all__ = [
    "attention_map",
    "available",
    "chosen",
    "convolve",
    "convolved",
    "decays",
    "finished",
    "gated",
    "gated_norm",
    "hidden_attention",
    "one_pass",
    "read_out",
    "recurrence",
    "selective_scan",
    "silu",
    "softplus",
    "states",
    "using",
]


def __getattr__(name: str) -> Any:
    if name == "attention_map":  # it takes a whole model, so it lies in a higher room
        return importlib.import_module("mechint.attribution.attention").attention_map
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
