"""Every registered analysis says the same of one model and one task: the share of right answers, counted by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from mechint.analyses.base import Analysis, analyses
from mechint.analyses.circuits.evidence import Evidence
from mechint.analyses.loader import PromptLoader
from mechint.analyses.study.options import ALWAYS, STEPS
from mechint.tasks import TASKS, TaskConfig, make_task
from tests.helpers.answers import HalfRight, reference
from tests.helpers.builders import tiny_gpt2, tiny_mamba

WITH_TOKENIZER = ("file", "prompt")
QUICK = ("trace", "patch", "path", "steer", "compare", "study", "ssm", "kv")
"""Analyses that are run on every change, all of which report an accuracy; of the others :data:`SILENT` report none."""
SILENT = ("neuron", "sparsity", "sae", "probe")
LAST = ("trace", "patch", "path", "steer", "study", "edit", "patchscope")
"""Analyses that ask for the last answer of each prompt; the others ask for all answers."""
SMALL: dict[str, Any] = {
    "prompts": 16, "eval_prompts": 16, "bootstrap": 100, "steps": 10, "controls": 0, "random": 2, "random_circuits": 2,
    "removed_units": 2, "seeds": 1, "min_accuracy": 0.0, "lengths": "4", "measure": False, "examples": 1,
    "random_weights": False, "sites": "out", "sever": "", "attribution": False, "search": "budget", "budget": 4,
    "ablation": "zero", "architectures": "topk", "sparsity": "2", "ratio": "1", "layers": "0", "tokens": 4096,
    "skip_steps": " ".join(str(step) for step in STEPS if step not in ALWAYS), "minimality": False,
    "kinds": "head,mlp",
}  # fmt: skip
"""Values of options that make an analysis short, for those that have them."""
REFUSED_BY_PROMPTS = {("patchscope", "counters")}
"""(analysis, task) that the drawn prompts make impossible: pairs of equal tokens take four, and these have three."""
DEFAULT = {("study", "ablation"), ("study", "seeds"), ("sae", "controls"), ("neuron", "tokens"), ("trace", "examples")}
"""(analysis, option) that stay at their defaults, because the name says something else there."""


def options_of(analysis: Analysis) -> Any:
    """Small options: those of :data:`SMALL` that the analysis has, and that are of its option's type."""
    chosen = {}
    for field in dataclasses.fields(analysis.config):
        fits = field.name in SMALL and type(field.default) is type(SMALL[field.name])
        allowed = field.metadata["option"].choices
        if fits and (analysis.name, field.name) not in DEFAULT and (not allowed or SMALL[field.name] in allowed):
            chosen[field.name] = SMALL[field.name]
    return analysis.config(**chosen)


def loaders(model: Any, task: Any) -> list[PromptLoader]:
    """Sixteen prompts of each split, half of which the model answers right."""
    return [HalfRight(model, task, split, 16, 8, 0) for split in ("discovery", "evaluation")]


def model_for(analysis: Analysis, task: Any) -> Any:
    made = tiny_gpt2 if "k" in analysis.needs or analysis.name == "hybrid" else tiny_mamba
    sizes = {} if made is tiny_mamba else {"n_ctx": 64}
    return made(3, vocab_size=task.vocab_size, **sizes).requires_grad_(False).eval()


def accuracy(name: str, config: TaskConfig, run_dir: Path) -> tuple[float | None, float]:
    """The accuracy that an analysis reports, None for none, and the one counted by hand."""
    analysis, task = analyses()[name], make_task(config)
    model = model_for(analysis, task)
    train, val = loaders(model, task)
    analyzer = analysis.analyzer(model, options_of(analysis), "cpu", run_dir=run_dir / name)
    metrics = analyzer.run_analysis(train, val)["metrics"]
    if name == "sae":
        analyzer.save_results()
    batches = [batch.last() for batch in val] if name in LAST else val.batches
    counted = reference(model, batches, "accuracy")
    share = sum(counted) / len(counted)
    assert 0 < share < 1
    found = metrics.get("accuracy_full", metrics.get("accuracy"))
    return None if found is None else float(found["value"]), share


def refused(name: str, config: TaskConfig) -> bool:
    return analyses()[name].refuse(options_of(analyses()[name]), config) is not None


@pytest.mark.slow_except("ssm|kv|compare")
@pytest.mark.parametrize("name", QUICK)
def test_an_analysis_counts_right_answers_as_everybody(name: str, tmp_path: Path) -> None:
    """On a task with several right answers, where five definitions of accuracy once differed."""
    config = TaskConfig(name="greater_than", length=12)
    found, share = accuracy(name, config, tmp_path)
    assert found == pytest.approx(share)


@pytest.mark.parametrize("name", list(analyses()))
def test_no_analysis_refuses_every_task(name: str) -> None:
    """Else the small options, and not the task, were what it refuses, and nothing below would run."""
    assert any(not refused(name, TaskConfig(name=task, length=12)) for task in TASKS if task not in WITH_TOKENIZER)


@pytest.mark.exhaustive
@pytest.mark.parametrize("task", [name for name in TASKS if name not in WITH_TOKENIZER])
@pytest.mark.parametrize("name", list(analyses()))
def test_every_analysis_on_every_task(name: str, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # models without training have no certain effect on some tasks, which is refused; their accuracy is one all the same
    monkeypatch.setattr(Evidence, "check", lambda evidence: None)
    config = TaskConfig(name=task, length=12)
    if refused(name, config) or (name, task) in REFUSED_BY_PROMPTS:
        pytest.skip("the analysis refuses this task")
    if name == "feature":
        accuracy("sae", config, tmp_path)
    found, share = accuracy(name, config, tmp_path)
    if found is None:
        assert name in SILENT or task == "text"  # on plain text a circuit reports none
    else:
        assert found == pytest.approx(share)
