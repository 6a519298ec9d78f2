"""``mechint COMMAND …``, which is ``python -m mechint COMMAND …`` too; ``--help`` lists the commands."""

import faulthandler
import sys

from .runner import subcommands
from .scorecard import ScorecardConfig, command
from .utils import workers
from .utils.errors import exit_status
from .utils.options import entered, flag_lines

SCORE = subcommands.Command(
    command.TITLE, command.main, command.parser, lambda short: [("Options", flag_lines(ScorecardConfig, short=short))]
)


def main() -> None:
    subcommands.main(sys.argv[1:], {"score": SCORE})


def entry() -> None:
    """Runs the command line of this process, and ends it with its status."""
    entered()
    faulthandler.enable()  # a crash in compiled code says in which line it was called
    workers.end(exit_status(main))


if __name__ == "__main__":
    entry()
