"""An analysis that asks another task than the others of its experiment."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from mechint.analyses.circuits.ssm import SSMCircuitConfig
from mechint.analyses.options import asked, elsewhere, request
from mechint.analyses.tracing.options import TraceConfig
from mechint.runner import command_line
from mechint.tasks import TaskConfig
from mechint.utils.errors import MechintError
from scripts.kconfig import mapping
from scripts.kconfig.defconfig_text import defconfig_text
from scripts.kconfig.defconfigs import find, find_all
from scripts.kconfig.loading import load
from scripts.kconfig.models import override
from tests.helpers.own_prompts import says
from tests.helpers.paths import ROOT
from tests.helpers.report_runs import build_run

SMALL = [
    "--device=cpu", "--ssm-budget=6", "--ssm-steps=10", "--ssm-seeds=1", "--ssm-prompts=4", "--ssm-eval-prompts=16",
    "--ssm-random-circuits=2", "--ssm-bootstrap=100", "--trace-draws=2", "--trace-bootstrap=100", "--sae-layers=1",
    "--sae-sparsity=2", "--sae-tokens=600", "--sae-batch=64", "--sae-buffer=256", "--sae-prompts=4",
    "--sae-eval-prompts=16", "--sae-bootstrap=100", "--no-visualize-heatmaps", "--no-visualize-curves",
    "--no-visualize-faithfulness", "--no-sae-controls", "--sae-read=0", "--sae-causal=0",
]  # fmt: skip


def run(checkpoint: Path, output: Path, *more: str) -> None:
    menu = load(ROOT, find_all(ROOT)["mamba-130m-mechint"])
    where = [f"--checkpoint={checkpoint}", f"--output-dir={output}"]
    command_line.main(defconfig_text, [*mapping.arguments(menu, mapping.MECHINT), *where, *SMALL, *more])


def results(output: Path, name: str) -> dict[str, Any]:
    return json.loads((output / name / "results.json").read_text())


@pytest.mark.slow
def test_circuit_dictionary_and_trace_of_the_130m_experiment_in_one_go(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(checkpoint, tmp_path)
    assert results(tmp_path, "ssm")["task"]["name"] == results(tmp_path, "sae")["task"]["name"] == "text"
    trace = results(tmp_path, "trace")
    assert (trace["task"]["name"], trace["metric"], trace["ablation"]) == ("prompt", "answer_logprob", "noise")
    assert trace["key"]["task"]["answer"] == says(checkpoint) and trace["metrics"]["prompts_used"]["value"] == 1
    assert {"resid_post", "out", "conv", "dt", "B", "C", "state"} <= {
        panel["name"] for panel in trace["trace"]["directions"]["denoise"]["panels"]
    }
    assert all((tmp_path / name / "report.html").exists() for name in ("ssm", "sae", "trace"))

    # each says how to repeat it alone, the trace with its task for that of all
    alone = load(ROOT, tmp_path / "trace/config")
    assert alone.syms["KNLP_TASK_NAME_PROMPT"].str_value == "y" and alone.syms["KNLP_MECHINT_SSM"].str_value == "n"
    assert alone.syms["KNLP_TASK_ANSWER"].str_value == says(checkpoint)
    assert not alone.syms["KNLP_MECHINT_TRACE_TASK_PROMPT"].tri_value
    assert "KNLP_TASK_PROMPT" not in (tmp_path / "ssm/config").read_text()
    capsys.readouterr()
    command_line.main(defconfig_text, [*mapping.arguments(alone, mapping.MECHINT)])
    assert "Causal tracing is finished" in capsys.readouterr().out

    # another answer is another trace, and the same circuit
    with pytest.raises(MechintError, match=r"finished results of another request .*task\.answer is ' the'"):
        run(checkpoint, tmp_path, "--task-answer= the")
    run(checkpoint, tmp_path, "--task-answer= the", "--no-trace")
    assert capsys.readouterr().out.count("is finished") == 2 and results(tmp_path, "trace") == trace


@pytest.mark.slow
def test_a_trace_that_fails_leaves_the_circuit(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(MechintError, match=r"1 of the analyses .* \(Causal tracing\); the others are finished"):
        run(checkpoint, tmp_path, "--no-sae", f"--task-answer={'the' if says(checkpoint) != ' the' else 'a'}")
    assert results(tmp_path, "ssm")["status"] == "complete" and not (tmp_path / "trace/results.json").exists()


def test_a_request_that_cannot_be_met_stops_all(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(MechintError, match="has no site 'nothing'"):
        run(checkpoint, tmp_path, "--no-sae", "--trace-sites=nothing")
    assert not list(tmp_path.glob("*/results.json"))


def test_a_task_that_does_not_fit_is_refused_before_any_work(checkpoint: Path, tmp_path: Path) -> None:
    no_prompt = ["--task-prompt=", "--task-subject="]
    with pytest.raises(MechintError, match="Causal tracing: plain text has neither subjects"):
        run(checkpoint, tmp_path, "--trace-task=same", *no_prompt)
    with pytest.raises(MechintError, match="prompt is given, and the task is 'text', which does not read it"):
        run(checkpoint, tmp_path, "--trace-task=same")
    with pytest.raises(MechintError, match="Causal tracing: one prompt has no counterfactual twin"):
        run(checkpoint, tmp_path, "--trace-corruption=twin")
    with pytest.raises(MechintError, match="no file is named"):
        run(checkpoint, tmp_path, "--trace-task=file", *no_prompt)
    assert not list(tmp_path.glob("*/results.json"))


def test_options_of_other_tasks_are_no_part_of_a_request() -> None:
    task = TaskConfig(name="text", prompt="a b", subject="a", answer="c", file="x", answers="whole")
    assert asked(task, SSMCircuitConfig()) == TaskConfig(name="text")
    assert asked(task, TraceConfig(task="prompt")) == dataclasses.replace(task, name="prompt", file="")
    assert asked(task, TraceConfig(task="file")) == TaskConfig(name="file", file="x", answers="whole")
    assert asked(task, TraceConfig(task="greater_than")) == TaskConfig(name="greater_than")
    own = TraceConfig(task="prompt", window=3)
    assert request(own) == request(TraceConfig(window=3)) and elsewhere(own) == TraceConfig(window=3)


@pytest.mark.usefixtures("no_figures")
def test_the_first_look_is_drawn_again_without_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make mechint MODELS=<its finished analysis>`: no checkpoint is looked for, and no model asked for its answer."""
    run = build_run(tmp_path / "mechint_analysis_mamba_130m" / "ssm", checkpoint="state-spaces/mamba-130m-hf")
    monkeypatch.chdir(tmp_path)
    menu = load(ROOT, find(ROOT, "mamba-130m-mechint"))
    override(menu, "mechint_analysis_mamba_130m", tmp_path, "mamba-130m-mechint")
    monkeypatch.setattr(command_line, "load", lambda *a, **k: pytest.fail("a model is loaded"))
    before = (run / "results.json").read_bytes()
    command_line.main(defconfig_text, mapping.arguments(menu, mapping.MECHINT))
    assert (run / "report.html").stat().st_size > 1000 and (run / "results.json").read_bytes() == before
