"""Causal checks of features, and features against labels: plain loops, other definitions, and planted answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechint import Edit, MechintError, run
from mechint.analyses.dictionaries import causal
from mechint.analyses.dictionaries.answer_auroc import auroc, label_scores, mann_whitney
from mechint.analyses.dictionaries.causal import causal_effects
from mechint.analyses.dictionaries.evaluation import Windows
from mechint.interventions.prefix import behind
from mechint.utils.multiple_tests import benjamini_hochberg
from tests.helpers.builders import tiny_gpt2, tiny_mamba, tokens
from tests.helpers.dictionaries import dictionary
from tests.helpers.examples import examples


@pytest.mark.parametrize(
    ("builder", "site", "d_in"), [(tiny_mamba, "layers.0.out", 10), (tiny_gpt2, "layers.1.attn_out", 12)]
)
@pytest.mark.parametrize("mode", ["ablate", "steer"])
def test_effects_are_those_of_a_plain_loop(builder: Any, site: str, d_in: int, mode: str) -> None:
    model = builder(dtype=torch.float64).requires_grad_(False)
    made = dictionary(d_in, 20, 2, k=10, dtype=torch.float64)
    made.b_enc[4] += 2
    text = [tokens(3, 7, 1), tokens(2, 7, 2)]
    keep = torch.ones(3, 7, dtype=torch.bool)
    keep[0, 3] = False
    raised = {4: [1, 2]}
    found = causal_effects(
        made, model, [Windows(text[0], keep), text[1]], site, [4], mode=mode, amounts={4: 1.5}, raises=raised,
        controls=3, draws=100,
    )["features"][0]  # fmt: skip
    sums: dict[str, list[float]] = {"loss": [], "loss_active": [], "kl_active": [], "logits": []}
    for batch, kept in ((text[0], keep), (text[1], torch.ones(2, 7, dtype=torch.bool))):
        clean = run(model, batch, [site])
        f = made.encode(clean[site])[..., 4] * kept
        change = -f if mode == "ablate" else 1.5 * kept.double()
        new = clean[site] + change[..., None] * made.W_dec[4]
        own, other = (r.logits.log_softmax(-1) for r in (clean, run(model, batch, edits=[Edit(site, "replace", new)])))
        for row in range(len(batch)):
            for t in range(6):
                if not (kept[row, t] and kept[row, t + 1]):
                    continue
                rise = float(own[row, t, batch[row, t + 1]] - other[row, t, batch[row, t + 1]])
                sums["loss"].append(rise)
                if mode == "steer" or f[row, t] > 0:
                    sums["loss_active"].append(rise)
                    sums["kl_active"].append(float((own[row, t].exp() * (own[row, t] - other[row, t])).sum()))
                    lifted = [z[row, t, [1, 2]].mean() - z[row, t].mean() for z in (own, other)]
                    sums["logits"].append(float(lifted[1] - lifted[0]))
    assert found["active"] == len(sums["loss_active"]) > 0
    for name, values in sums.items():
        number = found["metrics"][name]
        assert number["value"] == pytest.approx(np.mean(values), rel=1e-8, abs=1e-12), name
        assert number["low"] <= number["value"] <= number["high"]
        assert len(found["control"][name]["values"]) <= 3 and 0 < found["control"][name]["p"] <= 1
    assert 4 not in found["controls"] and len(found["controls"]) == 3


@pytest.mark.parametrize("mode", ["ablate", "steer"])
@pytest.mark.parametrize("site", ["layers.0.out", "layers.0.state"])
def test_changes_run_together_over_the_rows_that_they_change(
    mode: str, site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_mamba(dtype=torch.float64).requires_grad_(False)
    made = dictionary(10 if site.endswith("out") else 70, 40, 3, k=1, dtype=torch.float64)
    text, ran = [tokens(5, 4, 1), tokens(4, 4, 2)], []
    monkeypatch.setattr(causal, "behind", lambda *given: ran.append(len(given[1])) or behind(*given))

    def effects(most: int, at_once: int) -> Any:
        monkeypatch.setattr(causal, "TOGETHER", most)
        monkeypatch.setattr(causal, "LOGITS_AT_ONCE", at_once)
        ran.clear()
        return causal_effects(
            made, model, text, site, list(range(0, 40, 3)), mode=mode, amounts=dict.fromkeys(range(40), 2.0),
            raises={0: [3], 6: [1, 2]}, controls=2, draws=20,
        )["features"]  # fmt: skip

    together, forwards, rows = effects(1024, 1 << 25), len(ran), sum(ran)
    alone = effects(1, 0)  # the model's own predictions are made again for each
    assert close(together, alone)
    every = 9 * sum(1 + len(each["controls"]) for each in together) + 9  # rows of all changes, and the text itself
    if site.endswith("state"):
        assert (forwards, rows) == (len(ran), every)
    else:
        assert forwards < len(ran)
        assert rows < every / 2 if mode == "ablate" else rows == every


def close(one: Any, other: Any) -> bool:
    """Equal but for rounding."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    return (
        one == other if one is None or isinstance(one, str) else bool(one == pytest.approx(other, rel=1e-9, abs=1e-12))
    )


def test_a_feature_that_carries_the_answer_stands_out() -> None:
    """One direction holds all that the last residual has, the others nothing: ablating it, and no other, is felt."""
    model, site = tiny_mamba(), "layers.1.resid_post"
    text = tokens(6, 8)
    made = dictionary(10, 12, k=12)
    with torch.no_grad():
        made.W_dec.copy_(torch.nn.functional.normalize(torch.randn(12, 10), dim=-1) * 1e-4)
        made.W_dec[0] = model.embeddings[3]
        made.W_enc.zero_()
        made.b_enc.fill_(1.0)
    found = causal_effects(made, model, [text], site, [0], raises={0: [3]}, controls=8, draws=100)["features"][0]
    assert found["metrics"]["logits"]["high"] < 0  # without it, token 3 falls
    assert found["control"]["kl_active"]["p"] == pytest.approx(1 / 9)
    assert found["metrics"]["kl_active"]["value"] > 100 * max(found["control"]["kl_active"]["values"])


def test_controls_have_the_features_density() -> None:
    model, site = tiny_mamba(), "layers.0.out"
    density = torch.cat([torch.full((10,), 0.5), torch.full((10,), 1e-3), torch.zeros(4)])
    found = causal_effects(
        dictionary(10, 24), model, [tokens(4, 5)], site, [0, 11], density=density, controls=2, draws=100
    )
    assert all(j < 10 for j in found["features"][0]["controls"])
    assert all(10 <= j < 20 for j in found["features"][1]["controls"])


def test_a_feature_that_never_fires_has_no_effect_at_its_tokens() -> None:
    made = dictionary(10, 24, k=24)
    with torch.no_grad():
        made.b_enc[7] = -1e3
    found = causal_effects(made, tiny_mamba(), [tokens(4, 5)], "layers.0.out", [7], draws=100)["features"][0]
    assert found["active"] == 0 and set(found["metrics"]) == {"loss"}
    assert found["metrics"]["loss"]["value"] == 0


def test_refusals() -> None:
    model, made, text = tiny_mamba(), dictionary(10, 24), [tokens(4, 5)]
    with pytest.raises(MechintError, match="mode 'push'"):
        causal_effects(made, model, text, "layers.0.out", [1], mode="push")
    with pytest.raises(MechintError, match="feature 24 does not exist"):
        causal_effects(made, model, text, "layers.0.out", [24])
    with pytest.raises(MechintError, match="steering needs an amount"):
        causal_effects(made, model, text, "layers.0.out", [2], mode="steer", amounts={1: 2.0})
    with pytest.raises(MechintError, match="one document"):
        causal_effects(made, model, [tokens(1, 5)], "layers.0.out", [2])
    f, y = torch.rand(20, 3), torch.arange(20) % 2
    with pytest.raises(MechintError, match="20 discovery prompts have 19 labels"):
        label_scores(f, y[:19], f, y)
    with pytest.raises(MechintError, match="no class has 5 prompts"):
        label_scores(f, torch.zeros(20), f, y)
    with pytest.raises(MechintError, match="different dictionaries"):
        label_scores(f, y, f[:, :2], y)


# ---- labels -----------------------------------------------------------------------------------------------------


@settings(max_examples=examples(40), deadline=None)
@given(seed=st.integers(0, 999), ours=st.integers(1, 9), others=st.integers(1, 9), levels=st.integers(1, 4))
def test_auroc_is_the_share_of_pairs_in_order(seed: int, ours: int, others: int, levels: int) -> None:
    random = torch.Generator().manual_seed(seed)
    f = torch.randint(0, levels, (ours + others, 5), generator=random).float()  # with many ties
    positive = torch.zeros(ours + others, dtype=torch.bool)
    positive[torch.randperm(ours + others, generator=random)[:ours]] = True
    a, b = f[positive][:, None], f[~positive][None]
    expected = ((a > b).double() + 0.5 * (a == b).double()).mean((0, 1))
    assert torch.allclose(auroc(f, positive), expected)


def test_p_values_are_those_of_shuffles() -> None:
    random = torch.Generator().manual_seed(4)
    f = torch.relu(torch.randn(80, 6, generator=random) - 0.3)  # half of it zero, as latents are
    positive = torch.arange(80) % 2 == 0
    f[positive, 0] += 0.5
    area = auroc(f, positive)
    p = mann_whitney(f, positive)
    shuffled = torch.stack([auroc(f, positive[torch.randperm(80, generator=random)]) for _ in range(2000)])
    share = ((shuffled - 0.5).abs() >= (area - 0.5).abs() - 1e-12).double().mean(0)
    assert np.allclose(p, share, atol=0.04) and p[0] < 0.01
    constant = torch.ones(80, 1)
    assert mann_whitney(constant, positive) == 1


def test_a_planted_label_is_found_and_noise_is_not() -> None:
    random = torch.Generator().manual_seed(1)
    f, labels = torch.relu(torch.randn(200, 50, generator=random)), torch.randint(0, 3, (200,), generator=random)
    f[labels == 1, 7] += 3
    found = label_scores(f[:100], labels[:100], f[100:], labels[100:], shuffles=50, names={1: "one"})
    assert [entry["label"] for entry in found["classes"]] == [0, 1, 2]
    zero, one, _ = found["classes"]
    best = one["features"][0]
    assert one["name"] == "one" and best["id"] == 7 and best["auroc"]["low"] > 0.9 and best["q"] < 1e-6
    assert one["significant"] == 1 and best["discovery"] > one["shuffled"]["high"]
    assert zero["features"][0]["auroc"]["low"] < one["shuffled"]["high"]


def test_benjamini_hochberg() -> None:
    assert benjamini_hochberg(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.02, 0.04, 0.04, 0.02])
    random = np.random.default_rng(0)
    found = [bool((benjamini_hochberg(random.uniform(size=40)) <= 0.1).any()) for _ in range(500)]
    assert np.mean(found) == pytest.approx(0.1, abs=0.04)  # under the global null it is the chance of any discovery
