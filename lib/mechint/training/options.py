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
        "Impose a known circuit on a model of two layers that learns recall or marked symbols (strict interchange "
        "intervention training)",
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
    output_dir: str = option("output", "Directory of the checkpoints", path=True)
    step_name: str = option("V0", "Name of this run among the steps of an ablation study: final_model_step<NAME>.pt")
    variants: str = option(
        "",
        "Variants of an ablation study, trained one after another as steps V0, V1, …, separated by commas: baseline, "
        "or changes to the family, its architecture, the seed or the learning rate such as kv=tied+seed=1, lr=0.001 or "
        "family=gpt2; empty trains one model",
    )
    baseline: str = option(
        "", "Finished training run to compare with: its directory, or one of its training_metrics_step*.json", path=True
    )
    wandb: bool = option(False, "Log the training to Weights & Biases; WANDB_MODE=offline needs no account")
    wandb_project: str = option("mechint", "Project that the training is logged to")
    device: str = option("auto", "Where to train; auto takes a GPU when there is one", choices=("auto", "cpu", "cuda"))


@dataclass(frozen=True)
class MambaArchitecture:
    """Sizes of a Mamba to train; ``suffix`` is the end of a checkpoint's name, empty for a directory."""

    family = "mamba"
    suffix = ".pt"

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
    suffix = ".pt"

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


@dataclass(frozen=True)
class OtherArchitecture:
    """Sizes of another family or a hybrid to train; the family says what it makes of them, and 0 leaves one to it."""

    family = "other"
    suffix = ""

    model_type: str = option(
        "mamba2",
        "Family of the model, by the model_type of its config.json; docs/families.md has those that are trained",
    )
    layers: str = option(
        "", "Pattern of layers, a word for each, such as mamba2 mamba2 attention; empty for the family's own"
    )
    n_layer: int = option(
        0,
        "Layers, a multiple of the pattern, which is repeated; 0 for the pattern once",
        unit="layers",
        low=0,
        high=256,
    )
    d_model: int = option(64, "Width of the residual stream", unit="features", low=4, high=16384)
    n_head: int = option(0, "Attention heads of a layer; 0 is 4", unit="heads", low=0, high=256)
    n_kv_head: int = option(
        0, "Attention heads that have keys and values of their own; 0 is all", unit="heads", low=0, high=256
    )
    d_head: int = option(
        0, "Dimensions of an attention head; 0 is an equal share of the width", unit="features", low=0, high=4096
    )
    memory_heads: int = option(
        0, "Heads of a recurrence, each with a memory and a decay of its own; 0 is 4", unit="heads", low=0, high=256
    )
    groups: int = option(
        0,
        "Groups of those heads that share keys and queries; 0 is one in a Mamba-2, one for each head in a delta rule",
        unit="groups",
        low=0,
        high=256,
    )
    d_state: int = option(
        0, "Size of a state: dimensions of the keys of each head's memory, or of a channel's; 0 is 16", unit="entries",
        low=0, high=4096,
    )  # fmt: skip
    d_value: int = option(
        0, "Dimensions of the values of each head's memory; 0 is an equal share", unit="features", low=0, high=4096
    )
    expand: int = option(
        0, "Inner width of a Mamba as a multiple of the residual width; 0 is 2", unit="times", low=0, high=16
    )
    d_conv: int = option(
        0, "Taps of the convolution in front of a recurrence; 0 is 4, of a short convolution 3", unit="tokens", low=0,
        high=16,
    )  # fmt: skip
    dt_rank: int = option(
        0, "Rank of the step size's projection in a Mamba-1 mixer; 0 is width / 16, rounded up", unit="features", low=0,
        high=8192,
    )  # fmt: skip
    d_mlp: int = option(
        0, "Neurons of a feed-forward part; 0 is twice the width, of a plain one four times", unit="neurons", low=0,
        high=65536,
    )  # fmt: skip
    experts: int = option(
        0,
        "Experts in the place of each feed-forward part; 0 for none where the family leaves the choice",
        unit="experts",
        low=0,
        high=1024,
    )
    experts_chosen: int = option(0, "Experts that a token chooses; 0 is 2", unit="experts", low=0, high=1024)
    d_expert: int = option(0, "Neurons of an expert; 0 is the width", unit="neurons", low=0, high=65536)


Architecture = MambaArchitecture | GPT2Architecture | OtherArchitecture
ARCHITECTURES: dict[str, type[Architecture]] = {
    "mamba": MambaArchitecture, "gpt2": GPT2Architecture, "other": OtherArchitecture,
}  # fmt: skip
