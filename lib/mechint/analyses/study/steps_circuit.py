"""Step 16 of a study: the combined circuit, those of all studied units that together do the task, kept alone.

Candidates are tested one by one; the effect of each alone does not show the effect of all together. Here the fewest
units of the studied sites are searched for that still make the model's predictions, as any other circuit of this
package is (:mod:`.circuits.analyzer`, on KL): kept alone, every other unit of the sites takes its ablated value.
All that is said of it is measured on held-out prompts, and stands beside as many random units of the same layers, the
same search on shuffled weights, searches of other seeds on other prompts, and the tested candidates kept alone.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...interventions.edits import Edit
from ...interventions.model import Model
from ...interventions.units import Units
from ...tasks.base import generator
from ...utils.errors import MechintError
from ...utils.statistics import (
    Array,
    ClusterBootstrap,
    Number,
    chance_jaccard,
    jaccard,
    p_of_draws,
    said,
    said_share,
    spread,
    stability,
)
from ..ablation import Ablation
from ..circuits.analyzer import CircuitAnalyzer
from ..circuits.bench import Bench
from ..circuits.controls import METRIC_OF, RANDOM_WEIGHTS
from ..circuits.evidence import Evidence
from ..circuits.methods.starting_orders import further_orders, starting_scores
from ..circuits.options import BudgetOptions
from ..loader import PromptLoader
from ..metrics import faithfulness
from .ablation_tests import rounding_of
from .candidates import site_kinds
from .claims import task_not_done
from .context import Context, Found
from .options import StudyConfig

TARGET = 0.95
"""Share of the KL between no studied unit and all of them that the circuit makes up for, and share of the effect that
it keeps, on the discovery prompts."""
LEARNT = {"logit_diff": "logit_diff", "answer_logprob": "answer_logprob", "answer_prob": "answer_logprob"}
"""The metric of circuits that has to be reached as well, by the study's."""
RANDOM_CIRCUITS = 20
"""Random circuits at every size of the curve; the claim has as many as the study's draws."""
REMOVED_UNITS = 64
"""Units that are removed one by one, of more as many at random."""


class SiteUnits(Units):
    """The units of one site of each chosen layer; other layers stay as they are.

    Args:
        model: From :func:`mechint.load`.
        chosen: Site names by layer; of a hybrid they may be of several kinds.
    """

    def __init__(self, model: Model, chosen: dict[int, str]) -> None:
        kinds = dict.fromkeys(site.split(".", 2)[2] for site in chosen.values())
        super().__init__(model, *site_kinds(chosen.values(), f"one unit of the studied site, {' or '.join(kinds)}"))
        rows = {row.sites[0]: row for row in self.by_row}
        self.numbers, self.sites = list(chosen), list(chosen.values())
        self.sizes = [rows[site].size for site in self.sites]
        starts = [0, *itertools.accumulate(self.sizes)]
        pairs = zip(self.sites, starts, strict=False)  # the last is the end
        self.by_row = [replace(rows[site], start=start) for site, start in pairs]
        self.layers = self.rows = len(chosen)
        self.said_layers = list(range(self.layers))
        self.total = sum(self.sizes)
        self.counted = self.sizes
        self.layer_names = [f"layers.{layer}" for layer in chosen]
        self.about = [{"site": site} for site in self.sites]

    def edits(self, mask: Tensor, fills: dict[str, Any]) -> list[Edit]:
        parts = self.by_layer(mask)
        return [Edit(site, "mask", part, fill=fills[site]) for site, part in zip(self.sites, parts, strict=True)]

    def dropping(self, unit: int, fills: dict[str, Any]) -> list[Edit]:
        sample = next(iter(fills.values()))
        mask = torch.ones(self.total, device=sample.device if isinstance(sample, Tensor) else None)
        mask[unit] = 0.0
        row = bisect.bisect_right([row.start for row in self.by_row], unit) - 1
        return [self.edits(mask, fills)[row]]

    def by_site(self, mask: Tensor) -> dict[str, list[int]]:
        """The kept units of each site, all its axes in one."""
        parts = mask.split(self.sizes)
        return {site: part.nonzero()[:, 0].tolist() for site, part in zip(self.sites, parts, strict=True)}

    def mask_of(self, units: Mapping[str, Sequence[int]]) -> Tensor:
        """The mask [units] of units by site."""
        parts = [torch.zeros(size) for size in self.sizes]
        for site, part in zip(self.sites, parts, strict=True):
            part[list(units.get(site, ()))] = 1.0
        return torch.cat(parts)


@dataclass(frozen=True)
class SiteOptions(BudgetOptions):
    """Options of a study's combined circuit."""

    @property
    def unit(self) -> str:
        return "unit"


class Searched(CircuitAnalyzer[SiteOptions]):
    """A circuit of the studied units, close to the model in KL and in the study's metric; with the study's option off,
    without the control on random weights. Searches learn from the KL; what is measured is in the study's metric."""

    controls = (RANDOM_WEIGHTS,)
    random_control = True
    effect = "logit_diff"

    def preserved(self) -> list[str]:
        return [*super().preserved(), self.effect]

    def evidence(self, bench: Bench, loader: PromptLoader) -> Evidence:
        return Evidence(bench, loader, replace(self.config, metric=self.effect), self.seed)

    def units_of(self, random: Model, loader: PromptLoader) -> Units | None:
        return self.units if self.random_control else None


def circuit_options(c: StudyConfig) -> SiteOptions:
    """The options of a study's combined circuit, from those of the study."""
    return SiteOptions(
        ablation=c.ablation, metric="kl", search="smallest", target_faithfulness=TARGET, steps=c.mask_steps, seeds=1,
        prompts=c.prompts, eval_prompts=c.eval_prompts, random_circuits=RANDOM_CIRCUITS, removed_units=REMOVED_UNITS,
        bootstrap=c.bootstrap, min_accuracy=0.0,
    )  # fmt: skip


def circuit(context: Context) -> Found:
    """Searches for the combined circuit on the discovery prompts, and judges it on the held-out ones.

    Raises:
        MechintError: the model does not do the task; dropping every studied unit has no clear effect.
    """
    if reason := task_not_done({"setup": context.found["setup"]["report"]}):
        raise MechintError(reason)
    units = SiteUnits(context.model, context.sites)
    options, device = circuit_options(context.config), context.model.device
    analyzer = Searched(context.model, options, device, units=units, seed=context.seed)
    analyzer.stages, analyzer.random_control = context.stages, context.config.random_weights
    analyzer.effect = LEARNT[context.config.metric]
    found = analyzer.run_analysis(context.train, context.val)
    mask = torch.cat([analyzer.masks[name]["mask"].flatten() for name in analyzer.units.layer_names])
    report = judged(context, analyzer, mask)
    own = found["metrics"]
    report |= {name: own[name] for name in ("kl", "minimality") if name in own}
    report["random_weights"] = own.get(METRIC_OF[RANDOM_WEIGHTS])
    report["curve"] = {name: found["curve"][name] for name in ("size", "learned", "random")}
    report["faithfulness_discovery"], report["target"] = found["pruning"]["faithfulness_discovery"], TARGET
    report["pruning"] = found["pruning"] | {
        name: own[name] for name in ("units_kept_unpruned", "faithfulness_unpruned")
    }  # fmt: skip
    report["notes"] = [note for note in found["notes"] if "Stability was not measured" not in note]
    return {"report": {**report, "said": sentence(report)}, "keep": {"mask": mask}}


class Kept:
    """Measures the task on the held-out prompts when only some of the studied units are kept.

    Raises:
        MechintError: dropping all of them has no clear effect on the study's metric.
    """

    def __init__(self, context: Context, units: Units) -> None:
        c = context.config
        self.metric, self.boot = c.metric, ClusterBootstrap(context.val.templates(), c.bootstrap, context.seed)
        batches = context.train.batches
        ablation = Ablation(context.model, units, c.ablation, batches, context.train.task.aligned)
        self.bench = Bench(context.model, units, ablation, context.val.batches)
        self.full, self.empty = (self.column(end) for end in self.bench.ends)
        self.total = self.boot.interval(lambda f, e: f - e, self.full, self.empty)
        if float(self.total["low"]) <= 0:
            raise MechintError(
                f"dropping every studied unit changes {c.metric} by {said(self.total, '.3g')}, which may be nothing; "
                f"give more EVAL_PROMPTS, another METRIC, site or layers"
            )

    @property
    def rounding(self) -> float:
        """By how much shares of the effect may differ through rounding alone."""
        sizes = (float(abs(end).max()) for end in (self.full, self.empty))
        return rounding_of(self.bench.model, float(self.total["value"]), *sizes)

    def column(self, values: dict[str, Tensor]) -> Array:
        """The study's metric of every prompt."""
        if self.metric == "answer_prob":
            return values["answer_logprob"].exp().numpy()
        if self.metric not in values:
            raise MechintError(f"the answers of this task have no {self.metric} of one token; choose answer_logprob")
        return values[self.metric].numpy()

    def effect(self, mask: Tensor) -> Number:
        """The share of the effect of all studied units that these keep."""
        return self.of(mask)["effect"]

    def of(self, mask: Tensor) -> dict[str, Number]:
        """``effect`` and ``accuracy`` of a mask [units]."""
        values = self.bench.measure(mask.to(self.bench.batches[0].tokens.device))
        effect = self.boot.interval(faithfulness, self.column(values), self.full, self.empty)
        return {"effect": effect, "accuracy": self.boot.share(values["accuracy"].numpy())}

    def point(self, mask: Tensor) -> float:
        values = self.bench.measure(mask.to(self.bench.batches[0].tokens.device))
        return float(faithfulness(self.column(values).mean(), self.full.mean(), self.empty.mean()))


def judged(context: Context, analyzer: Searched, mask: Tensor) -> Found:
    """Measures the circuit alone, the model without it, and the controls."""
    units = analyzer.units
    assert isinstance(units, SiteUnits)
    kept = Kept(context, units)
    again = [mask, *others(context, analyzer, int(mask.sum()))]
    sets = [set(each.nonzero()[:, 0].tolist()) for each in again]
    candidates = units.mask_of(context.candidate_units())
    tested = int(candidates.sum())
    return kept_alone(context, units, mask, kept) | {
        "agreement": stability(sets),
        "candidates": None if not tested else {
            "units": tested, "shared": len(sets[0] & set(candidates.nonzero()[:, 0].tolist())),
            "jaccard": jaccard(sets[0], set(candidates.nonzero()[:, 0].tolist())), **kept.of(candidates),
        },
    }  # fmt: skip


def kept_alone(context: Context, units: SiteUnits, mask: Tensor, kept: Kept | None = None) -> Found:
    """Any set of units [units] as a combined circuit: what it keeps alone, beside random sets; without agreement of
    searches. :func:`mechint.analyses.study.claims.of_circuit` makes its claim."""
    c, kept = context.config, kept or Kept(context, units)
    alone, without, whole = kept.of(mask), kept.of(1 - mask), kept.of(torch.ones(units.total))
    counts, draws = units.counts(mask), []
    for k in range(context.draws):
        draws.append(kept.point(units.random(counts, generator("random circuit", k, context.seed))))
    sites = units.by_site(mask)
    return {
        "kept": int(mask.sum()),
        "total": units.total,
        "layers": {
            str(layer): {"site": site, "kept": len(sites[site]), "total": size, "units": sites[site]}
            for (layer, site), size in zip(context.sites.items(), units.sizes, strict=True)
        },
        "metric": c.metric,
        "ablation": c.ablation,
        "effect_total": kept.total,
        "effect": alone["effect"],
        "accuracy": alone["accuracy"],
        "accuracy_full": whole["accuracy"],
        "chance": context.found["setup"]["report"]["chance"],
        "complement": without,
        "completeness": kept.boot.interval(
            lambda w, f, e: 1 - faithfulness(w, f, e), kept.column(kept.bench.measure(1 - mask)), kept.full, kept.empty
        ),
        "random_units": spread(draws, f"{context.draws} sets of as many units of each layer"),
        "p": p_of_draws(float(alone["effect"]["value"]), draws, kept.rounding),
        "agreement": None,
        "agreement_chance": chance_jaccard(counts, units.sizes),
        "candidates": None,
    }


def others(context: Context, analyzer: Searched, size: int) -> list[Tensor]:
    """Circuits of the same size that searches of other seeds find on other discovery prompts."""
    c, found = context.config, []
    for k in range(1, c.seeds):
        seed = context.seed + k
        loader = context.discovery(seed)
        ablation = Ablation(context.model, analyzer.units, c.ablation, loader.batches, loader.task.aligned)
        bench = Bench(context.model, analyzer.units, ablation, loader.batches)
        scores, _ = starting_scores(bench, "kl")
        starts = further_orders(bench, "kl", scores, size)
        result = analyzer.search(bench, scores, f"other prompts {k}", seed, size, others=starts)
        found.append(result["masks"][size].cpu())
    return found


def sentence(report: Found) -> str:
    """Describes the circuit in words; says where a search ended far from the model."""
    text = (
        f"{report['kept']} of {report['total']} units, kept alone, keep {said(report['effect'], '.0%')} of the effect "
        f"and answer {said(report['accuracy'], '.0%')} (all of them {report['accuracy_full']['value']:.0%}, chance "
        f"{report['chance']['value']:.0%}); as many random units keep "
        f"{said_share(report['random_units']['value'])}, at most "
        f"{said_share(report['random_units']['high'])} in 97.5 % of the draws. Without them "
        f"{said(report['complement']['effect'], '.0%')} is left."
    )
    if report["agreement"] is not None:
        text += (
            f" Searches on other prompts with other seeds agree: Jaccard {report['agreement']['value']:.2f} (by chance "
            f"{report['agreement_chance']:.2f})."
        )
    if (tested := report["candidates"]) is not None:
        text += (
            f" The {tested['units']} units of the tested candidates, kept alone, keep {said(tested['effect'], '.0%')} "
            f"and answer {tested['accuracy']['value']:.0%}; {tested['shared']} of them are in the circuit."
        )
    if report["faithfulness_discovery"] < report["target"]:
        text += (
            " The search is not close to the model: it makes up for "
            f"{said_share(report['faithfulness_discovery'])} of the KL on its own prompts, where "
            f"{report['target']:.0%} were asked for."
        )
    return text
