"""``python -m mechint COMMAND …``: the analyses, training and scoring; ``--help`` lists the commands."""

import faulthandler
import sys

from .runner import subcommands
from .scorecard import ScorecardConfig, command
from .utils import workers
from .utils.errors import exit_status
from .utils.options import entered, flag_lines

SCORE = subcommands.Command(
    command.TITLE, command.main, command.parser, lambda: [("Options", flag_lines(ScorecardConfig))]
)


def main() -> None:
    subcommands.main(sys.argv[1:], {"score": SCORE})


if __name__ == "__main__":
    entered()
    faulthandler.enable()  # a crash in compiled code says in which line it was called
    workers.end(exit_status(main))
