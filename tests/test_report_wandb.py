"""What a run logs to W&B, read back from its offline file."""

from __future__ import annotations

import builtins
import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from mechint.errors import MechintError
from mechint.report import log_wandb
from mechint.report.results import load_history, load_results
from tests.report_runs import Json, one_line


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
    assert summary["mechint/faithfulness_random_weights_high"] == pytest.approx(0.24)
    trace = next(trace for trace in load_history(results) if trace.name == "seed 0")
    assert summary["mechint/loss"] == trace.steps[-1]["loss"]
    curve = [row["mechint/loss/seed 0"] for row in history if "mechint/loss/seed 0" in row]
    assert curve == trace.column("loss")
    assert any("final_masks.pt" in text for text in artifacts)
    files = {path.name.split("_")[0]: path for path in (directory / "files" / "media").rglob("*") if path.is_file()}
    assert {"metrics", "layers", "faithfulness", "manifest", "ssm", "sparsity"} <= set(files)
    rows = json.loads(files["layers"].read_text())["data"]
    assert [row[2] for row in rows] == [layer.kept for layer in results.layers]


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
