"""Transcoders: their files, their codes by hand, their sites, their fit, steering, pages, and what is refused."""

from __future__ import annotations

import copy
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM

import mechint
from mechint import MechintError, sae
from mechint.analyses.dictionaries.features import read_features
from mechint.interventions.run import run
from tests.helpers.builders import tiny_gpt2, tiny_llama, tiny_mamba

TOKENS = torch.randint(24, (6, 12), generator=torch.Generator().manual_seed(0))
D, LATENTS = 12, 30
READ, WRITTEN = "blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out"


def tensors(*more: str, d_out: int = D) -> dict[str, Tensor]:
    shapes = {"W_enc": (D, LATENTS), "b_enc": (LATENTS,), "W_dec": (LATENTS, d_out), "b_dec": (d_out,),
              "W_skip": (d_out, D), "threshold": (LATENTS,)}  # fmt: skip
    g = torch.Generator().manual_seed(0)
    drawn = {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}
    return {name: value.abs() if name == "threshold" else value for name, value in drawn.items()
            if name in ("W_enc", "b_enc", "W_dec", "b_dec", *more)}  # fmt: skip


def published(
    directory: Path, architecture: str = "transcoder", values: dict[str, Tensor] | None = None, **fields: Any
) -> Path:
    """A directory as SAELens leaves it."""
    directory.mkdir(parents=True)
    values = tensors() if values is None else values
    cfg = {"architecture": architecture, "d_in": D, "d_sae": LATENTS, "d_out": len(values["b_dec"]), "dtype": "float32",
           "device": "cpu", "apply_b_dec_to_input": False, "normalize_activations": "none",
           "metadata": {"hook_name": READ, "hook_name_out": WRITTEN, "model_name": "tiny", "sae_lens_version": "6.12"},
           **fields}  # fmt: skip
    (directory / "cfg.json").write_text(json.dumps(cfg))
    save_file(values, directory / "sae_weights.safetensors")
    return directory


def hookpoint(directory: Path, *more: str, **fields: Any) -> tuple[Path, dict[str, Tensor]]:
    """A directory as sparsify leaves it, and its tensors."""
    directory.mkdir(parents=True)
    values = tensors(*more)
    theirs = {"encoder.weight": values["W_enc"].T.contiguous(), "encoder.bias": values["b_enc"],
              **{name: values[name] for name in ("W_dec", "b_dec", *more)}}  # fmt: skip
    save_file(theirs, directory / "sae.safetensors")
    cfg = {"activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": LATENTS, "k": 4,
           "multi_topk": False, "skip_connection": bool(more), "transcode": True, "d_in": D, **fields}  # fmt: skip
    (directory / "cfg.json").write_text(json.dumps(cfg))
    return directory, values


@pytest.mark.parametrize(
    ("architecture", "more"),
    [("transcoder", ()), ("skip_transcoder", ("W_skip",)), ("jumprelu_transcoder", ("threshold",)),
     ("jumprelu_skip_transcoder", ("threshold", "W_skip"))],
)  # fmt: skip
@pytest.mark.parametrize("d_out", [D, 7])
def test_saelens_transcoders_compute_what_they_say(
    tmp_path: Path, architecture: str, more: tuple[str, ...], d_out: int
) -> None:
    t = tensors(*more, d_out=d_out)
    found = sae.load_transcoder(published(tmp_path / "a", architecture, t))
    x = torch.randn(5, 3, D, generator=torch.Generator().manual_seed(1))
    pre = torch.einsum("...i,il->...l", x, t["W_enc"]) + t["b_enc"]
    f = torch.where(pre > t.get("threshold", torch.zeros(LATENTS)), pre, torch.zeros(())).clamp(min=0)
    made = torch.einsum("...l,lo->...o", f, t["W_dec"]) + t["b_dec"]
    torch.testing.assert_close(found.encode(x), f)
    torch.testing.assert_close(found.decode(f), made)
    if "W_skip" in t:
        made = made + torch.einsum("...i,oi->...o", x, t["W_skip"])
    torch.testing.assert_close(found(x), made)
    assert not list(found.parameters()) and (found.config.site, found.config.site_out) == (READ, WRITTEN)


@pytest.mark.parametrize("more", [(), ("W_skip",)])
def test_sparsify_s_read_the_input_of_the_module_that_they_name(tmp_path: Path, more: tuple[str, ...]) -> None:
    directory, t = hookpoint(tmp_path / "h.1.mlp", *more)
    found = sae.load_transcoder(directory)
    x = torch.randn(40, D, generator=torch.Generator().manual_seed(1))
    f = found.encode(x)
    pre = x @ t["W_enc"] + t["b_enc"]
    for row, before in zip(f, pre, strict=True):
        best = before.topk(4).indices
        assert set(row.nonzero().flatten().tolist()) == {k for k in best.tolist() if before[k] > 0}
        torch.testing.assert_close(row[best], before[best].clamp(min=0))
    back = f @ t["W_dec"] + t["b_dec"] + (x @ t["W_skip"].T if more else 0)
    torch.testing.assert_close(found(x), back)
    at = found.attach(tiny_gpt2())
    assert (at.config.site, at.config.site_out) == ("layers.1.ln_2", "layers.1.mlp_out")
    assert torch.equal(at(x), found(x)) and found.config.site == ""


@functools.cache
def gemma2() -> Any:
    torch.manual_seed(1)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 6}
    config = Gemma2Config(vocab_size=24, hidden_size=D, num_hidden_layers=2, intermediate_size=16, **heads)
    with tempfile.TemporaryDirectory() as folder:
        Gemma2ForCausalLM(config).save_pretrained(folder)
        return mechint.load(folder, device="cpu")


@pytest.mark.parametrize("build", [lambda: tiny_llama(d_model=D), gemma2])
@pytest.mark.parametrize("more", [(), ("W_skip",)])
def test_in_front_of_an_rms_norm_s_weight_a_transcoder_reads_the_norm_without_it(
    tmp_path: Path, build: Any, more: tuple[str, ...]
) -> None:
    model, t = copy.deepcopy(build()), tensors(*more)
    norm = model.norm_at(1, "ln_2")
    with torch.no_grad():
        norm.weight.normal_(generator=torch.Generator().manual_seed(2))
    kind = "skip_transcoder" if more else "transcoder"
    found = sae.load_transcoder(published(tmp_path / "a", kind, t)).attach(model)
    assert (found.config.site, found.config.site_out) == ("layers.1.ln_2", "layers.1.mlp_out")
    values = run(model, TOKENS, record=["layers.1.resid_mid", "layers.1.ln_2"])
    stream = values["layers.1.resid_mid"].double()
    bare = (stream / (stream.square().mean(-1, keepdim=True) + norm.eps).sqrt()).float()
    f = torch.relu(bare @ t["W_enc"] + t["b_enc"])
    made = f @ t["W_dec"] + t["b_dec"] + (bare @ t["W_skip"].T if more else 0)
    torch.testing.assert_close(found.encode(values["layers.1.ln_2"]), f, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found(values["layers.1.ln_2"]), made, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        norm.weight[3] = -norm.plus
    with pytest.raises(MechintError, match=r"in front of a norm's weight, and layers\.1\.ln_2"):
        sae.load_transcoder(tmp_path / "a").attach(model)


def test_gemma_scope_s_transcoders_say_nothing_and_their_directories_say_the_layer(tmp_path: Path) -> None:
    t = tensors("threshold")
    named = tmp_path / "gemma-scope-2b-pt-transcoders/layer_1/width_16k/average_l0_7"
    for directory in (named, tmp_path / "bare"):
        directory.mkdir(parents=True)
        np.savez(directory / "params.npz", **{name: value.numpy() for name, value in t.items()})
    found = sae.load_transcoder(named)
    assert (found.config.architecture, found.config.site, found.config.site_out) == ("jumprelu", READ, WRITTEN)
    x = torch.randn(5, D, generator=torch.Generator().manual_seed(1))
    pre = x @ t["W_enc"] + t["b_enc"]
    torch.testing.assert_close(found(x), torch.relu(pre) * (pre > t["threshold"]) @ t["W_dec"] + t["b_dec"])
    assert found.attach(gemma2()).config.site == "layers.1.ln_2"
    with pytest.raises(MechintError, match="is a transcoder by the name of its release"):
        sae.load(named)
    with pytest.raises(MechintError, match="does not say which site it writes"):
        sae.load_transcoder(tmp_path / "bare").attach(gemma2())
    for folder in (
        "layer_1",
        "gemma-scope-2b-pt-mlp/layer_1",
    ):  # no release of transcoders: no site; of others: refused
        shutil.copytree(tmp_path / "bare", tmp_path / folder)
    assert sae.load_transcoder(tmp_path / "layer_1").config.site == ""
    with pytest.raises(MechintError, match="is a dictionary of one site by the name of its release"):
        sae.load_transcoder(tmp_path / "gemma-scope-2b-pt-mlp/layer_1")
    at = sae.load_transcoder(tmp_path / "bare").attach(gemma2(), READ, WRITTEN)
    assert torch.equal(at.W_enc, found.attach(gemma2()).W_enc)


@pytest.mark.parametrize(
    ("build", "read", "site"),
    [
        (tiny_gpt2, READ, "layers.1.ln_2"),
        (tiny_gpt2, "blocks.1.mlp.hook_in", "layers.1.ln_2"),
        (tiny_llama, "blocks.1.mlp.hook_in", "layers.1.ln_2"),
        (tiny_gpt2, "blocks.1.ln1.hook_normalized", "layers.1.ln_1"),
        (tiny_gpt2, "blocks.1.hook_resid_mid", "layers.1.resid_mid"),
        (tiny_gpt2, "layers.0.resid_pre", "layers.0.resid_pre"),
    ],
)  # fmt: skip
def test_names_of_what_is_read(tmp_path: Path, build: Any, read: str, site: str) -> None:
    model = build()
    width = model.config.d_model
    t = {**tensors(d_out=width), "W_enc": torch.ones(width, LATENTS)}
    meta = {"hook_name": read, "hook_name_out": WRITTEN}
    found = sae.load_transcoder(published(tmp_path / "a", values=t, d_in=width, metadata=meta)).attach(model)
    assert (found.config.site, found.config.site_out) == (site, "layers.1.mlp_out")


def test_sites_that_are_not_there_are_refused(tmp_path: Path) -> None:
    found = sae.load_transcoder(published(tmp_path / "a"))
    with pytest.raises(MechintError, match=r"layers\.1\.mlp_out.* does not have"):
        found.attach(tiny_mamba())
    with pytest.raises(MechintError, match=r"writes 12 numbers at a position, and layers\.1\.mlp_post"):
        found.attach(tiny_gpt2(), site_out="layers.1.mlp_post")
    with pytest.raises(MechintError, match="reads 12 numbers at a position"):
        found.attach(tiny_gpt2(), "layers.1.mlp_post")
    silent = sae.load_transcoder(published(tmp_path / "b", metadata={"hook_name": READ}))
    with pytest.raises(MechintError, match="does not say which site it writes"):
        silent.attach(tiny_gpt2())
    with pytest.raises(MechintError, match=r"does not say which site it reads beside layers\.1\.attn_out"):
        sae.load_transcoder(hookpoint(tmp_path / "h.1.attn")[0]).attach(tiny_gpt2())


def perfect(model: Any, directory: Path) -> Any:
    """A transcoder whose skip connection is the best linear map of layer 1's MLP, and what it explains."""
    names = ["layers.1.ln_2", "layers.1.mlp_out"]
    found = run(model, TOKENS, record=names)
    x, y = (found[name][:, 1:].flatten(0, 1).double().detach() for name in names)
    ones = torch.cat([x, torch.ones(len(x), 1).double()], 1)
    best = torch.linalg.pinv(ones, rtol=1e-6) @ y
    t = {**tensors("W_skip"), "W_dec": torch.zeros(LATENTS, D), "W_skip": best[:-1].T.float().contiguous(),
         "b_dec": best[-1].float()}  # fmt: skip
    explained = 1 - (y - ones @ best).square().sum() / (y - y.mean(0)).square().sum()
    return sae.load_transcoder(published(directory, "skip_transcoder", t)).attach(model), float(explained)


def test_the_fit_is_the_share_of_the_written_site_that_is_explained(tmp_path: Path) -> None:
    model = tiny_gpt2(3)
    found, explained = perfect(model, tmp_path / "a")
    fit = found.fit(model, TOKENS)
    assert fit.variance_explained == pytest.approx(explained, abs=1e-5) and explained > 0.5
    assert list(fit.elsewhere) == ["layers.0.mlp_out"] and fit.elsewhere["layers.0.mlp_out"] < explained
    assert fit.site == "layers.1.ln_2 → layers.1.mlp_out" and fit.warning is None
    wrong = found.attach(model, "layers.0.ln_2", "layers.0.mlp_out").fit(model, TOKENS)
    assert "at layers.1.mlp_out: is it of another layer" in str(wrong)


def test_a_latent_steers_what_it_writes_and_has_a_page(tmp_path: Path) -> None:
    model = tiny_gpt2(1).requires_grad_(False)
    found = sae.load_transcoder(published(tmp_path / "a")).attach(model)
    steered = mechint.steer(model, found.direction(3), 2.0).run(TOKENS, record=["layers.1.mlp_out"])
    own = run(model, TOKENS, record=["layers.1.mlp_out"])["layers.1.mlp_out"]
    torch.testing.assert_close(steered["layers.1.mlp_out"], own + 2 * found.W_dec[3])
    with pytest.raises(MechintError, match=r"latent 30 does not exist; there are 30 \(0 to 29\)"):
        found.direction(LATENTS)
    told = read_features(found, model, [TOKENS], found.config.site, str)
    f = found.encode(run(model, TOKENS, record=["layers.1.ln_2"])["layers.1.ln_2"])
    assert [feature["max"] for feature in told["features"]] == pytest.approx(f.flatten(0, 1).amax(0).tolist(), rel=1e-3)
    # what a latent raises is what its direction raises where it is written
    same = sae.make(sae.SAEConfig("relu", D, LATENTS, site="layers.1.mlp_out"))
    same.W_dec.data.copy_(found.W_dec)
    beside = read_features(same, model, [TOKENS], "layers.1.mlp_out", str)
    for mine, theirs in zip(told["features"], beside["features"], strict=True):
        assert mine["raises"] == theirs["raises"] and mine["lowers"] == theirs["lowers"]


@pytest.mark.parametrize(
    ("architecture", "fields", "said"),
    [
        ("standard", {}, "sae.load reads dictionaries of one site"),
        ("transcoder", {"apply_b_dec_to_input": True}, "apply_b_dec_to_input is true, which no transcoder has"),
        ("transcoder", {"normalize_activations": "layer_norm"}, "normalize_activations is 'layer_norm'; not supported"),
        ("transcoder", {"activation_fn": "gelu"}, "activation function is 'gelu'"),
        ("transcoder", {"d_sae": 31}, r"W_enc is \[12, 30\], and not \[12, 31\]"),
        ("transcoder", {"d_out": "12"}, "d_out is '12', which is not a size"),
        ("transcoder", {"mystery": 3}, "mystery = 3"),
        ("skip_transcoder", {}, "lacks W_skip"),
        ("transcoder", {"model_from_pretrained_kwargs": {"fold_ln": True}}, "loaded with fold_ln"),
    ],
)
def test_files_that_say_something_else_are_refused(
    tmp_path: Path, architecture: str, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(MechintError, match=said) as caught:
        sae.load_transcoder(published(tmp_path / "a", architecture, **fields))
    assert "\n" not in str(caught.value)


def test_where_one_site_is_put_back_a_transcoder_is_refused_by_name(tmp_path: Path) -> None:
    for path in (published(tmp_path / "one/a"), hookpoint(tmp_path / "two/h.1.mlp")[0]):
        with pytest.raises(MechintError, match=r"transcoder.*sae\.load_transcoder"):
            sae.load(path)
    with pytest.raises(MechintError, match=r"transcode is not true; sae\.load reads"):
        sae.load_transcoder(hookpoint(tmp_path / "plain", transcode=False)[0])
    broken = tensors()
    broken["b_dec"][0] = float("nan")
    with pytest.raises(MechintError, match="b_dec holds NaN"):
        sae.load_transcoder(published(tmp_path / "nan", values=broken))
