#!/usr/bin/env python3
"""Scores every method on models whose circuit is known, and on random weights: the scorecard."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))

from mechint.scorecard.command import main
from mechint.utils import workers
from mechint.utils.errors import exit_status

if __name__ == "__main__":
    workers.end(exit_status(main))
