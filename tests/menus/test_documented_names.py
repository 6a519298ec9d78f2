"""The names that were documented to users before there were menus: symbols, defconfigs, files, and command lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from mechint.analyses.circuits.search.gates import Temperature, budget_at
from scripts import train
from scripts.kconfig import mapping
from scripts.kconfig.defconfigs import ConfigError, find_all
from scripts.kconfig.loading import Menu, load
from tests.helpers.kconfig_tree import Tree
from tests.helpers.paths import ROOT

GPT2 = "CONFIG_KNLP_FAMILY_GPT2=y\nCONFIG_KNLP_MECHINT=y\n"
# Documented line -> what the analysis runner is told by it.
LINES = {
    "CONFIG_KNLP_MECHINT_KV_POSTTRAIN=y": "--kv-mode=posttrain",
    "CONFIG_KNLP_MECHINT_KV_FROM_RUNS=y": "--kv-mode=from_runs",
    'CONFIG_KNLP_MECHINT_KV_CHECKPOINT="./output/final_model.pt"': "--kv-checkpoint=./output/final_model.pt",
    'CONFIG_KNLP_MECHINT_KV_CHECKPOINT="./output/final_*.pt"': "--kv-checkpoint=./output/final_*.pt",
    'CONFIG_KNLP_MECHINT_KV_CHECKPOINT="./checkpoints"': "--kv-checkpoint=./checkpoints",
    'CONFIG_KNLP_MECHINT_KV_FROM_RUNS=y\nCONFIG_KNLP_MECHINT_KV_RUN_DIR="mechint_analysis_kv"':
        "--kv-run-dir=mechint_analysis_kv",
    "CONFIG_KNLP_MECHINT_KV_TARGET_METRIC_LOSS=y": "--kv-target-metric=loss",
    "CONFIG_KNLP_MECHINT_KV_TARGET_METRIC_ACCURACY=y": "--kv-target-metric=accuracy",
    "CONFIG_KNLP_MECHINT_KV_TARGET_METRIC_PERPLEXITY=y": "--kv-target-metric=perplexity",
    "CONFIG_KNLP_MECHINT_KV_TARGET_METRIC_LOGIT_DIFF=y": "--kv-target-metric=logit_diff",
    "CONFIG_KNLP_MECHINT_KV_TARGET_METRIC_KL_DIV=y": "--kv-target-metric=kl_div",
    'CONFIG_KNLP_MECHINT_KV_TARGET_SPARSITY="0.5"': "--kv-target-sparsity=0.5",
    "CONFIG_KNLP_MECHINT_KV_STEPS=700": "--kv-steps=700",
    'CONFIG_KNLP_MECHINT_KV_LR="0.01"': "--kv-lr=0.01",
    'CONFIG_KNLP_MECHINT_KV_TEMP_SCHEDULE="linear:1.0:0.1"': "--kv-temp-schedule=linear:1.0:0.1",
    "CONFIG_KNLP_MECHINT_KV_SPARSITY_SCHEDULE_CUBIC=y": "--kv-sparsity-schedule=cubic",
    "CONFIG_KNLP_MECHINT_KV_SPARSITY_SCHEDULE_LINEAR=y": "--kv-sparsity-schedule=linear",
    "CONFIG_KNLP_MECHINT_KV_SPARSITY_SCHEDULE_EXPONENTIAL=y": "--kv-sparsity-schedule=exponential",
    'CONFIG_KNLP_MECHINT_KV_SPARSITY_SCHEDULE="cubic"': "--kv-sparsity-schedule=cubic",
    'CONFIG_KNLP_MECHINT_KV_SPARSITY_SCHEDULE="linear"': "--kv-sparsity-schedule=linear",
    'CONFIG_KNLP_MECHINT_KV_TARGET_METRIC="loss"': "--kv-target-metric=loss",
    'CONFIG_KNLP_MECHINT_KV_TARGET_METRIC="kl_div"': "--kv-target-metric=kl_div",
    'CONFIG_KNLP_MECHINT_KV_L1_LAMBDA="0.02"': "--kv-l1-lambda=0.02",
    'CONFIG_KNLP_MECHINT_KV_SEARCH_PENALTY=y\nCONFIG_KNLP_MECHINT_KV_L1_LAMBDA="0.01"': "--kv-l1-lambda=0.01",
    "CONFIG_KNLP_MECHINT_KV_HARD_MASKS=y": "--kv-hard-masks",
    "# CONFIG_KNLP_MECHINT_SAVE_MASKS is not set": "--no-save-masks",
    'CONFIG_KNLP_MECHINT_OUTPUT_DIR="elsewhere"': "--output-dir=elsewhere",
    "CONFIG_KNLP_MECHINT_VISUALIZE_WANDB=y": "--visualize-wandb",
    "# CONFIG_KNLP_MECHINT_VISUALIZE_HEATMAPS is not set": "--no-visualize-heatmaps",
    "# CONFIG_KNLP_MECHINT_VISUALIZE_CURVES is not set": "--no-visualize-curves",
    "# CONFIG_KNLP_MECHINT_VISUALIZE_FAITHFULNESS is not set": "--no-visualize-faithfulness",
    'CONFIG_WANDB_PROJECT="gpt2-mechint-kv-circuits"': "--wandb-project=gpt2-mechint-kv-circuits",
    "CONFIG_BATCH_SIZE=4": "--batch-size=4",
}  # fmt: skip
TRAINING = ("gpt2-vanilla-baseline", "gpt2-baseline", "gpt2-kv-tying", "gpt2-kv-tying-w7900-ablation")
ANALYSES = ("gpt2-mechint-kv-analysis", "gpt2-kv-tying-w7900-ablation-mechint")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "tree")


def told(tmp_path: Path, lines: str) -> list[str]:
    file = tmp_path / "config"
    file.write_text(GPT2 + lines + "\n")
    return mapping.arguments(load(ROOT, file), mapping.MECHINT)


@pytest.mark.parametrize(("lines", "flag"), LINES.items(), ids=[line.split("CONFIG_")[-1] for line in LINES])
def test_a_documented_line_reaches_its_option_and_the_analysis_is_on(tmp_path: Path, lines: str, flag: str) -> None:
    arguments = told(tmp_path, lines)
    assert flag in arguments and "--kv" in arguments


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ('CONFIG_KNLP_MECHINT_KV_TARGET_SPARSITY="1.0"', "from 0 to 0.9999"),
        ('CONFIG_KNLP_MECHINT_KV_TARGET_SPARSITY="-0.1"', "from 0 to 0.9999"),
        ('CONFIG_KNLP_MECHINT_KV_SPARSITY_SCHEDULE="quartic"', "must be one of exponential, linear, cubic"),
        (
            'CONFIG_KNLP_MECHINT_KV_SPARSITY_SCHEDULE="cubic"\nCONFIG_KNLP_MECHINT_KV_SPARSITY_SCHEDULE_LINEAR=y',
            "a choice has one",
        ),
        ("CONFIG_KNLP_MECHINT_KV_STEPS=0", "from 10 to"),
        ("CONFIG_KNLP_MECHINT_KV_POSTTRAIN=y\nCONFIG_KNLP_MECHINT_KV_FROM_RUNS=y", "a choice has one"),
    ],
)
def test_what_is_out_of_range_or_contradicts_itself_is_one_line(tmp_path: Path, lines: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        told(tmp_path, lines)


def test_the_documented_schedules_are_those_of_the_documented_experiment() -> None:
    options = dict(arg.removeprefix("--").split("=", 1) for arg in told_by("gpt2-mechint-kv-analysis") if "=" in arg)
    steps, asked = int(options["kv-steps"]), float(options["kv-target-sparsity"])
    schedule, hold = options["kv-sparsity-schedule"], float(options["kv-sparsity-hold"])
    assert (steps, asked, schedule) == (500, 0.95, "cubic") and "--kv-hard-masks" in told_by("gpt2-mechint-kv-analysis")
    temperature = Temperature.parse(options["kv-temp-schedule"])
    for step, sparsity, warmth in ((0, 0.0, 1.0), (100, 0.0076, 0.82), (250, 0.11875, 0.55), (450, 0.69255, 0.19)):
        dropped = 1 - budget_at(step, steps, 10_000, 500, schedule, hold) / 10_000
        assert dropped == pytest.approx(sparsity) and temperature.at(step, steps) == pytest.approx(warmth)


def told_by(defconfig: str) -> list[str]:
    return mapping.arguments(load(ROOT, find_all(ROOT)[defconfig]), mapping.MECHINT)


def test_every_documented_defconfig_is_there_and_has_a_small_twin() -> None:
    known = find_all(ROOT)
    assert {*TRAINING, *ANALYSES} <= set(known)
    small = {name.replace("gpt2-", "gpt2-tiny-").replace("w7900-", "") for name in (*TRAINING, *ANALYSES)}
    assert small <= set(known)


@pytest.mark.slow
def test_an_experiment_of_another_analysis_says_whether_this_one_runs() -> None:
    for name, file in find_all(ROOT).items():
        menu: Menu = load(ROOT, file)
        text = file.read_text()
        others = [s.name for s in mapping.analyses(menu) if s.str_value == "y" and s.name != "KNLP_MECHINT_KV"]
        if menu.syms["KNLP_FAMILY_GPT2"].str_value == "y" and others and "KNLP_MECHINT_KV_" not in text:
            assert "CONFIG_KNLP_MECHINT_KV is not set" in text, f"{name} runs KV circuits, too: is that meant?"


@pytest.mark.slow
def test_the_documented_command_lines(tree: Tree) -> None:
    for name in TRAINING:
        assert tree.make(f"defconfig-{name}").returncode == 0
        assert tree.make().returncode == 0
        [call] = tree.calls()
        assert call[0] == "train.py" and "--train-output-dir=output" in call and "--family=gpt2" in call, name
    tree.put("output_baseline/final_model_stepV0.pt", "output_kv_tying/final_model_stepV0.pt", "custom.pt")
    tree.put("mechint_analysis_kv/final_masks.pt")
    for models, wanted in {
        "": {"--kv-checkpoint=./output/final_model_stepV0.pt", "--output-dir=mechint_analysis_kv", "--label="},
        "./output_baseline": {"--kv-checkpoint=output_baseline/final_model_step*.pt", "--label=output_baseline"},
        "./output_kv_tying": {"--kv-checkpoint=output_kv_tying/final_model_step*.pt", "--label=output_kv_tying"},
        "./custom.pt": {"--kv-checkpoint=custom.pt", "--label=custom"},
        "mechint_analysis_kv": {"--kv-mode=from_runs", "--kv-run-dir=mechint_analysis_kv"},
    }.items():
        assert (
            tree.make("defconfig-gpt2-mechint-kv-analysis", *([f"MODELS={models}"] if models else [])).returncode == 0
        )
        assert tree.make("mechint").returncode == 0
        [call] = tree.calls()
        assert wanted <= set(call), models
    assert "CONFIG_KNLP_MECHINT_KV_FROM_RUNS=y" in tree.config


@pytest.mark.slow
def test_models_of_the_ablation_study(tree: Tree) -> None:
    """The documented overrides of an experiment whose own checkpoints are a glob."""
    name = "defconfig-gpt2-kv-tying-w7900-ablation-mechint"
    tree.put("other_output/final_model_stepV0.pt", "custom.pt", "mechint_analysis_kv/final_masks.pt")
    for models, wanted in {
        "": {"--kv-checkpoint=./output/final_model_step*.pt", "--output-dir=mechint_analysis_kv_w7900"},
        "mechint_analysis_kv": {"--kv-mode=from_runs", "--kv-run-dir=mechint_analysis_kv"},
        "./other_output": {"--kv-checkpoint=other_output/final_model_step*.pt", "--label=other_output"},
        "./custom.pt": {"--kv-checkpoint=custom.pt", "--label=custom"},
    }.items():
        assert tree.make(name, *([f"MODELS={models}"] if models else [])).returncode == 0
        assert tree.make("mechint").returncode == 0
        [call] = tree.calls()
        assert {*wanted, "--wandb-project=gpt2-mechint-kv-circuits"} <= set(call), models


@pytest.mark.parametrize("arguments", [["--output-dir=here"], ["--train-output-dir", "here"], []])
def test_the_trainers_output_directory(arguments: list[str]) -> None:
    assert train.parser().parse_args(arguments).train_output_dir == ("here" if arguments else "output")


@pytest.mark.slow
def test_baseline_names_a_run_to_compare_with_and_persists(tree: Tree) -> None:
    tree.put("done/final_masks.pt", "run/training_metrics_stepV0.json", "empty/x")
    assert tree.make("defconfig-gpt2-mechint-kv-analysis", "BASELINE=./done").returncode == 0
    assert 'CONFIG_KNLP_MECHINT_BASELINE="done"' in tree.config
    tree.make("mechint")
    assert "--baseline=done" in tree.calls()[0]
    assert tree.make("defconfig-gpt2-baseline", "BASELINE=run").returncode == 0
    tree.make()
    assert "--train-baseline=run" in tree.calls()[0]
    for arguments, says in (
        ("BASELINE=empty", "not a run to compare with"),
        ("BASELINE=done", "KNLP_MECHINT_MODE_POST"),
    ):
        result = tree.make("train", arguments)
        assert result.returncode != 0 and says in result.stderr
