"""Mamba's tensors under the names of others: what a checkpoint must hold, and how its sizes are read off it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import MechintError
from .exact import check_claims, check_names, commonest, is_tied, read_claims
from .mamba import Mamba, MambaConfig


@dataclass(frozen=True)
class Layout:
    """How one program names the tensors: ``{prefix}{embedding}.weight``, ``{prefix}layers.0.{mixer}A_log``."""

    prefix: str
    embedding: str
    mixer: str

    def name(self, ours: str) -> str:
        """Our name in this layout's words."""
        if ours == "lm_head.weight":
            return ours
        if ours == "embedding.weight":
            return f"{self.prefix}{self.embedding}.weight"
        if layer := re.fullmatch(r"(layers\.\d+\.)(?!norm\.)(.+)", ours):
            return f"{self.prefix}{layer[1]}{self.mixer}{layer[2]}"
        return self.prefix + ours


HUGGING_FACE = Layout("backbone.", "embeddings", "mixer.")
LAYOUTS = (
    HUGGING_FACE,
    Layout("backbone.", "embedding", "mixer."),  # the authors' files
    Layout("", "embeddings", "mixer."),  # transformers' MambaModel, without the head
    Layout("", "embedding", ""),  # our own state_dict()
)

# MambaConfig's field, and under which names a configuration may state it: transformers', the authors', a trainer's
CLAIMS: dict[str, tuple[str, ...]] = {
    "vocab_size": ("vocab_size",),
    "d_model": ("hidden_size", "d_model"),
    "n_layer": ("num_hidden_layers", "n_layer", "n_layers"),
    "d_state": ("state_size", "d_state"),
    "d_conv": ("conv_kernel", "d_conv"),
    "dt_rank": ("time_step_rank", "dt_rank"),
    "conv_bias": ("use_conv_bias", "conv_bias"),
    "proj_bias": ("use_bias",),
    "tied": ("tie_word_embeddings", "tie_embeddings"),
    "norm_eps": ("layer_norm_epsilon", "norm_epsilon", "norm_eps", "rms_norm_eps"),
}
KINDS: dict[str, type] = {"conv_bias": bool, "proj_bias": bool, "tied": bool, "norm_eps": float}
# the size, and the tensor of each layer and its axis that show it
SHOWN = {
    "d_inner": ("A_log", 0),
    "d_state": ("A_log", 1),
    "d_conv": ("conv1d.weight", 2),
    "dt_rank": ("dt_proj.weight", 1),
    "d_model": ("norm.weight", 0),
}


def claims_of(config: Mapping[str, Any] | None, where: str) -> dict[str, Any]:
    """What a configuration of any origin says about :class:`MambaConfig`'s fields; unsaid ones are left out.

    Raises:
        MechintError: it is another architecture's configuration, or a value has the wrong type.
    """
    config = dict(config or {})
    refuse_other_architectures(config, where)
    inner = config.get("ssm_cfg")
    if isinstance(inner, argparse.Namespace):
        inner = vars(inner)
    inner = dict(inner) if isinstance(inner, Mapping) else {}
    if "bias" in inner:
        inner["use_bias"] = inner["bias"]
    for place in (config, inner):
        for name in CLAIMS["dt_rank"]:
            if place.get(name) in ("auto", 0):
                place[name] = None
    return read_claims((config, inner), CLAIMS, KINDS, where)


def refuse_other_architectures(config: Mapping[str, Any], where: str) -> None:
    """Raises for what computes something else with tensors of the same names."""
    kind = config.get("model_type")
    if kind not in (None, "mamba"):
        raise MechintError(f"{where}: model_type is {kind!r}; this version reads Mamba (model_type 'mamba')")
    if "mixer_rms_eps" in config:
        raise MechintError(f"{where} is a FalconMamba (mixer_rms_eps: norms inside the mixer), not supported yet")
    inner = config.get("ssm_cfg")
    layer = inner.get("layer", "Mamba1") if isinstance(inner, Mapping) else "Mamba1"
    switches: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "hidden_act": (config.get("hidden_act", "silu"), ("silu", "swish")),
        "ssm_cfg.layer": (layer, ("Mamba1",)),
        "rms_norm": (config.get("rms_norm", True), (True,)),
        "d_intermediate": (config.get("d_intermediate", 0), (0,)),
        "attn_layer_idx": (config.get("attn_layer_idx") or [], ([],)),
    }
    for name, (value, known) in switches.items():
        if value not in known:
            raise MechintError(f"{where}: {name} is {value!r}, and Mamba has {known[0]!r} there; not supported")


def expected_names(n_layer: int, conv_bias: bool, proj_bias: bool, tied: bool) -> list[str]:
    """The names of every parameter of :class:`Mamba`, ours."""
    parts = ["norm.weight", "in_proj.weight", "conv1d.weight", "x_proj.weight", "dt_proj.weight", "dt_proj.bias"]
    parts += ["A_log", "D", "out_proj.weight"]
    parts += ["conv1d.bias"] * conv_bias + ["in_proj.bias", "out_proj.bias"] * proj_bias
    names = ["embedding.weight", *(f"layers.{i}.{part}" for i in range(n_layer) for part in parts), "norm_f.weight"]
    return names if tied else [*names, "lm_head.weight"]


def find_layout(state: Mapping[str, Tensor], ours: Iterable[str]) -> Layout:
    """The layout under which most of our names are there."""
    ours = list(ours)
    return max(LAYOUTS, key=lambda layout: sum(layout.name(name) in state for name in ours))


def match(state: Mapping[str, Tensor], said: Mapping[str, Any], where: str) -> tuple[dict[str, str], bool]:
    """Our names -> the file's names, and whether the head is tied to the embedding.

    Raises:
        MechintError: tensors are missing or left over; it names the first of them.
    """
    numbers = [int(found[1]) for name in state if (found := re.search(r"(?:^|\.)layers\.(\d+)\.", name))]
    n_layer = said.get("n_layer", max(numbers, default=-1) + 1)
    conv_bias = said.get("conv_bias", any(name.endswith("conv1d.bias") for name in state))
    proj_bias = said.get("proj_bias", any(name.endswith(("in_proj.bias", "out_proj.bias")) for name in state))
    layout = find_layout(state, expected_names(n_layer, True, True, False))
    tied = is_tied(state, layout.name("embedding.weight"), said)
    ours = {name: layout.name(name) for name in expected_names(n_layer, conv_bias, proj_bias, tied)}
    what = f"{where} is not exactly a Mamba of {n_layer} layers"
    check_names(state, ours.values(), ["lm_head.weight"] if tied else [], what)
    return ours, tied


def infer_config(
    state: Mapping[str, Tensor], said: Mapping[str, Any], where: str
) -> tuple[MambaConfig, dict[str, str]]:
    """Sizes from the shapes, checked against what the configuration says, and the map of names.

    Where layers disagree the size that most of them show counts, so that the odd one is named by :func:`check_shapes`.
    """
    ours, tied = match(state, said, where)
    n_layer = 1 + max(int(name.split(".")[1]) for name in ours if name.startswith("layers."))
    sizes: dict[str, int] = {}
    for field, (part, axis) in SHOWN.items():
        tensors = [state[ours[f"layers.{i}.{part}"]] for i in range(n_layer)]
        size = commonest(tensors, axis)
        if size is None:
            raise MechintError(
                f"{where}: {ours[f'layers.0.{part}']} is {list(tensors[0].shape)}, too few axes for a Mamba"
            )
        sizes[field] = size
    sizes["vocab_size"] = state[ours["embedding.weight"]].shape[0] if state[ours["embedding.weight"]].dim() else 0
    check_claims(said, sizes, CLAIMS, where)
    config = MambaConfig(
        n_layer=n_layer,
        conv_bias="layers.0.conv1d.bias" in ours,
        proj_bias="layers.0.in_proj.bias" in ours,
        tied=tied,
        norm_eps=float(said.get("norm_eps", 1e-5)),
        **sizes,
    )
    return config, ours


def to_hf_state_dict(model: Mamba) -> dict[str, Tensor]:
    """The weights under Hugging Face's names, detached and on the CPU; a tied head is left out, as it is there."""
    return {HUGGING_FACE.name(name): tensor.detach().cpu() for name, tensor in model.state_dict().items()}


def hf_config(model: Mamba) -> dict[str, Any]:
    """What ``transformers.MambaConfig(**…)`` takes, and what a ``config.json`` holds.

    Transformers computes the inner width as ``expand`` times ``hidden_size``, with whole ``expand``; a model of another
    inner width gets a fraction there, which we read and transformers refuses.
    """
    c = model.config
    ratio = c.d_inner / c.d_model
    return {
        "architectures": ["MambaForCausalLM"],
        "model_type": "mamba",
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "num_hidden_layers": c.n_layer,
        "state_size": c.d_state,
        "conv_kernel": c.d_conv,
        "intermediate_size": c.d_inner,
        "expand": int(ratio) if ratio.is_integer() else ratio,
        "time_step_rank": c.dt_rank,
        "use_bias": c.proj_bias,
        "use_conv_bias": c.conv_bias,
        "tie_word_embeddings": c.tied,
        "layer_norm_epsilon": c.norm_eps,
        "hidden_act": "silu",
    }
