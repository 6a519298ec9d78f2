"""Training of the families whose layers are made of parts: from a pattern of layers to a directory of transformers."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from mechint.models.families import declared
from mechint.models.loading.config_reader import ConfigReader
from mechint.models.loading.discover import find_checkpoints
from mechint.models.loading.load import load
from mechint.models.parts.base import Layer
from mechint.models.parts.delta import GatedDelta, KimiDelta
from mechint.models.parts.mamba1 import Mamba1Mixer
from mechint.models.parts.mamba2 import Mamba2Mixer
from mechint.models.parts.norms import RMSNorm
from mechint.models.stack import Stack
from mechint.scan import matrix, matrix_native
from mechint.tasks import TaskConfig, as_stored, make_task
from mechint.training import trainer
from mechint.training.files import finite, plain
from mechint.training.models import family_of, make_model, model_config
from mechint.training.options import OtherArchitecture, TrainConfig
from mechint.training.trainer import plan, train
from mechint.training.variants import steps
from mechint.utils import files
from mechint.utils.errors import MechintError

TASK = TaskConfig(pairs=2, keys=9, values=4)
TINY = OtherArchitecture(d_model=16, n_layer=2, memory_heads=2, d_state=4)
QUICK = TrainConfig(steps=12, batch_size=8, warmup=2, eval_every=4, save_every=3, eval_prompts=16)
WEIGHTS = "model.safetensors"
TRAINED = sorted({family.name for family in declared().values() if family.trained})
EXPERTS = ("granitemoehybrid", "jamba", "kimi_linear", "lfm2_moe", "qwen3_5_moe", "qwen3_next")


def quick(directory: Path, **changes: object) -> TrainConfig:
    return dataclasses.replace(QUICK, output_dir=str(directory), **changes)  # type: ignore[arg-type]


def other(model_type: str, layers: str = "", **sizes: int) -> OtherArchitecture:
    """A minimal model of a family."""
    return OtherArchitecture(model_type=model_type, layers=layers, **{"d_model": 32, **sizes})  # type: ignore[arg-type]


def born(architecture: OtherArchitecture, init: str = "unit", seed: int = 0) -> Stack:
    """A model as it is before training."""
    torch.manual_seed(seed)
    model = make_model(model_config(architecture, make_task(TASK)), init)
    assert isinstance(model, Stack)
    return model


def hashes(directory: Path) -> dict[str, str]:
    return {str(path.relative_to(directory)): files.sha256(path) for path in sorted(directory.glob("*_model_*/*"))}


def test_every_recurrence_and_hybrid_is_trained() -> None:
    found = {family.name for family in declared().values() if ".recurrent." in family.read.__module__}
    assert len(found) >= 14 and set(TRAINED) == {*found, "gpt_neox"}
    for name in TRAINED:
        model = born(other(name))
        memories = [part for i in range(len(model.layers)) for part in model.parts_of(i).values() if part.carried]
        assert memories or name in ("gpt_neox", "zamba2")  # a Zamba 2's mixers are inside other parts


CASES = [(name, {}) for name in TRAINED] + [(name, {"experts": 4, "d_expert": 8}) for name in EXPERTS]
CASES += [
    ("nemotron_h", {"layers": "mamba2 experts", "experts": 4}), ("qwen3_5", {"layers": "delta delta"}),
    ("qwen3_next", {"layers": "delta", "n_layer": 2, "groups": 2}), ("mamba2", {"groups": 2, "d_value": 8}),
    ("falcon_h1", {"n_kv_head": 1, "d_head": 8, "expand": 1}), ("jamba", {"layers": "mamba mamba attention"}),
]  # fmt: skip


@pytest.mark.slow_except("(mamba2|falcon_h1|qwen3_5|gpt_neox)-")
@pytest.mark.parametrize(
    ("name", "sizes"), CASES, ids=lambda x: x if isinstance(x, str) else " ".join(map(str, x.values()))
)
def test_transformers_opens_what_was_trained(name: str, sizes: dict[str, Any], tmp_path: Path) -> None:
    """The directory is the family's: our loader gives the trained bits, and transformers logits equal to 1e-5."""
    transformers = pytest.importorskip("transformers")
    architecture = dataclasses.replace(other(name), **sizes)
    config = quick(tmp_path, steps=2, eval_every=9)
    path = train(TASK, config, architecture)
    job = trainer.make_job(TASK, config, architecture)
    state = trainer.new_state(job, torch.device("cpu"))
    for _ in range(2):
        trainer.one_step(job, state, torch.device("cpu"))
        state.step += 1
    ours = load(path)
    assert ours.config == job.model and isinstance(ours, Stack)
    tokens = make_task(TASK).sample(4, "evaluation", 0).tokens
    assert torch.equal(ours(tokens), state.model(tokens))
    theirs, said = transformers.AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not any(said[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    if said := getattr(theirs, "set_experts_implementation", None):
        said("eager")
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(tokens, use_cache=False).logits, ours(tokens), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("trained")
    train(TASK, quick(directory), TINY)
    return directory


def test_the_files_are_what_was_promised(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()} - {".lock"}
    assert names == {"final_model_stepV0", "best_model_stepV0", "training_metrics_stepV0.json"}
    for directory in (trained / "final_model_stepV0", trained / "best_model_stepV0"):
        assert {path.name for path in directory.iterdir()} == {"config.json", WEIGHTS}
    config = json.loads((trained / "final_model_stepV0/config.json").read_text())
    assert config["model_type"] == "mamba2" and config["state_size"] == 4 and "task" not in config
    metrics = json.loads((trained / "training_metrics_stepV0.json").read_text())
    assert metrics["other"]["d_state"] == 4 and metrics["finished"] is True


def test_a_checkpoint_says_how_it_was_trained(trained: Path) -> None:
    """An analysis takes the task from it, as from the trainer's other checkpoints."""
    model = load(trained / "final_model_stepV0")
    metrics = json.loads((trained / "training_metrics_stepV0.json").read_text())
    assert model.metadata["held_out_accuracy"] == metrics["held_out_accuracy"] and model.metadata["iter_num"] == 12
    assert as_stored(TaskConfig(), model.metadata).keys == 9 and model.metadata["model_type"] == "mamba2"
    assert load(trained / "final_model_stepV0" / WEIGHTS).metadata == model.metadata
    best = load(trained / "best_model_stepV0").metadata
    assert best["best_val_loss"] == min(entry["val_loss"] for entry in metrics["history"])
    assert find_checkpoints(f"{trained}/final_model_step*") == [str(trained / "final_model_stepV0")]


@pytest.mark.parametrize("step", [2, 7, 11])
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    step: int, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = trainer.one_step

    def dies(job: trainer.Job, state: trainer.State, device: torch.device) -> float:
        if state.step == step:
            raise KeyboardInterrupt
        return whole(job, state, device)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(trainer, "one_step", dies)
        train(TASK, quick(tmp_path), TINY)
    assert not (tmp_path / "final_model_stepV0").exists()
    train(TASK, quick(tmp_path), TINY)
    assert (f"resuming from step {step // 3 * 3} of 12" in capsys.readouterr().out) == (step >= 3)
    assert hashes(tmp_path) == hashes(trained) and len(hashes(trained)) == 4


@pytest.mark.parametrize("at", ["config.json", WEIGHTS])
def test_a_kill_while_the_last_checkpoint_is_written(
    at: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No model is there before the weights are; the next run makes the same bytes."""
    whole = files.write_bytes

    def dies(path: str | Path, data: bytes) -> Path:
        if str(path).endswith(f"final_model_stepV0/{at}"):
            raise KeyboardInterrupt
        return whole(path, data)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(files, "write_bytes", dies)
        train(TASK, quick(tmp_path), TINY)
    assert find_checkpoints(str(tmp_path)) == [str(tmp_path / "best_model_stepV0")]
    train(TASK, quick(tmp_path), TINY)
    assert hashes(tmp_path) == hashes(trained)


def test_checkpoints_on_the_way_are_directories(tmp_path: Path, trained: Path) -> None:
    train(TASK, quick(tmp_path, keep_every=6), TINY)
    kept = sorted(path.name for path in (tmp_path / "trajectory_stepV0").iterdir())
    assert kept == ["step000000", "step000006", "step000012"]
    last, final = (load(tmp_path / name) for name in ("trajectory_stepV0/step000012", "final_model_stepV0"))
    assert all(torch.equal(a, b) for a, b in zip(last.parameters(), final.parameters(), strict=True))
    assert "best_val_loss" not in load(tmp_path / "trajectory_stepV0/step000000").metadata
    assert hashes(tmp_path) == hashes(trained)


def test_finished_and_other_recipes(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = hashes(trained)
    assert train(TASK, quick(trained), TINY) == trained / "final_model_stepV0"
    assert "already trained" in capsys.readouterr().out and "already trained" in plan(TASK, quick(trained), TINY)
    for changes, line in (({"d_state": 8}, "d_state 4, not 8"), ({"layers": "mamba2"}, "layers , not mamba2")):
        with pytest.raises(MechintError, match=line):
            train(TASK, quick(trained), dataclasses.replace(TINY, **changes))
    assert hashes(trained) == before
    theirs = tmp_path / "final_model_stepV0"
    theirs.mkdir()
    train(TASK, quick(tmp_path, steps=1), TINY)  # an empty directory is none
    (theirs / WEIGHTS).write_bytes(b"\x08\0\0\0\0\0\0\0cut")
    with pytest.raises(MechintError, match="damaged"):
        train(TASK, quick(tmp_path, steps=1), TINY)
    save_file({"a": torch.zeros(1)}, theirs / WEIGHTS)
    with pytest.raises(MechintError, match="not made by this trainer"):
        train(TASK, quick(tmp_path, steps=1), TINY)


def test_memories_are_trained_in_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward: neither the plain scan nor a single step is taken."""
    if not matrix_native.is_there():
        pytest.skip("no compiler")
    calls: list[str] = []
    whole = matrix_native.Scan.backward

    def counted(ctx: Any, *gradients: Any) -> Any:
        calls.append("backward")
        return whole(ctx, *gradients)

    def never(*_: object) -> None:
        raise AssertionError("not in C")

    monkeypatch.setattr(matrix_native.Scan, "backward", staticmethod(counted))
    monkeypatch.setattr(matrix, "plain_scan", never)
    monkeypatch.setattr(matrix, "plain_decayed", never)
    for name in ("mamba2", "qwen3_5", "kimi_linear"):
        job = trainer.make_job(TASK, quick(tmp_path), other(name))
        trainer.one_step(job, trainer.new_state(job, torch.device("cpu")), torch.device("cpu"))
    assert len(calls) == 4  # two Mamba-2 mixers, and a delta rule in each of the others


# --- how models are born ---------------------------------------------------------------------------------------------


def distance(found: Tensor, quantile: Callable[[Any], Any]) -> float:
    """The largest distance of an empirical distribution's quantiles from those of the true one, by its range."""
    ordered = np.sort(found.detach().flatten().double().numpy())
    expected = quantile((np.arange(len(ordered)) + 0.5) / len(ordered))
    return float(np.abs(ordered - expected).max() / (expected.max() - expected.min()))


MANY = 4096
"""Heads or channels of one part, so that a distribution shows."""


@pytest.mark.parametrize(
    ("part", "least"),
    [
        (lambda: Mamba2Mixer(4, MANY, 1, 2, 1, 2), 1.0),
        (lambda: GatedDelta(4, MANY, MANY, 1, 1, 2), 1e-3),
        (lambda: KimiDelta(4, MANY, MANY, 1, 1, 2), 1.0),
    ],
    ids=["mamba2", "delta", "kimi"],
)
def test_decays_and_step_sizes_are_born_as_published(part: Callable[[], Any], least: float) -> None:
    """A uniform up to 16, and softplus(dt_bias) log-uniform from 0.001 to 0.1, by their quantiles."""
    torch.manual_seed(0)
    made = part()
    assert distance(made.A_log.exp(), lambda p: least + (16 - least) * p) < 0.04
    step = torch.nn.functional.softplus(made.dt_bias.detach().double())
    assert float(step.min()) > 0.00099 and float(step.max()) < 0.1001
    assert distance(step.log(), lambda p: math.log(1e-3) + math.log(100) * p) < 0.04
    assert (made.norm.weight == 1).all()
    bound = 2**-0.5  # of a convolution of two taps, as torch draws it
    assert distance(made.conv1d.weight, lambda p: bound * (2 * p - 1)) < 0.04


def test_a_mamba_1_mixer_keeps_its_published_step_sizes() -> None:
    model = born(other("falcon_mamba", d_model=64))
    for layer in model.layers:
        mixer = layer.mixer  # type: ignore[union-attr]
        assert isinstance(mixer, Mamba1Mixer)
        step = torch.nn.functional.softplus(mixer.dt_proj.bias.detach())
        assert float(step.min()) > 0.00099 and float(step.max()) < 0.1001
        assert torch.equal(mixer.A_log.detach(), torch.arange(1, 17).log().expand(128, 16))
        assert float(mixer.dt_proj.weight.detach().abs().max()) <= 0.5  # R = 4


@pytest.mark.parametrize("init", ["unit", "published"])
@pytest.mark.parametrize("name", ["qwen3_5", "falcon_h1", "gpt_neox", "nemotron_h"])
def test_projections_norms_and_embeddings(name: str, init: str) -> None:
    model = born(other(name, d_model=128), init)
    layers = [layer for layer in model.layers if isinstance(layer, Layer)]
    added = sum(len(branch.parts) for layer in layers for step in layer.steps for branch in step)
    assert added == {"qwen3_5": 4, "falcon_h1": 6, "gpt_neox": 4, "nemotron_h": 3}[name]
    for at, module in model.layers.named_modules():
        if isinstance(module, nn.Linear) and module.weight.numel() > 2000:
            std = module.in_features**-0.5 if init == "unit" else 0.02
            std *= added**-0.5 if at.endswith(("o_proj", "out_proj", "down_proj")) else 1.0
            assert float(module.weight.detach().std()) == pytest.approx(std, rel=0.1), at
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, RMSNorm):
            assert (module.weight == 1 - module.plus).all()
    assert float(model.embeddings.detach().std()) == pytest.approx(1.0 if init == "unit" else 0.02, rel=0.1)
    _, head = model.ending
    assert (head is model.embeddings) == (name != "nemotron_h")
    assert float(head.detach().std()) == pytest.approx(1.0 if init == "unit" else 0.02, rel=0.1)
    if init == "unit":
        tokens = make_task(TASK).sample(16, "evaluation", 0).tokens
        assert 0.5 < float(model(tokens).detach().std()) < 4  # logits of about unit variance


def test_what_decays(tmp_path: Path) -> None:
    for name, kept in (("qwen3_5", {"in_proj_qkv", "conv1d", "q_proj", "down_proj"}), ("kimi_linear", {"f_a_proj"})):
        state = trainer.new_state(trainer.make_job(TASK, quick(tmp_path), other(name)), torch.device("cpu"))
        names = {id(parameter): at for at, parameter in state.model.named_parameters()}
        decayed = {names[id(p)].split(".")[-2] for p in state.optimizer.param_groups[0]["params"]}
        assert kept <= decayed and not decayed & {"embed_tokens", "norm", "A_log", "dt_bias", "input_layernorm"}
        free = {names[id(p)].rpartition(".")[2] for p in state.optimizer.param_groups[1]["params"]}
        assert free >= {"A_log", "dt_bias", "weight"}


# --- sizes -----------------------------------------------------------------------------------------------------------


def test_sizes_become_the_familys_own() -> None:
    config: Any = model_config(
        other(
            "qwen3_5", "delta delta attention", n_layer=6, d_model=48, n_head=6, n_kv_head=2, d_head=16,
            memory_heads=8, groups=4, d_state=12, d_value=5, d_conv=3, d_mlp=77,
        ), make_task(TASK)
    )  # fmt: skip
    assert config.kinds == ("delta", "delta", "attention") * 2 and config.n_layer == 6 and config.d_model == 48
    assert (config.n_head, config.n_kv_head, config.d_head, config.rotation.size) == (6, 2, 16, 4)
    assert (config.value_heads, config.key_heads, config.key_size, config.value_size) == (8, 4, 12, 5)
    assert config.d_conv == 3 and config.d_mlp == 77
    jamba: Any = model_config(other("jamba", "mamba attention mamba mamba attention", dt_rank=3), make_task(TASK))
    assert jamba.attention_every == (3, 1) and jamba.dt_rank == 3
    reader = ConfigReader(family_of(jamba).write(make_model(jamba)), "config.json", "Jamba")
    assert family_of(jamba).read(reader) == jamba


FAMILIES = {family.name: family for family in declared().values() if family.trained}
SIZES = ("n_head", "n_kv_head", "d_head", "memory_heads", "groups", "d_state", "d_value", "expand", "d_conv", "dt_rank",
         "d_mlp", "experts", "experts_chosen", "d_expert")  # fmt: skip


@st.composite
def wishes(draw: st.DrawFn) -> OtherArchitecture:
    """A family, a pattern of its words, and a few sizes that may not fit."""
    family = draw(st.sampled_from(sorted(FAMILIES)))
    words = FAMILIES[family].trained.words  # type: ignore[union-attr]
    pattern = draw(st.lists(st.sampled_from(sorted(words)), max_size=5))
    few = draw(st.dictionaries(st.sampled_from(SIZES), st.sampled_from([1, 2, 3, 4, 6, 8, 16]), max_size=4))
    repeat, width = draw(st.sampled_from([0, 1, 2, 4, 6])), draw(st.sampled_from([4, 8, 10, 16, 24, 32, 34, 64]))
    return OtherArchitecture(family, " ".join(pattern), repeat, width, **few)


@settings(max_examples=50, deadline=None)
@given(wishes())
def test_what_is_asked_for_is_made_or_refused_in_one_line(architecture: OtherArchitecture) -> None:
    """A configuration that is made has the asked sizes, and is read back from its config.json."""
    try:
        config = model_config(architecture, make_task(TASK))
    except MechintError as error:
        assert "\n" not in str(error)
        return
    with torch.device("meta"):
        model = make_model(config)
    assert isinstance(model, Stack) and len(model.layers) == config.n_layer and model.config.d_model == config.d_model
    assert config.n_layer == (architecture.n_layer or len(architecture.layers.split()) or config.n_layer)
    family = family_of(config)
    reader = ConfigReader(plain(finite(family.write(model))), "config.json", family.title)
    assert family.read(reader) == config
    reader.done()


@pytest.mark.parametrize(
    ("name", "sizes", "line"),
    [
        ("mamba3", {}, "no family 'mamba3' is trained so (did you mean mamba2"),
        ("gpt2", {}, "gpt2 has a menu and a --family of its own"),
        ("llama", {}, "no family 'llama' is trained so"),
        ("mamba2", {"layers": "mamba2 attention"}, "layers has 'attention'; the layers of Mamba-2 are mamba2"),
        ("qwen3_5", {"layers": "delt attention"}, "'delt' (did you mean delta?); the layers of Qwen3.5 are delta, att"),
        ("qwen3_5", {"layers": "delta delta attention", "n_layer": 4}, "names 3 layers, and n_layer is 4, no multiple"),
        ("falcon_h1", {"layers": "mamba2"}, "the layers of Falcon-H1 are parallel"),
        ("jamba", {"layers": "attention attention mamba"}, "attention every so many layers, and here it is in"),
        ("mamba2", {"memory_heads": 5}, "5 heads (memory_heads) of 12 dimensions (d_value) are not the 64 of expand"),
        ("mamba2", {"memory_heads": 4, "groups": 3}, "groups is 3, and 4 heads (memory_heads) are no multiple"),
        ("qwen3_5", {"memory_heads": 6, "groups": 4}, "groups is 4, and 6 heads (memory_heads) are no multiple"),
        ("qwen3_5", {"n_head": 5}, "5 heads (n_head) do not divide a width of 32; set d_head"),
        ("qwen3_5", {"n_head": 4, "n_kv_head": 3}, "n_kv_head is 3, and 4 heads (n_head) are no multiple"),
        ("qwen3_5", {"n_head": 8}, "heads of 4 dimensions (d_head) are too small for Qwen3.5"),
        ("gpt_neox", {"n_kv_head": 2}, "n_kv_head is 2, and each head of GPT-NeoX has keys and values of its own"),
        ("gpt_neox", {"d_head": 16}, "d_head is 16, and each head of GPT-NeoX has"),
        ("gpt_neox", {"d_state": 4}, "d_state is 4, and the layers attention attention of GPT-NeoX have no such size"),
        ("mamba2", {"n_head": 4}, "n_head is 4, and the layers mamba2 mamba2 of Mamba-2 have no such size; set it"),
        ("qwen3_5", {"layers": "delta", "n_head": 4}, "n_head is 4, and the layers delta of Qwen3.5 have no such size"),
        ("qwen3_5", {"expand": 2}, "expand is 2, and the layers delta attention of Qwen3.5 have no such size"),
        ("qwen3_5", {"experts": 4}, "experts is 4, and the layers delta attention of Qwen3.5 have no such size"),
        ("qwen3_next", {"experts": 1}, "experts is 1, and a choice needs two or more"),
        ("qwen3_next", {"experts": 2, "experts_chosen": 3}, "experts_chosen is 3, and there are 2 experts (experts)"),
        ("qwen3_next", {"experts_chosen": 2}, "experts_chosen is 2, and the layers"),
        ("qwen3_next", {"experts": 4, "d_mlp": 8}, "d_mlp is 8, and the layers"),
        ("jamba", {"experts": 4, "d_mlp": 8}, "d_mlp is 8, and every layer has experts; set d_expert in its place"),
        ("nemotron_h", {"d_mlp": 8, "layers": "mamba2 attention"}, "d_mlp is 8, and the layers mamba2 attention of"),
        ("zamba2", {"d_head": 8}, "d_head is 8, and the heads of Zamba 2 share twice the stream's width"),
        ("kimi_linear", {"n_kv_head": 2}, "n_kv_head is 2, and every head of Kimi-Linear has keys and values"),
        ("kimi_linear", {"d_value": 4}, "d_value is 4, and the layers delta attention of Kimi-Linear have no"),
        ("mamba2", {"d_state": -1}, "other: d_state is -1; it must be a whole number at least 0"),
        ("mamba2", {"d_model": 2}, "other: d_model is 2; it must be a whole number at least 4"),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_fit_is_one_line_before_training(
    name: str, sizes: dict[str, Any], line: str, tmp_path: Path
) -> None:
    architecture = dataclasses.replace(other(name), **sizes)
    for function in (train, plan):
        with pytest.raises(MechintError) as caught:
            function(TASK, quick(tmp_path), architecture)
        assert line in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["qwen3_5", "bamba", "jamba", "lfm2", "kimi_linear"])
def test_no_circuit_is_imposed_where_layers_have_other_parts(name: str, tmp_path: Path) -> None:
    with pytest.raises(
        MechintError, match="no circuit can be imposed on such a model; train a GPT-2, a Mamba, or"
    ) as error:
        train(TASK, quick(tmp_path, impose=True), other(name, n_layer=2) if name == "kimi_linear" else other(name))
    assert "\n" not in str(error.value)


def test_variants_of_a_family() -> None:
    found = steps(TrainConfig(variants="baseline,d_state=8,family=other+model_type=falcon_h1"), TINY)
    assert [step.architecture for step in found] == [
        TINY, dataclasses.replace(TINY, d_state=8), OtherArchitecture(model_type="falcon_h1")
    ]  # fmt: skip
