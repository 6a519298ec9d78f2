"""A memory moved from one run into another."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechint.interventions.run import run
from mechint.interventions.transplant import placed, placed_each, taken, transplant_state
from mechint.utils.errors import MechintError
from tests.helpers.builders import tiny_gpt2, tiny_llama, tiny_mamba, tokens


def test_a_transplanted_memory_makes_the_donor_s_continuation() -> None:
    model = tiny_mamba(5, torch.float64)
    donor, receiver, suffix = tokens(3, 6, 1), tokens(3, 6, 2), tokens(3, 5, 3)
    both = [torch.cat([prefix, suffix], 1) for prefix in (donor, receiver)]
    expected = model(both[0])[:, 6:]
    got = transplant_state(model, both[0], both[1], position=5)
    torch.testing.assert_close(got[:, 6:], expected, rtol=0, atol=1e-12)
    assert torch.equal(got[:, :5], model(both[1])[:, :5])
    # the donor may be of another length, and a part of its memory is not enough
    got = transplant_state(model, donor[:, :4], both[1], position=5, from_position=-1)
    torch.testing.assert_close(got[:, 6:], model(torch.cat([donor[:, :4], suffix], 1))[:, 4:], rtol=0, atol=1e-12)
    for part in ({"layers": [0]}, {"memory": ["state"]}, {"memory": ["conv_state"]}):
        assert (transplant_state(model, both[0], both[1], position=5, **part)[:, 6:] - expected).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [2]}, "layer 2 does not exist; there are 2"),
        ({"memory": ["readout"]}, "keeps no memory 'readout'"),
        ({"from_position": 9}, "position 9 does not exist in the donor"),
        ({"position": 9}, "position 9 does not exist"),
        ({"position": 5}, "position 5 does not exist in the donor; it has 5"),
        ({"position": 5, "from_position": 4}, "position 5 does not exist in the receiver; it has 5"),
        ({"position": -6, "from_position": 4}, "position -6 does not exist in the receiver"),
    ],
)
def test_transplants_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MechintError, match=message):
        transplant_state(tiny_mamba(), tokens(2, 5), tokens(2, 5), **{"position": 3, **options})
    with pytest.raises(MechintError, match="a gpt2 model keeps no memory 'state'; it keeps v, k"):
        transplant_state(tiny_gpt2(), tokens(2, 5), tokens(2, 5), position=3, memory=["state"])
    with pytest.raises(MechintError, match=r"v and k of positions 0 to 1 cannot stand at positions 0 to 3"):
        transplant_state(tiny_gpt2(), tokens(2, 5), tokens(2, 5), position=3, from_position=1)
    with pytest.raises(MechintError, match="3 donors for 2 receivers"):
        transplant_state(tiny_mamba(), tokens(3, 5), tokens(2, 5), position=3)


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_llama])
@pytest.mark.parametrize("position", [0, 5])
def test_transplanted_keys_and_values_make_the_donor_s_continuation(build: Any, position: int) -> None:
    model = build(5, torch.float64)
    suffix, end = tokens(3, 5, 3), position + 1
    both = [torch.cat([tokens(3, end, seed), suffix], 1) for seed in (1, 2)]
    expected, own = model(both[0])[:, end:], model(both[1])
    got = transplant_state(model, both[0], both[1], position=position)
    torch.testing.assert_close(got[:, end:], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(got[:, :position], own[:, :position], rtol=0, atol=1e-12)
    for part in ({"layers": [0]}, {"memory": [model.memory[0]]}, {"memory": [model.memory[1]]}):
        mixed = transplant_state(model, both[0], both[1], position=position, **part)[:, end:]
        assert (mixed - expected).abs().max() > 1e-3 and (mixed - own[:, end:]).abs().max() > 1e-3
    one = transplant_state(model, both[0][:1], both[1], position=position)  # one donor for all
    alone = transplant_state(model, both[0][:1].expand(3, -1), both[1], position=position)
    torch.testing.assert_close(one, alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("made", [tiny_mamba, tiny_gpt2])
def test_sites_are_taken_at_some_positions_and_placed_row_by_row(made: Any) -> None:
    """A prefix read first gives what a whole run records; each row is replaced at a position of its own."""
    model, ids = made(dtype=torch.float64).requires_grad_(False), tokens(3, 6)
    sites = ["layers.1.resid_post", *(["layers.0.state"] if made is tiny_mamba else ["layers.0.v"])]
    whole = run(model, ids, sites)
    for start, count in ((0, 1), (2, 3), (5, 1)):
        for site, value in taken(model, ids, sites, start, count).items():
            torch.testing.assert_close(value, whole[site][:, start : start + count])
    for site in sites:
        values, at = whole[site][[1, 2, 0], 4], [1, 5, 0]
        found = run(model, ids, edits=placed_each(site, values, at)).logits
        for row, position in enumerate(at):
            alone = run(model, ids[row : row + 1], edits=placed({site: values[row][None, None]}, position)).logits
            torch.testing.assert_close(found[row : row + 1], alone)
