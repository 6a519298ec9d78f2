"""Dictionaries on disk: SAELens' directory (cfg.json and sae_weights.safetensors, release 6), with our metadata in it.

Every tensor is for raw activations. The directory is renamed into place, so that it is whole or absent.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..errors import MechintError
from ..files import read_json, whole_directory
from .base import SAEConfig, SparseAutoencoder
from .registry import ARCHITECTURES, make

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
SAE_LENS_VERSION = "6.0.0"
"""Release whose layout this is; SAELens refuses to read newer keys without one."""
HF_MODULES = {
    ("mamba", "resid_post"): "backbone.layers.{layer}",
    ("mamba", "out"): "backbone.layers.{layer}.mixer",
    ("mamba", "embed"): "backbone.embeddings",
    ("gpt2", "resid_post"): "transformer.h.{layer}",
    ("gpt2", "attn_out"): "transformer.h.{layer}.attn",
    ("gpt2", "mlp_out"): "transformer.h.{layer}.mlp",
    ("gpt2", "embed"): "transformer.wte",
    ("llama", "resid_post"): "model.layers.{layer}",
    ("llama", "attn_out"): "model.layers.{layer}.self_attn",
    ("llama", "mlp_out"): "model.layers.{layer}.mlp",
    ("llama", "embed"): "model.embed_tokens",
}
BEFORE_LAYERS = {"mamba": "backbone.embeddings", "gpt2": "transformer.drop", "llama": "model.embed_tokens"}


def hook_name(config: SAEConfig) -> str:
    """Hugging Face's module whose output the site is, or the site's own name where no module has it.

    What a layer reads is the output of the layer before it.
    """
    family, kind, layer = config.model_family, config.site.rpartition(".")[2], config.layer
    if kind == "resid_pre" and family in BEFORE_LAYERS:
        if layer == 0:
            return BEFORE_LAYERS[family]
        kind, layer = "resid_post", layer - 1
    return HF_MODULES.get((family, kind), config.site).format(layer=layer)


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
    tensors = {
        there: getattr(sae, here).detach().to("cpu", torch.float32).contiguous() for here, there in sae.tensors.items()
    }
    with whole_directory(directory, CONFIG, "dictionary") as temporary:
        (temporary / CONFIG).write_text(json.dumps(cfg(sae), indent=2, sort_keys=True, allow_nan=False) + "\n")
        save_file(tensors, temporary / WEIGHTS)
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
    if raw.get("rescale_acts_by_decoder_norm") and "W_dec" in tensors:
        tensors = with_unit_rows(tensors)
    return from_tensors(config_of(raw, directory), tensors, str(directory / WEIGHTS))


def with_unit_rows(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same dictionary with decoder rows of norm 1, for files that say ``rescale_acts_by_decoder_norm``.

    There a latent's activation is the pre-activation times the norm of its row.
    """
    norms = tensors["W_dec"].norm(dim=1)
    grown = {name: tensor * norms if name in ("W_enc", "b_enc") else tensor for name, tensor in tensors.items()}
    return {**grown, "W_dec": tensors["W_dec"] / norms.clamp_min(1e-30)[:, None]}


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
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in ours.items() if k in known}
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
