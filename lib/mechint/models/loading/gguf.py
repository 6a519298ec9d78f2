"""GGUF files: weights of any quantisation made whole again, the configuration and the tokenizer.

llama.cpp writes some weights otherwise than Hugging Face (A itself instead of its logarithm, rotated pairs side by
side, Falcon-H1's multipliers within the weights); each architecture below says how they come back.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...utils.errors import MechintError, shown
from ...utils.files import check_regular, reading

CONFIG = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "rope.scaling.type": "rope_type",
}
WHOLE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
ATTENTION = {
    f"attn_{theirs}.{kind}": f"self_attn.{ours}_proj.{kind}"
    for theirs, ours in zip(("q", "k", "v", "output"), "qkvo", strict=True)
    for kind in ("weight", "bias")
}
FEED_FORWARD = {
    f"ffn_{part}.{kind}": f"{{}}.{part}_proj.{kind}" for part in ("gate", "up", "down") for kind in ("weight", "bias")
}
LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    **{
        name: f"self_attn.{part}_norm.weight"
        for name, part in (("attn_q_norm.weight", "q"), ("attn_k_norm.weight", "k"))
    },
    **ATTENTION,
    **{name: theirs.format("mlp") for name, theirs in FEED_FORWARD.items()},
}
RECURRENCE = {
    **{f"ssm_{name}_proj.{kind}".replace("_proj", ""): f"{{}}.{name}_proj.{kind}"
       for name in ("in", "x", "dt", "out") for kind in ("weight", "bias")},
    **{f"ssm_conv1d.{kind}": f"{{}}.conv1d.{kind}" for kind in ("weight", "bias")},
    "ssm_a": "{}.A_log",
    "ssm_d": "{}.D",
}  # fmt: skip
MAMBA_CONFIG = {
    "ssm.conv_kernel": "conv_kernel",
    "ssm.inner_size": "intermediate_size",
    "ssm.state_size": "state_size",
    "ssm.time_step_rank": "time_step_rank",
}
PHI_CONFIG = {
    **{name: theirs for name, theirs in CONFIG.items() if name != "attention.layer_norm_rms_epsilon"},
    "attention.layer_norm_epsilon": "layer_norm_eps",
    "rope.dimension_count": "partial_rotary_factor",
}
PHI = {
    **{f"attn_norm.{kind}": f"input_layernorm.{kind}" for kind in ("weight", "bias")},
    **{name: theirs.replace("o_proj", "dense") for name, theirs in ATTENTION.items()},
    **{f"ffn_{name}.{kind}": f"mlp.{theirs}.{kind}"
       for name, theirs in (("up", "fc1"), ("down", "fc2")) for kind in ("weight", "bias")},
}  # fmt: skip
FALCON_CONFIG = {
    "ssm.conv_kernel": "mamba_d_conv",
    "ssm.inner_size": "mamba_d_ssm",
    "ssm.state_size": "mamba_d_state",
    "ssm.time_step_rank": "mamba_n_heads",
    "ssm.group_count": "mamba_n_groups",
}


@dataclass(frozen=True)
class Architecture:
    """The forms in which llama.cpp writes the models of one architecture.

    Attributes:
        title: The family, as messages call it.
        model_type: The family, as a ``config.json`` calls it.
        layer: Names of a layer's tensors, and Hugging Face's below the layer.
        config: Metadata, and the keys of Hugging Face's configuration.
        whole: Names of the other tensors without their suffix, and Hugging Face's.
        layers: The prefix of Hugging Face's layers.
        back: Makes a tensor again as Hugging Face has it, from its name there and the configuration.
        told: Keys of the configuration that the tensors tell, by Hugging Face's names.
        biased: True if the last norm and the head have biases.
    """

    title: str
    model_type: str
    layer: Mapping[str, str]
    config: Mapping[str, str]
    whole: Mapping[str, str] = field(default_factory=lambda: WHOLE)
    layers: str = "model.layers"
    back: Callable[[str, Tensor, Mapping[str, Any]], Tensor] = lambda name, tensor, config: tensor
    told: Callable[[Mapping[str, Tensor]], dict[str, Any]] = lambda tensors: {}
    biased: bool = False


def llama_back(name: str, tensor: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Queries and keys in Hugging Face's order; the other tensors as they are."""
    heads = {"q": config["num_attention_heads"]}
    heads["k"] = config.get("num_key_value_heads", heads["q"])
    kind = name.removesuffix(".weight").removesuffix("_proj")[-1:]
    return unpaired(tensor, heads[kind]) if ".self_attn." in name and kind in heads else tensor


def unpaired(weight: Tensor, heads: int) -> Tensor:
    """Rows of queries or keys from llama.cpp's order (each rotated pair side by side) to Hugging Face's two halves."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(weight.shape)


def mamba_back(name: str, tensor: Tensor, config: Mapping[str, Any]) -> Tensor:
    """The logarithm of −A for A, a convolution's kernel with its axis of one, and one number for each head."""
    if name.endswith(".A_log"):
        tensor = torch.log(-tensor)
    if name.endswith(".conv1d.weight"):
        return tensor.unsqueeze(1)
    return tensor.squeeze(-1) if name.endswith((".A_log", ".D")) and tensor.shape[-1:] == (1,) else tensor


def falcon_told(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The biases that the file has; its multipliers are within its weights."""
    has = lambda part: any(name.endswith(part) for name in tensors)
    return {
        "mlp_bias": has("feed_forward.up_proj.bias"), "mamba_conv_bias": has("mamba.conv1d.bias"),
        "projectors_bias": has("mamba.out_proj.bias"),
    }  # fmt: skip


ARCHITECTURES = {
    "llama": Architecture(
        "Llama", "llama", {n: t for n, t in LAYER.items() if not n.endswith("bias") and "_norm." not in t}, CONFIG,
        back=llama_back,
    ),
    "qwen2": Architecture("Qwen2", "qwen2", {n: t for n, t in LAYER.items() if "_norm." not in t}, CONFIG),
    "qwen3": Architecture("Qwen3", "qwen3", LAYER, CONFIG,
        told=lambda tensors: {"attention_bias": any(name.endswith("self_attn.q_proj.bias") for name in tensors)}),
    "phi2": Architecture(
        "Phi", "phi", PHI, PHI_CONFIG, {**WHOLE, "output_norm": "model.final_layernorm"}, biased=True
    ),
    "mamba": Architecture(
        "Mamba", "mamba",
        {"attn_norm.weight": "norm.weight", **{name: theirs.format("mixer") for name, theirs in RECURRENCE.items()}},
        {"block_count": "num_hidden_layers", "embedding_length": "hidden_size",
         "attention.layer_norm_rms_epsilon": "layer_norm_epsilon", **MAMBA_CONFIG},
        {"token_embd": "backbone.embeddings", "output_norm": "backbone.norm_f", "output": "lm_head"},
        "backbone.layers", mamba_back,
        lambda tensors: {"use_bias": any(name.endswith("in_proj.bias") for name in tensors),
                         "use_conv_bias": any(name.endswith("conv1d.bias") for name in tensors)},
    ),
    "falcon-h1": Architecture(
        "Falcon-H1", "falcon_h1",
        # ffn_norm is written without a suffix; biases behind a multiplier would be written multiplied, and are not read
        {"attn_norm.weight": "input_layernorm.weight",
         **{name: "pre_ff_layernorm.weight" for name in ("ffn_norm", "ffn_norm.weight")},
         **{name: theirs for name, theirs in ATTENTION.items() if name.endswith("weight")},
         **{name: theirs.format("feed_forward") for name, theirs in FEED_FORWARD.items()},
         **{name: theirs.format("mamba") for name, theirs in RECURRENCE.items()
            if name[4:6] not in ("x.", "dt") and name != "ssm_in.bias"},
         "ssm_dt.bias": "mamba.dt_bias"},
        {**CONFIG, **FALCON_CONFIG}, {**WHOLE, "output_norm": "model.final_layernorm"}, back=mamba_back,
        told=falcon_told,
    ),
}  # fmt: skip
"""The architectures that are read, by llama.cpp's names."""
HARMLESS = ("context_length", "vocab_size", "tensor_data_layout", "attention.value_length")
"""Metadata that no forward needs, or that the tensors show; a value's length is held against them."""


def read_gguf(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors under Hugging Face's names, float32, and the configuration as Hugging Face writes it.

    Raises:
        MechintError: the package gguf is missing, the file is damaged, it holds another architecture, or a setting that
            may change what the model computes and is not understood.
    """
    needs_gguf(path)
    with reading(path):
        from gguf import GGUFReader, dequantize

        reader = GGUFReader(str(path))
        said = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
        name = str(said.get("general.architecture"))
        form = ARCHITECTURES.get(name)
        if form is None:
            known = ", ".join(ARCHITECTURES)
            raise MechintError(
                f"{path} holds a {name} model; of GGUF files these are read: {known}; take its Hugging Face directory"
            )
        refuse_unknown_metadata(said, path, name, form)
        config = {theirs: said[f"{name}.{ours}"] for ours, theirs in form.config.items() if f"{name}.{ours}" in said}
        if config.get("rope_type", "none") != "none":
            config["rope_scaling"] = {"rope_type": config["rope_type"]}
        config = {key: value for key, value in config.items() if key != "rope_type"}
        if "rope.dimension_count" in form.config:  # of each head; all of it where the file does not say
            size = config["hidden_size"] // config["num_attention_heads"]
            config["partial_rotary_factor"] = config.get("partial_rotary_factor", size) / size
        tensors = {}
        for entry in reader.tensors:
            theirs = hf_name(entry.name, path, form)
            tensors[theirs] = form.back(theirs, torch.tensor(dequantize(entry.data, entry.tensor_type)), config)
    tied = "lm_head.weight" not in tensors
    if tied and name == "falcon-h1":
        raise MechintError(
            f"{path}: a Falcon-H1 whose head is its embedding has two multipliers of one matrix, which the file does "
            "not tell apart; take its Hugging Face directory"
        )
    embeddings = tensors[f"{form.whole['token_embd']}.weight"]
    whole = {"model_type": form.model_type, "tie_word_embeddings": tied, **form.told(tensors), **config}
    return tensors, whole if name == "llama" else {**whole, "vocab_size": len(embeddings)}


def refuse_unknown_metadata(said: dict[str, Any], path: Path, architecture: str, form: Architecture) -> None:
    """Raises :class:`MechintError` for metadata of the model that may change what it computes and is not read."""
    start = f"{architecture}."
    of_model = {name.removeprefix(start): value for name, value in said.items() if name.startswith(start)}
    for name, value in of_model.items():
        known = name in form.config or name in HARMLESS or value in (0, False, "", "none")
        if name == "rope.dimension_count" and not known:  # all of each head is rotated
            heads = of_model.get("attention.head_count") or 1
            known = value == of_model.get("attention.key_length", of_model.get("embedding_length", 0) // heads)
        if not known:
            raise MechintError(
                f"{path}: the metadata has {start}{name} = {shown(value)}, which may change what the model computes "
                f"and which our {form.title} does not have; not supported"
            )
    lengths = {value for name, value in of_model.items() if name in ("attention.key_length", "attention.value_length")}
    if len(lengths) > 1:
        raise MechintError(f"{path}: keys and values have different lengths; our {form.title} has one; not supported")


def hf_name(name: str, path: Path, form: Architecture) -> str:
    """Hugging Face's name of a tensor."""
    layer = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
    if layer and layer[2] in form.layer:
        return f"{form.layers}.{layer[1]}.{form.layer[layer[2]]}"
    bare, _, part = name.rpartition(".")
    if bare in form.whole and part in ("weight", *["bias"] * (form.biased and bare != "token_embd")):
        return f"{form.whole[bare]}.{part}"
    raise MechintError(f"{path}: no plain {form.title} has the tensor {name}; take the model's Hugging Face directory")


def gguf_tokenizer(path: Path) -> Any:
    """The ``tokenizers.Tokenizer`` that the file brings along, as transformers makes it."""
    needs_gguf(path)
    with reading(path):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name).backend_tokenizer


def needs_gguf(path: Path) -> None:
    """Raises :class:`MechintError` where the package that reads such files is missing, or it is no regular file."""
    check_regular(path, None, "checkpoint")
    if importlib.util.find_spec("gguf") is None:
        raise MechintError(f"{path} is a GGUF file, and the package that reads them is missing; pip install gguf")
