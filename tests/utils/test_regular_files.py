"""Only files that end are read, and only as much of them as is said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mechint.utils import files
from mechint.utils.errors import MechintError, short


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("fifo", "is a pipe, a device or a socket"),
        ("/dev/zero", "is a pipe, a device or a socket"),
        (".", "is a directory"),
        ("gone", "no such file"),
        ("nul\0", "embedded null byte"),
        ("x" * 5000, "name too long"),
        ("large", "has 11 bytes; at most 10 are read"),
    ],
)
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, name: str, says: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").write_bytes(b"x" * 11)
    with pytest.raises(MechintError, match=says) as caught:
        files.read_regular(os.path.join(tmp_path, name), 10, "text")
    assert len(str(caught.value)) < 500


def test_a_regular_file_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert files.read_regular(tmp_path / "link", 10, "text") == b"0123456789"
    assert files.check_regular(tmp_path / "a", None, "text") == 10


def test_overlong_values_are_cut() -> None:
    assert short("ab") == "ab" and short(["ab"]) == "['ab']"
    assert short("a" * 1000, 20) == "a" * 10 + "…(980 more)…" + "a" * 10
