"""Transcoders: dictionaries that read one site and write another, such as a feed-forward part's input and output.

>>> transcoder = sae.load_transcoder("someone/transcoders:layer_5").attach(model)
>>> print(transcoder.fit(model, tokens))
>>> mechint.steer(model, transcoder.direction(412), 4.0).text("The President", 20)

ŷ = f W_dec + b_dec + x W_skipᵀ with f = activation(x W_enc + b_enc) (Dunefsky et al. 2024, "Transcoders find
interpretable LLM feature circuits"; with W_skip Paulo et al. 2025, "Transcoders beat sparse autoencoders for
interpretability"). The evaluation of dictionaries puts ŷ in the place of what is written; a circuit keeps or replaces
each latent's part f W_dec of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..interventions.model import Model
from ..interventions.run import run
from ..interventions.steering import Direction
from ..models.parts.norms import LayerNorm, RMSNorm, WeightlessLayerNorm
from ..utils.errors import MechintError
from .activations.flattening import check_fit, flat_width, flatten
from .attach import Fit, site_of
from .topk import top

INPUTS = ("ln1.hook_normalized", "ln2.hook_normalized", "mlp.hook_in")
"""TransformerLens' hooks behind ``blocks.{layer}.`` that a part reads; our sites are ``ln_1`` and ``ln_2``."""


@dataclass(frozen=True)
class TranscoderConfig:
    """The shape of a transcoder and its two sites.

    Attributes:
        architecture: ``relu``, ``topk`` or ``jumprelu``.
        d_in, d_sae, d_out: Width of what is read, latents, width of what is written.
        k: Active latents of topk; else 0.
        site, site_out: Sites that are read and written, as the file or, attached, the model calls them.
        model_name: Hub id or path of the model.
        flatten: The rule that makes d_in numbers of the axes of a site: all of them.
    """

    architecture: str
    d_in: int
    d_sae: int
    d_out: int
    k: int = 0
    site: str = ""
    site_out: str = ""
    model_name: str = ""
    flatten: str = "all"

    @property
    def layer(self) -> int:
        """The layer that is written; −1 where the site is in none, or as another library calls it."""
        found = re.match(r"layers\.([0-9]+)\.", self.site_out)
        return int(found[1]) if found else -1


class Transcoder(nn.Module):
    """W_enc [d_in, d_sae], b_enc [d_sae], W_dec [d_sae, d_out], b_dec [d_out]; frozen.

    Args:
        config: Its shape and sites.
        tensors: These, and where there are some ``threshold`` [d_sae] and ``W_skip`` [d_out, d_in].

    Raises:
        MechintError: a tensor has another shape than the configuration says, or is not finite.
    """

    def __init__(self, config: TranscoderConfig, tensors: dict[str, Tensor], where: str = "transcoder") -> None:
        super().__init__()
        c = self.config = config
        shapes = {
            "W_enc": (c.d_in, c.d_sae), "b_enc": (c.d_sae,), "W_dec": (c.d_sae, c.d_out), "b_dec": (c.d_out,),
            "threshold": (c.d_sae,), "W_skip": (c.d_out, c.d_in),
        }  # fmt: skip
        for name, tensor in tensors.items():
            if tuple(tensor.shape) != shapes[name]:
                raise MechintError(
                    f"{where}: {name} is {list(tensor.shape)}, and not {list(shapes[name])} as its sizes say"
                )
            if not torch.isfinite(tensor).all():
                raise MechintError(f"{where}: {name} holds NaN or infinite numbers; copy the file again")
            self.register_buffer(name, tensor.detach().to(torch.float32).contiguous())
        self.W_enc: Tensor
        self.b_enc: Tensor
        self.W_dec: Tensor
        self.b_dec: Tensor

    def encode(self, x: Tensor) -> Tensor:
        """Activations x [..., d_in] of the site that is read -> latents f [..., d_sae]."""
        if x.shape[-1] != self.config.d_in:
            raise MechintError(
                f"the transcoder of {self.config.site} reads {self.config.d_in} numbers; got {x.shape[-1]}: choose the "
                f"site that it was trained on"
            )
        pre = x @ self.W_enc + self.b_enc
        if self.config.architecture == "topk":
            return top(pre, self.config.k)
        f = torch.relu(pre)
        return f * (pre > self.get_buffer("threshold")) if self.config.architecture == "jumprelu" else f

    def decode(self, f: Tensor) -> Tensor:
        """Latents f [..., d_sae] -> what they write, [..., d_out], without the skip connection."""
        return f @ self.W_dec + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        """The estimate of the site that is written, [..., d_out], from the one that is read, x [..., d_in]."""
        return self.written(self.encode(x), x)

    def written(self, f: Tensor, x: Tensor) -> Tensor:
        """The estimate of the site that is written, [..., d_out], from latents f and what is read, x [..., d_in]."""
        made = self.decode(f)
        return made + self.skipped(x) if self.has_skip else made

    @property
    def has_skip(self) -> bool:
        """True if there is a skip connection."""
        return "W_skip" in self._buffers

    def skipped(self, x: Tensor) -> Tensor:
        """The output of the skip connection, x W_skipᵀ [..., d_out], from what is read, x [..., d_in]."""
        return x @ self.get_buffer("W_skip").T

    def attach(self, model: Model, site: str = "", site_out: str = "") -> Transcoder:
        """The same transcoder at two sites of this model.

        Args:
            site, site_out: Sites, where the file says none or others; any names that :func:`.attach.site_of` knows.
                ``hook_normalized`` is in front of an RMSNorm's weight and our site behind it, so the encoder takes the
                weight in.

        Raises:
            MechintError: no site has such a name, or one has another width; a site is not said.
        """
        c, said, out = self.config, site or self.config.site, site_out or self.config.site_out
        if not out:
            raise MechintError(
                "the transcoder's file does not say which site it writes; name it: attach(model, site, site_out)"
            )
        written = site_of(out, model)
        read = input_of(said, written, model)
        check_fit(self, model, read)
        width = flat_width(model.sites[written], "all")
        if width != c.d_out:
            raise MechintError(
                f"the transcoder writes {c.d_out} numbers at a position, and {written} of {model.source} has {width}; "
                f"choose the site that it was trained on"
            )
        tensors, weight = dict(self.named_buffers()), weight_before(said, read, model)
        if weight is not None:  # (x w) (W / w) = x W
            tensors["W_enc"] = tensors["W_enc"] / weight.unsqueeze(1)
            tensors |= {"W_skip": tensors["W_skip"] / weight} if "W_skip" in tensors else {}
        return Transcoder(replace(c, site=read, site_out=written), tensors)

    def direction(self, latent: int) -> Direction:
        """The direction that a latent writes, for :func:`mechint.steer`.

        Raises:
            MechintError: there is no such latent.
        """
        if not 0 <= latent < self.config.d_sae:
            raise MechintError(
                f"latent {latent} does not exist; there are {self.config.d_sae} (0 to {self.config.d_sae - 1})"
            )
        return Direction(self.config.site_out, self.W_dec[latent])

    @torch.no_grad()
    def fit(self, model: Model, tokens: Tensor) -> Fit:
        """Measures what is explained of the written site on text, here and from the same sites of every other layer.

        Args:
            tokens: Token ids of the text, [batch, position]; the first position is left out, as by :func:`.attach.fit`.
        """
        c = self.config
        pairs = {
            written: read
            for layer in range(model.num_layers)
            if (read := moved(c.site, layer)) in model.sites and (written := moved(c.site_out, layer)) in model.sites
        }
        found = run(model, tokens, record=[*pairs, *pairs.values()])
        numbers = {}
        for written, read in pairs.items():
            x, y = (flatten(found[name][:, 1:], "all").flatten(0, -2) for name in (read, written))
            if (x.shape[-1], y.shape[-1]) == (c.d_in, c.d_out):
                numbers[written] = self._measure(x, y)
        explained, norm, l0 = numbers.pop(c.site_out)
        return Fit(f"{c.site} → {c.site_out}", explained, norm, l0, {name: one[0] for name, one in numbers.items()})

    def _measure(self, x: Tensor, y: Tensor) -> tuple[float, float, float]:
        """Variance explained, norm ratio and L0 of inputs x [n, d_in] and outputs y [n, d_out]."""
        made, y = self(x).double(), y.double()
        left = (y - made).square().sum(-1).mean() / (y - y.mean(0)).square().sum(-1).mean()
        norm = made.norm(dim=-1).mean() / y.norm(dim=-1).mean()
        return float(1 - left), float(norm), float((self.encode(x) > 0).sum(-1).double().mean())


def input_of(said: str, written: str, model: Model) -> str:
    """The site that is read: the one said, or without one the input of the feed-forward part that is written.

    Raises:
        MechintError: no such site.
    """
    layer, _, kind = written.rpartition(".")
    if not said:
        if kind != "mlp_out":
            raise MechintError(f"the transcoder's file does not say which site it reads beside {written}; name it")
        return site_of(f"{layer}.ln_2", model)
    found = re.fullmatch(r"blocks\.([0-9]+)\.(.+)", said)
    if found is None or found[2] not in INPUTS:
        return site_of(said, model)
    return site_of(f"layers.{found[1]}.{'ln_1' if found[2].startswith('ln1') else 'ln_2'}", model)


def weight_before(said: str, read: str, model: Model) -> Tensor | None:
    """The weight [d_in] that lies between a hook, which is in front of it, and our site behind it; None without one.

    Raises:
        MechintError: the norm there is none whose weight can be taken into an encoder.
    """
    if not said.endswith(".hook_normalized"):
        return None
    _, layer, kind = read.split(".")
    norm = model.norm_at(int(layer), kind)
    if isinstance(norm, LayerNorm | WeightlessLayerNorm):  # TransformerLens has its hook behind weight and bias
        return None
    weight = norm.weight.detach().float() + norm.plus if isinstance(norm, RMSNorm) else torch.zeros(1)
    if not weight.all():
        raise MechintError(
            f"{said} is in front of a norm's weight, and {read} of {model.source} is not that of an RMSNorm whose "
            f"weights are all other than 0; name the site that the transcoder reads"
        )
    return weight


def moved(site: str, layer: int) -> str:
    """The same site of another layer."""
    return re.sub(r"^layers\.[0-9]+\.", f"layers.{layer}.", site)
