"""Results of a trace from made-up effects, by hand."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mechint.analyses.interchange import Corruption, Interchange
from mechint.analyses.tracing import compare
from mechint.analyses.tracing.analyzer import CausalTracer
from mechint.analyses.tracing.panels import Panel
from mechint.analyses.tracing.results import numbers
from tests.helpers.builders import tiny_mamba
from tests.helpers.tracing import SMALL, loaders


def test_roles_that_no_prompt_has_are_left_out_and_cells_are_counted() -> None:
    """Three of four prompts are answered; the role a is in two of these, b in none, c in all."""
    roles = [torch.tensor([[0, 2], [2, 2]]), torch.tensor([[0, 2], [0, 2]])]
    right = np.array([True, True, False, True])
    effect = torch.arange(8.0, dtype=torch.float64).view(1, 1, 2, 4)  # [panel, layer, position, prompt]
    found = [
        {"clean": torch.full((2,), 5.0), "corrupted": torch.full((2,), 1.0), "right": torch.tensor(right[some]),
         "denoise": effect[..., some]}
        for some in (slice(0, 2), slice(2, 4))
    ]  # fmt: skip
    metrics: dict[str, Any] = {}
    panel = Panel("resid_post", (("layers.0.resid_post",),), "", ((),))
    section, notes, kept = numbers(
        found, roles, ("a", "b", "c"), {"denoise": [panel]}, right, np.arange(4), 100, 0, metrics
    )
    assert section["roles"] == ["a", "c"] and metrics["total_effect"]["value"] == 4 and notes == []
    [cells] = section["directions"]["denoise"]["panels"]
    assert cells["n"] == [[2, 3]]
    # a: tokens 0 of prompts 0 and 3; c: token 1 of prompts 0 and 3, and both tokens of prompt 1
    assert cells["value"] == [[pytest.approx((0 + 3) / 2 / 4), pytest.approx((4 + (1 + 5) / 2 + 7) / 3 / 4)]]
    assert section["strongest"][0]["role"] == "c" and section["strongest"][0]["n"] == 3
    assert kept["total"].tolist() == [4, 4, 4] and kept["means.denoise"].shape == (3, 1, 1, 2)


def test_estimates_of_a_map_are_those_of_its_sites_in_the_direction_of_its_effects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is lost counts as positive in noise, what comes back in denoise; a severed map has no estimate."""
    model = tiny_mamba(2, torch.float64).requires_grad_(False)
    prompts = loaders(model, 2)[1].batches[0]
    monkeypatch.setattr(
        Interchange, "sweep", lambda self, cells, **options: torch.zeros(len(cells), self.rows).double()
    )
    config = dataclasses.replace(SMALL, sites="resid_post", sever="out", window=1)
    found = CausalTracer(model, config).trace(prompts, None)
    sites = ["layers.0.resid_post", "layers.1.resid_post"]
    for direction, sign, severed in (("noise", -1, 0), ("denoise", 1, 1)):
        pair = Interchange(model, prompts, Corruption("twin"), direction, config.metric)
        alone = pair.estimates(sites, points=5)
        maps = found[f"{direction} estimates"]
        torch.testing.assert_close(maps[0], sign * torch.stack([alone[site] for site in sites]))
        assert len(maps) == 1 + severed and maps[1:].isnan().all()
    off = CausalTracer(model, dataclasses.replace(config, attribution=False, sever=""))
    assert off.trace(prompts, None)["noise estimates"].isnan().all()


def test_the_warnings_of_a_trace_are_findings_against_it_and_its_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "findings", lambda trace: [(True, "holds"), (False, "does not")])
    trace: Any = SimpleNamespace(raw={"notes": ["a note"]})
    assert compare.warnings(trace) == ["does not", "a note"]


@pytest.mark.parametrize(
    ("kind", "sizes", "layer"), [("resid_post", (1.0, 3.0), 0), ("state", (1.0, 3.0), 1), ("resid_post", (3.0,), 0)]
)
def test_the_strongest_cell_is_not_the_last_residual_unless_it_is_alone(
    kind: str, sizes: tuple[float, ...], layer: int
) -> None:
    """The last residual at the last token is the whole effect, whatever the model does."""
    effect = torch.tensor(sizes, dtype=torch.float64).view(1, -1, 1, 1).expand(1, len(sizes), 1, 4)
    found = [{"clean": torch.full((4,), 5.0), "corrupted": torch.full((4,), 1.0), "right": torch.ones(4).bool(),
              "denoise": effect}]  # fmt: skip
    panel = Panel(kind, tuple((f"layers.{k}.{kind}",) for k in range(len(sizes))), "", tuple(() for _ in sizes))
    section, _, _ = numbers(
        found, [torch.zeros(4, 1).long()], ("last",), {"denoise": [panel]}, np.ones(4).astype(bool), np.arange(4), 100,
        0, {},
    )  # fmt: skip
    [best] = section["strongest"]
    assert (best["layer"], best["value"]) == (layer, pytest.approx(sizes[layer] / 4))


def test_layers_without_the_site_have_no_estimate_and_others_the_sum_of_theirs() -> None:
    model = tiny_mamba(1, torch.float64, n_layer=1).requires_grad_(False)
    tracer = CausalTracer(model, dataclasses.replace(SMALL, sites="state"))
    half = {"layers.0.state": torch.full((3, 2), 0.5)}
    pair: Any = SimpleNamespace(estimates=lambda sites, points, memory_mib: half)
    like = torch.zeros(1, 3, 2)  # [layer, position, prompt]
    for sites, value in (((), np.nan), (("layers.0.state",), 0.5), (("layers.0.state",) * 2, 1.0)):
        found = tracer.estimate(pair, Panel("state", (sites,), "", ((),)), like)
        np.testing.assert_array_equal(found, np.full((1, 3, 2), value))
