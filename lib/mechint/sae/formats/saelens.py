"""Dictionaries on disk: SAELens' directory (cfg.json and sae_weights.safetensors, release 6), with our metadata in it.

Every tensor is for raw activations. The directory is renamed into place, so that it is whole or absent.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...models.loading.checkpoints import CONFIG_LIMIT, read_safetensors
from ...models.loading.hf_modules import module_of
from ...utils.errors import MechintError, short, shown
from ...utils.files import read_json, reading, whole_directory, write_tensors
from ..architectures import ARCHITECTURES, make
from ..base import SAEConfig, SparseAutoencoder
from . import config_keys as keys

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
"""Architectures that read one site and write another."""
SAE_LENS_VERSION = "6.0.0"
"""Release whose layout this is; SAELens refuses to read newer keys without one."""


def hook_name(config: SAEConfig) -> str:
    """Hugging Face's module whose output the site is, or the site's own name where no module has it."""
    return module_of(config.model_family, config.site, config.layer)


def save(sae: SparseAutoencoder, directory: str | Path) -> Path:
    """Writes a finished dictionary (of :meth:`SparseAutoencoder.fold`) into ``directory``, replacing one that is there.

    Returns:
        The directory.

    Raises:
        MechintError: the directory holds something else than a dictionary.
        OSError: the disk is full or read-only; nothing is left behind.
    """
    directory = Path(directory)
    sae = sae.inference()
    sae.check_attached()
    tensors = {
        there: getattr(sae, here).detach().to("cpu", torch.float32).contiguous() for here, there in sae.tensors.items()
    }
    with whole_directory(directory, CONFIG, "dictionary") as temporary:
        (temporary / CONFIG).write_text(json.dumps(cfg(sae), indent=2, sort_keys=True, allow_nan=False) + "\n")
        write_tensors(temporary / WEIGHTS, tensors)
    return directory


def cfg(sae: SparseAutoencoder) -> dict[str, Any]:
    """SAELens' cfg.json, with our whole configuration as ``metadata.mechint``."""
    c = sae.config
    return {
        "architecture": sae.saved_as or c.architecture,
        "d_in": c.d_in,
        "d_sae": c.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": c.apply_b_dec_to_input,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": SAE_LENS_VERSION,
            "sae_lens_training_version": None,
            "model_name": c.model_name,
            "model_class_name": "AutoModelForCausalLM",
            "hook_name": hook_name(c),
            "hook_head_index": None,
            "context_size": c.context_size,
            "prepend_bos": c.prepend_bos,
            "dataset_path": c.dataset,
            "mechint": dataclasses.asdict(c),
        },
        **sae.extra_config(),
    }


def load(directory: str | Path) -> SparseAutoencoder:
    """Reads a dictionary that :func:`save` or SAELens wrote; frozen and in raw units.

    Raises:
        MechintError: files or tensors are missing, of wrong shape, not finite, or of an architecture we do not have.
    """
    directory = Path(directory)
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise MechintError(f"{directory} is not a dictionary: {name} is missing")
    raw = read_json(directory / CONFIG, "copy it again", CONFIG_LIMIT)
    if not isinstance(raw, dict):
        raise MechintError(f"{directory / CONFIG} is not the configuration of a dictionary: it is not a JSON object")
    if raw.get("architecture") in TRANSCODERS:
        raise MechintError(
            f"{directory} is a transcoder, which writes another site than it reads; sae.load_transcoder reads it"
        )
    config = config_of(raw, directory)
    tensors = read_safetensors(directory / WEIGHTS)
    check_matrices(config, tensors, str(directory / WEIGHTS))
    if keys.switch(raw, "rescale_acts_by_decoder_norm", False, directory / CONFIG):
        tensors = with_unit_rows(tensors)
    with reading(directory / WEIGHTS):
        sae = from_tensors(config, tensors, str(directory / WEIGHTS))
    sae.centred = centred(raw, directory / CONFIG)
    return sae


def centred(raw: dict[str, Any], file: Path) -> bool:
    """True if the model's writing weights were centred, as the arguments of TransformerLens' loader say.

    Raises:
        MechintError: they change what the dictionary's site holds in another way.
    """
    about = {**raw, **(raw.get("metadata") or {})}
    given = about.get("model_from_pretrained_kwargs") or {}
    if not isinstance(given, dict):
        raise MechintError(f"{file}: model_from_pretrained_kwargs is {shown(given)}; correct it")
    site = keys.text(about, "hook_name") or keys.text(about, "hook_point")
    changed = [name for name in keys.CHANGED_HEADS if keys.switch(given, name, False, file)]
    if changed and ".attn.hook_" in site:
        raise MechintError(
            f"{file}: the model was loaded with {', '.join(changed)}, which changes what {site} holds; not supported"
        )
    return keys.switch(given, "center_writing_weights", False, file) and site.rpartition("hook_")[2] in keys.WRITTEN


def check_matrices(config: SAEConfig, tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Raises :class:`MechintError` where the decoder has other sizes than the configuration says.

    Asked before a dictionary of these sizes is made: a configuration may say anything.
    """
    whole = {"W_enc": (config.d_in, config.d_sae), "W_dec": (config.d_sae, config.d_in)}
    for name, tensor in tensors.items():
        if not tensor.dtype.is_floating_point:
            raise MechintError(f"{where}: {short(name)} is {tensor.dtype}, which is not a weight; copy the file again")
        shape = whole.get(name, (config.d_sae,) if name == "b_enc" else tuple(tensor.shape))
        if tuple(tensor.shape) != shape:
            raise MechintError(f"{where}: {name} is {list(tensor.shape)}, but the configuration says {list(shape)}")
    if "W_dec" not in tensors:
        raise MechintError(f"{where} lacks W_dec; is it a {config.architecture} dictionary?")


def with_unit_rows(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same dictionary with decoder rows of norm 1, for files that say ``rescale_acts_by_decoder_norm``.

    There a latent's activation is the pre-activation times the norm of its row.
    """
    norms = tensors["W_dec"].norm(dim=1)
    grown = {name: tensor * norms if name in ("W_enc", "b_enc") else tensor for name, tensor in tensors.items()}
    return {**grown, "W_dec": tensors["W_dec"] / norms.clamp_min(1e-30)[:, None]}


def config_of(raw: dict[str, Any], where: Path) -> SAEConfig:
    """Our configuration of a cfg.json, ours or SAELens' own."""
    file = where / CONFIG
    keys.refuse_unknown(raw, keys.SAE_LENS | keys.SAE_LENS_HARMLESS, file)
    for name in ("normalize_activations", "reshape_activations"):
        if raw.get(name, "none") not in ("none", None):
            more = "fold that into the weights first (SAELens: sae.fold_activation_norm_scaling_factor)"
            raise MechintError(f"{file}: {name} is {shown(raw[name])}; {more if 'norm' in name else 'not supported'}")
    if keys.switch(raw, "finetuning_scaling_factor", False, file):
        raise MechintError(f"{file}: finetuning_scaling_factor is true, a factor for each latent; not supported")
    metadata = raw.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise MechintError(f"{file} is not the configuration of a dictionary: metadata is {shown(metadata)}")
    if (ours := metadata.get("mechint")) is not None:
        return own_config(ours, file)
    architecture, k = architecture_of(raw, file)
    about = {**raw, **metadata}  # before release 6 there was no metadata
    return SAEConfig(
        architecture=architecture,
        d_in=keys.size(raw, "d_in", file),
        d_sae=keys.size(raw, "d_sae", file),
        k=k,
        apply_b_dec_to_input=keys.switch(raw, "apply_b_dec_to_input", True, file),
        model_name=keys.text(about, "model_name"),
        site=keys.text(about, "hook_name") or keys.text(about, "hook_point"),
        layer=layer_of(about),
        context_size=keys.size(about, "context_size", file) if about.get("context_size") else 0,
        prepend_bos=keys.switch(about, "prepend_bos", False, file),
        dataset=keys.text(about, "dataset_path"),
    )


def layer_of(about: Mapping[str, Any]) -> int:
    """The layer that a file of SAELens before release 6 says; −1 where there is none."""
    found = about.get("hook_layer", about.get("hook_point_layer"))
    return found if type(found) is int else -1


def own_config(ours: Any, file: Path) -> SAEConfig:
    """The configuration that :func:`save` wrote, type by type."""
    if not isinstance(ours, dict):
        raise MechintError(f"{file} is not the configuration of a dictionary: metadata.mechint is {shown(ours)}")
    fields = {field.name: field for field in dataclasses.fields(SAEConfig)}
    keys.refuse_unknown(ours, fields, file)
    kinds: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float), "bool": (bool,)}
    values: dict[str, Any] = {}
    for name, value in ours.items():
        if name == "groups":
            right = isinstance(value, list) and all(type(one) is int and 0 < one <= keys.LARGEST for one in value)
            value = tuple(value) if right else value
        else:
            right = type(value) in kinds[str(fields[name].type)]
        if not right:
            raise MechintError(f"{file} is not the configuration of a dictionary: {name} is {shown(value)}; correct it")
        values[name] = value
    for name in ("architecture", "d_in", "d_sae"):
        if name not in values:
            raise MechintError(f"{file} is not the configuration of a dictionary: metadata.mechint lacks {name}")
    for name in ("d_in", "d_sae"):
        keys.size(values, name, file)
    return SAEConfig(**values)


def architecture_of(raw: Mapping[str, Any], file: Path) -> tuple[str, int]:
    """Our name of a cfg.json's architecture, and k of a TopK dictionary (0 for others).

    Before release 6 a TopK dictionary was "standard" with ``activation_fn_str`` "topk" and k in its arguments.

    Raises:
        MechintError: the activation function is another, or has arguments that nothing here reads.
    """
    names = {kind.saved_as or name: name for name, kind in ARCHITECTURES.items()}
    said = raw.get("architecture")
    if not isinstance(said, str):
        raise MechintError(f"{file} is not the configuration of a dictionary: architecture is {shown(said)}")
    architecture = names.get(said, said)
    function = raw.get("activation_fn_str") or raw.get("activation_fn") or ("topk" if said == "topk" else "relu")
    arguments = raw.get("activation_fn_kwargs") or {}
    if not isinstance(arguments, dict):
        raise MechintError(f"{file}: activation_fn_kwargs is {shown(arguments)}; correct it")
    if function == "topk" and said in ("standard", "topk"):
        keys.refuse_unknown(arguments, ("k",), f"{file}: activation_fn_kwargs")
        if "k" in arguments and raw.get("k", arguments["k"]) != arguments["k"]:
            raise MechintError(f"{file}: k is {shown(raw['k'])}, and {shown(arguments['k'])} in activation_fn_kwargs")
        return "topk", keys.size({**arguments, **raw}, "k", file)
    if function != "relu":
        raise MechintError(f"{file}: the activation function of {said} is {shown(function)}; not supported")
    keys.refuse_unknown(arguments, (), f"{file}: activation_fn_kwargs")
    return architecture, 0


def from_tensors(config: SAEConfig, tensors: dict[str, torch.Tensor], where: str) -> SparseAutoencoder:
    """A frozen dictionary from tensors by SAELens' names; strict in both directions."""
    try:
        sae = make(config)
    except MechintError as error:  # the architecture's error names no file
        raise MechintError(f"{where}: {error}") from None
    missing = sorted(set(sae.tensors.values()) - set(tensors))
    extra = sorted(short(name) for name in set(tensors) - set(sae.tensors.values()))
    if missing or extra:
        what = [f"lacks {', '.join(missing)}"] if missing else []
        what += [f"has {', '.join(extra)}, which {config.architecture} does not"] if extra else []
        raise MechintError(f"{where} {' and '.join(what)}; is it a {config.architecture} dictionary?")
    for here, there in sae.tensors.items():
        parameter, tensor = getattr(sae, here), tensors[there]
        if parameter.shape != tensor.shape:
            raise MechintError(
                f"{where}: {there} is {list(tensor.shape)}, but the configuration says {list(parameter.shape)}"
            )
        if not torch.isfinite(tensor).all():
            raise MechintError(f"{where}: {there} holds NaN or infinite numbers; train the dictionary again")
        parameter.data.copy_(tensor)
    return sae.requires_grad_(False).eval()
