"""JSON is read strictly, whatever a reader raises names the file, and values in messages stay short."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechint.utils import files
from mechint.utils.errors import MechintError, shown


def refusal(text: str) -> str:
    with pytest.raises(MechintError) as caught:
        files.parse_json(text, "a.json")
    message = str(caught.value)
    assert message.startswith("a.json is not valid JSON")
    assert len(message) < 400
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "nested deeper than 64"),
        ("[" * 65 + "1" + "]" * 65, "nested deeper than 64"),
        ('{"a":' * 500 + "1" + "}" * 500, "nested deeper than 64"),
        ("9" * 5_000, "5000 digits"),
        ("9" * 4_000, "4000 digits"),
        (str(2**64), "20 digits"),
        ("NaN", "NaN"),
        ('{"a": -Infinity}', "-Infinity"),
        ("1e999", "1e999"),
        (r'{"a": ["\ud800"]}', "surrogates"),
        (r'{"\udc00": 1}', "surrogates"),
        ('{"a": 1, "a": 2}', "'a' is there twice"),
        ('{"' + "k" * 9_000 + '": 1, "' + "k" * 9_000 + '": 2}', "more)"),
        ("", "Expecting value"),
        ("{", "Expecting property name"),
    ],
)
def test_json_that_no_reader_can_rely_on_is_one_line(text: str, said: str) -> None:
    assert said in refusal(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_categories=("Cs",))),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
        max_leaves=20,
    )
)  # fmt: skip
def test_every_other_value_comes_back(value: Any) -> None:
    for ascii_only in (True, False):
        text = json.dumps(value, ensure_ascii=ascii_only)
        assert files.parse_json(text, "a.json") == value


def test_a_pair_of_surrogates_is_one_character() -> None:
    assert files.parse_json(r'"\ud83d\ude00"', "a.json") == "\U0001f600"
    assert files.parse_json('{"a": 1, "a": 1}', "a.json") == {"a": 1}
    assert files.parse_json("[" * 64 + "]" * 64, "a.json")


def test_a_byte_order_mark_and_what_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf[1]")
    assert files.read_json(path) == [1]
    path.write_bytes(b"[1, \xff]")
    with pytest.raises(MechintError, match=r"a\.json is not valid JSON: byte 4 is not UTF-8"):
        files.read_json(path)


def test_a_json_file_that_never_ends_or_is_too_large(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with open(tmp_path / "big", "wb") as file:
        file.truncate(10**12)  # sparse: nothing of it is read
    for path, said in [
        (tmp_path / "fifo", "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
        (tmp_path, "is a directory"),
        (tmp_path / "absent", "no such file"),
        (Path(str(tmp_path / "a\0b")), "can't be read"),
        (tmp_path / ("n" * 300), "can't be read"),
        (tmp_path / "big", "has 1000000000000 bytes; at most 500000000 are read"),
    ]:
        with pytest.raises(MechintError, match=said):
            files.read_json(path)


def test_whatever_a_reader_raises_names_the_file() -> None:
    for error in (ValueError("a\nb"), KeyError("k"), RecursionError(), IndexError("x" * 5_000), OSError(5, "I/O")):
        with pytest.raises(MechintError, match=r"^m\.pt ") as caught, files.reading("m.pt"):
            raise error
        assert len(str(caught.value)) < 300
        assert "\n" not in str(caught.value)
    for own in (MechintError("ours"), MemoryError("full")):
        with pytest.raises(type(own), match=str(own)), files.reading("m.pt"):
            raise own


def test_values_in_messages_are_cut() -> None:
    assert shown("gelu") == "'gelu'"
    assert shown([1, 2]) == "[1, 2]"
    assert shown("a\nb") == r"'a\nb'"
    assert shown("a" * 5_000).startswith("'aaa")
    assert len(shown("a" * 5_000)) < 110
    assert shown(10**5_000) == "<int of 16610 bits, too large to write>"
    assert shown([10**5_000]) == "<list, too large to write>"
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert shown(deep) == "<list, too large to write>"
    while deep:  # taken apart by hand: freeing it all at once is deep too
        deep = deep[0]
