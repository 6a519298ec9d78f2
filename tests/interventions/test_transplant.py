"""A memory moved from one run into another."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechint.interventions.transplant import transplant_state
from mechint.utils.errors import MechintError
from tests.helpers.builders import tiny_gpt2, tiny_mamba, tokens


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
    ],
)
def test_transplants_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MechintError, match=message):
        transplant_state(tiny_mamba(), tokens(2, 5), tokens(2, 5), **{"position": 3, **options})
    with pytest.raises(MechintError, match="a gpt2 model keeps no memory 'state'"):
        transplant_state(tiny_gpt2(), tokens(2, 5), tokens(2, 5), position=3)
    with pytest.raises(MechintError, match="3 donors for 2 receivers"):
        transplant_state(tiny_mamba(), tokens(3, 5), tokens(2, 5), position=3)
