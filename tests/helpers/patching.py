"""Options of small patching analyses."""

from __future__ import annotations

from mechint.analyses.patching.options import PatchConfig

SMALL = PatchConfig(eval_prompts=12, prompts=8, bootstrap=100)
