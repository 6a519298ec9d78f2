"""Kimi-Linear (Kimi Team 2025): delta rules with a decay for every key channel, and latent attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ....utils.errors import MechintError, shown
from ...family import Names, Pieces, StackFamily
from ...loading.config_reader import ConfigReader
from ...parts.base import Branch, Layer, Part
from ...parts.delta import KimiDelta
from ...parts.experts import MixtureOfExperts, Routing
from ...parts.feed_forward import GatedMLP
from ...parts.latent_attention import LatentAttention
from ...parts.norms import RMSNorm
from ...sizes import Asked, Trained
from ...stack import Stack, StackConfig

NO_CHOICE = Routing(1, "sigmoid")
"""The routing where there are no experts."""
KINDS = {"linear_attention": "delta", "full_attention": "attention"}


@dataclass(frozen=True, kw_only=True)
class KimiLinearConfig(StackConfig):
    """Sizes and switches of a Kimi-Linear."""

    kinds: Sequence[str]
    """``delta`` or ``attention``, for each layer."""
    n_head: int
    own_key: int
    """Width of a head's own keys."""
    shared_key: int
    """Width of the keys that all heads share."""
    d_value: int
    """Width of a head's values."""
    rank: int
    """Width of the small vector that keys and values are made of."""
    query_rank: int
    """Width of a small vector in front of the queries; 0 for none."""
    attention_bias: bool
    d_mlp: int
    delta_heads: int
    delta_size: int
    """Width of a head's keys and values in the delta rules."""
    d_conv: int
    norm_eps: float
    mixed: tuple[bool, ...] = ()
    """True for each layer whose feed-forward part is a mixture of experts."""
    experts: int = 0
    routing: Routing = NO_CHOICE
    d_expert: int = 0
    """Neurons of an expert."""
    d_shared: int = 0
    """Neurons of the expert that every token goes through."""
    family = "kimi_linear"


def read(raw: ConfigReader) -> KimiLinearConfig:
    """The configuration of a ``config.json``."""
    # head_dim and what is said of a rotation are read by no layer
    raw.ignore("max_position_embeddings model_max_length pretraining_tp head_dim rope_theta rope_scaling "
               "rope_parameters")  # fmt: skip
    raw.only("hidden_act", "silu", "swish")  # it is the activation behind the convolution, too
    raw.only("mla_use_nope", True)
    raw.only("tie_word_embeddings", False)  # transformers does not tie the head, whatever is said
    n_layer, heads = raw.size("num_hidden_layers"), raw.size("num_attention_heads")
    raw.only("num_key_value_heads", heads)
    own, shared = raw.size("qk_nope_head_dim"), raw.size("qk_rope_head_dim")
    raw.only("qk_head_dim", own + shared)
    linear, kinds = linear_attention(raw, n_layer)
    return KimiLinearConfig(
        vocab_size=raw.size("vocab_size"),
        d_model=raw.size("hidden_size"),
        n_layer=n_layer,
        tied=False,
        kinds=tuple(kinds),
        n_head=heads,
        own_key=own,
        shared_key=shared,
        d_value=raw.size("v_head_dim"),
        rank=raw.size("kv_lora_rank"),
        query_rank=raw.size("q_lora_rank", 0),
        attention_bias=raw.switch("attention_bias", False),
        d_mlp=raw.size("intermediate_size"),
        delta_heads=linear["linear_num_heads"],
        delta_size=linear["linear_head_dim"],
        d_conv=linear["linear_conv_kernel_dim"],
        norm_eps=raw.number("rms_norm_eps", 1e-5),
        **read_experts(raw, n_layer),
    )


def linear_attention(raw: ConfigReader, n_layer: int) -> tuple[dict[str, int], list[str]]:
    """The sizes of the delta rules, and the kind of each layer: from a section as in the published file, or beside it.

    Raises:
        MechintError: the section lacks a layer, or says something that is not known.
    """
    section = raw.raw.get("linear_attn_config") or {}
    raw.ignore("linear_attn_config")
    if not isinstance(section, Mapping):
        raise MechintError(f"{raw.where}: linear_attn_config is {shown(section)}, which is no section")
    names = {"head_dim": "linear_head_dim", "num_heads": "linear_num_heads",
             "short_conv_kernel_size": "linear_conv_kernel_dim"}  # fmt: skip
    if odd := section.keys() - {*names, "full_attn_layers", "kda_layers"}:
        raise MechintError(f"{raw.where}: linear_attn_config has {shown(min(odd))}; not supported")
    for inner, outer in names.items():
        if inner in section:
            raw.only(outer, section[inner])
            raw.raw[outer] = section[inner]
    sizes = {outer: raw.size(outer) for outer in names.values()}
    default = ["full_attention" if i and i % 4 == 0 else "linear_attention" for i in range(n_layer)]
    if "full_attn_layers" in section or "kda_layers" in section:  # layers are counted from 1 there
        full, delta = section.get("full_attn_layers") or [], section.get("kda_layers") or []
        default = ["full_attention" if i + 1 in full else "linear_attention" for i in range(n_layer)]
        if sorted([*full, *delta]) != list(range(1, n_layer + 1)):
            raise MechintError(
                f"{raw.where}: full_attn_layers and kda_layers of linear_attn_config name the layers "
                f"{shown(sorted([*full, *delta]))}, and the model has 1 to {n_layer}; correct them"
            )
        if raw.raw.get("layer_types") is not None and list(raw.raw["layer_types"]) != default:
            raise MechintError(f"{raw.where}: layer_types says otherwise than linear_attn_config; correct one of them")
    return sizes, raw.kinds("layer_types", KINDS, n_layer, default)


def read_experts(raw: ConfigReader, n_layer: int) -> dict[str, Any]:
    """The fields of the mixtures of experts, and the layers that have one."""
    first = raw.size("first_k_dense_replace", 1, least=0)
    default = ["dense" if i < first else "sparse" for i in range(n_layer)]
    kinds = raw.kinds("mlp_layer_types", {"dense": "dense", "sparse": "sparse"}, n_layer, default)
    mixed = tuple(kind == "sparse" for kind in kinds)
    raw.ignore("output_router_logits")
    raw.only("moe_layer_freq", 1)
    raw.only("use_grouped_topk", True)
    raw.only("moe_router_activation_func", "sigmoid")
    if "sparse" not in kinds:
        raw.ignore("moe_intermediate_size num_experts num_experts_per_token num_shared_experts moe_renormalize "
                   "routed_scaling_factor num_expert_group topk_group")  # fmt: skip
        return {"mixed": mixed}
    experts, groups = raw.size("num_experts"), raw.size("num_expert_group", 1)
    chosen, chosen_groups = raw.size("num_experts_per_token"), raw.size("topk_group", 1)
    if experts % groups or experts // groups < 2 or chosen_groups > groups:
        raise MechintError(
            f"{raw.where}: {experts} experts can't stand in {groups} groups of two or more, of which {chosen_groups} "
            "are chosen; correct num_experts, num_expert_group or topk_group"
        )
    if chosen > chosen_groups * (experts // groups):
        raise MechintError(
            f"{raw.where}: num_experts_per_token = {chosen}, and the chosen groups have "
            f"{chosen_groups * (experts // groups)} experts; correct it"
        )
    d_expert = raw.size("moe_intermediate_size")
    routing = Routing(
        chosen, "sigmoid", raw.switch("moe_renormalize", True), raw.number("routed_scaling_factor"), True, groups,
        chosen_groups,
    )  # fmt: skip
    shared = raw.size("num_shared_experts", 1) * d_expert
    return {"mixed": mixed, "experts": experts, "routing": routing, "d_expert": d_expert, "d_shared": shared}


def layer(c: KimiLinearConfig, i: int) -> Layer:
    """A delta rule or latent attention, then a gated feed-forward part."""
    norm = lambda: RMSNorm(c.d_model, c.norm_eps)
    if c.kinds[i] == "delta":
        mixer: Any = KimiDelta(
            c.d_model, c.delta_heads, c.delta_heads, c.delta_size, c.delta_size, c.d_conv, c.norm_eps
        )
    else:
        mixer = LatentAttention(
            c.d_model, c.n_head, c.own_key, c.shared_key, c.d_value, c.rank, c.query_rank, c.attention_bias
        )
    modules = {"input_layernorm": norm(), "self_attn": mixer, "post_attention_layernorm": norm(),
               "mlp": feed_forward(c, i)}  # fmt: skip
    return Layer(
        modules,
        [Branch("input_layernorm", "ln_1", ("self_attn",))],
        [Branch("post_attention_layernorm", "ln_2", ("mlp",))],
    )


def feed_forward(c: KimiLinearConfig, i: int) -> Part:
    """A gated part, or a mixture of them with one more that every token goes through."""
    if not c.mixed[i]:
        return GatedMLP(c.d_model, c.d_mlp)
    return MixtureOfExperts(c.d_model, c.d_expert, c.experts, c.routing, shared=GatedMLP(c.d_model, c.d_shared))


def asked(a: Asked) -> KimiLinearConfig:
    """The configuration of a model to train; heads of attention have a quarter of their keys in common."""
    attends, recurs = a.has("attention"), a.has("delta")
    heads, (experts, chosen, d_expert) = a.attention(attends), a.experts()
    shared, delta_size = max(1, heads["d_head"] // 4), a.size("d_state", 16, recurs)
    if heads["n_kv_head"] != heads["n_head"]:
        raise a.wrong("n_kv_head", f", and every head of {a.title} has keys and values of its own; set it to 0")
    routing = Routing(chosen, "sigmoid", True, 1.0, True) if experts else NO_CHOICE
    return KimiLinearConfig(
        **a.stream(tied=False), kinds=a.kinds, n_head=heads["n_head"], own_key=max(1, heads["d_head"] - shared),
        shared_key=shared, d_value=heads["d_head"], rank=max(1, a.d_model // 2), query_rank=0, attention_bias=False,
        d_mlp=a.d_mlp(used=not experts), delta_heads=a.size("memory_heads", 4, recurs), delta_size=delta_size,
        d_conv=a.size("d_conv", 4, recurs), norm_eps=1e-5, mixed=(experts > 0,) * a.n_layer, experts=experts,
        routing=routing, d_expert=d_expert, d_shared=d_expert,
    )  # fmt: skip


def write(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    c = model.config
    names = {ours: theirs for theirs, ours in KINDS.items()}
    how = c.routing
    experts = {
        "num_experts": c.experts, "num_experts_per_token": how.chosen, "moe_intermediate_size": c.d_expert,
        "num_shared_experts": c.d_shared // c.d_expert, "moe_renormalize": how.normalised,
        "routed_scaling_factor": how.scale, "num_expert_group": how.groups, "topk_group": how.chosen_groups,
    } if any(c.mixed) else {}  # fmt: skip
    return {
        "architectures": ["KimiLinearForCausalLM"], "model_type": "kimi_linear", "vocab_size": c.vocab_size,
        "hidden_size": c.d_model, "num_hidden_layers": c.n_layer, "tie_word_embeddings": c.tied,
        "layer_types": [names[kind] for kind in c.kinds],
        "mlp_layer_types": ["sparse" if mixed else "dense" for mixed in c.mixed],
        "num_attention_heads": c.n_head, "num_key_value_heads": c.n_head, "qk_nope_head_dim": c.own_key,
        "qk_rope_head_dim": c.shared_key, "v_head_dim": c.d_value, "kv_lora_rank": c.rank,
        "q_lora_rank": c.query_rank or None, "attention_bias": c.attention_bias, "intermediate_size": c.d_mlp,
        "linear_num_heads": c.delta_heads, "linear_head_dim": c.delta_size, "linear_conv_kernel_dim": c.d_conv,
        "rms_norm_eps": c.norm_eps, "hidden_act": "silu", "pad_token_id": None, "bos_token_id": None,
        "eos_token_id": None, **experts,
    }  # fmt: skip


def rows(c: KimiLinearConfig) -> list[int]:
    """Queries, keys and values."""
    return [c.delta_heads * c.delta_size] * 3


FAMILIES = [
    StackFamily(
        "kimi_linear", "Kimi-Linear", read, layer, lambda c: RMSNorm(c.d_model, c.norm_eps), write,
        Names(
            renamed={
                r"\.mlp\.router\.": ".mlp.gate.", r"\.shared_expert\.": ".shared_experts.",
                **{rf"(experts\.\d+)\.{ours}_proj\.": rf"\1.{theirs}."
                   for ours, theirs in {"gate": "w1", "down": "w2", "up": "w3"}.items()},
                r"\.mlp\.": ".block_sparse_moe.", r"self_attn\.in_proj_b\.": "self_attn.b_proj.",
                r"self_attn\.norm\.": "self_attn.o_norm.", r"self_attn\.out_proj\.": "self_attn.o_proj.",
            },
            pieces=tuple(
                Pieces(f"self_attn.{ours}.weight", tuple(f"self_attn.{one}_{theirs}.weight" for one in "qkv"), rows)
                for ours, theirs in (("in_proj_qkv", "proj"), ("conv1d", "conv1d"))
            ),
            others={r"\.mlp\.": ".block_sparse_moe."},  # published files call dense feed-forward parts so
        ),
        trained=Trained({"delta": "delta", "attention": "attention"}, "delta attention", asked),
    )
]  # fmt: skip
