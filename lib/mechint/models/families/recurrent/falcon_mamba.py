"""Falcon-Mamba (Zuo et al. 2024): Mamba-1 with norms of B, C and the low rank of Δ that have no weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...family import Names, StackFamily
from ...loading.config_reader import ConfigReader
from ...parts.base import Branch, Layer
from ...parts.mamba1 import Mamba1Mixer
from ...parts.norms import RMSNorm, WeightlessRMSNorm
from ...sizes import Asked, Trained
from ...stack import Stack, StackConfig


@dataclass(frozen=True, kw_only=True)
class FalconMambaConfig(StackConfig):
    """Sizes and switches of a Falcon-Mamba."""

    d_inner: int
    d_state: int
    d_conv: int
    dt_rank: int
    conv_bias: bool
    proj_bias: bool
    norm_eps: float
    inner_eps: float
    """The constant of the norms of B, C and the low rank of Δ."""
    family = "falcon_mamba"


def read(raw: ConfigReader) -> FalconMambaConfig:
    """The configuration of a ``config.json``."""
    raw.ignore("time_step_scale time_step_min time_step_max time_step_init_scheme time_step_floor "
               "rescale_prenorm_residual residual_in_fp32 use_mambapy use_falcon_mambapy "
               "use_associative_scan")  # fmt: skip
    raw.only("hidden_act", "silu", "swish")
    d_model = raw.size("hidden_size")
    expanded = int(raw.number("expand", 2) * d_model)  # the published file has another expand than intermediate_size
    return FalconMambaConfig(
        vocab_size=raw.size("vocab_size"),
        d_model=d_model,
        n_layer=raw.size("num_hidden_layers"),
        tied=raw.switch("tie_word_embeddings", True),
        d_inner=raw.size("intermediate_size", expanded),
        d_state=raw.size("state_size", 16),
        d_conv=raw.size("conv_kernel", 4),
        dt_rank=raw.rank("time_step_rank", d_model),
        conv_bias=raw.switch("use_conv_bias", True),
        proj_bias=raw.switch("use_bias", False),
        norm_eps=raw.number("layer_norm_epsilon", 1e-5),
        inner_eps=raw.number("mixer_rms_eps", 1e-6),
    )


def layer(c: FalconMambaConfig, i: int) -> Layer:
    """Norm and mixer."""
    mixer = Mamba1Mixer(
        c.d_model, c.d_inner, c.d_state, c.d_conv, c.dt_rank, conv_bias=c.conv_bias, proj_bias=c.proj_bias,
        inner_norm=lambda size: WeightlessRMSNorm(c.inner_eps), depth=c.n_layer,
    )  # fmt: skip
    return Layer({"norm": RMSNorm(c.d_model, c.norm_eps), "mixer": mixer}, [Branch("norm", "norm", ("mixer",))])


def asked(a: Asked) -> FalconMambaConfig:
    """The configuration of a model to train."""
    return FalconMambaConfig(**a.stream(), **a.mamba1(), norm_eps=1e-5, inner_eps=1e-6)


def write(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    c = model.config
    return {
        "architectures": ["FalconMambaForCausalLM"], "model_type": "falcon_mamba", "vocab_size": c.vocab_size,
        "hidden_size": c.d_model, "num_hidden_layers": c.n_layer, "tie_word_embeddings": c.tied,
        "intermediate_size": c.d_inner, "state_size": c.d_state, "conv_kernel": c.d_conv, "time_step_rank": c.dt_rank,
        "use_conv_bias": c.conv_bias, "use_bias": c.proj_bias, "layer_norm_epsilon": c.norm_eps,
        "mixer_rms_eps": c.inner_eps, "hidden_act": "silu",
    }  # fmt: skip


FAMILIES = [
    StackFamily(
        "falcon_mamba", "Falcon-Mamba", read, layer, lambda c: RMSNorm(c.d_model, c.norm_eps), write,
        Names(("backbone.", ""), {r"^embed_tokens\.": "embeddings.", r"^norm\.": "norm_f."}),
        trained=Trained({"mamba": "mamba"}, "mamba mamba", asked),
    )
]  # fmt: skip
