"""Units of several kinds side by side: numbered row by row, counted apart, replaced as each alone, and read back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import mechint
from mechint import MechintError
from mechint.analyses.base import analyses
from mechint.analyses.circuits.hybrid import HybridCircuitConfig, refuse
from mechint.analyses.circuits.report import write_circuit
from mechint.analyses.circuits.stored import load_circuit
from mechint.interventions.unit_kinds import EXPERT_UNITS, side_by_side
from mechint.interventions.units import Units
from mechint.models.stack import Stack
from mechint.report.finished import Drawn
from mechint.tasks import TaskConfig
from tests.analyses.test_one_accuracy import loaders, options_of
from tests.helpers.builders import tiny_mamba
from tests.helpers.circuit_runs import write_run
from tests.models.families.test_analyses import TASK, model_of

pytestmark = pytest.mark.usefixtures("without_controls")

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Stack:
    """A random Falcon-H1: every layer has attention heads and SSM heads."""
    return model_of("falcon_h1", tmp_path_factory.mktemp("falcon_h1"))


def rows(units: Units) -> list[tuple[int, str, int]]:
    return [(row.layer, row.kind.name, row.size) for row in units.by_row]


def test_rows_are_the_kinds_of_each_layer_in_turn(hybrid: Stack) -> None:
    kinds = [hybrid.unit_kinds[name] for name in ("head", "ssm_head")]
    both, alone = Units(hybrid, *kinds), [Units(hybrid, kind) for kind in kinds]
    assert [kind for _, kind, _ in rows(both)] == ["head", "ssm_head"] * hybrid.num_layers
    assert both.total == sum(units.total for units in alone)
    assert [row.start for row in both.by_row] == [sum(both.sizes[:i]) for i in range(both.layers)]
    mask = torch.zeros(both.total)
    mask[both.by_row[3].start + 1] = 1.0
    assert both.names(mask) == [[], [], [], [1], *[[]] * (both.layers - 4)]
    assert both.counts(mask) == [0, 0, 0, 1, *[0] * (both.layers - 4)]
    drawn = both.random([1] * both.rows, torch.Generator().manual_seed(0))
    assert both.counts(drawn) == [1] * both.rows


def test_keys_and_values_are_counted_apart_beside_other_kinds(hybrid: Stack) -> None:
    units = Units(hybrid, *(hybrid.unit_kinds[name] for name in ("kv", "ssm_head")))
    keys = units.by_row[0].size // 2
    mask = torch.zeros(units.total).index_fill_(0, torch.tensor([0, keys, keys + 1]), 1.0)
    assert units.counts(mask)[:3] == [1, 2, 0]
    assert [len(group) for group in units.groups()] == units.counted
    assert units.names(mask)[0] == [[0, 0, 0], [1, 0, 0], [1, 0, 1]]


def test_edits_of_both_are_those_of_each_alone(hybrid: Stack) -> None:
    """Logits under a random mask over both kinds equal those under the two masks at once, to the bit."""
    kinds = [hybrid.unit_kinds[name] for name in ("kv", "ssm_channel")]
    both, alone = Units(hybrid, *kinds), [Units(hybrid, kind) for kind in kinds]
    generator = torch.Generator().manual_seed(1)
    mask = (torch.rand(both.total, generator=generator) < 0.5).float()
    parts = [
        torch.cat([part.flatten() for row, part in zip(both.by_row, both.by_layer(mask), strict=True) if row.kind is k])
        for k in kinds
    ]
    fills = dict.fromkeys(both.sites, 0.25)
    tokens = torch.randint(0, TASK.vocab_size, (2, 7), generator=generator)
    separate = [edit for units, part in zip(alone, parts, strict=True) for edit in units.edits(part, fills)]
    one, other = (mechint.run(hybrid, tokens, edits=edits).logits for edits in (both.edits(mask, fills), separate))
    assert torch.equal(one, other)
    assert not torch.equal(one, mechint.run(hybrid, tokens).logits)


def test_dropping_one_unit_is_a_mask_without_it(hybrid: Stack) -> None:
    units = Units(hybrid, *(hybrid.unit_kinds[name] for name in ("head", "ssm_head", "mlp")))
    fills = dict.fromkeys(units.sites, 0.0)
    tokens = torch.randint(0, TASK.vocab_size, (1, 6), generator=torch.Generator().manual_seed(2))
    for unit in (0, units.by_row[1].start, units.by_row[2].start + 3, units.total - 1):
        mask = torch.ones(units.total).index_fill_(0, torch.tensor([unit]), 0.0)
        one, other = (
            mechint.run(hybrid, tokens, edits=edits).logits
            for edits in (units.dropping(unit, fills), units.edits(mask, fills))
        )
        assert torch.equal(one, other)


def test_a_kind_that_no_layer_has_is_refused(hybrid: Stack) -> None:
    with pytest.raises(MechintError, match="no layer of this falcon_h1 model has units of the kind 'expert'"):
        Units(hybrid, hybrid.unit_kinds["head"], EXPERT_UNITS["expert"])


def test_kinds_at_one_site_are_refused(hybrid: Stack) -> None:
    with pytest.raises(MechintError, match="'head' and 'o' are both replaced at head_out; a circuit takes one"):
        side_by_side((hybrid.unit_kinds["head"], hybrid.unit_kinds["o"]))


@pytest.mark.parametrize(
    ("kinds", "words"),
    [("head", "two or more"), ("", "two or more"), ("head,head", "two or more"),
     ("head,ssm_heads", "did you mean ssm_head"), ("head,layer", "no kind of unit is called 'layer'"),
     ("y,z", "choose among kv, k, v"), ("head,o", "head_out")],
)  # fmt: skip
def test_bad_kinds_are_refused_before_anything_is_loaded(kinds: str, words: str) -> None:
    reason = refuse(HybridCircuitConfig(kinds=kinds), TaskConfig())
    assert reason is not None and words in reason and "\n" not in reason


def test_methods_that_rank_one_kind_alone_are_no_choice() -> None:
    [method] = [field for field in dataclasses.fields(HybridCircuitConfig) if field.name == "method"]
    choices = method.metadata["option"].choices
    assert {"search", "attribution", "removal", "gradient_x_activation"} <= set(choices)
    assert not {"weight_magnitude", "delta_gradient", "rollout"} & set(choices)


@pytest.fixture(scope="module")
def finished(hybrid: Stack, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A circuit of attention heads and SSM heads, as the runner leaves it."""
    analysis, directory = analyses()["hybrid"], tmp_path_factory.mktemp("hybrid")
    options = dataclasses.replace(options_of(analysis), method="attribution", kinds="head,ssm_head")
    analyzer = analysis.analyzer(hybrid, options, "cpu", run_dir=directory)
    results = analyzer.run_analysis(*loaders(hybrid, TASK))
    analyzer.save_results()
    return directory, results


def test_a_circuit_holds_heads_of_both_kinds(hybrid: Stack, finished: tuple[Path, dict[str, Any]]) -> None:
    _, results = finished
    units = Units(hybrid, *(hybrid.unit_kinds[name] for name in ("head", "ssm_head")))
    assert results["unit"] == "head+ssm_head" and results["units"] == "attention heads and SSM heads"
    assert [row["site"] for row in results["layers"]] == units.layer_names
    assert units.layer_names[:2] == ["layers.0.head", "layers.0.ssm_head"]
    assert [row["total"] for row in results["layers"]] == units.sizes
    assert results["metrics"]["units_total"]["value"] == units.total


@pytest.mark.parametrize("unit", ["head+ssm_head", "kv+ssm_channel+mlp", "head", "kv"])
def test_a_circuit_of_a_hybrid_comes_back_as_the_mask_it_was(hybrid: Stack, unit: str, tmp_path: Path) -> None:
    units = Units(hybrid, *(hybrid.unit_kinds[name] for name in unit.split("+")))
    mask = (torch.rand(units.total, generator=torch.Generator().manual_seed(3)) < 0.5).float()
    circuit = load_circuit(write_run(tmp_path / "run", hybrid, unit, mask), hybrid)
    assert torch.equal(circuit.mask, mask) and circuit.units.layer_names == units.layer_names


def test_a_circuit_of_another_mixture_or_family_is_refused(hybrid: Stack, tmp_path: Path) -> None:
    units = Units(hybrid, *(hybrid.unit_kinds[name] for name in ("head", "ssm_head")))
    run = write_run(tmp_path / "run", hybrid, "head+ssm_head", torch.ones(units.total))
    with pytest.raises(MechintError, match=r"the unit 'head\+ssm_head' of a falcon_h1, and .* is a mamba"):
        load_circuit(run, tiny_mamba())


def test_its_page_names_each_unit_by_layer_and_kind(hybrid: Stack, tmp_path: Path) -> None:
    units = Units(hybrid, *(hybrid.unit_kinds[name] for name in ("kv", "ssm_head")))
    mask = torch.zeros(units.total)
    mask[[0, units.by_row[1].start + 2]] = 1.0
    run = write_run(tmp_path / "run", hybrid, "kv+ssm_head", mask)
    *figures, page = write_circuit(run, Drawn(True, False, False))
    text = page.read_text()
    assert "K 0.0" in text and "layers.0.kv" in text and "layers.0.ssm_head" in text
    assert any(path.name.endswith("channel_importance.png") for path in figures)


def test_a_method_for_one_family_alone_is_refused_with_the_mixture() -> None:
    reason = refuse(dataclasses.replace(HybridCircuitConfig(), method="rollout"), TaskConfig())
    assert reason is not None and "attention heads and SSM heads" in reason


def test_one_kind_is_numbered_as_before() -> None:
    """Row by row equals layer by layer where every layer has the same units."""
    model = tiny_mamba()
    units = Units(model, model.unit_kinds["mode"])
    values = torch.arange(units.total)
    assert torch.equal(torch.stack(units.by_layer(values)), values.view(units.layers, *units.shape))
    assert units.per_layer * units.layers == units.total and units.layer_names[1] == "layers.1"
