"""Latents that tell a label, and planted directions, by hand."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from mechint.analyses.dictionaries.answer_auroc import label_scores, mann_whitney
from mechint.analyses.dictionaries.planted import Planted, PlantedConfig, score


def test_the_scores_of_a_class_by_hand() -> None:
    """Latent 2 tells class 1 but for one pair of 25, latent 0 the other way round but for five; 1 is constant."""
    labels = torch.tensor([0] * 5 + [1] * 5)
    f = torch.zeros(10, 3, dtype=torch.float64)
    f[:, 1] = 3.0
    f[:, 2] = torch.tensor([0.0, 1, 2, 3, 5, 4, 6, 7, 8, 9])
    f[:, 0] = -torch.tensor([0.0, 1, 2, 3, 9, 4, 5, 6, 7, 8])
    held = f.clone()
    held[:, 2] = torch.tensor([0.0, 1, 2, 7.5, 8.5, 4, 6, 7, 8, 9])  # 5 pairs out of order
    found = label_scores(f, labels, held, labels, shuffles=30, best=2, seed=3, names={0: "zero"})
    zero, one = found["classes"]
    assert (zero["name"], one["name"], one["label"], one["prompts"]) == ("zero", "1", 1, 5)
    first, second = one["features"]
    assert (first["id"], second["id"]) == (2, 0) and [first["discovery"], second["discovery"]] == [0.96, 0.2]
    below = 3 + 4  # of 7.5 three of class 1 are smaller, of 8.5 four
    area = 1 - below / 25
    assert first["auroc"]["value"] == pytest.approx(area) and first["auroc"]["n"] == 10
    q1, q2 = area / (2 - area), 2 * area * area / (1 + area)
    error = ((area * (1 - area) + 4 * (q1 - area**2) + 4 * (q2 - area**2)) / 25) ** 0.5
    assert first["auroc"]["low"] == pytest.approx(area - 1.96 * error) and first["auroc"]["high"] == 1.0
    assert second["auroc"]["low"] == 0.0 and second["auroc"]["value"] == pytest.approx(0.2)
    p = [2 * stats.norm.sf(abs(25 * a - 12.5) / (25 * 11 / 12) ** 0.5) for a in (0.96, 0.2)]
    assert mann_whitney(f, labels == 1) == pytest.approx([p[1], 1.0, p[0]])
    assert [first["q"], second["q"]] == pytest.approx([3 * p[0], 1.5 * p[1]])
    assert one["significant"] == 1 and zero["significant"] == 1 and zero["features"][0]["discovery"] == 0.04
    random = torch.Generator().manual_seed(3)
    largest = []
    for _ in range(30):
        mine = (labels == 1)[torch.randperm(10, generator=random)]
        pairs = f[mine][:, None] - f[~mine][None]
        areas = ((pairs > 0).double() + 0.5 * (pairs == 0).double()).mean((0, 1))
        largest.append(float((areas - 0.5).abs().max()) + 0.5)
    largest.sort()
    control = one["shuffled"]
    assert control["median"] == pytest.approx((largest[14] + largest[15]) / 2) and control["shuffles"] == 30
    assert control["high"] == pytest.approx(largest[27] + 0.55 * (largest[28] - largest[27]))


def test_a_class_needs_five_prompts_and_five_others_in_both_halves() -> None:
    f, labels = torch.rand(12, 2), torch.tensor([0] * 5 + [1] * 7)
    few = torch.tensor([0] * 4 + [1] * 8)
    told = lambda y, held: [c["label"] for c in label_scores(f, y, f, held, shuffles=2)["classes"]]
    assert told(labels, labels) == [0, 1]
    third = torch.tensor([0] * 5 + [1] * 4 + [2] * 3)
    assert told(third, third) == [0] and told(third, labels) == [0]
    with pytest.raises(Exception, match="no class has 5"):
        told(labels, few)


def test_a_dictionary_of_planted_directions_by_hand() -> None:
    """Two of three directions are there, one of them at half of the times that it is on; one latent is another."""
    source = Planted(PlantedConfig(d_in=8, features=3, active=1.0, seed=5))
    source.directions = torch.eye(3, 8)
    strengths = source.features(10**6)
    assert strengths.shape == (8192, 3)
    on = strengths[strengths > 0]
    assert (
        0.5 <= float(on.min()) < 0.51
        and 1.49 < float(on.max()) < 1.5
        and float(on.mean()) == pytest.approx(1, abs=0.01)
    )
    assert float((strengths > 0).double().mean()) == pytest.approx(1 / 3, abs=0.01)
    torch.testing.assert_close(source.pool(3)["planted"], source.features(3) @ source.directions)
    assert not torch.equal(source.features(0), source.features(1))

    class Dictionary:
        W_dec = torch.zeros(3, 8)

        def encode(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([x[:, 0], (x[:, 1] - 1.0).relu(), x[:, 7]], 1)

    sae = Dictionary()
    sae.W_dec[0, 0], sae.W_dec[1, 1] = 2.0, 3.0
    sae.W_dec[2, 6], sae.W_dec[2, 2] = 4.0, 3.0  # cosine 3 / 5 with the third
    found = score(sae, source)  # type: ignore[arg-type]
    half = float((strengths[:, 1] > 1).sum() / (strengths[:, 1] > 0).sum())
    assert found["mean_cosine"] == pytest.approx((1 + 1 + 0.6) / 3)
    assert found["f1"] == pytest.approx((1 + 2 * half / (1 + half) + 0) / 3, rel=1e-5)
    assert found["l0"] == pytest.approx(float(((strengths[:, 0] > 0).double() + (strengths[:, 1] > 1)).mean()))
    assert found["recovered"]["value"] == pytest.approx(2 / 3) and found["best_cosine"]["value"] == pytest.approx(1)
