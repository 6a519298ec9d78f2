"""Mamba-2 (Dao & Gu 2024, "Transformers are SSMs"), as transformers and its authors write it; one mixer a layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ....utils.errors import MechintError
from ...family import Names, StackFamily
from ...loading.config_reader import ConfigReader
from ...parts.base import Branch, Layer
from ...parts.mamba2 import Mamba2Mixer
from ...parts.norms import RMSNorm
from ...sizes import Asked, Trained
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
    """The configuration of a ``config.json``, of transformers or of the authors."""
    if of_authors(raw.raw):
        return read_authors(raw)
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


def of_authors(config: Mapping[str, Any]) -> bool:
    """True of a configuration as the authors' program writes it (state-spaces/mamba2-*)."""
    section = config.get("ssm_cfg")
    return isinstance(section, Mapping) and section.get("layer") == "Mamba2"


def read_authors(raw: ConfigReader) -> Mamba2Config:
    """The configuration as the authors' program writes it, whose mixer is a section; only what differs is said there.

    The rows of the embedding are filled up to a multiple, as the file's are.
    """
    raw.ignore("residual_in_fp32 fused_add_norm attn_cfg")
    raw.only("rms_norm", True)
    raw.only("d_intermediate", 0)
    raw.only("attn_layer_idx", [])
    d_model, vocabulary = raw.size("d_model"), raw.size("vocab_size")
    multiple = raw.size("pad_vocab_size_multiple", 8)
    n_layer, tied = raw.size("n_layer"), raw.switch("tie_embeddings", True)
    raw.inside("ssm_cfg", raw.raw["ssm_cfg"], "")
    raw.ignore("layer conv_init A_init_range dt_min dt_max dt_init_floor chunk_size use_mem_eff_path")
    raw.only("rmsnorm", True)
    raw.only("norm_before_gate", False)
    raw.only("D_has_hdim", False)
    inner, size = raw.size("expand", 2) * d_model, raw.size("headdim", 64)
    raw.only("d_ssm", inner)
    if inner % size:
        raise MechintError(f"{raw.where}: a mixer of the width {inner} has no heads of the width {size}; correct it")
    return Mamba2Config(
        vocab_size=-(-vocabulary // multiple) * multiple,
        d_model=d_model,
        n_layer=n_layer,
        tied=tied,
        n_head=inner // size,
        d_head=size,
        d_state=raw.size("d_state", 128),
        n_groups=raw.size("ngroups", 1),
        d_conv=raw.size("d_conv", 4),
        conv_bias=raw.switch("conv_bias", True),
        proj_bias=raw.switch("bias", False),
        norm_eps=1e-5,
        dt_limits=raw.limits("dt_limit"),
    )


def layer(c: Mamba2Config, i: int) -> Layer:
    """Norm and mixer."""
    mixer = Mamba2Mixer(
        c.d_model, c.n_head, c.d_head, c.d_state, c.n_groups, c.d_conv, conv_bias=c.conv_bias, proj_bias=c.proj_bias,
        eps=c.norm_eps, norm_groups=c.n_groups, limits=c.dt_limits,
    )  # fmt: skip
    modules = {"norm": RMSNorm(c.d_model, c.norm_eps), "mixer": mixer}
    return Layer(modules, [Branch("norm", "normed", ("mixer",))])


def asked(a: Asked) -> Mamba2Config:
    """The configuration of a model to train."""
    mixer = a.mamba2()
    heads = {"n_head": mixer.pop("ssm_heads"), "d_head": mixer.pop("ssm_head_size")}
    return Mamba2Config(**a.stream(), **heads, **mixer, norm_eps=1e-5)


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
        Names(
            ("backbone.", ""), {r"^embed_tokens\.": "embeddings.", r"^norm\.": "norm_f."},
            others={r"^backbone\.embedding\.": "backbone.embeddings."},
        ),
        trained=Trained({"mamba2": "mamba2"}, "mamba2 mamba2", asked),
        knows=of_authors,
    )
]  # fmt: skip
