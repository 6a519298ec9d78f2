"""Results of patching by loops over made-up effects of eight prompts in two batches."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mechint.analyses.patching.analyzer import ROUNDING, Patcher
from mechint.analyses.patching.flow import Path
from mechint.analyses.patching.results import SHOWN, Finished, numbers, strongest
from mechint.analyses.patching.role_means import RoleValues
from mechint.analyses.unit_groups import Parts
from mechint.interventions.run import run
from mechint.tasks import Prompts
from mechint.utils.errors import MechintError
from tests.helpers.builders import tiny_gpt2, tiny_mamba, tokens

CLEAN, TWIN = np.array([3.0, 4, 5, 6, 3, 4, 5, 6]), np.array([1.0, 1, 1, 1, 0, 0, 0, 9])
RIGHT = np.array([True] * 7 + [False])
USED = slice(0, 7)


def finished(**changes: Any) -> tuple[Finished, dict[str, np.ndarray]]:
    """Two paths of two layers with three pairs of roles, and five units; the last prompt is not answered."""
    random = np.random.default_rng(0)
    flow = random.normal(0.5, 1, (2, 2, 3, 8))
    flow[:, :, 2, 4:] = np.nan  # no pair in the second half
    values: dict[str, np.ndarray] = {"clean": CLEAN, "corrupted": TWIN, "right": RIGHT, "flow": flow}
    for k, name in enumerate(("necessary gated", "sufficient gated", "necessary u", "sufficient u")):
        units = 3 if "gated" in name else 2
        values[name] = random.normal(k, 1, (units, 8))
        values[f"{name} estimates"] = 2 * values[name] + random.normal(0, 0.1, (units, 8))
    values["all gated"], values["all u"] = 1 + 0.1 * CLEAN, 2 + 0.1 * CLEAN
    cut = lambda at: {name: torch.from_numpy(np.ascontiguousarray(value[..., at])) for name, value in values.items()}
    settings: dict[str, Any] = {
        "found": [cut(slice(0, 3)), cut(slice(3, 8))], "names": ("key", "gap", "value", "query"),
        "pairs": [(2, 0), (3, 0), (3, 2)], "present": [], "templates": np.arange(8), "twins": True, "means": False,
        "paths": [Path("y", (), None), Path("conv", (), 3)], "draws": 20, "seed": 0,
        "parts": [Parts("gated", ("layers.0.gated", "layers.2.gated"), (4, 4), "channel", (1, 4, 7)),
                  Parts("u", ("layers.0.u", "layers.1.u"), (2, 2), "channel", (0, 3))],
    } | changes  # fmt: skip
    return Finished(**settings), values


def test_effects_are_shares_of_the_total_of_the_answered_prompts() -> None:
    done, values = finished()
    sections, metrics, notes = numbers(done)
    total = (CLEAN - TWIN)[USED]
    assert metrics["total_effect"]["value"] == pytest.approx(total.mean()) and metrics["prompts_used"]["value"] == 7
    assert metrics["clean"]["value"] == pytest.approx(CLEAN[USED].mean()) and metrics["prompts_failed"]["value"] == 1
    assert metrics["corrupted"]["value"] == pytest.approx(TWIN[USED].mean())
    assert metrics["accuracy_full"]["value"] == 7 / 8 and sections["scale"] == "share of the total effect"
    assert any("1 of 8" in note for note in notes)
    flow = sections["flow"]
    assert flow["roles"] == ["key", "value", "query"] and flow["pairs"] == [[1, 0], [2, 0], [2, 1]]
    assert [path["name"] for path in flow["paths"]] == ["y", "conv"]
    for k, path in enumerate(flow["paths"]):
        for layer in range(2):
            for cell in range(3):
                rows = slice(0, 4) if cell == 2 else USED
                own = values["flow"][k, layer, cell, rows]
                assert path["value"][layer][cell] == pytest.approx(own.sum() / (CLEAN - TWIN)[rows].sum())
                assert path["n"][layer][cell] == len(own)
    for kind, units in (("gated", 3), ("u", 2)):
        [entry] = [entry for entry in sections["units"] if entry["name"] == kind]
        for name in ("necessary", "sufficient"):
            own, guess = (values[f"{name} {kind}{end}"][:, USED].mean(1) for end in ("", " estimates"))
            assert entry[name]["value"] == pytest.approx((own / total.mean()).tolist())
            assert entry[name]["estimate"] == pytest.approx((guess / total.mean()).tolist())
            assert entry[name]["n"] == [7] * units and len(entry[name]["p"]) == units
            assert entry["correlation"][name] == pytest.approx(np.corrcoef(own, guess)[0, 1])
    gated = sections["units"][0]
    assert (gated["layer"], gated["unit"], gated["layers"], gated["per_layer"]) == ([0, 2, 2], [1, 0, 3], 2, 4)


def test_effects_stay_in_the_metric_where_the_twins_may_change_nothing() -> None:
    done, values = finished()
    for part, at in zip(done.found, (slice(0, 3), slice(3, 8)), strict=True):
        part["corrupted"] = torch.from_numpy(CLEAN + np.array([0.1, -0.1] * 4))[at]
    sections, metrics, notes = numbers(done)
    assert sections["scale"] == "metric" and len(notes) == len(numbers(finished()[0])[2]) + 1
    assert sections["flow"]["paths"][0]["value"][0][0] == pytest.approx(values["flow"][0, 0, 0, USED].mean())
    guess = values["necessary u estimates"][:, USED].mean(1)
    assert sections["units"][1]["necessary"]["estimate"] == pytest.approx(guess.tolist())
    alone, _ = finished(twins=False, paths=[], means=True)
    sections, metrics, notes = numbers(alone)
    assert sections["flow"] is None and "total_effect" not in metrics and sections["scale"] == "metric"
    assert metrics["all_u"]["value"] == pytest.approx(2 + 0.1 * CLEAN[USED].mean()) and "all_gated" in metrics
    assert any("means" in note for note in notes)


def test_the_surest_come_first_and_then_the_largest() -> None:
    row = lambda values, p: {"value": values, "low": values, "high": values, "p": p, "n": [7] * len(values)}
    path = {
        "name": "y",
        **{name: [cells] for name, cells in row([0.9, None, -0.5, 0.2], [0.3, None, 0.01, 0.05]).items()},
    }
    flow = {"roles": ["a", "b"], "pairs": [[0, 0], [0, 1], [1, 0], [1, 1]], "paths": [path]}
    many = row([0.1 * k for k in range(7)], [1.0] * 7)
    kind = {"name": "u", "layer": [0] * 7, "unit": list(range(7)), "necessary": many, "sufficient": many}
    found = strongest({"flow": flow, "units": [kind]})
    assert [(c["reader"], c["source"], c["value"]) for c in found["flow"]] == [
        ("b", "a", -0.5), ("b", "b", 0.2), ("a", "a", 0.9)
    ]  # fmt: skip
    assert [(u["direction"], u["unit"]) for u in found["units"]] == [
        (name, unit) for name in ("necessary", "sufficient") for unit in (6, 5, 4, 3, 2)[:SHOWN]
    ]
    assert strongest({"flow": None, "units": None}) == {"flow": [], "units": []}


def test_a_convolution_reads_as_far_back_as_its_taps() -> None:
    roles = torch.tensor([[0, -1, -1, 1], [0, -1, 1, -1], [1, -1, -1, 0], [-1, -1, -1, -1]])
    near = lambda reach: Path("conv", (), reach).groups(roles, (1, 0))
    assert near(3) == near(None) == {((3,), (0,)): [0], ((2,), (0,)): [1]}
    assert near(2) == {((2,), (0,)): [1]} and near(1) == {}
    assert Path("conv", (), None).groups(torch.tensor([[5, 5]]), (5, 5)) == {((0, 1), (0, 1)): [0]}


class Loader:
    """Two prompts of three tokens whose roles are told: one token of the first, none of the third."""

    names = ("a", "b", "c")
    roles = torch.tensor([[0, 1, -1], [1, 1, 1]])

    def __init__(self) -> None:
        self.groups = [prompts(2, 3)]
        self.task = SimpleNamespace(roles=lambda batch: (self.names, self.roles))

    def __iter__(self) -> Iterator[Prompts]:
        return iter(self.groups)


def prompts(count: int, length: int) -> Prompts:
    at = torch.full((count, 1), length - 1)
    return Prompts(tokens(count, length), at, torch.zeros_like(at), None, None, torch.arange(count))


def test_values_of_roles_are_means_of_their_tokens_and_zero_without_a_role() -> None:
    model, loader, site = tiny_gpt2(dtype=torch.float64).requires_grad_(False), Loader(), "layers.0.mlp_out"
    usual: Any = RoleValues(model, [site], loader)  # type: ignore[arg-type]
    values = run(model, loader.groups[0].tokens, [site])[site]
    found = usual.of(torch.tensor([[0, -1, 1]]), [site])[site][0]
    torch.testing.assert_close(found[0], values[0, 0])  # of a single token
    torch.testing.assert_close(found[2], torch.stack([values[0, 1], *values[1]]).mean(0))
    assert (found[1] == 0).all()
    with pytest.raises(MechintError, match="a token of the role 'c'"):
        usual.of(torch.tensor([[0, 2]]), [site])


def test_changes_within_the_rounding_of_a_large_metric_are_none() -> None:
    eps = torch.finfo(torch.float32).eps
    base, steps = 1000.0, torch.tensor([0.5, -0.5, 2.0, -2.0], dtype=torch.float64) * ROUNDING * eps * 1000
    values = torch.cat([base + steps, torch.tensor([base], dtype=torch.float64)])[:, None]
    pair = SimpleNamespace(sweep=lambda cells, memory_mib, title: values)
    patcher = SimpleNamespace(config=SimpleNamespace(memory_mib=1), model=tiny_mamba())
    found = Patcher.sweep(patcher, pair, [[]] * 4, "")[:, 0]  # type: ignore[arg-type]
    assert found[:2].tolist() == [0, 0] and found[2:].tolist() == pytest.approx(steps[2:].tolist())
    values /= 1e6  # below 1 the threshold is that of 1
    values[0] = values[4] + 0.5 * ROUNDING * eps
    assert float(Patcher.sweep(patcher, pair, [[]] * 4, "")[0]) == 0  # type: ignore[arg-type]
