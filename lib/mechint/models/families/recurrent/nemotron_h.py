"""Nemotron-H (NVIDIA 2025): one mixer a layer: Mamba-2, attention, a feed-forward part or a mixture of experts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ....utils.errors import MechintError, an, shown
from ...family import Names, StackFamily, stacked
from ...loading.config_reader import ConfigReader
from ...parts.attention import Attention
from ...parts.base import Branch, Layer, Part
from ...parts.experts import MixtureOfExperts, Routing
from ...parts.feed_forward import MLP
from ...parts.mamba2 import Mamba2Mixer
from ...parts.norms import RMSNorm
from ...sizes import Asked, Trained
from ...stack import Stack, StackConfig

KINDS = {
    "linear_attention": "mamba", "mamba": "mamba", "full_attention": "attention", "attention": "attention",
    "mlp": "mlp", "moe": "experts",
}  # fmt: skip
"""The words of configurations, today's and earlier ones."""
LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
"""The letters of the patterns in published configurations."""
EARLIER = {
    "mamba_n_groups": "n_groups", "mamba_d_conv": "conv_kernel", "mamba_conv_bias": "use_conv_bias",
    "mamba_dt_min": "time_step_min", "mamba_dt_limit": "time_step_limit",
}  # fmt: skip
"""Earlier names of keys; where both are there, they must say the same."""


@dataclass(frozen=True, kw_only=True)
class NemotronHConfig(StackConfig):
    """Sizes and switches of a Nemotron-H."""

    kinds: Sequence[str]
    """``mamba``, ``attention``, ``mlp`` or ``experts``, for each layer."""
    n_head: int
    n_kv_head: int
    d_head: int
    d_mlp: int
    mlp_bias: bool
    """True if feed-forward parts, the shared expert and the maps around latent experts have biases."""
    activation: str
    """Activation of the feed-forward parts and experts."""
    ssm_heads: int
    ssm_head_size: int
    d_state: int
    n_groups: int
    d_conv: int
    conv_bias: bool
    proj_bias: bool
    conv_activation: str
    least_dt: float
    """The least step size; there is no largest."""
    experts: int
    d_expert: int
    d_shared: int
    """Neurons of the expert that every token goes through."""
    latent: int
    """Width of what the other experts read and give; 0 for the stream's."""
    routing: Routing
    norm_eps: float
    family = "nemotron_h"


def read(raw: ConfigReader) -> NemotronHConfig:
    """The configuration of a ``config.json``.

    Attention has no rotation, whatever a published file says of one, and tensors for more than one next token
    (``mtp``) are left out.
    """
    raw.ignore(
        "max_position_embeddings num_logits_to_keep use_mamba_kernels expand mamba_expand chunk_size mamba_chunk_size "
        "time_step_max mamba_dt_max time_step_floor mamba_dt_init_floor time_step_rank mamba_ssm_cache_dtype "
        "output_router_logits moe_shared_expert_overlap num_nextn_predict_layers mtp_layers_block_type "
        "mtp_hybrid_override_pattern residual_in_fp32 rescale_prenorm_residual rope_theta rope_parameters "
        "rope_scaling partial_rotary_factor"
    )
    said = {}
    for old, new in EARLIER.items():
        first, other = (old, new) if raw.raw.get(old) is not None else (new, old)
        said[new] = first
        raw.only(other, raw.raw.get(first))
    layers = kinds(raw)
    heads, eps = raw.size("num_attention_heads", 32), raw.number("layer_norm_epsilon", 1e-5)
    shared = "num_key_value_heads" in raw.raw
    kv, d_head = raw.size("num_key_value_heads", heads if shared else 8), raw.size("head_dim", 128)
    same: dict[str, int | float] = {
        "num_hidden_layers": len(layers), "tie_word_embeddings": False, "attention_bias": False,
        "mamba_proj_bias": False, "n_shared_experts": 1, "attention_head_dim": d_head, "num_query_groups": kv,
        "norm_eps": eps, "rms_norm_eps": eps,
    }  # fmt: skip
    for name, value in same.items():
        raw.only(name, value)  # transformers reads another key instead, or none
    if raw.limits(said["time_step_limit"]) != (0.0, math.inf):
        raise MechintError(f"{raw.where}: time_step_limit is no 0 to infinity, which transformers does not apply here")
    experts = raw.size("num_local_experts" if "num_local_experts" in raw.raw else "n_routed_experts", 8)
    raw.only("n_routed_experts", experts)
    routing = Routing(
        raw.size("num_experts_per_tok", 2), "sigmoid", raw.switch("norm_topk_prob", True),
        raw.number("routed_scaling_factor", 1.0, positive=False), True, raw.size("n_group", 1),
        raw.size("topk_group", 1),
    )  # fmt: skip
    if "experts" in layers:
        routing.check(experts, raw.where)
    return NemotronHConfig(
        vocab_size=raw.size("vocab_size"),
        d_model=raw.size("hidden_size"),
        n_layer=len(layers),
        tied=False,
        kinds=layers,
        n_head=heads,
        n_kv_head=kv,
        d_head=d_head,
        d_mlp=raw.size("intermediate_size", 21504),
        mlp_bias=raw.switch("mlp_bias", False),
        activation=raw.activation("mlp_hidden_act", "relu2"),
        ssm_heads=raw.size("mamba_num_heads", 128),
        ssm_head_size=raw.size("mamba_head_dim", 64),
        d_state=raw.size("ssm_state_size", 128),
        n_groups=raw.size(said["n_groups"], 8),
        d_conv=raw.size(said["conv_kernel"], 4),
        conv_bias=raw.switch(said["use_conv_bias"], True),
        proj_bias=raw.switch("use_bias", False),
        conv_activation=raw.activation("mamba_hidden_act"),
        least_dt=raw.number(said["time_step_min"], 0.001),
        experts=experts,
        d_expert=raw.size("moe_intermediate_size", 7688),
        d_shared=raw.size("moe_shared_expert_intermediate_size", 7688),
        latent=raw.size("moe_latent_size", None) or 0,
        routing=routing,
        norm_eps=eps,
    )


def kinds(raw: ConfigReader) -> tuple[str, ...]:
    """The kind of each layer: of a list of words, or of a pattern of letters."""
    raw.ignore("hybrid_override_pattern layers_block_type layer_types")
    lists = [raw.raw[name] for name in ("layers_block_type", "layer_types") if raw.raw.get(name) is not None]
    pattern = raw.raw.get("hybrid_override_pattern")
    if pattern is not None:
        if not isinstance(pattern, str) or (odd := [letter for letter in pattern if letter not in LETTERS]):
            raise MechintError(
                f"{raw.where}: hybrid_override_pattern is {shown(pattern)}; {an(raw.title)} has layers of the letters "
                f"{', '.join(LETTERS)}" + (f", and no {odd[0]}" if isinstance(pattern, str) else "")
            )
        lists.append([LETTERS[letter] for letter in pattern])
    if not lists or not lists[0]:
        raise MechintError(
            f"{raw.where}: the configuration lacks layers_block_type (or hybrid_override_pattern), which "
            f"{an(raw.title)} needs; add it"
        )
    raw.raw["layers_block_type"] = lists[0]
    found = raw.kinds("layers_block_type", KINDS, len(lists[0]))
    if any([KINDS.get(kind) for kind in other] != found for other in lists[1:]):
        raise MechintError(f"{raw.where}: layers_block_type and hybrid_override_pattern say different layers; which?")
    return tuple(found)


def layer(c: NemotronHConfig, i: int) -> Layer:
    """Norm and mixer."""
    part: Part
    if c.kinds[i] == "mamba":
        part = Mamba2Mixer(
            c.d_model, c.ssm_heads, c.ssm_head_size, c.d_state, c.n_groups, c.d_conv, conv_bias=c.conv_bias,
            proj_bias=c.proj_bias, eps=c.norm_eps, norm_groups=c.n_groups, limits=(c.least_dt, math.inf),
            activation=c.conv_activation,
        )  # fmt: skip
    elif c.kinds[i] == "attention":
        part = Attention(c.d_model, c.n_head, c.n_kv_head, c.d_head)
    elif c.kinds[i] == "mlp":
        part = MLP(c.d_model, c.d_mlp, c.activation, c.mlp_bias)
    else:
        part = MixtureOfExperts(
            c.d_model, c.d_expert, c.experts, c.routing, c.activation, gated=False,
            shared=MLP(c.d_model, c.d_shared, c.activation, c.mlp_bias), latent=c.latent, latent_bias=c.mlp_bias,
        )  # fmt: skip
    return Layer({"norm": RMSNorm(c.d_model, c.norm_eps), "mixer": part}, [Branch("norm", "normed", ("mixer",))])


def asked(a: Asked) -> NemotronHConfig:
    """The configuration of a model to train."""
    experts, chosen, d_expert = a.experts(8, a.has("experts"))
    return NemotronHConfig(
        **a.stream(tied=False), kinds=a.kinds, **a.attention(a.has("attention")),
        d_mlp=a.d_mlp(4, a.has("mlp")), mlp_bias=False, activation="relu2", **a.mamba2(a.has("mamba")),
        conv_activation="silu", least_dt=1e-3, experts=experts, d_expert=d_expert, d_shared=d_expert, latent=0,
        routing=Routing(chosen, "sigmoid", True, 1.0, True), norm_eps=1e-5,
    )  # fmt: skip


def write(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    c = model.config
    names = {"mamba": "linear_attention", "attention": "full_attention", "mlp": "mlp", "experts": "moe"}
    return {
        "architectures": ["NemotronHForCausalLM"], "model_type": "nemotron_h", "vocab_size": c.vocab_size,
        "hidden_size": c.d_model, "layers_block_type": [names[kind] for kind in c.kinds],
        "num_attention_heads": c.n_head, "num_key_value_heads": c.n_kv_head, "head_dim": c.d_head,
        "intermediate_size": c.d_mlp, "mlp_bias": c.mlp_bias, "mlp_hidden_act": c.activation,
        "mamba_num_heads": c.ssm_heads, "mamba_head_dim": c.ssm_head_size, "ssm_state_size": c.d_state,
        "n_groups": c.n_groups, "conv_kernel": c.d_conv, "use_conv_bias": c.conv_bias, "use_bias": c.proj_bias,
        "mamba_hidden_act": c.conv_activation, "time_step_min": c.least_dt, "n_routed_experts": c.experts,
        "moe_intermediate_size": c.d_expert, "moe_shared_expert_intermediate_size": c.d_shared,
        "moe_latent_size": c.latent or None, "num_experts_per_tok": c.routing.chosen,
        "norm_topk_prob": c.routing.normalised, "routed_scaling_factor": c.routing.scale,
        "n_group": c.routing.groups, "topk_group": c.routing.chosen_groups, "layer_norm_epsilon": c.norm_eps,
        "tie_word_embeddings": False,
    }  # fmt: skip


FAMILIES = [
    StackFamily(
        "nemotron_h", "Nemotron-H", read, layer, lambda c: RMSNorm(c.d_model, c.norm_eps), write,
        Names(
            ("backbone.", "model."),
            renamed={
                r"^embed_tokens\.": "embeddings.", r"^norm\.": "norm_f.", r"mixer\.router\.": "mixer.gate.",
                r"mixer\.shared_expert\.": "mixer.shared_experts.", r"mixer\.latent_in\.": "mixer.fc1_latent_proj.",
                r"mixer\.latent_out\.": "mixer.fc2_latent_proj.",
            },
            fused=(
                stacked(["experts.*.up_proj"], "experts.up_proj", bare=True, sometimes=True),
                stacked(["experts.*.down_proj"], "experts.down_proj", bare=True, sometimes=True),
            ),
            left_out=r"mtp\.",
        ),
        trained=Trained({"mamba2": "mamba", "attention": "attention", "mlp": "mlp", "experts": "experts"},
                        "mamba2 attention mlp", asked),
    )
]  # fmt: skip
