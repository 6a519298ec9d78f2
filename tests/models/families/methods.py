"""Every method on a random small model of every family: what runs, and the sentence by which the rest is refused."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import mechint
from mechint.analyses.base import analyses, check_model
from mechint.attribution.attention import attention_maps, map_sites
from mechint.attribution.decomposition import decompose
from mechint.attribution.jacobians import lags, linearise
from mechint.attribution.relevance import relevance
from mechint.interventions.gradients import gradients
from mechint.interventions.model import Model
from mechint.interventions.transplant import transplant_state
from mechint.models.families import declared
from mechint.tasks import TaskConfig, make_task
from mechint.utils.errors import MechintError
from tests.analyses.test_one_accuracy import options_of
from tests.helpers.answers import HalfRight
from tests.helpers.builders import tiny_gpt2, tiny_llama, tiny_mamba
from tests.helpers.judges.base import judged
from tests.models.families.test_parity import JUDGES

OLD: dict[str, Callable[..., Any]] = {"mamba": tiny_mamba, "gpt2": tiny_gpt2, "llama": tiny_llama}
"""Families with a file of their own."""
FAMILIES = (*OLD, *JUDGES)
TITLES = {"mamba": "Mamba-1", "gpt2": "GPT-2", "llama": "Llama"} | {
    family.name: family.title for family in declared().values()
}
TASK = make_task(TaskConfig(name="recall", pairs=2, keys=12, values=12))
FEW, MANY = 4, 32
"""Prompts of each split; circuits need more, so that what all units do is no chance, and second moments do."""
CIRCUITS = ("ssm", "kv", "hybrid", "feature", "lens", "edit")
KINDS = ("head", "ssm_head", "channel", "conv_channel", "mlp", "expert")
"""Kinds of unit of a circuit of several kinds: those that the model has."""
SMALL: dict[str, Any] = {
    "max_units": 4, "steps": 2, "top_k": 2, "target_sparsity": 0.5, "attention_methods": "attention_weighted",
    "control_tokens": 512, "tokens": 512, "direction": "denoise", "sever": "", "controls": False, "read": 1,
    "causal": 1, "method": "attribution",
}  # fmt: skip
"""Values of options that make an analysis short, beside those of the tests of one accuracy."""


def model_of(family: str, path: Path) -> Model:
    """A random small model with as many tokens as the task: of the first seeds the one with a recurrence, if there is
    one, and with the most kinds of part."""
    if family in OLD:
        sizes = {"n_ctx": 64} if family == "gpt2" else {}
        return OLD[family](3, vocab_size=TASK.vocab_size, **sizes).requires_grad_(False).eval()
    found: list[Any] = []
    for seed in range(6):
        theirs = judged(JUDGES[family], seed).float()
        theirs.resize_token_embeddings(TASK.vocab_size)
        theirs.save_pretrained(path / str(seed))
        found.append(mechint.load(path / str(seed)))
    kinds = lambda model: ("conv_state" in model.memory, len(model.every_part))
    return max(found, key=kinds).requires_grad_(False)


# ---- methods -----------------------------------------------------------------------------------------------------


def analysed(name: str, model: Model, path: Path, **changes: Any) -> None:
    """Runs a registered analysis with small options."""
    analysis = analyses()[name]
    check_model([analysis], model, "a model")
    options = options_of(analysis)
    known = {field.name: field for field in dataclasses.fields(analysis.config)}
    fits = lambda key, value: (
        type(known[key].default) is type(value) and (value in (known[key].metadata["option"].choices or (value,)))
    )
    more = {key: value for key, value in SMALL.items() if key in known and fits(key, value)}
    count = MANY if name in CIRCUITS else FEW
    more |= {key: count for key in ("prompts", "eval_prompts") if key in known}
    if name != "sae":
        more |= {key: known[key].default for key in ("sites", "layers") if key in known}
    analyzer = analysis.analyzer(model, dataclasses.replace(options, **(more | changes)), "cpu", run_dir=path / name)
    count = changes.get("prompts", count)
    analyzer.run_analysis(*(HalfRight(model, TASK, split, count, count, 0) for split in ("discovery", "evaluation")))
    analyzer.save_results()


def trained(model: Model, path: Path) -> None:
    analysed("sae", model, path, sites="resid_post")


def of_latents(model: Model, path: Path) -> None:
    if not (path / "sae").exists():
        trained(model, path)
    analysed("feature", model, path)


def of_several_kinds(model: Model, path: Path) -> None:
    analysed("hybrid", model, path, kinds=",".join(kind for kind in KINDS if kind in model.unit_kinds))


def probed(model: Model, path: Path) -> None:
    """Fits probes of the pair that is asked for, in the first layer."""
    sizes = {"prompts": 24, "eval_prompts": 24, "controls": 0, "labelings": 2, "shuffles": 2}
    analysed("probe", model, path, method="lasso", labels="place", layers="0", sites="resid_post", **sizes)


def in_some_layer(work: Callable[[int], object], model: Model) -> None:
    """Does something in every layer; refused where each refuses."""
    reasons: list[MechintError] = []
    for layer in range(model.num_layers):
        try:
            work(layer)
        except MechintError as reason:
            reasons.append(reason)
    if len(reasons) == model.num_layers:
        raise reasons[0]


def batch() -> Any:
    return TASK.sample(2, "evaluation", 0).last()


def transplants(model: Model, path: Path) -> None:
    one, other = TASK.sample(1, "evaluation", 0).tokens, TASK.sample(1, "evaluation", 1).tokens
    transplant_state(model, one, other, position=3)


def maps(model: Model, path: Path) -> None:
    values, slopes = gradients(model, batch().tokens, map_sites(model), lambda logits: logits[:, -1, 3])
    for layer in range(model.num_layers):
        attention_maps(model, layer, values, slopes)


def decompositions(model: Model, path: Path) -> None:
    in_some_layer(lambda layer: decompose(model, batch().tokens, layer), model)


def relevances(model: Model, path: Path) -> None:
    prompts = batch()
    relevance(model, prompts.tokens, prompts.answers[:, -1])


def derivatives(model: Model, path: Path) -> None:
    in_some_layer(lambda layer: list(lags(linearise(model, batch().tokens, layer), 2)), model)


def analysis(name: str, **changes: Any) -> Callable[[Model, Path], None]:
    return lambda model, path: analysed(name, model, path, **changes)


METHODS: dict[str, tuple[str, Callable[[Model, Path], None]]] = {
    "trace": ("causal tracing", analysis("trace")),
    "patch": ("activation patching", analysis("patch")),
    "path": ("path patching", analysis("path")),
    "steer": ("steering", analysis("steer", method="mean")),
    "probe": ("probes", probed),
    "ssm": ("circuits of recurrences", analysis("ssm")),
    "kv": ("circuits of attention and neurons", analysis("kv")),
    "hybrid": ("circuits of several kinds of unit", of_several_kinds),
    "neuron": ("single units", analysis("neuron")),
    "sparsity": ("sparsity", analysis("sparsity")),
    "compare": ("costs and comparison", analysis("compare")),
    "lens": ("logit lens, tuned lens, direct logit attribution", analysis("lens")),
    "patchscope": ("patchscopes", analysis("patchscope")),
    "edit": ("editing by ROME and MEMIT", analysis("edit")),
    "sae": ("sparse autoencoders", trained),
    "feature": ("circuits of their latents", of_latents),
    "study": ("studies", analysis("study")),
    "transplant": ("transplants of memory", transplants),
    "map": ("attention maps", maps),
    "decompose": ("contributions of tokens to a block", decompositions),
    "relevance": ("relevance of tokens", relevances),
    "lag": ("derivatives by lag", derivatives),
}
"""Every method with its title and what runs it; a test holds that all analyses are among them."""


def refusal(method: str, model: Model, path: Path) -> str:
    """The sentence that refuses a method on a model; empty where it ran."""
    try:
        METHODS[method][1](model, path)
    except MechintError as reason:
        return plain(str(reason), model)
    return ""


def plain(reason: str, model: Model) -> str:
    """A refusal without the model's name and path, so that equal ones are seen to be equal."""
    reason = re.sub(rf"\b(a |this )?{re.escape(model.config.family)}( model)?\b", "this model", reason)
    return " ".join(reason.replace(str(model.source), "the model").removeprefix("a model is this model; ").split())


def outcomes(family: str, chosen: tuple[str, ...] = tuple(METHODS)) -> dict[str, str]:
    """The refusal of each method on a family's model; empty where it ran."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        model = model_of(family, Path(folder) / "model")
        for method in chosen:
            torch.manual_seed(0)
            found[method] = refusal(method, model, Path(folder))
    return found
