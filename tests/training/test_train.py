"""The trainer: it learns, repeats itself to the byte, survives kill -9, and never overwrites what is another's."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import mechint.training.trainer as trainer
from mechint.models.loading.load import load
from mechint.runner import train_command
from mechint.tasks import TaskConfig, make_task
from mechint.training.options import GPT2Architecture, MambaArchitecture, TrainConfig
from mechint.training.trainer import learning_rate, plan, train
from mechint.utils import files
from mechint.utils.errors import MechintError
from tests.helpers.commands import Here
from tests.helpers.paths import ROOT

TASK = TaskConfig(pairs=2, keys=9, values=4)
TINY = MambaArchitecture(d_model=16, n_layer=1, d_state=4)
GPT2 = GPT2Architecture(n_layer=1, n_head=2, n_embd=16)
QUICK = TrainConfig(steps=24, batch_size=16, warmup=4, eval_every=6, save_every=4, eval_prompts=32)


def quick(directory: Path, **changes: object) -> TrainConfig:
    return dataclasses.replace(QUICK, output_dir=str(directory), **changes)  # type: ignore[arg-type]


def hashes(directory: Path) -> dict[str, str]:
    return {path.name: files.sha256(path) for path in directory.glob("*.pt")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("trained")
    train(TASK, quick(directory), TINY)
    return directory


def test_training_learns(tmp_path: Path) -> None:
    config = quick(tmp_path, steps=150, lr=0.02, eval_every=50, batch_size=64)
    train(TaskConfig(name="facts", facts=16, values=4), config, TINY)
    metrics = json.loads((tmp_path / "training_metrics_stepV0.json").read_text())
    losses = [entry["val_loss"] for entry in metrics["history"]]
    assert losses[-1] < losses[0] < math.log(4) * 1.5
    assert metrics["held_out_accuracy"] > 0.9 and metrics["finished"] is True


def test_checkpoints_on_the_way_stay_and_change_nothing(tmp_path: Path, trained: Path) -> None:
    train(TASK, quick(tmp_path, keep_every=8), TINY)
    kept = sorted(path.name for path in (tmp_path / "trajectory_stepV0").iterdir())
    assert kept == ["step000000.pt", "step000008.pt", "step000016.pt", "step000024.pt"]
    final = load(str(tmp_path / "final_model_stepV0.pt")).state_dict()
    last = load(str(tmp_path / "trajectory_stepV0" / kept[-1])).state_dict()
    assert all(torch.equal(final[name], last[name]) for name in final)
    assert files.sha256(tmp_path / "final_model_stepV0.pt") == files.sha256(trained / "final_model_stepV0.pt")


def test_the_files_are_what_was_promised(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()} - {".lock"}
    assert names == {"final_model_stepV0.pt", "best_model_stepV0.pt", "training_metrics_stepV0.json"}
    checkpoint = torch.load(trained / "final_model_stepV0.pt", weights_only=True)
    promised = {"embeddings.weight", "layers.0.norm.weight", "layers.0.mixer.A_log", "norm_f.weight"}
    assert {f"backbone.{name}" for name in promised} <= set(checkpoint["model"])
    config = checkpoint["config"]
    unasked = (*trainer.NOT_TRAINED, "bos")  # options that change no prompt of this task
    task = {name: value for name, value in dataclasses.asdict(TASK).items() if name not in unasked}
    assert config["family"] == config["model_type"] == "mamba" and config["task"] == task
    assert config["hidden_size"] == 16 and config["vocab_size"] == 16 and config["time_step_rank"] == 1
    assert checkpoint["iter_num"] == 24 and config["train"]["lr"] == QUICK.lr and str(trained) not in repr(config)
    history = json.loads((trained / "training_metrics_stepV0.json").read_text())["history"]
    assert [entry["step"] for entry in history] == [6, 12, 18, 24]
    assert checkpoint["best_val_loss"] == min(entry["val_loss"] for entry in history)


def test_the_checkpoint_loads_and_is_as_good_as_it_says(trained: Path) -> None:
    model = load(trained / "final_model_stepV0.pt")
    checkpoint = torch.load(trained / "final_model_stepV0.pt", weights_only=True)
    prompts = make_task(TASK).sample(QUICK.eval_prompts, "evaluation", trainer.mix(0, "held out"))
    with torch.no_grad():
        logits = model(prompts.tokens)
    at = prompts.positions.unsqueeze(-1).expand(-1, -1, logits.shape[-1])
    assert float(prompts.correct(logits.gather(1, at)).mean()) == pytest.approx(checkpoint["held_out_accuracy"])


def test_the_same_recipe_makes_the_same_bytes(trained: Path, tmp_path: Path) -> None:
    train(TASK, quick(tmp_path, save_every=1000), TINY)
    assert hashes(tmp_path) == hashes(trained)
    train(TASK, quick(tmp_path, seed=1, step_name="V1"), TINY)
    assert files.sha256(tmp_path / "final_model_stepV1.pt") != files.sha256(tmp_path / "final_model_stepV0.pt")


@pytest.mark.parametrize("step", [4, 10, 23])
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
    assert not (tmp_path / "final_model_stepV0.pt").exists()
    train(TASK, quick(tmp_path), TINY)
    assert f"resuming from step {step // 4 * 4} of 24" in capsys.readouterr().out
    assert hashes(tmp_path) == hashes(trained)
    theirs, ours = (
        json.loads((directory / "training_metrics_stepV0.json").read_text()) | {"seconds": 0}
        for directory in (trained, tmp_path)
    )
    assert ours == theirs


@pytest.mark.slow
def test_kill_9_and_again_gives_the_same_bytes(tmp_path: Path, here: Here) -> None:
    options = "--task-pairs 2 --task-keys 9 --mamba-d-model 16 --mamba-n-layer 1 --train-batch-size 16 --train-warmup 5"
    options += " --train-steps 120 --train-eval-every 30 --train-save-every 10 --train-eval-prompts 32"
    command = [*options.split(), "--train-output-dir"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    with subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "train.py"), *command, str(killed)],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    ) as process:
        patience = time.monotonic() + 60
        while not (killed / "stepV0.resume.pt").exists() and time.monotonic() < patience:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL and not (killed / "final_model_stepV0.pt").exists()
    again, once = (here(train_command.main, *command, str(where), at=tmp_path) for where in (killed, whole))
    assert again.status == once.status == 0, again.err + once.err
    assert "resuming from step" in again.out and "resuming" not in once.out
    assert hashes(killed) == hashes(whole) and len(hashes(whole)) == 2


def test_finished_training_is_skipped(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in trained.glob("*_*")}
    path = train(TASK, quick(trained), TINY)
    assert path == trained / "final_model_stepV0.pt"
    assert "already trained" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in trained.glob("*_*")} == before


def test_another_recipe_is_never_overwritten(trained: Path) -> None:
    before = hashes(trained)
    others = (
        ((dataclasses.replace(TASK, values=5), quick(trained), TINY), "values 4, not 5"),
        ((TASK, quick(trained, lr=0.5), TINY), f"lr {QUICK.lr}, not 0.5"),
        ((TASK, quick(trained), dataclasses.replace(TINY, n_layer=2)), "n_layer 1, not 2"),
    )
    for job, line in others:
        for function in (train, plan):
            with pytest.raises(MechintError) as caught:
                function(*job)
            assert line in str(caught.value) and "step_name" in str(caught.value)
    assert hashes(trained) == before


def test_a_changed_text_is_another_recipe(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("all work and no play " * 200)
    task = TaskConfig(name="text", text=str(text), length=8)
    train(task, quick(tmp_path, steps=2), TINY)
    text.write_text("no play and all work " * 200)
    with pytest.raises(MechintError, match="another text"):
        train(task, quick(tmp_path, steps=2), TINY)


def test_training_stops_when_it_is_good_enough(tmp_path: Path) -> None:
    train(TASK, quick(tmp_path, stop_accuracy=0.0), TINY)
    checkpoint = torch.load(tmp_path / "final_model_stepV0.pt", weights_only=True)
    assert checkpoint["iter_num"] == 12  # two evaluations in a row


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedules(schedule: str) -> None:
    config = TrainConfig(steps=100, warmup=10, lr=1.0, schedule=schedule)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(1.0 if schedule == "constant" else 0.5)
    assert rates[99] < 0.02 or schedule == "constant"


def test_what_decays_and_how_models_are_born(tmp_path: Path) -> None:
    job = trainer.make_job(TASK, quick(tmp_path), TINY)
    state = trainer.new_state(job, torch.device("cpu"))
    names = {id(parameter): name for name, parameter in state.model.named_parameters()}
    decayed = {names[id(p)].split(".", 2)[-1] for p in state.optimizer.param_groups[0]["params"]}
    projections = {"in_proj.weight", "x_proj.weight", "dt_proj.weight", "out_proj.weight"}
    assert decayed == projections | {"conv1d.weight"}
    assert state.model.norm_f.weight.unique().tolist() == [0.25]
    assert 0.8 < float(state.model.embedding.weight.detach().std()) < 1.2
    published = trainer.make_job(TASK, quick(tmp_path, init="published"), TINY)
    assert float(trainer.new_state(published, torch.device("cpu")).model.embedding.weight.detach().std()) < 0.03


# --- GPT-2 -----------------------------------------------------------------------------------------------------------


def test_a_gpt2_learns(tmp_path: Path) -> None:
    config = quick(tmp_path, steps=200, lr=3e-3, eval_every=50, batch_size=64)
    train(TaskConfig(name="facts", facts=16, values=4), config, GPT2)
    metrics = json.loads((tmp_path / "training_metrics_stepV0.json").read_text())
    assert metrics["held_out_accuracy"] > 0.9 and metrics["family"] == "gpt2" and metrics["gpt2"]["n_embd"] == 16


@pytest.mark.parametrize(
    "changes",
    [{}, {"kv": "tied"}, {"bias": False}, {"gelu": "exact"}, {"block_size": 99}, {"n_head": 4, "n_layer": 2}],
    ids=str,
)
def test_a_trained_gpt2_loads_again_to_the_same_bits(changes: dict[str, object], tmp_path: Path) -> None:
    architecture = dataclasses.replace(GPT2, **changes)  # type: ignore[arg-type]
    config = quick(tmp_path, steps=3)
    path = train(TASK, config, architecture)
    job = trainer.make_job(TASK, config, architecture)
    state = trainer.new_state(job, torch.device("cpu"))
    for _ in range(3):
        trainer.one_step(job, state, torch.device("cpu"))
        state.step += 1
    model = load(path)
    assert model.config == job.model
    tokens = make_task(TASK).sample(4, "evaluation", 0).tokens
    assert torch.equal(model(tokens), state.model(tokens))
    again = train(TASK, quick(tmp_path, steps=3, step_name="V1"), architecture)
    assert torch.load(again)["model"].keys() == torch.load(path)["model"].keys()
    assert all(torch.equal(a, b) for a, b in zip(load(again).parameters(), model.parameters(), strict=True))


def test_what_decays_in_a_gpt2_and_how_it_is_born(tmp_path: Path) -> None:
    state = trainer.new_state(trainer.make_job(TASK, quick(tmp_path), GPT2), torch.device("cpu"))
    names = {id(parameter): name for name, parameter in state.model.named_parameters()}
    decayed = {names[id(p)].split(".", 2)[-1] for p in state.optimizer.param_groups[0]["params"]}
    assert decayed == {"attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"}
    tokens = make_task(TASK).sample(64, "evaluation", 0).tokens
    assert 0.5 < float(state.model(tokens).detach().std()) < 2.0  # logits of about unit variance
    published = trainer.make_job(TASK, quick(tmp_path, init="published"), GPT2)
    assert float(trainer.new_state(published, torch.device("cpu")).model.embeddings.detach().std()) < 0.03


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"n_head": 3}, "n_embd is 16, which can't be divided among 3 heads"),
        ({"block_size": 5}, "block_size is 5, and the prompts of 'recall' have"),
        ({"kv": "shared"}, "it must be one of separate, tied"),
    ],
)
def test_sizes_that_do_not_fit(changes: dict[str, object], line: str, tmp_path: Path) -> None:
    with pytest.raises(MechintError, match=line):
        train(TASK, quick(tmp_path), dataclasses.replace(GPT2, **changes))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


# --- bad input -------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trainer.answer_logits
    monkeypatch.setattr(trainer, "answer_logits", lambda *inputs: whole(*inputs) * math.nan)
    with pytest.raises(MechintError, match=r"the loss is nan .* at step 1; lower lr"):
        train(TASK, quick(tmp_path), TINY)
    assert not list(tmp_path.glob("*.pt"))


def test_a_whole_file_is_not_to_be_deleted_where_memory_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    (tmp_path / "final_model_stepV0.pt").write_bytes(b"whole")
    monkeypatch.setattr(torch, "load", full)
    with pytest.raises(MemoryError):
        train(TASK, quick(tmp_path), TINY)


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "final_model_stepV0.pt"
    path.write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(MechintError, match=r"can't be read .*; delete it and run again"):
        train(TASK, quick(tmp_path), TINY)
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(MechintError, match="step_name or output_dir"):
        train(TASK, quick(tmp_path), TINY)
    torch.save(torch.zeros(1), path)
    with pytest.raises(MechintError, match="not made by this trainer"):
        train(TASK, quick(tmp_path), TINY)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"steps": 0}, "train: steps is 0; it must be a whole number at least 1"),
        ({"step_name": "../V0"}, "give a name without '/'"),
        ({"step_name": ""}, "give a name without '/'"),
        ({"schedule": "cosin"}, "did you mean cosine"),
        ({"device": "tpu"}, "it must be one of auto, cpu, cuda"),
    ],
)
def test_bad_options_are_one_line(changes: dict[str, object], line: str, tmp_path: Path) -> None:
    with pytest.raises(MechintError) as caught:
        train(TASK, quick(tmp_path, **changes), TINY)
    assert line in str(caught.value) and "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_two_runs_in_one_directory(tmp_path: Path) -> None:
    with files.lock(tmp_path), pytest.raises(MechintError, match="another run is writing to"):
        train(TASK, quick(tmp_path), TINY)


def test_dry_run_says_everything_and_writes_nothing(tmp_path: Path, trained: Path, here: Here) -> None:
    words = ("--dry-run", "--task-keys", "16", "--train-output-dir", str(tmp_path / "out"))
    done = here(train_command.main, *words, at=tmp_path)
    assert done.status == 0 and not (tmp_path / "out").exists()
    for part in ("67520 parameters", "4 pairs of 16 keys", "final_model_stepV0.pt", "status   new"):
        assert part in done.out
    assert "already trained" in plan(TASK, quick(trained), TINY)


def test_a_start_that_fails_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither empty ones nor one with nothing but its lock; what was there before stays."""
    monkeypatch.setattr(trainer, "new_state", lambda *a: (_ for _ in ()).throw(MechintError("no memory")))
    kept = tmp_path / "kept"
    kept.mkdir()
    for place in (tmp_path / "new" / "deep", kept):
        with pytest.raises(MechintError, match="no memory"):
            train(TASK, quick(place), TINY)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept"]
    with pytest.raises(RuntimeError), files.lock(tmp_path / "work"):
        (tmp_path / "work" / "half").write_text("done so far")
        raise RuntimeError("later")
    assert (tmp_path / "work" / "half").exists()
