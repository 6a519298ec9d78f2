"""The report of steering: the surest push and its side effects, every site and strength, projections, one push."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...report.compose import write_page
from ...report.content import Section, between, figure, study, table_section
from ...report.finished import ALL_FIGURES, Drawn, read_finished, valid
from ...report.words import chance, metric_label, number, percent
from .figures import drawn_layers, labelled, once, once_size, steering

ALPHA = 0.05
NOTABLE = 0.01
"""Share of the difference between prompts with and without the property below which an effect is not counted."""


def write_steering(run_dir: str | Path, drawn: Drawn = ALL_FIGURES) -> list[Path]:
    """Writes steering.png, steering_once.png, steer_report.md and report.html."""
    run = read_finished(run_dir, "steer")
    raw = run.raw
    with valid(run.directory / "results.json"):
        shaded = "central 95 % of them" if raw["draws"] else "none were tried"
        figures = [
            figure(
                "steering.png",
                f"Change of the {metric_label(raw['metric'])} with {raw['interval']}. Grey: {labelled(raw['others'])} "
                f"of the same length ({shaded}).",
                (8.6, 6.4),
                steering,
                raw,
            )
        ]
        if drawn_layers(raw):
            figures.append(
                figure(
                    "steering_once.png",
                    "One push of the state and one of the residual stream behind the layer, some tokens before the "
                    "answer. Strengths make both effects at 0 tokens equal on the discovery prompts.",
                    once_size(raw),
                    once,
                    raw,
                )
            )
        content = study(run, cards(raw), findings(raw), sections(raw), figures, caveats(raw))
    return write_page(run.directory, content, "steer_report.md", drawn)


def cards(raw: dict[str, Any]) -> list[tuple[str, str, str]]:
    best, metrics = raw["best"], raw["metrics"]
    found = [
        ("Prompts steered", number(metrics["prompts_steered"]["value"]), f"towards {raw['property']}"),
        best_card(best),
        (
            "As they are",
            number(metrics["lacking"]["value"], 3),
            f"without; {number(metrics['having']['value'], 3)} with",
        ),
    ]
    if "kl" in best:
        found.append(("Side effect there", number(best["kl"]["value"], 3), "KL on unrelated text, nats a token"))
    return found


def best_card(best: dict[str, Any]) -> tuple[str, str, str]:
    """The best push, which is called sure where it is."""
    title = "Largest sure effect" if sure(best) else "Surest effect"
    doubt = "" if sure(best) or best["p"] is None else f"; not sure, p {chance(best['p'])}"
    return title, number(best["effect"]["value"], 3), f"{best['name']}, strength {best['strength']:g}{doubt}"


def sure(row: dict[str, Any]) -> bool:
    return row["p"] is not None and row["p"] <= ALPHA


def notable(raw: dict[str, Any], row: dict[str, Any]) -> bool:
    """True for a sure effect that is not tiny beside what the property itself changes."""
    gap = abs(raw["metrics"]["having"]["value"] - raw["metrics"]["lacking"]["value"])
    return sure(row) and abs(row["effect"]["value"]) >= NOTABLE * gap


def away(effect: dict[str, Any]) -> bool:
    """True if the interval lies on one side of zero, or there is none and the value is not zero."""
    if effect["low"] is None:
        return bool(effect["value"] != 0)
    return bool(effect["low"] > 0 or effect["high"] < 0)


def findings(raw: dict[str, Any]) -> list[tuple[bool, str]]:
    best = raw["best"]
    found = [(sure(best) and best["effect"]["value"] * best["strength"] > 0 and away(best["effect"]), lead(raw))]
    pushes = raw["curves"]
    if raw["draws"]:
        count = sum(notable(raw, row) for row in pushes)
        beside = labelled(raw["others"])
        found.append((
            count > 0,
            f"{count} of {len(pushes)} pushes move the {metric_label(raw['metric'])} their way by more than {beside} "
            f"of the same length (p ≤ {ALPHA:g}, adjusted for all of them), and by at least {percent(NOTABLE)} of the "
            f"difference between prompts with and without the property.",
        ))  # fmt: skip
        gone = [row for row in raw["projections"] if notable(raw, row) and row["effect"]["value"] < 0]
        at = min(raw["projections"], key=lambda row: row["effect"]["value"])
        most = f"most at {at['name']}, {between(at['effect'])} (p {chance(at['p'])})"
        most = most if at["effect"]["value"] < 0 else "the metric is nowhere lower without it"
        found.append((
            bool(gone),
            f"Projecting the direction out lowers the metric by more than projecting out {beside} at {len(gone)} of "
            f"{len(raw['projections'])} sites (of the same size); {most}.",
        ))  # fmt: skip
    else:
        found.append((False, "No other directions were tried, so it is not known what any push of this length does."))
    return [*found, *lasting(raw)]


def lasting(raw: dict[str, Any]) -> list[tuple[bool, str]]:
    """A sentence on whether pushes of the state last longer."""
    there = [row for row in raw["once"] if row["difference"] is not None]
    found = []
    if there:
        longer, shorter = (
            [row["layer"] for row in there if sure(row) and sign * row["difference"]["value"] > 0] for sign in (1, -1)
        )
        said = lambda layers: f"in {some(layers)}" if layers else "in no layer"
        found.append((
            bool(longer or shorter),
            f"One push of the state leaves more behind than one of the residual stream {said(longer)}, and less "
            f"{said(shorter)} (p ≤ {ALPHA:g}, adjusted for all layers that were compared, {len(there)}; strengths "
            f"of equal immediate effect).",
        ))  # fmt: skip
    if missing := [row["layer"] for row in raw["once"] if row["difference"] is None]:
        found.append((
            False,
            f"In {some(missing)} one of the two pushes has no direction, or no immediate effect towards the property, "
            f"so they cannot be made equal.",
        ))  # fmt: skip
    return found


def some(layers: list[int]) -> str:
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"


def lead(raw: dict[str, Any]) -> str:
    """The result in one sentence."""
    best = raw["best"]
    said = f"The direction at {best['name']}, added {best['strength']:g} times, changes the "
    said += f"{metric_label(raw['metric'])} by {between(best['effect'])}"
    if best["p"] is not None:
        said += f" (p {chance(best['p'])} beside {labelled(raw['others'])})"
    if "kl" in best:
        said += f", at a KL of {between(best['kl'])} nats a token on unrelated text"
    return f"{said}."


def span(entry: dict[str, Any] | None) -> str:
    return "–" if entry is None else between(entry)


def sections(raw: dict[str, Any]) -> list[Section]:
    length = {row["name"]: row for row in raw["directions"]}
    pushes = [
        (
            row["name"], f"{row['strength']:g}", between(row["effect"]), span(row["others"]), chance(row["p"]),
            span(row.get("kl")), span(row.get("others_kl")),
        )
        for row in raw["curves"]
    ]  # fmt: skip
    gone = [(row["name"], between(row["effect"]), span(row["others"]), chance(row["p"])) for row in raw["projections"]]
    lengths = [
        (name, number(row["length"], 4), "–" if row["share"] is None else percent(row["share"]))
        for name, row in length.items()
    ]
    last = [
        (
            str(row["layer"]), *(number(row["strengths"][site], 3) for site in ("state", "resid_post")),
            between(row["difference"]), chance(row["p"]),
        )
        for row in raw["once"]
        if row["difference"] is not None
    ]  # fmt: skip
    found = [
        table_section(
            "Every push", f"Directions: {raw['source']}. Side effects: {raw['text']}.",
            ("site", "strength", "effect", "other directions", "p (all pushes)", "KL", "KL of others"), pushes,
            range(1, 7), len(pushes) > 24,
        ),
        table_section(
            "Projected out", "Of held-out prompts that have the property.",
            ("site", "effect", "other directions", "p (all sites)"), gone, (1, 2, 3), len(gone) > 24,
        ),
    ]  # fmt: skip
    if last:
        found.append(table_section(
            "One push", "Mean over 1 and more tokens later: effect of the state's push less that of the stream's.",
            ("layer", "strength at state", "strength at stream", "difference", "p (all layers)"), last, range(5),
        ))  # fmt: skip
    found.append(table_section(
        "Directions", "Length at a strength of 1, and its share of the mean length of the site's values.",
        ("site", "length", "share"), lengths, (1, 2), True,
    ))  # fmt: skip
    return found


def caveats(raw: dict[str, Any]) -> list[str]:
    return [
        "A push that works shows that later layers read the direction. That the model itself writes there, and needs "
        "it, is what the projection tests.",
        "Large strengths leave the range of values that the model has seen. Compare the effect with its KL on "
        "unrelated text, and with that of other directions.",
        *(
            ["Random directions point mostly where the model's values hardly vary; directions of shuffled contrasts "
             "are the harder control."]
            if raw["others"] == "random"
            else []
        ),
        "The largest effect is chosen among many, so its interval is too narrow for that choice; p accounts for it.",
    ]  # fmt: skip


def headline(run_dir: str | Path) -> str:
    """The result in one sentence."""
    run = read_finished(run_dir, "steer")
    with valid(run.directory / "results.json"):
        return lead(run.raw)
