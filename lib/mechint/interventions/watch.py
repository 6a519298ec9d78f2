"""Watching the parts of some layers while a model runs, in a ``with`` block: for notebooks.

>>> with mechint.watch(model, [(0, "mixer"), (5, "mixer")]) as parts:
...     logits = model(tokens)
>>> parts[5, "mixer"].output  # [batch, position, model]
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from torch import Tensor

from ..utils.errors import MechintError, an, did_you_mean
from .model import Model
from .run import run


class Part:
    """The input and output of a part of a layer in the last forward of the block."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.values: tuple[Tensor, Tensor] | None = None

    def _of_run(self) -> tuple[Tensor, Tensor]:
        if self.values is None:
            raise MechintError(f"{self.name} was watched, but the model was not run inside the block")
        return self.values

    @property
    def input(self) -> Tensor:
        return self._of_run()[0]

    @property
    def output(self) -> Tensor:
        return self._of_run()[1]


@contextlib.contextmanager
def watch(model: Model, parts: Iterable[tuple[int, str]]) -> Iterator[dict[tuple[int, str], Part]]:
    """Keeps inputs and outputs of parts of layers whenever ``model(tokens)`` runs inside the block.

    Gradients flow through them as always. Sites that are no whole part are read by :func:`mechint.run`.

    Args:
        model: From :func:`mechint.load`.
        parts: (layer, name) pairs; the names are those of ``model.parts``, such as ``block``, ``mixer`` or ``attn``.

    Raises:
        MechintError: no such layer or part.
    """
    found: dict[tuple[int, str], Part] = {}
    sites: dict[tuple[int, str], tuple[str, str]] = {}
    for layer, name in parts:
        if not 0 <= layer < model.num_layers:
            raise MechintError(f"no layer {layer}; this model has {model.num_layers} (0 to {model.num_layers - 1})")
        if name not in model.parts:
            raise MechintError(
                f"a layer of {an(model.config.family)} has no part {name!r}{did_you_mean(name, model.parts)}; take "
                f"{', '.join(model.parts)}, or record a site with mechint.run"
            )
        found[layer, name] = Part(f"layers.{layer} {name}")
        before, after = model.parts[name]
        sites[layer, name] = (f"layers.{layer}.{before}", f"layers.{layer}.{after}")
        if not model.sites.keys() >= set(sites[layer, name]):
            raise MechintError(
                f"layer {layer} of this {model.config.family} has no part {name!r}; other layers have it"
            )
    plain = model.forward

    def forward(tokens: Tensor) -> Tensor:
        done = run(model, tokens, {site for pair in sites.values() for site in pair})
        for key, (before, after) in sites.items():
            found[key].values = (done[before], done[after])
        return done.logits

    model.forward = forward  # type: ignore[method-assign]
    try:
        yield found
    finally:
        if getattr(plain, "__func__", None) is type(model).forward:
            del model.forward  # the class's own again
        else:
            model.forward = plain  # type: ignore[method-assign]
