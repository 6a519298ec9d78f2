"""Claims: what a study says, each with its effect, interval, controls, what would refute it, and a verdict.

Everything here is a function of results: nothing is typed in. Verdicts:

* **supported**: the interval lies above zero, the effect reaches the least one asked for, p ≤ 0.05 after Holm over all
  claims of the study, and every control that was measured is below the effect;
* **refuted**: the interval's upper end stays below the least effect, so an effect of that size would have been seen, or
  a control is as large as the effect;
* **underpowered**: neither; what would decide it is said.
"""

from __future__ import annotations

import math
from typing import Any

from .necessity import ALPHA
from .statistics import Number, holm, said

Found = dict[str, Any]
RANDOM = "random weights"
VERDICTS = ("supported", "refuted", "underpowered")


def claims(found: dict[str, Found], config: Any, task: str) -> Found:
    """``claims``: the list, the combined circuit and then the strongest first; ``verdicts``: how many of each;
    ``tests``: p-values that were adjusted.

    Args:
        found: Reports by step name.
    """
    made = [*of_circuit(found, config, task), *of_candidates(found, config, task), *of_probes(found, config, task)]
    for claim, p in zip(made, holm([claim["p"] for claim in made]), strict=True):
        claim["p_holm"] = p
    reason = task_not_done(found)
    for claim in made:
        claim["verdict"], claim["why"] = judge(claim, len(made), config, reason)
    order = {verdict: k for k, verdict in enumerate(VERDICTS)}
    key = lambda claim: (order[claim["verdict"]], -float(claim["effect"]["value"]), claim["claim"])
    made.sort(key=lambda claim: (claim["kind"] != COMBINED, *key(claim)))
    counts = {verdict: sum(claim["verdict"] == verdict for claim in made) for verdict in VERDICTS}
    said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    return {
        "claims": made,
        "verdicts": counts,
        "tests": len(made),
        "alpha": ALPHA,
        "said": f"{said}." if made else f"No claim: {reason or 'no step found anything to claim'}.",
    }


def task_not_done(found: dict[str, Found]) -> str:
    """Why nothing that the model does can be claimed; empty where it does the task better than chance."""
    setup = found.get("setup", {})
    if "accuracy" not in setup:
        return ""
    if setup["accuracy"]["low"] > setup["chance"]["high"]:
        return ""
    return (
        f"the model answers {setup['accuracy']['value']:.0%} of the prompts where chance gives "
        f"{setup['chance']['value']:.0%}, so there is nothing that a circuit could explain"
    )


def of_candidates(found: dict[str, Found], config: Any, task: str) -> list[Found]:
    """One claim for each tested candidate: needed and sufficient, so its p is the larger of the two tests'."""
    rows = found.get("necessity", {}).get("tests", [])
    control = {row["candidate"]: row for row in found.get("controls", {}).get("candidates", [])}
    about = {row["name"]: row for row in found.get("candidates", {}).get("candidates", [])}
    made, least = [], f"at least {config.min_effect:.0%}"
    for name in dict.fromkeys(row["candidate"] for row in rows):
        pair = {row["test"]: row for row in rows if row["candidate"] == name}
        weaker = min(pair.values(), key=lambda row: row["effect"]["value"])
        checks = {f"random subspaces, {test}": row["random"] for test, row in sorted(pair.items())}
        for kind in ("random_units", "shuffled_tokens"):
            if name in control:
                checks[kind.replace("_", " ")] = control[name][kind]
        where = about[name]
        made.append(
            {
                "kind": "circuit",
                "claim": f"{name}, rank {where['rank']} at {where['site']}, carries {least} of the answer of {task}",
                "candidate": name,
                "layer": where["layer"],
                "site": where["site"],
                "units": where["units"],
                "effect": weaker["effect"],
                "effects": {test: row["effect"] for test, row in sorted(pair.items())},
                "metric": f"share of the {config.metric} between prompt and twin",
                "ablation": config.ablation,
                "least": config.min_effect,
                "p": max(row["p"] for row in pair.values()),
                "resolution": 1 / (config.draws + 1),
                "controls": checks,
                "refuted_by": (
                    f"held-out prompts on which less than {config.min_effect:.0%} of the effect is lost without it, or "
                    f"comes back with it alone; or random subspaces of rank {where['rank']} and the same norm that do "
                    f"as much"
                ),
            }
        )
    return made


def of_probes(found: dict[str, Found], config: Any, task: str) -> list[Found]:
    """One claim for each label: where it is read best. Reading is no use: it says nothing of what the model needs."""
    rows = found.get("probes", {}).get("probes", [])
    untrained = (found.get("controls", {}).get("random_weights") or {}).get("probes", [])
    made = []
    for label in dict.fromkeys(row["label"] for row in rows):
        mine = [row for row in rows if row["label"] == label]
        best = max(mine, key=lambda row: row["selectivity"]["value"])
        controls = {"shuffled labels": scaled(best["shuffled"], best)}
        for row in untrained:
            if row["label"] == label:
                controls[RANDOM] = row["selectivity"]
        made.append(
            {
                "kind": "probe",
                "claim": f"{label} of {task} can be read linearly at {best['site']} ({best['method']})",
                "layer": best["layer"],
                "site": best["site"],
                "effect": best["selectivity"],
                "metric": "held-out score above that of shuffled labels",
                "ablation": "none",
                "least": 0.05,
                "p": min(1.0, len(mine) * best["p"]),  # the best of several was chosen
                "resolution": len(mine) / (config.bootstrap + 1),
                "controls": controls,
                "refuted_by": (
                    "held-out templates on which the probe scores no better than on shuffled labels, or a model with "
                    "random weights in which it reads as much"
                ),
            }
        )
    return made


def scaled(shuffled: Number, row: Found) -> Found:
    """Scores on shuffled labels in the units of selectivity: their distance from their own mean."""
    mean = shuffled["value"]
    return {**shuffled, **{name: float(shuffled[name]) - float(mean) for name in ("value", "low", "high")}}


def judge(claim: Found, tests: int, config: Any, not_done: str) -> tuple[str, str]:
    """(verdict, why)."""
    effect, least = claim["effect"], claim["least"]
    if not_done and claim["kind"] == "circuit":
        return "underpowered", not_done
    beaten = [name for name, control in claim["controls"].items() if control["high"] >= effect["value"]]
    if effect["high"] < least:
        return "refuted", f"the effect is at most {effect['high']:.2f}, and {least:.2f} was asked for"
    if beaten and effect["high"] <= max(claim["controls"][name]["high"] for name in beaten):
        return "refuted", f"a control is as large: {', '.join(beaten)}"
    if claim.get("unmet"):
        return "refuted", "; ".join(claim["unmet"])
    if claim["kind"] == "probe" and RANDOM not in claim["controls"]:
        return "underpowered", "the control on random weights was not measured (step 13)"
    if claim["p_holm"] <= ALPHA and effect["low"] > 0 and effect["value"] >= least and not beaten:
        return "supported", f"p = {claim['p_holm']:.3g} after Holm over {tests} claims"
    if tests * claim["resolution"] > ALPHA:
        need = math.ceil(tests / ALPHA) - 1
        return "underpowered", f"{tests} claims need at least {need} random draws for p ≤ {ALPHA:g} after Holm"
    if effect["low"] <= 0 or effect["value"] < least:
        more = needed_prompts(effect, least)
        return "underpowered", f"the interval is too wide: about {more} prompts would decide it"
    return "underpowered", f"p = {claim['p_holm']:.3g} after Holm over {tests} claims"


def needed_prompts(effect: Number, least: float) -> int:
    """Prompts with which the interval would be as narrow as the distance to zero or to the least effect.

    Half-widths fall with the square root of the number of prompts.
    """
    half = (float(effect["high"]) - float(effect["low"])) / 2
    value = float(effect["value"])
    distance = max(abs(value - least), abs(value), 1e-3) if value < least else max(value, 1e-3)
    return max(int(effect["n"]) + 1, math.ceil(int(effect["n"]) * (half / distance) ** 2))


# ---- the combined circuit -----------------------------------------------------------------------------------------

COMBINED = "combined"
"""The kind of its claim."""
WHOLE = 0.5
"""The share of the effect that it must keep alone."""


def of_circuit(found: dict[str, Found], config: Any, task: str) -> list[Found]:
    """The claim of the combined circuit, where there is one: its units, kept alone, do the task."""
    c = found.get("circuit", {})
    if "effect" not in c:
        return []
    effect, agreement = c["effect"], c["agreement"]
    unmet = []
    if float(c["accuracy"]["low"]) <= float(c["chance"]["high"]):
        unmet.append(f"kept alone it answers {said(c['accuracy'], '.0%')}, and chance {c['chance']['value']:.0%}")
    if agreement is not None and float(agreement["value"]) <= c["agreement_chance"]:
        unmet.append(
            f"searches on other prompts find other units: Jaccard {agreement['value']:.2f}, by chance "
            f"{c['agreement_chance']:.2f}"
        )
    return [
        {
            "kind": COMBINED,
            "claim": (
                f"these {c['kept']} of {c['total']} units together, kept alone, carry {effect['value']:.0%} (at least "
                f"{effect['low']:.0%}) of the effect of {task}"
            ),
            "layers": c["layers"],
            "effect": effect,
            "effects": {"kept alone": effect, "completeness (lost without them)": c["completeness"]},
            "accuracy": c["accuracy"],
            "agreement": agreement,
            "agreement_chance": c["agreement_chance"],
            "metric": f"share of the {config.metric} between no studied unit and all of them",
            "ablation": config.ablation,
            "least": WHOLE,
            "p": c["p"],
            "resolution": 1 / (config.draws + 1),
            "controls": {"random units": c["random_units"]},
            "unmet": unmet,
            "refuted_by": (
                f"held-out prompts on which these units, kept alone, keep less than {WHOLE:.0%} of the effect or "
                f"answer no better than chance; as many random units that keep as much; or searches on other prompts "
                f"that agree with it no better than chance"
            ),
        }
    ]
