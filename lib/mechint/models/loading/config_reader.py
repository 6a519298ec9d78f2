"""Reads one model's ``config.json``: every key is asked for by the family, has no effect, or is refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...utils.errors import MechintError, an, shown
from ..parts.feed_forward import ACTIVATION_NAMES
from ..parts.rotation import Long, Rotation, Yarn
from .config_keys import HARMLESS, normal, off, short_name
from .strictness import LARGEST

NEEDED = object()
"""The default of a key that a configuration must have."""


class ConfigReader:
    """The keys of a configuration, each of which is read once.

    Args:
        raw: The configuration.
        where: Its file, for messages.
        title: The family, as messages call it.
    """

    def __init__(self, raw: Mapping[str, Any], where: str, title: str) -> None:
        self.raw, self.where, self.title = dict(raw), where, title
        self.seen = {"architectures", "model_type", "auto_map"}

    def _value(self, name: str, default: Any) -> Any:
        self.seen.add(name)
        value = self.raw.get(name)
        if value is not None:
            return value
        if default is NEEDED:
            raise MechintError(f"{self.where}: the configuration lacks {name}, which {an(self.title)} needs; add it")
        return default

    def _wrong(self, name: str, value: Any, wanted: str) -> MechintError:
        return MechintError(f"{self.where}: the configuration has {name} = {shown(value)}, which is no {wanted}")

    def size(self, name: str, default: Any = NEEDED, least: int = 1) -> Any:
        """A whole number of at least ``least``, or the default where the key is absent."""
        value = self._value(name, default)
        if value is default and default is not NEEDED and self.raw.get(name) is None:
            return value
        if type(value) is not int or not least <= value <= LARGEST:
            raise self._wrong(name, value, f"size from {least}")
        return value

    def rank(self, name: str, d_model: int) -> int:
        """The rank of Mamba-1's Δ: a sixteenth of the model's width where the key is absent or says ``auto``."""
        if self.raw.get(name) == "auto":
            self.seen.add(name)
            return math.ceil(d_model / 16)
        rank: int = self.size(name, math.ceil(d_model / 16))
        return rank

    def number(self, name: str, default: Any = NEEDED, positive: bool = True) -> float:
        """A finite number, above 0 unless it may be anything."""
        value = self._value(name, default)
        if type(value) not in (int, float) or not math.isfinite(value) or (positive and value <= 0):
            raise self._wrong(name, value, "number" + " above 0" * positive)
        return float(value)

    def null(self, name: str) -> bool:
        """True if the key is there and null: what it says is off, whatever is meant by a key that is not there."""
        self.seen.add(name)
        return name in self.raw and self.raw[name] is None

    def heads(self, size: int = 0, count: Any = NEEDED, with_keys: int = 0) -> dict[str, Any]:
        """Heads, those that have keys and values, and the dimensions of each: ``n_head``, ``n_kv_head``, ``d_head``.

        Args:
            size: Dimensions of a head where they are not said; 0 for an equal share of the stream.
            count, with_keys: Heads, and those with keys, where they are not said; 0 for as many, and so says null.
        """
        n_head = self.size("num_attention_heads", count)
        alike = self.null("num_key_value_heads") or not with_keys
        n_kv_head = self.size("num_key_value_heads", n_head if alike else with_keys)
        if n_head % n_kv_head:
            raise MechintError(
                f"{self.where}: num_attention_heads is {n_head} and num_key_value_heads {n_kv_head}; the first must be "
                "a multiple of the second"
            )
        d_head = self.size("head_dim", None) or size or self.size("hidden_size") // n_head
        return {"n_head": n_head, "n_kv_head": n_kv_head, "d_head": d_head}

    def numbers(self, name: str, count: int, default: Sequence[float]) -> tuple[float, ...]:
        """A list of so many finite numbers."""
        value = self._value(name, list(default))
        listed = value if isinstance(value, (list, tuple)) else ()
        if len(listed) != count or not all(type(x) in (int, float) and math.isfinite(x) for x in listed):
            raise self._wrong(name, value, f"list of {count} numbers")
        return tuple(float(x) for x in listed)

    def limits(self, name: str) -> tuple[float, float]:
        """The least and the largest of something; a missing key means 0 to infinity."""
        value = self._value(name, [0.0, math.inf])
        # transformers writes infinity so, since JSON has none
        listed = [math.inf if x == {"__float__": "Infinity"} else x for x in value] if isinstance(value, list) else []
        if [type(x) in (int, float) for x in listed] != [True, True] or not 0 <= listed[0] < listed[1]:
            raise self._wrong(name, value, "pair of limits")
        return float(listed[0]), float(listed[1])

    def switch(self, name: str, default: Any = NEEDED) -> bool:
        """True or false."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "switch (true or false)")
        return value

    def word(self, name: str, known: Sequence[str], default: Any = NEEDED) -> str:
        """One of some words."""
        value = self._value(name, default)
        if value not in known:
            raise MechintError(
                f"{self.where}: {name} is {shown(value)}, and our {self.title} knows {', '.join(known)} there; "
                "not supported"
            )
        return str(value)

    def activation(self, name: str, default: str = "silu") -> str:
        """Our name of an activation."""
        value = self._value(name, default)
        if not isinstance(value, str) or value not in ACTIVATION_NAMES:
            raise MechintError(
                f"{self.where}: {name} is {shown(value)}; activations known here are {', '.join(ACTIVATION_NAMES)}"
            )
        return ACTIVATION_NAMES[value]

    def kinds(self, name: str, known: Mapping[str, str], count: int, default: Sequence[str] | None = None) -> list[str]:
        """A kind for each of ``count`` layers: the words of the file become those of ``known``."""
        value = self._value(name, NEEDED if default is None else list(default))
        if not isinstance(value, (list, tuple)) or not all(isinstance(kind, str) for kind in value):
            raise self._wrong(name, value, "list of kinds of layer")
        if odd := [kind for kind in value if kind not in known]:
            raise MechintError(
                f"{self.where}: {name} has {shown(odd[0])}; {an(self.title)} has layers of the kinds {', '.join(known)}"
            )
        if len(value) != count:
            raise MechintError(f"{self.where}: {name} names {len(value)} layers, and the model has {count}; correct it")
        return [known[kind] for kind in value]

    def rotation(
        self,
        size: int,
        default_theta: float = 10000.0,
        fraction: float = 1.0,
        *,
        kind: str = "",
        theta_name: str = "rope_theta",
        part_name: str = "partial_rotary_factor",
        original: int = 0,
    ) -> Rotation:
        """The rotation of heads of ``size`` dimensions, from today's keys (rope_parameters) or the earlier ones.

        Args:
            default_theta, fraction: The family's values where the configuration has none.
            kind: The kind of layer, where each has its own rotation; the earlier scaling is of full attention alone.
            theta_name, part_name: The earlier keys of the base and of the turned part of a head.
            original: Positions of the first training where the family scales by length (longrope) or not at all; 0 for
                other families.
        """
        said: dict[str, Any] = {}
        for name in ("rope_scaling", "rope_parameters"):
            value = self._value(name, {})
            if not isinstance(value, Mapping):
                raise self._wrong(name, value, "setting of a rotation")
            if kind and name == "rope_parameters":
                if odd := [key for key in value if key not in ("full_attention", "sliding_attention")]:
                    raise MechintError(
                        f"{self.where}: {name} has {shown(odd[0])}, and {an(self.title)} needs a section "
                        "full_attention and a section sliding_attention there"
                    )
                value = value.get(kind) or {}
                if not isinstance(value, Mapping):
                    raise self._wrong(f"{name}.{kind}", value, "setting of a rotation")
            elif kind == "sliding_attention":
                continue
            said |= {key: item for key, item in value.items() if item is not None}
        theta = said.pop("rope_theta", self._value(theta_name, default_theta))
        part = said.pop("partial_rotary_factor", self._value(part_name, fraction))
        of_layers = bool(kind)
        kind = said.pop("rope_type", said.pop("type", "default"))
        said.pop("type", None)
        numbers = {"rope_theta": theta, "partial_rotary_factor": part}
        if original:
            return self._by_length(said, kind, size, numbers, original)
        names = {"linear": ("factor",), "yarn": ("factor", "original_max_position_embeddings"),
                 "llama3": ("factor", "low_freq_factor", "high_freq_factor",
                 "original_max_position_embeddings")}.get(kind, ())  # fmt: skip
        if kind not in ("default", "linear", "llama3", "yarn"):
            raise MechintError(
                f"{self.where}: the rotation is of the type {shown(kind)}; known here are default, linear, llama3 and "
                "yarn"
            )
        numbers |= {name: said.pop(name, None) for name in names}
        turned = self._turned(numbers, size)
        yarn = self._yarn(said, float(theta), float(numbers["factor"]), of_layers) if kind == "yarn" else None
        self._nothing_left(said)
        return Rotation(
            float(theta), turned, float(numbers.get("factor") or 1.0),
            float(numbers.get("low_freq_factor") or 1.0), float(numbers.get("high_freq_factor") or 4.0),
            int(numbers.get("original_max_position_embeddings") or 0), yarn=yarn,
        )  # fmt: skip

    def _turned(self, numbers: Mapping[str, Any], size: int) -> int:
        """The dimensions of a head that are turned, 0 for all; ``numbers`` of the rotation are checked."""
        for name, value in numbers.items():
            if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
                raise self._wrong(f"{name} of the rotation", value, "number above 0")
        turned = int(size * float(numbers["partial_rotary_factor"]))
        if turned < 2 or turned % 2:
            raise MechintError(f"{self.where}: {turned} of a head's {size} dimensions can't be turned in pairs")
        return 0 if turned == size else turned

    def _nothing_left(self, said: Mapping[str, Any]) -> None:
        """Raises :class:`MechintError` for a setting of a rotation that was not asked for."""
        if left := [name for name, value in said.items() if not off(value) and name not in ROTATION_HARMLESS]:
            raise MechintError(f"{self.where}: the rotation has {left[0]} = {shown(said[left[0]])}; not supported")

    def _by_length(
        self, said: dict[str, Any], kind: Any, size: int, numbers: Mapping[str, Any], original: int
    ) -> Rotation:
        """A rotation that is plain, or scaled by length; as transformers, ``yarn`` and ``su`` are names of the latter.

        Args:
            said: The settings, without base, kind and part.
            kind, numbers: The kind; base and part.
            original: Positions of the first training.
        """
        turned, theta = self._turned(numbers, size), float(numbers["rope_theta"])
        if (own := said.pop("original_max_position_embeddings", original)) != original:
            raise MechintError(
                f"{self.where}: original_max_position_embeddings is {shown(own)} in the rotation and {original} beside "
                "it, which is what transformers reads; correct one"
            )
        if kind == "default":
            self._nothing_left(said)
            return Rotation(theta, turned)
        if kind not in ("longrope", "su", "yarn"):
            raise MechintError(
                f"{self.where}: the rotation is of the type {shown(kind)}; known here for {an(self.title)} are default "
                "and longrope"
            )
        factors = []
        for name in ("short_factor", "long_factor"):
            value, count = said.pop(name, None), (turned or size) // 2
            listed = value if isinstance(value, (list, tuple)) else ()
            if len(listed) != count or not all(type(x) in (int, float) and 0 < x < math.inf for x in listed):
                raise self._wrong(f"{name} of the rotation", value, f"list of {count} numbers above 0")
            factors.append(tuple(float(x) for x in listed))
        factor, scale = said.pop("factor", None), said.pop("attention_factor", None)
        if factor is None:
            factor = self.size("max_position_embeddings", 4096) / original
        for name, value in (("factor", factor), ("attention_factor", 1.0 if scale is None else scale)):
            if type(value) not in (int, float) or not 0 < value < math.inf:
                raise self._wrong(f"{name} of the rotation", value, "number above 0")
        if scale is None:
            scale = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
        self._nothing_left(said)
        within, beyond = factors
        return Rotation(theta, turned, original=original, long=Long(within, beyond, float(scale)))

    def _yarn(self, said: dict[str, Any], theta: float, factor: float, of_layers: bool) -> Yarn:
        """YaRN's own settings, which are taken out of a rotation's.

        Args:
            theta, factor: The rotation's.
            of_layers: True if each kind of layer has a rotation of its own; transformers truncates there in any case.
        """
        names = ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim")
        given = {name: said.pop(name, None) for name in names}
        for name, value in given.items():
            if value is not None and (type(value) not in (int, float) or not math.isfinite(value) or value < 0):
                raise self._wrong(f"{name} of the rotation", value, "number from 0")
        truncated = said.pop("truncate", True)
        if not isinstance(truncated, bool) or (of_layers and not truncated):
            raise self._wrong("truncate of the rotation", truncated, "switch (true or false)" if not of_layers else
                              "truncation, which a rotation for each kind of layer has")  # fmt: skip
        if theta <= 1:
            raise self._wrong("rope_theta of the rotation", theta, "base above 1, which yarn needs")
        scale = lambda by: 1.0 if factor <= 1 else 0.1 * by * math.log(factor) + 1.0
        size = given["attention_factor"]
        if size is None:
            both = given["mscale"] and given["mscale_all_dim"]
            size = scale(given["mscale"]) / scale(given["mscale_all_dim"]) if both else scale(1.0)
        return Yarn(float(given["beta_fast"] or 32), float(given["beta_slow"] or 1), truncated, float(size))

    def inside(self, name: str, section: Mapping[str, Any], others: str) -> None:
        """Goes on with a section of the configuration; beside it only ``others`` and harmless keys may stand."""
        self.ignore(f"{name} {others} tie_word_embeddings")
        outer = self.raw
        self.done()
        self.raw = {**{key: outer[key] for key in ("tie_word_embeddings",) if key in outer}, **section}

    def only(self, name: str, *values: Any) -> None:
        """The key must have one of these values where it is there: what we compute anyway."""
        self.seen.add(name)
        value = self.raw.get(name)
        if value is not None and normal(value) not in [normal(one) for one in values]:
            raise MechintError(
                f"{self.where}: {name} is {shown(value)}, and our {self.title} has {shown(values[0])} there; not "
                "supported"
            )

    def ignore(self, names: str) -> None:
        """These keys change nothing of what the model computes."""
        self.seen.update(names.split())

    def done(self) -> None:
        """Raises :class:`MechintError` for keys that were never asked for, unless they are off or have no effect."""
        left = [
            f"{short_name(name)} = {shown(value, 40)}"
            for name, value in self.raw.items()
            if name not in self.seen and name not in HARMLESS and not off(value)
        ]
        if left:
            more = f" and {len(left) - 4} more" if len(left) > 4 else ""
            raise MechintError(
                f"{self.where}: the configuration has {', '.join(left[:4])}{more}, which may change what the model "
                f"computes and which our {self.title} does not have; not supported (remove what has no effect)"
            )


ROTATION_HARMLESS = frozenset({"mrope_section", "mrope_interleaved"})
"""Settings of positions in images, which a text does not have: all its axes count the same positions."""
