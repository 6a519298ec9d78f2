"""Steering: directions against means and components by hand, and what adding or removing them does, run by run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import mechint
from mechint import Edit, MechintError
from mechint.interventions.steering import Direction, contrast, project_out, steer, steering_curve
from tests.helpers.builders import tiny_gpt2, tiny_mamba, tokens

SITE = "layers.0.resid_post"


def pairs(count: int = 4) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Prompts of different lengths that end in token 3, and their partners, which end in token 8."""
    starts = [torch.arange(1, 3 + k) for k in range(count)]
    return [torch.cat([s, torch.tensor([3])]) for s in starts], [torch.cat([s, torch.tensor([8])]) for s in starts]


def differences(model: Any, site: str = SITE) -> np.ndarray:
    with torch.no_grad():
        read = [[mechint.run(model, p[None], [site])[site][0, -1].numpy() for p in half] for half in pairs()]
    return np.array(read[0]) - np.array(read[1])


@pytest.mark.parametrize("builder", [tiny_mamba, tiny_gpt2])
def test_the_mean_difference_by_hand(builder: Any) -> None:
    model = builder(dtype=torch.float64).requires_grad_(False)
    found = contrast(model, *pairs(), SITE)
    np.testing.assert_allclose(found.vector.numpy(), differences(model).mean(0), rtol=1e-12, atol=1e-14)
    assert found.unit.norm() == pytest.approx(1.0)


def test_the_principal_component_by_hand() -> None:
    model = tiny_mamba(dtype=torch.float64).requires_grad_(False)
    each = differences(model)
    covariance = np.cov(each.T)
    component = np.linalg.eigh(covariance)[1][:, -1]
    wanted = (component @ each.mean(0)) * component
    found = contrast(model, *pairs(), SITE, method="pca")
    np.testing.assert_allclose(found.vector.numpy(), wanted, rtol=1e-8, atol=1e-10)


def test_a_direction_in_the_state_is_as_the_state() -> None:
    model = tiny_mamba(dtype=torch.float64).requires_grad_(False)
    found = contrast(model, *pairs(), "layers.1.state")
    assert found.vector.shape == model.sites["layers.1.state"].units
    ids = tokens(2, 5)
    once = mechint.run(model, ids, edits=steer(found, 1.5, positions=[2])).logits
    plain = mechint.run(model, ids, edits=[Edit("layers.1.state", "add", 1.5 * found.vector, positions=[2])]).logits
    assert torch.equal(once, plain)
    assert torch.equal(once[:, :2], model(ids)[:, :2]) and not torch.equal(once[:, 4], model(ids)[:, 4])


@pytest.mark.parametrize("site", [SITE, "layers.1.readout", "layers.1.u"])
def test_nothing_is_left_along_a_direction_that_is_projected_out(site: str) -> None:
    model = tiny_mamba(dtype=torch.float64).requires_grad_(False)
    found, ids = contrast(model, *pairs(), site), tokens(2, 6)
    before, after = mechint.run(model, ids, [site])[site], mechint.run(model, ids, [site], project_out(found))[site]
    along = lambda x: (x * found.unit).flatten(2).sum(-1)
    assert along(after).abs().max() < 1e-12 < along(before).abs().max()
    rest = before - along(before).view(2, 6, *[1] * found.vector.dim()) * found.unit
    torch.testing.assert_close(after, rest, rtol=1e-12, atol=1e-12)
    made = mechint.generate(model, ids[:, :3], 3, edits=project_out(found))
    whole = mechint.run(model, made.tokens[:, :-1], edits=project_out(found)).logits
    torch.testing.assert_close(made.logits, whole, rtol=1e-9, atol=1e-10)


def test_a_curve_is_what_single_runs_say() -> None:
    model = tiny_gpt2(dtype=torch.float64).requires_grad_(False)
    found, ids, text = contrast(model, *pairs(), SITE), tokens(3, 5), tokens(2, 7, seed=5)
    measure = lambda logits: logits[..., -1, 3] - logits[..., -1, 8]
    curve = steering_curve(model, ids, measure, found, [-1, 0, 2.5], text=text, randoms=3, seed=4)
    assert curve.effect.shape == (3, 3) and curve.random_effect.shape == (3, 3, 3)
    assert curve.kl is not None and curve.random_kl is not None and curve.random_kl.shape == (3, 3, 2)
    clean = model(text).log_softmax(-1)
    for each, effects, kls in ((found, curve.effect, curve.kl), *zip(found.randoms(3, 4), curve.random_effect,
                                                                     curve.random_kl, strict=True)):  # fmt: skip
        for strength, effect, kl in zip((-1.0, 0.0, 2.5), effects, kls, strict=True):
            edits = [Edit(SITE, "add", strength * each.vector)]
            torch.testing.assert_close(
                effect, measure(mechint.run(model, ids, edits=edits).logits), rtol=1e-9, atol=1e-10
            )
            other = mechint.run(model, text, edits=edits).logits.log_softmax(-1)
            by_hand = (clean.exp() * (clean - other)).sum(-1).mean(-1)
            torch.testing.assert_close(kl, by_hand, rtol=1e-7, atol=1e-10)
    assert float(curve.kl[1].abs().max()) < 1e-12  # strength 0 is the model


def test_random_directions_are_as_long_and_repeatable() -> None:
    found = Direction(SITE, torch.arange(10.0))
    one, again = found.randoms(3, 1), found.randoms(3, 1)
    assert all(torch.equal(a.vector, b.vector) for a, b in zip(one, again, strict=True))
    assert [float(each.vector.norm()) for each in one] == pytest.approx([float(found.vector.norm())] * 3)
    assert not torch.equal(one[0].vector, one[1].vector) and not torch.equal(
        one[0].vector, found.randoms(1, 2)[0].vector
    )


def test_steering_moves_the_model_towards_the_property() -> None:
    """The direction from prompts that end in 8 to those that end in 3 makes the logits more like those behind a 3."""
    model = tiny_mamba(dtype=torch.float64).requires_grad_(False)
    positive, negative = pairs()
    found = contrast(model, positive, negative, "embed")
    last = negative[0][None]
    at = [last.shape[1] - 1]
    wanted, start = model(positive[0][None])[0, -1], model(last)[0, -1]
    moved = mechint.run(model, last, edits=steer(found, 1.0, at)).logits[0, -1]
    torch.testing.assert_close(
        moved, wanted, rtol=1e-9, atol=1e-10
    )  # the embedding's difference is the whole difference
    assert not torch.allclose(start, wanted)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"negative": []}, "4 prompts with the property and 0 without"), ({"method": "svm"}, "take mean or pca"),
     ({"site": "layers.0.resid"}, "resid"), ({"negative": None}, "have the same mean there, so there is no direction")],
)  # fmt: skip
def test_bad_contrasts_are_one_line(change: dict[str, Any], words: str) -> None:
    positive, negative = pairs()
    given: dict[str, Any] = {"positive": positive, "negative": negative, "site": SITE, **change}
    if given["negative"] is None:
        given["negative"] = positive
    with pytest.raises(MechintError, match=words) as refused:
        contrast(tiny_mamba(), **given)
    assert "\n" not in str(refused.value)
    with pytest.raises(MechintError, match="one pair has one difference"):
        contrast(tiny_mamba(), positive[:1], negative[:1], SITE, method="pca")


def test_differences_that_cancel_or_vanish_have_no_direction() -> None:
    """A circle of three prompts cancels but for rounding, however large values are; and where all values are 0."""
    model = tiny_gpt2(dtype=torch.float64).requires_grad_(False)
    around = [torch.tensor([3, k]) for k in (1, 4, 6)]
    for scale in (1.0, 1e7):
        model.wte.weight.data *= scale
        with pytest.raises(MechintError, match="the same mean there"):
            contrast(model, around, around[1:] + around[:1], "layers.0.resid_pre")
    for part in ("weight", "bias"):
        getattr(model.layers[0].mlp.c_proj, part).data.zero_()
    with pytest.raises(MechintError, match="the same mean there"):
        contrast(model, *pairs(), "layers.0.mlp_out")
