"""What is measured. Weights are random and of the mamba-130m shape: speed does not ask what a model has learned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from mambapy.mamba import MambaBlock
from mambapy.mamba import MambaConfig as PeerConfig
from torch import Tensor
from transformers import MambaConfig as HFConfig
from transformers import MambaForCausalLM

import mechint
from mechint import Edit, scan
from mechint.models.load import from_state_dict
from mechint.sweep import sweep

from .pairs import Question, Target

WIDTH, INNER, STATES, RANK, LAYERS, VOCABULARY = 768, 1536, 16, 48, 24, 50280
OURS, LOOP, FLOOR, HF, PEER = "mechint", "mechint, a run per cell", "matrix products alone", "Hugging Face", "mambapy"


def pair(layers: int) -> tuple[Any, Any]:
    """Hugging Face's model and ours with the same random weights."""
    torch.manual_seed(0)
    theirs = MambaForCausalLM(
        HFConfig(
            vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=layers, state_size=STATES, time_step_rank=RANK
        )
    ).eval()
    ours = from_state_dict(theirs.state_dict(), None, "random weights")
    return theirs.requires_grad_(False), ours.requires_grad_(False)


def inputs(batch: int, length: int) -> list[Tensor]:
    torch.manual_seed(0)
    return [
        torch.randn(batch, length, INNER),
        F.softplus(torch.randn(batch, length, INNER) - 4),
        -torch.arange(1.0, STATES + 1).repeat(INNER, 1),
        torch.randn(batch, length, STATES),
        torch.randn(batch, length, STATES),
    ]


def scans() -> Iterator[Question]:
    """The scan alone, forward, and forward with the gradients of all inputs."""
    block = MambaBlock(PeerConfig(d_model=WIDTH, n_layers=1))
    skip = torch.zeros(INNER)
    for batch, length in ((4, 256), (1, 2048)):
        given = inputs(batch, length)

        def ours(backward: bool, back_end: str, given: list[Tensor] = given) -> None:
            with scan.using(back_end), torch.set_grad_enabled(backward):
                leaves = [x.clone().requires_grad_(backward) for x in given]
                y, _ = scan.selective_scan(*leaves)
                if backward:
                    y.sum().backward()

        def peer(backward: bool, given: list[Tensor] = given) -> None:
            with torch.set_grad_enabled(backward):
                u, dt, A, B, C = (x.clone().requires_grad_(backward) for x in given)
                y = block.selective_scan(u, dt, A, B, C, skip)
                if backward:
                    y.sum().backward()

        there = [name for name in ("native", "chunked") if not scan.available()[name]]
        for backward in (False, True):
            candidates: dict[str, Any] = {
                f"mechint, {name}": lambda name=name, b=backward, f=ours: f(b, name) for name in there
            }
            candidates[PEER] = lambda b=backward, f=peer: f(b)
            what = "forward and backward" if backward else "forward"
            targets = [Target(PEER, f"mechint, {there[0]}", 10.0)]
            yield Question("scan", f"{what} [{batch}, {length}, {INNER}, {STATES}]", candidates, targets, rounds=3)


def products(model: Any, batch: int, length: int) -> None:
    """The matrix products of a forward and nothing else."""
    n, x, u = torch.ones(batch, length, WIDTH), torch.ones(batch, length, INNER), torch.ones(batch, length, RANK)
    for layer in model.layers:
        layer.in_proj(n), layer.x_proj(x), layer.dt_proj(u), layer.out_proj(x)
    F.linear(n, model.embedding.weight)


@torch.no_grad()
def forwards() -> Iterator[Question]:
    """A whole model against its matrix products and against Hugging Face, and a training step of two layers."""
    theirs, ours = pair(LAYERS)
    for batch, length in ((1, 256), (1, 1024)):
        tokens = torch.randint(0, VOCABULARY, (batch, length))
        yield Question(
            "model",
            f"mamba-130m forward, {batch} x {length} tokens, all logits",
            {
                OURS: lambda t=tokens: ours(t),
                FLOOR: lambda b=batch, n=length: products(ours, b, n),
                HF: lambda t=tokens: theirs(t, use_cache=False),
            },
            [Target(OURS, FLOOR, 1.25, at_most=True), Target(HF, OURS, 3.0)],
            rounds=3,
        )
    theirs, ours = pair(2)
    tokens = torch.randint(0, VOCABULARY, (2, 64))

    def step(model: Any, **arguments: Any) -> None:
        with torch.enable_grad():
            for parameter in model.parameters():
                parameter.requires_grad_(True)
            logits = model(tokens, **arguments)
            (logits if isinstance(logits, Tensor) else logits.logits).logsumexp(-1).sum().backward()
            model.zero_grad(set_to_none=True)

    yield Question(
        "model",
        "two layers of mamba-130m, forward and backward of all weights, 2 x 64 tokens",
        {OURS: lambda: step(ours), HF: lambda: step(theirs, use_cache=False)},
        [Target(HF, OURS, 10.0)],
        rounds=3,
    )


@torch.no_grad()
def sweeps() -> Iterator[Question]:
    """A ROME map: the clean residual put back at every layer and position of ten noised runs."""
    theirs, ours = pair(LAYERS)
    length, draws, subject = 12, 10, [4, 5, 6]
    clean = torch.randint(0, VOCABULARY, (1, length))
    donor = mechint.run(ours, clean, ["layers.*.resid_post"])
    noise = torch.randn(draws, len(subject), WIDTH)
    prompts = clean.repeat(draws, 1)
    base = [Edit("embed", "add", noise, positions=subject)]
    last = torch.full((draws, 1), length - 1)
    cells = [
        [Edit(site, "replace", donor[site][:, p : p + 1], positions=[p])]
        for site in donor.values
        for p in range(length)
    ]
    metric = lambda logits: logits[..., 0, :].log_softmax(-1)[..., 7]
    some = cells[:: len(cells) // 6]

    def loop() -> list[Tensor]:
        return [metric(mechint.run(ours, prompts, [], [*base, *cell], logits_at=last).logits) for cell in some]

    def hooked() -> None:
        for cell in some[:3]:
            edit = cell[0]
            layer, position = int(edit.site.split(".")[1]), (edit.positions or [0])[0]

            def corrupt(module: Any, given: Any, out: Tensor) -> Tensor:
                out = out.clone()
                out[:, subject] += noise
                return out

            def restore(module: Any, given: Any, out: Tensor, position: int = position, edit: Edit = edit) -> Tensor:
                out = out.clone()
                out[:, position] = edit.value[:, 0]  # type: ignore[index]
                return out

            handles = [
                theirs.backbone.embeddings.register_forward_hook(corrupt),
                theirs.backbone.layers[layer].register_forward_hook(restore),
            ]
            metric(theirs(prompts, use_cache=False, logits_to_keep=1).logits)
            for handle in handles:
                handle.remove()

    yield Question(
        "sweep",
        f"mamba-130m ROME map: {len(cells)} cells, {draws} noised runs of {length} tokens, subject {subject}",
        {
            OURS: lambda: sweep(ours, prompts, cells, metric, base=base, logits_at=last, memory_mib=1024),
            LOOP: loop,
            HF: hooked,
        },
        [Target(LOOP, OURS, 7.0), Target(HF, OURS, 25.0)],
        {LOOP: len(cells) / len(some), HF: len(cells) / 3},
        rounds=3,
    )


SECTIONS = {"scan": scans, "model": forwards, "sweep": sweeps}
