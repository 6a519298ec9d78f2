"""The map of the page: every layer and position of some prompts, with the likeliest tokens of each cell."""

from __future__ import annotations

from typing import Any

from ...report.content import Widget
from .figures import row_name


def prompt_map(examples: list[dict[str, Any]], kind: str = "lens") -> Widget:
    """Layers down (the last on top) and tokens across; lists choose the prompt, the lens and the colour.

    Args:
        kind: Word behind the name of each reading, and of their list.
    """
    views = [
        {
            "prompt": f"{k + 1}: {' '.join(example['tokens'])} → {example['answer']}",
            "tokens": example["tokens"],
            "answer": example["answer"],
            "lenses": {
                f"{name} {kind}": {
                    **entry,
                    "sites": [row_name(site.rpartition(".")[2], int(site.split(".")[1])) for site in entry["sites"]],
                }
                for name, entry in example["lenses"].items()
            },
        }
        for k, example in enumerate(examples)
    ]
    shown = (
        '<p><label>Prompt <select id="lens-prompt"></select></label> '
        f'<label>{kind.capitalize()} <select id="lens-name"></select></label> '
        '<label>Colour <select id="lens-colour"></select></label></p>'
        '<div class="wide"><table id="lens-map"></table></div>'
        '<p id="lens-value" class="soft" aria-live="polite">Point at a cell, tap it, or reach it by Tab and the '
        "arrow keys.</p>"
    )
    return Widget(shown, STYLE, SCRIPT, views)


STYLE = """
#lens-map { width: auto; font-size: .8rem; } #lens-map th { white-space: nowrap; padding: .2rem .5rem .2rem 0; }
#lens-map td { padding: .2rem .35rem; white-space: nowrap; max-width: 6.5rem; overflow: hidden;
  text-overflow: ellipsis; border: 1px solid var(--paper); cursor: default; }
#lens-map th:first-child { position: sticky; left: 0; background: var(--paper); z-index: 1; }
#lens-map thead th, #lens-map tfoot th { max-width: 6.5rem; overflow: hidden; text-overflow: ellipsis; }
#lens-map td:focus, #lens-map td:hover { outline: 2px solid var(--ink); outline-offset: -2px; }
#lens-value { min-height: 3em; font-variant-numeric: tabular-nums; } #lens-prompt { max-width: min(26rem, 100%); }
"""

SCRIPT = """
(() => {
  const views = @DATA@, table = document.getElementById("lens-map"), say = document.getElementById("lens-value");
  const prompt = document.getElementById("lens-prompt"), lens = document.getElementById("lens-name");
  const colour = document.getElementById("lens-colour");
  const shares = {
    "probability of the likeliest token": (entry, i, j) => entry.probability[i][j][0],
    "probability of the answer": (entry, i, j) => entry.answer[i][j],
    "rank of the answer": (entry, i, j) => 1 / entry.rank[i][j],
    "KL to the model's prediction": (entry, i, j) => 1 - Math.exp(-entry.kl[i][j]) };
  const fill = (list, values) => values.forEach((text, k) => {
    const entry = document.createElement("option"); entry.value = k; entry.textContent = text; list.append(entry); });
  const names = Object.keys(views[0].lenses), kinds = Object.keys(shares);
  fill(prompt, views.map(view => view.prompt)); fill(lens, names); fill(colour, kinds);
  const make = (tag, text, above) => {
    const node = document.createElement(tag); node.textContent = text; above.append(node); return node; };
  const visible = text => {
    const shown = text.replace(/\\n/g, "⏎");
    return shown.trim() ? shown : shown.replace(/ /g, "␣"); };  // a cell of spaces would look empty
  const size = value => value >= 0.001 || value === 0 ? value.toFixed(3) : value.toExponential(1);
  const draw = () => {
    const view = views[prompt.value], name = names[lens.value], entry = view.lenses[name];
    const share = shares[kinds[colour.value]];
    table.replaceChildren();
    for (const part of ["thead", "tbody"]) make(part, "", table);
    const head = make("tr", "", table.tHead);
    make("th", "", head); view.tokens.forEach(token => { make("th", visible(token), head).title = token; });
    const cells = [];
    for (let i = entry.sites.length - 1; i >= 0; i--) {
      cells.push([]);
      const row = make("tr", "", table.tBodies[0]);
      make("th", entry.sites[i], row);
      view.tokens.forEach((token, j) => {
        const cell = make("td", visible(entry.top[i][j][0]), row);
        cell.style.background = `rgba(0, 114, 178, ${(0.7 * Math.min(1, share(entry, i, j))).toFixed(3)})`;
        cell.tell = () => {
          const best = entry.top[i][j].map((text, k) => `“${visible(text)}” ${size(entry.probability[i][j][k])}`);
          say.textContent = `${name}, ${entry.sites[i]}, behind token ${j} “${visible(token)}”: ${best.join(", ")}. ` +
            `Answer “${visible(view.answer)}”: probability ${size(entry.answer[i][j])}, rank ${entry.rank[i][j]}. ` +
            `KL ${size(entry.kl[i][j])} nats.`; };
        cells.at(-1).push(cell); }); }
    reach(cells, cell => cell.tell()); };
  for (const list of [prompt, lens, colour]) list.addEventListener("change", draw);
  draw();
})();
"""
