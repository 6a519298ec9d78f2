"""Activation patching: which tokens read from which, layer by layer, and which units carry the answer.

1. Screen units by gradients on the discovery prompts, where there are more than are measured exactly.
2. Leave out the held-out prompts that the model answers wrong.
3. Flow: in one layer (or a window of layers), stop the tokens of one role from reading those of another, and measure
   what the metric loses (attention knock-out, Geva et al. 2023, section 4; of a Mamba the scan, the convolution, or
   both are cut, see :class:`mechint.Edit`).
4. Units, necessary: give one unit the values of the counterfactual twin, and measure what the metric loses. Units,
   sufficient: give the twin's run the clean values of one unit, and measure what comes back. Where means replace the
   twin's values, one unit has its mean in the clean run; or one unit has its own values in a run where all units of its
   kind, in all layers, have their means.
5. Estimate every unit's effect by gradients (Nanda 2023), and correlate the estimates with the exact effects.
6. On request, measure the direct paths between the units with the largest effects (:mod:`mechint.analyses.paths`).
7. Average over prompts. Intervals and adjusted p-values are over templates.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...interventions.model import Model, left_out
from ...tasks import Prompts
from ...utils import files, options
from ...utils.errors import MechintError, NotAnswered, an, did_you_mean
from ...utils.options import listed
from ...utils.progress import counted
from ...utils.statistics import UNADJUSTED, said, said_p
from ..base import Analysis, Later, StagedAnalyzer
from ..interchange import Corruption, Interchange
from ..loader import PromptLoader
from ..metrics import remedy
from ..paths import results as paths_results
from ..unit_groups import Parts, part_kinds, screened
from .between import Between, check_kinds
from .flow import Pair, path_kinds, paths, role_pairs
from .options import PatchConfig, refuse
from .results import Finished, leading, numbers
from .role_means import RoleValues

DIRECTIONS = {"necessary": "noise", "sufficient": "denoise"}
POINTS = {"twin": 5, "mean": 1}
"""Midpoints of an estimate's integral; attribution patching proper takes one end, as means have no embeddings."""
SAID = {"twin": "the twin's values", "mean": "the mean over the discovery prompts' tokens of the same role"}
ROUNDING = 64
"""Differences within so many roundings of the metric count as 0: other batches add numbers in another order."""


def have_twins(*loaders: PromptLoader) -> bool:
    """True if every prompt has a counterfactual twin."""
    return all(batch.twins is not None for loader in loaders for batch in loader)


class Patcher(StagedAnalyzer[PatchConfig]):
    """Patches the prompts of a task that the model answers; see :class:`PatchConfig`."""

    def __init__(self, model: Model, config: PatchConfig, device: str | torch.device = "cpu", **others: Any) -> None:
        options.check(config, "patching")
        super().__init__(model, config, device, **others)
        kinds = self.kinds(config.flow, model.paths, path_kinds(model), "cut of the flow at")
        self.paths = paths(model, kinds, config.window)
        kinds = self.kinds(config.units, model.patched, part_kinds(model), "site whose units can be patched named")
        self.parts = [Parts.of(model, kind) for kind in kinds]
        if config.paths:
            check_kinds(model, kinds)
        if not self.paths and not self.parts:
            raise MechintError("patching: neither a flow nor units are asked for; leave one of them at 'usual'")
        self.whole = False
        """True if the answers of a prompt are the tokens of one answer; the task says so."""
        self.effects: dict[str, Tensor] = {}
        self.usual: RoleValues | None = None
        """The means that units are given, where it is not the twin's values."""

    def kinds(self, said: str, usual: Any, known: list[str], what: str) -> list[str]:
        kinds = list(usual) if said == "usual" else list(dict.fromkeys(listed(said, "patching: kinds of site")))
        for kind in kinds:
            if kind not in known:
                raise MechintError(
                    f"patching: {an(self.model.config.family)} model has no {what} {kind!r}{did_you_mean(kind, known)}"
                    f"; it has {', '.join(known)}"
                )
        return kinds

    def check(self, train_loader: PromptLoader, val_loader: PromptLoader) -> None:
        """Refuses to patch units with the values of twins where prompts have none."""
        task = val_loader.task
        if self.parts and self.config.values == "twin" and not have_twins(train_loader, val_loader):
            raise MechintError(
                f"patching: the prompts of {task.name!r} have no counterfactual twins to take units' values from; give "
                f"them twins, take means (values mean), or leave the kinds of units empty"
            )

    def run_analysis(self, train_loader: PromptLoader, val_loader: PromptLoader) -> dict[str, Any]:
        """Patches the prompts of ``val_loader``; returns the results."""
        task = val_loader.task
        self.whole = task.whole
        self.check(train_loader, val_loader)
        twins = self.config.values == "twin" and have_twins(train_loader, val_loader)
        if self.parts and self.config.values == "mean":
            self.usual = RoleValues(self.model, [site for parts in self.parts for site in parts.sites], train_loader)
        named = [task.roles(batch) for batch in val_loader]
        roles = [role.cpu() for _, role in named]
        pairs = role_pairs(roles, len(named[0][0])) if self.paths else []
        self.screen(train_loader)
        found = [
            self.stages.get(f"batch {k}", functools.partial(self.patch, batch, role, pairs))
            for k, (batch, role) in enumerate(counted(zip(val_loader, roles, strict=True), len(roles)))
        ]
        done = Finished(
            found=found,
            names=tuple(named[0][0]),
            pairs=pairs,
            paths=self.paths,
            present=[[path.present(role, pairs) for path in self.paths] for role in roles],
            parts=self.parts,
            templates=val_loader.templates(),
            twins=twins,
            means=self.usual is not None,
            draws=self.config.bootstrap,
            seed=self.seed,
        )
        if not done.right.any():
            raise NotAnswered(
                f"the model answers none of the {len(done.right)} prompts of {task.name!r} right, so there is nothing "
                f"to patch. {remedy(self.model, task)}"
            )
        sections, metrics, notes = numbers(done)
        if self.config.paths:
            between = Between.of(self.model, leading(sections["units"], self.config.paths))
            every = [
                self.stages.get(f"paths {k}", functools.partial(self.between, between, batch))
                for k, batch in enumerate(val_loader)
            ]
            sections["direct_paths"], more = between.sections(self.model, every, done)
            notes += more
        self.effects = {f"{name}.{k}": value for k, part in enumerate(found) for name, value in part.items()} | {
            f"units.{parts.kind}": torch.tensor(parts.chosen) for parts in self.parts
        }
        self.effects["templates"] = torch.from_numpy(np.ascontiguousarray(val_loader.templates()))
        self.results = {
            "report": "patch",
            "unit": "flow between token roles, and single units",
            "metric": self.config.metric,
            "ablation": f"cut, and {SAID[self.config.values]}",
            "metrics": metrics,
            **sections,
            "notes": [
                *notes,
                *left_out(self.model, [*(path.kind for path in self.paths), *(parts.kind for parts in self.parts)]),
            ],
        }
        return self.results

    def save_results(self) -> list[Path]:
        """Writes ``effects.pt`` (every effect of every prompt, and the prompts' templates) into the run directory."""
        return [files.write_torch(self.directory / "effects.pt", self.effects)]

    # ---- the work -----------------------------------------------------------------------------------------------

    def screen(self, loader: PromptLoader) -> None:
        """Chooses the units to measure, by estimates on the discovery prompts."""
        for k, parts in enumerate(self.parts):
            most = self.config.max_units
            if parts.total <= most:
                continue
            scores = self.stages.get(f"screen {parts.kind}", functools.partial(self.scores, parts, loader))
            self.parts[k] = dataclasses.replace(parts, chosen=screened(parts, scores, most))

    def scores(self, parts: Parts, loader: PromptLoader) -> Tensor:
        """The larger of a unit's two estimated effects, over the answered prompts, [unit]."""
        sums, answered = torch.zeros(2, parts.total, dtype=torch.float64), 0
        for batch in loader:
            roles = loader.task.roles(batch)[1]
            for rows in self.pieces(batch):
                for k, direction in enumerate(DIRECTIONS.values()):
                    pair = self.pair(batch[rows], direction, parts, roles[rows])
                    sums[k] += parts.estimates(pair, POINTS[self.config.values])[:, pair.right].sum(1)
                answered += int(pair.right.sum())
        return (sums / max(answered, 1)).abs().amax(0)

    def pair(
        self, prompts: Prompts, direction: str, parts: Parts | None = None, roles: Tensor | None = None
    ) -> Interchange:
        """The two runs of the flow, or of one kind of unit: means are of its own kind alone."""
        corruption = Corruption("none" if prompts.twins is None or self.config.values == "mean" else "twin")
        if self.usual is not None and parts is not None and roles is not None:
            corruption = Corruption("values", values=self.usual.of(roles, parts.sites))
        return Interchange(self.model, prompts, corruption, direction, self.config.metric, self.whole)

    def between(self, between: Between, batch: Prompts) -> dict[str, Tensor]:
        """Effects of one batch's direct paths."""
        return between.measure(self.model, batch, self.config.metric, self.config.memory_mib, self.whole)

    def pieces(self, batch: Prompts) -> list[Tensor]:
        """Rows of a batch that go together: the values of one kind of unit in all layers are held for all of them."""
        sizes = [sum(int(np.prod(self.model.sites[site].units)) for site in parts.sites) for parts in self.parts]
        room = self.config.memory_mib * 2**20 // 4
        # values, their differences and gradients of both runs
        most = max(1, room // (8 * max(sizes, default=1) * batch.tokens.shape[1]))
        every = torch.arange(len(batch), device=batch.tokens.device)
        return list(every.tensor_split(-(-len(batch) // most)))

    def patch(self, batch: Prompts, roles: Tensor, pairs: list[Pair]) -> dict[str, Tensor]:
        """Effects of one batch: ``flow`` [path, layer, pair, prompt]; for each kind of unit and direction the exact
        ones of the chosen units and the estimates of the same, [unit, prompt]; the ends."""
        parts = [self.patch_rows(batch[rows], roles[rows.cpu()], pairs) for rows in self.pieces(batch)]
        return {name: torch.cat([part[name] for part in parts], -1) for name in parts[0]}

    def patch_rows(self, prompts: Prompts, roles: Tensor, pairs: list[Pair]) -> dict[str, Tensor]:
        pair = self.pair(prompts, "noise")
        found = {"clean": pair.clean, "corrupted": pair.corrupted_value, "right": pair.right}
        if self.paths:
            maps = []
            for path in self.paths:
                cells = path.cells(roles, pairs, self.config.decay)
                effect = self.sweep(pair, cells, f"flow at {path.kind}")
                there = path.present(roles, pairs)  # [pair, prompt]
                lost = -effect.view(len(path.sites), len(pairs), -1)
                lost[[not sites for sites in path.sites]] = torch.nan
                maps.append(lost.where(there, lost.new_tensor(float("nan"))))
            found["flow"] = torch.stack(maps)
        for name, direction in DIRECTIONS.items() if self.parts else ():
            pair = pair if direction == "noise" else self.pair(prompts, direction)
            sign = -1.0 if direction == "noise" else 1.0
            for parts in self.parts:
                if self.usual is not None:
                    pair = self.pair(prompts, direction, parts, roles)
                    found[f"all {parts.kind}"] = pair.clean - pair.corrupted_value
                effect = self.sweep(pair, parts.cells(pair), f"{name} {parts.kind}")
                found[f"{name} {parts.kind}"] = sign * effect
                estimates = sign * parts.estimates(pair, POINTS[self.config.values])
                found[f"{name} {parts.kind} estimates"] = estimates[list(parts.chosen)]
        return found

    def sweep(self, pair: Interchange, cells: list[Any], title: str) -> Tensor:
        """The change of the receiver's metric in each cell, [cell, prompt]; exactly 0 within the rounding of it."""
        values = pair.sweep([*cells, []], memory_mib=self.config.memory_mib, title=title)
        change, base = values[:-1] - values[-1], values[-1].abs().clamp(min=1.0)
        double = next(self.model.parameters()).dtype == torch.float64
        eps = torch.finfo(torch.float64 if double else torch.float32).eps
        return change.where(change.abs() > ROUNDING * eps * base, torch.zeros(()).to(change)) + 0.0


def work(config: PatchConfig) -> str:
    also = f", and one of direct paths between {config.paths} units of each kind" if config.paths else ""
    return (
        f"one sweep of layers x pairs of roles for each cut, and two of at most {config.max_units} units of each kind, "
        f"on {config.eval_prompts} prompts{also}"
    )


def summary(results: dict[str, Any]) -> list[str]:
    """Lines for the terminal: the main numbers."""
    metrics = results["metrics"]
    used, failed = metrics["prompts_used"]["value"], metrics["prompts_failed"]["value"]
    lines = [f"  patched         {used} prompts ({failed} left out: not answered)"]
    lines.append(f"  intervals       {metrics['clean']['interval']}{UNADJUSTED}")
    firsts = lambda found, *names: {tuple(entry[name] for name in names): entry for entry in reversed(found)}.values()
    for best in reversed(firsts(results["strongest"]["flow"], "path")):
        lines.append(
            f"  cut at {best['path']:<9}{said(best, '.2f')} at layer {best['layer']}: "
            f"{best['reader']} ← {best['source']}; {said_p(best['p'])}"
        )
    for best in reversed(firsts(results["strongest"]["units"], "kind", "direction")):
        lines.append(
            f"  {best['direction']:<16}{said(best, '.2f')} {best['kind']} {best['unit']} of layer {best['layer']}; "
            f"{said_p(best['p'])}"
        )
    if "direct_paths" in results:
        lines += paths_results.lines(results["direct_paths"], 1)
    return lines


ANALYSIS = Analysis(
    name="patch",
    title="Activation patching",
    config=PatchConfig,
    analyzer=Patcher,
    refuse=refuse,
    work=work,
    summary=summary,
    lone=True,
    report=Later("analyses.patching.report:write_patching"),
    headline=Later("analyses.patching.report:headline"),
    compare=Later("analyses.patching.compare:write_patch_comparison"),
    to_log=Later("analyses.patching.report:to_log"),
    cell=Later("analyses.patching.figures:cell"),
)
