"""Dictionaries of other libraries: their own files read here, ours written for them, and broken files.

The golden files were made by the libraries themselves (tests/golden/sae/peers.py). ``make interchange`` also has the
libraries load ours.
"""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mechint import MechintError, sae
from mechint.sae.base import SAEConfig
from tests.golden.sae.ours import ARCHITECTURES, example
from tests.helpers.dictionary_files import GOLDEN, LOAD
from tests.helpers.examples import examples

SAVE = {
    "saelens": sae.save, "dictionary_learning": sae.save_dictionary_learning, "sparsify": sae.save_sparsify,
}  # fmt: skip
FILES = [
    pytest.param(path, id=f"{path.parent.name}-{path.name}") for path in sorted(GOLDEN.glob("*/*")) if path.is_dir()
]


def close(a: torch.Tensor, b: torch.Tensor, limit: float = 1e-6) -> bool:
    return float((a - b).abs().max()) <= limit * float(b.abs().max())


@pytest.mark.parametrize("path", FILES)
def test_their_files_encode_as_they_do_there(path: Path) -> None:
    expected = load_file(path / "expected.safetensors")
    loaded = LOAD[path.parent.name](path)
    f = loaded.encode(expected["x"])
    assert torch.equal(f > 0, expected["f"] > 0) and close(f, expected["f"])
    assert close(loaded(expected["x"]), expected["back"])
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_every_architecture_of_theirs_is_here() -> None:
    assert len(FILES) == 14
    assert {path.values[0].name for path in FILES if path.values[0].parent.name == "dictionary_learning"} == set(
        sae.formats.dictionary_learning.KINDS
    )


@settings(max_examples=examples(40), deadline=None)
@given(
    architecture=st.sampled_from(ARCHITECTURES), library=st.sampled_from(sorted(SAVE)), subtract=st.booleans(),
    unit=st.booleans(), seed=st.integers(0, 1000),
)  # fmt: skip
def test_what_is_saved_for_a_library_is_the_same_function(
    tmp_path_factory: pytest.TempPathFactory, architecture: str, library: str, subtract: bool, unit: bool, seed: int
) -> None:
    ours = example(architecture, seed, subtract, unit)
    directory = tmp_path_factory.mktemp("saved") / "dictionary"
    if library == "sparsify" and architecture != "topk":
        with pytest.raises(MechintError, match=f"TopK dictionaries alone, and this one is {architecture}"):
            sae.save_sparsify(ours, directory)
        assert not directory.exists()
        return
    where = SAVE[library](ours, directory)
    SAVE[library](ours, directory)  # again, over what is there
    loaded, ours = LOAD[library](where), ours.inference()
    x = torch.randn(64, ours.config.d_in, generator=torch.Generator().manual_seed(seed))
    assert close(loaded.encode(x), ours.encode(x), 5e-6) and close(loaded(x), ours(x), 5e-6)
    assert (loaded.config.d_in, loaded.config.d_sae) == (ours.config.d_in, ours.config.d_sae)


# ---- bad files --------------------------------------------------------------------------------------------------


def copy(tmp_path: Path, name: str) -> Path:
    return Path(shutil.copytree(GOLDEN / name, tmp_path / name.replace("/", "-")))


@pytest.mark.parametrize(
    ("name", "file", "dropped", "said"),
    [
        ("saelens/standard", "sae_weights.safetensors", ["b_enc"], r"lacks b_enc; is it a relu"),
        ("saelens/gated", "sae_weights.safetensors", ["r_mag", "b_gate"], "lacks b_gate, r_mag"),
        ("sparsify/layers.0.mixer", "sae.safetensors", ["W_dec", "encoder.bias"], "lacks W_dec, encoder.bias"),
        ("dictionary_learning/AutoEncoderTopK", "ae.pt", ["b_dec"], "lacks b_dec"),
        ("dictionary_learning/AutoEncoderTopK", "ae.pt", ["k"], "lacks k"),
        ("dictionary_learning/BatchTopKSAE", "ae.pt", ["threshold"], "lacks threshold"),
        ("dictionary_learning/GatedAutoEncoder", "ae.pt", ["gate_bias", "mag_bias"], "lacks gate_bias, mag_bias"),
    ],
)
def test_missing_tensors_are_named(tmp_path: Path, name: str, file: str, dropped: list[str], said: str) -> None:
    path = copy(tmp_path, name)
    tensors = torch.load(path / file, weights_only=True) if file.endswith(".pt") else load_file(path / file)
    left = {key: value for key, value in tensors.items() if key not in dropped}
    torch.save(left, path / file) if file.endswith(".pt") else save_file(left, path / file)
    with pytest.raises(MechintError, match=said) as error:
        LOAD[name.split("/")[0]](path)
    assert str(path / file) in str(error.value) and "\n" not in str(error.value)


class Bomb:
    def __reduce__(self) -> Any:
        return (print, ("this code ran",))


@pytest.mark.parametrize("content", ["code", "garbage", "list", "object"])
def test_a_pickle_is_never_run(tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = copy(tmp_path, "dictionary_learning/AutoEncoder")
    if content == "code":
        torch.save({"encoder.weight": Bomb()}, path / "ae.pt")
    elif content == "object":
        (path / "ae.pt").write_bytes(pickle.dumps(Bomb()))
    elif content == "garbage":
        (path / "ae.pt").write_bytes(b"no file of tensors")
    else:
        torch.save([torch.zeros(3)], path / "ae.pt")
    with pytest.raises(MechintError, match=r"ae\.pt (.*dict of tensors|is not a checkpoint)"):
        sae.load_dictionary_learning(path)
    assert "this code ran" not in capsys.readouterr().out


def test_other_broken_files(tmp_path: Path) -> None:
    path = copy(tmp_path, "dictionary_learning/AutoEncoder")
    config = json.loads((path / "config.json").read_text())
    for change, said in (
        ({"dict_class": "AutoEncoderTopKK"}, "did you mean AutoEncoderTopK"),
        ({"dict_class": "GatedAutoEncoder"}, "lacks decoder_bias"),
    ):
        (path / "config.json").write_text(json.dumps({"trainer": {**config["trainer"], **change}}))
        with pytest.raises(MechintError, match=said):
            sae.load_dictionary_learning(path)
    (path / "config.json").write_text("{}")
    with pytest.raises(MechintError, match=r"lacks trainer\.dict_class"):
        sae.load_dictionary_learning(path)
    (path / "ae.pt").unlink()
    with pytest.raises(MechintError, match=r"is not a dictionary: ae\.pt is missing"):
        sae.load_dictionary_learning(path)

    path = copy(tmp_path, "sparsify/layers.0.mixer")
    config = json.loads((path / "cfg.json").read_text())
    for change, said in (
        ({"transcode": True}, "is a transcoder"), ({"activation": "groupmax"}, "activation is 'groupmax'"),
        ({"num_latents": 15}, r"W_enc is \[6, 14\], but the configuration says \[6, 15\]"),
        ({"k": None}, "not the configuration of a dictionary"),
        ({"k": 40}, "k is 40, more than the 14 latents"),
    ):  # fmt: skip
        (path / "cfg.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(MechintError, match=said):
            sae.load_sparsify(path)
    (path / "cfg.json").write_text(json.dumps(config))
    (path / "sae.safetensors").write_bytes(b"short")
    with pytest.raises(MechintError, match="cut short or damaged"):
        sae.load_sparsify(path)


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")
    with pytest.raises(MechintError, match="holds files that are not a dictionary"):
        sae.save_dictionary_learning(example("relu", 0), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_hookpoints_are_those_of_the_base_model(tmp_path: Path) -> None:
    from dataclasses import replace

    made = example("topk", 0)
    made.config = replace(made.config, model_family="mamba", site="layers.3.out", layer=3)
    assert sae.save_sparsify(made, tmp_path) == tmp_path / "layers.3.mixer"
    assert sae.load_sparsify(tmp_path / "layers.3.mixer").config.site == "layers.3.mixer"
    for family, site, layer, module in (
        ("mamba", "layers.0.resid_pre", 0, "embeddings"), ("mamba", "layers.2.resid_pre", 2, "layers.1"),
        ("gpt2", "layers.0.resid_pre", 0, "drop"), ("gpt2", "layers.2.resid_pre", 2, "h.1"),
        ("llama", "layers.2.resid_post", 2, "layers.2"), ("gpt2", "layers.1.q", 1, "layers.1.q"),
    ):  # fmt: skip
        config = replace(made.config, model_family=family, site=site, layer=layer)
        assert sae.formats.sparsify.hookpoint(config) == module
    assert SAEConfig("topk", 4, 8, k=2).site == "" and (tmp_path / "layers.3.mixer" / "cfg.json").is_file()


def test_topk_of_a_release_before_six(tmp_path: Path) -> None:
    """It was called standard, with the function and its k beside."""
    path = copy(tmp_path, "saelens/standard-no-b_dec")
    config = json.loads((path / "cfg.json").read_text())
    old = {**config, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}, "hook_layer": 5}
    (path / "cfg.json").write_text(json.dumps(old))
    w, x = load_file(path / "sae_weights.safetensors"), torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    pre = x @ w["W_enc"] + w["b_enc"]
    expected = torch.where(pre >= pre.topk(3, -1).values[:, -1:], pre, 0.0).relu()
    assert close(sae.load(path).encode(x), expected)
    changes: list[dict[str, Any]] = [
        {"activation_fn_kwargs": {}}, {"activation_fn_str": "tanh-relu"}, {"k": 4}, {"architecture": "gated"},
        {"activation_fn_kwargs": {"k": 3, "postact": "gelu"}}, {"finetuning_scaling_factor": True},
        {"noise_scale": 0.5},
    ]  # fmt: skip
    for change in changes:
        (path / "cfg.json").write_text(json.dumps({**old, **change}))
        with pytest.raises(MechintError, match=r"cfg\.json"):
            sae.load(path)


def test_latents_of_an_auto_encoder_are_those_of_decoder_columns_of_norm_one(tmp_path: Path) -> None:
    path = copy(tmp_path, "dictionary_learning/AutoEncoder")
    tensors = torch.load(path / "ae.pt", weights_only=True)
    tensors["decoder.weight"] *= torch.linspace(0.1, 5, 14)
    torch.save(tensors, path / "ae.pt")
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    raw = torch.relu((x - tensors["bias"]) @ tensors["encoder.weight"].T + tensors["encoder.bias"])
    loaded = sae.load_dictionary_learning(path)
    assert close(loaded.encode(x), raw * tensors["decoder.weight"].norm(dim=0), 1e-5)
    assert close(loaded(x), raw @ tensors["decoder.weight"].T + tensors["bias"], 1e-5)


@pytest.mark.parametrize("name", ["saelens/jumprelu", "dictionary_learning/AutoEncoderTopK", "sparsify/layers.0.mixer"])
def test_keys_that_nothing_here_reads(tmp_path: Path, name: str) -> None:
    path = copy(tmp_path, name)
    file = path / ("config.json" if name.startswith("dictionary") else "cfg.json")
    config = json.loads(file.read_text())
    inner = config["trainer"] if name.startswith("dictionary") else config
    for value, fine in ((0.5, False), (True, False), (None, True), (False, True)):
        inner["skip_gain"] = value
        file.write_text(json.dumps(config))
        if fine:
            LOAD[name.split("/")[0]](path)
        else:
            with pytest.raises(MechintError, match="skip_gain"):
                LOAD[name.split("/")[0]](path)
