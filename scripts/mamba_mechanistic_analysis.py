#!/usr/bin/env python3
"""Studies one layer of a model: activations, candidate circuits, tests and claims, in experiment_logs/experiment_…"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))

from mechint.analyses.study.analyzer import summary
from mechint.runner.mechanistic import ExperimentConfig, MambaMechanisticAnalyzer
from mechint.utils.errors import exit_status
from mechint.utils.options import Parser, entered, integer


def parser() -> Parser:
    top = Parser(description=__doc__)
    top.add_argument("--model", default=ExperimentConfig.model_name, help="a hub id, a model directory or a checkpoint")
    top.add_argument("--layer", type=integer, default=0, help="layer to study (default: 0)")
    top.add_argument("--samples", type=integer, default=ExperimentConfig.num_samples, help="prompts of each split")
    top.add_argument(
        "--use_toy_data", action="store_true", help="prompts of a toy task instead of the facts of the package"
    )
    top.add_argument("--toy_task", default="recall", help="recall, counters, brackets, long_copy, induction, …")
    top.add_argument("--skip_steps", nargs="*", default=[], metavar="STEP", help="numbers of steps to leave out (8 9)")
    top.add_argument(
        "--max_lag", type=integer, default=ExperimentConfig.max_lag, help="largest lag of the Jacobians; 0 for all"
    )
    top.add_argument("--seed", type=integer, default=ExperimentConfig.seed)
    top.add_argument("--device", default=ExperimentConfig.device, help="auto, cpu or cuda")
    top.add_argument("--log_dir", default=ExperimentConfig.log_dir, help="where experiment_YYYYMMDD_HHMMSS goes")
    top.add_argument("--use_wandb", action="store_true", help="log to Weights & Biases")
    return top


def main() -> None:
    flags = parser().parse_all()
    config = ExperimentConfig(
        model_name=flags.model, layer_idx=flags.layer, num_samples=flags.samples, use_toy_data=flags.use_toy_data,
        toy_task=flags.toy_task, skip_steps=" ".join(flags.skip_steps), max_lag=flags.max_lag, seed=flags.seed,
        device=flags.device, log_dir=flags.log_dir, use_wandb=flags.use_wandb,
    )  # fmt: skip
    analyzer = MambaMechanisticAnalyzer(config).setup()
    results = analyzer.run()
    print(*summary(results), f"  report: {analyzer.directory / 'report.html'}", sep="\n")


if __name__ == "__main__":
    entered(
        checkpoint="--model",
        layer_idx="--layer",
        num_samples="--samples",
        log_dir="--log_dir",
        skip_steps="--skip_steps",
    )
    sys.exit(exit_status(main))
