"""Mamba's tensors under the names of others: what a checkpoint must hold, and how its sizes are read off it."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ...utils.errors import MechintError, shown
from ..mamba import Mamba, MambaConfig
from ..parts.norms import NORM_CLAIMS, NORM_KEYS, NORM_KINDS, norm_kinds, read_norms, said_norms
from .checkpoints import WEIGHTS
from .config_keys import Keys, listed, refuse_unknown
from .strictness import check_claims, check_names, commonest, count_layers, is_tied, read_claims


@dataclass(frozen=True)
class Layout:
    """The names of the tensors in one program: ``{prefix}{embedding}.weight``, ``{prefix}layers.0.{mixer}A_log``."""

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
    Layout("", "embedding", "mixer."),  # the authors' MixerModel, without the head
    Layout("", "embedding", ""),  # our own state_dict()
)

# MambaConfig's field, and its names in configurations: transformers', the authors', a trainer's
CLAIMS: dict[str, tuple[str, ...]] = {
    "vocab_size": ("vocab_size",),
    "d_model": ("hidden_size", "d_model"),
    "n_layer": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "d_inner": ("intermediate_size", "d_inner"),
    "d_state": ("state_size", "d_state"),
    "d_conv": ("conv_kernel", "d_conv"),
    "dt_rank": ("time_step_rank", "dt_rank"),
    "conv_bias": ("use_conv_bias", "conv_bias"),
    "proj_bias": ("use_bias",),
    "tied": ("tie_word_embeddings", "tie_embeddings", "tie_weights", "weight_tying"),
    "norm_eps": ("layer_norm_epsilon", "norm_epsilon", "norm_eps", "rms_norm_eps"),
    **NORM_CLAIMS,
}
KINDS: dict[str, type] = {"conv_bias": bool, "proj_bias": bool, "tied": bool, "norm_eps": float, **NORM_KINDS}
INITIAL = listed(
    "time_step_scale time_step_min time_step_max time_step_init_scheme time_step_floor rescale_prenorm_residual "
    "dt_min dt_max dt_init dt_scale dt_init_floor"
)
"""Keys that only decide how initial weights are drawn."""
KEYS = Keys(
    "Mamba",
    frozenset({name for names in CLAIMS.values() for name in names} | NORM_KEYS)
    | listed("model_type hidden_act ssm_cfg expand d_intermediate attn_layer_idx rms_norm mixer_rms_eps"),
    {
        "is_encoder_decoder": (False,),
        **norm_kinds("rmsnorm", "rms"),
        "causal": (True,),
        "architecture": ("mamba", "mamba1"),
        "arch": ("mamba", "mamba1"),
    },
    INITIAL | {"residual_in_fp32", "fused_add_norm", "pad_vocab_size_multiple", "use_mambapy", "use_associative_scan",
               "fused_norm", "use_fast_path"},
    r"Mamba(Model|LMHeadModel|For\w+)",
)  # fmt: skip
MIXER = Keys(
    "Mamba", frozenset({"layer", "d_state", "d_conv", "expand", "dt_rank", "conv_bias", "bias", "use_bias"}), {},
    INITIAL | {"use_fast_path"},
)  # fmt: skip
OTHERS = re.compile(r"falcon|jamba|zamba|bamba|samba|mamba-?_?[23]|hybrid", re.IGNORECASE)
"""Models whose tensors may have Mamba's names, by what a configuration may call them."""
# a size, and the tensor of each layer and the axis that have it
SHOWN = {
    "d_inner": ("A_log", 0),
    "d_state": ("A_log", 1),
    "d_conv": ("conv1d.weight", 2),
    "dt_rank": ("dt_proj.weight", 1),
    "d_model": ("out_proj.weight", 0),
}


def claims_of(config: Mapping[str, Any] | None, where: str) -> dict[str, Any]:
    """Reads :class:`MambaConfig`'s fields from a configuration of any origin; missing ones are left out.

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
    said = read_norms(config, read_claims((config, inner), CLAIMS, KINDS, where), where)
    expand = next((place["expand"] for place in (config, inner) if place.get("expand") is not None), None)
    if expand is not None and (
        isinstance(expand, bool) or not isinstance(expand, (int, float)) or not 0 < expand < 1e6
    ):
        raise MechintError(f"{where}: the configuration has expand = {shown(expand)}, which is no ratio; correct it")
    return said if expand is None else {**said, "expand": expand}


def refuse_other_architectures(config: Mapping[str, Any], where: str) -> None:
    """Raises for what computes something else with tensors of the same names."""
    kind = config.get("model_type")
    if kind not in (None, "mamba"):
        raise MechintError(f"{where}: model_type is {shown(kind)}; this version reads Mamba (model_type 'mamba')")
    if "mixer_rms_eps" in config:
        raise MechintError(
            f"{where} is a FalconMamba (mixer_rms_eps: norms inside the mixer); add model_type = 'falcon_mamba' and "
            "what else its config.json says"
        )
    for name in ("family", "architecture", "arch", "model", "model_name", "_name_or_path", "name_or_path", "init_from"):
        if isinstance(config.get(name), str) and OTHERS.search(config[name]):
            raise MechintError(f"{where}: {name} is {shown(config[name])}, which is no Mamba of the first kind")
    inner = config.get("ssm_cfg")
    if isinstance(inner, argparse.Namespace):
        inner = vars(inner)
    if not (inner is None or isinstance(inner, Mapping)):
        raise MechintError(f"{where}: ssm_cfg is {shown(inner)}, which describes no mixer; correct it")
    refuse_unknown(inner or {}, MIXER, (inner or {}).keys(), f"{where}: ssm_cfg")
    layer = (inner or {}).get("layer") or "Mamba1"
    switches: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "hidden_act": (config.get("hidden_act", "silu"), ("silu", "swish")),
        "ssm_cfg.layer": (layer, ("Mamba1",)),
        "rms_norm": (config.get("rms_norm", True), (True,)),
        "d_intermediate": (config.get("d_intermediate", 0), (0,)),
        "attn_layer_idx": (config.get("attn_layer_idx") or [], ([],)),
    }
    for name, (value, known) in switches.items():
        if value not in known:
            raise MechintError(f"{where}: {name} is {shown(value)}, and Mamba has {known[0]!r} there; not supported")


def check_without_configuration(state: Mapping[str, Tensor], where: Path) -> None:
    """Says that a directory in Hugging Face's layout without any configuration is taken for a Mamba; refuses a file.

    A FalconMamba's tensors have the same names and shapes; its norms inside the mixer have no weights. A directory that
    lost its config.json is read, with a note; a file alone does not show what it was saved from.

    Raises:
        MechintError: the file stands alone.
    """
    layout = find_layout(state, expected_names(1, True, True, False))
    if layout.embedding != "embeddings" or "mixer.A_log" not in " ".join(state):
        return  # another family's, the authors' or our own names, which no FalconMamba has
    what = "Mamba's tensors and no configuration, and a FalconMamba has tensors of the same names"
    if where.is_dir() or where.name in WEIGHTS:
        print(f"note: {where} holds {what}; read as a Mamba (put its config.json beside it)", file=sys.stderr)
        return
    raise MechintError(
        f"{where} holds {what}; give a directory with its config.json, or save {{'model': state_dict, 'config': "
        "{'model_type': 'mamba'}} (or 'falcon_mamba', with all that its config.json says)"
    )


def expected_names(
    n_layer: int, conv_bias: bool, proj_bias: bool, tied: bool, norms: bool = True, final_norm: bool = True
) -> list[str]:
    """The names of every parameter of :class:`Mamba`, ours."""
    parts = [
        *["norm.weight"] * norms,
        "in_proj.weight",
        "conv1d.weight",
        "x_proj.weight",
        "dt_proj.weight",
        "dt_proj.bias",
    ]
    parts += ["A_log", "D", "out_proj.weight"]
    parts += ["conv1d.bias"] * conv_bias + ["in_proj.bias", "out_proj.bias"] * proj_bias
    names = ["embedding.weight", *(f"layers.{i}.{part}" for i in range(n_layer) for part in parts)]
    names += ["norm_f.weight"] * final_norm
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
    n_layer = count_layers(numbers, said, where, least=0)
    conv_bias = said.get("conv_bias", any(name.endswith("conv1d.bias") for name in state))
    proj_bias = said.get("proj_bias", any(name.endswith(("in_proj.bias", "out_proj.bias")) for name in state))
    layout = find_layout(state, expected_names(n_layer, True, True, False))
    norms = (said.get("norms", True), said.get("final_norm", True))
    tied = is_tied(state, layout.name("embedding.weight"), said)
    ours = {name: layout.name(name) for name in expected_names(n_layer, conv_bias, proj_bias, tied, *norms)}
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
    expand = None if said.get("d_inner") is not None else said.get("expand")  # a stated inner width comes first
    if expand is not None and int(expand * sizes["d_model"]) != sizes["d_inner"]:
        raise MechintError(
            f"{where}: the configuration says expand = {expand}, but the tensors have {sizes['d_inner']} channels "
            f"for a width of {sizes['d_model']}"
        )
    config = MambaConfig(
        n_layer=n_layer,
        conv_bias="layers.0.conv1d.bias" in ours,
        proj_bias="layers.0.in_proj.bias" in ours,
        tied=tied,
        norms=said.get("norms", True),
        final_norm=said.get("final_norm", True),
        norm_eps=float(said.get("norm_eps", 1e-5)),
        **sizes,
    )
    return config, ours


def to_hf_state_dict(model: Mamba) -> dict[str, Tensor]:
    """The weights under Hugging Face's names, detached and on the CPU; a tied head is left out, as it is there."""
    return {HUGGING_FACE.name(name): tensor.detach().cpu() for name, tensor in model.state_dict().items()}


def hf_config(model: Mamba) -> dict[str, Any]:
    """The arguments of ``transformers.MambaConfig(**…)``, and the contents of a ``config.json``.

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
        **said_norms(c),
    }
