"""The options of the analysis of single units, and the tasks that it refuses."""

from __future__ import annotations

from dataclasses import dataclass

from ...tasks.config import TaskConfig
from ...utils.errors import MechintError, did_you_mean
from ...utils.options import listed, named, option
from ..circuits.methods.attention import METHODS


@dataclass(frozen=True)
class NeuronConfig:
    """The units that are measured, the ablation, the metric and the rankings."""

    layers: str = option("all", "Layers to look at, separated by commas, or all")
    top_k: int = option(10, "Units of each layer in lists, circuits and graphs", unit="units", low=1, high=1_000_000)
    sites: str = option(
        "usual",
        "Kinds of site whose units are ablated one by one, separated by commas; 'usual' takes x, u, y, gate, gated and "
        "out of a Mamba; MLP neurons, heads and what layers add of a transformer",
    )
    max_units: int = option(
        512,
        "Units of one kind of site that are measured exactly; if there are more, those that gradients rank first",
        unit="units",
        low=1,
        high=1_000_000,
    )
    ablation: str = option(
        "mean",
        "Value that replaces an ablated unit: its mean over discovery prompts, its value on another prompt, on the "
        "prompt's counterfactual twin, or zero",
        choices=("mean", "resample", "counterfactual", "zero"),
    )
    metric: str = option(
        "answer_logprob",
        "Metric that is lost: log-probability of the answers, or their logit less that of the twin's answers",
        choices=("answer_logprob", "logit_diff"),
    )
    delta: bool = option(True, "Measure which channels of a Mamba depend on their step size Δ")
    attention: bool = option(True, "Rank units by attention, and test the rankings by deleting units")
    attention_methods: str = option(
        "attention_weighted,gradient_guided,rollout", "Methods that rank units by attention, separated by commas"
    )
    tokens: bool = option(
        True, "Split each block's output and the answer's logit exactly into the contributions of the tokens"
    )
    cross_layer: bool = option(True, "Measure the effects of units and layers on later units and layers")
    random: int = option(10, "Random circuits and rankings to compare with", unit="draws", low=2, high=1000)
    controls: int = option(
        2, "Models with the same weights, shuffled, that are measured beside this one", unit="models", low=0, high=100
    )
    prompts: int = option(64, "Discovery prompts, for means and rankings", unit="prompts", low=2, high=1_000_000)
    eval_prompts: int = option(64, "Prompts that are measured", unit="prompts", low=2, high=1_000_000)
    bootstrap: int = option(1000, "Bootstrap and permutation draws", unit="draws", low=100, high=100_000)
    memory_mib: int = option(1024, "Memory of one sweep, beside the weights", unit="MiB", low=64, high=1_000_000)


def methods(config: NeuronConfig) -> list[str]:
    """The attention methods that are asked for.

    Raises:
        MechintError: there is no such method, or none is named.
    """
    if not config.attention:
        return []
    chosen = list(dict.fromkeys(listed(config.attention_methods, named("neuron", "attention_methods"))))
    for method in chosen:
        if method not in METHODS:
            raise MechintError(
                f"neuron: no attention method {method!r}{did_you_mean(method, METHODS)}; there are {', '.join(METHODS)}"
            )
    if not chosen:
        raise MechintError(f"neuron: no attention method is named; take {', '.join(METHODS)}, or turn attention off")
    return chosen


def refuse(config: NeuronConfig, task: TaskConfig) -> str | None:
    methods(config)
    if task.name in ("text", "prompt") and config.metric == "logit_diff":
        return "these prompts have no counterfactual twins; choose the metric answer_logprob"
    if task.name in ("text", "prompt") and config.ablation == "counterfactual":
        return "these prompts have no counterfactual twins; choose the ablation mean, resample or zero"
    return None
