"""GPT-2 124M: a forward beside its matrix products, recording beside four other ways, and a residual patching sweep."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import mechint
from mechint import Edit
from mechint.interventions.sweep import sweep
from mechint.models.loading.load import from_state_dict

from ..pairs import Question, Target
from ..shapes import FLOOR, HF, LOOP, OURS, last

LAYERS, WIDTH, HEADS, VOCABULARY = 12, 768, 12, 50257
LENS, NNSIGHT, PYVENE, HOOKS = "TransformerLens", "nnsight", "pyvene", "Hugging Face with hooks"
RECORDED = ["layers.*.resid_post", "layers.*.attn_out"]


@torch.no_grad()
def questions() -> Iterator[Question]:
    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(GPT2Config(attn_pdrop=0.0)).eval().requires_grad_(False)
    ours = from_state_dict(theirs.state_dict(), theirs.config.to_dict(), "random weights").requires_grad_(False)
    lens = in_lens(theirs)
    yield forward(theirs, ours)
    yield recording(theirs, ours, lens)
    yield patching(theirs, ours, lens)


def in_lens(theirs: Any) -> Any:
    """TransformerLens' bridge around a copy of this model; it wants a tokenizer, of which it gets the least."""
    from tokenizers import Tokenizer, models
    from transformer_lens import TransformerBridge

    words = Tokenizer(models.WordLevel({"a": 0, "<e>": 1}, "a"))
    end = {name: "<e>" for name in ("bos_token", "eos_token", "pad_token")}
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        PreTrainedTokenizerFast(tokenizer_object=words, **end).save_pretrained(folder)
        return TransformerBridge.boot_transformers(folder, device="cpu").eval().requires_grad_(False)


def products(theirs: Any, batch: int, length: int) -> None:
    """The matrix products of a forward and nothing else, scores and values included."""
    x, wide = torch.ones(batch, length, WIDTH), torch.ones(batch, length, 4 * WIDTH)
    q, pattern = torch.ones(batch, HEADS, length, WIDTH // HEADS), torch.ones(batch, HEADS, length, length)
    flat = x.view(-1, WIDTH)
    for block in theirs.transformer.h:
        torch.mm(flat, block.attn.c_attn.weight), torch.mm(flat, block.attn.c_proj.weight)
        q @ q.transpose(-1, -2), pattern @ q
        torch.mm(flat, block.mlp.c_fc.weight), torch.mm(wide.view(-1, 4 * WIDTH), block.mlp.c_proj.weight)
    F.linear(x, theirs.transformer.wte.weight)


def forward(theirs: Any, ours: Any) -> Question:
    tokens = torch.randint(0, VOCABULARY, (4, 256))
    return Question(
        "gpt2",
        "GPT-2 124M forward, 4 x 256 tokens, all logits",
        {
            OURS: torch.no_grad()(lambda: ours(tokens)),
            FLOOR: torch.no_grad()(lambda: products(theirs, 4, 256)),
            HF: torch.no_grad()(lambda: theirs(tokens, use_cache=False)),
        },
        [Target(OURS, FLOOR, 1.15, at_most=True)],
    )


def recording(theirs: Any, ours: Any, lens: Any) -> Question:
    """Every way keeps the same 24 tensors, but for TransformerLens, whose run_with_cache keeps all its hook points."""
    from nnsight import NNsight

    tokens = torch.randint(0, VOCABULARY, (4, 256))
    blocks = theirs.transformer.h
    watched = NNsight(theirs)
    collecting = in_pyvene(theirs)

    def hooked() -> list[Tensor]:
        kept: list[Tensor] = []
        handles = [
            module.register_forward_hook(
                lambda module, given, out: kept.append(out[0] if isinstance(out, tuple) else out)
            )
            for block in blocks
            for module in (block.attn, block)
        ]
        theirs(tokens, use_cache=False, logits_to_keep=1)
        for handle in handles:
            handle.remove()
        assert len(kept) == 2 * LAYERS
        return kept

    def traced() -> list[Any]:
        kept: list[Any] = []
        with watched.trace(tokens, use_cache=False, logits_to_keep=1):
            for block in watched.transformer.h:
                kept.append(block.attn.output[0].save())
                kept.append(block.output[0].save() if isinstance(block.output, tuple) else block.output.save())
        return kept

    return Question(
        "gpt2",
        "GPT-2 124M, all residuals and attention outputs recorded, 4 x 256 tokens",
        {
            OURS: torch.no_grad()(lambda: mechint.run(ours, tokens, RECORDED, logits_at=last(tokens))),
            LENS: torch.no_grad()(lambda: lens.run_with_cache(tokens)),
            HOOKS: torch.no_grad()(hooked),
            NNSIGHT: torch.no_grad()(traced),
            PYVENE: torch.no_grad()(lambda: collecting({"input_ids": tokens})),
        },
        [
            Target(LENS, OURS, 1.6),
            Target(OURS, LENS, 0.2, at_most=True, of="memory"),
            *(Target(OURS, name, 1.0, at_most=True) for name in (HOOKS, NNSIGHT, PYVENE)),
        ],
    )


def in_pyvene(theirs: Any) -> Any:
    import pyvene

    kinds = [
        {"layer": layer, "component": part, "intervention_type": pyvene.CollectIntervention}
        for layer in range(LAYERS)
        for part in ("attention_output", "block_output")
    ]
    return pyvene.IntervenableModel(pyvene.IntervenableConfig(kinds), model=theirs)


def patching(theirs: Any, ours: Any, lens: Any) -> Question:
    """The residual before every layer at every position of one prompt, replaced by another prompt's."""
    from transformer_lens import patching as lens_patching

    length = 16
    clean, corrupted = torch.randint(0, VOCABULARY, (2, 1, length))
    sites = [f"layers.{layer}.resid_pre" for layer in range(LAYERS)]
    donor = mechint.run(ours, clean, sites)
    cells = [[Edit(site, "replace", donor[site][:, p : p + 1], positions=[p])] for site in sites for p in range(length)]
    metric = lambda logits: logits[..., 0, 7] - logits[..., 0, 11]
    cache = lens.run_with_cache(clean)[1]
    some = cells[:: len(cells) // 16]

    def hooked() -> None:
        for cell in some:
            edit = cell[0]
            layer, position = int(edit.site.split(".")[1]), (edit.positions or [0])[0]

            def put(module: Any, given: Any, position: int = position, edit: Edit = edit) -> Any:
                given[0][:, position] = edit.value[:, 0]  # type: ignore[index]

            handle = theirs.transformer.h[layer].register_forward_pre_hook(put)
            metric(theirs(corrupted, use_cache=False, logits_to_keep=1).logits)
            handle.remove()

    def utility() -> Any:
        return lens_patching.get_act_patch_resid_pre(lens, corrupted, cache, lambda logits: metric(logits[:, -1:])[0])

    return Question(
        "gpt2",
        f"GPT-2 124M residual patching, {len(cells)} cells of one prompt of {length} tokens",
        {
            OURS: lambda: sweep(ours, corrupted, cells, metric, logits_at=last(corrupted)),
            HOOKS: torch.no_grad()(hooked),
            LENS: torch.no_grad()(utility),
            LOOP: torch.no_grad()(
                lambda: [metric(mechint.run(ours, corrupted, [], c, logits_at=last(corrupted)).logits) for c in some]
            ),
        },
        [Target(HOOKS, OURS, 10.0), Target(LENS, OURS, 25.0)],
        {HOOKS: len(cells) / len(some), LOOP: len(cells) / len(some)},
        rounds=3,
        cold=(LENS,),
    )
