"""A Llama in plain NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np


def oracle(model: Any, ids: Any) -> dict[str, Any]:
    """Every site, in plain NumPy and loops, from the equations alone."""
    c = model.config
    w = {name: tensor.detach().numpy().astype(np.float64) for name, tensor in model.state_dict().items()}
    linear = lambda name, x: x @ w[name + ".weight"].T + w.get(name + ".bias", 0.0)
    scaled = lambda name, x: x / np.sqrt((x**2).mean(-1, keepdims=True) + c.norm_eps) * w[name + ".weight"]
    norm = lambda name, x: scaled(name, x) if name + ".weight" in w else x  # a model may lack it
    B, L = ids.shape
    d, shared = c.d_head, c.n_head // c.n_kv_head
    sites: dict[str, Any] = {"embed": w["embed_tokens.weight"][ids]}
    r = sites["embed"]
    for i in range(c.n_layer):
        p = f"layers.{i}."
        got: dict[str, Any] = {"resid_pre": r, "ln_1": norm(p + "input_layernorm", r)}
        for name in "qkv":
            got[name] = linear(f"{p}self_attn.{name}_proj", got["ln_1"]).reshape(B, L, -1, d)
        for name in "qk":
            turned = got[name + "_rot"] = np.zeros_like(got[name])
            for t in range(L):
                for m in range(d // 2):  # a complex number for each pair of dimensions
                    pair = got[name][:, t, :, m] + 1j * got[name][:, t, :, m + d // 2]
                    pair = pair * np.exp(1j * t * c.rope_theta ** (-2 * m / d))
                    turned[:, t, :, m], turned[:, t, :, m + d // 2] = pair.real, pair.imag
        got["scores"], got["pattern"] = np.full((B, L, c.n_head, L), -np.inf), np.zeros((B, L, c.n_head, L))
        got["head_out"] = np.zeros((B, L, c.n_head, d))
        for b in range(B):
            for t in range(L):
                for h in range(c.n_head):
                    for j in range(t + 1):
                        key = got["k_rot"][b, j, h // shared]
                        got["scores"][b, t, h, j] = got["q_rot"][b, t, h] @ key / np.sqrt(d)
                    weights = np.exp(got["scores"][b, t, h] - got["scores"][b, t, h].max())
                    got["pattern"][b, t, h] = weights / weights.sum()
                    got["head_out"][b, t, h] = got["pattern"][b, t, h] @ got["v"][b, :, h // shared]
        got["attn_out"] = linear(p + "self_attn.o_proj", got["head_out"].reshape(B, L, -1))
        got["resid_mid"] = r + got["attn_out"]
        got["ln_2"] = norm(p + "post_attention_layernorm", got["resid_mid"])
        got["mlp_pre"] = linear(p + "mlp.gate_proj", got["ln_2"])
        got["mlp_up"] = linear(p + "mlp.up_proj", got["ln_2"])
        got["mlp_post"] = got["mlp_pre"] / (1 + np.exp(-got["mlp_pre"])) * got["mlp_up"]
        got["mlp_out"] = linear(p + "mlp.down_proj", got["mlp_post"])
        r = got["resid_post"] = got["resid_mid"] + got["mlp_out"]
        sites |= {p + name: value for name, value in got.items()}
    sites["final_norm"] = norm("norm", r)
    sites["logits"] = sites["final_norm"] @ w.get("lm_head.weight", w["embed_tokens.weight"]).T
    return sites
