"""Studies of several checkpoints side by side: their main numbers, and every claim with its verdicts."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...report import figure_style as style
from ...report.along_training import ALPHA, MOST, Added, apart
from ...report.content import Figure, Section, between, figure, table_section
from ...report.finished import FinishedRun
from ...report.tables.generic import write_comparison
from ...report.values import Value
from ...report.words import chance, number
from ...utils.multiple_tests import holm
from .figures import claim_label
from .results import CandidateClaim, Claim, ProbeClaim, study_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

VERDICTS = ("supported", "refuted", "underpowered")
COLOURS = {"supported": style.GREEN, "refuted": style.RED, "underpowered": style.GREY}
CLAIMS = (
    "about",
    "run",
    "of the run",
    "verdict",
    "effect [95 % interval]",
    "n",
    "p (all claims)",
    "differs from the first, p",
)
COUNTS = ("about", *VERDICTS, "not made", "least effect", "largest effect")
SIDE_BY_SIDE = (
    "Every claim of the runs with its verdict in each, beside its effect. Candidates are matched by their source and "
    "site, the strongest first: each run's claim is about its own units. A verdict may change while the effect does "
    "not: one run has the prompts to decide it, and the other has not. So the last column tests the effects: p of "
    "equal effects by the two intervals (Zou & Donner 2008), as if they were measured on different prompts, which is "
    "conservative on the same ones; adjusted for all {tests:,} of these tests (Holm)."
)
COUNTED = "In how many of the runs each claim has each verdict, and between which values its effect lies."


@dataclass(frozen=True)
class Made:
    """One claim in all runs: None in a run that does not make it; ``p`` of "the effect is the first run's", adjusted.

    ``first`` is the place of the first run that makes it.
    """

    said: str
    claims: list[Claim | None]
    first: int
    p: list[float | None]

    @property
    def verdicts(self) -> list[str]:
        return [claim.verdict if claim else "not made" for claim in self.claims]

    @property
    def changes(self) -> bool:
        """True if two runs that make it have other verdicts."""
        return len({claim.verdict for claim in self.claims if claim}) > 1


def write_study_comparison(run_dirs: Sequence[str | Path], output_dir: str | Path) -> list[Path]:
    """Writes comparison.json, .md, .html and the figures of several studies: main numbers, and claim by claim.

    Raises:
        MechintError: fewer than two studies, or one that can't be read.
    """
    return write_comparison(run_dirs, output_dir, claims)


def claims(runs: Sequence[FinishedRun], names: Sequence[str]) -> Added:
    """The verdicts and effects of every claim."""
    every, tests = matched(runs)
    if not every:
        return Added(notes=["No run has claims."])
    changed = [made for made in every if made.changes]
    several = [made for made in every if sum(claim is not None for claim in made.claims) > 1]
    head = (
        f"{len(every)} claims, {len(several)} of them in two runs or more: the verdict of {len(changed)} differs "
        f"between runs."
    )
    if len(runs) > MOST:
        sections = [table_section("Claims", COUNTED, COUNTS, count_rows(every), range(1, 7))]
    else:
        text = SIDE_BY_SIDE.format(tests=tests)
        sections = [table_section("Claims", text, CLAIMS, claim_rows(every, names), (4, 5, 6, 7))]
        sections.append(Section("Effects", [claims_plot(every, names)]))
    said = [head, *(sentence(made, names) for made in changed[:MOST])] if len(runs) <= MOST else [head]
    return Added(said, [], sections, {"claims": [entries(made, names) for made in every]})


def key_of(claim: Claim) -> tuple[str, ...]:
    """A key that claims about one thing have in every run: the source and the site of a candidate, a probe's label."""
    match claim:
        case CandidateClaim(candidate=candidate, site=site):
            return claim.kind, source(candidate), site
        case ProbeClaim(label=label):
            return claim.kind, label
    return (claim.kind,)


def source(candidate: str) -> str:
    """A candidate's name without its units: ``L0 mask 18 23 … (8)`` is ``L0 mask``."""
    layer, _, rest = candidate.partition(" ")
    return f"{layer} {re.split(r'[0-9]', rest)[0].strip()}".strip()


def short(claim: Claim, number: int) -> str:
    """The subject of a claim in a few words; the second and later ones of one key are numbered."""
    more = f", {number + 1}" if number else ""
    match claim:
        case CandidateClaim(candidate=candidate, site=site):
            return f"{source(candidate)} at {site.rpartition('.')[2]}{more}"
        case ProbeClaim(label=label):
            return f"probe of {label}{more}"
    return f"combined circuit{more}"


def matched(runs: Sequence[FinishedRun]) -> tuple[list[Made], int]:
    """Every claim over all runs, those that most runs make first; and the number of tests."""
    found: dict[tuple[tuple[str, ...], int], list[Claim | None]] = {}
    for k, run in enumerate(runs):
        counts: dict[tuple[str, ...], int] = {}
        for made in study_of(run).claims.claims:  # the strongest first
            key = key_of(made)
            counts[key] = counts.get(key, -1) + 1
            found.setdefault((key, counts[key]), [None] * len(runs))[k] = made
    tested: list[tuple[int, int, float]] = []
    numbers = sorted(found, key=lambda key: sum(claim is None for claim in found[key]))
    ordered = [found[key] for key in numbers]
    firsts = [next(k for k, claim in enumerate(row) if claim) for row in ordered]
    for place, (row, first) in enumerate(zip(ordered, firsts, strict=True)):
        for k, claim in enumerate(row):
            one = row[first]
            if claim and one and k != first and claim.metric == one.metric:
                p = apart(value_of(one), value_of(claim))
                if p is not None:
                    tested.append((place, k, p))
    p_of = {
        (place, k): p for (place, k, _), p in zip(tested, holm([p for *_, p in tested]), strict=True)
    }  # fmt: skip
    every = [
        Made(
            next(short(claim, numbers[place][1]) for claim in row if claim),
            row,
            first,
            [p_of.get((place, k)) for k in range(len(row))],
        )
        for place, (row, first) in enumerate(zip(ordered, firsts, strict=True))
    ]
    return every, len(tested)


def value_of(claim: Claim) -> Value:
    effect = claim.effect
    low, high = (math.nan if effect[end] is None else float(effect[end]) for end in ("low", "high"))
    return Value(float(effect["value"]), low, high, int(effect["n"]))


def sentence(made: Made, names: Sequence[str]) -> str:
    """The verdicts of one claim, and whether its effects differ."""
    said = [
        f"{claim.verdict} in {name} ({between(claim.effect)})"
        for claim, name in zip(made.claims, names, strict=True)
        if claim
    ]
    sure = [name for p, name in zip(made.p, names, strict=True) if p is not None and p <= ALPHA]
    apart_ = (
        f"the effect certainly differs from {names[made.first]}'s in {', '.join(sure)} (p ≤ {ALPHA:g}, adjusted)"
        if sure
        else "the effects cannot be told apart"
    )
    return f"{made.said}: {', '.join(said)}; {apart_}."


def claim_rows(every: Sequence[Made], names: Sequence[str]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for made in every:
        for k, (claim, name) in enumerate(zip(made.claims, names, strict=True)):
            if claim is None:
                rows.append((made.said, name, "–", "not made", "–", "–", "–", "–"))
                continue
            p = "first" if k == made.first else chance(made.p[k])
            rows.append(
                (
                    made.said,
                    name,
                    claim_label(claim),
                    claim.verdict,
                    between(claim.effect),
                    f"{claim.effect['n']:,}",
                    chance(claim.p_holm),
                    p,
                )
            )
    return rows


def count_rows(every: Sequence[Made]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for made in every:
        effects = [float(claim.effect["value"]) for claim in made.claims if claim]
        counts = (str(made.verdicts.count(verdict)) for verdict in (*VERDICTS, "not made"))
        rows.append((made.said, *counts, number(min(effects), 3), number(max(effects), 3)))
    return rows


def entries(made: Made, names: Sequence[str]) -> dict[str, Any]:
    """One claim in all runs, for JSON."""
    return {
        "claim": made.said, "first": names[made.first], "changes": made.changes,
        "runs": [
            {"name": name, "verdict": verdict, "claim": claim and claim.claim, "effect": claim and claim.effect,
             "p_holm": claim and claim.p_holm, "p_differs": p}
            for name, verdict, claim, p in zip(names, made.verdicts, made.claims, made.p, strict=True)
        ],
    }  # fmt: skip


def claims_plot(every: Sequence[Made], names: Sequence[str]) -> Figure:
    shown = every[:MOST]
    more = f" The first {len(shown)} of {len(every)} claims; the table has all." if len(every) > len(shown) else ""
    caption = (
        "The effect of each claim in each run with its 95 % interval; green is supported, red refuted, grey "
        f"underpowered. The dotted line is the effect that the claim asks for.{more}"
    )
    rows, _ = style.grid_of(len(shown))
    size = (11.0, 1.0 + rows * (0.7 + 0.24 * len(names)))
    return figure("comparison_claims.png", caption, size, draw_claims, shown, names)


def draw_claims(figure: Canvas, every: Sequence[Made], names: Sequence[str]) -> None:
    """A panel for each claim, a line for each run."""
    rows, columns = style.grid_of(len(every))
    places = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for place, made in zip(places, every, strict=False):
        for k, claim in enumerate(made.claims):
            if claim is None:
                continue
            value = value_of(claim)
            ends = [[0.0], [0.0]] if value.alone else [[value.value - value.low], [value.high - value.value]]
            colour = COLOURS.get(claim.verdict, style.GREY)
            place.errorbar(
                [value.value], [k], xerr=ends, fmt="o", color=colour, markersize=4, capsize=2, elinewidth=1.2
            )
        first = made.claims[made.first]
        if first is not None:
            place.axvline(first.least, color=style.INK, linewidth=0.8, linestyle=":")
        place.set_title(made.said, fontsize=8)
        place.set_yticks(range(len(names)), names)
        place.set_ylim(len(names) - 0.5, -0.5)
        place.locator_params(axis="x", nbins=4)
    for place in places[len(every) :]:
        place.set_visible(False)
    figure.suptitle("Effects of the claims")
