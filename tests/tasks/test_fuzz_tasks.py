"""A damaged or hostile file of prompts, text, tokens or a tokenizer is read or is one line that names it."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mechint.tasks import TaskConfig, make_task
from tests.helpers.fuzzing import EXTREME, STRINGS, TEXTS, damaged, tried
from tests.helpers.tokenizers import TOKENIZERS

LINES: list[dict[str, Any]] = [
    {"prompt": "The Eiffel Tower is in the city of", "subject": "Eiffel Tower", "answer": "Paris"},
    {"prompt": "The Colosseum is in the city of", "subject": "Colosseum", "answer": "Rome"},
    {"prompt": "Paris is the capital of", "subject": "Paris", "answer": "France", "occurrence": 1, "space": True},
    {"prompt": "it costs $5 or", "subject": "5", "answer": "France",
     "twin_prompt": "it costs $7 or", "twin_answer": "The"},
]  # fmt: skip
SUFFIX = [
    " now",
    " $5",
    "\u00a0",
    "²",
    "\t.",
    "e\u0301",
    "👩\u200d👧",
    "\x01",
    "\x00",
    "\x1b[2J",
    "\ufeff",
    "中文",
    "\\",
    "$",
]
"""Values that may stand in a prompt or an answer."""
KEYS = (
    "prompt",
    "subject",
    "answer",
    "twin_prompt",
    "twin_answer",
    "occurrence",
    "space",
    "attribute",
    "k" * 9_000,
    "",
)
CONTENTS = [
    b"", b"\x00", b"\xff\xfe\x00", b"\xef\xbb\xbf", b"text " * 400, b"\xef\xbb\xbf" + b"text " * 400, b"\x00" * 4_000,
    "中文 ".encode() * 400, b"\xed\xa0\x80" * 300, "é".encode("latin-1") * 300, "text ".encode("utf-16") * 300,
    b"\r\n" * 900,
]  # fmt: skip
KINDS = list(TOKENIZERS)


def mutated(rng: random.Random, text: str) -> str:
    """A text with something put into it, or in its place."""
    odd, at = rng.choice(STRINGS), rng.randrange(len(text) + 1)
    return rng.choice((odd, text[:at] + odd + text[at:], odd + text, text + odd, text * 2))


def mutated_line(rng: random.Random, line: dict[str, Any]) -> dict[str, Any]:
    line = dict(line)
    for _ in range(rng.choice((1, 1, 2))):
        key = rng.choice([*line, *line, *line, rng.choice(KEYS)])
        kind = rng.randrange(8)
        if kind == 0:
            line.pop(key, None)
        elif kind == 1:
            line[key] = rng.choice(EXTREME)
        elif isinstance(before := line.get(key, ""), str):
            odd = rng.choice(SUFFIX)
            near = rng.choice((odd + before, before + odd))
            line[key] = near if kind < 5 and key in ("prompt", "answer") else mutated(rng, before)
    return line


def odd_file(rng: random.Random, path: Path) -> None:
    """Something in a file's place that is not a regular file."""
    kind = rng.randrange(5)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.mkdir()
    elif kind == 2:
        path.symlink_to("/dev/zero")
    elif kind == 3:
        path.symlink_to(path)


def prompts_case(rng: random.Random, at: Path) -> Callable[[], object]:
    path = at / rng.choice(("f.jsonl", "f.json", "é $x$ {}.jsonl"))
    lines: list[Any] = [dict(line) for line in LINES]
    k = rng.randrange(len(lines))
    what = rng.randrange(10)
    if what < 6:
        lines[k] = mutated_line(rng, lines[k])
    elif what == 6:
        lines[k] = rng.choice(EXTREME)
    said = [json.dumps(line, ensure_ascii=rng.random() < 0.7) for line in lines]
    if what == 7:
        said[k] = rng.choice([*TEXTS, mutated(rng, said[k])])
    whole = rng.random() < 0.2
    text = f"[{','.join(said)}]" if whole else rng.choice(("\n",) * 7 + ("\r\n", "\n\n", "\r", "\u2028")).join(said)
    if what == 9:
        odd_file(rng, path)
    else:
        before = rng.choice(("",) * 7 + ("\ufeff", "\ufeff\ufeff", "\x00"))
        path.write_bytes((before + text).encode(errors="surrogatepass"))
    if what == 8:
        damaged(rng, path)
    config = TaskConfig(name="file", file=str(path), answers=rng.choice(("first", "whole")))
    tokenizer = TOKENIZERS[rng.choice(KINDS)]()
    return lambda: taken(config, tokenizer)


def text_case(rng: random.Random, at: Path) -> Callable[[], object]:
    name = rng.choice(("t.txt", "t.txt", "t.bin", "t.pkl", "t"))
    path = at / name
    if rng.random() < 0.15:
        odd_file(rng, path)
    elif name == "t.bin":
        head = rng.choice((b"", b"", (20240520).to_bytes(4, "little") + (1).to_bytes(4, "little") + b"\xff" * 8))
        path.write_bytes(head + rng.randbytes(rng.choice((0, 1, 2, 3, 5_000, 5_001, 20_000))))
    else:
        path.write_bytes(rng.choice(CONTENTS) + mutated(rng, "some plain text " * 300).encode(errors="surrogatepass"))
    if rng.random() < 0.2 and path.is_file():
        damaged(rng, path)
    config = TaskConfig(name="text", text=str(path), length=rng.choice((4, 8, 32, 65536)))
    tokenizer = TOKENIZERS[rng.choice(KINDS)]() if rng.random() < 0.6 else None
    return lambda: taken(config, tokenizer, None if tokenizer else 256)


def tokenizer_case(rng: random.Random, at: Path) -> Callable[[], object]:
    path = at / "tokenizer.json"
    TOKENIZERS[rng.choice(KINDS)]().save(str(path))
    raw = json.loads(path.read_text())
    what = rng.randrange(4)
    if what == 0:
        damaged(rng, path)
    elif what == 1:
        path.write_text(rng.choice(TEXTS))
    else:
        section = rng.choice(
            [raw, raw["model"], raw["model"]["vocab"]] if isinstance(raw["model"]["vocab"], dict) else [raw]
        )
        key = rng.choice(list(section))
        if rng.random() < 0.3:
            section.pop(key)
        else:
            section[key] = rng.choice(EXTREME)
        path.write_text(json.dumps(raw))
    (at / "f.jsonl").write_text("\n".join(map(json.dumps, LINES)))
    named = rng.choice((str(path), str(path), str(at)))
    config = TaskConfig(name="file", file=str(at / "f.jsonl"), tokenizer=named)
    return lambda: taken(config, None, rng.choice((None, 50, 100_000)))


def taken(config: TaskConfig, tokenizer: Any, vocab_size: int | None = None) -> None:
    """Makes a task and does with it what analyses do; all that it says of itself can be printed."""
    task = make_task(config, tokenizer, vocab_size)
    for split in ("discovery", "evaluation"):
        for prompts in task.groups(4, split, 0):
            words = [task.decode(int(token)) for token in prompts.tokens.flatten()[:200]]
            (task.description + task.fingerprint + "".join(words)).encode()
            assert int(prompts.tokens.min()) >= 0 and int(prompts.tokens.max()) < task.vocab_size
            if config.name == "file":
                task.roles(prompts)


CASES = {"prompts": prompts_case, "texts": text_case, "tokenizers": tokenizer_case}


@pytest.mark.parametrize("what", CASES)
def test_hostile_task_files_are_read_or_are_one_line(what: str, tmp_path: Path) -> None:
    ends = tried(CASES[what], range(100), tmp_path)
    assert ends["refused in one line"] > 15 and ends["loaded"] > 5


@pytest.mark.exhaustive
@pytest.mark.parametrize("what", CASES)
def test_many_hostile_task_files_are_read_or_are_one_line(what: str, tmp_path: Path) -> None:
    began = time.monotonic()
    ends = tried(CASES[what], range(1_000, 3_000), tmp_path)
    print(
        f"{what}: {sum(ends.values())} tried in {time.monotonic() - began:.0f} s: {dict(ends)}, tracebacks 0, hangs 0"
    )
