"""Adding a model family: everything that this file says of it is all that is written, and one entry of the table.

The family is made up: each channel of a layer is a leaky average of what a linear map reads, hₜ = a ⊙ hₜ₋₁ + W norm(r).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mechint
from mechint.analyses.base import analyses, check_model
from mechint.interventions.edits import Edit
from mechint.interventions.gradients import gradients
from mechint.interventions.sites import RESIDUAL, Site
from mechint.interventions.sweep import sweep
from mechint.interventions.taps import Tap
from mechint.interventions.unit_kinds import Block, UnitKind
from mechint.models.base import LanguageModel, outer_sites
from mechint.models.loading.load import FAMILIES, Family
from mechint.models.mamba import RMSNorm
from mechint.tasks import make_task
from tests.helpers.sweeps import one_by_one
from tests.helpers.tracing import TASK, loaders

# ---- the family's file ----


@dataclass(frozen=True)
class LeakyConfig:
    vocab_size: int
    d_model: int
    n_layer: int
    d_inner: int
    family = "leaky"


@dataclass
class Memory:
    """The last average, [B, E]."""

    state: Tensor

    def repeat(self, times: int) -> Memory:
        return Memory(self.state.repeat(times, 1))


class Layer(nn.Module):
    def __init__(self, c: LeakyConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(c.d_model, 1e-5)
        self.in_proj = nn.Linear(c.d_model, c.d_inner, bias=False)
        self.out_proj = nn.Linear(c.d_inner, c.d_model, bias=False)
        self.leak = nn.Parameter(torch.linspace(-1, 1, c.d_inner))


class Leaky(LanguageModel):
    """A leaky language model."""

    first_sites = ("embed",)
    local_sites = ("average", "out", "resid_post")
    mediators = ("resid_post", "out", "average")
    mixers = ("out",)
    parts = MappingProxyType({"block": ("resid_pre", "resid_post")})
    patched = ("average",)
    projected = ("average",)
    unit_kinds = MappingProxyType({"channel": UnitKind("channel", (Block(("average",)),), "a leaky channel")})
    scored_unit = "channel"

    def __init__(self, config: LeakyConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layer))
        self.norm_f = RMSNorm(config.d_model, 1e-5)

    @property
    def embeddings(self) -> Tensor:
        return self.embedding.weight

    @functools.cached_property
    def sites(self) -> dict[str, Site]:
        c, channels = self.config, ("batch", "position", "channel")
        sites = [Site("embed", RESIDUAL, (c.d_model,))]
        for layer in range(c.n_layer):
            for name, axes, size in (
                ("resid_pre", RESIDUAL, c.d_model), ("read", channels, c.d_inner), ("average", channels, c.d_inner),
                ("out", RESIDUAL, c.d_model), ("resid_post", RESIDUAL, c.d_model),
            ):  # fmt: skip
                sites.append(Site(f"layers.{layer}.{name}", axes, (size,)))
        return {site.name: site for site in [*sites, *outer_sites(c.d_model, c.vocab_size)]}

    def begin(self, tokens: Tensor, at: Tap) -> Tensor:
        return at("embed", self.embedding(tokens))

    def empty_cache(self, i: int, rows: int) -> Memory:
        return Memory(self.embeddings.new_zeros(rows, self.config.d_inner))

    def block(self, i: int, r: Tensor, cache: Memory, at: Tap) -> tuple[Tensor, Memory]:
        here, layer = at.within(f"layers.{i}"), self.layers[i]
        r = here("resid_pre", r)
        read = here("read", layer.in_proj(layer.norm(r)))  # [B, L, E]
        state, states, keep = cache.state, [], layer.leak.sigmoid()
        for t in range(read.shape[1]):
            state = keep * state + read[:, t]
            states.append(state)
        out = here("out", layer.out_proj(here("average", torch.stack(states, 1))))
        return here("resid_post", r + out), Memory(state)

    @property
    def ending(self) -> tuple[nn.Module, Tensor]:
        return self.norm_f, self.embeddings


def build(
    state: dict[str, Tensor], config: Mapping[str, Any] | None, where: str, dtype: torch.dtype, device: torch.device
) -> Leaky:
    vocab_size, d_model = state["embedding.weight"].shape
    layers = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("layers."))
    model = Leaky(LeakyConfig(vocab_size, d_model, layers, len(state["layers.0.leak"])))
    model.load_state_dict(state)
    return model.to(device, dtype)


FAMILY = Family("Leaky", lambda names: any(name.endswith(".leak") for name in names), Leaky, build)

# ---- the test ----


@pytest.fixture
def checkpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setitem(FAMILIES, "leaky", FAMILY)
    torch.manual_seed(0)
    made = Leaky(LeakyConfig(make_task(TASK).vocab_size, 10, 2, 14))
    path = tmp_path / "leaky.pt"
    torch.save({"model": made.state_dict(), "config": {"model_type": "leaky"}}, path)
    return path


def test_a_new_family_is_read_and_edited(checkpoint: Path) -> None:
    model = mechint.load(checkpoint, dtype="float64", expect_family="leaky").requires_grad_(False)
    tokens = torch.arange(12).view(2, 6)
    plain = mechint.run(model, tokens, record=["layers.*.average"])
    assert torch.equal(plain.logits, model(tokens)) and model.source == str(checkpoint)
    first = mechint.run(model, tokens[:, :4])
    rest = mechint.run(model, tokens[:, 4:], cache=first.cache)
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], 1), plain.logits)
    off = Edit("layers.0.average", "scale", 0.0, positions=[2], units=[3, 5])
    changed = mechint.run(model, tokens, edits=[off]).logits
    assert torch.equal(changed[:, :2], plain.logits[:, :2]) and not torch.equal(changed[:, 2:], plain.logits[:, 2:])
    with mechint.watch(model, [(1, "block")]) as parts:
        model(tokens)
    assert parts[1, "block"].output.shape == (2, 6, 10)


def test_a_new_family_is_swept_and_differentiated(checkpoint: Path) -> None:
    model = mechint.load(checkpoint, dtype="float64").requires_grad_(False)
    tokens = torch.arange(12).view(2, 6)
    cells = [
        [Edit(f"layers.{layer}.{site}", "add", 1.0, positions=[position], units=[1])]
        for layer in range(2)
        for site in ("resid_pre", "read", "average", "out", "resid_post")
        for position in (0, 3, 5)
    ]
    torch.testing.assert_close(sweep(model, tokens, cells), one_by_one(model, tokens, cells))
    _, slopes = gradients(model, tokens, ["layers.*.read"], lambda logits: logits[:, -1, 4])
    step = Edit("layers.0.read", "add", 1e-6, positions=[1], units=[2])
    change = (mechint.run(model, tokens, edits=[step]).logits - model(tokens))[:, -1, 4] / 1e-6
    torch.testing.assert_close(slopes["layers.0.read"][:, 1, 2], change, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["sparsity", "trace"])
def test_a_new_family_is_analysed(name: str, checkpoint: Path, tmp_path: Path) -> None:
    """Analyses that name no family take it; the others refuse it by name."""
    model, analysis = mechint.load(checkpoint), analyses()[name]
    check_model([analysis], model, "leaky.pt")
    small = {"sparsity": {}, "trace": {"direction": "noise", "prompts": 4, "examples": 1}}[name]
    analyzer = analysis.analyzer(model, analysis.config(bootstrap=100, **small), "cpu", run_dir=tmp_path / name)
    results = analyzer.run_analysis(*loaders(model))
    assert results["metrics"] and analyzer.save_results()
    with pytest.raises(mechint.MechintError, match="is a leaky model; the analysis 'ssm'"):
        check_model([analyses()["ssm"]], model, "leaky.pt")
