"""The format of Gemma Scope 2: a directory with ``config.json`` and ``params.safetensors``, always JumpReLU.

``config.json`` has the ``type`` (``sae`` or ``transcoder``), the Hugging Face modules whose input or output is read
(``hf_hook_point_in``) and written (``hf_hook_point_out``), the number of latents, and whether there is an
``affine_connection``. The tensors are w_enc [width, latent], b_enc, threshold [latent], w_dec [latent, width], b_dec
and, with the connection, affine_skip_connection [width, width], which stands behind what is read: x A. The norm in
front of the feed-forward part is read behind its weight, as our ``ln_2`` is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...models.loading.checkpoints import read_safetensors
from ...utils.errors import MechintError, shown
from ..base import SAEConfig, SparseAutoencoder
from ..transcoder import Transcoder, TranscoderConfig
from . import config_keys as keys
from .convert import configuration, rebuild, take

CONFIG, WEIGHTS = "config.json", "params.safetensors"
NAMES = {"w_enc": "W_enc", "b_enc": "b_enc", "w_dec": "W_dec", "b_dec": "b_dec", "threshold": "threshold"}
SKIP = {"affine_skip_connection.T": "W_skip"}
KNOWN = keys.listed("architecture type hf_hook_point_in hf_hook_point_out width affine_connection")
HARMLESS = keys.listed("model_name l0")
SITES = {
    "output": "layers.{}.resid_post",
    "pre_feedforward_layernorm.output": "layers.{}.ln_2",
    "post_feedforward_layernorm.output": "layers.{}.mlp_out",
    "self_attn.o_proj.input": "layers.{}.head_out",
}
"""Our site of each of their hooks behind ``model.layers.{layer}.``."""
HOOK = re.compile(r"model\.(?:language_model\.)?layers\.([0-9]{1,4})\.([\w.]+)")


def type_of(directory: Path) -> str:
    """``sae``, ``transcoder`` or another word; '' for a directory without such a configuration."""
    if not all((directory / name).is_file() for name in (CONFIG, WEIGHTS)):
        return ""
    return keys.text(configuration(directory, CONFIG, WEIGHTS), "type")


def load_gemma_scope_2(directory: str | Path) -> SparseAutoencoder:
    """Reads one dictionary; frozen.

    Raises:
        MechintError: a file or tensor is missing, it is of another type, or a key is not understood.
    """
    raw, found, place = read(Path(directory), "sae", "sae.load_transcoder reads transcoders")
    site, written = (site_said(raw, name, place / CONFIG) for name in ("hf_hook_point_in", "hf_hook_point_out"))
    if site != written or "W_skip" in found:
        raise MechintError(f"{place / CONFIG}: a dictionary reconstructs the site that it reads, {site}; correct it")
    d_in, d_sae = found["W_enc"].shape
    config = SAEConfig(
        "jumprelu", d_in, d_sae, apply_b_dec_to_input=False, site=site, layer=int(site.split(".")[1]),
        model_name=keys.text(raw, "model_name"),
    )  # fmt: skip
    return rebuild(config, found, str(place / WEIGHTS))


def load_gemma_transcoder_2(directory: Path) -> Transcoder:
    """Reads one transcoder, with its skip connection where it has one.

    Raises:
        MechintError: as for a dictionary.
    """
    raw, found, place = read(directory, "transcoder", "sae.load reads dictionaries of one site")
    site, written = (site_said(raw, name, place / CONFIG) for name in ("hf_hook_point_in", "hf_hook_point_out"))
    d_in, d_sae = found["W_enc"].shape
    config = TranscoderConfig(
        "jumprelu", d_in, d_sae, found["W_dec"].shape[1], site=site, site_out=written,
        model_name=keys.text(raw, "model_name"),
    )  # fmt: skip
    return Transcoder(config, found, str(place / WEIGHTS))


def read(directory: Path, kind: str, instead: str) -> tuple[dict[str, Any], dict[str, Tensor], Path]:
    """The configuration and the tensors of a directory, both checked, and the directory."""
    raw, file = configuration(directory, CONFIG, WEIGHTS), directory / CONFIG
    if raw.get("type") != kind:
        raise MechintError(f"{file}: type is {shown(raw.get('type'))}, and not {kind!r}; {instead}")
    if raw.get("architecture") != "jump_relu":
        raise MechintError(f"{file}: architecture is {shown(raw.get('architecture'))}; only jump_relu can be read")
    keys.refuse_unknown(raw, KNOWN | HARMLESS, file)
    found = named(read_safetensors(directory / WEIGHTS), directory / WEIGHTS)
    if ("W_skip" in found) != keys.switch(raw, "affine_connection", False, file):
        raise MechintError(f"{file}: affine_connection and the tensors of {WEIGHTS} disagree; copy both again")
    if keys.size(raw, "width", file) != found["W_enc"].shape[1]:
        raise MechintError(f"{file}: width is {raw['width']}, and the encoder has {found['W_enc'].shape[1]} latents")
    return raw, found, directory


def named(given: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors of one dictionary or transcoder by our names, from those of its file.

    Raises:
        MechintError: one is missing, unknown or of another number of axes, or a threshold is below 0, where a latent
            would be negative.
    """
    found = take(given, NAMES | (SKIP if "affine_skip_connection" in given else {}), (), str(path))
    if any(found[name].dim() != 2 for name in found if name.startswith("W_")):
        raise MechintError(f"{path}: an encoder, a decoder or a skip connection is not a matrix; copy the file again")
    if bool((found["threshold"] < 0).any()):
        raise MechintError(f"{path}: a threshold is below 0, where a latent would be negative; not supported")
    return {name: tensor.float().contiguous() for name, tensor in found.items()}


def site_said(raw: dict[str, Any], name: str, file: Path) -> str:
    """Our site of one of their hooks.

    Raises:
        MechintError: it is none that is known here.
    """
    found = HOOK.fullmatch(keys.text(raw, name))
    if found is None or found[2] not in SITES:
        raise MechintError(
            f"{file}: {name} is {shown(raw.get(name))}; known are {', '.join(SITES)} behind model.layers.N"
        )
    return SITES[found[2]].format(int(found[1]))
