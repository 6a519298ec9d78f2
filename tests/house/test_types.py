"""The interfaces that the type checker holds: models and options are no `Any`; families provide what `Model` names."""

from __future__ import annotations

import re

import pytest
import torch

from mechint.interventions.edits import Edit
from mechint.interventions.model import Model
from mechint.interventions.sweep_cells import Keeper, Probe, RowEdits
from mechint.interventions.taps import SiteEdit
from mechint.models.gpt2 import GPT2
from mechint.models.llama import Llama
from mechint.models.mamba import Mamba
from tests.helpers.paths import ROOT


def members(protocol: type) -> set[str]:
    """Names that a protocol asks for."""
    named = {*vars(protocol), *getattr(protocol, "__annotations__", {})}
    return {name for name in named if not name.startswith("_")}


def test_no_model_is_of_any_type() -> None:
    untyped = re.compile(r"\b(?:model|models\[.*\]): (?:Any|object)\b|\bself\.model: Any\b")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sorted((ROOT / "lib").rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if untyped.search(line)
    ]
    assert not found, "say Model (mechint.interventions.model) or the family's class:\n" + "\n".join(found)


def test_no_options_are_of_any_type() -> None:
    untyped = re.compile(r"\bconfig: (?:Any|object)\b|\bconfigs: dict\[str, Any\]|\bdef \w*config\w*\(.*-> Any:")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for room in ("analyses", "runner", "utils")
        for path in sorted((ROOT / "lib/mechint" / room).rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if untyped.search(line)
    ]
    assert not found, "say the dataclass of the analysis, AnalysisOptions or Dataclass:\n" + "\n".join(found)


@pytest.mark.parametrize("family", [Mamba, GPT2, Llama])
def test_every_family_is_a_model(family: type) -> None:
    asked = members(Model)
    assert {"sites", "trace", "block", "parameters", "source", "metadata"} <= asked
    missing = {name for name in asked if not hasattr(family, name)} - {"config", "layers"}
    assert not missing, f"{family.__name__} lacks {sorted(missing)}"


def test_what_stands_in_for_an_edit_has_its_members() -> None:
    edit = Edit("layers.0.out", "scale", 0.0)
    for one in (edit, RowEdits([(slice(0, 1), edit)], 1), Probe(()), Keeper()):
        assert all(hasattr(one, name) for name in members(SiteEdit)), type(one)
        assert not one.is_cut and one.apply(torch.ones(1, 2, 3)).shape == (1, 2, 3)
