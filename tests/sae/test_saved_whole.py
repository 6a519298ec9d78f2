"""Saved dictionaries take the place of what was there whole, or not at all; and of nothing that is no dictionary."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mechint import sae
from mechint.utils import files
from mechint.utils.errors import MechintError
from tests.helpers.paths import ROOT
from tests.helpers.sae import small

WRITERS: dict[str, Callable[[Any, Path], Path]] = {
    "saelens": sae.save, "dictionary_learning": sae.save_dictionary_learning, "sparsify": sae.save_sparsify,
}  # fmt: skip


def contents(top: Path) -> dict[str, bytes]:
    return {str(path.relative_to(top)): path.read_bytes() for path in sorted(top.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", list(WRITERS))
def test_a_directory_that_holds_more_than_a_dictionary_is_left_alone(name: str, tmp_path: Path) -> None:
    """A model's directory has a config.json, too: it was removed, weights and all."""
    place = WRITERS[name](small("topk"), tmp_path / "here")
    (place / "model.safetensors").write_bytes(b"a model's weights")
    (place / "notes").mkdir()
    (place / "notes" / "mine.md").write_text("words of a user")
    before = contents(tmp_path)
    with pytest.raises(MechintError, match=r"here.* holds files that are not a dictionary; choose another directory"):
        WRITERS[name](small("topk", seed=1), tmp_path / "here")
    assert contents(tmp_path) == before
    shutil.rmtree(place / "notes")
    (place / "model.safetensors").unlink()
    WRITERS[name](small("topk", seed=1), tmp_path / "here")
    after = contents(tmp_path)
    assert after != before and set(after) == {
        entry for entry in before if Path(entry).name not in ("model.safetensors", "mine.md")
    }


@pytest.mark.parametrize("name", list(WRITERS))
def test_a_full_disk_is_said_as_such_and_the_old_dictionary_stays(name: str, tmp_path: Path) -> None:
    """The libraries that write tensors have errors of their own for it, which ended in tracebacks."""
    WRITERS[name](small("topk"), tmp_path / "here")
    before = contents(tmp_path)
    code = f"""
import resource, sys
from pathlib import Path
from tests.helpers.sae import small
from tests.sae.test_saved_whole import WRITERS
from mechint.utils.errors import exit_status
bigger = small("topk", d_in=64, d_sae=300)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
sys.exit(exit_status(lambda: WRITERS[{name!r}](bigger, Path({str(tmp_path / "here")!r})) and None))
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "lib"), str(ROOT)))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 2 and done.stderr.startswith("error: File too large"), done.stderr
    assert len(done.stderr.splitlines()) == 1 and "free space, or choose another output directory" in done.stderr
    assert contents(tmp_path) == before and not list(tmp_path.rglob(".*"))


def test_the_old_directory_is_there_until_the_new_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old one was removed first: an error between the two lost both."""
    sae.save(small("topk"), tmp_path / "here")
    before = contents(tmp_path)
    replace = os.replace

    def fails_once(source: Any, target: Any) -> None:
        if Path(target) == tmp_path / "here":
            monkeypatch.setattr(files.os, "replace", replace)
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", fails_once)
    with pytest.raises(OSError, match="Input/output"):
        sae.save(small("topk", seed=1), tmp_path / "here")
    assert contents(tmp_path) == before and not list(tmp_path.glob(".*"))
