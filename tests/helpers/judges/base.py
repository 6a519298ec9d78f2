"""transformers promoted to float64, and random weights under which every path moves the logits.

Its recurrences, norms and softmax ask for float32 even inside a float64 model; :func:`promoted` gives them float64. It
judges whole prompts alone, without a cache and without padding.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

VOCABULARY = 37


@dataclass(frozen=True)
class Judge:
    """A family as transformers has it.

    Attributes:
        family: Its name, ours.
        make: A source of random numbers -> transformers' model with a random small configuration.
        skip_parts: Attributes of parts whose outputs are not compared, since transformers computes them elsewhere.
        layers: The attribute of its layers.
        cut_anywhere: Ends of names of tensors that transformers' files cut at other rows than ours: what is compared is
            all of them together.
    """

    family: str
    make: Callable[[random.Random], Any]
    skip_parts: tuple[str, ...] = ()
    layers: str = "layers"
    cut_anywhere: tuple[str, ...] = ()

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by their names in a file, with one in the place of those that may be cut anywhere."""
        found = dict(tensors)
        for first in [name for name in tensors if self.cut_anywhere and name.endswith(self.cut_anywhere[0])]:
            front = first.removesuffix(self.cut_anywhere[0])
            found[front + "whole"] = torch.cat([found.pop(front + end) for end in self.cut_anywhere])
        return found


@contextlib.contextmanager
def promoted() -> Iterator[None]:
    """Inside, what asks for float32 gets float64."""
    to, softmax, kind = torch.Tensor.to, torch.nn.functional.softmax, torch.Tensor.type
    wide = lambda x: torch.float64 if x is torch.float32 else x

    def to_wide(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if "dtype" in kwargs:
            kwargs["dtype"] = wide(kwargs["dtype"])
        return to(self, *map(wide, args), **kwargs)

    def wide_softmax(x: Tensor, *args: Any, dtype: Any = None, **kwargs: Any) -> Tensor:
        return softmax(x, *args, dtype=wide(dtype), **kwargs)

    with (
        mock.patch.object(torch.Tensor, "to", to_wide),
        mock.patch.object(torch.Tensor, "type", lambda self, *args, **kwargs: kind(self, *map(wide, args), **kwargs)),
        mock.patch.object(torch.Tensor, "float", lambda self: to(self, torch.float64)),
        mock.patch.object(torch.nn.functional, "softmax", wide_softmax),
    ):
        yield


def judged(judge: Judge, seed: int) -> Any:
    """transformers' model in float64, with random configuration and weights."""
    rng = random.Random(f"{judge.family} {seed}")
    torch.manual_seed(seed)
    model = judge.make(rng).eval().double()
    plain_experts(model)
    randomise(model, seed)
    for module in model.modules():
        exact_frequencies(module)
    return model


def plain_experts(model: Any) -> None:
    """Makes mixtures of experts plain products: transformers' grouped ones know no float64."""
    model.set_experts_implementation("eager")


@torch.no_grad()
def randomise(model: nn.Module, seed: int) -> None:
    """Random weights of a size at which every path moves the logits."""
    generator = torch.Generator().manual_seed(seed)
    drawn = lambda p: torch.randn(p.shape, generator=generator, dtype=p.dtype)
    for name, p in model.named_parameters():
        if name.endswith("A_log"):
            p.copy_(drawn(p) * 0.5 - 0.5)
        elif p.dim() == 1 and "norm" in name and name.endswith("weight"):
            p.add_(drawn(p) * 0.2)
        elif p.dim() == 1:
            p.copy_(drawn(p) * 0.3)
        else:
            p.copy_(drawn(p) * (0.8 * p.shape[-1] ** -0.5 if p.shape[-1] > 4 else 0.4))


def exact_frequencies(module: nn.Module) -> None:
    """Makes a rotation's frequencies anew in float64, and the embeddings' scale: transformers holds them in float32."""
    if hasattr(module, "scalar_embed_scale"):
        module.embed_scale = torch.tensor(module.scalar_embed_scale, dtype=torch.float64)
    if isinstance(angles := getattr(module, "embed_positions", None), Tensor):  # GPT-J's, [position, size]
        count, size = angles.shape
        turned = torch.arange(count, dtype=torch.float64)[:, None] * plain_frequencies(10000.0, size)
        module.embed_positions = torch.cat([turned.sin(), turned.cos()], 1)
    if not hasattr(module, "config"):
        return
    config: Any = module.config
    for kind in ("", "full_attention", "sliding_attention"):
        buffer = f"{kind}_inv_freq" if kind else "inv_freq"
        if hasattr(module, buffer):
            said = config.rope_parameters[kind] if kind else config.rope_parameters
            setattr(module, buffer, frequencies(config, said, kind))
            if said.get("rope_type") == "longrope":  # chosen in every forward, by the length
                module.original_inv_freq = frequencies(config, said, kind)
                module.long_inv_freq = frequencies(
                    config, said, kind, seq_len=said["original_max_position_embeddings"] + 1
                )


def frequencies(config: Any, said: dict[str, Any], kind: str, **more: Any) -> Tensor:
    """The frequencies of a rotation in float64; ``more`` is for transformers' function that makes scaled ones."""
    if said.get("rope_type", "default") != "default":
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        of_kind = {**more, **({"layer_type": kind} if kind else {})}
        wide = {torch.float32: torch.float64}
        exact = lambda make: lambda *args, dtype=None, **rest: make(*args, dtype=wide.get(dtype, dtype), **rest)
        made = {name: exact(getattr(torch, name)) for name in ("arange", "tensor")}
        with promoted(), mock.patch.multiple(torch, **made):
            torch.set_default_dtype(torch.float64)
            try:
                return ROPE_INIT_FUNCTIONS[said["rope_type"]](config, torch.device("cpu"), **of_kind)[0].double()
            finally:
                torch.set_default_dtype(torch.float32)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    turned = int(size * said.get("partial_rotary_factor", 1.0))
    return plain_frequencies(said["rope_theta"], turned)


def plain_frequencies(theta: float, size: int) -> Tensor:
    """The radians of each pair of ``size`` dimensions for a position."""
    return theta ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)


def logits_of(model: Any, tokens: Tensor) -> Tensor:
    """The logits of a whole prompt, in float64."""
    with promoted():
        return model(tokens, use_cache=False).logits
