"""Random small models of the hybrids of Mamba-2 and attention."""

from __future__ import annotations

import random
from typing import Any

import torch
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


def nemotron_h(rng: random.Random) -> Any:
    groups, kv = rng.choice([1, 2]), rng.choice([1, 2])
    kinds = ["linear_attention", "full_attention", "mlp", "moe"]
    routed = rng.choice([1, 2])  # groups of experts
    config = T.NemotronHConfig(
        vocab_size=VOCABULARY, hidden_size=rng.choice([8, 12]),
        layers_block_type=[*rng.sample(kinds, rng.randint(1, 2)), rng.choice(kinds), "moe"],
        num_attention_heads=kv * rng.choice([1, 2]), num_key_value_heads=kv, head_dim=rng.choice([4, 6]),
        intermediate_size=rng.choice([10, 14]), mlp_hidden_act=rng.choice(["relu2", "gelu"]),
        mlp_bias=rng.random() < 0.5, ssm_state_size=rng.randint(1, 6), mamba_num_heads=groups * rng.choice([1, 2]),
        mamba_head_dim=rng.choice([4, 6]), mamba_hidden_act=rng.choice(["silu", "gelu"]), n_groups=groups,
        conv_kernel=rng.randint(2, 4), time_step_min=rng.choice([0.001, 0.5]), use_conv_bias=rng.random() < 0.5,
        chunk_size=8, use_bias=rng.random() < 0.5, n_routed_experts=routed * rng.choice([3, 4]),
        moe_intermediate_size=rng.choice([5, 7]), moe_shared_expert_intermediate_size=rng.choice([6, 9]),
        moe_latent_size=rng.choice([None, 5]), num_experts_per_tok=rng.choice([1, 2, 3]),
        routed_scaling_factor=rng.choice([1.0, 2.5]), n_group=routed, topk_group=rng.randint(1, routed),
        norm_topk_prob=rng.random() < 0.5, layer_norm_epsilon=rng.choice([1e-5, 1e-3]),
    )  # fmt: skip
    model = T.NemotronHForCausalLM(config)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(torch.tensor([rng.gauss(0.0, 0.5) for _ in buffer]))
    return model


def zamba2(rng: random.Random) -> Any:
    groups, blocks, adapted = rng.choice([1, 2]), rng.choice([1, 2]), rng.random() < 0.5
    d_model, expand, heads = rng.choice([8, 16]), rng.choice([1, 2]), rng.choice([2, 4])
    kinds = ["hybrid", rng.choice(["hybrid", "linear_attention"]), *["hybrid"] * rng.randint(1, 2)]
    config = T.Zamba2Config(
        vocab_size=VOCABULARY, hidden_size=d_model, num_hidden_layers=len(kinds),
        layers_block_type=kinds, mamba_d_state=rng.randint(1, 6), mamba_d_conv=rng.randint(2, 4), mamba_expand=expand,
        mamba_ngroups=groups, time_step_min=rng.choice([0.001, 0.5]), n_mamba_heads=groups * rng.choice([1, 2]),
        chunk_size=8, add_bias_linear=rng.random() < 0.5, intermediate_size=rng.choice([10, 14]),
        hidden_act=rng.choice(["gelu", "silu"]), num_attention_heads=heads,
        num_key_value_heads=heads if adapted else rng.choice([1, 2]), num_mem_blocks=blocks,
        use_shared_attention_adapter=adapted, adapter_rank=rng.randint(1, 3), use_mem_rope=rng.random() < 0.5,
        rope_parameters={"rope_type": "default", "rope_theta": rng.choice([100.0, 10000.0])},
        rms_norm_eps=rng.choice([1e-5, 1e-3]),
    )  # fmt: skip
    return T.Zamba2ForCausalLM(config)


JUDGES = [
    Judge("zamba2", zamba2, ("mixer",)),  # its parts have other modules there
    Judge("nemotron_h", nemotron_h),
    Judge("bamba", bamba),
    Judge("granitemoehybrid", granite, ("block_sparse_moe",)),  # its own adds the shared part outside
]
