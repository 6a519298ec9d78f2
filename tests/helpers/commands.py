"""Commands that are run in this process, where starting another one is not what is tested."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mechint.utils import options
from mechint.utils.errors import exit_status


@dataclass(frozen=True)
class Said:
    """The end of a command."""

    status: int
    out: str
    err: str


class Here:
    """Runs a command's ``main`` in this process, as a person in ``at`` would from the shell."""

    def __init__(self, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> None:
        self.patch, self.capture = patch, capture

    def __call__(self, main: Callable[[], int | None], *words: str, at: Path, **own: str) -> Said:
        with self.patch.context() as patch:
            patch.chdir(at)
            patch.setattr(sys, "argv", ["command", *words])
            patch.setattr(options, "_way", "python")
            patch.setattr(options, "_own", {})
            options.entered(**own)
            status = exit_status(main)
        return Said(status, *self.capture.readouterr())
