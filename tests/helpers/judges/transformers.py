"""Random small models of the families of attention and feed-forward parts alone."""

from __future__ import annotations

import random
from typing import Any

import transformers as T

from tests.helpers.judges.base import VOCABULARY, Judge


def rotation(rng: random.Random, *, parts: tuple[float, ...] = ()) -> dict[str, Any]:
    """A rotation of any kind that has an exact counterpart here."""
    said: dict[str, Any] = {"rope_theta": rng.choice([100.0, 10000.0]), "rope_type": "default"}
    if parts:
        said["partial_rotary_factor"] = rng.choice(parts)
    kind = rng.choice(["default", "linear", "llama3"])
    if kind == "linear":
        said |= {"rope_type": "linear", "factor": 4.0}
    if kind == "llama3":
        said |= {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                 "original_max_position_embeddings": 16}  # fmt: skip
    return said


def sizes(rng: random.Random, **more: Any) -> dict[str, Any]:
    """What every configuration has."""
    kv = rng.choice([1, 2])
    found = {
        "vocab_size": VOCABULARY, "num_hidden_layers": rng.randint(1, 3), "hidden_size": 8,
        "intermediate_size": rng.choice([10, 14]), "num_attention_heads": kv * rng.choice([1, 2]),
        "num_key_value_heads": kv, "tie_word_embeddings": rng.random() < 0.5,
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None,
    }  # fmt: skip
    return {**found, **more}


def kinds(rng: random.Random, layers: int) -> list[str]:
    return [rng.choice(["full_attention", "sliding_attention"]) for _ in range(layers)]


def gpt_neox(rng: random.Random) -> Any:
    said = sizes(rng, hidden_size=rng.choice([8, 16]), num_attention_heads=rng.choice([1, 2]))
    del said["num_key_value_heads"]
    config = T.GPTNeoXConfig(
        **said, use_parallel_residual=rng.random() < 0.5, attention_bias=rng.random() < 0.5,
        layer_norm_eps=rng.choice([1e-5, 1e-3]), hidden_act=rng.choice(["gelu", "gelu_fast", "gelu_new", "relu"]),
        rope_parameters=rotation(rng, parts=(0.25, 0.5, 1.0)) if said["hidden_size"] == 16 else None,
        max_position_embeddings=64,
    )  # fmt: skip
    if said["hidden_size"] == 8:
        config.rope_parameters["partial_rotary_factor"] = 0.5
    return T.GPTNeoXForCausalLM(config)


def gptj(rng: random.Random) -> Any:
    size, heads = rng.choice([8, 16]), rng.choice([1, 2])
    config = T.GPTJConfig(
        vocab_size=VOCABULARY, n_embd=size, n_layer=rng.randint(1, 3), n_head=heads, n_positions=64,
        rotary_dim=rng.choice([2, 4, size // heads]), n_inner=rng.choice([None, 10]),
        activation_function=rng.choice(["gelu_new", "relu"]), layer_norm_epsilon=rng.choice([1e-5, 1e-3]),
        tie_word_embeddings=rng.random() < 0.5, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return T.GPTJForCausalLM(config)


def qwen2(rng: random.Random) -> Any:
    said, sliding = sizes(rng), rng.random() < 0.5
    config = T.Qwen2Config(
        **said, rope_parameters=rotation(rng), rms_norm_eps=rng.choice([1e-6, 1e-3]), use_sliding_window=sliding,
        sliding_window=rng.randint(2, 5), max_window_layers=rng.randint(0, 2),
        layer_types=kinds(rng, said["num_hidden_layers"]) if sliding and rng.random() < 0.5 else None,
        hidden_act=rng.choice(["silu", "gelu"]),
    )  # fmt: skip
    return T.Qwen2ForCausalLM(config)


def qwen3(rng: random.Random) -> Any:
    said, sliding = sizes(rng, head_dim=rng.choice([4, 6])), rng.random() < 0.5
    config = T.Qwen3Config(
        **said, rope_parameters=rotation(rng), rms_norm_eps=rng.choice([1e-6, 1e-3]), use_sliding_window=sliding,
        sliding_window=rng.randint(2, 5), max_window_layers=rng.randint(0, 2), attention_bias=rng.random() < 0.5,
        layer_types=kinds(rng, said["num_hidden_layers"]) if sliding and rng.random() < 0.5 else None,
    )  # fmt: skip
    return T.Qwen3ForCausalLM(config)


def qwen3_moe(rng: random.Random) -> Any:
    said, sliding, experts = sizes(rng, head_dim=rng.choice([4, 6])), rng.random() < 0.5, rng.choice([3, 4])
    said["num_attention_heads"] = 2 * said["num_key_value_heads"]  # single units need two
    config = T.Qwen3MoeConfig(
        **said, rope_parameters=rotation(rng), rms_norm_eps=rng.choice([1e-6, 1e-3]), use_sliding_window=sliding,
        sliding_window=rng.randint(2, 5), attention_bias=rng.random() < 0.5, num_experts=experts,
        num_experts_per_tok=rng.randint(1, 3), moe_intermediate_size=rng.choice([5, 8]),
        norm_topk_prob=rng.random() < 0.5, decoder_sparse_step=rng.choice([1, 1, 2]),
        mlp_only_layers=[layer for layer in range(3) if rng.random() < 0.2],
    )  # fmt: skip
    return T.Qwen3MoeForCausalLM(config)


def mistral(rng: random.Random) -> Any:
    config = T.MistralConfig(
        **sizes(rng, head_dim=rng.choice([None, 4, 6])), rope_parameters=rotation(rng),
        sliding_window=rng.choice([None, 3, 5]), rms_norm_eps=rng.choice([1e-6, 1e-3]),
    )  # fmt: skip
    return T.MistralForCausalLM(config)


def gemma2(rng: random.Random) -> Any:
    """The eager attention: transformers' other ones leave the cap out."""
    said = sizes(rng, head_dim=rng.choice([4, 6]))
    config = T.Gemma2Config(
        **said, rope_parameters=rotation(rng), sliding_window=rng.randint(2, 5),
        query_pre_attn_scalar=rng.choice([4, 7]), layer_types=rng.choice([None, kinds(rng, said["num_hidden_layers"])]),
        attention_bias=rng.random() < 0.5, attn_logit_softcapping=rng.choice([None, 0.5, 2.0]),
        final_logit_softcapping=rng.choice([None, 0.75, 2.0]), rms_norm_eps=rng.choice([1e-6, 1e-3]),
        attn_implementation="eager",
    )  # fmt: skip
    return T.Gemma2ForCausalLM(config)


def gemma3(rng: random.Random) -> Any:
    said = sizes(rng, head_dim=rng.choice([4, 6]))
    config = T.Gemma3TextConfig(
        **said, rope_parameters={"full_attention": rotation(rng), "sliding_attention": rotation(rng)},
        sliding_window=rng.randint(2, 5), query_pre_attn_scalar=rng.choice([4, 7]),
        layer_types=kinds(rng, said["num_hidden_layers"]), attention_bias=rng.random() < 0.5,
        final_logit_softcapping=rng.choice([None, 0.75, 2.0]), rms_norm_eps=rng.choice([1e-6, 1e-3]),
    )  # fmt: skip
    return T.Gemma3ForCausalLM(config)


def olmo2(rng: random.Random) -> Any:
    config = T.Olmo2Config(
        **sizes(rng, head_dim=rng.choice([4, 6])), rope_parameters=rotation(rng), attention_bias=rng.random() < 0.5,
        rms_norm_eps=rng.choice([1e-6, 1e-3]),
    )  # fmt: skip
    return T.Olmo2ForCausalLM(config)


def olmo3(rng: random.Random) -> Any:
    said = sizes(rng)
    config = T.Olmo3Config(
        **said, rope_parameters={"full_attention": rotation(rng), "sliding_attention": rotation(rng)},
        sliding_window=rng.randint(2, 5), layer_types=rng.choice([None, kinds(rng, said["num_hidden_layers"])]),
        attention_bias=rng.random() < 0.5, rms_norm_eps=rng.choice([1e-6, 1e-3]),
    )  # fmt: skip
    return T.Olmo3ForCausalLM(config)


def gemma(rng: random.Random) -> Any:
    config = T.GemmaConfig(
        **sizes(rng, head_dim=rng.choice([4, 6])), rope_parameters=rotation(rng), attention_bias=rng.random() < 0.5,
        rms_norm_eps=rng.choice([1e-6, 1e-3]), hidden_act=rng.choice(["gelu", "gelu_pytorch_tanh", "silu"]),
    )  # fmt: skip
    return T.GemmaForCausalLM(config)


def smollm3(rng: random.Random) -> Any:
    said, sliding = sizes(rng, num_hidden_layers=rng.randint(2, 3)), rng.random() < 0.5
    turned = [rng.randint(0, 1) for _ in range(said["num_hidden_layers"])]
    config = T.SmolLM3Config(
        **said, rope_parameters=rotation(rng), attention_bias=rng.random() < 0.5, mlp_bias=rng.random() < 0.5,
        use_sliding_window=sliding, sliding_window=rng.randint(2, 5) if sliding else None,
        no_rope_layers=rng.choice([None, turned]), no_rope_layer_interval=2, rms_norm_eps=rng.choice([1e-6, 1e-3]),
        layer_types=kinds(rng, said["num_hidden_layers"]) if sliding and rng.random() < 0.5 else None,
    )  # fmt: skip
    return T.SmolLM3ForCausalLM(config)


def granite(rng: random.Random) -> Any:
    config = T.GraniteConfig(
        **sizes(rng), rope_parameters=rotation(rng), attention_bias=rng.random() < 0.5, mlp_bias=rng.random() < 0.5,
        rms_norm_eps=rng.choice([1e-6, 1e-3]), embedding_multiplier=rng.choice([1.0, 3.0]),
        logits_scaling=rng.choice([1.0, 0.5, 4.0]), residual_multiplier=rng.choice([1.0, 0.6]),
        attention_multiplier=rng.choice([1.0, 0.3]),
    )  # fmt: skip
    return T.GraniteForCausalLM(config)


def phi(rng: random.Random) -> Any:
    said = sizes(rng, hidden_size=rng.choice([8, 16]))
    turned = rotation(rng, parts=(0.5, 1.0))
    config = T.PhiConfig(
        **said, rope_parameters=turned, qk_layernorm=rng.random() < 0.5, layer_norm_eps=rng.choice([1e-5, 1e-3]),
        hidden_act=rng.choice(["gelu_new", "relu"]), max_position_embeddings=64,
    )  # fmt: skip
    return T.PhiForCausalLM(config)


def phi3(rng: random.Random, original: int = 32, kinds: tuple[str, ...] = ("default", "longrope")) -> Any:
    """With prompts shorter than those of the first training, which take the short factors."""
    said, part = sizes(rng, hidden_size=16), rng.choice([0.5, 1.0])
    turned: dict[str, Any] = {"rope_type": rng.choice(kinds), "rope_theta": 100.0, "partial_rotary_factor": part}
    if turned["rope_type"] == "longrope":
        pairs = int(16 // said["num_attention_heads"] * part) // 2
        turned |= {name: [rng.uniform(1.0, most) for _ in range(pairs)]
                   for name, most in (("short_factor", 1.5), ("long_factor", 6.0))}  # fmt: skip
        turned |= rng.choice([{}, {"factor": 4.0}, {"attention_factor": 1.25}])
    config = T.Phi3Config(
        **said, sliding_window=rng.choice([None, 3, 5]), rms_norm_eps=rng.choice([1e-5, 1e-3]), rope_parameters=turned,
        original_max_position_embeddings=original, max_position_embeddings=8 * original,
    )  # fmt: skip
    return T.Phi3ForCausalLM(config)


def mixtral(rng: random.Random) -> Any:
    said, experts = sizes(rng, head_dim=rng.choice([None, 4, 6])), rng.choice([3, 4])
    said["num_attention_heads"] = 2 * said["num_key_value_heads"]  # single units need two
    config = T.MixtralConfig(
        **said, rope_parameters=rotation(rng), sliding_window=rng.choice([None, 3, 5]), num_local_experts=experts,
        num_experts_per_tok=rng.randint(1, 3), rms_norm_eps=rng.choice([1e-6, 1e-3]),
    )  # fmt: skip
    return T.MixtralForCausalLM(config)


def qwen2_moe(rng: random.Random) -> Any:
    said, sliding = sizes(rng, head_dim=rng.choice([4, 6])), rng.random() < 0.5
    said["num_attention_heads"] = 2 * said["num_key_value_heads"]  # single units need two
    config = T.Qwen2MoeConfig(
        **said, rope_parameters=rotation(rng), rms_norm_eps=rng.choice([1e-6, 1e-3]), use_sliding_window=sliding,
        sliding_window=rng.randint(2, 5), max_window_layers=rng.randint(0, 3), qkv_bias=rng.random() < 0.5,
        layer_types=kinds(rng, said["num_hidden_layers"]) if sliding and rng.random() < 0.5 else None,
        num_experts=rng.choice([3, 4]), num_experts_per_tok=rng.randint(1, 3),
        moe_intermediate_size=rng.choice([5, 8]), shared_expert_intermediate_size=rng.choice([6, 9]),
        norm_topk_prob=rng.random() < 0.5, decoder_sparse_step=rng.choice([1, 1, 2]),
        mlp_only_layers=[layer for layer in range(3) if rng.random() < 0.2],
    )  # fmt: skip
    return T.Qwen2MoeForCausalLM(config)


def olmo(rng: random.Random) -> Any:
    config = T.OlmoConfig(
        **sizes(rng, head_dim=rng.choice([4, 6])), rope_parameters=rotation(rng), attention_bias=rng.random() < 0.5,
        clip_qkv=rng.choice([None, 0.5, 1.0]),
    )  # fmt: skip
    return T.OlmoForCausalLM(config)


def olmoe(rng: random.Random) -> Any:
    said = sizes(rng, num_attention_heads=2, num_key_value_heads=rng.choice([1, 2]))
    config = T.OlmoeConfig(
        **said, rope_parameters=rotation(rng), attention_bias=rng.random() < 0.5, rms_norm_eps=rng.choice([1e-6, 1e-3]),
        clip_qkv=rng.choice([None, 0.5, 1.0]), num_experts=rng.choice([3, 4]), num_experts_per_tok=rng.randint(1, 3),
        norm_topk_prob=rng.random() < 0.5,
    )  # fmt: skip
    return T.OlmoeForCausalLM(config)


def starcoder2(rng: random.Random) -> Any:
    config = T.Starcoder2Config(
        **sizes(rng, head_dim=rng.choice([4, 6])), rope_parameters=rotation(rng), use_bias=rng.random() < 0.7,
        norm_epsilon=rng.choice([1e-5, 1e-3]), sliding_window=rng.choice([None, 3, 5]),
        hidden_act=rng.choice(["gelu_pytorch_tanh", "gelu"]),
    )  # fmt: skip
    return T.Starcoder2ForCausalLM(config)


def stablelm(rng: random.Random) -> Any:
    config = T.StableLmConfig(
        **sizes(rng, hidden_size=rng.choice([8, 16])), rope_parameters=rotation(rng, parts=(0.5, 1.0)),
        layer_norm_eps=rng.choice([1e-5, 1e-3]), use_qkv_bias=rng.random() < 0.5, qk_layernorm=rng.random() < 0.5,
        use_parallel_residual=rng.random() < 0.5,
    )  # fmt: skip
    return T.StableLmForCausalLM(config)


def cohere(rng: random.Random) -> Any:
    config = T.CohereConfig(
        **sizes(rng, head_dim=rng.choice([4, 6])), rope_parameters=rotation(rng), attention_bias=rng.random() < 0.5,
        layer_norm_eps=rng.choice([1e-5, 1e-3]), use_qk_norm=rng.random() < 0.5, logit_scale=rng.choice([0.25, 1.5]),
    )  # fmt: skip
    return T.CohereForCausalLM(config)


def cohere2(rng: random.Random) -> Any:
    said = sizes(rng, num_hidden_layers=rng.randint(2, 3))
    config = T.Cohere2Config(
        **said, rope_parameters=rotation(rng), attention_bias=rng.random() < 0.5,
        layer_norm_eps=rng.choice([1e-5, 1e-3]), logit_scale=rng.choice([0.25, 1.5]), sliding_window=rng.randint(2, 5),
        layer_types=rng.choice([None, kinds(rng, said["num_hidden_layers"])]),
    )  # fmt: skip
    return T.Cohere2ForCausalLM(config)


def glm(rng: random.Random, kind: str = "Glm") -> Any:
    config = getattr(T, f"{kind}Config")(
        **sizes(rng, head_dim=rng.choice([4, 8])), rope_parameters=rotation(rng, parts=(0.5, 1.0)),
        attention_bias=rng.random() < 0.5, rms_norm_eps=rng.choice([1e-6, 1e-3]),
    )  # fmt: skip
    return getattr(T, f"{kind}ForCausalLM")(config)


def glm4(rng: random.Random) -> Any:
    return glm(rng, "Glm4")


def exaone4(rng: random.Random) -> Any:
    said, window = sizes(rng, num_hidden_layers=rng.randint(2, 3), head_dim=rng.choice([4, 6])), rng.choice([None, 3])
    layers = said["num_hidden_layers"]
    config = T.Exaone4Config(
        **said, rope_parameters=rotation(rng), rms_norm_eps=rng.choice([1e-6, 1e-3]), sliding_window=window,
        sliding_window_pattern=2,
        layer_types=rng.choice([None, kinds(rng, layers)]) if window else ["full_attention"] * layers,
    )  # fmt: skip
    return T.Exaone4ForCausalLM(config)


def ernie4_5(rng: random.Random) -> Any:
    config = T.Ernie4_5Config(
        **sizes(rng, head_dim=rng.choice([None, 4, 6])), rope_parameters=rotation(rng), use_bias=rng.random() < 0.5,
        rms_norm_eps=rng.choice([1e-6, 1e-3]),
    )  # fmt: skip
    return T.Ernie4_5ForCausalLM(config)


def seed_oss(rng: random.Random) -> Any:
    config = T.SeedOssConfig(
        **sizes(rng, head_dim=rng.choice([None, 4, 6])), rope_parameters=rotation(rng), mlp_bias=rng.random() < 0.5,
        attention_bias=rng.random() < 0.5, attention_out_bias=rng.random() < 0.5, rms_norm_eps=rng.choice([1e-6, 1e-3]),
    )  # fmt: skip
    return T.SeedOssForCausalLM(config)


def granitemoe(rng: random.Random) -> Any:
    said = sizes(rng, num_attention_heads=2, num_key_value_heads=rng.choice([1, 2]))
    config = T.GraniteMoeConfig(
        **said, rope_parameters=rotation(rng), attention_bias=rng.random() < 0.5,
        rms_norm_eps=rng.choice([1e-6, 1e-3]), embedding_multiplier=rng.choice([1.0, 3.0]),
        logits_scaling=rng.choice([1.0, 0.5, 4.0]), residual_multiplier=rng.choice([1.0, 0.6]),
        attention_multiplier=rng.choice([1.0, 0.3]), num_local_experts=rng.choice([3, 4]),
        num_experts_per_tok=rng.randint(1, 3),
    )  # fmt: skip
    return T.GraniteMoeForCausalLM(config)


JUDGES = [
    Judge("gpt_neox", gpt_neox),
    Judge("qwen2", qwen2),
    Judge("qwen3", qwen3),
    Judge("qwen3_moe", qwen3_moe),
    Judge("mistral", mistral),
    Judge("gemma", gemma),
    Judge("gemma2", gemma2),
    Judge("gemma3_text", gemma3),
    Judge("olmo2", olmo2),
    Judge("olmo3", olmo3),
    Judge("smollm3", smollm3),
    Judge("granite", granite),
    Judge("phi", phi),
    Judge("phi3", phi3),
    Judge("mixtral", mixtral),
    Judge("qwen2_moe", qwen2_moe),
    Judge("olmo", olmo),
    Judge("olmoe", olmoe),
    Judge("starcoder2", starcoder2),
    Judge("stablelm", stablelm),
    Judge("cohere", cohere),
    Judge("cohere2", cohere2),
    Judge("glm", glm),
    Judge("glm4", glm4),
    Judge("exaone4", exaone4),
    Judge("ernie4_5", ernie4_5),
    Judge("seed_oss", seed_oss),
    Judge("granitemoe", granitemoe, skip_parts=("mlp",)),
    Judge("gptj", gptj, layers="h"),
]
