"""The format of WriteSAE (Young 2026, "WriteSAE: Sparse Autoencoders for Recurrent State"): one head's state in atoms.

A directory has ``best.pt`` or ``final.pt``, a dictionary of ``model_state_dict`` and ``config``. The dictionary reads
the state S of one head of one layer, [key, value], and each atom has the shape of a write: v wᵀ, or a sum of ``rank``
such products. ⟨v, S w⟩ is linear in S, so encoder and decoder are the matrices of an ordinary TopK dictionary of the
flattened state (rule ``unit:HEAD``), and everything that works for one works here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...models.loading.checkpoints import CONFIG_LIMIT
from ...utils.errors import MechintError, short, shown
from ...utils.files import read_json, read_torch
from ..base import SAEConfig, SparseAutoencoder
from . import config_keys as keys
from .convert import rebuild

WEIGHTS = ("best.pt", "final.pt")
CONFIG = "config.json"
ENCODER = {"rank1": ("encoder.weight", "encoder.bias"), "flat": ("encoder.weight", "encoder.bias"),
           "bilinear": ("V_enc", "W_enc", "b_enc"), "bilinear_flat": ("V_enc", "W_enc", "b_enc"),
           "bilinear_tied": ("V_dec", "W_dec", "b_enc")}  # fmt: skip
"""Tensors of the encoder by ``sae_type``: two of its matrix and bias, three of its factors and bias."""
DECODER = {"rank1": ("V", "W", "bias"), "flat": ("decoder.weight", "decoder.bias"),
           "bilinear": ("V_dec", "W_dec", "bias"), "bilinear_flat": ("decoder.weight", "decoder.bias"),
           "bilinear_tied": ("V_dec", "W_dec", "bias")}  # fmt: skip
IGNORED = ("steps_since_active",)
KNOWN = keys.listed("sae_type layer head n_features d_k d_v d_in k rank use_batchtopk")
HARMLESS = keys.listed(
    "expansion_factor seed lr lr_min batch_size epochs total_steps n_params device code_sha warmup_steps norm_every"
    " resample_every"
)
REMEDY = (
    "only plain tensors are read; where you trust the file, load it and save "
    "{'model_state_dict': tensors by name, 'config': its options} with torch.save"
)


def load_write_sae(directory: str | Path) -> SparseAutoencoder:
    """Reads one dictionary, ``best.pt`` before ``final.pt``; frozen.

    Raises:
        MechintError: there is no such file, it would run code, or it is of another activation than TopK, lacks a tensor
            or has one of another shape.
    """
    place = Path(directory)
    path = next((place / name for name in WEIGHTS if (place / name).is_file()), None)
    if path is None:
        raise MechintError(f"{place} is not a dictionary of WriteSAE: {' and '.join(WEIGHTS)} are missing")
    payload = read_torch(path, "a dictionary of WriteSAE", REMEDY)
    tensors = payload.get("model_state_dict") if isinstance(payload, dict) else None
    if not isinstance(tensors, dict):
        raise MechintError(f"{path} has no model_state_dict, as WriteSAE's files have; {REMEDY}")
    raw = payload.get("config")
    if raw is None and (place / CONFIG).is_file():
        raw = read_json(place / CONFIG, "copy it again", CONFIG_LIMIT)
    if not isinstance(raw, dict):
        raise MechintError(f"{path} says no config, and {CONFIG} beside it none; copy both again")
    kind = raw.get("sae_type")
    if kind not in ENCODER or keys.switch(raw, "use_batchtopk", False, path):
        what = "its TopK is of a whole batch" if kind in ENCODER else f"sae_type is {shown(kind)}"
        raise MechintError(f"{path}: {what}; only {', '.join(ENCODER)} with TopK of each state can be read")
    keys.refuse_unknown(raw, KNOWN | HARMLESS, path)
    layer, head = number(raw, "layer", path), number(raw, "head", path)
    d_k, d_v, k = (keys.size(raw, name, path) for name in ("d_k", "d_v", "k"))
    check_names(tensors, {*ENCODER[kind], *DECODER[kind]}, path)
    found = matrices(tensors, kind, (d_k, d_v), path)
    config = SAEConfig(
        "topk", d_k * d_v, len(found["b_enc"]), k=k, apply_b_dec_to_input=False, site=f"layers.{layer}.state",
        layer=layer, flatten=f"unit:{head}",
    )  # fmt: skip
    made = rebuild(config, found, str(path))
    made.keys_and_values = (d_k, d_v)
    return made


def matrices(tensors: Mapping[str, Tensor], kind: str, shape: tuple[int, int], path: Path) -> dict[str, Tensor]:
    """W_enc [d_k·d_v, latent], b_enc, W_dec [latent, d_k·d_v] and b_dec of the flattened state.

    Raises:
        MechintError: a tensor does not fit the numbers of keys and values.
    """
    width = shape[0] * shape[1]
    *encoder, bias = (tensors[name].float() for name in ENCODER[kind])
    *decoder, b_dec = (tensors[name].float() for name in DECODER[kind])
    made = {
        "W_enc": products(encoder, shape, path) if len(encoder) == 2 else encoder[0],
        "W_dec": products(decoder, shape, path) if len(decoder) == 2 else decoder[0].T,
    }
    sizes = {"W_enc": (len(bias), width), "W_dec": (len(bias), width)}
    if any(tuple(made[name].shape) != size for name, size in sizes.items()) or b_dec.numel() != width:
        said = {name: list(tensor.shape) for name, tensor in made.items()} | {"bias": list(b_dec.shape)}
        raise MechintError(f"{path}: {said} do not fit {shape[0]} keys and {shape[1]} values; copy it again")
    return {"W_enc": made["W_enc"].T, "b_enc": bias, "W_dec": made["W_dec"], "b_dec": b_dec.flatten()}


def products(factors: list[Tensor], shape: tuple[int, int], path: Path) -> Tensor:
    """The sum over r of v wᵀ for V [latent, (r,) key] and W [latent, (r,) value], flattened: [latent, key·value]."""
    v, w = (factor.unsqueeze(1) if factor.dim() == 2 else factor for factor in factors)
    if v.dim() != 3 or v.shape[:2] != w.shape[:2] or (v.shape[-1], w.shape[-1]) != shape:
        raise MechintError(
            f"{path}: factors of the shapes {list(v.shape)} and {list(w.shape)} make no atoms of {shape[0]} keys and "
            f"{shape[1]} values; copy it again"
        )
    return torch.einsum("irk,irv->ikv", v, w).flatten(1)


def check_names(tensors: Mapping[str, Any], wanted: set[str], path: Path) -> None:
    """Raises :class:`MechintError` unless the file has these tensors, and no others but :data:`IGNORED`."""
    missing, extra = sorted(wanted - set(tensors)), sorted(set(map(str, tensors)) - wanted - set(IGNORED))
    if missing or extra:
        what = [f"lacks {', '.join(missing)}"] if missing else []
        what += [f"has {', '.join(map(short, extra))}, which nothing here would use"] if extra else []
        raise MechintError(f"{path} {' and '.join(what)}; is it the dictionary that its configuration says?")
    if bad := [name for name in wanted if not isinstance(tensors[name], Tensor)]:
        raise MechintError(f"{path}: {', '.join(sorted(bad))} is not a tensor; copy it again")


def number(raw: Mapping[str, Any], name: str, path: Path) -> int:
    """The number of a layer or a head, from 0."""
    value = raw.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 10_000:
        raise MechintError(f"{path}: {name} is {shown(value)}, which is not the number of a {name}; correct it")
    return value
