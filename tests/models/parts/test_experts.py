"""Mixtures of experts against a loop by hand; their edits; and files that hold all experts as one tensor."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mechint import Edit
from mechint.interventions.taps import Tap
from mechint.models.family import Names, stacked
from mechint.models.parts.experts import MixtureOfExperts, Routing
from mechint.models.parts.feed_forward import MLP, GatedMLP

X, D, M = 6, 8, 5
ROUTINGS = {
    "softmax": Routing(2),
    "softmax, normalised": Routing(3, normalised=True, scale=2.5),
    "among the chosen": Routing(2, "chosen"),
    "sigmoid": Routing(2, "sigmoid"),
    "groups": Routing(2, "sigmoid", True, 1.5, True, groups=3, chosen_groups=2),
}


def part(routing: Routing, **kwargs: object) -> MixtureOfExperts:
    torch.manual_seed(0)
    made = MixtureOfExperts(D, M, X, routing, **kwargs).double()  # type: ignore[arg-type]
    with torch.no_grad():
        made.router.weight.normal_()
        if made.router.e_score_correction_bias is not None:
            made.router.e_score_correction_bias.normal_()
    return made


def run(made: MixtureOfExperts, n: Tensor, *edits: Edit) -> tuple[Tensor, dict[str, Tensor]]:
    tap = Tap([f"layers.0.{site.name}" for site in made.sites()], edits)
    out, memory = made(n, None, tap.within("layers.0"))
    assert memory is None
    return out, {name.removeprefix("layers.0."): tensor for name, tensor in tap.values.items()}


def by_hand(made: MixtureOfExperts, n: Tensor) -> Tensor:
    """The mixture for one token [D], one number after another."""
    how = made.routing
    logits = [float(row @ n) for row in made.router.weight]
    exp = lambda x: float(torch.tensor(x, dtype=torch.float64).exp())
    if how.scores == "sigmoid":
        scores = [1 / (1 + exp(-x)) for x in logits]
    else:
        total = sum(map(exp, logits))
        scores = [exp(x) / total for x in logits]
    extra = made.router.e_score_correction_bias
    choice = [score + (0.0 if extra is None else float(extra[x])) for x, score in enumerate(scores)]
    size = X // how.groups
    groups = [range(g * size, (g + 1) * size) for g in range(how.groups)]
    strength = lambda group: sum(sorted((choice[x] for x in group), reverse=True)[:2])
    open_to = [x for group in sorted(groups, key=strength, reverse=True)[: how.chosen_groups] for x in group]
    chosen = sorted(open_to, key=lambda x: choice[x], reverse=True)[: how.chosen]
    total = sum(scores[x] for x in chosen) if how.normalised or how.scores == "chosen" else 1.0
    out = torch.zeros(D, dtype=torch.float64)
    for x in chosen:
        e = made.experts[x]
        if e.gated:
            neurons = e.activation(e.gate_proj.weight @ n) * (e.up_proj.weight @ n)
        else:
            neurons = e.activation(e.up_proj.weight @ n)
        out += how.scale * scores[x] / total * (e.down_proj.weight @ neurons)
    return out


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("name", ROUTINGS)
@torch.no_grad()
def test_a_mixture_is_the_loop_by_hand(name: str, gated: bool) -> None:
    made = part(ROUTINGS[name], gated=gated, activation="silu" if gated else "relu2")
    n = torch.randn(2, 7, D, dtype=torch.float64)
    out, sites = run(made, n)
    hand = torch.stack([torch.stack([by_hand(made, token) for token in row]) for row in n])
    assert float((out - hand).abs().max()) <= 1e-12
    assert bool(((sites["expert_weight"] != 0).sum(-1) == made.routing.chosen).all())
    assert {site.name: (2, 7, *site.units) for site in made.sites()} == {k: tuple(v.shape) for k, v in sites.items()}


@torch.no_grad()
def test_a_shared_expert_is_added_behind_its_gate_and_latent_maps_stand_around_the_others() -> None:
    n = torch.randn(2, 7, D, dtype=torch.float64)
    made = part(Routing(2), shared=GatedMLP(D, M), shared_gate=True)
    alone = part(Routing(2))
    alone.load_state_dict({k: v for k, v in made.state_dict().items() if "shared" not in k})
    gate = torch.sigmoid(n @ made.shared_expert_gate.weight.T)
    shared = gate * made.shared_expert(n, None, Tap().within("layers.0"))[0]
    out, sites = run(made, n)
    assert torch.allclose(out, run(alone, n)[0] + shared, rtol=0, atol=1e-13)
    assert torch.equal(sites["shared_out"], shared) and sites["mlp_post"].shape == (2, 7, M)
    assert "mlp_post" not in made.late and part(Routing(2), shared=MLP(D, M, "relu")).late["mlp_post"] == (
        "", "shared_expert.down_proj"
    )  # fmt: skip

    made = part(Routing(1, "sigmoid"), latent=3, latent_bias=True)
    low = made.latent_in(n)
    weight = run(made, n)[1]["expert_weight"]
    mixed = sum(weight[..., x, None] * made.experts[x](low) for x in range(X))
    assert torch.allclose(run(made, n)[0], made.latent_out(mixed), rtol=0, atol=1e-13)


@torch.no_grad()
def test_edits_take_out_an_expert_bring_one_in_and_change_the_choice() -> None:
    made = part(Routing(1))
    n = torch.randn(1, 4, D, dtype=torch.float64)
    clean, sites = run(made, n)
    first = int(sites["expert_weight"][0, 0].argmax())
    other = (first + 1) % X
    gone, _ = run(made, n, Edit("layers.0.expert_weight", "scale", 0.0, positions=[0]))
    assert not gone[0, 0].any() and torch.equal(gone[:, 1:], clean[:, 1:])
    forced, _ = run(made, n, Edit("layers.0.expert_weight", "replace", 2.0, positions=[0], units=[other]))
    assert torch.allclose(forced[0, 0], clean[0, 0] + 2 * made.experts[other](n[0, 0]), rtol=0, atol=1e-13)
    _, sites = run(made, n, Edit("layers.0.router", "add", 100.0, units=[other]))
    assert bool((sites["expert_weight"].argmax(-1) == other).all())


@torch.no_grad()
def test_a_later_choice_changes_no_bit_of_an_earlier_token() -> None:
    torch.manual_seed(1)
    made = MixtureOfExperts(12, 5, 4, Routing(2)).double()
    made.router.weight.normal_()
    n = torch.randn(2, 40, 12, dtype=torch.float64)
    clean, _ = run(made, n)
    for seed in range(20):
        torch.manual_seed(seed)
        other = torch.cat([n[:, :15], torch.randn(2, 25, 12, dtype=torch.float64)], 1)
        assert torch.equal(run(made, other)[0][:, :15], clean[:, :15])


def test_files_may_hold_experts_apart_or_as_one() -> None:
    made = part(Routing(2))
    names = Names(
        ("model.",),
        fused=(
            stacked(["experts.*.gate_proj", "experts.*.up_proj"], "experts.gate_up_proj", bare=True, sometimes=True),
            stacked(["experts.*.down_proj"], "experts.down_proj", bare=True, sometimes=True),
        ),
    )
    ours = {f"layers.0.moe.{name}": tensor.detach() for name, tensor in made.state_dict().items()}
    apart = names.plan(list(ours), "model.")
    assert apart.keys() == {f"model.{name}" for name in ours}
    together = names.plan(list(ours), "model.", {"model.layers.0.moe.experts.gate_up_proj",
                                                 "model.layers.0.moe.experts.down_proj"})  # fmt: skip
    assert together.keys() == {
        "model.layers.0.moe.router.weight", "model.layers.0.moe.experts.gate_up_proj",
        "model.layers.0.moe.experts.down_proj",
    }  # fmt: skip
    held, fused = together["model.layers.0.moe.experts.gate_up_proj"]
    assert fused is not None
    whole = fused.join([ours[name] for name in held], None)
    assert whole.shape == (X, 2 * M, D)
    assert torch.equal(whole[3], torch.cat([made.experts[3].gate_proj.weight, made.experts[3].up_proj.weight]))
    assert all(torch.equal(ours[n], piece) for n, piece in zip(held, fused.split(whole, None), strict=True))
