"""Single units: which the metric needs, which respond to Δ, which attention points to, and which others they affect.

1. Rank units on discovery prompts: estimated effects of ablation, gradients of Δ, and scores of attention methods.
2. On held-out prompts, ablate each unit alone and keep each unit alone (:mod:`.analyses.unit_effects`); where there are
   too many units, measure those that gradients rank first.
3. Give each channel of a Mamba its mean Δ, and measure the change of the metric (:mod:`.neurons.delta`).
4. Remove units in the order of each ranking, and compare the curves with those of random orders
   (:mod:`.deletion_curves`).
5. Ablate the highest ranked units of a layer, and measure the change of the units of later layers
   (:mod:`.cross_layer`).
6. Compare the rankings with each other, find circuits of the main site, and repeat the main quantities on models with
   shuffled weights.

All choices are made on discovery prompts, and all numbers are of held-out prompts.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import torch
from torch import Tensor

from ...attribution.attention import selective_scan_of
from ...attribution.relevance import no_rules
from ...interventions.model import Model, having, left_out
from ...interventions.units import Units
from ...tasks import Prompts, mix
from ...utils.errors import MechintError, shown
from ...utils.statistics import UNADJUSTED, said, said_p, sureness
from ..ablation import Ablation
from ..base import Analysis, ControlledAnalyzer, Later, values_of
from ..circuits.bench import Bench
from ..circuits.methods.attention import attention_units
from ..circuits.methods.delta import delta_units, mean_step
from ..loader import PromptLoader
from ..options import layer_list, unit_sites
from ..random_weights import control, told_apart
from ..unit_effects import Effects, Group, unit_kind
from ..unit_groups import Parts, screened
from .cross_layer import layer_effects, unit_effects
from .deletion_curves import curves
from .delta import channels_of, step_gradients, token_steps
from .moments import moments
from .options import NeuronConfig, methods, refuse
from .results import Found, numbers, quantities
from .tokens import token_terms


class NeuronAnalyzer(ControlledAnalyzer[NeuronConfig]):
    """Measures single units; see :class:`NeuronConfig`."""

    name = "neuron"

    def __init__(self, model: Model, config: NeuronConfig, *arguments: Any, **options: Any) -> None:
        super().__init__(model, config, *arguments, **options)
        self.layers = layer_list(config.layers, model.num_layers, self.name)
        self.main = model.ranked
        self.ranked = self.having(self.main)
        if not self.ranked:
            raise MechintError(
                f"neuron: none of the layers {shown(self.layers)} of this {model.config.family} model has units to rank"
                + (f"; those with the site {self.main} are {shown(having(model, self.main))}" if self.main else "")
            )
        self.kinds = self.kinds_of(unit_sites(model, config.sites, model.single, self.name))
        self.methods = methods(config)
        most = min(model.sites[f"layers.{layer}.{self.main}"].units[0] for layer in self.ranked)
        if config.top_k > most:
            raise MechintError(
                f"neuron: top_k is {config.top_k}, and a layer of this model has {most} units at {self.main}; choose "
                f"1 to {most}"
            )

    def having(self, kind: str) -> list[int]:
        """The layers looked at that have a kind of site."""
        return [layer for layer in self.layers if kind and f"layers.{layer}.{kind}" in self.model.sites]

    def kinds_of(self, kinds: list[str]) -> list[str]:
        """The kinds of site that some layer looked at has.

        Raises:
            MechintError: a kind is named, and none of these layers has it.
        """
        if self.config.sites.strip() != "usual" and (missing := [kind for kind in kinds if not self.having(kind)]):
            raise MechintError(
                f"neuron: none of the layers {shown(self.layers)} has the site {missing[0]}; those that have it are "
                f"{shown(having(self.model, missing[0]))}"
            )
        return [kind for kind in kinds if self.having(kind)]

    def check(self, train_loader: PromptLoader, val_loader: PromptLoader) -> None:
        """Refuses a metric that the prompts do not have."""
        task = val_loader.task
        if self.config.metric == "logit_diff" and not task.has_twins:
            raise MechintError(f"neuron: {task.name!r} has no twins, so no logit_diff; choose answer_logprob")

    def run_analysis(self, train_loader: PromptLoader, val_loader: PromptLoader) -> dict[str, Any]:
        """Ranks on ``train_loader``, measures on ``val_loader``; returns the results."""
        val_loader.check_intervals()
        config, task = self.config, val_loader.task
        self.check(train_loader, val_loader)
        self.effects = Effects(
            self.model, list(dict.fromkeys([*self.kinds, self.main])), self.layers, config.ablation,
            train_loader.batches, task.aligned, config.metric, config.memory_mib,
        )  # fmt: skip
        discovery = [self.stages.get(f"rank {k}", functools.partial(self.rank, b)) for k, b in enumerate(train_loader)]
        ranks = joined(discovery)
        parts = [self.choose(kind, ranks) for kind in self.kinds]
        deltas = mean_step(self.model, train_loader.batches, self.stepped) if self.stepped else {}
        orders = self.orders(ranks)
        top = self.top(ranks)
        self.steps = {site: channels_of(ranks[f"{site} gradient"], config.top_k) for site in deltas}
        self.length = min(batch.tokens.shape[1] for batch in val_loader)
        scale = self.deviations(train_loader.batches)
        found = [
            self.stages.get(f"batch {k}", functools.partial(self.measure, batch, parts, deltas, orders, top, scale))
            for k, batch in enumerate(val_loader)
        ]
        self.tensors = joined(found) | {f"ranking {name}": value for name, value in ranks.items()}
        done = Found(
            batches=found, parts=parts, layers=self.layers, ranked=self.ranked, deltas=list(deltas), orders=orders,
            top=top, main=self.main, family=self.model.config.family, templates=val_loader.templates(),
            draws=config.bootstrap, seed=self.seed, top_k=config.top_k, random=config.random,
            depth=self.model.num_layers, steps=self.steps,
        )  # fmt: skip
        self.results = {
            "report": "neuron",
            "unit": "single units",
            "metric": config.metric,
            "ablation": config.ablation,
            **numbers(done, self.circuits(train_loader, val_loader, ranks)),
        }
        self.results["notes"] += self.left_out()
        self.results["control"] = control(self, train_loader, val_loader, quantities)
        return self.results

    def left_out(self) -> list[str]:
        """Says which layers have none of the units, and what is not measured of this model."""
        notes = left_out(self.model, [*self.kinds, self.main], self.layers)
        if self.config.tokens and not self.shares_out:
            reason = no_rules(self.model) or "half precision rounds too much for shares that add up"
            notes.append(f"The answer's logit is not split into contributions of the tokens: {reason}")
        return notes

    # ---- discovery: what is to be measured ------------------------------------------------------------------------

    def rank(self, batch: Prompts) -> dict[str, Tensor]:
        """Estimates of every unit's effect by site, and scores of the attention methods, [unit, prompt]."""
        found = self.effects.estimates(batch, self.effects.fills(batch))
        if self.methods:
            scores = attention_units(self.model, batch, self.ranked, self.config.metric, self.main)
            found |= {name: score.T for name, score in scores.items()}
        if self.stepped:
            found |= step_gradients(self.model, batch, self.stepped, self.config.metric)
        return found

    def choose(self, kind: str, ranks: dict[str, Tensor]) -> Parts:
        """The units of a kind that are measured: all of the layers looked at, or those that gradients rank first."""
        parts = Parts.of(self.model, kind)
        scores = torch.full((parts.total,), -1.0, dtype=torch.float64)
        looked = [row for row, layer in enumerate(parts.layers) if layer in self.layers]
        for row in looked:
            scores[parts.starts[row] : parts.starts[row + 1]] = ranks[parts.sites[row]].mean(1).abs()
        count = min(self.config.max_units, sum(parts.sizes[row] for row in looked))
        return dataclasses.replace(parts, chosen=screened(parts, scores, count))

    def orders(self, ranks: dict[str, Tensor]) -> dict[str, Tensor]:
        """Units of each layer's main site from the highest score to the lowest, by ``{site} {method}``."""
        if not self.methods:
            return {}
        wanted = [*self.methods, "gradient_x_input", "single_ablation"]
        found = {}
        for layer in self.ranked:
            site = f"layers.{layer}.{self.main}"
            for method in wanted:
                scores = ranks[site].mean(1).abs() if method == "single_ablation" else ranks[f"{site} {method}"].mean(1)
                found[f"{site} {method}"] = torch.sort(scores, descending=True, stable=True).indices
            random = torch.Generator().manual_seed(mix(self.seed, "random rankings", layer))
            for k in range(self.config.random):
                found[f"{site} random {k}"] = torch.randperm(len(ranks[site]), generator=random)
        return found

    def top(self, ranks: dict[str, Tensor]) -> dict[int, list[int]]:
        """The units of each layer's main site with the largest estimated effect."""
        sizes = {layer: ranks[f"layers.{layer}.{self.main}"].mean(1).abs() for layer in self.ranked}
        return {layer: size.topk(self.config.top_k).indices.tolist() for layer, size in sizes.items()}

    def deviations(self, batches: list[Prompts]) -> dict[str, Tensor]:
        """Standard deviation over tokens and prompts of the main site's units, [unit] by site."""
        if not self.crosses:
            return {}
        sites = [f"layers.{layer}.{self.main}" for layer in self.ranked]
        every = [values_of(self.model, batch, sites) for batch in batches]
        return {s: torch.cat([v[s].double().flatten(0, 1) for v in every]).std(0, correction=0).cpu() for s in sites}

    @property
    def crosses(self) -> bool:
        return self.config.cross_layer and self.model.num_layers > 1

    @property
    def shares_out(self) -> bool:
        """True if the token decomposition is asked for, all layers have rules for it, and the precision is enough: half
        precision is not."""
        return self.config.tokens and no_rules(self.model) is None and next(self.model.parameters()).dtype.itemsize >= 4

    def control_config(self) -> NeuronConfig:
        """The options of the control, which skips the token decomposition."""
        return dataclasses.replace(super().control_config(), tokens=False)

    @functools.cached_property
    def stepped(self) -> list[int]:
        """The layers looked at whose channels have a step size Δ of their own, where these are asked for."""
        return [layer for layer in self.layers if self.config.delta and selective_scan_of(self.model, layer)]

    # ---- evaluation -----------------------------------------------------------------------------------------------

    def measure(
        self, batch: Prompts, parts: list[Parts], deltas: dict[str, Tensor], orders: dict[str, Tensor],
        top: dict[int, list[int]], scale: dict[str, Tensor],
    ) -> dict[str, Tensor]:  # fmt: skip
        """Measures one batch; the last axis of every tensor is the prompt."""
        fills = self.effects.fills(batch)
        found = {"clean": self.effects.clean(batch), "right": torch.ones(len(batch), dtype=torch.bool)}
        guess = self.effects.estimates(batch, fills)
        for each in parts:
            columns: dict[str, list[Tensor]] = {}
            for row in range(len(each.sites)):
                units = each.chosen_of(row)
                if not units:
                    continue
                group = Group(each.sites[row], each.sizes[row])
                fill = fills[group.site]
                for name, value in (
                    ("necessary", self.effects.necessary(batch, group, fill, units)),
                    ("sufficient", self.effects.sufficient(batch, group, fill, units)),
                    ("necessary estimates", guess[group.site][units]),
                    ("sufficient estimates", self.effects.kept_estimates(batch, group, fill)[units]),
                ):
                    columns.setdefault(name, []).append(value)
            for name, values in columns.items():
                direction, _, more = name.partition(" ")
                found[f"{direction} {each.kind}{more and ' ' + more}"] = torch.cat(values)
        if deltas:
            delta = delta_units(self.model, batch, deltas, self.config.metric, self.config.memory_mib)
            found |= {
                name: value if name.endswith(("gradient", "do_mean")) else value.T for name, value in delta.items()
            }
            found |= token_steps(
                self.model, batch, deltas, self.steps, self.length, self.config.metric, self.config.memory_mib
            )
        if self.shares_out:
            found |= token_terms(self.model, batch, self.layers, self.length, self.config.memory_mib)
        if orders:
            found |= curves(self.effects, batch, self.groups(), orders, fills)
            named = {name: order[: self.config.top_k] for name, order in orders.items() if " random " not in name}
            found |= moments(self.model, batch, named)
        if self.crosses:
            found |= self.across(batch, top, scale, fills)
        return found

    def groups(self) -> list[Group]:
        return [group for group in self.effects.groups if group.kind == self.main]

    def across(
        self, batch: Prompts, top: dict[int, list[int]], scale: dict[str, Tensor], fills: dict[str, Any]
    ) -> dict[str, Tensor]:
        """Effects between layers, the last axis is the prompt."""
        layers = layer_effects(self.model, batch)
        units = unit_effects(self.model, batch, self.main, top, fills, scale) if len(top) > 1 else {}
        return {"layers": layers.movedim(0, -1)} | {f"across {name}": v.movedim(0, -1) for name, v in units.items()}

    def circuits(self, discovery: PromptLoader, evaluation: PromptLoader, ranks: dict[str, Tensor]) -> dict[str, Any]:
        """The metrics per prompt of the top-k units of each layer as a circuit, of all but them, and of random ones."""
        units = Units(self.model, unit_kind(self.main))
        ablation = Ablation(self.model, units, self.config.ablation, discovery.batches, discovery.task.aligned)
        bench = Bench(self.model, units, ablation, evaluation.batches)
        inside = torch.zeros(units.total)
        kept = torch.zeros(units.total)
        random = torch.Generator().manual_seed(mix(self.seed, "random circuits"))
        others = [torch.zeros(units.total) for _ in range(self.config.random)]
        starts = dict(zip(units.numbers, itertools.accumulate(units.sizes, initial=0), strict=False))
        for layer, chosen in self.top(ranks).items():
            start, size = starts[layer], units.sizes[units.numbers.index(layer)]
            inside[start : start + size] = 1
            kept[[start + unit for unit in chosen]] = 1
            for other in others:
                other[start + torch.randperm(size, generator=random)[: len(chosen)]] = 1
        outside = 1 - inside  # layers that are not looked at stay whole

        def of(mask: Tensor) -> Any:
            return bench.measure((mask + outside).to(self.model.device))[self.config.metric].numpy()

        return self.stages.get(
            "circuits",
            lambda: {
                "full": bench.measure(None)[self.config.metric].numpy().tolist(),
                "empty": of(torch.zeros(units.total)).tolist(),
                "top": of(kept).tolist(),
                "without": of(inside - kept).tolist(),
                "random": [of(other).tolist() for other in others],
            },
        )


def joined(batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Entries of all batches, along the last axis."""
    return {name: torch.cat([batch[name] for batch in batches], -1) for name in batches[0]}


def work(config: NeuronConfig) -> str:
    return (
        f"two sweeps of at most {config.max_units} units of each kind of site on {config.eval_prompts} prompts, one of "
        f"Δ, and deletion curves of {config.random + 5} rankings for each layer; the same on {config.controls} models "
        "with shuffled weights"
    )


def summary(results: dict[str, Any]) -> list[str]:
    """Lines for the terminal: the main numbers."""
    lines = [f"  intervals       {results['metrics']['clean']['interval']}{UNADJUSTED}"]
    for entry in sorted(results["strongest"], key=lambda entry: sureness(entry["p"], entry["value"])):
        lines.append(
            f"  {entry['direction']:<16}{said(entry, '.3g')} {entry['kind']} {entry['unit']} of layer "
            f"{entry['layer']}; {said_p(entry['p'])}"
        )
    share = results["metrics"].get("faithfulness_top_k")
    if share:
        random = results["metrics"]["faithfulness_random"]
        lines.append(f"  top-k circuit   faithfulness {said(share, '.2f')}, random {random['value']:.2f}")
    for entry in results["attention"]:
        lines.append(
            f"  {entry['method']:<19}area {said(entry['area'], '.3g')}, over random "
            f"{said(entry['over_random'], '.3g')}, layer {entry['layer']}"
        )
    return [*lines, *told_apart(results["control"])]


ANALYSIS = Analysis(
    name="neuron",
    title="Neurons",
    config=NeuronConfig,
    analyzer=NeuronAnalyzer,
    refuse=refuse,
    work=work,
    summary=summary,
    report=Later("analyses.neurons.report:write_neurons"),
    headline=Later("analyses.neurons.report:headline"),
    cell=Later("analyses.patching.figures:cell"),
)
