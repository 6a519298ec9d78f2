"""The log of a W&B run, read back from its offline file."""

from __future__ import annotations

import builtins
import contextlib
import json
import struct
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mechint.analyses.base import analyses
from mechint.analyses.circuits.results import load_history, load_results
from mechint.analyses.options import RunConfig
from mechint.report import log_wandb
from mechint.runner.experiment import run_experiment
from mechint.runner.request import Experiment
from mechint.tasks.config import TaskConfig
from mechint.training.options import MambaArchitecture, TrainConfig
from mechint.training.trainer import train
from mechint.utils import progress, wandb_run
from mechint.utils.errors import MechintError
from tests.helpers.report_runs import Json, build_run, edit, one_line


def wandb_records(directory: Path) -> list[Any]:
    """The records of an offline run: LevelDB's log format (blocks of 32 KiB; crc, length, type) of protobufs."""
    from wandb.proto import wandb_internal_pb2

    data, at, parts, records = next(directory.glob("*.wandb")).read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # too little room for a header: the rest of the block is padding
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            records.append(record)
            parts = b""
    return records


def summary_of(records: list[Any]) -> Json:
    found: Json = {}
    for record in records:
        if record.WhichOneof("record_type") == "summary":
            items = record.summary.update
            found |= {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
    return found


@pytest.fixture
def quiet_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """W&B confined to a directory of the test, with no account."""
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_RUN_ID", "WANDB_SERVICE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "NETRC", "WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.setenv(name, str(folder / "netrc") if name == "NETRC" else str(folder))
    return tmp_path


@pytest.mark.slow
def test_an_offline_run_holds_the_summary_the_curves_the_tables_and_the_masks(
    tiny: Path, quiet_wandb: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    directory = log_wandb(tiny, "a project", "stepV0")
    assert directory.is_relative_to(quiet_wandb / "WANDB_DIR") and directory.name.startswith("offline-run-")
    records, patience = wandb_records(directory), time.monotonic() + 60  # W&B's own process writes, maybe a bit later
    whole = lambda: "mechint/sparsity" in summary_of(records) and "final_masks.pt" in str(records)
    while not whole() and time.monotonic() < patience:
        time.sleep(0.2)
        records = wandb_records(directory)
    summary = summary_of(records)
    history: list[Json] = []
    artifacts = []
    for record in records:
        kind = record.WhichOneof("record_type")
        if kind == "history":
            items = record.history.item
            history.append({"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items})
        elif kind in ("artifact", "request"):
            artifacts.append(str(record))
    results = load_results(tiny)
    assert summary["mechint/sparsity"] == pytest.approx(1 - 16 / 256)
    assert summary["mechint/faithfulness"] == results.metrics["faithfulness"].value
    assert summary["mechint/mask_for_exchanged_answers_high"] == pytest.approx(0.24)
    assert summary["mechint/loss"] == results.metrics["kl"].value  # not that of the last sampled batch
    trace = next(trace for trace in load_history(results) if trace.name == "seed 0")
    curve = [row["mechint/search/loss/seed 0"] for row in history if "mechint/search/loss/seed 0" in row]
    assert curve == trace.column("loss")
    assert any("final_masks.pt" in text for text in artifacts)
    files = {path.name.split("_")[0]: path for path in (directory / "files" / "media").rglob("*") if path.is_file()}
    assert {"metrics", "layers", "faithfulness", "manifest", "ssm", "sparsity"} <= set(files)
    rows = json.loads(files["layers"].read_text())["data"]
    assert [row[2] for row in rows] == [layer.kept for layer in results.layers]


class Recorded:
    """A W&B run that keeps what it is told."""

    def __init__(self) -> None:
        self.rows: list[Json] = []
        self.metrics: list[str] = []

    def define_metric(self, name: str, **_: Any) -> None:
        self.metrics.append(name)

    def log(self, row: Json) -> None:
        self.rows.append(row)


def test_points_are_logged_while_they_are_made_and_none_twice() -> None:
    run, began, ended = Recorded(), [], []

    @contextlib.contextmanager
    def start() -> Iterator[Recorded]:
        began.append(True)
        yield run
        ended.append(True)

    with wandb_run.Logged(start) as logged, progress.listening(logged):
        assert not began  # a finished analysis that is skipped leaves no run
        progress.point("seed 0", {"step": 0, "loss": 2.0, "kept": 3, "units": 4})
        progress.point("topk", {"step": 9, "tokens": 640, "l0": 5.0})
        assert began and not ended and run.rows == [
            {"mechint/step": 0.0, "mechint/search/loss/seed 0": 2.0, "mechint/search/kept/seed 0": 3,
             "mechint/search/sparsity/seed 0": 0.25},
            {"mechint/tokens": 640.0, "mechint/training/l0/topk": 5.0},
        ]  # fmt: skip
        progress.point("seed 0", {"step": 0, "loss": 9.0})
        assert len(run.rows) == 2
    assert ended == [True]
    progress.point("seed 0", {"step": 1, "loss": 1.0})
    assert len(run.rows) == 2


def test_a_training_logs_every_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, named = Recorded(), []

    @contextlib.contextmanager
    def started(project: str, name: str, job: str, group: str, config: Any) -> Iterator[Recorded]:
        named.append((project, name, job, group))
        yield run

    monkeypatch.setattr(wandb_run, "started", started)
    monkeypatch.setattr(wandb_run, "check", lambda: "online")
    options = TrainConfig(
        steps=4, eval_every=2, eval_prompts=8, batch_size=4, output_dir=str(tmp_path / "out"), wandb=True
    )
    train(TaskConfig(pairs=3), options, MambaArchitecture(d_model=8, n_layer=1, d_state=2))
    assert named == [("mechint", "out/final_model_stepV0 training", "training", "out")]
    assert [row["mechint/step"] for row in run.rows] == [2.0, 4.0, 4.0]
    assert {"mechint/train/loss", "mechint/train/val_loss", "mechint/train/val_accuracy"} <= set(run.rows[0])
    metrics = json.loads((tmp_path / "out" / "training_metrics_stepV0.json").read_text())
    assert run.rows[-1]["mechint/train/held_out_accuracy/final"] == metrics["held_out_accuracy"]


class Online(Recorded):
    """A stand-in of W&B's own run, online or not, and of its module."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Json = {}
        self.config: Json = {}
        self.summary: Json = {}
        self.tags: tuple[str, ...] = ()
        self.artifacts: list[Any] = []
        self.ended: list[int] = []
        self.settings = types.SimpleNamespace(sync_dir="/nowhere")

    def init(self, **asked: Any) -> Online:
        self.asked, self.config, self.tags = asked, Config(asked["config"]), tuple(asked["tags"])
        return self

    def finish(self, exit_code: int = 0) -> None:
        self.ended.append(exit_code)

    def log_artifact(self, artifact: Any) -> None:
        self.artifacts.append(artifact)


class Config(dict[str, Any]):
    def update(self, more: Json, allow_val_change: bool = False) -> None:  # type: ignore[override]
        assert allow_val_change or not set(more) & set(self)
        super().update(more)


class Artifact:
    def __init__(self, name: str, type: str, description: str) -> None:
        self.name, self.files = name, list[str]()

    def add_file(self, path: str) -> None:
        self.files.append(Path(path).name)


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_a_run_has_a_name_a_group_a_job_tags_and_all_that_its_results_depend_on(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a stand-in of the module: the calls are the same offline as online."""
    run = Online()
    module = types.ModuleType("wandb")
    module.__dict__.update(
        init=run.init, Settings=lambda **named: named, Error=RuntimeError, Image=str, Artifact=Artifact,
        Table=lambda columns, data: (columns, data), login=lambda **_: True,
        setup=lambda: types.SimpleNamespace(settings=types.SimpleNamespace(mode=mode)),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setenv("WANDB_MODE", mode)
    directory = build_run(tmp_path / "study" / "stepV3")
    raw = json.loads((directory / "results.json").read_text())
    key = {"run": {"dtype": "float32", "seed": 7}, "task": {"pairs": 3}}
    edit(directory, checkpoint="study/final_model_stepV3.pt", key=key, model={**raw["model"], "variant": "kv=tied"})
    log_wandb(directory, "a project")
    analysis, model = raw["analysis"], {**raw["model"], "variant": "kv=tied"}
    assert {name: run.asked[name] for name in ("project", "name", "group", "job_type", "mode")} == {
        "project": "a project", "name": f"study/final_model_stepV3 {analysis}", "group": "study",
        "job_type": analysis, "mode": mode,
    }  # fmt: skip
    assert run.tags == (analysis, raw["task"]["name"], model["family"], "kv=tied")
    assert run.config.items() >= raw["config"].items()
    assert run.config["run"] == key["run"] and run.config["model"] == model
    assert run.config["task"] == {"pairs": 3, **raw["task"]}
    [artifact] = run.artifacts
    assert artifact.name.startswith(f"final_model_stepV3-{analysis}-masks-") and "results.json" in artifact.files
    assert run.ended == [0] and run.summary["mechint/faithfulness"] == raw["metrics"]["faithfulness"]["value"]


def test_tags_are_short_and_each_once() -> None:
    assert wandb_run.tags_of("ssm", None, "", "ssm", "x" * 99) == ["ssm", "x" * 64]


def test_runs_and_artifacts_of_different_models_have_different_names() -> None:
    names = [wandb_run.run_name(f"{folder}/final_model_stepV0.pt", job) for folder in "ab" for job in ("ssm", "trace")]
    assert len(set(names)) == 4 and names[0] == "a/final_model_stepV0 ssm"
    assert wandb_run.run_name("state-spaces/mamba-1.4b-hf", "ssm") == "state-spaces/mamba-1.4b-hf ssm"
    assert wandb_run.run_name("runs/m.ckpt", "ssm") == "runs/m ssm"
    assert wandb_run.artifact_name("hub/Llama-3.2-1B", "ssm", "masks", "c" * 64).startswith("Llama-3.2-1B-ssm-masks-")
    artifacts = [wandb_run.artifact_name("x/model.pt", "ssm", "masks", digest * 64) for digest in "ab"]
    assert artifacts == ["model-ssm-masks-aaaaaaaaaaaa", "model-ssm-masks-bbbbbbbbbbbb"]


@pytest.mark.parametrize(("mode", "says"), [("offlin", "did you mean offline"), ("online", "wandb login")])
def test_what_cannot_be_logged_is_refused_before_the_work(
    mode: str, says: str, quiet_wandb: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    checkpoint = quiet_wandb / "model.pt"
    checkpoint.write_bytes(b"never read")
    run = RunConfig(checkpoint=str(checkpoint), output_dir=str(quiet_wandb / "out"), visualize_wandb=True)
    experiment = Experiment(run, TaskConfig(), {"ssm": analyses()["ssm"].config()})
    for dry_run in (True, False):
        with pytest.raises(MechintError, match=says):
            run_experiment(experiment, dry_run)
    with pytest.raises(MechintError, match=says):
        train(TaskConfig(), TrainConfig(output_dir=str(quiet_wandb / "new"), wandb=True), MambaArchitecture())
    assert not (quiet_wandb / "out").exists() and not (quiet_wandb / "new").exists()


def test_without_an_account_the_login_is_refused_in_one_line(
    tiny: Path, quiet_wandb: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(MechintError, match="wandb login") as error:
        log_wandb(tiny, "project", "run")
    assert "WANDB_MODE=offline" in one_line(error)


def test_a_missing_package_is_named(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name == "wandb":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MechintError, match="pip install wandb"):
        log_wandb(tiny, "project", "run")
