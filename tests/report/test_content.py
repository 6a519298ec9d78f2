"""One content, two files: every block is in the Markdown and in the HTML, and nothing empty leaves a heading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mechint.report.compose import write_page
from mechint.report.content import (
    Bullets,
    Checks,
    Code,
    Content,
    Links,
    Section,
    Table,
    Text,
    Widget,
    figure,
    of_run,
    table_section,
)
from mechint.report.finished import Drawn, FinishedRun
from mechint.report.html import html
from mechint.report.markdown import markdown
from mechint.report.words import Long
from tests.helpers.report_runs import Page

EVERY = [
    Text("a <paragraph> with `no code`"), Text("run `make check`", code=True), Code("x = 1 < 2"),
    Table(("site", "units"), [("a|b", "3"), ("c", Long("1, 2 …", "1, 2, 3, 4"))], (1,)),
    Table(("folded",), [("inside",)], folded="One row"), Bullets(["first & last"]), Bullets(["deep"], folded="More"),
    Checks([(True, "it holds"), (False, "it fails")]), Links([("a page", "features/a.html")]), Widget("<b>wide</b>"),
]  # fmt: skip


def test_every_block_is_in_both_files() -> None:
    content = Content("A title", [Section("All", EVERY)], ("a<b>.pt", "a model"), "The lead.", [("n", "3", "units")],
                      [("task", "recall")])  # fmt: skip
    text, page = markdown(content, {}), html(content, {})
    Page(page)  # well formed
    for said in (
        "# A title: a<b>.pt\n\nThe lead.\n\na model", "## All", "a <paragraph> with `no code`", "run `make check`",
        "```\nx = 1 < 2\n```", "| a\\|b | 3 |", "| c | 1, 2 … |", "| folded |", "- first & last", "- deep",
        "- ✓ it holds", "- ✗ **warning:** it fails", "- [a page](features/a.html)", "| n | 3 | units |",
        "| task | recall |",
    ):  # fmt: skip
        assert said in text, said
    for said in (
        "<h1>A title</h1>", "a&lt;b&gt;.pt", '<p class="lead">The lead.</p>', "a &lt;paragraph&gt; with `no code`",
        "run <code>make check</code>", "<pre>x = 1 &lt; 2</pre>", "<td>a|b</td><td class=n>3</td>", "1, 2, 3, 4",
        "<summary>1, 2 …</summary>", "<summary>One row</summary>", "first &amp; last", "<summary>More</summary>",
        "<li>it holds</li>", "<li class=bad>it fails</li>", '<a href="features/a.html">a page</a>', "<b>wide</b>",
        "<td>recall</td>",
    ):  # fmt: skip
        assert said in page, said
    assert "wide" not in text and "1, 2, 3, 4" not in text


def test_what_is_empty_leaves_no_heading() -> None:
    empty = [Table(("a",), []), Bullets([]), Checks([]), Links([])]
    never = figure("a.png", "never drawn", (1, 1), None)
    content = Content("t", [Section("Nothing", empty), Section("Figures", [never]), Section("Only text", [Text("x")])])
    for page in (markdown(content, {}), html(content, {})):
        assert "Nothing" not in page and "Figures" not in page and "Only text" in page
    said = Content("t", [table_section("Differences", "of all", ("a",), [])])
    assert "## Differences\n\nof all\n\nNone." in markdown(said, {})


def test_figures_are_drawn_where_they_are_wanted(tmp_path: Path) -> None:
    def line(target: Any, height: float) -> None:
        target.subplots().plot([0, height])

    figures = [figure(name, f"caption of {name}", (1.0, 1.0), line, 2.0) for name in ("a_map.png", "curve.png")]
    content = Content("t", [Section("Figures", figures)])
    written = write_page(tmp_path, content, "t.md", Drawn(heatmaps=False))
    assert [path.name for path in written] == ["curve.png", "t.md", "report.html"]
    text, page = (tmp_path / "t.md").read_text(), (tmp_path / "report.html").read_text()
    assert "![curve.png](curve.png)\n\ncaption of curve.png" in text and "data:image/png" in page
    assert "a_map" not in text + page
    assert len(write_page(tmp_path, content, "t.md", Drawn(curves=False))) == 3


def test_a_run_ends_with_its_caveats_and_how_to_repeat_it() -> None:
    raw = {"title": "SSM circuit", "checkpoint": "a.pt", "config": {"steps": 3}, "task": {"name": "recall"},
           "model": {"family": "mamba", "parameters": 5000, "n_layer": 2, "d_model": 8}}  # fmt: skip
    run = FinishedRun(Path("somewhere"), raw, {}, {"seed": 0, "seconds": 12.0}, "CONFIG_A=y\n")
    content = of_run(run, [table_section("Rows", "said", ("a",), [("b",)])], ["mind this"])
    text, page = markdown(content, {}), html(content, {})
    for both in (text, page):
        assert both.index("Rows") < both.index("Caveats") < both.index("mind this") < both.index("How to repeat")
        assert "CONFIG_A=y" in both and "steps" in both and "mamba, 5,000 parameters, 2 layers of width 8" in both
        assert "seconds" not in both and "seed" in both
    without = of_run(FinishedRun(Path("somewhere"), raw, {}, {}, None), [], [])
    assert "olddefconfig" in text and "olddefconfig" not in markdown(without, {})
    assert "Caveats" not in markdown(without, {})
