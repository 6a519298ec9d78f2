"""The lenses against runs by hand: last site, hand-made norms, contributions that add up in every family."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import mechint
from mechint.analyses.lens.contributions import BIAS, HeldNorm, contributions, direction_of, factors_of, held
from mechint.analyses.lens.reading import (
    MEASURES,
    LogitLens,
    depth,
    every_position_kl,
    measured,
    ranks,
    read_answers,
    read_positions,
    stream_sites,
)
from mechint.tasks import Prompts
from mechint.utils.errors import MechintError
from tests.helpers.builders import VOCABULARY, tiny_gpt2, tiny_llama, tiny_mamba, tokens

BUILDERS = [tiny_mamba, tiny_gpt2, tiny_llama]


def prompts(n: int = 5, length: int = 7, answers: int = 2, several: bool = False, seed: int = 0) -> Prompts:
    """Random prompts with random answers; with ``several`` one or two ids of each answer are right."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCABULARY, (n, answers, 4), generator=draw)
    positions = torch.randint(1, length, (n, answers), generator=draw)
    accepted = rejected = None
    if several:
        accepted, rejected = ids[..., :2].clone(), ids[..., 2:].clone()
        accepted[::2, :, 1] = rejected[1::2, :, 1] = -1
    return Prompts(
        tokens(n, length, seed), positions, ids[..., 0], None, ids[..., 2], torch.arange(n), None, accepted, rejected
    )


@pytest.mark.parametrize("build", BUILDERS)
def test_every_site_is_read_as_by_hand(build: Any) -> None:
    model, asked = build(1, dtype=torch.float64).requires_grad_(False), prompts()
    sites = stream_sites(model)
    steps = 2 if build is not tiny_mamba else 1
    assert sites[0] == "layers.0.resid_pre" and sites[-1] == "layers.1.resid_post" and len(sites) == 1 + 2 * steps
    found = read_answers(model, asked, sites, {"logit": LogitLens()})["logit"]
    full = mechint.run(model, asked.tokens, sites)
    norm, head = model.ending
    for k, site in enumerate(sites):
        for n in range(len(asked)):
            each = []
            for position, answer in zip(asked.positions[n].tolist(), asked.answers[n].tolist(), strict=True):
                said = (norm(full[site][n, position]) @ head.T).log_softmax(-1)
                model_says = full.logits[n, position].log_softmax(-1)
                order = said.argsort(descending=True).tolist()
                each.append(
                    [
                        said[answer].exp(), said[answer], torch.tensor(order.index(answer) + 1.0).double().log(),
                        torch.tensor(float(order[0] == answer)), (model_says.exp() * (model_says - said)).sum(),
                    ]
                )  # fmt: skip
            by_hand = torch.tensor(each, dtype=torch.float64).mean(0)
            torch.testing.assert_close(found[n, k], by_hand, rtol=1e-10, atol=1e-10)
    assert float(found[:, -1, MEASURES.index("kl")].abs().max()) < 1e-12
    everywhere = every_position_kl(model, asked.tokens, sites, {"logit": LogitLens()})["logit"]
    logits = [(norm(full[site]) @ head.T).log_softmax(-1) for site in sites]
    kl = torch.stack([(logits[-1].exp() * (logits[-1] - one)).sum(-1).mean(-1) for one in logits], -1)
    torch.testing.assert_close(everywhere, kl.detach())


def test_the_map_of_one_prompt_agrees_with_the_answers() -> None:
    model, asked = tiny_gpt2(2), prompts(1, answers=1)
    sites, answer, position = stream_sites(model), int(asked.answers[0, 0]), int(asked.positions[0, 0])
    entry = read_positions(model, asked.tokens[0], answer, sites, {"logit": LogitLens()}, 3)["logit"]
    found = read_answers(model, asked, sites, {"logit": LogitLens()})["logit"][0]
    assert entry["sites"] == sites
    for k in range(len(sites)):
        assert entry["answer"][k][position] == pytest.approx(float(found[k, 0]), rel=1e-5)
        assert entry["rank"][k][position] == pytest.approx(float(found[k, 2].exp()))
        assert entry["kl"][k][position] == pytest.approx(float(found[k, 4]), abs=1e-5)
        assert len(entry["top"][k][position]) == 3
        assert entry["probability"][k][position] == sorted(entry["probability"][k][position], reverse=True)
    assert entry["top"][-1][position][0] == int(model(asked.tokens)[0, position].argmax())


def test_ranks_take_the_best_id_and_no_filler() -> None:
    logits = torch.tensor([[[0.0, 3.0, 2.0, 1.0]]])
    assert ranks(logits, torch.tensor([[[3, -1]]])).item() == 3
    assert ranks(logits, torch.tensor([[[3, 2]]])).item() == 2
    assert ranks(logits, torch.tensor([[[1, 0]]])).item() == 1


def test_a_whole_answer_is_as_likely_as_the_product_of_its_tokens() -> None:
    asked = prompts(2, answers=3)
    logits = torch.randn(2, 3, VOCABULARY, dtype=torch.float64)
    each = logits.log_softmax(-1).gather(-1, asked.answers[..., None])[..., 0]
    whole = measured(logits, logits.log_softmax(-1), Prompts(**{**vars(asked), "whole": True}))
    torch.testing.assert_close(whole[:, 0], each.exp().prod(-1))
    torch.testing.assert_close(whole[:, 1], each.sum(-1))
    parts = measured(logits, logits.log_softmax(-1), asked)
    torch.testing.assert_close(parts[:, 0], each.exp().mean(-1))
    torch.testing.assert_close(parts[:, 1], each.mean(-1))


def test_depth_counts_layers_and_steps() -> None:
    sites = ["layers.0.resid_pre", "layers.0.resid_mid", "layers.0.resid_post", "layers.1.resid_post"]
    assert [depth(sites, site) for site in sites] == [0.0, 0.5, 1.0, 2.0]


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("difference", [False, True])
@pytest.mark.parametrize("build", BUILDERS)
def test_contributions_add_up_to_the_logit(build: Any, difference: bool, several: bool) -> None:
    model, asked = build(3, dtype=torch.float64), prompts(several=several)
    found = contributions(model, asked, difference)
    logits = model(asked.tokens).detach()
    for n in range(len(asked)):
        wanted = []
        for q, position in enumerate(asked.positions[n].tolist()):
            mean = lambda ids, at=position, n=n: logits[n, at, ids[ids >= 0]].mean()
            bad = asked.bad()
            assert bad is not None
            wanted.append(mean(asked.good()[n, q]) - (mean(bad[n, q]) if difference else 0.0))
        assert float(found.total[n]) == pytest.approx(float(torch.stack(wanted).mean()), rel=1e-12)
    assert found.remainder <= 1e-10
    assert (BIAS in found.parts) == (build is tiny_gpt2)


def test_prompts_go_in_pieces_where_their_logits_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = tiny_gpt2(3, dtype=torch.float64), prompts(5)
    sites = stream_sites(model)
    ask = lambda: (
        contributions(model, asked, True).values,
        read_answers(model, asked, sites, {"logit": LogitLens()})["logit"],
        every_position_kl(model, asked.tokens, sites, {"logit": LogitLens()})["logit"],
    )
    whole = ask()
    for place in ("reading", "contributions"):
        monkeypatch.setattr(f"mechint.analyses.lens.{place}.ROOM", 2 * 2 * VOCABULARY)
    for one, again in zip(whole, ask(), strict=True):
        assert len(one) == 5
        torch.testing.assert_close(one, again, rtol=1e-12, atol=1e-12)


def test_a_contribution_is_what_its_absence_takes_while_the_scale_is_held() -> None:
    """By hand on GPT-2: the part taken out of the residual stream, divided by the whole stream's deviation."""
    model, asked = tiny_gpt2(4, dtype=torch.float64), prompts(1, answers=1)
    found = contributions(model, asked, False)
    position, answer = int(asked.positions[0, 0]), int(asked.answers[0, 0])
    run = mechint.run(model, asked.tokens, ["layers.1.resid_post", "layers.0.attn_out"])
    r, x = run["layers.1.resid_post"][0, position], run["layers.0.attn_out"][0, position]
    sigma = (r.var(correction=0) + model.config.norm_eps).sqrt()
    less = (r - x) - (r - x).mean()
    without = (less / sigma * model.ln_f.weight + model.ln_f.bias) @ model.wte.weight[answer]
    expected = run.logits[0, position, answer] - without
    found_one = float(found.values[0, found.parts.index("layers.0.attn_out")])
    assert found_one == pytest.approx(float(expected.detach()), abs=1e-11)


def test_a_norm_without_a_rule_and_a_difference_without_wrong_answers_are_refused() -> None:
    with pytest.raises(MechintError, match="no rule for the final norm Linear"):
        held(nn.Linear(2, 2), torch.zeros(2))
    asked = prompts()
    with pytest.raises(MechintError, match="needs a wrong answer"):
        contributions(tiny_mamba(), Prompts(**{**vars(asked), "wrong": None}), True)


def test_as_many_of_the_likeliest_tokens_as_asked_for_whatever_the_length() -> None:
    model = tiny_gpt2(dtype=torch.float64).requires_grad_(False)
    sites, ids = stream_sites(model), tokens(1, 2)[0]
    for top, listed in ((4, 4), (VOCABULARY + 9, VOCABULARY)):
        found = read_positions(model, ids, 3, sites, {"logit": LogitLens()}, top)["logit"]
        assert {len(row) for site in found["top"] for row in site} == {listed}


@pytest.mark.parametrize("of_head", [False, True])
@pytest.mark.parametrize(("scale", "cap", "bias"), [(0.25, 3.0, True), (2.0, 3.0, False), (0.25, 0.0, True)])
def test_the_direction_of_scaled_and_capped_logits_by_hand(scale: float, cap: float, bias: bool, of_head: bool) -> None:
    """The parts and the head's bias add up to cap · tanh(scale · logit / cap), or scale · logit without a cap."""
    draw = torch.Generator().manual_seed(0)
    of = lambda *shape: torch.randn(*shape, generator=draw, dtype=torch.float64)
    norm = HeldNorm(of(3, 2, 1), of(6), bias=of(6) if bias else None)
    head, r, ids, signs = of(9, 6), of(3, 2, 6), torch.randint(0, 9, (3, 2, 2), generator=draw), of(3, 2, 2)
    added = of(9) if of_head else torch.zeros(9, dtype=torch.float64)
    model: Any = SimpleNamespace(
        ending=(None, head), logit_scale=scale, logit_cap=cap, head_bias=added if of_head else None
    )
    direction = direction_of(model, norm, r, ids, signs)
    factors = factors_of(model, norm, r, ids, signs)
    behind = norm(r) + (norm.bias if norm.bias is not None else 0)
    for n in range(3):
        for q in range(2):
            wanted = 0.0
            for token, sign in zip(ids[n, q].tolist(), signs[n, q].tolist(), strict=True):
                logit = scale * float(head[token] @ behind[n, q] + added[token])
                wanted += sign * (cap * math.tanh(logit / cap) if cap else logit)
            found = direction[n, q] @ behind[n, q] + added[ids[n, q]] @ factors[n, q]
            assert float(found) == pytest.approx(wanted, rel=1e-10)
