"""Edits facts in the weights by ROME or MEMIT, and asks whether causal tracing says where that succeeds.

1. Take the held-out prompts that the model answers, one of each fact, and of all other prompts their paraphrases, their
   neighbourhood, and other facts of their subjects (:mod:`.requests`).
2. Take the second moment of what each map reads, on a text or on the discovery prompts (:mod:`.moments`).
3. For each map of each layer find the values that give the facts new answers (:mod:`.values`), change the weight by the
   closed form (:mod:`.update`), judge the edit (:mod:`.judge`), and put the weight back, to the bit; the same with the
   controls (:mod:`.edits`).
4. Trace the same facts causally at the subject's last token, and correlate (:mod:`.localisation`).
5. Average over facts. Intervals are over facts, p-values are adjusted for all maps and layers.

After Meng et al. 2022 ("Locating and Editing Factual Associations in GPT"), Meng et al. 2023 ("Mass-Editing Memory in
a Transformer") and Hase et al. 2023 ("Does Localization Inform Editing?").
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...interventions.model import Model
from ...tasks import Task, make_task
from ...utils import files
from ...utils.errors import MechintError, NotAnswered, shown
from ...utils.options import named
from ...utils.progress import Progress
from ...utils.statistics import UNADJUSTED, ClusterBootstrap, said, said_p
from ..base import Analysis, ControlledAnalyzer, Later
from ..effect_tables import few_notes
from ..interchange import Corruption
from ..loader import PromptLoader
from ..metrics import remedy
from ..options import layer_list
from . import edits, localisation
from .maps import USUAL, WRITING, WeightMap, changed, chosen_maps
from .moments import Moments, check_enough, text_batches
from .options import PROMPTS, EditConfig, refuse
from .requests import Asked, Request, distinct, pool_of, requests_of, used, with_prefixes
from .results import best_cell, cells, column, correlations, metrics_of, traced
from .saving import DIRECTORY, save_model


class EditAnalyzer(ControlledAnalyzer[EditConfig]):
    """Edits the facts of a task at every chosen map; see the top of this file."""

    name = "edit"

    def __init__(self, model: Model, config: EditConfig, device: str | torch.device = "cpu", **others: Any) -> None:
        super().__init__(model, config, device, **others)
        layers = layer_list(config.layers, model.num_layers, named("edit", "layers"))
        ordinary = WRITING if config.method == "memit" else USUAL
        self.maps = chosen_maps(self.model, config.maps, layers, named("edit", "maps"), ordinary)
        if config.method == "memit":
            inside = [one for maps in self.maps.values() for one in maps if not one.added]
            if inside:
                raise MechintError(
                    f"{named('edit', 'method')} is memit, which shares an edit out among what layers add to the "
                    f"residual stream, and what {inside[0]} gives is not added as it is; take rome, or leave the "
                    f"map out"
                )
        everywhere = range(model.num_layers)
        self.alike = {
            name: chosen_maps(self.model, name, everywhere, named("edit", "maps"))[name] for name in self.maps
        }
        """The same maps of all layers, for MEMIT's windows and for the control in another layer."""
        self.saved: list[tuple[WeightMap, Tensor]] = []

    @property
    def every(self) -> list[WeightMap]:
        return [one for maps in self.maps.values() for one in maps]

    def check(self, train_loader: PromptLoader, val_loader: PromptLoader) -> None:
        if self.config.text == PROMPTS:
            self.texts(train_loader)
        batch = val_loader.batches[0]
        if self.config.tracing and self.config.corruption == "twin" and batch.twins is None:
            raise MechintError(
                f"edit: the prompts of {val_loader.task.name!r} have no counterfactual twins to trace with; set "
                f"{named('edit', 'corruption')} to noise, or switch {named('edit', 'tracing')} off"
            )
        longest = max(batch.tokens.shape[1] for batch in val_loader)
        if self.config.generate:
            self.model.check_length(longest + self.config.generate - 1)
        if self.config.prefixes:
            self.model.check_length(longest + self.config.prefix_length)

    def texts(self, train_loader: PromptLoader) -> list[Tensor]:
        """Batches of tokens for second moments.

        Raises:
            MechintError: they are too few for the widest map.
        """
        c = self.config
        if c.text == PROMPTS:
            found = [batch.tokens for batch in train_loader]
            more = f"raise {named('edit', 'prompts')}, or name a longer text in {named('edit', 'text')}"
        else:
            found = text_batches(self.model, c.text, c.text_tokens)
            more = f"raise {named('edit', 'text_tokens')}, or name a longer text in {named('edit', 'text')}"
        check_enough(self.every, found, more)
        return found

    def run_analysis(self, train_loader: PromptLoader, val_loader: PromptLoader) -> dict[str, Any]:
        """Edits facts of ``val_loader``; the prompts of both are what edits are judged on; returns the results."""
        c, task = self.config, val_loader.task
        self.check(train_loader, val_loader)
        held_out = pool_of(self.model, val_loader, task)
        pool = distinct([*held_out, *pool_of(self.model, train_loader, task)])
        if not any(one.answered for one in held_out):
            raise NotAnswered(
                f"the model answers none of the {len(held_out)} prompts of {task.name!r} right, so there is nothing to "
                f"edit. {remedy(self.model, task)}"
            )
        requests = self.requests(held_out, pool, task)
        moments = Moments(self.model, self.texts(train_loader), c.ridge, c.cache)
        before = edits.before_of(self.model, requests, c.generate, self.seed)
        found: dict[WeightMap, dict[str, Tensor]] = {}
        with Progress("edits", len(self.every)) as progress:
            for one in self.every:
                found[one] = self.stages.get(str(one), functools.partial(self.edit, one, requests, before, moments))
                progress.step(str(one))
        bootstrap = ClusterBootstrap(used(requests).numpy(), c.bootstrap, self.seed, "facts")
        every = ClusterBootstrap([one.fact for one in held_out], c.bootstrap, self.seed, "facts")
        right = np.array([float(one.answered) for one in held_out])
        entries = cells(bootstrap, found)
        effects = self.traces(requests, val_loader) if c.tracing else {}
        kinds = {kind: value.numpy() for kind, value in effects.items() if kind not in ("clean", "corrupted")}
        rows, within = correlations(bootstrap, found, kinds) if kinds else ([], [])
        self.tensors = {
            **{f"{one}.{name}": value for one, part in found.items() for name, value in part.items()},
            **{f"trace.{name}": value for name, value in effects.items()},
        }
        few = few_notes(used(requests).numpy(), "edited")
        self.results = {
            "metric": "P(new answer) against P(old answer)",
            "ablation": f"{c.method.upper()} edits of weights",
            "method": c.method,
            "metrics": metrics_of(bootstrap, every, right, entries),
            "edits": entries,
            "traced": traced(bootstrap, kinds),
            "correlations": rows,
            "within_layers": within,
            "facts": [self.shown(request, task.decode) for request in requests[:8]],
            "interval": bootstrap.kind,
            "notes": [*self.notes(requests, held_out), *few],
            "few": few,
        }
        if c.save:
            best = best_cell(entries)
            one = next(one for one in self.every if (one.name, one.layer) == (best["name"], best["layer"]))
            order = column(found[one]["edit"].numpy(), "rewrite").argmax()
            chosen = [requests[int(order)]] if c.method == "rome" else requests
            self.saved = self.updates(one, chosen, moments)
            self.results["saved"] = [self.shown(request, task.decode) for request in chosen]
        return self.results

    def save_results(self) -> list[Path]:
        """Writes ``effects.pt`` and the edited checkpoint that is asked for into the run directory."""
        written = super().save_results()
        files.remove(self.directory / DIRECTORY)  # of an earlier request
        if self.saved:
            with changed(self.saved):
                written += save_model(self.model, self.directory / DIRECTORY)
        return written

    # ---- the work -----------------------------------------------------------------------------------------------

    def requests(self, held_out: Sequence[Asked], pool: Sequence[Asked], task: Task) -> list[Request]:
        c = self.config
        target = self.target(held_out[0], task) if c.target else None
        found = requests_of(held_out, pool, c.eval_prompts, c.neighbours, self.seed, target)
        return with_prefixes(self.model, found, c.prefixes, c.prefix_length, self.seed, len(task.front))

    def target(self, one: Asked, task: Task) -> int:
        """The token of the option ``target`` behind the prompt.

        Raises:
            MechintError: the model says it already.
        """
        assert task.config is not None  # tasks without a configuration are refused a target
        named_so = make_task(dataclasses.replace(task.config, answer=self.config.target), task.tokenizer)
        token = int(named_so.groups(1, "evaluation", 0)[0].answers[0, -1])
        if token == one.answer:
            raise MechintError(
                f"edit: the model already says {shown(self.config.target)} behind this prompt, so there is nothing to "
                f"write; name another {named('edit', 'target')}"
            )
        return token

    def edit(
        self, one: WeightMap, requests: Sequence[Request], before: edits.Before, moments: Moments
    ) -> dict[str, Tensor]:
        """Every fact's edit at one map."""
        c = self.config
        shared = {"generated": c.generate, "batch": c.batch, "seed": self.seed}
        others = self.alike[one.name]
        if c.method == "rome":
            return edits.rome(self.model, one, others, requests, before, moments, c, **shared)
        return edits.memit(
            self.model, one, others, requests, before, moments, c, layers=c.window, weight=c.weight, **shared
        )

    def traces(self, requests: Sequence[Request], loader: PromptLoader) -> dict[str, Tensor]:
        c = self.config
        kinds = list(dict.fromkeys([*(one.site.rpartition(".")[2] for one in self.every), localisation.STREAM]))
        corruption = Corruption(c.corruption, draws=10, seed=self.seed)
        trace = lambda: localisation.effects(
            self.model, requests, loader.batches, kinds, corruption, c.metric, c.trace_window, c.memory_mib
        )
        found: dict[str, Tensor] = self.stages.get("trace", trace)
        return found

    def updates(self, one: WeightMap, requests: Sequence[Request], moments: Moments) -> list[tuple[WeightMap, Tensor]]:
        """The updates of the checkpoint that is saved: of one fact by ROME, of all by MEMIT."""
        c = self.config
        if c.method == "rome":
            return [(one, edits.rome_of(self.model, one, requests[0], moments, c)[0])]
        return edits.memit_of(
            self.model, one, self.alike[one.name], requests, moments, c, layers=c.window, weight=c.weight,
            batch=c.batch,
        )[0]  # fmt: skip

    def shown(self, request: Request, decode: Any) -> dict[str, str]:
        """A fact in words."""
        text = " ".join(decode(token).strip() for token in request.tokens)
        return {"prompt": text, "old": decode(request.old), "new": decode(request.new)}

    def notes(self, requests: Sequence[Request], held_out: Sequence[Asked]) -> list[str]:
        found = []
        failed = sum(not one.answered for one in held_out)
        if failed:
            found.append(f"{failed} of {len(held_out)} prompts were left out: the model does not answer them")
        without = {
            kind: sum(not getattr(request, kind) for request in requests) for kind in ("paraphrases", "neighbours")
        }
        for kind, count in without.items():
            if count:
                found.append(
                    f"{count} of {len(requests)} facts have no {kind} among the prompts and do not count there"
                )
        return found


def work(config: EditConfig) -> str:
    return (
        f"{config.steps} steps of gradient descent on {config.eval_prompts} facts for each map and layer, and one "
        f"forward of {2 * config.neighbours} prompts for each edit and control"
    )


def summary(results: dict[str, Any]) -> list[str]:
    """Lines for the terminal: the best map and layer, and the correlations with tracing."""
    best = best_cell(results["edits"])
    where = f"{best['name']} of layer {best['layer']}"
    lines = [f"  best            {where}, of {len(results['edits'])} maps and layers"]
    for name in ("efficacy", "paraphrase", "neighbourhood", "score"):
        if name in best:
            lines.append(f"  {name:<15} {said(best[name], '.2f')}")
    for entry in results["correlations"]:
        if entry["measure"] == "rewrite" and entry["over"] == "facts":
            lines.append(
                f"  {entry['name']} and tracing of {entry['site']}: correlation over facts "
                f"{said(entry['correlation'], '.2f')}; {said_p(entry['correlation']['p'])}"
            )
    return [*lines, f"  intervals       {results['interval']}{UNADJUSTED}"]


ANALYSIS = Analysis(
    name="edit",
    title="Editing of facts",
    config=EditConfig,
    analyzer=EditAnalyzer,
    refuse=refuse,
    work=work,
    summary=summary,
    lone=True,
    report=Later("analyses.editing.report:write_edit"),
    headline=Later("analyses.editing.report:headline"),
    compare=Later("analyses.editing.compare:write_edit_comparison"),
)
