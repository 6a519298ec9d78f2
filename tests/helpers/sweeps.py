"""Sweeps of many edits, and the same edits run one by one."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from hypothesis import strategies as st

from mechint import Edit
from mechint.interventions.edits import CUTS, check_edits
from mechint.interventions.taps import Tap

ROWS, LENGTH = 2, 6


def one_by_one(model: Any, prompts: torch.Tensor, cells: Any, base: Any = (), logits_at: Any = None) -> torch.Tensor:
    """The slow, obvious reference: base and cell in one run each."""
    with torch.no_grad():
        runs = []
        for cell in cells:
            merged = {}
            for k, edit in enumerate([*base, *cell]):
                merged[k] = edit
            runs.append(run_in_order(model, prompts, list(merged.values())))
    logits = torch.stack(runs)
    if logits_at is None:
        return logits
    index = logits_at.expand(len(cells), -1, -1).unsqueeze(-1).expand(-1, -1, -1, logits.shape[-1])
    return logits.gather(2, index)


@st.composite
def edits(draw: Any, model: Any, seed: int) -> Edit:
    """Any edit of any site, on any positions, units and rows, with a value for each of them."""
    name = draw(st.sampled_from(list(model.sites)))
    site = model.sites[name].of_length(LENGTH)
    positions = draw(st.none() | st.lists(st.integers(0, LENGTH - 1), min_size=1, unique=True))
    rows = draw(st.none() | st.lists(st.integers(0, ROWS - 1), min_size=1, unique=True))
    units = draw(st.none() | st.lists(st.integers(0, site.units[0] - 1), min_size=1, unique=True))
    kind = name.rpartition(".")[2]
    if kind in CUTS and draw(st.booleans()):
        readers = draw(st.lists(st.integers(0, LENGTH - 1), min_size=1, unique=True))
        sources = [draw(st.integers(0, min(readers)))]
        if kind != "conv" or readers[0] == sources[0]:
            units = None if kind in ("conv", "out") else units
            return Edit(name, "cut", positions=readers, sources=sources, rows=rows, units=units)
    mode = draw(st.sampled_from(["replace", "add", "scale"]))
    shape = [
        ROWS if rows is None else len(rows),
        LENGTH if positions is None else len(positions),
        site.units[0] if units is None else len(units),
        *site.units[1:],
    ]
    value = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Edit(name, mode, value, positions, units, rows)


def run_in_order(model: Any, prompts: torch.Tensor, edits: list[Edit]) -> torch.Tensor:
    """Without the check for contradictions: a cell may replace what the base replaced."""
    checked = [check_edits(model.sites, [edit], *prompts.shape)[0] for edit in edits]
    return model.trace(prompts, Tap((), checked))[0]


def in_pieces(model: Any, prompts: torch.Tensor, edits: list[Edit], begins: list[int]) -> tuple[Any, Any]:
    """Logits under edits: of one run over all positions, and of runs that go on from each other's memory."""
    checked = [check_edits(model.sites, [edit], *prompts.shape)[0] for edit in edits]
    pieces, cache = [], None
    with torch.no_grad():
        whole, _ = model.trace(prompts, Tap((), checked))
        for begin, end in itertools.pairwise([0, *begins, prompts.shape[1]]):
            logits, cache = model.trace(prompts[:, begin:end], Tap((), checked, begin), cache)
            pieces.append(logits)
    return whole, torch.cat(pieces, 1)


@st.composite
def whole_and_in_pieces(draw: Any, model: Any, prompts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`in_pieces` under any two edits, in any pieces."""
    drawn = [draw(edits(model, seed)) for seed in range(2)]
    return in_pieces(model, prompts, drawn, sorted(draw(st.sets(st.integers(1, LENGTH - 1), min_size=1, max_size=3))))
