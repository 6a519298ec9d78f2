"""Training of transcoders: a map that is known is learned, folded to raw activations, and made again to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mechint import MechintError
from mechint.sae.training import Training
from mechint.sae.transcoder import TranscoderConfig
from mechint.sae.transcoder_training import _Learner, train_transcoders

READ, WRITTEN = "layers.0.ln_2", "layers.0.mlp_out"
TRAINING = Training(tokens=150 * 128, batch=128, lr=1e-2)


class Known:
    """Activations of a site, and of one that a ReLU layer of 12 units makes of it; in units far from 1."""

    count = None
    fingerprint = "known"

    def __init__(self, linear: float = 0.0) -> None:
        self.sites, self.widths = [READ, WRITTEN], {READ: 8, WRITTEN: 6}
        draw = torch.Generator().manual_seed(7)
        self.into, self.out = torch.randn(8, 12, generator=draw), 5 * torch.randn(12, 6, generator=draw)
        self.skip = linear * torch.randn(8, 6, generator=draw)

    def pool(self, i: int) -> dict[str, Tensor]:
        x = 0.1 * torch.randn(2048, 8, generator=torch.Generator().manual_seed(i))
        return {READ: x, WRITTEN: torch.relu(x @ self.into - 0.3) @ self.out + x @ self.skip + 3.0}


def config(d_sae: int = 48, k: int = 12) -> TranscoderConfig:
    return TranscoderConfig("topk", 8, d_sae, 6, k, READ, WRITTEN)


def explained(one: Any, source: Known) -> float:
    found = source.pool(10_000)
    left = (found[WRITTEN] - one(found[READ])).square().sum()
    return 1 - float(left / (found[WRITTEN] - found[WRITTEN].mean(0)).square().sum())


def test_a_known_map_is_learned_on_raw_activations() -> None:
    made = train_transcoders({"t": config()}, {"t": False}, Known(), TRAINING)["t"]
    assert explained(made, Known()) > 0.9
    assert int((made.encode(Known().pool(5)[READ]) > 0).sum(-1).max()) <= 12
    other = train_transcoders({"t": config()}, {"t": False}, Known(), TRAINING)["t"]
    assert all(torch.equal(a, b) for a, b in zip(made.buffers(), other.buffers(), strict=True))
    fewer = train_transcoders({"t": config()}, {"t": False}, Known(), Training(tokens=256, batch=128, lr=5e-3))["t"]
    assert explained(fewer, Known()) < 0.5


def test_a_skip_connection_takes_the_linear_part() -> None:
    source = Known(linear=30.0)
    narrow = config(d_sae=4, k=1)
    made = train_transcoders(
        {"with": narrow, "without": narrow}, {"with": True, "without": False}, source, TRAINING
    )  # fmt: skip
    assert "W_skip" in dict(made["with"].named_buffers()) and "W_skip" not in dict(made["without"].named_buffers())
    assert explained(made["with"], source) > 0.9 > explained(made["without"], source) + 0.3


def test_silent_latents_learn_the_error_that_is_left() -> None:
    rows = Known().pool(0)
    learner = _Learner(config(), False, rows, Training(tokens=1280, batch=128, dead_after=128), "cpu")
    with torch.no_grad():
        learner.tensors["W_enc"][:, 3] = -1e-3  # beside the others it is never among the largest
        learner.tensors["b_enc"][3] = -1e-4
    learner.silent[3] = 500
    before = learner.tensors["W_enc"][:, 3].clone()
    learner.step({site: value[:128] for site, value in rows.items()}, 1.0)
    learner.step({site: value[128:256] for site, value in rows.items()}, 1.0)
    assert not torch.equal(before, learner.tensors["W_enc"][:, 3].detach())
    assert int(learner.silent[3]) == 756 and int(learner.silent.min()) == 0


def test_refusals() -> None:
    wrong = TranscoderConfig("topk", 8, 16, 7, 2, READ, WRITTEN)
    with pytest.raises(MechintError, match="of width 7"):
        train_transcoders({"t": wrong}, {"t": False}, Known(), TRAINING)
    silent = Known()
    silent.pool = lambda i: {READ: torch.zeros(2048, 8), WRITTEN: torch.ones(2048, 6)}  # type: ignore[method-assign]
    with pytest.raises(MechintError, match="nothing for a dictionary to learn"):
        train_transcoders({"t": config()}, {"t": False}, silent, TRAINING)
