"""The base of every sparse autoencoder: parameters, encoding, decoding, the auxiliary loss, folding of the scale.

x̂ = f W_dec + b_dec with f = activation((x − b_dec) W_enc + b_enc), f ≥ 0 and mostly zero (Bricken et al. 2023,
"Towards Monosemanticity"). Architectures differ in the activation and in what keeps f sparse; each is one file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..utils.errors import MechintError

AUX_WEIGHT = 1 / 32
"""Weight of the auxiliary loss (Gao et al. 2024, "Scaling and evaluating sparse autoencoders", appendix A.2)."""

LARGEST = 1 << 44
"""Weights of an encoder: 64 TiB of them."""


@dataclass(frozen=True)
class SAEConfig:
    """The shape of a dictionary, what keeps it sparse, and what it was trained on.

    Attributes:
        architecture: A name in :data:`mechint.sae.ARCHITECTURES`.
        d_in: Width of the activations.
        d_sae: Latents.
        k: Active latents of an input (topk), on average over a batch (batch_topk, matryoshka), or the L0 that the
            penalty of jumprelu aims at; 0 where the penalty's weight alone decides.
        penalty: Weight of the penalty (relu, topk: of Σ f, gated: of the gates' Σ, jumprelu: of L0 or of the distance
            to k), where E‖x‖² = d_in and the error is ‖x − x̂‖².
        groups: Nested widths of a matryoshka dictionary, ascending; the last is d_sae.
        apply_b_dec_to_input: True if b_dec is subtracted before encoding.
        model_name: Hub id or path of the model.
        model_family: ``mamba``, ``gpt2`` or ``llama``; decides the Hugging Face names that are saved along.
        site: Site whose activations are encoded, such as ``layers.0.out``.
        layer: Its layer, −1 for sites outside the layers.
        flatten: Rule that turned the site's axes into d_in, see :mod:`mechint.sae.activations.pools`.
        context_size: Tokens of a context.
        prepend_bos: True if a context began with the beginning-of-sequence token.
        dataset: Text that the activations come from.
        seed: Seed of the initialisation.
        scale: Training inputs were activations times this; 1.0 when they were not scaled. Weights on disk are for raw
            activations.
        tokens: Activations seen in training.
        baseline: ``frozen_decoder`` or ``frozen_encoder`` for a control whose directions stayed as they were drawn.
        trained_as: Architecture in training, where inference has another: batch_topk and matryoshka are saved as
            jumprelu.
    """

    architecture: str
    d_in: int
    d_sae: int
    k: int = 0
    penalty: float = 0.0
    groups: tuple[int, ...] = ()
    apply_b_dec_to_input: bool = True
    model_name: str = ""
    model_family: str = ""
    site: str = ""
    layer: int = -1
    flatten: str = ""
    context_size: int = 0
    prepend_bos: bool = False
    dataset: str = ""
    seed: int = 0
    scale: float = 1.0
    tokens: int = 0
    baseline: str = ""
    trained_as: str = ""


@dataclass(frozen=True)
class Step:
    """The progress of training, as far as a loss needs it.

    Attributes:
        warmth: Share of the penalty that counts, 0 … 1: penalties are warmed up.
        dead: Latents that have been silent for long, [d_sae] bool; None while nothing is known.
    """

    warmth: float = 1.0
    dead: Tensor | None = None


@dataclass
class Loss:
    """Named terms whose sum is minimised, each weighted already, and what a step observed.

    Attributes:
        terms: Scalars; ``mse`` is the mean of ‖x − x̂‖² over the batch.
        fired: Activations of each latent in the batch, [d_sae] counts.
        l0: Mean number of active latents.
        seen: Quantities of which training keeps moving averages.
    """

    terms: dict[str, Tensor]
    fired: Tensor
    l0: Tensor
    seen: dict[str, Tensor] = field(default_factory=dict)

    @property
    def total(self) -> Tensor:
        return torch.stack(list(self.terms.values())).sum()


class SparseAutoencoder(nn.Module, ABC):
    """W_enc [d_in, d_sae], b_enc [d_sae], W_dec [d_sae, d_in], b_dec [d_in].

    In training, inputs are scaled so that E‖x‖² = d_in; :meth:`fold` brings the weights back to raw activations. Rows
    of W_dec have norm 1 throughout, so an activation is in units of the input.
    """

    tensors: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"W_enc": "W_enc", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
    )
    """Attributes that are saved, and their names in SAELens' files."""
    in_input_units: ClassVar[tuple[str, ...]] = ("b_enc", "b_dec")
    """Saved tensors that grow with the input when the input grows."""
    saved_as: ClassVar[str] = ""
    """Architecture on disk, where it is not our name."""
    centred = False
    """True if it was trained on activations less their mean over the width, and is not attached to its model yet."""
    keys_and_values: tuple[int, ...] = ()
    """Keys and values of the matrix that it reads flattened, where its file says them; a site must have the same."""

    def __init__(self, config: SAEConfig) -> None:
        super().__init__()
        if config.d_in < 1 or config.d_sae < 1:
            raise MechintError(f"dictionary: d_in is {config.d_in} and d_sae {config.d_sae}; both must be at least 1")
        if config.d_in * config.d_sae > LARGEST:
            raise MechintError(
                f"dictionary: {config.d_sae} latents of {config.d_in} dimensions are more than any machine holds; take "
                "fewer latents"
            )
        if config.k > config.d_sae:
            raise MechintError(
                f"dictionary: k is {config.k}, more than the {config.d_sae} latents; choose a smaller k or more latents"
            )
        self.config = config
        # the memory of W_enc is [d_sae, d_in]: a latent's weights lie side by side in both matrices
        self.W_enc = nn.Parameter(torch.zeros(config.d_sae, config.d_in).t())
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae))
        self.W_dec = nn.Parameter(torch.zeros(config.d_sae, config.d_in))
        self.b_dec = nn.Parameter(torch.zeros(config.d_in))

    def check_input(self, x: Tensor) -> None:
        """Raises :class:`MechintError` unless x is [..., d_in], or where the dictionary must be attached first."""
        self.check_attached()
        if x.shape[-1] != self.config.d_in:
            where = f" of {self.config.site}" if self.config.site else ""
            raise MechintError(
                f"the dictionary{where} takes activations of width {self.config.d_in}; got width {x.shape[-1]}: choose "
                f"the site that it was trained on"
            )

    def check_attached(self) -> None:
        """Raises :class:`MechintError` where what the dictionary reads depends on a model that is not known yet."""
        if self.centred:
            raise MechintError(
                f"the dictionary of {self.config.site} was trained with center_writing_weights, which takes the mean "
                f"from the stream of models with LayerNorm; attach it to its model first: sae.attach(dictionary, model)"
            )

    def pre_activations(self, x: Tensor) -> Tensor:
        """(x − b_dec) W_enc + b_enc: x [..., d_in] -> [..., d_sae]."""
        self.check_input(x)
        if self.config.apply_b_dec_to_input:
            x = x - self.b_dec
        return x @ self.W_enc + self.b_enc

    @abstractmethod
    def activate(self, pre: Tensor) -> Tensor:
        """The activation function at inference: [..., d_sae] -> [..., d_sae], ≥ 0."""

    def encode(self, x: Tensor) -> Tensor:
        """Activations x [..., d_in] -> latents f [..., d_sae]."""
        return self.activate(self.pre_activations(x))

    def decode(self, f: Tensor) -> Tensor:
        """Latents f [..., d_sae] -> reconstruction [..., d_in]."""
        return f @ self.W_dec + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction x̂ of x [..., d_in]."""
        return self.decode(self.encode(x))

    @abstractmethod
    def loss(self, x: Tensor, step: Step) -> Loss:
        """The training loss on a batch x [batch, d_in] of scaled activations."""

    def auxiliary(self, x: Tensor, error: Tensor, dead: Tensor | None) -> dict[str, Tensor]:
        """The loss that revives dead latents, :func:`revival`.

        Args:
            x: Scaled activations, [batch, d_in].
            error: x − x̂, [batch, d_in]; no gradient flows into it.
            dead: [d_sae] bool, or None.

        Returns:
            The term ``aux``, or nothing when no latent is dead.
        """
        where = None if dead is None else dead.nonzero().squeeze(1)
        if where is None or len(where) == 0:
            return {}
        pre = (x - self.b_dec) @ self.W_enc.t()[where].t() + self.b_enc[where]  # [batch, dead]
        return {"aux": revival(pre, self.W_dec[where], error)}

    @torch.no_grad()
    def initialise(self, center: Tensor, random: torch.Generator) -> None:
        """Random directions of norm 1, W_enc = W_decᵀ, b_dec at the centre of the data, [d_in]."""
        directions = torch.randn(self.W_dec.shape, generator=random)
        self.W_dec.copy_(directions)
        self.normalise()
        self.W_enc.copy_(self.W_dec.t())
        self.b_dec.copy_(center)

    @torch.no_grad()
    def normalise(self) -> None:
        """Rows of W_dec back to norm 1."""
        self.W_dec.div_(torch.linalg.vector_norm(self.W_dec, dim=1, keepdim=True).clamp_min(1e-8))

    @torch.no_grad()
    def remove_parallel_gradient(self) -> None:
        """The gradient of W_dec without its part along the rows: a step must not change their norm."""
        grad = self.W_dec.grad
        if grad is not None:
            grad.addcmul_(self.W_dec, (grad * self.W_dec).sum(1, keepdim=True), value=-1)

    @torch.no_grad()
    def observe(self, loss: Loss) -> None:
        """Keeps what a step saw, for inference; most architectures need nothing."""

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Sets what inference needs from scaled activations x [n, d_in] after the last step; most need nothing."""

    @torch.no_grad()
    def fold(self, scale: float) -> SparseAutoencoder:
        """A dictionary for raw activations a from one trained on a · scale: encodings and reconstruction are divided.

        All activation functions here are homogeneous, so dividing biases and thresholds does it.
        """
        folded = self.inference()
        folded.config = replace(folded.config, scale=scale)
        for name in folded.in_input_units:
            getattr(folded, name).div_(scale)
        return folded

    @torch.no_grad()
    def inference(self) -> SparseAutoencoder:
        """A copy of the dictionary as it is used and saved: another architecture for batch_topk and matryoshka."""
        copy = type(self)(self.config).to(self.W_dec.device)
        copy.load_state_dict(self.state_dict())
        copy.centred, copy.keys_and_values = self.centred, self.keys_and_values
        return copy.requires_grad_(False).eval()

    def extra_config(self) -> dict[str, Any]:
        """Keys of SAELens' cfg.json that only this architecture has."""
        return {}


def revival(pre: Tensor, decoder: Tensor, error: Tensor) -> Tensor:
    """The loss that revives dead latents: the most active of them, half the width at most, are to explain the error.

    Weight 1/32, less while there are fewer dead latents than that (Gao et al. 2024, appendix A.2).

    Args:
        pre: Pre-activations of the dead latents, [batch, dead].
        decoder: Their directions, [dead, width].
        error: The part of the target that is left, [batch, width]; no gradient flows into it.
    """
    dead, width = decoder.shape
    k, f = max(1, width // 2), torch.relu(pre)
    if dead > k:
        values, at = f.topk(k, dim=-1, sorted=False)
        f = torch.zeros_like(f).scatter(-1, at, values)
    short = f @ decoder - error.detach()
    return AUX_WEIGHT * min(1.0, dead / k) * short.square().sum(-1).mean()


def squared_error(x: Tensor, reconstruction: Tensor) -> Tensor:
    """Mean over the batch of ‖x − x̂‖², [batch, d_in] -> scalar."""
    return (x - reconstruction).square().sum(-1).mean()
