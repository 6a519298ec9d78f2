"""The report of patchscopes: readings by layer beside their controls, a map of some prompts, and what comes next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...report.compose import write_page
from ...report.content import Section, between, figure, study, table_section
from ...report.control import better_shuffled, control_findings, control_sections
from ...report.finished import ALL_FIGURES, Drawn, read_finished, valid
from ...report.words import chance, number, percent
from ...utils.statistics import certain
from ..lens.figures import row_name
from ..lens.page_map import prompt_map
from ..lens.report import read_examples
from .figures import curves, curves_size, into_layers, layer_map, map_size

ALPHA = 0.05


def write_patchscope(run_dir: str | Path, drawn: Drawn = ALL_FIGURES) -> list[Path]:
    """Writes patchscope_curves.png, with several layers patchscope_map.png, patchscope_report.md and report.html."""
    run = read_finished(run_dir, "patchscope")
    examples = read_examples(run.directory)
    raw = run.raw
    with valid(run.directory / "results.json"):
        rows, metrics = raw["readings"], raw["metrics"]
        bare = {"right": metrics["unpatched"]["value"], "surprisal": metrics["unpatched_surprisal"]["value"]}
        bands = "Bands are 95 % intervals over templates." if raw["interval"].startswith("95 %") else raw["interval"]
        figures = [
            figure(
                "patchscope_curves.png",
                f"{bands} Dashed: the same with other prompts' representations; dash-dotted: the logit lens at the "
                "same site; dotted: models with the same weights, shuffled"
                + (", which look for their own tokens." if own_tokens(raw) else "."),
                curves_size(rows),
                curves,
                rows,
                raw["control"],
                bare,
            )
        ]
        if len(into_layers(rows)) > 1 and any(row["into"] != row["layer"] for row in rows):
            shown = "Share of prompts by the layer that is read and the layer that it is put into; grey: no such pair."
            figures.append(figure("patchscope_map.png", shown, map_size(rows), layer_map, rows))
        shown_prompts = [Section("Token by token", [prompt_map(examples, "reading")])] if examples else []
        if any(example["generated"] for example in examples):
            shown_prompts.append(continuations(examples))
        sections = [*shown_prompts, table(raw), *control_sections(raw["control"])]
        content = study(run, cards(raw), findings(raw), sections, figures, caveats(raw), lead(raw))
    return write_page(run.directory, content, "patchscope_report.md", drawn)


def own_tokens(raw: dict[str, Any]) -> bool:
    """True if what is looked for is the model's own next token."""
    return str(raw["config"]["scored"]) == "model"


def continuations(examples: list[dict[str, Any]]) -> Section:
    """A table of the continuations of each example by site."""
    rows = [
        (str(k), "".join(example["tokens"][-6:]) if spaced(example) else " ".join(example["tokens"][-6:]),
         place_name(site), example["answer"], example["generated"][site])
        for k, example in enumerate(examples, 1)
        for site in example["lenses"]["patchscope"]["sites"]  # the file sorts names as text: 12 in front of 6
        if site in example["generated"]
    ]  # fmt: skip
    return table_section(
        "What the model goes on with",
        "The likeliest tokens behind the target prompt, one after the other, with the representation in its place.",
        ("prompt", "its end", "taken from", "looked for", "continuation"), rows, (0,), len(rows) > 24,
    )  # fmt: skip


def spaced(example: dict[str, Any]) -> bool:
    """True if the tokens carry their own spaces."""
    return any(token != token.strip() for token in example["tokens"])


def place_name(site: str) -> str:
    return row_name(site.rpartition(".")[2], int(site.split(".")[1]))


def table(raw: dict[str, Any]) -> Section:
    of = lambda entry: "–" if entry is None else between(entry)
    rows = [
        (
            row["name"], between(row["right"]), between(row["surprisal"]), between(row["rank"]),
            of(row["others_right"]), of(row["gain"]), "–" if row["p"] is None else chance(row["p"]),
            of(row["lens_right"]), of(row["lens_surprisal"]), of(row["mentioned"]),
        )
        for row in raw["readings"]
    ]  # fmt: skip
    return table_section(
        "Every reading",
        "Share of prompts whose likeliest token is the one looked for, its surprisal and rank (a geometric mean); the "
        "share with other prompts' representations, how much likelier the own one makes the token (nats), and p of "
        '"no likelier", adjusted for all readings; the logit lens at the same site; the share of prompts whose '
        "continuation has the token.",
        ("reading", "likeliest", "surprisal", "rank", "other prompts", "gain", "p (all readings)", "lens, likeliest",
         "lens, surprisal", "in continuation"), rows, range(1, 10), len(rows) > 24,
    )  # fmt: skip


def cards(raw: dict[str, Any]) -> list[tuple[str, str, str]]:
    metrics, best = raw["metrics"], raw["best"]
    found = [("Source prompts", number(metrics["prompts_used"]["value"]), raw["source"])]
    if best is not None:
        found.append(("Best reading", percent(best["right"]["value"]), best["name"]))
        if best["others_right"] is not None:
            found.append(("Other prompts", percent(best["others_right"]["value"]), "at the same place"))
    return [*found, ("Target as it is", percent(metrics["unpatched"]["value"]), between(metrics["unpatched"]))]


def findings(raw: dict[str, Any]) -> list[tuple[bool, str]]:
    best = raw["best"]
    found = [(True, f"Target prompt: {raw['target']}")]
    if best is not None and best["gain"] is not None:
        tested = best["p"] is not None and best["p"] <= ALPHA and certain(best["gain"])
        p = "" if best["p"] is None else f" (p {chance(best['p'])})"
        said = f"At {best['name']} the own representation makes the token {between(best['gain'])} nats likelier than "
        found.insert(0, (tested and best["right"]["value"] > best["others_right"]["value"], f"{said}others' do{p}."))
    read = [row for row in raw["readings"] if not row["trivial"] and row["lens_right"] is not None]
    better = sum(row["right"]["low"] is not None and row["right"]["low"] > row["lens_right"]["high"] for row in read)
    if read:
        found.append((better > 0, f"At {better} of {len(read)} readings of the residual stream the target prompt finds "
                      "the token more often than the logit lens (intervals apart)."))  # fmt: skip
    return [*found, *control_findings(raw["control"], side)]


def side(quantity: str) -> int:
    """1 where more of a compared quantity is better, -1 where less is."""
    return -1 if quantity.startswith("surprisal") else 1


def lead(raw: dict[str, Any]) -> str:
    """The result in one sentence, and a second one where shuffled weights read better."""
    best, bare = raw["best"], raw["metrics"]["unpatched"]
    if best is None:
        return "Every reading is the logit lens of the source: read behind the placeholder, or in an earlier layer."
    beside = "" if best["others_right"] is None else f", {between(best['others_right'])} with other prompts'"
    said = (
        f"The representation of {best['name']} makes the target prompt say the token that {raw['scored']} in "
        f"{between(best['right'])} of the prompts{beside}, and {between(bare)} with none."
    )
    return " ".join([said, *shuffled_better(raw)])


def shuffled_better(raw: dict[str, Any]) -> list[str]:
    """A sentence where models with shuffled weights read better than the trained one; none elsewhere."""
    control, best = raw["control"], raw["best"]
    worse = [] if control is None else better_shuffled(control, side)
    if not worse:
        return []
    known = sum(row["differs"] is not None for row in control["quantities"])
    there = [row for row in worse if best is not None and (row["site"], row["layer"]) == (best["site"], best["layer"])]
    at_best = ", the best reading's among them" if there else ""
    return [
        f"Shuffled weights read better than the trained ones in {len(worse)} of {known} compared numbers{at_best}; "
        "a reading there does not show what training made."
    ]


def caveats(raw: dict[str, Any]) -> list[str]:
    found = [
        "A patchscope shows what the model makes of a representation in this target prompt. Another target may find "
        "more; a token that is not found may be there in a form that this prompt does not ask for.",
        "A target prompt that the model does not understand reads nothing: look at the continuations first.",
    ]
    if raw["read_there"]:
        found.append(
            "The representation is read where it is put: what is left of the model above it makes its own prediction "
            "of it, so late layers are close to the logit lens."
        )
    if own_tokens(raw):
        found.append("Models with shuffled weights look for their own next token, which late layers give back, too.")
    return found


def headline(run_dir: str | Path) -> str:
    """The result in one sentence."""
    run = read_finished(run_dir, "patchscope")
    with valid(run.directory / "results.json"):
        return lead(run.raw)
