"""Random small models of the families with a recurrence."""

from __future__ import annotations

import random
from typing import Any

import torch
import transformers as T

from tests.helpers.judges.base import VOCABULARY, Judge


def mamba2(rng: random.Random) -> Any:
    groups, expand = rng.choice([1, 2]), rng.choice([1, 2])
    heads, size = groups * rng.choice([1, 2]), rng.choice([2, 4])
    inner = heads * size
    config = T.Mamba2Config(
        vocab_size=VOCABULARY, hidden_size=inner // expand, num_hidden_layers=rng.randint(1, 3), expand=expand,
        num_heads=heads, head_dim=size, state_size=rng.randint(1, 6), n_groups=groups, chunk_size=8,
        conv_kernel=rng.randint(2, 4), use_conv_bias=rng.random() < 0.5, use_bias=rng.random() < 0.5,
        tie_word_embeddings=rng.random() < 0.5, layer_norm_epsilon=rng.choice([1e-5, 1e-3]),
        time_step_limit=rng.choice([(0.0, float("inf")), (0.1, 0.9)]),
    )  # fmt: skip
    return T.Mamba2ForCausalLM(config)


def falcon_h1(rng: random.Random) -> Any:
    groups, kv = rng.choice([1, 2]), rng.choice([1, 2])
    ssm_heads, size = groups * rng.choice([1, 2]), rng.choice([4, 6])
    scale = lambda: rng.choice([0.5, 0.75, 1.25])  # exact in float32, which transformers keeps some of them in
    config = T.FalconH1Config(
        vocab_size=VOCABULARY, hidden_size=rng.choice([8, 12]), intermediate_size=rng.choice([10, 14]),
        num_hidden_layers=rng.randint(1, 3), num_attention_heads=kv * rng.choice([1, 2]), num_key_value_heads=kv,
        head_dim=rng.choice([4, 6]), mamba_d_ssm=ssm_heads * size, mamba_n_heads=ssm_heads, mamba_d_head=size,
        mamba_d_state=rng.randint(1, 6), mamba_n_groups=groups, mamba_chunk_size=8, mamba_d_conv=rng.randint(2, 4),
        mamba_conv_bias=rng.random() < 0.5, mamba_rms_norm=rng.random() < 0.5,
        mamba_norm_before_gate=rng.random() < 0.5, attention_bias=rng.random() < 0.5, mlp_bias=rng.random() < 0.5,
        tie_word_embeddings=rng.random() < 0.5, lm_head_multiplier=scale(), embedding_multiplier=scale(),
        mlp_multipliers=[scale(), scale()], key_multiplier=scale(), attention_out_multiplier=scale(),
        attention_in_multiplier=scale(), ssm_multipliers=[scale() for _ in range(5)], ssm_in_multiplier=scale(),
        ssm_out_multiplier=scale(), time_step_limit=rng.choice([(0.0, float("inf")), (0.1, 0.9)]),
        hidden_act=rng.choice(["silu", "gelu"]),
    )  # fmt: skip
    return T.FalconH1ForCausalLM(config)


def qwen3_5(rng: random.Random) -> Any:
    return T.Qwen3_5ForCausalLM(T.Qwen3_5TextConfig(**qwen_sizes(rng)))


def qwen3_5_moe(rng: random.Random) -> Any:
    sizes = {name: value for name, value in qwen_sizes(rng).items() if name != "intermediate_size"}
    return T.Qwen3_5MoeForCausalLM(T.Qwen3_5MoeTextConfig(**sizes, **qwen_experts(rng)))


def qwen3_next(rng: random.Random) -> Any:
    dense = [layer for layer in range(3) if rng.random() < 0.3]
    config = T.Qwen3NextConfig(
        **{**qwen_sizes(rng), **qwen_experts(rng)}, decoder_sparse_step=rng.choice([1, 1, 2]), mlp_only_layers=dense,
        norm_topk_prob=rng.random() < 0.5,
    )  # fmt: skip
    return T.Qwen3NextForCausalLM(config)


def qwen_experts(rng: random.Random) -> dict[str, Any]:
    return {
        "num_experts": rng.choice([3, 4]), "num_experts_per_tok": rng.choice([1, 2, 3]),
        "moe_intermediate_size": rng.choice([5, 8]), "shared_expert_intermediate_size": rng.choice([4, 7]),
    }  # fmt: skip


def qwen_sizes(rng: random.Random) -> dict[str, Any]:
    kv, key_heads = rng.choice([1, 2]), rng.choice([1, 2])
    kinds = [rng.choice(["linear_attention", "full_attention"]) for _ in range(rng.randint(1, 3))]
    return {
        "vocab_size": VOCABULARY, "hidden_size": rng.choice([8, 12]), "intermediate_size": rng.choice([10, 14]),
        "num_hidden_layers": len(kinds), "num_attention_heads": kv * rng.choice([1, 2]), "num_key_value_heads": kv,
        "head_dim": 8, "linear_num_key_heads": key_heads, "linear_num_value_heads": key_heads * rng.choice([1, 2]),
        "linear_key_head_dim": rng.choice([3, 4]), "linear_value_head_dim": rng.choice([4, 6]), "layer_types": kinds,
        "linear_conv_kernel_dim": rng.randint(2, 4), "tie_word_embeddings": rng.random() < 0.5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0,
                            "partial_rotary_factor": rng.choice([0.25, 0.5])},
        "attention_bias": rng.random() < 0.5,
    }  # fmt: skip


def olmo_hybrid(rng: random.Random) -> Any:
    kv, key_heads = rng.choice([1, 2]), rng.choice([1, 2])
    kinds = ["linear_attention", "full_attention", rng.choice(["linear_attention", "full_attention"])]
    kinds = kinds[: rng.choice([2, 3])]
    rng.shuffle(kinds)  # transformers refuses a model that lacks one of the kinds
    config = T.OlmoHybridConfig(
        vocab_size=VOCABULARY, hidden_size=rng.choice([8, 16]), intermediate_size=rng.choice([10, 14]),
        num_hidden_layers=len(kinds), num_attention_heads=kv * rng.choice([1, 2]), num_key_value_heads=kv,
        linear_num_key_heads=key_heads, linear_num_value_heads=key_heads * rng.choice([1, 2]), layer_types=kinds,
        linear_key_head_dim=rng.choice([3, 4]), linear_value_head_dim=rng.choice([4, 6]),
        linear_conv_kernel_dim=rng.randint(2, 4), linear_allow_neg_eigval=rng.random() < 0.5,
        tie_word_embeddings=rng.random() < 0.5, attention_bias=rng.random() < 0.5, pad_token_id=0, eos_token_id=1,
        rope_parameters={"rope_type": "default", "rope_theta": rng.choice([None, 1000.0])},
        rms_norm_eps=rng.choice([1e-6, 1e-3]),
    )  # fmt: skip
    return T.OlmoHybridForCausalLM(config)


def lfm2(rng: random.Random) -> Any:
    kv = rng.choice([1, 2])
    kinds = [rng.choice(["conv", "full_attention"]) for _ in range(rng.randint(1, 3))]
    config = T.Lfm2Config(
        vocab_size=VOCABULARY, hidden_size=rng.choice([8, 16]), intermediate_size=rng.choice([10, 14]),
        num_hidden_layers=len(kinds), num_attention_heads=kv * rng.choice([1, 2]), num_key_value_heads=kv,
        layer_types=kinds, conv_L_cache=rng.randint(2, 4), conv_bias=rng.random() < 0.5,
        block_auto_adjust_ff_dim=rng.random() < 0.5, block_multiple_of=rng.choice([4, 5]),
        block_ffn_dim_multiplier=rng.choice([1.0, 1.5]), tie_word_embeddings=rng.random() < 0.5,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0}, norm_eps=rng.choice([1e-5, 1e-3]),
    )  # fmt: skip
    return T.Lfm2ForCausalLM(config)


def lfm2_moe(rng: random.Random) -> Any:
    kv = rng.choice([1, 2])
    kinds = [rng.choice(["conv", "full_attention"]) for _ in range(rng.randint(1, 3))]
    chosen = rng.choice([1, 2])
    config = T.Lfm2MoeConfig(
        vocab_size=VOCABULARY, hidden_size=rng.choice([8, 16]), intermediate_size=rng.choice([10, 14]),
        num_hidden_layers=len(kinds), num_attention_heads=kv * rng.choice([1, 2]), num_key_value_heads=kv,
        layer_types=kinds, conv_L_cache=rng.randint(2, 4), conv_bias=rng.random() < 0.5,
        num_dense_layers=rng.randint(0, len(kinds)), num_experts=rng.choice([3, 4]),
        num_experts_per_tok=chosen, moe_intermediate_size=rng.choice([5, 8]), use_expert_bias=rng.random() < 0.5,
        # one weight over itself and 1e-6 is 1, with a slope of rounding
        norm_topk_prob=chosen > 1 and rng.random() < 0.5,
        routed_scaling_factor=rng.choice([1.0, 2.5]), tie_word_embeddings=rng.random() < 0.5,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0}, norm_eps=rng.choice([1e-5, 1e-3]),
    )  # fmt: skip
    model = T.Lfm2MoeForCausalLM(config)
    for name, correction in model.named_buffers():
        if name.endswith("expert_bias"):
            correction.copy_(torch.randn(correction.shape) * 0.2)
    return model


def kimi_linear(rng: random.Random) -> Any:
    kinds = [rng.choice(["linear_attention", "full_attention"]) for _ in range(rng.randint(1, 3))]
    heads, groups = rng.choice([1, 2]), rng.choice([1, 2])
    config = T.KimiLinearConfig(
        vocab_size=VOCABULARY, hidden_size=rng.choice([8, 12]), intermediate_size=rng.choice([10, 14]),
        num_hidden_layers=len(kinds), num_attention_heads=heads, num_key_value_heads=heads, layer_types=kinds,
        mlp_layer_types=[rng.choice(["dense", "sparse"]) for _ in kinds], num_local_experts=groups * rng.choice([2, 3]),
        n_group=groups, topk_group=rng.choice([1, groups]), num_experts_per_tok=rng.choice([1, 2]),
        moe_intermediate_size=rng.choice([5, 8]), n_shared_experts=rng.choice([1, 2]),
        norm_topk_prob=rng.random() < 0.5, routed_scaling_factor=rng.choice([1.0, 2.5]),
        kv_lora_rank=rng.choice([3, 5]), q_lora_rank=rng.choice([None, 4]),
        qk_nope_head_dim=rng.choice([3, 4]), qk_rope_head_dim=rng.choice([2, 4]), v_head_dim=rng.choice([3, 5]),
        linear_num_heads=rng.choice([1, 2]), linear_head_dim=rng.choice([3, 4]), attention_bias=rng.random() < 0.5,
        linear_conv_kernel_dim=rng.randint(2, 4),
        rms_norm_eps=rng.choice([1e-5, 1e-3]), pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    model = T.KimiLinearForCausalLM(config)
    for name, correction in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            correction.copy_(torch.randn(correction.shape) * 0.2)
    return model


def falcon_mamba(rng: random.Random) -> Any:
    config = T.FalconMambaConfig(
        vocab_size=VOCABULARY, hidden_size=rng.choice([8, 12]), num_hidden_layers=rng.randint(1, 3), expand=2,
        state_size=rng.randint(1, 6), conv_kernel=rng.randint(2, 4), time_step_rank=rng.randint(1, 3),
        use_bias=rng.random() < 0.5, use_conv_bias=rng.random() < 0.5, tie_word_embeddings=rng.random() < 0.5,
        layer_norm_epsilon=rng.choice([1e-5, 1e-3]), mixer_rms_eps=rng.choice([1e-6, 1e-2]),
        intermediate_size=rng.choice([10, 24]),
    )  # fmt: skip
    return T.FalconMambaForCausalLM(config)


def jamba(rng: random.Random) -> Any:
    kv, period = rng.choice([1, 2]), rng.choice([1, 2, 3])
    config = T.JambaConfig(
        vocab_size=VOCABULARY, hidden_size=rng.choice([8, 16]), intermediate_size=rng.choice([10, 14]),
        num_hidden_layers=rng.randint(1, 3), num_attention_heads=kv * rng.choice([1, 2]), num_key_value_heads=kv,
        attn_layer_period=period, attn_layer_offset=rng.randrange(period), num_experts=rng.choice([1, 3, 4]),
        num_experts_per_tok=rng.choice([1, 2, 3]), expert_layer_period=rng.choice([1, 2]), expert_layer_offset=0,
        mamba_d_state=rng.randint(1, 6), mamba_d_conv=rng.randint(2, 4), mamba_expand=rng.choice([1, 2]),
        mamba_dt_rank=rng.choice(["auto", 2, 3]), mamba_conv_bias=rng.random() < 0.5,
        mamba_proj_bias=rng.random() < 0.5, tie_word_embeddings=rng.random() < 0.5,
        rms_norm_eps=rng.choice([1e-6, 1e-2]),
    )  # fmt: skip
    return T.JambaForCausalLM(config)


JUDGES = [
    Judge("mamba2", mamba2),
    Judge("falcon_h1", falcon_h1, ("mamba", "self_attn")),
    Judge("qwen3_5", qwen3_5),
    Judge("qwen3_5_moe", qwen3_5_moe),
    Judge("qwen3_next", qwen3_next),
    # its files cut the convolution into three equal pieces, whatever the sizes of keys and values
    Judge("olmo_hybrid", olmo_hybrid, cut_anywhere=tuple(f"{one}_conv1d.weight" for one in "qkv")),
    Judge("lfm2", lfm2),
    Judge("lfm2_moe", lfm2_moe),
    Judge("kimi_linear", kimi_linear),
    Judge("falcon_mamba", falcon_mamba),
    Judge("jamba", jamba),
]
