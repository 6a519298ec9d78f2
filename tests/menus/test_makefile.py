"""The Makefile's targets, run with make in a copy of the tree; nothing is trained or analysed.

One file, past 500 lines, because all targets are run in the same copy.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.kconfig_tree import Tree

DEFAULT = "mamba/defconfigs/mamba-tiny-recall-mechint"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "a 'tree' here")


def runners(tree: Tree) -> list[str]:
    return [call[0] for call in tree.calls()]


def error_line(result: subprocess.CompletedProcess[str]) -> str:
    """The one line of a failure; make's own says only that a command failed."""
    assert result.returncode != 0
    lines = [line for line in result.stderr.splitlines() if not line.startswith("make")]
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_mechint_without_a_configuration_uses_the_default_and_says_so(tree: Tree) -> None:
    result = tree.make("mechint")
    assert (result.returncode, result.stderr) == (0, "")
    assert f"no .config: using {DEFAULT}" in result.stdout
    train, analyse = tree.calls()
    assert train[0] == "train.py" and "--family=mamba" in train and "--task-name=recall" in train
    assert analyse[0] == "run_mechint_analysis.py" and "--checkpoint=output/final_model_step*.pt" in analyse
    assert "CONFIG_KNLP_TRAIN=y" in tree.config
    assert "no .config" not in tree.make("mechint").stdout


@pytest.mark.slow
def test_plain_make_trains_when_the_configuration_trains_and_else_analyses(tree: Tree) -> None:
    assert tree.make("defconfig").returncode == 0
    assert tree.make().returncode == 0
    assert runners(tree) == ["train.py"]
    tree.make("defconfig-mamba-130m-mechint")
    assert tree.make().returncode == 0
    assert runners(tree) == ["run_mechint_analysis.py"]
    tree.make("allnoconfig")
    assert "neither trains nor analyses" in error_line(tree.make())
    assert "KNLP_TRAIN is off" in error_line(tree.make("train"))
    assert "KNLP_MECHINT is off" in error_line(tree.make("mechint"))
    assert runners(tree) == []


def test_the_users_own_command(tree: Tree) -> None:
    assert tree.make("defconfig-mamba-130m-mechint").returncode == 0
    assert tree.make("mechint").returncode == 0
    [call] = tree.calls()
    assert {"--checkpoint=state-spaces/mamba-130m-hf", "--task-name=text", "--ssm", "--batch-size=4"} <= set(call)


def test_the_status_of_a_runner_is_the_status_of_make(tree: Tree) -> None:
    tree.make("defconfig")
    assert tree.make("mechint", STUB_STATUS="3").returncode == 2
    assert runners(tree) == ["train.py"], "an analysis after a failed training"
    assert tree.make("defconfig-mamba-130m-mechint").returncode == 0
    assert tree.make("mechint", STUB_STATUS="3").returncode == 2


def test_report_draws_the_results_again(tree: Tree) -> None:
    tree.make("defconfig")
    assert tree.make("report").returncode == 0
    [call] = tree.calls()
    assert call[-2:] == ["--mode=from_runs", "--run-dir=mechint_analysis"]


def test_a_dry_run_passes_on_and_writes_nothing(tree: Tree) -> None:
    result = tree.make("mechint", "DRY_RUN=1")
    assert result.returncode == 0
    assert "would train first, and then analyse" in result.stdout and "KNLP_MECHINT_SSM" in result.stdout
    assert not (tree.root / ".config").exists()
    tree.put("output/final_model_stepV0.pt")
    assert tree.make("mechint", "DRY_RUN=1").returncode == 0
    assert [(call[0], call[-1]) for call in tree.calls()] == [
        ("train.py", "--dry-run"),
        ("train.py", "--dry-run"),
        ("run_mechint_analysis.py", "--dry-run"),
    ]
    tree.make("defconfig")
    before = tree.config
    assert tree.make("mechint", "DRY_RUN=1", "MODELS=output").returncode == 0
    assert tree.config == before


def test_ground_truth_passes_on_what_it_is_told(tree: Tree) -> None:
    dry = tree.make("ground-truth", "DRY_RUN=1", "PROCESSES=2", "SCORE=--models gpt2 --seeds 2")
    assert (dry.returncode, dry.stdout) == (0, "")
    assert tree.calls() == [["ground_truth.py", "--models", "gpt2", "--seeds", "2", "--dry-run"]]
    shown = tree.make("ground-truth", "V=1", "SCORE=--seeds 2").stdout.splitlines()
    assert shown[-1].startswith("+ ") and shown[-1].endswith("scripts/ground_truth.py' --seeds 2")
    assert tree.calls() == [["ground_truth.py", "--seeds", "2"]]
    for name in ("MODELS", "BASELINE", "SKIP_STEPS"):
        says = error_line(tree.make("ground-truth", f"{name}=output"))
        assert f"{name}= goes with `make mechint`" in says and 'SCORE="--models …"' in says
    assert tree.make("ground-truth", "PROCESSES=2", STUB_STATUS="2").returncode == 2
    assert tree.calls() == [["ground_truth.py", "--check"]], "processes were started for a request that is refused"


def test_commands_are_shown_when_asked_for(tree: Tree) -> None:
    tree.make("defconfig-mamba-130m-mechint")
    assert tree.make("mechint").stdout == ""
    assert "--checkpoint=state-spaces/mamba-130m-hf" in tree.make("mechint", "V=1").stdout


@pytest.mark.slow
def test_skip_steps_reaches_a_study_once(tree: Tree) -> None:
    tree.make("defconfig-mamba-tiny-study")
    result = tree.make("mechint", "SKIP_STEPS=8 9 10")
    assert "SKIP_STEPS=8 9 10: KNLP_MECHINT_STUDY_SKIP_STEPS=8 9 10" in result.stdout
    tree.make("mechint")
    said = [argument for call in tree.calls() for argument in call if argument.startswith("--study-skip-steps")]
    assert said == ["--study-skip-steps=8 9 10", "--study-skip-steps="]
    tree.make("defconfig-mamba-tiny-recall-mechint")
    result = tree.make("mechint", "SKIP_STEPS=8")
    assert result.returncode and "KNLP_MECHINT_STUDY is off in .config" in result.stderr and not tree.calls()


@pytest.mark.slow
def test_models_is_written_by_defconfig_alone(tree: Tree) -> None:
    tree.put("runs/final_model_stepV10.pt", "runs/final_model_stepV2.pt", "done/final_masks.pt")
    result = tree.make("defconfig-mamba-tiny-recall-mechint", "MODELS=runs")
    assert "final_model_stepV2.pt, final_model_stepV10.pt; KNLP_MECHINT_CHECKPOINT=runs/final" in result.stdout
    tree.make("mechint")
    before = tree.config
    tree.make("mechint", "MODELS=done")
    assert tree.config == before and not (tree.root / ".config.old").exists()
    tree.make("mechint")
    tree.make("defconfig", "MODELS=state-spaces/mamba-370m-hf")
    tree.make("mechint")
    wanted = [("--checkpoint", "--mode", "--run-dir")] * 4
    said = [
        [argument for argument in call if argument.startswith(names)]
        for call, names in zip(tree.calls(), wanted, strict=True)
    ]
    assert said == [
        ["--mode=posttrain", "--checkpoint=runs/final_model_step*.pt"],
        ["--mode=from_runs", "--run-dir=done"],
        ["--mode=posttrain", "--checkpoint=runs/final_model_step*.pt"],
        ["--mode=posttrain", "--checkpoint=state-spaces/mamba-370m-hf"],
    ]


def test_export_passes_on_what_it_is_told_after_the_directory_of_the_results(tree: Tree) -> None:
    stub = "import json, os, sys\nprint(json.dumps([os.environ.get('MECHINT_CALLED_BY'), *sys.argv[1:]]))\n"
    (tree.root / "lib/mechint/__main__.py").write_text(stub)
    told = lambda *words: json.loads(tree.make("export", *words).stdout)
    assert told() == [None, "export", "--runs=mechint_analysis"]  # without .config, that of the default experiment
    tree.make("defconfig")
    config = tree.root / ".config"
    config.write_text(tree.config.replace('OUTPUT_DIR="mechint_analysis"', 'OUTPUT_DIR="my results"'))
    assert told("EXPORT=--formats 'csv latex' --runs=$HOME;x") == [
        None, "export", "--runs=my results", "--formats", "csv latex", "--runs=$HOME;x",
    ]  # fmt: skip
    assert "EXPORT=--formats 'csv is not a list of words" in error_line(tree.make("export", "EXPORT=--formats 'csv"))


def test_latents_passes_on_what_it_is_told_after_the_run_of_the_dictionaries(tree: Tree) -> None:
    stub = "import json, sys\nprint(json.dumps(sys.argv[1:]))\n"
    (tree.root / "lib/mechint/__main__.py").write_text(stub)
    told = json.loads(tree.make("latents", "LATENTS=dashboards --names '*-k32-*' --run=$HOME;x").stdout)
    assert told == ["latents", "--run=mechint_analysis", "dashboards", "--names", "*-k32-*", "--run=$HOME;x"]
    assert "LATENTS=score 'a is not a list of words" in error_line(tree.make("latents", "LATENTS=score 'a"))


def test_submit_passes_on_the_analyses_and_what_it_is_told(tree: Tree) -> None:
    stub = "import json, os, sys\nprint(json.dumps([os.environ.get('MECHINT_CALLED_BY'), *sys.argv[1:]]))\n"
    (tree.root / "lib/mechint/__main__.py").write_text(stub)
    tree.make("defconfig")  # it trains as well, which is no job
    result = tree.make("submit", "SUBMIT=--submit-at-once 2 --submit-slurm 'account=a qos=b'", "DRY_RUN=1")
    [line] = [line for line in result.stdout.splitlines() if line.startswith("[")]
    by, command, program, *flags = json.loads(line)
    assert (by, command) == ("make", "submit")
    assert program == f"--submit-program={tree.root / 'scripts/run_mechint_analysis.py'}"
    assert "--ssm" in flags and not any(flag.startswith("--train-") for flag in flags)
    assert flags[-5:] == ["--submit-at-once", "2", "--submit-slurm", "account=a qos=b", "--dry-run"]
    assert 'SUBMIT="--submit-at-once 2"' in error_line(tree.make("submit", "PROCESSES=2"))
    for said in ("x", "0", "2.5"):
        assert f"PROCESSES={said} is not a number of" in error_line(
            tree.make("mechint", f"PROCESSES={said}", "DRY_RUN=1")
        )


@pytest.mark.slow
def test_a_failed_command_leaves_the_configuration_alone(tree: Tree) -> None:
    tree.make("defconfig")
    before = tree.config
    for arguments, says in {
        ("mechint", "MODELS=nowhere.pt"): "nowhere.pt does not exist",
        ("train", "MODELS=nowhere.pt"): "MODELS= chooses what is analysed",
        ("defconfig-mamba-tiny-recall", "MODELS=state-spaces/mamba-130m"): "KNLP_MECHINT is off in mamba-tiny-recall",
        ("defconfig-mamba-130-mechint",): "did you mean mamba-130m-mechint",
        ("menuconfig",): "menuconfig needs a terminal",
    }.items():
        assert says in error_line(tree.make(*arguments))
        assert tree.config == before
    assert tree.calls() == []


def test_odd_paths_reach_the_runner_as_they_are(tree: Tree) -> None:
    name = """odd 'q' "d" `b` $HOME;x & #1 \\ [z].pt"""
    tree.put(name)
    for said in (name, name.replace("$", "$$")):
        tree.calls()
        result = tree.make("mechint", "MODELS=" + said)
        assert result.returncode == 0, result.stderr
    tree.make("defconfig", "MODELS=" + name.replace("$", "$$"))
    tree.make("mechint")
    assert [call[call.index("--mode=posttrain") + 1] for call in tree.calls()] == [f"--checkpoint={name}"] * 2


@pytest.mark.slow
def test_a_stale_or_wrong_configuration_stops_every_target(tree: Tree) -> None:
    tree.make("defconfig")
    good = tree.config
    (tree.root / ".config").write_text(good + "CONFIG_KNLP_MECHINT_OLD=y\n")
    line = len(good.splitlines()) + 1
    for target in ("mechint", "train", "report", "olddefconfig", "oldconfig", "savedefconfig", "listnewconfig"):
        message = error_line(tree.make(target))
        assert f".config:{line}: CONFIG_KNLP_MECHINT_OLD is declared in no menu" in message
        assert "remove it and run `make olddefconfig`" in message
    (tree.root / ".config").write_text(good.replace('LR="0.1"', 'LR="100"'))
    assert re.search(r"\.config:\d+: .*SSM_LR=\"100\".* from 1e-05 to 10", error_line(tree.make("mechint")))
    assert tree.calls() == []


@pytest.mark.slow
def test_configuration_targets(tree: Tree) -> None:
    assert "there is no .config" in error_line(tree.make("olddefconfig"))
    tree.make("defconfig")
    kept = "".join(line for line in tree.config.splitlines(True) if not line.startswith("CONFIG_BATCH_SIZE="))
    (tree.root / ".config").write_text(kept)
    assert tree.make("listnewconfig").stdout == "CONFIG_BATCH_SIZE=64\n"
    assert "no answers" in error_line(tree.make("oldconfig"))
    assert tree.make("olddefconfig").returncode == 0
    assert "CONFIG_BATCH_SIZE=64" in tree.config
    assert tree.make("listnewconfig").stdout == "no new symbols\n"
    assert tree.make("savedefconfig").returncode == 0
    saved = (tree.root / "defconfig").read_text().splitlines()
    assert saved == (tree.root / DEFAULT).read_text().splitlines()[1:]
    for target in ("allyesconfig", "olddefconfig", "allnoconfig", "olddefconfig"):
        assert tree.make(target).returncode == 0


def test_every_target_is_in_the_help_and_every_defconfig_is_a_target(tree: Tree) -> None:
    text = tree.make("help").stdout
    database = tree.make("-npq").stdout
    targets = set(database.split(".PHONY:")[1].splitlines()[0].split())
    named = {target for target in targets if target.startswith("defconfig-")}
    assert named == {f"defconfig-{path.name}" for path in tree.root.glob("*/defconfigs/*")}
    hidden = {"ready", "ready-dev"}
    assert {line.split()[0] for line in text.splitlines() if line.startswith("  ")} >= targets - named - hidden
    listed = tree.make("list-defconfigs").stdout
    assert all(name.removeprefix("defconfig-") in listed for name in named)


def test_clean_keeps_results_and_mrproper_the_configuration_not(tree: Tree) -> None:
    tree.make("defconfig")
    tree.put("output/__pycache__/kept", "mechint_analysis/results.json", ".mypy_cache/x", "scripts/__pycache__/x.pyc")
    tree.put(".venv/lib/__pycache__/x.pyc")
    assert tree.make("clean").returncode == 0
    assert not (tree.root / ".mypy_cache").exists() and not (tree.root / "scripts/__pycache__").exists()
    assert (tree.root / ".config").exists() and (tree.root / ".venv/lib/__pycache__/x.pyc").exists()
    assert tree.make("mrproper").returncode == 0
    assert not (tree.root / ".config").exists() and not (tree.root / ".venv").exists()
    assert (tree.root / "output/__pycache__/kept").exists() and (tree.root / "mechint_analysis/results.json").exists()


@pytest.mark.slow
def test_a_dropped_in_fragment_is_an_analysis(tree: Tree) -> None:
    (tree.root / "mamba/Kconfig.mechint.toy").write_text(
        'menuconfig KNLP_MECHINT_TOY\n\tbool "Toy"\n\thelp\n\t  A toy.\n\n'
        'config KNLP_MECHINT_TOY_DEPTH\n\tint "Depth"\n\tdefault 3\n\trange 1 9\n\tdepends on KNLP_MECHINT_TOY\n'
        "\thelp\n\t  How deep.\n\n\t  Range: 1 to 9 levels.\n\n"
        'config KNLP_MECHINT_TOY_RATE\n\tstring "Rate"\n\tdefault "0.5"\n\tdepends on KNLP_MECHINT_TOY\n'
        "\thelp\n\t  How fast.\n\n\t  Range: 0 to 1.\n"
    )
    experiment = tree.root / "mamba/defconfigs/mamba-toy"
    text = "# A toy\nCONFIG_KNLP_MECHINT=y\nCONFIG_KNLP_MECHINT_TOY=y\nCONFIG_KNLP_MECHINT_TOY_DEPTH=4\n"
    experiment.write_text(text)
    assert tree.make("defconfig-mamba-toy").returncode == 0
    tree.make("mechint")
    [call] = tree.calls()
    assert call[-3:] == ["--toy", "--toy-depth=4", "--toy-rate=0.5"] or {"--toy", "--toy-depth=4"} <= set(call)
    tree.make("defconfig")
    tree.make("mechint")
    assert "--no-toy" in tree.calls()[1]
    experiment.write_text(text + 'CONFIG_KNLP_MECHINT_TOY_RATE="2"\n')
    message = error_line(tree.make("defconfig-mamba-toy"))
    assert "mamba/defconfigs/mamba-toy:5" in message and "a number from 0 to 1" in message


def _menuconfig(tree: Tree, before: Callable[[], None] | None = None) -> tuple[subprocess.Popen[bytes], int]:
    """menuconfig in a terminal of its own, and that terminal's other end."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts.kconfig", "menuconfig"],
        cwd=tree.root,
        env={**os.environ, "TERM": "xterm", "LINES": "30", "COLUMNS": "90"},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        preexec_fn=before,
    )
    os.close(terminal)
    return process, controller


@pytest.mark.parametrize("told", [True, False])
def test_menuconfig_ends_with_its_terminal(tree: Tree, told: bool) -> None:
    """Even where the shell before it ignores hang-ups, and where none is sent; else it would take a whole core."""

    def take_terminal() -> None:
        os.setsid()
        if told:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process, controller = _menuconfig(tree, take_terminal)
    try:
        _play(controller, [])
        os.close(controller)
        assert process.wait(timeout=20) == -signal.SIGHUP
    finally:
        process.kill()


@pytest.mark.slow
def test_menuconfig_saves_what_was_changed(tree: Tree) -> None:
    tree.make("defconfig")
    process, controller = _menuconfig(tree)
    # Jump to the symbol, edit its value, save under the same name, quit.
    keys = ["/", "SSM_SEEDS", "\n", "\n", "\x7f", "5", "\n", "s", "\n", "\n", "q"]
    _play(controller, keys)
    assert process.wait(timeout=20) == 0
    os.close(controller)
    assert "CONFIG_KNLP_MECHINT_SSM_SEEDS=5\n" in tree.config


def _play(controller: int, keys: list[str]) -> None:
    """Types each key after the screen has gone quiet, the first one once the menu is there."""
    seen = b""
    while b"mechint configuration" not in seen:
        assert select.select([controller], [], [], 30)[0], seen
        seen += os.read(controller, 65536)
    for key in keys:
        while select.select([controller], [], [], 0.2)[0]:
            os.read(controller, 65536)
        os.write(controller, key.encode())


@pytest.mark.slow
def test_no_variable_reaches_the_shell(tree: Tree) -> None:
    tree.make("defconfig-mamba-tiny-study")
    for name in (
        "MODELS",
        "BASELINE",
        "SKIP_STEPS",
        "PROCESSES",
        "SECTIONS",
        "PYTHON",
        "V",
        "DRY_RUN",
        "SCORE",
        "EXPORT",
        "LATENTS",
        "SUBMIT",
    ):
        for text in ('; touch hacked; `touch hacked` "; touch hacked; "', "$(shell touch hacked)"):
            targets = {
                "SCORE": "ground-truth",
                "SECTIONS": "bench",
                "EXPORT": "export",
                "LATENTS": "latents",
                "SUBMIT": "submit",
            }
            tree.make(targets.get(name, "mechint"), f"{name}={text}")
            assert not (tree.root / "hacked").exists(), (name, text)
    tree.calls()
    tree.make("ground-truth", "SCORE=--output-dir 'a b;$HOME' --seeds 2")
    assert tree.calls() == [["ground_truth.py", "--output-dir", "a b;$HOME", "--seeds", "2"]]
    assert "close its quotes" in error_line(tree.make("ground-truth", "SCORE=--models 'gpt2"))


@pytest.mark.slow
def test_a_dry_run_is_one_however_it_is_said(tree: Tree) -> None:
    tree.make("defconfig-mamba-130m-mechint")
    for said in ("1", "y", "true", "on", "2"):
        tree.make("mechint", f"DRY_RUN={said}")
        assert tree.calls()[0][-1] == "--dry-run", said
    for said in ("", "0", "n"):
        tree.make("mechint", f"DRY_RUN={said}")
        assert tree.calls()[0][-1] != "--dry-run", said


@pytest.mark.slow
def test_a_clone_whose_path_holds_special_characters(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "a [b]* 'c' #d %e")
    tree.put("runs/final_model_stepV0.pt")
    for words in (
        ["defconfig"],
        ["mechint", "DRY_RUN=1"],
        ["defconfig-mamba-130m-mechint"],
        ["mechint", "MODELS=run*"],
    ):
        result = tree.make(*words, PYTHONSAFEPATH="1")
        assert result.returncode == (2 if words[-1] == "MODELS=run*" and "nothing" in result.stderr else 0), (
            result.stderr
        )
    assert tree.make("mechint", "MODELS=runs/final*.pt").returncode == 0
    assert "--checkpoint=runs/final*.pt" in tree.calls()[-1]


@pytest.mark.slow
def test_what_a_trainer_of_hugging_face_leaves_is_read_and_old_names_are_told(tree: Tree) -> None:
    tree.put("out/checkpoint-500/model.safetensors", "out/checkpoint-1000/model.safetensors", "bare/model.safetensors")
    tree.put("out/checkpoint-500/config.json", "out/checkpoint-500/optimizer.pt", "out/trainer_state.json")
    tree.make("defconfig-mamba-130m-mechint")
    for said, why in (("out", "checkpoint-500, checkpoint-1000"), ("bare", "a model directory")):
        result = tree.make("mechint", f"MODELS={said}")
        assert result.returncode == 0 and why in result.stdout, result.stderr
        assert f"--checkpoint={said}" in tree.calls()[-1]
    assert "openai-community/gpt2" in error_line(tree.make("mechint", "MODELS=gpt2"))
    assert "openai-community/gpt2-xl" in error_line(tree.make("mechint", "MODELS=gpt2-xl"))
    assert "does not exist" in error_line(tree.make("mechint", "MODELS=output/x"))


def test_a_report_of_other_models_leaves_the_configuration_alone(tree: Tree) -> None:
    tree.make("defconfig")
    tree.put("done/final_masks.pt")
    before = tree.config
    assert tree.make("report", "MODELS=done").returncode == 0
    assert "--run-dir=done" in tree.calls()[-1] and tree.config == before


SLEEPS = """\
import os, subprocess, time
child = subprocess.Popen(["sleep", "60"])
open("calls.new", "w").close()
os.rename("calls.new", "calls.jsonl")
time.sleep(60)
"""
# Seen once nothing is left to do but sleep: an interrupt while a file is being discarded would be lost.


@pytest.mark.slow_except("(mechint-2|ground-truth-15)")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("target", ["mechint", "ground-truth"])
def test_a_signal_to_make_leaves_no_process_running(tree: Tree, target: str, number: signal.Signals) -> None:
    """A signal to make's group, as a terminal or a batch system sends it, whether the first or the last step runs."""
    tree.make("defconfig")
    for runner in ("train.py", "ground_truth.py"):
        (tree.root / "scripts" / runner).write_text(SLEEPS)
    process = subprocess.Popen(
        ["make", target, f"PYTHON={sys.executable}"], cwd=tree.root, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # nohup and a shell's background ignore some
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (tree.root / "calls.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, number)
    output = process.communicate(timeout=30)[0]
    assert process.returncode != 0
    while _members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _members(process.pid)
    assert number == signal.SIGINT or "Traceback" not in output, output


def _members(session: int) -> list[str]:
    """The commands of what still runs in a session."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, _, of = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(of) == session and state != "Z":
                found.append((folder / "cmdline").read_text())
    return found


@pytest.mark.slow
def test_a_configuration_that_never_ends_is_refused_at_once(tree: Tree) -> None:
    config = tree.root / ".config"
    for kind in ("pipe", "device", "directory"):
        if kind == "pipe":
            os.mkfifo(config)
        elif kind == "device":
            config.symlink_to("/dev/zero")
        else:
            config.mkdir()
        for target in ("mechint", "olddefconfig"):
            assert ".config" in error_line(tree.make(target))
        config.rmdir() if kind == "directory" else config.unlink()
    os.mkfifo(tree.root / "mamba/defconfigs/pipe")
    assert "no defconfig is called" in error_line(tree.make("defconfig-pipe"))
    assert tree.make("list-defconfigs").returncode == 0


@pytest.mark.slow
def test_overlong_values_of_a_configuration_are_cut(tree: Tree) -> None:
    tree.make("defconfig")
    good = tree.config
    for line in (
        "x" * 100_000,
        "CONFIG_BATCH_SIZE=" + "9" * 5_000,
        f"CONFIG_{'A' * 9_000}=y",
        "CONFIG_KNLP_TRAIN=\x1b[2J",
    ):
        (tree.root / ".config").write_text(f"{good}{line}\n")
        message = error_line(tree.make("olddefconfig"))
        assert ".config:" in message and len(message) < 2_000 and message.isprintable()
