"""``mechint.edit``: an edit in a notebook, the checkpoint that it saves, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mechint
from mechint.utils.errors import MechintError
from mechint.utils.rundir import weights_digest
from tests.helpers.builders import tiny_gpt2, tiny_llama, tiny_mamba, tokens

TEXT = [tokens(20, 8)]


def with_text(family: Any = tiny_mamba) -> Any:
    """A model with a tokenizer, and as many tokens as that has."""
    pytest.importorskip("tokenizers")
    from tests.helpers.tokenizers import byte_level

    made = byte_level()
    model = family(1, vocab_size=made.get_vocab_size())
    model.tokenizer = made
    return model


@pytest.mark.parametrize("family", [tiny_mamba, tiny_gpt2, tiny_llama])
def test_an_edit_changes_the_answer_inside_alone_and_saves(family: Any, tmp_path: Path) -> None:
    model, ids = family(1), tokens(1, 5)
    digest, before = weights_digest(model), model(ids)[0, -1].softmax(-1).detach()
    new = int(before.argsort()[-3])
    found = mechint.edit(model, ids, [(1, 3)], new, layer=0, text=TEXT, steps=20)
    assert weights_digest(model) == digest
    [row] = found.rows()
    assert row["new_before"] == pytest.approx(float(before[new]), abs=1e-6) and row["new_after"] > row["new_before"]
    with found.applied() as edited:
        after = edited(ids)[0, -1].softmax(-1).detach()
        assert float(after[new]) == pytest.approx(row["new_after"], abs=1e-6)
        state = {name: value.clone() for name, value in edited.state_dict().items()}
    assert weights_digest(model) == digest and "P(new)" in repr(found)
    saved = mechint.load(found.save(tmp_path / "edited"))
    assert all(torch.equal(state[name], value) for name, value in saved.state_dict().items())
    with pytest.raises(MechintError, match="holds a model already"):
        found.save(tmp_path / "edited")


@pytest.mark.slow
def test_transformers_opens_what_is_saved(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model, ids = tiny_gpt2(1), tokens(1, 5)
    found = mechint.edit(model, ids, [(1, 3)], 4, layer=1, text=TEXT, steps=2)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(found.save(tmp_path / "x"))
    with found.applied(), torch.no_grad():
        assert torch.allclose(theirs(ids).logits, model(ids), atol=1e-4)


def test_text_is_read_and_memit_takes_several() -> None:
    model = with_text()
    one = mechint.edit(model, "ab cd", "ab", "z", layer=0, map="in_x", text=TEXT, steps=2)
    assert one.facts[0][0] == "ab cd" and one.facts[0][2] == "z" and str(one.updates[0][0]) == "layers.0.in_x"
    both = mechint.edit(
        model, ["ab cd", "cd ab"], ["ab", "cd"], ["z", "y"], layer=1, text=TEXT, method="memit", steps=2, window=2,
        weight=0.1,
    )  # fmt: skip
    assert [one.layer for one, _ in both.updates] == [0, 1] and len(both.rows()) == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"subjects": "x"}, "subject 'x' is not in the prompt"),
        ({"prompts": "ab ab", "subjects": "ab"}, "2 times in the prompt"),
        ({"subjects": ["ab", "ab"]}, "1 prompts and 2 subjects"),
        ({"targets": ["y", "z"]}, "1 prompts and 2 targets"),
        ({"targets": 10_000}, "no token 10000"),
        ({"layer": 5}, "no layer 5"),
        ({"map": "down_proj"}, "has no map 'down_proj'"),
        ({"method": "MEND"}, "take rome or memit"),
        ({"method": "memit", "map": "in_x"}, "not added to the residual stream"),
        ({"prompts": ["ab cd", "cd ab"], "subjects": ["ab", "cd"], "targets": ["y", "z"]}, "ROME edits one fact"),
        ({"text": [tokens(1, 5)]}, "at least 56 tokens"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(change: dict[str, Any], reason: str) -> None:
    asked: dict[str, Any] = {"prompts": "ab cd", "subjects": "ab", "targets": "z", "layer": 0, "text": TEXT, **change}
    with pytest.raises(MechintError, match=reason) as found:
        mechint.edit(with_text(), asked.pop("prompts"), asked.pop("subjects"), asked.pop("targets"), **asked)
    assert "\n" not in str(found.value)


def test_a_target_that_the_model_says_and_subjects_of_ids_are_refused() -> None:
    model, ids = tiny_mamba(1), tokens(1, 5)
    says = int(model(ids)[0, -1].argmax())
    with pytest.raises(MechintError, match=f"already says '{says}'"):
        mechint.edit(model, ids, [(1, 3)], says, layer=0, text=TEXT)
    for subject in ((3, 3), (2, 9), (1,)):
        with pytest.raises(MechintError, match="not in a prompt of 5 token ids"):
            mechint.edit(model, ids, [subject], 4, layer=0, text=TEXT)  # type: ignore[list-item]
    with pytest.raises(MechintError, match="no tokenizer"):
        mechint.edit(model, "ab", "a", 4, layer=0, text=TEXT)
    with pytest.raises(MechintError, match="give a token id"):
        mechint.edit(model, ids, [(1, 3)], "z", layer=0, text=TEXT)
