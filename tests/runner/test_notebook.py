"""What a notebook has: one call for an analysis, short descriptions, prompts from lists, text and its tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mechint
from mechint.report.results import RunResults
from mechint.runner.notebook import task_config
from mechint.tasks import Prompts, TaskConfig
from mechint.utils.errors import MechintError
from tests.helpers.builders import tiny_gpt2, tiny_mamba, tokens
from tests.tasks.test_prompt_file import FACT, tokenizer

SMALL = {"eval_prompts": 16, "bootstrap": 100, "examples": 1}
TASK = {"name": "recall", "pairs": 2, "keys": 12, "values": 12}


def test_a_run_says_its_shapes_and_its_sites() -> None:
    run = mechint.run(tiny_mamba(), tokens(2, 5), record=["*"])
    assert len(repr(run)) < 400 and repr(run).startswith("Run(logits [2, 5, 24], embed [2, 5, ")
    assert "more)" in repr(run) and run.keys() == list(run.values) == list(run) and len(run) == len(run.values)
    assert "layers.0.dt" in run and "layers.9.dt" not in run
    assert repr(mechint.run(tiny_mamba(), tokens(2, 5))) == "Run(logits [2, 5, 24])"
    made = mechint.generate(tiny_mamba(), tokens(1, 4), 2)
    assert repr(made) == "Generation(tokens [1, 6], logits [1, 5, 24])"


def test_prompts_of_lists() -> None:
    made = Prompts.from_list(
        [[1, 2, 3], [4, 5, 6]], [7, 8], twins=[[1, 9, 3], [4, 9, 6]], wrong=[8, 7], subject=[(1, 2)] * 2
    )
    assert made.positions.tolist() == [[2], [2]] and made.answers.tolist() == [[7], [8]]
    assert (
        made.template.tolist() == [0, 1] and repr(made) == "Prompts(2 of 3 tokens, 1 answers each, with twins, subject)"
    )
    for change, words in (
        ({"tokens": [[1], [1, 2]]}, r"prompts of \[1, 2\] tokens"), ({"tokens": []}, "prompts of no tokens"),
        ({"answers": [1]}, "2 prompts and 1 answers"), ({"twins": [[1, 2, 3]] * 2}, "go together"),
        ({"groups": [0, 0, 1]}, "2 prompts and 3 groups"), ({"answers": [-1, 7]}, "-1 is no token id"),
        ({"answers": [7, 1.5]}, "1.5 is no token id"), ({"tokens": ["abc", "def"]}, "'a' is no token id"),
        ({"answers": [True, 1]}, "True is no token id"),
    ):  # fmt: skip
        with pytest.raises(MechintError, match=words):
            Prompts.from_list(**{"tokens": [[1, 2, 3], [4, 5, 6]], "answers": [7, 8], **change})  # type: ignore[arg-type]


def test_text_becomes_tokens_and_tokens_text() -> None:
    model = tiny_mamba(vocab_size=40)
    with pytest.raises(MechintError, match="has no tokenizer to read text with"):
        model.to_tokens("The Tower")
    model.tokenizer = tokenizer()
    ids = model.to_tokens(["The Tower is in", "The Mahal is in"])
    assert ids.shape == (2, 4) and model.to_tokens("The Tower is in").tolist() == ids[:1].tolist()
    assert [text.strip(" Ġ") for text in model.to_str_tokens(ids[0])] == ["The", "Tower", "is", "in"]
    assert model.to_str_tokens("The Tower is in") == model.to_str_tokens(ids[:1])
    with pytest.raises(MechintError, match="the texts have 4, 5 tokens"):
        model.to_tokens(["The Tower is in", "The Taj Mahal is in"])
    with pytest.raises(MechintError, match="takes one prompt, and these are 2"):
        model.to_str_tokens(ids)


def trained(**more: Any) -> Any:
    """A model that is asked about, not about what it answers: accuracy counts for nothing here."""
    return tiny_mamba(vocab_size=32, **more).requires_grad_(False)


@pytest.mark.slow
def test_an_analysis_is_one_call_and_its_finished_run_is_read_again(tmp_path: Path) -> None:
    model = trained()
    options: dict[str, Any] = {"output_dir": tmp_path / "run", "prompts": 4, "eval_prompts": 16, "bootstrap": 100}
    found = mechint.analyse(model, "sparsity", TASK, **options)
    assert isinstance(found, RunResults) and found.raw["analysis"] == "sparsity" and found.headline
    assert (tmp_path / "run" / "report.html").exists()
    shown = found._repr_html_()
    assert all(f"<td>{name}</td>" in shown for name in found.metrics) and "<script" not in shown
    copy = mechint.results(found.save(tmp_path / "copy"))
    assert copy.raw == found.raw and (copy.directory / "report.html").exists()
    with pytest.raises(MechintError, match="is there already"):
        found.save(tmp_path / "copy")
    before = (tmp_path / "run" / "results.json").stat().st_mtime_ns
    again = mechint.analyse(model, "sparsity", TASK, **options)
    assert again.raw == found.raw and (tmp_path / "run" / "results.json").stat().st_mtime_ns == before


def test_prompts_of_a_list_are_kept_beside_the_results(tmp_path: Path) -> None:
    model = tiny_mamba(vocab_size=40)
    model.tokenizer = tokenizer()
    lines = [
        {**FACT, "prompt": f"The {name} is in the city of", "subject": name} for name in ("Tower", "Colosseum", "Mahal")
    ]
    with pytest.raises(MechintError) as refused:  # a random model answers none of them
        mechint.trace(model, lines, output_dir=tmp_path, metric="answer_logprob", **SMALL)
    assert "\n" not in str(refused.value)
    assert [json.loads(line)["subject"] for line in (tmp_path / "prompts.jsonl").read_text().splitlines()] == [
        "Tower", "Colosseum", "Mahal"
    ]  # fmt: skip


@pytest.mark.parametrize(("model", "name"), [(tiny_mamba, "ssm"), (tiny_gpt2, "kv")])
def test_a_circuit_is_of_the_units_that_the_model_has(model: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        "mechint.runner.notebook.analyse", lambda *arguments, **options: asked.append((arguments, options))
    )
    made = model(vocab_size=32)
    mechint.circuit(made, TASK, steps=20)
    assert asked == [((made, name, TASK), {"steps": 20})]


@pytest.mark.parametrize(
    ("name", "task", "options", "words"),
    [("trase", TASK, {}, r"no analysis 'trase' \(did you mean trace"),
     ("trace", TASK, {"bootstraps": 9}, "did you mean bootstrap"),
     ("trace", TASK, {"bootstrap": 1}, "bootstrap is 1; it must be"),
     ("trace", {"nam": 1}, {}, "a task has no option 'nam'"),
     ("trace", "recal", {}, "name is 'recal'; it must be one of recall"),
     ("kv", TASK, {}, r"'kv'.*needs a layer with the sites k, v"),
     ("trace", "missing.jsonl", {}, "no such file")],
)  # fmt: skip
def test_bad_requests_are_one_line(name: str, task: Any, options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(MechintError, match=words) as refused:
        mechint.analyse(trained(), name, task, output_dir=tmp_path / "run", **options)
    assert "\n" not in str(refused.value) and not (tmp_path / "run" / "results.json").exists()


def test_numbers_of_torch_and_numpy_are_prompts_too(tmp_path: Path) -> None:
    lines = [{"prompt": [k, 2, 3], "answer": 4, "subject": [0, 1]} for k in range(4)]
    others = [{**line, "prompt": torch.tensor(line["prompt"]), "answer": np.int64(4)} for line in lines]
    texts = [Path(task_config(task, tmp_path / str(k)).file).read_text() for k, task in enumerate((lines, others))]
    assert texts[0] == texts[1] and [json.loads(line) for line in texts[0].splitlines()] == lines


def test_a_home_directory_is_meant_by_its_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    mechint.analyse(tiny_mamba(), "lens", TASK, output_dir="~/out", **{**SMALL, "controls": 0})
    assert (tmp_path / "out" / "results.json").is_file() and not (tmp_path / "~").exists()
    assert isinstance(mechint.results("~/out"), RunResults)


@pytest.mark.parametrize(
    ("task", "words"),
    [(["The Tower"], "prompt 1 of the task is 'The Tower'; give the name of a task, a file"),
     ([], "the task is an empty list of prompts; give at least one"),
     (None, "prompt 1 of the task is None"), (3, "prompt 1 of the task is 3"),
     ({"prompt": "The Tower is", "answer": "in"}, "prompt is given, and the task is 'recall', which does not read it"),
     ({"file": "facts.jsonl"}, "file is given, and the task is 'recall'"),
     ({**TASK, "prompt": [1, 2]}, r"prompt is \[1, 2\]; it must be a text"),
     ([{"prompt": [1, 2], "labels": {"a": {1}}}], "the prompts cannot be written as JSON")],
)  # fmt: skip
def test_a_task_that_would_be_another_one_is_refused(task: Any, words: str, tmp_path: Path) -> None:
    """One prompt as a dictionary used to be passed over, and the task recall was analysed in its place."""
    with pytest.raises(MechintError, match=words) as caught:
        mechint.analyse(tiny_mamba(), "lens", task, output_dir=tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_file_in_the_place_of_the_output_directory_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(MechintError, match="can't be written to; choose another directory with output_dir"):
        mechint.analyse(tiny_mamba(), "lens", TASK, output_dir=tmp_path / "out")
    with pytest.raises(MechintError, match="no analysis 3; take"):
        mechint.analyse(tiny_mamba(), 3, TASK)  # type: ignore[arg-type]


def test_a_model_in_another_precision_is_told_how_to_load_it(tmp_path: Path) -> None:
    with pytest.raises(MechintError, match=r'float64, .* load it so: mechint.load\(…, dtype="float32"\)'):
        mechint.analyse(tiny_mamba().double(), "ssm", output_dir=tmp_path)


def test_options_of_a_task_may_be_its_dataclass() -> None:
    from mechint.runner.notebook import task_config

    assert task_config(TaskConfig(pairs=3), Path()) == TaskConfig(pairs=3)
    assert task_config({"pairs": 3}, Path()) == TaskConfig(pairs=3)
    assert task_config("mine.py", Path()) == TaskConfig(name="file", file="mine.py")


@pytest.mark.parametrize(
    ("name", "options"),
    [("steer", {"random": 2, "once": 0, "text_prompts": 2, "sites": "resid_post"}), ("lens", {"controls": 0})],
)
def test_a_page_says_once_that_its_prompts_are_few(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """An analysis that says it of the prompts it used is not followed by the same note on all of them."""
    prompts = [
        {"prompt": [k, 5, 6], "subject": [0, 1], "answer": [7], "twin_prompt": [k + 1, 5, 6], "twin_answer": [8],
         "group": str(k)}
        for k in range(1, 13)
    ]  # fmt: skip
    found = mechint.analyse(tiny_gpt2(), name, prompts, bootstrap=100, output_dir=tmp_path, **options)
    raw = json.loads((tmp_path / "results.json").read_text())
    assert len(raw["few"]) == 1 and found.headline
    assert [note for note in raw["notes"] if "different subjects or templates were" in note] == raw["few"]
