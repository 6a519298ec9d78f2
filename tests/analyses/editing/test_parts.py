"""The steps of an edit by hand: requests, second moments, values, scores, MEMIT's window, tracing, correlations."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import mechint
from mechint.analyses.editing import judge, localisation
from mechint.analyses.editing.edits import memit_updates, random_direction, randomised, window
from mechint.analyses.editing.judge import MEASURES, Said, ngram_entropy, scores
from mechint.analyses.editing.maps import WeightMap, changed, maps_of
from mechint.analyses.editing.moments import Moments, check_enough, moment, text_batches
from mechint.analyses.editing.options import EditConfig
from mechint.analyses.editing.requests import Asked, Request, request_of, requests_of, with_prefixes
from mechint.analyses.editing.results import correlations, harmonic
from mechint.analyses.editing.values import padded, values
from mechint.analyses.interchange import Corruption
from mechint.tasks import Prompts, TaskConfig, make_task
from mechint.utils.errors import MechintError
from mechint.utils.statistics import ClusterBootstrap
from tests.helpers.builders import tiny_gpt2, tiny_mamba, tokens

DOUBLE = torch.float64
SMALL = EditConfig(steps=4)


def asked(tokens: tuple[int, ...], answer: int, fact: int, about: tuple[int, ...] = (1,), **more: Any) -> Asked:
    return Asked(tokens, len(tokens) - 1, tokens.index(about[-1]), about, answer, fact, **more)


def some(count: int, length: int = 5) -> list[Request]:
    rows = tokens(count, length).tolist()
    return [Request(tuple(row), length - 1, 1 + k % 2, 3, 7, k) for k, row in enumerate(rows)]


# ---- requests ----------------------------------------------------------------------------------------------------


def test_prompts_of_a_fact_are_paraphrases_and_those_of_others_its_neighbourhood() -> None:
    one = asked((1, 8, 9), 5, 0, wrong=6)
    pool = [
        one, asked((7, 1, 9), 5, 0), asked((1, 8, 3), 4, 1), asked((2, 8, 9), 5, 2, (2,)), asked((3, 8, 9), 4, 3, (3,)),
        asked((4, 8, 9), 6, 4, (4,)), asked((2, 7, 9), 5, 5, (2,), answered=False), asked((1, 7, 4), 6, 6),
    ]  # fmt: skip
    [request] = requests_of([one, one], pool, 9, 10, 0)
    assert (request.old, request.new, request.subject, request.at) == (5, 6, 0, 2)
    assert [other.tokens for other in request.paraphrases] == [(7, 1, 9)]
    assert [other.tokens for other in request.neighbours] == [(2, 8, 9), (3, 8, 9)]  # the same answer comes first
    assert [other.tokens for other in request.others] == [(1, 8, 3)]  # neither the new answer's nor an unanswered one
    assert request_of(one, pool, 1, 6).neighbours == [pool[3]]
    assert requests_of([dataclasses.replace(one, answered=False)], pool, 9, 10, 0) == []
    assert requests_of([dataclasses.replace(one, wrong=None)], pool, 1, 1, 0)[0].new in {4, 6}
    assert requests_of([dataclasses.replace(one, wrong=5)], pool, 1, 1, 0)[0].new in {4, 6}
    with pytest.raises(MechintError, match="all prompts have one answer"):
        requests_of([dataclasses.replace(one, wrong=None)], [one], 1, 1, 0)


def test_tasks_say_which_prompts_are_of_one_fact() -> None:
    facts = make_task(TaskConfig(name="facts", facts=40))
    prompts = facts.sample(64, "discovery", 0)
    assert torch.equal(facts.fact(prompts), prompts.template // 8)
    row = torch.tensor([[5, 1, 2], [1, 5, 2], [1, 5, 2], [1, 6, 2]])
    subject = torch.tensor([[0, 1], [1, 2], [1, 2], [1, 2]])
    answers = torch.tensor([[3], [3], [4], [3]])
    four = Prompts(row, torch.full((4, 1), 2), answers, None, None, torch.arange(4), subject)
    found = super(type(facts), facts).fact(four).tolist()
    assert found[0] == found[1] and len(set(found)) == 3  # the subject's place does not matter, the answer does


def test_prefixes_stand_behind_the_front_and_must_fit() -> None:
    model = tiny_gpt2(1)
    [request] = with_prefixes(model, some(1), 3, 4, 0, 1)
    assert [len(row) for row in request.variants] == [5, 9, 9, 9]
    assert all(row[0] == request.tokens[0] and row[-4:] == request.tokens[1:] for row in request.variants[1:])
    assert with_prefixes(model, some(1), 3, 4, 0, 1)[0].variants == request.variants
    with pytest.raises(MechintError, match="20 positions are too many"):
        with_prefixes(model, some(1), 3, 15, 0, 1)


# ---- second moments ----------------------------------------------------------------------------------------------


def test_second_moments_are_those_of_the_site_and_are_kept_by_content(tmp_path: Path, monkeypatch: Any) -> None:
    model, text = tiny_gpt2(1, DOUBLE), [tokens(3, 6), tokens(2, 4)]
    one = maps_of(model, 0)["down_proj"]
    with torch.no_grad():
        keys = torch.cat([mechint.run(model, rows, [name])[name].flatten(0, 1) for rows in text for name in
                          ("layers.0.mlp_post",)])  # fmt: skip
    by_hand = keys.T @ keys / len(keys)
    assert torch.allclose(moment(model, one, text), by_hand, atol=1e-12)
    found = Moments(model, text, 0.1, tmp_path).of(one)
    assert torch.allclose(found, by_hand + 0.1 * by_hand.diagonal().mean() * torch.eye(len(found)))
    monkeypatch.setattr(Moments, "computed", lambda *_: pytest.fail("was kept"))
    assert torch.equal(Moments(model, text, 0.1, tmp_path).of(one), found)
    for other in (Moments(tiny_gpt2(2, DOUBLE), text, 0.1, tmp_path), Moments(model, text[:1], 0.1, tmp_path)):
        with pytest.raises(pytest.fail.Exception, match="was kept"):
            other.of(one)


def test_too_little_text_is_refused_with_how_much_is_needed() -> None:
    one = maps_of(tiny_gpt2(1), 1)["down_proj"]
    with pytest.raises(
        MechintError, match=r"layers.1.down_proj reads 20 numbers.*at least 80 tokens.*there are 79; more"
    ):
        check_enough([one], [torch.zeros(1, 79)], "more")
    check_enough([one], [torch.zeros(2, 40)], "more")
    with pytest.raises(MechintError, match="model has 24 tokens and no tokenizer"):
        text_batches(tiny_mamba(1), "topics", 100)
    rows = text_batches(tiny_mamba(1, vocab_size=256), "topics", 3000)
    assert sum(len(part) for part in rows) == 47 and all(part.shape[1] == 64 for part in rows)
    with pytest.raises(MechintError, match="64 positions are too many"):
        text_batches(tiny_gpt2(1), "topics", 100)


# ---- values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out_proj", "in_x", "x_proj", "dt_proj"])
def test_values_raise_the_new_answer_and_do_not_see_the_facts_beside(name: str) -> None:
    model, requests = tiny_mamba(1, DOUBLE).requires_grad_(False), some(3)
    one = maps_of(model, 0)[name]
    found = values(model, one, requests, dataclasses.replace(SMALL, steps=12))
    before = [said.new[0] for said in judge.said_of(model, requests)]
    assert all(float(after) > was for after, was in zip(found.chance, before, strict=True))
    for k, request in enumerate(requests):
        alone = values(model, one, [request], dataclasses.replace(SMALL, steps=12))
        assert torch.allclose(alone.shifts[0], found.shifts[k], atol=1e-5)
        assert torch.allclose(alone.keys[0], found.keys[k], atol=1e-12)
    small = values(model, one, requests, dataclasses.replace(SMALL, steps=12, clamp=0.05))
    ratio = small.shifts.norm(dim=1) / found.shifts.norm(dim=1)
    assert float(ratio.max()) < 1 and torch.isfinite(small.shifts).all()


def test_a_key_is_the_mean_over_prefixes_and_padding_changes_nothing() -> None:
    model = tiny_mamba(1, DOUBLE).requires_grad_(False)
    one, [request] = maps_of(model, 1)["out_proj"], with_prefixes(model, some(1), 2, 3, 0, 0)
    with torch.no_grad():
        rows = [torch.tensor([row]) for row in request.variants]
        keys = [mechint.run(model, row, ["layers.1.gated"])["layers.1.gated"][0, row.shape[1] - 5 + 1] for row in rows]
    found = values(model, one, [request], SMALL)
    assert torch.allclose(found.keys[0], torch.stack(keys).mean(0), atol=1e-12)
    assert padded([[1], [2, 3]]).tolist() == [[1, 0], [2, 3]]


# ---- scores ------------------------------------------------------------------------------------------------------


def test_scores_are_counterfacts() -> None:
    one = asked((1, 2), 3, 0)
    request = Request((1, 2), 1, 0, 3, 4, 0, [one, one], [one], [one, one])
    before = Said(*(np.array(v, dtype=float) for v in ([0.2] + [0.1] * 5, [0.6] * 6, [0] * 6, [1] * 6)))
    new, own = [0.6, 0.5, 0.1, 0.3, 0.2, 0.2], [0.1, 0.2, 0.6, 0.4, 0.5, 0.6]
    after = Said(np.array(new), np.array(own), np.array([1.0, 1, 0, 0, 0, 0]), np.array([0.0, 0, 1, 1, 1, 0]))
    found = dict(zip(MEASURES, scores(request, before, after, (1.0, 0.5)), strict=True))
    assert found == pytest.approx({
        "efficacy": 1, "magnitude": 0.5, "accuracy": 1, "rewrite": 0.5, "paraphrase": 0.5,
        "paraphrase_magnitude": (0.3 - 0.5) / 2, "paraphrase_rewrite": (0.4 / 0.9 + 0.0) / 2, "neighbourhood": 1,
        "neighbourhood_magnitude": 0.1, "kept": 1, "subject_kept": 0.5, "fluency": 0.5, "fluency_change": -0.5,
        "gain": 0.4, "paraphrase_gain": (0.4 + 0.0) / 2,
    }, abs=1e-6)  # fmt: skip
    bare = Request((1, 2), 1, 0, 3, 4, 0)
    cut = lambda said: Said(*(part[:1] for part in said))
    alone = dict(zip(MEASURES, scores(bare, cut(before), cut(after)), strict=True))
    assert math.isnan(alone["paraphrase"]) and math.isnan(alone["kept"]) and alone["efficacy"] == 1
    # behind a prompt that says the new answer already, the rewrite score has no lower bound
    sure, gone = (Said(*(np.array([v]) for v in (new, 0.0, 1.0, 0.0))) for new in (0.999, 0.499))
    lost = dict(zip(MEASURES, scores(bare, sure, gone), strict=True))
    assert lost["rewrite"] == pytest.approx(-500) and lost["gain"] == pytest.approx(-0.5)
    assert harmonic(np.array([0.5]), np.array([1.0]), np.array([1.0]))[0] == pytest.approx(0.75)
    assert harmonic(np.array([0.0]), np.array([1.0]), np.array([1.0]))[0] == 0


def test_fluency_is_the_entropy_of_bigrams_and_trigrams() -> None:
    assert ngram_entropy([5] * 9) == 0
    assert ngram_entropy([1, 2, 1, 2, 1]) == pytest.approx((2 / 3 * 1 + 4 / 3 * (-(2 / 3) * math.log2(2 / 3)
                                                            - 1 / 3 * math.log2(1 / 3))) / 2)  # fmt: skip
    model = tiny_mamba(1)
    assert judge.fluencies(model, some(2), 6, 0) == judge.fluencies(model, some(2), 6, 0)
    assert math.isnan(judge.fluencies(model, some(1), 0, 0)[0])


def test_controls_have_the_size_of_the_edit() -> None:
    direction = torch.arange(1.0, 6.0, dtype=DOUBLE)
    aside = random_direction(direction, 1)
    assert float(aside.norm()) == pytest.approx(float(direction.norm())) and not torch.equal(aside, direction)
    update = torch.randn(4, 5, dtype=DOUBLE)
    turned = randomised(update, 1)
    assert torch.allclose(turned @ turned.T, update @ update.T) and not torch.allclose(turned, update)


# ---- MEMIT -------------------------------------------------------------------------------------------------------


def streams(model: Any, one: WeightMap, requests: list[Request]) -> torch.Tensor:
    with torch.no_grad():
        rows = torch.tensor([request.tokens for request in requests])
        found = mechint.run(model, rows, [one.stream])[one.stream]
    return torch.stack([found[k, request.subject] for k, request in enumerate(requests)])


@pytest.mark.parametrize("family", [tiny_gpt2, tiny_mamba])
def test_memit_brings_every_fact_to_its_stream_over_several_layers(family: Any) -> None:
    model, requests = family(1, DOUBLE, n_layer=3).requires_grad_(False), some(3)
    name = "down_proj" if family is tiny_gpt2 else "out_proj"
    every = [maps_of(model, layer)[name] for layer in range(3)]
    maps = window(every[1], every, 5)
    assert [one.layer for one in maps] == [0, 1] and window(every[2], every, 2) == every[1:]
    found = values(model, maps[-1], requests, SMALL)
    before = streams(model, maps[-1], requests)
    moments = [torch.eye(one.width, dtype=DOUBLE) for one in maps]
    updates = memit_updates(model, maps, requests, moments, found, 1e-9)
    assert [one.layer for one, _ in updates] == [0, 1] and all(float(update.norm()) > 0 for _, update in updates)
    assert torch.equal(streams(model, maps[-1], requests), before)
    with changed(updates):
        after = streams(model, maps[-1], requests)
    assert torch.allclose(after, before + found.shifts, atol=1e-6)
    with changed(updates[:1]):  # the first of two layers makes up half of it, where later layers change little
        half = ((streams(model, maps[0], requests) - before) * found.shifts).sum()
    assert float(half) != 0


# ---- tracing and correlations ------------------------------------------------------------------------------------


def test_effects_are_what_the_clean_value_at_the_subjects_last_token_brings_back() -> None:
    model = tiny_mamba(1, DOUBLE).requires_grad_(False)
    rows, twins = tokens(4, 5), (tokens(4, 5) + 3) % 24
    subject = torch.tensor([[0, 2], [1, 3], [0, 2], [1, 3]])
    prompts = Prompts(rows, torch.full((4, 1), 4), tokens(4, 1), twins, tokens(4, 1), torch.arange(4), subject)
    requests = [Request(tuple(rows[k].tolist()), 4, int(subject[k, 1]) - 1, 3, 7, k) for k in (3, 0)]
    corruption = Corruption("twin")
    found = localisation.effects(model, requests, [prompts], ["out", "resid_post"], corruption, "answer_prob", 1, 64)
    for n, k in enumerate((3, 0)):
        place = int(subject[k, 1]) - 1
        for kind, effects in (("out", found["out"]), ("resid_post", found["resid_post"])):
            site = f"layers.0.{kind}"
            with torch.no_grad():
                clean = mechint.run(model, rows[k : k + 1], [site])[site][:, place : place + 1]
                put = mechint.Edit(site, "replace", clean, positions=[place])
                chance = lambda edits, k=k: (
                    mechint.run(model, twins[k : k + 1], edits=edits)
                    .logits[0, 4]
                    .softmax(-1)[int(prompts.answers[k, 0])]
                )
                assert float(effects[n, 0]) == pytest.approx(float(chance([put]) - chance([])), abs=1e-12)


def test_correlations_are_spearmans() -> None:
    random = np.random.default_rng(0)
    effect, score = random.normal(size=(12, 5)), random.normal(size=(12, 5)).round(1)
    bootstrap = ClusterBootstrap(range(12), 200, 0, "facts")
    each, mean = localisation.facts_correlation(bootstrap, effect, score)
    by_hand = [spearmanr(effect[:, k], score[:, k]).statistic for k in range(5)]
    assert each.value == pytest.approx(by_hand) and float(mean.value) == pytest.approx(np.mean(by_hand))
    over = localisation.layers_correlation(bootstrap, effect, score)
    assert float(over.value) == pytest.approx(spearmanr(effect.mean(0), score.mean(0)).statistic)
    every = localisation.all_correlation(bootstrap, effect, score)
    assert float(every.value) == pytest.approx(spearmanr(effect.flatten(), score.flatten()).statistic)
    assert float(every.low) < float(every.value) < float(every.high)
    flat = effect.copy()
    flat[:, 4] = 0  # the last layer, which nothing behind it reads
    each, mean = localisation.facts_correlation(bootstrap, flat, score)
    assert np.isnan(each.value[4]) and float(mean.value) == pytest.approx(np.mean(by_hand[:4]))
    same, _ = localisation.facts_correlation(bootstrap, effect, effect**3)
    assert same.value == pytest.approx(np.ones(5))


def test_correlations_are_over_the_facts_that_have_the_measure() -> None:
    """Three of twelve facts have no paraphrases and four no neighbours: each measure leaves out its own."""
    random = np.random.default_rng(1)
    linear = torch.nn.Linear(2, 2)
    maps = [WeightMap("down_proj", layer, linear, slice(None), f"layers.{layer}.mlp_out", True) for layer in range(4)]
    effects = {"mlp_out": random.normal(size=(12, 4)), "resid_post": random.normal(size=(12, 4))}
    tables = {one: random.normal(size=(12, len(MEASURES))) for one in maps}
    lacking = {"rewrite": [], "paraphrase_rewrite": [0, 5, 7], "neighbourhood_magnitude": [1, 2, 3, 11]}
    for table in tables.values():
        for measure, facts in lacking.items():
            table[facts, MEASURES.index(measure)] = math.nan
    bootstrap = ClusterBootstrap(range(12), 100, 0, "facts")
    rows, within = correlations(
        bootstrap, {one: {"edit": torch.from_numpy(table)} for one, table in tables.items()}, effects
    )
    assert len(rows) == 2 * 3 * 3 and len(within) == 2 * 3 * 4
    for row in rows:
        there = [k for k in range(12) if k not in lacking[row["measure"]]]
        effect = effects[row["site"]][there]
        score = np.stack([tables[one][there, MEASURES.index(row["measure"])] for one in maps], 1)
        by_hand = {
            "layers": lambda a, b: spearmanr(a.mean(0), b.mean(0)).statistic,
            "facts": lambda a, b: np.mean([spearmanr(a[:, k], b[:, k]).statistic for k in range(4)]),
            "all": lambda a, b: spearmanr(a.flatten(), b.flatten()).statistic,
        }[row["over"]](effect, score)
        assert row["correlation"]["value"] == pytest.approx(by_hand) and row["correlation"]["n"] == len(there)
