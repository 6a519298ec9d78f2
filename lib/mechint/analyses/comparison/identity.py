"""Identifies the model, tokenizer and prompts of a profile, so that only comparable profiles are compared."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from ...interventions.model import Model
from ...tasks import Task
from ..loader import PromptLoader
from .results import UNKNOWN, Training


def tokenizer_of(task: Task) -> str:
    """Identifies a tokenizer: a hash of its definition, ``bytes``, or the task's own symbols."""
    tokenizer = getattr(task, "tokenizer", None)
    if tokenizer is not None:
        return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
    return "bytes" if task.name == "text" else f"symbols of {task.name}"


def prompts_of(loader: PromptLoader) -> str:
    """A hash of prompts' tokens and answers, whatever their batches: equal ones were measured on the same prompts."""
    lots: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for batch in loader:
        lots.setdefault(batch.tokens.shape[1], []).append((batch.tokens, batch.answers))
    digest = hashlib.sha256()
    for lot in lots.values():
        for column in zip(*lot, strict=True):
            digest.update(torch.cat(column).cpu().contiguous().numpy().data)
    return digest.hexdigest()


def label(model: Model) -> str:
    """The name of a model's group, whose members share family and sizes."""
    c = model.config
    tied = ", K = V" if getattr(c, "kv_tied", False) else ""
    return f"{c.family}, {c.n_layer} layers of width {c.d_model}{tied}"


def training(model: Model) -> Training:
    """The metadata of a checkpoint about its training, as far as it has any."""
    metadata = getattr(model, "metadata", None) or {}
    train = metadata.get("train")
    if not isinstance(train, dict):
        return UNKNOWN
    budget = {k: v for k, v in train.items() if k not in ("seed", "step_name", "lr")}
    said = [metadata.get("task"), metadata.get("data"), budget]
    digest = hashlib.sha256(repr(said).encode()).hexdigest()
    best = metadata.get("best_val_loss")
    return Training(
        seed=train.get("seed"),
        steps=metadata.get("iter_num"),
        budget=digest,
        lr=train.get("lr"),
        held_out_loss=best if isinstance(best, float) and math.isfinite(best) else None,
    )
