"""Dictionaries on disk: SAELens' directory (cfg.json and sae_weights.safetensors, release 6), with our metadata in it.

Every tensor is for raw activations. The directory is renamed into place, so that it is whole or absent.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..errors import MechintError
from ..files import read_json
from .base import SAEConfig, SparseAutoencoder
from .registry import ARCHITECTURES, make

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
SAE_LENS_VERSION = "6.0.0"
"""Release whose layout this is; SAELens refuses to read newer keys without one."""
HF_MODULES = {
    ("mamba", "resid_pre"): "backbone.layers.{layer}",
    ("mamba", "resid_post"): "backbone.layers.{layer}",
    ("mamba", "out"): "backbone.layers.{layer}.mixer",
    ("gpt2", "resid_post"): "transformer.h.{layer}",
    ("gpt2", "attn_out"): "transformer.h.{layer}.attn",
    ("gpt2", "mlp_out"): "transformer.h.{layer}.mlp",
}


def hook_name(config: SAEConfig) -> str:
    """Hugging Face's module whose output the site is, or the site's own name where no module has it."""
    kind = config.site.rpartition(".")[2]
    return HF_MODULES.get((config.model_family, kind), config.site).format(layer=config.layer)


def save(sae: SparseAutoencoder, directory: str | Path) -> Path:
    """Writes a finished dictionary (of :meth:`SparseAutoencoder.fold`) into ``directory``, replacing one that is there.

    Returns:
        The directory.

    Raises:
        MechintError: the directory holds something else than a dictionary.
        OSError: the disk is full or read-only; nothing is left behind.
    """
    directory = Path(directory)
    if directory.exists() and any(directory.iterdir()) and not (directory / CONFIG).is_file():
        raise MechintError(f"{directory} holds files that are no dictionary; choose another directory")
    sae = sae.inference()
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}."))
    try:
        tensors = {
            there: getattr(sae, here).detach().to("cpu", torch.float32).contiguous()
            for here, there in sae.tensors.items()
        }
        (temporary / CONFIG).write_text(json.dumps(cfg(sae), indent=2, sort_keys=True, allow_nan=False) + "\n")
        save_file(tensors, temporary / WEIGHTS)
        temporary.chmod(0o755)
        for path in temporary.iterdir():
            path.chmod(0o644)
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        shutil.rmtree(directory, ignore_errors=True)
        os.replace(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
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
            raise MechintError(f"{directory} is no dictionary: {name} is missing")
    raw = read_json(directory / CONFIG)
    try:
        tensors = load_file(directory / WEIGHTS)
    except SafetensorError as error:
        raise MechintError(f"{directory / WEIGHTS} can't be read ({error}); copy it again") from None
    return from_tensors(config_of(raw, directory), tensors, str(directory / WEIGHTS))


def config_of(raw: dict[str, Any], where: Path) -> SAEConfig:
    """Our configuration of a cfg.json, ours or SAELens' own."""
    try:
        names = {kind.saved_as or name: name for name, kind in ARCHITECTURES.items()}
        architecture = names.get(raw["architecture"], raw["architecture"])
        metadata = raw.get("metadata", {})
        ours = metadata.get("mechint")
        if raw.get("normalize_activations", "none") not in ("none", None):
            raise MechintError(
                f"{where / CONFIG} normalises activations by {raw['normalize_activations']!r}; fold that into the "
                f"weights first (SAELens: sae.fold_activation_norm_scaling_factor)"
            )
        if raw.get("reshape_activations", "none") not in ("none", None):
            raise MechintError(f"{where / CONFIG} reshapes activations ({raw['reshape_activations']!r}); not supported")
        if ours is not None:
            known = {field.name for field in dataclasses.fields(SAEConfig)}
            values = {k: tuple(v) if isinstance(v, list) else v for k, v in ours.items() if k in known}
            return SAEConfig(**values)
        return SAEConfig(
            architecture=architecture,
            d_in=int(raw["d_in"]),
            d_sae=int(raw["d_sae"]),
            k=int(raw.get("k", 0)),
            apply_b_dec_to_input=bool(raw.get("apply_b_dec_to_input", True)),
            model_name=str(metadata.get("model_name") or ""),
            site=str(metadata.get("hook_name") or ""),
            context_size=int(metadata.get("context_size") or 0),
            prepend_bos=bool(metadata.get("prepend_bos", False)),
            dataset=str(metadata.get("dataset_path") or ""),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise MechintError(f"{where / CONFIG} is not the configuration of a dictionary ({error!r})") from None


def from_tensors(config: SAEConfig, tensors: dict[str, torch.Tensor], where: str) -> SparseAutoencoder:
    """A frozen dictionary from tensors by SAELens' names; strict in both directions."""
    sae = make(config)
    missing = sorted(set(sae.tensors.values()) - set(tensors))
    extra = sorted(set(tensors) - set(sae.tensors.values()))
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
