"""A damaged checkpoint loads or is one line that names its file: never another exception, and never a hang.

Mutations are drawn by seed from directories and ``.pt`` files of every family and from dictionaries of three libraries:
keys removed, retyped and made extreme; tensors renamed, reshaped, retyped and dropped; files cut and overwritten.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import mechint
from mechint import sae
from mechint.models.loading.load import hf_config, to_hf_state_dict
from tests.helpers.builders import tiny_gpt2, tiny_llama, tiny_mamba
from tests.helpers.dictionary_files import GOLDEN, LOAD
from tests.helpers.fuzzing import EXTREME, TEXTS, damaged, tried
from tests.helpers.standins import save_hf

BARE: list[Any] = [10**5_000, float("nan"), float("inf"), 1 + 2j, torch.ones(3), (1, 2), {1: 2}, {3, 4}, b"bytes"]
"""Values that a ``.pt`` may hold in its configuration, and JSON may not."""


def mutated_config(rng: random.Random, config: dict[str, Any], values: list[Any]) -> dict[str, Any]:
    config = json.loads(json.dumps(config))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        inner = [value for value in config.values() if isinstance(value, dict) and value]
        section = rng.choice(inner) if inner and rng.random() < 0.3 else config
        key = rng.choice([*section, "n_kv_head", "rope_scaling", "ssm_cfg", "k" * rng.choice((1, 3_000))])
        if rng.random() < 0.25:
            section.pop(key, None)
        else:
            section[key] = rng.choice(values)
    return config


def mutated_tensors(rng: random.Random, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    tensors = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    for _ in range(rng.choice((1, 1, 2, 5))):
        if not tensors:
            break
        name = rng.choice(list(tensors))
        tensor = tensors[name]
        changes: list[Callable[[], Any]] = [
            lambda: tensors.pop(name),  # noqa: B023
            lambda: tensors.update({name + rng.choice((".x", "é", "\n", "." * 300)): tensors.pop(name)}),  # noqa: B023
            lambda: tensors.update({name: torch.tensor(1.0)}),  # noqa: B023
            lambda: tensors.update({name: torch.empty(0)}),  # noqa: B023
            lambda: tensors.update({name: tensor[:1].contiguous() if tensor.dim() else tensor}),  # noqa: B023
            lambda: tensors.update({name: tensor.flatten()}),  # noqa: B023
            lambda: tensors.update({name: tensor[None, None]}),  # noqa: B023
            lambda: tensors.update({name: tensor.to(rng.choice((torch.int8, torch.bool, torch.float16)))}),  # noqa: B023
            lambda: tensors.update({name: torch.full_like(tensor.float(), float("nan"))}),  # noqa: B023
            lambda: tensors.update({rng.choice(("lm_head.weight", "k", "threshold", "")): tensor.clone()}),  # noqa: B023
        ]
        rng.choice(changes)()
    return tensors


def model_case(rng: random.Random, at: Path) -> Callable[[], object]:
    model: Any = rng.choice((tiny_mamba, tiny_gpt2, tiny_llama))()
    state, config = to_hf_state_dict(model), hf_config(model)
    if rng.random() < 0.4:
        said = mutated_config(rng, config, [*EXTREME, *BARE]) if rng.random() < 0.6 else config
        value: Any = {rng.choice(("model", "state_dict")): mutated_tensors(rng, state) if rng.random() < 0.5 else state,
                      rng.choice(("config", "args", "model_args")): said}  # fmt: skip
        torch.save(rng.choice([value, value, value, state, {"model": said}]), at / "m.pt")
        if rng.random() < 0.3:
            damaged(rng, at / "m.pt")
        return lambda: mechint.load(at / "m.pt")
    directory = save_hf(model, at / "m")
    what = rng.randrange(4)
    if what == 0:
        (directory / "config.json").write_text(json.dumps(mutated_config(rng, config, EXTREME)))
    elif what == 1:
        (directory / "config.json").write_text(rng.choice(TEXTS))
    elif what == 2:
        save_file(mutated_tensors(rng, state), directory / "model.safetensors")
    else:
        damaged(rng, directory / rng.choice(("config.json", "model.safetensors")))
    return lambda: mechint.load(directory)


def dictionary_case(rng: random.Random, at: Path) -> Callable[[], object]:
    source = rng.choice(sorted(path for path in GOLDEN.glob("*/*") if path.is_dir()))
    directory = at / source.name
    shutil.copytree(source, directory)
    config = next(path for path in directory.iterdir() if path.suffix == ".json")
    weights = next(path for path in directory.iterdir() if path.name.startswith(("ae.", "sae")))
    if rng.random() < 0.3 and source.parent.name == "saelens":  # ours, with all that we say in it
        shutil.rmtree(directory)
        sae.save(LOAD["saelens"](source), directory)
    what = rng.randrange(4)
    if what == 0:
        config.write_text(json.dumps(mutated_config(rng, json.loads(config.read_text()), EXTREME)))
    elif what == 1:
        config.write_text(rng.choice(TEXTS))
    elif what == 2 and weights.suffix == ".pt":
        torch.save(mutated_tensors(rng, torch.load(weights, weights_only=True)), weights)
    elif what == 2:
        save_file(mutated_tensors(rng, load_file(weights)), weights)
    else:
        damaged(rng, rng.choice((config, weights)))
    return lambda: LOAD[source.parent.name](directory)


CASES = {"models": model_case, "dictionaries": dictionary_case}


@pytest.mark.parametrize("what", CASES)
def test_damaged_files_load_or_are_one_line(what: str, tmp_path: Path) -> None:
    ends = tried(CASES[what], range(120), tmp_path)
    assert ends["refused in one line"] > 60
    assert ends["loaded"] > 3


@pytest.mark.exhaustive
@pytest.mark.parametrize("what", CASES)
def test_many_damaged_files_load_or_are_one_line(what: str, tmp_path: Path) -> None:
    began = time.monotonic()
    ends = tried(CASES[what], range(1_000, 4_000), tmp_path)
    print(
        f"{what}: {sum(ends.values())} tried in {time.monotonic() - began:.0f} s: {dict(ends)}, tracebacks 0, hangs 0"
    )
