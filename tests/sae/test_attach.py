"""Published dictionaries: their names of sites, centred weights, and whether they fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mechint import sae
from mechint.analyses.dictionaries.stored import load_given, one_for_each_site
from mechint.interventions.run import run
from mechint.sae import SAEConfig, SparseAutoencoder
from mechint.utils.errors import MechintError
from tests.helpers.builders import tiny_gpt2, tiny_llama, tiny_mamba

TOKENS = torch.randint(24, (6, 12), generator=torch.Generator().manual_seed(0))


def dictionary(
    architecture: str, d_in: int, site: str, subtract: bool = True, seed: int = 0, **fields: Any
) -> SparseAutoencoder:
    """A finished dictionary with random weights and biases."""
    g = torch.Generator().manual_seed(seed)
    k = 3 if architecture == "topk" else 0
    made = sae.make(SAEConfig(architecture, d_in, 2 * d_in, k=k, apply_b_dec_to_input=subtract, site=site, **fields))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=g))
    return made.requires_grad_(False).eval()


@pytest.mark.parametrize(
    ("build", "name", "layer", "site"),
    [
        (tiny_gpt2, "layers.1.q", -1, "layers.1.q"),
        (tiny_gpt2, "blocks.0.hook_resid_pre", -1, "layers.0.resid_pre"),
        (tiny_gpt2, "blocks.1.hook_resid_mid", -1, "layers.1.resid_mid"),
        (tiny_gpt2, "blocks.1.attn.hook_z", -1, "layers.1.head_out"),
        (tiny_gpt2, "blocks.1.mlp.hook_post", -1, "layers.1.mlp_post"),
        (tiny_gpt2, "hook_embed", -1, "embed"),
        (tiny_gpt2, "transformer.h.1", -1, "layers.1.resid_post"),
        (tiny_gpt2, "h.1", -1, "layers.1.resid_post"),
        (tiny_gpt2, "h.0.mlp", -1, "layers.0.mlp_out"),
        (tiny_gpt2, "transformer.drop", -1, "layers.0.resid_pre"),
        (tiny_gpt2, "resid_post_layer_1", -1, "layers.1.resid_post"),
        (tiny_gpt2, "mlp_out", 1, "layers.1.mlp_out"),
        (tiny_llama, "model.layers.0.self_attn", -1, "layers.0.attn_out"),
        (tiny_llama, "layers.1", -1, "layers.1.resid_post"),
        (tiny_mamba, "backbone.layers.1.mixer", -1, "layers.1.out"),
        (tiny_mamba, "layers.1.mixer", -1, "layers.1.out"),
        (tiny_mamba, "backbone.embeddings", -1, "embed"),
    ],
)
def test_names_of_other_libraries(build: Any, name: str, layer: int, site: str) -> None:
    assert sae.site_of(name, build(), layer) == site


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("blocks.7.hook_resid_post", r"is the site layers\.7\.resid_post, which .* does not have"),
        ("hook_resid_post", "no site of .* is called 'hook_resid_post'"),  # of which layer?
        ("blocks.1.hook_embed", "no site of .* is called"),
        ("mlp_out", "no site of .* is called 'mlp_out'"),
        ("layers.1.resid_pots", r"did you mean layers\.1\.resid_post"),
        ("", "no site of"),
    ],
)
def test_names_that_say_no_site_are_refused(name: str, said: str) -> None:
    with pytest.raises(MechintError, match=said):
        sae.site_of(name, tiny_gpt2())


def test_what_is_attached_has_our_site_and_its_width() -> None:
    model = tiny_gpt2()
    made = dictionary("relu", 12, "blocks.1.hook_resid_post")
    at = sae.attach(made, model)
    assert (at.config.site, at.config.layer, at.config.model_family) == ("layers.1.resid_post", 1, "gpt2")
    assert torch.equal(at.W_enc, made.W_enc) and at is not made
    assert sae.attach(made, model, "h.0").config.site == "layers.0.resid_post"
    assert sae.attach(dictionary("relu", 12, "blocks.0.attn.hook_z"), model).config.site == "layers.0.head_out"
    with pytest.raises(MechintError, match="reads 13 numbers at a position"):
        sae.attach(dictionary("relu", 13, "blocks.1.hook_resid_post"), model)
    with pytest.raises(MechintError, match="does not say of which site"):
        sae.attach(dictionary("relu", 12, ""), model)


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("architecture", ["relu", "topk", "gated", "jumprelu"])
def test_a_dictionary_of_centred_weights_reads_the_activation_less_its_mean(architecture: str, subtract: bool) -> None:
    made = dictionary(architecture, 12, "blocks.1.hook_resid_post", subtract)
    x = torch.randn(40, 12, generator=torch.Generator().manual_seed(1)) + 2.0
    wanted = made.encode(x - x.mean(-1, keepdim=True))
    made.centred = True
    with pytest.raises(MechintError, match=r"attach it to its model first: sae\.attach"):
        made.encode(x)
    at = sae.attach(made, tiny_gpt2())
    torch.testing.assert_close(at.encode(x), wanted, rtol=1e-4, atol=1e-4)
    assert (wanted > 0).any() and not torch.allclose(wanted, dictionary(architecture, 12, "", subtract).encode(x))
    same = sae.attach(
        made, tiny_llama(d_model=12), "layers.1.resid_post"
    )  # no LayerNorm, so its weights were left as they are
    assert torch.equal(same.W_enc, made.W_enc) and not same.centred and not at.centred


def published(at: Path, made: SparseAutoencoder, **kwargs: Any) -> Path:
    """A directory as SAELens writes it, without our metadata."""
    sae.save(made, at)
    raw = json.loads((at / "cfg.json").read_text())
    del raw["metadata"]["mechint"]
    raw["metadata"]["hook_name"] = made.config.site
    raw["metadata"]["model_from_pretrained_kwargs"] = kwargs
    (at / "cfg.json").write_text(json.dumps(raw))
    return at


def test_files_that_say_that_weights_were_centred(tmp_path: Path) -> None:
    stream, heads = (dictionary("relu", 12, f"blocks.0.{name}") for name in ("hook_resid_pre", "attn.hook_z"))
    assert not sae.load(published(tmp_path / "plain", stream)).centred
    assert not sae.load(published(tmp_path / "no", stream, center_writing_weights=False)).centred
    yes = sae.load(published(tmp_path / "yes", stream, center_writing_weights=True))
    assert yes.centred and not sae.load(published(tmp_path / "heads", heads, center_writing_weights=True)).centred
    with pytest.raises(MechintError, match="attach it to its model first"):
        sae.save(yes, tmp_path / "again")
    assert not (tmp_path / "again").exists()
    with pytest.raises(
        MechintError, match=r"loaded with fold_value_biases, which changes what blocks\.0\.attn\.hook_z"
    ):
        sae.load(published(tmp_path / "folded", heads, fold_value_biases=True))
    assert not sae.load(published(tmp_path / "folded", stream, fold_value_biases=True)).centred
    with pytest.raises(MechintError, match="neither true nor false"):
        sae.load(published(tmp_path / "odd", stream, center_writing_weights="yes"))


def test_a_directory_of_other_libraries_dictionaries_is_attached(tmp_path: Path) -> None:
    model = tiny_gpt2()
    published(tmp_path / "a", dictionary("relu", 12, "blocks.0.hook_resid_pre"), center_writing_weights=True)
    sae.save_sparsify(dictionary("topk", 12, "layers.1.resid_post", model_family="gpt2", layer=1), tmp_path)
    sae.save_dictionary_learning(dictionary("relu", 12, "", layer=1), tmp_path / "c")
    with pytest.raises(MechintError, match="c does not say of which site it is"):
        one_for_each_site(tmp_path, "", model=model)
    found = one_for_each_site(tmp_path, "a,h.1", model=model)
    assert {name: one.config.site for name, one in found.items()} == {
        "a": "layers.0.resid_pre", "h.1": "layers.1.resid_post"
    }  # fmt: skip
    published(tmp_path / "d", dictionary("relu", 12, "blocks.9.hook_resid_pre"))
    with pytest.raises(MechintError, match=r"dictionary d: blocks\.9\.hook_resid_pre is the site"):
        load_given(tmp_path, model=model)
    (tmp_path / "a" / "ae.pt").write_bytes(b"")
    with pytest.raises(MechintError, match="which are two dictionaries"):
        sae.load(tmp_path / "a")


def test_fit_by_hand_and_the_layer_it_belongs_to() -> None:
    """A dictionary with the axes and their negatives as latents reconstructs any activation around b_dec."""
    model = tiny_gpt2()
    made = dictionary("relu", 12, "layers.1.resid_post")
    eye = torch.eye(12)
    with torch.no_grad():
        made.W_enc.copy_(torch.cat([eye, -eye], 1))
        made.W_dec.copy_(torch.cat([eye, -eye]))
        for name in ("b_enc", "b_dec"):
            getattr(made, name).zero_()
    exact = sae.fit(made, model, TOKENS)
    assert exact.variance_explained == pytest.approx(1) and exact.norm == pytest.approx(1) and exact.l0 == 12
    assert exact.warning is None and set(exact.elsewhere) == {"layers.0.resid_post"}
    with torch.no_grad():
        made.W_dec.mul_(0.8)
    x = run(model, TOKENS, record=["layers.1.resid_post"])["layers.1.resid_post"][:, 1:].detach().flatten(0, 1).double()
    left = 0.04 * x.square().sum(-1).mean() / (x - x.mean(0)).square().sum(-1).mean()
    short = sae.fit(made, model, TOKENS)
    assert short.variance_explained == pytest.approx(float(1 - left), abs=1e-5) and short.norm == pytest.approx(0.8)
    with torch.no_grad():  # knows nothing but the mean activation of layer 0
        made.W_dec.zero_()
        made.b_dec.copy_(run(model, TOKENS, record=["layers.0.resid_post"])["layers.0.resid_post"][:, 1:].mean((0, 1)))
    made.config = replace(made.config, apply_b_dec_to_input=False)
    other = sae.fit(made, model, TOKENS)
    assert other.elsewhere["layers.0.resid_post"] == pytest.approx(0.0, abs=1e-5)
    if other.variance_explained < -0.02:
        assert other.warning is not None and "layers.0.resid_post" in str(other)
    poor = sae.fit(sae.attach(made, model, "layers.0.resid_post"), model, TOKENS)
    assert poor.warning is not None and "another model" in poor.warning
