"""Analyses that rest on intervals refuse prompts of too few groups in one line, before any work."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from mechint.analyses.base import analyses
from mechint.analyses.loader import PromptLoader
from mechint.tasks import TaskConfig, make_task
from mechint.utils.errors import MechintError
from tests.analyses.test_one_accuracy import options_of
from tests.helpers.builders import tiny_gpt2, tiny_mamba

MODELS = {"ssm": tiny_mamba, "kv": tiny_gpt2, "hybrid": tiny_gpt2, "neuron": tiny_mamba, "compare": tiny_mamba,
          "sparsity": tiny_mamba, "study": tiny_mamba}  # fmt: skip


def prompts_of(groups: int, path: Path) -> Path:
    """A file of eight prompts with twins in each group of either half."""
    lines = [
        {"prompt": [3 + k, 4, 5 + g], "answer": [7], "twin_prompt": [13 + k, 4, 5 + g], "twin_answer": [8],
         "subject": [0, 1], "group": f"{split} {g}", "split": split}
        for split in ("discovery", "evaluation") for g in range(groups) for k in range(8)
    ]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.mark.parametrize(("groups", "said"), [(1, "one group"), (2, "2 groups"), (3, "3 groups")])
@pytest.mark.parametrize("name", MODELS)
def test_prompts_of_too_few_groups_are_refused(name: str, groups: int, said: str, tmp_path: Path) -> None:
    model = MODELS[name](3, vocab_size=37).requires_grad_(False)
    task = make_task(TaskConfig(name="file", file=str(prompts_of(groups, tmp_path / "few.jsonl"))), None, 37)
    loaders = [PromptLoader(task, split, 8 * groups, 8, 0) for split in ("discovery", "evaluation")]
    analysis = analyses()[name]
    more = {"min_accuracy": 0.0} if "min_accuracy" in {f.name for f in dataclasses.fields(analysis.config)} else {}
    more |= {"kinds": "head,mlp"} if name == "hybrid" else {}
    analyzer = analysis.analyzer(model, dataclasses.replace(options_of(analysis), **more), "cpu")
    with pytest.raises(MechintError, match=rf"the evaluation prompts are of {said}, and intervals .* take 4"):
        analyzer.run_analysis(*loaders)
