"""Entries of a study: what is read is what was written, claims have the class of their kind, a fault is one line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mechint.analyses.base import entries_of_analyses
from mechint.analyses.study.analyzer import ANALYSIS
from mechint.analyses.study.candidates import Candidate
from mechint.analyses.study.claims import above_random_models
from mechint.analyses.study.context import Context
from mechint.analyses.study.figures import claim_label
from mechint.analyses.study.options import StudyConfig
from mechint.analyses.study.report import claim_rows, evidence, headline_of
from mechint.analyses.study.results import (
    CandidateClaim,
    Claims,
    CombinedClaim,
    Condition,
    ProbeClaim,
    StudyResults,
    study_of,
)
from mechint.report.finished import FinishedRun
from mechint.report.tables.schema import schema
from mechint.utils.errors import MechintError
from mechint.utils.statistics import number
from tests.helpers.json_schema import fits

HALF = number(0.5, 0.4, 0.6, 9, "an interval")
SHARED: dict[str, Any] = {
    "effect": HALF, "metric": "share", "ablation": "mean", "least": 0.2, "controls": {"random units": HALF}, "p": 0.01,
    "conditions": [Condition("c", "it does nothing", HALF, 0.01, least=0.2)], "p_holm": 0.03,
    "refuted_by": "it does nothing", "verdict": "supported", "why": "p = 0.03",
}  # fmt: skip
MADE = Claims(
    claims=[
        CombinedClaim(
            kind="combined", claim="these 3 of 8 units do it", accuracy=HALF, agreement=None, agreement_chance=0.25,
            layers={"0": {"site": "u", "kept": 2, "total": 4, "units": [0, 3]},
                    "1": {"site": "u", "kept": 1, "total": 4, "units": [2]}},
            effects={"kept alone": HALF}, **SHARED,
        ),
        CandidateClaim(
            kind="circuit", claim="L0 a does it", candidate="L0 a", layer=0, site="layers.0.u", units=[1],
            effects={"necessity": HALF}, not_asked=["the order does not matter"], **SHARED,
        ),
        ProbeClaim(kind="probe", claim="a probe reads it", label="key", layer=1, site="layers.1.u", **SHARED),
    ],
    verdicts={"supported": 3, "refuted": 0, "underpowered": 0}, tests=3, alpha=0.05, said="3 supported.",
)  # fmt: skip
STUDY = StudyResults(
    unit="subspace of a site", metric="logit_diff", ablation="mean", metrics={"accuracy_full": HALF}, claims=MADE,
    steps={"setup": {"status": "done", "said": "It answers."}, "sae": {"status": "skipped", "said": "Left out."}},
    notes=[],
)  # fmt: skip


def plain() -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(json.dumps(STUDY.entries()))
    return raw


def test_a_study_is_read_as_it_was_written() -> None:
    raw = plain()
    assert StudyResults.read(raw) == STUDY and raw["report"] == "study"
    assert [set(one) - set(SHARED) - {"kind", "claim"} for one in raw["claims"]["claims"]] == [
        {"accuracy", "agreement", "agreement_chance", "layers", "effects"},
        {"candidate", "layer", "site", "units", "effects", "not_asked"},
        {"label", "layer", "site"},
    ]
    assert raw["claims"]["claims"][0]["agreement"] is None
    assert raw["claims"]["claims"][1]["conditions"] == [
        {"name": "c", "null": "it does nothing", "value": HALF, "p": 0.01, "contrary": "", "open": "", "draws": 0,
         "least": 0.2}
    ]  # fmt: skip
    assert STUDY.done("setup") and not STUDY.done("sae") and not STUDY.done("probes")
    raw["new"] = raw["claims"]["new"] = raw["claims"]["claims"][0]["new"] = 1  # of a later release
    assert StudyResults.read(raw) == STUDY


def test_pages_say_what_claims_hold() -> None:
    assert headline_of(MADE) == "Claims tested: 3; 3 supported."
    assert [claim_label(claim) for claim in MADE.claims] == [
        "the combined circuit, 3 units", "L0 a", "a probe reads it"
    ]  # fmt: skip
    assert claim_rows(MADE.claims)[2] == (
        "supported", "a probe reads it", "0.50", "0.40 to 0.60", "9", "0.03", "p = 0.03"
    )  # fmt: skip
    lines = [evidence(claim) for claim in MADE.claims]
    assert lines[0][0] == "Effects (share, ablation mean): kept alone: 0.50 [0.40, 0.60]"
    assert "Not asked: the order does not matter." in lines[1]
    assert lines[2] == [
        "Control, random units: 0.50 [0.40, 0.60], an interval", "It would be refuted if it does nothing."
    ]  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.pop("claims"), lambda raw: raw["claims"].pop("verdicts"), lambda raw: raw.pop("steps"),
        lambda raw: raw["claims"]["claims"][2].pop("label"), lambda raw: raw["claims"]["claims"][0].update(kind="x"),
        lambda raw: raw["claims"]["claims"][0]["conditions"][0].pop("null"),
    ],
)  # fmt: skip
def test_a_missing_entry_is_one_line(change: Any) -> None:
    raw = plain()
    change(raw)
    with pytest.raises(MechintError, match=r"/nowhere/results\.json is not valid .*run the analysis again"):
        study_of(FinishedRun(Path("/nowhere"), raw, {}, {}))


def test_the_schema_holds_claims_to_their_types() -> None:
    header = {
        "analysis": "study", "title": "t", "checkpoint": "c", "key": {}, "task": {}, "config": {},
        "status": "complete", "schema": 1,
        "model": {"family": "mamba", "parameters": 1, "n_layer": 1, "d_model": 1, "sha256": "0"},
    }  # fmt: skip
    raw, known = header | plain(), schema(entries_of_analyses())
    assert fits(raw, known) == []
    raw["claims"]["claims"][1]["layer"] = "x"
    [found] = fits(raw, known)
    assert found.startswith("$.claims.claims[1]")


def test_a_terminal_gets_a_line_for_each_claim_or_why_there_is_none() -> None:
    lines = ANALYSIS.summary({"claims": plain()["claims"]})
    assert lines[1] == "  supported     0.50 [0.40, 0.60] L0 a does it" and len(lines) == 3
    none = Claims(claims=[], verdicts={}, tests=0, alpha=0.05, said="No claim: nothing was found.")
    assert ANALYSIS.summary({"claims": dataclasses.asdict(none)}) == ["  No claim: nothing was found."]
    every, fewer = (ANALYSIS.work(StudyConfig(skip_steps=skip)) for skip in ("", "3,4,16"))
    assert int(every.split()[0]) - int(fewer.split()[0]) == 3 and "combined circuit" not in fewer


def test_units_of_a_candidate_come_in_their_order_and_of_directions_the_largest() -> None:
    basis = torch.zeros(6, 2)
    basis[4, 0] = basis[1, 1] = 1
    named = [
        Candidate("units", 0, "layers.0.u", torch.eye(6)[:, :3], ("sae",), units=(5, 0, 3)),
        Candidate("directions", 0, "layers.0.u", basis, ("probe",)),
        Candidate("elsewhere", 1, "layers.1.u", basis, ("probe",)),
    ]
    groups = Context.groups(SimpleNamespace(tested=named), 0)  # type: ignore[arg-type]
    assert groups == {"units": [0, 3, 5], "directions": [1, 4]}


@pytest.mark.parametrize(("value", "p"), [(0.5, 0.0), (0.1, 1.0), (0.05, 1.0)])
def test_random_models_without_any_spread_are_certain(value: float, p: float) -> None:
    row = {"difference": number(value, value, value, 9, "x"), "random": [0.2, 0.2], "error": 0.0, "freedom": 1}
    assert above_random_models(row).p == p
