"""Sites of several axes through every use of a dictionary: plain loops over heads and channels are the judges."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mechint import Edit, MechintError, run, sae
from mechint.analyses.ablation import Ablation
from mechint.analyses.circuits.feature_units import FeatureUnits
from mechint.analyses.dictionaries.analyzer import SAEAnalysisConfig, SAEAnalyzer, refuse
from mechint.analyses.dictionaries.causal import Change
from mechint.analyses.dictionaries.evaluation import Windows, evaluate, evaluate_all
from mechint.analyses.dictionaries.features import read_features
from mechint.analyses.dictionaries.logits import direct_map
from mechint.analyses.loader import PromptLoader
from mechint.sae.activations.flattening import flat_width, flatten, unflatten
from mechint.sae.base import SAEConfig
from mechint.tasks import TaskConfig, make_task
from tests.helpers.builders import tiny_gpt2, tiny_mamba, tokens
from tests.helpers.feature_units import prompts

CASES = [
    (tiny_gpt2, "layers.0.head_out", "last"), (tiny_gpt2, "layers.1.head_out", "unit:1"),
    (tiny_gpt2, "layers.0.k", "all"), (tiny_mamba, "layers.0.write", "last"), (tiny_mamba, "layers.1.state", "unit:3"),
    (tiny_mamba, "layers.0.state", "last"), (tiny_mamba, "layers.1.out", "last"),
]  # fmt: skip


def dictionary(model: Any, site: str, rule: str, seed: int = 0) -> Any:
    d_in = flat_width(model.sites[site], rule)
    made = sae.make(SAEConfig("topk", d_in, 2 * d_in, k=2, site=site, flatten=rule))
    made.initialise(torch.full((d_in,), 0.1), torch.Generator().manual_seed(seed))
    return made.inference().double()


def by_hand(made: Any, x: Tensor, rule: str, change: Any) -> Tensor:
    """``change`` of every activation of x [batch, position, *units], one after another."""
    new = x.clone()
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            here = x[b, t]
            if rule == "all":
                new[b, t] = change(here.flatten()).view_as(here)
            elif rule == "last":
                rows = here.reshape(-1, here.shape[-1])
                new[b, t] = torch.stack([change(row) for row in rows]).view_as(here)
            else:
                unit = int(rule.split(":")[1])
                new[b, t, unit] = change(here[unit].flatten()).view_as(here[unit])
    return new


@pytest.mark.parametrize(("builder", "site", "rule"), CASES)
def test_numbers_are_those_of_a_loop_over_heads_or_channels(builder: Any, site: str, rule: str) -> None:
    model = builder(dtype=torch.float64)
    made, text, keep = dictionary(model, site, rule), tokens(4, 7, 4), torch.ones(4, 7, dtype=torch.bool)
    keep[1, 2] = False
    found = evaluate(made, model, [Windows(text[:2], keep[:2]), Windows(text[2:], keep[2:])], site, draws=100)
    numbers = {name: entry["value"] for name, entry in found["metrics"].items()}

    x = run(model, text, [site])[site]
    rows = flatten(x, rule)[keep].reshape(-1, made.config.d_in)
    assert found["activations"] == len(rows) and found["tokens"] == 27 and found["d_in"] == made.config.d_in
    back = made(rows)
    assert numbers["mse"] == pytest.approx(float((rows - back).detach().square().mean()))
    assert numbers["l0"] == pytest.approx(float((made.encode(rows) != 0).sum(-1).double().mean()))
    centre = flatten(x, rule)[keep].mean(0)
    spread = (flatten(x, rule)[keep] - centre).square().sum()
    assert numbers["variance_explained"] == pytest.approx(1 - float(((rows - back).square().sum() / spread).detach()))

    def loss(change: Any) -> float:
        edit = Edit(site, "mask", (~keep).double().view(4, 7, *[1] * (x.dim() - 2)), fill=change)
        scores = run(model, text, edits=[edit]).logits.log_softmax(-1)
        ce = -scores[:, :-1].gather(-1, text[:, 1:, None]).squeeze(-1)
        both = keep[:, :-1] & keep[:, 1:]
        return float(ce[both].mean())

    if rule == "last" and x.dim() > 3:
        own_mean = lambda value: centre.expand_as(value)
    else:
        own_mean = lambda value: by_hand(made, value, rule, lambda row: centre.flatten())
    assert numbers["ce_sae"] == pytest.approx(loss(lambda value: by_hand(made, value, rule, made)), rel=1e-9)
    assert numbers["ce_zero"] == pytest.approx(
        loss(lambda value: by_hand(made, value, rule, torch.zeros_like)), rel=1e-9
    )
    assert numbers["ce_mean"] == pytest.approx(loss(own_mean), rel=1e-9)


@pytest.mark.parametrize("rule", ["last", "unit:1", "all"])
def test_latents_of_heads_are_units_of_a_circuit(rule: str) -> None:
    model, site = tiny_gpt2(dtype=torch.float64).requires_grad_(False), "layers.0.head_out"
    made, batch = dictionary(model, site, rule), prompts(3, 6)
    units = FeatureUnits(model, {site: made})
    fills = Ablation(model, units, "mean", [batch], True).fills(batch)
    kept = run(model, batch.tokens, edits=units.edits(torch.ones(units.total), fills)).logits
    clean = run(model, batch.tokens, [site])
    assert torch.equal(kept, clean.logits)
    only = 1 - units.errors()
    found = run(model, batch.tokens, [site], units.edits(only, {site: 0.0}))[site]
    torch.testing.assert_close(found, by_hand(made, clean[site], rule, made), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", ["last", "unit:2"])
def test_features_of_heads_are_read_and_changed_head_by_head(rule: str) -> None:
    model, site, text = tiny_gpt2(dtype=torch.float64), "layers.1.head_out", tokens(4, 6, 3)
    made = dictionary(model, site, rule)
    x = run(model, text, [site])[site].detach()
    found = read_features(made, model, [text], site, str)
    f = made.encode(flatten(x, rule))
    f = f.amax(2) if rule == "last" else f
    for i, feature in enumerate(found["features"]):
        assert feature["density"] == pytest.approx(float((f[..., i] > 0).double().mean()))
        assert feature["max"] == pytest.approx(float(f[..., i].max()), rel=2e-3)
    if rule == "last":
        assert "shared by every head" in found["logits"] and "raises" not in found["features"][0]
    else:
        whole = torch.zeros(12, dtype=torch.float64)
        whole[8:12] = made.W_dec[3]  # head 2 of three with four dimensions each
        effect = direct_map(model, text, site) @ whole
        assert found["features"][3]["raises"][0][0] == int(effect.argmax())
    change = Change(made, 3, "ablate", 0.0)
    expected = by_hand(made, x, rule, lambda row: row - made.encode(row)[3] * made.W_dec[3])
    torch.testing.assert_close(change(x), expected, rtol=0, atol=1e-12)
    assert torch.equal(change.amounts(x), f[..., 3])


@pytest.mark.slow_except("tiny_gpt2.*d_in0")
@pytest.mark.parametrize(
    ("builder", "sites", "rule", "d_in"),
    [(tiny_gpt2, "head_out,resid_post", "last", {4, 12}), (tiny_mamba, "state", "unit:13", {5}),
     (tiny_mamba, "state", "all", {70})],
)  # fmt: skip
def test_the_analysis_takes_the_rule_from_training_to_its_pages(
    tmp_path: Path, builder: Any, sites: str, rule: str, d_in: set[int]
) -> None:
    task = make_task(TaskConfig(name="recall", pairs=2, keys=10, values=6))
    model = builder(vocab_size=task.vocab_size)
    loaders = [PromptLoader(task, split, 8, 8, 0) for split in ("discovery", "evaluation")]
    config = SAEAnalysisConfig(sites=sites, layers="0", architectures="topk", sparsity="2", ratio="2", tokens=1024,
                               batch=128, buffer=512, bootstrap=100, causal=1, flatten=rule, controls=False,
                               prompts=8, eval_prompts=8)  # fmt: skip
    results = SAEAnalyzer(model, config, run_dir=tmp_path / "one").run_analysis(*loaders)
    members = results["sae"]["members"]
    assert {member["d_in"] for member in members} == d_in
    made = [sae.load(tmp_path / "one/dictionaries" / member["name"]).config for member in members]
    assert {c.flatten for c in made} == {rule} and {c.tokens for c in made} == {1024}
    again = SAEAnalyzer(model, replace(config, dictionaries=str(tmp_path / "one"), flatten="all"))
    assert again.run_analysis(*loaders)["sae"]["members"] == members


def test_bad_rules_are_one_line() -> None:
    gpt2, mamba = tiny_gpt2(), tiny_mamba()
    small = SAEAnalysisConfig(layers="0", ratio="2", sparsity="2", controls=False)
    for model, site, rule, said in (
        (gpt2, "head_out", "unit:3", "no head 3; there are 3"), (mamba, "out", "unit:0", "one axis of units alone"),
        (gpt2, "pattern", "last", "as many entries as there are positions"),
        (mamba, "state", "unit:99", "no channel 99; there are 14"),
    ):  # fmt: skip
        with pytest.raises(MechintError, match=said):
            SAEAnalyzer(model, replace(small, sites=site, flatten=rule))
    assert refuse(replace(small, flatten="per_head"), TaskConfig()) == (
        "no flattening rule 'per_head'; take all, last or unit:NUMBER"
    )
    site = "layers.0.head_out"
    whole, shared = dictionary(gpt2, site, "all").float(), dictionary(gpt2, site, "last").float()
    with pytest.raises(MechintError, match=r"reads 12 numbers .* has 4, flattened by 'last'"):
        wrong = dictionary(gpt2, site, "all")
        wrong.config = replace(wrong.config, flatten="last")
        evaluate(wrong, gpt2, [tokens(2, 5)], site)
    with pytest.raises(MechintError, match="flattened by all, last are evaluated apart"):
        evaluate_all({"a": whole, "b": shared}, gpt2, [tokens(2, 5)], site)


@pytest.mark.parametrize("rule", ["all", "last", "unit:2"])
def test_gradients_flow_through_flattening_and_back(rule: str) -> None:
    value = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: unflatten(flatten(x, rule).sin(), x, rule), [value])
