"""`mechint --completion SHELL`: what a shell offers is what the command line takes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from mechint.runner import subcommands
from mechint.runner.completion import SHELLS
from tests.helpers.commands import Here

COMMANDS = subcommands.commands()


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from mechint.runner import completion

    folder = tmp_path_factory.mktemp("completion")
    words = [
        completion.Words((name, *entry.aliases), entry.title, completion.flags_of(entry.parser(), name))
        for name, entry in COMMANDS.items()
    ]
    for shell in SHELLS:
        (folder / shell).write_text(completion.script(shell, words))
    return {shell: folder / shell for shell in SHELLS}


def offered(script: Path, *line: str) -> list[str]:
    """What bash offers for the last word of a line."""
    words = " ".join(f"'{word}'" for word in line)
    said = "_mechint; printf '%s\\n' \"${COMPREPLY[@]}\""
    code = f"source {script}; COMP_WORDS=({words}); COMP_CWORD={len(line) - 1}; {said}"
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not installed")
def test_bash_offers_commands_flags_and_choices(scripts: dict[str, Path]) -> None:
    script = scripts["bash"]
    names = {each for name, command in COMMANDS.items() for each in (name, *command.aliases)}
    assert set(offered(script, "mechint", "")) >= names
    assert offered(script, "mechint", "spar") == ["sparsity"]
    assert offered(script, "mechint", "trace", "--trace-metric", "logit_") == ["logit_diff"]
    assert offered(script, "mechint", "trace", "--trace-metric", "=", "logit_") == ["logit_diff"]
    assert "--checkpoint" in offered(script, "mechint", "trace", "--ch")
    assert offered(script, "mechint", "trace", "--ssm-") == []  # another analysis's
    assert offered(script, "mechint", "mamba-circuit", "--ssm-step") == ["--ssm-steps"]  # by its other name


def test_every_flag_that_is_offered_is_taken(scripts: dict[str, Path]) -> None:
    for name, command in COMMANDS.items():
        known = {flag for action in command.parser()._actions for flag in action.option_strings}
        [line] = [
            line for line in scripts["bash"].read_text().splitlines()
            if line.strip().startswith(("|".join((name, *command.aliases))) + ") flags=")
        ]  # fmt: skip
        assert set(line.split('"')[1].split()) <= known


def test_the_other_shells(scripts: dict[str, Path]) -> None:
    zsh, bash = scripts["zsh"].read_text(), scripts["bash"].read_text()
    assert zsh.endswith(bash) and "bashcompinit" in zsh.splitlines()[0]
    lines = scripts["fish"].read_text().splitlines()
    assert all(line.startswith("complete -c mechint -n ") for line in lines) and len(lines) == len(set(lines))
    [metric] = [line for line in lines if "-l trace-metric " in line]
    assert "logit_diff" in metric and "seen_subcommand_from trace " in metric


@pytest.mark.parametrize("words", [["--completion", "tcsh"], ["--completion=ba"], ["--completion"]])
def test_another_shell_is_one_line(words: list[str], tmp_path: Path, here: Here) -> None:
    said = here(lambda: subcommands.main(words), at=tmp_path)
    assert said.status == 2 and "no completion for" in said.err and "bash, zsh, fish" in said.err and not said.out


def test_the_command_prints_it(scripts: dict[str, Path], tmp_path: Path, here: Here) -> None:
    said = here(lambda: subcommands.main(["--completion", "bash"]), at=tmp_path)
    assert said.status == 0 and said.out == scripts["bash"].read_text()
