"""The schema of results.json, written by the runner and read by everybody else; docs/results.md says it in words.

Every analysis writes a header (:class:`Header`), its metrics and its notes; what it adds lies beside them under names
of its own. Any number there is an object with ``value``, ``low``, ``high`` and ``n``, or such an object of lists, one
number for each cell; :func:`number_rows` finds them all.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from ..utils.errors import MechintError, did_you_mean, shown
from .finished import SCHEMA, FinishedRun
from .tables import plots
from .values import Value, read_value
from .words import value_cells

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Address = tuple[str | int, ...]
"""Keys and places in lists that lead to an entry of results.json."""
Cell = Callable[[Mapping[str, Any], Address, tuple[int, ...]], dict[str, Any]]
"""``cell(raw, address, index)``: the columns of a :class:`Row` that an analysis knows of the number at ``address``; for
a cell of a grid, ``index`` is its place in the lists."""
NUMBER = ("value", "low", "high", "n")
NAMED = ("name", "claim", "candidate", "quantity", "label", "role")
SITES = ("site", "panel")
"""Keys of an object that say what its numbers are of and at which site, the first that it has."""


def no_cell(raw: Mapping[str, Any], address: Address, index: tuple[int, ...]) -> dict[str, Any]:
    """Adds no columns: what stands around a number says all."""
    return {}


@dataclass(frozen=True)
class Model:
    """The entry ``model``: what was analysed.

    Attributes:
        family: ``mamba``, ``gpt2`` or ``llama``.
        parameters: Their number.
        n_layer, d_model: Layers, and the width of the residual stream.
        sha256: Digest of the weights.
        variant: As the checkpoint names it, where it does.
        step: Step of its training, if it is known.
    """

    family: str
    parameters: int
    n_layer: int
    d_model: int
    sha256: str
    variant: str | None = None
    step: int | None = None


@dataclass(frozen=True)
class Header:
    """The header of every results.json.

    Attributes:
        analysis: Name of the analysis, which is its switch on the command line.
        title: For people.
        checkpoint: As it was asked for.
        key: All that the results depend on, by name.
        model: The analysed model.
        task: The task: name, description, and numbers of prompts.
        config: The options of the analysis.
        status: ``complete``.
        schema: Version of this file; another number means that entries changed their meaning.
    """

    analysis: str
    title: str
    checkpoint: str
    key: Mapping[str, Any]
    model: Model
    task: Mapping[str, Any]
    config: Mapping[str, Any]
    status: str = "complete"
    schema: int = SCHEMA

    def with_results(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """The whole of results.json, for writing: the header and what an analysis found."""
        said = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        model = {name: value for name, value in vars(self.model).items() if value is not None}
        return {**said, "model": model, **found}


@dataclass(frozen=True)
class Row:
    """One number of a finished run.

    Attributes:
        entry: Its place in results.json: keys and list indices, joined by dots.
        metric: Its name there.
        site, layer, unit, name: The site, layer, unit and name that the number belongs to, as far as the surrounding
        entries say; None otherwise. value, low, high: The number and its interval; the ends are NaN where there is
        none.
        n: Number of things that it was measured on.
        interval: Kind of interval, or the reason why there is none.
        p: Its p-value, where it has one.
    """

    analysis: str
    checkpoint: str
    entry: str
    metric: str
    site: str | None
    layer: int | None
    unit: int | str | None
    name: str | None
    value: float
    low: float
    high: float
    n: int
    interval: str
    p: float | None

    @property
    def table(self) -> str:
        """The table of :data:`TABLES` that it belongs to; empty for none."""
        first = self.entry.partition(".")[0]
        if first == "metrics":
            return "metrics"
        if first in ("curve", "curves"):
            return "curve"
        if self.unit is not None:
            return "units"
        return "cells" if self.layer is not None or ".value." in self.entry else ""


Entries = TypeVar("Entries")


def of_entries(made: type[Entries], raw: Mapping[str, Any]) -> Entries:
    """The dataclass that an object of results.json was written from; entries that it does not know are left out.

    Raises:
        TypeError: an entry that it needs is missing.
    """
    known = {field.name for field in dataclasses.fields(made)}  # type: ignore[arg-type]
    return made(**{name: value for name, value in raw.items() if name in known})


TABLES = ("metrics", "cells", "units", "curve")
"""The tables that numbers are sorted into: main numbers; cells of maps and numbers of layers; numbers of single units;
points of curves. Other numbers are in the whole list alone."""
COLUMNS = tuple(field.name for field in dataclasses.fields(Row))


def unit_kind(rows: Sequence[Row]) -> str:
    """The type of the column ``unit``: whole numbers, or text where a unit has a name or several numbers."""
    return "string" if any(isinstance(row.unit, str) for row in rows) else "Int64"


KINDS = {
    **dict.fromkeys(("analysis", "checkpoint", "entry", "metric", "site", "name", "interval"), "string"),
    **dict.fromkeys(("value", "low", "high", "p"), "float64"),
    **dict.fromkeys(("layer", "n"), "Int64"),
}
"""pandas' types of the columns of a frame, which a column of nothing but None would not show."""


def number_rows(raw: Mapping[str, Any], path: Path, cell: Cell = no_cell) -> Iterator[Row]:
    """Every number of results.json, in the order in which the file has them.

    Args:
        path: Path of the file, for errors.
        cell: Says what numbers are of, beyond what stands around them.

    Raises:
        MechintError: a number lacks a part, or is not finite.
    """
    told: dict[str, Any] = {"analysis": str(raw.get("analysis", "")), "checkpoint": str(raw.get("checkpoint", ""))}

    def visit(entry: Any, address: Address, of: dict[str, Any]) -> Iterator[Row]:
        if isinstance(entry, list):
            for k, one in enumerate(entry):
                yield from visit(one, (*address, k), of)
        if not isinstance(entry, dict):
            return
        of = {**of, **surroundings(entry, address)}
        if all(key in entry for key in NUMBER):
            for index, number in numbers_of(entry):
                at = (*address, *(("value", *index) if index else ()))
                more = cell(raw, address, index)
                value = read_value(number, path, ".".join(map(str, at)))
                said = {"metric": metric_of(address), **of, **vars(value), **more}
                yield Row(**told, entry=".".join(map(str, at)), p=number.get("p"), **said)
        for key, one in entry.items():
            if key not in ("config", "key", "task"):
                yield from visit(one, (*address, key), of)

    try:
        yield from visit(raw, (), dict.fromkeys(("site", "layer", "unit", "name")))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError) as error:
        raise MechintError(f"{path} is not valid ({type(error).__name__}: {error}); run the analysis again") from None


def metric_of(address: Address) -> str:
    """The last name that leads to a number."""
    return next((part for part in reversed(address) if isinstance(part, str)), "")


def surroundings(entry: Mapping[str, Any], address: Address) -> dict[str, Any]:
    """Columns that an object gives to the numbers in it: site, layer, unit and name."""
    found: dict[str, Any] = {}
    if len(address) > 1 and address[-2] == "layers" and str(address[-1]).isdigit():
        found["layer"] = int(address[-1])
    if not address:
        return found
    for column, keys in (("site", SITES), ("name", NAMED)):
        said = next((entry[key] for key in keys if isinstance(entry.get(key), str)), None)
        found |= {} if said is None else {column: said}
    if isinstance(entry.get("layer"), int):
        found["layer"] = entry["layer"]
        unit = entry.get("unit")
        if unit is not None:
            found["unit"] = ".".join(map(str, unit)) if isinstance(unit, list) else unit
    return found


def numbers_of(entry: Mapping[str, Any]) -> Iterator[tuple[tuple[int, ...], dict[str, Any]]]:
    """The number that an object is, at the index (), or those of its cells; cells without a value are left out.

    A part that all cells share is written once.
    """
    keys = [*NUMBER, *(["p"] if "p" in entry else [])]

    def visit(parts: list[Any], index: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], dict[str, Any]]]:
        if isinstance(parts[0], list):
            every = [part if isinstance(part, list) else [part] * len(parts[0]) for part in parts]
            for k, cells in enumerate(zip(*every, strict=True)):
                yield from visit(list(cells), (*index, k))
        elif parts[0] is not None or not index:
            more = {"interval": entry["interval"]} if "interval" in entry else {}
            yield index, {**dict(zip(keys, parts, strict=True)), **more}

    yield from visit([entry[key] for key in keys], ())


class Results:
    """Numbers of finished runs as rows of tables."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = list(rows)

    def numbers(self, table: str | None = None) -> list[Row]:
        """The rows of one table of :data:`TABLES`; all rows if None.

        Raises:
            MechintError: there is no such table.
        """
        if table is not None and table not in TABLES:
            raise MechintError(
                f"no table is called {shown(table)}{did_you_mean(table, TABLES)}; there are {', '.join(TABLES)}"
            )
        return [row for row in self._rows if table in (None, row.table)]

    def rows(self, table: str | None = None) -> list[dict[str, Any]]:
        """Numbers as dictionaries with the fields of :class:`Row`; ends that are not there are None.

        Args:
            table: As of :meth:`numbers`.
        """
        blank = lambda x: None if isinstance(x, float) and math.isnan(x) else x
        return [{name: blank(value) for name, value in vars(row).items()} for row in self.numbers(table)]

    def frame(self, table: str | None = None) -> Any:
        """Numbers as rows of a pandas DataFrame with the fields of :class:`Row` as columns.

        Columns have the same types in every run, whatever it lacks; those of ``unit`` are whole numbers, or text
        where any unit of the run has several.

        Args:
            table: As of :meth:`numbers`.

        Raises:
            MechintError: pandas is not installed, or there is no such table.
        """
        rows = self.numbers(table)
        return frame_of([vars(row) for row in rows], list(COLUMNS)).astype({**KINDS, "unit": unit_kind(rows)})


class RunResults(Results):
    """A finished run: what it says, and all its numbers as rows of one table.

    Attributes:
        directory: Directory of the run.
        raw: results.json.
        metrics: Its metrics by name, each with value, low, high, n and interval.
        manifest: manifest.json: versions, seeds, device, digests.
        headline: The result in one sentence.
    """

    def __init__(self, run: FinishedRun, headline: str = "", cell: Cell = no_cell) -> None:
        super().__init__(list(number_rows(run.raw, run.directory / "results.json", cell)))
        self.directory: Path = run.directory
        self.raw: dict[str, Any] = run.raw
        self.metrics: dict[str, Value] = run.metrics
        self.manifest: dict[str, Any] = run.manifest
        self.headline = headline

    def plot_metrics(self, *names: str, ax: Axes | None = None) -> Axes:
        """Draws metrics with their intervals, all or those that are named, into ``ax`` or a new figure's axes."""
        return plots.metrics(plots.axes_of(ax), self.numbers("metrics"), names)

    def plot_curve(self, ax: Axes | None = None) -> Axes:
        """Draws the run's curves with their intervals into ``ax`` or a new figure's axes."""
        return plots.curve(plots.axes_of(ax), self.numbers("curve"))

    def plot_cells(self, site: str | None = None, ax: Axes | None = None) -> Axes:
        """Draws the map of one site, the first if None, into ``ax`` or a new figure's axes."""
        return plots.cells(plots.axes_of(ax), self.numbers("cells"), site)

    def __repr__(self) -> str:
        said = f": {self.headline}" if self.headline else ""
        return f"<{self.raw.get('title', 'results')} of {self.raw.get('checkpoint')}, {len(self._rows)} numbers{said}>"

    def _repr_html_(self) -> str:
        """The headline, and the metrics with their intervals, for a notebook."""
        cells = [(name, *value_cells(v.value, v.low, v.high), f"{v.n:,}") for name, v in self.metrics.items()]
        rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in cells)
        header = "<tr><th>metric</th><th>value</th><th>95 % interval</th><th>n</th></tr>"
        title = f"{self.raw.get('title', 'results')} of {self.raw.get('checkpoint')}"
        place = escape(str(self.directory / "report.html"))
        return (
            f"<p><b>{escape(title)}</b>. {escape(self.headline)}</p><table>{header}{rows}</table>"
            f"<p>Report: <code>{place}</code></p>"
        )

    def save(self, path: str | Path) -> Path:
        """Copies the whole run, its report too, into a new directory.

        Raises:
            MechintError: something is there already.
        """
        target = Path(path)
        if target.exists():
            raise MechintError(f"{target} is there already; name a new directory")
        shutil.copytree(self.directory, target)
        return target


def frame_of(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> Any:
    """Rows as a pandas DataFrame.

    Args:
        columns: Names of the columns, in order; None takes those of the rows.

    Raises:
        MechintError: pandas is not installed.
    """
    try:
        pandas = importlib.import_module("pandas")
    except ImportError:
        raise MechintError(
            "a frame needs pandas, which is not installed; pip install pandas, or take rows(), which needs nothing"
        ) from None
    return pandas.DataFrame(rows, columns=columns)


class ManyResults(Results, Sequence[RunResults]):
    """Several finished runs, as a list of them, and the numbers of all as rows of one table."""

    def __init__(self, runs: Sequence[RunResults]) -> None:
        super().__init__([row for run in runs for row in run.numbers()])
        self.runs = list(runs)

    @overload
    def __getitem__(self, place: int) -> RunResults: ...
    @overload
    def __getitem__(self, place: slice) -> list[RunResults]: ...
    def __getitem__(self, place: int | slice) -> RunResults | list[RunResults]:
        return self.runs[place]

    def __len__(self) -> int:
        return len(self.runs)

    def __repr__(self) -> str:
        return f"<{len(self.runs)} finished runs, {len(self._rows)} numbers>"
