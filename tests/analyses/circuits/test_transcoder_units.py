"""Circuits of transcoders' latents: exact edits, each against a run by hand, alone, in sweeps and behind a memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mechint import Edit, MechintError, generate, run
from mechint.analyses.ablation import Ablation
from mechint.analyses.circuits.bench import Bench, removed
from mechint.analyses.circuits.feature_units import FeatureUnits
from mechint.interventions.sweep import sweep
from tests.helpers.builders import tiny_gpt2, tiny_llama, tokens
from tests.helpers.dictionaries import dictionary
from tests.helpers.feature_units import prompts
from tests.helpers.transcoders import transcoder

WRITTEN, READ = ("layers.0.mlp_out", "layers.1.mlp_out"), ("layers.0.ln_2", "layers.1.ln_2")
SHAPES = [("relu", False), ("topk", True), ("jumprelu", True)]


def both(builder: Any, architecture: str = "relu", skip: bool = False) -> tuple[Any, FeatureUnits]:
    """A model in double precision, and the latents of a transcoder in each of its first two layers."""
    model = builder().double().requires_grad_(False)
    made = {
        site: transcoder(model, layer, architecture=architecture, skip=skip, seed=layer)
        for layer, site in enumerate(WRITTEN)
    }
    return model, FeatureUnits(model, made)


def by_hand(model: Any, units: FeatureUnits, mask: Tensor, fills: dict[str, Any], text: Tensor) -> Tensor:
    """The logits, with each layer's output made from a run in which the layers below have theirs as constants."""
    constants: list[Edit] = []
    for site, read, part in zip(WRITTEN, READ, mask.split(units.sizes), strict=True):
        found, one = run(model, text, [site, read], constants), units.dictionaries[site]
        f = one.encode(found[read])
        others = [torch.einsum("bli,oi->blo", found[read], one.get_buffer("W_skip"))] if one.has_skip else []
        others.append(found[site] - one.decode(f) - sum(others))  # the error
        sizes = [f.shape[-1], *(other.shape[-1] for other in others)]
        fill = torch.as_tensor(fills[site]).expand(*f.shape[:2], sum(sizes)).split(sizes, -1)
        f = torch.where(part[: sizes[0]] > 0, f, fill[0])
        kept = [other if part[sizes[0] + k] > 0 else fill[1 + k] for k, other in enumerate(others)]
        constants.append(Edit(site, "replace", one.decode(f) + sum(kept)))
    return run(model, text, edits=constants).logits


@pytest.mark.parametrize("builder", [tiny_gpt2, tiny_llama])
@pytest.mark.parametrize(("architecture", "skip"), SHAPES)
def test_all_kept_is_the_model_to_the_bit(builder: Any, architecture: str, skip: bool) -> None:
    model, units = both(builder, architecture, skip)
    batch = prompts(4, 6)
    for method in ("zero", "mean", "counterfactual"):
        fills = Ablation(model, units, method, [batch], False).fills(batch)
        kept = run(model, batch.tokens, edits=units.edits(torch.ones(units.total), fills)).logits
        assert torch.equal(kept, run(model, batch.tokens).logits)


@pytest.mark.parametrize("builder", [tiny_gpt2, tiny_llama])
@pytest.mark.parametrize(("architecture", "skip"), SHAPES)
@pytest.mark.parametrize("method", ["zero", "mean", "resample", "counterfactual"])
def test_masks_are_runs_by_hand(builder: Any, architecture: str, skip: bool, method: str) -> None:
    model, units = both(builder, architecture, skip)
    batch = prompts(4, 6)
    fills = Ablation(model, units, method, [batch], False).fills(batch)
    draw, clean = torch.Generator().manual_seed(0), run(model, batch.tokens).logits
    masks = [(torch.rand(units.total, generator=draw) < 0.5).double() for _ in range(3)]
    masks += [
        torch.ones(units.total).double().index_fill(0, torch.tensor([unit]), 0.0)
        for unit in (3, 16, 17, 20, units.total - 2, units.total - 1)
    ]
    moved = 0.0
    for mask in masks:
        found = run(model, batch.tokens, edits=units.edits(mask, fills)).logits
        assert (found - by_hand(model, units, mask, fills, batch.tokens)).abs().max() < 1e-10
        moved = max(moved, float((found - clean).abs().max()))
    assert moved > 1e-2


def test_all_dropped_writes_what_the_twin_writes() -> None:
    """Latents, skip connection and error of the twin are the whole of what the twin's layer writes."""
    model, units = both(tiny_gpt2, "topk", True)
    batch = prompts(4, 6)
    fills = Ablation(model, units, "counterfactual", [batch], False).fills(batch)
    dropped = run(model, batch.tokens, WRITTEN, units.edits(torch.zeros(units.total), fills))
    assert batch.twins is not None
    for site, value in run(model, batch.twins, WRITTEN).values.items():
        assert (dropped[site] - value).abs().max() < 1e-10


@pytest.mark.parametrize("skip", [False, True])
def test_the_error_alone_dropped_leaves_what_the_transcoder_writes(skip: bool) -> None:
    model, _ = both(tiny_gpt2)
    one = transcoder(model, 1, skip=skip)
    units = FeatureUnits(model, {WRITTEN[1]: one})
    mask = torch.ones(units.total).index_fill(0, torch.tensor([units.total - 1]), 0.0)
    text = tokens(3, 6)
    found = run(model, text, [WRITTEN[1]], units.edits(mask, {WRITTEN[1]: 0.0}))[WRITTEN[1]]
    assert (found - one(run(model, text, [READ[1]])[READ[1]])).abs().max() < 1e-10


def test_a_skip_connection_is_a_unit_of_its_own() -> None:
    """Beside a transcoder without one it has a unit more, and alone it writes W_skip r of its own run."""
    model, _ = both(tiny_gpt2)
    units = FeatureUnits(model, {WRITTEN[0]: transcoder(model, 0), WRITTEN[1]: transcoder(model, 1, skip=True)})
    assert units.sizes == [17, 18] and units.skips == [WRITTEN[1]]
    assert units.skip_connections().nonzero()[:, 0].tolist() == [33]
    assert units.errors().nonzero()[:, 0].tolist() == [16, 34]
    assert units.about == [{"site": WRITTEN[0]}, {"site": WRITTEN[1], "skip": True}]
    kept = torch.zeros(35).index_fill(0, torch.tensor([2, 33]), 1.0)
    assert units.names(kept) == [[2], ["skip"]] and units.names(1 - kept)[1] == [*range(16), "error"]
    alone, text = torch.ones(35).double(), tokens(3, 6)
    alone[17:33], alone[34] = 0.0, 0.0
    found = run(model, text, [READ[1], WRITTEN[1]], units.edits(alone, dict.fromkeys(units.sites, 0.0)))
    one = units.dictionaries[WRITTEN[1]]
    expected = found[READ[1]] @ one.get_buffer("W_skip").T + one.b_dec
    assert (found[WRITTEN[1]] - expected).abs().max() < 1e-10


@pytest.mark.parametrize("builder", [tiny_gpt2, tiny_llama])
def test_removals_in_a_sweep_are_single_runs(builder: Any) -> None:
    model, units = both(builder, "topk", True)
    batches = [prompts(4, 6, seed) for seed in (1, 2)]
    bench = Bench(model, units, Ablation(model, units, "mean", batches, False), batches)
    circuit = (torch.arange(units.total) % 3 > 0).double()
    chosen = [1, 2, 16, 17, 25, 34, 35]
    found = removed(bench, circuit, chosen, "kl")
    for column, unit in enumerate(chosen):
        mask = circuit.index_fill(0, torch.tensor([unit]), 0.0)
        alone = bench.measure(mask)["kl"]
        assert (found[:, column] - alone).abs().max() < 1e-10
    assert (found[:, 0] - found[:, -1]).abs().max() > 1e-6


def test_one_circuit_under_many_cells_reads_each_cells_own_run() -> None:
    """The circuit's edits are the base: one edit object, applied to the rows of every cell."""
    model, units = both(tiny_gpt2)
    text, mask = tokens(2, 6), (torch.arange(units.total) % 2).double()
    base = units.edits(mask, dict.fromkeys(units.sites, 0.0))
    cells = [[Edit("layers.0.attn_out", "scale", scale)] for scale in (0.0, 0.5, 2.0)]
    cells += [[Edit("layers.1.attn_out", "scale", 0.0, positions=[3])], []]
    found = sweep(model, text, cells, base=base)
    for value, cell in zip(found, cells, strict=True):
        assert (value - run(model, text, edits=[*base, *cell]).logits).abs().max() < 1e-10
    assert (found[0] - found[1]).abs().max() > 1e-4


def test_behind_a_memory_as_in_a_whole_run() -> None:
    model, units = both(tiny_llama)
    mask = (torch.arange(units.total) % 2).double()
    edits, text = units.edits(mask, dict.fromkeys(units.sites, 0.0)), tokens(2, 7)
    whole = run(model, text, edits=edits).logits
    first = run(model, text[:, :4], edits=edits)
    second = run(model, text[:, 4:], edits=edits, cache=first.cache)
    assert (torch.cat([first.logits, second.logits], 1) - whole).abs().max() < 1e-10
    said = generate(model, text, 3, edits=edits)
    assert (run(model, said.tokens[:, :-1], edits=edits).logits - said.logits).abs().max() < 1e-10


def test_gradients_reach_latents_through_later_transcoders() -> None:
    """The gradient of a mask is a difference quotient, also for latents that later latents are encoded from."""
    model, units = both(tiny_gpt2)
    batch = prompts(3, 6)
    fills = Ablation(model, units, "mean", [batch], False).fills(batch)

    def value(mask: Tensor) -> Tensor:
        return torch.log_softmax(run(model, batch.tokens, edits=units.edits(mask, fills)).logits, -1)[..., 0].mean()

    middle = torch.full((units.total,), 0.5, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(value(middle), middle)
    with torch.no_grad():
        for unit in (0, 3, 5, 16, 17, 30, 33):
            step = torch.zeros_like(middle).index_fill_(0, torch.tensor([unit]), 1e-6)
            assert float(found[unit]) == pytest.approx(
                float(value(middle + step) - value(middle - step)) / 2e-6, rel=1e-6, abs=1e-9
            )
    assert found[:16].abs().min() > 1e-6


def test_a_dictionary_at_what_a_transcoder_reads_is_seen_by_it() -> None:
    """The transcoder reads what the dictionary's circuit leaves of its input, wherever it stands in the list."""
    model, _ = both(tiny_gpt2)
    width = model.sites[READ[0]].units[0]
    units = FeatureUnits(model, {WRITTEN[0]: transcoder(model, 0), READ[0]: dictionary(width, 16, dtype=torch.float64)})
    assert units.sites == [READ[0], WRITTEN[0]] and units.needs == [READ[0], WRITTEN[0]]
    mask = torch.ones(units.total).double().index_fill(0, torch.tensor([16, units.total - 1]), 0.0)
    fills, text = dict.fromkeys(units.sites, 0.0), tokens(3, 6)
    edits = units.edits(mask, fills)
    for order in (edits, edits[::-1]):
        found = run(model, text, units.sites, order)
        assert (found[WRITTEN[0]] - units.dictionaries[WRITTEN[0]](found[READ[0]])).abs().max() < 1e-10


def test_refusals() -> None:
    model, _ = both(tiny_gpt2)
    with pytest.raises(MechintError, match=r"for layers.1.mlp_out writes layers.0.mlp_out"):
        FeatureUnits(model, {WRITTEN[1]: transcoder(model, 0)})
    across = transcoder(model, 0)
    across.config = across.config.__class__("relu", 12, 16, 12, site="layers.0.ln_2", site_out="layers.1.mlp_out")
    with pytest.raises(MechintError, match="an earlier site of the layer they write"):
        FeatureUnits(model, {WRITTEN[1]: across})
    change = lambda x, given: x
    for edit, reason in (
        (Edit("layers.1.mlp_out", "replace", change, reads="layers.1.ln_9"), "which is no site"),
        (Edit("layers.1.mlp_out", "replace", change, reads="layers.0.ln_2"), "own layer that comes before"),
        (Edit("layers.1.ln_2", "replace", change, reads="layers.1.mlp_out"), "own layer that comes before"),
        (Edit("layers.1.mlp_out", "add", change, reads="layers.1.ln_2"), "replaces all of its own"),
        (Edit("layers.1.mlp_out", "replace", change, [1], reads="layers.1.ln_2"), "replaces all of its own"),
        (Edit("layers.1.mlp_out", "replace", 0.0, reads="layers.1.ln_2"), "replaces all of its own"),
    ):
        with pytest.raises(MechintError, match=reason):
            run(model, tokens(1, 4), edits=[edit])
