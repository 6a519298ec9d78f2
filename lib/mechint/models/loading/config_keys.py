"""Keys of configurations: understood, without effect, or refused by name, so that none that may count is dropped.

A configuration written for one model (a ``config.json``, a GGUF file's metadata, nanoGPT's ``model_args``) is read
strictly: a key that is neither understood nor listed as harmless is refused unless it is off. A trainer's options are
mostly about training, and no list holds them all: there a key is refused when its words speak of an architecture.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...utils.errors import MechintError, shown, written


def listed(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


OFF: tuple[Any, ...] = (None, False, 0, "", "none", "None", [], (), {})
"""Values of a switch that is off."""

HARMLESS = listed(
    """
    return_dict output_hidden_states output_attentions output_past torchscript torch_dtype dtype use_bfloat16
    tf_legacy_loss chunk_size_feed_forward id2label label2id problem_type num_labels _num_labels finetuning_task
    task_specific_params transformers_version _name_or_path name_or_path bos_token_id eos_token_id pad_token_id
    sep_token_id cls_token_id mask_token_id unk_token_id decoder_start_token_id forced_bos_token_id
    forced_eos_token_id bos_token eos_token pad_token tokenizer_class prefix use_cache cache_implementation
    initializer_range init_std initializer_cutoff_factor max_length min_length do_sample early_stopping num_beams
    num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty
    no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores
    return_dict_in_generate exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
    remove_invalid_values gradient_checkpointing attn_implementation _attn_implementation is_decoder
    _attn_implementation_autoset _commit_hash use_flash_attn use_flash_attention flash_attention attention_dropout
    hidden_dropout mlp_dropout dropout resid_pdrop embd_pdrop attn_pdrop transformers.js_config unsloth_version
    unsloth_fixed unsloth_tiled_mlp model_max_length license
    """
)
"""Keys of any model's configuration that change nothing of what it computes: precision, dropout, generation, labels."""

TRAINING = listed(
    """
    lr lrs rate learning decay wd warmup warm schedule scheduler cosine optimizer optimizers optim adam adamw sgd muon
    lion beta beta1 beta2 betas momentum nesterov clip clipping grad grads gradient gradients accumulation accum steps
    step iters iter iterations epoch epochs batch batches batchsize minibatch micro seed seeds eval evals evaluation
    val validation valid test train trainer training log logs logging logger wandb tensorboard mlflow comet project run
    runs name names dir dirs directory path paths file files folder out output outputs save saves checkpoint
    checkpoints ckpt resume restart init initial initialize initializer initialization dropout pdrop drop dropped data
    dataset datasets corpus text texts tokenizer tokenizers device devices gpu gpus cpu cuda dtype precision amp bf16
    fp16 fp32 fp8 tf32 compile compiled flash fused impl implementation ddp fsdp deepspeed zero distributed backend
    world node nodes rank workers worker pin prefetch loss losses label labels smoothing prune pruning pruned freeze
    frozen regularization regulariser regularizer regularization penalty l1 l2 ema profile profiler profiling debug
    verbose hellaswag benchmark samples sample sampling sampler generate generation cache cached checkpointing shuffle
    split patience stopping stop early monitor metric metrics best iteration interval every freq frequency random
    reload offline online host port user entity tag tags notes note comment commit version git hostname time date
    launcher slurm job deterministic api task tasks curriculum tokens
    """
)
"""Words of a trainer's options that are about training, even beside a word of architecture (``attn_dropout``)."""

ARCHITECTURE = listed(
    """
    head heads nhead kv q k v qk qkv key keys value values query queries group groups gqa mqa mla latent compression
    rope ropes rotary rotate rotation theta ntk yarn alibi nope pos position positions positional relative absolute
    sinusoidal norm norms normalize normalise normalization rmsnorm layernorm groupnorm batchnorm dyt ln rms prenorm
    postnorm sandwich act activation activations nonlinearity gelu relu relu2 silu swish swiglu
    geglu reglu glu mlp mlps ffn ff feedforward neurons hidden width intermediate inner bias biases tie ties tied tying
    untied untie shared sharing softcap softcapping cap capping logit logits window windows sliding local global
    attn attention attentions mha linear parallel sequential residual residuals resid skip skips shortcut highway embed
    embd embedding embeddings moe expert experts router routed routing topk state states ssm conv convs convolution
    kernel dt delta mixer mixers mixture gate gates gated gating multiplier multipliers scale scaled scaling depth
    deepnorm layerscale hybrid layer layers block blocks dim dims expand expansion factor arch architecture
    sink sinks register registers memory smear lora adapter adapters quant quantization quantized quantize causal
    bidirectional backward reverse recurrent recurrence recurrences ffw qknorm unet
    squared clamp
    """
)
"""Words of an option that may be of an architecture: of such a trainer's option that is on, nothing is assumed."""


@dataclass(frozen=True)
class Keys:
    """The meaning of the keys of a family's configuration."""

    family: str
    """The name a reader knows: "Llama"."""
    understood: frozenset[str]
    """Keys whose values are read, and held against the tensors."""
    known: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Keys that are not read, with the values that say what we compute anyway."""
    harmless: frozenset[str] = frozenset()
    """Keys beside :data:`HARMLESS` that change nothing of what the model computes."""
    classes: str = ""
    """Pattern of the names that ``architectures`` may have."""


def refuse_unknown(config: Mapping[str, Any], keys: Keys, strict: Collection[str], where: str) -> None:
    """Raises :class:`MechintError` for keys that may change what the model computes, and that nothing here reads.

    Args:
        strict: The keys that describe one model; the others are a trainer's options.
    """
    unknown = []
    for name, value in config.items():
        if name in keys.understood or value is None:
            continue
        if name in keys.known:
            if normal(value) not in [normal(one) for one in keys.known[name]]:
                raise MechintError(
                    f"{where}: {short_name(name)} is {shown(value)}, and our {keys.family} has "
                    f"{shown(keys.known[name][0])} there; not supported"
                )
        elif off(value) or name == "architectures" or name in HARMLESS or name in keys.harmless:
            continue
        elif name in strict or is_architecture(name):
            unknown.append(f"{short_name(name)} = {shown(value, 40)}")
    classes = config.get("architectures")
    if keys.classes and isinstance(classes, (list, tuple)):
        odd = [one for one in classes if not (isinstance(one, str) and re.fullmatch(keys.classes, one))]
        if odd:
            raise MechintError(f"{where}: architectures is {shown(odd[0])}, which is no {keys.family}; not supported")
    if unknown:
        more = f" and {len(unknown) - 4} more" if len(unknown) > 4 else ""
        raise MechintError(
            f"{where}: the configuration has {', '.join(unknown[:4])}{more}, which may change what the model computes "
            f"and which our {keys.family} does not have; not supported (remove what has no effect)"
        )


def off(value: Any) -> bool:
    """True if a switch is off; numbers are compared by type too, since ``0.0 == False``."""
    if isinstance(value, float):
        return value == 0.0
    return any(value is one or (type(value) is type(one) and value == one) for one in OFF)


def normal(value: Any) -> Any:
    """A value as it is compared: words without case and joints, numbers as floats."""
    if isinstance(value, str):
        return re.sub(r"[\s_-]", "", value.lower())
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    return value if value is None or isinstance(value, bool) else written(value)  # others by their text


def words(name: str) -> set[str]:
    """The words of an option's name: ``useRoPE_v2`` has use, ro, pe, rope, v2."""
    parts = re.split(r"[^A-Za-z0-9]+", name)
    split = [word for part in parts for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+", part)]
    return {word.lower() for word in (*parts, *split) if word}


def is_architecture(name: str) -> bool:
    """True if a trainer's option may belong to the architecture and not to training."""
    found = words(str(name))
    return bool(found & ARCHITECTURE) and not found & TRAINING


def short_name(name: object) -> str:
    return shown(str(name), 60).strip("'\"")


def merged(config: Mapping[str, Any], whole: Collection[str]) -> dict[str, Any]:
    """A trainer's options with those of its sections (``model: {n_head: 4}``) beside them; the outer ones count.

    A section that is named for a part of an architecture (``moe: {…}``) stays, for what is inside may be nameless.

    Args:
        whole: Keys of no trainer, and sections that say nothing more, since what they made is said outside them.
    """
    flat = {str(name): value for name, value in config.items()}
    for name, section in list(config.items()):
        if isinstance(section, argparse.Namespace):
            section = vars(section)
        if isinstance(section, Mapping) and not (words(str(name)) & TRAINING or name in whole or name in KEPT_WHOLE):
            if name in ("arch", "architecture") or not is_architecture(str(name)):
                del flat[str(name)]
            flat = {**{str(inner): value for inner, value in section.items()}, **flat}
    return flat


KEPT_WHOLE = frozenset({"ssm_cfg", "attn_cfg", "rope_scaling", "rope_parameters", "data", "id2label", "label2id"})
"""Sections that are one setting."""


def plain_values(config: Mapping[str, Any], where: str, depth: int = 8) -> None:
    """Raises :class:`MechintError` unless a configuration is made of plain values that can be printed and compared.

    A ``.pt`` may hold anything in it: numbers of thousands of digits, tensors, NaN, lists within lists.
    """
    for name, value in config.items():
        for item in _leaves(value, depth, f"{where}: the configuration's {short_name(name)}"):
            if isinstance(item, int) and item.bit_length() > 64:
                raise MechintError(
                    f"{where}: the configuration's {short_name(name)} is a number of {item.bit_length()} bits"
                )


def _leaves(value: Any, depth: int, what: str) -> Iterator[Any]:
    if depth < 0:
        raise MechintError(f"{what} is nested too deep to be a setting")
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            yield from _leaves(item, depth - 1, what)
    else:
        yield value
