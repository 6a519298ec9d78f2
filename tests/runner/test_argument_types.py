"""Calls of a notebook with arguments of other types than they take: one clear line, or the same result; never a
traceback of another kind, and never numbers of something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import mechint
from mechint.utils.errors import MechintError
from tests.helpers.builders import tiny_mamba

MODEL = tiny_mamba(3, vocab_size=24).requires_grad_(False).eval()
TOKENS = torch.tensor([[3, 17, 5, 20, 5]])
SITE = "layers.0.out"
ODD: dict[str, Any] = {
    "text": "hello", "list": [], "array": TOKENS.numpy(), "nothing": None, "number": 3, "truth": True, "dict": {},
    "lists": TOKENS.tolist(), "texts": ["a", "b"], "numbers": [3], "nothings": [None], "fraction": 2.5,
    "object": object(),
}  # fmt: skip
"""Arguments, most of which no call takes."""


def edited(**of_edit: Any) -> mechint.Run:
    return mechint.run(MODEL, TOKENS, edits=[mechint.Edit(**({"site": SITE, "value": 0.0} | of_edit))])


CALLS: dict[str, Callable[[Any], Any]] = {
    "run": lambda odd: mechint.run(MODEL, odd),
    "run record": lambda odd: mechint.run(MODEL, TOKENS, record=odd),
    "run edits": lambda odd: mechint.run(MODEL, TOKENS, edits=odd),
    "generate": lambda odd: mechint.generate(MODEL, odd, 2),
    "generate count": lambda odd: mechint.generate(MODEL, TOKENS, odd),
    "generate temperature": lambda odd: mechint.generate(MODEL, TOKENS, 2, temperature=odd),
    "generate seed": lambda odd: mechint.generate(MODEL, TOKENS, 2, temperature=1.0, seed=odd),
    "edit site": lambda odd: edited(site=odd),
    "edit mode": lambda odd: edited(mode=odd),
    "edit value": lambda odd: edited(value=odd),
    "edit positions": lambda odd: edited(positions=odd),
    "edit units": lambda odd: edited(units=odd),
    "edit rows": lambda odd: edited(rows=odd),
    "load": mechint.load,
    "results": mechint.results,
    "analyse": lambda odd: mechint.analyse(odd, "trace"),
    "analyse task": lambda odd: mechint.analyse(MODEL, "trace", None if isinstance(odd, dict) else odd),
    "analyse output_dir": lambda odd: mechint.analyse(MODEL, "trace", {"pairs": -1}, output_dir=odd),
    "paths": lambda odd: mechint.paths(MODEL, odd),
    "steer": lambda odd: mechint.steer(MODEL, odd),
    "contrast": lambda odd: mechint.contrast(MODEL, odd, odd, "layers.0.resid_post"),
    "lens": lambda odd: mechint.lens(MODEL, odd),
    "lens answers": lambda odd: mechint.lens(MODEL, TOKENS, odd),
    "lens top": lambda odd: mechint.lens(MODEL, TOKENS, top=odd),
    "lens layers": lambda odd: mechint.lens(MODEL, TOKENS, layers=odd),
    "patchscope": lambda odd: mechint.patchscope(MODEL, odd, TOKENS[0]),
    "patchscope target": lambda odd: mechint.patchscope(MODEL, TOKENS[0], odd),
    "patchscope position": lambda odd: mechint.patchscope(MODEL, TOKENS[0], TOKENS[0], position=odd),
    "patchscope placeholder": lambda odd: mechint.patchscope(MODEL, TOKENS[0], TOKENS[0], placeholder=odd),
    "edit": lambda odd: mechint.edit(MODEL, odd, [(0, 1)], [3], layer=0),
    "edit subjects": lambda odd: mechint.edit(MODEL, TOKENS, odd, [3], layer=0),
    "edit targets": lambda odd: mechint.edit(MODEL, TOKENS, [(0, 1)], odd, layer=0),
    "edit layer": lambda odd: mechint.edit(MODEL, TOKENS, [(0, 1)], [3], layer=odd),
    "sae": lambda odd: mechint.run_sae_analysis(odd, [1]),
    "temporal": lambda odd: mechint.run_temporal_causality_analysis(MODEL, odd),
}


@pytest.mark.parametrize("call", list(CALLS))
def test_an_argument_of_another_type_is_one_clear_line(call: str) -> None:
    refused = 0
    for name, odd in ODD.items():
        try:
            CALLS[call](odd)
        except MechintError:
            refused += 1
        except Exception as error:
            pytest.fail(f"{call} with a {name}: {type(error).__name__}: {error}")
    assert refused


@pytest.mark.parametrize("axis", ["positions", "units"])
def test_indices_are_whole_numbers_of_any_library(axis: str) -> None:
    wanted = edited(**{axis: [1, 3]}).logits
    for alike in (np.array([1, 3]), torch.tensor([1, 3]), (np.int64(1), 3), [torch.tensor(1), 3], range(1, 5, 2)):
        assert torch.equal(edited(**{axis: alike}).logits, wanted)


@pytest.mark.parametrize("axis", ["positions", "units", "rows"])
@pytest.mark.parametrize("mask", [[True], [False, True], np.array([True]), torch.tensor([True]), [0.6], [0, 1.5]])
def test_a_mask_or_a_fraction_is_no_list_of_indices(axis: str, mask: Any) -> None:
    """Truth values were taken as the indices 0 and 1, and fractions cut to whole numbers: other places were edited."""
    with pytest.raises(MechintError, match=f"{axis} is .*not a list of whole numbers; give their indices"):
        edited(**{axis: mask})


def test_a_text_is_no_list_of_texts() -> None:
    """Its characters were taken for prompts."""
    with pytest.raises(MechintError, match="is 'hello', of the type str; give a list of texts"):
        mechint.contrast(MODEL, "hello", "goodbye", "layers.0.resid_post")


def test_a_temperature_below_zero_is_refused() -> None:
    for temperature in (-1.0, float("nan")):
        with pytest.raises(MechintError, match=r"temperature is .*; it must be 0 or more"):
            mechint.generate(MODEL, TOKENS, 2, temperature=temperature)


@pytest.mark.parametrize("name", [SITE, "layers.*.out", "*"])
def test_one_name_or_pattern_stands_for_a_list_of_it(name: str) -> None:
    alone, listed = (mechint.run(MODEL, TOKENS, record=said) for said in (name, [name]))
    assert list(alone.keys()) == list(listed.keys()) and SITE in alone
    assert torch.equal(alone[SITE], listed[SITE])
