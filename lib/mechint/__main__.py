"""``python -m mechint --checkpoint MODEL --prompt "…" --subject "…"``, and every other flag of the analyses."""

import sys

from .command_line import main
from .errors import exit_status
from .options import entered

if __name__ == "__main__":
    entered()
    sys.exit(exit_status(main))
