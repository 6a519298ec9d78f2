"""GPT-NeoX (Black et al. 2022), which the Pythia models are, and GPT-J (Wang & Komatsuzaki 2021).

Attention and feed-forward of a GPT-NeoX are on one stream or in turn. Those of a GPT-J read one norm; neighbouring
dimensions of a head are turned as pairs, and the head has a bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....utils.errors import MechintError
from ...family import Fused, Names, StackFamily
from ...loading.config_reader import ConfigReader
from ...parts.attention import Attention
from ...parts.base import Branch, Layer
from ...parts.feed_forward import MLP, WRITTEN_ACTIVATIONS
from ...parts.norms import LayerNorm
from ...parts.rotation import Rotation
from ...sizes import Asked, Trained
from ...stack import Stack, StackConfig
from .common import TransformerConfig, attention


@dataclass(frozen=True, kw_only=True)
class GPTNeoXConfig(StackConfig):
    """Sizes and switches of a GPT-NeoX."""

    n_head: int
    d_head: int
    attention_bias: bool
    rotation: Rotation
    d_mlp: int
    activation: str
    norm_eps: float
    parallel: bool
    """True if both parts of a layer read the stream before it; False if the feed-forward part reads what attention
    has added."""
    family = "gpt_neox"


@dataclass(frozen=True, kw_only=True)
class GPTJConfig(TransformerConfig):
    """Sizes and switches of a GPT-J."""

    family = "gptj"


def read(raw: ConfigReader) -> GPTNeoXConfig:
    """The configuration of a ``config.json``."""
    raw.ignore("max_position_embeddings classifier_dropout")
    d_model, heads = raw.size("hidden_size"), raw.size("num_attention_heads")
    if d_model % heads:
        raise MechintError(
            f"{raw.where}: hidden_size is {d_model} and num_attention_heads {heads}; the first must be a multiple of "
            "the second"
        )
    raw.only("num_key_value_heads", heads)
    raw.only("head_dim", d_model // heads)
    return GPTNeoXConfig(
        vocab_size=raw.size("vocab_size"),
        d_model=d_model,
        n_layer=raw.size("num_hidden_layers"),
        tied=raw.switch("tie_word_embeddings", False),
        n_head=heads,
        d_head=d_model // heads,
        attention_bias=raw.switch("attention_bias", True),
        rotation=raw.rotation(
            d_model // heads, fraction=0.25, theta_name="rotary_emb_base", part_name="rotary_pct"
        ),
        d_mlp=raw.size("intermediate_size"),
        activation=raw.activation("hidden_act", "gelu"),
        norm_eps=raw.number("layer_norm_eps", 1e-5),
        parallel=raw.switch("use_parallel_residual", True),
    )  # fmt: skip


def layer(c: GPTNeoXConfig, i: int) -> Layer:
    """Attention and a plain feed-forward part, a norm in front of each."""
    norm = lambda: LayerNorm(c.d_model, c.norm_eps, bias=True)
    modules = {
        "input_layernorm": norm(),
        "attention": Attention(
            c.d_model, c.n_head, c.n_head, c.d_head, bias=c.attention_bias, out_bias=c.attention_bias,
            rotation=c.rotation,
        ),
        "post_attention_layernorm": norm(),
        "mlp": MLP(c.d_model, c.d_mlp, c.activation, bias=True),
    }  # fmt: skip
    first = Branch("input_layernorm", "ln_1", ("attention",))
    second = Branch("post_attention_layernorm", "ln_2", ("mlp",))
    return Layer(modules, [first, second]) if c.parallel else Layer(modules, [first], [second])


def asked(a: Asked) -> GPTNeoXConfig:
    """The configuration of a model to train: both parts of a layer on one stream, a quarter of each head turned."""
    heads = a.attention()
    if a.wanted["n_kv_head"] or heads["d_head"] * heads["n_head"] != a.d_model:
        raise a.wrong(
            "n_kv_head" if a.wanted["n_kv_head"] else "d_head",
            f", and each head of {a.title} has keys and values of its own and an equal share of the width; set it to 0",
        )
    return GPTNeoXConfig(
        **a.stream(), n_head=heads["n_head"], d_head=heads["d_head"], attention_bias=True,
        rotation=a.rotation(heads["d_head"], 0.25), d_mlp=a.d_mlp(4), activation="gelu", norm_eps=1e-5, parallel=True,
    )  # fmt: skip


def write(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    c = model.config
    return {
        "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "vocab_size": c.vocab_size,
        "hidden_size": c.d_model, "num_hidden_layers": c.n_layer, "tie_word_embeddings": c.tied,
        "num_attention_heads": c.n_head, "attention_bias": c.attention_bias, "intermediate_size": c.d_mlp,
        "hidden_act": WRITTEN_ACTIVATIONS.get(c.activation, c.activation), "layer_norm_eps": c.norm_eps,
        "use_parallel_residual": c.parallel,
        # transformers turns a quarter where no part is said, and not the whole head
        "rope_parameters": {"partial_rotary_factor": 1.0, **c.rotation.written(c.d_head)},
    }  # fmt: skip


def split(fused: Tensor, c: GPTNeoXConfig) -> Sequence[Tensor]:
    """Queries, keys and values [H · d, …] of a tensor that has them head by head [H · 3 · d, …]."""
    by_head = fused.unflatten(0, (c.n_head, 3, -1))
    return [by_head[:, k].flatten(0, 1) for k in range(3)]


def join(ours: Sequence[Tensor], c: GPTNeoXConfig) -> Tensor:
    """The tensor with queries, keys and values head by head."""
    return torch.stack([one.unflatten(0, (c.n_head, -1)) for one in ours], 1).flatten(0, 2)


def read_gptj(raw: ConfigReader) -> GPTJConfig:
    """The configuration of a ``config.json``."""
    raw.ignore(
        "n_positions summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout"
    )
    raw.only("rotary", True)  # of published files, as the next one
    raw.only("scale_attn_weights", True)
    d_model, n_head, n_layer = raw.size("n_embd"), raw.size("n_head"), raw.size("n_layer")
    if d_model % n_head:
        raise MechintError(f"{raw.where}: n_embd is {d_model} and n_head {n_head}; the first must be a multiple")
    d_head, turned = d_model // n_head, 0 if raw.null("rotary_dim") else raw.size("rotary_dim", 64, 2)
    if not 0 < turned <= d_head or turned % 2:
        raise MechintError(
            f"{raw.where}: rotary_dim is {turned or None}; it must be even, and at most a head's {d_head} dimensions"
        )
    return GPTJConfig(
        vocab_size=raw.size("vocab_size"), d_model=d_model, n_layer=n_layer, n_head=n_head, n_kv_head=n_head,
        d_head=d_head, tied=raw.switch("tie_word_embeddings", False), head_bias=True, mlp_bias=True,
        rotation=Rotation(size=turned % d_head, interleaved=True), windows=(0,) * n_layer,
        d_mlp=raw.size("n_inner", 4 * d_model), activation=raw.activation("activation_function", "gelu_new"),
        norm_eps=raw.number("layer_norm_epsilon", 1e-5),
    )  # fmt: skip


def gptj_layer(c: GPTJConfig, i: int) -> Layer:
    """Attention and a plain feed-forward part behind one norm."""
    modules = {
        "ln_1": LayerNorm(c.d_model, c.norm_eps, bias=True),
        "attn": attention(c, i),
        "mlp": MLP(c.d_model, c.d_mlp, c.activation, bias=True),
    }
    return Layer(modules, [Branch("ln_1", "ln_1", ("attn", "mlp"))])


def write_gptj(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    c = model.config
    return {
        "architectures": ["GPTJForCausalLM"], "model_type": "gptj", "vocab_size": c.vocab_size, "n_embd": c.d_model,
        "n_layer": c.n_layer, "n_head": c.n_head, "rotary_dim": c.rotation.size or c.d_head, "n_inner": c.d_mlp,
        "activation_function": WRITTEN_ACTIVATIONS.get(c.activation, c.activation), "layer_norm_epsilon": c.norm_eps,
        "tie_word_embeddings": c.tied,
    }  # fmt: skip


GPTJ_NAMES = Names(
    ("transformer.", ""),
    {
        r"^embed_tokens\.": "wte.",
        r"^norm\.": "ln_f.",
        r"^layers\.": "h.",
        r"\.o_proj\.": ".out_proj.",
        r"\.up_proj\.": ".fc_in.",
        r"\.down_proj\.": ".fc_out.",
    },
    constants=r"h\.\d+\.attn\.(bias|masked_bias)",
)
NAMES = Names(
    ("gpt_neox.", ""),
    {
        r"^embed_tokens\.": "embed_in.",
        r"^norm\.": "final_layer_norm.",
        r"\.o_proj\.": ".dense.",
        r"\.up_proj\.": ".dense_h_to_4h.",
        r"\.down_proj\.": ".dense_4h_to_h.",
    },
    (Fused(("q_proj", "k_proj", "v_proj"), "query_key_value", split, join),),
    heads=("embed_out.", "lm_head."),
    constants=r"layers\.\d+\.attention\.(bias|masked_bias)",
)
FAMILIES = [
    StackFamily(
        "gpt_neox", "GPT-NeoX", read, layer, lambda c: LayerNorm(c.d_model, c.norm_eps, bias=True), write, NAMES,
        trained=Trained({"attention": "attention"}, "attention attention", asked),
    ),
    StackFamily(
        "gptj", "GPT-J", read_gptj, gptj_layer, lambda c: LayerNorm(c.d_model, c.norm_eps, bias=True), write_gptj,
        GPTJ_NAMES,
    ),
]  # fmt: skip
