"""The page of the scorecard: every number of the results in both texts, and what fails said so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mechint.report.html import html
from mechint.report.markdown import markdown
from mechint.scorecard import METHODS
from mechint.scorecard.edges import EDGE_METHODS
from mechint.scorecard.report import content, headline, write_scorecard
from mechint.scorecard.summary import summarise
from tests.helpers.report_runs import Page

FEW = {"attribution_mean_size": METHODS["attribution_mean_size"], "weight_magnitude": METHODS["weight_magnitude"]}


def part(model: str, seed: int, found: bool = True) -> dict[str, Any]:
    """One model and seed: the first method finds the circuit where ``found``, the second never does."""
    cells = [
        {
            "method": name, "auroc": auroc, "average_precision": auroc, "exact": auroc == 1.0, "units": 3, "total": 64,
            "cpr": auroc, "cmd": 0.123, "seconds": 1.5, "peak_mib": None,
        }
        for name, auroc in zip(FEW, (1.0 if found else 0.75, 0.321), strict=True)
    ]  # fmt: skip
    return {
        "model": model, "seed": seed, "compiled": cells, "best": {"cpr": 1.0, "cmd": 0.004},
        "positions": {"write": 0.8125}, "trace": {"seconds": 0.25, "peak_mib": 7.0}, "same_twins": 0.0,
        "edges": [], "probes": [], "null": {"random": {"trace": [0.01, 0.5]}}, "seconds": 60.0,
        "random": [{"method": name, "auroc": 0.5 + 0.01 * seed + 0.4 * (name == "weight_magnitude")} for name in FEW],
    }  # fmt: skip


def results(*parts: dict[str, Any]) -> dict[str, Any]:
    models = list(dict.fromkeys(one["model"] for one in parts))
    return {
        "config": {"seeds": 2, "first_seed": 0, "random_every": 1, "edge_prompts": 4, "edges": 8, "sae_tokens": 0},
        "methods": {name: method.title for name, method in FEW.items()},
        "order": [*FEW, *EDGE_METHODS],
        "edge_methods": {name: method.title for name, method in EDGE_METHODS.items()},
        "models": dict.fromkeys(models, "a task"),
        "groups": [models],
        **summarise(list(parts), [], FEW),
        "parts": list(parts),
        "planted": [],
    }


def test_the_page_has_every_number_and_its_picture(tmp_path: Path) -> None:
    raw = results(*(part(model, seed) for model in ("latch", "recall") for seed in (0, 1)))
    written = write_scorecard(tmp_path, raw)
    assert [path.name for path in written] == ["scorecard.png", "scorecard.md", "scorecard.html"]
    text, page = written[1].read_text(), written[2].read_text()
    Page(page)  # well formed
    for said in (
        "# Scorecard: methods on models whose circuit is known",
        "1 of 2 methods find the circuit to the unit on every seed of every model that they are asked of, among 2: "
        "attribution, mean, size.",
        "| attribution, mean, size | 1.000 ● | 1.000 ● |", "| weight magnitude | 0.321 | 0.321 |",
        "| the declared circuit | 0.004 | 0.004 |", "| recall | write | 81.2 % | 81.2 % … 81.2 % |",
        "| causal trace | 0.25 [0.25 … 0.25] | 7 |", "| 3 of 64 | 1.000 [1.000 … 1.000] |", "Measuring took 4 minutes",
        "![scorecard.png](scorecard.png)",
    ):  # fmt: skip
        assert said in text, said
    assert "data:image/png" in page and "<td class=n>1.000 ●</td>" in page and "<summary>4 rows</summary>" in page
    random = text.split("## Random weights")[1].split("##")[0]
    assert "| attribution, mean, size | 0.505 | 0.441 … 0.569 | 4 | 2 | yes |" in random
    assert "| weight magnitude | 0.905 | 0.841 … 0.969 | 4 | 2 | ✗ no |" in random
    assert "| a causal trace, random weights | 50.0 % |" in text.split("## Where nothing is to be found")[1]
    for empty in ("## Edges", "## Probes", "## Dictionaries"):
        assert empty not in text


def test_a_method_that_misses_one_circuit_does_not_find_all() -> None:
    raw = results(part("latch", 0), part("recall", 0, found=False))
    assert headline(raw).startswith("0 of 2 methods find the circuit") and headline(raw).endswith("among 2.")
    shown = content(raw)
    assert markdown(shown, {}).count("0.750") == html(shown, {}).count("0.750") > 0
