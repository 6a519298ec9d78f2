"""Layer-wise relevance propagation: a logit shared out among tokens and biases, and nothing lost on the way.

Every nonlinearity is written as its input times a factor that is held (no gradient), so that gradient × input adds up:

==================== ============================================ ==============================================
where                rule                                         source
==================== ============================================ ==============================================
SiLU, GELU           x · [σ(x)], x · [Φ(x)]                       Jafari et al. 2024 (MambaLRP), section 4.2
Δ, A, B, C           held: the scan is linear in u                Jafari et al. 2024, section 4.1
y ⊙ SiLU(z), MLP     half of a product's relevance to each factor Jafari et al. 2024, section 4.3
RMSNorm, LayerNorm   1/rms and 1/σ held                           Ali et al. 2022, section 4.2
attention            the pattern held: linear in v                Ali et al. 2022, section 4.1
==================== ============================================ ==============================================

Each rule is an edit of the model's own forward that keeps its value and changes its gradient. At every layer, the
relevance of the residual stream and of the biases from there on add up to the logit; it is checked, every time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..interventions.edits import Edit
from ..interventions.model import Model
from ..interventions.run import run
from ..models import gpt2, llama, mamba
from ..scan.checks import accumulate
from ..utils.errors import MechintError

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
"""Tolerance of the sum at any layer, relative to the sum of the sizes of its products or to the logit, whichever is
larger. A token's share is a sum over units that nearly cancel, so its own size does not measure its rounding."""

KNOWN = "there are rules for those of a Mamba-1, a GPT-2 and a Llama"
Seen = dict[str, Tensor]
"""Tensors of the forward by site, as they are built."""
Rule = tuple[str, Callable[[Seen, Tensor, str], Tensor]]


@dataclass(frozen=True)
class Relevance:
    """The relevance of one logit for each row.

    Attributes:
        logit: [row].
        tokens: Relevance of each token's embedding (with its position's, where the model has those), [row, position].
        layers: Relevance of the residual stream before each layer and after the last, [layer + 1, row, position].
        bias: Relevance of the biases of each layer, and of the final norm, [layer + 1, row].
        error: Largest violation of Σ layers[l] + Σ bias[l:] = logit, relative to :data:`TOLERANCE`'s scale.
        of_logit: The same relative to the logit alone.
    """

    logit: Tensor
    tokens: Tensor
    layers: Tensor
    bias: Tensor
    error: float
    of_logit: float


def half(a: Tensor, b: Tensor) -> Tensor:
    """a ⊙ b, of whose gradient × input each factor gets half."""
    return (a * b.detach() + a.detach() * b) / 2


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x).detach()


def gelu(x: Tensor, approximate: str) -> Tensor:
    """x times GELU(x)/x, which is 1/2 at 0."""
    factor = F.gelu(x, approximate=approximate) / x
    return x * factor.where(x != 0, torch.full_like(x, 0.5)).detach()


def norm(module: Any, r: Tensor) -> Tensor:
    """The model's norm, of which the scale is held."""
    if module.weight is None:  # a model without this norm
        return r
    centred = r if not hasattr(module, "bias") else r - r.mean(-1, keepdim=True)
    scale = torch.rsqrt(centred.square().mean(-1, keepdim=True) + module.eps).detach()
    bias = getattr(module, "bias", None)
    out = module.weight * (centred * scale).to(module.weight.dtype)
    return out if bias is None else out + bias


def held(seen: Seen, clean: Tensor, at: str) -> Tensor:
    return clean.detach()


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
    return [
        ("norm", lambda seen, _, at: norm(layer.norm, seen[f"{at}.resid_pre"])),
        ("u", lambda seen, _, at: silu(seen[f"{at}.conv"])),
        ("dt", held), ("B", held), ("C", held),
        ("gate", lambda seen, _, at: silu(seen[f"{at}.z"])),
        ("gated", lambda seen, _, at: half(seen[f"{at}.y"], seen[f"{at}.gate"])),
    ]  # fmt: skip


@rules_of.register
def gpt2_rules(layer: gpt2.Layer) -> list[Rule]:
    return [
        ("ln_1", lambda seen, _, at: norm(layer.ln_1, seen[f"{at}.resid_pre"])),
        ("pattern", held),
        ("ln_2", lambda seen, _, at: norm(layer.ln_2, seen[f"{at}.resid_mid"])),
        ("mlp_post", lambda seen, _, at: gelu(seen[f"{at}.mlp_pre"], layer.mlp.approximate)),
    ]


@rules_of.register
def llama_rules(layer: llama.Layer) -> list[Rule]:
    return [
        ("ln_1", lambda seen, _, at: norm(layer.input_layernorm, seen[f"{at}.resid_pre"])),
        ("pattern", held),
        ("ln_2", lambda seen, _, at: norm(layer.post_attention_layernorm, seen[f"{at}.resid_mid"])),
        ("mlp_post", lambda seen, _, at: half(silu(seen[f"{at}.mlp_pre"]), seen[f"{at}.mlp_up"])),
    ]


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


def check_rules(model: Model) -> None:
    """Raises :class:`MechintError` for a model with a layer without rules."""
    for layer in model.layers:
        rules_of(layer)


def no_rules(model: Model) -> str | None:
    """Says why there are no rules for a model; None where there are."""
    try:
        check_rules(model)
    except MechintError as reason:
        return str(reason)
    return None


def relevance(model: Model, tokens: Tensor, targets: Tensor, positions: Tensor | None = None) -> Relevance:
    """Splits the logits of some next tokens among the tokens of their prompts.

    Args:
        model: From :func:`mechint.load`, in float32 or float64.
        tokens: [row, position].
        targets: The token whose logit is split, [row].
        positions: Positions at which it is read, [row]; None for the last position.

    Raises:
        MechintError: a layer without rules, half precision, or shares that do not add up.
    """
    check_rules(model)
    dtype = next(model.parameters()).dtype
    if dtype not in TOLERANCE:
        raise MechintError(f"relevance: {dtype} rounds too much for shares that add up; load in float32")
    final, _ = model.ending
    last = model.num_layers - 1
    seen: Seen = {}

    def edit(site: str, rule: Callable[[Seen, Tensor, str], Tensor] | None) -> Edit:
        def value(clean: Tensor) -> Tensor:
            # everything after this site is computed from the kept tensor
            seen[site] = clean if rule is None else rule(seen, clean, site.rpartition(".")[0])
            return seen[site]

        return Edit(site, "replace", value)

    own: dict[str, Any] = {}
    for i, layer in enumerate(model.layers):
        own |= {f"layers.{i}.{site}": rule for site, rule in rules_of(layer)}
    own["final_norm"] = lambda seen, clean, at: norm(final, seen[f"layers.{last}.resid_post"])
    needed = [
        "resid_pre",
        "resid_mid",
        "resid_post",
        "conv",
        "y",
        "z",
        "gate",
        "mlp_pre",
        "mlp_up",
        *biases_of(model.layers[0]),
    ]
    wanted = [name for name in model.sites if name in own or name.rpartition(".")[2] in needed]
    rows = torch.arange(len(tokens), device=tokens.device)
    at = torch.full_like(rows, tokens.shape[1] - 1) if positions is None else positions
    # a leaf at the bottom gives everything above it a gradient, and no weight one
    leaf = torch.zeros((), device=tokens.device, requires_grad=True)
    edits = [Edit(model.first_sites[0], "add", leaf), *(edit(name, own.get(name)) for name in wanted)]
    with torch.enable_grad():
        logit = run(model, tokens, edits=edits).logits[rows, at, targets]
        ends = {name: seen[name] for name in wanted if seen[name].requires_grad}
        grads = dict(zip(ends, torch.autograd.grad(logit.sum(), list(ends.values()), allow_unused=True), strict=True))

    def share(name: str, value: Tensor) -> Tensor:
        """value · gradient summed over the units, and the sum of the products' sizes, [2, row, position]."""
        grad = grads.get(name)
        if grad is None:
            return accumulate(value.detach()).new_zeros(2, *tokens.shape)
        value = value.detach().view(grad.shape[2:]) if value.dim() == 1 else value.detach()
        products = value.mul(grad).flatten(2)
        return torch.stack((products.sum(-1), products.abs().sum(-1)))

    stream = [f"layers.{i}.resid_pre" for i in range(last + 1)] + [f"layers.{last}.resid_post"]
    layers, sizes = torch.stack([share(name, seen[name]) for name in stream], 1)
    none = layers.new_zeros(2, len(tokens))
    bias = []
    for i, layer in enumerate(model.layers):
        own_biases = {f"layers.{i}.{site}": value for site, value in biases_of(layer).items() if value is not None}
        bias.append(sum((share(site, value).sum(-1) for site, value in own_biases.items()), none))
    of_final = getattr(final, "bias", None)
    bias.append(none if of_final is None else share("final_norm", of_final).sum(-1))
    of_bias, bias_sizes = torch.stack(bias, 1)
    return checked(logit.detach(), layers, of_bias, (sizes.sum(-1), bias_sizes), TOLERANCE[dtype])


def checked(logit: Tensor, layers: Tensor, bias: Tensor, sizes: tuple[Tensor, Tensor], tolerance: float) -> Relevance:
    """The relevance, unless its shares do not add up to the logit.

    Args:
        logit, layers, bias: As of :class:`Relevance`.
        sizes: Sums of the sizes of the products that ``layers`` and ``bias`` add, [layer + 1, row] each.
        tolerance: For the sum at any layer, relative to these sizes or the logit.

    Raises:
        MechintError: they miss it by more.
    """
    upwards = lambda each: each.flip(0).cumsum(0).flip(0)  # of this layer and all above it
    missed = (layers.sum(-1) + upwards(bias) - logit).abs()
    scale = (sizes[0] + upwards(sizes[1])).maximum(logit.abs())
    error, of_logit = float((missed / scale).max()), float((missed / logit.abs()).max())
    if not error <= tolerance:
        raise MechintError(
            f"relevance: at layer {int((missed / scale).amax(1).argmax())} the shares miss the logit by {error:.1e} of "
            f"their size, above {tolerance:g}; load the model in float64"
        )
    return Relevance(logit, layers[0], layers, bias, error, of_logit)
