"""Llama's tensors under Hugging Face's names: what a checkpoint must hold, and how its sizes are read off it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...utils.errors import MechintError, shown
from ..llama import Llama, LlamaConfig
from ..parts.norms import NORM_CLAIMS, NORM_KEYS, NORM_KINDS, norm_kinds, read_norms, said_norms
from .config_keys import Keys, listed, refuse_unknown
from .strictness import check_claims, check_names, commonest, count_layers, is_tied, read_claims

ATTENTION = tuple(f"self_attn.{part}_proj" for part in "qkvo")
MLP = tuple(f"mlp.{part}_proj" for part in ("gate", "up", "down"))
NORMS = ("input_layernorm", "post_attention_layernorm")

# LlamaConfig's field, and its names in configurations
CLAIMS: dict[str, tuple[str, ...]] = {
    "vocab_size": ("vocab_size",),
    "d_model": ("hidden_size",),
    "n_layer": ("num_hidden_layers",),
    "n_head": ("num_attention_heads",),
    "n_kv_head": ("num_key_value_heads",),
    "d_head": ("head_dim",),
    "d_mlp": ("intermediate_size",),
    "rope_theta": ("rope_theta",),
    "attention_bias": ("attention_bias",),
    "mlp_bias": ("mlp_bias",),
    "tied": ("tie_word_embeddings",),
    "norm_eps": ("rms_norm_eps",),
    **NORM_CLAIMS,
}
KINDS: dict[str, type] = {
    **dict.fromkeys(("rope_theta", "norm_eps"), float),
    **dict.fromkeys(("attention_bias", "mlp_bias", "tied"), bool),
    **NORM_KINDS,
}
KEYS = Keys(
    "Llama",
    frozenset({name for names in CLAIMS.values() for name in names} | NORM_KEYS)
    | {"model_type", "hidden_act", "rope_parameters", "rope_scaling"},
    {
        "is_encoder_decoder": (False,),
        "partial_rotary_factor": (1.0,),
        **norm_kinds("rmsnorm", "rms"),
        "causal": (True,),
        "is_causal": (True,),
        "architecture": ("llama",),
        "arch": ("llama",),
        "attention_type": ("full", "standard", "causal"),
    },
    listed("max_position_embeddings pretraining_tp is_llama_config max_sequence_length"),
    r"Llama(Model|For\w+)",
)
ROTATION = Keys("Llama", frozenset({"rope_theta", "rope_type", "type"}), {"partial_rotary_factor": (1.0,)})
# LlamaConfig's fields of a scaled rotation, and their names in configurations, by the kind of scaling
SCALINGS: dict[str, dict[str, str]] = {
    "default": {},
    "linear": {"rope_factor": "factor"},
    "llama3": {
        "rope_factor": "factor",
        "rope_low": "low_freq_factor",
        "rope_high": "high_freq_factor",
        "rope_original": "original_max_position_embeddings",
    },
}


def claims_of(config: Mapping[str, Any] | None, where: str) -> dict[str, Any]:
    """Reads :class:`LlamaConfig`'s fields from a configuration; missing ones are left out.

    Raises:
        MechintError: it is another architecture's configuration, or a value has the wrong type.
    """
    config = config or {}
    rotation: dict[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):
        if config.get(name) is not None:
            if not isinstance(config[name], Mapping):
                raise MechintError(f"{where}: {name} is {shown(config[name])}, which says no rotation; correct it")
            rotation |= dict(config[name])
    kind = rotation.get("rope_type", rotation.get("type"))
    switches = {
        "model_type": (config.get("model_type"), (None, "llama")),
        "hidden_act": (config.get("hidden_act"), (None, "silu", "swish")),
        "rope_type": (kind, (None, *SCALINGS)),
    }
    for name, (value, known) in switches.items():
        if value not in known:
            raise MechintError(
                f"{where}: {name} is {shown(value)}, and our Llama has {known[1]!r} there; not supported"
            )
    scaling = SCALINGS[kind or "default"]
    other = {name: value for name, value in rotation.items() if name not in scaling.values()}
    refuse_unknown(other, ROTATION, other.keys(), f"{where}: the rotation")
    said = read_claims([config, rotation], CLAIMS, KINDS, where)
    for field, name in scaling.items():
        value = rotation.get(name)
        whole = field == "rope_original"
        number = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else 0.0
        if not (1.0 if whole else 0.0) <= number < math.inf or not number:
            raise MechintError(
                f"{where}: the rotation is of the type {kind}, and its {name} is {shown(value)}; it needs a number "
                "above 0"
            )
        said[field] = int(number) if whole else number
    return read_norms(config, said, where)


def expected_names(
    n_layer: int, attention_bias: bool, mlp_bias: bool, tied: bool, norms: bool = True, final_norm: bool = True
) -> list[str]:
    """The names of every parameter of :class:`Llama`, ours."""
    parts = [f"{part}.weight" for part in (*ATTENTION, *MLP, *NORMS * norms)]
    parts += [f"{part}.bias" for part in ATTENTION] * attention_bias + [f"{part}.bias" for part in MLP] * mlp_bias
    names = ["embed_tokens.weight", *(f"layers.{i}.{part}" for i in range(n_layer) for part in parts)]
    return [*names, *["norm.weight"] * final_norm, *["lm_head.weight"] * (not tied)]


def infer_config(
    state: Mapping[str, Tensor], config: Mapping[str, Any] | None, where: str
) -> tuple[LlamaConfig, dict[str, str]]:
    """Sizes from the shapes, checked against what the configuration says, and the map of names.

    Raises:
        MechintError: tensors are missing or left over, or the configuration lacks the heads or disagrees.
    """
    said = claims_of(config, where)
    prefix = "model." if any(name.startswith("model.") for name in state) else ""
    numbers = [int(layer[1]) for name in state if (layer := re.match(rf"{prefix}layers\.(\d+)\.", name))]
    n_layer = count_layers(numbers, said, where)
    biases = {
        field: said.get(field, any(name.endswith(tuple(f"{part}.bias" for part in parts)) for name in state))
        for field, parts in (("attention_bias", ATTENTION), ("mlp_bias", MLP))
    }
    tied = is_tied(state, f"{prefix}embed_tokens.weight", said, default=False)
    norms = {field: said.get(field, True) for field in NORM_KINDS}
    names = expected_names(n_layer, biases["attention_bias"], biases["mlp_bias"], tied, **norms)
    ours = {name: name if name == "lm_head.weight" else prefix + name for name in names}
    ignored = [name for name in state if name.endswith(".rotary_emb.inv_freq")]  # older files hold what we compute
    what = f"{where} is not exactly a Llama of {n_layer} layers"
    check_names(state.keys(), ours.values(), [*ignored, *["lm_head.weight"] * tied], what)

    size = lambda part, axis: commonest([state[ours[f"layers.{i}.{part}.weight"]] for i in range(n_layer)], axis) or 0
    queries, keys = size("self_attn.q_proj", 0), size("self_attn.k_proj", 0)
    n_head = said.get("n_head")
    if n_head is None:
        raise MechintError(
            f"{where} does not say how many heads it has, and no tensor shows it; put num_attention_heads into its "
            "configuration"
        )
    d_head = queries // max(1, n_head)
    if n_head < 1 or queries % n_head or keys % max(1, d_head):
        raise MechintError(
            f"{where}: the configuration says {n_head} heads, among which queries of {queries} and keys of {keys} "
            "dimensions can't be divided"
        )
    sizes = {
        "vocab_size": commonest([state[ours["embed_tokens.weight"]]], 0) or 0,
        "d_model": size("self_attn.q_proj", 1),
        "n_layer": n_layer,
        "n_kv_head": keys // d_head,
        "d_head": d_head,
        "d_mlp": size("mlp.gate_proj", 0),
    }
    check_claims(said, sizes, CLAIMS, where)
    found = LlamaConfig(
        **sizes,
        **biases,
        **norms,
        n_head=n_head,
        tied=tied,
        rope_theta=float(said.get("rope_theta", 10000.0)),
        norm_eps=float(said.get("norm_eps", 1e-6)),
        **{field: said[field] for field in SCALINGS["llama3"] if field in said},
    )
    return found, ours


def to_hf_state_dict(model: Llama) -> dict[str, Tensor]:
    """The weights under Hugging Face's names, detached and on the CPU; a tied head is left out, as it is there."""
    return {
        name if name == "lm_head.weight" else f"model.{name}": tensor.detach().cpu()
        for name, tensor in model.state_dict().items()
    }


def hf_config(model: Llama) -> dict[str, Any]:
    """The arguments of ``transformers.LlamaConfig(**…)``, and the contents of a ``config.json``."""
    c = model.config
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{CLAIMS[field][0]: getattr(c, field) for field in CLAIMS if field not in ("rope_theta", *NORM_KINDS)},
        **said_norms(c),
        "rope_parameters": c.rotation.written(c.d_head),
        "hidden_act": "silu",
    }
