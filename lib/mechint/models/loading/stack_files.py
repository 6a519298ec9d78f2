"""Files of families that are made of parts: exactly the tensors that the configuration says, or an error."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...utils.errors import MechintError, an
from ...utils.progress import Progress
from ..family import Names, StackFamily
from ..stack import Stack
from .config_reader import ConfigReader
from .convert import convert
from .strictness import check_names, check_shapes, listing

EXACT = ("A_log", "D", "dt_bias", "e_score_correction_bias")
"""Last words of the names that stay at least float32: every step of a recurrence, or a choice, feels their rounding."""


def build_stack(
    family: StackFamily,
    state: dict[str, Tensor],
    config: Mapping[str, Any],
    where: str,
    dtype: torch.dtype,
    device: torch.device,
) -> Stack:
    """The model of exactly these tensors. Takes them out of ``state``: each can go once it is copied.

    Raises:
        MechintError: the configuration lacks or has what the family does not know, or it and the tensors disagree.
    """
    reader = ConfigReader(config, where, family.title)
    sizes = family.read(reader)
    reader.done()
    with torch.device("meta"):
        model = family.build(sizes)
    shapes = model.state_dict()
    body = body_of(state, family.names)
    use_other_names(state, family.names.others)
    join_pieces(state, family, sizes, shapes, body, where)
    plan = family.names.plan(list(shapes), body, state)
    left_out = drop(state, family.names.left_out)
    if left_out:
        print(f"note: {where}: {left_out}; they belong to no part of the language model", file=sys.stderr)
    one_head(state, family.names)
    check_head(state, sizes.tied, family.names, body, where)
    constants = family.names.constants  # older files hold what we compute
    ignored = [
        name
        for name in state
        if name.endswith("rotary_emb.inv_freq") or (constants and re.fullmatch(constants, name.removeprefix(body)))
    ]
    check_names(
        state.keys(),
        plan.keys(),
        ignored,
        f"{where} is not exactly {an(family.title)} of {sizes.n_layer} layers",
    )
    wanted = {}
    for theirs, (ours, fused) in plan.items():
        made = shapes[ours[0]] if fused is None else fused.join([shapes[name] for name in ours], sizes)
        wanted[theirs] = list(made.shape)
    check_shapes(state, wanted, where)
    weights = {}
    with Progress(f"loading {where}", len(plan)) as progress:
        for theirs, (ours, fused) in plan.items():
            tensor = state.pop(theirs)
            for name, piece in zip(ours, [tensor] if fused is None else fused.split(tensor, sizes), strict=True):
                exact = name.rpartition(".")[2] in EXACT and dtype != torch.float64
                weights[name] = convert(piece, torch.float32 if exact else dtype, device, f"{where}: {theirs}")
            progress.step()
    model.load_state_dict(weights, strict=True, assign=True)
    model.left_out = left_out
    return model


def body_of(state: Mapping[str, Tensor], names: Names) -> str:
    """Finds the prefix of the names: of those that may be, the one under which the embedding is there."""
    return next((body for body in names.bodies if names.theirs("embed_tokens.weight", body) in state), names.bodies[0])


def use_other_names(state: dict[str, Tensor], others: Mapping[str, str]) -> None:
    """Renames tensors that this file calls otherwise than those that are written."""
    for pattern, new in others.items():
        for name in [name for name in state if re.search(pattern, name)]:
            if (todays := re.sub(pattern, new, name)) not in state:
                state[todays] = state.pop(name)


def join_pieces(
    state: dict[str, Tensor], family: StackFamily, config: Any, shapes: Mapping[str, Tensor], body: str, where: str
) -> None:
    """Puts one tensor in the place of those that are one of ours; raises :class:`MechintError` where some lack."""
    for ours, like in shapes.items():
        if (held := family.names.in_pieces(ours, body)) is None or family.names.theirs(ours, body) in state:
            continue
        pieces, names = held
        if lacking := [name for name in names if name not in state]:
            raise MechintError(
                f"{where} is not exactly {an(family.title)} of {config.n_layer} layers: it lacks {listing(lacking)}"
            )
        rows = list(pieces.rows(config))
        found = [state[name].shape[0] if state[name].dim() else 0 for name in names]
        rows = found if pieces.anywhere and sum(found) == sum(rows) else rows
        check_shapes(state, {name: [n, *like.shape[1:]] for name, n in zip(names, rows, strict=True)}, where)
        state[family.names.theirs(ours, body)] = torch.cat([state.pop(name) for name in names])


def drop(state: dict[str, Tensor], pattern: str) -> str:
    """Takes out the tensors that belong to no part of the language model, and says which."""
    gone = [name for name in state if pattern and re.match(pattern, name)]
    for name in gone:
        del state[name]
    return f"left out: {listing(gone)}" if gone else ""


def one_head(state: dict[str, Tensor], names: Names) -> None:
    """Gives the head the first of its names, whichever it has."""
    for other in names.heads[1:]:
        for end in ("weight", "bias"):
            if other + end in state and names.heads[0] + end not in state:
                state[names.heads[0] + end] = state.pop(other + end)


def check_head(state: dict[str, Tensor], tied: bool, names: Names, body: str, where: str) -> None:
    """Takes out a head that is the embedding; raises :class:`MechintError` where it is said to be and is not."""
    name = names.theirs("lm_head.weight", body)
    head, rows = state.get(name), state.get(names.theirs("embed_tokens.weight", body))
    if not tied or head is None or rows is None:
        return
    if head.shape != rows.shape or not torch.equal(head, rows):
        raise MechintError(
            f"{where}: the configuration says that the head is the embedding (tie_word_embeddings), and {name} "
            "has other numbers; correct the configuration, or remove the tensor"
        )
    del state[name]


def to_hf_state_dict(family: StackFamily, model: Stack) -> dict[str, Tensor]:
    """The weights under Hugging Face's names, detached and on the CPU; a tied head is left out, as it is there."""
    ours = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    names, body = family.names, family.names.bodies[0]
    found: dict[str, Tensor] = {}
    for theirs, (held, fused) in names.plan(list(ours), body).items():
        tensor = ours[held[0]] if fused is None else fused.join([ours[name] for name in held], model.config)
        if (cut := names.in_pieces(held[0], body)) is None:
            found[theirs] = tensor
        else:
            rows = list(cut[0].rows(model.config))
            found |= {name: piece.clone() for name, piece in zip(cut[1], tensor.split(rows), strict=True)}
    return found
