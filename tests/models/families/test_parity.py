"""Every declared family against transformers promoted to float64, and against itself behind a cache and under edits."""

from __future__ import annotations

import copy
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import mechint
from mechint.interventions.sweep import sweep
from mechint.models.families import declared
from mechint.models.loading.load import hf_config, supported, to_hf_state_dict
from mechint.models.parts.base import Layer
from mechint.models.stack import Stack

transformers = pytest.importorskip("transformers")
load_file = pytest.importorskip("safetensors.torch").load_file

from tests.helpers.examples import examples  # noqa: E402
from tests.helpers.judges.base import VOCABULARY, Judge, judged, logits_of, plain_experts, promoted  # noqa: E402
from tests.helpers.judges.hybrids import JUDGES as HYBRIDS  # noqa: E402
from tests.helpers.judges.recurrent import JUDGES as RECURRENT  # noqa: E402
from tests.helpers.judges.transformers import JUDGES as TRANSFORMERS  # noqa: E402
from tests.helpers.paths import ROOT  # noqa: E402
from tests.helpers.sweeps import LENGTH, ROWS, one_by_one, whole_and_in_pieces  # noqa: E402

JUDGES = {judge.family: judge for judge in [*RECURRENT, *HYBRIDS, *TRANSFORMERS]}
TIGHT = 1e-12
"""Of the largest entry, in float64."""
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.exhaustive) for seed in range(1, 6))]
QUICK = "(.*-)?0"
"""The parameters of the tests that run in the quick set: the first seed."""
FEW = "(mamba2|falcon_mamba|falcon_h1|qwen3_5|gemma2)-0"
"""Those of the tests that edit every site in turn: a family with each kind of memory, and one with attention alone."""


def error(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, by the largest entry."""
    return float(((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30)).detach())


def prompt(rows: int = 2, length: int = 11, seed: int = 1) -> Tensor:
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def saved(judge: Judge, seed: int, path: Path) -> tuple[Any, Stack]:
    """transformers' model, and ours from the directory that it is saved to."""
    theirs = judged(judge, seed)
    theirs.save_pretrained(path)
    ours = mechint.load(path, dtype="float64")
    assert isinstance(ours, Stack) and ours.config.family == judge.family
    return theirs, ours


def random_model(name: str, seed: int, path: Path) -> Stack:
    return saved(JUDGES[name], seed, path)[1]


def test_every_declared_family_has_a_judge() -> None:
    assert {family.name for family in declared().values()} == JUDGES.keys()


@pytest.mark.slow_except(QUICK)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", JUDGES)
def test_logits_gradients_and_parts_are_those_of_transformers(name: str, seed: int, tmp_path: Path) -> None:
    """In float64 to 1e-12 of their size: logits, every parameter's gradient, every part's output and every residual."""
    theirs, ours = saved(JUDGES[name], seed, tmp_path)
    tokens = prompt()
    seen: dict[str, Tensor] = {}

    def keep(key: str) -> Any:
        return lambda module, given, out: seen.__setitem__(key, out[0] if isinstance(out, tuple) else out)

    body: Any = theirs.get_submodule(theirs.base_model_prefix).get_submodule(JUDGES[name].layers)
    record = []
    for i, layer in enumerate(ours.layers):
        assert isinstance(layer, Layer)
        body[i].register_forward_hook(keep(f"layers.{i}.resid_post"))
        record.append(f"layers.{i}.resid_post")
        for branch in (branch for step in layer.steps for branch in step):
            for attribute in branch.parts:
                if branch.scale == 1.0 and not branch.behind and attribute not in JUDGES[name].skip_parts:
                    site = f"layers.{i}.{layer.parts[attribute].out}"
                    body[i].get_submodule(attribute).register_forward_hook(keep(site))
                    record.append(site)
    expected = logits_of(theirs, tokens)
    run = mechint.run(ours, tokens, record=record)
    assert expected.std() > 0.02  # a real test: the logits are not all about zero
    assert error(run.logits, expected) <= TIGHT
    for site in record:
        assert error(run[site], seen[site]) <= TIGHT, site
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with promoted():
        (expected * weights).sum().backward()
    (run.logits * weights).sum().backward()
    found = JUDGES[name].whole(to_hf_state_dict(with_gradients(ours)))
    wanted = JUDGES[name].whole(saved_gradients(theirs, tmp_path / "gradients"))
    assert found.keys() == wanted.keys()
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    for key, gradient in wanted.items():
        if float(gradient.abs().max()) <= TIGHT * largest:  # rounding of 0: of key biases where nothing is rotated
            assert float(found[key].abs().max()) <= TIGHT * largest, key
        else:
            assert error(found[key], gradient) <= TIGHT, key


def saved_gradients(theirs: Any, path: Path) -> dict[str, Tensor]:
    """transformers' gradients under the names of its files, which are others than those in memory in some families."""
    for p in theirs.parameters():
        p.data = torch.zeros_like(p) if p.grad is None else p.grad
    theirs.save_pretrained(path)
    return load_file(path / "model.safetensors")


def with_gradients(model: Stack) -> Stack:
    """A model of the same kind whose weights are the gradients."""
    for p in model.parameters():
        p.data = torch.zeros_like(p) if p.grad is None else p.grad
    return model


@pytest.mark.slow_except(QUICK)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", JUDGES)
def test_prefill_is_token_by_token_and_continuation(name: str, seed: int, tmp_path: Path) -> None:
    model, tokens = random_model(name, seed, tmp_path), prompt()
    whole = mechint.run(model, tokens).logits
    parts, cache = [], None
    for step in tokens.split([1, 1, 4, 1, 4], 1):
        run = mechint.run(model, step, cache=cache)
        parts.append(run.logits)
        cache = run.cache
    assert error(torch.cat(parts, 1), whole) <= TIGHT


@pytest.mark.slow_except(QUICK)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", JUDGES)
def test_a_saved_model_is_the_same_for_transformers(name: str, seed: int, tmp_path: Path) -> None:
    """Our file is theirs to the bit, and their program computes the same from it."""
    theirs, ours = saved(JUDGES[name], seed, tmp_path / "theirs")
    read = JUDGES[name].whole(load_file(tmp_path / "theirs/model.safetensors"))
    written = JUDGES[name].whole(to_hf_state_dict(ours))
    assert written.keys() == read.keys()
    assert all(torch.equal(written[key], read[key]) for key in read)
    again = type(theirs)(type(theirs.config)(**hf_config(ours))).double().eval()
    plain_experts(again)
    again.load_state_dict(theirs.state_dict())
    tokens = prompt()
    with torch.no_grad():
        assert error(again(tokens, use_cache=False).logits, theirs(tokens, use_cache=False).logits) < 1e-5


@pytest.mark.slow_except(FEW)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", JUDGES)
def test_sites_have_their_shapes_and_edits_of_nothing_change_no_bit(name: str, seed: int, tmp_path: Path) -> None:
    model, tokens = random_model(name, seed, tmp_path), prompt()
    with torch.no_grad():
        plain = mechint.run(model, tokens)
        run = mechint.run(model, tokens, record=["*"])
        assert torch.equal(run.logits, plain.logits)
        for site, said in model.sites.items():
            assert tuple(run[site].shape) == (*tokens.shape, *said.of_length(tokens.shape[1]).units), site
        for site in model.sites:
            for edit in (mechint.Edit(site, "scale", 1.0), mechint.Edit(site, "replace", run[site])):
                if not torch.isfinite(run[site]).all():
                    continue  # the scores of later sources
                assert torch.equal(mechint.run(model, tokens, edits=[edit]).logits, plain.logits), (site, edit.mode)


@pytest.mark.slow_except(FEW)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", JUDGES)
def test_an_edit_at_any_site_is_the_same_whole_and_token_by_token(name: str, seed: int, tmp_path: Path) -> None:
    """An edit at one position moves nothing before it, and the whole run equals a run in pieces behind a cache."""
    model, tokens = random_model(name, seed, tmp_path), prompt()
    with torch.no_grad():
        clean = mechint.run(model, tokens).logits
        for site in model.sites:
            scale = -math.inf if site.endswith(".scores") else 0.5
            edit = mechint.Edit(site, "add" if site.endswith(".scores") else "scale", scale, positions=[4],
                                units=[(0, 2)] if site.endswith(".scores") else None)  # fmt: skip
            whole = mechint.run(model, tokens, edits=[edit]).logits
            assert torch.equal(whole[:, :4], clean[:, :4]), site
            generated = mechint.run(model, tokens[:, :3], edits=[])
            rest = mechint.run(model, tokens[:, 3:], edits=[edit], cache=generated.cache)
            assert error(rest.logits, whole[:, 3:]) <= TIGHT, site


@pytest.mark.slow_except(FEW)
@pytest.mark.parametrize("name, seed", [(name, 0) for name in JUDGES])
def test_any_two_edits_are_the_same_whole_and_in_pieces(name: str, seed: int, tmp_path: Path) -> None:
    model = random_model(name, seed, tmp_path)

    @given(found=whole_and_in_pieces(model, prompt(ROWS, LENGTH)))
    @settings(max_examples=examples(40), deadline=None)
    def check(found: tuple[Tensor, Tensor]) -> None:
        torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)

    check()


@pytest.mark.slow_except(FEW)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", JUDGES)
def test_a_sweep_of_single_positions_is_one_run_for_each(name: str, seed: int, tmp_path: Path) -> None:
    """Every site is edited at one position each; the sweep's short cuts change nothing, for all logits and the last."""
    model, tokens = random_model(name, seed, tmp_path), prompt(length=7)
    rng = random.Random(seed)
    cells = []
    for site in model.sites:
        source = site.endswith((".scores", ".pattern"))
        position = rng.randint(0, 6)
        unit: Any = (0, rng.randint(0, position)) if source else 0
        mode, value = ("add", 0.7) if source else rng.choice([("add", 0.7), ("scale", 0.4), ("replace", 0.3)])
        units = None if rng.random() < 0.5 and not source else [unit]
        cells.append([mechint.Edit(site, mode, value, positions=[position], units=units)])
    found = sweep(model, tokens, cells)
    expected = one_by_one(model, tokens, cells)
    assert error(found, expected) <= TIGHT
    last = torch.full((2, 1), 6)
    assert error(sweep(model, tokens, cells, logits_at=last), expected[:, :, -1:]) <= TIGHT


@pytest.mark.slow_except(FEW.removesuffix("-0"))
@pytest.mark.parametrize("name", JUDGES)
def test_edits_of_nothing_change_no_bit_in_single_precision(name: str, tmp_path: Path) -> None:
    """The compiled recurrence and its steps are the same numbers, with and without gradients."""
    saved(JUDGES[name], 0, tmp_path)
    model, tokens = mechint.load(tmp_path), prompt(length=7)
    plain = mechint.run(model, tokens).logits
    with torch.no_grad():
        run = mechint.run(model, tokens, record=["*"])
        assert torch.equal(run.logits, plain)
        for site in model.sites:
            if torch.isfinite(run[site]).all():  # the scores of later sources are not
                edit = mechint.Edit(site, "replace", run[site])
                assert torch.equal(mechint.run(model, tokens, edits=[edit]).logits, plain), site


@pytest.mark.slow_except(FEW.removesuffix("-0"))
@pytest.mark.parametrize("name", JUDGES)
def test_single_precision_is_near(name: str, tmp_path: Path) -> None:
    theirs, _ = saved(JUDGES[name], 0, tmp_path)
    tokens = prompt()
    with torch.no_grad():
        found = mechint.load(tmp_path)(tokens)
        assert error(found.double(), logits_of(theirs, tokens)) <= 1e-4


def test_the_pages_name_every_family() -> None:
    page, numbers = (ROOT / "docs/families.md").read_text(), (ROOT / "docs/parity.md").read_text()
    assert [name for name in supported() if f"`{name}`" not in page] == []
    assert [name for name in JUDGES if f"| `{name}` |" not in numbers] == []


@pytest.mark.slow_except(FEW.removesuffix("-0"))
@pytest.mark.parametrize("name", JUDGES)
def test_a_copy_computes_the_same(name: str, tmp_path: Path) -> None:
    """A control on random weights copies the model."""
    model = random_model(name, 0, tmp_path)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        assert torch.equal(twin(prompt()), model(prompt()))
        for p in twin.parameters():
            p.zero_()
        assert torch.equal(mechint.load(tmp_path, dtype="float64")(prompt()), model(prompt()))
