"""Variables that last for one command, fragments, .config.old, and where .config lies."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from scripts.kconfig import merging
from scripts.kconfig.defconfigs import ConfigError, find
from scripts.kconfig.loading import apply, load, save
from tests.helpers.kconfig_tree import ROOT, Tree

EXPERIMENT = "mamba-tiny-recall-mechint"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "a tree")


def error_line(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode != 0
    [line] = [line for line in result.stderr.splitlines() if not line.startswith("make")]
    return line


# ---- one command ------------------------------------------------------------------------------------------------


def test_what_one_command_is_told_is_not_written(tree: Tree) -> None:
    tree.make("defconfig")
    before = tree.config
    for word in (
        "SET=KNLP_MECHINT_SEED=7 KNLP_MECHINT_LABEL='two words'",
        "RERUN=1",
        "MODELS=state-spaces/mamba-130m-hf",
    ):
        assert tree.make("mechint", word).returncode == 0
        assert tree.config == before and not (tree.root / ".config.old").exists(), word
    calls = [call for call in tree.calls() if call[0] == "run_mechint_analysis.py"]
    assert {"--seed=7", "--label=two words", "--no-rerun"} <= set(calls[0])
    assert {"--seed=0", "--rerun"} <= set(calls[1])
    assert "--checkpoint=state-spaces/mamba-130m-hf" in calls[2]


def test_defconfig_writes_what_it_is_told(tree: Tree) -> None:
    result = tree.make("defconfig", "SET=KNLP_MECHINT_SEED=7", "RERUN=y")
    assert "KNLP_MECHINT_SEED 0 -> 7" in result.stdout
    assert "CONFIG_KNLP_MECHINT_SEED=7\n" in tree.config and "CONFIG_KNLP_MECHINT_RERUN=y\n" in tree.config
    assert tree.make("defconfig", "RERUN=0", "SET=").returncode == 0
    assert "# CONFIG_KNLP_MECHINT_RERUN is not set" in tree.config


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ("KNLP_MECHINT_SED=7", "SET=: CONFIG_KNLP_MECHINT_SED is declared in no menu (did you mean"),
        ("KNLP_MECHINT_SEED", "'KNLP_MECHINT_SEED' is not NAME=value"),
        ("KNLP_MECHINT_SEED=-1", "must be a whole number from 0 to"), ("KNLP_MECHINT_SEED='1", "close its quotes"),
        ("KNLP_MECHINT_SSM=maybe", "must be y or n"),
        ("KNLP_MECHINT_RUN_DIR=x", "it depends on KNLP_MECHINT_MODE_FROM_RUNS"),
        ("KNLP_MECHINT_DTYPE=int8", "must be one of float32, bfloat16, float16"),
    ],
)  # fmt: skip
def test_what_cannot_be_set_is_one_line(said: str, says: str) -> None:
    menu = load(ROOT, find(ROOT, EXPERIMENT))
    with pytest.raises(ConfigError) as caught:
        apply(menu, merging.settings(menu, said))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("said", "name", "value"),
    [
        ("CONFIG_KNLP_MECHINT_SEED=3", "KNLP_MECHINT_SEED", "3"), ("KNLP_MECHINT_LABEL=", "KNLP_MECHINT_LABEL", ""),
        ("KNLP_MECHINT_DTYPE=bfloat16", "KNLP_MECHINT_DTYPE_BFLOAT16", "y"),
        ("KNLP_MECHINT_DTYPE_BFLOAT16=y", "KNLP_MECHINT_DTYPE_FLOAT32", "n"),
        (r"""KNLP_MECHINT_LABEL='a "b" \c'""", "KNLP_MECHINT_LABEL", r'a "b" \c'),
        ("KNLP_MECHINT_LABEL='\"quoted\"'", "KNLP_MECHINT_LABEL", "quoted"),
        ("KNLP_MECHINT_SSM_LR=0.5", "KNLP_MECHINT_SSM_LR", "0.5"),
    ],
)  # fmt: skip
def test_a_setting_is_the_value_that_it_says(said: str, name: str, value: str) -> None:
    menu = load(ROOT, find(ROOT, EXPERIMENT))
    apply(menu, merging.settings(menu, said))
    assert menu.syms[name].str_value == value


def test_an_unknown_variable_stops_make_before_anything_runs(tree: Tree) -> None:
    for word in ("MODLES=x", "KNLP_MECHINT_SEED=1", "RERUNS=1"):
        result = tree.make("mechint", word)
        assert result.returncode == 2 and result.stdout == "" and not tree.calls()
        assert f"no variable {word.split('=')[0]}" in result.stderr and result.stderr.count("\n") == 1
    assert tree.make("mechint", "OMP_NUM_THREADS=1", "CC=cc", "V=1", "DRY_RUN=1", "HF_HUB_OFFLINE=1").returncode == 0


# ---- where the configuration lies -------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_configuration_before_the_last_change_is_kept(tree: Tree) -> None:
    tree.make("defconfig")
    first, old = tree.config, tree.root / ".config.old"
    assert not old.exists()
    tree.make("defconfig")
    assert not old.exists()  # nothing changed
    tree.make("defconfig", "SET=KNLP_MECHINT_SEED=7")
    assert old.read_text() == first
    assert tree.make("diffconfig").stdout == "KNLP_MECHINT_SEED 0 -> 7\n"
    tree.make("olddefconfig")
    assert old.read_text() == first
    assert "KNLP_MECHINT_SEED 0 -> 7" in tree.make("diffconfig", f"FROM={EXPERIMENT}").stdout


def test_another_directory_holds_the_configuration_and_what_runs_there(tree: Tree) -> None:
    there = tree.root.parent / "my study"
    assert tree.make("defconfig", f"O={there}").returncode == 0
    assert (there / ".config").is_file() and not (tree.root / ".config").exists()
    (there / "runs").mkdir()
    (there / "runs/final_model_stepV0.pt").touch()
    result = tree.make("mechint", "MODELS=runs", O=str(there))
    assert result.returncode == 0, result.stderr
    [call] = [json.loads(line) for line in (there / "calls.jsonl").read_text().splitlines()]
    assert "--checkpoint=runs/final_model_step*.pt" in call and not tree.calls()
    assert tree.make("savedefconfig", f"O={there}").returncode == 0 and (there / "defconfig").is_file()
    tree.make("mrproper", f"O={there}")
    assert not (there / ".config").exists() and (there / "runs").is_dir()
    (tree.root / "file").touch()
    assert "file" in error_line(tree.make("defconfig", "O=file"))


def test_another_file_may_be_the_configuration(tree: Tree) -> None:
    tree.make("defconfig")
    before = tree.config
    assert tree.make("defconfig-mamba-130m-mechint", "KCONFIG_CONFIG=second.config").returncode == 0
    assert tree.config == before and "mamba-130m" in (tree.root / "second.config").read_text()
    tree.make("mechint", KCONFIG_CONFIG="second.config")
    assert [call[0] for call in tree.calls()] == ["run_mechint_analysis.py"]
    for target in ("olddefconfig", "mechint", "train", "report", "export"):
        missing = tree.make(target, "KCONFIG_CONFIG=third.config")
        assert "there is no third.config; run `make defconfig`" in error_line(missing), target
    assert not (tree.root / "third.config").exists() and not tree.calls()


# ---- fragments --------------------------------------------------------------------------------------------------


def test_fragments_are_set_over_an_experiment_in_their_order(tree: Tree) -> None:
    (tree.root / "one.config").write_text("CONFIG_KNLP_MECHINT_SEED=1\nCONFIG_KNLP_MECHINT_DTYPE_BFLOAT16=y\n")
    (tree.root / "two.config").write_text("CONFIG_KNLP_MECHINT_SEED=2\n")
    result = tree.make("defconfig", "FRAGMENTS=one.config two.config")
    assert result.returncode == 0, result.stderr
    assert (
        "one.config: KNLP_MECHINT_SEED 0 -> 1\n" in result.stdout
        and "two.config: KNLP_MECHINT_SEED 1 -> 2\n" in result.stdout
    )
    assert "one.config: KNLP_MECHINT_DTYPE_FLOAT32 y -> n\n" in result.stdout
    assert "CONFIG_KNLP_MECHINT_SEED=2\n" in tree.config and "CONFIG_KNLP_MECHINT_DTYPE_BFLOAT16=y\n" in tree.config
    before = tree.config
    (tree.root / "two.config").write_text("CONFIG_KNLP_MECHINT_SED=2\n")
    assert "two.config:1: CONFIG_KNLP_MECHINT_SED is declared in no menu" in error_line(
        tree.make("defconfig", "FRAGMENTS=one.config two.config")
    )
    assert "no defconfig is called 'three.config'" in error_line(tree.make("mergeconfig", "FRAGMENTS=three.config"))
    assert "needs FRAGMENTS=" in error_line(tree.make("mergeconfig"))
    assert tree.config == before


def test_a_fragment_that_turns_a_part_off_takes_its_options_with_it(tmp_path: Path) -> None:
    (tmp_path / "off").write_text("# CONFIG_KNLP_TRAIN is not set\n")
    menu = load(ROOT, find(ROOT, EXPERIMENT))
    said = merging.merge(menu, [("off", tmp_path / "off")])
    assert "off: KNLP_TRAIN y -> n" in said and any(
        "KNLP_TRAIN_STEPS" in line and line.endswith("-> –") for line in said
    )
    save(menu, ROOT, tmp_path / ".config")
    assert "KNLP_TRAIN_STEPS" not in (tmp_path / ".config").read_text()


def test_merging_into_the_configuration_keeps_the_rest(tree: Tree) -> None:
    tree.make("defconfig", "SET=KNLP_MECHINT_LABEL=mine")
    (tree.root / "seed").write_text("CONFIG_KNLP_MECHINT_SEED=5\n")
    assert tree.make("mergeconfig", "FRAGMENTS=seed").returncode == 0
    assert 'CONFIG_KNLP_MECHINT_LABEL="mine"\n' in tree.config and "CONFIG_KNLP_MECHINT_SEED=5\n" in tree.config
    assert tree.make("diffconfig").stdout == "KNLP_MECHINT_SEED 0 -> 5\n"


def test_every_variable_that_a_recipe_or_a_page_names_is_one() -> None:
    makefile = (ROOT / "Makefile").read_text()
    ours = set(re.search(r"^OURS := (.*?)\n(?=\S)", makefile, re.M | re.S).group(1).replace("\\\n", " ").split())  # type: ignore[union-attr]
    recipes = "".join(line for line in makefile.splitlines(keepends=True) if line.startswith("\t"))
    read = set(re.findall(r"\$\$\{?([A-Z][A-Z_]*)\b", recipes))
    read -= set(re.findall(r"^(?:export |override )*([A-Z][A-Z_]*) :?=", makefile, re.M)) - ours
    pages = "\n".join(path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    said = {
        name for line in re.findall(r"`?make [a-z][^`\n]*", pages) for name in re.findall(r"\b([A-Z][A-Z_]*)=", line)
    }
    assert {"SOURCES", "TESTS", "MODELS"} <= read | said
    assert read - ours == set()
    assert {name for name in said if not name.startswith(("KNLP_", "CONFIG_"))} - ours - SHELL == set()


SHELL = {"OMP_NUM_THREADS", "GOMP_SPINCOUNT", "PYTHONPATH", "WANDB_MODE"}
"""Variables of the environment that pages name beside commands."""
