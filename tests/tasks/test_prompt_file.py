"""Prompts of a file: what is read, where the subject is, and every bad line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from mechint.analyses.base import analyses
from mechint.analyses.loader import PromptLoader
from mechint.analyses.tracing.analyzer import CausalTracer
from mechint.analyses.tracing.options import TraceConfig
from mechint.tasks import TaskConfig, make_task, task_of
from mechint.utils.errors import MechintError
from tests.helpers.builders import tiny_gpt2, tiny_mamba

WORDS = "The Tower is in city of Par ĠTower Ġis Ġin Ġcity Ġof ĠPar ĠRome ĠThe ĠTaj ĠMahal Colosseum Ġthe"


def tokenizer() -> Any:
    """Words with the space before them, as the byte-level tokenizers of the models write it; unknown is token 0."""
    vocabulary = {word: k for k, word in enumerate(dict.fromkeys(["?", "Ġ", *WORDS.split(), "ĠEiffel", "is"]))}
    found = Tokenizer(models.WordPiece(vocabulary, unk_token="?", continuing_subword_prefix=""))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return found


FACT = {"prompt": "The Eiffel Tower is in the city of", "subject": "Eiffel Tower", "answer": "Paris"}
TWIN = {**FACT, "prompt": "The Eiffel Tower is in", "twin_prompt": "The Taj Mahal is in", "twin_answer": "Rome"}


def task(tmp_path: Path, *lines: Any, whole: bool = False) -> Any:
    path = tmp_path / "facts.jsonl"
    text = json.dumps(lines) if whole else "\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines)
    path.write_text(text)
    return make_task(TaskConfig(name="file", file=str(path)), tokenizer())


def test_a_fact_and_its_twin(tmp_path: Path) -> None:
    found = task(tmp_path, "", TWIN)
    prompts = found.groups(4, "evaluation", 0)[0]
    words = [found.tokenizer.id_to_token(int(token)) for token in prompts.tokens[0]]
    assert words == ["The", "ĠEiffel", "ĠTower", "Ġis", "Ġin"]
    assert prompts.subject.tolist() == [[1, 3]] and found.has_twins and len(prompts) == 1
    assert found.tokenizer.id_to_token(int(prompts.answers)) == "ĠPar"
    assert found.tokenizer.id_to_token(int(prompts.wrong)) == "ĠRome"
    assert "first is asked for" in found.description
    assert [found.roles(prompts)[0][k] for k in found.roles(prompts)[1][0]] == [
        "before", "first subject token", "last subject token", "further tokens", "last token",
    ]  # fmt: skip


def test_whole_answers_are_read_on_token_by_token(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    long = {**TWIN, "answer": "city of Rome"}
    path.write_text("\n".join(map(json.dumps, (TWIN, long))))
    found = make_task(TaskConfig(name="file", file=str(path), answers="whole"), tokenizer())
    assert found.whole and "all are asked for" in found.description and found.length == 7
    assert [group.tokens.shape[1] for group in found.groups(9, "every", 0)] == [6, 7]
    grown = found.prompts(found.facts[1:])
    words = [found.tokenizer.id_to_token(int(token)) for token in grown.tokens[0]]
    twins = [found.tokenizer.id_to_token(int(token)) for token in grown.twins[0]]
    assert words[5:] == twins[5:] == ["Ġcity", "Ġof"] and twins[1:3] == ["ĠTaj", "ĠMahal"]
    assert [found.tokenizer.id_to_token(int(token)) for token in grown.answers[0]] == ["Ġcity", "Ġof", "ĠRome"]
    assert grown.positions.tolist() == [[4, 5, 6]] and grown.wrong is None
    names, role = found.roles(grown)
    assert [names[k] for k in role[0].tolist()][4:] == ["last token", "answer so far", "answer so far"]
    first = make_task(TaskConfig(name="file", file=str(path)), tokenizer())
    assert not first.whole and all(g.answers.shape[1] == 1 for g in first.groups(9, "evaluation", 0))


def test_the_layout_of_known_1000_and_groups_by_length(tmp_path: Path) -> None:
    cities = [f"{'The ' * (1 + k % 3)}Colosseum" for k in range(24)]
    lines = [
        {"known_id": k, "subject": f"{name} {k}", "attribute": "Rome", "prompt": f"{name} {k} is in"}
        for k, name in enumerate(cities)
    ]
    found = task(tmp_path, *lines, whole=True)
    halves = [found.groups(100, split, 0) for split in ("discovery", "evaluation")]
    assert not found.has_twins and sum(len(group) for half in halves for group in half) == 24
    clusters = [{int(c) for group in half for c in group.template} for half in halves]
    assert not clusters[0] & clusters[1]
    assert all(len({group.tokens.shape[1] for group in half}) == len(half) > 1 for half in halves)
    assert len(PromptLoader(found, "evaluation", 5, 2, 0).templates()) == 5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"line 2: Expecting property name"),
        ("[1]", r"line 2 is not an object"),
        ({"subject": "a", "answer": "b"}, r"line 2 has no prompt"),
        ({"prompt": "a b", "subject": "a"}, r"line 2 has no answer"),
        ({"prompt": "a b", "subject": "a", "answer": [5]}, r"line 2: the prompt is text, and the answer is '\[5\]'"),
        ({"prompt": "a b", "subject": 3, "answer": "b"}, r"line 2: the prompt is text, and the subject is '3'; write"),
        (
            {**FACT, "subject": "Big Ben"},
            r"line 2: the subject 'Big Ben' is not in the prompt, whose tokens are \['The",
        ),
        ({**FACT, "subject": FACT["prompt"]}, r"line 2: the whole prompt is its subject"),
        ({**TWIN, "twin_prompt": "The Taj is in"}, r"line 2: the prompt has 5 tokens and its twin 4"),
        ({**TWIN, "twin_answer": ""}, r"line 2 has a twin_prompt and no twin_answer"),
        ({**TWIN, "twin_answer": "Paris"}, r"answers of the same first token"),
    ],
)
def test_bad_lines(tmp_path: Path, line: Any, message: str) -> None:
    with pytest.raises(MechintError, match=message) as caught:
        task(tmp_path, FACT, line)
    assert "\n" not in str(caught.value)


IDS = {"prompt": [5, 3, 8, 2], "subject": [1, 3], "answer": 4, "twin_prompt": [5, 1, 9, 2], "twin_answer": [6]}


def test_a_subject_by_its_characters_is_the_one_that_is_meant(tmp_path: Path) -> None:
    twice = "The Tower is in the Tower of"
    found = task(tmp_path, {"prompt": twice, "subject": [20, 25], "answer": "Paris"})
    by_number = task(tmp_path, {"prompt": twice, "subject": "Tower", "occurrence": 2, "answer": "Paris"})
    assert twice[20:25] == "Tower" and found.facts[0].subject == by_number.facts[0].subject
    assert found.facts[0].cluster == by_number.facts[0].cluster  # the same words are one group


def test_token_ids_need_no_tokenizer_and_are_taken_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "ids.jsonl"
    path.write_text("\n".join(json.dumps({**IDS, "prompt": [5, 3, k, 2]}) for k in range(6)))
    found = make_task(TaskConfig(name="file", file=str(path)))
    [prompts] = found.groups(9, "every", 0)
    assert sorted(prompts.tokens[:, 2].tolist()) == list(range(6)) and prompts.tokens.shape == (6, 4)
    assert prompts.answers.tolist() == [[4]] * 6 and prompts.subject.tolist() == [[1, 3]] * 6
    assert prompts.twins.tolist() == [[5, 1, 9, 2]] * 6 and prompts.wrong.tolist() == [[6]] * 6
    with pytest.raises(MechintError, match=r"ids.jsonl line 1: the token id 9 is not one of the model's 9; prompts"):
        make_task(TaskConfig(name="file", file=str(path)), vocab_size=9)
    assert found.vocab_size == 10  # one more than the largest id of prompts and twins
    assert found.decode(3) == "3" and found.front == ()


def test_groups_stay_in_one_half_and_are_what_intervals_are_over(tmp_path: Path) -> None:
    lines = [{**IDS, "prompt": [5, 3, k, 2], "group": k // 3} for k in range(24)]
    found = task(tmp_path, *lines)
    assert len({fact.cluster for fact in found.facts}) == 8
    by_half = {half: {f.cluster for f, h in zip(found.facts, found.halves, strict=True) if h == half} for half in
               ("discovery", "evaluation")}  # fmt: skip
    assert not by_half["discovery"] & by_half["evaluation"] and all(map(len, by_half.values()))
    with pytest.raises(MechintError, match="all prompts are of one group"):
        task(tmp_path, *[{**line, "group": "same"} for line in lines])


def test_halves_are_those_that_the_lines_name(tmp_path: Path) -> None:
    lines = [{**IDS, "prompt": [5, k, 8, 2], "split": "evaluation" if k % 4 else "discovery"} for k in range(8)]
    for one, missing in (("evaluation", "discovery"), ("discovery", "evaluation")):  # was an error behind the work
        with pytest.raises(MechintError, match=f"no line has the split {missing}; give some of the lines that split"):
            task(tmp_path, *[{**line, "split": one} for line in lines])
    assert len(task(tmp_path, lines[0]).groups(9, "evaluation", 0)[0]) == 1  # one prompt serves as both
    found = task(tmp_path, *lines)
    [discovery] = found.groups(99, "discovery", 0)
    assert sorted(discovery.tokens[:, 1].tolist()) == [0, 4]
    with pytest.raises(MechintError, match=r"line 3 has no split, and other lines have one"):
        task(tmp_path, *lines[:2], {key: value for key, value in lines[2].items() if key != "split"})
    with pytest.raises(MechintError, match=r"line 1 and .*line 2 are of one group and of different splits"):
        task(tmp_path, *[{**line, "group": 0} for line in lines])


def test_labels_and_roles_of_the_lines_are_those_of_their_prompts(tmp_path: Path) -> None:
    lines = [
        {"prompt": f"The {name} is in the city of", "subject": name, "answer": "Paris",
         "labels": {"kind": kind, "year": k}, "roles": {"verb": "is", "place": [len(name) + 8, len(name) + 19]}}
        for k, (name, kind) in enumerate([("Tower", "b"), ("Taj Mahal", "a"), ("Colosseum", "b")])
    ]  # fmt: skip
    found = task(tmp_path, *lines)
    for prompts in found.groups(9, "every", 0):
        labels, (names, roles) = found.labels(prompts), found.roles(prompts)
        assert names[-2:] == ("verb", "place")
        for row, tokens in enumerate(prompts.tokens.tolist()):
            fact = found.by_tokens[tuple(tokens)]
            words = [found.decode(token).strip(" Ġ") for token in tokens]
            of = lambda role: [w for w, r in zip(words, roles[row].tolist(), strict=True) if r == role]  # noqa: B023
            assert of(len(names) - 2) == ["is"] and of(len(names) - 1) == ["in", "the", "city"]
            said = dict(fact.labels)
            assert labels["kind"][row] == ["a", "b"].index(said["kind"]) and labels["year"][row] == said["year"]


def test_a_prompt_has_one_value_of_each_label_and_a_token_one_role(tmp_path: Path) -> None:
    """Two lines of one prompt had both the labels and the roles of the last line."""
    one = {**IDS, "labels": {"x": 0}, "roles": {"head": [0, 1]}}
    with pytest.raises(MechintError, match=r"line 1 and .*line 3 have the same prompt and other labels"):
        task(tmp_path, one, {**one, "prompt": [5, 3, 7, 2]}, {**one, "answer": 7, "labels": {"x": 1}})
    with pytest.raises(MechintError, match="have the same prompt and other roles"):
        task(tmp_path, one, {**one, "roles": {"head": [3, 4]}})
    assert len(task(tmp_path, one, {**one, "answer": 7}).facts) == 2  # another answer is another question
    with pytest.raises(MechintError, match="the role 'last token' has the name of one that every prompt has"):
        task(tmp_path, {**one, "roles": {"last token": [0, 1]}})
    with pytest.raises(MechintError, match="the roles 'a' and 'b' have a token in common"):
        task(tmp_path, {**one, "roles": {"a": [0, 2], "b": [1, 3]}})
    assert task(tmp_path, {**one, "roles": {"a": [0, 2], "b": [2, 3]}}).roles


def test_prompts_longer_than_a_model_reads_are_named_with_their_line_before_any_work(tmp_path: Path) -> None:
    task(tmp_path, IDS, {**IDS, "prompt": [5, *range(16)], "twin_prompt": [6, *range(16)]})
    asked = TaskConfig(name="file", file=str(tmp_path / "facts.jsonl"))
    with pytest.raises(MechintError, match=r"line 2: 17 positions are too many: this model has embeddings for 16"):
        task_of(tiny_gpt2(), asked)
    with pytest.raises(MechintError, match=r"task recall: prompts of 31 tokens: 31 positions are too many"):
        task_of(tiny_gpt2(), TaskConfig(pairs=8, keys=8, values=8))
    assert [task_of(model, asked).length for model in (tiny_gpt2(n_ctx=17), tiny_mamba())] == [17, 17]


@pytest.mark.parametrize(
    ("change", "words"),
    [({"subject": [2, 2]}, r"the subject is \[2, 2\], and the prompt has 4 tokens"),
     ({"subject": "x"}, r"the subject is 'x'; give \[start, end\] in tokens"),
     ({"subject": [0, 4]}, "the whole prompt is its subject"),
     ({"prompt": [5, True]}, "the prompt is token ids, and the prompt is"),
     ({"answer": "Paris"}, "the prompt is token ids, and the answer is 'Paris'"),
     ({"twin_prompt": [1, 2]}, "the prompt has 4 tokens and its twin 2"),
     ({"occurrence": 1}, "has the key 'occurrence' beside a prompt of token ids"),
     ({"group": ["a"]}, "group is"), ({"split": "train"}, "split is 'train'; give discovery or evaluation"),
     ({"labels": [1]}, r"labels is '?\[1\]"), ({"labels": {"a": None}}, "the label 'a' is"),
     ({"roles": {"a": "word"}}, r"the role 'a' is 'word'; give \[start, end\] in tokens"),
     ({"roles": {"a": [3, 9]}}, r"the role 'a' is \[3, 9\], and the prompt has 4 tokens"),
     ({"twin_prompt": IDS["prompt"]}, "the twin has the tokens of its prompt"),
     ({"group": "\ud800"}, "group has half a character"), ({"labels": {"\ud800": 1}}, "labels has half a character"),
     ({"labels": {"a": "b\udfff"}}, "labels has half a character"),
     ({"roles": {"\ud800": [0, 1]}}, "roles has half a character"),
     ({"grup": 1}, "did you mean group")],
)  # fmt: skip
def test_bad_values_of_the_newer_keys(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(MechintError, match=words) as caught:
        task(tmp_path, IDS, {**IDS, **change})
    assert "\n" not in str(caught.value) and "line 2" in str(caught.value)


def test_text_and_ids_do_not_stand_in_one_file(tmp_path: Path) -> None:
    with pytest.raises(MechintError, match=r"line 2 has a prompt of token ids, and .*line 1 one of text"):
        task(tmp_path, FACT, IDS)
    with pytest.raises(MechintError, match=r"line 2 has no label 'a', and .*line 1 has one"):
        task(tmp_path, {**IDS, "labels": {"a": 1}}, IDS)
    with pytest.raises(MechintError, match=r"'verb'.* is 'The', which is 0 times"):
        task(tmp_path, {**FACT, "prompt": "An Eiffel Tower is in", "roles": {"verb": "The"}})


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(MechintError, match="is empty"):
        task(tmp_path, "")
    with pytest.raises(MechintError, match="no such file; name a file of JSON lines"):
        make_task(TaskConfig(name="file", file=str(tmp_path / "none")), tokenizer())
    with pytest.raises(MechintError, match="no file is named"):
        make_task(TaskConfig(name="file"), tokenizer())
    (tmp_path / "text.jsonl").write_text(json.dumps(FACT))
    with pytest.raises(MechintError, match="has no tokenizer"):
        make_task(TaskConfig(name="file", file=str(tmp_path / "text.jsonl")))
    with pytest.raises(MechintError, match="for analyses"):
        task(tmp_path, FACT).sample(1, "train", 0)
    with pytest.raises(MechintError, match="must both be given, and answer is empty"):
        make_task(TaskConfig(name="prompt", prompt="x"), tokenizer())
    with pytest.raises(MechintError, match="occurrence is 2, and there is no subject"):
        make_task(TaskConfig(name="prompt", prompt="x", answer="y", occurrence=2), tokenizer())
    with pytest.raises(MechintError, match=r"has \d+ different tokens but the model's vocabulary is 3"):
        make_task(TaskConfig(name="prompt", **FACT), tokenizer(), vocab_size=3)


def test_one_prompt_is_traced() -> None:
    model = tiny_mamba(2).requires_grad_(False)
    config = TraceConfig(sites="state", corruption="noise", draws=3, metric="answer_logprob", bootstrap=100)
    words = tokenizer()
    for answer in sorted(words.get_vocab(), key=words.token_to_id):
        one = make_task(TaskConfig(name="prompt", **{**FACT, "answer": answer.replace("Ġ", " ") or "?"}), words)
        try:
            halves = [PromptLoader(one, split, 8, 8, 0) for split in ("discovery", "evaluation")]
            found = CausalTracer(model, config).run_analysis(*halves)
            break
        except MechintError as error:
            assert "answers none" in str(error)
    assert found["metrics"]["prompts_used"]["value"] == 1
    assert any("One prompt was traced: no interval" in note for note in found["notes"])


def test_one_prompt_needs_no_subject_but_for_what_asks_what_it_is_about() -> None:
    config = TaskConfig(name="prompt", prompt=str(FACT["prompt"]), answer=str(FACT["answer"]))
    found = make_task(config, tokenizer())
    [prompts] = found.groups(1, "evaluation", 0)
    assert prompts.subject is None and prompts.about() is None
    with pytest.raises(MechintError, match="no subject and no counterfactual twins"):
        found.roles(prompts)
    for name, options in (("trace", {"corruption": "noise"}), ("patch", {"units": ""})):
        analysis = analyses()[name]
        chosen = analysis.config(metric="answer_logprob", **options)
        assert "what the prompt is about; set subject" in str(analysis.refuse(chosen, config))
    assert analyses()["lens"].refuse(analyses()["lens"].config(), config) is None
