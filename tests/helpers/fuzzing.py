"""Shared by all fuzzers: damaged files, unexpected values, and a count of how the cases of many seeds ended."""

from __future__ import annotations

import random
import shutil
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mechint import MechintError

SECONDS = 20
"""No mutated file takes longer: most take a hundredth of a second."""
EXTREME: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 2**31, 10**18, -(10**18), 0.5, 1e300, -0.0, 1e-300, "", "x", "gelu", "none",
    "²", "a" * 10_000, "\x00", "\n", [], [1], [[[]]], {}, {"a": 1}, {"rope_type": 3}, ["LlamaForCausalLM", 3],
    "topk", "silu",
]  # fmt: skip
TEXTS = [
    "", "{", "[" * 50_000, '{"a":' * 5_000, '{"n_head": ' + "9" * 5_000 + "}", '{"a": NaN}', '{"a": 1e999}', "[]",
    "3", '"text"', "null", '{"vocab_size": -Infinity}', '{"a": "\\ud800"}', "{}", '{"architecture": {}}', "\x00\x01",
]  # fmt: skip


def damaged(rng: random.Random, path: Path) -> None:
    """Cuts, overwrites or replaces some bytes of a file."""
    content = bytearray(path.read_bytes())
    kind = rng.randrange(4)
    if kind == 0:
        content = content[: rng.randrange(len(content) + 1)]
    elif kind == 1:
        for _ in range(rng.choice((1, 8, 64))):
            if content:
                content[rng.randrange(min(len(content), rng.choice((64, 1024, len(content)))))] = rng.randrange(256)
    elif kind == 2:
        content = bytearray(rng.randbytes(rng.choice((0, 3, 8, 400))))
    else:
        content = bytearray(rng.choice(TEXTS).encode())
    path.write_bytes(bytes(content))


@contextmanager
def within(seconds: int) -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError(f"longer than {seconds} s")

    before = [signal.signal(number, late) for number in (signal.SIGPROF, signal.SIGALRM)]
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.alarm(10 * seconds)  # what waits takes no time of a processor, and neither does what others keep from it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for number, handler in zip((signal.SIGPROF, signal.SIGALRM), before, strict=True):
            signal.signal(number, handler)


def tried(case: Callable[[random.Random, Path], Callable[[], object]], seeds: range, at: Path) -> Counter[str]:
    """Counts how the cases of these seeds ended; the assertion names the seeds that ended in another exception."""
    ends: Counter[str] = Counter()
    faults = []
    for seed in seeds:
        folder = at / str(seed)
        folder.mkdir()
        load = case(random.Random(seed), folder)
        try:
            with within(SECONDS), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                load()
            ends["loaded"] += 1
        except MechintError as error:
            message = str(error)
            ends["refused in one line"] += 1
            if "\n" in message or str(folder) not in message or len(message) > 2_000:
                faults.append(f"{seed}: {message[:300]!r}")
        except TimeoutError:
            ends["hangs"] += 1
            faults.append(f"{seed}: hangs")
        except BaseException as error:  # panics of compiled code are no Exception
            if isinstance(error, KeyboardInterrupt):
                raise
            ends["tracebacks"] += 1
            faults.append(f"{seed}: {type(error).__name__}: {str(error)[:200]}")
        shutil.rmtree(folder)
    assert not faults, f"{len(faults)} of {len(seeds)}: {faults[:8]}"
    return ends


STRINGS = [
    "", " ", "\t", "\n", "\r\n", "\x00", "a\x00b", "\x01\x02\x1b[2J", "\x7f", "\u2028", "\ufeff", "\u202e", "\u200d",
    "é", "e\u0301", "中文", "👩\u200d👩\u200d👧", "²", "१२", "\U0010ffff", "\ud800", "a\udfffb", "$", "$x$",
    "\\", "{", "}",
    "%s", "<s>", "</s>", "<|endoftext|>", "▁", "Ġ", "Ċ", "'", '"', "a" * 20_000, "word " * 3_000, "-0", "1e999",
    "nan", "None",
]  # fmt: skip
