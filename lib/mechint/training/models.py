"""The models that can be trained: for each family its sizes, its initial weights, and what decays."""

from __future__ import annotations

import dataclasses
import functools
import math

import torch
from torch import nn

from ..models.base import LanguageModel
from ..models.families import declared
from ..models.family import StackFamily
from ..models.gpt2 import GPT2, GPT2Config
from ..models.mamba import Mamba, MambaConfig
from ..models.sizes import Asked
from ..models.stack import StackConfig
from ..tasks import Task
from ..utils.errors import MechintError, did_you_mean, short
from ..utils.options import named
from .initial import initialise
from .options import Architecture, GPT2Architecture, MambaArchitecture, OtherArchitecture

VOCABULARY_MULTIPLE = 8
EMBEDDINGS = ("embedding.weight", "wte.weight", "wpe.weight", "embed_tokens.weight")

ModelConfig = MambaConfig | GPT2Config | StackConfig


def model_config(a: Architecture, task: Task) -> ModelConfig:
    """The configuration of a model for a task.

    Raises:
        MechintError: the sizes don't fit each other or the task.
    """
    vocab_size = -(-task.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    if isinstance(a, MambaArchitecture):
        return MambaConfig(
            vocab_size=vocab_size,
            d_model=a.d_model,
            n_layer=a.n_layer,
            d_inner=a.expand * a.d_model,
            d_state=a.d_state,
            d_conv=a.d_conv,
            dt_rank=a.dt_rank or math.ceil(a.d_model / 16),
        )
    if isinstance(a, OtherArchitecture):
        return other_config(a, vocab_size)
    assert isinstance(a, GPT2Architecture)
    if a.n_embd % a.n_head:
        raise MechintError(
            f"{named('gpt2', 'n_embd')} is {a.n_embd}, which can't be divided among {a.n_head} heads; choose a "
            f"multiple of {named('gpt2', 'n_head')}"
        )
    if a.block_size and a.block_size < task.length:
        raise MechintError(
            f"{named('gpt2', 'block_size')} is {a.block_size}, and the prompts of {task.name!r} have {task.length} "
            f"tokens; raise it, or set 0 for what the task needs"
        )
    return GPT2Config(
        vocab_size=vocab_size,
        n_ctx=a.block_size or task.length,
        d_model=a.n_embd,
        n_layer=a.n_layer,
        n_head=a.n_head,
        d_mlp=4 * a.n_embd,
        activation="gelu_tanh" if a.gelu == "tanh" else "gelu",
        bias=a.bias,
        norm_bias=a.bias,
        kv_tied=a.kv != "separate",
        kv_global=a.kv == "global",
    )


def other_config(a: OtherArchitecture, vocab_size: int) -> StackConfig:
    """The family's own configuration of what is asked for.

    Raises:
        MechintError: the family is none that is trained here, or has no place for a size or a kind of layer.
    """
    families = {family.name: family for family in declared().values() if family.trained}
    family = families.get(a.model_type)
    if family is None or family.trained is None:
        own = f"; {a.model_type} has a menu and a --family of its own" if a.model_type in ("mamba", "gpt2") else ""
        raise MechintError(
            f"{named('other', 'model_type')}: no family {short(a.model_type)!r} is trained so{own}"
            f"{did_you_mean(a.model_type, families)}; there are {', '.join(sorted(families))}"
        )
    sizes = {name: value for name, value in dataclasses.asdict(a).items() if isinstance(value, int)}
    asked = Asked(sizes, a.layers, vocab_size, family.trained, family.title, functools.partial(named, "other"))
    config: StackConfig = family.trained.configure(asked)
    asked.done()
    return config


def make_model(config: ModelConfig, init: str = "published") -> LanguageModel:
    """A model with its initial weights, drawn from torch's global generator.

    ``unit`` gives embeddings of unit variance and logits of about that: small synthetic tasks are then learnt.
    """
    if isinstance(config, StackConfig):
        stack = family_of(config).build(config)
        if stack.device.type != "meta":
            initialise(stack, init)
        return stack
    model = Mamba(config) if isinstance(config, MambaConfig) else GPT2(config)
    if init == "unit":
        nn.init.normal_(model.embeddings)
        norm = model.norm_f if isinstance(model, Mamba) else model.ln_f
        nn.init.constant_(norm.weight, config.d_model**-0.5)
        if isinstance(model, GPT2):
            nn.init.normal_(model.wpe.weight)
            unit_projections(model)
    return model


def family_of(config: StackConfig) -> StackFamily:
    """The family whose configuration this is."""
    return declared()[config.family]


def unit_projections(model: GPT2) -> None:
    """Projections that keep the variance of what they read: the published 0.02 is that only at a width of 2,500."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and name.startswith("layers."):
            deep = (2 * model.config.n_layer) ** -0.5 if name.endswith("c_proj.weight") else 1.0
            nn.init.normal_(parameter, std=deep * parameter.shape[1] ** -0.5)


def decays(name: str, parameter: torch.Tensor) -> bool:
    """True if weight decay applies: to projections and convolutions only."""
    return parameter.dim() > 1 and not name.endswith(("A_log", *EMBEDDINGS))
