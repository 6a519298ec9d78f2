"""``python -m tests.models.families.write_parity``: compares every declared family with transformers, on a page.

For each family and six random small configurations: logits and gradients in float64 against transformers promoted to
float64, a prompt in pieces behind a cache against the prompt whole, and logits in float32. The page has the largest
error of each, by the largest entry. Names of families behind the command measure these alone, and keep what the page
says of the others.
"""

from __future__ import annotations

import re
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

import mechint
from mechint.models.families import declared
from mechint.models.loading.load import to_hf_state_dict
from tests.helpers.judges.base import logits_of, promoted
from tests.helpers.paths import ROOT
from tests.models.families.test_parity import JUDGES, error, prompt, saved, saved_gradients, with_gradients

SEEDS = range(6)
KINDS = ("logits", "gradients", "pieces", "single")
PAGE = ROOT / "docs/parity.md"
DIFFERS = [
    ("Mamba-1 families", "several tokens behind a cache give other logits than the whole prompt"),
    ("every recurrent family", "padding on the right and then decoding gives other logits than no padding"),
    ("recurrences, norms, softmax", "run in float32 inside a float64 model; the tests give them float64"),
    ("`nemotron_h`, `zamba2`", "clamp Δ at `time_step_min` in prefill only; here everywhere"),
    ("`nemotron_h`", "ignores `time_step_limit`, `attention_bias`, `mamba_proj_bias`, and never ties its head; on, "
     "they are refused here"),
    ("`bamba`, `zamba2`, `granitemoehybrid`", "ignore `partial_rotary_factor` where it stands outside the rotation"),
    ("`olmo_hybrid`", "saves its convolution in three equal pieces whatever the sizes of keys and values; reads "
     "`rope_parameters: null` as a rotation with base 10000, which is refused here"),
    ("`kimi_linear`", "never ties its head, whatever `tie_word_embeddings` says; true is refused here"),
    ("`gemma2`", "caps the scores in eager attention alone; the tests use that"),
    ("`gemma3`", "has `attn_logit_softcapping` and never applies it; it is refused here"),
    ("`phi3` with `longrope`", "a prompt longer than `original_max_position_embeddings` has every position turned "
     "otherwise, the early ones too; `generate` makes its cache anew where it crosses that length, and a forward "
     "behind a cache does not: its logits are not those of the whole prompt. Here both are refused"),
    ("`phi3`", "reads `su` and `yarn` as `longrope`, and `original_max_position_embeddings` beside the rotation alone; "
     "another one within it is refused here"),
    ("`olmo`", "adds 1e-5 in its norms whatever a configuration says; keys that say anything are refused here"),
    ("`stablelm`", "ignores `use_norm_bias` and `rotary_scaling_factor`: here a file that says false has no such "
     "biases, and factors other than 1 are refused"),
    ("`starcoder2`, `cohere2`", "ignore keys of their published files (`norm_type`, `layer_switch` and others); values "
     "other than what is computed are refused here"),
    ("`exaone4`", "divides by zero where `sliding_window` is null and `layer_types` are not said; here no layer has a "
     "window"),
    ("`olmo3`", "an earlier file's `rope_theta` reaches layers without a window alone; other bases are refused here"),
]  # fmt: skip
"""Places where transformers 5.23 differs from itself or from its configuration."""


def measured(name: str) -> dict[str, float]:
    """The largest error of each kind over all seeds."""
    worst = dict.fromkeys(KINDS, 0.0)

    def meet(kind: str, value: float) -> None:
        worst[kind] = max(worst[kind], value)

    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            path, tokens = Path(folder), prompt()
            theirs, ours = saved(JUDGES[name], seed, path / "model")
            expected, found = logits_of(theirs, tokens), ours(tokens)
            meet("logits", error(found, expected))
            with torch.no_grad():
                meet("single", error(mechint.load(path / "model")(tokens).double(), expected))
                parts, cache = [], None
                for step in tokens.split([1, 1, 4, 1, 4], 1):
                    run = mechint.run(ours, step, cache=cache)
                    parts.append(run.logits)
                    cache = run.cache
                meet("pieces", error(torch.cat(parts, 1), found))
            weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
            with promoted():
                (expected * weights).sum().backward()
            (found * weights).sum().backward()
            mine = JUDGES[name].whole(to_hf_state_dict(with_gradients(ours)))
            wanted = JUDGES[name].whole(saved_gradients(theirs, path / "gradients"))
            largest = max(float(gradient.abs().max()) for gradient in wanted.values())
            for key, gradient in wanted.items():
                if float(gradient.abs().max()) > 1e-12 * largest:  # others are the rounding of 0
                    meet("gradients", error(mine[key], gradient))
    return worst


def read(text: str) -> dict[str, dict[str, float]]:
    """The numbers that a page holds."""
    found = {}
    for name, cells in re.findall(r"^\| `(\w+)` \| [^|]+ \| (.+e-.+) \|$", text, re.M):
        found[name] = dict(zip(KINDS, map(float, cells.split(" | ")), strict=True))
    return found


def page(rows: dict[str, dict[str, float]]) -> str:
    """The whole page."""
    titles = {family.name: family.title for family in declared().values()}
    numbers = "\n".join(
        f"| `{name}` | {titles[name]} | " + " | ".join(f"{row[kind]:.0e}" for kind in row) + " |"
        for name, row in sorted(rows.items())
    )
    differs = "\n".join(f"| {where} | {what} |" for where, what in DIFFERS)
    return f"""# Parity with transformers

Written by `python -m tests.models.families.write_parity` with transformers {transformers.__version__} and torch
{torch.__version__.split("+")[0]}: the largest error over {len(SEEDS)} random small configurations of each family,
by the largest entry. Logits and gradients of all weights are in float64 against transformers promoted to float64.
*In pieces* is a prompt of 11 tokens in five pieces behind a cache against the whole prompt. *float32* is our float32
against their float64. The tests also compare every part's output and every residual stream, to 1e-12. Mamba-1, GPT-2
and Llama have tests of their own against transformers and NumPy.

| `model_type` | family | logits | gradients | in pieces | float32 |
|---|---|---|---|---|---|
{numbers}

## Where transformers differs from itself

| where | how |
|---|---|
{differs}
"""


def main(names: Sequence[str]) -> int:
    warnings.filterwarnings("ignore")
    if unknown := [name for name in names if name not in JUDGES]:
        raise SystemExit(f"no family is called {unknown[0]}")
    rows = read(PAGE.read_text(encoding="utf-8")) if names else {}
    for name in names or JUDGES:
        rows[name] = measured(name)
        print(name, rows[name], flush=True)
    PAGE.write_text(page(rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
