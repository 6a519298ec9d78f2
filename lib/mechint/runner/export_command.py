"""The command that writes numbers of finished runs as tables of other programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..report.results import TABLES, ManyResults, RunResults
from ..report.tables.export import FORMATS, check
from ..utils.errors import MechintError, did_you_mean, say_failure, shown
from ..utils.files import write_bytes
from ..utils.options import Parser, add_flags, flag, from_flags, listed, named, option
from ..utils.rundir import check_writable
from .results import directories, one

TITLE = "Writes the numbers of finished analyses as CSV, Parquet or LaTeX."


@dataclass(frozen=True)
class ExportConfig:
    """The runs to export, and the files to write."""

    runs: str = option(
        "mechint_analysis", "Finished analysis, a glob of some, or a directory with some below it", path=True
    )
    tables: str = option(
        " ".join(TABLES), "Tables to write: metrics, cells (of maps, and of layers), units, curve, or several of them"
    )
    formats: str = option("csv", "Formats to write: csv, parquet (needs pyarrow), latex, or several of them")
    output_dir: str = option("mechint_export", "Directory of the files, one for each table and format", path=True)


def parser() -> Parser:
    top = Parser(description=TITLE)
    top.add_argument("path", nargs="?", help="the same as --runs")
    top.add_argument("--help-all", action="help", help="show every option and exit")
    top.add_argument("--dry-run", action="store_true", help="say what would be exported, and write nothing")
    add_flags(top, ExportConfig)
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    """Exports what the flags say.

    Args:
        arguments: Instead of the process's own.
    """
    top = parser()
    flags = top.parse_all(arguments)
    if flags.path is not None:
        flags.runs = flags.path
    export(from_flags(flags, ExportConfig), flags.dry_run)


def chosen(text: str, known: Sequence[str], option: str) -> list[str]:
    """The names that an option lists, each once.

    Raises:
        MechintError: one of them is unknown, or there is none.
    """
    where = named("", option)
    names = list(dict.fromkeys(listed(text, where)))
    for name in names:
        if name not in known:
            raise MechintError(f"{where}: {shown(name)} is none of {', '.join(known)}{did_you_mean(name, known)}")
    if not names:
        raise MechintError(f"{where} is empty; name one or more of {', '.join(known)}")
    return names


def export(config: ExportConfig, dry_run: bool = False) -> list[Path]:
    """Writes a file for each table and format, with the numbers of all runs.

    Returns:
        The files.

    Raises:
        MechintError: an option is wrong or a package is missing, before any work; some runs could not be read, after
            those of the others are written.
    """
    tables, formats = chosen(config.tables, TABLES, "tables"), chosen(config.formats, list(FORMATS), "formats")
    check(formats)
    found = directories(Path(config.runs).expanduser())
    if not found:
        raise MechintError(
            f"{config.runs} holds no finished analysis (no results.json in it or below it); name another with "
            f"{flag('', 'runs')}"
        )
    output = Path(config.output_dir)
    check_writable(output, dry=dry_run)
    wanted = {(table, kind): output / f"{table}.{FORMATS[kind][0]}" for table in tables for kind in formats}
    if dry_run:
        print(f"would export {len(found)} runs", *map(str, wanted.values()), sep="\n  ")
        return []
    runs: list[RunResults] = []
    for directory in found:
        try:
            runs.append(one(directory))
        except (MechintError, OSError) as error:
            if len(found) == 1:
                raise
            say_failure(error, str(directory))
    together, written = ManyResults(runs), []
    for (table, kind), path in wanted.items():
        rows = together.numbers(table)
        if not rows:
            path.unlink(missing_ok=True)  # of an earlier export, of other runs
            print(f"note: no run has numbers for the table {table!r}; there is no {path}")
            continue
        written.append(write_bytes(path, FORMATS[kind][1](rows)))
        print(f"{path}: {len(rows):,} rows of {len(runs)} runs")
    if lost := len(found) - len(runs):
        raise MechintError(f"{lost} of {len(found)} runs could not be read; the lines above say why")
    return written
