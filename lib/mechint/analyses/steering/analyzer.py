"""Steers a model along directions, and measures the effect, the side effects, and how long a push lasts.

1. Take the two sides of a contrast: prompts against their twins, prompts with a label against the others, or the
   prompts of two files (:mod:`.contrasts`).
2. At each site of each layer, find the direction from the discovery prompts without the property to those with it, and
   other directions of the same length (:mod:`mechint.interventions.steering`).
3. Add the direction, at each strength, to held-out prompts that lack the property, and measure the metric; the same
   with the other directions. Measure KL(model ‖ steered model) on unrelated text (:mod:`.measure`).
4. Project the direction out of held-out prompts that have the property.
5. In layers with a recurrence, push the state once and the residual stream once, with strengths of equal immediate
   effect, and measure what is left some tokens later (:mod:`.once`).
6. Average over prompts, with intervals over templates; p-values are from the other directions, adjusted for all sites
   and strengths.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...interventions.model import Model, having, left_out
from ...interventions.steering import NoDirection
from ...interventions.taps import Tap
from ...tasks import Prompts
from ...utils import files, options
from ...utils.errors import MechintError
from ...utils.options import named
from ...utils.progress import Progress
from ...utils.statistics import ClusterBootstrap, exact, said, said_p
from ..base import Analysis, Later, StagedAnalyzer
from ..effect_tables import few_notes
from ..loader import PromptLoader
from ..options import fixed_sites, layer_list
from . import once, results, stored
from .contrasts import Property, Rows, property_of, read_prompts, rows_of
from .measure import Found, find, pushed, removed, unsteered
from .options import SteerConfig, refuse, strengths
from .side_effects import row_length, unrelated

PLACES = {"answer": "the position that predicts the answer", "all": "every position"}


class Steerer(StagedAnalyzer[SteerConfig]):
    """Steers a model; see the top of this file."""

    def __init__(self, model: Model, config: SteerConfig, device: str | torch.device = "cpu", **others: Any) -> None:
        options.check(config, "steer")
        super().__init__(model, config, device, **others)
        self.strengths = strengths(config.strengths)
        self.layers = layer_list(config.layers, model.num_layers, "steer")
        self.sites = fixed_sites(model, config.sites, self.layers, "steer")
        self.given = None
        if config.directions:
            usual = config.sites.strip() == "usual" and config.layers.strip() == "all"
            self.given = stored.chosen(stored.load(config.directions, model), self.sites, usual)
            self.sites = [site for site in model.sites if site in self.given]
        self.files: tuple[Rows, Rows] | None = None
        if config.positive:
            first, second = (
                read_prompts(getattr(config, name), model, named("steer", name)) for name in ("positive", "negative")
            )
            if config.method == "pca" and len(first) != len(second):
                raise MechintError(
                    f"steering: {config.positive} has {len(first)} prompts and {config.negative} {len(second)}, and "
                    f"pca compares pairs; write as many into both, or take the method mean"
                )
            self.files = rows_of(first), rows_of(second)
        self.found: dict[str, dict[str, Any]] = {}

    def check(self, train_loader: PromptLoader, val_loader: PromptLoader) -> None:
        """Refuses prompts without what the contrast or the metric needs, and rows of text that are too long."""
        if self.config.text != "none":
            self.model.check_length(row_length(self.model, self.config, val_loader.task))
        for loader in (train_loader, val_loader):
            judged = property_of(self.config, train_loader, loader)
            if self.config.metric == "logit_diff" and any(batch.bad() is None for batch in judged.lacking):
                raise MechintError(
                    f"steering: prompts of {loader.task.name!r} have no wrong answer for a logit difference; set "
                    f"{named('steer', 'metric')} to answer_logprob"
                )

    def run_analysis(self, train_loader: PromptLoader, val_loader: PromptLoader) -> dict[str, Any]:
        """Finds directions on ``train_loader``, steers ``val_loader``; returns the results."""
        self.check(train_loader, val_loader)
        learnt, judged = (property_of(self.config, train_loader, loader) for loader in (train_loader, val_loader))
        text, about = unrelated(self.model, self.config, val_loader.task, self.seed)
        metric = self.config.metric
        lacks, has = (unsteered(self.model, side, metric) for side in (judged.lacking, judged.having))
        layers = self.once_layers() if self.config.once else []
        pushes: dict[int, Any] = {}
        without: list[tuple[str, NoDirection]] = []
        with Progress("directions", len(self.sites) + len(layers)) as progress:
            for site in self.sites:
                of_site = functools.partial(self.of_site, site, learnt, judged, text)
                try:
                    self.found[site] = self.stages.get(f"site {site}", of_site)
                except NoDirection as reason:  # below a layer that reads as far back as the property stands
                    without.append((site, reason))
                progress.step(site)
            if not self.found:
                raise without[0][1]
            for layer in layers:
                pushes[layer] = self.stages.get(f"once {layer}", functools.partial(self.once, layer, learnt, judged))
                progress.step(f"one push at layer {layer}")
        sides = results.Sides(self.bootstrap(judged.lacking), self.bootstrap(judged.having), lacks.numpy(), has.numpy())
        curves = results.curves(self.found, self.strengths, sides)
        best = results.best_of(curves)
        right = torch.cat([self.right(batch.last()) for batch in val_loader]).numpy()
        metrics = {
            "accuracy_full": ClusterBootstrap(val_loader.templates(), self.config.bootstrap, self.seed).share(right),
            "prompts_steered": exact(len(lacks)),
            "prompts_projected": exact(len(has)),
            "lacking": results.mean(sides.lacking, sides.lacks),
            "having": results.mean(sides.having, sides.has),
            "best_effect": best["effect"],
        }
        few = few_notes(torch.cat([batch.template for batch in judged.lacking]).cpu().numpy(), "steered")
        self.results = {
            "report": "steer",
            "metric": metric,
            "ablation": f"the direction is added at {PLACES[self.config.where]}",
            "metrics": metrics,
            "property": judged.said,
            "source": self.source(learnt),
            "others": self.config.control,
            "draws": self.config.random,
            "text": about,
            "directions": results.directions(self.found),
            "curves": curves,
            "best": best,
            "projections": results.projections(self.found, sides),
            "once": results.lasts(pushes, sides),
            "interval": sides.lacking.kind,
            "few": few,
            "notes": [*few, *self.notes(), *no_direction([site for site, _ in without])],
        }
        return self.results

    def save_results(self) -> list[Path]:
        """Writes ``effects.pt`` (the metric of every prompt) and ``directions.pt`` into the run directory."""
        vectors = {site: stage["vector"] for site, stage in self.found.items()}
        effects = files.write_torch(self.directory / "effects.pt", results.tensors_of(self.found))
        return [effects, stored.save(vectors, self.directory)]

    # ---- the work -----------------------------------------------------------------------------------------------

    def direction(self, site: str, learnt: Property) -> Found:
        """The direction of a site, from the discovery prompts or a file."""
        if self.given is not None and site in self.given:
            direction = self.given[site]
            return Found(direction, direction.randoms(self.config.random, self.seed), float("nan"))
        sides = learnt.rows() if self.files is None else self.files
        paired = learnt.paired if self.files is None else self.config.method == "pca"
        return find(self.model, site, sides, paired, self.config, self.seed)

    def of_site(self, site: str, learnt: Property, judged: Property, text: Tensor | None) -> dict[str, Any]:
        found = self.direction(site, learnt)
        return {
            **pushed(self.model, found, judged.lacking, self.strengths, self.config, text),
            **removed(self.model, found, judged.having, self.config),
            "vector": found.direction.vector.cpu(),
            "length": float(found.direction.vector.double().norm()),
            "size": found.size,
        }

    def once_layers(self) -> list[int]:
        """The chosen layers that keep a state, but for the last layer."""
        last = self.model.num_layers - 1
        found = [layer for layer in having(self.model, *once.SITES) if layer in self.layers and layer < last]
        return [] if self.given is not None else found

    def once(self, layer: int, learnt: Property, judged: Property) -> dict[str, Any]:
        """Measures one push at both sites of a layer; without strengths where their effects cannot be made equal."""
        before = unsteered(self.model, learnt.lacking, self.config.metric)
        try:
            found = {kind: self.direction(f"layers.{layer}.{kind}", learnt).direction for kind in once.SITES}
        except NoDirection:
            return {"strengths": None, "after": {}}
        curves = [once.immediate(self.model, one, learnt.lacking, self.config, before) for one in found.values()]
        equal = once.equal_strengths(curves)
        if equal is None:
            return {"strengths": None, "after": {}}
        each = dict(zip(found, equal, strict=True))
        after = {
            kind: once.lasting(self.model, one, each[kind], judged.lacking, self.config) for kind, one in found.items()
        }
        return {"strengths": each, "after": after}

    def bootstrap(self, side: list[Prompts]) -> ClusterBootstrap:
        templates = torch.cat([batch.template for batch in side]).cpu().numpy()
        return ClusterBootstrap(templates, self.config.bootstrap, self.seed)

    @torch.no_grad()
    def right(self, batch: Prompts) -> Tensor:
        """The share of a prompt's answers that the model says, [prompt]."""
        logits, _ = self.model.trace(batch.tokens, Tap(), logits_at=batch.positions)
        return batch.correct(logits).cpu()

    def source(self, learnt: Property) -> str:
        """The direction's origin in words."""
        if self.given is not None:
            return "directions of a file"
        how = {"mean": "difference of means", "pca": "first principal component of differences"}[self.config.method]
        first, second = learnt.rows() if self.files is None else self.files
        counts = [sum(len(tokens) for tokens, _ in side) for side in (first, second)]
        of = "contrast prompts of two files" if self.files is not None else f"discovery prompts ({learnt.said})"
        return f"{how}, {counts[0]} {of} with the property and {counts[1]} without"

    def notes(self) -> list[str]:
        found: list[str] = []
        kinds = [site.rpartition(".")[2] for site in self.sites if site.startswith("layers.")]
        if self.given is None:
            found += left_out(self.model, kinds, self.layers)
        if 0 < self.config.random < 19:
            found.append(f"{self.config.random} directions beside cannot show p ≤ 0.05; ask for at least 19 of them")
        if not self.config.random:
            found.append("No other directions were tried, so it is not known what any push of this length does")
        if self.config.once and self.given is None and not self.once_layers():
            found.append(
                "No chosen layer but the last keeps a recurrence's state, so no push of the state was compared"
            )
        if self.config.once and self.given is not None:
            found.append("Pushes of one moment need a contrast; directions of a file were not compared in this way")
        return found


def no_direction(sites: list[str]) -> list[str]:
    """A note on sites that the property has not reached."""
    if not sites:
        return []
    return [
        f"Left out, since the prompts with and without the property have the same mean there, so that there is no "
        f"direction: {', '.join(sites)}"
    ]


def work(config: SteerConfig) -> str:
    pushes = len(strengths(config.strengths)) + 1
    return (
        f"a sweep of {pushes} x {config.random + 1} cells at each site on {config.eval_prompts} prompts, and of "
        f"{pushes - 1} x {config.random + 1} on {config.text_prompts} rows of text"
    )


def summary(found: dict[str, Any]) -> list[str]:
    """Lines for the terminal: the surest push, its side effects, the projection there, and what lasts."""
    best, metrics = found["best"], found["metrics"]
    lines = [
        f"  property        {found['property']}",
        f"  as they are     {said(metrics['lacking'], '.2f')} without it, {said(metrics['having'], '.2f')} with it",
        f"  best push       {said(best['effect'], '.2f')} at {best['name']}, strength {best['strength']:g}; "
        f"{said_p(best['p'])}",
    ]
    if "kl" in best:
        lines.append(f"  side effect     KL {said(best['kl'])} nats a token on unrelated text")
    for row in found["projections"]:
        if row["name"] == best["name"]:
            lines.append(f"  projected out   {said(row['effect'], '.2f')}; {said_p(row['p'])}")
    for row in found["once"]:
        if row["difference"] is not None:
            lines.append(
                f"  one push        layer {row['layer']}: state less stream {said(row['difference'], '.2f')} later; "
                f"{said_p(row['p'])}"
            )
    return lines


def inputs(config: SteerConfig, run_dir: Path) -> dict[str, str]:
    """Digests of the files that directions come from."""
    named_files = {name: getattr(config, name) for name in ("positive", "negative", "directions")}
    places = {name: Path(path).expanduser() for name, path in named_files.items() if path}
    return {name: files.sha256(place) for name, place in places.items() if place.is_file()}


ANALYSIS = Analysis(
    name="steer",
    title="Steering",
    config=SteerConfig,
    analyzer=Steerer,
    refuse=refuse,
    work=work,
    summary=summary,
    lone=True,
    inputs=inputs,
    report=Later("analyses.steering.report:write_steering"),
    headline=Later("analyses.steering.report:headline"),
)
