"""``python -m mechint --checkpoint MODEL --prompt "…" --subject "…"``, and every other flag of the analyses."""

import sys

from .runner.command_line import main
from .utils.errors import exit_status
from .utils.options import entered

if __name__ == "__main__":
    entered()
    sys.exit(exit_status(main))
