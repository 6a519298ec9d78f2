"""Tokenizers of several kinds, made here."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers


def byte_level(special: tuple[str, ...] = ("<|endoftext|>",), prefix: bool = False) -> Any:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    return made


def metaspace(lower: bool = False) -> Any:
    made = Tokenizer(models.Unigram([("<unk>", 0.0), *((word, -1.0) for word in ["▁", "t", "h", "e"])], unk_id=0))
    if lower:
        made.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Strip()])
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=200, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    made.train_from_iterator(CORPUS, trainer)
    return made


CORPUS = [
    "The Eiffel Tower is in the city of Paris . Marshal Mars is the god of war , says Paris Hilton .",
    '法国的首都是：巴黎。意大利的首都是：罗马。 He said "Hello" and "Rome" ; it costs $5 or $7 .',
] * 30


def llama_like(template: str | None = "<s> $A") -> Any:
    """A space of its own before every text, spaces as U+2581, bytes for what is unknown, <s> in front."""
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    made.train_from_iterator(CORPUS, trainer)
    raw = json.loads(made.to_str())
    raw["pre_tokenizer"] = None
    made = Tokenizer.from_str(json.dumps(raw))
    if template is not None:
        tokens = [("<s>", 1), ("</s>", 2)]
        made.post_processor = processors.TemplateProcessing(single=template, pair="$A $B", special_tokens=tokens)
    return made


TOKENIZERS = {
    "byte level": byte_level,
    "byte level with a space in front": lambda: byte_level(prefix=True),
    "llama": llama_like,
    "llama with an end": lambda: llama_like("<s> $A </s>"),
    "metaspace": metaspace,
    "lower case": lambda: metaspace(lower=True),
}
