"""The entries of a study in results.json: these classes write them and read them.

The analyzer fills a :class:`StudyResults`, whose :meth:`StudyResults.entries` stand in the file; pages read a finished
run by :func:`study_of`. Steps keep what they measured under names of their own, beside ``status`` and ``said``. The
file's ``schema`` is the version of these classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...report.finished import FinishedRun, valid
from ...report.results import of_entries
from ...utils.statistics import Number

COMBINED = "combined"
"""The kind of the claim about the combined circuit."""


@dataclass(frozen=True)
class Condition:
    """One thing that a claim needs.

    Attributes:
        name: Name of the comparison, in a few words.
        null: Null hypothesis, which is true if the condition does not hold, as a sentence without a full stop.
        value: The measured number: an effect, or a difference from a control.
        p: p-value of the null; 1 if it was not measured.
        contrary: Why the null is what was found; empty where it was not.
        open: Why nothing can be said; empty where p says it.
        draws: Random draws that p counts; 0 where p is of an interval.
        least: Number that ``value`` must exceed, if p comes from an interval; None otherwise.
    """

    name: str
    null: str
    value: Number
    p: float
    contrary: str = ""
    open: str = ""
    draws: int = 0
    least: float | None = None


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim with its verdict.

    Attributes:
        claim: The claim in one sentence.
        metric: The meaning of its effect.
        least: The effect that it claims at least.
        controls: By name, what does not carry the effect.
        p, p_holm: The largest p of its conditions; the same adjusted for all claims.
        refuted_by: The outcome that would refute it.
        why: The reason of the verdict.
    """

    kind: str
    claim: str
    effect: Number
    metric: str
    ablation: str
    least: float
    controls: dict[str, Number]
    conditions: list[Condition]
    p: float
    p_holm: float
    refuted_by: str
    verdict: str
    why: str


@dataclass(frozen=True, kw_only=True)
class CandidateClaim(Claim):
    """A candidate carries part of the effect: ``effects`` of each test, and the controls that were not asked."""

    candidate: str
    layer: int
    site: str
    units: list[int]
    effects: dict[str, Number]
    not_asked: list[str]


@dataclass(frozen=True, kw_only=True)
class ProbeClaim(Claim):
    """A probe reads a label at a site."""

    label: str
    layer: int
    site: str


@dataclass(frozen=True, kw_only=True)
class CombinedClaim(Claim):
    """The units of the combined circuit, by layer, do the task together."""

    layers: Mapping[str, Mapping[str, Any]]
    effects: dict[str, Number]
    accuracy: Number
    agreement: Number | None
    agreement_chance: float

    @property
    def kept(self) -> int:
        return sum(layer["kept"] for layer in self.layers.values())


KINDS: dict[str, type[CandidateClaim | ProbeClaim | CombinedClaim]] = {
    "circuit": CandidateClaim, "probe": ProbeClaim, COMBINED: CombinedClaim
}  # fmt: skip


def claim_of(raw: Mapping[str, Any]) -> CandidateClaim | ProbeClaim | CombinedClaim:
    """The claim that an object of results.json holds."""
    conditions = [of_entries(Condition, one) for one in raw["conditions"]]
    return of_entries(KINDS[raw["kind"]], {**raw, "conditions": conditions})


@dataclass(frozen=True, kw_only=True)
class Claims:
    """All claims of a study.

    Attributes:
        claims: The combined circuit's first, then the strongest.
        verdicts: Claims of each verdict, counted.
        tests: p-values that were adjusted together.
        said: The verdicts in a few words.
    """

    claims: list[CandidateClaim | ProbeClaim | CombinedClaim]
    verdicts: dict[str, int]
    tests: int
    alpha: float
    said: str

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> Claims:
        return of_entries(cls, {**raw, "claims": [claim_of(one) for one in raw["claims"]]})


@dataclass(frozen=True, kw_only=True)
class StudyResults:
    """The results of all steps by name, and the claims that follow from them."""

    unit: str
    metric: str
    ablation: str
    metrics: dict[str, Number]
    steps: dict[str, Mapping[str, Any]]
    claims: Claims
    notes: list[str]

    def done(self, step: str) -> bool:
        """True if a step was made, and had something to say."""
        return self.steps.get(step, {}).get("status") == "done"

    def entries(self) -> dict[str, Any]:
        """The fields of results.json, without its header."""
        return {"report": "study", **dataclasses.asdict(self)}

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> StudyResults:
        """The study that results.json holds.

        Raises:
            KeyError, TypeError: an entry is missing, or is of another kind.
        """
        return of_entries(cls, {**raw, "claims": Claims.read(raw["claims"])})


def study_of(run: FinishedRun) -> StudyResults:
    """The study of a finished run.

    Raises:
        MechintError: an entry of its results.json is missing, or is of another kind.
    """
    with valid(run.directory / "results.json"):
        return StudyResults.read(run.raw)
