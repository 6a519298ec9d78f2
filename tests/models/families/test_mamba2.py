"""Mamba-2 as its authors write it: the same model, or a refusal that names the key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mechint
from mechint.models.loading.load import hf_config, to_hf_state_dict
from mechint.models.stack import Stack
from mechint.utils.errors import MechintError

pytest.importorskip("transformers")

from tests.helpers.judges.base import VOCABULARY, judged, logits_of
from tests.helpers.judges.recurrent import JUDGES

JUDGE = next(judge for judge in JUDGES if judge.family == "mamba2")


def written(path: Path, seed: int) -> tuple[Any, dict[str, Any]]:
    """A random model of transformers in the authors' layout, and what their configuration says of it."""
    theirs = judged(JUDGE, seed)
    c = theirs.config
    rows = -(-VOCABULARY // 16) * 16
    held = {name.replace("embeddings.", "embedding."): tensor for name, tensor in theirs.state_dict().items()}
    for name in ("backbone.embedding.weight", "lm_head.weight"):
        held[name] = torch.cat([held[name], torch.zeros(rows - VOCABULARY, c.hidden_size).double()])
    said = {
        "d_model": c.hidden_size, "d_intermediate": 0, "n_layer": c.num_hidden_layers, "vocab_size": VOCABULARY,
        "ssm_cfg": {
            "layer": "Mamba2", "headdim": c.head_dim, "d_state": c.state_size, "ngroups": c.n_groups,
            "d_conv": c.conv_kernel, "conv_bias": c.use_conv_bias, "bias": c.use_bias, "expand": c.expand,
            "dt_limit": list(c.time_step_limit),
        },
        "attn_layer_idx": [], "attn_cfg": {}, "rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True,
        "pad_vocab_size_multiple": 16, "tie_embeddings": c.tie_word_embeddings,
    }  # fmt: skip
    save(path, said, held)
    return theirs, said


def save(path: Path, said: dict[str, Any], held: dict[str, torch.Tensor]) -> None:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(said))
    torch.save(held, path / "pytorch_model.bin")


@pytest.mark.parametrize("seed", range(6))
def test_the_authors_files_are_the_same_model(seed: int, tmp_path: Path) -> None:
    theirs, _ = written(tmp_path / "authors", seed)
    for module in theirs.modules():  # the authors' configuration has no word for it
        for name in ("variance_epsilon", "eps"):
            if hasattr(module, name):
                setattr(module, name, 1e-5)
    ours = mechint.load(tmp_path / "authors", dtype="float64")
    assert isinstance(ours, Stack) and ours.config.family == "mamba2"
    tokens = torch.randint(3, VOCABULARY, (2, 11))
    with torch.no_grad():
        expected = logits_of(theirs, tokens)
        found = ours(tokens)
    assert float((found[..., :VOCABULARY] - expected).abs().max() / expected.abs().max()) <= 1e-12
    from safetensors.torch import save_file

    again = tmp_path / "again"
    again.mkdir()
    (again / "config.json").write_text(json.dumps(hf_config(ours)))
    save_file(to_hf_state_dict(ours), again / "model.safetensors")
    same = mechint.load(again, dtype="float64")
    assert same.config == ours.config
    assert all(torch.equal(tensor, same.state_dict()[name]) for name, tensor in ours.state_dict().items())


@pytest.mark.parametrize(("where", "wrong", "words"), [
    ("", {"attn_layer_idx": [0]}, "attn_layer_idx is \\[0\\]"),
    ("", {"d_intermediate": 8}, "d_intermediate is 8"),
    ("", {"rms_norm": False}, "rms_norm is False"),
    ("ssm_cfg", {"rmsnorm": False}, "rmsnorm is False"),
    ("ssm_cfg", {"norm_before_gate": True}, "norm_before_gate is True"),
    ("ssm_cfg", {"D_has_hdim": True}, "D_has_hdim is True"),
    ("ssm_cfg", {"headdim": 7}, "no heads of the width 7"),
    ("ssm_cfg", {"d_ssm": 1}, "d_ssm is 1"),
    ("ssm_cfg", {"d_state": 99}, "in_proj.weight"),
    ("ssm_cfg", {"rope": True}, "rope = True"),
])  # fmt: skip
def test_what_the_authors_may_say_and_is_not_supported_is_refused(
    where: str, wrong: dict[str, Any], words: str, tmp_path: Path
) -> None:
    _, said = written(tmp_path, 0)
    changed = {**said, **wrong} if not where else {**said, where: {**said[where], **wrong}}
    (tmp_path / "config.json").write_text(json.dumps(changed))
    with pytest.raises(MechintError, match=words):
        mechint.load(tmp_path)


def test_tensors_alone_do_not_tell_groups_and_states(tmp_path: Path) -> None:
    written(tmp_path, 0)
    (tmp_path / "config.json").unlink()
    with pytest.raises(MechintError, match=r"put its config\.json beside it"):
        mechint.load(tmp_path / "pytorch_model.bin")
