"""Every layout of a GPT-2 checkpoint gives the same model, and what is none is refused in one line."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mechint
from mechint.models.gpt2 import GPT2
from mechint.models.loading.load import from_state_dict, hf_config, to_hf_state_dict
from tests.helpers.builders import tiny_gpt2, tiny_mamba, tokens
from tests.helpers.paths import ROOT
from tests.helpers.refusals import refusal
from tests.helpers.standins import save_hf, save_tokenizer, serve

State = dict[str, torch.Tensor]


@pytest.fixture
def model() -> GPT2:
    return tiny_gpt2(3, norm_eps=1e-3, activation="gelu")


def linear(model: GPT2) -> State:
    """nanoGPT's names and layout: nn.Linear, and a head that is there even when it is tied."""
    state = {name.replace("layers.", "h."): tensor for name, tensor in model.state_dict().items()}
    head = state.pop("lm_head.weight", state["wte.weight"])
    return {**{f"transformer.{name}": tensor for name, tensor in state.items()}, "lm_head.weight": head}


def with_buffers(state: State, context: int) -> State:
    """The causal masks of older files."""
    buffers: State = {}
    for name in [name for name in state if name.endswith("attn.c_attn.weight")]:
        place = name.removesuffix("c_attn.weight")
        buffers[place + "bias"] = torch.ones(context, context).tril()[None, None]
        buffers[place + "masked_bias"] = torch.tensor(-1e4)
    return {**state, **buffers}


def arguments(model: GPT2) -> dict[str, Any]:
    """nanoGPT's model_args."""
    c = model.config
    return {"n_layer": c.n_layer, "n_head": c.n_head, "n_embd": c.d_model, "block_size": c.n_ctx, "bias": c.bias,
            "vocab_size": c.vocab_size, "dropout": 0.1}  # fmt: skip


def trainer_config(model: GPT2) -> dict[str, Any]:
    """A trainer's options, which know neither layers nor vocabulary."""
    return {"n_head": model.config.n_head, "layer_norm_epsilon": model.config.norm_eps, "lr": 6e-4, "bias": True}


def hf_directory(model: GPT2, at: Path) -> Path:
    return save_hf(model, at / "hf")


def hf_without_prefix(model: GPT2, at: Path) -> Path:
    """As the published files are: no prefix, masks, and no head."""
    directory = save_hf(model, at / "hf")
    (directory / "model.safetensors").unlink()
    state = {name.removeprefix("transformer."): tensor for name, tensor in to_hf_state_dict(model).items()}
    torch.save(with_buffers(state, 16), directory / "pytorch_model.bin")
    return directory


def transformers_writes(model: GPT2, at: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**hf_config(model), bos_token_id=0, eos_token_id=0))
    theirs.load_state_dict(to_hf_state_dict(model), strict=False)
    theirs.save_pretrained(at / "theirs")
    return at / "theirs"


def nano(model: GPT2, at: Path) -> Path:
    """nanoGPT's ckpt.pt, started from a published model: its config has other sizes than its model_args."""
    path = at / "ckpt.pt"
    config = {"n_layer": 12, "n_head": 12, "n_embd": 768, "init_from": "gpt2", "layer_norm_epsilon": 1e-3}
    torch.save({"model": linear(model), "model_args": arguments(model), "config": config, "iter_num": 5}, path)
    return path


def trainer(model: GPT2, at: Path) -> Path:
    path = at / "final_model_stepV0.pt"
    state = {f"_orig_mod.module.{name}": tensor for name, tensor in linear(model).items()}
    config = argparse.Namespace(**trainer_config(model))
    torch.save({"model": state, "config": config, "iter_num": 7, "best_val_loss": 0.5}, path)
    return path


def trainer_state_dict(model: GPT2, at: Path) -> Path:
    path = at / "wrapped.pt"
    state = {f"module.{name}": tensor for name, tensor in with_buffers(linear(model), 16).items()}
    torch.save({"model_state_dict": state, "args": trainer_config(model)}, path)
    return path


def own_names(model: GPT2, at: Path) -> Path:
    path = at / "own.pt"
    torch.save({"model": model.state_dict(), "config": hf_config(model)}, path)
    return path


Writer = Callable[[GPT2, Path], Path]
FORMATS: list[Writer] = [
    hf_directory, hf_without_prefix, transformers_writes, nano, trainer, trainer_state_dict, own_names,
]  # fmt: skip


@pytest.mark.parametrize("write", FORMATS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("tied", [True, False])
def test_every_format_gives_the_same_logits(tied: bool, tmp_path: Path, write: Writer) -> None:
    model = tiny_gpt2(3, norm_eps=1e-3, activation="gelu", tied=tied)
    loaded = mechint.load(write(model, tmp_path))
    assert loaded.config == model.config  # sizes, switches and the unusual epsilon
    assert not loaded.training
    assert torch.equal(loaded(tokens(2, 9)), model(tokens(2, 9)))


SWITCHES = [{"bias": False, "norm_bias": False}, {"bias": False}, {"kv_tied": True}, {"tied": False}, {"d_mlp": 12},
            {"kv_tied": True, "bias": False, "tied": False}, {"d_model": 3, "d_mlp": 9}, {"n_layer": 11}]  # fmt: skip


@pytest.mark.parametrize("sizes", SWITCHES)
@pytest.mark.parametrize("layout", [linear, to_hf_state_dict])
def test_switches_and_layouts_are_found_in_the_tensors(sizes: dict[str, Any], layout: Callable[[GPT2], State]) -> None:
    activation = "gelu" if layout is linear else "gelu_tanh"  # what each layout has when nothing says otherwise
    model = tiny_gpt2(1, activation=activation, **sizes)
    state = dict(sorted(layout(model).items()))  # h.10 before h.2
    loaded = from_state_dict(state, {"n_head": 3}, "here")
    assert loaded.config == model.config
    assert torch.equal(loaded(tokens(1, 5)), model(tokens(1, 5)))


@pytest.mark.parametrize(
    ("name", "ours"), [("gelu", "gelu"), ("gelu_new", "gelu_tanh"), ("gelu_pytorch_tanh", "gelu_tanh")]
)
def test_the_activation_is_honoured(model: GPT2, name: str, ours: str) -> None:
    for state in (linear(model), to_hf_state_dict(model)):
        loaded = from_state_dict(state, {"n_head": 3, "activation_function": name}, "here")
        assert loaded.config.activation == ours
    same = torch.equal(loaded(tokens(1, 9)), tiny_gpt2(3, activation="gelu")(tokens(1, 9)))
    assert same == (ours == "gelu")


@pytest.mark.parametrize("wanted", ["float32", "bfloat16", "float16", "float64"])
def test_precisions(model: GPT2, tmp_path: Path, wanted: str) -> None:
    loaded = mechint.load(save_hf(model, tmp_path / "m", torch.bfloat16), dtype=wanted)
    assert {parameter.dtype for parameter in loaded.parameters()} == {getattr(torch, wanted)}
    assert loaded(tokens(1, 4)).isfinite().all()
    assert all(parameter.is_contiguous() and parameter.requires_grad for parameter in loaded.parameters())


def test_what_comes_with_the_model(model: GPT2, tmp_path: Path) -> None:
    loaded = mechint.load(trainer(model, tmp_path))
    assert loaded.metadata["iter_num"] == 7 and loaded.metadata["lr"] == 6e-4
    big = save_tokenizer(save_hf(tiny_gpt2(vocab_size=300), tmp_path / "m"), 300)
    assert mechint.load(big).tokenizer.encode("for name in names:").ids


@pytest.mark.slow
def test_a_model_of_the_hub(model: GPT2, tmp_path: Path) -> None:
    directory = hf_directory(model, tmp_path)
    script = (
        "import mechint; from tests.helpers.builders import tokens;"
        "print(mechint.load('someone/gpt2')(tokens(1, 4)).flatten().tolist())"
    )
    with serve({"someone/gpt2": directory}) as hub:
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0",
                       "PYTHONPATH": f"{ROOT / 'lib'}:{ROOT}"}  # fmt: skip
        environment.pop("HF_HUB_CACHE", None)
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)), model(tokens(1, 4)).detach().flatten())


def refused(state: State, config: dict[str, Any] | None = None, **options: Any) -> str:
    return refusal(lambda: from_state_dict(state, {"n_head": 3} if config is None else config, "m.pt", **options))


def test_heads_must_be_said(model: GPT2) -> None:
    assert "does not say how many heads it has" in refused(linear(model), {"n_embd": 12})
    assert "n_head = 5, which does not divide the width 12" in refused(linear(model), {"n_head": 5})
    assert "n_head = 0" in refused(linear(model), {"n_head": 0})
    assert "n_head = 'many', which is no int" in refused(linear(model), {"n_head": "many"})


@pytest.mark.parametrize("layout", [linear, to_hf_state_dict])
def test_missing_and_left_over_tensors_are_named(model: GPT2, layout: Callable[[GPT2], State]) -> None:
    state = layout(model)
    for part in ("attn.c_attn.weight", "ln_2.bias", "mlp.c_fc.weight"):
        less = {name: tensor for name, tensor in state.items() if name != f"transformer.h.1.{part}"}
        message = refused(less)
        assert "m.pt is not exactly a GPT-2 of 2 layers; tensors missing: 1 (transformer.h.1." + part in message
    assert "missing: 1 (transformer.wpe.weight)" in refused({k: v for k, v in state.items() if "wpe" not in k})
    more = {**state, "transformer.h.0.attn.gate": torch.ones(3), "score.weight": torch.ones(2, 12)}
    assert "not used: 2 (score.weight, transformer.h.0.attn.gate)" in refused(more)
    assert "not used: 12 (transformer.h.1." in refused(state, {"n_head": 3, "n_layer": 1})
    assert "missing: 12 (transformer.h.2." in refused(state, {"n_head": 3, "n_layer": 3})
    assert "not used: 1 (transformer.h.0.attn.bias)" in refused({**state, "transformer.h.0.attn.bias": torch.ones(3)})
    if layout is to_hf_state_dict:
        assert "missing: 1 (lm_head.weight)" in refused(state, {"n_head": 3, "tie_word_embeddings": False})


@pytest.mark.parametrize("name", ["h.1.attn.c_proj.weight", "h.0.mlp.c_fc.bias", "ln_f.weight", "wpe.weight"])
def test_wrong_shapes_are_named(name: str) -> None:
    full = f"transformer.{name}"
    for state in (linear(tiny_gpt2(n_layer=3)), to_hf_state_dict(tiny_gpt2(n_layer=3))):
        right = list(state[full].shape)
        state[full] = torch.ones(*right[:-1], right[-1] + 1)
        assert f"{full} is {[*right[:-1], right[-1] + 1]} and should be {right}" in refused(state)


def test_projections_of_another_kind(model: GPT2) -> None:
    state = linear(model)
    for i in range(2):
        state[f"transformer.h.{i}.attn.c_attn.weight"] = torch.ones(20, 12)
    message = refused(state)
    assert "c_attn.weight is [20, 12]; with a width of 12 it should have 36 outputs" in message
    assert "or 24 (queries, and keys that are the values)" in message


def test_a_configuration_that_disagrees(model: GPT2) -> None:
    state = linear(model)
    for config, said in [
        ({"n_embd": 768}, "n_embd = 768, but the tensors have 12"),
        ({"block_size": 2048}, "= 2048, but the tensors have embeddings for 16"),
        ({"vocab_size": 50257}, "vocab_size = 50257, but the tensors have 24"),
        ({"bias": False}, "tensors not used"),
        ({"activation_function": "relu"}, "the activation is 'relu'; GPT-2 has one of gelu"),
        ({"model_type": "imagegpt"}, "model_type is 'imagegpt'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False"),
    ]:
        assert said in refused(state, {"n_head": 3, **config}), config
    from_state_dict(state, {"n_head": 3, "block_size": 8, "vocab_size": 20}, "here")  # trained on less; padded rows


def test_other_faults(model: GPT2, tmp_path: Path) -> None:
    state = to_hf_state_dict(model)
    state["transformer.h.1.mlp.c_fc.weight"][2, 3] = float("nan")
    assert "transformer.h.1.mlp.c_fc.weight has 1 NaN or infinite" in refused(state)
    assert "holds a GPT-2 model, and this configuration is for mamba" in refused(linear(model), expect_family="mamba")
    assert "this configuration is for gpt2" in refused(to_hf_state_dict(tiny_mamba()), expect_family="gpt2")
    directory = save_tokenizer(save_hf(model, tmp_path / "m"), 300)
    assert "another model's tokenizer?" in refusal(lambda: mechint.load(directory))
    config = json.loads((directory / "config.json").read_text())
    del config["n_head"]
    (directory / "config.json").write_text(json.dumps(config))
    assert "does not say how many heads" in refusal(lambda: mechint.load(directory))
