"""Imposed circuits: the causal model, the losses and the check, held against a compiled model that has the circuit."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mechint
from mechint.ground_truth import BLUEPRINTS, GPT2_BLUEPRINTS, IMPOSED, Compiled, GroundTruth
from mechint.interventions.unit_kinds import KV_UNITS
from mechint.interventions.units import Units
from mechint.tasks import Prompts, TaskConfig, make_task
from mechint.tasks.looked_up import INPUTS, LookedUp, lookup
from mechint.tasks.recall import Recall
from mechint.training import Alignment, NotImposed, Variable, check, imposed_circuit
from mechint.training.imposed_causal import importances, said_by, said_by_each, values_of
from mechint.training.imposed_circuits import ChannelCircuit, HeadCircuit
from mechint.training.options import MambaArchitecture, TrainConfig
from mechint.training.trainer import new_state, one_step
from tests.helpers.examples import examples
from tests.helpers.imposed import TASK, few


def slow_lookup(before: list[int], values: list[int], query: list[int], positions: list[int]) -> list[set[int]]:
    """All that can be said at each query."""
    return [{values[j] for j in range(1, position + 1) if before[j - 1] == query[position]} for position in positions]


MARKED = IMPOSED["siit_gpt2_marked"].asked
LOOKED_UP = pytest.mark.parametrize("config", [TASK, MARKED], ids=["recall", "marked"])
TASKS = st.one_of(
    st.builds(lambda pairs: dataclasses.replace(TASK, pairs=pairs, keys=9), st.integers(2, 4)),
    st.builds(lambda length: dataclasses.replace(MARKED, length=length), st.integers(5, 12)),
)


def looked_up(config: TaskConfig) -> LookedUp:
    task = make_task(config)
    assert isinstance(task, LookedUp)
    return task


@settings(max_examples=examples(60), deadline=None)
@given(seed=st.integers(0, 10_000), config=TASKS, exchanged=st.sets(st.sampled_from(INPUTS)))
def test_the_causal_model_by_hand(seed: int, config: TaskConfig, exchanged: set[str]) -> None:
    """Whichever inputs come from the source; with none and with all of them the answers are those of the task."""
    task = looked_up(config)
    prompts = task.sample(5, "train", seed)
    source = task.sources(prompts, seed)
    parts = [source.tokens if name in exchanged else prompts.tokens for name in INPUTS]
    said, defined = lookup(*parts, prompts.positions)
    rows = zip(*(part.tolist() for part in (*parts, prompts.positions, said, defined)), strict=True)
    for before, values, query, positions, answers, there in rows:
        for options, answer, known in zip(slow_lookup(before, values, query, positions), answers, there, strict=True):
            assert known == (len(options) == 1)
            assert not known or options == {answer}
    for whole in (prompts, source):
        said, defined = lookup(whole.tokens, whole.tokens, whole.tokens, whole.positions)
        assert defined.all() and torch.equal(said, whole.answers)


@LOOKED_UP
def test_a_source_asks_for_the_same_tokens(config: TaskConfig) -> None:
    task = looked_up(config)
    prompts = task.sample(200, "train", 0)
    source = task.sources(prompts, 0)
    asked = [set(task.sayable), set(range(task.vocab_size))]
    for tokens, other, positions in zip(prompts.tokens, source.tokens, prompts.positions, strict=True):
        there, query = set(tokens.tolist()), set(other[positions].tolist())
        assert query <= there and set(other[positions].tolist()) <= asked[1]
    assert all(set(part.answers.flatten().tolist()) <= asked[0] for part in (prompts, source))
    assert not torch.equal(prompts.tokens, source.tokens)
    assert torch.equal(source.positions, prompts.positions)
    assert torch.equal(source.tokens, task.sources(prompts, 0).tokens)
    assert not torch.equal(source.tokens, task.sources(prompts, 1).tokens)


@LOOKED_UP
def test_an_interchange_of_most_variables_has_one_answer(config: TaskConfig) -> None:
    """Where sources are drawn so, training has something to impose at each step."""
    task = looked_up(config)
    prompts = task.sample(500, "train", 1)
    source = task.sources(prompts, 1)
    for name in INPUTS:
        parts = [source.tokens if name == own else prompts.tokens for own in INPUTS]
        assert lookup(*parts, prompts.positions)[1].float().mean() > 0.5


@LOOKED_UP
def test_twins_are_alike_in_what_a_task_says(config: TaskConfig) -> None:
    """An exchange of these inputs with the twins changes no answer, of the others some."""
    task = looked_up(config)
    assert task.alike == ("before", "query")
    prompts = task.sample(200, "train", 3)
    assert prompts.twins is not None
    for own in INPUTS:
        parts = [prompts.twins if name == own else prompts.tokens for name in INPUTS]
        said, defined = lookup(*parts, prompts.positions)
        same = torch.equal(said, prompts.answers) and bool(defined.all())
        assert same == (own in task.alike)


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


@pytest.fixture
def _sources_that_begin_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first position reads itself: only between prompts that begin alike is what stood before it the same."""

    def alike(task: Recall, prompts: Prompts, seed: int) -> Prompts:
        source = LookedUp.sources(task, prompts, seed)
        same = source.tokens[:, :1] == prompts.tokens[:, :1]
        tokens, answers = (
            torch.where(same, *parts) for parts in ((source.tokens, prompts.tokens), (source.answers, prompts.answers))
        )
        return dataclasses.replace(source, tokens=tokens, answers=answers)

    monkeypatch.setattr(Recall, "sources", alike)


@pytest.mark.usefixtures("_sources_that_begin_alike")
def test_a_model_that_has_the_circuit_passes_and_loses_nothing() -> None:
    compiled, alignment = oracle()
    found = check(compiled.model, alignment, Recall(TASK), 0, "oracle", 300)
    assert found["answers"] == 1.0
    assert all(share == 1.0 for what, share in found.items() if what.startswith(("interchange", "idle")))
    assert len([what for what in found if what.startswith("idle")]) == 4
    assert max(share for what, share in found.items() if what.startswith("without")) <= 0.5
    circuit = HeadCircuit(Recall(TASK), TrainConfig(seed=3))
    prompts = circuit.task.sample(64, "train", 3)
    for step in range(len(alignment.variables)):
        parts = circuit.losses(compiled.model, alignment, prompts, step)
        assert all(float(part) < 0.02 for part in parts)


@pytest.mark.usefixtures("_sources_that_begin_alike")
def test_a_wrong_alignment_is_refused() -> None:
    compiled, alignment = oracle()
    before, said, *others = alignment.variables
    n_head = compiled.model.config.n_head

    def refused(message: str, *variables: Variable) -> None:
        with pytest.raises(NotImposed, match=message) as error:
            check(compiled.model, Alignment(variables, alignment.kinds), Recall(TASK), 0, "oracle", 200)
        assert "\n" not in str(error.value)

    elsewhere = dataclasses.replace(before, units=((before.units[0] + 1) % n_head,))
    refused("of interchange interventions on what stood before are right", elsewhere, said)
    refused(r"oracle: with all idle units ablated \(zero\)", said)
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


# ---- what a step trains ----------------------------------------------------------------------------------------------


def test_a_circuit_is_narrowed_to_the_channels_that_matter() -> None:
    """The circuit of a compiled Mamba is kept where idle channels stand beside it."""
    compiled = BLUEPRINTS["recall"](TASK).compile(seed=1)
    model = compiled.model.requires_grad_(False)
    declared = {e for layer, (e,) in compiled.truth.units("channel") if layer == 0}
    wide = tuple(sorted({*declared, *range(9)}))
    assert set(wide) != declared and len(declared) == len(compiled.truth.units("channel"))
    circuit = ChannelCircuit(Recall(TASK), TrainConfig())
    [narrowed] = circuit.narrow(
        model, Alignment((Variable("said", "channel", wide, INPUTS),), ("channel",)), 0.05
    ).variables
    assert set(narrowed.units) == declared


@pytest.mark.slow
def test_what_a_unit_is_worth_is_how_far_it_alone_moves_what_decides(tmp_path: Path) -> None:
    """By hand; and narrowing keeps those that are worth a share of the best."""
    job = few("siit_mamba_recall", tmp_path)
    model, task = new_state(job, torch.device("cpu")).model.requires_grad_(False), Recall(TASK)
    circuit = ChannelCircuit(task, job.config)
    alignment = circuit.align(model)
    prompts = task.sample(32, "train", 5)
    mean = {site: value.mean(0) for site, value in values_of(model, prompts.tokens, alignment.sites(model)).items()}
    for layer, variable in enumerate(alignment.variables):
        found = importances(model, prompts, variable, mean, task)
        unit = variable.units[3] - 64 * layer
        edits = []
        for site in (f"layers.{layer}.u", f"layers.{layer}.gated"):
            edits.append(mechint.Edit(site, "replace", mean[site][:, unit : unit + 1], units=[unit]))
        logits = [said_by(model, prompts, some)[..., 6:12].double().numpy() for some in ([], edits)]
        moved = np.diff([each - each.mean(-1, keepdims=True) for each in logits], axis=0)
        assert found[3] == pytest.approx(np.sqrt((moved**2).mean()), rel=1e-3)
    sizes = [[len(each.units) for each in circuit.narrow(model, alignment, least).variables] for least in (0, 0.3, 1)]
    assert sizes[0] == [16, 32] and sizes[2] == [1, 1]
    assert all(1 < some < every for some, every in zip(sizes[1], sizes[0], strict=True))


def test_once_narrowed_other_things_are_put_into_idle_units(tmp_path: Path) -> None:
    circuit = ChannelCircuit(Recall(TASK), dataclasses.replace(few("siit_mamba_recall", tmp_path).config, steps=20))
    fills = [circuit.fills_at(step) for step in range(20)]
    assert fills[:8] == [["all"], ["zero"], ["all"], ["all"], ["zero"], ["all"], ["all"], ["zero"]]
    assert fills[8:12] == [["all", "half"], ["all", "twins"], ["zero", "half"], ["all", "twins"]]
    assert HeadCircuit(circuit.task, circuit.config).fills_at(19) == ["half"]


def test_several_runs_with_idle_units_replaced_weigh_as_one_and_a_half(tmp_path: Path) -> None:
    job = few("siit_mamba_recall", tmp_path)
    state, task = new_state(job, torch.device("cpu")), Recall(TASK)
    assert state.circuit is not None
    prompts = task.sample(16, "train", 5)

    def strict(**own: Any) -> float:
        circuit = type("Own", (ChannelCircuit,), {"narrowings": ((0.0, 0.0),), **own})(task, job.config)
        return float(circuit.losses(state.model, state.circuit, prompts, 0)[2].detach())  # type: ignore[arg-type]

    alone = [strict(idle=(fill,), settled=()) for fill in ("all", "twins")]
    assert alone[0] != alone[1]
    assert strict(idle=("all",), settled=("twins",)) == pytest.approx(0.75 * sum(alone), rel=1e-5)


def test_twins_leave_what_they_have_in_common(tmp_path: Path) -> None:
    """The twins' values of a compiled circuit's first variable change nothing, unlike those of its second."""
    model, task = oracle()[0].model, Recall(TASK)
    circuit = HeadCircuit(task, few("siit_gpt2_recall", tmp_path).config)
    before, said, *_ = oracle()[1].variables
    prompts = task.sample(64, "train", 5)
    there = values_of(model, prompts.tokens, oracle()[1].sites(model))
    whole = said_by(model, prompts, [])
    changes = {}
    for name, variables in (("first", (before,)), ("second", (dataclasses.replace(said, inputs=("query",)),))):
        edits = circuit.idle_cell(model, Alignment(variables, ()), prompts, there, "twins", 0)
        assert len(edits) == 1
        changes[name] = float((said_by(model, prompts, edits) - whole).abs().max())
    assert changes["first"] < 1e-2 < 1 < changes["second"]
    every, idle = (circuit.idle_cell(model, oracle()[1], prompts, there, fill, 0) for fill in ("twins", "zero"))
    assert len(every) > len(idle)


def test_a_circuit_says_whose_turn_it_is_and_what_is_put_into_idle_units(tmp_path: Path) -> None:
    job = few("siit_mamba_recall", tmp_path)
    model = new_state(job, torch.device("cpu")).model
    task = Recall(TASK)
    prompts = task.sample(16, "train", 5)
    alignment = ChannelCircuit(task, job.config).align(model)

    def parts(step: int, match: float = 0.0, **own: Any) -> list[float]:
        plain = {"turns": (), "idle": ("zero", "half"), "removed": 0, "narrowings": ()}
        kind = type("Own", (ChannelCircuit,), plain | own)
        circuit = kind(task, dataclasses.replace(job.config, impose_match=match))
        return [float(part.detach()) for part in circuit.losses(model, alignment, prompts, step)]

    first, second = parts(0), parts(1)
    assert first[0] == second[0] and first[1] != second[1]
    # the same step has the same sources, so a turn tells which variable is swapped
    assert parts(0, turns=(0,))[1] == first[1] != parts(0, turns=(1,))[1]
    assert parts(1, turns=(0, 1))[1] == second[1] == parts(1, turns=(0, 1, 0, 0))[1]
    fills = {fill: parts(0, idle=(fill,))[2] for fill in ("zero", "half", "all")}
    assert len(set(fills.values())) == 3
    assert first[2] == fills["zero"] and parts(0, idle=("half", "all"))[2] == fills["half"]
    there = dict.fromkeys(alignment.sites(model), 0.0)
    whole, without = (said_by(model, prompts, edits) for edits in ([], alignment.idle_edits(model, there)))
    expected = fills["zero"] + 0.5 * float((whole - without).square().mean().detach())
    assert parts(0, 0.5, idle=("zero",))[2] == pytest.approx(expected, rel=1e-5)
    # what is said, removed: every value is to be as likely as any other
    said = alignment.variables[1].edits(model, there)
    likely = said_by(model, prompts, said).softmax(-1)[..., task.keys : task.keys + task.values]
    beyond = float(-likely.log().mean().detach()) - math.log(task.values)
    assert parts(8, removed=8)[1] == pytest.approx(beyond, rel=1e-5) and parts(9, removed=8)[1] == parts(9)[1]


def test_several_runs_at_once_are_those_of_each_alone(tmp_path: Path) -> None:
    job = few("siit_gpt2_recall", tmp_path)
    state = new_state(job, torch.device("cpu"))
    prompts, other = (job.task.sample(5, "train", seed) for seed in (0, 1))
    assert state.circuit is not None
    there = values_of(state.model, other.tokens, state.circuit.sites(state.model))
    cells = [[], state.circuit.variables[2].edits(state.model, there), state.circuit.idle_edits(state.model, there)]
    together = said_by_each(state.model, prompts, cells)
    assert len(together) == 3
    for cell, found in zip(cells, together, strict=True):
        assert torch.allclose(found, said_by(state.model, prompts, cell), atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_the_second_layer_of_the_mamba_never_sees_what_stood_before(tmp_path: Path) -> None:
    job = few("siit_mamba_recall", tmp_path)
    state = new_state(job, torch.device("cpu"))
    one_step(job, state, torch.device("cpu"))
    first, second = (layer.conv1d.weight for layer in state.model.layers)  # type: ignore[attr-defined]
    assert not second[..., :-1].any()
    assert first[..., :-1].all()


def test_the_mamba_2_sees_the_token_before_in_its_first_layer_alone(tmp_path: Path) -> None:
    """Of the taps of a convolution, oldest first, each layer keeps one."""
    job = few("siit_mamba2_recall", tmp_path)
    state = new_state(job, torch.device("cpu"))
    one_step(job, state, torch.device("cpu"))
    for layer, left in enumerate((2, 3)):
        taps = state.model.layers[layer].mixer.conv1d.weight[:, 0]  # type: ignore[union-attr]
        assert taps.shape[1] == 4 and taps[:, left].all()  # type: ignore[index]
        assert not taps[:, [tap for tap in range(4) if tap != left]].any()  # type: ignore[index]


def test_the_mamba_2_begins_with_a_memory_that_holds(tmp_path: Path) -> None:
    """In its second layer alone, whose steps and decays are those of the recipe."""
    model = new_state(few("siit_mamba2_recall", tmp_path), torch.device("cpu")).model
    first, second = (layer.mixer for layer in model.layers)  # type: ignore[attr-defined]
    assert torch.nn.functional.softplus(second.dt_bias).tolist() == pytest.approx([1.0] * 4)
    assert second.A_log.exp().tolist() == pytest.approx([0.05] * 4)
    assert (first.A_log.exp() >= 0.99).all() and (first.dt_bias < 0).all()


@pytest.mark.parametrize(
    ("name", "kinds", "sizes"),
    [
        ("siit_gpt2_recall", ["head", "head", "k", "k", "v", "q"], [1, 1, 8, 8, 8, 8]),
        ("siit_mamba2_recall", ["ssm_channel", "ssm_channel"], [16, 16]),
        ("siit_hybrid_recall", ["ssm_channel", "head", "k", "v", "q"], [16, 1, 8, 8, 8]),
    ],
)
def test_the_seed_draws_a_head_of_each_layer(name: str, kinds: list[str], sizes: list[int], tmp_path: Path) -> None:
    """The heads of both layers vary, and what they read is theirs; the declaration names them and their channels."""
    drawn, kind = set(), IMPOSED[name]()
    for seed in range(12):
        job = few(name, tmp_path, seed=seed)
        assert job.imposed is not None
        model = new_state(job, torch.device("cpu")).model
        alignment = job.imposed.align(model)
        assert [own.kind for own in alignment.variables] == kinds
        assert [len(own.units) for own in alignment.variables] == sizes
        parts = kind.declare(model, alignment)
        heads = [(part.layer, part.unit) for part in parts if part.kind in ("head", "ssm_head")]
        assert [layer for layer, _ in heads] == [0, 1]
        drawn.add(tuple(head for _, (head,) in heads))
        channels = [part for part in parts if part.kind in model.scored_unit.split("+")]
        for part in channels:
            assert (part.layer, (part.unit[-2],)) in heads  # of (K or V, head, dimension) or (head, channel)
        truth = GroundTruth(tuple(parts), -math.inf, math.inf)
        assert int(truth.mask(model, model.scored_unit, unsure=True).sum()) == len(channels)
    assert len({first for first, _ in drawn}) > 1 and len({second for _, second in drawn}) > 1


def test_only_kinds_that_are_shared_out_are_narrowed(tmp_path: Path) -> None:
    """A key that a head does not use is no idle unit, so it stays with the others."""
    job = few("siit_hybrid_recall", tmp_path)
    model = new_state(job, torch.device("cpu")).model.requires_grad_(False)
    assert job.imposed is not None
    alignment = job.imposed.align(model)
    narrowed = job.imposed.narrow(model, alignment, 1.0)
    assert [len(own.units) for own in narrowed.variables] == [1, 1, 8, 8, 8]
    used = narrowed.used(model, "ssm_channel")
    assert int(used.sum()) == 1 and len(used) == 64


def test_strictness_weighs_the_third_loss(tmp_path: Path) -> None:
    job = few("siit_gpt2_recall", tmp_path)
    state = new_state(job, torch.device("cpu"))
    prompts = job.task.sample(8, "train", 0)

    def loss(strictness: float) -> float:
        circuit = HeadCircuit(Recall(TASK), dataclasses.replace(job.config, impose_strictness=strictness))
        assert state.circuit is not None
        return float(circuit.loss(state.model, state.circuit, prompts, 0).detach())

    none, one, two = (loss(weight) for weight in (0.0, 1.0, 2.0))
    assert two - one == pytest.approx(one - none, rel=1e-4) and one > none


def test_nothing_is_imposed_unless_it_is_asked_for() -> None:
    assert imposed_circuit(make_task(TASK), TrainConfig(), MambaArchitecture(n_layer=5)) is None
