"""The command that scores methods on models whose circuit is known: its flags, and what runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..report.markdown import table
from ..utils import workers
from ..utils.options import Parser, add_flags, from_flags
from .card import scorecard
from .options import ScorecardConfig
from .report import short_table
from .requests import check_place, plan

TITLE = "Scores every method on models whose circuit is known, and on random weights: the scorecard."


def parser() -> Parser:
    top = Parser(description=TITLE, allow_abbrev=False)
    top.add_argument("--help-all", action="help", help="show every option and exit")
    top.add_argument("--dry-run", action="store_true", help="say what would be scored, and score nothing")
    top.add_argument("--check", action="store_true", help="refuse what a run would refuse; score and print nothing")
    add_flags(top, ScorecardConfig)
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    """Scores what the flags say; ``arguments`` stand instead of the process's own."""
    flags = parser().parse_all(arguments)
    config = from_flags(flags, ScorecardConfig)
    if flags.dry_run:
        print(plan(config))
        return
    if flags.check:
        check_place(config)
        return
    results = scorecard(config)
    if workers.worker()[0] == 0:
        tables = (short_table(results, models) for models in results["groups"])
        print(*(table(shown.header, shown.rows) for shown in tables), sep="\n\n")
        print(f"scorecard: {Path(config.output_dir) / 'scorecard.html'}")
