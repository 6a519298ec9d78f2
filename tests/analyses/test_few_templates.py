"""Analyzers called from Python, without the runner, on prompts of few templates: results, or one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mechint.analyses.base import analyses
from mechint.analyses.loader import PromptLoader
from mechint.tasks import TaskConfig, make_task
from mechint.utils.errors import MechintError
from mechint.utils.statistics import FEWEST
from tests.analyses.test_one_accuracy import model_for, options_of
from tests.helpers.answers import HalfRight

TASK = make_task(TaskConfig(name="recall", pairs=2, keys=12, values=12))


def loaders(model: object, templates: int) -> list[PromptLoader]:
    """Sixteen prompts of each split, of so many templates."""
    found = [HalfRight(model, TASK, split, 16, 8, 0) for split in ("discovery", "evaluation")]
    for prompts in (part for loader in found for part in (*loader.groups, *loader.batches)):
        prompts.template.copy_(torch.arange(len(prompts)) % templates)
    return found


@pytest.mark.parametrize("name", [name for name, entry in analyses().items() if not entry.lone and name != "feature"])
def test_an_analyzer_whose_numbers_have_intervals_refuses_prompts_that_give_none(name: str, tmp_path: Path) -> None:
    analysis = analyses()[name]
    model = model_for(analysis, TASK)
    analyzer = analysis.analyzer(model, options_of(analysis), "cpu", run_dir=tmp_path)
    with pytest.raises(MechintError, match=f"no number would have an interval; give prompts of .* least {FEWEST}"):
        analyzer.run_analysis(*loaders(model, FEWEST - 1))


@pytest.mark.parametrize("templates", [1, FEWEST - 1])
def test_a_loader_counts_the_templates_of_its_prompts(templates: int) -> None:
    model = model_for(analyses()["compare"], TASK)
    loaders(model, FEWEST)[1].check_intervals()
    with pytest.raises(MechintError, match=r"have (one|3) templates? "):
        loaders(model, templates)[1].check_intervals()
