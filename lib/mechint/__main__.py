"""``python -m mechint --checkpoint MODEL --prompt "…" --subject "…"``, and every other flag of the analyses."""

import sys

from .command_line import main
from .errors import exit_status

if __name__ == "__main__":
    sys.exit(exit_status(main))
