"""``make mutants``: changes one line of the library at a time, and asks that a test notices.

Without ``--sources`` it applies the mutants of ``by_hand.py`` that hold a word of the arguments, or all. With it, it
1. makes the one-line mutants of the named files or folders of lib/mechint (``generate.py``) and samples some of each;
2. runs their tests once without a mutant, and notes which lines each test runs (``reached.py``), which it keeps;
3. tests each mutant with the tests that run its line, quick ones first;
4. prints survivors with file, line and change, and a table of killed, equivalent and survived ones.

The exit status says whether any mutant survived.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from scripts.mutants import by_hand, generate, reached, swap, trees

EQUIVALENT = Path(__file__).with_name("equivalent.json")
"""Mutants that change no result, each with its reason: nobody can write a test for them."""
LEFT_OUT = ("report.py", "figures.py", "options.py", "__init__.py", "panels.py", "feature_browser.py")
"""What draws or only declares is not mutated when a folder is named."""
STATISTICS = (
    *(f"tests/utils/test_{name}.py" for name in ("statistics", "multiple_tests", "intervals")),
    by_hand.PRINTED,
)
TESTS = {
    "utils/statistics.py": STATISTICS,
    "utils/multiple_tests.py": (*STATISTICS, "tests/analyses/circuits/test_minimality.py"),
    "attribution/attention.py": (
        "tests/attribution",
        "tests/models/families/test_costs_and_maps.py",
        "tests/analyses/study/test_recurrences.py",
    ),
    "attribution/decomposition.py": ("tests/attribution", "tests/models/families/test_token_terms.py"),
    "attribution/relevance.py": ("tests/attribution", "tests/models/families/test_head_bias.py"),
    "analyses/circuits/results.py": ("tests/analyses", "tests/report"),
    "analyses/dictionaries/planted.py": ("tests/analyses", "tests/scorecard/test_planted.py"),
}
"""The tests of files that other folders test, too, or which are a small part of their folder."""
SECONDS = 300
"""The limit of processor time of the tests of a hand-made mutant; a mutant that makes them hang is noticed, too."""

LEAST = 30
"""The limit of processor time of quick tests, which have to import the library anew for some mutants."""
ANEW = 99
"""The status of a process that could not put its mutant into imported modules."""


@dataclass(frozen=True)
class Job:
    change: trees.Change | None
    tests: tuple[str, ...]
    seconds: int = SECONDS


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.mutants", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", help="run the hand-made mutants whose file or text holds one of these")
    parser.add_argument("--sources", nargs="+", default=[], help="files or folders below lib/mechint to mutate")
    parser.add_argument(
        "--tests", nargs="+", default=[], help="test files or folders that they meet (default: those of their room)"
    )
    parser.add_argument("--sample", type=int, help="mutants of each file (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="chooses the sample (default: %(default)s)")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, help="mutants at a time (default: the CPUs)"
    )
    parser.add_argument(
        "--most", type=float, default=1e9, help="seconds of the tests of a mutant, quick ones first (default: all)"
    )
    parser.add_argument(
        "--minutes", type=float, default=1e9, help="start no mutant after this long (default: no limit)"
    )
    options = parser.parse_args(arguments)
    trees.import_heavy()
    with tempfile.TemporaryDirectory() as temporary:
        copies = [trees.copy(Path(temporary) / str(k)) for k in range(options.processes + bool(options.sources))]
        return generated(options, copies) if options.sources else chosen_by_hand(options.words, copies)


def chosen_by_hand(words: Sequence[str], copies: Sequence[Path]) -> int:
    chosen = [m for m in by_hand.MUTANTS if not words or any(word in m.file or word in m.original for word in words)]
    if wrong := [problem for mutant in chosen for problem in by_hand.stale(mutant)]:
        print(*wrong, sep="\n", file=sys.stderr)
        return 1
    began, survived = time.monotonic(), 0
    plain = [Job(None, tuple(tests.split())) for tests in sorted({mutant.tests for mutant in chosen})]
    for job, noticed in trees.run([*plain, *(Job(m, tuple(m.tests.split())) for m in chosen)], copies):
        if not isinstance(job.change, by_hand.Mutant):
            if noticed:
                print(f"{' '.join(job.tests)} fails without a mutant", file=sys.stderr)
                return 1
            continue
        survived += not noticed
        mutant = job.change
        line = next((line for line in mutant.mutated.splitlines() if line not in mutant.original), mutant.mutated)
        print(f"{'killed  ' if noticed else 'SURVIVED'} {mutant.file}: {line.strip()}", flush=True)
    took = time.monotonic() - began
    print(f"{len(chosen)} mutants in {took:.0f} s: {len(chosen) - survived} killed, {survived} survived")
    return int(bool(survived) or not chosen)


def generated(options: argparse.Namespace, copies: Sequence[Path]) -> int:
    """Samples mutants of the named sources and tests each."""
    stop = time.monotonic() + 60 * options.minutes
    files = [file for source in options.sources for file in files_of(source)]
    mutants = {f: generate.sample(trees.LIBRARY / f, f, options.sample, options.seed) for f in files}
    made = {f: len(generate.mutants(trees.LIBRARY / f, f)) for f in files}
    why = {(e["file"], e["line"], e["becomes"]): e["why"] for e in json.loads(EQUIVALENT.read_text())}
    tests = options.tests or sorted({path for file in files for path in tests_of(file)})
    of_each = (
        "all" if options.sample is None else f"up to {options.sample} of each file, drawn with seed {options.seed}"
    )
    print(
        f"{sum(map(len, mutants.values()))} of {sum(made.values())} mutants of {len(files)} files ({of_each}); "
        f"first without one: {' '.join(tests)}",
        flush=True,
    )
    trees.enter(copies[0])
    lines = reached.reach(copies[0], tests, files)
    table: dict[str, Counter[str]] = {file: Counter(made=made[file]) for file in files}
    jobs, began = [], time.monotonic()
    for mutant in (mutant for file in files for mutant in mutants[file]):
        near = lines.tests(mutant.file, *mutant.statement)
        if mutant.key in why:
            table[mutant.file]["equivalent"] += 1
        elif not near:
            survives(mutant, table, "no test runs it")
        else:
            together = list(itertools.accumulate(lines.seconds[test] for test in near))
            count = max(1, sum(seconds <= options.most for seconds in together))
            jobs.append(Job(mutant, tuple(near[:count]), int(LEAST + 4 * together[count - 1])))
    for job, noticed in attempts(jobs, copies, stop):
        assert isinstance(job.change, generate.Mutant)
        if noticed:
            table[job.change.file]["killed"] += 1
            print(f"killed   {job.change.file}:{job.change.line}: {job.change.after.strip()}", flush=True)
        else:
            survives(job.change, table, "every test passes")
    print(of_each + (f"; of each the quickest {options.most:g} s of its tests" if options.most < 1e9 else ""))
    report(table, sum(map(len, mutants.values())), time.monotonic() - began)
    return int(any(row["survived"] for row in table.values()))


def attempts(jobs: Sequence[Job], copies: Sequence[Path], stop: float) -> Iterator[tuple[Job, bool]]:
    """For each job whether a test fails, until the clock says ``stop``; as many at a time as there are copies but one.

    A mutant of a function is put into the modules that this process has imported. Others are written into a copy, whose
    modules are imported anew.
    """
    anew, waiting, running = [], list(reversed(jobs)), dict[int, Job]()
    while waiting or running:
        while waiting and len(running) < len(copies) - 1 and time.monotonic() < stop:
            job = waiting.pop()
            running[trees.fork(partial(put_in, job, copies[0]), job.seconds)] = job
        if not running:
            break
        pid, status = os.wait()
        job = running.pop(pid)
        if os.waitstatus_to_exitcode(status) == ANEW:
            anew.append(job)
        else:
            yield job, trees.noticed(status)
    while anew and time.monotonic() < stop:
        now, anew = anew[: len(copies) - 1], anew[len(copies) - 1 :]
        yield from trees.run(now, copies[1:])


def put_in(job: Job, tree: Path) -> int:
    """Tests a mutant in a forked process; ANEW where its modules must be imported anew."""
    assert isinstance(job.change, generate.Mutant)
    path = trees.library(tree) / job.change.file
    if job.change.statement == (0, 0) or not swap.swap(path, job.change.apply(path.read_text())):
        return ANEW
    return trees.run_tests(job.tests)


def survives(mutant: generate.Mutant, table: dict[str, Counter[str]], reason: str) -> None:
    table[mutant.file]["survived"] += 1
    print(
        f"SURVIVED {mutant.file}:{mutant.line} ({reason})\n  - {mutant.before.strip()}\n  + {mutant.after.strip()}",
        flush=True,
    )


COLUMNS = ("killed", "equivalent", "survived")
"""What becomes of a mutant that is tried."""


def report(table: dict[str, Counter[str]], sampled: int, seconds: float) -> None:
    print(f"{'file':45s} {'mutants':>8s} {'tried':>6s} " + " ".join(f"{column:>10s}" for column in COLUMNS))
    total: Counter[str] = sum(table.values(), Counter())
    for name, row in [*table.items(), ("all", total)]:
        counts = [row[column] for column in COLUMNS]
        print(f"{name:45s} {row['made']:8d} {sum(counts):6d} " + " ".join(f"{count:10d}" for count in counts))
    asked, untried = total["killed"] + total["survived"], sampled - sum(total[column] for column in COLUMNS)
    share = (
        f"{100 * total['killed'] / asked:.1f} % of {asked} that are not equivalent are killed"
        if asked
        else "no mutant was tried"
    )
    print(f"{share}; {seconds:.0f} s" + (f"; {untried} not tried for want of time" if untried else ""))


def files_of(source: str) -> list[str]:
    """The Python files that a source names: itself, or those of a folder that measure something."""
    path = trees.LIBRARY / source
    if path.is_file():
        return [source]
    found = [p for p in sorted(path.rglob("*.py")) if p.name not in LEFT_OUT and "pages" not in p.parts]
    if not found:
        sys.exit(f"error: {source} names no Python file below lib/mechint")
    return [p.relative_to(trees.LIBRARY).as_posix() for p in found]


def tests_of(file: str) -> tuple[str, ...]:
    """The tests that may notice mutants of a file: those of its room, and hand-made tables of printed numbers."""
    return TESTS.get(file, (Path("tests", *Path(file).parts[:1]).as_posix(), by_hand.PRINTED))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
