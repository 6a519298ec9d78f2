"""The registry of methods: every way of ranking units, for circuits of every kind and for the scorecard.

A method is one function ``score(evaluator) -> Tensor [units]``; the higher the score, the more the unit belongs to the
circuit. To add one, write such a function and give it an entry of :data:`METHODS`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ....interventions.model import Model
from ....interventions.unit_kinds import UnitKind
from ....interventions.units import Units
from ....models.placement import apart
from ....tasks import Prompts
from ....utils.errors import MechintError
from ..search.learning import NotFinite
from .attention import by_attention
from .attribution_patching import atp_star, attribution_patching, eap_ig, eap_ig_activations, other_attention, relp
from .delta import by_step
from .evaluator import Evaluator
from .gradients import activation_magnitude, attribution, attribution_size, gradient_x_activation
from .mask_search import search
from .probe import probe
from .single_units import causal_necessary, causal_sufficient, patching_denoise, patching_noise, removal
from .weights import PARTS, random, weight_magnitude

SEARCH = "search"
"""The method that learns a mask; the others give an order, whose top units are the circuit."""


@dataclass(frozen=True)
class Method:
    """A way of ranking units.

    Attributes:
        score: Gives one number for each unit.
        meaning: Meaning of the number in a few words, for help texts and reports.
        source: Publication that it comes from.
        units: Kinds of unit that it ranks; empty for all.
        at_sites: True if it reads the units' numbers at sites, which latents of a dictionary are not.
        twins: True if it needs prompts with counterfactual twins and one answer token.
        unable: Says why it cannot rank these units of a model, whatever their kind; None when it can.
        metric: The metric that its scores are of: ``preserved`` for that of the circuit, ``answers`` for
            :attr:`Evaluator.answer_metric`, a metric by name, or empty for none.
    """

    score: Callable[[Evaluator], Tensor]
    meaning: str
    source: str
    units: tuple[str, ...] = ()
    twins: bool = False
    metric: str = ""
    at_sites: bool = False
    unable: Callable[[Model, Units], str | None] = lambda model, units: None

    def scored_by(self, evaluator: Evaluator) -> str:
        """Returns the name of the metric that its scores are of; empty for none."""
        return {"preserved": evaluator.metric, "answers": evaluator.answer_metric}.get(self.metric, self.metric)

    def refuse(self, kind: UnitKind) -> str | None:
        """Says why it cannot rank units of this kind; None when it can."""
        if self.at_sites and not kind.at_sites:
            return f"it reads numbers at sites, and {kind.several} are not; choose another method or unit"
        if not self.units or set(kind.name.split("+")) <= set(self.units):
            return None
        return f"it ranks units of the kind {', '.join(self.units)}, not {kind.several}; choose another method or unit"


CHANNEL = ("channel",)
ESTIMATE = "linear estimate of the effect of the twin's value"
STEP = "step size of a Mamba's channel"
METHODS: dict[str, Method] = {
    SEARCH: Method(search, "logits of gates that learn which units to keep", "Louizos et al. 2018; Cao et al. 2021",
        metric="preserved",
    ),
    "attribution": Method(
        attribution, "integrated gradients of the metric over the mask, signed", "Sundararajan et al. 2017",
        metric="preserved",
    ),
    "attribution_size": Method(
        attribution_size, "sizes of the integrated gradients of the metric over the mask", "Sundararajan et al. 2017",
        metric="preserved",
    ),
    "removal": Method(
        removal, "exact distance from the model when only this unit is dropped", "single-unit ablation",
        metric="preserved",
    ),
    "patching_noise": Method(
        patching_noise, "exact effect of the twin's value of the unit in the clean run", "Vig et al. 2020", twins=True,
        metric="logit_diff",
    ),
    "patching_denoise": Method(
        patching_denoise, "exact effect of the unit's clean value in the twin's run", "Meng et al. 2022", twins=True,
        metric="logit_diff",
    ),
    "causal_necessary": Method(
        causal_necessary, "exact effect of ablating the unit alone", "single-unit ablation", metric="answers"
    ),
    "causal_sufficient": Method(
        causal_sufficient, "exact effect of keeping the unit alone among those of its layer", "single-unit ablation",
        metric="answers",
    ),
    "attribution_patching": Method(
        attribution_patching, ESTIMATE, "Nanda 2023; Syed et al. 2023", twins=True, metric="logit_diff", at_sites=True
    ),
    "eap_ig": Method(
        eap_ig, f"{ESTIMATE}, by gradients on the line between the two prompts' embeddings",
        "Hanna et al. 2024", twins=True, metric="logit_diff", at_sites=True,
    ),
    "eap_ig_activations": Method(
        eap_ig_activations, f"{ESTIMATE}, by gradients on the line between the two values of a layer's units",
        "Mueller et al. 2025", twins=True, metric="logit_diff", at_sites=True,
    ),
    "relp": Method(
        relp, f"{ESTIMATE}, by coefficients of relevance instead of gradients",
        "Rezaei Jafari et al. 2025", twins=True, metric="logit_diff", at_sites=True,
        unable=lambda model, units: apart(model, "it"),
    ),
    "atp_star": Method(
        atp_star, f"{ESTIMATE}, by gradients without each layer in turn, and attention computed anew",
        "Kramár et al. 2024", twins=True, metric="logit_diff", at_sites=True, unable=other_attention,
    ),
    "probe": Method(
        probe, "norm of the weights of a linear probe of the answer", "Alain & Bengio 2016", at_sites=True
    ),
    "gradient_x_activation": Method(
        gradient_x_activation, "size of gradient × activation where others read the unit", "Simonyan et al. 2013",
        metric="answer_logprob", at_sites=True,
    ),
    "activation_magnitude": Method(
        activation_magnitude, "mean size of the activation where others read the unit", "baseline",
        at_sites=True,
    ),
    "weight_magnitude": Method(
        weight_magnitude, "norm of the weights that are the unit's own", "baseline",
        ("channel", "ssm_channel", *PARTS),
    ),
    "random": Method(random, "random numbers: the order of chance", "baseline"),
    **{
        f"delta_{name}": Method(
            functools.partial(by_step, name=name), meaning, source, CHANNEL,
            metric="answers" if name in ("gradient", "do_mean") else "",
        )
        for name, meaning, source in (
            ("gradient", f"gradient of the metric with respect to the {STEP}", "mechint"),
            ("do_mean", f"exact effect of holding the {STEP} at its mean", "mechint"),
            ("variance", f"variance of the {STEP}", "mechint"),
            ("output_variance", "variance of a Mamba's channel's output", "the documented delta-sensitive neurons"),
        )
    },
    **{
        name: Method(
            functools.partial(by_attention, name=name), meaning, source, CHANNEL,
            metric="answers" if name == "gradient_guided" else "",
        )
        for name, meaning, source in (
            ("attention_weighted", "activation weighted by a Mamba's hidden attention", "Ali et al. 2024"),
            ("gradient_guided", "gradient × activation weighted by attention × gradient", "Chefer et al. 2021"),
            ("rollout", "activation weighted by attention rolled out over layers", "Abnar & Zuidema 2020"),
        )
    },
}  # fmt: skip


def methods_of(kinds: dict[str, UnitKind] | None = None) -> tuple[str, ...]:
    """Names of the methods that can rank at least one of these kinds of unit, the mask search first."""
    if kinds is None:
        return tuple(METHODS)
    ranks = lambda method: any(method.refuse(kind) is None for kind in kinds.values())
    return tuple(name for name, method in METHODS.items() if ranks(method))


def scores_of(name: str, evaluator: Evaluator) -> Tensor:
    """The scores of a method, checked, [units] on the device of the prompts.

    Raises:
        MechintError: the method cannot rank these units or prompts.
        NotFinite: a score is NaN or infinite.
    """
    check(name, evaluator.model, evaluator.units, evaluator.batches)
    scores = METHODS[name].score(evaluator).detach()
    if bad := int((~torch.isfinite(scores)).sum()):
        raise NotFinite(
            f"the method {name} gives {bad} of {scores.numel()} units a score that is NaN or infinite; choose another"
        )
    return scores.to(evaluator.batches[0].tokens.device)


def check(name: str, model: Model, units: Units, batches: list[Prompts]) -> None:
    """Refuses a method that cannot rank these units on these prompts.

    Raises:
        MechintError: it cannot.
    """
    method = METHODS[name]
    if reason := method.refuse(units.kind) or method.unable(model, units):
        raise MechintError(f"the method {name}: {reason}")
    if method.twins and any(batch.twins is None or batch.bad() is None for batch in batches):
        raise MechintError(
            f"the method {name} exchanges units with counterfactual twins, and this task has none of one answer token; "
            "choose removal or causal_necessary"
        )
