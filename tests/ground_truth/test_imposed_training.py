"""Training that imposes a circuit: killed, refused, begun again, and what the menus say."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import mechint
from mechint.ground_truth import IMPOSED, verify
from mechint.ground_truth.imposed import GPT2Recall, Imposed
from mechint.tasks import TaskConfig
from mechint.training import NotImposed
from mechint.training.files import FIRST
from mechint.training.imposed_circuits import ChannelCircuit, NarrowedCircuit
from mechint.training.options import (
    ARCHITECTURES,
    GPT2Architecture,
    MambaArchitecture,
    OtherArchitecture,
    TrainConfig,
)
from mechint.training.trainer import train
from mechint.utils import files
from mechint.utils.errors import MechintError
from mechint.utils.options import from_flags
from scripts.kconfig import mapping
from scripts.kconfig.defconfigs import find
from scripts.kconfig.loading import load
from scripts.train import parser
from tests.helpers.imposed import SHORT, TASK, few
from tests.helpers.paths import ROOT


@pytest.fixture
def _anything_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ACCURACY", 0.0), ("TOLERANCE", 1.0), ("CHANCE", 1.0)):
        monkeypatch.setattr(f"mechint.training.imposed_verify.{name}", value)


@pytest.mark.slow
@pytest.mark.usefixtures("_anything_goes")
@pytest.mark.parametrize("name", list(IMPOSED))
def test_a_killed_training_goes_on_to_the_same_bytes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Narrowing included, and the units that it left."""
    jobs = [few(name, tmp_path / place, save_every=3) for place in ("whole", "killed")]
    task = IMPOSED[name].asked
    monkeypatch.setattr(NarrowedCircuit, "narrowings", ((0.5, 0.5),))
    for job in jobs:
        if job.config.output_dir.endswith("killed"):
            with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
                broken.setattr("mechint.training.trainer.finish", killed)
                train(task, job.config, job.architecture)
        train(task, job.config, job.architecture)
    weights = [job.paths.final if job.paths.suffix else job.paths.final / FIRST for job in jobs]
    assert files.sha256(weights[0]) == files.sha256(weights[1])
    model = mechint.load(jobs[0].paths.final)
    assert jobs[0].imposed is not None
    alignment = jobs[0].imposed.align(model)
    for left, whole in zip(model.metadata["circuit"], alignment.variables, strict=True):
        assert left["units"] and set(left["units"]) <= set(whole.units)
        narrowed = isinstance(jobs[0].imposed, NarrowedCircuit) and whole.kind.endswith("channel")
        assert (len(left["units"]) < len(whole.units)) == narrowed
    assert jobs[0].paths.best.exists() and not jobs[0].paths.resume.exists()


def test_a_circuit_imposed_in_another_way_is_another_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = few("siit_mamba_recall", tmp_path)
    before = [config.output_dir for config in IMPOSED["siit_mamba_recall"]().attempts(0, tmp_path)]
    files.write_torch(job.paths.best, {"config": job.recipe})
    monkeypatch.setattr(ChannelCircuit, "narrowings", ((0.5, 0.5),))
    with pytest.raises(MechintError, match="was trained with another way to impose a circuit"):
        train(TASK, job.config, job.architecture)
    after = [config.output_dir for config in IMPOSED["siit_mamba_recall"]().attempts(0, tmp_path)]
    assert not set(before) & set(after)


def killed(*_: Any) -> None:
    raise KeyboardInterrupt


def test_what_was_not_imposed_is_refused_and_no_finished_checkpoint_is_left(tmp_path: Path) -> None:
    job = few("siit_gpt2_recall", tmp_path)
    with pytest.raises(NotImposed, match=r"of the answers are right, and at least 98% must be; .*train for more steps"):
        train(TASK, job.config, job.architecture)
    assert not job.paths.final.exists()


@pytest.mark.parametrize(
    ("task", "options", "architecture", "said"),
    [
        ({"name": "induction"}, {}, MambaArchitecture(), "no causal model of induction; set name to recall or marked"),
        ({"name": "long_copy"}, {}, MambaArchitecture(), "impose: there is no causal model of long_copy; set name"),
        ({}, {}, OtherArchitecture("qwen3_5", d_model=32), "impose: no circuit can be imposed on such a model; train"),
        ({}, {}, OtherArchitecture("nemotron_h", "attention mamba2"), "no circuit can be imposed on such a model"),
        ({}, {}, OtherArchitecture("mamba2", d_conv=1), "a convolution of one tap sees no token before, two are"),
        ({}, {}, OtherArchitecture("mamba2", n_layer=4), "is one of 2 layers, not 4; set n_layer to 2"),
        ({}, {}, GPT2Architecture(n_layer=3), "is one of 2 layers, not 3; set n_layer to 2"),
        ({}, {}, MambaArchitecture(d_model=8), "impose: 16 channels of a layer are too few, 32 are the least"),
        ({}, {"impose_strictness": -1.0}, MambaArchitecture(), "impose_strictness is -1.0"),
    ],
)  # fmt: skip
def test_what_cannot_be_imposed_is_refused_before_anything_is_trained(
    task: dict[str, Any], options: dict[str, Any], architecture: Any, said: str, tmp_path: Path
) -> None:
    config = TrainConfig(impose=True, output_dir=str(tmp_path / "none"), **options)
    with pytest.raises(MechintError, match=said) as error:
        train(dataclasses.replace(TASK, **task), config, architecture)
    assert "\n" not in str(error.value) and not (tmp_path / "none").exists()


@pytest.mark.parametrize("kind", list(IMPOSED.values()))
def test_the_menus_train_what_is_scored(kind: type[Imposed]) -> None:
    """The defconfig says the same options as the registry, but for where the files go."""
    family = kind.architecture.family
    _, model, task = kind.name.split("_")
    file = find(ROOT, f"{model}-tiny-imposed" + f"-{task}" * (task != "recall"))
    flags = parser().parse_args(mapping.arguments(load(ROOT, file), mapping.TRAIN))
    assert flags.family == family
    assert from_flags(flags, TaskConfig, "task") == kind().config
    assert from_flags(flags, ARCHITECTURES[family], family) == kind.architecture
    said = from_flags(flags, TrainConfig, "train")
    assert said.impose and said.seed == 100
    assert dataclasses.replace(said, output_dir=kind.options.output_dir, device="cpu", seed=0) == kind.options


def test_another_attempt_begins_from_another_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[TrainConfig] = []

    def refused(task: TaskConfig, config: TrainConfig, architecture: Any) -> None:
        tried.append(config)
        if len(tried) < 3:
            raise NotImposed("not imposed")

    monkeypatch.setattr("mechint.ground_truth.imposed.train", refused)
    model = GPT2Recall(TASK)
    attempts = list(model.attempts(7, tmp_path))
    assert model.trained(attempts) == attempts[2] and tried == attempts
    assert len({config.seed for config in attempts}) == len({config.output_dir for config in attempts}) == 3
    tried[:] = []
    with pytest.raises(NotImposed, match="not imposed"):
        model.trained(attempts[:2])
    assert tried == attempts[:2]

    def broken(*_: Any) -> None:
        tried.append(attempts[0])
        raise MechintError("the disk is full")

    tried[:] = []
    monkeypatch.setattr("mechint.ground_truth.imposed.train", broken)
    with pytest.raises(MechintError, match="the disk is full"):
        model.trained(attempts)
    assert len(tried) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("_anything_goes")
def test_a_checkpoint_is_trained_once_and_loads_as_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type("Short", (GPT2Recall,), {"options": dataclasses.replace(GPT2Recall.options, **SHORT)})
    model = kind(TASK)
    first = model.compile(seed=5, folder=tmp_path)
    [path] = tmp_path.glob("*/final_model_stepV0.pt")
    monkeypatch.setattr("mechint.ground_truth.imposed.train", None)  # would fail
    again = model.compile(seed=5, folder=tmp_path)
    tokens = model.task.sample(4, "train", 0).tokens
    assert torch.equal(first.model(tokens), again.model(tokens))
    assert torch.equal(mechint.load(path)(tokens), first.model(tokens))
    assert first.truth == again.truth
    units = first.truth.units("kv")
    assert len(units) == 2 * 2 * first.model.config.d_head
    assert int(first.truth.mask(first.model, "kv", "mean").sum()) == len(units) * 3 // 4
    assert int(first.truth.mask(first.model, "kv", "counterfactual").sum()) == len(units) // 4


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["siit_mamba2_recall", "siit_hybrid_recall", "siit_gpt2_marked", "siit_hybrid_marked"])
def test_a_training_imposes_its_circuit(name: str, tmp_path: Path) -> None:
    """At the first attempt; then ablations bear out what is declared, too."""
    compiled = IMPOSED[name]().compile(seed=100, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    verify(compiled.model, compiled.truth, compiled.task, 500, "discovery")
