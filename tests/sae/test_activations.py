"""Activations: what a stream gives is what a run records; caches hold the same bits and refuse to be mistaken."""

from __future__ import annotations

import errno
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import mechint
from mechint.sae.activations import cache as activation_cache
from mechint.sae.activations.cache import Cached, fill_cache
from mechint.sae.activations.contexts import BOS, BOUNDARY, PADDING, TaskContexts, TokenContexts, excluded, pack
from mechint.sae.activations.flattening import flatten, unflatten
from mechint.sae.activations.pools import Batches, Streamed
from mechint.tasks import TaskConfig, make_task
from mechint.utils.errors import MechintError
from tests.helpers.builders import tiny_gpt2, tiny_mamba, tokens

SITES = ["layers.*.out", "layers.1.state"]


def contexts(count: int = 40, length: int = 9, **options: Any) -> TokenContexts:
    return TokenContexts(tokens(count, length, seed=3), rows=8, seed=None, **options)


def stream(model: Any = None, sites: list[str] | None = None, **options: Any) -> Streamed:
    return Streamed(model or tiny_mamba(), sites or SITES, contexts(), 2, **options)


@pytest.mark.parametrize("build", [tiny_mamba, tiny_gpt2])
def test_a_stream_gives_what_a_run_records(build: Any) -> None:
    model = build()
    names = [name for name, site in model.sites.items() if not site.has_sources]
    found = Streamed(model, names, contexts(), 2).pool(1)
    run = mechint.run(model, contexts().tokens[16:32], names)
    for name in names:
        torch.testing.assert_close(found[name], run[name].flatten(2).flatten(0, 1).float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rule", ["all", "last", "unit:3"])
def test_flattening_and_back(rule: str) -> None:
    value = torch.randn(2, 3, 5, 4)
    flat = flatten(value, rule)
    assert flat.shape == {"all": (2, 3, 20), "last": (2, 3, 5, 4), "unit:3": (2, 3, 4)}[rule]
    torch.testing.assert_close(unflatten(flat, value, rule), value, rtol=0, atol=0)
    changed = unflatten(flat + 1, value, rule) - value
    torch.testing.assert_close(changed.sum(), torch.tensor(float(flat.numel())))


def test_rows_of_a_shared_dictionary_of_all_channels() -> None:
    site = "layers.1.state"
    whole, rows = (stream(sites=[site], flatten=rule).pool(0)[site] for rule in ("all", "last"))
    units = tiny_mamba().sites[site].units
    assert rows.shape == (whole.shape[0] * units[0], units[1])
    torch.testing.assert_close(rows.view(len(whole), -1), whole, rtol=0, atol=0)


def test_special_tokens_are_left_out_by_name() -> None:
    packed = pack([torch.arange(5), torch.arange(7)], 6, bos=90, boundary=91)
    assert packed.tokens.tolist() == [[90, 0, 1, 2, 3, 4], [90, 91, 0, 1, 2, 3]]
    assert packed.kinds.tolist() == [[BOS, 0, 0, 0, 0, 0], [BOS, BOUNDARY, 0, 0, 0, 0]]
    model = tiny_mamba(vocab_size=96)
    source = TokenContexts(packed.tokens, packed.kinds, rows=2, seed=None)
    counts = {
        names: len(Streamed(model, ["embed"], source, 1, exclude=names).pool(0)["embed"])
        for names in ("", "bos", "bos,boundary", "boundary")
    }
    assert counts == {"": 12, "bos": 10, "bos,boundary": 9, "boundary": 11}
    with pytest.raises(MechintError, match="did you mean bos"):
        excluded("boss")
    with pytest.raises(MechintError, match="less than one context of 60"):
        pack([torch.arange(5)], 60)


def test_what_follows_a_prompts_last_answer_is_padding() -> None:
    task = make_task(TaskConfig())
    found, kinds = TaskContexts(task, "train", 4, 0).batch(0)
    again, _ = TaskContexts(task, "train", 4, 0).batch(0)
    assert torch.equal(found, again) and not torch.equal(found, TaskContexts(task, "train", 4, 0).batch(1)[0])
    last = task.sample(4, "train", 0).positions.max()
    assert (kinds[:, int(last) + 1 :] == PADDING).all() and (kinds[:, 0] != PADDING).all()


def test_a_cache_holds_the_same_bits_and_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = stream()
    fill_cache(source, tmp_path / "c", 1)
    asked: list[int] = []
    original = Streamed.pool
    monkeypatch.setattr(Streamed, "pool", lambda self, i: asked.append(i) or original(self, i))
    cache = fill_cache(source, tmp_path / "c")
    assert asked == [1, 2] and cache.count == 3
    for i in range(3):
        for site, rows in original(source, i).items():
            assert torch.equal(cache.pool(i)[site], rows)
    assert Cached(tmp_path / "c").sites == source.sites


def test_a_cache_of_something_else_is_refused(tmp_path: Path) -> None:
    fill_cache(stream(weights="a"), tmp_path)
    for other, what in (
        (stream(weights="b"), "another model"),
        (stream(sites=["layers.0.out"], weights="a"), "another site"),
        (stream(weights="a", exclude="bos"), "another exclude"),
    ):
        with pytest.raises(MechintError, match=what):
            fill_cache(other, tmp_path)
    shard = next(tmp_path.glob("*/shard-00001.bin"))
    shard.write_bytes(shard.read_bytes()[:-4])
    with pytest.raises(MechintError, match="cut short"):
        Cached(tmp_path)


def test_a_full_disk_leaves_whole_shards_and_the_way_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, write = stream(), activation_cache.files.write_bytes

    def full(path: Path, data: bytes) -> Path:
        if "shard-00001" in path.name and "state" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, data)

    monkeypatch.setattr(activation_cache.files, "write_bytes", full)
    with pytest.raises(MechintError, match="full at shard 2 of 3"):
        fill_cache(source, tmp_path)
    monkeypatch.undo()
    assert not list(tmp_path.glob("*/shard-00001.bin"))
    assert fill_cache(source, tmp_path).count == 3


def test_numbers_that_are_none_are_named(tmp_path: Path) -> None:
    model = tiny_mamba()
    fill_cache(stream(model, ["layers.0.out"]), tmp_path)
    shard = tmp_path / "layers.0.out" / "shard-00001.bin"
    width = model.sites["layers.0.out"].units[0]
    data = torch.frombuffer(bytearray(shard.read_bytes()), dtype=torch.float32).view(-1, width)
    data[7, 2] = float("nan")
    shard.write_bytes(data.numpy().tobytes())
    with pytest.raises(MechintError, match=r"shard-00001.bin: row 7 holds NaN"):
        Cached(tmp_path).pool(1)
    with torch.no_grad():
        model.layers[0].out_proj.weight[0, 0] = float("inf")
    with pytest.raises(MechintError, match=r"layers.0.out are NaN or infinite in batch 0"):
        stream(model, ["layers.0.out"]).pool(0)


@pytest.mark.parametrize("size", [5, 64, 100, 143, 144, 145, 300])
def test_batches_hold_every_row_once_and_go_on(size: int) -> None:
    source = stream(sites=["layers.0.out"])
    every = torch.cat([source.pool(i)["layers.0.out"] for i in range(3)])
    batches = Batches(source, size, seed=1)
    seen = torch.cat([batches.next()["layers.0.out"] for _ in range(len(every) // size)])
    count = lambda rows: Counter(map(tuple, rows.tolist()))
    assert count(seen) <= count(every)
    state = batches.state()
    ahead = [batches.next()["layers.0.out"] for _ in range(5)]
    other = Batches(source, size, seed=1)
    other.restore(state)
    for rows in ahead:
        assert torch.equal(other.next()["layers.0.out"], rows)


def test_too_little_text_is_one_line() -> None:
    with pytest.raises(MechintError, match=r"has 360 activations at layers\.0\.out, less than one batch of 361"):
        Batches(stream(sites=["layers.0.out"]), 361, 0)
    with pytest.raises(MechintError, match=r"no site 'layers.7.out'"):
        stream(sites=["layers.7.out"])
    with pytest.raises(MechintError, match="no flattening rule"):
        stream(flatten="every")
