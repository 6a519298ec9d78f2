"""GPT-2's tensors under the names of others: what a checkpoint must hold, and how its sizes are read off it.

Hugging Face stores projections as Conv1D, [in, out]; nanoGPT and trainers as nn.Linear, [out, in], as we do.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import Tensor

from ...utils.errors import MechintError, did_you_mean, shown
from ..gpt2 import GPT2, GPT2Config
from ..parts.norms import NORM_CLAIMS, NORM_KEYS, NORM_KINDS, norm_kinds, read_norms, said_norms
from .config_keys import Keys, listed
from .strictness import check_claims, check_names, commonest, count_layers, is_tied, read_claims

PROJECTIONS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
NORMS = ("ln_1", "ln_2")

# GPT2Config's field, and its names in configurations: transformers', nanoGPT's, a trainer's
CLAIMS: dict[str, tuple[str, ...]] = {
    "vocab_size": ("vocab_size",),
    "n_ctx": ("n_positions", "block_size", "n_ctx", "max_position_embeddings", "max_seq_len", "context_length"),
    "d_model": ("n_embd", "hidden_size", "d_model", "embed_dim", "dim"),
    "n_layer": ("n_layer", "num_hidden_layers", "n_layers", "num_layers"),
    "n_head": ("n_head", "num_attention_heads", "n_heads", "num_heads"),
    "n_kv_head": (
        "n_kv_head",
        "n_kv_heads",
        "num_key_value_heads",
        "num_kv_heads",
        "n_query_groups",
        "num_query_groups",
        "n_head_kv",
        "kv_heads",
        "n_kv",
    ),
    "d_head": ("head_dim", "d_head", "head_size"),
    "d_mlp": ("n_inner", "d_mlp", "intermediate_size", "d_ff"),
    "activation": ("activation_function", "activation"),
    "bias": ("bias",),
    "kv_tied": ("kv_tied", "kv_tying", "tie_kv", "tied_kv", "share_kv"),
    "tied": ("tie_word_embeddings", "tie_embeddings", "tie_weights", "weight_tying"),
    "norm_eps": ("layer_norm_epsilon", "layer_norm_eps", "norm_eps"),
    **NORM_CLAIMS,
}
KINDS: dict[str, type] = {
    "activation": str, "bias": bool, "tied": bool, "kv_tied": bool, "norm_eps": float, **NORM_KINDS
}  # fmt: skip
LEARNED = ("learned", "absolute", "learned_absolute")
KEYS = Keys(
    "GPT-2",
    frozenset({name for names in CLAIMS.values() for name in names} | {"model_type", "kv"} | NORM_KEYS),
    {
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
        "is_encoder_decoder": (False,),
        **norm_kinds("layernorm", "ln"),
        "position_embedding_type": LEARNED,
        "pos_embedding": LEARNED,
        "pos_emb": LEARNED,
        "causal": (True,),
        "is_causal": (True,),
        "architecture": ("gpt2", "gpt", "nanogpt"),
        "arch": ("gpt2", "gpt", "nanogpt"),
        "attention_type": ("full", "standard", "causal", "mha"),
    },
    listed(
        "reorder_and_upcast_attn n_special predict_special_tokens summary_type summary_use_proj summary_activation "
        "summary_proj_to_labels summary_first_dropout mlp_ratio gelu"
    ),
    r"(GPT2(LMHead|DoubleHeads|For\w*)?Model|GPT2For\w+|GPT)",
)
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def claims_of(config: Mapping[str, Any] | None, where: str) -> dict[str, Any]:
    """Reads :class:`GPT2Config`'s fields from a configuration of any origin; missing ones are left out.

    Raises:
        MechintError: it is another architecture's configuration, or a value has the wrong type.
    """
    config = config or {}
    if config.get("model_type") not in (None, "gpt2"):
        raise MechintError(
            f"{where}: model_type is {shown(config['model_type'])}, with GPT-2's tensor names; not supported"
        )
    said = read_norms(config, read_claims([config], CLAIMS, KINDS, where), where)
    if "kv" in config and config["kv"] not in ("separate", "tied", "global"):
        raise MechintError(f"{where}: kv is {shown(config['kv'])}; GPT-2 has separate, tied or global; not supported")
    if "kv" in config:
        said.setdefault("kv_tied", config["kv"] != "separate")
    if "activation" in said:
        if said["activation"] not in ACTIVATIONS:
            raise MechintError(
                f"{where}: the activation is {shown(said['activation'])}; GPT-2 has one of {', '.join(ACTIVATIONS)}"
                f"{did_you_mean(said['activation'], ACTIVATIONS)}"
            )
        said["activation"] = ACTIVATIONS[said["activation"]]
    return said


def expected_names(
    n_layer: int, bias: bool, norm_bias: bool, tied: bool, norms: bool = True, final_norm: bool = True
) -> list[str]:
    """The names of every parameter of :class:`GPT2`, ours."""
    parts = [f"{part}.weight" for part in (*PROJECTIONS, *NORMS * norms)]
    parts += [f"{part}.bias" for part in PROJECTIONS] * bias + [f"{part}.bias" for part in NORMS * norms] * norm_bias
    names = ["wte.weight", "wpe.weight", *(f"layers.{i}.{part}" for i in range(n_layer) for part in parts)]
    names += ["ln_f.weight", *["ln_f.bias"] * norm_bias] * final_norm
    return [*names, *["lm_head.weight"] * (not tied)]


def rename(names: Iterable[str], prefix: str, layers: str) -> dict[str, str]:
    """Our names -> a layout's: ``transformer.`` or none before all but the head, ``h`` or ``layers``."""
    return {
        name: name if name == "lm_head.weight" else prefix + re.sub(r"^layers\.", f"{layers}.", name) for name in names
    }


def buffers(state: Mapping[str, Tensor]) -> list[str]:
    """The causal masks that older files hold beside the weights."""
    axes = {"attn.bias": 4, "attn.masked_bias": 0}
    return [
        name for name, tensor in state.items() if any(name.endswith(f".{k}") and tensor.dim() == axes[k] for k in axes)
    ]


def infer_config(
    state: Mapping[str, Tensor], config: Mapping[str, Any] | None, where: str
) -> tuple[GPT2Config, dict[str, str], frozenset[str]]:
    """Sizes from the shapes, checked against what the configuration says.

    Where layers disagree the size that most of them show counts, so that the odd one is named by
    :func:`mechint.models.loading.strictness.check_shapes`.

    Returns:
        The configuration, the map from our names to the file's, and which of ours are stored transposed.
    """
    said = claims_of(config, where)
    ours, tied = match(state, said, where)
    n_layer = 1 + max(int(name.split(".")[1]) for name in ours if name.startswith("layers."))
    part = lambda name: [state[ours[f"layers.{i}.{name}"]] for i in range(n_layer)]
    size = lambda tensors, axis: commonest(tensors, axis) or 0
    vocab_size, d_model = (size([state[ours["wte.weight"]]], axis) for axis in (0, 1))
    wide = (size(part("attn.c_attn.weight"), 0), size(part("attn.c_attn.weight"), 1))
    kinds = {(k * d_model, d_model): (k, False) for k in (2, 3)} | {(d_model, k * d_model): (k, True) for k in (2, 3)}
    if (n_head := said.get("n_head", 0)) > 1:  # queries, and one head of keys that are the values of all heads
        kinds |= {(d_model + d_model // n_head, d_model): (1, False), (d_model, d_model + d_model // n_head): (1, True)}
    if wide not in kinds:
        raise MechintError(
            f"{where}: {ours['layers.0.attn.c_attn.weight']} is {list(wide)}; with a width of {d_model} it should have "
            f"{3 * d_model} outputs (queries, keys, values), or {2 * d_model} (queries, and keys that are the values), "
            f"or the width and one head more (queries, and one head that is key and value of all)"
        )
    projections, turned = kinds[wide]
    sizes = {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "n_layer": n_layer,
        "d_mlp": size(part("mlp.c_fc.weight"), 1 if turned else 0),
    }
    check_claims(said, sizes, CLAIMS, where)
    found = GPT2Config(
        **sizes,
        n_ctx=context(size([state[ours["wpe.weight"]]], 0), said, where),
        n_head=heads(d_model, said, where),
        # where nothing is said: Hugging Face's layout has its tanh, nn.Linear's a trainer's exact one
        activation=said.get("activation", "gelu_tanh" if turned else "gelu"),
        bias="layers.0.attn.c_attn.bias" in ours,
        norm_bias=any(name.endswith(("ln_1.bias", "ln_f.bias")) for name in ours),
        norms=said.get("norms", True),
        final_norm=said.get("final_norm", True),
        kv_tied=projections < 3,
        kv_global=projections == 1,
        tied=tied,
        norm_eps=float(said.get("norm_eps", 1e-5)),
    )
    for field, shows in (("n_kv_head", found.n_kv_head), ("d_head", found.d_head), ("kv_tied", found.kv_tied)):
        if said.get(field, shows) != shows:
            name = next(name for name in CLAIMS[field] if name in (config or {}) or field == "kv_tied")
            raise MechintError(
                f"{where}: the configuration says {name} = {said[field]}, and a GPT-2 of {found.n_head} heads with "
                f"{ours['layers.0.attn.c_attn.weight']} of {list(wide)} has {shows}; grouped queries are not supported"
            )
    matrices = {name for name in ours if name.endswith(tuple(f"{part}.weight" for part in PROJECTIONS))}
    return found, ours, frozenset(matrices if turned else ())


def match(state: Mapping[str, Tensor], said: Mapping[str, Any], where: str) -> tuple[dict[str, str], bool]:
    """Our names -> the file's names, and whether the head is tied to the embedding.

    Raises:
        MechintError: tensors are missing or left over; it names the first of them.
    """
    ignored = buffers(state)
    prefix = "transformer." if any(name.startswith("transformer.") for name in state) else ""
    layers = "layers" if any(name.startswith(f"{prefix}layers.") for name in state) else "h"
    numbers = [int(found[1]) for name in state if (found := re.match(rf"{prefix}{layers}\.(\d+)\.", name))]
    n_layer = count_layers(numbers, said, where)
    ends = lambda *parts: any(name.endswith(parts) for name in state if name not in ignored)
    bias = said.get("bias", ends(*(f"{part}.bias" for part in PROJECTIONS)))
    tied = is_tied(state, prefix + "wte.weight", said)
    norms = (said.get("norms", True), said.get("final_norm", True))
    norm_bias = ends("ln_1.bias", "ln_2.bias", "ln_f.bias")
    ours = rename(expected_names(n_layer, bias, norm_bias, tied, *norms), prefix, layers)
    what = f"{where} is not exactly a GPT-2 of {n_layer} layers"
    check_names(state.keys(), ours.values(), [*ignored, *["lm_head.weight"] * tied], what)
    return ours, tied


def heads(d_model: int, said: Mapping[str, Any], where: str) -> int:
    """The number of heads, which no tensor shows."""
    if "n_head" not in said:
        raise MechintError(
            f"{where} does not say how many heads it has, and no tensor shows it; put n_head into the checkpoint's "
            "'config', or into a config.json beside safetensors"
        )
    if said["n_head"] < 1 or d_model % said["n_head"]:
        raise MechintError(
            f"{where}: the configuration says n_head = {said['n_head']}, which does not divide the width {d_model}"
        )
    return said["n_head"]


def context(rows: int, said: Mapping[str, Any], where: str) -> int:
    """The longest prompt; a trainer may have trained on less than the table has."""
    if said.get("n_ctx", rows) > rows:
        raise MechintError(
            f"{where}: the configuration says {CLAIMS['n_ctx'][0]} = {said['n_ctx']}, but the tensors have embeddings "
            f"for {rows} positions"
        )
    return rows


def to_hf_state_dict(model: GPT2) -> dict[str, Tensor]:
    """The weights under Hugging Face's names and in its layout; a tied head is left out, as it is there."""
    names: Collection[str] = model.state_dict().keys()
    theirs = rename(names, "transformer.", "h")
    turn = tuple(f"{part}.weight" for part in PROJECTIONS)
    return {
        theirs[name]: (tensor.detach().T.contiguous() if name.endswith(turn) else tensor.detach()).cpu()
        for name, tensor in model.state_dict().items()
    }


def hf_config(model: GPT2) -> dict[str, Any]:
    """The arguments of ``transformers.GPT2Config(**…)``, and the contents of a ``config.json``.

    Transformers has no GPT-2 without biases and none whose keys are its values; we read such files, it refuses them.
    """
    c = model.config
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": c.vocab_size,
        "n_positions": c.n_ctx,
        "n_embd": c.d_model,
        "n_layer": c.n_layer,
        "n_head": c.n_head,
        "n_inner": c.d_mlp,
        "activation_function": "gelu_new" if c.activation == "gelu_tanh" else "gelu",
        "layer_norm_epsilon": c.norm_eps,
        "tie_word_embeddings": c.tied,
        **said_norms(c),
    }
