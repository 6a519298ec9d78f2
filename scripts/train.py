#!/usr/bin/env python3
"""Trains a small language model on a task, or resumes a killed training."""

from __future__ import annotations

import faulthandler
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))

from mechint.runner import train_command
from mechint.utils.errors import exit_status
from mechint.utils.options import entered

parser = train_command.parser


if __name__ == "__main__":
    entered()
    faulthandler.enable()  # a crash in compiled code says in which line it was called
    sys.exit(exit_status(train_command.main))
