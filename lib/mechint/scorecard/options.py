"""The options of the scorecard."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..ground_truth import GROUPS, MODELS
from ..utils.errors import MechintError, did_you_mean
from ..utils.options import listed, option


@dataclass(frozen=True)
class ScorecardConfig:
    """The models that are scored, and the budget of the methods."""

    models: str = option(
        "short",
        "Models separated by commas; short is one of each kind of compiled circuit, mamba and gpt2 are the compiled "
        "ones of a family, trained those with an imposed circuit (trained once for each seed, in one to five "
        "minutes), hard the compiled ones with loud decoys, superposition, or several ways to the answers, "
        "memories those of Mamba-2, of gated delta rules and of a hybrid: "
        f"{', '.join([*GROUPS, *MODELS])}",
    )
    methods: str = option("", "Methods of units separated by commas, by their names in results.json; empty for all")
    scores: str = option(
        "",
        "JSON files of other methods' scores, separated by commas: "
        '{"method": NAME, "ablation": …, "scores": {"MODEL SEED": [one number for each unit], …}}',
    )
    seeds: int = option(2, "Models of each kind, with the circuit in other places", unit="seeds", low=1, high=99)
    first_seed: int = option(100, "The first of these seeds; methods were tuned on seeds 0 to 2", low=0, high=1_000_000)
    steps: int = option(60, "Optimiser steps of a mask search", unit="steps", low=10, high=10_000)
    prompts: int = option(64, "Discovery prompts of searches and attributions", unit="prompts", low=32, high=100_000)
    patch_prompts: int = option(16, "Discovery prompts of patching", unit="prompts", low=2, high=100_000)
    curve_prompts: int = option(
        32, "Held-out prompts that circuits of all sizes are measured on", unit="prompts", low=2, high=100_000
    )
    edge_prompts: int = option(4, "Held-out prompts whose edges are scored", unit="prompts", low=2, high=100_000)
    edges: int = option(
        128, "Edges between positions that no prompt needs, drawn from all of them", unit="edges", low=8, high=100_000
    )
    probe_prompts: int = option(
        128, "Prompts that a probe is fitted on, and as many to test it", unit="prompts", low=64, high=100_000
    )
    sae_tokens: int = option(
        150_000, "Activations that a dictionary is trained on; 0 trains none", unit="activations", low=0, high=10**9
    )
    random_every: int = option(
        2, "Random weights are tried of one model in so many of each family, in turn", unit="models", low=1, high=1000
    )
    trace_prompts: int = option(32, "Prompts of position accuracy", unit="prompts", low=2, high=100_000)
    null_prompts: int = option(16, "Prompts of one trace without an effect", unit="prompts", low=8, high=100_000)
    null_trials: int = option(
        100,
        "Samples of re-centred effects, for each model and seed, of a trace without an effect",
        unit="samples",
        low=1,
        high=10_000,
    )
    sizes: bool = option(
        False,
        "Let methods choose the size of a circuit, too, as the search smallest does: a mask search then takes eight "
        "times as long",
    )
    units_only: bool = option(
        False,
        "Score rankings of units alone: no traces, edges, probes, random weights, samples without an effect or "
        "planted features",
    )
    noise: str = option(
        "",
        "Noise on all weights, separated by commas: the models are scored again with each, as a curve; 0 is none",
    )
    widths: str = option(
        "",
        "Widths of the residual stream, separated by commas: the models are scored again at each, as a curve",
    )
    output_dir: str = option(
        "output/ground_truth", "Directory of results.json, scorecard.html, .md and .png", path=True
    )
    rerun: bool = option(False, "Score again what is finished, and replace what another request left in the directory")

    def chosen(self, known: Iterable[str]) -> list[str]:
        """The methods that are asked, in the order of those that are known.

        Raises:
            MechintError: one is unknown.
        """
        every, said = list(known), listed(self.methods, "methods")
        for name in said:
            if name not in every:
                raise MechintError(f"no method {name!r}{did_you_mean(name, every)}; take {', '.join(every)}")
        return [name for name in every if not said or name in said]

    def score_files(self) -> list[Path]:
        """The JSON files of other methods' scores."""
        return [Path(path).expanduser() for path in listed(self.scores, "scores")]

    @property
    def plants(self) -> bool:
        """True if dictionaries are trained on planted features, for each seed."""
        return self.sae_tokens > 0 and not self.units_only

    @property
    def names(self) -> list[str]:
        """The models, each once."""
        said = listed(self.models, "models")
        return list(dict.fromkeys(model for name in said for model in GROUPS.get(name, (name,))))
