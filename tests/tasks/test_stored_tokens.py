"""Training on real data: nanoGPT's token files, tokenizers, real bytes, accumulated gradients, mixed precision."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mechint.tasks import TaskConfig, make_task
from mechint.training.options import GPT2Architecture, TrainConfig
from mechint.training.trainer import bits_per_byte
from mechint.training.variants import train_steps
from mechint.utils.errors import MechintError

TINY = GPT2Architecture(n_layer=1, n_head=2, n_embd=8)
SHORT = TrainConfig(steps=3, batch_size=8, warmup=1, eval_prompts=16, eval_every=3, device="cpu")


def tokens_file(path: Path, count: int = 20_000, vocabulary: int = 90) -> Path:
    tokens = np.random.default_rng(0).integers(0, vocabulary, count).astype("<u2")
    tokens[7] = vocabulary - 1
    tokens.tofile(path)
    (path.parent / "meta.pkl").write_bytes(b"cos\nsystem\n(S'exit 3'\ntR.")  # would end the test if it were opened
    return path


def byte_level(path: Path) -> Any:
    """A byte-level BPE, as GPT-2's: saved as tokenizer.json in a directory."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(["the cat sat on the mät — the café, the the then"] * 9, trainer)
    path.mkdir()
    tokenizer.save(str(path / "tokenizer.json"))
    return tokenizer


def test_windows_of_a_token_file_are_its_tokens_and_it_stays_on_disk(tmp_path: Path) -> None:
    file = tokens_file(tmp_path / "train.bin")
    task = make_task(TaskConfig(name="text", text=str(file), length=16))
    assert task.vocab_size == 90 and isinstance(task.tokens, np.memmap)  # type: ignore[attr-defined]
    every = np.fromfile(file, "<u2")
    windows = {tuple(every[i : i + 17]) for i in range(len(every) - 16)}
    seen = {}
    for split in ("train", "discovery", "evaluation"):
        prompts = task.sample(32, split, 0)
        assert all(
            (*row, int(last)) in windows
            for row, last in zip(prompts.tokens.tolist(), prompts.answers[:, -1], strict=True)
        )
        seen[split] = set(prompts.template.tolist())
    assert not seen["train"] & (seen["discovery"] | seen["evaluation"])
    assert task.bytes_of(prompts.answers) is None and task.decode(5) == "token 5"
    other = make_task(TaskConfig(name="text", text=str(tokens_file(tmp_path / "b.bin", vocabulary=91)), length=16))
    assert other.fingerprint != task.fingerprint


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("gone.bin", None, "no such file"),
        ("odd.bin", b"abc", "3 bytes are not uint16 tokens"),
        ("none.bin", b"", "0 bytes are not uint16"),
        ("meta.pkl", b"cos\nsystem\n(S'exit 3'\ntR.", "never opened"),
        ("few.bin", b"ab" * 50, "too few for prompts"),
    ],
)
def test_files_that_are_no_tokens(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(MechintError, match=says):
        make_task(TaskConfig(name="text", text=str(tmp_path / name), length=16))


def test_bits_are_counted_against_real_bytes(tmp_path: Path) -> None:
    tokenizer, text = byte_level(tmp_path / "bpe"), "the café, then the cat sat on the mät — " * 300
    (tmp_path / "text.txt").write_text(text)
    config = TaskConfig(name="text", text=str(tmp_path / "text.txt"), length=8, tokenizer=str(tmp_path / "bpe"))
    task = make_task(config)
    ids = torch.tensor(tokenizer.encode(text).ids)
    sizes = task.bytes_of(ids)
    assert sizes is not None and float(sizes.sum()) == len(text.encode()) > len(text)
    prompts = task.sample(9, "train", 0)
    per_token, size = math.log(2), task.bytes_of(prompts.answers)
    assert size is not None
    found = bits_per_byte("", task, prompts, per_token)["bits_per_byte"]
    assert found == pytest.approx(prompts.answers.numel() / float(size.sum()))  # one bit a token
    plain = make_task(dataclasses.replace(config, tokenizer=""))
    assert bits_per_byte("", plain, plain.sample(4, "train", 0), 2 * math.log(2))["bits_per_byte"] == pytest.approx(2)
    with pytest.raises(MechintError, match=r"the directory has no tokenizer\.json"):
        make_task(dataclasses.replace(config, tokenizer=str(tmp_path)))
    file = tokens_file(tmp_path / "large.bin", vocabulary=60_000)
    with pytest.raises(MechintError, match="has token 59999, and the tokenizer"):
        make_task(dataclasses.replace(config, text=str(file)))


def final(path: Path, **changes: Any) -> dict[str, Any]:
    task = TaskConfig(name="text", text="topics", length=16)
    [checkpoint] = train_steps(task, dataclasses.replace(SHORT, output_dir=str(path), **changes), TINY)
    return torch.load(checkpoint, weights_only=True)  # type: ignore[no-any-return]


def test_accumulated_gradients_are_those_of_the_large_batch(tmp_path: Path) -> None:
    whole, parts = final(tmp_path / "a", batch_size=16), final(tmp_path / "b", batch_size=4, grad_accumulation=4)
    for name, tensor in whole["model"].items():
        if not name.endswith("c_attn.bias"):  # keys' biases change no attention: their gradient is rounding alone
            assert torch.allclose(tensor, parts["model"][name], atol=1e-4), name
    assert whole["held_out_bits_per_byte"] == pytest.approx(whole["held_out_loss"] / math.log(2))


def test_mixed_precision_trains_and_a_baseline_is_printed_beside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = final(tmp_path / "a")
    half = final(tmp_path / "b", precision="bfloat16", baseline=str(tmp_path / "a"))
    assert half["held_out_loss"] == pytest.approx(full["held_out_loss"], rel=0.05)
    assert any(not torch.equal(tensor, half["model"][name]) for name, tensor in full["model"].items())
    assert all(tensor.dtype == torch.float32 for tensor in half["model"].values())
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("baseline stepV0") for line in lines) and any(
        line.startswith("stepV0") for line in lines
    )
    with pytest.raises(MechintError, match="does not exist"):
        final(tmp_path / "c", baseline=str(tmp_path / "gone"))
    unfinished = tmp_path / "a/training_metrics_stepV0.json"
    unfinished.write_text(
        json.dumps({**json.loads(unfinished.read_text()), "held_out_loss": 1}).replace("held_out_loss", "x")
    )
    with pytest.raises(MechintError, match="has not finished"):
        final(tmp_path / "c", baseline=str(tmp_path / "a"))
