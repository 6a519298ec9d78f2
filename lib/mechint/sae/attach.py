"""Published dictionaries at a model's sites: the site by another library's name of it, and whether the dictionary fits.

>>> dictionary = sae.attach(sae.load("gpt2-small-res-jb/blocks.8.hook_resid_pre"), model)
>>> print(sae.fit(dictionary, model, tokens))

1. Names. :func:`site_of` knows our names, Hugging Face's modules (whose output the dictionary reads; with or without
   the base model's name in front, as SAELens and sparsify write them), TransformerLens' hooks, and the submodules of
   dictionary_learning.
2. Centred weights. TransformerLens can take the mean over the stream's width from every weight that writes to it.
   A dictionary of such a model (``center_writing_weights``) reads x − mean(x), which :func:`attach` folds into the
   encoder: with P = I − 11ᵀ/d, (P x − b) W + c = (x − b) P W + (c + b (P W − W)). TransformerLens does this only
   to models with LayerNorm.
3. Fit. :func:`fit` measures on text what the dictionary explains at its site and at the same site of other layers: a
   dictionary of another model, layer or scale explains little, or more elsewhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..interventions.model import Model
from ..interventions.run import run
from ..models.loading.hf_modules import module_of
from ..models.parts.norms import LayerNorm, WeightlessLayerNorm
from ..utils.errors import MechintError, did_you_mean, shown
from .activations.flattening import check_fit, flatten, rule_of
from .base import SparseAutoencoder

HOOKS = {
    "hook_embed": "embed",
    "hook_pos_embed": "pos_embed",
    "hook_resid_pre": "layers.{layer}.resid_pre",
    "hook_resid_mid": "layers.{layer}.resid_mid",
    "hook_resid_post": "layers.{layer}.resid_post",
    "hook_attn_out": "layers.{layer}.attn_out",
    "hook_mlp_out": "layers.{layer}.mlp_out",
    "attn.hook_q": "layers.{layer}.q",
    "attn.hook_k": "layers.{layer}.k",
    "attn.hook_v": "layers.{layer}.v",
    "attn.hook_z": "layers.{layer}.head_out",
    "mlp.hook_pre": "layers.{layer}.mlp_pre",
    "mlp.hook_post": "layers.{layer}.mlp_post",
    "mlp.hook_out": "layers.{layer}.mlp_out",
}
"""TransformerLens' hooks behind ``blocks.{layer}.`` (the last one is circuit-tracer's), and our sites."""
BASES = ("backbone.", "transformer.", "model.", "gpt_neox.")
"""Names of base models, which sparsify leaves out."""
SUBMODULES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
"""Submodules of dictionary_learning: ``resid_post_layer_5``, or ``resid_post`` beside a layer."""
LEAST, CLEARLY = 0.5, 0.02
"""Variance explained below which a dictionary does not fit, and by which another layer must be better to be named."""


def site_of(name: str, model: Model, layer: int = -1) -> str:
    """The site of a model that another library calls ``name``.

    Args:
        layer: Layer that the dictionary's file says, for names that hold none; −1 where it says none.

    Raises:
        MechintError: nothing here knows the name, or the model has no such site.
    """
    if name in model.sites:
        return name
    found = _by_hook(name) or _by_submodule(name, layer) or _modules(model).get(name)
    if found in model.sites:
        return str(found)
    if found is not None:
        raise MechintError(f"{name} is the site {found}, which {model.source} does not have; see model.sites")
    near = did_you_mean(name, [*model.sites, *_modules(model)])
    raise MechintError(
        f"no site of {model.source} is called {shown(name)}{near}; give a name of model.sites, of a Hugging Face "
        f"module or of a TransformerLens hook (blocks.5.hook_resid_post)"
    )


def _by_hook(name: str) -> str | None:
    found = re.fullmatch(r"(?:blocks\.([0-9]+)\.)?(.+)", name)
    if found is None or found[2] not in HOOKS:
        return None
    site = HOOKS[found[2]]
    return site.format(layer=found[1]) if (found[1] is not None) == ("{layer}" in site) else None


def _by_submodule(name: str, layer: int) -> str | None:
    found = re.fullmatch(r"([a-z_]+?)(?:_layer_?([0-9]+))?", name)
    if found is None or found[1] not in SUBMODULES or (found[2] is None and layer < 0):
        return None
    return f"layers.{found[2] if found[2] is not None else layer}.{found[1]}"


def _modules(model: Model) -> dict[str, str]:
    """Our site of each Hugging Face module; a layer's output is called that, not the next one's input."""
    family, found = str(model.config.family), dict[str, str]()
    for name in sorted(model.sites, key=lambda name: name.endswith("resid_pre")):
        layer = re.match(r"layers\.([0-9]+)\.", name)
        module = module_of(family, name, int(layer[1]) if layer else -1)
        if module != name:
            for each in (module, *(module.removeprefix(base) for base in BASES if module.startswith(base))):
                found.setdefault(each, name)
    return found


@torch.no_grad()
def attach(dictionary: SparseAutoencoder, model: Model, site: str = "") -> SparseAutoencoder:
    """A copy of a dictionary that is at a site of this model, for encodings, splices, circuits and pages.

    Args:
        dictionary: From :func:`mechint.sae.load` or the loaders of other formats.
        site: Site, where the file says none or another; any name that :func:`site_of` knows.

    Raises:
        MechintError: no site has this name, or the site has another width.
    """
    config = dictionary.config
    named = site or config.site
    if not named:
        raise MechintError("the dictionary's file does not say of which site it is; name the site")
    ours = site_of(named, model, config.layer)
    layer = re.match(r"layers\.([0-9]+)\.", ours)
    copy = dictionary.inference()
    family = str(model.config.family)
    copy.config = replace(config, site=ours, layer=int(layer[1]) if layer else -1, model_family=family)
    check_fit(copy, model, ours)
    modules: Any = model
    if dictionary.centred and any(isinstance(module, LayerNorm | WeightlessLayerNorm) for module in modules.modules()):
        centre(copy)
    copy.centred = False
    return copy


@torch.no_grad()
def centre(dictionary: SparseAutoencoder) -> None:
    """Lets a dictionary of centred activations read raw ones; see the top of this file."""
    W = dictionary.W_enc.double()
    PW = W - W.mean(0, keepdim=True)
    if dictionary.config.apply_b_dec_to_input:
        shift = dictionary.b_dec.double() @ (PW - W)
        r_mag = getattr(dictionary, "r_mag", torch.zeros(1)).double()  # of a gated dictionary's magnitude
        for name in ("b_enc", "b_mag"):
            if hasattr(dictionary, name):
                getattr(dictionary, name).add_(shift * (r_mag.exp() if name == "b_mag" else 1.0))
    dictionary.W_enc.copy_(PW)


@dataclass(frozen=True)
class Fit:
    """The fit of a dictionary to the activations of some text.

    Attributes:
        site: The dictionary's site.
        variance_explained: 1 − E‖x − x̂‖² / E‖x − mean(x)‖² over all positions but each text's first.
        norm: Mean norm of the reconstructions over that of the activations.
        l0: Latents that are active at a position, on average.
        elsewhere: The variance explained at the same site of the other layers, by site.
    """

    site: str
    variance_explained: float
    norm: float
    l0: float
    elsewhere: dict[str, float]

    @property
    def warning(self) -> str | None:
        """The reason why the dictionary looks like one of another model, layer or scale; None where it does not."""
        better = max(self.elsewhere, key=self.elsewhere.__getitem__, default=None)
        if better is not None and self.elsewhere[better] > self.variance_explained + CLEARLY:
            return (
                f"it explains {self.elsewhere[better]:.0%} of the variance at {better}: is it of another layer, or of "
                f"a layer's other end?"
            )
        if self.variance_explained < LEAST:
            return "is it of another model, of a scaled or centred model, or of text of another kind?"
        return None

    def __str__(self) -> str:
        text = (
            f"{self.site}: {self.variance_explained:.1%} of the variance explained, reconstructions "
            f"{self.norm:.2f} times as long as activations, {self.l0:.1f} latents active"
        )
        return text if self.warning is None else f"{text}; {self.warning}"


@torch.no_grad()
def fit(dictionary: SparseAutoencoder, model: Model, tokens: Tensor) -> Fit:
    """Measures an attached dictionary on text, at its site and at the same site of every other layer.

    Args:
        tokens: Token ids of the text, [batch, position]. The first position is left out: its activations are of
            another size in many models, and most dictionaries were not trained on it.
    """
    config, rule = dictionary.config, rule_of(dictionary)
    kind = config.site.rpartition(".")[2]
    same = [
        name for name, site in model.sites.items()
        if name.rpartition(".")[2] == kind and site.units == model.sites[config.site].units
    ]  # fmt: skip
    found = run(model, tokens, record=same)
    measured = {name: _measure(dictionary, flatten(found[name][:, 1:], rule)) for name in same}
    explained, norm, l0 = measured[config.site]
    others = {name: numbers[0] for name, numbers in measured.items() if name != config.site}
    return Fit(config.site, explained, norm, l0, others)


def _measure(dictionary: SparseAutoencoder, x: Tensor) -> tuple[float, float, float]:
    """Variance explained, norm ratio and L0 of activations [..., d_in]."""
    x = x.flatten(0, -2)
    f = dictionary.encode(x)
    made = dictionary.decode(f).double()
    x = x.double()
    left = (x - made).square().sum(-1).mean() / (x - x.mean(0)).square().sum(-1).mean()
    return (
        float(1 - left),
        float(made.norm(dim=-1).mean() / x.norm(dim=-1).mean()),
        float((f > 0).sum(-1).double().mean()),
    )
