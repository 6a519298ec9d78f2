"""Bamba and Granite 4: switches that live in no tensor, and configurations that are refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

import mechint
from mechint.models.families import declared
from mechint.models.loading.config_reader import ConfigReader
from mechint.models.loading.load import hf_config
from mechint.utils.errors import MechintError

pytest.importorskip("transformers")

from tests.helpers.judges.base import Judge, judged
from tests.helpers.judges.hybrids import JUDGES

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
