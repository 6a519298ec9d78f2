"""Options of circuits of every kind are read under the same names, whatever the menus call them."""

from __future__ import annotations

import dataclasses

import pytest

from mechint.analyses.base import group_of
from mechint.analyses.circuits.bench import METRICS
from mechint.analyses.circuits.features import FeatureCircuitConfig
from mechint.analyses.circuits.kv import KVCircuitAnalyzer, KVCircuitConfig
from mechint.analyses.circuits.options import CircuitOptions
from mechint.analyses.circuits.search.gates import BUDGETS, GATES
from mechint.analyses.circuits.search.learning import SearchOptions
from mechint.analyses.circuits.ssm import SSMCircuitConfig
from mechint.analyses.study.options import StudyConfig
from mechint.analyses.study.steps_circuit import circuit_options
from tests.helpers.kv import SMALL, known_circuit


@pytest.mark.parametrize(
    ("options", "unit", "size", "gates"),
    [
        (SSMCircuitConfig(), "channel", None, SearchOptions("hard_concrete", 100, 0.1)),
        (
            SSMCircuitConfig(search="budget", budget=7, gate="straight_through", steps=40, lr=0.2),
            "channel", 7, SearchOptions("straight_through", 40, 0.2),
        ),
        (FeatureCircuitConfig(search="budget", budget=3), "latent", 3, SearchOptions()),
        (circuit_options(StudyConfig(mask_steps=30)), "unit", None, SearchOptions(steps=30)),
    ],
)  # fmt: skip
def test_options_of_a_number_of_units(
    options: CircuitOptions, unit: str, size: int | None, gates: SearchOptions
) -> None:
    assert (options.unit, options.metric, options.precision, options.price) == (unit, "kl", "float32", None)
    assert options.size(100) == size
    assert options.learning == gates


def test_options_of_a_share_of_the_units() -> None:
    config = KVCircuitConfig(
        target_metric="kl_div", target_sparsity=0.9, hard_masks=True, steps=70, lr=0.3, l1_lambda=0.02,
        temp_schedule="linear:1.0:0.1", sparsity_schedule="cubic", sparsity_hold=0.5, precision="bfloat16",
    )  # fmt: skip
    assert (config.unit, config.metric, config.size(200), config.price) == ("kv", "kl", 20, None)
    learning = config.learning
    assert (learning.gate, learning.steps, learning.lr) == ("straight_through", 70, 0.3)
    assert (learning.schedule, learning.hold, learning.penalty) == ("cubic", 0.5, None)
    assert learning.temperature is not None and learning.temperature.at(0, 10) == 1.0
    assert learning.gate in GATES and learning.schedule in BUDGETS and config.precision == "bfloat16"
    priced = dataclasses.replace(config, search="penalty", hard_masks=False, target_metric="loss")
    assert (priced.size(200), priced.price, priced.metric) == (None, 0.02, "loss")
    assert priced.learning.gate == "hard_concrete" and {config.metric, priced.metric} <= METRICS.keys()


def test_a_message_names_the_flag_of_the_kind_whose_options_they_are() -> None:
    """The accuracy that is too low is an option of the analysis, not one of all analyses."""
    assert group_of(KVCircuitAnalyzer(known_circuit(), SMALL).config) == "kv"
