#!/usr/bin/env python3
"""Neurons, sparsity and efficiency of a model on plain text, and the comparison of several: JSON and plots."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "lib"))

from mechint.runner.neuron_command import NeuronCommand, analyse
from mechint.utils.errors import exit_status
from mechint.utils.options import entered


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__)
    default = NeuronCommand()
    top.add_argument("--model", nargs="+", default=list(default.model), help="model to analyse; several are compared")
    top.add_argument("--layer", type=int, default=default.layer, help="layer whose neurons are analysed (default: 0)")
    top.add_argument("--top_k", type=int, default=default.top_k, help="neurons in lists and circuits (default: 10)")
    top.add_argument(
        "--text_limit", type=int, default=default.text_limit, help="texts to process, half to rank on (default: 100)"
    )
    top.add_argument("--text", default=default.text, help="a text file, topics or sotu (default: topics)")
    top.add_argument("--length", type=int, default=default.length, help="tokens of a text (default: 32)")
    top.add_argument("--enable_attention", action="store_true", help="rank neurons by attention, too")
    top.add_argument(
        "--attention_methods", nargs="+", default=list(default.attention_methods), metavar="METHOD",
        help=f"methods of that ranking (default: {' '.join(default.attention_methods)})",
    )  # fmt: skip
    top.add_argument("--save_results", action="store_true", help="write analysis_outputs/analysis_results.json")
    top.add_argument("--plots_dir", default=default.plots_dir, help="directory of the plots (default: plots)")
    return top


def main() -> None:
    flags = vars(parser().parse_args())
    listed = {name: tuple(flags.pop(name)) for name in ("model", "attention_methods")}
    results = analyse(NeuronCommand(**flags, **listed))
    print("\n".join(results.lines))


if __name__ == "__main__":
    entered(checkpoint="--model")
    sys.exit(exit_status(main))
