"""Claims of a study, each with its effect, interval, controls, the condition that would refute it, and a verdict.

All claims are computed from results; none is written by hand. A claim is a conjunction of *conditions*, each of which
is the opposite of a null hypothesis: the effect is at least so large; random subspaces do less; models with random
weights are read less well. Every condition has a p-value of its null, and the claim's p is the largest of them
(Berger 1982), adjusted by Holm for all claims of the study. Verdicts:

* **supported**: p ≤ 0.05, so every null was rejected. The p of "at least L" is at most 0.05 only where the 95 %
  interval lies at or above L;
* **refuted**: the opposite of one condition was found: the interval lies below the least effect, or a control is surely
  as large;
* **underpowered**: neither; the condition that failed is named, and what would decide it. Two scores that leave no room
  for a difference (both near 100 %) cannot be told apart, and are underpowered.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from ...utils.multiple_tests import holm
from ...utils.statistics import Number, said, t_tail
from ..random_weights import spread_about_mean
from .ablation_tests import ALPHA
from .options import StudyConfig
from .results import COMBINED, Condition

Found = dict[str, Any]
RANDOM = "models with random weights"
VERDICTS = ("supported", "refuted", "underpowered")
LEAST_READING = 0.1
"""Score by which a label must be read better than in models with random weights."""


def claims(found: dict[str, Found], config: StudyConfig, task: str) -> Found:
    """``claims``: the list, the combined circuit and then the strongest first; ``verdicts``: how many of each;
    ``tests``: p-values that were adjusted.

    Args:
        found: Reports by step name.
    """
    made = [*of_circuit(found, config, task), *of_candidates(found, config, task), *of_probes(found, config, task)]
    return judged(made, task_not_done(found))


def judged(made: list[Found], not_done: str = "") -> Found:
    """Claims with their verdicts, p adjusted for all of them, strongest first.

    Args:
        not_done: Why nothing that the model does can be claimed, see :func:`task_not_done`.
    """
    for claim, p in zip(made, holm([claim["p"] for claim in made]), strict=True):
        claim["p_holm"] = p
    for claim in made:
        claim["verdict"], claim["why"] = judge(claim, len(made), not_done)
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
        "said": f"{said}." if made else f"No claim: {not_done or 'no step found anything to claim'}.",
    }


def does_task(accuracy: Number, chance: Number) -> bool:
    """True if a model answers more than chance gives: the interval of its accuracy lies above that of chance."""
    if accuracy["low"] is None or chance["high"] is None:
        return False
    return float(accuracy["low"]) > float(chance["high"])


def task_not_done(found: dict[str, Found]) -> str:
    """Says why nothing can be claimed about the model; empty where it does the task better than chance."""
    setup = found.get("setup", {})
    if "accuracy" not in setup or does_task(setup["accuracy"], setup["chance"]):
        return ""
    return (
        f"the model answers {setup['accuracy']['value']:.0%} of the prompts where chance gives "
        f"{setup['chance']['value']:.0%}, so there is nothing that a circuit could explain"
    )


# ---- conditions ---------------------------------------------------------------------------------------------------


def at_least(name: str, effect: Number, least: float) -> Condition:
    """The effect is at least so large, by its interval."""
    contrary = ""
    if effect["high"] is not None and effect["high"] < least:
        contrary = f"{name} is at most {effect['high']:.2f}, and {least:.2f} was asked for"
    null = f"{name} is less than {least:.0%} on held-out prompts"
    return Condition(name, null, effect, p_above(effect, least), contrary, least=least)


def beats_draws(name: str, what: str, effect: Number, random: Number, p: float) -> Condition:
    """Random draws do less: p is the share of them that do as much."""
    contrary = ""
    if effect["high"] is not None and effect["high"] < random["value"]:
        contrary = (
            f"half of {what} reach {random['value']:.2f} or more, and the claimed part reaches at most "
            f"{effect['high']:.2f}"
        )
    return Condition(name, f"{what} do as much", effect, p, contrary, draws=int(random["n"]))


def exceeds(name: str, null: str, difference: Number) -> Condition:
    """A paired difference from a control is above zero, by its interval."""
    contrary = ""
    if difference["high"] is not None and difference["high"] < 0:
        contrary = f"{null}: the difference is at most {difference['high']:.2f}"
    return Condition(name, null, difference, p_above(difference, 0.0), contrary, least=0.0)


def above_random_models(row: Found, least: float = LEAST_READING) -> Condition:
    """A label is read better than in models with random weights, see :func:`mechint.analyses.random_weights.beside`."""
    difference, mean = row["difference"], sum(row["random"]) / len(row["random"])
    null = f"probes read {RANDOM} as well, or less than {least:.2f} worse"
    if difference["high"] < 0 or (difference["high"] < least and mean + least <= 1):
        contrary = f"probes read {RANDOM} with {mean:.2f}, and this model with at most {difference['high']:.2f} more"
        return Condition(RANDOM, null, difference, 1.0, contrary, least=least)
    if mean + least > 1:
        told = (
            f"cannot be told apart: probes read {RANDOM} with {mean:.2f} already, so no model can be {least:.2f} better"
        )
        return Condition(RANDOM, null, difference, 1.0, "", told, least=least)
    above = float(difference["value"]) - least
    p = 1.0 if above <= 0 else t_tail(above / row["error"], row["freedom"]) if row["error"] > 0 else 0.0
    return Condition(RANDOM, null, difference, p, least=least)


def p_above(found: Number, least: float) -> float:
    """p of "the value is not above ``least``" from a 95 % interval, whose lower half is 1.96 standard errors.

    Two-sided, so that p ≤ 0.05 where the interval lies at or above ``least`` and nowhere else; 1 without an interval.
    """
    value = float(found["value"])
    if found["low"] is None or value <= least:
        return 1.0
    half = value - float(found["low"])
    return math.erfc(1.959964 * (value - least) / half / math.sqrt(2)) if half > 0 else 0.0


def conjunction(conditions: list[Condition]) -> Found:
    """The parts of a claim that follow from its conditions: these, its p, and what would refute it."""
    return {
        "conditions": [asdict(condition) for condition in conditions],
        "p": max(condition.p for condition in conditions),
        "refuted_by": "; or ".join(condition.null for condition in conditions),
    }


# ---- claims -------------------------------------------------------------------------------------------------------


def of_candidates(found: dict[str, Found], config: StudyConfig, task: str) -> list[Found]:
    """One claim for each tested candidate: needed and sufficient, and more than every control that was asked."""
    rows = found.get("necessity", {}).get("tests", [])
    about = {row["name"]: row for row in found.get("candidates", {}).get("candidates", [])}
    controls = {row["candidate"]: row for row in found.get("controls", {}).get("candidates", [])}
    made = []
    for name in dict.fromkeys(row["candidate"] for row in rows):
        pair = {row["test"]: row for row in rows if row["candidate"] == name}
        where, control = about[name], controls.get(name, {})
        weaker = min(pair.values(), key=lambda row: row["effect"]["value"])
        conditions = circuit_conditions(pair, control, config.min_effect, where["rank"])
        checks = {f"random subspaces, {test}": row["random"] for test, row in sorted(pair.items())}
        for kind in ("random_units", "shuffled_tokens"):
            if control.get(kind) is not None:
                checks[kind.replace("_", " ")] = control[kind]
        made.append(
            {
                "kind": "circuit",
                "claim": f"{name}, rank {where['rank']} at {where['site']}, carries at least {config.min_effect:.0%} "
                f"of the answer of {task}",
                "candidate": name,
                "layer": where["layer"],
                "site": where["site"],
                "units": where["units"],
                "effect": weaker["effect"],
                "effects": {test: row["effect"] for test, row in sorted(pair.items())},
                "metric": f"share of the {config.metric} between prompt and twin",
                "ablation": config.ablation,
                "least": config.min_effect,
                "controls": checks,
                "not_asked": control.get("not_asked", []),
                **conjunction(conditions),
            }
        )
    return made


SAYS = {
    "necessity": "the effect that is lost without it",
    "sufficiency": "the effect that comes back with it alone",
}


def circuit_conditions(tests: dict[str, Found], control: Found, least: float, rank: int) -> list[Condition]:
    """Conditions of "it carries at least so much", from its tests (by name) and its row of step 13."""
    conditions = []
    for test, row in sorted(tests.items()):
        what = f"random subspaces of rank {rank} and the same norm"
        conditions += [
            at_least(SAYS.get(test, test), row["effect"], least),
            beats_draws(f"random subspaces, {test}", what, row["effect"], row["random"], row["p"]),
        ]
    if control.get("random_units") is not None:
        effect, random, p = control["effect"], control["random_units"], control["random_units_p"]
        conditions.append(beats_draws("random units", "as many other units, drawn at random,", effect, random, p))
    if control.get("shuffled_tokens") is not None:
        null = "as much of the effect is lost on prompts whose tokens are in a random order"
        conditions.append(exceeds("shuffled tokens", null, control["above_shuffled_tokens"]))
    return conditions


def of_probes(found: dict[str, Found], config: StudyConfig, task: str) -> list[Found]:
    """One claim for each label, where probes read it best across folds of the discovery prompts.

    That a label can be decoded does not show that the model uses it.
    """
    rows = found.get("probes", {}).get("probes", [])
    random = (found.get("controls", {}).get("random_weights") or {}).get("probes", [])
    beside = {row["label"]: row for row in random}
    made = []
    for best in best_probes(rows):
        label, row = best["label"], beside.get(best["label"])
        conditions = [reads(best)]
        controls = {"shuffled labels": scaled(best["shuffled"])}
        if row is None:
            missing = f"{RANDOM} were not measured (step 13)"
            conditions.append(Condition(RANDOM, f"probes read {RANDOM} as well", best["selectivity"], 1.0, "", missing))
        else:
            conditions.append(above_random_models(row))
            controls[RANDOM] = spread_about_mean(row["random"])
        made.append(
            {
                "kind": "probe",
                "claim": f"a linear probe reads {label} of {task} at least {LEAST_READING:.2f} better than in "
                f"{RANDOM} (best at {best['site']} by {best['method']})",
                "label": label,
                "layer": best["layer"],
                "site": best["site"],
                "effect": best["selectivity"] if row is None else row["difference"],
                "metric": "held-out score above that of " + ("shuffled labels" if row is None else RANDOM),
                "ablation": "none",
                "least": LEAST_READING,
                "controls": controls,
                **conjunction(conditions),
            }
        )
    return made


def best_probes(rows: list[Found]) -> list[Found]:
    """The best probe of each label across folds of the discovery prompts; of equals the first."""
    labels = dict.fromkeys(row["label"] for row in rows)
    of = lambda label: [row for row in rows if row["label"] == label]
    return [max(of(label), key=lambda row: float(row["across_folds"])) for label in labels]


def reads(row: Found) -> Condition:
    """A probe reads its label better than a shuffled one: p is the share of permuted labels that score as well."""
    null = "the probe scores no better on held-out templates than on shuffled labels"
    contrary = ""
    if row["selectivity"]["high"] is not None and row["selectivity"]["high"] <= 0:
        contrary = f"{null}: {row['score']['value']:.2f} and {row['shuffled']['value']:.2f}"
    return Condition("shuffled labels", null, row["selectivity"], row["p"], contrary, draws=row["permutations"])


def scaled(shuffled: Number) -> Found:
    """Scores on shuffled labels as distances from their own mean."""
    mean = float(shuffled["value"])
    return {**shuffled, **{name: float(shuffled[name]) - mean for name in ("value", "low", "high")}}


# ---- verdicts -----------------------------------------------------------------------------------------------------


def judge(claim: Found, tests: int, not_done: str = "") -> tuple[str, str]:
    """(verdict, why). ``tests`` claims were adjusted for."""
    if not_done and claim["kind"] != "probe":
        return "underpowered", not_done
    conditions = [Condition(**condition) for condition in claim["conditions"]]
    for condition in conditions:
        if condition.contrary:
            return "refuted", condition.contrary
    for condition in conditions:
        if condition.open:
            return "underpowered", condition.open
    weakest = max(conditions, key=lambda condition: condition.p)
    p = f"p = {claim['p_holm']:.2g} after Holm over {tests} claims"
    if claim["p_holm"] <= ALPHA * (1 + 1e-9):  # 7 · (1 / 140) is 0.05, but for rounding
        return "supported", f"{p}; the weakest of {len(conditions)} conditions is {weakest.name}"
    if weakest.draws and tests / (weakest.draws + 1) > ALPHA:
        need = math.ceil(tests / ALPHA) - 1
        return "underpowered", f"{tests} claims need at least {need} random draws for p ≤ {ALPHA:g} after Holm"
    why = f"it is not ruled out that {weakest.null}: {p}, above {ALPHA:g}"
    if weakest.least is not None and weakest.value["low"] is not None:
        more = needed_prompts(weakest.value, weakest.least)
        if more > int(weakest.value["n"]):
            why += f"; about {more} prompts would decide it" if RANDOM not in weakest.name else ""
    return "underpowered", why


def needed_prompts(found: Number, least: float) -> int:
    """Prompts with which the interval would be as narrow as the distance to what the value must exceed.

    Half-widths fall with the square root of the number of prompts.
    """
    half = (float(found["high"]) - float(found["low"])) / 2
    distance = max(abs(float(found["value"]) - least), 1e-3)
    return max(int(found["n"]) + 1, math.ceil(int(found["n"]) * (half / distance) ** 2))


# ---- the combined circuit -----------------------------------------------------------------------------------------

WHOLE = 0.5
"""The share of the effect that it must keep alone."""


def of_circuit(found: dict[str, Found], config: StudyConfig, task: str) -> list[Found]:
    """The claim of the combined circuit, where there is one: its units, kept alone, do the task."""
    c = found.get("circuit", {})
    if "effect" not in c:
        return []
    return [
        {
            "kind": COMBINED,
            "claim": (
                f"these {c['kept']} of {c['total']} units together, kept alone, carry at least {WHOLE:.0%} of the "
                f"effect of {task}"
            ),
            "layers": c["layers"],
            "effect": c["effect"],
            "effects": {"kept alone": c["effect"], "completeness (lost without them)": c["completeness"]},
            "accuracy": c["accuracy"],
            "agreement": c["agreement"],
            "agreement_chance": c["agreement_chance"],
            "metric": f"share of the {config.metric} between no studied unit and all of them",
            "ablation": config.ablation,
            "least": WHOLE,
            "controls": {"random units": c["random_units"]},
            **conjunction(combined_conditions(c)),
        }
    ]


def combined_conditions(c: Found) -> list[Condition]:
    """Conditions of "these units, kept alone, do the task", from the report of the combined circuit."""
    conditions = [
        at_least("the effect that these units keep alone", c["effect"], WHOLE),
        beats_draws("random units", "as many random units, kept alone,", c["effect"], c["random_units"], c["p"]),
        either_way(
            "chance", "kept alone they answer no better than chance", c["accuracy"],
            does_task(c["accuracy"], c["chance"]),
            f"kept alone it answers {said(c['accuracy'], '.0%')}, and chance {c['chance']['value']:.0%}",
        ),
    ]  # fmt: skip
    if (agreement := c["agreement"]) is not None:
        conditions.append(
            either_way(
                "agreement", "searches on other prompts agree with it no better than chance", agreement,
                float(agreement["value"]) > c["agreement_chance"],
                f"searches on other prompts find other units: Jaccard {agreement['value']:.2f}, by chance "
                f"{c['agreement_chance']:.2f}",
            )
        )  # fmt: skip
    return conditions


def either_way(name: str, null: str, value: Number, holds: bool, contrary: str) -> Condition:
    """A condition that is compared and not tested: it holds, or its opposite was found."""
    return Condition(name, null, value, 0.0 if holds else 1.0, "" if holds else contrary)
