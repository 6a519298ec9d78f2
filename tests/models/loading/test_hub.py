"""Downloads through the hub's own client, against a stand-in on loopback: cache, resume, offline, refusals."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants as client
import pytest
import torch
from safetensors.torch import save_file

import mechint
from mechint import MechintError
from mechint.models.loading.hub import is_hub_id
from mechint.models.loading.load import to_hf_state_dict
from tests.helpers.builders import tiny_mamba, tokens
from tests.helpers.standins import Hub, save_hf, save_tokenizer, serve

REPO = "state-spaces/tiny-hf"
LOAD = """
import json, sys, mechint
from tests.helpers.builders import tokens
try:
    model = mechint.load(sys.argv[1])
except mechint.MechintError as error:
    sys.exit(f"refused: {error}")
print(json.dumps(model(tokens(1, 4)).flatten().tolist()))
"""
SMALL: dict[str, Any] = {"vocab_size": 300}
LARGE: dict[str, Any] = {**SMALL, "d_model": 64, "d_inner": 16384}
"""29 MB: the client writes to disk 10 MB at a time, and a download must be broken off between two of them."""

Visit = Callable[..., None]


def save(sizes: dict[str, Any], directory: Path) -> Path:
    return save_tokenizer(save_hf(tiny_mamba(**sizes), directory), 300)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    directory = save(SMALL, tmp_path / "served")
    (directory / "README.md").write_text("never needed")
    with serve({REPO: directory}) as hub:
        yield hub


@pytest.fixture
def visit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Visit:
    """Points the client in this process at a hub and a cache, as its environment does when it is imported."""

    def visit(endpoint: str, cache: str = "cache", offline: bool = False) -> None:
        monkeypatch.setattr(client, "ENDPOINT", endpoint)
        files = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(client, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(client, "HF_HUB_CACHE", str(tmp_path / cache / "hub"))
        monkeypatch.setattr(client, "HF_HUB_OFFLINE", offline)

    return visit


def start(endpoint: str, cache: Path, **environment: str) -> subprocess.Popen[str]:
    """Loads the model in a process of its own, with the client's real environment."""
    kept = {key: value for key, value in os.environ.items() if not re.match("HF_|.*proxy", key, re.I)}
    here = Path(__file__).resolve().parents[3]
    paths = {"PYTHONPATH": f"{here / 'lib'}{os.pathsep}{here}", "HF_HOME": str(cache), "HF_ENDPOINT": endpoint}
    return subprocess.Popen(
        [sys.executable, "-c", LOAD, REPO],
        env={**kept, **paths, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_tokenizer_without_tokenizer_json_is_fetched_too(visit: Visit, tmp_path: Path) -> None:
    """The files that a local directory would be read from are fetched: vocab.json, merges.txt and transformers' own."""
    from transformers import GPT2Tokenizer

    directory = save_hf(tiny_mamba(vocab_size=300, d_model=8, d_inner=16), tmp_path / "served")
    vocabulary = [*map(chr, range(97, 123)), "Ġ", "<|endoftext|>", "at"]
    (directory / "vocab.json").write_text(json.dumps({name: k for k, name in enumerate(vocabulary)}))
    (directory / "merges.txt").write_text("#version: 0.2\na t\n")
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": GPT2Tokenizer.__name__}))
    here = mechint.load(str(directory)).tokenizer.encode("a cat").ids
    with serve({REPO: directory}) as hub:
        visit(hub.url)
        assert mechint.load(REPO).tokenizer.encode("a cat").ids == here != []
        assert {"vocab.json", "merges.txt", "tokenizer_config.json"} <= set(fetched(hub))


def partial(cache: Path) -> list[Path]:
    return [path for path in cache.glob("hub/models--*/blobs/*.incomplete") if path.stat().st_size]


def fetched(hub: Hub) -> list[str]:
    """Files that were asked for, each with its range."""
    start = f"GET {REPO}/resolve/"
    return [request.removeprefix(start).partition("/")[2] for request in hub.requests if request.startswith(start)]


def refused(name: str = REPO) -> str:
    """The one line of a refusal, which must come within seconds."""
    begin = time.monotonic()
    with pytest.raises(MechintError) as caught:
        mechint.load(name)
    assert time.monotonic() - begin < 15
    assert "\n" not in str(caught.value)
    print(caught.value)
    return str(caught.value)


@pytest.mark.slow
def test_the_client_s_environment(hub: Hub, tmp_path: Path) -> None:
    expected = tiny_mamba(**SMALL)(tokens(1, 4)).flatten()
    out, err = start(hub.url, tmp_path / "cache").communicate(timeout=120)
    assert torch.allclose(torch.tensor(json.loads(out or "[]")), expected, atol=1e-5), err
    assert sorted(fetched(hub)) == ["config.json", "model.safetensors", "tokenizer.json"]
    err = start("http://127.0.0.1:9", tmp_path / "empty").communicate(timeout=120)[1]
    assert err.startswith(f"refused: can't fetch {REPO}: ")
    assert len(err.splitlines()) == 1, err


def test_download_then_cache_then_offline(hub: Hub, tmp_path: Path, visit: Visit) -> None:
    expected = tiny_mamba(**SMALL)(tokens(1, 4))
    visit(hub.url)
    model = mechint.load(REPO)
    assert torch.equal(model(tokens(1, 4)), expected)
    assert model.source == REPO
    assert model.tokenizer.encode("for name in names").ids
    assert fetched(hub) == ["config.json", "model.safetensors", "tokenizer.json"]
    hub.requests.clear()
    mechint.load(REPO)
    assert not fetched(hub)  # nothing is fetched twice
    for endpoint, offline in ((hub.url, True), ("http://127.0.0.1:9", False)):
        visit(endpoint, offline=offline)
        assert torch.equal(mechint.load(REPO)(tokens(1, 4)), expected)
    hub.status = 503
    visit(hub.url)
    assert torch.equal(mechint.load(REPO)(tokens(1, 4)), expected)


@pytest.mark.slow
def test_a_killed_download_goes_on_where_it_was(tmp_path: Path, visit: Visit) -> None:
    served = save(LARGE, tmp_path / "large")
    with serve({REPO: served}) as hub:
        hub.pace = 2_000_000
        process = start(hub.url, tmp_path / "cache")
        while not (found := partial(tmp_path / "cache")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        had = found[0].stat().st_size
        assert 0 < had < (served / "model.safetensors").stat().st_size
        visit("http://127.0.0.1:9")
        assert "only a part of it is in the cache; run again to go on" in refused()
        hub.pace = None
        hub.requests.clear()
        visit(hub.url)
        assert torch.equal(mechint.load(REPO).embedding.weight, tiny_mamba(**LARGE).embedding.weight)
        assert fetched(hub) == [f"model.safetensors bytes={had}-", "tokenizer.json"]
        assert not partial(tmp_path / "cache")


def test_a_dropped_connection_is_taken_up_again(tmp_path: Path, visit: Visit) -> None:
    with serve({REPO: save(LARGE, tmp_path / "large")}) as hub:
        hub.break_after = 11_000_000
        visit(hub.url)
        mechint.load(REPO)
        assert [name.partition("=")[0] for name in fetched(hub)][1:3] == [
            "model.safetensors",
            "model.safetensors bytes",
        ]


def test_a_damaged_part_is_thrown_away(hub: Hub, tmp_path: Path, visit: Visit) -> None:
    visit(hub.url)
    mechint.load(REPO)
    pointer = next((tmp_path / "cache").glob("hub/models--*/snapshots/*/model.safetensors"))
    blob = pointer.resolve()
    part = blob.with_name(blob.name + ".incomplete")
    pointer.unlink()
    blob.unlink()
    part.write_bytes(b"\0" * 5000)
    assert "arrived damaged" in refused()
    assert not part.exists()
    mechint.load(REPO)


def test_shards_and_original_files(tmp_path: Path, visit: Visit) -> None:
    model = tiny_mamba()
    state = to_hf_state_dict(model)
    sharded = save_hf(model, tmp_path / "sharded")
    (sharded / "model.safetensors").unlink()
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    parts = [dict(list(state.items())[i::2]) for i in (0, 1)]
    for name, part in zip(names, parts, strict=True):
        save_file(part, sharded / name)
    where = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    original = tmp_path / "original"
    original.mkdir()
    state["backbone.embedding.weight"] = state.pop("backbone.embeddings.weight")
    torch.save(state, original / "pytorch_model.bin")
    (original / "config.json").write_text(
        json.dumps({"d_model": 10, "n_layer": 2, "vocab_size": 22, "ssm_cfg": {"d_state": 5}})
    )
    expected = model(tokens(1, 4))
    with serve({"a/sharded": sharded, "state-spaces/mamba-tiny": original}) as hub:
        visit(hub.url)
        for name in hub.models:
            loaded = mechint.load(name)
            assert torch.equal(loaded(tokens(1, 4)), expected)
            assert loaded.tokenizer is None
        (sharded / names[1]).unlink()
        visit(hub.url, "other")
        assert "lacks model-00002-of-00002.safetensors" in refused("a/sharded")


def test_without_a_network(hub: Hub, visit: Visit) -> None:
    for endpoint, offline in (("http://127.0.0.1:9", False), (hub.url, True), ("http://no-such-host.invalid", False)):
        visit(endpoint, offline=offline)
        message = refused()
        assert f"can't fetch {REPO}: " in message
        assert "name the directory of a local copy with checkpoint" in message


def test_a_hub_that_never_answers(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mechint.models.loading.hub.CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        visit(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "does not answer" in refused()


def test_what_the_hub_refuses(hub: Hub, visit: Visit) -> None:
    visit(hub.url)
    assert "no such model on the hub" in refused("nobody/nothing")
    (hub.models[REPO] / "model.safetensors").unlink()
    assert "has no weights" in refused()
    (hub.models[REPO] / "config.json").unlink()
    visit(hub.url, "other")
    assert "has no config.json" in refused()
    hub.status = 503
    visit(hub.url, "third")
    assert "the hub answers 503" in refused()


def test_shapes_of_names() -> None:
    assert is_hub_id("state-spaces/mamba-130m-hf")
    for name in ("gpt2", "a/b/c", "./a/b", "/a", "a/", "out/m.pt", "out/m.safetensors", "out/*", "../a"):
        assert not is_hub_id(name), name
