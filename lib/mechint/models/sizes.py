"""Sizes that are asked of a model to train, in the field's words, and what a family makes of them.

0 leaves a size to the family. A size that the family or the pattern of layers has no place for is refused, and so is
one that does not divide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..utils.errors import MechintError, did_you_mean, short
from .parts.rotation import Rotation


@dataclass(frozen=True)
class Trained:
    """The way in which a family is trained small.

    Attributes:
        words: Words of a pattern of layers -> the family's own kinds of layer.
        pattern: The layers where none are asked for.
        configure: The sizes that are asked for -> the family's configuration.
    """

    words: Mapping[str, str]
    pattern: str
    configure: Callable[[Asked], Any]


class Asked:
    """The sizes that are asked of one model; a family's ``configure`` takes each that it has a place for.

    Args:
        wanted: Sizes by name, 0 where none is asked for; ``n_layer`` and ``d_model`` among them.
        layers: The pattern of layers, words with spaces between them; empty for the family's.
        vocab_size: Tokens.
        trained: Its words for layers, and its way to a configuration.
        title: The family, as messages call it.
        called: A size's name -> what the reader of a message knows it by.

    Raises:
        MechintError: the pattern has a word that is no layer of the family's, or does not fill the layers.
    """

    def __init__(
        self, wanted: Mapping[str, int], layers: str, vocab_size: int, trained: Trained, title: str,
        called: Callable[[str], str] = str,
    ) -> None:  # fmt: skip
        self.wanted, self.title, self.called = wanted, title, called
        self.vocab_size, self.d_model = vocab_size, wanted["d_model"]
        self.seen = {"d_model", "n_layer"}
        pattern = layers.split() or trained.pattern.split()
        name = called("layers")
        for word in pattern:
            if word not in trained.words:
                raise MechintError(
                    f"{name} has {short(word)!r}{did_you_mean(word, trained.words)}; the layers of {title} are "
                    f"{', '.join(trained.words)}"
                )
        self.n_layer = wanted["n_layer"] or len(pattern)
        if self.n_layer % len(pattern):
            raise MechintError(
                f"{name} names {len(pattern)} layers, and {called('n_layer')} is {self.n_layer}, no multiple of that; "
                "set one of them right, or the second to 0"
            )
        self.pattern = pattern * (self.n_layer // len(pattern))
        self.kinds = tuple(trained.words[word] for word in self.pattern)

    def wrong(self, name: str, why: str) -> MechintError:
        """The error of a size that does not fit."""
        return MechintError(f"{self.called(name)} is {self.wanted[name]}{why}")

    def size(self, name: str, default: int, used: bool = True) -> int:
        """A size, or the default where none is asked for.

        Args:
            used: False where this model has no place for it, so that asking for it is an error.
        """
        if not used:
            return default
        self.seen.add(name)
        return self.wanted[name] or default

    def has(self, *kinds: str) -> bool:
        """True if one of these kinds is among the layers."""
        return any(kind in kinds for kind in self.kinds)

    def stream(self, tied: bool = True) -> dict[str, Any]:
        """The fields of every configuration."""
        return {"vocab_size": self.vocab_size, "d_model": self.d_model, "n_layer": self.n_layer, "tied": tied}

    def attention(self, used: bool = True, width: int = 0) -> dict[str, Any]:
        """Heads, those that have keys and values, and the dimensions of each: 4 heads of an equal share.

        Args:
            used: False where this model has no attention, and a configuration says something all the same.
            width: Dimensions of all heads together where none are asked for; 0 for the width of the stream.
        """
        if not used:
            return {"n_head": 1, "n_kv_head": 1, "d_head": width or 8}
        heads, width = self.size("n_head", 4), width or self.d_model
        with_keys = self.size("n_kv_head", heads)
        if heads % with_keys:
            raise self.wrong("n_kv_head", f", and {heads} heads ({self.called('n_head')}) are no multiple of that")
        each = self.size("d_head", width // heads if width % heads == 0 else 0)
        if not each:
            raise MechintError(
                f"{heads} heads ({self.called('n_head')}) do not divide a width of {width}; set "
                f"{self.called('d_head')} or another number of heads"
            )
        return {"n_head": heads, "n_kv_head": with_keys, "d_head": each}

    def rotation(self, d_head: int, fraction: float = 1.0, used: bool = True) -> Rotation:
        """The rotation of that part of every head."""
        turned = int(d_head * fraction)
        if used and (turned < 2 or turned % 2):
            raise MechintError(
                f"heads of {d_head} dimensions ({self.called('d_head')}) are too small for {self.title}, which turns "
                f"{turned} of them in pairs; take a multiple of {math.ceil(2 / fraction)}"
            )
        return Rotation(size=0 if fraction == 1.0 else turned)

    def mamba1(self, used: bool = True) -> dict[str, Any]:
        """The fields of Mamba-1's mixer."""
        return {
            "d_inner": self.size("expand", 2, used) * self.d_model,
            "d_state": self.size("d_state", 16, used),
            "d_conv": self.size("d_conv", 4, used),
            "dt_rank": self.size("dt_rank", math.ceil(self.d_model / 16), used),
            "conv_bias": True,
            "proj_bias": False,
        }

    def mamba2(self, used: bool = True) -> dict[str, Any]:
        """The fields of Mamba-2's mixer: 4 heads that share twice the stream's width, and one group."""
        inner, asked = self.size("expand", 2, used) * self.d_model, self.wanted["d_value"]
        heads = self.size("memory_heads", inner // asked if used and asked and inner % asked == 0 else 4, used)
        each = self.size("d_value", inner // heads, used)
        if used and heads * each != inner:
            raise MechintError(
                f"{heads} heads ({self.called('memory_heads')}) of {each} dimensions ({self.called('d_value')}) are "
                f"not the {inner} of {self.called('expand')} times {self.called('d_model')}; set one of them to 0"
            )
        return {
            "ssm_heads": heads, "ssm_head_size": each, "n_groups": self.groups(heads, 1, used),
            "d_state": self.size("d_state", 16, used), "d_conv": self.size("d_conv", 4, used), "conv_bias": True,
            "proj_bias": False,
        }  # fmt: skip

    def delta(self, used: bool = True) -> dict[str, Any]:
        """The fields of a gated delta rule: 4 heads, each with a key of its own."""
        heads = self.size("memory_heads", 4, used)
        return {
            "value_heads": heads, "key_heads": self.groups(heads, heads, used),
            "key_size": self.size("d_state", 16, used),
            "value_size": self.size("d_value", max(1, self.d_model // heads), used),
            "d_conv": self.size("d_conv", 4, used),
        }  # fmt: skip

    def groups(self, heads: int, default: int, used: bool) -> int:
        """Groups of heads that share keys and queries."""
        groups = self.size("groups", default, used)
        if heads % groups:
            raise self.wrong(
                "groups", f", and {heads} heads ({self.called('memory_heads')}) are no multiple of that; choose another"
            )
        return groups

    def d_mlp(self, times: int = 2, used: bool = True) -> int:
        """Neurons of a feed-forward part: so many times the width where they are not asked for."""
        return self.size("d_mlp", times * self.d_model, used)

    def experts(self, default: int = 0, used: bool = True) -> tuple[int, int, int]:
        """Experts, those that a token chooses, and the neurons of each; 0 experts for none.

        Args:
            default: Experts where none are asked for.
        """
        experts = self.size("experts", default, used)
        if experts == 1:
            raise self.wrong("experts", ", and a choice needs two or more; 0 is none")
        chosen = self.size("experts_chosen", min(2, experts), experts > 0)
        if chosen > experts:
            raise self.wrong("experts_chosen", f", and there are {experts} experts ({self.called('experts')})")
        return experts, chosen, self.size("d_expert", self.d_model if experts else 0, experts > 0)

    def done(self) -> None:
        """Raises :class:`MechintError` for a size that is asked for and that nothing of this model has."""
        for name, value in self.wanted.items():
            if value and name not in self.seen:
                raise self.wrong(
                    name,
                    f", and the layers {short(' '.join(self.pattern), 60)} of {self.title} have no such size; set it "
                    "to 0",
                )
