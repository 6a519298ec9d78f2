"""The tuned lens: its gradient and training against plain torch, its files, and lenses of other models refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mechint
from mechint.analyses.lens import tuned, tuned_files
from mechint.analyses.lens.options import LensConfig
from mechint.analyses.lens.reading import LogitLens, every_position_kl, stream_sites
from mechint.analyses.lens.tuned import TunedLens, by_length, drawn, plain, slope, train
from mechint.utils.errors import MechintError
from mechint.utils.rundir import Stages
from tests.analyses.lens.test_reading import prompts
from tests.helpers.builders import tiny_gpt2, tiny_llama, tiny_mamba

OPTIONS = LensConfig(steps=12, lr=0.01, batch=14)


def by_torch(model: Any, batches: list[Any], steps: int, lr: float) -> list[torch.nn.Linear]:
    """The same training with torch's modules and optimiser, a layer at a time, on logits by hand."""
    made = []
    norm, head = model.ending
    for i in range(model.num_layers):
        layer = torch.nn.Linear(model.config.d_model, model.config.d_model, dtype=torch.float64)
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
        optimizer = torch.optim.Adam(layer.parameters())
        for step in range(steps):
            tokens = drawn([batch.tokens for batch in batches], OPTIONS.batch, 5, step)
            site = f"layers.{i}.resid_pre"
            with torch.no_grad():
                run = mechint.run(model, tokens, [site])
            r = run[site]
            loss = torch.nn.functional.kl_div(
                (norm(r + layer(r)) @ head.T).log_softmax(-1).flatten(0, 1),
                run.logits.log_softmax(-1).flatten(0, 1), reduction="batchmean", log_target=True,
            )  # fmt: skip
            optimizer.zero_grad()
            loss.backward()
            optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
            optimizer.step()
        made.append(layer)
    return made


def test_training_does_not_depend_on_how_prompts_are_dealt_into_batches() -> None:
    """Prompts of two lengths in batches of 6, 2 or 1: steps have as many tokens as asked for, and are the same ones."""
    model = tiny_gpt2(1, dtype=torch.float64).requires_grad_(False)
    long, short = prompts(6, seed=1), prompts(6, 5, seed=2)
    dealt = [[batch[part] for batch in (long, short) for part in torch.arange(6).split(size)] for size in (6, 2, 1)]
    options = LensConfig(steps=6, lr=0.01, batch=4 * 7)
    first, *others = (train(model, batches, options, 5, Stages(None)) for batches in dealt)
    for other in others:
        assert torch.equal(first.weights, other.weights) and torch.equal(first.biases, other.biases)
    lots = by_length(dealt[-1])
    assert [len(lot) for lot in lots] == [6, 6]
    assert {len(drawn(lots, 28, 5, step)) for step in range(20)} == {4, 6}  # 28 tokens of 7, and 5.6 of 5


def test_every_token_is_as_likely_to_be_trained_on() -> None:
    """Of 90 prompts of 3 tokens and 10 of 6, whatever their batches, 270 of 330 steps are of the short ones."""
    lots = [torch.zeros(90, 3, dtype=torch.long), torch.zeros(10, 6, dtype=torch.long)]
    short = sum(drawn(lots, 3, 0, step).shape[1] == 3 for step in range(1000))
    assert abs(short / 1000 - 270 / 330) < 4 * (270 * 60 / 330**2 / 1000) ** 0.5


@pytest.mark.parametrize("build", [tiny_mamba, tiny_gpt2, tiny_llama])
def test_training_is_that_of_plain_torch(build: Any) -> None:
    model = build(1, dtype=torch.float64).requires_grad_(False)
    batches = [prompts(6, seed=1), prompts(6, 5, seed=2)]
    lens = train(model, batches, OPTIONS, 5, Stages(None))
    for i, layer in enumerate(by_torch(model, batches, OPTIONS.steps, OPTIONS.lr)):
        torch.testing.assert_close(lens.weights[i], layer.weight.detach(), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(lens.biases[i], layer.bias.detach(), rtol=1e-6, atol=1e-9)


def test_a_model_whose_layers_are_a_linear_map_is_read_almost_exactly() -> None:
    """GPT-2 without norms and with MLPs alone of a linear kind: behind layer 0 the rest is affine."""
    model = tiny_gpt2(2, norms=False, final_norm=False).requires_grad_(False)
    with torch.no_grad():
        for layer in model.layers:
            layer.attn.c_proj.weight.zero_()
            layer.mlp.c_fc.weight.mul_(0.01)  # GELU is close to linear there
            layer.mlp.c_fc.bias.fill_(0.0)
            layer.mlp.c_proj.weight.mul_(20.0)
    held_out = prompts(16, seed=9).tokens
    lens = train(model, [prompts(32, seed=3)], LensConfig(steps=80, lr=0.05, batch=112), 0, Stages(None))
    kl = every_position_kl(model, held_out, stream_sites(model), {"logit": LogitLens(), "tuned": lens})
    assert float(kl["logit"][:, 0].mean()) > 0.1
    assert float(kl["tuned"][:, 0].mean()) < 0.03 * float(kl["logit"][:, 0].mean())


def test_the_untrained_lens_is_the_logit_lens_and_sites_inside_layers_have_none() -> None:
    model = tiny_gpt2(3)
    width, sites = model.config.d_model, stream_sites(model)
    lens = TunedLens(torch.zeros(2, width, width), torch.zeros(2, width))
    assert [lens.layer(site) for site in sites] == [0, None, 1, None, 2]
    assert [lens.has(site) for site in sites] == [True, False, True, False, True]
    kl = every_position_kl(model, prompts().tokens, sites, {"logit": LogitLens(), "tuned": lens})
    torch.testing.assert_close(kl["tuned"][:, ::2], kl["logit"][:, ::2])
    assert bool(kl["tuned"][:, 1].isnan().all())
    with pytest.raises(ValueError, match="no translator"):
        lens.translated(sites[1], torch.zeros(1, 1, width))


def test_a_killed_training_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = tiny_mamba(4).requires_grad_(False), [prompts(6)]
    whole = plain(train(model, batches, OPTIONS, 1, Stages(None)))
    stages = Stages(tmp_path / "stages", "key", every=0.0)
    steps = [0]

    def dying(*arguments: Any) -> Any:
        steps[0] += 1
        if steps[0] == 8:
            raise KeyboardInterrupt
        return slope(*arguments)

    monkeypatch.setattr("mechint.analyses.lens.tuned.slope", dying)
    with pytest.raises(KeyboardInterrupt):
        train(model, batches, OPTIONS, 1, stages)
    steps[0] = 100
    again = plain(train(model, batches, OPTIONS, 1, Stages(tmp_path / "stages", "key", every=0.0)))
    assert steps[0] == 100 + OPTIONS.steps - 7
    for name, tensor in whole.items():
        assert torch.equal(tensor, again[name])


def test_a_loss_that_is_not_finite_ends_the_training() -> None:
    with pytest.raises(MechintError, match="not finite"):
        train(
            tiny_mamba(final_norm=False).requires_grad_(False),
            [prompts()],
            LensConfig(steps=3, lr=1e37),
            0,
            Stages(None),
        )


def saved(path: Path, model: Any) -> TunedLens:
    draw = torch.Generator().manual_seed(0)
    width, layers = model.config.d_model, model.num_layers
    lens = TunedLens(torch.randn(layers, width, width, generator=draw), torch.randn(layers, width, generator=draw))
    tuned_files.save(lens, model, path)
    return lens


def test_files_have_the_layout_of_the_package_and_come_back(tmp_path: Path) -> None:
    """Its classes read them: a list of linear layers, and a configuration of these keys."""
    model = tiny_mamba(1)
    lens = saved(tmp_path, model)
    made = torch.nn.ModuleList(torch.nn.Linear(10, 10) for _ in range(2))
    made.load_state_dict(torch.load(tmp_path / "params.pt", weights_only=True))
    torch.testing.assert_close(torch.stack([layer.weight for layer in made]).detach(), lens.weights)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.keys() == {
        "base_model_name_or_path", "d_model", "num_hidden_layers", "bias", "base_model_revision", "unembed_hash",
        "lens_type",
    }  # fmt: skip
    assert (config["d_model"], config["num_hidden_layers"], config["lens_type"]) == (10, 2, "linear_tuned_lens")
    back = tuned_files.load(tmp_path, model)
    assert torch.equal(back.weights, lens.weights) and torch.equal(back.biases, lens.biases)


def test_the_hash_is_of_the_printed_unembedding() -> None:
    model = tiny_mamba(1)
    with torch.no_grad():
        model.embedding.weight.zero_()
    import hashlib

    text = np.array_str(np.zeros((24, 10), dtype=np.float32), precision=1)
    assert tuned_files.unembedding_hash(model) == hashlib.sha256(text.encode()).hexdigest()


def changed(path: Path, **values: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **values}))


def test_a_lens_without_biases_or_hash_is_read(tmp_path: Path) -> None:
    model = tiny_mamba(1)
    lens = saved(tmp_path, model)
    changed(tmp_path, bias=False, unembed_hash=None)
    torch.save({f"{i}.weight": weight.half() for i, weight in enumerate(lens.weights)}, tmp_path / "params.pt")
    back = tuned_files.load(tmp_path, model)
    assert torch.equal(back.weights, lens.weights.half().float()) and not back.biases.any()


@pytest.mark.parametrize(
    ("change", "problem"),
    [({"d_model": 12}, r"another model: its width \(d_model\) is 12.*is 10"),
     ({"num_hidden_layers": 3}, "number of layers .* is 3.*is 2"), ({"unembed_hash": "0"}, "hash of the unembedding"),
     ({"lens_type": "mlp"}, "type 'mlp'")],
)  # fmt: skip
def test_lenses_of_other_models_are_refused_in_one_line(change: dict[str, Any], problem: str, tmp_path: Path) -> None:
    model = tiny_mamba(1)
    saved(tmp_path, model)
    changed(tmp_path, **change)
    with pytest.raises(MechintError, match=problem) as caught:
        tuned_files.load(tmp_path, model)
    assert "\n" not in str(caught.value)


def test_a_lens_of_the_same_sizes_and_other_weights_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, tiny_mamba(1))
    with pytest.raises(MechintError, match="is of another model"):
        tuned_files.load(tmp_path, tiny_mamba(2))


@pytest.mark.parametrize(
    ("params", "problem"),
    [({"0.weight": torch.zeros(10, 10)}, "does not hold the translators of 2 layers"),
     ([1], "does not hold the translators"),
     ({"0.weight": torch.zeros(10, 9)}, r"0.weight is not a tensor .*\(10, 10\)"),
     ({"1.bias": torch.zeros(10, dtype=torch.long)}, "1.bias is not a tensor"),
     ({"1.bias": torch.full((10,), torch.nan)}, "1.bias has NaN")],
)  # fmt: skip
def test_damaged_parameters_are_refused(params: Any, problem: str, tmp_path: Path) -> None:
    model = tiny_mamba(1)
    saved(tmp_path, model)
    whole = torch.load(tmp_path / "params.pt", weights_only=True)
    alone = isinstance(params, list) or (len(params) == 1 and "does not hold" in problem)
    torch.save(params if alone else {**whole, **params}, tmp_path / "params.pt")
    with pytest.raises(MechintError, match=problem):
        tuned_files.load(tmp_path, model)


def test_missing_files_are_refused(tmp_path: Path) -> None:
    model = tiny_mamba(1)
    with pytest.raises(MechintError, match="no such directory; name the directory of a tuned lens"):
        tuned_files.load(tmp_path / "none", model)
    with pytest.raises(MechintError, match="no such file"):
        tuned_files.load(tmp_path, model)
    saved(tmp_path, model)
    (tmp_path / "params.pt").write_bytes(b"PK")
    with pytest.raises(MechintError, match="damaged"):
        tuned_files.load(tmp_path, model)


def test_the_loss_is_the_sum_of_the_layers_divergences_and_one_infinite_slope_ends_a_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_mamba(1, dtype=torch.float64).requires_grad_(False)
    batch, width = prompts(3, seed=1), model.config.d_model
    weights, biases = 0.1 * torch.randn(2, width, width, dtype=torch.float64), torch.zeros(2, width).double()
    lens = TunedLens(weights, biases)
    loss, slopes = slope(model, batch.tokens, weights, biases)
    kl = every_position_kl(model, batch.tokens, stream_sites(model), {"tuned": lens})["tuned"]
    assert float(loss) == pytest.approx(float(kl[:, :2].mean(0).sum())) and loss > 0
    broken = [slopes[0], slopes[1].clone()]
    broken[1][0, 0] = torch.inf
    monkeypatch.setattr(tuned, "slope", lambda *arguments: (loss, broken))
    with pytest.raises(MechintError, match="step 0 is not finite"):
        train(model, [batch], OPTIONS, 0, Stages(None))
