"""Reading features: a plain loop as the judge, planted features whose text and tokens are known, and bad input."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechint import Edit, MechintError, run
from mechint.analyses.dictionaries.evaluation import Windows
from mechint.analyses.dictionaries.features import BINS, Wanted, read_features, save_features
from mechint.analyses.dictionaries.logits import direct_map, extreme_tokens
from tests.helpers.builders import tiny_gpt2, tiny_llama, tiny_mamba, tokens
from tests.helpers.dictionaries import dictionary
from tests.helpers.examples import examples


def spell(token: int) -> str:
    return f"<{token}>"


@settings(max_examples=examples(6), deadline=None)
@given(
    seed=st.integers(0, 99), cuts=st.sets(st.integers(1, 7), max_size=3), length=st.integers(4, 9),
    top=st.integers(1, 4), before=st.integers(0, 3), after=st.integers(0, 2),
)  # fmt: skip
def test_everything_is_what_a_plain_loop_finds(
    seed: int, cuts: set[int], length: int, top: int, before: int, after: int
) -> None:
    model, site = tiny_mamba(seed, torch.float64), "layers.1.out"
    text = tokens(8, length, seed)
    keep = torch.rand(8, length, generator=torch.Generator().manual_seed(seed)) < 0.8
    keep[0, 0] = True
    made = dictionary(10, 16, seed, dtype=torch.float64)
    edges = [0, *sorted(cuts), 8]
    batches = [Windows(text[a:b], keep[a:b]) for a, b in itertools.pairwise(edges)]
    wanted = Wanted(top=top, before=before, after=after, seed=seed)
    found = read_features(made, model, batches, site, spell, wanted=wanted)

    f = (made.encode(run(model, text, [site])[site]) * keep.unsqueeze(-1)).detach()  # [row, position, feature]
    assert found["tokens"] == int(keep.sum()) and found["windows"] == 8 and len(found["features"]) == 16
    for i, feature in enumerate(found["features"]):
        mine = f[:, :, i]
        active = mine[mine > 0]
        assert feature["density"] == pytest.approx(len(active) / int(keep.sum()))
        assert feature["max"] == pytest.approx(float(mine.max()), rel=2e-3)
        if not len(active):
            assert feature["top"] == [] and feature["samples"] == [] and feature["histogram"] == []
            continue
        assert feature["mean"] == pytest.approx(float(active.mean()), rel=2e-3)
        assert sum(feature["histogram"]) == len(active) and len(feature["histogram"]) == BINS
        peaks = [float(value) for value in mine.amax(1).sort(descending=True).values if value > 0][:top]
        # rows that share a prefix share a peak, up to rounding: which of them comes first says nothing
        assert [float(mine[shown["row"]].max()) for shown in feature["top"]] == pytest.approx(peaks)
        assert len({shown["row"] for shown in feature["top"]}) == len(peaks)
        for shown in [*feature["top"], *feature["samples"]]:
            row = mine[shown["row"]]
            peak = int(row.argmax())
            assert shown["peak"] == peak
            assert (shown["from"], shown["to"]) == (max(0, peak - before), min(length, peak + after + 1))
            inside = {t: float(row[t]) for t in range(shown["from"], shown["to"]) if row[t] > 0}
            assert {t for t, _ in shown["acts"]} == set(inside)
            assert all(v == pytest.approx(inside[t], rel=2e-3) for t, v in shown["acts"])
            assert found["rows"][str(shown["row"])] == text[shown["row"]].tolist()
        levels = (mine.amax(1) / mine.max() * wanted.intervals).long().clamp(max=wanted.intervals - 1)
        of_level = [
            min(wanted.samples, int(((levels == k) & (mine.amax(1) > 0)).sum())) for k in range(wanted.intervals)
        ]
        assert len(feature["samples"]) == sum(of_level)
        for shown in feature["samples"]:
            low, high = shown["interval"]
            assert low * 0.99 <= float(mine[shown["row"]].max()) <= high * 1.01
    for i, feature in enumerate(found["features"]):
        cosine = torch.nn.functional.cosine_similarity(made.W_dec[i : i + 1], made.W_dec).detach()
        cosine[i] = -2
        assert [j for j, _ in feature["neighbours"]] == cosine.topk(5).indices.tolist()
    whole = read_features(made, model, [Windows(text, keep)], site, spell, wanted=wanted)
    drawn = lambda one: [[shown["row"] for shown in feature["samples"]] for feature in one["features"]]
    assert drawn(whole) == drawn(found)  # batches may be cut anywhere


@pytest.mark.parametrize(
    ("builder", "site"),
    [(tiny_mamba, "layers.1.out"), (tiny_mamba, "layers.1.gated"), (tiny_gpt2, "layers.1.mlp_post"),
     (tiny_gpt2, "layers.1.head_out"), (tiny_llama, "layers.1.mlp_post"), (tiny_llama, "layers.1.resid_post")],
)  # fmt: skip
def test_the_direct_map_is_the_slope_of_the_last_layers_logits(builder: Any, site: str) -> None:
    """In the last layer the direct path is the whole effect (but for an MLP behind it): finite differences judge."""
    model = builder(dtype=torch.float64).requires_grad_(False)
    text = tokens(2, 5)
    effect = direct_map(model, text, site)
    units = model.sites[site].units
    width = effect.shape[1]
    direction = torch.randn(width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    if site.endswith("head_out"):  # what attention adds also passes through the MLP, which is held here
        held = run(model, text, ["layers.1.mlp_out"])["layers.1.mlp_out"]
        extra = [Edit("layers.1.mlp_out", "replace", held)]
    else:
        extra = []
    slopes = []
    for row in range(2):
        for t in range(5):  # one position at a time: the others must not mix in
            step = torch.zeros(2, 5, width, dtype=torch.float64)
            step[row, t] = 1e-5 * direction
            logits = [
                run(model, text, edits=[Edit(site, "add", sign * step.view(2, 5, *units)), *extra]).logits[row, t]
                for sign in (1, -1)
            ]
            slopes.append((logits[0] - logits[1]) / 2e-5)
    assert torch.allclose(effect @ direction, torch.stack(slopes).mean(0), rtol=1e-5, atol=1e-6)


def test_a_planted_feature_raises_its_token() -> None:
    """A direction that is a token's own embedding, read at the last residual, raises that token most."""
    model = tiny_mamba(norm_eps=1e-5)
    made = dictionary(10, 24)
    with torch.no_grad():
        unit = torch.nn.functional.normalize(model.embeddings / model.norm_f.weight, dim=-1)
        made.W_dec.copy_(unit)
        found = read_features(made, model, [tokens(4, 6)], "layers.1.resid_post", spell)
        effect = direct_map(model, tokens(4, 6), "layers.1.resid_post")
    centred = effect - effect.mean(0)
    for i, feature in enumerate(found["features"]):
        logits = centred @ made.W_dec[i]
        assert feature["raises"][0][0] == int(logits.argmax()) and feature["lowers"][0][0] == int(logits.argmin())
        assert feature["raises"][0][1] == pytest.approx(float(logits.max().detach()), rel=2e-3)
    values, ids, low, _ = extreme_tokens(effect, made.W_dec.detach(), 99)
    assert ids.shape == (24, 24) and (values[:, 0] >= low[:, 0]).all()
    assert sum(feature["raises"][0][0] == i for i, feature in enumerate(found["features"])) > 12


def test_sites_without_a_direct_path_say_so(tmp_path: Path) -> None:
    model, site = tiny_mamba(), "layers.0.dt"
    found = read_features(dictionary(14, 20), model, [tokens(4, 6)], site, spell, features=[3, 5], wanted=Wanted(top=2))
    assert [feature["id"] for feature in found["features"]] == [3, 5]
    assert "raises" not in found["features"][0] and found["logits"] == "layers.0.dt has no direct path to the logits"
    with pytest.raises(MechintError, match=r"layers\.0\.dt reaches the logits through products.*gated.*out"):
        direct_map(model, tokens(4, 6), site)
    path = save_features(found, tmp_path / "features.json")
    assert json.loads(path.read_text()) == json.loads(json.dumps(found))


def test_refusals() -> None:
    model, text = tiny_mamba(), [tokens(4, 6)]
    with pytest.raises(MechintError, match=r"dictionary reads 9 numbers.*has 10"):
        read_features(dictionary(9, 20), model, text, "layers.0.out", spell)
    with pytest.raises(MechintError, match="feature 20 does not exist"):
        read_features(dictionary(10, 20), model, text, "layers.0.out", spell, features=[1, 20])
    with pytest.raises(MechintError, match="no text"):
        read_features(dictionary(10, 20), model, [], "layers.0.out", spell)
    none = Windows(text[0], torch.zeros(4, 6, dtype=torch.bool))
    with pytest.raises(MechintError, match="every position of the text is left out"):
        read_features(dictionary(10, 20), model, [none], "layers.0.out", spell)
