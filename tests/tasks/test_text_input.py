"""Text becomes token ids as the tokenizer has it: what goes in front, where an answer begins, what is special."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mechint.models.loading.tokenizer import Encoder, named_tokenizer, read_tokenizer
from mechint.sae.activations.contexts import BOS, BOUNDARY, PADDING, TEXT, TaskContexts, special_kinds
from mechint.tasks import TaskConfig, make_task
from mechint.tasks.files.prompt_file import FactFile
from mechint.tasks.files.word_boundaries import places, space_between
from mechint.tasks.windows import Windows
from mechint.utils.errors import MechintError
from tests.helpers.tokenizers import CORPUS, TOKENIZERS, byte_level, llama_like

PROMPT = "The Eiffel Tower is in the city of"


def one(tokenizer: Any, **said: Any) -> FactFile:
    task = make_task(
        TaskConfig(name="prompt", **{"prompt": PROMPT, "subject": "Eiffel Tower", "answer": "Paris", **said}), tokenizer
    )
    assert isinstance(task, FactFile)
    return task


def file_of(path: Path, *lines: dict[str, Any]) -> TaskConfig:
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8")
    return TaskConfig(name="file", file=str(path))


# --- prompts and answers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize(
    ("prompt", "subject", "answer", "gap"),
    [
        (PROMPT, "Eiffel Tower", "Paris", " "),
        (PROMPT, "Eiffel Tower", " Paris", ""),
        ("在欧洲，法国的首都是：", "法国", "巴黎", ""),
        ('Asked for the capital of Italy he said "', "Italy", "Rome", ""),
        ("The price of bread is $", "bread", "5", ""),
        ("The Eiffel Tower (", "Eiffel Tower", "Paris", ""),
        ('Mars said "Hello"', "Mars", "war", " "),
    ],
)
def test_prompt_and_answer_are_the_tokens_of_the_whole_text(
    kind: str, prompt: str, subject: str, answer: str, gap: str
) -> None:
    tokenizer = TOKENIZERS[kind]()
    start, whole = (tokenizer.encode(text, add_special_tokens=False).ids for text in (prompt, prompt + gap + answer))
    said = {"prompt": prompt, "subject": subject, "answer": answer, "answers": "whole"}
    if whole[: len(start)] != start:
        with pytest.raises(MechintError, match="joins the end of the prompt with its answer"):
            one(tokenizer, **said)
        return
    found = one(tokenizer, **said)
    front = [1] if kind.startswith("llama") else []
    [group] = found.groups(1, "evaluation", 0)
    assert [*group.tokens[0].tolist(), int(group.answers[0, -1])] == front + whole
    first, end = group.subject[0].tolist()  # type: ignore[index]
    spelt = tokenizer.decode(group.tokens[0, first:end].tolist())
    if kind.startswith("byte level"):  # the others have tokens of what is unknown
        assert subject in spelt


def test_what_the_template_puts_in_front_is_there_unless_it_is_left_out() -> None:
    with_bos, without = one(llama_like()), one(llama_like(), bos=False)
    assert with_bos.facts[0].tokens == [1, *without.facts[0].tokens] and with_bos.front == [1] and without.front == []
    assert (
        "every prompt begins with <s>" in with_bos.description and "without the tokenizer's <s>" in without.description
    )
    assert with_bos.facts[0].subject[0] == without.facts[0].subject[0] + 1
    assert "begins" not in one(byte_level()).description
    assert one(llama_like("<s> $A </s>")).facts[0].tokens == with_bos.facts[0].tokens  # nothing goes behind a prompt
    assert one(llama_like(None)).facts[0].tokens == without.facts[0].tokens


def test_tokens_that_join_prompt_and_answer_are_refused_and_no_model_is_blamed() -> None:
    with pytest.raises(MechintError, match="joins the end of the prompt with its answer"):
        one(byte_level(), prompt=PROMPT + " ")
    with pytest.raises(MechintError, match="joins the end of the prompt"):
        one(byte_level(), prompt="The Eiffel Tower is in Par", answer="is", space="no")
    assert one(byte_level(), prompt="The Eiffel Tower is in x", answer="burg", space="no").facts[0].answer


def test_the_space_between_prompt_and_answer() -> None:
    spaced = {
        "Answer:": "Paris",
        "5 $": "now",
        "a 'b'": "c",
        "x =": "1",
        "50%": "of",
        "서울은": "한국",
        "The word is": "狗",
    }
    joined = {
        "«": "a",
        "x=": "1",
        "http://": "x",
        "[": "b",
        "costs €": "5",
        "タワーは": "東京",
        "done": ".",
        "a ": "b",
        "'": "a",
    }
    assert all(space_between(*pair) == " " for pair in spaced.items())
    assert all(space_between(*pair) == "" for pair in joined.items())


def test_the_models_own_answer_as_text() -> None:
    for make in (byte_level, llama_like):
        encoder = Encoder(make())
        token = encoder.behind(PROMPT, " Paris")
        assert (
            token is not None and encoder.continuation(PROMPT, token[0]) == " Paris"[: 6 if len(token) == 1 else None]
        )


# --- subjects --------------------------------------------------------------------------------------------------------


def test_a_subject_is_a_whole_word() -> None:
    assert places("Mars", "Marshal Mars is") == ([8], 1) and places("17", "in 1732") == ([], 1)
    assert places("法国", "法国的首都") == ([0], 0) and places("(", "( [ (") == ([0, 4], 0)
    tokenizer = byte_level()
    mars = one(tokenizer, prompt="Marshal Mars is the god of", subject="Mars", answer="war").facts[0]
    assert tokenizer.decode(mars.tokens[slice(*mars.subject)]) == " Mars"
    with pytest.raises(MechintError, match=r"inside other words alone, not as a whole word"):
        one(tokenizer, prompt="Marshal Mercury is the god of", subject="Mars")


def test_a_subject_that_is_there_twice_needs_a_choice(tmp_path: Path) -> None:
    tokenizer, twice = byte_level(), {"prompt": "( [ ( is in", "subject": "(", "answer": "Paris"}
    with pytest.raises(MechintError, match=r"line 1: the subject '\(' is 2 times .* \"occurrence\" in that line"):
        make_task(file_of(tmp_path / "f", twice), tokenizer)
    with pytest.raises(MechintError, match=r"2 times .*occurrence"):
        one(tokenizer, **twice)
    for number, said in ((1, 0), (2, 2)):
        [fact] = make_task(file_of(tmp_path / "f", {**twice, "occurrence": number}), tokenizer).facts  # type: ignore[attr-defined]
        assert fact == one(tokenizer, **twice, occurrence=number).facts[0].__class__(**{**fact.__dict__})
        assert fact.subject[0] == said or tokenizer.decode(fact.tokens[slice(*fact.subject)]).strip() == "("
    with pytest.raises(MechintError, match="occurrence is 3, and the subject"):
        one(tokenizer, **twice, occurrence=3)


# --- halves ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("subjects", "prompts"), [(3, 400), (2, 11), (40, 41), (5, 5)])
def test_halves_are_by_count_and_no_subject_is_in_both(tmp_path: Path, subjects: int, prompts: int) -> None:
    lines = [
        {
            "prompt": f"The {'very ' * (k % 3)}N{k % subjects} is in city {k} of",
            "subject": f"N{k % subjects}",
            "answer": "x",
        }
        for k in range(prompts)
    ]
    task = make_task(file_of(tmp_path / "f", *lines), byte_level())
    halves = [
        [int(c) for group in task.groups(999, split, 0) for c in group.template]
        for split in ("discovery", "evaluation")
    ]
    largest = -(-prompts // subjects)
    assert sum(map(len, halves)) == prompts and abs(len(halves[0]) - len(halves[1])) <= largest
    assert not set(halves[0]) & set(halves[1]) and all(halves)
    assert len(set(halves[1])) >= len(set(halves[0]))
    assert sum(len(group) for group in task.groups(999, "every", 0)) == prompts
    back = make_task(file_of(tmp_path / "g", *lines[::-1]), byte_level())
    assert {int(c) for group in back.groups(999, "discovery", 0) for c in group.template} == set(halves[0])


def test_prompts_of_one_subject_are_dealt_out(tmp_path: Path) -> None:
    lines = [{"prompt": f"The N is in city {k} of", "subject": "N", "answer": "x"} for k in range(9)]
    task = make_task(file_of(tmp_path / "f", *lines), byte_level())
    sizes = [[len(set(g.template.tolist())) for g in task.groups(99, s, 0)] for s in ("discovery", "evaluation")]
    assert sorted(map(sum, sizes)) == [4, 5] and "all have one subject" in task.description


# --- tokenizers ------------------------------------------------------------------------------------------------------


def test_without_a_tokenizer_bytes_are_ids_of_256_tokens_alone(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("the city of Paris " * 300)
    config = {"name": "text", "text": str(tmp_path / "t.txt"), "length": 16}
    for vocabulary in (300, 257, 50280):
        with pytest.raises(MechintError, match=f"the model has {vocabulary} tokens and no tokenizer"):
            make_task(TaskConfig(**config), None, vocabulary)  # type: ignore[arg-type]
        assert make_task(TaskConfig(**config, tokenizer="bytes"), None, vocabulary).vocab_size == 256  # type: ignore[arg-type]
    assert make_task(TaskConfig(**config), None, 256).tokenizer is None  # type: ignore[arg-type]
    with pytest.raises(MechintError, match="no tokenizer"):
        make_task(TaskConfig(name="prompt", prompt="a b", subject="a", answer="c"), None, 256)


def test_a_tokenizer_is_a_file_of_any_name_or_a_directory_and_fits_the_model(tmp_path: Path) -> None:
    made = byte_level()
    made.save(str(tmp_path / "tok.json"))
    size = made.get_vocab_size()
    assert named_tokenizer(str(tmp_path / "tok.json"), size).to_str() == made.to_str()
    with pytest.raises(MechintError, match=f"token ids up to {size - 1}, but the model's vocabulary is {size - 1}"):
        named_tokenizer(str(tmp_path / "tok.json"), size - 1)
    with pytest.raises(MechintError, match="no such file"):
        named_tokenizer(str(tmp_path / "gone.json"))
    with pytest.raises(MechintError, match=r"the directory has no tokenizer\.json"):
        named_tokenizer(str(tmp_path))
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(MechintError, match="is not a tokenizer"):
        named_tokenizer(str(tmp_path / "bad.json"))


def test_vocabulary_and_merges_are_read_as_transformers_reads_them(tmp_path: Path) -> None:
    raw = json.loads(byte_level().to_str())["model"]
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "vocab.json").write_text(json.dumps(raw["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in raw["merges"]) + "\n")
    text = CORPUS[0] + CORPUS[1]
    assert read_tokenizer(tmp_path).encode(text).ids == byte_level().encode(text).ids
    (tmp_path / "merges.txt").write_text("#v\nqqq\n")
    with pytest.raises(MechintError, match="transformers can't make a tokenizer of it"):
        read_tokenizer(tmp_path)


def test_special_tokens_are_those_that_the_tokenizer_flags(tmp_path: Path) -> None:
    tokenizer = byte_level(special=("<|endoftext|>", "<s>", "<pad>", "<|im_start|>"))
    tokenizer.add_tokens(["</s>"])  # a token of text that is only named like a special one
    names = ["<|endoftext|>", "<s>", "<pad>", "<|im_start|>", "</s>"]
    ids = torch.tensor([[tokenizer.token_to_id(name) for name in names] + tokenizer.encode(" Paris").ids])
    assert special_kinds(ids, tokenizer)[0, :6].tolist() == [BOUNDARY, BOS, PADDING, BOUNDARY, TEXT, TEXT]
    assert not special_kinds(ids, None).any()
    tokenizer.save(str(tmp_path / "t.json"))
    (tmp_path / "t.txt").write_text("<|endoftext|>".join(CORPUS))
    config = TaskConfig(name="text", text=str(tmp_path / "t.txt"), length=16, tokenizer=str(tmp_path / "t.json"))
    tokens, kinds = TaskContexts(make_task(config), "train", 64, 0).batch(0)
    assert (tokens == 0).any() and bool((kinds[tokens == 0] == BOUNDARY).all())
    text = make_task(TaskConfig(name="text", text=str(tmp_path / "t.txt"), length=16), llama_like())
    tokens, kinds = TaskContexts(text, "train", 64, 0).batch(0)
    assert bool((kinds[:, 0] == BOS).all()) and bool((tokens[:, 0] == 1).all())


def test_windows_of_a_text_begin_as_its_tokenizer_does(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("\n".join(CORPUS))
    config = TaskConfig(name="text", text=str(tmp_path / "t.txt"), length=16)
    task = make_task(config, llama_like())
    prompts = task.sample(8, "evaluation", 0)
    whole = llama_like().encode("\n".join(CORPUS), add_special_tokens=False).ids
    windows = {tuple(whole[k : k + 16]) for k in range(len(whole) - 15)}
    assert prompts.tokens.shape == (8, 16) and prompts.positions[0].tolist() == list(range(1, 16))
    for row, answers in zip(prompts.tokens.tolist(), prompts.answers.tolist(), strict=True):
        assert row[0] == 1 and row[2:] == answers[:-1] and (*row[1:], answers[-1]) in windows
    own = Windows(CORPUS, 12, llama_like()).sample(4, "train", 0)
    assert own.tokens.shape == (4, 12) and own.twins is not None and bool((own.twins[:, 0] == 1).all())


def test_a_long_text_in_pieces_has_the_tokens_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from mechint.tasks import text as module

    whole = "\n".join(CORPUS)
    monkeypatch.setattr(module, "PIECE", 700)
    for make in (byte_level, llama_like):
        expected = make().encode(whole, add_special_tokens=False).ids
        assert module.tokenise(whole, make()).tolist() == expected


# --- files of tokens -------------------------------------------------------------------------------------------------


def header(magic: int, version: int, count: int) -> bytes:
    values = np.zeros(256, "<i4")
    values[:3] = magic, version, count
    return values.tobytes()


def test_files_of_tokens(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 120_000, 6000)
    small = ids % 60_000

    def read(data: bytes, vocabulary: int | None) -> Any:
        (tmp_path / "t.bin").write_bytes(data)
        return make_task(TaskConfig(name="text", text=str(tmp_path / "t.bin"), length=16), None, vocabulary)

    assert read(ids.astype("<u4").tobytes(), 128_256).tokens.tolist() == ids.tolist()
    assert read(small.astype("<u2").tobytes(), 65_536).tokens.tolist() == small.tolist()
    for magic, version, dtype in ((20240520, 1, "<u2"), (20240801, 7, "<u4")):
        task = read(header(magic, version, 6000) + small.astype(dtype).tobytes(), 128_256)
        assert task.tokens.tolist() == small.tolist() and "llm.c" in task.description
    for data, vocabulary, says in (
        (small.astype("<u4").tobytes(), 50_257, "tokens of 32 bits"),
        (small.astype("<u2").tobytes(), 128_256, "has token"),
        (small.astype("<u2").tobytes(), 50_257, r"has token 59\d\d\d, and the model's vocabulary 50257"),
        (header(20240520, 3, 6000) + small.astype("<u2").tobytes(), None, "version 3"),
        (header(20240520, 1, 7000) + small.astype("<u2").tobytes(), None, "of 7000 tokens, and 13024 bytes"),
        (b"\x93NUMPY" + small.astype("<u2").tobytes(), None, "a NumPy array"),
    ):
        with pytest.raises(MechintError, match=says):
            read(data, vocabulary)
