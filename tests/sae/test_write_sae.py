"""WriteSAE: atoms of a head's state, each number by hand, at a site, in the place of a write, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mechint
from mechint import Edit, MechintError, sae
from mechint.analyses.dictionaries.stored import load_given
from mechint.sae.activations.flattening import latents_at
from tests.helpers.builders import tiny_gpt2, tokens
from tests.helpers.families import falcon_h1

K, V, LATENTS, ACTIVE = 3, 4, 20, 5
KINDS = ("rank1", "flat", "bilinear", "bilinear_flat", "bilinear_tied")


def drawn(kind: str, rank: int = 1) -> dict[str, Tensor]:
    """The tensors of a file; factors without the axis of the rank, where that is 0."""
    g = torch.Generator().manual_seed(1)
    factors = lambda size: torch.randn((LATENTS, rank, size) if rank else (LATENTS, size), generator=g)
    flat = lambda *shape: torch.randn(*shape, generator=g)
    found: dict[str, Tensor] = {"steps_since_active": torch.zeros(LATENTS, dtype=torch.long)}
    if kind in ("rank1", "flat"):
        found |= {"encoder.weight": flat(LATENTS, K * V), "encoder.bias": flat(LATENTS)}
    else:
        found |= {"b_enc": flat(LATENTS)}
        found |= {} if kind == "bilinear_tied" else {"V_enc": factors(K), "W_enc": factors(V)}
    if kind in ("flat", "bilinear_flat"):
        return found | {"decoder.weight": flat(K * V, LATENTS), "decoder.bias": flat(K * V)}
    v, w = ("V", "W") if kind == "rank1" else ("V_dec", "W_dec")
    return found | {v: factors(K), w: factors(V), "bias": flat(K, V)}


def published(directory: Path, kind: str = "rank1", tensors: Any = None, file: str = "best.pt", **options: Any) -> Path:
    """A directory as their training leaves it."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {"sae_type": kind, "layer": 1, "head": 1, "n_features": LATENTS, "d_k": K, "d_v": V, "d_in": K * V,
              "expansion_factor": 1, "k": ACTIVE, "rank": 1, "use_batchtopk": False, "seed": 42, "lr": 3e-4,
              "device": "cuda", "code_sha": "abc", **options}  # fmt: skip
    payload = {"model_state_dict": drawn(kind) if tensors is None else tensors, "config": config, "epoch": 3}
    torch.save(payload, directory / file)
    return directory


def outer(t: dict[str, Tensor], v: str, w: str, latent: int) -> Tensor:
    """The atom of a latent, the sum of its v wᵀ, [key, value]."""
    pairs = zip(t[v][latent].reshape(-1, K), t[w][latent].reshape(-1, V), strict=True)
    return sum((a[:, None] * b[None, :] for a, b in pairs), torch.zeros(K, V))


def by_hand(t: dict[str, Tensor], kind: str, state: Tensor) -> tuple[Tensor, Tensor]:
    """Latents and reconstruction of one state [key, value], latent by latent."""
    pre = torch.zeros(LATENTS)
    for i in range(LATENTS):
        if kind in ("rank1", "flat"):
            pre[i] = (t["encoder.weight"][i].view(K, V) * state).sum() + t["encoder.bias"][i]
        else:
            v, w = ("V_dec", "W_dec") if kind == "bilinear_tied" else ("V_enc", "W_enc")
            pre[i] = (outer(t, v, w, i) * state).sum() + t["b_enc"][i]
    f = torch.zeros(LATENTS)
    best = pre.topk(ACTIVE).indices
    f[best] = pre[best].clamp(min=0)
    flat = kind in ("flat", "bilinear_flat")
    v, w = ("V", "W") if kind == "rank1" else ("V_dec", "W_dec")
    atoms = [t["decoder.weight"][:, i].view(K, V) if flat else outer(t, v, w, i) for i in range(LATENTS)]
    bias = t["decoder.bias"].view(K, V) if flat else t["bias"]
    return f, sum((f[i] * atoms[i] for i in range(LATENTS)), bias)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_latents_and_reconstruction_are_those_of_matrices(tmp_path: Path, kind: str, rank: int) -> None:
    t = drawn(kind, rank)
    found = sae.load(published(tmp_path / "a", kind, t, rank=max(rank, 1)))
    state = torch.randn(7, K, V, generator=torch.Generator().manual_seed(2))
    f = found.encode(state.flatten(1))
    for row, one in enumerate(state):
        latents, made = by_hand(t, kind, one)
        torch.testing.assert_close(f[row], latents, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.decode(f[row]).view(K, V), made, rtol=1e-5, atol=1e-5)
    assert (found.config.site, found.config.flatten) == ("layers.1.state", "unit:1")


def test_it_reads_the_state_of_its_head(tmp_path: Path) -> None:
    model, text = falcon_h1(), tokens(3, 6)
    found = sae.attach(sae.load(published(tmp_path / "a")), model).double()
    assert model.sites["layers.1.state"].units == (2, K, V)
    state = mechint.run(model, text, record=["layers.1.state"])["layers.1.state"]
    f = latents_at(found, state)
    latents, _ = by_hand(drawn("rank1"), "rank1", state[2, 4, 1].float())
    torch.testing.assert_close(f[2, 4].float(), latents, rtol=1e-5, atol=1e-5)
    assert sae.fit(found, model, text).site == "layers.1.state"
    [(name, one)] = load_given(published(tmp_path / "shelf/one").parent, model=model).items()
    assert name == "one" and torch.equal(one.W_dec, found.float().W_dec)


def test_an_atom_in_the_place_of_a_write_is_what_the_recurrence_makes_of_it(tmp_path: Path) -> None:
    model, text, at = falcon_h1(), tokens(2, 6), 3
    found = sae.attach(sae.load(published(tmp_path / "a")), model)
    atom = 2.5 * found.W_dec[7].view(K, V).double()
    expected = 2.5 * outer(drawn("rank1"), "V", "W", 7).double()
    edit = Edit("layers.1.write", "replace", atom, positions=[at], units=[1])
    names = ["layers.1.state", "layers.1.write", "layers.1.decay"]
    clean, put = mechint.run(model, text, names), mechint.run(model, text, names, [edit])
    moved = put["layers.1.state"] - clean["layers.1.state"]
    change = expected - clean["layers.1.write"][:, at, 1]
    decay = clean["layers.1.decay"][:, at + 1, 1]
    decay = decay.reshape(len(text), -1)[:, :1, None]  # one number for a head of Mamba-2
    assert float(moved[:, :at].abs().max()) == 0 == float(moved[:, :, 0].abs().max())
    torch.testing.assert_close(moved[:, at, 1], change, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(moved[:, at + 1, 1], decay * change, rtol=1e-6, atol=1e-6)
    assert float((put.logits - clean.logits)[:, at].abs().max()) > 1e-6


def test_the_best_file_is_read_before_the_last_one(tmp_path: Path) -> None:
    last = {name: value + 1 for name, value in drawn("rank1").items()}
    published(tmp_path / "a", tensors=last, file="final.pt")
    only = sae.load(tmp_path / "a")
    both = sae.load(published(tmp_path / "a"))
    torch.testing.assert_close(only.b_enc, both.b_enc + 1)


class Code:
    """An object whose reading runs a command."""

    def __reduce__(self) -> Any:
        return (os.mkdir, ("made_by_a_pickle",))


def test_a_file_that_would_run_code_is_refused_in_a_line_that_says_how_to_convert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    torch.save({"model_state_dict": drawn("rank1"), "config": Code()}, tmp_path / "a/best.pt")
    with pytest.raises(MechintError, match=r"load it and save \{'model_state_dict': tensors by name") as said:
        sae.load(tmp_path / "a")
    assert "\n" not in str(said.value) and not (tmp_path / "made_by_a_pickle").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"use_batchtopk": True}, "its TopK is of a whole batch"),
        ({"kind": "bilinear_gated", "tensors": {}}, "sae_type is 'bilinear_gated'; only rank1"),
        ({"mystery": 3}, "mystery = 3"),
        ({"layer": -1}, "layer is -1, which is not the number of a layer"),
        ({"head": True}, "head is True, which is not the number of a head"),
        ({"d_k": 4, "d_v": 3}, "make no atoms of 4 keys and 3 values"),
        ({"kind": "flat", "d_k": 4}, "do not fit 4 keys and 4 values"),
        ({"tensors": {**drawn("rank1"), "other": torch.ones(1)}}, "has other, which nothing here would use"),
        ({"tensors": {"V": torch.ones(1)}}, r"lacks W, bias, encoder\.bias, encoder\.weight"),
        ({"tensors": [1]}, "has no model_state_dict"),
        ({"tensors": {**drawn("rank1"), "V": 3}}, "V is not a tensor"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(MechintError, match=said):
        sae.load(published(tmp_path / "a", **options))


def test_a_matrix_of_other_axes_and_a_model_without_states_are_refused(tmp_path: Path) -> None:
    turned = {**drawn("flat"), "steps_since_active": torch.zeros(1)}
    other = sae.load(published(tmp_path / "a", "flat", turned, d_k=V, d_v=K))
    with pytest.raises(MechintError, match="reads a matrix of 4 keys and 3 values"):
        sae.attach(other, falcon_h1())
    with pytest.raises(MechintError, match=r"layers\.1\.state"):
        sae.attach(other, tiny_gpt2())
    (tmp_path / "b").mkdir()
    with pytest.raises(MechintError, match="is not a dictionary"):
        sae.load(tmp_path / "b")
