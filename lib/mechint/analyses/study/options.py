"""The options of a study, and the list of its steps."""

from __future__ import annotations

from dataclasses import dataclass

from ...utils.errors import MechintError, shown
from ...utils.options import listed, named, option, whole_number

STEPS = {
    1: "setup",
    2: "activations",
    3: "sae",
    4: "probes",
    5: "candidates",
    6: "necessity",
    7: "robustness",
    8: "temporal",
    9: "dynamics",
    10: "reproducibility",
    11: "transfer",
    12: "visualisation",
    13: "controls",
    14: "scale",
    15: "claims",
    16: "circuit",
}
TITLES = {
    1: "Setup",
    2: "Activations",
    3: "Sparse autoencoders",
    4: "Probes",
    5: "Candidate circuits",
    6: "Necessity and sufficiency",
    7: "Robustness and granularity",
    8: "Temporal causality",
    9: "Dynamics",
    10: "Reproducibility",
    11: "Transfer to other tasks",
    12: "Figures",
    13: "Controls",
    14: "Checkpoints and cost",
    15: "Claims",
    16: "Combined circuit",
}
RANDOM_MODELS = 3
"""Models with shuffled weights that the numbers of temporal causality and dynamics stand beside."""
DESCRIBES = (7, 8, 9, 10, 11, 14)
"""Steps that describe what was found: no claim rests on them, and they say so."""
ALWAYS = (1, 2, 12, 15)
"""Steps that the others stand on, which cannot be skipped."""


@dataclass(frozen=True)
class StudyConfig:
    """The layers and site that are studied, the steps, and how strict the tests are."""

    layers: str = option("all", "Layers to study, separated by commas (0 or 0,3); all takes every layer")
    site: str = option(
        "usual", "Kind of site whose units are studied; usual takes gated of a Mamba and head_out of a transformer"
    )
    skip_steps: str = option("", "Numbers of steps to leave out, separated by spaces (8 9 10)")
    rank: int = option(8, "Largest rank of a candidate: units or directions", unit="directions", low=1, high=4096)
    candidates: int = option(
        4, "Candidates that are tested, those with the strongest evidence", unit="candidates", low=1, high=64
    )
    draws: int = option(199, "Random subspaces that each candidate has to beat", unit="subspaces", low=19, high=100_000)
    min_effect: float = option(
        0.2, "Share of the model's effect that a claim must reach, in both directions", low=0.01, high=1.0
    )
    ablation: str = option(
        "counterfactual",
        "Value that replaces a candidate's part in the test of necessity: the twin's value, or the mean over prompts",
        choices=("counterfactual", "mean"),
    )
    metric: str = option(
        "logit_diff",
        "Metric in which effects are measured",
        choices=("logit_diff", "answer_logprob", "answer_prob"),
    )
    sae_width: float = option(2.0, "Latents of the dictionary for each unit of the site", low=0.1, high=64.0)
    sae_k: int = option(8, "Active latents of an activation", unit="latents", low=1, high=4096)
    sae_penalty: float = option(
        0.0, "Weight of an L1 penalty on the active latents, in addition to their fixed number", low=0.0, high=1000.0
    )
    sae_steps: int = option(300, "Training steps of a dictionary", unit="steps", low=10, high=1_000_000)
    probes: str = option("lasso,elasticnet,logistic", "Probes of each label of the task, separated by commas")
    shuffles: int = option(19, "Probes of shuffled labels, for selectivity", unit="probes", low=2, high=10_000)
    mask_steps: int = option(60, "Steps of the mask search", unit="steps", low=10, high=100_000)
    max_lag: int = option(
        0,
        "Largest lag of the temporal Jacobians; 0 takes every lag that the prompts have",
        unit="tokens",
        low=0,
        high=4096,
    )
    seeds: int = option(
        3, "Discoveries with other prompts and seeds, for reproducibility", unit="seeds", low=2, high=99
    )
    peers: str = option("", "Checkpoints of other training seeds, a glob; empty for none", path=True)
    trajectory: str = option("", "Checkpoints of a training run in their order, a glob; empty for none", path=True)
    transfer: str = option(
        "usual",
        "Other tasks that candidates are tried on, separated by commas: changes of the task's options, joined by + "
        "(pairs=3,name=induction); usual takes those of the table in study_controls",
    )
    random_weights: bool = option(
        True,
        "Also read the labels from models with random weights; without this control no claim about a label is "
        "supported",
    )
    min_accuracy: float = option(
        0.5,
        "The study ends after step 1 if the model's accuracy is below this or below chance; 0 continues at any "
        "accuracy, and claims no circuit of a model at chance",
        low=0.0,
        high=1.0,
    )
    prompts: int = option(128, "Discovery prompts", unit="prompts", low=16, high=1_000_000)
    eval_prompts: int = option(64, "Held-out prompts that tests are made on", unit="prompts", low=8, high=1_000_000)
    bootstrap: int = option(1000, "Bootstrap draws of every interval", unit="draws", low=100, high=100_000)


def skipped(text: str) -> set[int]:
    """The numbers of the steps to leave out.

    Raises:
        MechintError: no such step, or one that the others stand on.
    """
    found = set()
    for word in listed(text, named("study", "skip_steps")):
        number = whole_number(word) or {name: n for n, name in STEPS.items()}.get(word, 0)
        if number not in STEPS:
            raise MechintError(
                f"{named('study', 'skip_steps')}: there is no step {shown(word)}; take numbers from 1 to {max(STEPS)}"
            )
        if number in ALWAYS:
            raise MechintError(
                f"{named('study', 'skip_steps')}: step {number} ({STEPS[number]}) cannot be left out, the "
                "others stand on it; "
                f"{', '.join(str(n) for n in STEPS if n not in ALWAYS)} can"
            )
        found.add(number)
    return found
