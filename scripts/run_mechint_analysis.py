#!/usr/bin/env python3
"""Runs the analyses that are switched on over every checkpoint that a pattern names."""

from __future__ import annotations

import faulthandler
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))

from mechint.runner import command_line
from mechint.utils import workers
from mechint.utils.errors import exit_status
from mechint.utils.options import entered
from scripts.kconfig.defconfig_text import defconfig_text

parser = command_line.parser


def main() -> None:
    command_line.main(defconfig_text)


if __name__ == "__main__":
    entered()
    faulthandler.enable()  # a crash in compiled code says in which line it was called
    workers.end(exit_status(main))
