"""The report room: figures, Markdown, HTML, comparison and W&B from the files of a synthetic run directory."""

from __future__ import annotations

import base64
import builtins
import html.parser
import json
import math
import shutil
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mechint.errors import MechintError
from mechint.report import log_wandb, style, write_comparison, write_report
from mechint.report.compare import run_names
from mechint.report.importance import strongest_of_neighbours
from mechint.report.results import Value, load_history, load_masks, load_results
from mechint.report.words import amount, caveats, findings, flat, interval, kept_units, percent

Json = dict[str, Any]


def value(x: float, half: float = 0.01, n: int = 256) -> Json:
    return {"value": x, "low": x - half, "high": x + half, "n": n, "interval": "95 % bootstrap over templates"}


def build_run(
    directory: Path,
    layers: int = 2,
    channels: int = 128,
    states: int = 1,
    kept: int = 16,
    unit: str = "channel",
    seeds: int = 3,
    checkpoint: str = "output/final_model_stepV0.pt",
    text: bool = False,
    seed: int = 0,
    shape: tuple[int, ...] | None = None,
) -> Path:
    """A finished run as the analysis writes it: heavy-tailed importance, rising curves, searches and a control."""
    generator = torch.Generator().manual_seed(seed)
    shape = shape or ((channels, states) if states > 1 else (channels,))
    size = math.prod(shape)
    importance = []
    for layer in range(layers):
        heavy = torch.randn(shape, generator=generator, dtype=torch.float64) ** 3 * 0.002 * (1 + (layer % 5 == 1) * 3)
        importance.append(heavy)
    flat = torch.cat([scores.flatten() for scores in importance])
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[flat.abs().topk(kept).indices] = True

    def listed(chosen: torch.Tensor) -> list[Any]:
        units = chosen.reshape(shape).nonzero().tolist()
        if unit == "path":
            return [("x", "z", "dt", "B", "C")[index] for (index,) in units]
        return [unit[0] for unit in units] if len(shape) == 1 else units

    rows, masks = [], {}
    for layer in range(layers):
        chosen = mask[layer * size : (layer + 1) * size]
        rows.append({"layer": layer, "total": size, "kept": int(chosen.sum()), "units": listed(chosen)})
        masks[f"layers.{layer}"] = {
            "logits": torch.where(chosen, 3.0, -3.0).reshape(shape),
            "mask": chosen.reshape(shape),
            "importance": importance[layer],
            "sparsity": 1 - float(chosen.double().mean()),
        }
    total = layers * size
    searches: list[Json] = []
    for index in range(seeds):
        other = mask.clone()
        if index:  # a few units differ
            on, off = mask.nonzero().flatten(), (~mask).nonzero().flatten()
            swap = min(max(1, kept // 6), len(on), len(off))
            other[on[torch.randperm(len(on), generator=generator)[:swap]]] = False
            other[off[torch.randperm(len(off), generator=generator)[:swap]]] = True
        units = [listed(other[layer * size : (layer + 1) * size]) for layer in range(layers)]
        searches.append(
            {
                "name": f"seed {index}",
                "weights": "trained",
                "budget": kept,
                "chosen": index == 0,
                "faithfulness_discovery": 0.96 - 0.004 * index,
                "units": units,
            }
        )
    sizes = sorted(
        {max(1, round(total * share)) for share in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)} | {kept}
    )
    learned = [1 - math.exp(-3.2 * size_ / kept) for size_ in sizes]
    results: Json = {
        "schema": 1,
        "analysis": "ssm",
        "title": "SSM circuit",
        "checkpoint": checkpoint,
        "status": "complete",
        "model": {"family": "mamba", "parameters": 70_912, "n_layer": layers, "d_model": 64, "sha256": "ab" * 32},
        "task": {
            "name": "text" if text else "recall",
            "description": "the next token of plain text" if text else "multi-query associative recall, 4 pairs",
            "discovery_prompts": 256,
            "evaluation_prompts": 256,
            "accuracy": None if text else 0.998,
        },
        "config": {
            "unit": unit,
            "ablation": "mean",
            "search": "smallest",
            "target_faithfulness": 0.95,
            "seeds": seeds,
            "steps": 200,
        },
        "unit": unit,
        "ablation": "mean",
        "metric": "kl",
        "metrics": {
            "units_total": value(total, 0, total),
            "units_kept": value(kept, 0, total),
            "faithfulness": value(0.961 - 0.01 * seed),
            "completeness": value(0.93, 0.02),
            "complement_faithfulness": value(0.07, 0.02),
            "kl": value(0.118, 0.02),
            "metric_full": value(0.0, 0.0),
            "metric_empty": value(3.04, 0.05),
            "faithfulness_random": {"value": 0.041, "low": -0.02, "high": 0.11, "n": 20},
            "faithfulness_random_weights": value(0.21, 0.03),
            "jaccard": {"value": 0.78, "low": 0.71, "high": 0.86, "n": seeds},
            "cpr": value(0.93),
            "cmd": value(0.07),
        },
        "curve": {
            "size": sizes,
            "fraction": [size_ / total for size_ in sizes],
            "learned": [value(y, 0.02 * (1 - y) + 0.004) for y in learned],
            "attribution": [value(y**1.8, 0.03 * (1 - y) + 0.004) for y in learned],
            "random": [
                {
                    "value": (s / total) ** 1.5,
                    "low": (s / total) ** 1.5 - 0.06 * (1 - s / total),
                    "high": (s / total) ** 0.8,
                    "n": 20,
                }
                for s in sizes
            ],
        },
        "layers": rows,
        "searches": searches,
        "notes": ["The random-weights control keeps the trained model's embedding scale."],
    }
    if not text:
        results["metrics"] |= {"accuracy_full": value(0.998, 0.004), "accuracy_circuit": value(0.974, 0.012)}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "results.json").write_text(json.dumps(results))
    torch.save(masks, directory / "final_masks.pt")
    history = []
    for number, (name, goal) in enumerate(
        [
            ("descent", 1),
            (f"size {2 * kept}", 2 * kept),
            *((s["name"], kept) for s in searches),
            ("random weights", kept),
        ]
    ):
        for step in range(0, 200, 5):
            budget = max(goal, total * (goal / total) ** min(1.0, step / 150))
            metric = (0.004 if name.startswith("random") else 0.1 + 0.02 * number) * (1 - math.exp(-step / 60))
            metric *= 1 + 0.05 * math.sin(step + number)
            history.append(
                {
                    "search": name,
                    "weights": "random" if name.startswith("random") else "trained",
                    "step": step,
                    "loss": metric + (0 if text else 0.3 * math.exp(-step / 50)),
                    "metric": metric,
                    "budget": budget,
                    "kept": round(budget * (1.02 + 0.01 * number)),
                }
            )
    (directory / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history))
    manifest = {
        "versions": {"mechint": "0.1.0", "torch": "2.13.0", "python": "3.11.2"},
        "git": {"commit": "0123abc", "dirty": False},
        "device": "cpu",
        "dtype": "float32",
        "seeds": list(range(seeds)),
        "data": {"discovery": "cd" * 32},
        "date": "2026-11-21T10:00:00+00:00",
        "resumed": ["descent"],
        "peak_memory_mib": 612,
        "seconds": 41.5,
    }
    (directory / "manifest.json").write_text(json.dumps(manifest))
    (directory / "config").write_text("CONFIG_KNLP_MECHINT=y\nCONFIG_KNLP_MECHINT_SSM=y\n")
    return directory


PNGS = ["ssm_channel_importance.png", "sparsity_curves.png", "faithfulness_curve.png"]
FILES = [*PNGS, "circuit_analysis_report.md", "report.html"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its report written; tests that change files take a copy."""
    run = build_run(tmp_path_factory.mktemp("runs") / "stepV0")
    assert [path.name for path in write_report(run)] == FILES
    return run


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "stepV0"))


def edit(run: Path, **changes: Any) -> None:
    """Changes entries of results.json; ``a__b`` is the entry b of a, and None removes an entry."""
    path = run / "results.json"
    raw = json.loads(path.read_text())
    for key, new in changes.items():
        *parents, last = key.split("__")
        entry = raw
        for parent in parents:
            entry = entry[parent]
        if new is None:
            del entry[last]
        else:
            entry[last] = new
    path.write_text(json.dumps(raw))


def one_line(error: pytest.ExceptionInfo[MechintError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# ---- the report -------------------------------------------------------------------------------------------------


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


class Page(html.parser.HTMLParser):
    """Collects what a browser would fetch, the text, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "img", "line", "circle", "polygon", "polyline", "path"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_is_one_well_formed_file_with_the_figures_inside(tiny: Path) -> None:
    text = (tiny / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert "http" not in text.replace("http-equiv", "") and "@import" not in text and "url(" not in text
    assert [address.split(",")[0] for address in page.addresses] == ["data:image/png;base64"] * 2
    inside = [base64.b64decode(address.split(",")[1]) for address in page.addresses]
    assert inside == [(tiny / name).read_bytes() for name in PNGS[:2]]  # the third one is drawn as SVG
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
    assert text.count("<script>") == 1 and "alert(1)</script>" not in text and Page(text).open == []
    assert "\\|" not in (copy / "circuit_analysis_report.md").read_text().splitlines()[0]


def test_the_markdown_has_every_metric_and_every_kept_unit(tiny: Path) -> None:
    text, results = (tiny / "circuit_analysis_report.md").read_text(), load_results(tiny)
    for name in results.metrics:
        assert f"(`{name}`)" in text
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
    assert written[0].name == PNGS[0] and all(path.stat().st_size > 2000 for path in written)
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
    assert amount("kl", 0.1184, results) == "0.1184 nats" and amount("metric_empty", 3.04, results) == "3.04 nats"
    assert amount("units_kept", 36864, results) == "36,864"
    assert interval("faithfulness", Value(0.9, 0.85, 0.95, 5), results) == "[85.0, 95.0]"
    assert interval("units_kept", Value(16, 16, 16, 1), results) == "–"


def test_good_controls_support_the_circuit_and_bad_ones_warn(copy: Path) -> None:
    assert [finding.good for finding in findings(load_results(copy))] == [True] * 4
    edit(
        copy,
        metrics__faithfulness_random=value(0.95),
        metrics__faithfulness_random_weights=value(0.97),
        metrics__complement_faithfulness=value(0.99),
        metrics__jaccard=value(0.03, 0.02),
    )
    bad = list(findings(load_results(copy)))
    assert [finding.good for finding in bad] == [False] * 4
    assert "NO evidence" in bad[1].text and "NOT needed" in bad[2].text
    write_report(copy, heatmaps=False, curves=False)
    assert (copy / "circuit_analysis_report.md").read_text().count("✗ **warning:**") == 4
    assert (copy / "report.html").read_text().count("<li class=bad>") == 4


def test_a_number_that_was_not_measured_is_not_printed(tmp_path: Path) -> None:
    run = build_run(tmp_path / "text", text=True)
    edit(run, metrics__faithfulness_random_weights=None, metrics__jaccard=None)
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


# ---- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": 2}, "schema 2"),
        ({"status": "running"}, "status 'running'"),
        ({"layers": None}, "'layers'"),
        ({"metrics__faithfulness": None}, "'faithfulness'"),
        ({"metrics__kl": {"value": 1.0}}, "metrics.kl"),
        ({"metrics__kl": value(math.nan)}, "not finite"),
        ({"metrics__units_kept": value(17, 0)}, "contradicts itself"),
        ({"curve__learned": [value(1.0)]}, "curve.learned"),
        ({"curve__size": [3, 2, 1]}, "curve.size"),
        ({"layers": [{"layer": 0, "total": 128, "kept": 2, "units": [1]}]}, "layers"),
        ({"searches": [{"name": "seed 0"}]}, "searches"),
    ],
)
def test_a_results_file_that_is_not_right_is_named_in_one_line(changes: Json, words: str, copy: Path) -> None:
    edit(copy, **changes)
    with pytest.raises(MechintError) as error:
        write_report(copy)
    assert str(copy / "results.json") in one_line(error) and words in str(error.value)


@pytest.mark.parametrize("name", ["results.json", "manifest.json", "history.jsonl", "final_masks.pt"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe\x00"], ids=["missing", "empty", "cut", "binary"])
def test_a_file_that_is_missing_or_broken_is_named_in_one_line(name: str, content: bytes | None, copy: Path) -> None:
    before = (copy / "report.html").read_bytes()
    (copy / name).unlink()
    if content is not None:
        (copy / name).write_bytes(content)
    with pytest.raises(MechintError) as error:
        write_report(copy)
    assert str(copy / name) in one_line(error)
    assert (copy / "report.html").read_bytes() == before


def test_masks_of_another_run_are_refused(copy: Path, tmp_path: Path) -> None:
    other = build_run(tmp_path / "other", seed=1)
    shutil.copy(other / "final_masks.pt", copy / "final_masks.pt")
    with pytest.raises(MechintError, match="from different runs"):
        write_report(copy)


def test_masks_that_would_run_code_are_refused(copy: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (copy / "ran",))

    torch.save({"layers.0": Evil()}, copy / "final_masks.pt")
    with pytest.raises(MechintError, match=r"final_masks\.pt"):
        load_masks(load_results(copy))
    assert not (copy / "ran").exists()


def test_a_history_line_that_is_not_a_step_is_named(copy: Path) -> None:
    lines = (copy / "history.jsonl").read_text().splitlines()
    lines[4] = lines[4][:-20]
    (copy / "history.jsonl").write_text("\n".join(lines))
    with pytest.raises(MechintError, match=r"history\.jsonl line 5"):
        load_history(load_results(copy))


def test_the_first_seed_may_be_logged_as_the_search_that_found_the_size(copy: Path) -> None:
    text = (copy / "history.jsonl").read_text()
    (copy / "history.jsonl").write_text(text.replace('"seed 0"', '"size 16"'))
    traces = {trace.name: trace for trace in load_history(load_results(copy))}
    assert list(traces) == ["descent", "size 32", "seed 0", "seed 1", "seed 2", "random weights"]
    assert [name for name, trace in traces.items() if trace.final] == ["seed 0", "seed 1", "seed 2"]


# ---- the comparison ---------------------------------------------------------------------------------------------


def test_a_comparison_keeps_the_order_and_measures_the_overlap(tmp_path: Path) -> None:
    runs = [build_run(tmp_path / "out" / name, seed=seed) for seed, name in enumerate(("stepV2", "stepV10", "stepV1"))]
    written = write_comparison(list(runs), tmp_path / "out")
    assert sorted(path.suffix for path in written) == [".html", ".json", ".md", ".png"]
    data = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [run["directory"] for run in data["runs"]] == ["stepV2", "stepV10", "stepV1"]
    sets = [load_results(run).circuit for run in runs]
    assert data["jaccard"][0][1] == pytest.approx(len(sets[0] & sets[1]) / len(sets[0] | sets[1])) != 1.0
    assert [data["jaccard"][i][i] for i in range(3)] == [1.0, 1.0, 1.0]
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert text.index("| stepV2 | 16 of 256") < text.index("| stepV10 | 16 of 256") < text.index("| stepV1 | 16 of 256")
    assert Page((tmp_path / "out" / "comparison.html").read_text()).open == []
    before = {path: path.read_bytes() for path in written}
    write_comparison(list(runs), tmp_path / "out")
    assert all(path.read_bytes() == data for path, data in before.items())


def test_models_of_different_shape_have_no_overlap_and_the_report_says_so(tmp_path: Path) -> None:
    runs = [build_run(tmp_path / "a"), build_run(tmp_path / "b", layers=3), build_run(tmp_path / "c", text=True)]
    edit(runs[2], ablation="zero")
    write_comparison(runs, tmp_path)
    assert json.loads((tmp_path / "comparison.json").read_text())["jaccard"] is None
    text = (tmp_path / "comparison.md").read_text()
    assert "no units in common" in text and "differ in ablation (mean, zero)" in text and "Jaccard):" not in text


def test_runs_that_can_not_be_compared_are_refused(tmp_path: Path) -> None:
    one, two = build_run(tmp_path / "a"), build_run(tmp_path / "b")
    with pytest.raises(MechintError, match="at least two"):
        write_comparison([one], tmp_path)
    with pytest.raises(MechintError, match="named twice"):
        write_comparison([one, one], tmp_path)
    edit(two, analysis="kv")
    with pytest.raises(MechintError, match="kv, ssm"):
        write_comparison([one, two], tmp_path)
    assert run_names([Path("/x/a/ssm"), Path("/x/b/ssm")]) == ["a/ssm", "b/ssm"]


def study(tmp_path: Path, variants: list[str]) -> list[Path]:
    runs = []
    for number, variant in enumerate(variants):
        run = build_run(tmp_path / f"stepV{number}", seed=number)
        raw = json.loads((run / "results.json").read_text())
        edit(
            run,
            model={**raw["model"], "variant": variant},
            metrics__faithfulness=value(0.5 + 0.4 * ("tied" in variant)),
        )
        runs.append(run)
    return runs


def test_variants_are_named_and_held_against_training_seeds(tmp_path: Path) -> None:
    seeds = ["baseline", "seed=1", "seed=2", "seed=3"]
    runs = study(tmp_path, [*seeds, *(f"kv=tied+{s}" if "=" in s else "kv=tied" for s in seeds)])
    write_comparison(runs, tmp_path / "out")
    found = json.loads((tmp_path / "out/comparison.json").read_text())
    assert found["noise"]["kind"] == "training" and found["runs"][5]["variant"] == "kv=tied+seed=1"
    by_name = {entry["quantity"]: entry for entry in found["differences"]}
    best = by_name["faithfulness"]
    assert (best["one"], best["other"], best["counts"]) == ("baseline", "kv=tied", [4, 4])
    assert best["p"] == pytest.approx(2 / 70) and best["adjusted"] >= best["p"]
    text = (tmp_path / "out/comparison.md").read_text()
    assert "To one unit, all keep the same share" in text and "smallest share" not in text.split("\n\n")[1]
    assert "stepV5 (kv=tied+seed=1)" in text and "Held against models of a variant" in text


def test_without_training_seeds_the_noise_is_that_of_the_search(tmp_path: Path) -> None:
    write_comparison(study(tmp_path, ["baseline", "kv=tied"]), tmp_path / "out")
    found = json.loads((tmp_path / "out/comparison.json").read_text())
    assert found["noise"]["kind"] == "search" and "nothing of another training" in found["noise"]["meaning"]
    assert all(entry["least"] >= 0.1 for entry in found["differences"])
    assert "With so few seeds none could" in (tmp_path / "out/comparison.html").read_text()


# ---- W&B --------------------------------------------------------------------------------------------------------


def wandb_records(directory: Path) -> list[Any]:
    """The records of an offline run: LevelDB's log format (blocks of 32 KiB; crc, length, type) of protobufs."""
    from wandb.proto import wandb_internal_pb2

    data, at, parts, records = next(directory.glob("*.wandb")).read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # too little room for a header: the rest of the block is padding
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            records.append(record)
            parts = b""
    return records


def summary_of(records: list[Any]) -> Json:
    found: Json = {}
    for record in records:
        if record.WhichOneof("record_type") == "summary":
            items = record.summary.update
            found |= {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
    return found


@pytest.fixture
def quiet_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """W&B confined to a directory of the test, with no account."""
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_RUN_ID", "WANDB_SERVICE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "NETRC", "WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.setenv(name, str(folder / "netrc") if name == "NETRC" else str(folder))
    return tmp_path


def test_an_offline_run_holds_the_summary_the_curves_the_tables_and_the_masks(
    tiny: Path, quiet_wandb: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    directory = log_wandb(tiny, "a project", "stepV0")
    assert directory.is_relative_to(quiet_wandb / "WANDB_DIR") and directory.name.startswith("offline-run-")
    records, patience = wandb_records(directory), time.monotonic() + 60  # W&B's own process writes, maybe a bit later
    while "mechint/sparsity" not in summary_of(records) and time.monotonic() < patience:
        time.sleep(0.2)
        records = wandb_records(directory)
    summary = summary_of(records)
    history: list[Json] = []
    artifacts = []
    for record in records:
        kind = record.WhichOneof("record_type")
        if kind == "history":
            items = record.history.item
            history.append({"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items})
        elif kind in ("artifact", "request"):
            artifacts.append(str(record))
    results = load_results(tiny)
    assert summary["mechint/sparsity"] == pytest.approx(1 - 16 / 256)
    assert summary["mechint/faithfulness"] == results.metrics["faithfulness"].value
    assert summary["mechint/faithfulness_random_weights_high"] == pytest.approx(0.24)
    trace = next(trace for trace in load_history(results) if trace.name == "seed 0")
    assert summary["mechint/loss"] == trace.steps[-1]["loss"]
    curve = [row["mechint/loss/seed 0"] for row in history if "mechint/loss/seed 0" in row]
    assert curve == trace.column("loss")
    assert any("final_masks.pt" in text for text in artifacts)
    files = {path.name.split("_")[0]: path for path in (directory / "files" / "media").rglob("*") if path.is_file()}
    assert {"metrics", "layers", "faithfulness", "manifest", "ssm", "sparsity"} <= set(files)
    rows = json.loads(files["layers"].read_text())["data"]
    assert [row[2] for row in rows] == [layer.kept for layer in results.layers]


def test_without_an_account_the_login_is_refused_in_one_line(
    tiny: Path, quiet_wandb: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(MechintError, match="wandb login") as error:
        log_wandb(tiny, "project", "run")
    assert "WANDB_MODE=offline" in one_line(error)


def test_a_missing_package_is_named(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name == "wandb":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MechintError, match="pip install wandb"):
        log_wandb(tiny, "project", "run")


# ---- helpers ----------------------------------------------------------------------------------------------------


def test_ticks_of_log_axes_are_round_and_few() -> None:
    assert style.nice_log_ticks(1, 256) == [1, 2, 5, 10, 20, 50, 100, 200]
    assert len(style.nice_log_ticks(1, 10_000_000)) <= 11
    assert style.nice_log_ticks(0.3, 100, most=9)[0] == 0.5
    assert style.nice_log_ticks(3.9, 16) == [4, 6, 8, 10, 15]
