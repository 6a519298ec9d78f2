"""The style sheet of every page (colours in light and dark, cards, tables, figures; narrow screens and print), and its
script: tables that sort, maps for pointer, touch and keyboard, and contents that stay in sight.

Without a script a page holds the same numbers: tables in the order they were written in, and maps whose cells have a
title each.
"""

from __future__ import annotations

CSS = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5c636b; --paper: #ffffff; --card: #f5f6f7; --line: #dfe2e5;
  --blue: #0072b2; --orange: #b97700; --grey: #767676; --red: #c44e00; --purple: #b0548a; --green: #00805c;
  --shade: #0003; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e7e9; --soft: #a3a9b0; --paper: #17191c; --card: #212428;
  --line: #363b41; --blue: #56b4e9; --orange: #e69f00; --grey: #9a9fa5; --red: #ff8a3d; --purple: #dd9cc2;
  --green: #3cc79a; --shade: #fff3; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 68rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h1 { font-size: 1.55rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .7rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .5rem; }
.soft { color: var(--soft); } .lead { font-size: 1.05rem; max-width: 52rem; }
code, pre { font: 13px/1.45 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .7rem .9rem;
  overflow-x: auto; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .8rem; margin: 1.3rem 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .75rem .9rem; }
.card .what { color: var(--soft); font-size: .82rem; } .card .value { font-size: 1.5rem; font-weight: 650; }
.card .more { color: var(--soft); font-size: .82rem; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; background: linear-gradient(90deg, var(--paper) 40%, transparent) left,
  linear-gradient(270deg, var(--paper) 40%, transparent) right,
  linear-gradient(90deg, var(--shade), transparent) left, linear-gradient(270deg, var(--shade), transparent) right;
  background-repeat: no-repeat; background-size: 3rem 100%, 3rem 100%, .7rem 100%, .7rem 100%;
  background-attachment: local, local, scroll, scroll; }
input, select { max-width: 100%; }
.warning { color: var(--red); }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .35rem .7rem .35rem 0; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; } td.n, th.n { text-align: right; } td.n { white-space: nowrap; }
td .units { overflow-wrap: anywhere; }
figure { margin: 1.2rem 0 2rem; }
figure img { width: 100%; height: auto; background: #fff; border: 1px solid var(--line); border-radius: 8px; }
figcaption { color: var(--soft); font-size: .88rem; margin-top: .4rem; max-width: 52rem; }
ul.findings { list-style: none; padding: 0; } ul.findings li { padding: .2rem 0 .2rem 1.7rem; position: relative; }
ul.findings li::before { position: absolute; left: .2rem; font-weight: 700; content: "✓"; color: var(--green); }
ul.findings li.bad::before { content: "!"; color: var(--red); } ul.findings li.bad { font-weight: 600; }
details summary { cursor: pointer; color: var(--soft); }
a { color: var(--blue); }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; font-size: .88rem; color: var(--soft); margin-bottom: 1.4rem;
  padding-bottom: .6rem; border-bottom: 1px solid var(--line); } nav span { overflow-wrap: anywhere; }
nav a, nav b { margin-right: .35rem; } nav b { color: var(--ink); }
.contents { position: sticky; top: 0; z-index: 2; margin: 0 0 1rem; padding: .3rem 0; font-size: .88rem;
  background: var(--paper); border-bottom: 1px solid var(--line); }
.contents ul { margin: .3rem 0 0; padding: 0; list-style: none; max-height: 70vh; overflow-y: auto; }
.contents li { padding: .12rem 0; } .contents a { text-decoration: none; }
h2, h3 { scroll-margin-top: 3rem; }
@media (min-width: 96rem) { .contents { position: fixed; top: 2rem; left: calc(50% + 35.5rem); width: 12rem;
  border: 0; } }
.find input { font: inherit; padding: .25rem .5rem; min-width: 14rem; color: inherit; background: var(--card);
  border: 1px solid var(--line); border-radius: 6px; } .find output { color: var(--soft); margin-left: .6rem; }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid var(--blue);
  outline-offset: 2px; } th[aria-sort] button::after { content: " ↕"; opacity: .45; }
th[aria-sort=ascending] button::after { content: " ↑"; opacity: 1; }
th[aria-sort=descending] button::after { content: " ↓"; opacity: 1; }
.sortable td { overflow-wrap: anywhere; } .sortable td.n { overflow-wrap: normal; }
.sortable td:nth-child(n + 5) { min-width: 4.5rem; } .sortable tr[hidden] { display: none; }
@media (max-width: 44rem) {
  .sortable table, .sortable thead, .sortable tbody, .sortable tr, .sortable td { display: block; }
  .sortable thead tr { display: flex; flex-wrap: wrap; gap: .1rem .9rem; }
  .sortable th { border: 0; text-align: left; }
  .sortable tbody tr { padding: .6rem 0; border-bottom: 1px solid var(--line); }
  .sortable td, .sortable td.n { display: grid; grid-template-columns: 6.5rem 1fr; text-align: left; border: 0;
    white-space: normal; padding: .1rem 0; }
  .sortable td::before { content: attr(data-name); color: var(--soft); }
}
@media print { body { max-width: none; } details { display: block; } .contents { display: none; } }
"""

REACH = r"""
const reach = (rows, say) => {
  rows.forEach((row, i) => row.forEach((cell, j) => {
    cell.setAttribute("tabindex", i || j ? -1 : 0);
    const tell = () => say(cell);
    for (const event of ["pointerenter", "click", "focus"]) cell.addEventListener(event, tell);
    cell.addEventListener("keydown", event => {
      const ways = {ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1]};
      const [down, right] = ways[event.key] || [];
      if (down === undefined) return;
      const next = (rows[i + down] || [])[j + right];
      event.preventDefault();
      if (!next) return;
      cell.setAttribute("tabindex", -1);
      next.setAttribute("tabindex", 0);
      next.focus();
    });
  }));
};
"""
"""``reach(rows, say)`` makes the cells of a map say what they hold when they are pointed at, tapped, or reached by
arrow keys; Tab enters the map at one cell. It stands before the body, for the scripts of widgets."""

PAGE = r"""
(() => {
  const none = said => said === "" || said === "\u2013";
  const number = said => {
    const found = said.replace(/,/g, "").replace("\u2212", "-").match(/-?\d[\d.]*(?:e[-+]?\d+)?/i);
    return found ? parseFloat(found[0]) : NaN; };
  const sortable = table => {
    const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
    const text = (row, k) => row.cells[k].textContent.trim();
    heads.forEach((head, k) => {
      const numeric = head.classList.contains("n"), missing = said => none(said) || (numeric && isNaN(number(said)));
      const order = (a, b) => numeric ? number(a) - number(b) : a.localeCompare(b, "en", {numeric: true});
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending", sign = up ? 1 : -1;
        heads.forEach(other => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const sorted = [...body.rows].sort((one, two) => {
          const [a, b] = [text(one, k), text(two, k)];
          return missing(a) || missing(b) ? missing(a) - missing(b) : sign * order(a, b);
        });
        body.append(...sorted);
      });
    });
  };
  const searchable = box => {
    const table = box.querySelector("table"), rows = [...table.tBodies[0].rows];
    const heads = [...table.tHead.rows[0].cells];
    for (const row of rows) [...row.cells].forEach((cell, k) => { cell.dataset.name = heads[k].textContent; });
    const find = box.querySelector(".find"), field = find.querySelector("input"), said = find.querySelector("output");
    const search = () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const row of rows) row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word));
      const shown = rows.filter(row => !row.hidden).length;
      said.textContent = words.length ? `${shown} of ${rows.length}` : `${rows.length}`;
    };
    field.addEventListener("input", search);
    find.hidden = false;
    search();
  };
  for (const table of document.querySelectorAll(".wide > table:not([id])")) {
    const named = [...table.tHead.rows[0].cells].every(cell => cell.textContent.trim());
    if (table.closest(".sortable") || (named && table.tBodies[0].rows.length > 3)) sortable(table);
  }
  document.querySelectorAll(".sortable").forEach(searchable);
  document.querySelectorAll(".flows").forEach(flows => {
    const line = document.createElement("p");
    line.className = "soft value";
    line.setAttribute("aria-live", "polite");
    line.textContent = "Point at a cell, tap it, or reach it by Tab and the arrow keys.";
    flows.before(line);
    for (const table of flows.querySelectorAll("table.flow"))
      reach([...table.tBodies[0].rows].map(row => [...row.querySelectorAll("td")]), cell => {
        line.textContent = cell.title; });
  });
  const contents = document.querySelector(".contents details");
  if (contents) {
    const beside = matchMedia("(min-width: 96rem)"), set = () => { contents.open = beside.matches; };
    contents.addEventListener("click", event => { if (event.target.closest("a")) set(); });
    beside.addEventListener("change", set);
    set();
  }
})();
"""
"""At the end of the body: every table with a name above each column and four rows or more sorts by its head, cells
without a value last; a ``sortable`` one has a field to search it, too."""
