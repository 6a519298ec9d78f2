"""A whole ROME map by the analysis itself: residual, and windows of two kinds of output, ten noised runs a cell."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import mechint
from mechint.analyses.interchange import Interchange
from mechint.analyses.tracing.analyzer import CausalTracer
from mechint.analyses.tracing.options import TraceConfig
from mechint.analyses.tracing.panels import Panel, panels
from mechint.models.loading.load import from_state_dict
from mechint.tasks import Prompts

from ..pairs import Question, Target
from ..shapes import LAYERS, OURS, pair

HOOKS = "Hugging Face with hooks, a forward per cell"
LENGTH, SUBJECT, DRAWS, WINDOW, SAMPLED = 12, (4, 7), 10, 5, 2
TOLERANCE = 1e-3
"""Nats of log-probability: float32 through two dozen layers, in Hugging Face's order of adding and in ours."""


@torch.no_grad()
def questions() -> Iterator[Question]:
    yield question("mamba-130m", *pair(LAYERS), bound=25.0)
    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(GPT2Config(attn_pdrop=0.0)).eval().requires_grad_(False)
    ours = from_state_dict(theirs.state_dict(), theirs.config.to_dict(), "random weights").requires_grad_(False)
    yield question("GPT-2 124M", theirs, ours, bound=8.0)


def asked(ours: Any) -> Prompts:
    """One prompt with its subject, whose answer is what the model says."""
    tokens = torch.randint(0, ours.config.vocab_size, (1, LENGTH), generator=torch.Generator().manual_seed(1))
    last = torch.tensor([[LENGTH - 1]])
    answer = mechint.run(ours, tokens, logits_at=last).logits.argmax(-1)
    return Prompts(tokens, last, answer, None, None, torch.zeros(1, dtype=torch.long), torch.tensor([SUBJECT]))


class Hooked:
    """Hugging Face's model: values of the clean run, and the metric of the noised one with some of them put back."""

    def __init__(self, theirs: Any, pair: Interchange) -> None:
        self.theirs, self.pair = theirs, pair
        self.tokens, (noise,) = pair.receiver
        self.noise = noise.value
        self.clean: dict[str, Tensor] = {}

    def hook(self, site: str, change: Callable[[Tensor], Tensor]) -> Any:
        """Puts ``change`` of a layer's tensor in its place."""
        _, layer, kind = site.split(".")
        blocks = self.theirs.backbone.layers if hasattr(self.theirs, "backbone") else self.theirs.transformer.h
        block = blocks[int(layer)]
        if kind == "gated":
            return block.mixer.out_proj.register_forward_pre_hook(lambda module, given: (change(given[0]),))
        module = {"resid_post": "", "out": "mixer", "attn_out": "attn", "mlp_out": "mlp"}[kind]

        def put(module: Any, given: Any, out: Any) -> Any:
            return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

        return (getattr(block, module) if module else block).register_forward_hook(put)

    def metric(self, hooks: dict[str, Callable[[Tensor], Tensor]], noised: bool = True) -> float:
        """The mean over the draws of the answer's log-probability."""
        embeddings = self.theirs.get_input_embeddings()
        with contextlib.ExitStack() as stack:
            if noised:
                handle = embeddings.register_forward_hook(lambda module, given, out: out + self.noise)
                stack.callback(handle.remove)
            for site, change in hooks.items():
                stack.callback(self.hook(site, change).remove)
            logits = self.theirs(self.tokens, use_cache=False, logits_to_keep=1).logits
        return float(self.pair.by_prompt(self.pair.metric(logits)))

    def remember(self, sites: list[str]) -> None:
        """Keeps the clean values of these sites."""

        def keep(site: str, value: Tensor) -> Tensor:
            self.clean[site] = value.clone()
            return value

        self.metric({site: lambda value, site=site: keep(site, value) for site in sites}, noised=False)

    def cell(self, panel: Panel, layer: int, position: int) -> float:
        def put(value: Tensor, site: str) -> Tensor:
            value = value.clone()
            value[:, position] = self.clean[site][:, position]
            return value

        return self.metric({site: lambda value, site=site: put(value, site) for site in panel.sites[layer]})


def question(title: str, theirs: Any, ours: Any, bound: float) -> Question:
    """A map by both; every turn holds the sampled cells of one against those of the other."""
    kinds = ["resid_post", *(("out", "gated") if ours.config.family == "mamba" else ("attn_out", "mlp_out"))]
    config = TraceConfig(
        sites=",".join(kinds), sever="", window=WINDOW, direction="denoise", corruption="noise", draws=DRAWS,
        metric="answer_logprob", attribution=False,
    )  # fmt: skip
    tracer, prompts = CausalTracer(ours, config), asked(ours)
    hooked = Hooked(theirs, Interchange(ours, prompts, tracer.corruption(None), "denoise", config.metric))
    plan = panels(ours, kinds, [], WINDOW, "denoise")
    hooked.remember(sorted({site for panel in plan for sites in panel.sites for site in sites}))
    noised, layers = hooked.metric({}), ours.config.n_layer
    # a token of the subject in a lower layer, and the last one in an upper
    some = [(k, layers * (1 + 2 * j) // (2 * SAMPLED), (SUBJECT[1] - 1, LENGTH - 1)[j % 2])
            for k in range(len(plan)) for j in range(SAMPLED)]  # fmt: skip
    found: dict[str, Tensor] = {}

    def ours_whole() -> None:
        found["map"] = tracer.trace(prompts, None)["denoise"]

    def theirs_some() -> None:
        for k, layer, position in some:
            effect = hooked.cell(plan[k], layer, position) - noised
            got = float(found["map"][k, layer, position, 0])
            if abs(effect - got) > TOLERANCE:
                raise AssertionError(f"{title}: {plan[k].name} {layer}, {position}: {got} here, {effect} with hooks")

    cells = sum(len(panel.sites) for panel in plan) * LENGTH
    return Question(
        "trace",
        f"{title} ROME map by CausalTracer: {cells} cells ({', '.join(kinds)}; windows of {WINDOW}), {DRAWS} noised "
        f"runs of {LENGTH} tokens, subject {list(range(*SUBJECT))}; sampled cells agree within {TOLERANCE:g} nats",
        {OURS: ours_whole, HOOKS: torch.no_grad()(theirs_some)},
        [Target(HOOKS, OURS, bound)],
        {HOOKS: cells / len(some)},
        rounds=2,
        cold=(OURS, HOOKS),  # a map of minutes: a warm-up would cost another
    )
