"""Maps of every family: what they read and give beside the sites, edits that meet their value, and weights that come
back to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mechint.analyses.editing.maps import changed, chosen_maps, maps_of, watching
from mechint.analyses.editing.update import rome_update, solver
from mechint.interventions.run import run
from mechint.utils.errors import MechintError
from mechint.utils.rundir import weights_digest
from tests.helpers.builders import tiny_gpt2, tiny_llama, tiny_mamba, tokens
from tests.helpers.families import falcon_h1, zamba2

DOUBLE = torch.float64
MODELS: dict[str, Callable[[], Any]] = {
    "mamba": lambda: tiny_mamba(1, DOUBLE), "gpt2": lambda: tiny_gpt2(1, DOUBLE),
    "llama": lambda: tiny_llama(1, DOUBLE), "falcon_h1": falcon_h1, "zamba2": zamba2,
}  # fmt: skip
INPUTS = {"down_proj": "mlp_post", "x_proj": "u", "in_x": "norm"}
OUTPUTS = {"in_x": "x", "in_z": "z"}


def edits_meet_their_value(model: Any) -> set[str]:
    """Edits every map at one token and holds that it gives the value there; returns the maps' names."""
    ids, names = tokens(1, 5), set()
    digest = weights_digest(model)
    for layer in range(model.num_layers):
        for one in maps_of(model, layer).values():
            with watching(one) as caught:
                model(ids)
            key, before = caught.inputs[0, 2].double(), caught.outputs[0, 2].double()
            assert torch.allclose(
                key @ one.weight.double().T + (0 if one.linear.bias is None else one.linear.bias[one.rows]), before
            )
            shift = torch.linspace(-1, 1, len(before), dtype=DOUBLE)
            update = rome_update(key, shift, solver(torch.eye(len(key), dtype=DOUBLE), str(one)))
            with watching(one, shift[None], torch.tensor([2])):
                shifted = model(ids)
            with changed([(one, update)]), watching(one) as caught:
                model(ids)
            assert torch.allclose(caught.inputs[0, 2].double(), key)  # causal, and the map is the first that differs
            assert torch.allclose(caught.outputs[0, 2].double(), before + shift, atol=1e-9)
            assert not torch.equal(shifted, model(ids)) or layer == model.num_layers - 1
            names.add(one.name)
    assert weights_digest(model) == digest
    return names


@pytest.mark.parametrize("name", MODELS)
def test_edits_meet_their_value_and_the_weights_come_back(name: str) -> None:
    found = edits_meet_their_value(MODELS[name]().requires_grad_(False))
    assert found == {
        "mamba": {"out_proj", "in_x", "in_z", "x_proj", "dt_proj"}, "gpt2": {"down_proj"}, "llama": {"down_proj"},
        "falcon_h1": {"down_proj", "out_proj", "in_z", "value"}, "zamba2": {"out_proj", "in_z", "value"},
    }[name]  # fmt: skip


@pytest.mark.parametrize("name", ["mamba", "gpt2", "llama"])
def test_maps_read_and_give_what_the_sites_say(name: str) -> None:
    model, ids = MODELS[name](), tokens(2, 4)
    for one in maps_of(model, 1).values():
        wanted = [f"layers.1.{table[one.name]}" for table in (INPUTS, OUTPUTS) if one.name in table]
        with watching(one) as caught, torch.no_grad():
            found = run(model, ids, wanted).values
        for table, value in ((INPUTS, caught.inputs), (OUTPUTS, caught.outputs)):
            if one.name in table:
                assert torch.equal(found[f"layers.1.{table[one.name]}"].to(value), value)
        assert one.site in model.sites and one.stream == "layers.1.resid_post"
        assert one.added == (one.name in ("down_proj", "out_proj"))


def test_values_of_a_matrix_memory_are_the_rows_of_its_values() -> None:
    model, ids = falcon_h1(), tokens(1, 4)
    one = maps_of(model, 0)["value"]
    with torch.no_grad(), watching(one) as caught:
        x = run(model, ids, ["layers.0.x"])["layers.0.x"]
    assert torch.allclose(caught.outputs, x[..., : caught.outputs.shape[-1]])
    assert not maps_of(model, 0)["out_proj"].added  # its output is multiplied by 1.2
    assert maps_of(model, 0)["out_proj"].stream == "layers.0.resid_mid"


def test_weights_come_back_after_an_error_and_from_overlapping_changes() -> None:
    model = tiny_mamba(1)
    digest, maps = weights_digest(model), maps_of(model, 0)
    one, other = maps["in_x"], maps["in_z"]
    ones = torch.full(one.weight.shape, 1 / 3, dtype=DOUBLE)
    with pytest.raises(KeyError), changed([(one, ones), (one, ones), (other, ones)]):
        assert weights_digest(model) != digest
        raise KeyError
    assert weights_digest(model) == digest


def test_maps_that_there_are_not_are_refused() -> None:
    mamba, gpt2 = tiny_mamba(1), tiny_gpt2(1)
    assert list(chosen_maps(mamba, "usual", [0, 1], "maps")) == ["out_proj", "in_x"]
    assert [one.layer for one in chosen_maps(gpt2, "down_proj", [1], "maps")["down_proj"]] == [1]
    with pytest.raises(MechintError, match=r"gpt2 model has no map 'out_proj'.*its layers have down_proj"):
        chosen_maps(gpt2, "out_proj", [0], "maps")
    with pytest.raises(MechintError, match="did you mean dt_proj"):
        chosen_maps(mamba, "dt_prj", [0], "maps")
    with pytest.raises(MechintError, match="no map is named"):
        chosen_maps(mamba, " ", [0], "maps")
    assert list(chosen_maps(falcon_h1(), "usual", [0], "maps")) == ["down_proj", "out_proj", "value"]
