"""Options of the trainer and of the models it can make."""

from __future__ import annotations

from dataclasses import dataclass

from ..utils.options import option


@dataclass(frozen=True)
class TrainConfig:
    """Options of the training of a small language model."""

    steps: int = option(
        1800,
        "Optimiser steps, unless training reaches the accuracy to stop at earlier",
        unit="steps",
        low=1,
        high=10_000_000,
    )
    batch_size: int = option(64, "Prompts in one forward of a step", unit="prompts", low=1, high=65536)
    grad_accumulation: int = option(
        1,
        "Forwards whose gradients make one step: a larger batch in the same memory",
        unit="forwards",
        low=1,
        high=4096,
    )
    precision: str = option(
        "float32",
        "Arithmetic of the forward: float32, or bfloat16 where torch's autocast has it, with float32 weights and sums",
        choices=("float32", "bfloat16"),
    )
    lr: float = option(2e-2, "Peak learning rate of AdamW", low=1e-7, high=1.0)
    schedule: str = option(
        "cosine",
        "Learning rate after the warm-up: falls to 0 along a cosine or a line, or stays",
        choices=("cosine", "linear", "constant"),
    )
    warmup: int = option(50, "Steps over which the learning rate rises from 0", unit="steps", low=0, high=1_000_000)
    weight_decay: float = option(
        0.01, "Weight decay of the projections; never of embeddings, A_log, D, biases and norms", low=0.0, high=1.0
    )
    beta2: float = option(
        0.999, "Decay of AdamW's mean of squared gradients; a smaller decay forgets sooner", low=0.5, high=0.99999
    )
    grad_clip: float = option(1.0, "Largest norm of the gradient", low=1e-3, high=1000.0)
    init: str = option(
        "unit",
        "Embeddings of unit variance and a final norm of width^-1/2, best for synthetic tasks, or the published 0.02",
        choices=("unit", "published"),
    )
    seed: int = option(0, "Seed of the weights and of the training prompts", low=0, high=2**31 - 1)
    impose: bool = option(
        False,
        "Impose a known circuit on a model of two layers that learns recall (strict interchange intervention training)",
    )
    impose_strictness: float = option(
        1.0, "Weight of the loss with all other units ablated, beside that of the answers", low=0.0, high=1000.0
    )
    impose_match: float = option(
        0.0, "Weight, in that loss, of the mean squared change of the logits", low=0.0, high=1000.0
    )
    eval_every: int = option(
        100, "Steps between held-out evaluations; the best model is kept", unit="steps", low=1, high=1_000_000
    )
    eval_prompts: int = option(512, "Held-out prompts of an evaluation", unit="prompts", low=1, high=1_000_000)
    save_every: int = option(
        200, "Steps between saved states, from which a killed run resumes", unit="steps", low=1, high=1_000_000
    )
    keep_every: int = option(
        0,
        "Steps between checkpoints that stay, in trajectory_step<NAME>/, for a study of the training run; 0 for none",
        unit="steps",
        low=0,
        high=1_000_000,
    )
    stop_accuracy: float = option(
        0.999,
        "Stop once two evaluations in a row reach this validation accuracy; 1 requires every answer to be right",
        low=0.0,
        high=1.0,
    )
    output_dir: str = option("output", "Directory of the checkpoints")
    step_name: str = option("V0", "Name of this run among the steps of an ablation study: final_model_step<NAME>.pt")
    variants: str = option(
        "",
        "Variants of an ablation study, trained one after another as steps V0, V1, …, separated by commas: baseline, "
        "or changes to the family, its architecture, the seed or the learning rate such as kv=tied+seed=1, lr=0.001 or "
        "family=gpt2; empty trains one model",
    )
    baseline: str = option(
        "", "Finished training run to compare with: its directory, or one of its training_metrics_step*.json"
    )
    wandb: bool = option(False, "Log the training to Weights & Biases; WANDB_MODE=offline needs no account")
    wandb_project: str = option("mechint", "Project that the training is logged to")
    device: str = option("auto", "Where to train; auto takes a GPU when there is one", choices=("auto", "cpu", "cuda"))


@dataclass(frozen=True)
class MambaArchitecture:
    """Sizes of a Mamba to train."""

    family = "mamba"

    d_model: int = option(64, "Width of the residual stream", unit="features", low=4, high=8192)
    n_layer: int = option(2, "Layers", unit="layers", low=1, high=256)
    d_state: int = option(16, "Entries of each channel's recurrent state", unit="entries", low=1, high=1024)
    d_conv: int = option(
        4, "Taps of the convolution; with 1 the convolution sees no earlier token", unit="tokens", low=1, high=16
    )
    expand: int = option(2, "Inner width as a multiple of the residual width", unit="times", low=1, high=16)
    dt_rank: int = option(
        0, "Rank of the step size's projection; 0 is width / 16, rounded up", unit="features", low=0, high=8192
    )


@dataclass(frozen=True)
class GPT2Architecture:
    """Sizes and switches of a GPT-2 to train."""

    family = "gpt2"

    n_layer: int = option(2, "Layers", unit="layers", low=1, high=256)
    n_head: int = option(
        4, "Attention heads of a layer; the width is divided among them", unit="heads", low=1, high=256
    )
    n_embd: int = option(64, "Width of the residual stream", unit="features", low=4, high=16384)
    block_size: int = option(
        0,
        "Longest prompt: positions that have an embedding; 0 is what the task needs",
        unit="tokens",
        low=0,
        high=65536,
    )
    bias: bool = option(True, "Give linear layers and norms biases")
    kv: str = option(
        "separate",
        "Keys and values from a projection each; tied: K = V from one, head by head; or global: K = V from one head's "
        "projection, for all heads",
        choices=("separate", "tied", "global"),
    )
    gelu: str = option(
        "tanh", "GELU: the published model's tanh approximation, or the exact function", choices=("tanh", "exact")
    )


Architecture = MambaArchitecture | GPT2Architecture
ARCHITECTURES: dict[str, type[Architecture]] = {"mamba": MambaArchitecture, "gpt2": GPT2Architecture}
