"""``mechint.lens``: rows against a run by hand, the printed table, and what is refused in one line."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mechint
from mechint.analyses.lens import tuned_files
from mechint.analyses.lens.tuned import TunedLens
from mechint.models.loading.tokenizer import Encoder
from mechint.utils.errors import MechintError
from tests.helpers.builders import tiny_gpt2, tiny_mamba, tokens


def with_text() -> Any:
    """A model with a tokenizer, and as many tokens as that has."""
    pytest.importorskip("tokenizers")
    from tests.helpers.tokenizers import byte_level

    made = byte_level()
    model = tiny_gpt2(1, vocab_size=made.get_vocab_size(), n_ctx=32)
    model.tokenizer = made
    return model


def test_rows_are_those_of_a_run_and_contributions_add_up() -> None:
    model, ids = tiny_mamba(1, dtype=torch.float64), tokens(2, 5)
    found = mechint.lens(model, ids, answers=[3, 4], wrong=[5, 6])
    logits = model(ids).detach()
    last = [row for row in found.rows() if row["site"] == "resid_post" or row["site"] == "layers.1.resid_post"]
    assert len(last) == 10
    for row in last:
        said = logits[row["prompt"], row["position"]]
        assert row["top"] == str(int(said.argmax())) and row["token"] == str(int(ids[row["prompt"], row["position"]]))
        assert row["probability"] == pytest.approx(float(said.softmax(-1)[int(row["answer"])]))
        assert row["top_probability"] == pytest.approx(float(said.softmax(-1).max()))
        assert row["kl"] == pytest.approx(0, abs=1e-12)
    for n, (right, wrong) in enumerate(((3, 5), (4, 6))):
        rows = [row for row in found.contribution_rows() if row["prompt"] == n]
        total = float(logits[n, -1, right] - logits[n, -1, wrong])
        assert sum(row["contribution"] for row in rows) == pytest.approx(total, abs=1e-10)
        assert rows[0]["total"] == pytest.approx(total) and rows[0]["part"] == "embed"


@pytest.mark.parametrize("layers", ["1", 1, [1]])
def test_some_layers_are_read_as_among_all(layers: Any) -> None:
    model, ids = tiny_gpt2(1, dtype=torch.float64), tokens(2, 5)
    every = mechint.lens(model, ids, answers=[3, 4])
    found = mechint.lens(model, ids, answers=[3, 4], layers=layers)
    assert found.rows() == [row for row in every.rows() if row["layer"] == 1] != []
    assert found.contribution_rows() == every.contribution_rows()
    below = mechint.lens(model, ids, answers=[3, 4], layers="0")  # without the last layer, which KL is taken from
    assert below.rows() == [row for row in every.rows() if row["layer"] == 0] != []


@pytest.mark.parametrize(("layers", "problem"), [
    ("0,7", r"^lens: no layer 7; this model has 2 \(0 to 1\)$"), ([7], "no layer 7"), ("-1", "'-1' is not a layer"),
    ("", "not a layer"), ("all,0", "'all' is not a layer"), ([], "not a layer"),
])  # fmt: skip
def test_layers_that_there_are_not(layers: Any, problem: str) -> None:
    with pytest.raises(MechintError, match=problem):
        mechint.lens(tiny_gpt2(1), tokens(1, 4), layers=layers)


def test_texts_of_several_lengths_and_the_models_own_answer() -> None:
    model = with_text()
    found = mechint.lens(model, ["The Eiffel Tower is in", "Paris Hilton says that the"], top=2)
    encoder = Encoder(model.tokenizer)
    ids = encoder.prompt("The Eiffel Tower is in").ids
    said = encoder.decode(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert found.prompts[0].answer == said and len(found.prompts[0].tokens) == len(ids)
    printed = repr(found)
    assert "embeddings" in printed and "layer 1 mid" in printed and "rank" in printed and "\n\n" in printed
    assert printed.splitlines()[1].startswith("layer 1 ")  # the last layer on top
    named = mechint.lens(model, "The Eiffel Tower is in the city of", " Paris")
    assert named.prompts[0].answer == encoder.decode(encoder.ids(" Paris")[0])
    assert "logit " in repr(named)


def test_every_token_of_the_vocabulary_may_be_the_answer() -> None:
    model, last = tiny_mamba(1), len(tiny_mamba(1).embeddings) - 1
    for answer in (0, last):
        assert {row["answer"] for row in mechint.lens(model, tokens(1, 4), answers=[answer]).rows()} == {str(answer)}
    for answer in (-1, last + 1):
        with pytest.raises(MechintError, match=f"this model has 0 to {last}"):
            mechint.lens(model, tokens(1, 4), answers=[answer])


def test_a_tuned_lens_is_read_too(tmp_path: Any) -> None:
    model = tiny_mamba(1)
    tuned_files.save(TunedLens(torch.zeros(2, 10, 10), torch.zeros(2, 10)), model, tmp_path)
    found = mechint.lens(model, tokens(1, 4), tuned=tmp_path)
    by = lambda name: [row["probability"] for row in found.rows() if row["lens"] == name]
    assert by("tuned") == pytest.approx(by("logit")) and "tuned lens" in repr(found)


def test_many_prompts_are_counted() -> None:
    assert repr(mechint.lens(tiny_mamba(), tokens(5, 3))).endswith("… and 2 more prompts")


@pytest.mark.parametrize(
    ("asked", "problem"),
    [(("text",), "has no tokenizer to read text with"), (([],), "there is no prompt"),
     ((tokens(2, 3), [1]), "answers has 1 entries, and there are 2 prompts"),
     ((tokens(1, 3), 99), r"answers has the token 99; this model has 0 to 23"),
     ((tokens(1, 3), -1), "answers has the token -1"), ((tokens(1, 3), 1, " x"), "wrong is text, and the prompts are"),
     ((torch.full((1, 2), 99),), "99")],
)  # fmt: skip
def test_what_cannot_be_read_is_refused(asked: tuple[Any, ...], problem: str) -> None:
    with pytest.raises(MechintError, match=problem):
        mechint.lens(tiny_mamba(), *asked)


def test_texts_without_tokens_are_refused() -> None:
    model = with_text()
    with pytest.raises(MechintError, match="without tokens"):
        mechint.lens(model, "")
    with pytest.raises(MechintError, match="no token of its own behind"):
        mechint.lens(model, "The city of", "")
    with pytest.raises(MechintError, match="top is 0"):
        mechint.lens(model, "The city of", top=0)
