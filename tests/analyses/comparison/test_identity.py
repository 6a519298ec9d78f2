"""What identifies a model, its training and its prompts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from mechint.analyses.comparison.identity import label, prompts_of, tokenizer_of, training
from mechint.analyses.comparison.results import UNKNOWN


def made(**metadata: Any) -> Any:
    config = SimpleNamespace(family="mamba", n_layer=2, d_model=8)
    return SimpleNamespace(config=config, metadata=metadata)


def test_a_group_is_named_by_family_and_sizes() -> None:
    assert label(made()) == "mamba, 2 layers of width 8"
    tied = made()
    tied.config.kv_tied = True
    assert label(tied) == "mamba, 2 layers of width 8, K = V"


def test_what_a_checkpoint_says_of_its_training() -> None:
    train = {"seed": 3, "lr": 0.1, "steps": 9, "step_name": "V3"}
    said = training(made(train=train, iter_num=7, best_val_loss=1.5, task={"name": "recall"}, data="d"))
    assert (said.seed, said.steps, said.lr, said.held_out_loss) == (3, 7, 0.1, 1.5)
    same = lambda task="recall", data="d", **changes: (
        training(made(train={**train, **changes}, task={"name": task}, data=data)).budget
    )
    # runs of other seeds, rates and names share a budget
    assert same() == said.budget == same(seed=4, lr=0.2, step_name="V4")
    assert len({same(), same(steps=8), same(task="copy"), same(data="e")}) == 4
    for loss in (float("nan"), float("inf"), "low", None):
        assert training(made(train=train, best_val_loss=loss)).held_out_loss is None
    assert training(made()) == UNKNOWN == training(made(train="none")) == training(SimpleNamespace(metadata=None))


def test_tokenizers_and_prompts_are_known_by_their_contents() -> None:
    words = lambda text: SimpleNamespace(name="text", tokenizer=SimpleNamespace(to_str=lambda: text))
    assert tokenizer_of(words("a")) == tokenizer_of(words("a")) != tokenizer_of(words("b"))  # type: ignore[arg-type]
    plain: Any = SimpleNamespace(name="text")
    assert tokenizer_of(plain) == "bytes"
    plain.name = "recall"
    assert tokenizer_of(plain) == "symbols of recall"
    batch = lambda *rows: SimpleNamespace(tokens=torch.tensor(rows), answers=torch.tensor(rows)[:, :1])
    one: Any = [batch([1, 2], [3, 4])]
    assert prompts_of(one) == prompts_of([batch([1, 2], [3, 4])]) != prompts_of([batch([1, 2], [3, 5])])  # type: ignore[arg-type]
    dealt: Any = [batch([1, 2]), batch([3, 4])]
    mixed: Any = [batch([1, 2]), batch([5, 6, 7]), batch([3, 4])]
    assert prompts_of(dealt) == prompts_of(one) != prompts_of(mixed)  # batches are how prompts are dealt out
    assert prompts_of(mixed) == prompts_of([*one, batch([5, 6, 7])])
    assert prompts_of(dealt[::-1]) != prompts_of(one)
    other = batch([1, 2], [3, 4])
    other.answers = other.answers + 1
    assert prompts_of([other]) != prompts_of(one)  # type: ignore[arg-type]
