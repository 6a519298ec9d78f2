#!/usr/bin/env python3
"""Trains every architecture of dictionary on activations with known directions, and scores what they find."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))

from mechint.analyses.dictionaries.planted import PlantedConfig, planted_scores, table
from mechint.utils.errors import exit_status
from mechint.utils.options import Parser, add_flags, from_flags


def main() -> None:
    parser = Parser(description=__doc__)
    add_flags(parser, PlantedConfig)
    print(*table(planted_scores(from_flags(parser.parse_all(), PlantedConfig))), sep="\n")


if __name__ == "__main__":
    sys.exit(exit_status(main))
