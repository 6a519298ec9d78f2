#!/usr/bin/env python3
"""Scores every method on models whose circuit is known, and on random weights: the scorecard."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))

from mechint.scorecard import ScorecardConfig, scorecard
from mechint.scorecard.report import short_table
from mechint.scorecard.requests import check_place, plan
from mechint.utils import workers
from mechint.utils.errors import exit_status
from mechint.utils.options import Parser, add_flags, from_flags


def main() -> None:
    parser = Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--dry-run", action="store_true", help="say what would be scored, and score nothing")
    parser.add_argument("--check", action="store_true", help="refuse what a run would refuse; score and print nothing")
    add_flags(parser, ScorecardConfig)
    flags = parser.parse_all()
    config = from_flags(flags, ScorecardConfig)
    if flags.dry_run:
        print(plan(config))
        return
    if flags.check:
        check_place(config)
        return
    results = scorecard(config)
    if workers.worker()[0] == 0:
        print(*(short_table(results, models) for models in results["groups"]), sep="\n\n")
        print(f"scorecard: {Path(config.output_dir) / 'scorecard.md'}")


if __name__ == "__main__":
    workers.end(exit_status(main))
