"""Causal tracing: in which layer and at which token a model carries what its answer depends on.

1. Run every held-out prompt, and leave out the prompts that the model answers wrong.
2. Corrupt the tokens that a prompt is about: with those of its counterfactual twin, with noise on their embeddings, or
   with the mean embedding of the discovery prompts' subjects.
3. For each kind of site, layer and token, put the clean value into the corrupted run (``denoise``), the corrupted value
   into the clean run (``noise``), or both, and measure the metric. Layers may be exchanged in windows.
4. For ``denoise``, repeat step 3 for the residual stream while one kind of site of all layers above keeps its corrupted
   values (severed).
5. Estimate every effect by gradients (attribution patching), and correlate the estimates with the exact effects.
6. Average over prompts by the role of the token. Intervals and adjusted p-values are over templates.

After Meng et al. 2022 ("Locating and Editing Factual Associations in GPT", section 2) and, for Mamba, Sharma, Atkinson
& Bau 2024. A restored state is carried on by the recurrence; restoring its read-out changes one token alone.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...interventions.model import Model, layer_kinds, layer_sites, left_out
from ...interventions.run import run
from ...tasks import Prompts
from ...utils import files
from ...utils.errors import MechintError, NotAnswered, an, did_you_mean
from ...utils.options import listed, named
from ...utils.progress import counted
from ...utils.statistics import UNADJUSTED, ClusterBootstrap, Number, exact, said, said_p
from ..base import Analysis, Later, StagedAnalyzer
from ..effect_tables import few_notes, table
from ..interchange import Corruption, Interchange, twins_of
from ..loader import PromptLoader
from ..metrics import answer_metric, remedy
from .options import TraceConfig, refuse
from .panels import Panel, panels
from .results import numbers


class CausalTracer(StagedAnalyzer[TraceConfig]):
    """Traces the prompts of a task that the model answers; see :class:`TraceConfig`."""

    def __init__(self, model: Model, config: TraceConfig, device: str | torch.device = "cpu", **others: Any) -> None:
        super().__init__(model, config, device, **others)
        self.kinds = listed(config.sites, named("trace", "sites")) if config.sites != "usual" else list(model.mediators)
        self.severed = listed(config.sever, named("trace", "sever")) if config.sever != "usual" else list(model.mixers)
        for kind in [*self.kinds, *self.severed]:
            if not layer_sites(model, kind):
                raise MechintError(
                    f"causal tracing: {an(model.config.family)} model has no site {kind!r}"
                    f"{did_you_mean(kind, layer_kinds(model))}; it has {', '.join(layer_kinds(model))}"
                )
        self.directions = ("denoise", "noise") if config.direction == "both" else (config.direction,)
        self.whole = False
        """True if the answers of a prompt are the tokens of one answer; the task says so."""
        self.effects: dict[str, Tensor] = {}
        self.examples: list[dict[str, Any]] = []

    def check(self, train_loader: PromptLoader, val_loader: PromptLoader) -> None:
        """Refuses prompts that do not say what they are about, or lack what the corruption or the metric needs."""
        asked = val_loader.batches[0].last()
        if self.config.corruption == "twin":
            twins_of(asked)
        answer_metric(self.config.metric, asked)
        val_loader.task.roles(asked)

    def run_analysis(self, train_loader: PromptLoader, val_loader: PromptLoader) -> dict[str, Any]:
        """Traces the prompts of ``val_loader``; returns the results."""
        task = val_loader.task
        self.whole = task.whole
        names, _ = task.roles(val_loader.groups[0])
        mean = self.mean_embedding(train_loader) if self.config.corruption == "mean" else None
        found = [
            self.stages.get(f"batch {k}", functools.partial(self.trace_answered, batch, mean))
            for k, batch in enumerate(counted(val_loader, len(val_loader)))
        ]
        roles = [task.roles(batch)[1].cpu() for batch in val_loader]
        right = torch.cat([part["right"] for part in found]).numpy()
        templates = val_loader.templates()
        accuracy = ClusterBootstrap(templates, self.config.bootstrap, self.seed).share(right)
        if not right.any():
            raise NotAnswered(
                f"the model answers none of the {len(right)} prompts of {task.name!r} right, so there is nothing to "
                f"trace. {remedy(self.model, task)}"
            )
        plan = {d: panels(self.model, self.kinds, self.severed, self.config.window, d) for d in self.directions}
        metrics: dict[str, Number] = {
            "accuracy_full": accuracy,
            "prompts_used": exact(int(right.sum())),
            "prompts_failed": exact(int((~right).sum())),
        }
        trace, notes, kept = numbers(
            found, roles, names, plan, right, templates, self.config.bootstrap, self.seed, metrics
        )
        few = few_notes(templates[right], "traced")
        notes += few
        if metrics["prompts_failed"]["value"]:
            notes.append(
                f"{metrics['prompts_failed']['value']} of {len(right)} prompts were left out: the model does not "
                f"answer them, so there is nothing to trace"
            )
        self.effects = (
            {
                f"{direction}.{k}": part[direction].float()
                for k, part in enumerate(found)
                for direction in self.directions
            }
            | {f"right.{k}": part["right"] for k, part in enumerate(found)}
            | kept
        )
        self.examples = self.show(val_loader, found, roles, plan)
        self.results = {
            "report": "trace",
            "unit": "site at one token",
            "metric": self.config.metric,
            "ablation": self.config.corruption,
            "metrics": metrics,
            "trace": trace,
            "notes": [*notes, *left_out(self.model, self.kinds)],
            "few": few,
        }
        return self.results

    def save_results(self) -> list[Path]:
        """Writes ``effects.pt`` (every effect of every prompt) and ``examples.json`` into the run directory."""
        return [
            files.write_torch(self.directory / "effects.pt", self.effects),
            files.write_json(self.directory / "examples.json", self.examples),
        ]

    # ---- the work -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def mean_embedding(self, loader: PromptLoader) -> Tensor:
        """Mean embedding of the tokens that the discovery prompts are about, [model]."""
        rows = []
        for batch in loader:
            about = batch.about()
            if about is None:
                raise MechintError("the corruption 'mean' needs to know what the prompts are about")
            rows.append(self.model.embeddings[batch.tokens[about]].double())
        return torch.cat(rows).mean(0)

    def corruption(self, mean: Tensor | None) -> Corruption:
        c = self.config
        return Corruption(c.corruption, c.noise_scale, c.draws, self.seed, mean)

    def trace_answered(self, batch: Prompts, mean: Tensor | None) -> dict[str, Tensor]:
        """:meth:`trace` of the prompts that the model answers; NaN for the others, which cost no sweep."""
        asked = batch.last()
        with torch.no_grad():
            logits = run(self.model, asked.tokens, logits_at=asked.positions).logits
        right = asked.correct(logits) == 1
        rows, size = right.nonzero().flatten(), len(batch)
        found = {name: torch.full((size,), torch.nan, dtype=torch.float64) for name in ("clean", "corrupted")}
        for direction in self.directions:
            count = len(panels(self.model, self.kinds, self.severed, self.config.window, direction))
            shape = (count, self.model.config.n_layer, batch.tokens.shape[1], size)
            for name in (direction, f"{direction} estimates"):
                found[name] = torch.full(shape, torch.nan, dtype=torch.float64)
        if len(rows):
            part = self.trace(batch[rows], mean)
            for name, values in found.items():
                values[..., rows.cpu()] = part[name]
        return {**found, "right": right.cpu()}

    def trace(self, batch: Prompts, mean: Tensor | None) -> dict[str, Tensor]:
        """Effects of one batch: for each direction [panel, layer, position, prompt]; the ends; the estimates."""
        parts = [self.trace_rows(batch[rows], mean) for rows in self.pieces(batch)]
        return {name: torch.cat([part[name] for part in parts], -1) for name in parts[0]}

    def pieces(self, batch: Prompts) -> list[Tensor]:
        """Rows of a batch that go together: the values of one kind of site are held for all of them."""
        draws = self.config.draws if self.config.corruption == "noise" else 1
        sizes = [
            sum(int(np.prod(self.model.sites[site].units)) for site in layer_sites(self.model, kind))
            for kind in [*self.kinds, *self.severed]
        ]
        room = self.config.memory_mib * 2**20 // 4
        most = max(1, room // (max(sizes) * batch.tokens.shape[1] * draws))
        every = torch.arange(len(batch), device=batch.tokens.device)
        return list(every.tensor_split(-(-len(batch) // most)))

    def trace_rows(self, prompts: Prompts, mean: Tensor | None) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        length = prompts.tokens.shape[1]
        for direction in self.directions:
            pair = Interchange(self.model, prompts, self.corruption(mean), direction, self.config.metric, self.whole)
            found |= {"clean": pair.clean, "corrupted": pair.corrupted_value, "right": pair.right}
            maps, estimates = [], []
            for panel in panels(self.model, self.kinds, self.severed, self.config.window, direction):
                cells = panel.cells(pair, length)
                # an empty cell is the receiver itself, so that cells without an effect are exactly zero
                values = pair.sweep([*cells, []], memory_mib=self.config.memory_mib, title=f"{direction} {panel.name}")
                effect = (values[:-1] - values[-1]).view(-1, length, len(prompts))
                effect[[not sites for sites in panel.sites]] = torch.nan
                maps.append(effect)
                estimates.append(self.estimate(pair, panel, maps[-1]))
            found[direction] = torch.stack(maps)
            if direction == "noise":
                found[direction] = -found[direction]  # what is lost
            found[f"{direction} estimates"] = torch.stack(estimates) * (-1 if direction == "noise" else 1)
        return found

    def estimate(self, pair: Interchange, panel: Panel, like: Tensor) -> Tensor:
        """Attribution patching's estimate of a panel, [layer, position, prompt]; NaN where there is none."""
        if not self.config.attribution or panel.sever:
            return torch.full_like(like, float("nan"))
        alone = pair.estimates(layer_sites(self.model, panel.kind), points=5, memory_mib=self.config.memory_mib)
        none = torch.full_like(like[0], torch.nan)
        return torch.stack(
            [sum((alone[site] for site in sites), torch.zeros(())) if sites else none for sites in panel.sites]
        )

    def show(
        self, loader: PromptLoader, found: list[dict[str, Tensor]], roles: list[Tensor], plan: dict[str, list[Panel]]
    ) -> list[dict[str, Any]]:
        """The first answered prompts, with their tokens and their own maps."""
        shown: list[dict[str, Any]] = []
        for batch, part, role in zip(loader, found, roles, strict=True):
            asked = batch.last()
            for row in part["right"].nonzero().flatten().tolist():
                if len(shown) == self.config.examples:
                    return shown
                last = int(batch.positions[row, -1])
                decode = loader.task.decode
                maps = {
                    direction: {
                        panel.name: table(values[:, : last + 1, row].numpy())
                        for panel, values in zip(plan[direction], part[direction].float(), strict=True)
                    }
                    for direction in self.directions
                }
                shown.append(
                    {
                        "tokens": [decode(int(token)) for token in batch.tokens[row, : last + 1]],
                        "roles": role[row, : last + 1].tolist(),
                        "answer": "".join(map(decode, asked.answers[row].tolist())),
                        "clean": float(part["clean"][row]),
                        "corrupted": float(part["corrupted"][row]),
                        "maps": maps,
                    }
                )
        return shown


def work(config: TraceConfig) -> str:
    prompts = "1 prompt" if config.task == "prompt" else f"{config.eval_prompts} prompts"
    return f"one sweep of layers x tokens cells for each kind of site on {prompts}"


def summary(results: dict[str, Any]) -> list[str]:
    """Lines for the terminal: the main numbers."""
    metrics, lines = results["metrics"], []
    used, failed = metrics["prompts_used"]["value"], metrics["prompts_failed"]["value"]
    total = metrics["total_effect"]
    lines.append(f"  traced          {used} prompts ({failed} left out: not answered)")
    lines.append(f"  total effect    {said(total)} {results['metric']}")
    lines.append(f"  intervals       {results['trace']['interval']}{UNADJUSTED}")
    for best in results["trace"]["strongest"]:
        where = f"{best['direction']} {best['panel']}"
        lines.append(f"  {where:<30} {said(best, '.2f')} at layer {best['layer']}, {best['role']}; {said_p(best['p'])}")
    return lines


ANALYSIS = Analysis(
    name="trace",
    title="Causal tracing",
    config=TraceConfig,
    analyzer=CausalTracer,
    refuse=refuse,
    work=work,
    summary=summary,
    lone=True,
    learns=False,
    report=Later("analyses.tracing.report:write_trace"),
    headline=Later("analyses.tracing.report:headline"),
    compare=Later("analyses.tracing.compare:write_trace_comparison"),
    to_log=Later("analyses.tracing.report:to_log"),
    cell=Later("analyses.tracing.figures:cell"),
)
