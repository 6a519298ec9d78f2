"""The hand-made mutants can be applied: each names a line that is there once, and tests that are there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from scripts.mutants.by_hand import MUTANTS, Mutant, stale
from tests.helpers.paths import ROOT


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.file}: {mutant.mutated[:40]}")
def test_a_mutant_can_be_applied(mutant: Mutant) -> None:
    assert list(stale(mutant)) == []
    assert (ROOT / mutant.tests.split()[0]).exists()


@pytest.mark.slow
def test_a_forked_process_has_no_thread_to_wait_for() -> None:
    """OpenMP's threads do not come along to a forked process, which would wait for them for ever."""
    code = (
        "import os; from scripts.mutants import trees; trees.import_heavy(); import torch\n"
        "large = torch.ones(600, 600); large @ large\n"
        "pid = trees.fork(lambda: int(float((large @ large).sum()) != 600.0**3), 20)\n"
        "print(torch.get_num_threads(), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    )
    more = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "MKL_"))}
    more["PYTHONPATH"] = os.pathsep.join((str(ROOT / "lib"), str(ROOT)))
    done = subprocess.run([sys.executable, "-c", code], env=more, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["1", "0"], done.stderr
