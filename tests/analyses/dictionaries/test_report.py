"""The report of a grid and the page of a dictionary: every number from results.json, bad files refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mechint import MechintError
from mechint.analyses.dictionaries import feature_browser as dictionary_page
from mechint.analyses.dictionaries.feature_browser import write_dictionary_page
from mechint.analyses.dictionaries.figures import METRICS, load_grid, table_of
from mechint.report import write_report
from tests.helpers.dictionary_runs import features, member, number, results, write_run


@pytest.mark.slow
def test_the_report_has_every_dictionary_and_the_same_bytes_twice(tmp_path: Path) -> None:
    raw = results()
    run = write_run(tmp_path / "run", raw)
    (run / "features").mkdir()
    (run / "features" / "one.json").write_text(json.dumps(features()))
    written = write_report(run)
    names = [path.name for path in written]
    stem = "layers.0.out_topk.png"
    assert names == [
        f"sae_curves_{stem}",
        f"sae_heatmaps_{stem}",
        f"sae_densities_{stem}",
        "one.html",
        "sae_report.md",
        "report.html",
    ]
    text = (run / "sae_report.md").read_text()
    for entry in raw["sae"]["members"]:
        assert entry["name"] in text
    assert "a note of the run" in text and "[one](features/one.html)" in text and "0.60 (random 0.20)" in text
    assert "frozen decoder" in text
    before = {path.name: path.read_bytes() for path in written}
    assert {path.name: path.read_bytes() for path in write_report(run)} == before


def test_characters_are_shown_without_their_quotes_and_other_tokens_as_they_are() -> None:
    shown = "the 'n\\" + '"\n\x17'
    names = {ord(c): repr(c) for c in shown} | {200: "byte 200"}
    expected = {ord(c): c for c in shown if c != "\x17"} | {200: "⟨200⟩", 0x17: "⟨23⟩"}
    assert dictionary_page.legible(names) == expected
    words = {1: "'s'", 2: " the"}
    assert dictionary_page.legible(words) == words


def test_means_over_seeds_and_holes(tmp_path: Path) -> None:
    raw = results()
    raw["sae"]["members"] = [member(4, 256, 0), member(4, 256, 1), member(8, 512, 0)]
    raw["sae"]["members"][1]["metrics"]["kl"] = number(1.0)
    grid = load_grid(write_run(tmp_path, raw))
    sparsities, widths, values = table_of(grid.trained, "kl")
    assert (sparsities, widths) == ([4, 8], [256, 512])
    assert values[0, 0] == pytest.approx((grid.members[0].metrics["kl"].value + 1) / 2)
    assert str(values[0, 1]) == "nan" and set(METRICS) > {"kl"}


def test_warnings_name_what_is_worse(tmp_path: Path) -> None:
    raw = results()
    raw["sae"]["members"] = [member(4, 256), member(4, 512)]
    raw["sae"]["members"][1]["metrics"]["ce_recovered_mean"] = number(0.1)
    write_report(write_run(tmp_path, raw), heatmaps=False, curves=False)
    text = (tmp_path / "sae_report.md").read_text()
    assert "topk-k4-512-s0 recovers less than topk-k4-256-s0, which has fewer latents" in text
    assert re.search(r"warning:\*\* topk-k4-512-s0 recovers .*no more than PCA", text)


@pytest.mark.parametrize("broken", ["schema", "metrics", "sparsity", "density", "members", "value"])
def test_broken_results_are_refused(tmp_path: Path, broken: str) -> None:
    raw = results()
    first = raw["sae"]["members"][0]
    if broken == "schema":
        raw["schema"] = 99
    elif broken == "members":
        raw["sae"]["members"] = []
    elif broken == "value":
        first["metrics"]["kl"]["value"] = "much"
    else:
        del first[broken]
    with pytest.raises(MechintError, match=r"results\.json"):
        write_report(write_run(tmp_path, raw))
    assert not list(tmp_path.glob("*.html"))


def test_the_page_of_a_dictionary_is_closed_and_holds_its_data(tmp_path: Path) -> None:
    causal = {"mode": "ablate", "features": [{"id": 1, "metrics": {"kl_active": number(0.3)},
                                              "control": {"kl_active": {"values": [0.1], "p": 0.5}}}]}  # fmt: skip
    path = write_dictionary_page(features(), tmp_path / "page.html", title="a <title>", causal=causal)
    text = path.read_text()
    assert text.count("</script>") == 3 and "a &lt;title&gt;" in text and "default-src 'none'" in text
    data = json.loads(re.search(r"const D = (.*?), HIGH = ", text).group(1))  # type: ignore[union-attr]
    assert data["t"] == ["<b>", "</script>", "x"] and [f[0] for f in data["f"]] == [0, 1, 2]
    assert data["f"][1][10] == [["kl_active", 0.3, 0.29, 0.31, 0.5]] and data["f"][2][5][0][:4] == [3, 0, 3, 1]
    (tmp_path / "old.json").write_text("{}")
    with pytest.raises(MechintError, match="no features of schema 1"):
        write_dictionary_page(tmp_path / "old.json", tmp_path / "other.html")
