"""A second Mamba, in plain NumPy and plain loops, written from the equations alone: the judge in float64."""

from __future__ import annotations

from typing import Any

import numpy as np


def silu(x: Any) -> Any:
    return x / (1 + np.exp(-x))


def softplus(x: Any) -> Any:
    return np.logaddexp(0, x)


def rms(x: Any, weight: Any, eps: float) -> Any:
    if weight is None:  # a model without this norm
        return x
    return weight * x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)


def forward(model: Any, tokens: Any) -> dict[str, Any]:
    """Every site of a model of ours, by name, for tokens [batch, position]."""
    c = model.config
    w = {name: tensor.detach().numpy().astype(np.float64) for name, tensor in model.state_dict().items()}
    B, L = tokens.shape
    sites: dict[str, Any] = {}
    r = w["embedding.weight"][tokens]
    sites["embed"] = r
    for i in range(c.n_layer):
        p = f"layers.{i}."
        got: dict[str, Any] = {"resid_pre": r, "norm": rms(r, w.get(p + "norm.weight"), c.norm_eps)}
        both = got["norm"] @ w[p + "in_proj.weight"].T + w.get(p + "in_proj.bias", 0.0)
        got["x"], got["z"] = both[..., : c.d_inner], both[..., c.d_inner :]
        shapes = {"conv": (c.d_inner,), "conv_state": (c.d_inner, c.d_conv - 1), "scan_out": (c.d_inner,)}
        shapes |= dict.fromkeys(("decay", "write", "state"), (c.d_inner, c.d_state))
        for name, shape in shapes.items():
            got[name] = np.zeros((B, L, *shape))
        kernel, bias = w[p + "conv1d.weight"][:, 0], w.get(p + "conv1d.bias", np.zeros(c.d_inner))
        for b in range(B):
            for t in range(L):
                for k in range(c.d_conv):
                    s = t - (c.d_conv - 1) + k
                    if s >= 0:
                        got["conv"][b, t] += kernel[:, k] * got["x"][b, s]
                for k in range(c.d_conv - 1):
                    s = t - (c.d_conv - 2) + k
                    if s >= 0:
                        got["conv_state"][b, t, :, k] = got["x"][b, s]
                got["conv"][b, t] += bias
        got["u"] = silu(got["conv"])
        low = got["u"] @ w[p + "x_proj.weight"].T
        got["B"] = low[..., c.dt_rank : c.dt_rank + c.d_state]
        got["C"] = low[..., c.dt_rank + c.d_state :]
        got["dt"] = softplus(low[..., : c.dt_rank] @ w[p + "dt_proj.weight"].T + w[p + "dt_proj.bias"])
        A = -np.exp(w[p + "A_log"])
        for b in range(B):
            h = np.zeros((c.d_inner, c.d_state))
            for t in range(L):
                for e in range(c.d_inner):
                    got["decay"][b, t, e] = np.exp(got["dt"][b, t, e] * A[e])
                    got["write"][b, t, e] = got["dt"][b, t, e] * got["u"][b, t, e] * got["B"][b, t]
                h = got["decay"][b, t] * h + got["write"][b, t]
                got["state"][b, t] = h
                got["scan_out"][b, t] = h @ got["C"][b, t]
        got["readout"] = got["state"]
        got["y"] = got["scan_out"] + w[p + "D"] * got["u"]
        got["gate"] = silu(got["z"])
        got["gated"] = got["y"] * got["gate"]
        got["out"] = got["gated"] @ w[p + "out_proj.weight"].T + w.get(p + "out_proj.bias", 0.0)
        r = got["resid_post"] = r + got["out"]
        sites |= {p + name: value for name, value in got.items()}
    sites["final_norm"] = rms(r, w.get("norm_f.weight"), c.norm_eps)
    sites["logits"] = sites["final_norm"] @ w.get("lm_head.weight", w["embedding.weight"]).T
    return sites
