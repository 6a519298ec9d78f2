"""Dictionaries of ours for other libraries to load; ``python -m tests.golden.sae.ours LIBRARY DIRECTORY``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from mechint import sae
from mechint.sae.base import SAEConfig, SparseAutoencoder

D_IN, D_SAE, K = 12, 40, 5
ARCHITECTURES = tuple(sae.ARCHITECTURES)


def example(architecture: str, seed: int, subtract: bool = True, unit: bool = True) -> SparseAutoencoder:
    """A dictionary of which every weight matters, as training leaves it: scaled inputs, then folded."""
    config = SAEConfig(
        architecture, D_IN, D_SAE, k=K, apply_b_dec_to_input=subtract, model_name="a-model", model_family="mamba",
        site="layers.0.out", layer=0, context_size=32, dataset="a-text",
    )  # fmt: skip
    made = sae.make(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in (*made.named_parameters(), *made.named_buffers()):
            drawn = torch.randn(value.shape, generator=generator) * (0.4 if value.dim() == 2 else 0.2)
            value.copy_(drawn.abs() + 0.2 if name == "threshold" else drawn)
        if unit:
            made.normalise()
    return made.fold(0.7)


SAVE = {"saelens": sae.save, "dictionary_learning": sae.save_dictionary_learning, "sparsify": sae.save_sparsify}


def main(library: str, directory: Path) -> None:
    x = torch.randn(256, D_IN, generator=torch.Generator().manual_seed(5)) * 2 + 0.5
    for number, architecture in enumerate(ARCHITECTURES if library != "sparsify" else ["topk"]):
        for subtract in (True, False):
            ours = example(architecture, number, subtract)
            where = SAVE[library](ours, directory / f"{architecture}{'' if subtract else '-no-b_dec'}")
            ours = ours.inference()
            f = ours.encode(x)
            tensors = {"x": x, "f": f.contiguous(), "back": ours.decode(f).contiguous()}
            save_file(tensors, where / "expected.safetensors")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
