"""The format of the library sparsify 1.3.3: ``{hookpoint}/cfg.json`` and ``{hookpoint}/sae.safetensors``.

It has TopK dictionaries alone, and subtracts b_dec from the input.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...models.loading.checkpoints import read_safetensors
from ...utils.errors import MechintError, shown
from ...utils.files import whole_directory, write_tensors
from ..base import SAEConfig, SparseAutoencoder
from . import config_keys as keys
from .convert import biases, configuration, plain, rebuild, take
from .saelens import hook_name

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
NAMES = {"encoder.weight.T": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}


def hookpoint(config: SAEConfig) -> str:
    """The library's name of the site: the module's path within Hugging Face's base model."""
    name = hook_name(config)
    for base in ("backbone.", "transformer.", "model."):
        name = name.removeprefix(base)
    return name or "sae"


def save_sparsify(sae: SparseAutoencoder, directory: str | Path) -> Path:
    """Writes a TopK dictionary for ``SparseCoder.load_many(directory, local=True)``; returns ``directory/hookpoint``.

    Raises:
        MechintError: the dictionary is of another architecture, or the directory holds something else.
    """
    sae = sae.inference()
    c = sae.config
    if c.architecture != "topk":
        raise MechintError(
            f"sparsify has TopK dictionaries alone, and this one is {c.trained_as or c.architecture}; save it for "
            "SAELens or dictionary_learning"
        )
    where = Path(directory) / hookpoint(c)
    ours = {"W_enc": sae.W_enc, "b_enc": biases(sae, True)["b_enc"], "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    tensors = {
        there.removesuffix(".T"): plain(ours[here].T if there.endswith(".T") else ours[here])
        for there, here in NAMES.items()
    }
    config = {
        "activation": "topk", "expansion_factor": max(1, c.d_sae // c.d_in), "normalize_decoder": True,
        "num_latents": c.d_sae, "k": c.k, "multi_topk": False, "skip_connection": False, "transcode": False,
        "d_in": c.d_in,
    }  # fmt: skip
    with whole_directory(where, CONFIG, "dictionary") as temporary:
        (temporary / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        write_tensors(temporary / WEIGHTS, tensors)
    return where


def load_sparsify(directory: str | Path) -> SparseAutoencoder:
    """Reads one dictionary (the directory of a hookpoint) of the library or of :func:`save_sparsify`; frozen.

    Raises:
        MechintError: files or tensors are missing, or it is a transcoder or of another activation than TopK.
    """
    directory = Path(directory)
    raw, where = configuration(directory, CONFIG, WEIGHTS), str(directory / WEIGHTS)
    if raw.get("transcode", False) is not False:
        raise MechintError(
            f"{directory} is a transcoder, which writes another site than it reads; sae.load_transcoder reads it"
        )
    for key, wanted in (("activation", "topk"), ("skip_connection", False)):
        if raw.get(key, wanted) != wanted:
            raise MechintError(
                f"{directory / CONFIG}: {key} is {shown(raw[key])}; only autoencoders with TopK can be read"
            )
    keys.refuse_unknown(raw, keys.SPARSIFY | keys.SPARSIFY_HARMLESS, directory / CONFIG)
    found = take(read_safetensors(directory / WEIGHTS), NAMES, (), where)
    k, d_in = (keys.size(raw, name, directory / CONFIG) for name in ("k", "d_in"))
    d_sae = latents(raw, d_in, directory / CONFIG)
    config = SAEConfig(architecture="topk", d_in=d_in, d_sae=d_sae, k=k, site=directory.name)
    return rebuild(config, found, where)


def latents(raw: dict[str, Any], d_in: int, file: Path) -> int:
    """The number of latents that a configuration says, itself or as a multiple of the width."""
    factor = keys.size(raw, "expansion_factor", file, 32)
    return keys.size(raw, "num_latents", file) if raw.get("num_latents") else d_in * factor
