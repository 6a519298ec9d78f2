"""Planted features: a model that has them exactly, and dictionaries and probes that find them."""

from __future__ import annotations

import dataclasses
import functools
import gc
import weakref

import pytest
import torch

from mechint import Edit
from mechint.ground_truth import BLUEPRINTS, answers
from mechint.ground_truth.planted import SITES, Planted, PlantedSizes, planted
from mechint.interventions.run import run
from mechint.sae import SAEConfig
from mechint.sae.architectures import make
from mechint.scorecard.cost import cost, reset, standing
from mechint.scorecard.curves import Curves
from mechint.scorecard.dictionaries import KINDS, recovery, score_dictionaries
from mechint.scorecard.probes import score_planted_probes, score_probes
from mechint.utils.errors import MechintError


@functools.cache
def source(seed: int = 0) -> Planted:
    return planted(seed=seed)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("site", SITES)
def test_a_site_is_its_features_and_nothing_else(site: str, seed: int) -> None:
    tokens = source(seed).task.sample(64, "train", seed).tokens
    sums = source(seed).strengths(site, tokens) @ source(seed).directions[site]
    torch.testing.assert_close(source(seed).read(site, tokens), sums, atol=2e-3, rtol=0)
    lengths = source(seed).directions[site].norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))
    assert len(lengths) > source(seed).directions[site].shape[1]  # more directions than dimensions


def test_every_answer_is_right_and_the_state_carries_it() -> None:
    model, task = source().model, source().task
    assert answers(model, task, 2000).accuracy == 1.0
    prompts = task.sample(200, "evaluation", 0)
    assert prompts.wrong is not None and prompts.twins is not None
    assert (prompts.answers != prompts.wrong).all()
    right = lambda edits: run(model, prompts.tokens, edits=edits).logits[:, -1].argmax(-1) == prompts.answers[:, 0]
    assert right([]).all()
    assert (run(model, prompts.twins).logits[:, -1].argmax(-1) == prompts.wrong[:, 0]).all()
    # what the stream keeps of the class decides, and it comes from the state
    classes, dims = task.sizes.classes, task.sizes.dims
    stream = run(model, prompts.tokens, ["layers.0.resid_post"]).values["layers.0.resid_post"]
    basis = source().directions["layers.0.state"][:classes]
    block = stream[..., dims : 2 * dims]
    without = torch.cat([stream[..., :dims], block - block @ basis.T @ basis, stream[..., 2 * dims :]], -1)
    assert right([Edit("layers.0.resid_post", "replace", without)]).float().mean() < 0.5
    swapped = run(model, prompts.twins, ["layers.0.state"]).values["layers.0.state"]
    edited = run(model, prompts.tokens, edits=[Edit("layers.0.state", "replace", swapped)]).logits[:, -1]
    assert (edited.argmax(-1) == prompts.wrong[:, 0]).all()


def test_the_prompts() -> None:
    task = source().task
    prompts = task.sample(300, "discovery", 3)
    for row, answer in zip(prompts.tokens.tolist(), prompts.answers[:, 0].tolist(), strict=True):
        last = [token for token in row if token < task.sizes.contents][-1]
        assert task.answer + int(task.kind[last]) == answer
        assert row[-1] == task.query
    assert {task.decode(token) for token in (0, 512, task.query, task.answer + 1)} == {"c0", "f0", "query", "class 1"}
    for changes in ({"classes": 1}, {"length": 2}, {"dims": 3}, {"contents": 9}):
        with pytest.raises(MechintError, match="do not fit; it needs"):
            dataclasses.replace(PlantedSizes(), **changes)
    with pytest.raises(MechintError, match="lower active"):
        planted(PlantedSizes(active=44.0, dims=16))


def test_recovery_of_a_perfect_dictionary_and_of_a_random_one() -> None:
    site = "layers.0.state"
    directions = torch.eye(6)
    strengths = (torch.rand(500, 6) < 0.3) * (0.5 + torch.rand(500, 6))
    perfect, random = (make(SAEConfig("relu", d_in=6, d_sae=6, site=site)) for _ in range(2))
    with torch.no_grad():
        for sae, rows in ((perfect, directions), (random, torch.nn.functional.normalize(torch.randn(6, 6), dim=1))):
            sae.W_dec.copy_(rows)
            sae.W_enc.copy_(rows.T)
    found = recovery(perfect, strengths @ directions, directions, strengths)
    assert (found["mean_cosine"], found["f1"]) == pytest.approx((1.0, 1.0))
    assert found["explained"] == pytest.approx(1.0)
    assert found["l0"] == pytest.approx(float((strengths > 0).sum(1).float().mean()))
    assert recovery(random, strengths @ directions, directions, strengths)["mean_cosine"] < 0.99


@pytest.mark.slow
def test_dictionaries_find_what_is_planted_and_not_another_models() -> None:
    rows = [row for row in score_dictionaries(100, 40_000, ("layers.0.state",)) if row["site"] == "layers.0.state"]
    found = {row["method"]: row for row in rows}
    assert set(found) == {*KINDS, "frozen decoder"}
    assert found["batch_topk"]["mean_cosine"] > 0.55 > 0.45 > found["frozen decoder"]["mean_cosine"]
    assert found["batch_topk"]["f1"] > found["frozen decoder"]["f1"]
    assert all(row["stranger_cosine"] < 0.45 and row["stranger_f1"] < 0.2 for row in rows)


@pytest.mark.slow
def test_probes_read_a_variable_where_it_is_and_not_elsewhere() -> None:
    found = {(row["site"], row["method"]): row for row in score_planted_probes(100, 96)}
    for method in ("lasso", "logistic"):
        assert found["layers.0.state", method]["accuracy"] >= 0.95
        assert found["layers.0.resid_post", method]["accuracy"] >= 0.95
        assert found["layers.0.resid_pre", method]["accuracy"] <= 0.5
        assert found["layers.0.resid_pre", method]["p"] > 0.05
    (row,) = score_probes(BLUEPRINTS["recall"]().compile(seed=100), 96, 100)
    assert row["accuracy"] >= 0.95 and row["p"] <= 0.01
    assert row["auroc"] >= 0.85
    assert row["p_shuffled"] > 0.05


def test_areas_by_hand() -> None:
    model = BLUEPRINTS["latch"]().compile(seed=100)
    curves = Curves(model.model, model.task, "channel", 16)
    mask = model.truth.mask(model.model, "channel", "counterfactual")
    total, size = len(mask), int(mask.sum())
    assert curves.sizes[0] == 1 and curves.sizes[-1] == total
    assert curves.faithful(mask, size) == pytest.approx(1.0, abs=1e-4)
    assert curves.faithful(mask, total) == 1.0
    values = [curves.faithful(mask, size) for size in curves.sizes]
    shares = [size / total for size in curves.sizes]
    steps = [(b - a) * (f + g) / 2 for a, b, f, g in zip(shares, shares[1:], values, values[1:], strict=False)]
    found = curves.of(mask)
    assert found["cpr"] == pytest.approx(sum(steps) / (shares[-1] - shares[0]))
    assert found["cmd"] == pytest.approx(1 - found["cpr"], abs=1e-3)  # it nowhere exceeds 1
    assert curves.of(-mask)["cmd"] > found["cmd"] + 0.1


def test_only_what_stands_at_the_start_is_left_out_of_collections() -> None:
    class Cycle:
        def __init__(self) -> None:
            self.own = self

    before = gc.get_freeze_count()
    old = Cycle()
    with pytest.raises(KeyError), standing():
        assert gc.get_freeze_count() > before + 10_000  # all that was imported
        gone, kept = weakref.ref(Cycle()), weakref.ref(old)
        del old
        with cost():
            pass
        assert gone() is None and kept() is not None
        raise KeyError
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize("left", ["garbage in a cycle", "blocks that the C library keeps"])
def test_the_peak_is_what_a_block_takes(left: str) -> None:
    if not reset():
        pytest.skip("no high-water mark to reset here")
    if left == "garbage in a cycle":
        garbage = [torch.ones(60 * 2**18)]
        garbage.append(garbage)  # type: ignore[arg-type]
        del garbage
    else:
        large = torch.ones(24 * 2**18)  # once freed, glibc takes blocks below this size from its heap
        del large
        many = [torch.ones(2**18) for _ in range(80)]
        above = torch.ones(2**16)  # so that these are not at the heap's end, which is given back
        del many
        assert above.numel()
    with cost() as spent:
        gc.collect()
        held = torch.ones(40 * 2**18)
        del held
    assert spent["peak_mib"] is not None and 35 < spent["peak_mib"] < 80
    assert spent["seconds"] is not None and spent["seconds"] > 0
