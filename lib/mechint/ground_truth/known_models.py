"""Every model whose circuit is known, by name: a class without arguments whose ``compile(seed=…)`` gives one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .gpt2 import counting as gpt2_counting
from .gpt2 import models as gpt2
from .imposed import GPT2Recall, Imposed, MambaRecall
from .mamba.counting import Count, ModularSum
from .mamba.models import Induction, Latch, MambaBlueprint, MostRecent, Recall, SelectiveCopy, Shift

BLUEPRINTS: dict[str, type[MambaBlueprint]] = {
    kind.name: kind for kind in (Shift, Latch, MostRecent, Count, ModularSum, SelectiveCopy, Induction, Recall)
}
"""Compiled Mambas."""
GPT2_BLUEPRINTS: dict[str, type[gpt2.GPT2Blueprint]] = {
    kind.name: kind
    for kind in (
        *(gpt2.Shift, gpt2.Latch, gpt2.MostRecent),
        *(gpt2_counting.Count, gpt2_counting.ModularSum),
        *(gpt2.SelectiveCopy, gpt2.Induction, gpt2.Recall),
    )
}
"""Compiled GPT-2s, which do the same."""
IMPOSED: dict[str, type[Imposed]] = {kind.name: kind for kind in (GPT2Recall, MambaRecall)}
"""Trained models."""
FAMILIES: dict[str, str] = {
    **dict.fromkeys(BLUEPRINTS, "mamba"),
    **dict.fromkeys(GPT2_BLUEPRINTS, "gpt2"),
    **{name: kind.architecture.family for name, kind in IMPOSED.items()},
}
"""The family of each model."""
MODELS: dict[str, Callable[[], Any]] = {**BLUEPRINTS, **GPT2_BLUEPRINTS, **IMPOSED}
GROUPS: dict[str, dict[str, Any]] = {
    "all": {**MODELS},
    "mamba": {**BLUEPRINTS},
    "gpt2": {**GPT2_BLUEPRINTS},
    "trained": {**IMPOSED},
}
"""Names for several of them."""
