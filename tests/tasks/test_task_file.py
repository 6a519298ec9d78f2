"""A task of the user's own in a Python file: what it takes, and what is said of a wrong one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mechint.tasks import Task, TaskConfig, make_task
from mechint.utils.errors import MechintError

PAGE = Path(__file__).parents[2] / "docs" / "tasks.md"


def own(path: Path, text: str) -> Task:
    (path / "mine.py").write_text(text)
    return make_task(TaskConfig(name="file", file=str(path / "mine.py")))


def on_the_page() -> str:
    text = PAGE.read_text()
    return text.split("```python\n")[1].split("```")[0]


def test_the_task_on_the_page_is_made_and_drawn(tmp_path: Path) -> None:
    task = own(tmp_path, on_the_page())
    one, again = (task.sample(32, "discovery", 3) for _ in range(2))
    assert torch.equal(one.tokens, again.tokens) and one.tokens.shape == (32, task.length)
    assert one.twins is not None and one.wrong is not None
    assert not set(one.template.tolist()) & set(task.sample(32, "evaluation", 3).template.tolist())
    answers = one.tokens[:, :3].sum(1) % 10  # what the page says it asks
    assert torch.equal(one.answers[:, 0], answers)
    assert len(task.fingerprint) == 64
    other = own(tmp_path, on_the_page() + "\n# another text of the file\n")
    assert other.fingerprint != task.fingerprint


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("class SumOfThree(Task)", "class SumOfThree", r"declares 0 subclasses of mechint\.tasks\.Task \(none\)"),
        ("    name = ", "    nom = ", "SumOfThree has no 'name'"),
        (
            "import torch\n",
            "import torch\nimport nothing_of_this_name\n",
            r"line \d+: the file failed with ModuleNotFound",
        ),
        ("class SumOfThree", "clas SumOfThree", r"line \d+: the file failed with SyntaxError"),
        ("return Prompts(tokens,", "return (tokens,", "draw\\(\\) gives a tuple"),
        ("return Prompts(tokens,", "return Prompts(tokens[:, 1:],", r"of \[4, 3\], and int64 of \[prompts, length 4\]"),
        ("return Prompts(tokens,", "return Prompts(tokens + 10,", "tokens has ids from 1"),
        ("return Prompts(tokens,", "return Prompts(tokens.float(),", r"tokens are torch\.float32 of"),
        ("wrong, template)", "answers, template)", "a twin has the answer of its prompt"),
        ("wrong, template)", "None, template)", "has_twins is True, and there are no twins"),
        ("wrong, template)", "wrong, template[:1])", "template is torch.int64 of \\[1\\], and int64 of \\[4\\]"),
        ("return Prompts(tokens,", "return Prompts(tokens.tolist(),", "tokens is a list, and a torch.Tensor is needed"),
        ("positions = torch.full((count, 1), 3)", "positions = torch.full((count,), 3)", "positions is torch.int64 of"),
        ("wrong, template)", "wrong - 100, template)", "wrong has ids from -"),
        ("wrong, template)", "wrong + 100, template)", "wrong has ids from 1"),
        (
            "return Prompts(tokens, positions, answers, twins",
            "return Prompts(tokens, positions, answers, tokens",
            "a twin has the tokens of its prompt",
        ),
        (
            "wrong, template)",
            "wrong, template, torch.tensor([[2, 1]]).expand(count, 2))",
            "a subject is .start, end. with",
        ),
        (
            "wrong, template)",
            "wrong, template, torch.tensor([[2, 5]]).expand(count, 2))",
            "a subject is .start, end. with",
        ),
        ("wrong, template)", "wrong, template, None, wrong[..., None])", "and an answer is not among them"),
        (
            "wrong, template)",
            "wrong, template, None, answers)",
            r"accepted is torch.int64 of .*of \[4, 1, A\] is needed",
        ),
        ("wrong, template)", "wrong, template, whole=True)", "whole is True in the prompts and False in the task"),
        (
            "self.vocab_size, self.length = 11, 4",
            "self.vocab_size, self.length = 11, 4.0",
            "length is 4.0; it must be of",
        ),
        ("import torch\n", "import torch\nraise SystemExit(0)\n", r"line \d+: the file failed with SystemExit"),
        (
            "digits, template = draw_in_split(lambda n: torch.randint(10, (n, 3), generator=random), count, split)",
            "digits = torch.randint(10, (count, 3), generator=random); template = digits[:, 0]",
            "so nothing would be held",
        ),
        ("torch.randint(10, (n, 3), generator=random)", "torch.randint(10, (n, 3))", "draws other prompts each time"),
        (
            "return Prompts(tokens,",
            "return Prompts(1 // 0,",
            r"line \d+: its discovery prompts failed with ZeroDivision",
        ),
    ],
)
def test_a_wrong_task_is_one_line(old: str, new: str, words: str, tmp_path: Path) -> None:
    text = on_the_page()
    assert old in text
    with pytest.raises(MechintError, match=words) as caught:
        own(tmp_path, text.replace(old, new))
    assert "\n" not in str(caught.value) and "mine.py" in str(caught.value)


def test_two_tasks_in_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MechintError, match=r"declares 2 subclasses of mechint\.tasks\.Task \(SumOfThree, Other\)"):
        own(tmp_path, on_the_page() + "\n\nclass Other(SumOfThree):\n    pass\n")


def test_the_tokenizer_of_the_model_is_given(tmp_path: Path) -> None:
    given: Any = object()
    path = tmp_path / "mine.py"
    path.write_text(on_the_page().replace("        self.vocab", "        self.given = tokenizer\n        self.vocab"))
    from mechint.tasks.files.own_task import own_task

    assert own_task(TaskConfig(name="file", file=str(path)), given).given is given  # type: ignore[attr-defined]
