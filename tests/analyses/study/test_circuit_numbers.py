"""A combined circuit beside random ones, and a checkpoint of a trajectory, by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mechint.analyses.study import steps_circuit, steps_controls
from mechint.utils.statistics import ClusterBootstrap


def test_a_circuit_is_held_against_random_sets_of_its_size() -> None:
    """Four random sets keep 0.2, 0.5, 0.6 and, but for rounding, 0.5 of the effect, the circuit 0.5: three keep no
    less."""
    shares = iter([0.2, 0.5, 0.6, 0.5 - 1e-7])
    chosen: list[torch.Tensor] = []

    def of(mask: torch.Tensor) -> dict[str, Any]:
        chosen.append(mask)
        return {"effect": {"value": float(mask.sum()) / 4}, "accuracy": {"value": float(mask.sum())}}

    column = torch.arange(8).double().numpy()
    bench = SimpleNamespace(measure=lambda mask: {"m": mask})
    kept: Any = SimpleNamespace(
        of=of, point=lambda mask: next(shares), total={"value": 3.0}, boot=ClusterBootstrap(range(8), 20, 0),
        bench=bench, column=lambda values: column / 7, full=column + 1.0, empty=0 * column, rounding=1e-6,
    )  # fmt: skip
    units: Any = SimpleNamespace(
        total=4, sizes=[2, 2], counts=lambda mask: [1, 1], random=lambda counts, generator: counts,
        by_site=lambda mask: {"a": [0], "b": [1]},
    )  # fmt: skip
    context: Any = SimpleNamespace(
        config=SimpleNamespace(metric="m", ablation="mean"), draws=4, seed=0, sites={3: "a", 5: "b"},
        found={"setup": {"report": {"chance": 0.1}}},
    )  # fmt: skip
    mask = torch.tensor([1.0, 0.0, 0.0, 1.0])
    found = steps_circuit.kept_alone(context, units, mask, kept)
    assert found["p"] == pytest.approx((1 + 3) / (1 + 4)) and (found["kept"], found["total"]) == (2, 4)
    assert found["effect"]["value"] == 0.5 and found["complement"]["effect"]["value"] == 0.5
    assert found["accuracy_full"]["value"] == 4.0 and torch.equal(chosen[1], 1 - mask)
    assert found["layers"]["5"] == {"site": "b", "kept": 1, "total": 2, "units": [1]}
    assert found["completeness"]["value"] == pytest.approx(1 - column.mean() / 7 / (column.mean() + 1))
    assert found["random_units"]["value"] == pytest.approx(0.5) and found["random_units"]["n"] == 4
    # E|∩| of one of two units twice, over E|∪|
    assert found["agreement_chance"] == pytest.approx(1 / 3) and found["effect_total"] == {"value": 3.0}


@pytest.mark.parametrize(
    ("path", "metadata", "step"),
    [("run/step000500.pt", None, 500), ("run/final_model_stepV3.pt", {}, None), ("run/model.pt", {"iter_num": 70}, 70)],
)
def test_a_checkpoint_of_a_trajectory(
    path: str, metadata: Any, step: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts differ from twins by 2, of which 1.2 passes through the candidate."""
    clean = torch.zeros(6, 1, 2, dtype=torch.float64)
    clean[..., 0] = 1.0
    effect = torch.tensor([1.9, 2.1, 2.0, 1.9, 2.1, 2.0]).double()
    measure = lambda test, site, moves, title: torch.stack([0.6 * move[:, 0, 0].abs() for move in moves])
    held = SimpleNamespace(clean={"s": clean}, twin={"s": 0 * clean}, effect=effect, measure=measure)
    value = lambda x: {"value": x, "low": x - 0.01, "high": x + 0.01}
    monkeypatch.setattr(steps_controls, "accuracy_and_chance", lambda context, loader, model: (value(0.9), value(0.2)))
    monkeypatch.setattr(steps_controls, "unfiltered", lambda context, model, prompts: held)
    monkeypatch.setattr(steps_controls, "together", lambda batches: None)
    candidate = SimpleNamespace(site="s", basis=torch.eye(2, dtype=torch.float64)[:, :1])
    context: Any = SimpleNamespace(
        val=SimpleNamespace(templates=lambda: np.arange(6), batches=[]), tested=[candidate], seed=0,
        config=SimpleNamespace(bootstrap=50, min_effect=0.5),
    )  # fmt: skip
    found = steps_controls.moment(context, path, SimpleNamespace(metadata=metadata))
    assert (found["checkpoint"], found["step"]) == (path, step) and found["effect"]["value"] == pytest.approx(2.0)
    assert found["carried"]["value"] == pytest.approx(1.2) and found["share"]["value"] == pytest.approx(0.6)
    assert found["present"]
    context.config.min_effect = 0.65
    assert not steps_controls.moment(context, path, SimpleNamespace())["present"]


def test_a_circuit_is_compared_with_the_tested_candidates_and_other_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The circuit {0, 1}, another search's {1, 2}, and the candidates' units {0, 3}."""
    mask, other, tested = (torch.tensor(row) for row in ([1.0, 1, 0, 0], [0.0, 1, 1, 0], [1.0, 0, 0, 1]))
    units = object.__new__(steps_circuit.SiteUnits)
    units.mask_of = lambda found: tested if found == "candidates" else 0 * tested  # type: ignore[method-assign]
    monkeypatch.setattr(steps_circuit, "Kept", lambda context, units: SimpleNamespace(of=lambda m: {"of": m.tolist()}))
    monkeypatch.setattr(steps_circuit, "others", lambda context, analyzer, size: [other] if size == 2 else [])
    monkeypatch.setattr(steps_circuit, "kept_alone", lambda context, units, mask, kept: {"kept": mask.tolist()})
    monkeypatch.setattr(steps_circuit, "stability", lambda sets: sets)
    context: Any = SimpleNamespace(candidate_units=lambda: "candidates")
    found = steps_circuit.judged(context, SimpleNamespace(units=units), mask)  # type: ignore[arg-type]
    assert found == {
        "kept": mask.tolist(), "agreement": [{0, 1}, {1, 2}],
        "candidates": {"units": 2, "shared": 1, "jaccard": pytest.approx(1 / 3), "of": tested.tolist()},
    }  # fmt: skip
    context.candidate_units = lambda: "none"
    assert steps_circuit.judged(context, SimpleNamespace(units=units), mask)["candidates"] is None  # type: ignore[arg-type]


def test_what_a_set_keeps_is_a_share_of_means() -> None:
    """(2 + 6) / 2 of the way from 1 to 7 is a half; of sums it would be more."""
    kept: Any = object.__new__(steps_circuit.Kept)
    kept.bench = SimpleNamespace(batches=[SimpleNamespace(tokens=torch.zeros(1))], measure=lambda mask: {"m": 4 * mask})
    kept.metric, kept.full, kept.empty = "m", np.array([8.0, 6.0]), np.array([0.0, 2.0])
    assert kept.point(torch.tensor([0.5, 1.5])) == pytest.approx(0.5)
