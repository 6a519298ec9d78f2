"""Rotary position embedding (Su et al. 2021), with the scalings that published models use."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...scan.checks import accumulate
from ...utils.errors import MechintError


@dataclass(frozen=True)
class Yarn:
    """A scaling by wavelength (Peng et al. 2023, "YaRN"): pairs that turn seldom are stretched, quick ones are kept."""

    fast: float = 32.0
    """Pairs that turn so often in the positions of the first training, or more often, are kept."""
    slow: float = 1.0
    """Pairs that turn so often or less are stretched by the whole factor."""
    truncated: bool = True
    """True if the pairs between which the stretch grows are whole numbers."""
    size: float = 1.0
    """Multiplies turned queries and keys."""

    def kept(self, pairs: Tensor, theta: float, original: int) -> Tensor:
        """The share of each pair's own frequency, 0 to 1; pairs are their numbers, [size / 2] of dtype and device."""
        size = 2 * len(pairs)

        def pair(turns: float) -> float:
            return size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

        low, high = pair(self.fast), pair(self.slow)
        if self.truncated:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, size - 1)
        return 1 - ((pairs - low) / (high - low if high != low else 0.001)).clamp(0, 1)


@dataclass(frozen=True)
class Long:
    """A scaling by length (Ding et al. 2024, "LongRoPE"): every pair is stretched by a factor of its own, and by
    another one in prompts longer than those of the first training."""

    within: tuple[float, ...]
    """Factors of the wavelengths in prompts of up to ``original`` positions, [size / 2]."""
    beyond: tuple[float, ...]
    """Factors in longer ones, where they count for every position, the early ones too."""
    size: float = 1.0
    """Multiplies turned queries and keys, in prompts of any length."""


def crossing(border: int, before: int, length: int) -> MechintError:
    """The error of a run of ``length`` positions that goes on behind ``before`` ones, with a border between them."""
    return MechintError(
        f"all positions of a prompt longer than {border} are turned otherwise than those of a shorter one (longrope), "
        f"so {length} positions cannot go on from a memory of {before}; run the {length} at once, or stay within "
        f"{border}"
    )


@dataclass(frozen=True)
class Rotation:
    """The turn of queries and keys by their positions."""

    theta: float = 10000.0
    """Base of the frequencies: pair m of d/2 turns by theta^(-2m/d) for each position."""
    size: int = 0
    """Dimensions of a head that are turned, the first ones; 0 for all."""
    factor: float = 1.0
    """Long wavelengths are stretched by this; all of them where ``original`` is 0."""
    low: float = 1.0
    high: float = 4.0
    """Llama 3: wavelengths above original / low are stretched, those below original / high are kept."""
    original: int = 0
    """Positions of the first training, for a scaling by wavelength; 0 for a scaling of all wavelengths alike."""
    interleaved: bool = False
    """True if dimensions 2m and 2m + 1 are a pair, and not m and m + d/2."""
    yarn: Yarn | None = None
    """The scaling, where it is YaRN's and not Llama 3's."""
    long: Long | None = None
    """The scaling, where it is LongRoPE's."""

    def written(self, d: int) -> dict[str, Any]:
        """The ``rope_parameters`` of a ``config.json``, for heads of d dimensions."""
        said: dict[str, Any] = {"rope_type": "default", "rope_theta": self.theta}
        if self.size:
            said["partial_rotary_factor"] = self.size / d
        if self.yarn is not None:
            return said | {
                "rope_type": "yarn", "factor": self.factor, "original_max_position_embeddings": self.original,
                "beta_fast": self.yarn.fast, "beta_slow": self.yarn.slow, "truncate": self.yarn.truncated,
                "attention_factor": self.yarn.size,
            }  # fmt: skip
        if self.long is not None:
            return said | {
                "rope_type": "longrope", "short_factor": list(self.long.within), "long_factor": list(self.long.beyond),
                "attention_factor": self.long.size, "original_max_position_embeddings": self.original,
            }  # fmt: skip
        if self.factor != 1.0:
            said |= {"rope_type": "llama3" if self.original else "linear", "factor": self.factor}
        if self.original:
            said |= {"low_freq_factor": self.low, "high_freq_factor": self.high}
            said["original_max_position_embeddings"] = self.original
        return said

    def is_beyond(self, positions: Tensor) -> bool:
        """True if a run that ends with these positions [L] is longer than those of the first training, where that
        counts."""
        return self.long is not None and int(positions.max()) >= self.original

    def frequencies(self, size: int, device: torch.device, dtype: torch.dtype, beyond: bool = False) -> Tensor:
        """Radians for each position, [size / 2]; ``beyond`` is that of :meth:`is_beyond`."""
        base = self.theta ** -(torch.arange(0, size, 2, device=device).to(dtype) / size)
        if self.yarn is not None:
            pairs = torch.arange(size // 2, device=device).to(dtype)
            kept = self.yarn.kept(pairs, self.theta, self.original)
            return (1 - kept) * base / self.factor + kept * base
        if self.long is not None:
            return base / torch.tensor(self.long.beyond if beyond else self.long.within, device=device, dtype=dtype)
        if self.factor == 1.0:
            return base
        if not self.original:
            return base / self.factor
        wavelength = 2 * math.pi / base
        smooth = ((self.original / wavelength - self.low) / (self.high - self.low)).clamp(0, 1)
        return (1 - smooth) * base / self.factor + smooth * base

    def turn(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [B, L, ·, d] turned by its positions [L]; computed in at least float32."""
        size = self.size or x.shape[3]
        wide = accumulate(x)
        exact = torch.float64 if wide.dtype == torch.float64 else torch.float32
        radians = self.frequencies(size, x.device, exact, self.is_beyond(positions))
        angles = positions.to(exact)[:, None, None] * radians  # [L, 1, size/2]
        cos, sin = angles.cos(), angles.sin()
        if (scaling := self.yarn or self.long) is not None:
            cos, sin = cos * scaling.size, sin * scaling.size
        turned, rest = wide[..., :size], wide[..., size:]
        if self.interleaved:
            first, second = turned[..., 0::2], turned[..., 1::2]
            turned = torch.stack([first * cos - second * sin, second * cos + first * sin], -1).flatten(-2)
        else:
            first, second = turned.chunk(2, -1)
            turned = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
        return (torch.cat([turned, rest], -1) if rest.shape[-1] else turned).to(x.dtype)
