"""The format of Gemma Scope: a directory ``layer_N/width_…/average_l0_…`` with ``params.npz`` alone, always JumpReLU.

Nothing in the file says of which site a dictionary is. The names of its directories do, as the releases are laid out:
``gemma-scope-2b-pt-res`` (the residual stream behind a layer), ``-mlp`` (what a feed-forward part adds) and ``-att``
(what the heads give), and ``layer_N``.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...utils.errors import MechintError, short
from ...utils.files import reading
from ..base import SAEConfig, SparseAutoencoder
from ..transcoder import Transcoder, TranscoderConfig
from .convert import rebuild, take

WEIGHTS = "params.npz"
NAMES = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}
HOOKS = {"res": "blocks.{}.hook_resid_post", "mlp": "blocks.{}.hook_mlp_out", "att": "blocks.{}.attn.hook_z"}
"""The site of each release, by the end of its name, as TransformerLens calls it."""
RELEASE = re.compile(r".*gemma-scope-[\w.]+-(?:pt|it)-(res|mlp|att)(?:-canonical)?")
TRANSCODERS = re.compile(r".*gemma-scope-[\w.]+-(?:pt|it)-(transcoders)")
"""The name of a release of transcoders, whose files look like those of dictionaries."""
LAYER = re.compile(r"layer_([0-9]{1,4})")


def load_gemma_scope(directory: str | Path) -> SparseAutoencoder:
    """Reads one dictionary; frozen. Where no directory's name says its site, :func:`mechint.sae.attach` is told it.

    Raises:
        MechintError: the file is missing or no archive of arrays, holds objects, or lacks a tensor.
    """
    if released(Path(directory), TRANSCODERS):
        raise MechintError(f"{directory} is a transcoder by the name of its release; read it with sae.load_transcoder")
    path = Path(directory) / WEIGHTS
    found = tensors(path)
    d_in, d_sae = found["W_enc"].shape
    site, layer = site_said(Path(directory))
    config = SAEConfig("jumprelu", d_in, d_sae, apply_b_dec_to_input=False, site=site, layer=layer)
    return rebuild(config, found, str(path))


def load_gemma_transcoder(directory: Path) -> Transcoder:
    """Reads one transcoder, always JumpReLU; its file says neither a site nor that it is one, so the reader does.

    It reads the norm in front of the feed-forward part without the norm's weight, and writes what that part adds to the
    stream (model card of ``gemma-scope-2b-pt-transcoders``). Where no directories' names say
    the release and the layer, :meth:`Transcoder.attach` is told the sites.

    Raises:
        MechintError: as for a dictionary, or the release is one of dictionaries.
    """
    if released(directory, RELEASE):
        raise MechintError(f"{directory} is a dictionary of one site by the name of its release; read it with sae.load")
    path = directory / WEIGHTS
    found, layer = tensors(path), released(directory, LAYER)
    at = f"blocks.{int(layer[-1])}." if layer and released(directory, TRANSCODERS) else ""
    config = TranscoderConfig(
        "jumprelu", found["W_enc"].shape[0], found["W_enc"].shape[1], found["W_dec"].shape[1],
        site=at and f"{at}ln2.hook_normalized", site_out=at and f"{at}hook_mlp_out",
    )  # fmt: skip
    return Transcoder(config, found, str(path))


def site_said(directory: Path) -> tuple[str, int]:
    """The site and the layer that names of directories say; '' and -1 where they do not."""
    release, layer = released(directory, RELEASE), released(directory, LAYER)
    if not release or not layer:
        return "", -1
    return HOOKS[release[-1]].format(int(layer[-1])), int(layer[-1])


def released(directory: Path, name: re.Pattern[str]) -> list[str]:
    """Finds the group of a pattern in each directory of a path whose whole name fits it, from the top down."""
    return [found[1] for part in directory.absolute().parts if (found := name.fullmatch(part))]


def tensors(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of one dictionary or transcoder, by our names."""
    found = take(_read(path), NAMES, (), str(path))
    if found["W_enc"].dim() != 2 or found["W_dec"].dim() != 2:
        raise MechintError(f"{path}: an encoder or a decoder is not a matrix; copy the file again")
    return found


def _read(path: Path) -> dict[str, Tensor]:
    """The arrays of an archive; objects, which would be unpickled, are refused."""
    if not path.is_file():
        raise MechintError(f"{path.parent} is not a dictionary: {path.name} is missing")
    found: dict[str, Tensor] = {}
    with reading(path), np.load(path, allow_pickle=False) as arrays:
        for name in arrays.files:
            array = arrays[name]
            if array.dtype.kind != "f":
                raise MechintError(
                    f"{path}: {short(name)} is of the type {array.dtype}, which no weight is; copy it again"
                )
            found[name] = torch.from_numpy(array.astype(np.float32))
    return found
