"""The rules of :mod:`.relevance` by kind of layer and part, for sites and for the modules between them.

A rule keeps the value and changes the gradient. Where a factor is held, all relevance goes to the other one (Arras et
al. 2017, "Explaining recurrent neural network predictions": gates get none). In a delta rule the keys are held as well
as β, so that what is erased, too, is linear in the values.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..interventions.model import Model
from ..models import gpt2, llama, mamba
from ..models.parts.attention import Attention, Clip
from ..models.parts.base import Layer as StackLayer
from ..models.parts.convolution import CausalConvolution
from ..models.parts.delta import GatedDelta, KimiDelta
from ..models.parts.experts import Expert, MixtureOfExperts
from ..models.parts.feed_forward import MLP, GatedMLP
from ..models.parts.latent_attention import LatentAttention
from ..models.parts.mamba1 import Mamba1Mixer
from ..models.parts.mamba2 import Mamba2Mixer
from ..models.parts.norms import GatedRMSNorm, LayerNorm, NoNorm, RMSNorm, WeightlessLayerNorm
from ..models.parts.shared import BesideEmbeddings, BlockThenMamba
from ..models.parts.short_conv import ShortConv
from ..scan.checks import accumulate
from ..utils.errors import MechintError

KNOWN = "there are rules for those of a Mamba-1, a GPT-2 and a Llama, and for every layer of known parts"
Seen = dict[str, Tensor]
"""Tensors of the forward by site, as they are built."""
Value = Callable[[Seen, Tensor, str], Tensor]
"""(what was seen, the site's own value, prefix of the layer's sites) -> what replaces the value."""


class Rule(NamedTuple):
    """The replacement of a site.

    Attributes:
        site: Its name within the layer.
        value: Makes the replacement.
        reads: Sites of the layer that it is made of.
    """

    site: str
    value: Value
    reads: tuple[str, ...] = ()


# ---- values kept, gradients changed ----------------------------------------------------------------------------------


def half(a: Tensor, b: Tensor) -> Tensor:
    """a ⊙ b, of whose gradient × input each factor gets half."""
    return (a * b.detach() + a.detach() * b) / 2


def first(a: Tensor, b: Tensor) -> Tensor:
    """a ⊙ b, of whose gradient × input the first factor gets all."""
    return a * b.detach()


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x).detach()


def activated(x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """x times activation(x)/x, which at 0 is the slope on the right."""
    at = x.detach()
    at = at.where(at != 0, torch.full_like(at, 1e-30))
    return x * (activation(at) / at)


def norm(module: Any, r: Tensor) -> Tensor:
    """The model's norm, of which the scale is held."""
    if isinstance(module, NoNorm):
        return r
    centred = r if not hasattr(module, "bias") else r - r.mean(-1, keepdim=True)
    scale = torch.rsqrt(centred.square().mean(-1, keepdim=True) + module.eps).detach()
    if isinstance(module, WeightlessLayerNorm):
        return (centred * scale).to(next(module.readers[0].parameters()).dtype)
    bias, plus = getattr(module, "bias", None), getattr(module, "plus", 0.0)
    if plus:
        return (centred * scale * (plus + module.weight.to(r.dtype))).to(module.weight.dtype)
    out = module.weight * (centred * scale).to(module.weight.dtype)
    return out if bias is None else out + bias


def gated_norm(
    module: GatedRMSNorm | None, y: Tensor, gate: Tensor, product: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """The norm of a gated read-out, of which the scale is held; the product alone where there is no norm."""
    if module is None:
        return product(y, gate)
    wide, gate = accumulate(y), accumulate(gate)
    wide = wide if module.norm_first else product(wide, gate)
    groups = wide.unflatten(-1, (module.groups, -1))
    scale = torch.rsqrt(groups.square().mean(-1, keepdim=True) + module.eps).detach()
    normed = accumulate(module.weight) * (groups * scale).flatten(-2)
    return (product(normed, gate) if module.norm_first else normed).to(y.dtype)


def held(seen: Seen, clean: Tensor, at: str) -> Tensor:
    return clean.detach()


# ---- layers ----------------------------------------------------------------------------------------------------------


@functools.singledispatch
def rules_of(layer: Any) -> list[Rule]:
    """The rules of a layer, by the site that each replaces."""
    raise MechintError(f"relevance: no rules for layers of the kind {type(layer).__name__}; {KNOWN}")


@functools.singledispatch
def biases_of(layer: Any) -> dict[str, Tensor | None]:
    """The biases of a layer, by the site they are added at."""
    raise MechintError(f"relevance: no rules for layers of the kind {type(layer).__name__}; {KNOWN}")


@rules_of.register
def mamba_rules(layer: mamba.Layer) -> list[Rule]:
    return [Rule("norm", lambda seen, _, at: norm(layer.norm, seen[f"{at}.resid_pre"]), ("resid_pre",)), *scan_rules()]


@rules_of.register
def gpt2_rules(layer: gpt2.Layer) -> list[Rule]:
    gelu = partial(F.gelu, approximate=layer.mlp.approximate)
    return [
        Rule("ln_1", lambda seen, _, at: norm(layer.ln_1, seen[f"{at}.resid_pre"]), ("resid_pre",)),
        Rule("pattern", held),
        Rule("ln_2", lambda seen, _, at: norm(layer.ln_2, seen[f"{at}.resid_mid"]), ("resid_mid",)),
        Rule("mlp_post", lambda seen, _, at: activated(seen[f"{at}.mlp_pre"], gelu), ("mlp_pre",)),
    ]


@rules_of.register
def llama_rules(layer: llama.Layer) -> list[Rule]:
    return [
        Rule("ln_1", lambda seen, _, at: norm(layer.input_layernorm, seen[f"{at}.resid_pre"]), ("resid_pre",)),
        Rule("pattern", held),
        Rule("ln_2", lambda seen, _, at: norm(layer.post_attention_layernorm, seen[f"{at}.resid_mid"]), ("resid_mid",)),
        Rule(
            "mlp_post",
            lambda seen, _, at: half(silu(seen[f"{at}.mlp_pre"]), seen[f"{at}.mlp_up"]),
            ("mlp_pre", "mlp_up"),
        ),
    ]


@rules_of.register
def stack_rules(layer: StackLayer) -> list[Rule]:
    """Those of its parts; its norms lie between sites, so that :class:`Inside` replaces them."""
    return [rule for part in layer.parts.values() for rule in part_rules(part)]


@biases_of.register
def mamba_biases(layer: mamba.Layer) -> dict[str, Tensor | None]:
    x, z = (None, None) if layer.in_proj.bias is None else layer.in_proj.bias.chunk(2)
    return {"x": x, "z": z, "conv": layer.conv1d.bias, "out": layer.out_proj.bias}


@biases_of.register
def gpt2_biases(layer: gpt2.Layer) -> dict[str, Tensor | None]:
    value = None if layer.attn.c_attn.bias is None else layer.attn.c_attn.bias[-layer.attn.sizes[-1] :]
    return {
        "ln_1": layer.ln_1.bias, "v": value, "attn_out": layer.attn.c_proj.bias, "ln_2": layer.ln_2.bias,
        "mlp_pre": layer.mlp.c_fc.bias, "mlp_out": layer.mlp.c_proj.bias,
    }  # fmt: skip


@biases_of.register
def llama_biases(layer: llama.Layer) -> dict[str, Tensor | None]:
    attention, mlp = layer.self_attn, layer.mlp
    return {
        "v": attention.v_proj.bias, "attn_out": attention.o_proj.bias, "mlp_pre": mlp.gate_proj.bias,
        "mlp_up": mlp.up_proj.bias, "mlp_out": mlp.down_proj.bias,
    }  # fmt: skip


@biases_of.register
def stack_biases(layer: StackLayer) -> dict[str, Tensor | None]:
    """The convolution's, which is added before its site; :class:`Inside` notes those of other modules."""
    convolution = next((module for module in layer.modules() if isinstance(module, CausalConvolution)), None)
    return {} if convolution is None else {"conv": convolution.bias}


# ---- parts -----------------------------------------------------------------------------------------------------------


@functools.singledispatch
def part_rules(part: nn.Module) -> list[Rule]:
    """The rules of a part of a layer."""
    raise MechintError(f"relevance: no rules for parts of the kind {type(part).__name__}; {KNOWN}")


def scan_rules() -> list[Rule]:
    """Those of Mamba-1's mixer."""
    return [
        Rule("u", lambda seen, _, at: silu(seen[f"{at}.conv"]), ("conv",)),
        Rule("dt", held), Rule("B", held), Rule("C", held),
        Rule("gate", lambda seen, _, at: silu(seen[f"{at}.z"]), ("z",)),
        Rule("gated", lambda seen, _, at: half(seen[f"{at}.y"], seen[f"{at}.gate"]), ("y", "gate")),
    ]  # fmt: skip


@part_rules.register
def mamba1_rules(part: Mamba1Mixer) -> list[Rule]:
    return scan_rules()


@part_rules.register
def mamba2_rules(part: Mamba2Mixer) -> list[Rule]:
    def u(seen: Seen, clean: Tensor, at: str) -> Tensor:
        return activated(seen[f"{at}.conv"][..., : part.inner], part.activation).view_as(clean)

    def gated(seen: Seen, clean: Tensor, at: str) -> Tensor:
        return gated_norm(part.norm, seen[f"{at}.y"].flatten(2), seen[f"{at}.gate"].flatten(2), half)

    return [
        Rule("u", u, ("conv",)), Rule("dt", held), Rule("B", held), Rule("C", held),
        Rule("gate", lambda seen, _, at: silu(seen[f"{at}.z"]), ("z",)), Rule("gated", gated, ("y", "gate")),
    ]  # fmt: skip


@part_rules.register
def delta_rules(part: GatedDelta) -> list[Rule]:
    values = part.sizes[-1]
    gates = not isinstance(part, KimiDelta)
    """True if the output gate is a SiLU, and no sigmoid, which is held."""

    def conv(seen: Seen, clean: Tensor, at: str) -> Tensor:
        return torch.cat([clean[..., :-values].detach(), clean[..., -values:]], -1)

    def u(seen: Seen, clean: Tensor, at: str) -> Tensor:
        return silu(seen[f"{at}.conv"][..., -values:]).view_as(clean)

    def gate(seen: Seen, clean: Tensor, at: str) -> Tensor:
        return silu(seen[f"{at}.z"]) if gates else clean.detach()

    def gated(seen: Seen, clean: Tensor, at: str) -> Tensor:
        return gated_norm(part.norm, seen[f"{at}.y"], seen[f"{at}.gate"], half if gates else first)

    return [
        Rule("conv", conv), Rule("u", u, ("conv",)), Rule("beta", held), Rule("dt", held),
        Rule("gate", gate, ("z",)), Rule("gated", gated, ("y", "gate")),
    ]  # fmt: skip


@part_rules.register(Attention)
@part_rules.register(LatentAttention)
def attention_rules(part: Attention | LatentAttention) -> list[Rule]:
    return [Rule("pattern", held), *[Rule("attn_gate", held)] * getattr(part, "gated", False)]


@part_rules.register
def short_convolution_rules(part: ShortConv) -> list[Rule]:
    return [
        Rule("u", lambda seen, _, at: half(seen[f"{at}.B"], seen[f"{at}.x"]), ("B", "x")),
        Rule("gated", lambda seen, _, at: half(seen[f"{at}.C"], seen[f"{at}.conv"]), ("C", "conv")),
    ]


@part_rules.register
def feed_forward_rules(part: MLP) -> list[Rule]:
    return [Rule("mlp_post", lambda seen, _, at: activated(seen[f"{at}.mlp_pre"], part.activation), ("mlp_pre",))]


@part_rules.register
def gated_feed_forward_rules(part: GatedMLP) -> list[Rule]:
    return gated_neurons(part.activation)


def gated_neurons(activation: Callable[[Tensor], Tensor]) -> list[Rule]:
    """Half to a neuron's gate, half to what it multiplies."""
    product = lambda seen, _, at: half(activated(seen[f"{at}.mlp_pre"], activation), seen[f"{at}.mlp_up"])
    return [Rule("mlp_post", product, ("mlp_pre", "mlp_up"))]


@part_rules.register
def expert_rules(part: MixtureOfExperts) -> list[Rule]:
    shared = [] if part.shared_expert is None else part_rules(part.shared_expert)
    return [Rule("expert_weight", held), *shared]


@part_rules.register
def shared_block_rules(part: BlockThenMamba) -> list[Rule]:
    block = part.block
    return [*part_rules(block.self_attn), *gated_neurons(block.feed_forward.activation), *part_rules(part.mamba)]


# ---- modules between sites -------------------------------------------------------------------------------------------


@functools.singledispatch
def ruled(module: nn.Module) -> Callable[..., Tensor] | None:
    """The function that replaces a module of a layer of parts; None for one that is linear, or that rules of sites
    replace."""
    return None


@ruled.register(RMSNorm)
@ruled.register(LayerNorm)
@ruled.register(WeightlessLayerNorm)
def ruled_norm(module: RMSNorm | LayerNorm | WeightlessLayerNorm) -> Callable[..., Tensor]:
    return lambda r: norm(module, r)


@ruled.register
def ruled_clip(module: Clip) -> Callable[..., Tensor]:
    return lambda x: activated(x, module.bounded)


@ruled.register
def ruled_expert(module: Expert) -> Callable[..., Tensor]:
    def value(n: Tensor) -> Tensor:
        pre = module.gate_proj(n) if module.gated else module.up_proj(n)
        post = activated(pre, module.activation)
        return cast(Tensor, module.down_proj(half(post, module.up_proj(n)) if module.gated else post))

    return value


@dataclass
class Inside:
    """Rules of the modules that lie between sites of layers of parts, and their biases, while :meth:`watching`.

    A zero that has a gradient is added wherever a bias is; the bias times this gradient is its relevance. Another is
    added to embeddings that pass a layer beside the stream (Zamba 2).

    Attributes:
        biases: (number of the layer, zero, bias) of every bias that was added.
        beside: For some layers the zero and the embeddings that it was added to.
    """

    biases: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)
    beside: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    layer: int = 0

    @property
    def zeros(self) -> list[Tensor]:
        return [*(zero for _, zero, _ in self.biases), *(zero for zero, _ in self.beside.values())]

    @contextmanager
    def watching(self, model: Model) -> Iterator[None]:
        with ExitStack() as stack:
            done: set[nn.Module] = set()
            for i, layer in enumerate(model.layers):
                if not isinstance(layer, StackLayer):
                    continue
                stack.callback(layer.register_forward_pre_hook(partial(self.enter, i)).remove)
                for module in layer.modules():
                    if module not in done and (hook := self.hook_of(module)) is not None:
                        stack.callback(module.register_forward_hook(hook).remove)
                    if isinstance(module, MixtureOfExperts) and module.shared_expert_gate is not None:
                        hold = lambda module, given, out: out.detach()
                        stack.callback(module.shared_expert_gate.register_forward_hook(hold).remove)
                    done.add(module)
            yield

    def enter(self, number: int, layer: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        self.layer = number
        if not isinstance(layer, BesideEmbeddings):
            return None
        r, *others = given
        stream, embeddings = r.chunk(2, -1)
        zero = torch.zeros_like(embeddings).requires_grad_()
        self.beside[number] = zero, embeddings
        return torch.cat([stream, embeddings + zero], -1), *others

    def hook_of(self, module: nn.Module) -> Callable[[nn.Module, tuple[Any, ...], Any], Any] | None:
        """The hook that replaces the output of a module and notes its bias; None for neither."""
        value = ruled(module)
        bias = module.bias if isinstance(module, nn.Linear | LayerNorm) else None
        if value is None and bias is None:
            return None

        def hook(module: nn.Module, given: tuple[Any, ...], out: Tensor) -> Tensor:
            out = out if value is None else value(*given)
            if bias is None:
                return out
            zero = torch.zeros_like(out).requires_grad_()
            self.biases.append((self.layer, zero, bias))
            return out + zero

        return hook


def needed(layer: Any) -> set[str]:
    """The sites of a layer that its rules and biases replace or read, and those of the stream around it."""
    rules = rules_of(layer)
    return {"resid_pre", "resid_post", *biases_of(layer)} | {s for rule in rules for s in (rule.site, *rule.reads)}
