"""Gemma Scope 2: dictionaries and transcoders as they are published, by hand, at their sites, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mechint import MechintError, sae
from mechint.analyses.dictionaries.stored import load_given
from mechint.interventions.run import run
from tests.sae.test_transcoder_sets import configured
from tests.sae.test_transcoders import LATENTS, TOKENS, gemma2, tensors

READ, WRITTEN = "pre_feedforward_layernorm.output", "post_feedforward_layernorm.output"


def weights(skip: bool = False) -> dict[str, Tensor]:
    t = tensors("threshold", *(["W_skip"] if skip else []))
    theirs = {name.lower() if name.startswith("W_") else name: value for name, value in t.items()}
    return {"affine_skip_connection" if name == "w_skip" else name: value for name, value in theirs.items()}


def released(
    directory: Path, kind: str = "transcoder", skip: bool = False, values: Any = None, layer: int = 1, **more: Any
) -> Path:
    """A directory as it is on the hub."""
    directory.mkdir(parents=True)
    hooks = (READ, WRITTEN) if kind == "transcoder" else ("output", "output")
    config = {
        "hf_hook_point_in": f"model.layers.{layer}.{hooks[0]}", "hf_hook_point_out": f"model.layers.{layer}.{hooks[1]}",
        "width": LATENTS, "model_name": "google/gemma-3-1b-it", "architecture": "jump_relu", "l0": 10,
        "affine_connection": skip, "type": kind, **more,
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    save_file(weights(skip) if values is None else values, directory / "params.safetensors")
    return directory


def by_hand(x: Tensor, t: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Latents and output, sum by sum."""
    pre = torch.einsum("...i,il->...l", x, t["w_enc"]) + t["b_enc"]
    f = torch.where(pre > t["threshold"], pre, torch.zeros(()))
    made = torch.einsum("...l,lo->...o", f, t["w_dec"]) + t["b_dec"]
    skip = t.get("affine_skip_connection")
    return f, made if skip is None else made + torch.einsum("...i,io->...o", x, skip)


@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_reads_the_norm_behind_its_weight_and_writes_what_is_added(tmp_path: Path, skip: bool) -> None:
    t, model = weights(skip), gemma2()
    found = sae.load_transcoder(released(tmp_path / "a", skip=skip)).attach(model)
    assert (found.config.site, found.config.site_out) == ("layers.1.ln_2", "layers.1.mlp_out")
    values = run(
        model, TOKENS, record=["layers.1.resid_mid", "layers.1.ln_2", "layers.1.mlp_out", "layers.1.resid_post"]
    )
    added = values["layers.1.resid_post"] - values["layers.1.resid_mid"]
    torch.testing.assert_close(values["layers.1.mlp_out"], added)  # behind the norm that follows the part
    f, made = by_hand(values["layers.1.ln_2"], t)
    torch.testing.assert_close(found.encode(values["layers.1.ln_2"]), f)
    torch.testing.assert_close(found(values["layers.1.ln_2"]), made)


def test_a_dictionary_of_the_stream(tmp_path: Path) -> None:
    t, model = weights(), gemma2()
    found = sae.attach(sae.load(released(tmp_path / "a", "sae")), model)
    x = run(model, TOKENS, record=["layers.1.resid_post"])["layers.1.resid_post"]
    f, made = by_hand(x, t)
    assert found.config.site == "layers.1.resid_post"
    torch.testing.assert_close(found.encode(x), f)
    torch.testing.assert_close(found.decode(f), made)


def test_a_directory_of_both_is_told_apart(tmp_path: Path) -> None:
    released(tmp_path / "top/transcoder_1", skip=True)
    released(tmp_path / "top/resid_post_0", "sae", layer=0)
    found = load_given(tmp_path / "top", model=gemma2())
    assert [(name, type(one).__name__) for name, one in found.items()] == [
        ("resid_post_0", "JumpReLU"), ("transcoder_1", "Transcoder"),
    ]  # fmt: skip


def test_a_set_of_circuit_tracer_may_list_them(tmp_path: Path) -> None:
    place = released(tmp_path / "transcoder_all/layer_0", skip=True)
    given = configured(
        tmp_path / "set", feature_input_hook="mlp.hook_in", feature_output_hook="hook_mlp_out",
        transcoders=["../transcoder_all/layer_0/params.safetensors"],
    )  # fmt: skip
    ours = sae.load_transcoders(given)[0].attach(gemma2())
    alone = sae.load_transcoder(place)
    assert (ours.config.site, ours.config.site_out) == ("layers.0.ln_2", "layers.0.mlp_out")
    for name, buffer in alone.named_buffers():
        assert torch.equal(buffer, ours.get_buffer(name))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"type": "clt"}, "type is 'clt', and not 'transcoder'"),
        ({"type": "sae"}, "sae.load reads dictionaries of one site"),
        ({"architecture": "topk"}, "architecture is 'topk'; only jump_relu can be read"),
        ({"mystery": 3}, "mystery = 3"),
        ({"width": 31}, "width is 31, and the encoder has 30 latents"),
        ({"affine_connection": True}, "affine_connection and the tensors of params.safetensors disagree"),
        ({"hf_hook_point_in": "model.layers.1.mlp.input"}, "hf_hook_point_in is 'model.layers.1.mlp.input'; known are"),
        ({"values": {**weights(), "threshold": -torch.ones(LATENTS)}}, "a threshold is below 0"),
        ({"values": {**weights(), "other": torch.ones(2)}}, "has other, which nothing here would use"),
        ({"values": {**weights(), "w_dec": torch.ones(LATENTS)}}, "is not a matrix"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, more: dict[str, Any], said: str) -> None:
    with pytest.raises(MechintError, match=said):
        sae.load_transcoder(released(tmp_path / "a", **more))


def test_a_dictionary_that_writes_elsewhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MechintError, match=r"sae\.load_transcoder reads transcoders"):
        sae.load(released(tmp_path / "a"))
    with pytest.raises(MechintError, match=r"reconstructs the site that it reads, layers\.1\.resid_post"):
        sae.load(released(tmp_path / "b", "sae", hf_hook_point_out=f"model.layers.1.{WRITTEN}"))
