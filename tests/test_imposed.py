"""Imposed circuits: the causal model, the losses and the check, held against a compiled model that has the circuit."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mechint
from mechint.errors import MechintError
from mechint.tasks import Prompts, TaskConfig
from mechint.tasks.ground_truth import BLUEPRINTS, GPT2_BLUEPRINTS, IMPOSED, Compiled
from mechint.tasks.ground_truth.causal import INPUTS, Alignment, Variable, lookup, sources
from mechint.tasks.ground_truth.impose import GPT2Recall, Imposed, MambaRecall, Recipe, check, losses, said_by
from mechint.tasks.recall import Recall
from mechint.units import KV_UNITS, Units

TASK = TaskConfig(name="recall", pairs=3, keys=6, values=6)


def slow_lookup(before: list[int], values: list[int], query: list[int], positions: list[int]) -> list[set[int]]:
    """All that can be said at each query."""
    return [{values[j] for j in range(1, position + 1) if before[j - 1] == query[position]} for position in positions]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), pairs=st.integers(2, 4))
def test_the_causal_model_by_hand(seed: int, pairs: int) -> None:
    task = Recall(dataclasses.replace(TASK, pairs=pairs, keys=9))
    prompts = task.sample(5, "train", seed)
    source = sources(task, prompts, seed)
    parts = (source.tokens, prompts.tokens, prompts.tokens)
    said, defined = lookup(*parts, prompts.positions)
    rows = zip(*(part.tolist() for part in (*parts, prompts.positions, said, defined)), strict=True)
    for before, values, query, positions, answers, there in rows:
        for options, answer, known in zip(slow_lookup(before, values, query, positions), answers, there, strict=True):
            assert known == (len(options) == 1)
            assert not known or options == {answer}
    same, every = lookup(prompts.tokens, prompts.tokens, prompts.tokens, prompts.positions)
    assert every.all()
    assert torch.equal(same, prompts.answers)
    swapped, _ = lookup(source.tokens, source.tokens, source.tokens, source.positions)
    assert torch.equal(swapped, source.answers)


def test_a_source_has_the_same_keys() -> None:
    task = Recall(TASK)
    prompts = task.sample(200, "train", 0)
    source = sources(task, prompts, 0)
    keys = [tokens[:, 0:6:2].sort(1).values for tokens in (prompts.tokens, source.tokens)]
    assert torch.equal(*keys)
    assert not torch.equal(prompts.tokens, source.tokens)
    assert torch.equal(source.tokens, sources(task, prompts, 0).tokens)
    assert not torch.equal(source.tokens, sources(task, prompts, 1).tokens)


# ---- a compiled GPT-2 has what training is to impose ------------------------------------------------------------


@functools.cache
def oracle() -> tuple[Compiled, Alignment]:
    """The compiled GPT-2 of the same task, and its circuit as an alignment."""
    compiled = GPT2_BLUEPRINTS["gpt2_recall"](TASK).compile(seed=1)  # type: ignore[call-arg]
    compiled.model.requires_grad_(False)
    c = compiled.model.config
    first, second = (layer * c.n_head + head for layer, (head,) in compiled.truth.units("head"))
    every = lambda head: tuple(range(head * c.d_head, (head + 1) * c.d_head))
    variables = (
        Variable("what stood before", "head", (first,), ("before",)),
        Variable("what is said", "head", (second,), INPUTS),
        Variable("the keys of positions", "k", every(first), ()),
        Variable("the values", "v", every(second), ("values",)),
        Variable("what is asked for", "q", every(second), ("query",)),
    )
    return compiled, Alignment(variables, ("head", "mlp"))


class Oracle(GPT2Recall):
    def __init__(self) -> None:
        super().__init__(TASK)


@pytest.fixture
def _sources_that_begin_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first position reads itself: only between prompts that begin alike is what stood before it the same."""

    def alike(task: Recall, prompts: Prompts, seed: int) -> Prompts:
        source = sources(task, prompts, seed)
        same = source.tokens[:, :1] == prompts.tokens[:, :1]
        tokens, answers = (
            torch.where(same, *parts) for parts in ((source.tokens, prompts.tokens), (source.answers, prompts.answers))
        )
        return dataclasses.replace(source, tokens=tokens, answers=answers)

    monkeypatch.setattr("mechint.tasks.ground_truth.impose.sources", alike)


@pytest.mark.usefixtures("_sources_that_begin_alike")
def test_a_model_that_has_the_circuit_passes_and_loses_nothing() -> None:
    compiled, alignment = oracle()
    found = check(compiled.model, alignment, Oracle(), 0, 300)
    assert found["answers"] == 1.0
    assert all(share == 1.0 for what, share in found.items() if what.startswith(("interchange", "idle")))
    assert len([what for what in found if what.startswith("idle")]) == 4
    assert max(share for what, share in found.items() if what.startswith("without")) <= 0.5
    for step in range(len(alignment.variables)):
        parts = losses(compiled.model, compiled.task, alignment, Recipe(steps=1), 3, step)  # type: ignore[arg-type]
        assert all(float(part) < 0.02 for part in parts)


@pytest.mark.usefixtures("_sources_that_begin_alike")
def test_a_wrong_alignment_is_refused() -> None:
    compiled, alignment = oracle()
    before, said, *others = alignment.variables
    n_head = compiled.model.config.n_head

    def refused(message: str, *variables: Variable) -> None:
        with pytest.raises(MechintError, match=message) as error:
            check(compiled.model, Alignment(variables, alignment.kinds), Oracle(), 0, 200)
        assert "\n" not in str(error.value)

    elsewhere = dataclasses.replace(before, units=((before.units[0] + 1) % n_head,))
    refused("of interchange interventions on what stood before are right", elsewhere, said)
    refused(r"all idle units ablated \(zero\)", said)
    swapped = dataclasses.replace(others[1], inputs=("query",))
    refused("of interchange interventions on the values are right", before, said, swapped)


def test_an_idle_unit_that_matters_is_named_with_its_ablation() -> None:
    compiled, alignment = oracle()
    units = Units(compiled.model, KV_UNITS["head"])
    used = alignment.used(compiled.model, "head")
    assert int(used.sum()) == 2
    assert units.total == len(used)
    random = torch.Generator().manual_seed(0)
    fills = dict.fromkeys(alignment.sites(compiled.model), 0.0)
    for edits in (alignment.idle_edits(compiled.model, fills), alignment.idle_edits(compiled.model, fills, random)):
        heads = {edit.site: edit.value for edit in edits if edit.site.endswith("head_out")}
        kept = torch.cat([torch.as_tensor(heads[f"layers.{i}.head_out"]).flatten() for i in range(units.layers)])
        assert (kept[used == 1] == 1).all()
        assert (kept == 0).any()


# ---- training ----------------------------------------------------------------------------------------------------


class Short(GPT2Recall):
    name = "short"
    recipe = Recipe(steps=4, batch=8, warmup=1)
    accuracy = 0.0
    tolerance = 1.0


def short(**changes: Any) -> Imposed:
    kind = type("Short", (Short,), changes)
    return kind(TASK)


@pytest.mark.parametrize("name", list(IMPOSED))
def test_the_same_seed_trains_the_same_bytes(name: str) -> None:
    recipe = dataclasses.replace(IMPOSED[name].recipe, steps=3, batch=8, warmup=1)
    kind = type("Few", (IMPOSED[name],), {"recipe": recipe})
    one, again, other = (kind().train(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


def test_what_was_not_imposed_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(
        MechintError, match=r"of the answers are right, and at least 98% must be; .*train for more steps"
    ):
        short(accuracy=0.98).compile(folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_another_attempt_begins_from_other_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    train = Short.train

    def kept(self: Imposed, seed: int, attempt: int = 0) -> Any:
        drawn.append(train(self, seed, attempt))
        return drawn[-1]

    def refused(model: Any, *_: Any) -> None:
        if len(drawn) < 2:
            raise MechintError("not imposed")

    monkeypatch.setattr(Short, "train", kept)
    monkeypatch.setattr("mechint.tasks.ground_truth.impose.check", refused)
    assert short().compile(folder=tmp_path).model is drawn[1] and len(drawn) == 2
    assert not torch.equal(drawn[0].layers[0].ln_1.weight, drawn[1].layers[0].ln_1.weight)
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr("mechint.tasks.ground_truth.impose.ATTEMPTS", 1)
    drawn.clear()
    with pytest.raises(MechintError, match="not imposed"):
        short().compile(seed=1, folder=tmp_path)
    assert len(drawn) == 1 and len(list(tmp_path.iterdir())) == 1


def test_a_checkpoint_is_trained_once_and_loads_as_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mechint.tasks.ground_truth.impose.CHANCE", 1.0)
    model = short()
    first = model.compile(seed=5, folder=tmp_path)
    [path] = tmp_path.iterdir()
    monkeypatch.setattr(type(model), "train", None)  # would fail
    again = model.compile(seed=5, folder=tmp_path)
    tokens = model.task.sample(4, "train", 0).tokens
    assert torch.equal(first.model(tokens), again.model(tokens))
    assert torch.equal(mechint.load(path)(tokens), first.model(tokens))
    assert first.truth == again.truth
    units = first.truth.units("kv")
    assert len(units) == 2 * 2 * first.model.config.d_head
    assert int(first.truth.mask(first.model, "kv", "mean").sum()) == len(units) * 3 // 4
    assert int(first.truth.mask(first.model, "kv", "counterfactual").sum()) == len(units) // 4


# ---- the Mamba --------------------------------------------------------------------------------------------------


def test_a_circuit_is_narrowed_to_the_channels_that_matter() -> None:
    """Of the circuit of a compiled Mamba among idle channels, the circuit is kept."""
    compiled = BLUEPRINTS["recall"](TASK).compile(seed=1)
    model = compiled.model.requires_grad_(False)
    width = model.config.d_inner
    declared = [{layer * width + e for i, (e,) in compiled.truth.units("channel") if i == layer} for layer in range(2)]
    wide = [tuple(sorted({*own, *range(layer * width, layer * width + 9)})) for layer, own in enumerate(declared)]
    variables = tuple(
        Variable(name, "channel", units, inputs)
        for name, units, inputs in zip(("before", "said"), wide, (("before",), INPUTS), strict=True)
    )
    recipe = dataclasses.replace(MambaRecall.recipe, kept=tuple(len(own) for own in declared))
    kind = type("Kept", (MambaRecall,), {"recipe": recipe})
    narrowed = kind(TASK).narrow(model, Alignment(variables, ("channel",)), 0)
    assert [set(variable.units) for variable in narrowed.variables] == declared
    assert any(set(units) != own for units, own in zip(wide, declared, strict=True))


def test_a_recipe_says_whose_turn_it_is_and_what_is_put_into_idle_units() -> None:
    model = MambaRecall(TASK).new_model()
    alignment = MambaRecall(TASK).align(model, 0)
    task = Recall(TASK)

    def parts(step: int, **recipe: Any) -> list[float]:
        return [float(part.detach()) for part in losses(model, task, alignment, Recipe(1, 16, **recipe), 5, step)]

    first, second = parts(0), parts(1)
    assert first[0] == second[0] and first[1] != second[1]
    assert parts(0, turns=(1, 0))[1] == second[1] and parts(3, turns=(1, 0, 0, 0))[1] == first[1]
    fills = {fill: parts(0, idle=(fill,))[2] for fill in ("zero", "half", "all")}
    assert len(set(fills.values())) == 3
    assert first[2] == fills["zero"] and parts(4, idle=("half", "all"))[2] == fills["half"]
    prompts = task.sample(16, "train", 5)
    there = dict.fromkeys(alignment.sites(model), 0.0)
    whole, without = (said_by(model, prompts, edits) for edits in ([], alignment.idle_edits(model, there)))
    expected = fills["zero"] + 0.5 * float((whole - without).square().mean().detach())
    assert parts(0, idle=("zero",), match=0.5)[2] == pytest.approx(expected, rel=1e-5)


def test_the_second_layer_of_the_mamba_never_sees_what_stood_before() -> None:
    recipe = dataclasses.replace(MambaRecall.recipe, steps=3, batch=8, warmup=1, narrow=2, kept=(2, 3))
    kind = type("Few", (MambaRecall,), {"recipe": recipe})
    model = kind(TASK).train(3)
    assert not model.layers[1].conv1d.weight[..., :-1].any()
    assert model.layers[0].conv1d.weight[..., :-1].all()
