"""Transcoders on disk: the directories of SAELens 6, of sparsify 1.3.3 and of Gemma Scope.

SAELens' ``architecture`` is ``transcoder``, ``skip_transcoder`` or the same with ``jumprelu_`` in front; sparsify says
``transcode``, has TopK alone, and names the module whose input it reads and whose output it writes. Neither subtracts
b_dec from what it reads, which has another width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...models.loading.checkpoints import read_safetensors
from ...utils.errors import MechintError, shown
from ..transcoder import Transcoder, TranscoderConfig
from . import config_keys as keys
from . import detect, gemma_scope, saelens, sparsify
from .convert import configuration, take

FILES = ((saelens.CONFIG, saelens.WEIGHTS), (sparsify.CONFIG, sparsify.WEIGHTS), (gemma_scope.WEIGHTS,))
PLAIN = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
ALSO = keys.listed("d_out hook_name_out hook_layer_out hook_head_index_out")


def load_transcoder(path_or_name: str | Path) -> Transcoder:
    """Reads a transcoder of SAELens, sparsify or Gemma Scope.

    Args:
        path_or_name: Its directory, or its hub id, as :func:`mechint.sae.load` takes it.

    Raises:
        MechintError: it is no transcoder, is of a kind that is not read here, or its files are not whole.
    """
    directory = detect.locate(path_or_name, FILES)
    if (directory / sparsify.WEIGHTS).is_file():
        return of_sparsify(directory)
    if (directory / gemma_scope.WEIGHTS).is_file():
        return gemma_scope.load_gemma_transcoder(directory)
    return of_saelens(directory)


def of_saelens(directory: Path) -> Transcoder:
    """Reads the directory of SAELens."""
    raw, file = configuration(directory, saelens.CONFIG, saelens.WEIGHTS), directory / saelens.CONFIG
    said = raw.get("architecture")
    if said not in saelens.TRANSCODERS:
        raise MechintError(
            f"{file}: architecture is {shown(said)}, and a transcoder's is one of {', '.join(saelens.TRANSCODERS)}; "
            f"sae.load reads dictionaries of one site"
        )
    keys.refuse_unknown(raw, keys.SAE_LENS | keys.SAE_LENS_HARMLESS | ALSO, file)
    about = {**raw, **(raw.get("metadata") or {})}
    refuse_changed(raw, about, file)
    names = PLAIN | ({"W_skip": "W_skip"} if "skip" in said else {})
    names |= {"threshold": "threshold"} if said.startswith("jumprelu") else {}
    config = TranscoderConfig(
        architecture="jumprelu" if said.startswith("jumprelu") else "relu",
        d_in=keys.size(raw, "d_in", file),
        d_sae=keys.size(raw, "d_sae", file),
        d_out=keys.size(raw, "d_out", file),
        site=keys.text(about, "hook_name"),
        site_out=keys.text(about, "hook_name_out"),
        model_name=keys.text(about, "model_name"),
    )
    where = directory / saelens.WEIGHTS
    return Transcoder(config, take(read_safetensors(where), names, (), str(where)), str(where))


def refuse_changed(raw: Mapping[str, Any], about: Mapping[str, Any], file: Path) -> None:
    """Raises :class:`MechintError` for what would compute something else than is computed here."""
    for name in ("normalize_activations", "reshape_activations"):
        if raw.get(name, "none") not in ("none", None):
            raise MechintError(f"{file}: {name} is {shown(raw[name])}; not supported for transcoders")
    for name in ("apply_b_dec_to_input", "rescale_acts_by_decoder_norm", "finetuning_scaling_factor"):
        if keys.switch(raw, name, False, file):
            raise MechintError(f"{file}: {name} is true, which no transcoder has; correct it")
    function = raw.get("activation_fn_str") or raw.get("activation_fn") or "relu"
    if function != "relu":
        raise MechintError(f"{file}: the activation function is {shown(function)}; not supported")
    given = about.get("model_from_pretrained_kwargs") or {}
    if not isinstance(given, dict):
        raise MechintError(f"{file}: model_from_pretrained_kwargs is {shown(given)}; correct it")
    for name in ("center_writing_weights", "fold_ln"):
        if keys.switch(given, name, False, file):
            raise MechintError(
                f"{file}: the model was loaded with {name}, which changes what its sites hold; not supported"
            )


def of_sparsify(directory: Path) -> Transcoder:
    """Reads the directory of a hookpoint of sparsify."""
    raw, file = configuration(directory, sparsify.CONFIG, sparsify.WEIGHTS), directory / sparsify.CONFIG
    if not keys.switch(raw, "transcode", False, file):
        raise MechintError(f"{file}: transcode is not true; sae.load reads dictionaries of one site")
    if raw.get("activation", "topk") != "topk":
        raise MechintError(f"{file}: activation is {shown(raw['activation'])}; only transcoders with TopK can be read")
    keys.refuse_unknown(raw, keys.SPARSIFY | keys.SPARSIFY_HARMLESS, file)
    skip = {"W_skip": "W_skip"} if keys.switch(raw, "skip_connection", False, file) else {}
    where = directory / sparsify.WEIGHTS
    k, d_in = (keys.size(raw, name, file) for name in ("k", "d_in"))
    d_sae = sparsify.latents(raw, d_in, file)
    config = TranscoderConfig("topk", d_in, d_sae, d_in, k=k, site_out=directory.name)
    if k > d_sae:
        raise MechintError(f"{file}: k is {k}, more than the {d_sae} latents; correct it")
    return Transcoder(config, take(read_safetensors(where), {**sparsify.NAMES, **skip}, (), str(where)), str(where))
