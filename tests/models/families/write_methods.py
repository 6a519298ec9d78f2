"""``python -m tests.models.families.write_methods``: runs every method on every family, for a page and README's table.

``docs/methods.md`` says of each pair whether it ran, and the sentence of every refusal. README has one line for each
method, between two marks. Both are made of what ran. Names of methods or of families behind the command run these
alone, and keep what the page says of the others. Both are written after each family, so a run that is stopped goes on
with the names of the families that it has not done.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Mapping, Sequence

from mechint.models.families import declared
from tests.helpers.paths import ROOT
from tests.models.families.methods import FAMILIES, METHODS, OLD, TITLES, outcomes

PAGE, README = ROOT / "docs/methods.md", ROOT / "README.md"
BEGIN, END = "<!-- methods: written by python -m tests.models.families.write_methods -->", "<!-- end of methods -->"
RAN = "yes"
Rows = Mapping[str, Mapping[str, str]]
"""For each family the refusal of each method; empty where it ran."""


def page(rows: Rows) -> str:
    """The whole page: a table of numbered refusals, and their sentences."""
    reasons = sorted({reason for row in rows.values() for reason in row.values() if reason})
    number = {reason: k + 1 for k, reason in enumerate(reasons)}
    header = "| family | " + " | ".join(METHODS) + " |"
    lines = [
        f"| `{family}` | " + " | ".join(f"[{number[r]}]" if (r := row[m]) else RAN for m in METHODS) + " |"
        for family, row in rows.items()
    ]
    methods = "\n".join(f"- `{name}`: {title}" for name, (title, _) in METHODS.items())
    same = ", ".join(f"`{name}`" for name in sorted(set(declared()) - {*rows}))
    said = "\n".join(f"{k}. {reason}" for reason, k in number.items())
    return f"""# Methods and families

Written by `python -m tests.models.families.write_methods`, which runs every method on a random small model of every
family: *{RAN}* ran to its end and wrote its results; a number is the sentence, below, by which it was refused. Where
layers differ, a method ran if some layer has what it needs, and results name the layers that are left out. Studies ran
without the steps that can be skipped. Methods and families can be run again alone, so a cell says what its method did
when it last ran.

{methods}

{header}
|---|{"---|" * len(METHODS)}
{chr(10).join(lines)}

Other names of these families, which load as they do: {same}.

## Refusals

{said}
"""


def read(text: str) -> dict[str, dict[str, str]]:
    """The outcomes that a page holds."""
    reasons = dict(re.findall(r"^(\d+)\. (.+)$", text, re.M))
    found = {}
    for family, cells in re.findall(r"^\| `(\w+)` \| (.+) \|$", text, re.M):
        values = [cell.strip() for cell in cells.split("|")]
        said = ["" if value == RAN else reasons[value.strip("[]")] for value in values]
        found[family] = dict(zip(columns(text), said, strict=True))
    return found


def columns(text: str) -> list[str]:
    """The methods of a page's table."""
    [header] = re.findall(r"^\| family \| (.+) \|$", text, re.M)
    return [name.strip() for name in header.split("|")]


def short(rows: Rows) -> str:
    """README's table: the three families with files of their own, and how many of the others ran."""
    others = [family for family in rows if family not in OLD]
    lines = [f"| | {' | '.join(TITLES[family] for family in OLD)} | [other families](docs/families.md) |",
             "|---|" + "---|" * (len(OLD) + 1)]  # fmt: skip
    for name, (title, _) in METHODS.items():
        cells = ["–" if rows[family][name] else RAN for family in OLD]
        ran = sum(not rows[family][name] for family in others)
        count = "all" if ran == len(others) else "none" if not ran else f"{ran} of {len(others)}"
        lines.append(f"| {title} | {' | '.join(cells)} | {count} |")
    return "\n".join(lines)


def with_table(readme: str, rows: Rows) -> str:
    """README with its table made again."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{short(rows)}\n{END}{rest.split(END)[1]}"


def write(rows: Rows) -> None:
    PAGE.write_text(page(rows), encoding="utf-8")
    README.write_text(with_table(README.read_text(encoding="utf-8"), rows), encoding="utf-8")


def asked_for(names: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """The families and the methods that names ask for: all families where none is named, and all methods likewise.

    Raises:
        SystemExit: a name is neither.
    """
    if unknown := [name for name in names if name not in FAMILIES and name not in METHODS]:
        raise SystemExit(f"no family and no method is called {unknown[0]}")
    families = [family for family in FAMILIES if family in names]
    methods = tuple(method for method in METHODS if method in names)
    return families or list(FAMILIES), methods or tuple(METHODS)


def main(names: Sequence[str]) -> int:
    warnings.filterwarnings("ignore")
    families, methods = asked_for(names)
    rows = read(PAGE.read_text(encoding="utf-8"))
    for family in families:
        found = {**rows.get(family, {}), **outcomes(family, methods)}
        rows[family] = {name: found[name] for name in METHODS}
        print(family, {name: reason or RAN for name, reason in rows[family].items()}, flush=True)
        if all({*METHODS} <= {*rows.get(name, ())} for name in FAMILIES):  # with a new family or method, at the end
            write({name: rows[name] for name in FAMILIES})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
