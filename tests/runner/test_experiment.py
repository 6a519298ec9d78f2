"""Whole experiments on tiny checkpoints: bytes, resumption, refusals, and what stays on disk after each."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mechint.analyses.base import analyses
from mechint.analyses.circuits.kv import KVCircuitConfig
from mechint.analyses.dictionaries.analyzer import SAEAnalysisConfig
from mechint.analyses.neurons.options import NeuronConfig
from mechint.analyses.options import RunConfig, elsewhere, request
from mechint.analyses.tracing.options import TraceConfig
from mechint.runner import command_line
from mechint.runner import experiment as whole
from mechint.runner.experiment import apart, run_directories, run_experiment
from mechint.tasks import TaskConfig
from mechint.utils import files, workers
from mechint.utils.errors import MechintError, exit_status
from tests.helpers.experiments import SSM, TASK, checkpoint, experiment
from tests.helpers.paths import ROOT

PLAIN: dict[str, Any] = dict.fromkeys(("visualize_heatmaps", "visualize_curves", "visualize_faithfulness"), False)
"""Pages without figures, which take longer than such a search."""


def words(*arguments: str) -> list[str]:
    """The command line of :func:`experiment` without figures."""
    small = ["--task-pairs=2", "--task-keys=12", "--task-values=12", "--batch-size=8"]
    small += [f"--ssm-{field.name.replace('_', '-')}={getattr(SSM, field.name)}" for field in dataclasses.fields(SSM)]
    return [*small, *(f"--no-{name.replace('_', '-')}" for name in PLAIN), *arguments]


def environment() -> dict[str, str]:
    """Of a process that computes with as many threads as this one, so that it may go on with its work."""
    return {**os.environ, "PYTHONPATH": str(ROOT / "lib"), "OMP_NUM_THREADS": str(torch.get_num_threads())}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint, and its finished analysis with every figure; tests that change files take a copy."""
    top = tmp_path_factory.mktemp("done")
    path = checkpoint(top / "models/final_model_stepV0.pt")
    run_experiment(experiment(path, top / "out"))
    return path, top / "out"


@pytest.mark.slow
def test_an_experiment_leaves_everything_the_report_promises_and_the_same_bytes_twice(
    done: tuple[Path, Path], tmp_path: Path
) -> None:
    path, one = done
    run_experiment(experiment(path, tmp_path / "two"))
    promised = {
        "final_masks.pt", "ssm_channel_importance.png", "sparsity_curves.png", "faithfulness_curve.png",
        "circuit_analysis_report.md", "report.html", "results.json", "manifest.json", "history.jsonl",
    }  # fmt: skip
    assert promised <= {item.name for item in one.iterdir()}
    assert not (one / ".stages").exists()
    for name in promised - {"manifest.json", "report.html"}:  # the page shows the manifest, and that has a date
        assert (one / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    results = json.loads((one / "results.json").read_text())
    assert results["schema"] == 1
    assert results["status"] == "complete"
    assert results["checkpoint"] == str(path)
    for name, entry in results["metrics"].items():
        assert {"value", "low", "high", "n"} <= set(entry), name
        assert entry["low"] <= entry["value"] <= entry["high"], name
    masks = torch.load(one / "final_masks.pt", weights_only=True)
    assert set(masks) == {"layers.0", "layers.1"}
    assert all(set(layer) == {"logits", "mask", "importance", "sparsity"} for layer in masks.values())
    assert sum(int(layer["mask"].sum()) for layer in masks.values()) == 6


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_a_finished_run_is_skipped_and_another_request_never_overwrites_it(
    done: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asked to run again without masks, it leaves those of the run before neither."""
    path, output = shutil.copy(done[0], tmp_path / "a.pt"), Path(shutil.copytree(done[1], tmp_path / "out"))
    before = {item.name: item.read_bytes() for item in output.iterdir() if item.is_file()}
    run_experiment(experiment(path, output))
    assert "is finished" in capsys.readouterr().out
    with pytest.raises(MechintError, match=r"finished results of another request \(config.budget is 5 and was 6\)"):
        run_experiment(experiment(path, output, budget=5))
    checkpoint(tmp_path / "a.pt", seed=1)
    with pytest.raises(MechintError, match="weights is"):
        run_experiment(experiment(path, output))
    assert {item.name: item.read_bytes() for item in output.iterdir() if item.is_file()} == before
    run_experiment(experiment(path, output, budget=5, rerun=True, save_masks=False))
    assert json.loads((output / "results.json").read_text())["metrics"]["units_kept"]["value"] == 5
    assert not (output / "final_masks.pt").exists() and (output / "report.html").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_a_glob_is_analysed_in_natural_order_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (10, 2):
        checkpoint(tmp_path / f"models/final_model_stepV{step}.pt", seed=step)
    run_experiment(experiment(tmp_path / "models/final_model_step*.pt", tmp_path / "out"))
    out = capsys.readouterr().out
    assert out.index("stepV2.pt: SSM") < out.index("stepV10.pt: SSM")
    assert (tmp_path / "out/final_model_stepV2/report.html").exists()
    assert {"comparison.html", "comparison.png", "comparison.md"} <= {p.name for p in (tmp_path / "out").iterdir()}
    page = (tmp_path / "out/index.html").read_text()
    assert f"index: {tmp_path}/out/index.html\n" in out and page.index("stepV2.pt") < page.index("stepV10.pt")
    for name in ("final_model_stepV2", "final_model_stepV10"):
        assert f'href="{name}/report.html"' in page
        assert 'href="../index.html"' in (tmp_path / "out" / name / "report.html").read_text()


def test_one_bad_checkpoint_of_several_stops_all_before_work(tmp_path: Path) -> None:
    checkpoint(tmp_path / "models/a.pt")
    (tmp_path / "models/b.pt").write_bytes(b"not a checkpoint at all")
    with pytest.raises(MechintError, match=r"b\.pt"):
        run_experiment(experiment(tmp_path / "models", tmp_path / "out"))
    assert not list((tmp_path / "out").glob("*/results.json"))


def test_a_checkpoint_that_fails_its_task_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint(tmp_path / "models/a.pt")
    with pytest.raises(MechintError, match="there is no circuit to explain"):
        run_experiment(experiment(tmp_path / "models/a.pt", tmp_path / "out", min_accuracy=1.0))
    checkpoint(tmp_path / "models/b.pt", seed=1)
    with pytest.raises(MechintError, match="2 of 2 checkpoints could not be analysed"):
        run_experiment(experiment(tmp_path / "models", tmp_path / "out2", min_accuracy=1.0))
    assert capsys.readouterr().err.count("there is no circuit to explain") == 2


def broken(monkeypatch: pytest.MonkeyPatch, name: str, error: Exception) -> None:
    """Makes one analysis fail once its prompts are there, whatever it is asked."""

    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr(analyses()[name].analyzer, "run_analysis", fails)


TRACE = TraceConfig(prompts=8, eval_prompts=8, draws=1, sites="resid_post", sever="", bootstrap=100)


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_an_analysis_that_fails_takes_no_other_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the reason; what is not expected keeps its traceback."""
    broken(monkeypatch, "trace", RuntimeError("a defect"))
    both = experiment(checkpoint(tmp_path / "a.pt"), tmp_path / "out", ablation="zero", eval_prompts=64)
    both = dataclasses.replace(both, configs={"trace": TRACE, **both.configs})
    with pytest.raises(MechintError, match=r"1 of the analyses .* \(Causal tracing\); the others are finished"):
        run_experiment(both)
    assert (tmp_path / "out/ssm/report.html").exists() and not (tmp_path / "out/trace/results.json").exists()
    said = capsys.readouterr().err
    assert [line for line in said.splitlines() if line.startswith("error: ") and "Causal tracing: " in line]
    assert "Traceback" in said


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_an_analysis_with_models_of_its_own_that_fails_takes_no_other_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch, "kv", RuntimeError("a defect"))
    gpt2 = transformers.GPT2Config(vocab_size=24, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(gpt2).save_pretrained(tmp_path / "gpt2")
    own = KVCircuitConfig(checkpoint=str(tmp_path / "gpt2"))
    both = experiment(checkpoint(tmp_path / "a.pt"), tmp_path / "out", ablation="zero", eval_prompts=64)
    with pytest.raises(MechintError, match="of the analyses"):
        run_experiment(dataclasses.replace(both, configs={"kv": own, **both.configs}))
    assert (tmp_path / "out/ssm/report.html").exists()


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"trace": dataclasses.replace(TRACE, sites="resid_pots")}, "no site 'resid_pots'"),
        ({"trace": dataclasses.replace(TRACE, task="file")}, "file"),
        ({"neuron": NeuronConfig(layers="7")}, "no layer 7"),
        ({"kv": KVCircuitConfig()}, "is a mamba model"),
        ({"kv": KVCircuitConfig(checkpoint="nowhere.pt")}, "nowhere.pt"),
        ({"sae": SAEAnalysisConfig(dictionaries="nowhere")}, "nowhere"),
    ],
)
def test_what_the_last_analysis_cannot_do_is_said_before_the_first_one_works(
    config: dict[str, Any], says: str, dry_run: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch, "ssm", AssertionError("work began"))
    wanted = experiment(checkpoint(tmp_path / "a.pt"), tmp_path / "out")
    with pytest.raises(MechintError, match=says):
        run_experiment(dataclasses.replace(wanted, configs={**wanted.configs, **config}), dry_run=dry_run)
    assert not (tmp_path / "out").exists(), "a start that failed leaves nothing"


@pytest.mark.parametrize("damage", ["gone", "nan", "vocabulary", "finished"])
def test_a_dry_run_refuses_what_a_run_would_refuse(damage: str, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "models/a.pt")
    wanted, says = experiment(tmp_path / "models/*.pt", tmp_path / "out"), "models/a.pt"
    if damage == "gone":
        path.unlink()
        says = "no checkpoint matches"
    elif damage == "nan":
        state = torch.load(path)
        next(iter(state["model"].values())).fill_(float("nan"))
        torch.save(state, path)
        says = "NaN"
    elif damage == "vocabulary":
        wanted = dataclasses.replace(wanted, task=dataclasses.replace(TASK, keys=40))
        says = "vocabulary is 24"
    else:
        (tmp_path / "out/a").mkdir(parents=True)
        (tmp_path / "out/a/results.json").write_text('{"key": {"analysis": "another"}}')
        says = "finished results of another request"
    before = sorted(tmp_path.rglob("*"))
    for dry_run in (True, False):
        with pytest.raises(MechintError, match=says):
            run_experiment(wanted, dry_run=dry_run)
        assert sorted(tmp_path.rglob("*")) == before


def test_a_comparison_that_fails_is_said_and_the_runs_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(whole, "write_comparisons", fails)
    places = {(name, "ssm"): tmp_path / name for name in ("a.pt", "b.pt")}
    assert whole.compare(experiment("*.pt", tmp_path / "out"), places, [], []) == ["SSM circuit"]
    said = capsys.readouterr().err
    assert "Traceback" in said and "error: comparison of SSM circuit: RuntimeError: a defect" in said


@pytest.mark.slow
def test_drawing_again_leaves_masks_and_numbers_alone(done: tuple[Path, Path], tmp_path: Path) -> None:
    output = Path(shutil.copytree(done[1], tmp_path / "out"))
    before = {item.name: item.read_bytes() for item in output.iterdir() if item.is_file()}
    for name in ("report.html", "faithfulness_curve.png"):
        (output / name).unlink()
    run_experiment(experiment("gone", tmp_path / "elsewhere", mode="from_runs", run_dir=str(output)))
    assert {item.name: item.read_bytes() for item in output.iterdir() if item.is_file()} == before
    with pytest.raises(MechintError, match="holds no finished analysis"):
        run_experiment(experiment("gone", tmp_path, mode="from_runs", run_dir=str(tmp_path / "models")))


def test_a_dry_run_says_what_would_run_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkpoint(tmp_path / "a.pt")
    run_experiment(experiment(path, tmp_path / "out"), dry_run=True)
    out = capsys.readouterr().out
    assert f"would analyse {path}" in out
    assert "searches of 10 steps" in out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 29}, "circuit of 29 units is asked for; this model has 28"),
        ({"checkpoint": "nowhere/*.pt"}, "no checkpoint matches"),
        ({"device": "cuda"}, "no GPU"),
    ],
)
def test_requests_that_cannot_be_met(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    if changes.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    path = checkpoint(tmp_path / "a.pt")
    with pytest.raises(MechintError, match=message):
        run_experiment(experiment(path, tmp_path / "out", **changes))
    assert not list(tmp_path.glob("out/**/*.json"))


def test_counterfactuals_are_refused_on_text_and_a_vocabulary_too_small_is_named(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.pt")
    wanted = experiment(path, tmp_path / "out", ablation="counterfactual")
    with pytest.raises(MechintError, match="plain text has none"):
        run_experiment(dataclasses.replace(wanted, task=TaskConfig(name="text", length=16)))
    with pytest.raises(MechintError, match="vocabulary is 24"):
        run_experiment(dataclasses.replace(wanted, task=TaskConfig(name="recall", keys=40)))
    with pytest.raises(MechintError, match="no analysis is switched on"):
        run_experiment(dataclasses.replace(wanted, configs={}))


def test_two_runs_in_one_directory(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.pt")
    with files.lock(tmp_path / "out"), pytest.raises(MechintError, match="another run is writing to"):
        run_experiment(experiment(path, tmp_path / "out"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_output_directory(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o555)
    with pytest.raises(MechintError, match="can't be written to"):
        run_experiment(experiment(checkpoint(tmp_path / "a.pt"), tmp_path / "out"))


def test_an_output_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(MechintError, match="can't be written to"):
        run_experiment(experiment(checkpoint(tmp_path / "a.pt"), tmp_path / "out/deeper"))


def mounted(kind: str, target: Path) -> bool:
    options = {"full": ["-t", "tmpfs", "-o", "size=64k"], "read-only": ["-t", "tmpfs", "-o", "ro"]}[kind]
    target.mkdir()
    return subprocess.run(["mount", *options, "tmpfs", str(target)], capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "read-only"])
def test_a_disk_that_cannot_take_the_results(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    path, disk = checkpoint(tmp_path / "a.pt"), tmp_path / "disk"
    if not mounted(kind, disk):
        pytest.skip("mounting a small file system needs root")
    try:
        asked = words(f"--checkpoint={path}", f"--output-dir={disk}/out")
        assert exit_status(lambda: command_line.main(arguments=asked)) == 2
        errors = capsys.readouterr().err
        last = errors.strip().splitlines()[-1]
        assert last.startswith("error: ")
        assert "Traceback" not in errors
        assert ("No space left" if kind == "full" else "can't be written to") in last
        assert not list(disk.rglob("*.tmp"))
        for item in disk.rglob("*.json"):  # whole or absent
            json.loads(item.read_text())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_a_killed_analysis_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.pt")
    wanted = words(f"--checkpoint={path}", "--ssm-steps=40", f"--output-dir={tmp_path}/killed")
    killed = subprocess.Popen(
        [sys.executable, str(ROOT / "scripts/run_mechint_analysis.py"), *wanted], env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list((tmp_path / "killed").glob(".stages/descent.done.pt")) and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed/results.json").exists()
    for output in ("killed", "whole"):
        run_experiment(experiment(path, tmp_path / output, steps=40, **PLAIN))
    manifest = json.loads((tmp_path / "killed/manifest.json").read_text())
    assert "descent" in manifest["resumed"]
    for name in ("results.json", "final_masks.pt", "history.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name


def test_on_a_cpu_operations_are_deterministic_and_new_tensors_are_not_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, bool]] = []
    look = lambda *_: seen.append(
        (torch.get_deterministic_debug_mode(), torch.utils.deterministic.fill_uninitialized_memory)  # type: ignore[attr-defined]
    )
    monkeypatch.setattr(whole, "analyse_one", look)
    run_experiment(experiment(checkpoint(tmp_path / "m.pt"), tmp_path / "out"))
    assert seen == [(2, False)]


def test_where_results_go() -> None:
    run = RunConfig(checkpoint="a.pt", output_dir="out")
    assert run_directories(run, ["a.pt"], ["ssm"]) == {("a.pt", "ssm"): Path("out")}
    for written in ("./a.pt", "a.pt", ".//a.pt"):  # as a reader would name the one checkpoint there is
        named = dataclasses.replace(run, checkpoint=written)
        assert run_directories(named, [str(Path(written))], ["kv"])["a.pt", "kv"] == Path("out")
    whole = dataclasses.replace(run, checkpoint="./runs")
    assert run_directories(whole, ["runs/a.pt"], ["kv"])["runs/a.pt", "kv"] == Path("out/a")
    run = dataclasses.replace(run, checkpoint="*/m.pt")
    assert run_directories(run, ["x/m.pt", "y/m.pt"], ["ssm", "kv"])["y/m.pt", "kv"] == Path("out/y-m/kv")
    deep = run_directories(run, ["/r/a/x/m.pt", "/r/b/x/m.pt"], ["ssm"])  # as many directories as tell them apart
    assert list(deep.values()) == [Path("out/a-x-m"), Path("out/b-x-m")]
    apart = run_directories(run, ["/a/m.pt", "/b/x/m.pt", "/c/x/m.pt"], ["ssm"])
    assert list(apart.values()) == [Path("out/a-m"), Path("out/b-x-m"), Path("out/c-x-m")]
    dotted = run_directories(run, ["hub/Llama-3.2-1B", "hub/Llama-3.2-3B"], ["lens"])  # these dots end no file's name
    assert list(dotted.values()) == [Path("out/Llama-3.2-1B"), Path("out/Llama-3.2-3B")]
    for same in (["x/m.pt", "x/m.safetensors"], ["/a-b/m.pt", "/a/b-m.pt", "/c/m.pt"]):
        with pytest.raises(MechintError, match="would share a directory"):
            run_directories(run, same, ["ssm"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [pytest.param("torch.distributed.run", marks=pytest.mark.exhaustive), "scripts.kconfig.processes"]
)
def test_two_processes_share_a_glob_and_write_what_one_writes(tmp_path: Path, how: str) -> None:
    """One of three checkpoints answers nothing, whoever of the two gets it: the others are compared, and one line says
    what failed."""
    for k in range(3):
        checkpoint(tmp_path / f"runs/step{k}.pt", k)
    model = torch.load(tmp_path / "runs/step1.pt")
    [head] = [name for name in model["model"] if name.endswith("embeddings.weight")]
    model["model"][head].zero_()  # whatever is removed, nothing changes
    torch.save(model, tmp_path / "runs/step1.pt")
    start = [how, "2", sys.executable] if "scripts" in how else [how, "--standalone", "--nproc-per-node=2"]
    asked = words(f"--checkpoint={tmp_path}/runs/*.pt", f"--output-dir={tmp_path}/two")
    command = [sys.executable, "-m", *start, str(ROOT / "scripts/run_mechint_analysis.py"), *asked]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    if how == "scripts.kconfig.processes":
        first, last = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert "step1.pt: " in first and "1 of 3 checkpoints could not be analysed" in last
        assert "Traceback" not in done.stderr
    with pytest.raises(MechintError, match="1 of 3 checkpoints could not be analysed"):
        run_experiment(experiment(tmp_path / "runs/*.pt", tmp_path / "one", **PLAIN))
    compared = json.loads((tmp_path / "two/comparison.json").read_text())
    assert [Path(run["checkpoint"]).name for run in compared["runs"]] == ["step0.pt", "step2.pt"]
    written = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("results.json"))
    assert len(written) == 2
    for path in written:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"WORLD_SIZE": "2"}, ""),
        ({"WORLD_SIZE": "many"}, ""),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR, MASTER_PORT does not fit"),
        ({"WORLD_SIZE": "2", "RANK": "5", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}, "RANK does not fit"),
        ({"WORLD_SIZE": "²", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}, "WORLD_SIZE does not fit"),
    ],
)
def test_a_stray_number_of_processes_is_no_traceback(
    environment: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("WORLD_SIZE", *workers.TOLD):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if says:
        with pytest.raises(MechintError, match=says):
            workers.started()
    else:
        assert workers.started() is False and "works alone" in capsys.readouterr().err


def test_an_analysis_with_models_of_its_own_is_an_experiment_of_its_own(tmp_path: Path) -> None:
    wanted = experiment("shared.pt", tmp_path / "out")
    both = dataclasses.replace(wanted, configs={**wanted.configs, "kv": KVCircuitConfig(checkpoint="own.pt")})
    parts = apart(both)
    assert [(part.run.checkpoint, list(part.configs), part.several) for part in parts] == [
        ("shared.pt", ["ssm"], True), ("own.pt", ["kv"], True),
    ]  # fmt: skip
    shared = dataclasses.replace(both, configs={**wanted.configs, "kv": KVCircuitConfig()})
    assert [list(part.configs) for part in apart(shared)] == [["ssm", "kv"]]
    drawn = apart(dataclasses.replace(both, configs={"kv": KVCircuitConfig(mode="from_runs", run_dir="done")}))
    assert [(part.run.mode, part.run.run_dir) for part in drawn] == [("from_runs", "done")]
    assert "checkpoint" not in request(KVCircuitConfig(checkpoint="own.pt")) and "steps" in request(KVCircuitConfig())
    assert elsewhere(KVCircuitConfig(checkpoint="own.pt")) == KVCircuitConfig()


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_a_baseline_is_compared_with_one_checkpoint(done: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(done[1], tmp_path / "out/first")
    checkpoint(tmp_path / "b.pt", seed=ord("b"))
    second = experiment(tmp_path / "b.pt", tmp_path / "out", label="second", baseline=str(tmp_path / "out/first"))
    run_experiment(second)
    found = json.loads((tmp_path / "out/second/comparison.json").read_text())
    assert [Path(run["checkpoint"]).name for run in found["runs"]] == ["final_model_stepV0.pt", "b.pt"]
    with pytest.raises(MechintError, match="holds no finished analysis"):
        run_experiment(
            dataclasses.replace(second, run=dataclasses.replace(second.run, baseline=str(tmp_path / "none")))
        )
