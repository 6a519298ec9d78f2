"""Every checkpoint format gives the same model; names and sizes are found; discovery lists in natural order."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import mechint
from mechint.models.loading.discover import find_checkpoints
from mechint.models.loading.load import FAMILIES, Family, from_state_dict, hf_config, to_hf_state_dict
from mechint.models.mamba import Mamba
from mechint.utils.files import natural_key
from tests.helpers.builders import tiny_mamba, tokens
from tests.helpers.standins import save_hf, save_tokenizer


@pytest.fixture
def model() -> Mamba:
    return tiny_mamba(3, norm_eps=1e-3)


def original(model: Mamba) -> dict[str, torch.Tensor]:
    """The names in the authors' files, which hold the head even when it is tied."""
    state = to_hf_state_dict(model)
    state["backbone.embedding.weight"] = state.pop("backbone.embeddings.weight")
    return {**state, "lm_head.weight": state["backbone.embedding.weight"]}


def trainer_config(model: Mamba) -> dict[str, object]:
    return {"family": "mamba", "layer_norm_epsilon": model.config.norm_eps, "lr": 0.01, "task": {"name": "recall"}}


def hf_directory(model: Mamba, at: Path) -> Path:
    return save_hf(model, at / "hf")


def hf_file(model: Mamba, at: Path) -> Path:
    return save_hf(model, at / "hf") / "model.safetensors"


def hf_bin(model: Mamba, at: Path) -> Path:
    directory = save_hf(model, at / "bin")
    (directory / "model.safetensors").unlink()
    torch.save(to_hf_state_dict(model), directory / "pytorch_model.bin")
    return directory


def hf_sharded(model: Mamba, at: Path) -> Path:
    directory = save_hf(model, at / "sharded")
    (directory / "model.safetensors").unlink()
    shards: dict[str, dict[str, torch.Tensor]] = {}
    for i, (name, tensor) in enumerate(to_hf_state_dict(model).items()):
        shards.setdefault(f"model-{i % 3 + 1:05}-of-00003.safetensors", {})[name] = tensor
    for file, part in shards.items():
        save_file(part, directory / file)
    where = {name: file for file, part in shards.items() for name in part}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return directory


def original_directory(model: Mamba, at: Path) -> Path:
    directory, c = at / "original", model.config
    directory.mkdir()
    torch.save(original(model), directory / "pytorch_model.bin")
    config = {
        "d_model": c.d_model, "n_layer": c.n_layer, "vocab_size": c.vocab_size - 3, "pad_vocab_size_multiple": 8,
        "ssm_cfg": {"d_state": c.d_state}, "rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True,
        "norm_epsilon": c.norm_eps,
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def original_file(model: Mamba, at: Path) -> Path:
    return original_directory(model, at) / "pytorch_model.bin"


def trainer(model: Mamba, at: Path) -> Path:
    path = at / "final_model_stepV0.pt"
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}
    value = {"model": to_hf_state_dict(model), "config": trainer_config(model), "iter_num": 7, "best_val_loss": 0.5}
    torch.save({**value, "optimizer": optimizer}, path)
    return path


def trainer_namespace(model: Mamba, at: Path) -> Path:
    path = at / "wrapped.pt"
    state = {f"_orig_mod.module.{name}": tensor for name, tensor in to_hf_state_dict(model).items()}
    torch.save({"model_state_dict": state, "config": argparse.Namespace(**trainer_config(model))}, path)
    return path


def old_torch(model: Mamba, at: Path) -> Path:
    path = at / "old.pt"
    value = {"model": to_hf_state_dict(model), "config": trainer_config(model)}
    torch.save(value, path, _use_new_zipfile_serialization=False)
    return path


def own_names(model: Mamba, at: Path) -> Path:
    path = at / "own.pt"
    torch.save({"model": model.state_dict(), "config": trainer_config(model)}, path)
    return path


def backbone_only(model: Mamba, at: Path) -> Path:
    path = at / "backbone.pt"
    state = {name.removeprefix("backbone."): tensor for name, tensor in to_hf_state_dict(model).items()}
    torch.save({"model": state, "config": trainer_config(model)}, path)
    return path


def one_in_a_directory(model: Mamba, at: Path) -> Path:
    trainer(model, at)
    (at / "final_model_stepV0.resume.pt").write_bytes(b"not read")
    return at


Writer = Callable[[Mamba, Path], Path]
FORMATS: list[Writer] = [
    hf_directory, hf_file, hf_bin, hf_sharded, original_directory, original_file, trainer, trainer_namespace,
    old_torch, own_names, backbone_only, one_in_a_directory,
]  # fmt: skip


@pytest.mark.parametrize("write", FORMATS, ids=lambda f: f.__name__)
def test_every_format_gives_the_same_logits(model: Mamba, tmp_path: Path, write: Writer) -> None:
    loaded = mechint.load(write(model, tmp_path))
    assert loaded.config == model.config  # sizes, switches and the unusual epsilon
    assert not loaded.training
    assert torch.equal(loaded(tokens(2, 9)), model(tokens(2, 9)))


@pytest.mark.parametrize("sizes", [{"tied": False}, {"conv_bias": False}, {"proj_bias": True}, {"d_conv": 1}])
def test_switches_are_found_in_the_tensors(sizes: dict[str, Any]) -> None:
    model = tiny_mamba(1, **sizes)
    loaded = from_state_dict(to_hf_state_dict(model), None, "here")
    assert loaded.config == model.config
    assert torch.equal(loaded(tokens(1, 5)), model(tokens(1, 5)))


def test_eleven_layers_keep_their_order() -> None:
    model = tiny_mamba(2, n_layer=11)
    loaded = from_state_dict(dict(sorted(to_hf_state_dict(model).items())), None, "here")  # layers.10 before layers.2
    assert torch.equal(loaded(tokens(1, 5)), model(tokens(1, 5)))


def test_a_head_that_differs_is_untied(model: Mamba) -> None:
    state = original(model)
    assert from_state_dict(state, None, "here").config.tied
    state["lm_head.weight"] = state["lm_head.weight"] + 1
    loaded = from_state_dict(state, {"tie_word_embeddings": True}, "here")
    assert not loaded.config.tied
    assert torch.equal(loaded.lm_head.weight, state["lm_head.weight"])


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float64])
def test_precisions(model: Mamba, tmp_path: Path, stored: torch.dtype) -> None:
    directory = save_hf(model, tmp_path / "m", stored)
    for wanted in ("float32", "bfloat16", "float16", "float64"):
        loaded = mechint.load(directory, dtype=wanted)
        kinds = {name: parameter.dtype for name, parameter in loaded.named_parameters()}
        dtype = getattr(torch, wanted)
        exact = dtype if wanted == "float64" else torch.float32
        assert {kinds.pop(name) for name in list(kinds) if name.endswith((".A_log", ".D"))} == {exact}
        assert set(kinds.values()) == {dtype}
        assert loaded(tokens(1, 4)).isfinite().all()
    exact_model = mechint.load(directory, dtype=torch.float32)
    name = "layers.0.A_log"
    assert torch.equal(exact_model.get_parameter(name), model.get_parameter(name).to(stored).float())


def test_what_comes_with_the_model(model: Mamba, tmp_path: Path) -> None:
    path = trainer(model, tmp_path)
    loaded = mechint.load(str(path))
    assert loaded.source == str(path)
    assert loaded.tokenizer is None
    assert loaded.metadata["task"] == {"name": "recall"}
    assert loaded.metadata["iter_num"] == 7
    assert "optimizer" not in loaded.metadata


def test_the_tokenizer_beside_the_model(tmp_path: Path) -> None:
    directory = save_tokenizer(save_hf(tiny_mamba(vocab_size=300), tmp_path / "m"), 300)
    tokenizer = mechint.load(directory).tokenizer
    text = "for name in names:"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    mechint.load(directory / "model.safetensors").tokenizer.encode(text)


def test_loading_copies_and_draws_nothing(model: Mamba) -> None:
    state = to_hf_state_dict(model)
    before = torch.get_rng_state()
    loaded = from_state_dict(state, None, "here")
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        loaded.embedding.weight.zero_()
    assert state["backbone.embeddings.weight"].abs().sum() > 0
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in loaded.parameters())


def test_a_family_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    built = torch.nn.Linear(1, 1)
    toy = Family("Toy", lambda names: "toy.weight" in names, build=lambda *_: built)
    monkeypatch.setitem(FAMILIES, "toy", toy)
    assert from_state_dict({"toy.weight": torch.ones(1)}, None, "here") is built


def test_the_configuration_is_what_a_trainer_saves(model: Mamba) -> None:
    config = {**hf_config(model), "family": "mamba", "lr": 1e-2, "steps": 3}
    assert from_state_dict(to_hf_state_dict(model), json.loads(json.dumps(config)), "here").config == model.config


def test_natural_order() -> None:
    names = ["step10", "step2", "V10/a", "V2/b", "V2/a", "step02", "best"]
    assert sorted(names, key=natural_key) == ["V2/a", "V2/b", "V10/a", "best", "step02", "step2", "step10"]


def test_discovery(model: Mamba, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in (
        "final_model_stepV10.pt",
        "final_model_stepV2.pt",
        "best_model_stepV2.pt",
        "final_model_stepV2.resume.pt",
    ):
        (out / name).write_bytes(b"never read")
    (out / "training_metrics_stepV2.json").write_text("{}")
    finals = [str(out / "final_model_stepV2.pt"), str(out / "final_model_stepV10.pt")]
    assert find_checkpoints(str(out / "final_model_step*.pt")) == finals
    assert find_checkpoints(str(out)) == [str(out / "best_model_stepV2.pt"), *finals]
    assert find_checkpoints(finals[0]) == finals[:1]
    directory = save_hf(model, tmp_path / "hf")
    assert find_checkpoints(str(directory)) == [str(directory)]
    assert find_checkpoints(str(tmp_path / "h*")) == [str(directory)]
    assert find_checkpoints(str(tmp_path)) == [str(directory)]  # a directory of model directories
    assert find_checkpoints("state-spaces/mamba-130m-hf") == ["state-spaces/mamba-130m-hf"]
