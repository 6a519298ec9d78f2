"""Compiled models of the newer memories: answers, logits by hand, truths against ablations, and files."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import mechint
from mechint.analyses.circuits.methods.gradients import activation_magnitude, gradient_x_activation
from mechint.analyses.circuits.methods.weights import weight_magnitude
from mechint.ground_truth import FAMILIES, MEMORIES, Asked, Compiled, GroundTruth, answers, score_units, verify
from mechint.ground_truth.blueprint import GAIN
from mechint.ground_truth.memories.delta_rules import DeltaParity, DeltaRecall
from mechint.ground_truth.memories.hybrid import HybridSections
from mechint.ground_truth.memories.mamba2 import Mamba2Latch, Mamba2Recall
from mechint.ground_truth.memories.models import StackBlueprint
from mechint.ground_truth.memories.prompts import Rewritten, Sections, Switches
from mechint.ground_truth.memories.roles import DeltaDigits, LastOfRole
from mechint.ground_truth.truth import margins
from mechint.interventions.edits import Edit
from mechint.interventions.run import run
from mechint.interventions.units import Units, units_named
from mechint.models.loading.load import hf_config, to_hf_state_dict
from mechint.models.stack import Stack
from mechint.scorecard import METHODS, ScorecardConfig
from mechint.scorecard.card import is_asked, scored, within_layers
from mechint.scorecard.hard.cheap import gradient_size, reach
from mechint.scorecard.methods import Budget, evaluator_of
from mechint.scorecard.probes import speakers
from mechint.scorecard.traces import positions, random_model
from mechint.tasks import Prompts
from mechint.utils.errors import MechintError

NAMES = list(MEMORIES)


@functools.cache
def compiled(name: str, seed: int = 3) -> Compiled:
    found: Compiled = MEMORIES[name]().compile(seed=seed)
    found.model.requires_grad_(False)
    return found


# ---- what they answer --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_answer_is_right(name: str) -> None:
    for seed in (3, 4):
        model = compiled(name, seed)
        found = answers(model.model, model.task, 300, 100)
        assert found.accuracy == 1.0
        assert found.margin >= model.truth.margin


def pairs(task: Any, tokens: list[int]) -> Callable[[int], int]:
    """What a dictionary of keys and values answers to the token at a place."""
    table: dict[int, int] = {}
    for before, token in itertools.pairwise(tokens):
        if before < task.keys <= token:
            table[before] = token
    return lambda place: table[tokens[place]]


def latch(task: Any, tokens: list[int]) -> Callable[[int], int]:
    last = max(place for place, token in enumerate(tokens) if token == task.marker)
    return lambda place: tokens[last + 1]


def switches(task: Any, tokens: list[int]) -> Callable[[int], int]:
    begins = tokens[0] - task.start
    return lambda place: task.state + (begins + tokens[: place + 1].count(tokens[place])) % 2


def sections(task: Any, tokens: list[int]) -> Callable[[int], int]:
    symbols, tag = {}, -1
    for token in tokens:
        if task.tag <= token < task.query:
            tag = token - task.tag
        elif token < task.symbols:
            symbols[tag] = token
    return lambda place: symbols[tokens[place] - task.query]


def last_of_role(task: Any, tokens: list[int]) -> Callable[[int], int]:
    return lambda place: [token for token in tokens[: task.body] if token // task.symbols == task.role][-1]


BY_HAND: dict[str, Callable[[Any, list[int]], Callable[[int], int]]] = {
    "mamba2_recall": pairs, "mamba2_latch": latch, "delta_recall": pairs, "delta_parity": switches,
    "delta_letters": last_of_role, "delta_digits": last_of_role, "hybrid_sections": sections,
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_logits_in_float64_are_those_of_the_algorithm(name: str) -> None:
    """A program on dictionaries: 1 for the token that stands there, the gain for the answer, 0 for all others.

    What is off is said by the models: half a unit of the constants in the norms of keys and read-outs, e^-16 of decay,
    and echoes of traps, whose slope multiplies them.
    """
    model = MEMORIES[name]().compile(seed=5)
    assert isinstance(model.model, Stack)
    double, prompts = model.model.double(), model.task.sample(40, "evaluation", 1)
    _, logits = margins(double, prompts)
    wanted = torch.zeros_like(logits)
    for n, tokens in enumerate(prompts.tokens.tolist()):
        say = BY_HAND[name](model.task, tokens)
        for q, place in enumerate(prompts.positions[n].tolist()):
            wanted[n, q, tokens[place]] += 1.0
            said = say(place)
            assert said == int(prompts.answers[n, q])
            wanted[n, q, said] += GAIN
            if name == "delta_parity":  # the other state is denied
                wanted[n, q, 2 * model.task.state + 1 - said] -= GAIN  # type: ignore[attr-defined]
    assert float((logits - wanted).abs().max()) < {"mamba2_latch": 0.03}.get(name, 6e-3)


@pytest.mark.parametrize("name", NAMES)
def test_twins_have_other_answers_that_are_right_for_them(name: str) -> None:
    model = compiled(name)
    prompts = model.task.sample(200, "train", 7)
    assert prompts.twins is not None and prompts.wrong is not None
    assert (prompts.answers != prompts.wrong).all()
    if isinstance(model.task, Sections):
        symbols = prompts.tokens < model.task.symbols
        assert (prompts.tokens != prompts.twins)[symbols].all()
    swapped = dataclasses.replace(prompts, tokens=prompts.twins, answers=prompts.wrong)
    assert float(margins(model.model, swapped)[0].min()) >= model.truth.margin


# ---- what is true of them ----------------------------------------------------------------------------------------


@pytest.mark.slow_except("delta_parity")
@pytest.mark.parametrize("name", NAMES)
def test_a_truth_stands_up_to_ablations(name: str) -> None:
    """Every declared unit matters, and removing all others at once changes next to nothing."""
    model = compiled(name)
    found = verify(model.model, model.truth, model.task, 500, "discovery")
    assert {part.name for part in model.truth.parts} <= set(found)
    kinds = {part.kind for part in model.truth.parts} - {"write", "source", "decay", "erase"}
    assert {f"idle {kind}, zero" for kind in kinds} <= set(found)
    assert {"ssm_head", "ssm_channel", "ssm_mode", "layer"} <= kinds


def test_a_truth_that_leaves_out_a_unit_or_adds_one_is_contradicted() -> None:
    model = compiled("delta_parity")
    truth, channel = model.truth, next(part for part in model.truth.parts if part.kind == "ssm_channel")
    truth = dataclasses.replace(truth, parts=tuple(part for part in truth.parts if part.kind == "ssm_channel"))
    less = dataclasses.replace(truth, parts=tuple(part for part in truth.parts if part is not channel))
    units = Units(model.model, model.model.unit_kinds["ssm_channel"])
    masks = units.by_layer(truth.mask(model.model, "ssm_channel"))
    layer, (head, value) = units.numbers[0], (masks[0] == 0).nonzero()[0].tolist()
    more = dataclasses.replace(channel, layer=layer, unit=(head, value))
    check = lambda one: verify(model.model, one, model.task, 64)
    with pytest.raises(MechintError, match=r"declared idle \(ssm_channel, zero\) changes a logit"):
        check(less)
    with pytest.raises(MechintError, match="the declared truth is wrong"):
        check(dataclasses.replace(truth, parts=(*truth.parts, more)))


def right(model: Compiled, prompts: Prompts, edits: list[Edit], asked: Asked | None = None) -> float:
    counted = (asked or Asked()).of(prompts)
    return float((margins(model.model, prompts, edits)[0] > 1.0)[counted].float().mean())


def test_parity_needs_an_eigenvalue_of_minus_one() -> None:
    """With write strengths of at most 1 (half of what is erased) a flip clears a switch, and nothing can be said."""
    model = compiled("delta_parity")
    [part] = [part for part in model.truth.parts if part.kind == "erase"]
    prompts = model.task.sample(64, "train", 0)
    site = f"layers.{part.layer}.erase"
    assert right(model, prompts, [Edit(site, "scale", 0.5)]) == 0.0
    used = [unit for kind, unit in ((p.kind, p.unit) for p in model.truth.parts) if kind == "ssm_head"]
    beta = run(model.model, prompts.tokens, record=[f"layers.{part.layer}.beta"])[f"layers.{part.layer}.beta"]
    assert torch.equal(beta[:, 1:, [h for (h,) in used]], torch.full_like(beta[:, 1:, : len(used)], 2.0))


def test_the_later_value_counts_because_a_write_erases() -> None:
    model = compiled("delta_recall")
    [part] = [part for part in model.truth.parts if part.kind == "erase"]
    prompts, again = model.task.sample(64, "train", 0), Asked(rewritten=True)
    assert 0.3 < float(again.of(prompts).float().mean()) < 0.9
    removed = part.removal(model.model, prompts)
    assert right(model, prompts, removed, again) == 0.0
    once = ~again.of(prompts)
    assert bool((margins(model.model, prompts, removed)[0] > 1.0)[once].all())


def test_rewritten_by_hand() -> None:
    prompts = Prompts(
        torch.tensor([[0, 8, 1, 9, 0, 9, 0, 1, 0]]), torch.tensor([[6, 7, 8]]), torch.tensor([[9, 9, 9]]), None, None,
        torch.zeros(1, dtype=torch.long),
    )  # fmt: skip
    assert Asked(rewritten=True).of(prompts).tolist() == [[True, False, True]]


def test_a_channel_in_two_roles_is_of_both_circuits_and_its_modes_of_one() -> None:
    """The same weights in both roles; of nine channels three are in both circuits and three in each one alone."""
    letters, digits = compiled("delta_letters"), compiled("delta_digits")
    weights = ([*model.model.state_dict().values()] for model in (letters, digits))
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    units = lambda kind: [set(model.truth.units(kind)) for model in (letters, digits)]
    first, second = units("ssm_channel")
    assert (len(first & second), len(first - second), len(second - first)) == (3, 3, 3)
    for kind in ("ssm_mode", "mlp"):
        first, second = units(kind)
        assert not first & second
    # without a shared channel's mode of one role, the other role's answers stay right
    shared = [unit for _, unit in set.intersection(*units("ssm_channel"))]
    prompts = digits.task.sample(64, "train", 0)
    for part in letters.truth.parts:
        if part.kind == "ssm_mode" and (part.unit[0], part.unit[2]) in shared:
            assert right(digits, prompts, part.removal(digits.model, prompts)) == 1.0


def test_the_hybrid_needs_its_recurrence_and_its_attention() -> None:
    """Without either no answer is right; with the tags of the twin in the recurrence alone, the answer is another."""
    model = compiled("hybrid_sections")
    prompts = model.task.sample(64, "train", 0)
    for kind in ("ssm_head", "head"):
        [part] = [part for part in model.truth.parts if part.kind == kind]
        assert right(model, prompts, part.removal(model.model, prompts)) == 0.0
    [part] = [part for part in model.truth.parts if part.kind == "ssm_head"]
    site, task = f"layers.{part.layer}.y", model.task
    assert prompts.twins is not None and isinstance(task, Sections)
    with torch.no_grad():
        theirs = run(model.model, prompts.twins, record=[site])[site]
    edit = Edit(site, "replace", theirs[:, :, part.unit[0]].unsqueeze(2), units=part.unit)
    logits = run(model.model, prompts.tokens, edits=[edit], logits_at=prompts.positions).logits
    symbols = prompts.tokens[:, : task.sections * (1 + task.room)]
    here = symbols.unflatten(1, (task.sections, -1))  # [n, section, token]
    of_section = here.masked_fill(here >= task.symbols, 0).sum(-1)
    place = (prompts.answers.unsqueeze(-1) == of_section.unsqueeze(1)).int().argmax(-1)  # [n, Q]
    earlier = of_section.gather(1, (place - 1) % task.sections)
    assert torch.equal(logits.argmax(-1), earlier)


@pytest.mark.parametrize("name", NAMES)
def test_no_cheap_ranking_is_exact(name: str) -> None:
    model = compiled(name)
    mask = model.truth.mask(model.model, model.unit)
    evaluator = evaluator_of(model.model, model.task, "zero", Budget(int(mask.sum()), 64, 16, 60, model.unit), 32, 32)
    cheap = {
        "weights": reach(model.model),
        **{way.__name__: way(evaluator) for way in (gradient_size, gradient_x_activation, activation_magnitude)},
    }
    scores = {way: score_units(mask, values) for way, values in cheap.items()}
    assert {way: score.auroc for way, score in scores.items() if score.exact or score.auroc > 0.98} == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["delta_parity", "hybrid_sections"])
def test_a_method_that_patches_single_units_finds_the_circuit(name: str) -> None:
    model = compiled(name, 100)
    found = scored(model, "causal_necessary", METHODS["causal_necessary"], ScorecardConfig(patch_prompts=32))
    assert (found["auroc"], found["exact"]) == (1.0, True)


def test_methods_are_asked_of_the_kinds_that_they_rank() -> None:
    asked = {name: {key for key, method in METHODS.items() if is_asked(method, compiled(name))} for name in NAMES}
    assert all({"search_mean", "patching_noise", "reach", "weight_magnitude"} <= keys for keys in asked.values())
    assert not any({"delta_gradient", "rollout"} & keys for keys in asked.values())
    assert "atp_star" not in asked["hybrid_sections"] and "atp_star" in asked["delta_recall"]  # turned queries


def test_sizes_of_weights_are_of_a_value_channel_s_own() -> None:
    """By hand, of the second channel of the second head; of an attention head beside it, its key and its value."""
    size = lambda *own: sum(float(part.square().sum()) for part in own) ** 0.5
    for name in ("mamba2_latch", "delta_recall", "hybrid_sections"):
        model = compiled(name).model
        found = weight_magnitude(
            evaluator_of(model, compiled(name).task, "zero", Budget(1, 4, 4, 10, model.scored_unit), 4)
        )
        units = units_named(model, model.scored_unit)
        assert len(found) == units.total
        for row in units.by_row:
            [part] = (
                part
                for part in model.parts_of(row.layer).values()
                if hasattr(part, "out_proj" if row.kind.name != "kv" else "o_proj")
            )
            if row.kind.name == "kv":
                first, second = found[row.start], found[row.start + row.size // 2]
                assert float(first) == pytest.approx(size(part.k_proj.weight[0]))
                assert float(second) == pytest.approx(size(part.v_proj.weight[0]))
                continue
            e, inner = part.value_size + 1, part.heads * part.value_size
            if name == "mamba2_latch":
                own = (part.in_proj.weight[e], part.in_proj.weight[inner + e], part.conv1d.weight[e])
            else:
                v = 2 * part.key_heads * part.key_size + e
                own = (part.in_proj_qkv.weight[v], part.in_proj_z.weight[e], part.conv1d.weight[v])
            assert float(found[row.start + e]) == pytest.approx(size(*own, part.out_proj.weight[:, e]))


@pytest.mark.parametrize("name", NAMES)
def test_probes_look_where_the_circuit_says_its_answers(name: str) -> None:
    """Without the channels there that say answers, at most half of the answers are right."""
    model = compiled(name)
    site, says = speakers(model)
    kept = (~says).float().view(model.model.sites[site].units)
    prompts = model.task.sample(64, "train", 0)
    assert right(model, prompts, []) == 1.0
    assert right(model, prompts, [Edit(site, "scale", kept)]) <= 0.5
    assert says.sum() < len(says) / 2


def test_places_of_traces() -> None:
    assert positions(compiled("mamba2_latch"), 4) == {"write": 1.0, "state": 1.0}
    assert positions(compiled("hybrid_sections"), 8) == {}  # layers that remember in two ways


# ---- kinds side by side, and random weights ----------------------------------------------------------------------


def test_units_are_numbered_by_kind_layer_and_place() -> None:
    model = compiled("hybrid_sections").model
    units = units_named(model, "ssm_channel+kv")
    number = 0
    for row in units.by_row:
        for place in torch.cartesian_prod(*(torch.arange(size) for size in row.shape)).tolist():
            assert units.number(row.kind.name, row.layer, tuple(place)) == number
            number += 1
    assert number == units.total
    heads = Units(model, model.unit_kinds["head"])
    [attends] = [i for i, kind in enumerate(model.config.kinds) if kind == "attention"]
    assert heads.number("head", attends, (1,)) == 1
    for kind, layer, unit in (("head", 1 - attends, (0,)), ("head", attends, (99,)), ("kv", attends, (0,))):
        with pytest.raises(MechintError, match=rf"layer {layer} has no unit .* of the kind '{kind}'"):
            heads.number(kind, layer, unit)


@pytest.mark.parametrize("name", ["delta_recall", "hybrid_sections"])
def test_random_weights_rank_nothing(name: str) -> None:
    known = compiled(name)
    random = dataclasses.replace(known, model=random_model(known.model, 0))
    assert float(margins(random.model, known.task.sample(8, "train", 0))[1].abs().max()) > 0.1
    found = within_layers(random, METHODS["reach"], ScorecardConfig())
    assert 0.1 < found < 0.9
    assert answers(known.model, known.task, 8).accuracy == 1.0  # the compiled one is left as it was


# ---- sizes, noise and files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_least_size_is_enough(name: str) -> None:
    blueprint = MEMORIES[name]()
    model = blueprint.compile(blueprint.least())
    assert answers(model.model, model.task, 100).accuracy == 1.0
    with pytest.raises(MechintError, match=rf"compiled {name}.*too small; it needs at least n_layer"):
        blueprint.compile(dataclasses.replace(blueprint.least(), n_layer=0))


SHAPES: list[StackBlueprint] = [
    Mamba2Recall(keys=6, values=11, pairs=3, queries=2),
    Mamba2Latch(symbols=11, length=33),
    DeltaRecall(keys=9, values=5, pairs=5, again=5, queries=6),
    DeltaParity(switches=3, flips=30),
    DeltaDigits(symbols=5, shared=5, length=20),
    HybridSections(symbols=6, tags=7, sections=4, room=5, queries=3),
]


@pytest.mark.parametrize("blueprint", SHAPES, ids=lambda blueprint: blueprint.name)
def test_other_sizes_of_task(blueprint: StackBlueprint) -> None:
    model = blueprint.compile(seed=1)
    found = answers(model.model, model.task, 200)
    assert found.accuracy == 1.0
    assert found.margin >= model.truth.margin


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (lambda: Rewritten(4, 4, 3, 4, 2), "4 of 3 pairs again"),
        (lambda: Rewritten(4, 1, 3, 1, 2), "1 values leave nothing"),
        (lambda: Rewritten(4, 4, 2, 1, 2), "are too few prompts"),
        (lambda: Switches(2, 5), "are too few prompts"),
        (lambda: LastOfRole(0, 2, 3), "are too few prompts"),
        (lambda: Sections(8, 3, 4, 4, 2), "4 sections of 3 tags"),
        (lambda: Sections(4, 3, 3, 4, 2), "3 sections of 3 tags and 4 symbols"),
        (lambda: Sections(8, 3, 2, 1, 2), "are too few prompts"),
    ],
)
def test_tasks_that_cannot_be_asked_are_refused(task: Callable[[], Any], message: str) -> None:
    with pytest.raises(MechintError, match=message):
        task()


def test_heads_that_do_not_fit_the_stream_are_refused() -> None:
    blueprint = Mamba2Recall()
    size = blueprint.least()
    with pytest.raises(MechintError, match=rf"{size.heads + 2} heads of 8 channels beside a stream of {size.d_model}"):
        blueprint.compile(dataclasses.replace(size, heads=size.heads + 2))


def test_seeds_place_it_elsewhere() -> None:
    one, other = compiled("hybrid_sections", 3), compiled("hybrid_sections", 4)
    again = MEMORIES["hybrid_sections"]().compile(seed=3)
    same: list[Tensor] = [*one.model.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(same, again.model.state_dict().values(), strict=True))
    assert one.truth == again.truth != other.truth
    assert isinstance(one.truth, GroundTruth)


def test_noise_that_takes_the_margin_is_refused() -> None:
    with pytest.raises(MechintError, match="noise"):
        DeltaRecall().compile(seed=0, noise=1.0)


@pytest.mark.slow_except("mamba2_.*|delta_.*")
@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_is_an_ordinary_checkpoint_of_its_family(name: str, tmp_path: Path) -> None:
    model = compiled(name)
    save_file({key: value.contiguous() for key, value in to_hf_state_dict(model.model).items()},
              tmp_path / "model.safetensors", {"format": "pt"})  # fmt: skip
    config = hf_config(model.model)
    assert config["model_type"].startswith(FAMILIES[name])
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = mechint.load(tmp_path)
    assert isinstance(loaded, Stack)
    prompts = model.task.sample(16, "evaluation", 0)
    with torch.no_grad():
        assert torch.equal(loaded(prompts.tokens), model.model(prompts.tokens))
