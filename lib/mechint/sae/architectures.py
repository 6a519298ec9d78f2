"""The registry of architectures. A new one is a file beside this one and a line in :data:`ARCHITECTURES`."""

from __future__ import annotations

from ..utils.errors import MechintError, did_you_mean, shown
from .base import SAEConfig, SparseAutoencoder
from .batch_topk import BatchTopK
from .gated import Gated
from .jumprelu import JumpReLU
from .matryoshka import Matryoshka
from .relu import ReLU
from .topk import TopK

ARCHITECTURES: dict[str, type[SparseAutoencoder]] = {
    "relu": ReLU,
    "topk": TopK,
    "batch_topk": BatchTopK,
    "jumprelu": JumpReLU,
    "gated": Gated,
    "matryoshka": Matryoshka,
}
BY_COUNT = ("topk", "batch_topk", "matryoshka", "jumprelu")
"""Architectures whose sparsity is a number of active latents, k; that of the others is the weight of a penalty."""


def make(config: SAEConfig) -> SparseAutoencoder:
    """A dictionary of zeros of the architecture that the configuration names.

    Raises:
        MechintError: there is no such architecture, or the sizes contradict each other.
    """
    if config.architecture not in ARCHITECTURES:
        raise MechintError(
            f"no dictionary architecture {shown(config.architecture)}"
            f"{did_you_mean(config.architecture, ARCHITECTURES)}; take {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[config.architecture](config)
