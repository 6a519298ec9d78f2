"""Compiled models: what they answer, what is true of them, and whether methods find it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mechint
from mechint.analyses.circuits.ssm import SSMCircuitAnalyzer, SSMCircuitConfig
from mechint.analyses.loader import PromptLoader
from mechint.ground_truth import (
    BLUEPRINTS,
    Asked,
    Compiled,
    GroundTruth,
    Part,
    Size,
    Where,
    answers,
    score_method,
    score_units,
    verify,
)
from mechint.ground_truth.mamba.models import Induction, Latch, MostRecent, Recall, SelectiveCopy, Shift
from mechint.ground_truth.prompts import Latch as LatchTask
from mechint.interventions.unit_kinds import SSM_UNITS
from mechint.interventions.units import Units
from mechint.models.loading.load import from_state_dict, hf_config, to_hf_state_dict
from mechint.tasks import TaskConfig
from mechint.utils.errors import MechintError
from tests.helpers.baselines import baseline_scores
from tests.helpers.examples import examples

NAMES = list(BLUEPRINTS)
EXACT = 1e-3


def compiled(name: str, **options: Any) -> Compiled:
    return BLUEPRINTS[name]().compile(**options)  # type: ignore[abstract]


@pytest.mark.slow_except("recall")
@pytest.mark.parametrize("name", NAMES)
def test_every_answer_of_ten_thousand_prompts_is_right(name: str) -> None:
    model = compiled(name)
    found = answers(model.model, model.task, 10_000)
    assert found.prompts == 10_000
    assert found.accuracy == 1.0
    assert found.margin >= model.truth.margin


SPLITS = {"train": ("shift", "recall"), "discovery": NAMES, "evaluation": ("recall", "latch")}
"""Models whose truth is held against the prompts of a split; the others are exhaustive, since splits differ in
templates alone."""


@pytest.mark.slow_except("evaluation-recall|discovery-count|train-shift")
@pytest.mark.parametrize(
    ("split", "name"),
    [
        pytest.param(split, name, marks=[pytest.mark.exhaustive] * (name not in few))
        for split, few in SPLITS.items()
        for name in NAMES
    ],
)
def test_the_truth_stands_up_to_ablations(split: str, name: str) -> None:
    """In every split: a method that sees only discovery prompts can find every part."""
    model = compiled(name, seed=3)
    found = verify(model.model, model.truth, model.task, split=split)
    assert {part.name for part in model.truth.parts} <= set(found)
    assert max(change for what, change in found.items() if what.startswith("idle")) < EXACT
    assert {"idle channel, zero", "idle channel, resample", "idle tap, layer 0", "idle layer, zero"} <= set(found)


@pytest.mark.parametrize("name", NAMES)
def test_the_least_size_is_enough_and_nothing_less(name: str) -> None:
    blueprint = BLUEPRINTS[name]()  # type: ignore[abstract]
    least = blueprint.least()
    model = blueprint.compile(least)
    assert answers(model.model, model.task, 200).accuracy == 1.0
    for field, size in dataclasses.asdict(least).items():
        with pytest.raises(MechintError, match=rf"compiled {name}.*too small; it needs at least {field} {size} \(it"):
            blueprint.compile(dataclasses.replace(least, **{field: size - 1}))


SHAPES: list[Any] = [
    Shift(symbols=5, length=9, by=3),
    Latch(symbols=4, length=31),
    MostRecent(symbols=3, length=40),
    SelectiveCopy(TaskConfig(name="selective_copy", pairs=6, values=3, length=40)),
    SelectiveCopy(TaskConfig(name="selective_copy", pairs=2, values=20, length=12)),
    Induction(TaskConfig(name="induction", keys=16, length=48)),
    Recall(TaskConfig(name="recall", pairs=4, keys=16, values=16)),
    Recall(TaskConfig(name="recall", pairs=8, keys=12, values=5)),
]


@pytest.mark.parametrize("blueprint", SHAPES, ids=lambda blueprint: f"{blueprint.name}-{blueprint.task.vocab_size}")
def test_other_sizes_of_task(blueprint: Any) -> None:
    model = blueprint.compile(seed=1)
    found = answers(model.model, model.task, 1000)
    assert found.accuracy == 1.0
    assert found.margin >= model.truth.margin


@settings(max_examples=examples(10), deadline=None, derandomize=True)
@given(
    name=st.sampled_from(NAMES),
    seed=st.integers(0, 1000),
    directions=st.integers(0, 40),
    channels=st.integers(0, 90),
    states=st.integers(0, 9),
    layers=st.integers(0, 3),
    taps=st.integers(0, 3),
    ranks=st.integers(0, 5),
)
def test_any_amount_of_idle_changes_no_answer(name: str, seed: int, **more: int) -> None:
    blueprint = BLUEPRINTS[name]()  # type: ignore[abstract]
    model = blueprint.compile(blueprint.least().plus(**more), seed=seed)
    found = answers(model.model, model.task, 64, seed=seed)
    assert found.accuracy == 1.0
    assert found.margin >= model.truth.margin


@pytest.mark.parametrize("name", NAMES)
def test_seeds_place_it_elsewhere(name: str) -> None:
    size = BLUEPRINTS[name]().least().plus(20, 60, 3, 2, 1, 2)  # type: ignore[abstract]
    one, again, other = (compiled(name, size=size, seed=seed) for seed in (0, 0, 1))
    assert all(
        torch.equal(a, b)
        for a, b in zip(one.model.state_dict().values(), again.model.state_dict().values(), strict=True)
    )
    assert one.truth == again.truth != other.truth


@pytest.mark.slow_except("recall")
@pytest.mark.parametrize("name", ["recall", "induction", "selective_copy"])
def test_the_width_of_mamba_130m(name: str) -> None:
    model = compiled(name, size=Size(768, 1536, 16, 3, 4, 48))
    found = answers(model.model, model.task, 64, batch=64)
    assert found.accuracy == 1.0
    assert found.margin >= model.truth.margin
    units, prompts = Units(model.model, SSM_UNITS["channel"]), model.task.sample(16, "evaluation", 0)
    edits = units.edits(model.truth.mask(model.model, "channel"), dict.fromkeys(units.sites, 0.0))
    edited = mechint.run(model.model, prompts.tokens, edits=edits, logits_at=prompts.positions).logits
    clean = mechint.run(model.model, prompts.tokens, logits_at=prompts.positions).logits
    assert float((edited - clean).abs().max()) < EXACT


@pytest.mark.parametrize("name", NAMES)
def test_transformers_computes_the_same_logits(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    model = compiled(name)
    theirs = transformers.MambaForCausalLM(transformers.MambaConfig(**hf_config(model.model), use_cache=False)).eval()
    state = to_hf_state_dict(model.model)
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    theirs.tie_weights()
    prompts = model.task.sample(64, "evaluation", 0)
    with torch.no_grad():
        expected, logits = theirs(prompts.tokens).logits, model.model(prompts.tokens)
    scale = max(1.0, float(expected.abs().max()) / GAIN_OF_ONE)
    assert float((logits - expected).abs().max()) <= 1e-4 * scale
    back = from_state_dict(theirs.state_dict(), theirs.config.to_dict(), "theirs")
    assert torch.equal(back(prompts.tokens), logits)


GAIN_OF_ONE = 12.0  # positions that nobody asks for can have logits of hundreds: several answers at once


@pytest.mark.slow
def test_noise_keeps_the_answers_or_is_refused() -> None:
    for name in ("latch", "recall"):
        model = compiled(name, noise=1e-3)
        assert model.truth.tolerance == pytest.approx(model.truth.margin)
        verify(model.model, model.truth, model.task, 500)
        exact = compiled(name)
        assert not torch.equal(model.model.layers[0].in_proj.weight, exact.model.layers[0].in_proj.weight)
    with pytest.raises(MechintError, match=r"noise of 0\.3 leaves a margin of"):
        compiled("selective_copy", noise=0.3)
    with pytest.raises(MechintError, match=r"with noise of 0\.001 .* the declared truth is wrong; add less noise"):
        compiled("count", noise=0.001, seed=1)


# ---- a truth that is wrong is refused ----------------------------------------------------------------------------


def edited(truth: GroundTruth, *more: Part, without: Any = lambda part: False) -> GroundTruth:
    return dataclasses.replace(truth, parts=(*(part for part in truth.parts if not without(part)), *more))


@pytest.mark.slow
def test_a_wrong_truth_is_contradicted() -> None:
    model = compiled("latch")
    check = lambda truth: verify(model.model, truth, model.task, 300)
    (layer,) = (part.layer for part in model.truth.parts if part.kind == "layer")
    used = {part.unit[0] for part in model.truth.parts if part.kind == "channel"}
    idle = next(e for e in range(model.model.config.d_inner) if e not in used)
    with pytest.raises(MechintError, match=rf"without layer {layer}, channel {idle} \(none\) 100.0% of the answers"):
        check(edited(model.truth, Part("none", "channel", layer, (idle,))))
    with pytest.raises(MechintError, match=rf"without layer {1 - layer}, layer \(none\) 100"):
        check(edited(model.truth, Part("none", "layer", 1 - layer)))
    kinds = {part.kind for part in model.truth.parts}
    for kind in kinds & {"channel", "mode", "tap", "path"}:
        first = next(part for part in model.truth.parts if part.kind == kind)
        with pytest.raises(MechintError, match=rf"declared idle \({kind}.* changes a logit by"):
            check(edited(model.truth, without=lambda part, first=first: part is first))
    wrong = Part("none", "write", layer, where=Where((0,)), accuracy=1.0)
    with pytest.raises(MechintError, match=rf"declared idle \(write, layer {layer}\)"):
        check(edited(model.truth, wrong, without=lambda part: part.kind == "write"))
    with pytest.raises(MechintError, match="of which 300 train prompts have none"):
        check(edited(model.truth, Part("none", "channel", layer, (idle,), (Asked(token=0),))))
    value = next(part for part in model.truth.parts if part.kind == "channel" and not part.blind)
    with pytest.raises(MechintError, match="is declared the same under mean, which changes a logit"):
        check(edited(model.truth, dataclasses.replace(value, blind=("mean",)), without=lambda part: part is value))
    with pytest.raises(MechintError, match="declared are 100 % and a margin of 50"):
        check(dataclasses.replace(model.truth, margin=50.0))


def test_a_model_that_fails_its_task_is_refused() -> None:
    model = compiled("latch")
    model.model.layers[0].out_proj.weight.zero_()
    model.model.layers[1].out_proj.weight.zero_()
    with pytest.raises(MechintError, match=r"compiled latch: 0.0% of the answers are right"):
        verify(model.model, model.truth, model.task, 50)


@pytest.mark.slow
def test_a_split_that_lacks_a_part_is_named() -> None:
    """132 ordered pairs of 12 keys: the 16 in the discovery split never have two of the keys."""
    model = Recall(TaskConfig(name="recall", pairs=2, keys=12, values=12)).compile()
    verify(model.model, model.truth, model.task)
    with pytest.raises(MechintError, match="discovery prompts have none; take more prompts, a task with more"):
        verify(model.model, model.truth, model.task, split="discovery")


def test_unknown_kinds() -> None:
    model = compiled("shift")
    with pytest.raises(MechintError, match=r"no kind of unit 'chanel' \(did you mean channel"):
        model.truth.mask(model.model, "chanel")
    with pytest.raises(MechintError, match="no kind of part 'neuron'"):
        model.truth.units("neuron")


def test_masks_are_numbered_as_units_are() -> None:
    model = compiled("induction", seed=2)
    for kind in SSM_UNITS:
        units, mask = Units(model.model, SSM_UNITS[kind]), model.truth.mask(model.model, kind)
        declared = [0] * units.layers
        for layer, _ in model.truth.units(kind):
            declared[layer] += 1
        assert mask.shape == (units.total,)
        assert units.counts(mask) == declared
    channels = Units(model.model, SSM_UNITS["channel"])
    names = channels.names(model.truth.mask(model.model, "channel"))
    assert all(unit[0] in names[layer] for layer, unit in model.truth.units("channel"))


# ---- the prompts -------------------------------------------------------------------------------------------------


def solve(name: str, prompt: list[int], position: int, task: Any) -> int:
    """Each small task done slowly."""
    before = prompt[: position + 1]
    if name == "shift":
        return before[-1 - task.by]
    if name == "latch":
        return before[max(i for i, token in enumerate(before) if token == task.marker) + 1]
    return next(token for token in reversed(before) if token < task.symbols)


@pytest.mark.parametrize("name", ["shift", "latch", "most_recent"])
@pytest.mark.parametrize("split", ["train", "discovery", "evaluation"])
def test_prompts_of_the_small_tasks(name: str, split: str) -> None:
    task = BLUEPRINTS[name]().task  # type: ignore[abstract]
    prompts = task.sample(300, split, 5)
    assert prompts.twins is not None
    assert prompts.wrong is not None
    assert prompts.tokens.shape == prompts.twins.shape == (300, task.length)
    for tokens, said in ((prompts.tokens, prompts.answers), (prompts.twins, prompts.wrong)):
        for prompt, positions, row in zip(tokens.tolist(), prompts.positions.tolist(), said.tolist(), strict=True):
            assert [solve(name, prompt, position, task) for position in positions] == row
    assert (prompts.answers != prompts.wrong).all()
    assert {task.decode(token) for token in prompts.tokens.flatten().tolist()} >= {"s0", "s1"}
    if isinstance(task, LatchTask):
        assert ((prompts.tokens == task.marker).sum(1) == 2).all()
    assert torch.equal(prompts.tokens, task.sample(300, split, 5).tokens)
    others = {"train", "discovery", "evaluation"} - {split}
    assert not {tuple(row) for other in others for row in task.sample(300, other, 5).template[:, None].tolist()} & {
        tuple(row) for row in prompts.template[:, None].tolist()
    }


def test_small_tasks_refuse_bad_sizes() -> None:
    for make, message in (
        (lambda: Shift(symbols=1), "task shift: 1 symbols leave nothing"),
        (lambda: Shift(by=0), "shift by 0"),
        (lambda: Shift(by=16), "shift by 16"),
        (lambda: Latch(length=9), "no room for two marked"),
        (lambda: MostRecent(length=7), "no room for noise"),
        (lambda: Shift(symbols=2, length=5).task.sample(1, "train", 0), "too few prompts"),
    ):
        with pytest.raises(MechintError, match=message):
            make()


# ---- scores ------------------------------------------------------------------------------------------------------


def slow_scores(truth: Any, scores: Any) -> tuple[float, float]:
    """AUROC by all pairs; average precision by every threshold."""
    inside, outside = scores[truth], scores[~truth]
    pairs = [(a > b) + 0.5 * (a == b) for a in inside for b in outside]
    precision = [truth[scores >= a].mean() for a in inside]
    return float(np.mean(pairs)), float(np.mean(precision))


@given(seed=st.integers(0, 10_000), size=st.integers(2, 30), levels=st.integers(1, 12))
@settings(max_examples=examples(60), deadline=None)
def test_scores_by_all_pairs(seed: int, size: int, levels: int) -> None:
    random = np.random.default_rng(seed)
    truth = random.random(size) < 0.4
    truth[:2] = True, False
    scores = random.integers(levels, size=size) / 3
    found = score_units(torch.tensor(truth).float(), scores)
    assert (found.auroc, found.average_precision) == pytest.approx(slow_scores(truth, scores))
    assert found.exact == (scores[truth].min() > scores[~truth].max())
    assert (found.units, found.total) == (truth.sum(), size)


def test_known_scores() -> None:
    truth = [1, 1, 0, 0]
    best, worst, same = (score_units(truth, scores) for scores in ([4, 3, 2, 1], [1, 2, 3, 4], [7, 7, 7, 7]))
    assert (best.auroc, best.average_precision, best.exact) == (1.0, 1.0, True)
    assert (worst.auroc, worst.exact) == (0.0, False)
    assert (same.auroc, same.average_precision, same.exact) == (0.5, 0.5, False)


def test_bad_scores_are_refused() -> None:
    model = compiled("shift")
    total = 128
    with pytest.raises(
        MechintError, match=rf"short on compiled shift: scores of shape \[3\] for units of shape \[{total}\]"
    ):

        def short(model: Any, task: Any) -> Any:
            return torch.zeros(3)

        score_method(model, short)
    with pytest.raises(MechintError, match=rf"1 of {total} scores are NaN or infinite"):
        score_method(model, lambda model, task: torch.tensor([math.nan] + [0.0] * (total - 1)))
    with pytest.raises(MechintError, match=r"the circuit has 0 of 4 units"):
        score_units([0, 0, 0, 0], [1, 2, 3, 4])


@pytest.mark.parametrize("name", NAMES)
def test_baselines_give_a_score_and_size_gives_nothing_away(name: str) -> None:
    model = compiled(name)
    before = {key: value.clone() for key, value in model.model.state_dict().items()}
    scores = baseline_scores(model)
    assert not scores["weight_magnitude"].exact
    assert not scores["activation_magnitude"].exact
    assert all(torch.equal(before[key], value) for key, value in model.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.model.parameters())


# ---- the mask search ---------------------------------------------------------------------------------------------

SEARCH = SSMCircuitConfig(
    search="budget", steps=60, prompts=96, eval_prompts=64, seeds=2, random_circuits=2, bootstrap=100
)


def search(model: Compiled, **options: Any) -> tuple[dict[str, Any], Any, torch.Tensor]:
    """Results, learned logits and chosen mask [units] of the circuit search with the true size as its budget."""
    config = dataclasses.replace(SEARCH, **options)
    truth = model.truth.mask(model.model, config.unit, config.ablation)
    config = dataclasses.replace(config, budget=int(truth.sum()))
    loaders = [
        PromptLoader(model.task, split, count, 32, 0)
        for split, count in (("discovery", config.prompts), ("evaluation", config.eval_prompts))
    ]
    analyzer = SSMCircuitAnalyzer(model.model, config)
    results = analyzer.run_analysis(*loaders)
    logits, mask = (torch.cat([m[key].flatten() for m in analyzer.masks.values()]) for key in ("logits", "mask"))
    assert torch.equal(mask, truth), score_units(truth, logits)
    return results, score_units(truth, logits), mask


# Of selective_copy and most_recent, partial circuits are further from the full model than the empty one. The stored
# scores hold the searches of selective_copy, and recall is like induction.
@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "recall",
        "most_recent",
        *(pytest.param(n, marks=pytest.mark.exhaustive) for n in ("induction", "selective_copy")),
    ],
)
def test_the_mask_search_finds_the_circuit_to_the_unit(name: str) -> None:
    results, score, _ = search(compiled(name))
    assert (score.auroc, score.average_precision, score.exact) == (1.0, 1.0, True)
    assert results["metrics"]["faithfulness"]["value"] == pytest.approx(1.0, abs=1e-4)
    assert results["metrics"]["accuracy_circuit"]["value"] == 1.0
    assert all(found["units"] == results["searches"][0]["units"] for found in results["searches"])
