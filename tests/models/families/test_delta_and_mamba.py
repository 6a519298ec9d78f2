"""Kin of Mamba-1, delta rules and short convolutions: names in files, switches in no tensor, and bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mechint
from mechint.utils.errors import MechintError

pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")

from tests.helpers.judges.base import judged  # noqa: E402
from tests.helpers.judges.recurrent import JUDGES as RECURRENT  # noqa: E402

JUDGES = {judge.family: judge for judge in RECURRENT}
TOKENS = torch.arange(3, 12).unsqueeze(0)


def written(family: str, path: Path, seed: int = 0) -> Path:
    """The directory of a random model as transformers writes it."""
    judged(JUDGES[family], seed).save_pretrained(path)
    return path


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the configuration of a directory."""
    config = json.loads((path / "config.json").read_text())
    change(config)
    (path / "config.json").write_text(json.dumps(config))


def logits(path: Path) -> torch.Tensor:
    with torch.no_grad():
        return mechint.load(path, dtype="float64")(TOKENS)


def renamed(path: Path, name: Callable[[str], str]) -> None:
    """Renames the tensors of a directory."""
    tensors = safetensors.load_file(path / "model.safetensors")
    safetensors.save_file({name(key): tensor for key, tensor in tensors.items()}, path / "model.safetensors")


def test_weightless_norms_change_what_mamba_computes(tmp_path: Path) -> None:
    """Falcon-Mamba's tensors are a Mamba's: its configuration alone tells them apart, and nothing else is guessed."""
    falcon = logits(written("falcon_mamba", tmp_path / "falcon"))
    changed(tmp_path / "falcon", lambda c: (c.update(model_type="mamba", architectures=["MambaForCausalLM"]),
                                            c.pop("mixer_rms_eps")))  # fmt: skip
    assert (logits(tmp_path / "falcon") - falcon).abs().max() > 1e-3
    (tmp_path / "falcon/model.safetensors").rename(tmp_path / "alone.safetensors")
    with pytest.raises(MechintError, match="FalconMamba has tensors of the same names; give a directory"):
        logits(tmp_path / "alone.safetensors")


def test_a_fast_pass_is_taken_with_inner_norms(tmp_path: Path) -> None:
    model = mechint.load(written("falcon_mamba", tmp_path))
    with torch.no_grad():
        recorded = mechint.run(model, TOKENS, record=["layers.0.u"]).logits
        assert torch.equal(mechint.run(model, TOKENS).logits, recorded)


def test_files_of_olmo_hybrid_have_other_names(tmp_path: Path) -> None:
    """The convolution may be cut where queries, keys and values meet, and norms may have today's names."""
    from mechint.models.loading.load import to_hf_state_dict

    before = logits(written("olmo_hybrid", tmp_path))
    ours = to_hf_state_dict(mechint.load(tmp_path, dtype="float64"))
    safetensors.save_file(ours, tmp_path / "model.safetensors")
    assert torch.equal(logits(tmp_path), before)
    renamed(tmp_path, lambda key: key.replace("attention_layer_norm", "input_layernorm").replace(
        "feedforward_layer_norm", "post_attention_layernorm"))  # fmt: skip
    assert torch.equal(logits(tmp_path), before)
    lost = {k: t for k, t in safetensors.load_file(tmp_path / "model.safetensors").items() if "k_conv1d" not in k}
    safetensors.save_file(lost, tmp_path / "model.safetensors")
    with pytest.raises(MechintError, match=r"it lacks .*k_conv1d\.weight"):
        logits(tmp_path)


def test_dense_parts_of_kimi_linear_have_two_names(tmp_path: Path) -> None:
    before = logits(written("kimi_linear", tmp_path))
    renamed(tmp_path, lambda key: key.replace("block_sparse_moe", "mlp"))
    assert torch.equal(logits(tmp_path), before)


def test_layers_of_kimi_linear_are_counted_from_one_in_its_section(tmp_path: Path) -> None:
    before = logits(written("kimi_linear", tmp_path, 1))

    def move(config: dict[str, Any]) -> None:
        full = [i + 1 for i, kind in enumerate(config.pop("layer_types")) if kind == "full_attention"]
        delta = [i + 1 for i in range(config["num_hidden_layers"]) if i + 1 not in full]
        config["linear_attn_config"] = {
            "full_attn_layers": full, "kda_layers": delta, "head_dim": config.pop("linear_head_dim"),
            "num_heads": config.pop("linear_num_heads"),
            "short_conv_kernel_size": config.pop("linear_conv_kernel_dim"),
        }  # fmt: skip

    changed(tmp_path, move)
    assert torch.equal(logits(tmp_path), before)
    changed(tmp_path, lambda c: c["linear_attn_config"].update(kda_layers=[], full_attn_layers=[1, 1]))
    with pytest.raises(MechintError, match="full_attn_layers and kda_layers"):
        logits(tmp_path)


def test_all_experts_of_qwen_as_one_tensor(tmp_path: Path) -> None:
    before = logits(written("qwen3_5_moe", tmp_path))
    tensors = safetensors.load_file(tmp_path / "model.safetensors")
    apart = {key: tensors.pop(key) for key in list(tensors) if ".experts." in key}
    for front in {key.split("experts.")[0] for key in apart}:
        count = 1 + max(
            int(key.removeprefix(front + "experts.").split(".")[0]) for key in apart if key.startswith(front)
        )
        each = [{name: apart[f"{front}experts.{x}.{name}_proj.weight"] for name in ("gate", "up", "down")}
                for x in range(count)]  # fmt: skip
        tensors[f"{front}experts.gate_up_proj"] = torch.stack([torch.cat([one["gate"], one["up"]]) for one in each])
        tensors[f"{front}experts.down_proj"] = torch.stack([one["down"] for one in each])
    safetensors.save_file(tensors, tmp_path / "model.safetensors")
    assert torch.equal(logits(tmp_path), before)


def test_the_width_of_lfm2_by_its_earlier_keys(tmp_path: Path) -> None:
    before = logits(written("lfm2", tmp_path))
    earlier = {"block_ff_dim": "intermediate_size", "tie_embedding": "tie_word_embeddings"}
    changed(tmp_path, lambda c: c.update({name: c.pop(today) for name, today in earlier.items()}))
    assert torch.equal(logits(tmp_path), before)


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("olmo_hybrid", {"rope_parameters": None}, "does not say whether attention rotates"),
    ("olmo_hybrid", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ("lfm2", {"tie_embedding": True, "tie_word_embeddings": False}, "tie_embedding says the contrary"),
    ("lfm2", {"block_ff_dim": 99}, "block_ff_dim says otherwise"),
    ("lfm2", {"use_pos_enc": False}, "use_pos_enc is False"),
    ("kimi_linear", {"tie_word_embeddings": True}, "tie_word_embeddings is True"),
    ("kimi_linear", {"mla_use_nope": False}, "mla_use_nope is False"),
    ("kimi_linear", {"linear_attn_config": {"gate_low_rank": 3}}, "linear_attn_config has 'gate_low_rank'"),
    ("qwen3_next", {"mlp_only_layers": "all"}, "mlp_only_layers is 'all'"),
    ("qwen3_next", {"linear_num_value_heads": 3, "linear_num_key_heads": 2}, "is no multiple of"),
    ("qwen3_5_moe", {"num_experts_per_tok": 9}, "num_experts_per_tok = 9"),
    ("falcon_mamba", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ("falcon_mamba", {"time_step_rank": "some"}, "time_step_rank = 'some'"),
    ("jamba", {"attn_layer_offset": 9}, "attn_layer_offset = 9 must be less"),
    ("jamba", {"mamba_inner_layernorms": False}, "mamba_inner_layernorms is False"),
    ("jamba", {"layers_block_type": ["attention", "mamba", "mamba", "mamba"]}, "layers_block_type"),
]


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A directory of every family that bad input is made of."""
    return {name: written(name, tmp_path_factory.mktemp(name)) for name in {family for family, _, _ in BAD}}


@pytest.mark.parametrize(("family", "change", "said"), BAD)
def test_bad_input_is_named(family: str, change: dict[str, Any], said: str, directories: dict[str, Path]) -> None:
    """One line that names what was found, before any tensor is used."""
    config = (directories[family] / "config.json").read_text()
    try:
        changed(directories[family], lambda c: c.update(change))
        with pytest.raises(MechintError) as caught:
            mechint.load(directories[family])
        assert said in str(caught.value) and "\n" not in str(caught.value)
    finally:
        (directories[family] / "config.json").write_text(config)
