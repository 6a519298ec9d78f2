"""Links of the compiled GPT-2s: which unit reads what which unit before it writes.

Writers of a layer are the value channels of all its heads, as the output projection writes them, then its neurons;
readers are its query, key and value channels, then its neurons. A neuron reads what heads of its own layer write too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...interventions.model import Model
from ..blueprint import Compiled


def writes(model: Model, layer: int) -> Tensor:
    """The direction that each writer adds to the residual stream for each 1 that it gives, [writer, model]."""
    weights = model.layers[layer]
    return torch.cat([weights.attn.c_proj.weight.T, weights.mlp.c_proj.weight.T])


def reads(model: Model, layer: int) -> Tensor:
    """The direction that each reader takes from a stream of deviation 1, norm weights included, [reader, model]."""
    weights = model.layers[layer]
    return torch.cat([weights.attn.c_attn.weight * weights.ln_1.weight, weights.mlp.c_fc.weight * weights.ln_2.weight])


def kinds(model: Model) -> tuple[dict[str, slice], dict[str, slice]]:
    """The slice of each kind of writer, and of each kind of reader, among those of a layer."""
    wide, whole = model.config.d_model, model.config.d_mlp
    readers = {kind: slice(k * wide, (k + 1) * wide) for k, kind in enumerate("qkv")}
    return {"v": slice(wide), "mlp": slice(wide, wide + whole)}, readers | {"mlp": slice(3 * wide, 3 * wide + whole)}


def later(model: Model) -> Tensor:
    """True where a reader comes after a writer, [layer, writer, layer, reader] bool."""
    writers, readers = kinds(model)
    layers = model.config.n_layer
    behind = torch.ones(layers, layers, dtype=torch.bool).triu(1)[:, None, :, None]
    found = behind.repeat(1, writers["mlp"].stop, 1, readers["mlp"].stop)
    for layer in range(layers):
        found[layer, writers["v"], layer, readers["mlp"]] = True
    return found


def blocks(model: Model) -> list[tuple[int, slice, int, slice]]:
    """Pairs of one kind of writer of one layer and one kind of reader of another, after it."""
    writers, readers = kinds(model)
    layers = range(model.config.n_layer)
    return [
        (i, w, j, r)
        for i in layers
        for writer, w in writers.items()
        for j in layers
        for reader, r in readers.items()
        if i < j or (i == j and (writer, reader) == ("v", "mlp"))
    ]


def ends(compiled: Compiled, writer: str = "zero", reader: str = "zero") -> tuple[Tensor, Tensor]:
    """The declared writers and readers that these two ablations can see, [layer, writer] and [layer, reader] bool."""
    model = compiled.model

    def seen(kind: str, ablation: str) -> Tensor:
        return compiled.truth.mask(model, kind, ablation).bool().view(model.config.n_layer, -1)

    wide = model.config.d_model
    writers = torch.cat([seen("kv", writer)[:, wide:], seen("mlp", writer)], 1)  # keys are first, then values
    return writers, torch.cat([seen(kind, reader) for kind in ("q", "kv", "mlp")], 1)


@torch.no_grad()
def links(compiled: Compiled) -> Tensor:
    """True where a declared reader reads a declared writer, [layer, writer, layer, reader] bool.

    Drawn units read and write named directions alone, so a link is a product of weights that is not zero.
    """
    model = compiled.model
    writers, readers = ends(compiled)
    found = later(model) & writers[:, :, None, None] & readers[None, None]
    for i in range(model.config.n_layer):
        for j in range(i, model.config.n_layer):
            found[i, :, j] &= (writes(model, i).abs() @ reads(model, j).abs().T) > 0
    return found
