"""``python -m benchmarks [SECTION ...]``: measures, prints each target and whether it holds, writes output/bench."""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from mechint import scan
from mechint.utils import files

from .pairs import Skipped, measure
from .sections import SECTIONS, questions
from .show import draw, table

SCHEMA = 3
PEERS = ("mambapy", "transformer-lens", "nnsight", "pyvene", "sae-lens", "dictionary-learning")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("sections", nargs="*", default=list(SECTIONS), help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--output", type=Path, default=Path("output/bench"), help="directory of the results")
    flags = parser.parse_args()
    if unknown := [name for name in flags.sections if name not in SECTIONS]:
        parser.error(f"no section {unknown[0]!r}; there are {', '.join(SECTIONS)}")
    flags.output.mkdir(parents=True, exist_ok=True)
    found, skipped, others = before(flags.output, flags.sections)
    for name in flags.sections:
        try:
            for question in questions(name):
                found.append(measure(question))
                print("\n".join(table([found[-1]])), flush=True)
        except Skipped as why:
            skipped[name] = str(why)
            print(f"section {name} skipped: {why}\n", flush=True)
        write(flags.output, found, skipped, {**others, **peers()})
    print(f"written: {', '.join(str(path) for path in sorted(flags.output.iterdir()))}")


def before(folder: Path, again: list[str]) -> tuple[list[dict[str, Any]], dict[str, str], dict[str, str]]:
    """What an earlier call measured on this machine in other sections than those asked for now."""
    old = files.read_json(folder / "results.json") if (folder / "results.json").exists() else {}
    if (old.get("schema"), old.get("machine")) != (SCHEMA, machine()):
        return [], {}, {}
    skipped = {name: why for name, why in old.get("skipped", {}).items() if name not in again}
    return [question for question in old["questions"] if question["section"] not in again], skipped, old["peers"]


def write(folder: Path, found: list[dict[str, Any]], skipped: dict[str, str], others: dict[str, str]) -> None:
    found = sorted(found, key=lambda question: SECTIONS.index(question["section"]))
    results = {"schema": SCHEMA, "machine": machine(), "peers": others, "skipped": skipped, "questions": found}
    files.write_json(folder / "results.json", results)
    about = ", ".join(f"{key} {value}" for key, value in {**machine(), **others}.items())
    missing = [f"Section {name} was skipped: {why}." for name, why in skipped.items()]
    files.write_text(folder / "table.md", "\n".join([about, "", *table(found), *missing]).rstrip() + "\n")
    draw(found, folder)


def machine() -> dict[str, Any]:
    return {
        "processor": cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        "scan": scan.chosen(),
        **{name: version(name) for name in ("torch", "transformers")},
    }


def peers() -> dict[str, str]:
    """The releases of those that are in this environment: not all go together in one."""
    found = {}
    for name in PEERS:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
