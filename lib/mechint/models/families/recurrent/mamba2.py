"""Mamba-2 (Dao & Gu 2024, "Transformers are SSMs"), as transformers writes it; one mixer a layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ...family import Names, StackFamily
from ...loading.config_reader import ConfigReader
from ...parts.base import Branch, Layer
from ...parts.mamba2 import Mamba2Mixer
from ...parts.norms import RMSNorm
from ...stack import Stack, StackConfig


@dataclass(frozen=True, kw_only=True)
class Mamba2Config(StackConfig):
    """Sizes and switches of a Mamba-2."""

    n_head: int
    d_head: int
    d_state: int
    n_groups: int
    d_conv: int
    conv_bias: bool
    proj_bias: bool
    norm_eps: float
    dt_limits: tuple[float, float] = (0.0, math.inf)
    """The least and the largest step size."""
    family = "mamba2"

    @property
    def d_inner(self) -> int:
        return self.n_head * self.d_head


def read(raw: ConfigReader) -> Mamba2Config:
    """The configuration of a ``config.json``."""
    raw.ignore(
        "time_step_rank time_step_min time_step_max time_step_floor rescale_prenorm_residual chunk_size "
        "residual_in_fp32"
    )
    raw.only("hidden_act", "silu", "swish")
    raw.only("rms_norm", True)
    d_model, heads = raw.size("hidden_size"), raw.size("num_heads")
    d_head = raw.size("head_dim")
    raw.only("expand", heads * d_head / d_model)  # the width of the mixer is said twice
    return Mamba2Config(
        vocab_size=raw.size("vocab_size"),
        d_model=d_model,
        n_layer=raw.size("num_hidden_layers"),
        tied=raw.switch("tie_word_embeddings", False),
        n_head=heads,
        d_head=d_head,
        d_state=raw.size("state_size"),
        n_groups=raw.size("n_groups"),
        d_conv=raw.size("conv_kernel", 4),
        conv_bias=raw.switch("use_conv_bias", True),
        proj_bias=raw.switch("use_bias", False),
        norm_eps=raw.number("layer_norm_epsilon", 1e-5),
        dt_limits=raw.limits("time_step_limit"),
    )


def layer(c: Mamba2Config, i: int) -> Layer:
    """Norm and mixer."""
    mixer = Mamba2Mixer(
        c.d_model, c.n_head, c.d_head, c.d_state, c.n_groups, c.d_conv, conv_bias=c.conv_bias, proj_bias=c.proj_bias,
        eps=c.norm_eps, norm_groups=c.n_groups, limits=c.dt_limits,
    )  # fmt: skip
    modules = {"norm": RMSNorm(c.d_model, c.norm_eps), "mixer": mixer}
    return Layer(modules, [Branch("norm", "normed", ("mixer",))])


def write(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    c = model.config
    return {
        "architectures": ["Mamba2ForCausalLM"], "model_type": "mamba2", "vocab_size": c.vocab_size,
        "hidden_size": c.d_model, "num_hidden_layers": c.n_layer, "tie_word_embeddings": c.tied,
        "num_heads": c.n_head, "head_dim": c.d_head, "state_size": c.d_state, "n_groups": c.n_groups,
        "conv_kernel": c.d_conv, "use_conv_bias": c.conv_bias, "use_bias": c.proj_bias,
        "layer_norm_epsilon": c.norm_eps, "time_step_limit": list(c.dt_limits), "hidden_act": "silu",
        "expand": c.d_inner // c.d_model,
    }  # fmt: skip


FAMILIES = [
    StackFamily(
        "mamba2", "Mamba-2", read, layer, lambda c: RMSNorm(c.d_model, c.norm_eps), write,
        Names(("backbone.", ""), {r"^embed_tokens\.": "embeddings.", r"^norm\.": "norm_f."}),
    )
]  # fmt: skip
