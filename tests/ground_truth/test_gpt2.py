"""Compiled GPT-2s: what they answer, what is true of them, and whether methods find it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mechint
from mechint.ground_truth import BLUEPRINTS as MAMBA_BLUEPRINTS
from mechint.ground_truth import GPT2_BLUEPRINTS, IMPOSED, MODELS, Asked, Compiled, GPT2Size, Part, answers, verify
from mechint.ground_truth.gpt2.counting import Count, ModularSum
from mechint.ground_truth.gpt2.models import Induction, Latch, MostRecent, Recall, SelectiveCopy, Shift
from mechint.interventions.unit_kinds import KV_UNITS
from mechint.interventions.units import Units
from mechint.models.loading.load import hf_config, to_hf_state_dict
from mechint.scorecard import METHODS, ScorecardConfig
from mechint.scorecard.card import scored
from mechint.scorecard.hard.which_method import KINDS
from mechint.scorecard.traces import positions, read_otherwise
from mechint.tasks import TaskConfig
from mechint.utils import files
from mechint.utils.errors import MechintError
from tests.helpers.baselines import baseline_scores
from tests.helpers.examples import examples

NAMES = list(GPT2_BLUEPRINTS)


def compiled(name: str, **options: Any) -> Compiled:
    return GPT2_BLUEPRINTS[name]().compile(**options)


@pytest.mark.slow_except("gpt2_recall")
@pytest.mark.parametrize("name", NAMES)
def test_every_answer_of_ten_thousand_prompts_is_right(name: str) -> None:
    model = compiled(name)
    found = answers(model.model, model.task, 10_000)
    assert (found.prompts, found.accuracy) == (10_000, 1.0)
    assert found.margin >= model.truth.margin


@pytest.mark.slow_except("gpt2_(recall|count)")
@pytest.mark.parametrize("name", NAMES)
def test_the_truth_stands_up_to_ablations(name: str) -> None:
    """In the discovery split: a method that sees only these prompts can find every part."""
    model = compiled(name, seed=3)
    found = verify(model.model, model.truth, model.task, 500, "discovery")
    assert {part.name for part in model.truth.parts} <= set(found)
    idle = [change for what, change in found.items() if what.startswith("idle")]
    assert max(idle) <= model.truth.tolerance < 1e-3 * model.truth.margin
    assert {
        f"idle {kind}, {how}" for kind in ("kv", "q", "head", "mlp", "layer") for how in ("zero", "resample")
    } <= set(found)


@pytest.mark.parametrize("name", NAMES)
def test_the_least_size_is_enough_and_nothing_less(name: str) -> None:
    blueprint = GPT2_BLUEPRINTS[name]()
    least = blueprint.least()
    model = blueprint.compile(least)
    assert answers(model.model, model.task, 200).accuracy == 1.0
    for field, size in dataclasses.asdict(least).items():
        with pytest.raises(MechintError, match=rf"compiled {name}.*too small; it needs at least .*{field} {size} \(it"):
            blueprint.compile(dataclasses.replace(least, **{field: size - 1}))


SHAPES: list[Any] = [
    Shift(symbols=5, length=9, by=3),
    Latch(symbols=4, length=31),
    MostRecent(symbols=3, length=40),
    Count(symbols=3, length=40),
    Count(symbols=9, length=33),
    ModularSum(modulus=2, length=12, most=5),
    ModularSum(modulus=5, length=20, most=14),
    SelectiveCopy(TaskConfig(name="selective_copy", pairs=6, values=3, length=40)),
    SelectiveCopy(TaskConfig(name="selective_copy", pairs=2, values=20, length=12)),
    Induction(TaskConfig(name="induction", keys=16, length=32)),
    Recall(TaskConfig(name="recall", pairs=8, keys=12, values=5)),
]


@pytest.mark.parametrize("blueprint", SHAPES, ids=lambda blueprint: f"{blueprint.name}-{blueprint.task.vocab_size}")
def test_other_sizes_of_task(blueprint: Any) -> None:
    model = blueprint.compile(seed=1)
    found = answers(model.model, model.task, 300)
    assert found.accuracy == 1.0
    assert found.margin >= model.truth.margin


@settings(max_examples=examples(8), deadline=None, derandomize=True)
@given(
    name=st.sampled_from(NAMES),
    seed=st.integers(0, 1000),
    heads=st.integers(0, 4),
    dimensions=st.integers(0, 9),
    layers=st.integers(0, 3),
    neurons=st.integers(0, 90),
    places=st.integers(0, 9),
)
def test_any_amount_of_idle_changes_no_answer(name: str, seed: int, **more: int) -> None:
    blueprint = GPT2_BLUEPRINTS[name]()
    model = blueprint.compile(blueprint.least().plus(**more), seed=seed)
    found = answers(model.model, model.task, 64, seed=seed)
    assert found.accuracy == 1.0
    assert found.margin >= model.truth.margin


def test_the_width_of_gpt2_124m() -> None:
    model = compiled("gpt2_recall", size=GPT2Size(12, 64, 3, 3072, 16))
    found = answers(model.model, model.task, 32, batch=32)
    assert found.accuracy == 1.0
    assert found.margin >= model.truth.margin


@pytest.mark.parametrize("name", NAMES)
def test_transformers_loads_it_and_computes_the_same_logits(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from safetensors.torch import save_file

    model = compiled(name)
    files.write_json(tmp_path / "config.json", hf_config(model.model))
    save_file(to_hf_state_dict(model.model), tmp_path / "model.safetensors", {"format": "pt"})
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    prompts = model.task.sample(64, "evaluation", 0)
    with torch.no_grad():
        logits = model.model(prompts.tokens)
        difference = (logits - theirs(prompts.tokens).logits).abs().amax(-1)
    assert float(difference.gather(1, prompts.positions).max()) <= 5e-4  # of 8: the pins leave 1e-4 behind the norm
    assert float(difference.max()) <= 0.1  # nobody asks there: scores of 0 are 1e-4 times weights of 1e2, twice
    again = mechint.load(tmp_path)
    assert torch.equal(again(prompts.tokens), logits)


def test_seeds_place_it_elsewhere() -> None:
    one, again, other = (compiled("gpt2_latch", seed=seed) for seed in (0, 0, 1))
    weights = zip(one.model.state_dict().values(), again.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)
    assert one.truth == again.truth != other.truth


def test_noise_keeps_the_answers_or_is_refused() -> None:
    model = compiled("gpt2_recall", noise=1e-4)
    assert answers(model.model, model.task, 200).accuracy == 1.0
    assert model.truth.tolerance == pytest.approx(model.truth.margin)
    with pytest.raises(MechintError, match=r"noise of 0\.3 leaves a margin of"):
        compiled("gpt2_latch", noise=0.3)


@pytest.mark.slow
def test_a_wrong_truth_is_contradicted() -> None:
    model = compiled("gpt2_recall")
    parts = model.truth.parts
    check = lambda parts: verify(model.model, dataclasses.replace(model.truth, parts=tuple(parts)), model.task, 100)
    units = Units(model.model, KV_UNITS["kv"])
    idle = int((model.truth.mask(model.model, "kv") == 0).nonzero()[0])
    layer, block, head, e = torch.unravel_index(torch.tensor(idle), (units.layers, *units.shape))
    unit = (int(block), int(head), int(e))
    with pytest.raises(MechintError, match=rf"without layer {int(layer)}, kv [KV] {unit[1]} {unit[2]} \(none\) 100"):
        check([Part("none", "kv", int(layer), unit)])
    for kind in ("kv", "head", "source"):
        first = next(part for part in parts if part.kind == kind and part.unit[:1] != (0,))  # no key: the sink is idle
        rest = [part for part in parts if part is not first]
        if kind == "source":
            rest.append(dataclasses.replace(first, where=dataclasses.replace(first.where, tokens=(0,)), accuracy=1.0))
        with pytest.raises(MechintError, match=rf"declared idle \({kind}.*changes a logit by"):
            check(rest)
    value = next(part for part in parts if part.kind == "kv" and not part.blind)
    with pytest.raises(MechintError, match="is declared the same under mean, which changes a logit"):
        check([dataclasses.replace(part, blind=("mean",)) if part is value else part for part in parts])


def test_which_answers_a_part_matters_for() -> None:
    task = Latch().task
    prompts = task.sample(300, "train", 0)
    sums = prompts.tokens.cumsum(1).gather(1, prompts.positions)
    assert torch.equal(Asked(above=9, below=20).of(prompts), (sums > 9) & (sums < 20))
    for place in (2, 9):
        found = Asked(last=(task.marker, place)).of(prompts)[:, 0]
        slow = [max(i for i, t in enumerate(row) if t == task.marker) == place for row in prompts.tokens.tolist()]
        assert found.tolist() == slow
    task = Induction().task
    prompts = task.sample(100, "train", 0)
    found = Asked(first=5).of(prompts)
    for row, asked, hits in zip(prompts.tokens.tolist(), prompts.positions.tolist(), found.tolist(), strict=True):
        assert [row.index(row[position]) == 5 for position in asked] == hits
    assert Asked(begins=(3, 4)).of(prompts)[:, 0].tolist() == [row[0] in (3, 4) for row in prompts.tokens.tolist()]


@pytest.mark.parametrize("name", NAMES)
def test_size_gives_nothing_away(name: str) -> None:
    model = compiled(name)
    scores = baseline_scores(model)
    assert not scores["weight_magnitude"].exact
    assert not scores["activation_magnitude"].exact


METHODS_THAT_FIND_IT = ("search_mean", "attribution_mean_size", "patching_noise", "causal_necessary")


@pytest.mark.slow_except("search_mean")
@pytest.mark.parametrize("method", METHODS_THAT_FIND_IT)
def test_methods_find_the_circuit_to_the_unit(method: str) -> None:
    model = compiled("gpt2_recall", seed=100)
    model.model.requires_grad_(False)
    found = scored(model, method, METHODS[method], ScorecardConfig())
    assert (found["auroc"], found["exact"]) == (1.0, True)


def test_traces_point_at_the_values_that_are_read() -> None:
    assert positions(compiled("gpt2_induction", seed=100), 16) == {"v": 1.0}


def test_every_task_of_the_mambas_has_a_twin() -> None:
    assert [f"gpt2_{name}" for name in MAMBA_BLUEPRINTS] == NAMES
    for name, kind in MAMBA_BLUEPRINTS.items():
        ours, theirs = (blueprint().task for blueprint in (GPT2_BLUEPRINTS[f"gpt2_{name}"], kind))
        assert (ours.description, ours.vocab_size) == (theirs.description, theirs.vocab_size)


def test_traces_ask_where_the_twin_reads_what_is_otherwise() -> None:
    """A twin with fewer ticks reads none that the prompt has not, and no single value brings one back."""
    model = compiled("gpt2_count", seed=100)
    prompts = model.task.sample(64, "evaluation", 0).last()
    assert prompts.twins is not None and prompts.wrong is not None
    asked = read_otherwise(model, prompts).any(0).any(1)
    assert torch.equal(asked, (prompts.answers < prompts.wrong)[:, 0])
    assert positions(model, 64) == {"v": 1.0}


def test_a_count_that_has_one_step_is_refused() -> None:
    with pytest.raises(
        MechintError, match="a count of 0 or 1 leaves neurons that level nothing; take at least 3 symbols"
    ):
        Count(symbols=2)


def test_names_of_several_models() -> None:
    names = lambda models: dataclasses.replace(ScorecardConfig(), models=models).names
    assert names("gpt2") == NAMES
    assert names("recall, trained,recall") == ["recall", *IMPOSED]
    assert list(MODELS) == [*names("mamba"), *names("gpt2"), *names("trained"), *names("hard"), *names("memories")]
    assert names("all") == list(MODELS)


def test_the_short_card_has_a_model_of_every_compiled_kind() -> None:
    names = ScorecardConfig().names
    kinds = ("easy Mamba", "easy GPT-2", "loud decoys", "superposition", "two ways", "a backup", "pairs that cancel")
    assert all(set(KINDS[kind]) & set(names) for kind in (*kinds, "a rare unit"))
    assert not set(names) & set(IMPOSED)  # to train one takes as long as all others
