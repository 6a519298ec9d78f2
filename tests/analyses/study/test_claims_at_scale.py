"""Verdicts where the truth is known: models with random weights, compiled circuits, and one model under ten seeds."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from mechint.analyses.loader import PromptLoader
from mechint.analyses.random_weights import shuffled_weights
from mechint.analyses.study.analyzer import WORK, Study
from mechint.analyses.study.claims import claims, judged, of_circuit, task_not_done
from mechint.analyses.study.options import StudyConfig
from mechint.analyses.study.steps_circuit import SiteUnits, kept_alone
from mechint.ground_truth import BLUEPRINTS, GPT2_BLUEPRINTS
from mechint.models.loading.load import load
from mechint.tasks import TaskConfig, make_task
from mechint.utils.errors import MechintError

SKIPPED = "3 5 6 7 8 9 10 11 14 16"
READING = StudyConfig(prompts=64, eval_prompts=256, probes="logistic", shuffles=5, skip_steps=SKIPPED)
"""The options that claims about labels need, with one kind of probe."""
FAMILIES = ("mamba", "gpt2", "llama")


def random_model(family: str, seed: int, directory: Path) -> Any:
    """A model as transformers makes it, without training: 2 layers of width 64, 24 tokens, a head of its own."""
    import transformers

    both = {"vocab_size": 24, "tie_word_embeddings": False}
    configs = {
        "mamba": lambda: transformers.MambaConfig(hidden_size=64, num_hidden_layers=2, **both),
        "gpt2": lambda: transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=64, **both),
        "llama": lambda: transformers.LlamaConfig(
            hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, **both
        ),
    }
    torch.manual_seed(seed)
    path = directory / f"{family}-{seed}"
    transformers.AutoModelForCausalLM.from_config(configs[family]()).save_pretrained(path)
    return load(path, dtype="float32", device="cpu").eval().requires_grad_(False)


def claims_of(model: Any, task: Any, config: StudyConfig, seed: int = 0) -> Any:
    """Runs every step of a study, whatever the first one found, and returns the claims."""
    made = Study(model, config, "cpu", seed=seed)
    sizes = (("discovery", config.prompts), ("evaluation", config.eval_prompts))
    made.begin(*(PromptLoader(task, split, count, 32, seed) for split, count in sizes))
    assert made.context is not None
    for number in WORK:
        made.run_step(number)
    reports = {name: entry["report"] for name, entry in made.context.found.items()}
    return claims(reports, config, task.name), reports


def line(found: Any, *first: Any) -> str:
    """A row of a table: the verdict and effect of every label."""
    cells = {claim["label"]: f"{claim['verdict']} {claim['effect']['value']:.2f}" for claim in found["claims"]
             if claim["kind"] == "probe"}  # fmt: skip
    return " | ".join(["", *map(str, first), *(cells[label] for label in sorted(cells)), ""]).strip()


@pytest.mark.slow
def test_a_model_without_training_has_no_supported_claim(tmp_path: Path) -> None:
    quick = dataclasses.replace(READING, prompts=48, eval_prompts=64, shuffles=2)
    found, reports = claims_of(random_model("llama", 0, tmp_path), make_task(TaskConfig()), quick)
    assert len(found["claims"]) == 3 and found["verdicts"]["supported"] == 0
    assert [row["weights"] for row in reports["controls"]["random_weights"]["models"]] == ["shuffled", "drawn anew"] * 3
    assert reports["controls"]["notes"] == ["controls of candidates: it needs step 5 (candidates), which was left out"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("family", FAMILIES)
def test_no_model_without_training_has_a_supported_claim(family: str, seed: int, tmp_path: Path) -> None:
    found, reports = claims_of(random_model(family, seed, tmp_path), make_task(TaskConfig()), READING)
    print(line(found, family, seed, f"{reports['setup']['accuracy']['value']:.0%}"))
    assert found["verdicts"]["supported"] == 0


@pytest.mark.exhaustive
@pytest.mark.parametrize("family", FAMILIES)
def test_nor_has_it_with_all_steps_and_probes(family: str, tmp_path: Path) -> None:
    config = StudyConfig(eval_prompts=256, skip_steps="8 9" if family == "mamba" else "")
    found, _ = claims_of(random_model(family, 0, tmp_path), make_task(TaskConfig()), config)
    print(line(found, family, 0))
    assert found["verdicts"]["supported"] == 0


# ---- circuits that are known ----------------------------------------------------------------------------------------

JUDGING = StudyConfig(prompts=64, eval_prompts=64, draws=99, bootstrap=300)
COMPILED = {**BLUEPRINTS, **GPT2_BLUEPRINTS}


def declared_units(compiled: Any, units: SiteUnits) -> torch.Tensor:
    """The declared units of the studied sites, [units]: channels of a Mamba, value dimensions of a GPT-2's heads."""
    if compiled.model.config.family == "mamba":
        found = [(layer, unit[0]) for layer, unit in compiled.truth.units("channel")]
    else:  # what a head passes on is its values, dimension by dimension
        width = compiled.model.sites["layers.0.head_out"].units[1]
        kv = compiled.truth.units("kv")
        found = [(layer, unit[1] * width + unit[2]) for layer, unit in kv if unit[0] == 1]
    mask = torch.zeros(units.layers, units.per_layer)
    for layer, unit in found:
        mask[layer, unit] = 1.0
    return mask.flatten()


def idle_units(declared: torch.Tensor, units: SiteUnits) -> torch.Tensor:
    """As many undeclared units of each layer, or all that there are."""
    mask = torch.zeros(units.layers, units.per_layer)
    for row, own in zip(mask, declared.view(units.layers, -1), strict=True):
        row[torch.nonzero(own == 0).flatten()[: int(own.sum())]] = 1.0
    return mask.flatten()


def verdicts_of(model: Any, task: Any, masks: dict[str, torch.Tensor]) -> dict[str, tuple[str, float]]:
    """The verdict and the effect of sets of units, judged as a study judges its combined circuit."""
    made = Study(model, JUDGING, "cpu", seed=0)
    sizes = (("discovery", JUDGING.prompts), ("evaluation", JUDGING.eval_prompts))
    context = made.begin(*(PromptLoader(task, split, count, 64, 0) for split, count in sizes))
    setup = made.run_step(1)
    found = {}
    for name, mask in masks.items():
        report = kept_alone(context, SiteUnits(model, made.sites), mask)
        claims_made = of_circuit({"circuit": report}, JUDGING, task.name)
        (claim,) = judged(claims_made, task_not_done({"setup": setup}))["claims"]
        found[name] = (claim["verdict"], float(claim["effect"]["value"]))
    return found


def check_compiled(name: str) -> None:
    compiled = COMPILED[name]().compile(seed=0)
    units = SiteUnits(compiled.model, Study(compiled.model, JUDGING, "cpu", seed=0).sites)
    declared = declared_units(compiled, units)
    found = verdicts_of(compiled.model, compiled.task, {"declared": declared, "idle": idle_units(declared, units)})
    random = verdicts_of_random(compiled, declared)
    cells = [f"{verdict} {effect:.2f}" for verdict, effect in found.values()]
    print(f"| {name} | {int(declared.sum())} of {units.total} | {cells[0]} | {cells[1]} | {random} |")
    assert found["declared"][0] == "supported" and found["idle"][0] == "refuted" and random != "supported"


def verdicts_of_random(compiled: Any, declared: torch.Tensor) -> str:
    """The verdict on the declared units in the model with shuffled weights; "nothing" where there is no effect."""
    try:
        return verdicts_of(shuffled_weights(compiled.model, 0), compiled.task, {"declared": declared})["declared"][0]
    except MechintError:
        return "nothing"


@pytest.mark.slow_except("modular_sum")
@pytest.mark.parametrize("name", ["modular_sum", "gpt2_shift"])
def test_declared_units_are_supported_and_idle_ones_never(name: str) -> None:
    check_compiled(name)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", COMPILED)
def test_declared_units_of_every_compiled_model_are_supported(name: str) -> None:
    check_compiled(name)


# ---- one trained model, ten seeds of the study -----------------------------------------------------------------------

SEEDED = dataclasses.replace(READING, prompts=128, skip_steps="3 7 8 9 10 11 14 16")


def identity(claim: Any) -> str:
    """Returns the subject of a claim: a label, or the units of a candidate."""
    return str(claim["label"]) if claim["kind"] == "probe" else f"{claim['site']} {claim['units']}"


def table_of_seeds(model: Any, config: StudyConfig, seeds: Sequence[int]) -> dict[str, list[str]]:
    """The verdicts that each claim had in studies of these seeds."""
    table: dict[str, list[str]] = {}
    for seed in seeds:
        found, _ = claims_of(model, make_task(TaskConfig()), config, seed)
        print(line(found, seed))
        for claim in found["claims"]:
            table.setdefault(identity(claim), []).append(claim["verdict"])
    return table


@pytest.mark.exhaustive
def test_ten_seeds_of_one_trained_model_agree(tmp_path: Path) -> None:
    train = [sys.executable, "scripts/train.py", "--train-output-dir", str(tmp_path)]
    subprocess.run(train, check=True, cwd=Path(__file__).resolve().parents[3])
    model = load(tmp_path / "final_model_stepV0.pt", dtype="float32", device="cpu").eval().requires_grad_(False)
    table = table_of_seeds(model, SEEDED, range(10))
    for claim, verdicts in table.items():
        assert not {"supported", "refuted"} <= set(verdicts), (claim, verdicts)
    assert table["answer"] == ["supported"] * 10
    assert "supported" not in table["key"], "it stands in the token itself"
