"""One page for a dictionary: every feature in a list that is searched and sorted, and one of them in full.

The list holds only the rows that are in sight, so thousands of features scroll as ten do; the data are one JSON object
in the page. Reads what :func:`mechint.analyses.dictionaries.features.save_features` wrote.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...report.content import Content, Section, Widget
from ...report.figure_style import share_label
from ...report.html import html
from ...report.words import gap, legible
from ...utils.errors import MechintError
from ...utils.files import read_json, write_text

SCHEMA = 1
EFFECTS = {
    "loss": "loss, all tokens (nats)",
    "loss_active": "loss where active (nats)",
    "kl_active": "KL where active (nats)",
    "logits": "logits of the raised tokens",
}


def write_dictionary_page(
    features: str | Path | dict[str, Any], path: str | Path, *, title: str = "", causal: dict[str, Any] | None = None
) -> Path:
    """Writes the page of one dictionary.

    Args:
        features: ``features.json``, or what is in it.
        path: The HTML file.
        title: Heading; ``Dictionary`` or ``Transcoder`` where empty.
        causal: Result of :func:`mechint.analyses.dictionaries.causal.causal_effects` for some of the features.

    Raises:
        MechintError: the file is none of ours, or of another schema.
    """
    raw = features if isinstance(features, dict) else read_json(features)
    where = "the features" if isinstance(features, dict) else str(features)
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA or "features" not in raw:
        raise MechintError(f"{where}: no features of schema {SCHEMA}; read the dictionary's features again")
    return write_text(path, html(content(raw, title, causal), {}))


def content(raw: dict[str, Any], title: str = "", causal: dict[str, Any] | None = None) -> Content:
    """The page, from the JSON object of the features."""
    told = raw["features"]
    alive = [feature for feature in told if feature["density"] > 0]
    densities = sorted(feature["density"] for feature in alive)
    middle = share_label(float(f"{densities[len(densities) // 2]:.3g}")) if densities else "none"
    writes = raw.get("writes", "")
    kind = raw["architecture"] + (" transcoder" if writes else "")
    return Content(
        title or ("Transcoder" if writes else "Dictionary"),
        [Section("Features", [Widget(_CONTROLS, _STYLE, _SCRIPT, _compact(raw, causal))])],
        about=(f"{raw['site']} → {writes}" if writes else raw["site"], f"token attribution: {raw['logits']}"),
        cards=[
            ("Features", f"{len(told):,}", f"of {raw['d_sae']:,}, {kind}, d_in {raw['d_in']:,}"),
            ("Active at least once", f"{len(alive):,}", f"on {raw['tokens']:,} tokens, {raw['windows']:,} windows"),
            ("Median density", middle, "share of tokens a living feature is active on"),
        ],
    )


def _compact(raw: dict[str, Any], causal: dict[str, Any] | None) -> dict[str, Any]:
    """The same data in fewer characters: lists instead of objects, tokens by their place in one list."""
    texts = legible({int(token): text for token, text in raw["vocabulary"].items()})
    place = {token: at for at, token in enumerate(texts)}
    window = lambda w: [w["row"], w["from"], w["to"], w["peak"], w["acts"], w.get("interval", 0)]
    pairs = lambda some: [[place[token], value] for token, value in some]
    effects = {entry["id"]: entry for entry in (causal or {}).get("features", ())}
    listed = [
        [
            f["id"], f["density"], f["max"], f["mean"], f["histogram"], [window(w) for w in f["top"]],
            [window(w) for w in f["samples"]], pairs(f.get("raises", ())), pairs(f.get("lowers", ())), f["neighbours"],
            _effect(effects.get(f["id"])),
        ]
        for f in raw["features"]
    ]  # fmt: skip
    rows = {row: [place[token] for token in ids] for row, ids in raw["rows"].items()}
    return {"t": list(texts.values()), "r": rows, "f": listed, "mode": (causal or {}).get("mode", ""),
            "names": EFFECTS, "gap": gap(texts.values())}  # fmt: skip


def _effect(entry: dict[str, Any] | None) -> list[Any]:
    """Name, value, interval and the controls' p of every causal number of a feature."""
    if entry is None:
        return []
    said = lambda name: entry["control"].get(name, {}).get("p")
    return [
        [name, number["value"], number["low"], number["high"], said(name)]
        for name, number in sorted(entry["metrics"].items())
    ]


_CONTROLS = """
<div id="tools">
 <label>Search <input id="find" type="search" placeholder="token in a top context, raised token, or #number"></label>
 <label>Sort by <select id="sort"><option value="1">density</option><option value="2">largest activation</option>
  <option value="3">mean activation</option><option value="9">nearest neighbour</option>
  <option value="10">causal effect</option><option value="0">number</option></select></label>
 <label><input id="up" type="checkbox"> ascending</label>
 <label><input id="dead" type="checkbox"> with dead features</label>
 <span id="count" class="soft"></span>
</div>
<div id="both"><div id="list" tabindex="0" role="listbox" aria-label="Features"><div id="high"></div></div>
<div id="one" aria-live="polite"></div></div>
<div id="tip" hidden></div>
"""

_STYLE = """
body { max-width: 92rem; }
#tools { display: flex; flex-wrap: wrap; gap: .5rem 1.2rem; align-items: center; margin: 1rem 0 .7rem; }
#tools label { max-width: 100%; }
#tools input[type=search] { width: 27rem; } #tools input, #tools select { font: inherit; }
#both { display: grid; grid-template-columns: minmax(20rem, 26rem) 1fr; gap: 1.4rem; align-items: start; }
@media (max-width: 60rem) { #both { grid-template-columns: 1fr; } }
#list { height: 44rem; max-height: 82vh; overflow-y: auto; border: 1px solid var(--line); border-radius: 8px;
  position: relative; }
#high { position: relative; }
.f { position: absolute; left: 0; right: 0; height: 52px; padding: 5px 10px; border-bottom: 1px solid var(--line);
  cursor: pointer; overflow: hidden; white-space: nowrap; }
.f:hover, .f.on { background: var(--card); } .f.on { box-shadow: inset 3px 0 var(--blue); }
.f b { font-variant-numeric: tabular-nums; } .f .n { float: right; color: var(--soft); font-size: .82rem;
  font-variant-numeric: tabular-nums; }
.f .peek { color: var(--soft); font-size: .84rem; text-overflow: ellipsis; overflow: hidden; }
#one { border: 1px solid var(--line); border-radius: 8px; padding: .9rem 1.1rem; min-height: 44rem; min-width: 0; }
#one h2 { margin: 0 0 .4rem; } #one h3 { margin: 1rem 0 .35rem; font-size: .92rem; }
.text { font: 13px/1.75 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; margin: 0 0 .15rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.text .v { display: inline-block; min-width: 4.2rem; color: var(--soft); }
.text i { font-style: normal; border-radius: 2px; } .text i.peak { outline: 1px solid var(--orange); }
.chips span { display: inline-block; background: var(--card); border: 1px solid var(--line); border-radius: 5px;
  padding: .05rem .45rem; margin: 0 .3rem .3rem 0; font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", monospace;
  white-space: pre; }
.chips small { color: var(--soft); margin-left: .4rem; } .chips a { cursor: pointer; color: var(--blue); }
.cols { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 0 1.4rem; }
svg.bars { width: 100%; max-width: 24rem; height: auto; } svg.bars text { fill: var(--soft); font-size: 11px; }
#tip { position: fixed; z-index: 9; pointer-events: none; background: var(--card); border: 1px solid var(--line);
  border-radius: 6px; padding: .25rem .5rem; font-size: .82rem; font-variant-numeric: tabular-nums; white-space: pre; }
"""

_SCRIPT = """
(() => {
  const D = @DATA@, HIGH = 52, el = id => document.getElementById(id);
  const list = el("list"), high = el("high"), one = el("one"), tip = el("tip");
  const make = (tag, cls, text) => { const n = document.createElement(tag); if (cls) n.className = cls;
    if (text !== undefined) n.textContent = text; return n; };
  const minus = text => text.replace("-", "−").replace("e-", "e−");
  const num = v => v === 0 ? "0" : Math.abs(v) >= 1e-3 && Math.abs(v) < 1e5
    ? minus(String(+v.toPrecision(3))) : minus(v.toExponential(1));
  const pct = v => v === 0 ? "never" : num(100 * v) + " %";
  const count = n => n.toLocaleString("en");
  const visible = text => text.replace(/\\n/g, "↵").replace(/\\t/g, "⇥").replace(/\\r/g, "␍");
  const byId = new Map(D.f.map(f => [f[0], f]));
  const peakToken = w => D.t[D.r[w[0]][w[3]]];
  const near = f => f[9].length ? f[9][0][1] : -2;
  const effect = f => { const hit = f[10].find(e => e[0] === "kl_active") || f[10][0];
    return hit ? Math.abs(hit[1]) : -1; };
  const words = new Map();  // made when a search first needs it
  const haystack = f => { if (!words.has(f[0])) words.set(f[0], (f[5].map(w =>
      D.r[w[0]].slice(w[1], w[2]).map(t => D.t[t]).join(D.gap)).join("\\n") + "\\n" +
      f[7].map(p => D.t[p[0]]).join("\\n"))
      .toLowerCase()); return words.get(f[0]); };
  let order = [], chosen = null;
  const refresh = () => {
    const find = el("find").value, key = +el("sort").value, way = el("up").checked ? 1 : -1;
    const value = f => key === 9 ? near(f) : key === 10 ? effect(f) : f[key];
    const needle = find.toLowerCase(), number = /^#\\d+$/.test(find) ? +find.slice(1) : null;
    order = D.f.filter(f => (el("dead").checked || f[1] > 0) &&
      (number !== null ? f[0] === number : !needle || haystack(f).includes(needle)));
    order.sort((a, b) => way * (value(a) - value(b)) || a[0] - b[0]);
    el("count").textContent = count(order.length) + " of " + count(D.f.length) + " features";
    high.style.height = order.length * HIGH + "px"; list.scrollTop = 0; paint();
    if (order.length && !order.includes(chosen)) show(order[0]); };
  const paint = () => {
    const first = Math.max(0, Math.floor(list.scrollTop / HIGH) - 4);
    const last = Math.min(order.length, Math.ceil((list.scrollTop + list.clientHeight) / HIGH) + 4);
    const rows = [];
    for (let k = first; k < last; k++) {
      const f = order[k], row = make("div", f === chosen ? "f on" : "f");
      row.style.top = k * HIGH + "px"; row.dataset.k = k; row.setAttribute("role", "option");
      const head = make("div");
      head.append(make("b", "", "#" + f[0]), make("span", "n", pct(f[1]) + " · max " + num(f[2])));
      const seen = [...new Set(f[5].map(w => visible(peakToken(w)).trim() || "[ ]"))].slice(0, 4).join("  ");
      const lifts = f[7].slice(0, 3).map(p => visible(D.t[p[0]]).trim() || "[ ]").join("  ");
      row.append(head, make("div", "peek", (seen || "never active") + (lifts ? "  →  " + lifts : "")));
      rows.push(row); }
    high.replaceChildren(...rows); };
  const context = (w, top) => {
    const line = make("div", "text"), acts = new Map(w[4]);
    line.append(make("span", "v", num(acts.get(w[3]) || 0)));
    for (let t = w[1]; t < w[2]; t++) {
      if (D.gap && t > w[1]) line.append(D.gap);
      const bit = make("i", t === w[3] ? "peak" : "", visible(D.t[D.r[w[0]][t]])), a = acts.get(t) || 0;
      const share = Math.round(12 + 63 * a / top);
      if (a) bit.style.background = `color-mix(in srgb, var(--orange) ${share}%, transparent)`;
      bit.dataset.tip = "activation " + num(a) + (a ? " (" + Math.round(100 * a / top) + " % of the largest)" : "") +
        "\\nwindow " + w[0] + ", position " + t;
      line.append(bit); }
    return line; };
  const bars = f => {
    const NS = "http://www.w3.org/2000/svg", svg = document.createElementNS(NS, "svg"), n = f[4].length;
    svg.setAttribute("class", "bars"); svg.setAttribute("viewBox", "0 0 360 122");
    const add = (tag, at, text) => { const e = document.createElementNS(NS, tag);
      for (const k in at) e.setAttribute(k, at[k]);
      if (text !== undefined) e.textContent = text; svg.append(e); return e; };
    const most = Math.log1p(Math.max(...f[4]));
    f[4].forEach((c, k) => { const h = most ? 84 * Math.log1p(c) / most : 0;
      const bar = add("rect", {x: 6 + k * 348 / n, y: 92 - h, width: 348 / n - 1.5, height: h, fill: "var(--blue)"});
      const zone = add("rect", {x: 6 + k * 348 / n, y: 0, width: 348 / n, height: 94, fill: "transparent"});
      zone.dataset.tip = count(c) + " tokens with " + num(f[2] * k / n) + " to " + num(f[2] * (k + 1) / n); });
    add("line", {x1: 6, x2: 354, y1: 92.5, y2: 92.5, stroke: "var(--soft)"});
    add("text", {x: 6, y: 106}, "0"); add("text", {x: 354, y: 106, "text-anchor": "end"}, num(f[2]));
    add("text", {x: 180, y: 118, "text-anchor": "middle"}, "activation (tokens on a log scale)");
    return svg; };
  const chips = pairs => { const box = make("div", "chips");
    pairs.forEach(([t, v]) => { const c = make("span", "", visible(D.t[t]));
      c.append(make("small", "", (v > 0 ? "+" : "") + num(v))); box.append(c); });
    return box; };
  const show = f => {
    chosen = f; const parts = [make("h2", "", "Feature " + f[0])];
    parts.push(make("div", "soft", f[1] ? "active on " + pct(f[1]) + " of tokens · mean " + num(f[3]) +
      " where active · largest " + num(f[2]) : "never active on this text"));
    const cols = make("div", "cols"), left = make("div"), right = make("div");
    if (f[4].length) left.append(make("h3", "", "Activations"), bars(f));
    if (f[7].length) { right.append(make("h3", "", "Next tokens raised (logits for each unit)"), chips(f[7]),
      make("h3", "", "Next tokens lowered"), chips(f[8])); }
    if (f[9].length) { right.append(make("h3", "", "Nearest features (cosine of the decoder directions)"));
      const box = make("div", "chips"); f[9].forEach(([j, c]) => { const s = make("span"), a = make("a", "", "#" + j);
        if (byId.has(j)) a.addEventListener("click", () => { show(byId.get(j)); paint(); });
        s.append(a, make("small", "", c.toFixed(2))); box.append(s); }); right.append(box); }
    cols.append(left, right); parts.push(cols);
    if (f[10].length) { parts.push(make("h3", "", "Causal check (" + D.mode + ")"));
      f[10].forEach(([name, v, low, high, p]) => parts.push(make("div", "soft",
        D.names[name] + ": " + num(v) + " [" + num(low) + ", " + num(high) + "]" +
        (p === null ? "" : " · p " + num(p) + " against random features")))); }
    if (f[5].length) { parts.push(make("h3", "", "Strongest contexts"));
      f[5].forEach(w => parts.push(context(w, f[2]))); }
    let said = null;
    f[6].forEach(w => { const key = w[5].join(); if (key !== said) { said = key;
      parts.push(make("h3", "", "Random contexts, strongest activation " + num(w[5][0]) + " to " + num(w[5][1]))); }
      parts.push(context(w, f[2])); });
    one.replaceChildren(...parts); };
  document.addEventListener("pointerover", event => { const text = event.target.dataset && event.target.dataset.tip;
    tip.hidden = !text; if (!text) return; tip.textContent = text;
    tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + "px";
    tip.style.top = event.clientY + 16 + "px"; });
  list.addEventListener("scroll", () => requestAnimationFrame(paint));
  list.addEventListener("click", event => { const row = event.target.closest(".f");
    if (row) { show(order[+row.dataset.k]); paint(); } });
  list.addEventListener("keydown", event => { const step = {ArrowDown: 1, ArrowUp: -1}[event.key]; if (!step) return;
    event.preventDefault(); const k = Math.min(order.length - 1, Math.max(0, order.indexOf(chosen) + step));
    show(order[k]); list.scrollTop = Math.min(list.scrollTop, k * HIGH);
    list.scrollTop = Math.max(list.scrollTop, (k + 1) * HIGH - list.clientHeight); paint(); });
  let wait; el("find").addEventListener("input", () => { clearTimeout(wait); wait = setTimeout(refresh, 120); });
  ["sort", "up", "dead"].forEach(id => el(id).addEventListener("change", refresh));
  const asked = location.hash.match(/^#(\\d+)$/); refresh();
  if (asked && byId.has(+asked[1])) { show(byId.get(+asked[1])); paint(); }
})();
"""
