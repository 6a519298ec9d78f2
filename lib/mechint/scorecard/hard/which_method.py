"""Writes docs/which_method.md from finished scorecards: which methods found which kind of circuit, and which did not.

The numbers of the page stand beside it, in docs/which_method.json, so that a new card adds to them:

>>> python -m mechint.scorecard.hard.which_method output/card_memories/results.json  # adds its cells
>>> python -m mechint.scorecard.hard.which_method  # writes the page again
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ...ground_truth import BLUEPRINTS, GPT2_BLUEPRINTS, IMPOSED
from ...ground_truth.questions import QUESTIONS
from ...report.markdown import table
from ...utils import files
from ...utils.errors import MechintError, exit_status
from ...utils.statistics import over_seeds
from ..methods import METHODS

KINDS: dict[str, tuple[str, ...]] = {
    "easy Mamba": tuple(BLUEPRINTS),
    "easy GPT-2": tuple(GPT2_BLUEPRINTS),
    "trained": tuple(IMPOSED),
    "loud decoys": (
        *("loud_shift", "loud_latch", "loud_selective_copy"),
        *("gpt2_loud_shift", "gpt2_loud_latch", "gpt2_loud_induction", "gpt2_loud_recall"),
    ),
    "superposition": ("superposed_latch", "gpt2_superposed_latch", "gpt2_superposed_recall"),
    "two ways": ("two_ways", "gpt2_two_heads"),
    "a backup": ("backup", "gpt2_backup"),
    "pairs that cancel": ("cancelling",),
    "a rare unit": ("rare",),
    "a Mamba-2": ("mamba2_recall", "mamba2_latch"),
    "a delta rule": ("delta_recall", "delta_parity"),
    "units in two roles": ("delta_letters", "delta_digits"),
    "a hybrid": ("hybrid_sections",),
}
"""Models of each kind of circuit."""
FAILS = 0.95
"""A method does not find a kind of circuit where its mean AUROC is below this."""

Cells = dict[tuple[str, str, int], dict[str, Any]]
"""Scores of methods, by method, model and seed."""


def cells_of(cards: Sequence[dict[str, Any]]) -> Cells:
    return {
        (cell["method"], part["model"], part["seed"]): cell
        for card in cards
        for part in card["parts"]
        for cell in part["compiled"]
    }


def of_kind(cells: Cells, method: str, kind: str) -> list[dict[str, Any]]:
    return [cell for (name, model, _), cell in cells.items() if name == method and model in KINDS[kind]]


def ranking(cells: Cells, titles: dict[str, str], kinds: list[str]) -> str:
    """A table of mean AUROC for each method and kind, with the number of models and seeds found to the unit."""

    def said(method: str, kind: str) -> str:
        found = of_kind(cells, method, kind)
        if not found:
            return "–"
        exact = sum(cell["exact"] for cell in found)
        whole = "●" if exact == len(found) else f"({exact} of {len(found)})"
        return f"{fmean(cell['auroc'] for cell in found):.3f} {whole}"

    rows = [(title, *(said(method, kind) for kind in kinds)) for method, title in titles.items()]
    return table(("method", *kinds), rows)


def needed(cells: Cells, titles: dict[str, str], kinds: list[str]) -> str:
    """A table of the three questions, of the kinds that ask them."""

    def said(method: str, kind: str, question: str) -> str:
        found = [cell["several"] for cell in of_kind(cells, method, kind) if "several" in cell]
        if question == "shares":
            values = [cell["shares"] for cell in found if "shares" in cell]
            return f"{fmean(values):.2f}" if values else "–"
        asked = [cell[question] for cell in found if question in cell]
        if not asked:
            return "–"
        exact = sum(score["exact"] for score in asked)
        whole = "●" if exact == len(asked) else f"({exact} of {len(asked)})"
        return f"{fmean(score['auroc'] for score in asked):.3f} {whole}"

    header = [*QUESTIONS, "shares"]
    rows = [
        (kind, title, *(said(method, kind, question) for question in header))
        for kind in kinds
        for method, title in titles.items()
        if any("several" in cell for cell in of_kind(cells, method, kind))
    ]
    return table(("circuit", "method", "needed alone", "together", "sufficient", "shares"), rows)


def advice(cells: Cells, titles: dict[str, str], kinds: list[str]) -> list[str]:
    """For each kind the methods that found every circuit to the unit, and those that did not find it."""
    lines = []
    for kind in kinds:
        asked = {title: of_kind(cells, method, kind) for method, title in titles.items()}
        finds = [title for title, found in asked.items() if found and all(cell["exact"] for cell in found)]
        fails = [title for title, found in asked.items() if found and fmean(cell["auroc"] for cell in found) < FAILS]
        lines.append(
            f"* **{kind}**: to the unit on every model and seed: {'; '.join(finds) or 'no method'}. Mean AUROC below "
            f"{FAILS}: {'; '.join(fails) or 'no method'}."
        )
    return lines


def differences(cells: Cells, titles: dict[str, str], kinds: list[str], reference: str) -> str:
    """A table of how much less than a reference each method scores, paired, with an interval over seeds."""

    def said(method: str, kind: str) -> str:
        seeds: dict[int, list[float]] = {}
        for (name, model, seed), cell in cells.items():
            if name == method and model in KINDS[kind] and (reference, model, seed) in cells:
                seeds.setdefault(seed, []).append(cell["auroc"] - cells[reference, model, seed]["auroc"])
        means = [fmean(values) for values in seeds.values()]
        if len(means) < 2:
            return "–"
        found, _ = over_seeds(means, "seeds")
        return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"

    rows = [(title, *(said(method, kind) for kind in kinds)) for method, title in titles.items() if method != reference]
    return table((f"less {titles[reference]}", *kinds), rows)


def sizes(cells: Cells, titles: dict[str, str], kinds: list[str]) -> str:
    """A table of the size that a method chooses over the declared one, with an interval over seeds."""

    def said(method: str, kind: str) -> str:
        seeds: dict[int, list[float]] = {}
        for (name, model, seed), cell in cells.items():
            if name == method and model in KINDS[kind] and "stops" in cell:
                seeds.setdefault(seed, []).append(cell["stops"]["size"] / cell["stops"]["true"])
        if not seeds:
            return "–"
        every, means = [ratio for own in seeds.values() for ratio in own], [fmean(own) for own in seeds.values()]
        right = sum(ratio == 1 for ratio in every)
        found = over_seeds(means, "seeds")[0] if len(means) > 1 else None
        spread = f" [{found['low']:.2f}, {found['high']:.2f}]" if found else ""
        return f"{fmean(means):.2f}{spread} ({right} of {len(every)})"

    asked = {method: title for method, title in titles.items() if any(said(method, kind) != "–" for kind in kinds)}
    shown = [kind for kind in kinds if any(said(method, kind) != "–" for method in asked)]
    rows = [(title, *(said(method, kind) for kind in shown)) for method, title in asked.items()]
    return table(("method", *shown), rows) if rows else ""


BUDGET = ("prompts", "patch_prompts", "steps")
"""Options of a card that all cells of a page share."""
NUMBERS = ("method", "auroc", "average_precision", "exact", "units", "total", "several", "stops")
"""Numbers of a cell that are kept: those that a second run gives again."""


def kept(cards: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The numbers that a page is written from; where two cards have the same cell, that of the later one.

    Raises:
        MechintError: cards of different budgets.
    """
    budgets = [{name: card["config"][name] for name in BUDGET} for card in cards]
    if any(budget != budgets[0] for budget in budgets):
        said = "; ".join(", ".join(f"{name} {value}" for name, value in budget.items()) for budget in budgets)
        raise MechintError(f"these scorecards have different budgets ({said}); score one of them again")
    cells = cells_of(cards)
    order = list(dict.fromkeys(key for known in (METHODS, *(card["order"] for card in cards)) for key in known))
    asked = {method for method, _, _ in cells}
    models = [model for own in KINDS.values() for model in own]
    places = sorted({(model, seed) for _, model, seed in cells}, key=lambda place: (models.index(place[0]), place[1]))
    return {
        "schema": 1,
        "config": budgets[0],
        "methods": {key: title for card in cards for key, title in card["methods"].items() if key in asked},
        "order": [key for key in order if key in asked],
        "parts": [
            {
                "model": model,
                "seed": seed,
                "compiled": [
                    {
                        name: rounded(value)
                        for name, value in cells[key, model, seed].items()
                        if name in NUMBERS and value != {}
                    }
                    for key in order
                    if (key, model, seed) in cells
                ],
            }
            for model, seed in places
        ],
    }


def rounded(value: Any) -> Any:
    """Floats to six digits."""
    if isinstance(value, dict):
        return {name: rounded(own) for name, own in value.items()}
    return round(value, 6) if isinstance(value, float) else value


def as_text(data: dict[str, Any]) -> str:
    """The numbers as JSON, a line for each cell, so that a new card changes only its own lines."""
    whole = {**data, "parts": []}
    head = json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False)
    parts = [
        json.dumps({"model": part["model"], "seed": part["seed"]})[:-1]
        + ', "compiled": [\n'
        + ",\n".join(json.dumps(cell, ensure_ascii=False, allow_nan=False) for cell in part["compiled"])
        + "\n]}"
        for part in data["parts"]
    ]
    return head.removesuffix('"parts": []\n}') + '"parts": [\n' + ",\n".join(parts) + "\n]\n}\n"


def page(data: dict[str, Any]) -> str:
    """The page, as Markdown.

    Args:
        data: Result of :func:`kept`.

    Raises:
        MechintError: it has no model of any kind.
    """
    cells = cells_of([data])
    titles = {key: data["methods"][key] for key in data["order"]}
    kinds = [kind for kind, models in KINDS.items() if any(model in models for _, model, _ in cells)]
    if not kinds:
        raise MechintError("none of these scorecards has a model of a known kind; score some with make ground-truth")
    models = sorted({model for _, model, _ in cells})
    seeds = sorted({seed for _, _, seed in cells})
    of_each = {len({seed for _, model, seed in cells if model == name}) for name in models}
    count = " to ".join(str(number) for number in sorted({min(of_each), max(of_each)}))
    parts = [
        "# Which method for which circuit",
        "Generated by `python -m mechint.scorecard.hard.which_method` from scorecards of the models "
        f"{', '.join(f'`{model}`' for model in models)}, seeds {', '.join(map(str, seeds))} "
        "([known_circuits.md](known_circuits.md) describes them). No method was tuned on these seeds. All numbers are "
        "in [which_method.json](which_method.json).",
        "\n".join(advice(cells, titles, kinds)),
        "## Ranking",
        "Mean AUROC of the circuit's units against all others; ● is the circuit to the unit on every model and seed, "
        "else in brackets on how many of them; – is not asked.",
        ranking(cells, titles, kinds),
        "## What is needed",
        "Where there are several ways to the answers, AUROC of the units that are needed alone, of those of all ways "
        "together, and of the smallest sufficient set that is nearest to the ranking; rank correlation with the "
        "declared shares of the answers' logits. – is not asked.",
        needed(cells, titles, kinds),
    ]
    if ratios := sizes(cells, titles, kinds):
        parts += [
            "## Where `smallest` stops",
            "Units of the circuit that a method chooses by the search `smallest` (the fewest that recover 95 % of the "
            "effect on the discovery prompts; a mask search also prunes), over those of the smallest declared circuit "
            "that suffices, without units that the ablation does not change: mean over models and seeds, 95 % interval "
            "over seeds, and in brackets how often it is exactly that number. Below 1 the method stops short: fewer "
            "units recover 95 %. Of superpositions no smallest circuit is declared.",
            ratios,
        ]
    reference = next(iter(titles))
    if len(seeds) > 1:
        parts += [
            "## Differences",
            "AUROC of a method less that of the first one on the same models, mean and 95 % interval "
            f"over {count} seeds ([statistics.md](statistics.md)).",
            differences(cells, titles, kinds, reference),
        ]
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Writes the page that says which method found which circuit.")
    parser.add_argument("results", nargs="*", type=Path, help="results.json of finished scorecards, to be added")
    parser.add_argument("--page", type=Path, default=Path("docs/which_method.md"))
    parser.add_argument("--fresh", action="store_true", help="leave out the numbers that are beside the page already")
    flags = parser.parse_args(arguments)
    beside: Path = flags.page.with_suffix(".json")
    if not flags.results and (flags.fresh or not beside.exists()):
        raise MechintError(f"{beside}: no numbers to write a page from; name results.json of finished scorecards")
    old = [] if flags.fresh or not beside.exists() else [beside]
    data = kept([files.read_json(path) for path in (*old, *flags.results)])
    files.write_text(beside, as_text(data))
    files.write_text(flags.page, page(data))
    print(f"written: {flags.page} and {beside}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
