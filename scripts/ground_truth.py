#!/usr/bin/env python3
"""Scores every method on models whose circuit is known, and on random weights: the scorecard."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))

from mechint import workers
from mechint.errors import exit_status
from mechint.options import add_flags, from_flags
from mechint.report.scorecard import short_table
from mechint.scorecard import ScorecardConfig, scorecard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_flags(parser, ScorecardConfig)
    config = from_flags(parser.parse_args(), ScorecardConfig)
    results = scorecard(config)
    if workers.worker()[0] == 0:
        print(*(short_table(results, models) for models in results["groups"]), sep="\n\n")
        print(f"scorecard: {Path(config.output_dir) / 'scorecard.md'}")


if __name__ == "__main__":
    workers.end(exit_status(main))
