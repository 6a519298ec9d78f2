"""The report of the lenses: curves by layer, contributions of the parts, and a map of every layer and position."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...report.compose import write_page
from ...report.content import Section, between, figure, study, table_section
from ...report.control import control_findings, control_sections
from ...report.finished import ALL_FIGURES, Drawn, FinishedRun, read_finished, valid
from ...report.words import number, percent
from ...utils.errors import MechintError
from ...utils.files import read_json
from .figures import MOST_PARTS, bars, bars_size, curves, map_size, one_prompt, row_name
from .page_map import prompt_map

EXACT = 1e-3
"""The largest remainder of the contributions, as a share of the largest of them, that counts as rounding."""


def write_lens(run_dir: str | Path, drawn: Drawn = ALL_FIGURES) -> list[Path]:
    """Writes lens_curves.png, lens_contributions.png, lens_map.png, lens_report.md and report.html."""
    run = read_finished(run_dir, "lens")
    examples = read_examples(run.directory)
    raw = run.raw
    with valid(run.directory / "results.json"):
        bands = raw["interval"].startswith("95 %")
        figures = [
            figure(
                "lens_curves.png",
                "The answer in the residual stream of every layer (steps inside a layer between whole numbers)"
                + (", with 95 % intervals over templates." if bands else f" ({raw['interval']}).")
                + (" Dotted: the logit lens on models with the same weights, shuffled." if raw["control"] else ""),
                (8.6, 6.2),
                curves,
                raw["readings"],
                raw["control"],
            ),
            figure(
                "lens_contributions.png",
                f"Contributions to the {raw['metric']}, in the order of the forward; their sum is "
                f"{between(raw['metrics']['target'])}."
                + (f" The {MOST_PARTS} largest are drawn." if len(raw["contributions"]) > MOST_PARTS else ""),
                bars_size(raw["contributions"]),
                bars,
                raw["contributions"],
                raw["control"],
                raw["metric"],
            ),
        ]
        if examples:
            shown = "The likeliest next token by the logit lens, behind every token (across) and layer (upwards)."
            figures.append(figure("lens_map.png", shown, map_size(examples[0]), one_prompt, examples[0]))
        mapped = [Section("Layer by layer, token by token", [prompt_map(examples)])] if examples else []
        content = study(run, cards(raw), findings(raw), [*mapped, *sections(raw)], figures, caveats(raw))
    return write_page(run.directory, content, "lens_report.md", drawn)


def read_examples(directory: Path) -> list[dict[str, Any]]:
    try:
        found = read_json(directory / "examples.json")
    except FileNotFoundError:
        found = None
    if not isinstance(found, list):
        raise MechintError(f"{directory / 'examples.json'} is missing or no list; run the analysis again")
    return found


def cards(raw: dict[str, Any]) -> list[tuple[str, str, str]]:
    metrics = raw["metrics"]
    found = [
        ("Prompts read", number(metrics["prompts_used"]["value"]), "held-out"),
        ("Accuracy", percent(metrics["accuracy"]["value"]), between(metrics["accuracy"])),
    ]
    if "decided_at" in metrics:
        found.append(("Decided behind", f"{metrics['decided_at']['value']:.2f} layers", between(metrics["decided_at"])))
    best = largest(raw)
    return [*found, ("Largest contribution", number(best["contribution"]["value"], 3), best["name"])]


def largest(raw: dict[str, Any]) -> dict[str, Any]:
    return dict(max(raw["contributions"], key=lambda entry: abs(entry["contribution"]["value"])))


def findings(raw: dict[str, Any]) -> list[tuple[bool, str]]:
    found = [(bool("decided_at" in raw["metrics"]), lead(raw))]
    size = max(abs(entry["contribution"]["value"]) for entry in raw["contributions"]) or 1.0
    found.append(
        (raw["remainder"] <= EXACT * size,
         f"The contributions add up to the {raw['metric']} of every prompt; the largest remainder is "
         f"{raw['remainder']:.1e}.")
    )  # fmt: skip
    if raw["tuned"]:
        rows = raw["tuned"]
        better = sum((row["saved"]["low"] is not None and row["saved"]["low"] > 0) for row in rows)
        found.append(
            (better > 0, f"At {better} of {len(rows)} layers the tuned lens is nearer to the model's prediction than "
             "the logit lens, over all positions of held-out prompts (interval above zero).")
        )  # fmt: skip
    return [*found, *control_findings(raw["control"])]


def lead(raw: dict[str, Any]) -> str:
    """The result in one sentence."""
    metrics, best = raw["metrics"], largest(raw)
    adds = f"{best['name']} contributes most to the {raw['metric']}, {between(best['contribution'])}."
    if "decided_at" not in metrics:
        return f"The model answers none of the prompts; {adds}"
    layers = 1 + max(entry["layer"] for entry in raw["readings"])
    where = f"behind {between(metrics['decided_at'])} of {layers} layers"
    return f"By the logit lens the answer becomes and stays the likeliest token {where}; {adds}"


def sections(raw: dict[str, Any]) -> list[Section]:
    read = [
        (entry["name"], row_name(entry["site"], entry["layer"]), entry["site"],
         *(between(entry[m]) for m in ("probability", "logprob", "rank", "right", "kl")))
        for entry in raw["readings"]
    ]  # fmt: skip
    parts = [(entry["name"], between(entry["contribution"])) for entry in raw["contributions"]]
    tuned = [
        (row_name(row["site"], row["layer"]), *(between(row[n]) for n in ("logit_lens", "tuned_lens", "saved")))
        for row in raw["tuned"] or ()
    ]
    compared = table_section(
        "Tuned lens beside logit lens", "KL(model ‖ lens) in nats over all positions of held-out prompts.",
        ("residual stream", "logit lens", "tuned lens", "difference"), tuned, (1, 2, 3),
    )  # fmt: skip
    return [
        *([compared] if tuned else []),
        table_section(
            "Every site", "At the answers of held-out prompts; ranks are geometric means, probabilities and KL means.",
            ("lens", "residual stream", "site", "probability", "log-probability", "rank", "right", "KL"), read,
            range(3, 8), True,
        ),
        table_section(
            "Every contribution", f"To the {raw['metric']}, with the final norm's scale held.",
            ("part", "contribution"), parts, (1,), True,
        ),
        *control_sections(raw["control"]),
    ]  # fmt: skip


def caveats(raw: dict[str, Any]) -> list[str]:
    return [
        "The logit lens reads every layer in the basis of the last one. A low rank in early layers may mean that the "
        "information is there in another basis; a tuned lens tells the two apart better, and neither shows that later "
        "layers use what it reads.",
        "A tuned lens is trained to predict what the model will say, so it may find what no layer has written yet; the "
        "shuffled models are read with the logit lens alone.",
        "A contribution is direct: what a part writes for later parts to read is counted at those parts. The final "
        "norm's scale is that of the whole stream, which would change if a part were taken out.",
        *(
            ["The logit of one token has no zero: what raises all logits alike counts, too."]
            if raw["metric"] != "logit difference"
            else []
        ),
    ]


def headline(run_dir: str | Path) -> str:
    """The result in one sentence."""
    run: FinishedRun = read_finished(run_dir, "lens")
    with valid(run.directory / "results.json"):
        return lead(run.raw)
