"""``python -m mechint``: a command for each analysis, one prompt in a few words, and the same flags as everywhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import mechint
from mechint import __main__ as commands
from mechint.__main__ import SCORE
from mechint.analyses.base import analyses
from mechint.runner import command_line, subcommands
from mechint.runner.command_line import parse
from mechint.utils.errors import MechintError, NotAnswered
from mechint.utils.options import flag, options
from tests.helpers.builders import tiny_mamba
from tests.helpers.commands import Here
from tests.helpers.paths import ROOT
from tests.helpers.standins import save_hf, save_tokenizer

PROMPT = ["--prompt", "The Eiffel Tower is located in the city of", "--subject", "Eiffel Tower"]


def answer_of(checkpoint: Path) -> str:
    model = mechint.load(checkpoint)
    ids = torch.tensor([model.tokenizer.encode(PROMPT[1]).ids])
    return str(model.tokenizer.decode([int(model(ids)[0, -1].argmax())]))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that goes on with the beginning of a word."""
    at = save_tokenizer(tmp_path_factory.mktemp("model"), 300)
    return next(at for seed in range(99) if answer_of(save_hf(tiny_mamba(seed, vocab_size=300), at)).startswith(" "))


def call(*arguments: str, at: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mechint", *arguments],
        cwd=at,
        env={**os.environ, "PYTHONPATH": str(ROOT / "lib"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_dry_run_takes_what_the_run_takes(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A prompt without an answer is no error of a dry run; a hub's model that is not here is passed over."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    command_line.main(arguments=["--checkpoint", str(checkpoint), *PROMPT, "--device", "cpu", "--dry-run"])
    said = capsys.readouterr().out
    assert f"the model's own answer: {answer_of(checkpoint)!r}" in said and "would analyse" in said
    command_line.main(arguments=["--checkpoint", "nobody/such-model", *PROMPT, "--device", "cpu", "--dry-run"])
    said = capsys.readouterr()
    assert "nobody/such-model is not on this machine" in said.err and "would analyse" in said.out
    assert not (tmp_path / "mechint_analysis").exists()


@pytest.mark.slow
def test_one_prompt_is_traced(checkpoint: Path, tmp_path: Path) -> None:
    few = ["--trace-draws", "2", "--trace-sites", "resid_post,state", "--trace-bootstrap", "100", "--device", "cpu"]
    few += ["--no-visualize-heatmaps", "--no-visualize-curves"]  # pages of figures have tests of their own
    done = call("--checkpoint", str(checkpoint), *PROMPT, *few, at=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = answer_of(checkpoint)
    assert f"the model's own answer: {answer!r}" in done.stdout
    where = tmp_path / "mechint_analysis" / "the-eiffel-tower-is-located-in-the-city-of"
    found = json.loads((where / "results.json").read_text())
    assert found["analysis"] == "trace" and found["metric"] == "answer_logprob" and found["ablation"] == "noise"
    assert found["metrics"]["prompts_used"]["value"] == 1 and (where / "report.html").exists()
    page = (where / "report.html").read_text()
    assert "(no interval)" in page and "(none)" not in page
    example = json.loads((where / "examples.json").read_text())[0]
    assert "".join(example["tokens"]) == PROMPT[1] and example["answer"] == answer


def test_bad_prompts_are_one_line(checkpoint: Path, tmp_path: Path, here: Here) -> None:
    lost = here(commands.main, "--checkpoint", str(checkpoint), *PROMPT[:3], "Louvre", at=tmp_path)
    assert lost.status == 2 and lost.err.strip().count("\n") == 0
    assert "the subject 'Louvre' is not in the prompt, whose tokens are [" in lost.err
    assert not (tmp_path / "mechint_analysis" / "results.json").exists()
    alone = here(commands.main, *PROMPT[2:], at=tmp_path)
    assert alone.status == 2 and "give --prompt too" in alone.err


def test_what_cannot_be_asked_is_said_before_the_others_start(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[str] = []

    def refused(*given: Any) -> Any:
        raise NotAnswered("the model goes on with nothing; name the answer")

    def run(experiment: Any, dry_run: bool) -> None:
        started.extend(experiment.configs)
        assert "note: Causal tracing will not be made, the others will: the model goes on" in capsys.readouterr().err

    monkeypatch.setattr(command_line, "own_answer", refused)
    monkeypatch.setattr(command_line, "run_experiment", run)
    with pytest.raises(NotAnswered, match="goes on with nothing"):
        command_line.main(
            arguments=["--checkpoint", str(checkpoint), "--ssm", "--trace", "--trace-task", "prompt", "--task-prompt",
                       PROMPT[1], "--task-subject", "Eiffel", "--task-name", "recall"]
        )  # fmt: skip
    assert started == ["ssm"]


def test_what_is_said_beside_a_prompt_is_kept() -> None:
    flags = parse([*PROMPT, "--answer", "Paris", "--no-trace", "--patch", "--patch-metric", "answer_prob"])
    assert (flags.run_trace, flags.run_patch, flags.run_ssm) == (False, True, False)
    assert (flags.task_name, flags.task_answer, flags.task_subject) == ("prompt", "Paris", "Eiffel Tower")
    assert (flags.patch_metric, flags.patch_units, flags.trace_corruption) == ("answer_prob", "", "noise")
    plain = parse([])
    assert plain.run_ssm and not plain.run_trace and plain.task_name == "recall" and plain.trace_corruption == "twin"


COMMANDS = {**subcommands.commands(), "score": SCORE}


def test_every_analysis_is_a_command_and_the_overview_is_short() -> None:
    lines = subcommands.overview(COMMANDS).splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 120
    assert set(COMMANDS) == {*analyses(), "train", "score", "report", "export", "latents", "models", "new", "submit"}
    for name, analysis in analyses().items():
        assert sum(line.startswith(f"  {name}") and analysis.title in line for line in lines) == 1
    names = [each for name, command in COMMANDS.items() for each in (name, *command.aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_is_short_and_names_its_options(name: str) -> None:
    text = subcommands.help_of(name, COMMANDS[name])
    lines = text.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 120
    if name in analyses():
        wanted = [flag(name, field.name) for field, _, _ in options(analyses()[name].config)]
        assert all(any(line.startswith(f"  {each} ") for line in lines) for each in wanted)
        assert "--checkpoint" in text and "--task-name" in text
    known = {each for action in COMMANDS[name].parser()._actions for each in action.option_strings}
    shown = [line.split() for line in lines if line.startswith("  --")]
    names = [words if all(re.fullmatch("--[a-z-]+", word) for word in words) else words[:1] for words in shown]
    said = [word for words in names for word in words]
    assert (said or name == "models") and set(said) <= known


@pytest.mark.parametrize("name", sorted(analyses()))
def test_a_command_runs_its_analysis_alone_with_or_without_a_prompt(name: str) -> None:
    for words in ([], PROMPT, ["--batch-size", "3"]):
        flags = parse(words, only=name)
        assert [each for each in analyses() if getattr(flags, f"run_{each}")] == [name]
    both = parse(["--trace", "--patch"], only=name)
    assert {each for each in analyses() if getattr(both, f"run_{each}")} == {name, "trace", "patch"}


def test_a_word_is_dispatched_to_its_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[tuple[object, object]] = []
    monkeypatch.setattr(
        command_line, "main", lambda defconfig=None, arguments=None, only=None: told.append((arguments, only))
    )
    for words in (["trace", "--dry-run"], ["mamba-circuit"], ["--trace", "--dry-run"]):
        subcommands.main(words, {"score": SCORE})
    assert told == [(["--dry-run"], "trace"), ([], "ssm"), (["--trace", "--dry-run"], None)]
    subcommands.main([], {"score": SCORE})
    subcommands.main(["--help"], {"score": SCORE})
    out = capsys.readouterr().out.splitlines()
    assert out[: len(out) // 2] == out[len(out) // 2 :] == subcommands.overview(COMMANDS).splitlines()
    monkeypatch.undo()
    for words in (["trace", "--help-all"], ["--help-all"], ["train", "--help-all"], ["score", "--help-all"]):
        with pytest.raises(SystemExit, match="0"):
            subcommands.main(words, {"score": SCORE})
        said = capsys.readouterr().out
        assert {"train": "--mamba-d-state", "score": "--random-every"}.get(words[0], "--ssm-steps") in said


@pytest.mark.slow
def test_an_unknown_command_is_one_line_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(MechintError, match=r"no command 'trase' \(did you mean trace"):
        subcommands.main(["trase"])
    done = call("scoer", at=tmp_path)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "no command 'scoer' (did you mean score" in done.stderr


def test_a_command_refuses_a_flag_that_there_is_not(tmp_path: Path, here: Here) -> None:
    done = here(commands.main, "trace", "--trace-drawz", "2", at=tmp_path)
    assert done.status == 2 and done.err.count("\n") == 1 and "did you mean trace-draws" in done.err


@pytest.mark.parametrize(("flag", "value"), [("--task-file", "facts.jsonl"), ("--prompt", "The tower is in")])
def test_prompts_that_no_analysis_reads_are_refused_before_any_work(flag: str, value: str) -> None:
    words = [flag, value, "--task-name", "recall", "--trace", "--no-ssm", "--checkpoint", "there is none"]
    with pytest.raises(MechintError, match=r"(file|prompt) is given, and the task is 'recall', which does not read"):
        command_line.main(arguments=words)
