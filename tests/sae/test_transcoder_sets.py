"""Sets of transcoders of circuit-tracer: their codes by hand, layer by layer, from a directory and from the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from mechint import MechintError, sae
from tests.helpers.builders import tiny_gpt2
from tests.helpers.standins import serve
from tests.sae.test_hub_dictionaries import fetched, visit

D, LATENTS, REPO = 12, 30, "someone/transcoders"


def layer_file(path: Path, seed: int, *more: str) -> dict[str, Tensor]:
    """A layer's file as circuit-tracer leaves it, and its tensors."""
    shapes = {"W_enc": (LATENTS, D), "W_dec": (LATENTS, D), "b_enc": (LATENTS,), "b_dec": (D,),
              "W_skip": (D, D), "activation_function.threshold": (LATENTS,)}  # fmt: skip
    g = torch.Generator().manual_seed(seed)
    drawn = {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}
    drawn["activation_function.threshold"] = drawn["activation_function.threshold"].abs()
    found = {name: value for name, value in drawn.items() if name in ("W_enc", "W_dec", "b_enc", "b_dec", *more)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(found, path)
    return found


def configured(directory: Path, **changes: Any) -> Path:
    raw = {
        "model_name": "tiny", "model_kind": "transcoder_set", "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "mlp.hook_out", "scan": "tiny-set", **changes,
    }  # fmt: skip
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.yaml").write_text(yaml.safe_dump({k: v for k, v in raw.items() if v is not ...}))
    return directory


def by_hand(t: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    pre = torch.einsum("...i,li->...l", x, t["W_enc"]) + t["b_enc"]
    f = torch.where(pre > t.get("activation_function.threshold", torch.zeros(LATENTS)), pre, torch.zeros(()))
    made = torch.einsum("...l,lo->...o", f, t["W_dec"]) + t["b_dec"]
    return f, made + torch.einsum("...i,oi->...o", x, t["W_skip"]) if "W_skip" in t else made


@pytest.mark.parametrize("more", [(), ("W_skip",), ("activation_function.threshold",)])
@pytest.mark.parametrize("listed", [True, False])
def test_each_layer_computes_what_its_file_says(tmp_path: Path, more: tuple[str, ...], listed: bool) -> None:
    names = ["a/zero.safetensors", "one.safetensors"] if listed else ["layer_0.safetensors", "layer_1.safetensors"]
    made = [layer_file(tmp_path / name, k, *more) for k, name in enumerate(names)]
    found = sae.load_transcoders(configured(tmp_path, **({"transcoders": names} if listed else {})))
    x = torch.randn(5, 3, D, generator=torch.Generator().manual_seed(9))
    assert list(found) == [0, 1]
    for layer, t in enumerate(made):
        f, y = by_hand(t, x)
        torch.testing.assert_close(found[layer].encode(x), f)
        torch.testing.assert_close(found[layer](x), y)
        at = found[layer].attach(tiny_gpt2())
        assert (at.config.site, at.config.site_out) == (f"layers.{layer}.ln_2", f"layers.{layer}.mlp_out")
    assert list(sae.load_transcoders(tmp_path, [1])) == [1]
    with pytest.raises(MechintError, match="lists no transcoder of layer 5; it has 0, 1"):
        sae.load_transcoders(tmp_path, [5])
    with pytest.raises(
        MechintError, match=r"a set with a transcoder for each layer; read it with sae\.load_transcoders"
    ):
        sae.load_transcoder(tmp_path)


def test_files_of_the_hub_are_fetched_layer_by_layer_and_then_the_cache_serves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    served = tmp_path / "served"
    t = [layer_file(served / f"deep/t{k}.safetensors", k) for k in range(2)]
    configured(served, transcoders=[f"hf://{REPO}/deep/t{k}.safetensors?revision=main" for k in range(2)])
    x = torch.randn(4, D)
    with serve({REPO: served}) as hub:
        visit(monkeypatch, hub.url, tmp_path / "cache")
        one = sae.load_transcoders(REPO, [1])
        assert fetched(hub) == {"config.yaml", "deep/t1.safetensors"}
        torch.testing.assert_close(one[1](x), by_hand(t[1], x)[1])
        assert len(sae.load_transcoders(REPO)) == 2
    visit(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache", offline=True)
    torch.testing.assert_close(sae.load_transcoders(REPO)[0](x), by_hand(t[0], x)[1])


def test_archives_of_gemma_scope_in_a_set(tmp_path: Path) -> None:
    draw = np.random.default_rng(0).standard_normal
    shapes = {"W_enc": (D, LATENTS), "W_dec": (LATENTS, D), "b_enc": LATENTS, "b_dec": D, "threshold": LATENTS}
    arrays = {name: np.abs(draw(shape)).astype(np.float32) for name, shape in shapes.items()}
    np.savez(tmp_path / "params.npz", **arrays)
    found = sae.load_transcoders(configured(tmp_path, transcoders=["params.npz"]))[0]
    x = torch.randn(4, D)
    pre = x @ torch.from_numpy(arrays["W_enc"]) + torch.from_numpy(arrays["b_enc"])
    f = torch.relu(pre) * (pre > torch.from_numpy(arrays["threshold"]))
    torch.testing.assert_close(found(x), f @ torch.from_numpy(arrays["W_dec"]) + torch.from_numpy(arrays["b_dec"]))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_kind": "cross_layer_transcoder"}, "model_kind is 'cross_layer_transcoder'; only transcoder_set"),
        ({"model_kind": ...}, "model_kind is None"),
        ({"mystery": 3}, "mystery = 3"),
        ({"feature_input_hook": ...}, "feature_input_hook is None, which is no hook"),
        ({"feature_output_hook": 4}, "feature_output_hook is 4"),
        ({"activation": "topk_64"}, "activation is 'topk_64'"),
        ({"activation": "jump_relu"}, "says the activation jumprelu, and .* has no thresholds"),
        ({"transcoders": []}, r"transcoders is \[\], which is no list"),
        ({"transcoders": [{"id": "x"}]}, "the transcoder of layer 0 is .* which is no file's path"),
        ({"transcoders": ["gone.safetensors"]}, "lists gone.safetensors, and there is no such file beside it"),
        ({"transcoders": ["hf://owner/t.safetensors"]}, "which is no hf://owner/name/file"),
        ({"transcoders": ["hf://owner/name/../t.safetensors"]}, "which is no hf://owner/name/file"),
        ({"transcoders": ["hf://owner/name/t.safetensors?revision=a/b"]}, "which is no hf://owner/name/file"),
        ({"transcoders": ...}, "lists no transcoders, and no layer_0.safetensors lies beside it"),
    ],
)
def test_configurations_that_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    layer_file(tmp_path / "t.safetensors", 0)
    with pytest.raises(MechintError, match=said) as caught:
        sae.load_transcoders(configured(tmp_path, **{"transcoders": ["t.safetensors"], **changes}))
    assert "\n" not in str(caught.value)


def test_files_that_are_refused(tmp_path: Path) -> None:
    configured(tmp_path)
    for name, change, said in (
        ("mystery", torch.ones(3), "has mystery, which nothing here would use"),
        ("W_dec", torch.ones(D, LATENTS), r"W_dec is \[12, 30\], and not \[30, 30\]|b_dec is"),
        ("activation_function.threshold", -torch.ones(LATENTS), "a threshold is below 0"),
    ):
        t = layer_file(tmp_path / "layer_0.safetensors", 0)
        save_file({**t, name: change}, tmp_path / "layer_0.safetensors")
        with pytest.raises(MechintError, match=said):
            sae.load_transcoders(tmp_path)
    (tmp_path / "config.yaml").write_text("a: [1")
    with pytest.raises(MechintError, match="is not YAML that can be read"):
        sae.load_transcoders(tmp_path)
    (tmp_path / "config.yaml").write_text("!!python/object/apply:os.getcwd []")
    with pytest.raises(MechintError, match="is not YAML that can be read"):
        sae.load_transcoders(tmp_path)
    with pytest.raises(MechintError, match=r"is not a set of transcoders: config\.yaml is missing"):
        sae.load_transcoders(tmp_path.parent)
