"""Single steps of a circuit's analysis on made-up units, by hand: sizes, notes, controls, logs and single units."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import mechint
from mechint.analyses.circuits import analyzer as analysis
from mechint.analyses.circuits import controls, feature_units, features, kv, ssm, time_estimate
from mechint.analyses.circuits.analyzer import CircuitAnalyzer
from mechint.analyses.circuits.controls import EXCHANGED, RANDOM_WEIGHTS, Control, Controls
from mechint.analyses.circuits.features import CONTROL_BATCH, CONTROL_BUFFER, FeatureCircuitAnalyzer
from mechint.analyses.circuits.methods import single_units, starting_orders
from mechint.analyses.circuits.methods.all_methods import METHODS, SEARCH, methods_of
from mechint.analyses.circuits.methods.evaluator import Evaluator
from mechint.analyses.circuits.methods.found import FoundCircuit
from mechint.analyses.circuits.methods.probe import standard
from mechint.analyses.circuits.methods.starting_orders import NOTES
from mechint.analyses.circuits.methods.weights import own_rows
from mechint.analyses.circuits.results import load_history
from mechint.analyses.circuits.search.gates import shift_to
from mechint.analyses.circuits.search.learning import SearchOptions
from mechint.analyses.circuits.stored import _described
from mechint.interventions.unit_kinds import KV_UNITS
from mechint.utils.errors import MechintError
from tests.helpers.builders import tiny_gpt2, tiny_mamba
from tests.helpers.feature_units import prompts, units_of

# ---- sizes and notes --------------------------------------------------------------------------------------------


def sized(*reaching: int, asked: int | None = None) -> Any:
    """An analysis of 8 units whose circuits of these sizes reach the target; a circuit is its size here."""
    return SimpleNamespace(
        asked=asked, grid=lambda: [1, 2, 4, 8], seed=3, units=SimpleNamespace(top=lambda scores, size: size),
        reached=lambda bench, mask: mask in reaching,
        search=lambda bench, scores, name, seed, size, others: {"masks": {size: size}},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("reaching", "enough"), [((1, 2, 4, 8), 1), ((2, 4, 8), 2), ((1, 4, 8), 4), ((1, 2, 8), 8), ((8,), 8)]
)
def test_the_descent_is_enough_from_the_size_behind_the_last_that_falls_short(
    reaching: tuple[int, ...], enough: int
) -> None:
    passed: Any = {size: size for size in (1, 2, 4, 8)}
    bench: Any = None
    assert CircuitAnalyzer.enough(sized(*reaching), bench, passed) == enough
    assert CircuitAnalyzer.enough(sized(*reaching, asked=5), bench, passed) == 5


@pytest.mark.parametrize(("reaching", "size"), [((1, 2, 4, 8), 1), ((2, 4, 8), 2), ((4, 8), 4), ((8,), 8)])
def test_the_smallest_size_whose_own_search_reaches_the_target(reaching: tuple[int, ...], size: int) -> None:
    nothing: Any = None
    assert CircuitAnalyzer.choose_size(sized(*reaching), nothing, nothing, [], 8) == size


@pytest.mark.parametrize("least", range(1, 9))
def test_a_ranking_keeps_the_fewest_units_that_reach_the_target_between_sizes_of_the_grid(least: int) -> None:
    own = sized(*range(least, 9))
    own.enough = lambda bench, masks: CircuitAnalyzer.enough(own, bench, masks)
    nothing: Any = None
    assert CircuitAnalyzer.fewest(own, nothing, nothing) == least


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_circuit_says_that_a_search_began_in_a_further_order(
    elsewhere: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two searches of two units of three; the second is nearer to the model, and is pruned."""
    masks = [torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0.0, 1.0, 1.0])]
    result = lambda k: {"masks": {2: masks[k]}, "logits": torch.tensor([0.0, float(k), 2.0]), "went_back": k == 0,
                        "began_elsewhere": elsewhere and k == 1}  # fmt: skip
    ended = {"mask": masks[1], "evaluations": 9, "exchanges": 1, "minimal": True, "whole": True}
    monkeypatch.setattr(analysis, "how_pruned", lambda results, target: f"target {target:g}")
    likeness = {0: 1.4, 1: 0.9}
    own: Any = SimpleNamespace(
        config=SimpleNamespace(metric="kl", price=None, steps=5, seeds=2, search="budget", target_faithfulness=0.8),
        asked=2, seed=7, stages=SimpleNamespace(
            get=lambda name, compute: {"attribution": (torch.zeros(3), "attribution"), "needed": []}[name]),
        search=lambda bench, scores, name, *more, **options: result(name == "seed 1"),
        priced=lambda bench, scores: None, enough=lambda bench, masks: 2, grid=lambda: [1, 2, 3],
        pruned=lambda bench, name, mask, order, target, size: ended, by_size=lambda *arguments: {},
        units=SimpleNamespace(names=lambda mask: mask.nonzero().flatten().tolist()),
    )  # fmt: skip
    bench: Any = SimpleNamespace(faithful=lambda mask, metric: likeness[int(mask[2])])
    circuit = CircuitAnalyzer.searched(own, bench, [1, 3])
    notes = circuit.notes({})
    assert notes[1:] == ["target inf", NOTES["attribution"], NOTES["needed"] if elsewhere else ""]
    assert notes[0].startswith("1 of 2 searches")
    assert torch.equal(circuit.mask, masks[1]) and [m.tolist() for m in circuit.moved] == [[0.0, 1.0, 1.0]]
    chosen = [(one["name"], one["chosen"], one["units"]) for one in circuit.results["searches"]]
    assert chosen == [("seed 0", False, [0, 1]), ("seed 1", True, [1, 2])]
    done = circuit.results["pruning"]
    assert (done["units"], done["exchanged"], done["units_searched"]) == (2, 0, 2)
    assert done["faithfulness_discovery"] == 0.9 and not circuit.begins_elsewhere


def test_sparsity_and_keys_and_values_stand_below_the_first_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv, "circuit_summary", lambda results: ["first", "last"])
    results: Any = {"metrics": {}, "sparsity": {"asked": 0.9, "achieved": 0.875}}
    assert kv.summary(results) == ["first", "  sparsity        87.50% (asked for: 90.00%)", "last"]
    results["metrics"] = {"units_kept_k": {"value": 3}, "units_kept_v": {"value": 5}}
    results["sparsity"]["asked"] = None
    assert kv.summary(results) == ["first", "  of them         3 K, 5 V", "  sparsity        87.50%", "last"]


@pytest.mark.parametrize(
    ("name", "where"), [(RANDOM_WEIGHTS, "On random weights"), (EXCHANGED, "For exchanged answers")]
)
def test_a_control_says_the_notes_of_its_search(name: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing: Any = None
    evidence = SimpleNamespace(check=lambda: None, interval=lambda mask: {"value": mask})
    own: Any = SimpleNamespace(
        config=SimpleNamespace(method=SEARCH, metric="kl"), evidence=lambda bench, loader: evidence
    )
    made = Controls(own, nothing, nothing, (nothing, nothing), 2, lambda: 2, False)
    monkeypatch.setattr(controls, "check_effect", lambda ends, metric: None)
    bench: Any = SimpleNamespace(ends=None)
    for notes, said in ((["a note", ""], f"{where}: a note"), (["", ""], ""), (["a", "b"], f"{where}: a {where}: b")):
        monkeypatch.setattr(Controls, "searched", lambda self, name, bench, notes=notes: (5, notes))
        assert made.control(name, bench, nothing) == Control({"value": 5}, said)  # type: ignore[typeddict-item]


# ---- the log of searches ----------------------------------------------------------------------------------------


def test_a_search_of_gates_without_a_temperature_logs_none(tmp_path: Path) -> None:
    step = {"step": 0, "loss": 0.5, "metric": 0.25, "budget": 4, "kept": 3}
    lines = [{"search": "size 4", **step}, {"search": "random weights", "weights": "random", **step},
             {"search": "size 4", **step, "step": 1, "temperature": 0.5}]  # fmt: skip
    (tmp_path / "history.jsonl").write_text("\n".join(map(json.dumps, lines)))
    own: Any = SimpleNamespace(
        directory=tmp_path, searches=[SimpleNamespace(name="seed 0", weights="trained", budget=4)]
    )
    first, second = load_history(own)
    assert (first.name, first.weights, first.final) == ("seed 0", "trained", True)
    assert (second.name, second.weights, second.final) == ("random weights", "random", False)
    assert first.steps == [step, {**step, "step": 1, "temperature": 0.5}] and first.column("kept") == [3, 3]
    (tmp_path / "history.jsonl").write_text(json.dumps({**lines[0], "loss": "inf"}))
    with pytest.raises(MechintError, match=r"line 1 has a number that is not finite"):
        load_history(own)


# ---- single units -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", [0, 16, 17, 33])
def test_one_latent_or_error_is_dropped_at_its_site_alone(unit: int) -> None:
    """Two sites of 16 latents and an error each."""
    model = tiny_mamba().requires_grad_(False)
    units, batch = units_of(model, ("layers.0.out", "layers.1.out")), prompts(3, 6)
    fills: Any = dict.fromkeys(units.sites, 0.5)
    [edit] = units.dropping(unit, fills)
    assert edit.site == units.sites[unit // 17]
    mask = torch.ones(34)
    mask[unit] = 0
    ran = lambda edits: mechint.run(model, batch.tokens, edits=edits).logits
    assert torch.equal(ran([edit]), ran(units.edits(mask, fills)))


def test_a_unit_alone_counts_against_none_of_its_group_and_a_missing_one_against_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Units of 1, 2 and 4 in groups of two and one; a cell's value is the square of the sum of those that it keeps."""
    sizes = torch.tensor([1.0, 2.0, 4.0])
    value = lambda cell: [(sizes @ (torch.ones(3) if cell == [] else cell)).square().item()] * 2
    monkeypatch.setattr(
        single_units, "sweep", lambda model, tokens, cells, value_of, **options: torch.tensor([*map(value, cells)])
    )
    monkeypatch.setattr(single_units, "answer_metric", lambda metric, batch: None)
    own: Any = SimpleNamespace(
        model=None, answer_metric="loss", units=SimpleNamespace(
            total=3, groups=lambda: [torch.tensor([0, 1]), torch.tensor([2])], edits=lambda mask, fills: mask,
            dropping=lambda unit, fills: torch.ones(3).index_fill(0, torch.tensor([unit]), 0.0)),
    )  # fmt: skip
    batch: Any = SimpleNamespace(tokens=None, positions=None)
    alone = lambda direction: single_units.alone(own, batch, {}, direction)[:, 0].tolist()
    assert alone("necessary") == [49 - 36, 49 - 25, 49 - 9]
    assert alone("sufficient") == [25 - 16, 36 - 16, 49 - 9]


@pytest.mark.parametrize(("direction", "sign"), [("noise", 1), ("denoise", -1)])
def test_effects_of_an_exchange_are_means_over_the_answers_unless_these_stay_apart(
    direction: str, sign: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two units, one prompt with two answers; without an exchange the differences are 1 and 2."""
    ran = torch.tensor([[[4.0, 6.0]], [[1.0, 0.0]], [[1.0, 2.0]]])
    monkeypatch.setattr(single_units, "run", lambda model, tokens, **options: SimpleNamespace(values={}))
    monkeypatch.setattr(single_units, "sweep", lambda model, receiver, cells, *more, **options: receiver * ran)
    units: Any = SimpleNamespace(sites=[], total=2, read=dict, dropping=lambda number, values: [number])
    asked: Any = SimpleNamespace(tokens=1, twins=-1, positions=torch.zeros(1, 1))
    nothing: Any = None
    found = lambda each: single_units.exchange_effects(nothing, asked, units, direction, each).tolist()
    assert found(True) == [[3.0 * sign, 4.0 * sign], [0.0, -2.0 * sign]] and found(False) == [
        [3.5 * sign],
        [-1.0 * sign],
    ]


def test_columns_that_do_not_vary_say_nothing_of_an_answer() -> None:
    """1, 2 and 3 have a variance of 2/3."""
    x = torch.tensor([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
    expected = torch.tensor([[-(1.5**0.5), 0.0], [0.0, 0.0], [1.5**0.5, 0.0]])
    torch.testing.assert_close(standard(x), expected)


@pytest.mark.parametrize("level", [-100.0, 0.0, 100.0])
def test_a_budget_is_met_wherever_the_logits_are(level: float) -> None:
    """Two equal gates of which one is expected open are at 0."""
    assert float(shift_to(torch.full((2,), level), 1.0)) == pytest.approx(-level, abs=1e-5)


@pytest.mark.parametrize(("most", "how"), [(28, "removal"), (29, "removal"), (27, "misled")])
def test_units_are_removed_one_by_one_up_to_a_number_of_them(
    most: int, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting_orders, "EXACT_UNITS", most)
    monkeypatch.setattr(starting_orders, "misleads", lambda bench, metric, scores: True)
    monkeypatch.setattr(starting_orders, "removal_effects", lambda bench, metric: torch.ones(28))
    bench: Any = SimpleNamespace(units=SimpleNamespace(total=28))
    scores, said = starting_orders.starting_scores(bench, "kl", torch.zeros(28))
    assert said == how and float(scores.sum()) == (28 if how == "removal" else 0)


LATENTS = {
    "search", "attribution", "attribution_size", "removal", "patching_noise", "patching_denoise", "causal_necessary",
    "causal_sufficient", "random",
}  # fmt: skip
TWINS = {
    "patching_noise",
    "patching_denoise",
    "attribution_patching",
    "eap_ig",
    "eap_ig_activations",
    "relp",
    "atp_star",
}


def test_latents_are_ranked_by_methods_that_read_no_sites_and_twins_are_asked_for_by_those_that_exchange() -> None:
    assert set(methods_of({"latent": feature_units.KIND})) == LATENTS
    assert {name for name, method in METHODS.items() if method.twins} == TWINS


@pytest.mark.parametrize(
    ("unit", "axes"),
    [("kv", " (K and V, heads, dimensions)"), ("k", " (heads, dimensions)"), ("o", " (heads, dimensions)"),
     ("head", " (heads)"), ("mlp", ""), ("layer", "")],
)  # fmt: skip
def test_axes_of_units_are_named(unit: str, axes: str) -> None:
    kind = KV_UNITS[unit]
    assert _described([(2, 3), (2, 3)], kind) == f"2 layers of 2 x 3 {kind.several}{axes}"
    assert _described([(4,), (2, 3)], kind) == f"2 layers of 2 x 3 or 4 {kind.several}{axes}"


def test_the_shortest_of_a_few_steps_and_forwards_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps take 5, 3, 4 and 6 seconds, forwards 2, 2, 1 and 7."""
    ends = [end for k, took in enumerate((5, 3, 4, 6, 2, 2, 1, 7)) for end in (100.0 * k, 100.0 * k + took)]
    clock = iter(ends)
    monkeypatch.setattr(time_estimate.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(time_estimate, "loss_of", lambda bench, metric, index, gates, fixed: (gates.sum(), 0.0))
    made: Any = SimpleNamespace(
        units=SimpleNamespace(total=3), batches=[SimpleNamespace(tokens=torch.zeros(1))],
        measured=lambda index, mask, learn: {"kl": mask},
    )  # fmt: skip
    assert time_estimate.timed(made, ssm.SSMCircuitConfig()) == (3.0, 1.0)


# ---- dictionaries of the control --------------------------------------------------------------------------------


def test_dictionaries_for_random_weights_are_as_sparse_as_those_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """2, 0 and 1 latents are active: one on average; where none is, one all the same."""
    active = [torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 0.0]]), torch.tensor([[3.0, 0.0, 0.0]])]
    monkeypatch.setattr(features, "up_to", lambda model, tokens, site: {"read": (tokens,)}[site])
    monkeypatch.setattr(features, "latents_at", lambda dictionary, values: values)
    own: Any = SimpleNamespace(
        model=None, features=SimpleNamespace(dictionaries={"site": None}, reads={"site": "read"})
    )
    count = lambda tables: FeatureCircuitAnalyzer.active(own, "site", [SimpleNamespace(tokens=t) for t in tables])  # type: ignore[arg-type]
    assert count(active) == 1 and count([active[0][:1]]) == 2 and count([active[0][1:]]) == 1


@pytest.mark.parametrize(
    ("tokens", "batches"), [(100, 5), (7, 1), (40, 2), (10 * CONTROL_BUFFER, CONTROL_BUFFER // 20)]
)
def test_a_pool_of_the_control_holds_its_tokens_up_to_a_bound(
    tokens: int, batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of 4 prompts of 5 tokens."""
    pools, trainings = [], []
    monkeypatch.setattr(features, "TaskContexts", lambda task, split, rows, seed: SimpleNamespace(length=5, rows=rows))
    monkeypatch.setattr(features, "Streamed", lambda model, sites, contexts, pool, *more: pools.append(pool))
    monkeypatch.setattr(
        features, "train_grid", lambda mine, pools, training, *more, **rest: trainings.append(training) or []
    )

    class Loader(list[Any]):
        task = None

    own: Any = object.__new__(FeatureCircuitAnalyzer)
    own.config, own.seed = SimpleNamespace(control_tokens=tokens, exclude=()), 0
    model: Any = SimpleNamespace(device="cpu")
    configs: Any = {"site": SimpleNamespace(flatten="last")}
    loader: Any = Loader([range(3), range(4)])
    assert FeatureCircuitAnalyzer.train(own, model, configs, loader) == {}
    assert pools == [batches] and trainings[0].batch == min(CONTROL_BATCH, tokens) and trainings[0].tokens == tokens


# ---- defaults and parts -----------------------------------------------------------------------------------------


def test_what_is_so_unless_it_is_said() -> None:
    nothing: Any = None
    assert Evaluator(nothing) == Evaluator(nothing, "kl", 1, SearchOptions(), 0, True)
    found = FoundCircuit(nothing, 1, nothing, nothing, nothing, {}, {}, lambda results: [])
    assert not found.begins_elsewhere and found.before_pruning is None and found.moved == []
    assert ssm.ANALYSIS.default and not kv.ANALYSIS.default and not features.ANALYSIS.default


@pytest.mark.parametrize(("kind", "first", "end"), [("q", 0, 12), ("k", 12, 24), ("v", 24, 36), ("kv", 12, 36)])
def test_queries_keys_and_values_are_the_thirds_of_one_projection(kind: str, first: int, end: int) -> None:
    attention = tiny_gpt2().layers[0].attn
    [rows] = own_rows(attention, kind)
    assert torch.equal(rows, attention.c_attn.weight[first:end])
