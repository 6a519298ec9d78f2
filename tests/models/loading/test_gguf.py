"""GGUF files: what a writer of that format puts there comes back, tensor by tensor, and bad files are one line."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

import mechint
from mechint.models.loading.gguf import CONFIG, LAYER, WHOLE, unpaired
from mechint.models.loading.load import hf_config, to_hf_state_dict
from mechint.utils.errors import MechintError
from tests.helpers.builders import tiny_llama, tokens

gguf = pytest.importorskip("gguf")


def paired(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """As llama.cpp's converter orders the rows: dimension m and m + half of a head side by side."""
    rows = weight.shape[0] // heads
    order = [h * rows + m + half * rows // 2 for h in range(heads) for m in range(rows // 2) for half in (0, 1)]
    return weight[order]


def write(path: Path, model: Any, architecture: str = "llama", quantised: bool = False, **more: Any) -> None:
    said = {**hf_config(model), "rope_theta": model.config.rope_theta}
    writer = gguf.GGUFWriter(str(path), architecture)
    for name, theirs in CONFIG.items():
        if theirs in said:
            add = writer.add_float32 if isinstance(said[theirs], float) else writer.add_uint32
            add(f"{architecture}.{name}", said[theirs])
    for name, value in more.items():
        writer.add_string(f"{architecture}.{name if '.' in name else name.replace('_', '.')}", value)
    back = {theirs: ours for ours, theirs in WHOLE.items()}
    for name, tensor in to_hf_state_dict(model).items():
        bare = name.removesuffix(".weight")
        if bare.startswith("model.layers."):
            _, _, layer, part = bare.split(".", 3)
            bare = f"blk.{layer}.{next(ours for ours, theirs in LAYER.items() if theirs == part)}"
            for kind, heads in (("q", model.config.n_head), ("k", model.config.n_kv_head)):
                tensor = paired(tensor, heads) if part == f"self_attn.{kind}_proj" else tensor
        else:
            bare = back[bare]
        if quantised and tensor.dim() > 1:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(f"{bare}.weight", gguf.quantize(tensor.numpy(), kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{bare}.weight", tensor.numpy())
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()


@pytest.fixture(autouse=True)
def no_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """These files have none, and reading one takes transformers seconds."""
    monkeypatch.setattr(
        "mechint.models.loading.tokenizer.gguf_tokenizer",
        lambda path: pytest.importorskip("tokenizers").Tokenizer(
            pytest.importorskip("tokenizers").models.WordLevel({"a": 0}, unk_token="a")
        ),
    )


@pytest.mark.parametrize("tied", [True, False])
def test_a_llama_comes_back_to_the_bit(tmp_path: Path, tied: bool) -> None:
    model = tiny_llama(1, tied=tied, norm_eps=1e-5)
    write(tmp_path / "m.gguf", model)
    for source in (tmp_path / "m.gguf", tmp_path):  # the file, or the directory that holds it alone
        found = mechint.load(source)
        assert found.config.tied == tied and found.config.n_kv_head == model.config.n_kv_head
        for name, tensor in model.state_dict().items():
            assert torch.equal(found.state_dict()[name], tensor), name
    assert found.tokenizer.get_vocab() == {"a": 0}
    ids = tokens(2, 7)
    torch.testing.assert_close(found(ids), model(ids), rtol=0, atol=1e-4)


def test_quantised_weights_are_near(tmp_path: Path) -> None:
    model = tiny_llama(1, d_model=32, d_mlp=64, d_head=16, n_head=2, n_kv_head=2)
    write(tmp_path / "m.gguf", model, quantised=True)
    found = mechint.load(tmp_path)
    for name, tensor in model.state_dict().items():
        assert (found.state_dict()[name] - tensor).abs().max() <= tensor.abs().max() / 127 + 1e-6, name


def test_rows_of_a_head_go_back() -> None:
    weight = torch.arange(24.0).view(12, 2)
    assert torch.equal(unpaired(paired(weight, 2), 2), weight) and not torch.equal(paired(weight, 2), weight)


def test_bad_files_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = tiny_llama(1), tmp_path / "m.gguf"
    write(path, model, "qwen2")
    with pytest.raises(MechintError, match="holds a qwen2 model; of GGUF files only Llamas"):
        mechint.load(path)
    write(path, model, rope_scaling_type="yarn")
    with pytest.raises(MechintError, match="rope_type is 'yarn'"):
        mechint.load(path)
    write(path, model)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MechintError, match="cut short or damaged"):
        mechint.load(path)
    path.write_bytes(b"no such thing")
    with pytest.raises(MechintError, match="cut short or damaged"):
        mechint.load(path)
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "gguf" else find(name, *rest))
    with pytest.raises(MechintError, match="pip install gguf"):
        mechint.load(path)


def test_metadata_that_is_not_read_is_refused_by_name(tmp_path: Path) -> None:
    """A setting that may change the model must be off; one that no forward needs is let through."""
    model, path = tiny_llama(1), tmp_path / "m.gguf"
    for name in ("attention.sliding_window", "rope.scaling_factor_new", "logit.scale", "expert.count"):
        write(path, model, **{name: "8"})
        with pytest.raises(MechintError, match=rf"llama\.{name} = '8', which may change"):
            mechint.load(path)
    write(path, model, **{"expert.used": "none", "attention.sliding_window": ""})
    assert mechint.load(path).config.n_layer == model.config.n_layer
