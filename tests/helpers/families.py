"""Small random models of declared families, made from their configurations without any file."""

from __future__ import annotations

from typing import Any

import torch

from mechint.models.families import declared
from mechint.models.families.recurrent.falcon_h1 import FalconH1Config
from mechint.models.families.recurrent.zamba2 import Zamba2Config
from mechint.models.parts.rotation import Rotation
from tests.helpers.builders import VOCABULARY

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": 8, "n_layer": 2, "n_head": 2, "n_kv_head": 2, "d_mlp": 10, "ssm_heads": 2,
    "ssm_head_size": 4, "d_state": 3, "n_groups": 1, "d_conv": 3, "norm_eps": 1e-5,
}  # fmt: skip


def built(name: str, config: Any) -> Any:
    torch.manual_seed(3)
    model = declared()[name].build(config).double().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.mul_(1.5)
    model.embed_tokens.weight.normal_()
    return model


def falcon_h1() -> Any:
    """Mamba-2 and attention side by side, with multipliers, and a feed-forward part behind them, in float64."""
    config = FalconH1Config(
        **SIZES, d_head=4, attention_bias=False, rotation=Rotation(100.0), mlp_bias=False, activation="silu",
        conv_bias=True, proj_bias=False, gated_norm="product", dt_limits=(0.0, 1e9), key_scale=0.7, attention_in=1.3,
        attention_out=0.8, ssm_in=0.9, ssm_out=1.2, ssm_scales=(1.0,) * 5, mlp_scales=(1.0, 1.0),
    )  # fmt: skip
    return built("falcon_h1", config)


def zamba2() -> Any:
    """A Mamba-2 and, in the second layer, a block in front of one that reads the embeddings again, in float64."""
    config = Zamba2Config(
        **SIZES, kinds=("mamba", "hybrid"), blocks=1, rotation=None, rank=2, attention_adapted=False,
        activation="gelu", bias=False, least_dt=0.001,
    )  # fmt: skip
    return built("zamba2", config)
