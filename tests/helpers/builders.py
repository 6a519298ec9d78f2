"""Small random models for tests."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

from mechint.models.gpt2 import GPT2, GPT2Config
from mechint.models.llama import Llama, LlamaConfig
from mechint.models.mamba import Mamba, MambaConfig

VOCABULARY = 24


def tiny_mamba(seed: int = 0, dtype: torch.dtype = torch.float32, **sizes: Any) -> Mamba:
    """A Mamba with weights large enough that every path matters."""
    config = dict(
        vocab_size=VOCABULARY, d_model=10, n_layer=2, d_inner=14, d_state=5, d_conv=4, dt_rank=3
    )  # fmt: skip
    model = Mamba(MambaConfig(**{**config, **sizes}))
    torch.manual_seed(seed)  # here, so that the weights do not depend on what the constructor draws
    with torch.no_grad():
        model.embedding.weight.normal_()
        for module in model.modules():
            if isinstance(module, (torch.nn.Linear, torch.nn.Conv1d)):
                module.reset_parameters()
        for layer in model.layers:
            if layer.norm.weight is not None:
                layer.norm.weight.uniform_(0.5, 1.5)
            layer.A_log.copy_(torch.rand_like(layer.A_log) * 2 - 1)
            layer.D.normal_()
            layer.dt_proj.bias.uniform_(-2, 0.5)
            for weight in (layer.in_proj.weight, layer.x_proj.weight, layer.out_proj.weight):
                weight.mul_(2.0)
    model.source = "a random model"
    return model.to(dtype)


def tiny_gpt2(seed: int = 0, dtype: torch.dtype = torch.float32, **sizes: Any) -> GPT2:
    """A GPT-2 with weights large enough that every path matters."""
    config = dict(vocab_size=VOCABULARY, n_ctx=16, d_model=12, n_layer=2, n_head=3, d_mlp=20)
    model = GPT2(GPT2Config(**{**config, **sizes}))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
            elif parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=1.0 if name.startswith(("wte", "wpe")) else 1.5 * parameter.shape[1] ** -0.5)
    model.source = "a random model"
    return model.to(dtype)


def tiny_llama(seed: int = 0, dtype: torch.dtype = torch.float32, **sizes: Any) -> Llama:
    """A Llama with weights large enough that every path matters."""
    config = dict(vocab_size=VOCABULARY, d_model=10, n_layer=2, n_head=4, n_kv_head=2, d_head=6, d_mlp=14)
    model = Llama(LlamaConfig(**{**config, **sizes}))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
            elif parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=1.0 if name.startswith("embed") else 1.5 * parameter.shape[1] ** -0.5)
    model.source = "a random model"
    return model.to(dtype)


def tokens(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


SIZES = st.fixed_dictionaries(
    {
        "d_model": st.integers(2, 12),
        "d_inner": st.integers(1, 16),
        "d_state": st.integers(1, 6),
        "d_conv": st.integers(1, 6),
        "dt_rank": st.integers(1, 5),
        "n_layer": st.integers(1, 3),
        "conv_bias": st.booleans(),
        "proj_bias": st.booleans(),
        "tied": st.booleans(),
    }
)

KV = ({}, {"kv_tied": True}, {"kv_tied": True, "kv_global": True})  # apart, tied per head, tied globally
GPT2_SIZES = st.fixed_dictionaries(
    {
        "kv": st.sampled_from(KV),
        "n_head": st.sampled_from([1, 2, 3]),
        "d_model": st.sampled_from([6, 12, 18]),
        "d_mlp": st.integers(1, 16),
        "n_layer": st.integers(1, 3),
        "activation": st.sampled_from(["gelu", "gelu_tanh"]),
        "bias": st.booleans(),
        "norm_bias": st.booleans(),
        "tied": st.booleans(),
        "norm_eps": st.sampled_from([1e-5, 1e-3]),
    }
).map(lambda sizes: {name: size for name, size in sizes.items() if name != "kv"} | sizes["kv"])

LLAMA_SIZES = st.fixed_dictionaries(
    {
        "d_model": st.integers(2, 12),
        "n_kv_head": st.sampled_from([1, 2, 4]),
        "d_head": st.sampled_from([2, 4, 6]),
        "d_mlp": st.integers(1, 16),
        "n_layer": st.integers(1, 3),
        "rope_theta": st.sampled_from([100.0, 10000.0]),
        "attention_bias": st.booleans(),
        "mlp_bias": st.booleans(),
        "tied": st.booleans(),
        "norm_eps": st.sampled_from([1e-6, 1e-3]),
    }
)
