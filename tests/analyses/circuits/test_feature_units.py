"""Circuits of SAE latents: the engine on a model whose answer runs through known directions, and exact edges."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechint import MechintError, run
from mechint.analyses.ablation import Ablation
from mechint.analyses.circuits.bench import Bench, attribute
from mechint.analyses.circuits.feature_units import FeatureUnits
from mechint.analyses.circuits.search.learning import Search, SearchOptions
from tests.helpers.builders import tiny_gpt2, tiny_mamba
from tests.helpers.dictionaries import dictionary
from tests.helpers.feature_units import prompts, units_of

SITES = [(tiny_mamba, ("layers.0.out", "layers.1.out")), (tiny_gpt2, ("layers.0.mlp_out", "layers.1.head_out"))]


@pytest.mark.parametrize(("builder", "sites"), SITES)
@pytest.mark.parametrize("method", ["zero", "mean", "resample", "counterfactual"])
def test_all_kept_is_the_model_to_the_bit_and_all_dropped_the_fills(
    builder: Any, sites: tuple[str, ...], method: str
) -> None:
    model = builder().requires_grad_(False)
    units, batch = units_of(model, sites), prompts(4, 6)
    assert (units.total, units.rows, units.counts(torch.ones(units.total))) == (34, 2, [17, 17])
    fills = Ablation(model, units, method, [batch], False).fills(batch)
    kept = run(model, batch.tokens, edits=units.edits(torch.ones(units.total), fills)).logits
    assert torch.equal(kept, run(model, batch.tokens).logits)
    dropped = run(model, batch.tokens, list(sites), units.edits(torch.zeros(units.total), fills))
    if method == "counterfactual":  # latents and error of the twin are the twin's activation
        assert batch.twins is not None
        other = run(model, batch.twins, list(sites))
        for site in sites:
            assert torch.allclose(dropped[site], other[site], atol=1e-5)
    if method == "zero":
        for site, sae in units.dictionaries.items():
            assert torch.allclose(dropped[site].flatten(2), sae.b_dec.expand(4, 6, -1), atol=1e-5)


def test_dropping_the_error_alone_leaves_the_reconstruction() -> None:
    model = tiny_mamba().requires_grad_(False)
    units, batch = units_of(model, ("layers.0.out",)), prompts(3, 6)
    mask = torch.ones(units.total)
    mask[-1] = 0
    found = run(model, batch.tokens, ["layers.0.out"], units.edits(mask, {"layers.0.out": 0.0}))["layers.0.out"]
    clean = run(model, batch.tokens, ["layers.0.out"])["layers.0.out"]
    assert torch.allclose(found, units.dictionaries["layers.0.out"](clean), atol=1e-5)
    assert units.names(1 - mask) == [["error"]] and units.names(units.top(torch.arange(17.0), 2)) == [[15, "error"]]


def test_random_masks_keep_the_counts() -> None:
    units = units_of(tiny_mamba(), ("layers.0.out", "layers.1.out"))
    mask = units.random([3, 8], torch.Generator().manual_seed(0))
    assert units.counts(mask) == [3, 8] and set(mask.tolist()) == {0.0, 1.0}


def test_the_engine_finds_the_latents_that_the_logits_are_made_of() -> None:
    """The last residual is read by an exact orthonormal dictionary, and the head reads three of its directions alone.

    Ten latents with both signs of five axes each carry the whole activation, so the error is nothing; what the model
    says depends on three axes: six latents. The circuit is those that are ever active, and no others.
    """
    model = tiny_mamba(n_layer=1, d_model=5, tied=False).requires_grad_(False)
    with torch.no_grad():
        model.norm_f.weight.fill_(1.0)
        model.lm_head.weight[:, 3:] = 0  # directions 3 and 4 say nothing
        model.lm_head.weight *= 4
    from mechint import sae
    from mechint.sae.base import SAEConfig

    exact = sae.make(SAEConfig("relu", 5, 10)).inference()
    axes = torch.cat([torch.eye(5), -torch.eye(5)])
    exact.W_dec.copy_(axes)
    exact.W_enc.copy_(axes.T)
    site = "layers.0.resid_post"
    units = FeatureUnits(model, {site: exact})
    batches = [prompts(8, 6, seed) for seed in (1, 2)]
    clean = torch.cat([run(model, batch.tokens, [site])[site] for batch in batches])
    assert torch.equal(exact(clean), clean)
    bench = Bench(model, units, Ablation(model, units, "mean", batches, False), batches)
    scores = attribute(bench, "kl")
    silent = {3, 4, 8, 9}  # their direct effect is nothing; through the norm's scale a little is left
    assert scores[10].abs() < 1e-6
    assert scores[list(silent)].abs().max() < scores[[0, 1, 2, 5, 6, 7]].max()
    search = Search(bench, "kl", scores, SearchOptions(steps=60), 0, 6)
    mask = search.run("test")[6]
    assert set(units.names(mask)[0]) == {0, 1, 2, 5, 6, 7}
    assert bench.faithful(mask, "kl") > 0.8


def test_refusals() -> None:
    model = tiny_mamba()
    with pytest.raises(MechintError, match="needs a dictionary"):
        FeatureUnits(model, {})
    with pytest.raises(MechintError, match="reads 9 numbers"):
        FeatureUnits(model, {"layers.0.out": dictionary(9, 16)})
    with pytest.raises(MechintError, match=r"no site 'layers.9.out'"):
        FeatureUnits(model, {"layers.9.out": dictionary(10, 16)})
    with pytest.raises(MechintError, match="a state has none"):
        FeatureUnits(model, {"layers.0.state": dictionary(70, 80)})
    with pytest.raises(MechintError, match="a circuit of 99 units"):
        units_of(model, ("layers.0.out",)).top(torch.zeros(17), 99)
