"""Hybrids of Mamba-2 and attention: names on disk, switches that live in no tensor, and what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import mechint
from mechint.interventions.sweep import sweep
from mechint.models.families import declared
from mechint.models.loading.config_reader import ConfigReader
from mechint.models.loading.load import hf_config
from mechint.models.stack import Stack
from mechint.utils.errors import MechintError

pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")
load_file, save_file = safetensors.load_file, safetensors.save_file

from tests.helpers.judges.base import Judge, judged  # noqa: E402
from tests.helpers.judges.hybrids import JUDGES  # noqa: E402

HYBRIDS = {judge.family: judge for judge in JUDGES}


def configuration(name: str, seed: int = 0) -> dict[str, Any]:
    return HYBRIDS[name].make(random.Random(seed)).config.to_dict()


def read(name: str, said: dict[str, Any]) -> Any:
    family = declared()[name]
    reader = ConfigReader(said, "model", family.title)
    found = family.read(reader)
    reader.done()
    return found


@pytest.mark.parametrize(("name", "wrong", "said"), [
    ("bamba", {"attn_layer_indices": [9]}, "attn_layer_indices is \\[9\\]"),
    ("bamba", {"mamba_n_heads": 7, "mamba_d_head": "auto"}, "no 7 equal heads"),
    ("bamba", {"mamba_d_head": 3}, "mamba_d_head is 3"),
    ("bamba", {"partial_rotary_factor": 1.0}, "partial_rotary_factor is 1.0"),
    ("bamba", {"hidden_act": "tanh"}, "hidden_act is 'tanh'"),
    ("bamba", {"sliding_window": 8}, "sliding_window = 8"),
    ("granitemoehybrid", {"layer_types": ["mamba"]}, "layer_types names 1 layers"),
    ("granitemoehybrid", {"layers_block_type": ["mamba"]}, "layers_block_type is"),
    ("granitemoehybrid", {"position_embedding_type": "alibi"}, "position_embedding_type is 'alibi'"),
    ("granitemoehybrid", {"position_embedding_type": "rope", "partial_rotary_factor": 0.5,
                          "rope_parameters": None}, "turns whole heads"),
    ("granitemoehybrid", {"num_local_experts": 2, "num_experts_per_tok": 3}, "3 experts are chosen for a token, of 2"),
    ("granitemoehybrid", {"logits_scaling": 0.0}, "logits_scaling = 0.0"),
    ("nemotron_h", {"hybrid_override_pattern": "MX"}, "and no X"),
    ("nemotron_h", {"hybrid_override_pattern": "M" * 99}, "say different layers"),
    ("nemotron_h", {"layers_block_type": None}, "lacks layers_block_type"),
    ("nemotron_h", {"num_hidden_layers": 99}, "num_hidden_layers is 99"),
    ("nemotron_h", {"attention_bias": True}, "attention_bias is True"),
    ("nemotron_h", {"tie_word_embeddings": True}, "tie_word_embeddings is True"),
    ("nemotron_h", {"time_step_limit": [0.0, 0.1]}, "time_step_limit"),
    ("nemotron_h", {"sliding_window": 8}, "sliding_window = 8"),
    ("nemotron_h", {"n_shared_experts": 2}, "n_shared_experts is 2"),
    ("nemotron_h", {"n_group": 2, "n_routed_experts": 5}, "of 2 groups of 5 experts"),
    ("nemotron_h", {"num_experts_per_tok": 99}, "99 experts are chosen for a token"),
    ("nemotron_h", {"mamba_n_groups": 77}, "n_groups is"),
    ("zamba2", {"tie_word_embeddings": False}, "tie_word_embeddings is False"),
    ("zamba2", {"num_attention_heads": 3}, "are not equal"),
    ("zamba2", {"use_long_context": True}, "use_long_context is True"),
    ("zamba2", {"use_conv_bias": False}, "use_conv_bias is False"),
    ("zamba2", {"hybrid_layer_ids": [99]}, "hybrid_layer_ids is"),
    ("zamba2", {"num_attention_heads": 4, "num_key_value_heads": 2, "use_shared_attention_adapter": True,
                "attention_head_dim": None, "kv_channels": None, "num_query_groups": None}, "needs as many heads"),
])  # fmt: skip
def test_configurations_that_do_not_fit_are_refused_by_key(name: str, wrong: dict[str, Any], said: str) -> None:
    right = configuration(name)
    read(name, right)
    with pytest.raises(MechintError, match=said):
        read(name, {**right, **wrong})


def test_words_of_earlier_files_are_understood() -> None:
    said = configuration("granitemoehybrid")
    old = dict(said)
    old["layers_block_type"] = ["mamba" if x == "linear_attention" else "attention" for x in old.pop("layer_types")]
    assert read("granitemoehybrid", old) == read("granitemoehybrid", said)


def test_a_nemotron_pattern_of_letters_is_understood() -> None:
    said = configuration("nemotron_h")
    letters = {"linear_attention": "M", "full_attention": "*", "mlp": "-", "moe": "E"}
    old = {**said, "hybrid_override_pattern": "".join(letters[kind] for kind in said["layers_block_type"])}
    assert read("nemotron_h", old) == read("nemotron_h", said)
    del old["layers_block_type"]
    old["mamba_d_conv"] = old.pop("conv_kernel")
    assert read("nemotron_h", old) == read("nemotron_h", said)


@pytest.mark.parametrize("body", ["backbone.", "model."])
@pytest.mark.parametrize("together", [True, False])
def test_nemotron_files_hold_experts_apart_or_as_one_under_either_body(
    body: str, together: bool, tmp_path: Path
) -> None:
    theirs = judged(HYBRIDS["nemotron_h"], 1)
    theirs.save_pretrained(tmp_path)
    expected = mechint.load(tmp_path).state_dict()
    held = load_file(tmp_path / "model.safetensors")
    assert any(name.startswith("backbone.layers") for name in held)
    assert any(".experts.0.up_proj.weight" in name for name in held)
    if together:
        held = {f"backbone.{key.removeprefix('model.')}" if key.startswith("model.") else key: tensor.float()
                for key, tensor in theirs.state_dict().items()}  # fmt: skip
        assert any(name.endswith(".experts.up_proj") for name in held)
    held = {name.replace("backbone.", body): tensor for name, tensor in held.items()}
    held["mtp.layers.0.norm.weight"] = torch.ones(3)
    save_file({name: tensor.contiguous() for name, tensor in held.items()}, tmp_path / "model.safetensors")
    model = mechint.load(tmp_path)
    assert isinstance(model, Stack) and "mtp.layers.0.norm.weight" in model.left_out
    found = model.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_a_zamba_shares_its_blocks_and_sweeps_edits_of_its_stream_alone(tmp_path: Path) -> None:
    """The embeddings behind the stream are out of reach of edits between layers, in a sweep as in a run."""
    theirs = judged(HYBRIDS["zamba2"], 0)
    theirs.save_pretrained(tmp_path)
    model = mechint.load(tmp_path, dtype="float64")
    kinds = theirs.config.layers_block_type
    held = [name for name in model.state_dict() if "shared_transformer.pre_ff_layernorm" in name]
    assert len(held) == min(theirs.config.num_mem_blocks, kinds.count("hybrid"))
    tokens = torch.randint(3, 37, (1, 6))
    edits = [mechint.Edit(f"layers.{i}.{site}", "scale", 0.5, positions=[3])
             for i in range(len(kinds)) for site in ("resid_post", "ssm_out", "resid_pre")]  # fmt: skip
    with torch.no_grad():
        for edit in edits:
            assert edit.site in model.sites
            whole = mechint.run(model, tokens, edits=[edit]).logits[:, -1]
            swept = sweep(model, tokens, [[edit]])[0, :, -1]
            assert torch.allclose(swept, whole, rtol=0, atol=1e-12)


def test_granite_without_experts_has_the_shared_part_alone(tmp_path: Path) -> None:
    made: set[bool] = set()
    for seed in range(9):
        judge = HYBRIDS["granitemoehybrid"]
        theirs = judged(Judge(judge.family, judge.make), seed)
        theirs.save_pretrained(tmp_path / str(seed))
        ours = mechint.load(tmp_path / str(seed))
        experts = bool(theirs.config.num_local_experts)
        made.add(experts)
        assert experts == ("layers.0.expert_weight" in ours.sites) == ("expert" in ours.unit_kinds)
        assert "layers.0.mlp_post" in ours.sites
        kept = hf_config(ours)
        assert kept["logits_scaling"] == theirs.config.logits_scaling
        assert read("granitemoehybrid", json.loads(json.dumps(kept))) == ours.config
    assert made == {True, False}
