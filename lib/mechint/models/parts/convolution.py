"""The causal convolution in front of a recurrence, whose memory is a site.

Axes: B batch, L position, E channel, K taps. Sites: ``conv``, and ``conv_state``, the K-1 inputs remembered behind a
position, oldest first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ... import scan
from ...interventions.taps import Scope
from .base import PartSite

CHANNELS = ("batch", "position", "channel")


class CausalConvolution(nn.Conv1d):
    """One filter for each channel; the last tap is the current position's.

    Args:
        channels: E.
        taps: K.
        bias: True if the channels have one.
    """

    def __init__(self, channels: int, taps: int, bias: bool) -> None:
        super().__init__(channels, channels, taps, groups=channels, bias=bias)

    def sites(self) -> list[PartSite]:
        """The sites of this convolution."""
        channels, taps = self.out_channels, self.kernel_size[0]
        return [
            PartSite("conv_state", (*CHANNELS, "tap"), (channels, taps - 1)), PartSite("conv", CHANNELS, (channels,))
        ]  # fmt: skip

    def empty_memory(self, rows: int) -> Tensor:
        """The memory before the first position, [rows, K-1, E]."""
        return self.weight.new_zeros(rows, self.kernel_size[0] - 1, self.out_channels)

    def forward(self, x: Tensor, memory: Tensor, at: Scope) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """The convolution of x [B, L, E] behind memory [B, K-1, E], and the memory behind these positions."""
        K, L = self.kernel_size[0], x.shape[1]
        if at.edits("conv_state"):
            windows, memory = self.edited_windows(x, memory, at)
            conv = torch.cat([self.taps(window) for window in windows], 1)
        else:
            whole = torch.cat([memory, x], 1)  # [B, K-1+L, E]
            conv, memory = self.taps(whole), whole[:, L:]
            windows = [whole[:, t : t + K] for t in range(L)] if at.cuts("conv") else []
            if at.wants("conv_state"):
                at.keep("conv_state", whole.unfold(1, K - 1, 1)[:, 1:])  # [B, L, E, K-1]
        for cut in at.cuts("conv"):
            without = []
            for t, window in enumerate(windows):
                there = [t + at.offset - (K - 1) + k not in (cut.sources or ()) for k in range(K)]
                without.append(self.taps(cut.own(window) * window.new_tensor(there)[:, None]))
            conv = cut.graft(conv, torch.cat(without, 1), at.offset)
        return at("conv", conv), memory

    def edited_windows(self, x: Tensor, memory: Tensor, at: Scope) -> tuple[list[Tensor], Tensor]:
        """The K inputs that each position sees, [B, K, E] each, when the memory of some positions is edited."""
        windows, memories = [], []
        for t in range(x.shape[1]):
            windows.append(torch.cat([memory, x[:, t : t + 1]], 1))
            memory = windows[-1][:, 1:]
            for edit in at.edits("conv_state"):
                memory = edit.apply(memory.transpose(1, 2).unsqueeze(1), at.offset + t).squeeze(1).transpose(1, 2)
            memories.append(memory)
        at.keep("conv_state", torch.stack(memories, 1).transpose(2, 3))  # [B, L, E, K-1]
        return windows, memory

    def taps(self, window: Tensor) -> Tensor:
        """The convolution of every K neighbours, [B, L+K-1, E] -> [B, L, E]."""
        past = self.kernel_size[0] - 1
        return scan.convolve(window[:, past:], window[:, :past], self.weight[:, 0], self.bias)
