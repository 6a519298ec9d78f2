"""Sparse autoencoders: dictionaries of features, one file for each architecture.

>>> from mechint import sae
>>> dictionary = sae.load("mechint_analysis_sae/topk-k32-x8-s0-layers.0.out")
>>> f = dictionary.encode(run["layers.0.out"])  # [batch, position, d_sae], in the units of the activations
"""

from __future__ import annotations

from .architectures import ARCHITECTURES, make
from .attach import Fit, attach, fit, site_of
from .base import Loss, SAEConfig, SparseAutoencoder, Step
from .batch_topk import BatchTopK
from .formats.detect import load
from .formats.dictionary_learning import load_dictionary_learning, save_dictionary_learning
from .formats.saelens import save
from .formats.sparsify import load_sparsify, save_sparsify
from .formats.transcoders import load_transcoder, load_transcoders, save_transcoder
from .gated import Gated
from .jumprelu import JumpReLU
from .matryoshka import Matryoshka
from .relu import ReLU
from .topk import TopK
from .transcoder import Transcoder

__all__ = [
    "ARCHITECTURES", "BatchTopK", "Fit", "Gated", "JumpReLU", "Loss", "Matryoshka", "ReLU", "SAEConfig",
    "SparseAutoencoder", "Step", "TopK", "Transcoder",
    "attach", "fit", "load", "load_dictionary_learning", "load_sparsify", "load_transcoder", "load_transcoders",
    "make", "save", "save_dictionary_learning", "save_sparsify", "save_transcoder", "site_of",
]  # fmt: skip
