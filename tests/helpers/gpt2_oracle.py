"""A second GPT-2, in plain NumPy and plain loops, written from the equations alone: the judge in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

erf = np.vectorize(math.erf, otypes=[np.float64])


def gelu(x: Any, kind: str) -> Any:
    if kind == "gelu":
        return x * (1 + erf(x / math.sqrt(2))) / 2
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def forward(model: Any, tokens: Any) -> dict[str, Any]:
    """Every site of a model of ours, by name, for tokens [batch, position]."""
    c = model.config
    w = {name: tensor.detach().numpy().astype(np.float64) for name, tensor in model.state_dict().items()}

    def linear(name: str, x: Any) -> Any:
        return x @ w[name + ".weight"].T + w.get(name + ".bias", 0.0)

    def norm(name: str, x: Any) -> Any:
        if name + ".weight" not in w:
            return x
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + c.norm_eps)
        return scaled * w[name + ".weight"] + w.get(name + ".bias", 0.0)

    B, L = tokens.shape
    H, D = c.n_head, c.d_model
    d, shared = D // H, H // c.n_kv_head
    own = c.n_kv_head * d
    sites: dict[str, Any] = {"embed": w["wte.weight"][tokens], "pos_embed": np.stack([w["wpe.weight"][:L]] * B)}
    r = sites["embed"] + sites["pos_embed"]
    for i in range(c.n_layer):
        p = f"layers.{i}."
        got: dict[str, Any] = {"resid_pre": r, "ln_1": norm(p + "ln_1", r)}
        mixed = linear(p + "attn.c_attn", got["ln_1"])
        got["q"], got["k"] = mixed[..., :D].reshape(B, L, H, d), mixed[..., D : D + own].reshape(B, L, -1, d)
        got["v"] = got["k"] if c.kv_tied else mixed[..., D + own :].reshape(B, L, -1, d)
        got["scores"], got["pattern"] = np.full((B, L, H, L), -np.inf), np.zeros((B, L, H, L))
        got["head_out"] = np.zeros((B, L, H, d))
        for b in range(B):
            for t in range(L):
                for h in range(H):
                    for j in range(t + 1):
                        got["scores"][b, t, h, j] = got["q"][b, t, h] @ got["k"][b, j, h // shared] / math.sqrt(d)
                    weights = np.exp(got["scores"][b, t, h] - got["scores"][b, t, h].max())
                    got["pattern"][b, t, h] = weights / weights.sum()
                    for j in range(t + 1):
                        got["head_out"][b, t, h] += got["pattern"][b, t, h, j] * got["v"][b, j, h // shared]
        got["attn_out"] = linear(p + "attn.c_proj", got["head_out"].reshape(B, L, D))
        got["resid_mid"] = r + got["attn_out"]
        got["ln_2"] = norm(p + "ln_2", got["resid_mid"])
        got["mlp_pre"] = linear(p + "mlp.c_fc", got["ln_2"])
        got["mlp_post"] = gelu(got["mlp_pre"], c.activation)
        got["mlp_out"] = linear(p + "mlp.c_proj", got["mlp_post"])
        r = got["resid_post"] = got["resid_mid"] + got["mlp_out"]
        sites |= {p + name: value for name, value in got.items()}
    sites["final_norm"] = norm("ln_f", r)
    sites["logits"] = sites["final_norm"] @ w.get("lm_head.weight", w["wte.weight"]).T
    return sites
