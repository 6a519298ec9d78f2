"""Transcoders on disk: the directories of SAELens 6, sparsify 1.3.3, Gemma Scope 1 and 2, and circuit-tracer's sets.

SAELens' ``architecture`` is ``transcoder``, ``skip_transcoder`` or the same with ``jumprelu_`` in front; sparsify says
``transcode``, has TopK alone, and names the module whose input it reads and whose output it writes. Neither subtracts
b_dec from what it reads, which has another width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...models.loading.checkpoints import CONFIG_LIMIT, read_safetensors
from ...utils import files
from ...utils.errors import MechintError, shown
from ...utils.files import read_json
from ..transcoder import Transcoder, TranscoderConfig
from . import circuit_tracer, detect, gemma_scope, gemma_scope_2, saelens, sparsify
from . import config_keys as keys
from .convert import configuration, plain, take

FILES = (
    (saelens.CONFIG, saelens.WEIGHTS),
    (sparsify.CONFIG, sparsify.WEIGHTS),
    (gemma_scope.WEIGHTS,),
    (gemma_scope_2.CONFIG, gemma_scope_2.WEIGHTS),
    (circuit_tracer.CONFIG,),
)
PLAIN = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
ALSO = keys.listed("d_out hook_name_out hook_layer_out hook_head_index_out")


def load_transcoder(path_or_name: str | Path) -> Transcoder:
    """Reads a transcoder of SAELens, sparsify, Gemma Scope or Gemma Scope 2.

    Args:
        path_or_name: Its directory, or its hub id, as :func:`mechint.sae.load` takes it.

    Raises:
        MechintError: it is no transcoder, is of a kind that is not read here, or its files are not whole.
    """
    directory = detect.locate(path_or_name, FILES)
    if (directory / circuit_tracer.CONFIG).is_file() and not (directory / saelens.CONFIG).is_file():
        raise MechintError(f"{directory} is a set with a transcoder for each layer; read it with sae.load_transcoders")
    if (directory / sparsify.WEIGHTS).is_file():
        return of_sparsify(directory)
    if (directory / gemma_scope.WEIGHTS).is_file():
        return gemma_scope.load_gemma_transcoder(directory)
    if (directory / gemma_scope_2.WEIGHTS).is_file():
        return gemma_scope_2.load_gemma_transcoder_2(directory)
    return of_saelens(directory)


def load_transcoders(path_or_name: str | Path, layers: Iterable[int] | None = None) -> dict[int, Transcoder]:
    """Reads a set of transcoders of circuit-tracer, one layer after another.

    Args:
        path_or_name: The directory of its config.yaml, or its hub id, as :func:`mechint.sae.load` takes it.
        layers: Layers to read; None for all that it lists.

    Returns:
        A transcoder by layer.

    Raises:
        MechintError: it is no such set, lists no transcoder of a layer, or a file is refused.
    """
    found = circuit_tracer.read_set(detect.locate(path_or_name, ((circuit_tracer.CONFIG,),)))
    return {layer: found.load(layer) for layer in (found.places if layers is None else layers)}


def is_transcoder(directory: Path) -> bool:
    """True if a directory says that it holds a transcoder and no dictionary of one site."""
    file = directory / saelens.CONFIG
    if file.is_file():
        raw = read_json(file, "copy it again", CONFIG_LIMIT)
        said = raw if isinstance(raw, dict) else {}
        return said.get("architecture") in saelens.TRANSCODERS or said.get("transcode") is True
    if gemma_scope_2.type_of(directory) == "transcoder":
        return True
    named = gemma_scope.released(directory, gemma_scope.TRANSCODERS)
    return (directory / gemma_scope.WEIGHTS).is_file() and bool(named)


def save_transcoder(transcoder: Transcoder, directory: str | Path) -> Path:
    """Writes a transcoder as SAELens does, which :func:`load_transcoder` reads; TopK is an activation of our own."""
    c, names = transcoder.config, dict(transcoder.named_buffers())
    kind = ("jumprelu_" if c.architecture == "jumprelu" else "") + ("skip_" if "W_skip" in names else "")
    raw: dict[str, Any] = {
        "architecture": f"{kind}transcoder", "d_in": c.d_in, "d_sae": c.d_sae, "d_out": c.d_out, "dtype": "float32",
        "device": "cpu", "apply_b_dec_to_input": False, "normalize_activations": "none",
        "metadata": {
            "hook_name": c.site, "hook_name_out": c.site_out, "model_name": c.model_name,
            "sae_lens_version": saelens.SAE_LENS_VERSION,
        },
    }  # fmt: skip
    if c.architecture == "topk":
        raw |= {"activation_fn": "topk", "activation_fn_kwargs": {"k": c.k}}
    place = Path(directory)
    with files.whole_directory(place, saelens.CONFIG, "transcoder") as temporary:
        files.write_json(temporary / saelens.CONFIG, raw)
        files.write_tensors(temporary / saelens.WEIGHTS, {name: plain(tensor) for name, tensor in names.items()})
    return place


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
    k = top_of(raw, file) if raw.get("activation_fn") == "topk" and not said.startswith("jumprelu") else 0
    config = TranscoderConfig(
        architecture="topk" if k else "jumprelu" if said.startswith("jumprelu") else "relu",
        k=k,
        d_in=keys.size(raw, "d_in", file),
        d_sae=keys.size(raw, "d_sae", file),
        d_out=keys.size(raw, "d_out", file),
        site=keys.text(about, "hook_name"),
        site_out=keys.text(about, "hook_name_out"),
        model_name=keys.text(about, "model_name"),
    )
    where = directory / saelens.WEIGHTS
    return Transcoder(config, take(read_safetensors(where), names, (), str(where)), str(where))


def top_of(raw: Mapping[str, Any], file: Path) -> int:
    """The active latents of TopK, as our own files say them.

    Raises:
        MechintError: it is not a number of latents.
    """
    given = raw.get("activation_fn_kwargs")
    k = keys.size(given if isinstance(given, dict) else {}, "k", file)
    if k > keys.size(raw, "d_sae", file):
        raise MechintError(f"{file}: k is {k}, more than the {raw['d_sae']} latents; correct it")
    return k


def refuse_changed(raw: Mapping[str, Any], about: Mapping[str, Any], file: Path) -> None:
    """Raises :class:`MechintError` for what would compute something else than is computed here."""
    for name in ("normalize_activations", "reshape_activations"):
        if raw.get(name, "none") not in ("none", None):
            raise MechintError(f"{file}: {name} is {shown(raw[name])}; not supported for transcoders")
    for name in ("apply_b_dec_to_input", "rescale_acts_by_decoder_norm", "finetuning_scaling_factor"):
        if keys.switch(raw, name, False, file):
            raise MechintError(f"{file}: {name} is true, which no transcoder has; correct it")
    function = raw.get("activation_fn_str") or raw.get("activation_fn") or "relu"
    if function != "relu" and not (function == "topk" and not str(raw["architecture"]).startswith("jumprelu")):
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
