"""Every experiment that names a model of the hub, with tiny random weights of its family served under that name."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import huggingface_hub.constants as client
import pytest
import torch

pytest.importorskip("transformers")

import mechint
from mechint.models.loading.hub import is_hub_id
from mechint.runner import command_line
from scripts.kconfig import mapping
from scripts.kconfig.defconfigs import find_all
from scripts.kconfig.loading import load
from tests.helpers.builders import tiny_gpt2, tiny_llama, tiny_mamba
from tests.helpers.commands import Here
from tests.helpers.judges.base import judged
from tests.helpers.paths import ROOT
from tests.helpers.standins import Hub, save_hf, save_tokenizer, serve
from tests.models.families.test_parity import JUDGES

VOCABULARY = 600
FAMILIES = {
    "AntonV/mamba2-130m-hf": "mamba2", "tiiuae/Falcon-H1-Tiny-90M-Base": "falcon_h1",
    "ibm-granite/granite-4.0-h-350m": "granitemoehybrid", "Qwen/Qwen3.5-0.8B": "qwen3_5",
    "LiquidAI/LFM2-350M": "lfm2", "EleutherAI/pythia-160m": "gpt_neox", "ai21labs/Jamba-tiny-dev": "jamba",
    "openai-community/gpt2": "gpt2", "HuggingFaceTB/SmolLM2-135M": "llama",
    **{f"state-spaces/mamba-{size}-hf": "mamba" for size in ("130m", "370m", "790m", "1.4b")},
}  # fmt: skip
"""The family of each model of the hub that an experiment names."""
REFUSED = {
    "mamba-130m-indirect-object-mechint": "none of its sentences consists of single tokens of the model's tokenizer",
    "smollm2-135m-facts-trace": "no file is named; set --task-file",
    "smollm2-135m-patchscope-description": "no file is named; set --task-file",
    "smollm2-135m-patchscope-identity": "no file is named; set --task-file",
}
"""Experiments that need words of the true tokenizer, or a file of the reader's, with what they say behind the model."""
OLD = {"mamba": tiny_mamba, "gpt2": tiny_gpt2, "llama": tiny_llama}


def named() -> dict[str, str]:
    """Experiments that name a model of the hub, with that name."""
    found = {}
    for name, file in find_all(ROOT).items():
        said = re.search(r'^CONFIG_KNLP_MECHINT_CHECKPOINT="(.+)"', file.read_text(), re.M)
        if said and is_hub_id(said[1]) and not said[1].startswith("output/"):
            found[name] = said[1]
    return found


def save(family: str, directory: Path) -> Path:
    """A random small model with a tokenizer; of a hybrid one with a recurrence and attention."""
    if family in OLD:
        sizes = {"n_ctx": 256} if family == "gpt2" else {}
        save_hf(OLD[family](0, vocab_size=VOCABULARY, **sizes), directory)
        return save_tokenizer(directory, VOCABULARY)
    for seed in range(20):
        theirs = judged(JUDGES[family], seed).float()
        theirs.resize_token_embeddings(VOCABULARY)
        theirs.save_pretrained(directory / str(seed))
        model = mechint.load(directory / str(seed))
        if family in ("mamba2", "gpt_neox") or {"attn_out", "conv_state"} <= {s.split(".")[-1] for s in model.sites}:
            return save_tokenizer(directory / str(seed), VOCABULARY)
    raise AssertionError(family)


def test_the_family_of_every_named_model_is_known() -> None:
    assert set(named().values()) == set(FAMILIES)


def at_hub(monkeypatch: pytest.MonkeyPatch, hub: Hub, cache: Path) -> None:
    """Points the client in this process at a hub and a cache."""
    monkeypatch.setattr(client, "ENDPOINT", hub.url)
    monkeypatch.setattr(client, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(client, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(client, "HF_HUB_OFFLINE", False)


@pytest.mark.slow_except("EleutherAI/pythia-160m")
@pytest.mark.parametrize("repo", FAMILIES)
def test_experiments_download_their_model_and_accept_it(
    repo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Here
) -> None:
    served = save(FAMILIES[repo], tmp_path / "served")
    with serve({repo: served}) as hub:
        at_hub(monkeypatch, hub, tmp_path / "cache")
        ids = torch.tensor([[3, 5, 7, 11]])
        with torch.no_grad():
            assert torch.equal(mechint.load(repo)(ids), mechint.load(served)(ids))
        assert any(f"{repo}/resolve/" in request and "safetensors" in request for request in hub.requests)
        for name in [name for name, said in named().items() if said == repo]:
            arguments = mapping.arguments(load(ROOT, find_all(ROOT)[name]), mapping.MECHINT)
            # a small model has fewer units than a budget asks for, and fewer layers
            small = [re.sub(r"-budget=\d+", "-budget=2", argument) for argument in arguments]
            small = [re.sub(r"^(--\w+-layers)=\d+$", r"\1=0", argument) for argument in small]
            found = here(functools.partial(command_line.main, arguments=[*small, "--dry-run"]), at=tmp_path)
            if name in REFUSED:
                assert found.status == 2 and REFUSED[name] in found.err
            else:
                assert found.status == 0, (name, found.err)
                assert f"would analyse {repo}" in found.out
