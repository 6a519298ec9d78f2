"""Newer families of attention and feed-forward parts: keys of published files, refusals, bounds and norms of heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mechint.models.families import declared
from mechint.models.loading.config_reader import ConfigReader
from mechint.models.loading.load import from_state_dict
from mechint.models.parts.norms import HeadsLayerNorm, LayerNorm, WeightlessLayerNorm
from mechint.utils.errors import MechintError

T = pytest.importorskip("transformers")

import mechint  # noqa: E402
from tests.models.families import test_parity as parity  # noqa: E402
from tests.models.families.test_transformers import IDS, made, refused  # noqa: E402

SAME: dict[str, Any] = {
    "vocab_size": 37, "hidden_size": 256, "num_hidden_layers": 8, "intermediate_size": 12, "num_attention_heads": 32,
}  # fmt: skip
MIXTURE: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2}
QWEN: dict[str, Any] = {**MIXTURE, "moe_intermediate_size": 5, "shared_expert_intermediate_size": 6}


def read(name: str, **said: Any) -> Any:
    """The family's reading of a configuration, all keys of which must be known."""
    reader = ConfigReader({"model_type": name, **SAME, **said}, "m", declared()[name].title)
    found = declared()[name].read(reader)
    reader.done()
    return found


@pytest.mark.parametrize("name, seed", [("olmo", 1), ("stablelm", 1), ("cohere", 3), ("cohere2", 3), ("exaone4", 3)])
def test_switches_that_the_first_seed_leaves_off(name: str, seed: int, tmp_path: Path) -> None:
    """Bounds, norms of each head, layers without a rotation: logits, gradients and parts are those of transformers."""
    parity.test_logits_gradients_and_parts_are_those_of_transformers(name, seed, tmp_path)


@pytest.mark.parametrize(
    "name, more",
    [("mixtral", {"num_local_experts": 4}), ("qwen2_moe", QWEN), ("olmo", {}), ("olmoe", MIXTURE), ("starcoder2", {}),
     ("stablelm", {}), ("cohere", {}), ("cohere2", {}), ("glm", {}), ("glm4", {}), ("exaone4", {}), ("ernie4_5", {}),
     ("seed_oss", {}), ("granitemoe", {"num_local_experts": 4})],
)  # fmt: skip
def test_what_a_configuration_does_not_say_is_what_transformers_takes(name: str, more: dict[str, Any]) -> None:
    """Heads, norms, ties, activations, rotations and windows where the file has the sizes alone."""
    ours, theirs = read(name, **more), T.CONFIG_MAPPING[name](**SAME, **more)
    said = lambda *names, other=None: next((x for key in names if (x := getattr(theirs, key, None)) is not None), other)
    d_head, rotation = said("head_dim", other=256 // 32), theirs.rope_parameters
    assert (ours.n_kv_head, ours.d_head) == (theirs.num_key_value_heads, d_head)
    assert (ours.tied, ours.norm_eps) == (
        theirs.tie_word_embeddings,
        said("rms_norm_eps", "layer_norm_eps", "norm_epsilon", other=1e-5),
    )
    assert ours.activation == {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}[theirs.hidden_act]
    turned = int(d_head * rotation.get("partial_rotary_factor", 1.0))
    assert (ours.rotation.theta, ours.rotation.size or d_head) == (rotation["rope_theta"], turned)
    sliding = [kind == "sliding_attention" for kind in said("layer_types", other=[])] or [False] * 8
    assert [bool(window) for window in ours.windows] == sliding
    assert {*ours.windows} <= {0, said("sliding_window", other=0)}
    biases = said("attention_bias", "use_bias", "use_qkv_bias", "qkv_bias", other=False)
    assert ours.attention_bias == biases and ours.out_bias == (biases and name in ("starcoder2",))
    assert ours.logit_scale == said("logit_scale", other=1.0)


def test_keys_of_published_files_that_transformers_does_not_read() -> None:
    """Read where they say what is computed anyway, refused in one line where they do not."""
    star = {"layer_norm_epsilon": 1e-5, "mlp_type": "default", "norm_type": "layer_norm", "scale_attn_weights": True,
            "attention_softmax_in_fp32": True, "scale_attention_softmax_in_fp32": True, "residual_dropout": 0.1,
            "embedding_dropout": 0.1, "rope_theta": 999999.4420358813, "sliding_window": 4096}  # fmt: skip
    assert read("starcoder2", **star).windows == (4096,) * 8
    command = {"layer_switch": 4, "order_of_interleaved_layers": "local_attn_first", "rotary_pct": 1.0,
               "position_embedding_type": "rope_gptj", "use_gated_activation": True, "use_embedding_sharing": True,
               "use_parallel_block": True, "use_parallel_embedding": True, "head_dim": 8, "logit_scale": 0.25,
               "sliding_window_pattern": 4, "cache_implementation": "hybrid", "rope_theta": 50000}  # fmt: skip
    found = read("cohere2", **command)
    assert found.unturned == (3, 7) and found.windows[:4] == (4096, 4096, 4096, 0) and found.rotation.interleaved
    stable = {"rotary_scaling_factor": 1.0, "use_norm_bias": False, "partial_rotary_factor": 0.5, "hidden_dropout": 0.0}
    assert not read("stablelm", **stable).norm_bias and read("stablelm").norm_bias
    assert read("exaone4", sliding_window=None, sliding_window_pattern=None).unturned == ()
    full = ["full_attention"] * 8
    assert read("exaone4", sliding_window=64, layer_types=full).unturned == tuple(range(8))
    assert read("exaone4", sliding_window_pattern="LLLG", layer_types=full, head_dim=8).windows == (0,) * 8
    qwen = {
        **QWEN,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [1],
        "use_sliding_window": True,
        "max_window_layers": 3,
    }
    found = read("qwen2_moe", **qwen, sliding_window=16, router_aux_loss_coef=0.001, output_router_logits=False)
    assert found.mixed == (False, False, False, True) + (False, True) * 2 and found.windows == (16, 0, 16) + (0,) * 5
    assert read("qwen2_moe", num_experts=0).mixed == (False,) * 8
    for name, wrong, said in (
        ("starcoder2", {"norm_type": "rms_norm"}, "our StarCoder 2 has 'layer_norm' there"),
        ("starcoder2", {"layer_norm_epsilon": 1e-3}, "layer_norm_epsilon is 0.001"),
        ("cohere2", {"layer_switch": 3}, "layer_switch is 3, and our Command R7B has 4 there"),
        ("cohere2", {"use_parallel_block": False}, "use_parallel_block is False"),
        ("cohere2", {"head_dim": 12}, "head_dim is 12, and our Command R7B has 8 there"),
        ("cohere2", {"sliding_window": None}, "no sliding window is said or switched on"),
        ("cohere", {"logit_scale": 0}, "logit_scale = 0, which is no number above 0"),
        ("stablelm", {"rotary_scaling_factor": 2.0}, "rotary_scaling_factor is 2.0"),
        ("stablelm", {"rope_pct": 0.25}, "rope_pct = 0.25, which may change what the model computes"),
        ("stablelm", {"hidden_size": 250}, "the first must be a multiple of the second"),
        ("olmo", {"clip_qkv": -1.0}, "clip_qkv = -1.0, which is no number above 0"),
        ("olmo", {"clip_qkv": 0}, "clip_qkv = 0, which is no number above 0"),
        ("olmo", {"rms_norm_eps": 1e-6}, "rms_norm_eps = 1e-06, which may change what the model computes"),
        ("olmoe", {**MIXTURE, "head_dim": 4}, "head_dim is 4, and our OLMoE has 8 there"),
        ("olmoe", {"num_experts": 1, "num_experts_per_tok": 2}, "2 experts are chosen for a token, of 1"),
        ("mixtral", {}, "lacks num_experts"),
        ("mixtral", {"num_local_experts": 4, "num_experts": 5}, "num_local_experts is 4"),
        ("mixtral", {"num_local_experts": 1}, "2 experts are chosen for a token, of 1"),
        ("granitemoe", {"num_local_experts": 1}, "2 experts are chosen for a token, of 1"),
        ("granitemoe", {"num_local_experts": 4, "shared_intermediate_size": 8}, "shared_intermediate_size = 8"),
        ("qwen2_moe", {**QWEN, "mlp_only_layers": "1"}, "mlp_only_layers is '1', which is no list of layers"),
        ("qwen2_moe", {**QWEN, "shared_expert_intermediate_size": 0}, "shared_expert_intermediate_size = 0"),
        ("exaone4", {"sliding_window_pattern": "LLLG"}, "sliding_window_pattern = 'LLLG', which is no size from 1"),
        ("ernie4_5", {"partial_rotary_factor": 0.5}, "ERNIE 4.5 turns whole heads"),
        ("seed_oss", {"odd": 3}, "odd = 3, which may change what the model computes"),
        ("glm", {"partial_rotary_factor": 0.01}, "1 of a head's 128 dimensions can't be turned in pairs"),
    ):  # fmt: skip
        with pytest.raises(MechintError) as error:
            read(name, **wrong)
        assert said in str(error.value) and "\n" not in str(error.value), (name, str(error.value))


def test_a_gpt_j_has_keys_of_its_own() -> None:
    """Those of the published file, and what is taken where it says nothing; a rotation that heads have no room for."""
    small = {"vocab_size": 37, "n_embd": 256, "n_layer": 2, "n_head": 2}

    def said(**more: Any) -> Any:
        reader = ConfigReader({"model_type": "gptj", **small, **more}, "m", "GPT-J")
        found = declared()["gptj"].read(reader)
        reader.done()
        return found

    plain, theirs = said(), T.GPTJConfig(**small)
    published = {"activation_function": "gelu_new", "attn_pdrop": 0.0, "layer_norm_epsilon": 1e-5, "n_inner": None,
                 "n_positions": 2048, "rotary": True, "rotary_dim": 64, "scale_attn_weights": True, "resid_pdrop": 0.0,
                 "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
                 "summary_type": "cls_index", "summary_use_proj": True, "gradient_checkpointing": False,
                 "tie_word_embeddings": False}  # fmt: skip
    assert said(**published) == plain
    assert (plain.rotation.size, plain.tied, plain.d_mlp) == (theirs.rotary_dim, theirs.tie_word_embeddings, 1024)
    assert (plain.norm_eps, plain.activation, plain.head_bias) == (theirs.layer_norm_epsilon, "gelu_tanh", True)
    assert said(rotary_dim=128).rotation.size == 0 and plain.rotation.interleaved
    for wrong, why in (({"rotary_dim": None}, "rotary_dim is None"), ({"rotary_dim": 130}, "at most a head's 128"),
                       ({"rotary_dim": 3}, "it must be even"), ({"n_head": 3}, "n_embd is 256 and n_head 3"),
                       ({"rotary": False}, "rotary is False"), ({"odd": 1}, "odd = 1")):  # fmt: skip
        with pytest.raises(MechintError) as error:
            said(**wrong)
        assert why in str(error.value) and "\n" not in str(error.value)


# ---- parts -----------------------------------------------------------------------------------------------------------


def test_a_bound_holds_at_queries_keys_and_values_and_changes_the_logits(tmp_path: Path) -> None:
    for family in ("olmo", "olmoe"):
        state, config, model = made(family, tmp_path / family, 1)
        limit = config["clip_qkv"]
        run = mechint.run(model, IDS, record=["layers.*.q", "layers.*.k", "layers.*.v"])
        assert all(float(tensor.detach().abs().max()) <= limit for tensor in run.values.values())
        assert any(bool((tensor.detach().abs() == limit).any()) for tensor in run.values.values())
        free = from_state_dict(state, {**config, "clip_qkv": None}, "m", dtype="float64")
        assert float((free(IDS) - model(IDS)).detach().abs().max()) > 1e-3


def test_norms_of_heads_have_weights_of_each_head_and_those_without_have_none() -> None:
    draw = torch.Generator().manual_seed(0)
    norm = HeadsLayerNorm(3, 5, 1e-3).double()
    for one in norm.norms:
        assert isinstance(one, LayerNorm)
        torch.nn.init.normal_(one.weight, generator=draw)
    x = torch.randn(2, 4, 3, 5, generator=draw, dtype=torch.float64)
    by_head = torch.stack([one(x[:, :, h]) for h, one in enumerate(norm.norms)], 2)
    torch.testing.assert_close(norm(x), by_head, rtol=1e-12, atol=1e-12)
    bare, read_by = WeightlessLayerNorm(1e-3), torch.nn.Linear(5, 5).bfloat16()
    bare.readers.append(read_by)
    assert bare(x).dtype == torch.bfloat16 and not list(bare.parameters())
    wanted = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-3).sqrt()
    read_by.double()
    torch.testing.assert_close(bare(x), wanted, rtol=1e-12, atol=1e-12)


def test_a_stablelm_whose_norms_have_no_biases_is_that_with_biases_of_zero(tmp_path: Path) -> None:
    state, config, _ = made("stablelm", tmp_path)
    biases = {name for name in state if name.endswith("norm.bias")}
    zero = {name: tensor * 0 if name in biases else tensor for name, tensor in state.items()}
    without = {name: tensor for name, tensor in state.items() if name not in biases}
    bare = {**config, "use_norm_bias": False}
    found, wanted = (
        from_state_dict(without, bare, "m", dtype="float64"),
        from_state_dict(zero, config, "m", dtype="float64"),
    )
    assert biases and torch.equal(found(IDS), wanted(IDS))
    assert "norm.bias" in refused(without, config) and "norm.bias" in refused(state, bare)


def test_layers_of_a_command_r7b_without_a_window_have_no_rotation(tmp_path: Path) -> None:
    _, config, model = made("cohere2", tmp_path, 3)
    turned = [f"layers.{i}.q_rot" in model.sites for i in range(config["num_hidden_layers"])]
    assert turned == [kind == "sliding_attention" for kind in config["layer_types"]] and len({*turned}) == 2
