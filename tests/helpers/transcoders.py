"""Transcoders with drawn weights, attached to a model."""

from __future__ import annotations

from typing import Any

import torch

from mechint.sae import Transcoder
from mechint.sae.transcoder import TranscoderConfig


def transcoder(
    model: Any, layer: int, latents: int = 16, architecture: str = "relu", skip: bool = False, seed: int = 0,
    read: str = "ln_2", written: str = "mlp_out",
) -> Transcoder:  # fmt: skip
    """One of a layer, of the model's own precision."""
    site, out = f"layers.{layer}.{read}", f"layers.{layer}.{written}"
    d_in, d_out = model.sites[site].units[0], model.sites[out].units[0]
    draw = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (d_in, latents), "b_enc": (latents,), "W_dec": (latents, d_out), "b_dec": (d_out,)}
    shapes |= {"W_skip": (d_out, d_in)} if skip else {}
    shapes |= {"threshold": (latents,)} if architecture == "jumprelu" else {}
    drawn = {name: 0.3 * torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    config = TranscoderConfig(architecture, d_in, latents, d_out, 5 * (architecture == "topk"), site, out)
    return Transcoder(config, drawn).to(next(model.parameters()).dtype)
