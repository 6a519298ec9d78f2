"""The context that the steps of a study share: the model, its prompts, and the results of earlier steps."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...interventions.model import Model
from ...tasks.config import TaskConfig
from ...utils.errors import MechintError
from ...utils.rundir import Stages
from ...utils.statistics import draws_needed
from ..loader import PromptLoader
from .ablation_tests import Held
from .candidates import Candidate
from .options import STEPS, StudyConfig
from .subspaces import Traffic

Found = dict[str, Any]


@dataclass
class Context:
    """A study under way.

    Attributes:
        train, val: Discovery and held-out prompts; they share no template.
        sites: Site of each studied layer.
        stages: Parts of a step that survive a kill.
        found: By step name: what goes into results.json (``report``), and what later steps need (``keep``).
    """

    model: Model
    config: StudyConfig
    seed: int
    train: PromptLoader
    val: PromptLoader
    sites: dict[int, str]
    task_config: TaskConfig | None = None
    stages: Stages = field(default_factory=lambda: Stages(None, ""))
    found: dict[str, Found] = field(default_factory=dict)
    _held: Held | None = None

    def keep(self, step: int) -> Found:
        """The values that an earlier step kept for later ones.

        Raises:
            MechintError: it was skipped, or had nothing to say.
        """
        entry = self.found.get(STEPS[step])
        if entry is None or "keep" not in entry:
            why = "was left out" if entry is None or entry["report"].get("status") == "skipped" else "found nothing"
            raise MechintError(f"it needs step {step} ({STEPS[step]}), which {why}")
        keep: Found = entry["keep"]
        return keep

    @property
    def carried(self) -> dict[str, Traffic]:
        """Activations, gradients and effects of the sites on the discovery prompts, by site."""
        return {site: Traffic(**value) for site, value in self.keep(2)["traffic"].items()}

    @property
    def tested(self) -> list[Candidate]:
        """The candidates that are tested.

        Raises:
            MechintError: there is none.
        """
        found = [from_plain(value) for value in self.keep(5)["candidates"]]
        if not found:
            raise MechintError("no candidate carries any of the effect, so there is nothing to test")
        return found

    @property
    def draws(self) -> int:
        """Random draws of every test: the option's, or as many as p ≤ 0.05 after Holm over all claims can need.

        Claims are one for each candidate, one for each label, and one for the candidates together.
        """
        labels = self.train.task.labels(self.train.batches[0])
        return max(self.config.draws, draws_needed(self.config.candidates + len(labels) + 1))

    @property
    def held(self) -> Held:
        """The answered held-out prompts."""
        if self._held is None:
            self._held = Held.of(self.model, self.val.batches, list(self.sites.values()), self.config.metric)
        return self._held

    def mean(self, site: str) -> Tensor | None:
        """The mean that ablation replaces a candidate's part with, [position, unit]; None for the twin's value."""
        if self.config.ablation == "counterfactual":
            return None
        return self.carried[site].clean.mean(0)

    def discovery(self, seed: int) -> PromptLoader:
        """Other discovery prompts of the task, as many, of another seed."""
        size = len(self.train.batches[0])
        return PromptLoader(self.train.task, "discovery", self.config.prompts, size, seed, self.model.device)

    def candidate_units(self) -> dict[str, list[int]]:
        """The units of all tested candidates by site, as :meth:`groups` gives them."""
        return {
            site: sorted({unit for group in self.groups(layer).values() for unit in group})
            for layer, site in self.sites.items()
        }

    def groups(self, layer: int) -> dict[str, list[int]]:
        """The units of the tested candidates of a layer; of directions those with the largest part in them."""
        try:
            tested = self.tested
        except MechintError:
            return {}
        found = {}
        for candidate in tested:
            if candidate.layer != layer:
                continue
            weight = candidate.basis.square().sum(1)
            order = torch.sort(weight, descending=True, stable=True).indices[: candidate.rank]
            found[candidate.name] = sorted(candidate.units) or sorted(order.tolist())
        return found


def plain(candidate: Candidate) -> Found:
    """As what a stage can keep."""
    return {f.name: getattr(candidate, f.name) for f in dataclasses.fields(candidate)}


def from_plain(value: Found) -> Candidate:
    return Candidate(**{**value, "sources": tuple(value["sources"]), "units": tuple(value["units"])})
