"""The format of the library dictionary_learning 0.1.0: ``ae.pt``, a dict of tensors, and ``config.json``.

Its classes subtract b_dec from the input, but for JumpReluAutoEncoder and AutoEncoderNew, which never do.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...models.loading.checkpoints import read_torch
from ...utils.errors import MechintError, did_you_mean, shown
from ...utils.files import whole_directory, write_torch
from ..base import SAEConfig, SparseAutoencoder
from . import config_keys as keys
from .convert import biases, configuration, plain, rebuild, take
from .saelens import check_matrices, hook_name, with_unit_rows

CONFIG, WEIGHTS = "config.json", "ae.pt"


class Kind(NamedTuple):
    """One of the library's classes."""

    architecture: str
    subtracts: bool
    names: dict[str, str]
    """For each tensor of its file, SAELens' name; ``.T`` marks the other orientation."""
    ignored: tuple[str, ...] = ()


_LINEAR = {"encoder.weight.T": "W_enc", "encoder.bias": "b_enc", "decoder.weight.T": "W_dec"}
_MATRICES = {"W_enc": "W_enc", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
_GATED = {
    "encoder.weight.T": "W_enc", "decoder.weight.T": "W_dec", "decoder_bias": "b_dec", "r_mag": "r_mag",
    "gate_bias": "b_gate", "mag_bias": "b_mag",
}  # fmt: skip
KINDS = {
    "AutoEncoder": Kind("relu", True, {**_LINEAR, "bias": "b_dec"}),
    "AutoEncoderNew": Kind("relu", False, {**_LINEAR, "decoder.bias": "b_dec"}),
    "GatedAutoEncoder": Kind("gated", True, _GATED),
    "AutoEncoderTopK": Kind("topk", True, {**_LINEAR, "b_dec": "b_dec"}, ("k", "threshold")),
    "BatchTopKSAE": Kind("jumprelu", True, {**_LINEAR, "b_dec": "b_dec"}, ("k", "threshold")),
    "MatryoshkaBatchTopKSAE": Kind("jumprelu", True, _MATRICES, ("k", "threshold", "group_sizes")),
    "JumpReluAutoEncoder": Kind("jumprelu", False, {**_MATRICES, "threshold": "threshold"}),
}
TRAINED_AS = {"BatchTopKSAE": "batch_topk", "MatryoshkaBatchTopKSAE": "matryoshka"}


def save_dictionary_learning(sae: SparseAutoencoder, directory: str | Path) -> Path:
    """Writes a finished dictionary for ``dictionary_learning.utils.load_dictionary``; returns the directory.

    BatchTopK, Matryoshka and JumpReLU become JumpReluAutoEncoder. So does a ReLU dictionary whose decoder rows are not
    of norm 1 (with threshold 0, the same function): the library rescales an AutoEncoder's latents on loading.

    Raises:
        MechintError: the directory holds something else than a dictionary.
    """
    sae = sae.inference()
    name, tensors = _tensors(sae)
    c = sae.config
    trainer: dict[str, Any] = {
        "dict_class": name, "activation_dim": c.d_in, "dict_size": c.d_sae, "layer": c.layer, "lm_name": c.model_name,
        "submodule_name": hook_name(c), "seed": c.seed,
    }  # fmt: skip
    if c.architecture == "topk":
        trainer["k"] = c.k
    with whole_directory(Path(directory), CONFIG, "dictionary") as temporary:
        config = {"trainer": trainer, "buffer": {"ctx_len": c.context_size, "d_submodule": c.d_in}}
        (temporary / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True, allow_nan=False) + "\n")
        write_torch(temporary / WEIGHTS, tensors)
    return Path(directory)


def _tensors(sae: SparseAutoencoder) -> tuple[str, dict[str, Tensor]]:
    """The library's class for a dictionary, and the tensors of that class."""
    c, norms = sae.config, sae.W_dec.norm(dim=1)
    if c.architecture == "relu" and torch.allclose(norms, torch.ones_like(norms)):
        name = "AutoEncoder"
    else:
        name = {"relu": "JumpReluAutoEncoder", "jumprelu": "JumpReluAutoEncoder", "gated": "GatedAutoEncoder",
                "topk": "AutoEncoderTopK"}[c.architecture]  # fmt: skip
    kind = KINDS[name]
    moved = biases(sae, kind.subtracts)
    ours = {"W_enc": sae.W_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec, "b_enc": moved["b_enc"],
            "b_gate": moved["b_enc"], "b_mag": moved.get("b_mag"), "r_mag": getattr(sae, "r_mag", None),
            "threshold": getattr(sae, "threshold", torch.zeros(c.d_sae))}  # fmt: skip
    tensors = {}
    for there, here in kind.names.items():
        value = ours[here]
        assert isinstance(value, Tensor)
        tensors[there.removesuffix(".T")] = plain(value.T if there.endswith(".T") else value)
    if name == "AutoEncoderTopK":
        tensors |= {"k": torch.tensor(c.k, dtype=torch.int), "threshold": torch.tensor(-1.0)}
    return name, tensors


def load_dictionary_learning(directory: str | Path) -> SparseAutoencoder:
    """Reads a dictionary that the library or :func:`save_dictionary_learning` wrote; frozen.

    ``ae.pt`` is read with ``weights_only=True``: a file that would run code is refused.

    Raises:
        MechintError: files or tensors are missing, the class is not one of :data:`KINDS`, or the file is unsafe.
    """
    directory = Path(directory)
    raw, where = configuration(directory, CONFIG, WEIGHTS), str(directory / WEIGHTS)
    trainer = raw.get("trainer")
    if not isinstance(trainer, dict) or "dict_class" not in trainer:
        raise MechintError(f"{directory / CONFIG} lacks trainer.dict_class, which says what kind of dictionary this is")
    name = str(trainer["dict_class"])
    if name not in KINDS:
        raise MechintError(
            f"{directory / CONFIG}: dictionaries of the class {shown(name)} can't be read{did_you_mean(name, KINDS)}; "
            f"these can: {', '.join(KINDS)}"
        )
    known = {"dict_class", "activation_dim", "dict_size", "k", *keys.DICTIONARY_LEARNING_HARMLESS}
    keys.refuse_unknown(trainer, known, f"{directory / CONFIG}: trainer")
    keys.refuse_unknown(raw, ("trainer", "buffer"), directory / CONFIG)
    kind, tensors = KINDS[name], _read(directory / WEIGHTS)
    found = take(tensors, kind.names, kind.ignored, where)
    if found["W_dec"].dim() != 2:
        raise MechintError(f"{where}: the decoder is not a matrix; copy the file again")
    for key, said in (("dict_size", len(found["W_dec"])), ("activation_dim", found["W_dec"].shape[1])):
        if trainer.get(key) is not None and trainer[key] != said:
            raise MechintError(f"{directory / CONFIG}: {key} is {shown(trainer[key])}, but the tensors have {said}")
    if name == "AutoEncoder":  # the library rescales its latents on loading, for decoder columns of norm 1
        check_matrices(SAEConfig("relu", found["W_dec"].shape[1], len(found["W_dec"])), found, where)
        found = with_unit_rows(found)
    k = _scalar(tensors, "k", where) if name in ("AutoEncoderTopK", *TRAINED_AS) else 0.0
    if name in TRAINED_AS:
        found["threshold"] = torch.full((len(found["b_enc"]),), max(0.0, _scalar(tensors, "threshold", where)))
    config = SAEConfig(
        architecture=kind.architecture,
        d_in=found["W_dec"].shape[-1],
        d_sae=found["W_dec"].shape[0],
        k=int(k),
        apply_b_dec_to_input=kind.subtracts,
        model_name=keys.text(trainer, "lm_name"),
        site=keys.text(trainer, "submodule_name"),
        layer=trainer["layer"] if type(trainer.get("layer")) is int else -1,
        context_size=_whole(raw.get("buffer"), "ctx_len"),
        seed=_whole(trainer, "seed"),
        trained_as=TRAINED_AS.get(name, ""),
    )
    return rebuild(config, found, where)


def _read(path: Path) -> dict[str, Any]:
    tensors = read_torch(path)
    if not isinstance(tensors, dict):
        raise MechintError(f"{path} holds a {type(tensors).__name__}, not a dict of tensors; save the state_dict()")
    return tensors


def _scalar(tensors: dict[str, Any], name: str, where: str) -> float:
    if name not in tensors:
        raise MechintError(f"{where} lacks {name}; is it the dictionary that its configuration says?")
    value = tensors[name]
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.is_complex():
            raise MechintError(f"{where}: {name} is {list(value.shape)}, which is not a number; copy the file again")
        value = value.item()
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise MechintError(f"{where}: {name} is {shown(value)}, which is not a number; copy the file again")
    return float(value)


def _whole(section: Any, name: str) -> int:
    """A whole number that only says where a dictionary comes from; 0 where there is none."""
    value = section.get(name) if isinstance(section, dict) else None
    return value if type(value) is int else 0
