"""Random small models of the hybrids of Mamba-2 and attention."""

from __future__ import annotations

import random
from typing import Any

import transformers as T

from tests.helpers.judges.base import VOCABULARY, Judge


def common(rng: random.Random) -> dict[str, Any]:
    """The sizes and switches that Bamba and Granite 4 have alike."""
    groups, kv = rng.choice([1, 2]), rng.choice([1, 2])
    d_model, expand = rng.choice([8, 16]), rng.choice([1, 2])
    ssm_heads = groups * rng.choice([1, 2])
    return {
        "vocab_size": VOCABULARY, "hidden_size": d_model, "num_hidden_layers": rng.randint(2, 3),
        "num_attention_heads": kv * rng.choice([1, 2]), "num_key_value_heads": kv,
        "head_dim": rng.choice([4, 8]), "mamba_n_heads": ssm_heads,
        "mamba_d_head": expand * d_model // ssm_heads, "mamba_expand": expand,
        "mamba_d_state": rng.randint(1, 6), "mamba_n_groups": groups, "mamba_chunk_size": 8,
        "mamba_d_conv": rng.randint(2, 4), "mamba_conv_bias": rng.random() < 0.5,
        "mamba_proj_bias": rng.random() < 0.5, "attention_bias": rng.random() < 0.5,
        "tie_word_embeddings": rng.random() < 0.5, "rms_norm_eps": rng.choice([1e-5, 1e-3]),
        "time_step_limit": rng.choice([(0.0, float("inf")), (0.1, 0.9)]), "hidden_act": rng.choice(["silu", "gelu"]),
        "rope_parameters": {"rope_type": "default", "rope_theta": rng.choice([100.0, 10000.0])},
    }  # fmt: skip


def bamba(rng: random.Random) -> Any:
    said = common(rng)
    attention = [i for i in range(said["num_hidden_layers"]) if rng.random() < 0.5]
    config = T.BambaConfig(
        **said, intermediate_size=rng.choice([10, 14]), mlp_bias=rng.random() < 0.5, attn_layer_indices=attention
    )
    return T.BambaForCausalLM(config)


def granite(rng: random.Random) -> Any:
    said = common(rng)
    scale = lambda: rng.choice([0.25, 0.5, 0.75, 1.25])
    kinds = [rng.choice(["mamba", "attention"]) for _ in range(said["num_hidden_layers"])]
    config = T.GraniteMoeHybridConfig(
        **said, intermediate_size=rng.choice([5, 7]), shared_intermediate_size=rng.choice([10, 14]), layer_types=kinds,
        position_embedding_type=rng.choice(["rope", "nope", None]), num_local_experts=rng.choice([0, 4, 6]),
        num_experts_per_tok=rng.choice([1, 2, 3]), embedding_multiplier=scale(), logits_scaling=scale(),
        residual_multiplier=rng.choice([1.0, scale()]), attention_multiplier=scale(),
    )  # fmt: skip
    return T.GraniteMoeHybridForCausalLM(config)


JUDGES = [
    Judge("bamba", bamba),
    Judge("granitemoehybrid", granite, ("block_sparse_moe",)),  # its own adds the shared part outside
]
