"""Texts and sentences: tasks in the tokens of a tokenizer."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from mechint.tasks import SPLITS, Prompts, TaskConfig, greater_than, indirect_object, make_task, pooled, sentences
from mechint.utils.errors import MechintError
from tests.helpers.task_configs import CONFIGS

# --- text ------------------------------------------------------------------------------------------------------------


def test_text_asks_for_every_next_byte(tmp_path: Path) -> None:
    text = "".join(f"line {i} é\n" for i in range(400))
    path = tmp_path / "some.txt"
    path.write_text(text, encoding="utf-8")
    task = make_task(TaskConfig(name="text", text=str(path), length=16))
    prompts = task.sample(50, "evaluation", 0)
    data = text.encode()
    for tokens, answers in zip(prompts.tokens.tolist(), prompts.answers.tolist(), strict=True):
        assert bytes(tokens[1:]) == bytes(answers[:-1]) and bytes([*tokens, answers[-1]]) in data
    assert task.vocab_size == 256 and not task.has_twins and prompts.twins is None
    assert (task.decode(97), task.decode(200)) == ("'a'", "byte 200")


def test_text_blocks_of_the_splits_share_no_byte(tmp_path: Path) -> None:
    path = tmp_path / "numbers.txt"  # every word is there once, so a window says where it is from
    path.write_text(" ".join(f"{i:05d}" for i in range(4000)))
    task = make_task(TaskConfig(name="text", text=str(path), length=12))
    words = {
        split: {
            word
            for window in task.sample(2000, split, 0).tokens.tolist()
            for word in bytes(window).decode().split()
            if len(word) == 5
        }
        for split in SPLITS
    }
    assert not words["train"] & words["discovery"] and not words["train"] & words["evaluation"]
    assert not words["discovery"] & words["evaluation"] and min(map(len, words.values())) > 100


def test_text_takes_the_models_tokenizer(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "to": 1, "be": 2, "or": 3, "not": 4}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    path = tmp_path / "hamlet.txt"
    path.write_text("to be or not to be " * 400)
    config = TaskConfig(name="text", text=str(path), length=6)
    task = make_task(config, tokenizer, vocab_size=8)
    tokens = task.sample(4, "discovery", 0).tokens
    assert task.vocab_size == 5 and int(tokens.max()) == 4 and task.decode(4) == "not" and "token" in task.description
    with pytest.raises(MechintError, match="5 different tokens but the model's vocabulary is 4"):
        make_task(config, tokenizer, vocab_size=4)


def test_the_fingerprint_is_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    prints = []
    for letter in "ab":
        path.write_text(letter * 5000)
        prints.append(make_task(TaskConfig(name="text", text=str(path), length=8)).fingerprint)
    assert prints[0] != prints[1] and make_task(CONFIGS["recall"]).fingerprint == ""


# --- sentences -------------------------------------------------------------------------------------------------------


def word_tokenizer(leave_out: str = "") -> Any:
    """A byte-pair tokenizer whose tokens are the words of the tasks of sentences, with their spaces."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = [w for frame in indirect_object.FRAMES for w in frame.split() if w not in indirect_object.SLOTS]
    words += [*indirect_object.NAMES, *indirect_object.PLACES, *indirect_object.OBJECTS]
    kept = [word for word in dict.fromkeys(words) if word not in leave_out.split()]
    kept = [word if word in sentences.GLUED else "\u0120" + word for word in kept]
    kept += [first for frame in indirect_object.FRAMES if (first := frame.split()[0]) not in leave_out.split()]
    letters = [chr(c) for c in range(33, 127)] + ["\u0120"]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*letters, *kept]))}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def test_sentences_are_in_the_models_tokens() -> None:
    tokenizer = word_tokenizer(leave_out="Mary Today drink")
    task = make_task(CONFIGS["indirect_object"], tokenizer)
    prompts = task.sample(300, "evaluation", 0)
    assert prompts.twins is not None and prompts.wrong is not None
    for row in (*prompts.tokens, *prompts.twins):  # text and tokens are one thing said twice
        text = "".join(tokenizer.id_to_token(int(token)) for token in row).replace("\u0120", " ")
        assert tokenizer.encode(text).ids == row.tolist() and not {"Mary", "Today", "drink"} & set(text.split())
    plain = make_task(CONFIGS["indirect_object"])
    assert " in 8 sentences" in plain.description and " in 7 sentences" in task.description
    assert task.length == plain.length and task.vocab_size <= tokenizer.get_vocab_size()


def test_sentences_begin_as_their_tokenizer_does() -> None:
    from tokenizers import processors

    plain, made = word_tokenizer(), word_tokenizer()
    made.add_special_tokens(["<s>"])
    bos = made.token_to_id("<s>")
    made.post_processor = processors.TemplateProcessing(single="<s> $A", pair="$A $B", special_tokens=[("<s>", bos)])
    config = TaskConfig(name="indirect_object")
    bare, begun = (make_task(config, t).sample(9, "train", 0) for t in (plain, made))
    assert begun.tokens[:, 1:].tolist() == bare.tokens.tolist() and set(begun.tokens[:, 0].tolist()) == {bos}
    assert bool((begun.positions == bare.positions + 1).all()) and bool((begun.answers == bare.answers).all())
    task = make_task(config, made)
    assert (
        task.length == begun.tokens.shape[1]
        and task.roles(begun)[1][:, 1:].tolist() == make_task(config, plain).roles(bare)[1].tolist()
    )


@pytest.mark.parametrize(
    ("missing", "line"),
    [
        (" ".join(indirect_object.NAMES[11:]), "only 11 of its 58 names are single tokens of the model's tokenizer"),
        ("the", "none of its sentences consists of single tokens"),
        (" ".join([*indirect_object.PLACES[4:], *indirect_object.OBJECTS[4:], "and When"]), "none of its sentences"),
        (" ".join(indirect_object.PLACES[3:]), "only 3 of its 12 places"),
        (
            " ".join([*indirect_object.PLACES[4:], *indirect_object.OBJECTS[4:], "walked worked met got came stayed"]),
            "only 32 of its sentences",
        ),
    ],
)
def test_a_tokenizer_without_the_words_is_refused(missing: str, line: str) -> None:
    with pytest.raises(MechintError) as caught:
        make_task(CONFIGS["indirect_object"], word_tokenizer(leave_out=missing))
    assert line in str(caught.value) and "name it in file" in str(caught.value) and "\n" not in str(caught.value)


def test_years_in_the_models_tokens() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    def tokenizer(*years: str) -> Any:
        words = [w for w in greater_than.FRAME.split() if w not in greater_than.SLOTS][1:]
        words += [*greater_than.NOUNS, *greater_than.CENTURIES]
        digits = [str(digit) for digit in range(10)]
        known = ["The", "\u0120", *digits, *(f"\u0120{word}" for word in words), *years]
        found = Tokenizer(models.BPE({w: k for k, w in enumerate(dict.fromkeys(known))}, [], ignore_merges=True))
        by_two = pre_tokenizers.Split(Regex(r" ?[0-9]{2}"), "isolated")
        found.pre_tokenizer = pre_tokenizers.Sequence([by_two, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        return found

    from tokenizers import Regex

    two = [f"{year:02d}" for year in range(100)]
    task = make_task(CONFIGS["greater_than"], tokenizer(*two))
    prompts = task.sample(50, "evaluation", 0)
    for row in prompts.tokens.tolist():
        text = "".join(task.words.tokenizer.id_to_token(t) for t in row).replace("\u0120", " ")  # type: ignore[attr-defined]
        assert task.words.tokenizer.encode(text).ids == row  # type: ignore[attr-defined]
    with pytest.raises(MechintError, match="no single tokens for two-digit years"):
        make_task(CONFIGS["greater_than"], tokenizer())


def test_any_of_several_right_answers_counts() -> None:
    logits = torch.zeros(2, 1, 6)
    logits[0, 0, 2], logits[1, 0, 4] = 3.0, 3.0
    prompts = Prompts(
        torch.zeros(2, 1, dtype=torch.long), torch.zeros(2, 1, dtype=torch.long), torch.tensor([[1], [1]]), None, None,
        torch.arange(2), accepted=torch.tensor([[[1, 2, -1]], [[1, 2, 3]]]),
    )  # fmt: skip
    assert prompts.right(logits).tolist() == [[True], [False]]
    expected = [[float(torch.tensor([0.0, 3.0]).logsumexp(0))], [float(torch.zeros(3).logsumexp(0))]]
    torch.testing.assert_close(pooled(logits, prompts.good()), torch.tensor(expected))
    one = dataclasses.replace(prompts, accepted=None)
    assert torch.equal(pooled(logits, one.good()), logits[:, :, 1])


def test_a_tokenizer_that_joins_words_is_refused() -> None:
    tokenizer = word_tokenizer()
    join = lambda text: text.replace(" went to", " wentto")

    class Joins:
        def encode(self, text: str, add_special_tokens: bool) -> Any:
            return tokenizer.encode(join(text), add_special_tokens=add_special_tokens)

    with pytest.raises(MechintError, match="the model's tokenizer joins words of 'When Mary and John went to"):
        make_task(CONFIGS["indirect_object"], Joins())


def test_roles_of_indirect_objects() -> None:
    task = make_task(CONFIGS["indirect_object"])
    prompts = task.sample(100, "train", 0)
    names, role = task.roles(prompts)
    for row, said, twin in zip(role.tolist(), prompts.tokens.tolist(), prompts.twins.tolist(), strict=True):  # type: ignore[union-attr]
        by_role = {name: [token for token, r in zip(said, row, strict=True) if names[r] == name] for name in names}
        [answer], [wrong], [again] = (by_role[n] for n in ("indirect object", "subject", "subject again"))
        assert answer != wrong == again and row[-1] == 5
        assert [i for i in range(len(said)) if said[i] != twin[i]] == [row.index(4)]  # the twin differs there alone
        assert all(row[i] == 3 for i in range(row.index(4) + 1, len(row) - 1))
