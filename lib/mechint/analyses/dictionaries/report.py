"""The report of a grid of sparse autoencoders: sae_report.md and report.html, and a page for each dictionary read."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any

from ...report.compose import write_page
from ...report.content import Checks, Content, Figure, Links, Section, Table, Text, of_run, table_section
from ...report.finished import ALL_FIGURES, Drawn
from ...report.to_log import ToLog
from ...report.values import Value, optional_text
from ...report.words import number, percent, percents, with_interval
from ...utils.files import parse_json, read_json
from ...utils.progress import Progress
from .answer_auroc import ENOUGH
from .feature_browser import write_dictionary_page
from .figures import BASELINES, PLAN, Grid, Member, called, load_grid, worth_drawing
from .kinds import AUTOENCODERS, TRANSCODERS

HEADER = (
    "latents",
    "L0",
    "variance explained",
    "CE recovered (mean)",
    "CE recovered (zero)",
    "KL",
    "dead",
)


def write_sae(run_dir: str | Path, drawn: Drawn = ALL_FIGURES) -> list[Path]:
    """Writes the figures, sae_report.md, report.html, and features/*.html where features were read.

    Args:
        run_dir: Holds results.json and manifest.json; features/{dictionary}.json and features/{dictionary}.causal.json
            where there are any.
        drawn: Figures to draw.
    """
    grid = load_grid(run_dir)
    read = sorted(path for path in (grid.directory / "features").glob("*.json") if ".causal" not in path.name)
    pages: list[Path] = []
    with Progress("pages of features", len(read)) as progress:
        for path in read:
            causal = path.with_suffix(".causal.json")
            found = read_json(causal) if causal.is_file() else None
            pages.append(write_dictionary_page(path, path.with_suffix(".html"), title=path.stem, causal=found))
            progress.step(pages[-1].name)
    written = write_page(grid.directory, content(grid, pages), "sae_report.md", drawn)
    return [*written[:-2], *pages, *written[-2:]]


def content(grid: Grid, pages: list[Path]) -> Content:
    """The page: every dictionary, the figures, baselines, stability, ablated features, and links to their pages."""
    links = Links([(path.stem, f"features/{path.name}") for path in pages])
    shown = Table(header(grid), rows(grid), range(len(header(grid)) - len(HEADER), len(header(grid))))
    every = [
        Section("Evidence", [Checks(findings(grid))]),
        Section(grid.kind.many.capitalize(), [Text("In brackets: 95 % intervals over documents.", soft=True), shown]),
        Section("Figures", figures(grid)),
        *sections(grid),
        Section("Features", [Text(read_by(grid), soft=True), links] if pages else []),
    ]
    said = caveats(grid)
    return of_run(
        grid, every, said, title=grid.kind.title, lead=headline_of(grid), cards=cards(grid), facts=_facts(grid)
    )


def cards(grid: Grid) -> list[tuple[str, str, str]]:
    best = _best(grid)
    recovered = best.metrics.get("ce_recovered_mean")
    end = "_transcoder" if grid.kind == TRANSCODERS else ""
    architectures = {member.group[1].removesuffix(end) for member in grid.trained}
    return [
        (grid.kind.many.capitalize(), str(len(grid.trained)), ", ".join(sorted(architectures))),
        ("Smallest rise of CE", number(best.metrics["ce_increase"].value, 3) + " nats", best.name),
        ("CE recovered there", percent(recovered.value) if recovered else "–", "against the mean"),
        ("L0 there", number(best.metrics["l0"].value, 3), f"of {best.width:,} latents"),
    ]


def figures(grid: Grid) -> list[Figure]:
    return [
        Figure(
            f"sae_{name}_{site}_{architecture}.png",
            f"{called((site, architecture))}. {caption}",
            partial(draw, grid, (site, architecture)),
            kind="heatmaps" if name == "heatmaps" else "curves",
        )
        for site, architecture in grid.groups
        for name, caption, draw in PLAN
        if worth_drawing(grid, (site, architecture), name)
    ]


def _said(value: Value | None, share: bool = False) -> str:
    if value is None:
        return "–"
    if share:
        shown, edges = percents(value.value, value.low, value.high)
    else:
        shown, low, high = (number(each, 3) for each in (value.value, value.low, value.high))
        edges = f"[{low}, {high}]"
    return shown if value.low == value.high else f"{shown} {edges}"


def header(grid: Grid) -> tuple[str, ...]:
    """Columns of :func:`rows`; where there are transcoders, the sites that each reads and writes are one."""
    return (grid.kind.one, *(() if grid.kind == AUTOENCODERS else ("reads → writes",)), *HEADER)


def rows(grid: Grid) -> list[tuple[str, ...]]:
    """Every dictionary, the frozen ones among them."""
    sites = lambda member: (
        () if grid.kind == AUTOENCODERS else (f"{member.reads or member.group[0]} → {member.group[0]}",)
    )
    shares = ("variance_explained", "ce_recovered_mean", "ce_recovered_zero")
    return [
        (
            member.name + (f" ({member.baseline.replace('_', ' ')})" if member.baseline else ""),
            *sites(member),
            f"{member.width:,}",
            number(member.metrics["l0"].value, 3),
            *(_said(member.metrics.get(name), True) for name in shares),
            _said(member.metrics.get("kl")),
            _said(member.metrics.get("dead"), True),
        )
        for member in grid.members
    ]


def baseline_rows(grid: Grid, metric: str = "ce_recovered_mean") -> list[tuple[str, ...]]:
    """The CE that PCA and the neurons recover with as many numbers on a token as each dictionary."""
    return [
        (
            member.name,
            number(member.metrics["l0"].value, 3),
            _said(member.metrics.get(metric), True),
            *(_said(member.baselines.get(name, {}).get(metric), True) for name in BASELINES),
        )
        for member in grid.trained
        if member.baselines
    ]


def stability_rows(grid: Grid) -> list[tuple[str, ...]]:
    def cell(entry: dict[str, Any], name: str) -> str:
        mine, chance = entry.get(name), entry["random"].get(name)
        return "–" if mine is None else f"{mine['value']:.2f} (random {chance['value']:.2f})"

    return [
        (str(entry["of"]), str(entry["pairs"]), *(cell(entry, name) for name in ("matched", "largest", "shared")))
        for entry in grid.raw["sae"].get("stability", ())
    ]


STABILITY = ("dictionaries", "pairs of seeds", "cosine, best matching", "largest cosine", "share above 0.9")


CAUSAL = ("feature", "active tokens", "rise of loss there (nats)", "p", "KL there (nats)", "p")


def causal_rows(grid: Grid) -> list[tuple[str, ...]]:
    """Features ablated one by one; p is the share of random features of like density with as large an effect."""
    found: list[tuple[str, ...]] = []
    for entry in grid.raw["sae"].get("read", ()):
        for feature in entry["features"]:
            cells = [str(entry["name"]), str(feature["id"]), f"{feature['active']:,}"]
            for name in ("loss_active", "kl_active"):
                effect = feature["metrics"].get(name)
                cells.append("–" if effect is None else _number(effect))
                control = feature["control"].get(name)
                cells.append("–" if control is None else f"{control['p']:.2g}")
            found.append(tuple(cells))
    return found


def _number(raw: dict[str, Any]) -> str:
    if raw["low"] is None:
        return number(raw["value"], 3)
    return with_interval(raw["value"], raw["low"], raw["high"])


LABELS = ("answer", "feature", "AUROC, held out", "q", "shuffled labels, 95 %", "features with q ≤ 0.05")


def label_rows(grid: Grid) -> list[tuple[str, ...]]:
    """The feature that tells each answer best, chosen on other prompts than it is measured on."""
    found: list[tuple[str, ...]] = []
    for entry in grid.raw["sae"].get("read", ()):
        for told in (entry.get("labels") or {}).get("classes", ()):
            best = told["features"][0]
            found.append((str(entry["name"]), str(told["name"]), str(best["id"]), _number(best["auroc"]),
                          f"{best['q']:.2g}", f"{told['shuffled']['high']:.3f}", str(told["significant"])))  # fmt: skip
    return found


def few_templates(grid: Grid) -> str:
    """Names the answers whose intervals and q-values are of too few templates to be trusted; empty where none are."""
    few = [
        f"{told['name']} ({auroc['clusters']})"
        for entry in grid.raw["sae"].get("read", ())
        for told in (entry.get("labels") or {}).get("classes", ())
        if (auroc := told["features"][0]["auroc"]).get("clusters", ENOUGH) < ENOUGH
    ]
    named = ", ".join(dict.fromkeys(few))
    return f" Too few templates to trust them: {named}; {ENOUGH} or more are enough." if few else ""


def sections(grid: Grid) -> list[Section]:
    """Every table that has any rows."""
    one = grid.kind.one
    peers = (one, "L0", f"{one}'s own", *(label for label, *_ in BASELINES.values()))
    every = [
        ("CE recovered (mean) beside baselines", "PCA and neurons with as many numbers on a token.", peers,
         baseline_rows(grid)),
        ("Stability across seeds", "Cosines of decoder directions of living latents, beside random directions.",
         STABILITY, stability_rows(grid)),
        ("Features ablated", "Features drawn at random, not chosen for their effect; p compares them with others of "
                             "similar density.", (one, *CAUSAL),
         causal_rows(grid)),
        ("Features and answers", "Latents at the answer's position; chosen on discovery prompts, measured on others. "
                                 f"Intervals and q are over templates.{few_templates(grid)}", (one, *LABELS),
         label_rows(grid)),
    ]  # fmt: skip
    return [
        table_section(title, text, header, found, range(1, len(header)))
        for title, text, header, found in every
        if found
    ]


def findings(grid: Grid) -> list[tuple[bool, str]]:
    found = [(True, headline_of(grid))]
    found += [(False, note) for note in dict.fromkeys(n for m in grid.members for n in m.raw.get("notes", ()))]
    for member in grid.trained:
        mine = member.metrics.get("ce_recovered_mean")
        rivals = [
            (name, peer["ce_recovered_mean"]) for name, peer in member.baselines.items() if "ce_recovered_mean" in peer
        ]
        if mine is None or not rivals:
            continue
        name, rival = max(rivals, key=lambda pair: pair[1].value)
        if rival.value >= mine.value:
            label = BASELINES[name][0]
            found.append((False, f"{member.name} recovers {_said(mine, True)}, no more than {label} with as many "
                                 f"numbers ({_said(rival, True)})."))  # fmt: skip
    for group in grid.groups:
        found += _by_width(grid, group)
    return found


def read_by(grid: Grid) -> str:
    """The rule that chose the dictionaries with pages, and the option that chooses others."""
    rule = grid.raw["sae"].get("read_rule", "those with the smallest rise of the loss")
    rule = "Chosen by their names" if rule == "by name" else f"Chosen by rule: {rule}"
    return f"{rule}. KNLP_MECHINT_SAE_READ_NAMES reads others; KNLP_MECHINT_SAE_READ reads more."


def _by_width(grid: Grid, group: tuple[str, str]) -> list[tuple[bool, str]]:
    """Findings where more latents are worse at one sparsity, beyond the intervals."""
    found = []
    for sparsity in sorted({member.sparsity for member in grid.of(group)}):
        line = [m for m in grid.of(group) if m.sparsity == sparsity and "ce_recovered_mean" in m.metrics]
        line.sort(key=lambda member: member.width)
        for few, many in itertools.pairwise(line):
            a, b = few.metrics["ce_recovered_mean"], many.metrics["ce_recovered_mean"]
            if many.width > few.width and b.high < a.low:
                found.append((False, f"{many.name} recovers less than {few.name}, which has fewer latents: "
                                     f"{_said(b, True)} against {_said(a, True)}."))  # fmt: skip
    return found


def _best(grid: Grid) -> Member:
    return min(grid.trained, key=lambda member: member.metrics["ce_increase"].value)


def caveats(grid: Grid) -> list[str]:
    return [
        *grid.raw.get("notes", ()),
        *(
            entry["labels"]["note"]
            for entry in grid.raw["sae"].get("read", ())
            if (entry.get("labels") or {}).get("note")
        ),
        "CE recovered divides by the loss of an ablation: where the model does almost as well without the site, a small"
        " loss is a large share. Compare the rise of CE and KL too.",
        "A dead latent here is one that fired on no evaluated token; on a short text a rare latent looks the same.",
        "Reconstruction and sparsity do not make features meaningful: the causal checks and the controls decide.",
    ]


def _facts(grid: Grid) -> list[tuple[str, str]]:
    first = grid.members[0]
    frozen = len(grid.members) - len(grid.trained)
    given = bool(grid.raw["config"].get("dictionaries"))
    made = f"{len(grid.members)} given" if given else f"{len(grid.trained)} trained, {frozen} with a frozen half"
    return [
        ("task", f"{grid.raw['task']['name']}: {grid.raw['task'].get('description', '')}"),
        (grid.kind.many, made),
        ("evaluated on", f"{first.raw['tokens']:,} tokens of {first.raw['documents']:,} documents"),
        ("cross-entropy of the model", _said(first.metrics.get("ce"))),
    ]


def headline(run_dir: str | Path) -> str:
    """The result in one sentence."""
    return headline_of(load_grid(run_dir))


def headline_of(grid: Grid) -> str:
    best = _best(grid)
    return (
        f"{best.name} changes the model least: CE rises by {_said(best.metrics.get('ce_increase'))} nats at L0 "
        f"{number(best.metrics['l0'].value, 3)}."
    )


def to_log(run_dir: str | Path) -> ToLog:
    """The curves of every training, and the metrics of every dictionary with their intervals."""
    grid = load_grid(run_dir)
    history = grid.directory / "history.jsonl"
    points = []
    for line_number, line in enumerate((optional_text(history) or "").splitlines(), 1):
        entry = parse_json(line, f"{history} line {line_number}")
        points.append((entry.pop("member"), entry))
    names = list(grid.members[0].metrics)
    columns = [grid.kind.one, "d_sae", *(f"{name}{end}" for name in names for end in ("", "_low", "_high"))]
    found = [[(name, member.metrics.get(name)) for name in names] for member in grid.members]
    data = [
        [member.raw["name"], member.raw["d_sae"], *itertools.chain(*(ends(value) for _, value in values))]
        for member, values in zip(grid.members, found, strict=True)
    ]
    summary = {
        f"mechint/{name}/{member.raw['name']}": value.value
        for member, values in zip(grid.members, found, strict=True)
        for name, value in values
        if value is not None
    }
    return ToLog(summary, {grid.kind.many: (columns, data)}, points)


def ends(value: Value | None) -> tuple[float | None, ...]:
    """A value and both ends of its interval, as three cells of a table."""
    return (None,) * 3 if value is None else (value.value, value.low, value.high)
