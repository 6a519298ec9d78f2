"""Transformers of attention and a feed-forward part: what their configurations have in common, and the usual layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ....utils.errors import MechintError, an
from ...loading.config_reader import NEEDED, ConfigReader
from ...parts.attention import Attention, Reading
from ...parts.base import Branch, Layer, Part
from ...parts.feed_forward import WRITTEN_ACTIVATIONS, GatedMLP
from ...parts.norms import HeadsLayerNorm, RMSNorm
from ...parts.rotation import Rotation
from ...stack import StackConfig

KINDS = {"full_attention": "full", "sliding_attention": "sliding"}


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(StackConfig):
    """Sizes and switches that most transformers have."""

    n_head: int
    n_kv_head: int
    d_head: int
    attention_bias: bool = False
    """Biases of queries, keys and values."""
    out_bias: bool = False
    """Bias of the attention's output projection."""
    rotation: Rotation
    d_mlp: int
    mlp_bias: bool = False
    activation: str
    norm_eps: float
    windows: tuple[int, ...]
    """Positions that each layer's attention reads, itself included; 0 for all before it."""
    unturned: tuple[int, ...] = ()
    """Layers whose attention has no rotation."""

    @property
    def kinds(self) -> list[str]:
        """The kind of each layer as configurations name it."""
        return ["sliding_attention" if window else "full_attention" for window in self.windows]


def read_sizes(
    raw: ConfigReader,
    *,
    eps: float = 1e-6,
    tied: bool = False,
    activation: str = "",
    vocabulary: Any = NEEDED,
    eps_name: str = "rms_norm_eps",
) -> dict[str, Any]:
    """The fields that every transformer's configuration states alike.

    Args:
        eps, tied, vocabulary: The family's values where the configuration has none.
        activation: The family's own key of the activation, a tanh GELU where the configuration has none.
        eps_name: The family's key of what is added to the norms' mean squares or variances; "" where it is ``eps``.
    """
    raw.ignore("max_position_embeddings")
    act = raw.activation(activation, "gelu_pytorch_tanh") if activation else raw.activation("hidden_act")
    return {
        "vocab_size": raw.size("vocab_size", vocabulary),
        "d_model": raw.size("hidden_size"),
        "n_layer": raw.size("num_hidden_layers"),
        "tied": raw.switch("tie_word_embeddings", tied),
        "d_mlp": raw.size("intermediate_size"),
        "activation": act,
        "norm_eps": raw.number(eps_name, eps) if eps_name else eps,
    }


def read_windows(raw: ConfigReader, n_layer: int, default: Sequence[str], window: int) -> tuple[int, ...]:
    """The window of each layer, from ``layer_types``.

    Args:
        default: The kinds of the layers where they are not said.
        window: The length of every window; 0 where the configuration has none.
    """
    kinds = raw.kinds("layer_types", KINDS, n_layer, default)
    if "sliding" in kinds and not window:
        raise MechintError(
            f"{raw.where}: layer_types has sliding_attention, and no sliding window is said or switched on; correct it"
        )
    return tuple(window if kind == "sliding" else 0 for kind in kinds)


def read_window(raw: ConfigReader, default: int) -> int:
    """The key ``sliding_window``: 0 where it is null, and ``default`` where it is absent."""
    return 0 if raw.null("sliding_window") else int(raw.size("sliding_window", default))


def read_cap(raw: ConfigReader, name: str, default: float) -> float:
    """A cap: 0 where it is null, and ``default`` where the key is absent."""
    return 0.0 if raw.null(name) or (not default and name not in raw.raw) else raw.number(name, default)


def read_rotation(
    raw: ConfigReader, size: int, theta: float = 10000.0, kind: str = "", interleaved: bool = False
) -> Rotation:
    """The rotation of whole heads; the arguments are those of :meth:`ConfigReader.rotation` and of the rotation."""
    rotation = raw.rotation(size, theta, kind=kind)
    if rotation.size:
        raise MechintError(
            f"{raw.where}: partial_rotary_factor is set, and {an(raw.title)} turns whole heads; remove it"
        )
    return replace(rotation, interleaved=interleaved)


def check_shares(raw: ConfigReader, d_model: int, n_head: int) -> None:
    """Raises :class:`MechintError` unless each head has an equal share of the stream, as some families have it."""
    if d_model % n_head:
        raise MechintError(
            f"{raw.where}: hidden_size is {d_model} and num_attention_heads {n_head}; the first must be a multiple of "
            "the second"
        )
    raw.only("head_dim", d_model // n_head)


def read_experts(raw: ConfigReader, least: int = 1) -> int:
    """The number of experts: ``num_experts`` or ``num_local_experts``, which transformers reads as one key."""
    names = ("num_experts", "num_local_experts")
    name, other = names if names[0] in raw.raw or names[1] not in raw.raw else names[::-1]
    experts: int = raw.size(name, least=least)
    raw.only(other, experts)
    return experts


def attention(
    c: TransformerConfig,
    i: int,
    norms: tuple[nn.Module, nn.Module] | None = None,
    *,
    rotation: Rotation | None = None,
    whole_norms: bool = False,
    scale: float | None = None,
    cap: float = 0.0,
    clip: float = 0.0,
) -> Attention:
    """The attention of a layer, with the window and the rotation that the configuration gives it."""
    return Attention(
        c.d_model, c.n_head, c.n_kv_head, c.d_head, bias=c.attention_bias, out_bias=c.out_bias,
        rotation=None if i in c.unturned else rotation or c.rotation, norms=norms, whole_norms=whole_norms,
        how=Reading(scale, cap, c.windows[i]), clip=clip,
    )  # fmt: skip


def pre_norm(
    c: TransformerConfig,
    i: int,
    norms: tuple[nn.Module, nn.Module] | None = None,
    *,
    norm: Callable[[int], nn.Module] | None = None,
    scale: float | None = None,
    clip: float = 0.0,
    whole_norms: bool = False,
    added: float = 1.0,
    feed: Part | None = None,
) -> Layer:
    """Attention and a gated feed-forward part, a norm in front of each.

    Args:
        norms: Norms of queries and keys, of each head or of all at once (whole).
        norm: The width -> a norm in front; None for an RMS norm.
        scale: Multiplies the products of queries and keys; None for the usual.
        clip: The largest size of entries of queries, keys and values; 0 for any.
        added: Multiplies what each part adds to the stream.
        feed: Another part in the place of the feed-forward one.
    """
    in_front = norm or (lambda size: RMSNorm(size, c.norm_eps))
    modules = {
        "input_layernorm": in_front(c.d_model),
        "self_attn": attention(c, i, norms, scale=scale, clip=clip, whole_norms=whole_norms),
        "post_attention_layernorm": in_front(c.d_model),
        "mlp": GatedMLP(c.d_model, c.d_mlp, c.activation, c.mlp_bias) if feed is None else feed,
    }
    return Layer(
        modules,
        [Branch("input_layernorm", "ln_1", ("self_attn",), scale=added)],
        [Branch("post_attention_layernorm", "ln_2", ("mlp",), scale=added)],
    )


def head_norms(c: TransformerConfig) -> tuple[nn.Module, nn.Module]:
    """Layer norms of each head's queries and keys, with weights of their own."""
    return HeadsLayerNorm(c.n_head, c.d_head, c.norm_eps), HeadsLayerNorm(c.n_kv_head, c.d_head, c.norm_eps)


def parallel(
    c: TransformerConfig,
    i: int,
    norm: nn.Module,
    feed: Part,
    norms: tuple[nn.Module, nn.Module] | None = None,
) -> Layer:
    """Attention and a feed-forward part behind one norm; ``norms`` are of queries and keys."""
    modules = {"input_layernorm": norm, "self_attn": attention(c, i, norms), "mlp": feed}
    return Layer(modules, [Branch("input_layernorm", "ln_1", ("self_attn", "mlp"))])


def written(c: TransformerConfig, architecture: str, eps_name: str = "rms_norm_eps") -> dict[str, Any]:
    """The entries that the ``config.json`` of every transformer has."""
    return {
        "architectures": [architecture], "model_type": c.family, "vocab_size": c.vocab_size,
        "hidden_size": c.d_model, "num_hidden_layers": c.n_layer, "tie_word_embeddings": c.tied,
        "num_attention_heads": c.n_head, "num_key_value_heads": c.n_kv_head, "head_dim": c.d_head,
        "intermediate_size": c.d_mlp, "hidden_act": WRITTEN_ACTIVATIONS.get(c.activation, c.activation),
        eps_name: c.norm_eps, "rope_parameters": c.rotation.written(c.d_head),
    }  # fmt: skip


def last_norm(c: TransformerConfig) -> RMSNorm:
    """The norm behind the last layer."""
    return RMSNorm(c.d_model, c.norm_eps)
