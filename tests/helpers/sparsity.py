"""Prompts and options of small analyses of sparsity."""

from __future__ import annotations

from mechint.analyses.loader import PromptLoader
from mechint.analyses.sparsity.options import SparsityConfig
from mechint.tasks import TaskConfig, make_task

SMALL = SparsityConfig(prompts=10, eval_prompts=12, bootstrap=100, controls=0)


def loaders(count: int = 12) -> tuple[PromptLoader, PromptLoader]:
    task = make_task(TASK)
    return PromptLoader(task, "discovery", 10, 5, 0), PromptLoader(task, "evaluation", count, 5, 0)


TASK = TaskConfig(name="recall", pairs=3, keys=8, values=8)
