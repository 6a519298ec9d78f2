"""The sites of a Mamba's layer, in the order of its forward: axes, and sizes by their names in the configuration."""

from __future__ import annotations

from .base import RESIDUAL

CHANNELS = ("batch", "position", "channel")
STATES = ("batch", "position", "channel", "state")
SHARED = ("batch", "position", "state")

# (name, axes, configuration fields of the unit sizes), in the order of the forward
LAYER_SITES: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = [
    ("resid_pre", RESIDUAL, ("d_model",)),
    ("norm", RESIDUAL, ("d_model",)),
    ("x", CHANNELS, ("d_inner",)),
    ("z", CHANNELS, ("d_inner",)),
    ("conv", CHANNELS, ("d_inner",)),
    ("u", CHANNELS, ("d_inner",)),
    ("dt", CHANNELS, ("d_inner",)),
    ("B", SHARED, ("d_state",)),
    ("C", SHARED, ("d_state",)),
    ("decay", STATES, ("d_inner", "d_state")),
    ("write", STATES, ("d_inner", "d_state")),
    ("state", STATES, ("d_inner", "d_state")),
    ("readout", STATES, ("d_inner", "d_state")),
    ("scan_out", CHANNELS, ("d_inner",)),
    ("y", CHANNELS, ("d_inner",)),
    ("gate", CHANNELS, ("d_inner",)),
    ("gated", CHANNELS, ("d_inner",)),
    ("out", RESIDUAL, ("d_model",)),
    ("resid_post", RESIDUAL, ("d_model",)),
]
INSIDE = ("x", "z", "conv", "conv_state", "u", "dt", "B", "C", "decay", "write", "state", "readout", "scan_out", "y",
          "gate")  # fmt: skip
"""Sites between the projections of a mixer."""
