"""Families of attention and feed-forward parts: their files' other names, and configurations that they refuse."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

import mechint
from mechint.models.families import declared
from mechint.models.loading.config_reader import ConfigReader
from mechint.models.loading.load import from_state_dict, hf_config, to_hf_state_dict
from mechint.models.stack import Stack
from mechint.utils.errors import MechintError

T = pytest.importorskip("transformers")

from tests.helpers.judges.base import judged, logits_of, randomise  # noqa: E402
from tests.helpers.judges.transformers import JUDGES, rotation, sizes  # noqa: E402

MAKERS = {judge.family: judge for judge in JUDGES}
IDS = torch.tensor([[3, 5, 7, 11, 13, 17, 19, 23, 29, 31]])


def made(family: str, path: Path, seed: int = 0) -> tuple[dict[str, torch.Tensor], dict[str, Any], Stack]:
    """The tensors and the configuration of a small model, and the model."""
    judged(MAKERS[family], seed).save_pretrained(path)
    model = mechint.load(path, dtype="float64")
    assert isinstance(model, Stack)
    return to_hf_state_dict(model), hf_config(model), model


def refused(state: dict[str, torch.Tensor], config: dict[str, Any], **more: Any) -> str:
    with pytest.raises(MechintError) as found:
        from_state_dict(state, {**config, **more}, "m")
    message = str(found.value)
    assert "\n" not in message
    return message


def test_a_pythia_file_has_an_embed_out_and_may_have_masks(tmp_path: Path) -> None:
    state, config, model = made("gpt_neox", tmp_path, next(s for s in range(9) if not tied("gpt_neox", s)))
    assert "embed_out.weight" in state
    older = {
        **state, "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool),
        "gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9),
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(2),
    }  # fmt: skip
    newer = {name.replace("embed_out.", "lm_head."): tensor for name, tensor in state.items()}
    bare = {name.removeprefix("gpt_neox."): tensor for name, tensor in state.items()}
    with torch.no_grad():
        for tensors in (older, newer, bare):
            assert torch.equal(from_state_dict(tensors, config, "m", dtype="float64")(IDS), model(IDS))
    assert "tensors not used: 1 (lm_head.weight)" in refused({**state, **newer}, config)


def tied(family: str, seed: int) -> bool:
    return bool(judged(MAKERS[family], seed).config.tie_word_embeddings)


def test_earlier_keys_of_a_rotation_mean_the_same(tmp_path: Path) -> None:
    state, config, model = made("gpt_neox", tmp_path)
    config["rope_parameters"] = None
    with torch.no_grad():
        part = model.config.rotation.size / model.config.d_head or 1.0
        earlier = {**config, "rotary_emb_base": model.config.rotation.theta, "rotary_pct": part}
        if model.config.rotation.factor == 1.0:
            assert torch.equal(from_state_dict(state, earlier, "m", dtype="float64")(IDS), model(IDS))
    default = from_state_dict(state, {**config, "hidden_size": config["hidden_size"]}, "m")
    assert default.config.rotation.theta == 10000.0 and default.config.rotation.size == model.config.d_head // 4


def test_the_text_part_of_a_gemma_that_sees_is_that_of_transformers(tmp_path: Path) -> None:
    """Both layouts of published files; vision is left out, and said."""
    rng = random.Random(3)
    text = T.Gemma3TextConfig(
        **sizes(rng, head_dim=4, num_hidden_layers=2, tie_word_embeddings=True), sliding_window=3,
        rope_parameters={kind: rotation(rng) for kind in ("full_attention", "sliding_attention")},
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    vision = T.SiglipVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=8, patch_size=4
    )
    config = T.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=1, image_token_index=2)
    theirs = T.Gemma3ForConditionalGeneration(config).eval()
    randomise(theirs, 1)
    theirs.save_pretrained(tmp_path)
    ours = mechint.load(tmp_path)
    assert isinstance(ours, Stack) and "left out" in ours.left_out and "vision_tower" in ours.left_out
    tokens = IDS + 3
    with torch.no_grad():
        expected = theirs(tokens, use_cache=False).logits
        assert float((ours(tokens) - expected).abs().max() / expected.abs().max()) <= 1e-5
        state = {f"model.language_model.{name.removeprefix('model.')}": x for name, x in to_hf_state_dict(ours).items()}
        state["language_model.lm_head.weight"] = state["model.language_model.embed_tokens.weight"].clone()
        again = from_state_dict(state, config.to_dict(), "m")
        assert torch.equal(again(tokens), ours(tokens))


@pytest.mark.parametrize("dtype", ["bfloat16"])
@pytest.mark.parametrize("family", ["gemma2", "olmo3", "olmo"])
def test_half_precision_is_near(family: str, dtype: str, tmp_path: Path) -> None:
    """Norms behind parts, parts without a norm in front, norms without a weight, a rounded scale of the embeddings."""
    theirs = judged(MAKERS[family], 0)
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        found, expected = mechint.load(tmp_path, dtype=dtype)(IDS).double(), logits_of(theirs, IDS)
    assert float((found - expected).abs().max() / expected.abs().max()) <= 0.1


def test_configurations_that_say_something_else_are_refused_in_one_line(tmp_path: Path) -> None:
    state, config, _ = made("qwen2", tmp_path / "qwen2")
    assert "layer_types has sliding_attention, and no sliding window is said or switched on" in refused(
        state, config, layer_types=["sliding_attention"] * config["num_hidden_layers"], use_sliding_window=False
    )
    assert "num_key_value_heads 3; the first must be a multiple" in refused(state, config, num_key_value_heads=3)
    assert "attention_bias is False, and our Qwen2 has True there" in refused(state, config, attention_bias=False)
    turned = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    assert "a Qwen2 turns whole heads" in refused(state, config, rope_parameters=turned)
    long = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0}
    assert "'longrope'; known here are default, linear, llama3 and yarn" in refused(state, config, rope_parameters=long)
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
    short = {key: value for key, value in yarn.items() if key != "original_max_position_embeddings"}
    assert "original_max_position_embeddings of the rotation = None" in refused(state, config, rope_parameters=short)
    for change, said in (
        ({"beta_fast": -1}, "beta_fast of the rotation = -1, which is no number from 0"),
        ({"truncate": 1}, "truncate of the rotation = 1, which is no switch"),
        ({"rope_theta": 1.0}, "which is no base above 1"),
        ({"odd": 2}, "the rotation has odd = 2"),
    ):
        assert said in refused(state, config, rope_parameters=yarn | change)
    state, config, _ = made("gemma3_text", tmp_path / "gemma3")
    assert "attn_logit_softcapping is 50.0" in refused(state, config, attn_logit_softcapping=50.0)
    assert "use_bidirectional_attention is True" in refused(state, config, use_bidirectional_attention=True)
    assert "needs a section full_attention" in refused(state, config, rope_parameters={"rope_theta": 1e4})
    state, config, _ = made("olmo3", tmp_path / "olmo3")
    assert "rope_theta is 10000.0, and our OLMo 3 has 500000.0" in refused(state, config, rope_theta=10000.0)
    state, config, _ = made("smollm3", tmp_path / "smollm3")
    for turned in ([1], "1111", [2] * config["num_hidden_layers"]):
        assert "it must have a 1 (rotation) or a 0 (none)" in refused(state, config, no_rope_layers=turned)
    sliding = ["sliding_attention"] * config["num_hidden_layers"]
    off = {"layer_types": sliding, "use_sliding_window": False, "sliding_window": 4}
    assert "no sliding window is said or switched on" in refused(state, config, **off)
    state, config, _ = made("gemma", tmp_path / "gemma")
    assert "use_bidirectional_attention is True" in refused(state, config, use_bidirectional_attention=True)
    state, config, _ = made("granite", tmp_path / "granite")
    assert "logits_scaling = 0, which is no number above 0" in refused(state, config, logits_scaling=0)
    state, config, _ = made("phi", tmp_path / "phi")
    assert "hidden_size is 9 and num_attention_heads 2" in refused(state, config, hidden_size=9, num_attention_heads=2)
    state, config, _ = made("gpt_neox", tmp_path / "neox")
    assert "hidden_size is 9 and num_attention_heads" in refused(state, config, hidden_size=9, num_attention_heads=2)
    fused = "gpt_neox.layers.0.attention.query_key_value.weight"
    assert f"{fused} is [3, 3] and should be" in refused({**state, fused: torch.ones(3, 3)}, config)


def test_the_keys_of_published_files_mean_what_transformers_makes_of_them() -> None:
    """Earlier keys, absent ones and another word of the same thing, as the published files have them."""
    read = lambda name, **said: declared()[name].read(ConfigReader({"model_type": name, **said}, "m", name))
    same = {"vocab_size": 37, "hidden_size": 32, "num_hidden_layers": 8, "intermediate_size": 12}
    gemma = read(
        "gemma", **same, num_attention_heads=4, num_key_value_heads=1, hidden_act="gelu", hidden_activation=None
    )
    assert (gemma.activation, gemma.d_head, gemma.tied, gemma.embed_scale) == ("gelu_tanh", 256, True, 32**0.5)
    every = T.GemmaConfig(**same, num_attention_heads=4, num_key_value_heads=1, hidden_act="gelu")
    assert every.hidden_act == "gelu_pytorch_tanh"
    smol = read("smollm3", **same, num_attention_heads=8, rope_theta=5e6, rope_scaling=None, sliding_window=None,
                max_window_layers=28, pretraining_tp=2)  # fmt: skip
    theirs = T.SmolLM3Config(**same, num_attention_heads=8)
    assert (smol.n_kv_head, smol.tied, smol.rotation.theta) == (theirs.num_key_value_heads, True, 5e6)
    assert [int(i not in smol.unturned) for i in range(8)] == theirs.no_rope_layers and not any(smol.windows)
    mixture = {**same, "num_attention_heads": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 5}
    published = read("qwen3_moe", **mixture, num_experts=4, decoder_sparse_step=2, mlp_only_layers=[1], head_dim=128,
                     router_aux_loss_coef=0.001, sliding_window=4096, max_window_layers=48)  # fmt: skip
    assert (published.experts, published.mixed, published.windows) == (
        4,
        (False, False, False, True) + (False, True) * 2,
        (0,) * 8,
    )
    assert read("qwen3_moe", **mixture, num_local_experts=4).experts == 4  # as transformers writes it
    for wrong, said in (({"num_experts": 1}, "2 experts are chosen"), ({}, "lacks num_experts"),
                        ({"num_experts": 4, "num_local_experts": 5}, "num_local_experts is 5")):  # fmt: skip
        with pytest.raises(MechintError, match=said):
            read("qwen3_moe", **mixture, **wrong)
    phi = read("phi", **same, num_attention_heads=4, partial_rotary_factor=0.5, rope_theta=1e4, resid_pdrop=0.1,
               embd_pdrop=0.0, qk_layernorm=False, hidden_act="gelu_new", layer_norm_eps=1e-5)  # fmt: skip
    plain = read("phi", **same, num_attention_heads=4)
    assert phi == plain and (phi.rotation.size, phi.tied, phi.head_bias) == (4, False, True)
    with pytest.raises(MechintError, match="head_dim is 6"):
        read("phi", **same, num_attention_heads=4, head_dim=6)


def test_caps_that_are_null_are_off_and_those_unsaid_are_those_of_transformers(tmp_path: Path) -> None:
    state, config, _ = made("gemma2", tmp_path)
    names = ("attn_logit_softcapping", "final_logit_softcapping")
    off = from_state_dict(state, {**config, **dict.fromkeys(names)}, "m").config
    unsaid = from_state_dict(state, {name: value for name, value in config.items() if name not in names}, "m").config
    assert (off.score_cap, off.logit_cap) == (0.0, 0.0) and (unsaid.score_cap, unsaid.logit_cap) == (50.0, 30.0)


def test_metrics_read_at_the_head_are_those_of_capped_logits(tmp_path: Path) -> None:
    """A search of circuits makes the logits itself, of what the head reads."""
    from mechint.analyses.metrics import Answers
    from mechint.interventions.run import read_by_head
    from mechint.tasks import Prompts

    capped = next(s for s in range(9) if judged(MAKERS["gemma2"], s).config.final_logit_softcapping)
    _, _, model = made("gemma2", tmp_path, capped)
    at, said = torch.tensor([[4, 7]]), IDS[:, [5, 8]]
    prompts = Prompts(IDS, at, said, None, None, at[:, 0])
    with torch.no_grad():
        read = read_by_head(model, IDS, (), at)
        answers = Answers(prompts, read, model.ending[1], model.logit_scale, model.logit_cap)
        expected = model(IDS)[:, at[0]].log_softmax(-1).gather(-1, said.unsqueeze(-1)).mean()
        assert model.logit_cap and float((answers.metrics(None)["answer_logprob"] - expected).abs()) <= 1e-6
