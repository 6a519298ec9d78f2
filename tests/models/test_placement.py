"""Models whose layers are on several devices give the numbers of one device, to the bit, under every intervention.

The devices are pretended: their tensors are in CPU memory, and an operation that would mix two of them fails.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mechint
from mechint import Edit, MechintError
from mechint.interventions.gradients import gradients
from mechint.interventions.sweep import sweep
from mechint.interventions.taps import Tap
from mechint.models.base import LanguageModel
from mechint.models.loading.load import find_devices
from mechint.models.placement import devices_of, place, shares, size_of
from mechint.training.models import make_model, other_config
from mechint.training.options import OtherArchitecture
from tests.helpers.builders import VOCABULARY, tiny_gpt2, tiny_llama, tiny_mamba, tokens
from tests.helpers.devices import There, pretended_devices
from tests.helpers.families import zamba2

Devices = list[torch.device]


def hybrid(model_type: str, **sizes: Any) -> Callable[..., LanguageModel]:
    def made() -> LanguageModel:
        torch.manual_seed(3)
        return make_model(
            other_config(OtherArchitecture(model_type=model_type, d_model=32, **sizes), VOCABULARY), "unit"
        )

    return made


MAKERS: dict[str, Callable[..., LanguageModel]] = {
    "mamba": tiny_mamba, "gpt2": tiny_gpt2, "llama": tiny_llama,
    "falcon_h1": hybrid("falcon_h1", n_layer=2), "qwen3_5": hybrid("qwen3_5", layers="delta attention"),
}  # fmt: skip
LENGTH = 6


def frozen(name: str, **sizes: Any) -> LanguageModel:
    return MAKERS[name](**sizes).eval().requires_grad_(False)


def split(model: LanguageModel, devices: Devices) -> LanguageModel:
    """A copy of a model with its layers on the devices."""
    other = copy.deepcopy(model)
    place(other, devices)
    return other


def plain(value: Any) -> Any:
    """Tensors of any device as plain ones."""
    if isinstance(value, There):
        return value.inner
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def same(one: Any, other: Any) -> None:
    """Raises unless two results are equal, tensors in every bit."""
    one, other = plain(one), plain(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one.nan_to_num(7.5), other.nan_to_num(7.5)) and one.dtype == other.dtype
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            same(one[name], other[name])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            same(*pair)
    else:
        assert one == other or one != one


@pytest.fixture
def devices() -> Iterator[Devices]:
    with pretended_devices() as found:
        yield found


# ---- the stand-in --------------------------------------------------------------------------------------------------


def test_pretended_devices_do_not_mix(devices: Devices) -> None:
    one, two = (torch.arange(3.0, device=device) for device in devices)
    assert one.device == devices[0] and (one + one).device == devices[0] and (one + 1.0).tolist() == [1, 2, 3]
    assert (one.to(devices[1]) + two).device == devices[1] and one[torch.tensor([2])].tolist() == [2]
    assert torch.tensor([1.0], device=devices[1]).device == two.new_zeros(2).device == devices[1]
    assert type(one.cpu()) is torch.Tensor and float(two.sum()) == 3
    for mixed in (
        lambda: one + two, lambda: one + torch.ones(3), lambda: torch.cat([one, two]), lambda: one[two.long()],
        lambda: one * two.sum(), lambda: torch.where(one > 1, two, two), lambda: one.index_put((two.long(),), one),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match="meet"):
            mixed()


@pytest.mark.parametrize("forgotten", ["arrive", "leave"])
def test_a_move_that_is_forgotten_is_seen(forgotten: str, devices: Devices, monkeypatch: pytest.MonkeyPatch) -> None:
    model = split(frozen("llama"), devices)
    monkeypatch.setattr(LanguageModel, forgotten, lambda self, i, r, *tap: r)
    with pytest.raises(RuntimeError, match="meet"):
        model(tokens(1, 4).to(devices[0]))


# ---- the model -----------------------------------------------------------------------------------------------------


@pytest.mark.slow_except("mamba|gpt2")
@pytest.mark.parametrize("name", MAKERS)
def test_logits_and_every_site_are_those_of_one_device(name: str, devices: Devices) -> None:
    model, prompts = frozen(name), tokens(2, LENGTH)
    alone, placed = model, split(model, devices)
    assert sorted({device.index for device in placed.placement}) == [0, 1]
    assert placed.device == devices[0] and {p.device for p in placed.parameters()} == set(devices)
    here = prompts.to(devices[0])
    one, two = (mechint.run(m, t, record="*") for m, t in ((alone, prompts), (placed, here)))
    assert {value.device for value in two.values.values()} == {two.logits.device} == {devices[0]}
    same(one.values, two.values)
    same(one.logits, two.logits)
    same(mechint.generate(alone, prompts, 3).logits, mechint.generate(placed, here, 3).logits)
    at = torch.tensor([[1, 4], [3, 5]])
    found = (m.read_by_head(t, Tap(), w) for m, t, w in ((alone, prompts, at), (placed, here, at.to(devices[0]))))
    same(*found)


@pytest.mark.slow_except("qwen3_5")
@pytest.mark.parametrize("name", MAKERS)
def test_edits_of_every_site_are_those_of_one_device(name: str, devices: Devices) -> None:
    """By a value, by a function that holds tensors of the first device, and by a mask; at all sites at once."""
    model, prompts = frozen(name), tokens(2, LENGTH)
    placed, found = split(model, devices), []
    for m, t in ((model, prompts), (placed, prompts.to(devices[0]))):
        push, edits = torch.tensor(0.2, device=t.device), []
        for site in (site for site in m.sites if site.rpartition(".")[2] not in ("scores", "pattern")):
            shift = torch.arange(LENGTH, device=t.device).view(LENGTH, *[1] * len(m.sites[site].units)) * 0.1
            edits += [
                Edit(site, "add", 0.3, positions=[2]), Edit(site, "replace", lambda x, push=push: x * 0.5 + push),
                Edit(site, "mask", 1.0 - 0.1 * shift, fill=shift),
            ]  # fmt: skip
        done = mechint.run(m, t, "*", edits)
        found.append([done.logits, done.values])
    same(*found)


@pytest.mark.slow_except("mamba")
@pytest.mark.parametrize("name", MAKERS)
def test_cuts_are_those_of_one_device(name: str, devices: Devices) -> None:
    model, prompts = frozen(name), tokens(2, LENGTH)
    placed, here, last = split(model, devices), prompts.to(devices[0]), model.num_layers - 1
    for kind in model.paths:
        if (site := f"layers.{last}.{kind}") in model.sites:
            cut = Edit(site, "cut", positions=[4, 5], sources=[3])
            same(mechint.run(model, prompts, edits=[cut]).logits, mechint.run(placed, here, edits=[cut]).logits)


@pytest.mark.slow_except("llama")
@pytest.mark.parametrize("name", MAKERS)
def test_gradients_at_every_site_are_those_of_one_device(name: str, devices: Devices) -> None:
    model, prompts = frozen(name), tokens(2, LENGTH)
    metric = lambda logits: logits[:, -1, 3] - logits[:, -1, 5]
    one = gradients(model, prompts, ["*"], metric)
    two = gradients(split(model, devices), prompts.to(devices[0]), ["*"], metric)
    same(list(one), list(two))
    assert any(float(value.abs().max()) > 0 for value in one[1].values())


@pytest.mark.slow_except("gpt2")
@pytest.mark.parametrize("name", MAKERS)
def test_sweeps_are_those_of_one_device(name: str, devices: Devices) -> None:
    """Cells of every layer and of several starts, late ones and those of a function among them, over a base."""
    model, prompts = frozen(name), tokens(2, LENGTH)
    placed, here = split(model, devices), prompts.to(devices[0])
    found = []
    for m, t in ((model, prompts), (placed, here)):
        push = torch.ones((), device=t.device)
        kinds = ("resid_pre", "resid_post", *m.late_sites, *m.memory, *m.mixers)
        last = m.num_layers - 1
        sites = [s for i in (0, last) for k in dict.fromkeys(kinds) if (s := f"layers.{i}.{k}") in m.sites]
        cells = [[Edit(site, "scale", 0.5, positions=[p])] for site, p in zip(sites, itertools.cycle((0, 2, 4)))]
        cells += [[Edit(site, "replace", lambda x, push=push: x + push, positions=[3])] for site in sites[:2]]
        base = [Edit("layers.0.resid_post", "add", 0.1, positions=[1])]
        wanted = torch.tensor([[2, 5], [4, 5]], device=t.device)
        found.append(sweep(m, t, cells, base=base, logits_at=wanted))
    same(*found)


def test_a_backward_pass_reaches_the_weights_of_both(devices: Devices) -> None:
    model, prompts = tiny_llama(), tokens(2, LENGTH)
    placed = split(model, devices)
    for m, t in ((model, prompts), (placed, prompts.to(devices[0]))):
        m(t)[:, -1, 3].sum().backward()
    same([p.grad for p in model.parameters()], [p.grad for p in placed.parameters()])


# ---- where layers go -----------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 9), min_size=1, max_size=7), st.integers(0, 30), st.data())
def test_the_fullest_device_holds_as_little_as_can_be(layers: list[int], rest: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(layers)))
    found = shares(layers, rest, count)
    loads = lambda cuts: [
        sum(layers[a:b]) + rest * (a == 0 and k == 0)
        for k, (a, b) in enumerate(itertools.pairwise([0, *cuts, len(layers)]))
    ]
    cuts = list(itertools.accumulate(found))[:-1]
    others = itertools.combinations(range(len(layers)), count - 1)  # the first device may have no layer
    assert sum(found) == len(layers) and len(found) == count and all(found[1:])
    assert max(loads(cuts)) == min(max(loads(list(each))) for each in others)


def test_bytes_are_those_of_the_weights_in_their_precision() -> None:
    model = tiny_mamba()
    assert size_of(model) == sum(4 * p.numel() for p in model.parameters()) == 2 * size_of(tiny_mamba().bfloat16())


def test_embeddings_and_head_are_on_the_first_device(devices: Devices) -> None:
    model = split(frozen("llama", n_layer=5, tied=False), devices)
    norm, head = model.ending
    assert {head.device, norm.weight.device, model.embeddings.device} == {devices[0]}  # type: ignore[union-attr]
    assert devices_of(model) == "cpu:0 (layers 0-1), cpu:1 (layers 2-4)" and devices_of(frozen("llama")) == "cpu"


def test_a_vocabulary_that_fills_the_first_device_leaves_it_no_layer(devices: Devices) -> None:
    model = frozen("llama", vocab_size=4000)
    placed = split(model, devices)
    assert devices_of(placed) == "cpu:0, cpu:1 (layers 0-1)"
    same(model(tokens(1, 4)), placed(tokens(1, 4).to(devices[0])))


def test_a_placed_model_is_moved_no_further(devices: Devices) -> None:
    model = split(frozen("gpt2"), devices)
    assert model.to(devices[0]) is model and model.placement
    with pytest.raises(MechintError, match="on several devices, and cpu:1 is asked for"):
        model.to(devices[1])


def test_what_cannot_be_placed_is_refused(devices: Devices) -> None:
    with pytest.raises(MechintError, match=r"has 2 layers, and 3 devices are given \(cpu:0, cpu:1, cpu:2\)"):
        place(frozen("llama"), [*devices, torch.device("cpu:2")])
    with pytest.raises(MechintError, match="the layers of a zamba2 model use each other's weights"):
        place(zamba2(), devices)


def test_devices_are_a_list_of_different_ones() -> None:
    assert find_devices("cpu") == [torch.device("cpu")] == find_devices(torch.device("cpu"))
    with pytest.raises(MechintError, match="cpu is named twice"):
        find_devices("cpu:0,cpu:1")  # one memory
    with pytest.raises(MechintError, match="no device is named"):
        find_devices(" , ")
    with pytest.raises(MechintError, match="'gpu' is not one that torch knows"):
        find_devices("cpu, gpu")
