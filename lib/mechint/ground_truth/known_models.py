"""Every model whose circuit is known, by name: a class without arguments whose ``compile(seed=…)`` gives one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import imposed
from .gpt2 import counting as gpt2_counting
from .gpt2 import models as gpt2
from .hard import loud_gpt2, loud_mamba, superposed, ways_gpt2, ways_mamba
from .mamba.counting import Count, ModularSum
from .mamba.models import Induction, Latch, MambaBlueprint, MostRecent, Recall, SelectiveCopy, Shift
from .memories.delta_rules import DeltaParity, DeltaRecall
from .memories.hybrid import HybridSections
from .memories.mamba2 import Mamba2Latch, Mamba2Recall
from .memories.models import StackBlueprint
from .memories.roles import DeltaDigits, DeltaLetters

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
IMPOSED: dict[str, type[imposed.Imposed]] = {
    kind.name: kind
    for kind in (
        *(imposed.GPT2Recall, imposed.MambaRecall, imposed.Mamba2Recall, imposed.HybridRecall),
        *(imposed.GPT2Marked, imposed.HybridMarked),
    )
}
"""Trained models."""
HARD_MAMBAS: dict[str, type[MambaBlueprint]] = {
    kind.name: kind
    for kind in (
        *(loud_mamba.LoudShift, loud_mamba.LoudLatch, loud_mamba.LoudSelectiveCopy),
        *(superposed.SuperposedLatch, ways_mamba.TwoWays, ways_mamba.Backup, ways_mamba.Cancelling, ways_mamba.Rare),
    )
}
"""Compiled Mambas of which no product of weights and no gradient finds the circuit."""
HARD_GPT2S: dict[str, type[gpt2.GPT2Blueprint]] = {
    kind.name: kind
    for kind in (
        *(loud_gpt2.LoudGPT2Shift, loud_gpt2.LoudGPT2Latch, loud_gpt2.LoudGPT2Induction, loud_gpt2.LoudGPT2Recall),
        *(superposed.SuperposedGPT2Latch, superposed.SuperposedGPT2Recall, ways_gpt2.TwoHeads, ways_gpt2.Backup),
    )
}
"""Compiled GPT-2s of the same kinds."""
HARD = (*HARD_MAMBAS, *HARD_GPT2S)
"""Their names."""
MEMORIES: dict[str, type[StackBlueprint]] = {
    kind.name: kind
    for kind in (*(Mamba2Recall, Mamba2Latch, DeltaRecall, DeltaParity, DeltaLetters, DeltaDigits, HybridSections),)
}
"""Compiled models of the newer memories, with loud decoys, too."""
FAMILIES: dict[str, str] = {
    **dict.fromkeys(BLUEPRINTS, "mamba"),
    **dict.fromkeys(GPT2_BLUEPRINTS, "gpt2"),
    **dict.fromkeys(HARD_MAMBAS, "mamba"),
    **dict.fromkeys(HARD_GPT2S, "gpt2"),
    **{name: kind.family for name, kind in MEMORIES.items()},
    **{name: kind.family() for name, kind in IMPOSED.items()},
}
"""The family of each model."""
MODELS: dict[str, Callable[[], Any]] = {
    **BLUEPRINTS,
    **GPT2_BLUEPRINTS,
    **IMPOSED,
    **HARD_MAMBAS,
    **HARD_GPT2S,
    **MEMORIES,
}
SHORT = (
    *("recall", "gpt2_count", "gpt2_recall", "loud_latch", "gpt2_loud_recall", "superposed_latch"),
    *("two_ways", "gpt2_backup", "cancelling", "rare"),
)
"""A model of each kind of circuit, three easy ones first: few enough to be scored in minutes."""
GROUPS: dict[str, dict[str, Any]] = {
    "all": {**MODELS},
    "mamba": {**BLUEPRINTS},
    "gpt2": {**GPT2_BLUEPRINTS},
    "trained": {**IMPOSED},
    "hard": {**HARD_MAMBAS, **HARD_GPT2S},
    "memories": {**MEMORIES},
    "short": {name: MODELS[name] for name in SHORT},
}
"""Names for several of them."""
