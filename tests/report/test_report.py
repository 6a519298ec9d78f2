"""The report room: figures, Markdown, HTML, comparison and W&B from the files of a synthetic run directory."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
import torch

from mechint.analyses.circuits.pages.importance import strongest_of_neighbours
from mechint.analyses.circuits.pages.words import amount, caveats, findings, interval, kept_units
from mechint.analyses.circuits.results import load_results
from mechint.report import figure_style as style
from mechint.report import write_report
from mechint.report.values import Value
from mechint.report.words import flat, percent
from tests.helpers.report_runs import FILES, PNGS, Json, Page, build_run, edit, value

# ---- the report -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_runs_of_the_report_give_the_same_bytes_wherever_they_are_written(tiny: Path, copy: Path) -> None:
    import matplotlib

    matplotlib.rcParams["font.size"] = 20.0  # a user's own settings must not leak into the figures
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(
        json.dumps(manifest | {"date": "2031-01-01T00:00:00+00:00", "seconds": 99, "resumed": []})
    )
    write_report(copy)
    assert matplotlib.rcParams["font.size"] == 20.0
    matplotlib.rcdefaults()
    for name in FILES:
        assert (copy / name).read_bytes() == (tiny / name).read_bytes(), name


def test_figures_are_png_files_without_dates_or_versions(tiny: Path) -> None:
    for name in PNGS:
        data = (tiny / name).read_bytes()
        assert data.startswith(b"\x89PNG") and b"Software" not in data and b"tEXt" not in data


def test_the_page_is_one_well_formed_file_with_the_figures_inside(tiny: Path) -> None:
    text = (tiny / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert "http" not in text.replace("http-equiv", "") and "@import" not in text and "url(" not in text
    addresses = [address for address in page.addresses if not address.startswith("#")]
    assert [address.split(",")[0] for address in addresses] == ["data:image/png;base64"] * 2
    inside = [base64.b64decode(address.split(",")[1]) for address in addresses]
    assert inside == [(tiny / name).read_bytes() for name in PNGS[1:]]  # the first one is drawn as SVG
    words = " ".join(page.words)
    for wanted in (
        "Units kept",
        "of 256 SSM channels",
        "96.1 %",
        "[95.1, 97.1]",
        "21.0 %",
        "78.0 %",
        "CONFIG_KNLP_MECHINT=y",
    ):
        assert wanted in words, wanted


def test_the_curve_of_the_page_shows_the_measured_values(tiny: Path) -> None:
    text = (tiny / "report.html").read_text()
    rows = json.loads(text.split("})(")[1].split(");")[0])
    results = load_results(tiny)
    assert len(rows) == len(results.sizes) and [row["x"] for row in rows] == sorted(row["x"] for row in rows)
    at = results.sizes.index(16)
    assert rows[at]["lines"][0] == "16 SSM channels (6.2 %)"
    assert percent(results.curves["learned"][at].value) in rows[at]["lines"][1]


def test_names_in_the_results_can_not_break_the_page(copy: Path) -> None:
    evil = "</script><script>alert(1)</script>|<b>"
    edit(copy, title=evil, checkpoint=evil, notes=[evil])
    write_report(copy, heatmaps=False, curves=False)
    text = (copy / "report.html").read_text()
    assert text.count("<script>") == 3 and "alert(1)</script>" not in text and Page(text).open == []
    assert "\\|" not in (copy / "circuit_analysis_report.md").read_text().splitlines()[0]


def test_the_markdown_has_every_metric_and_every_kept_unit(tiny: Path) -> None:
    text, results = (tiny / "circuit_analysis_report.md").read_text(), load_results(tiny)
    for name in results.metrics:
        assert f"| {name} |" in text
    for layer in results.layers:
        assert (
            f"| {layer.layer} | {layer.kept} | 128 | {percent(layer.kept / 128)} | {kept_units(layer, 'channel')} |"
            in text
        )
    assert "keeps the trained model's embedding scale" in text and "not comparable in size" in text
    assert all(f"![{name}]({name})" in text for name in PNGS)
    bars = [line.count("|") - line.count("\\|") for line in text.splitlines() if line.startswith("| ")]
    heads = {line.count("|") for line in text.splitlines() if line.startswith("| ---")}
    assert set(bars) == heads  # no row has more or fewer cells than a header


def test_what_is_switched_off_is_not_drawn_and_not_needed(copy: Path) -> None:
    for name in (*FILES, "final_masks.pt", "history.jsonl", "config"):
        (copy / name).unlink()
    written = write_report(copy, heatmaps=False, curves=False, faithfulness=False)
    assert [path.name for path in written] == FILES[3:]
    page = written[1].read_text()
    assert not list(copy.glob("*.png")) and "<img" not in page and "<svg" not in page


@pytest.mark.parametrize(
    "shape",
    [
        {"layers": 24, "channels": 1536, "kept": 900},
        {"states": 16, "unit": "mode", "kept": 60},
        {"unit": "path", "shape": (5,), "kept": 4},
        {"unit": "layer", "shape": (1,), "layers": 24, "kept": 9},
        {"text": True, "seeds": 9, "kept": 256},
    ],
    ids=lambda shape: shape.get("unit", f"{shape.get('layers', 2)} layers"),
)
def test_every_kind_of_unit_and_model_can_be_drawn(shape: Json, tmp_path: Path) -> None:
    others = shape.get("text", False)  # the curves do not depend on the kind of unit: drawn once more, without accuracy
    written = write_report(build_run(tmp_path / "run", **shape), curves=others, faithfulness=others)
    assert written[0].name == PNGS[0 if others else 1] and all(path.stat().st_size > 2000 for path in written)
    if shape.get("unit") == "path":
        assert "| 0 | 2 | 5 | 40.0 % | x, dt |" in written[1].read_text()


def test_strongest_neighbours_keep_their_sign_and_none_is_lost() -> None:
    scores = torch.zeros(10, 1)
    scores[4], scores[7], scores[9] = -3.0, 2.0, 1.0
    assert strongest_of_neighbours(scores, 4).flatten().tolist() == [0.0, -3.0, 2.0, 1.0]
    assert strongest_of_neighbours(scores, 10) is scores


# ---- words ------------------------------------------------------------------------------------------------------


def test_numbers_are_written_as_what_they_are(tiny: Path) -> None:
    results = load_results(tiny)
    written = {
        0.9634: "96.3 %",
        1.0: "100.0 %",
        0.0: "0.0 %",
        -0.02: "−2.0 %",
        0.00078: "0.078 %",
        -1e-9: "0.0 %",
        2e-4: "0.020 %",
    }
    assert {share: percent(share) for share in written} == written
    one = lambda name, measured: amount(name, Value(measured, measured, measured, 1), results)
    assert one("kl", 0.1184) == "0.1184 nats" and one("metric_empty", 3.04) == "3.04 nats"
    assert one("units_kept", 36864) == "36,864"
    assert amount("faithfulness", Value(0.9, -12.0, 13.0, 5), results) == "0.9 times the whole"
    assert interval("faithfulness", Value(0.9, -12.0, 13.0, 5), results) == "[−12.0, 13.0]"
    assert interval("faithfulness", Value(0.9, 0.85, 0.95, 5), results) == "[85.0, 95.0]"
    assert interval("units_kept", Value(16, 16, 16, 1), results) == "–"


def test_results_of_earlier_releases_say_completeness_once(copy: Path) -> None:
    """They have the faithfulness of the complement beside it, which is 1 less the completeness."""
    edit(copy, metrics__complement_faithfulness=value(0.07, 0.02))
    assert "complement_faithfulness" not in load_results(copy).metrics
    write_report(copy, heatmaps=False, curves=False)
    assert "complement_faithfulness" not in (copy / "circuit_analysis_report.md").read_text()


@pytest.mark.usefixtures("no_figures")
def test_good_controls_support_the_circuit_and_bad_ones_warn(copy: Path) -> None:
    assert [finding.good for finding in findings(load_results(copy))] == [True] * 5
    edit(
        copy,
        metrics__faithfulness_random=value(0.95),
        metrics__mask_on_random_weights=value(0.97),
        metrics__mask_for_exchanged_answers=value(0.97),
        metrics__completeness=value(0.01),
        metrics__jaccard=value(0.03, 0.02),
    )
    bad = list(findings(load_results(copy)))
    assert [finding.good for finding in bad] == [False] * 5
    for mask, said in zip(bad[1:3], ("random weights do as well", "a mask alone fits as much"), strict=True):
        assert f"{said}, so faithfulness is NO evidence" in mask.text
    assert "NOT needed" in bad[3].text
    write_report(copy, heatmaps=False, curves=False)
    assert (copy / "circuit_analysis_report.md").read_text().count("✗ **warning:**") == 5
    assert (copy / "report.html").read_text().count("<li class=bad>") == 5
    circuit = load_results(copy).metrics["faithfulness"].value
    edit(copy, metrics__mask_on_random_weights=value(circuit - 0.005), metrics__mask_for_exchanged_answers=value(0.6))
    overlapping, apart = list(findings(load_results(copy)))[1:3]
    assert "NO evidence" in overlapping.text and not apart.good and "a mask alone fits MOST" in apart.text


@pytest.mark.parametrize(
    ("name", "place"),
    [("faithfulness_random", 0), ("mask_on_random_weights", 1), ("completeness", 3), ("jaccard", 4)],
)
def test_a_number_without_an_interval_supports_nothing_and_denies_nothing(name: str, place: int, copy: Path) -> None:
    """One pair of searches that agree wholly does not agree "not more than by chance"."""
    alone = {**value(1.0 if name == "jaccard" else 0.0), "low": None, "high": None, "interval": "one pair"}
    edit(copy, **{f"metrics__{name}": alone})
    found = list(findings(load_results(copy)))[place]
    assert not found.good and "cannot be told" in found.text and "NO" not in found.text


@pytest.mark.usefixtures("no_figures")
def test_a_number_that_was_not_measured_is_not_printed(tmp_path: Path) -> None:
    run = build_run(tmp_path / "text", text=True)
    edit(run, metrics__mask_on_random_weights=None, metrics__mask_for_exchanged_answers=None, metrics__jaccard=None)
    results = load_results(run)
    assert len(list(findings(results))) == 2 and any("no accuracy" in text for text in caveats(results))
    write_report(run)
    for name in FILES[3:]:
        text = (run / name).read_text()
        assert "Stability" not in text and "ccuracy, full" not in text and "nan" not in text.lower().split()


def test_dates_and_durations_stay_out_of_the_reports() -> None:
    facts = {
        "git": {"commit": "abc", "date": "x"},
        "seconds": 3,
        "peak_memory_mib": 1,
        "when": "2026-01-01T00:00",
        "a": None,
    }
    assert list(flat(facts)) == [("a", "–"), ("git.commit", "abc")]


# ---- helpers ----------------------------------------------------------------------------------------------------


def test_ticks_of_log_axes_are_round_and_few() -> None:
    assert style.nice_log_ticks(1, 256) == [1, 2, 5, 10, 20, 50, 100, 200]
    assert len(style.nice_log_ticks(1, 10_000_000)) <= 11
    assert style.nice_log_ticks(0.3, 100, most=9)[0] == 0.5
    assert style.nice_log_ticks(3.9, 16) == [4, 6, 8, 10, 15]
