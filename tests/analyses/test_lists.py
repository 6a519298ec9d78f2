"""Options that hold a list: commas and spaces separate alike in all of them, and a missing word is one error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mechint.analyses.base import analyses
from mechint.analyses.circuits.hybrid import chosen as hybrid_kinds
from mechint.analyses.comparison.options import lengths
from mechint.analyses.dictionaries.grid import numbers_of, sites_of, unknown_architecture
from mechint.analyses.dictionaries.stored import chosen_of
from mechint.analyses.editing.maps import chosen_maps
from mechint.analyses.neurons.analyzer import NeuronAnalyzer
from mechint.analyses.neurons.options import NeuronConfig
from mechint.analyses.neurons.options import methods as attention_methods
from mechint.analyses.options import fixed_sites, layer_list, unit_sites
from mechint.analyses.patching.analyzer import Patcher
from mechint.analyses.patching.options import PatchConfig
from mechint.analyses.patchscope.reading import places
from mechint.analyses.paths.nodes import paths, receivers, senders
from mechint.analyses.steering.options import strengths
from mechint.analyses.study.options import skipped
from mechint.analyses.tracing.analyzer import CausalTracer
from mechint.analyses.tracing.options import TraceConfig
from mechint.sae.activations.contexts import excluded
from mechint.scorecard.hard.recovery import points as curve_points
from mechint.scorecard.methods import METHODS
from mechint.scorecard.options import ScorecardConfig
from mechint.scorecard.requests import check_request
from mechint.training.options import MambaArchitecture, TrainConfig
from mechint.training.variants import steps
from mechint.utils.errors import MechintError
from mechint.utils.options import listed, options
from tests.helpers.builders import tiny_mamba

MODEL = tiny_mamba()


def scored(text: str) -> list[str]:
    config = ScorecardConfig(models=text)
    check_request(config)
    return config.names


def patched(name: str) -> Callable[[str], Any]:
    found = {
        "flow": lambda made: [entry.kind for entry in made.paths],
        "units": lambda made: [p.kind for p in made.parts],
    }
    return lambda text: found[name](Patcher(MODEL, PatchConfig(**{name: text})))


def node_names(nodes: Any) -> list[str]:
    return list(map(str, nodes))


def layers(text: str) -> list[int]:
    return layer_list(text, 2, "here")


def sites(text: str) -> list[str]:
    return unit_sites(MODEL, text, (), "here")


def dictionaries(text: str) -> list[str]:
    return chosen_of({"a": 0, "b": 1}, text)


READ: dict[tuple[str, str], tuple[Callable[[str], Any], str, str]] = {
    ("trace", "sites"): (lambda text: CausalTracer(MODEL, TraceConfig(sites=text)).kinds, "out", "state"),
    ("trace", "sever"): (lambda text: CausalTracer(MODEL, TraceConfig(sever=text)).severed, "out", "state"),
    ("patch", "flow"): (patched("flow"), "out", "state"),
    ("patch", "units"): (patched("units"), "gated", "u"),
    ("hybrid", "kinds"): (lambda text: [kind.name for kind in hybrid_kinds(f"head,{text}")], "mlp", "expert"),
    ("path", "senders"): (lambda text: node_names(senders(MODEL, text)), "out", "gated"),
    ("path", "receivers"): (lambda text: node_names(receivers(MODEL, text)), "x", "layers.1.dt"),
    ("path", "along"): (lambda text: [node_names(path) for path in paths(MODEL, text)], "embed>logits",
                        "embed>layers.1.out>logits"),
    ("steer", "sites"): (lambda text: fixed_sites(MODEL, text, [0, 1], "here"), "out", "state"),
    ("steer", "layers"): (layers, "0", "1"),
    ("steer", "strengths"): (strengths, "-1", "2"),
    ("edit", "layers"): (layers, "0", "1"),
    ("edit", "maps"): (lambda text: list(chosen_maps(MODEL, text, [0, 1], "here")), "out_proj", "in_x"),
    ("probe", "sites"): (lambda text: fixed_sites(MODEL, text, [0, 1], "here"), "out", "state"),
    ("probe", "layers"): (layers, "0", "1"),
    ("probe", "labels"): (listed, "answer", "key"),
    ("patchscope", "sites"): (lambda text: fixed_sites(MODEL, text, [0, 1], "here"), "out", "state"),
    ("patchscope", "layers"): (layers, "0", "1"),
    ("patchscope", "into"): (lambda text: places(MODEL, ["layers.0.out"], text, "here"), "0", "1"),
    ("sparsity", "layers"): (layers, "0", "1"),
    ("sparsity", "sites"): (sites, "gated", "u"),
    ("neuron", "layers"): (layers, "0", "1"),
    ("neuron", "sites"): (sites, "gated", "u"),
    ("neuron", "attention_methods"): (
        lambda text: attention_methods(NeuronConfig(attention_methods=text)), "rollout", "gradient_guided"
    ),
    ("compare", "lengths"): (lengths, "32", "64"),
    ("sae", "sites"): (lambda text: sites_of(MODEL, text, "all"), "out", "resid_post"),
    ("sae", "layers"): (lambda text: sites_of(MODEL, "out", text), "0", "1"),
    ("sae", "architectures"): (unknown_architecture, "relu", "topk"),
    ("sae", "sparsity"): (lambda text: numbers_of(text, "sparsity"), "8", "16"),
    ("sae", "penalty"): (lambda text: numbers_of(text, "sparsity"), "2", "4"),
    ("sae", "ratio"): (lambda text: numbers_of(text, "ratio"), "2", "4"),
    ("sae", "exclude"): (excluded, "bos", "padding"),
    ("sae", "read_names"): (dictionaries, "a", "b"),
    ("feature", "choose"): (dictionaries, "a", "b"),
    ("feature", "exclude"): (excluded, "bos", "padding"),
    ("study", "layers"): (layers, "0", "1"),
    ("study", "skip_steps"): (skipped, "8", "9"),
    ("study", "probes"): (listed, "lasso", "logistic"),
    ("study", "transfer"): (listed, "pairs=3", "name=induction+pairs=3"),
    ("train", "variants"): (
        lambda text: [step.variant for step in steps(TrainConfig(variants=text), MambaArchitecture())],
        "baseline", "seed=1",
    ),
    ("score", "models"): (scored, "shift", "recall"),
    ("score", "methods"): (lambda text: ScorecardConfig(methods=text).chosen(METHODS), *list(METHODS)[:2]),
    ("score", "noise"): (lambda text: curve_points(ScorecardConfig(noise=text)), "0", "0.1"),
    ("score", "widths"): (lambda text: curve_points(ScorecardConfig(models="latch", widths=text)), "64", "128"),
    ("score", "scores"): (listed, "mine.json", "theirs.json"),
}  # fmt: skip
"""(group, option) -> its reader and two words that it takes; all readers go through ``utils.options.listed``."""


def test_every_list_option_is_here() -> None:
    groups = {name: analysis.config for name, analysis in analyses().items()}
    groups |= {"train": TrainConfig, "score": ScorecardConfig}
    says = ("separated by commas", "separated by spaces")
    found = {
        (group, field.name)
        for group, config in groups.items()
        for field, kind, option in options(config)
        if kind is str and any(words in option.help.lower() for words in says)
    }
    assert found == set(READ)


@pytest.mark.parametrize("key", READ, ids=".".join)
def test_commas_and_spaces_separate_alike(key: tuple[str, str]) -> None:
    read, first, second = READ[key]
    expected = read(f"{first},{second}")
    for text in (f"{first} {second}", f"{first}, {second}", f"  {first} ,\t{second} "):
        assert read(text) == expected, text
    if expected is not None:
        assert expected != read(first)
    for text in (f"{first},,{second}", f"{first},", f",{first}"):
        with pytest.raises(MechintError, match="a word is missing beside a comma"):
            read(text)


def test_a_list_by_hand() -> None:
    assert listed("a,b c ,d") == ["a", "b", "c", "d"] and listed("") == listed("  ") == []
    assert listed("kv = tied + n_head=2, seed=1") == ["kv=tied+n_head=2", "seed=1"]
    assert NeuronAnalyzer(MODEL, NeuronConfig(layers="1 0")).layers == [0, 1]
