"""Dictionaries by hub id, through the hub's own client against a stand-in on loopback; and Gemma Scope's files."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants as client
import numpy as np
import pytest
import torch

from mechint import MechintError, sae
from mechint.analyses.dictionaries.stored import load_given
from mechint.sae.formats import detect
from mechint.sae.formats.gemma_scope import site_said
from tests.golden.sae.ours import example
from tests.helpers.builders import tiny_gpt2
from tests.helpers.dictionary_files import GOLDEN
from tests.helpers.standins import Hub, serve

REPO, FOLDER = "someone/dictionaries", "blocks.1.hook_resid_post"


def visit(monkeypatch: pytest.MonkeyPatch, endpoint: str, cache: Path, offline: bool = False) -> None:
    """Points the client in this process at a hub and a cache, as its environment does when it is imported."""
    monkeypatch.setattr(client, "ENDPOINT", endpoint)
    monkeypatch.setattr(client, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(client, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(client, "HF_HUB_OFFLINE", offline)


def fetched(hub: Hub) -> set[str]:
    """Paths in the repository of the files that were sent."""
    sent = [request.split()[1] for request in hub.requests if request.startswith("GET ") and "/resolve/" in request]
    return {path.split("/", 4)[4] for path in sent}


def arrays(d_in: int = 12, d_sae: int = 20) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0).standard_normal
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_enc": d_sae, "b_dec": d_in}
    found = {name: draw(shape).astype(np.float32) for name, shape in shapes.items()}
    return {**found, "threshold": np.abs(draw(d_sae)).astype(np.float32)}


def gemma_scope(directory: Path, values: dict[str, np.ndarray]) -> Path:
    directory.mkdir(parents=True)
    np.savez(directory / "params.npz", **values)
    return directory


def test_only_the_files_of_one_dictionary_are_fetched_then_the_cache_serves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    served = tmp_path / "served"
    for name in (FOLDER, "blocks.0.hook_resid_post"):
        sae.save(example("topk", 0), served / name)
        (served / name / "sparsity.safetensors").write_bytes(b"never needed")
    expected = sae.load(served / FOLDER)
    with serve({REPO: served}) as hub:
        visit(monkeypatch, hub.url, tmp_path / "cache")
        found = sae.load(f"{REPO}:{FOLDER}")
        assert fetched(hub) == {f"{FOLDER}/cfg.json", f"{FOLDER}/sae_weights.safetensors"}
        hub.requests.clear()
        assert torch.equal(sae.load(f"{REPO}:{FOLDER}").W_dec, found.W_dec) and not fetched(hub)
        assert list(load_given(f"{REPO}:{FOLDER}")) == [FOLDER]
    assert found.config == expected.config and torch.equal(found.W_enc, expected.W_enc)
    for endpoint, offline in (("http://127.0.0.1:9", False), (hub.url, True)):
        visit(monkeypatch, endpoint, tmp_path / "cache", offline)
        assert torch.equal(sae.load(f"{REPO}:{FOLDER}").W_dec, expected.W_dec)
        with pytest.raises(MechintError, match=f"can't fetch {REPO}: .*not in the cache; name a directory") as caught:
            sae.load(f"{REPO}:blocks.0.hook_resid_post")
        assert "\n" not in str(caught.value)


def test_the_files_say_the_library_and_the_top_is_a_folder_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    layers, trained = GOLDEN / "sparsify" / "layers.0.mixer", GOLDEN / "dictionary_learning" / "AutoEncoderTopK"
    with serve({"a/sparsify": layers.parent, "a/learned": trained}) as hub:
        visit(monkeypatch, hub.url, tmp_path)
        assert sae.load("a/sparsify:layers.0.mixer").config.site == "layers.0.mixer"
        assert sae.load("a/learned").config.architecture == "topk"
        assert list(load_given("a/learned")) == ["learned"]
        assert fetched(hub) == {
            "layers.0.mixer/cfg.json", "layers.0.mixer/sae.safetensors", "config.json", "ae.pt",
        }  # fmt: skip


def test_what_the_hub_does_not_have_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    with serve({REPO: tmp_path / "served"}) as hub:
        visit(monkeypatch, hub.url, tmp_path / "cache")
        for name, said in (
            (REPO, f"the top of the hub's {REPO} has none of cfg.json and .*name the folder as {REPO}:FOLDER"),
            (f"{REPO}:layer_1", f"the folder layer_1 of the hub's {REPO} has none of"),
            ("nobody/has-this:x", "no such model on the hub"),
            (f"{REPO}:../../etc", "no such directory, and not shaped like a hub id"),
            ("three/part/name", "no such directory, and not shaped like a hub id"),
        ):
            with pytest.raises(MechintError, match=said) as caught:
                sae.load(name)
            assert "\n" not in str(caught.value)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MechintError, match="here/dictionray: no such file or directory"):
        sae.load("here/dictionray")


def test_gemma_scope_s_archive_is_a_jumprelu_at_the_site_that_its_directories_say(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    values = arrays()
    gemma_scope(tmp_path / "served/layer_1/width_16k/average_l0_7", values)
    repo = "google/gemma-scope-2b-pt-res"
    with serve({repo: tmp_path / "served"}) as hub:
        visit(monkeypatch, hub.url, tmp_path / "cache")
        found = sae.load(f"{repo}:layer_1/width_16k/average_l0_7")
        assert list(load_given(f"{repo}:layer_1/width_16k/average_l0_7")) == ["layer_1-width_16k-average_l0_7"]
    x = torch.randn(9, 12, generator=torch.Generator().manual_seed(1))
    before = x.numpy() @ values["W_enc"] + values["b_enc"]
    f = np.where(before > values["threshold"], np.maximum(before, 0), 0)
    torch.testing.assert_close(found.encode(x), torch.from_numpy(f))
    torch.testing.assert_close(found(x), torch.from_numpy(f @ values["W_dec"] + values["b_dec"]))
    assert sae.attach(found, tiny_gpt2()).config.site == "layers.1.resid_post"


@pytest.mark.parametrize(
    ("path", "site"),
    [
        ("models--google--gemma-scope-2b-pt-res/snapshots/1/layer_20/width_16k/average_l0_71", "hook_resid_post"),
        ("gemma-scope-9b-it-mlp/layer_20/canonical", "hook_mlp_out"),
        ("gemma-scope-2b-pt-att-canonical/layer_20", "attn.hook_z"),
        ("gemma-scope-2b-pt-transcoders/layer_20", ""),
        ("mine/layer_20", ""),
        ("gemma-scope-2b-pt-res/embedding/width_4k", ""),
    ],
)
def test_the_site_is_said_or_left_to_the_user(path: str, site: str) -> None:
    assert site_said(Path("/files") / path) == ((f"blocks.20.{site}", 20) if site else ("", -1))


def test_archives_that_are_none_are_refused(tmp_path: Path) -> None:
    values = arrays()
    for name, change, said in (
        ("less", {"threshold": None}, "lacks threshold"), ("more", {"scale": np.ones(20)}, "has scale"),
        ("objects", {"b_enc": np.array([{}] * 20, dtype=object)}, "damaged"),
        ("whole", {"b_enc": np.ones(20, dtype=np.int64)}, "b_enc is of the type int64"),
        ("other", {"W_dec": values["W_enc"]}, "W_dec is"), ("nan", {"b_dec": np.full(12, np.nan)}, "NaN"),
    ):  # fmt: skip
        kept = {key: value for key, value in {**values, **change}.items() if value is not None}
        with pytest.raises(MechintError, match=said):
            detect.load(gemma_scope(tmp_path / name, kept))
    (tmp_path / "less/params.npz").write_bytes(b"PK no archive")
    with pytest.raises(MechintError, match=r"params\.npz is cut short or damaged"):
        detect.load(tmp_path / "less")
