"""Verdicts where the truth is known: models with random weights, compiled circuits, and one model under ten seeds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from mechint.claims import claims
from mechint.loader import PromptLoader
from mechint.models.load import load
from mechint.study import WORK, Study
from mechint.study_config import StudyConfig
from mechint.tasks import TaskConfig, make_task

SKIPPED = "3 5 6 7 8 9 10 11 14 16"
READING = StudyConfig(prompts=64, eval_prompts=256, probes="logistic", shuffles=5, skip_steps=SKIPPED)
"""What claims of labels need, with one kind of probe."""
FAMILIES = ("mamba", "gpt2", "llama")


def random_model(family: str, seed: int, directory: Path) -> Any:
    """A model as transformers makes it, without training: 2 layers of width 64, 24 tokens, a head of its own."""
    import torch
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
    """What a study would claim if it went on whatever its first step found: all its steps, one by one."""
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
