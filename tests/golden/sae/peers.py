"""Runs inside a peer library's own environment: makes golden dictionaries with it, or judges ours.

    python peers.py make  LIBRARY DIRECTORY    its own dictionaries, saved by itself, with inputs and encodings
    python peers.py judge LIBRARY DIRECTORY    loads every dictionary below, prints how far encodings are from ours

LIBRARY is saelens, dictionary_learning or sparsify. Imports nothing of this project. A dictionary's directory also
holds ``expected.safetensors``: x [32, d_in], f [32, d_sae] and back [32, d_in].
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

D_IN, D_SAE, K = 6, 14, 3
LIMIT = 1e-6
"""Largest difference of an encoding or reconstruction, as a share of the largest entry."""


def fill(module: torch.nn.Module, seed: int) -> None:
    """Weights of which every one matters: nothing is left at zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        value = torch.randn(parameter.shape, generator=generator)
        value = value.abs() * 0.3 + 0.1 if name == "threshold" else value * (0.5 if parameter.dim() == 2 else 0.3)
        parameter.data.copy_(value)


def dense(codes: Any, width: int) -> torch.Tensor:
    """sparsify gives values and indices of the active latents."""
    if isinstance(codes, torch.Tensor):
        return codes
    return torch.zeros(len(codes.top_acts), width).scatter(-1, codes.top_indices, codes.top_acts)


# ---- SAELens ----------------------------------------------------------------------------------------------------


def make_saelens() -> Iterator[tuple[str, torch.nn.Module, Callable[[Path], Any]]]:
    from sae_lens.saes.gated_sae import GatedSAE, GatedSAEConfig
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

    kinds: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "standard": (StandardSAE, StandardSAEConfig, {}),
        "standard-no-b_dec": (StandardSAE, StandardSAEConfig, {"apply_b_dec_to_input": False}),
        "topk": (TopKSAE, TopKSAEConfig, {"k": K}),
        "topk-rescaled": (TopKSAE, TopKSAEConfig, {"k": K, "rescale_acts_by_decoder_norm": True}),
        "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig, {}),
        "gated": (GatedSAE, GatedSAEConfig, {}),
    }
    for seed, (name, (kind, config, more)) in enumerate(kinds.items()):
        sae = kind(config(d_in=D_IN, d_sae=D_SAE, device="cpu", dtype="float32", **more))
        fill(sae, seed)
        yield name, sae, sae.save_model


def load_saelens(directory: Path) -> torch.nn.Module:
    from sae_lens import SAE

    return SAE.load_from_disk(str(directory), device="cpu")


# ---- dictionary_learning ----------------------------------------------------------------------------------------


def make_dictionary_learning() -> Iterator[tuple[str, torch.nn.Module, Callable[[Path], Any]]]:
    from dictionary_learning import dictionary as d
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    kinds = {
        "AutoEncoder": d.AutoEncoder(D_IN, D_SAE),
        "AutoEncoderNew": d.AutoEncoderNew(D_IN, D_SAE),
        "GatedAutoEncoder": d.GatedAutoEncoder(D_IN, D_SAE),
        "JumpReluAutoEncoder": d.JumpReluAutoEncoder(D_IN, D_SAE),
        "AutoEncoderTopK": AutoEncoderTopK(D_IN, D_SAE, K),
        "BatchTopKSAE": BatchTopKSAE(D_IN, D_SAE, K),
        "MatryoshkaBatchTopKSAE": MatryoshkaBatchTopKSAE(D_IN, D_SAE, K, [4, 10]),
    }
    for seed, (name, sae) in enumerate(kinds.items()):
        fill(sae, 10 + seed)
        if name == "AutoEncoder":  # which the library brings to rows of norm 1 whenever it loads one
            sae.normalize_decoder()
        if "BatchTopK" in name:
            sae.threshold.fill_(0.4)
        config = {"trainer": {"dict_class": name, "activation_dim": D_IN, "dict_size": D_SAE, "k": K, "layer": 0,
                              "lm_name": "a-model", "submodule_name": "mixer"}, "buffer": {"ctx_len": 32}}  # fmt: skip

        def save(path: Path, sae: torch.nn.Module = sae, config: dict[str, Any] = config) -> None:
            path.mkdir(parents=True, exist_ok=True)
            torch.save(sae.state_dict(), path / "ae.pt")
            (path / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")

        yield name, sae, save


def load_dictionary_learning(directory: Path) -> torch.nn.Module:
    from dictionary_learning.utils import load_dictionary

    return load_dictionary(str(directory), device="cpu")[0]


# ---- sparsify ---------------------------------------------------------------------------------------------------


def make_sparsify() -> Iterator[tuple[str, torch.nn.Module, Callable[[Path], Any]]]:
    from sparsify import SparseCoder, SparseCoderConfig

    sae = SparseCoder(D_IN, SparseCoderConfig(num_latents=D_SAE, k=K))
    fill(sae, 20)
    yield "layers.0.mixer", sae, sae.save_to_disk


def load_sparsify(directory: Path) -> torch.nn.Module:
    from sparsify import SparseCoder

    [loaded] = SparseCoder.load_many(str(directory.parent), local=True, layers=[directory.name]).values()
    return loaded


# ---- both ways --------------------------------------------------------------------------------------------------

MAKE = {"saelens": make_saelens, "dictionary_learning": make_dictionary_learning, "sparsify": make_sparsify}
LOAD = {"saelens": load_saelens, "dictionary_learning": load_dictionary_learning, "sparsify": load_sparsify}


@torch.no_grad()
def encodings(sae: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    codes = sae.encode(x)
    back = sae.decode(codes.top_acts, codes.top_indices) if hasattr(codes, "top_acts") else sae.decode(codes)
    return dense(codes, getattr(sae, "num_latents", 0)), back


def make(library: str, directory: Path) -> int:
    x = torch.randn(32, D_IN, generator=torch.Generator().manual_seed(99)) * 2 + 0.5
    for name, sae, save in MAKE[library]():
        save(directory / name)
        f, back = encodings(sae, x)
        if not 0.02 < float((f > 0).float().mean()) < 0.98:
            print(f"{name}: {float((f > 0).float().mean()):.0%} of the latents are active, which shows little")
            return 1
        save_file({"x": x, "f": f.contiguous(), "back": back.contiguous()}, directory / name / "expected.safetensors")
        print(f"{library:20} {name:24} made")
    return 0


def judge(library: str, directory: Path) -> int:
    worst = 0.0
    found = sorted(path.parent for path in directory.rglob("expected.safetensors"))
    for path in found:
        expected = load_file(path / "expected.safetensors")
        f, back = encodings(LOAD[library](path), expected["x"])
        away = [float((ours - theirs).abs().max() / theirs.abs().max())
                for ours, theirs in ((expected["f"], f), (expected["back"], back))]  # fmt: skip
        same = bool(((expected["f"] > 0) == (f > 0)).all())
        worst = max(worst, *away, 0.0 if same else 1.0)
        name = path.relative_to(directory).parts[0]
        print(f"{library:20} {name:24} encodings {away[0]:.1e}  reconstructions {away[1]:.1e}  "
              f"active latents {'the same' if same else 'DIFFER'}")  # fmt: skip
    print(
        f"{library:20} {len(found)} dictionaries, largest difference {worst:.1e} of the largest entry (limit {LIMIT:g})"
    )
    return 0 if found and worst <= LIMIT else 1


if __name__ == "__main__":
    sys.exit({"make": make, "judge": judge}[sys.argv[1]](sys.argv[2], Path(sys.argv[3])))
