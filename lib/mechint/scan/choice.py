"""The choice of the back end that computes a tensor: the usable ones of this machine, and the one asked for."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..utils.errors import MechintError
from . import chunked, mamba_ssm_kernel, native

BACK_ENDS = ("native", "triton", "mamba_ssm", "chunked")
USUAL = {"cpu": ("native", "faster C"), "cuda": ("triton", "Triton")}
"""For each type of device: its own back end, and what that one is."""
NEXT = {"triton": "mamba_ssm"}
"""Substitutes for a device's own back end where that cannot run."""
_asked: str | None = None
_told = False
_told_of_triton = False


def available() -> dict[str, str]:
    """Every back end with '' when it can be used, else why not."""
    return {name: _missing(name) for name in BACK_ENDS}


def _missing(name: str) -> str:
    """Why a back end cannot be used, '' when it can."""
    if name == "native":
        try:
            native.library()
        except native.Unavailable as reason:
            return str(reason)
    if name == "mamba_ssm":
        return _missing_mamba_ssm()
    return _missing_triton() if name == "triton" else ""


@functools.cache
def _missing_mamba_ssm() -> str:
    if importlib.util.find_spec("mamba_ssm") is None:
        return "mamba-ssm is not installed"
    if "cuda" in mamba_ssm_kernel.DEVICES and not torch.cuda.is_available():
        return "no CUDA device"
    return _failing(mamba_ssm_kernel)


def _failing(back_end: Any) -> str:
    """Why a back end fails its own check, '' when it does not."""
    try:
        back_end.check()
    except Exception as error:  # any error, of an import too: the chunked scan can replace it
        lines = str(error).strip().splitlines()
        return f"its kernel fails ({lines[0] if lines else type(error).__name__})"
    return ""


@functools.cache
def _missing_triton() -> str:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not torch.cuda.is_available() and not _interpreted():
        return "no CUDA device"
    try:
        back_end = module("triton")
    except Exception as error:  # an import of Triton can fail in many ways
        return f"its kernel fails ({error})"
    return _failing(back_end)


def module(name: str) -> Any:
    """A back end's module. That of Triton is imported when first used: it takes a while, and few need it."""
    if name == "triton":
        from . import triton_kernel

        return triton_kernel
    return {"native": native, "mamba_ssm": mamba_ssm_kernel}.get(name, chunked)


def _interpreted() -> bool:
    """True if Triton runs its kernels on the CPU; it reads this variable when it is imported."""
    asked = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on")
    return asked and module("triton").INTERPRETED


@contextlib.contextmanager
def using(name: str) -> Iterator[None]:
    """Within this context the back end is ``name``.

    Raises:
        MechintError: there is no such back end, or not on this machine.
    """
    global _asked
    if name not in BACK_ENDS:
        raise MechintError(f"no scan back end {name!r}; there are {', '.join(BACK_ENDS)}")
    if reason := _missing(name):
        raise MechintError(f"the scan back end {name!r} is not on this machine: {reason}; take 'chunked'")
    before, _asked = _asked, name
    try:
        yield
    finally:
        _asked = before


def chosen(like: Tensor | None = None) -> str:
    """The back end that a tensor like this one is computed by (by default float32 on the CPU).

    One that was asked for gives way to the chunked one for tensors that it cannot take: the native one takes none but
    the CPU's, mamba_ssm none of those, and triton none of those but in Triton's interpreter. Where triton is missing,
    mamba_ssm serves if it is installed. The first time that a device's own back end is
    missing, a line on stderr says so.
    """
    global _told, _told_of_triton
    device = "cpu" if like is None else like.device.type
    if device not in USUAL or (like is not None and like.dtype != torch.float32):
        return "chunked"
    usual, language = USUAL[device]
    if _asked is not None:
        takes = _asked == usual or (_asked == "triton" and device == "cpu" and _interpreted())
        takes = takes or (_asked == "mamba_ssm" and device in mamba_ssm_kernel.DEVICES)
        return _asked if takes else "chunked"
    reason = _missing(usual)
    if reason and usual in NEXT and not _missing(NEXT[usual]):
        return NEXT[usual]
    if reason and not (_told if usual == "native" else _told_of_triton):
        if usual == "native":
            _told = True
        else:
            _told_of_triton = True
        print(f"scan: plain torch in place of the {language} one, because {reason}", file=sys.stderr)
    return "chunked" if reason else usual
