"""Hugging Face's module whose output a site is, family by family."""

from __future__ import annotations

from ..families import declared

HF_MODULES = {
    ("mamba", "resid_post"): "backbone.layers.{layer}",
    ("mamba", "out"): "backbone.layers.{layer}.mixer",
    ("mamba", "embed"): "backbone.embeddings",
    ("gpt2", "resid_post"): "transformer.h.{layer}",
    ("gpt2", "attn_out"): "transformer.h.{layer}.attn",
    ("gpt2", "mlp_out"): "transformer.h.{layer}.mlp",
    ("gpt2", "embed"): "transformer.wte",
    ("llama", "resid_post"): "model.layers.{layer}",
    ("llama", "attn_out"): "model.layers.{layer}.self_attn",
    ("llama", "mlp_out"): "model.layers.{layer}.mlp",
    ("llama", "embed"): "model.embed_tokens",
}
BEFORE_LAYERS = {"mamba": "backbone.embeddings", "gpt2": "transformer.drop", "llama": "model.embed_tokens"}


def module_of(family: str, site: str, layer: int) -> str:
    """The module's name, or the site's own where no module's output is the site.

    The input of a layer is the output of the layer before it. The parts of declared families have
    modules of their own names, so that only the residual stream and the embeddings are told there.
    """
    kind = site.rpartition(".")[2]
    if kind == "resid_pre" and (family in BEFORE_LAYERS or family in declared()):
        if layer == 0:
            return BEFORE_LAYERS.get(family) or named(family, "embed_tokens")
        kind, layer = "resid_post", layer - 1
    if family in declared():
        ours = {"embed": "embed_tokens", "resid_post": f"layers.{layer}"}.get(kind)
        return site if ours is None else named(family, ours)
    return HF_MODULES.get((family, kind), site).format(layer=layer)


def named(family: str, ours: str) -> str:
    """Our name of a module of a declared family -> Hugging Face's."""
    names = declared()[family].names
    return names.theirs(f"{ours}.", names.bodies[0]).removesuffix(".")
