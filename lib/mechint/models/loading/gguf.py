"""GGUF files of Llamas: weights of any quantisation made whole again, the configuration and the tokenizer."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...utils.errors import MechintError, shown
from ...utils.files import check_regular, reading

WHOLE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    **{
        f"attn_{ours}": f"self_attn.{theirs}_proj"
        for ours, theirs in zip(("q", "k", "v", "output"), "qkvo", strict=True)
    },
    **{f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
}
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


def read_gguf(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors under Hugging Face's names, float32, and the configuration as Hugging Face writes it.

    Raises:
        MechintError: the package gguf is missing, the file is damaged, or it holds another architecture.
    """
    needs_gguf(path)
    with reading(path):
        from gguf import GGUFReader, dequantize

        reader = GGUFReader(str(path))
        said = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
        family = said.get("general.architecture")
        if family != "llama":
            raise MechintError(
                f"{path} holds a {family} model; of GGUF files only Llamas are read, so take its Hugging Face directory"
            )
        refuse_unknown_metadata(said, path)
        config = {theirs: said[f"llama.{name}"] for name, theirs in CONFIG.items() if f"llama.{name}" in said}
        if config.get("rope_type", "none") != "none":
            config["rope_scaling"] = {"rope_type": config["rope_type"]}
        config = {name: value for name, value in config.items() if name != "rope_type"}
        heads = {"q": config["num_attention_heads"]}
        heads["k"] = config.get("num_key_value_heads", heads["q"])
        tensors = {}
        for entry in reader.tensors:
            name = hf_name(entry.name, path)
            tensor = torch.tensor(dequantize(entry.data, entry.tensor_type))
            kind = name[: -len("_proj.weight")][-1:]
            tensors[name] = unpaired(tensor, heads[kind]) if ".self_attn." in name and kind in heads else tensor
    return tensors, {"model_type": "llama", "tie_word_embeddings": "lm_head.weight" not in tensors, **config}


HARMLESS = ("context_length", "vocab_size", "tensor_data_layout", "attention.value_length")
"""Metadata that no forward needs, or that the tensors show; a value's length is held against them."""


def refuse_unknown_metadata(said: dict[str, Any], path: Path) -> None:
    """Raises :class:`MechintError` for metadata of the model that may change what it computes and is not read."""
    of_model = {name.partition(".")[2]: value for name, value in said.items() if name.startswith("llama.")}
    for name, value in of_model.items():
        known = name in CONFIG or name in HARMLESS or value in (0, False, "", "none")
        if name == "rope.dimension_count":  # all of each head is rotated
            heads = of_model.get("attention.head_count") or 1
            known = value == of_model.get("attention.key_length", of_model.get("embedding_length", 0) // heads)
        if not known:
            raise MechintError(
                f"{path}: the metadata has llama.{name} = {shown(value)}, which may change what the model computes and "
                "which our Llama does not have; not supported"
            )
    lengths = {value for name, value in of_model.items() if name in ("attention.key_length", "attention.value_length")}
    if len(lengths) > 1:
        raise MechintError(f"{path}: keys and values have different lengths; our Llama has one; not supported")


def hf_name(name: str, path: Path) -> str:
    bare, _, part = name.rpartition(".")
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)", bare)
    if layer and layer[2] in LAYER and part == "weight":
        return f"model.layers.{layer[1]}.{LAYER[layer[2]]}.weight"
    if bare in WHOLE and part == "weight":
        return f"{WHOLE[bare]}.weight"
    raise MechintError(f"{path}: no plain Llama has the tensor {name}; take the model's Hugging Face directory")


def unpaired(weight: Tensor, heads: int) -> Tensor:
    """Rows of queries or keys from llama.cpp's order (each rotated pair side by side) to Hugging Face's two halves."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(weight.shape)


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
