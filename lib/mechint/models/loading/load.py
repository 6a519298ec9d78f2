"""Any checkpoint of a known family becomes our module: strictly, or an error that names what is wrong."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...interventions.model import Model
from ...utils.errors import MechintError, an, check_type, did_you_mean, short, shown
from ...utils.files import reading
from ...utils.progress import Progress
from ..base import LanguageModel
from ..families import declared
from ..family import StackFamily
from ..gpt2 import GPT2
from ..llama import Llama
from ..mamba import Mamba
from ..placement import place
from ..stack import Stack
from . import gpt2_names, llama_names, stack_files
from . import mamba_names as names
from .checkpoints import clean_names, read_checkpoint
from .config_keys import Keys, merged, plain_values, refuse_unknown
from .convert import DTYPES, convert
from .hub import fetch, is_hub_id, path_exists, refuse_missing_path, todays_name
from .stack_files import build_stack
from .strictness import check_shapes, listing, without_lead
from .tokenizer import read_tokenizer

__all__ = ["FAMILIES", "Family", "from_state_dict", "hf_config", "load", "to_hf_state_dict"]

Builder = Callable[[dict[str, Tensor], Mapping[str, Any] | None, str, torch.dtype, torch.device], LanguageModel]


@dataclass(frozen=True)
class Family:
    """A model family: how its tensors are recognised, and what builds our module; None refuses it by name.

    The last two give the weights and the configuration of our module as Hugging Face has them.
    """

    title: str
    detects: Callable[[Collection[str]], bool]
    model: type[LanguageModel] | None = None
    build: Builder | None = None
    to_hf_state_dict: Callable[[Any], dict[str, Tensor]] | None = None
    hf_config: Callable[[Any], dict[str, Any]] | None = None
    keys: Keys | None = None
    """The meaning of its configuration's keys; None accepts any key."""
    body: str = ""
    """The prefix of its tensors' names in the program that made it popular."""
    layers: str = r"layers\.\d+\."
    """Pattern of the names of a layer's tensors behind that."""


def load(
    path_or_name: str | Path,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device | Sequence[str | torch.device] = "cpu",
    expect_family: str | None = None,
) -> LanguageModel:
    """Loads a checkpoint as our module, in eval mode.

    Args:
        path_or_name: A Hugging Face or state-spaces model directory or hub id, its weights file alone, a trainer's or
            nanoGPT's ``.pt``, or a ``.gguf``, whose quantised weights are made whole again.
        dtype: The parameters' type; ``A_log`` and ``D`` stay float32 unless float64 is asked for, since their rounding
            is felt at every step of the recurrence.
        device: ``"auto"`` takes a GPU when there is one. Several, as in ``"cuda:0,cuda:1"``, get the layers in order
            (:mod:`..placement`); embeddings and head are on the first, where prompts and recorded values are.
        expect_family: Refuse every family but this.

    Returns:
        The module, with ``config``, ``tokenizer`` (of the directory's tokenizer.json, else None), ``source`` (as given)
        and ``metadata`` (the checkpoint's configuration and other plain values).

    Raises:
        MechintError: there is no such checkpoint, it can't be read safely, or it is not exactly a model of ours.
    """
    check_type(path_or_name, (str, os.PathLike), "what is loaded", "the path of a checkpoint, or a hub id")
    numbers, devices = find_dtype(dtype), find_devices(device)
    path = locate(path_or_name)
    checkpoint = read_checkpoint(path)
    where = short(checkpoint.where if path_exists(path_or_name) else path_or_name, 500)
    if checkpoint.config is None:
        names.check_without_configuration(checkpoint.tensors, checkpoint.where)
    first = devices[0] if len(devices) == 1 else torch.device("cpu")
    model = build(checkpoint.tensors, checkpoint.config, where, numbers, first, expect_family, checkpoint.described)
    model.tokenizer = read_tokenizer(checkpoint.where, model.config.vocab_size)
    model.source = str(path_or_name)
    model.metadata = checkpoint.metadata
    if len(devices) > 1:
        place(model, devices)
    return model


def from_state_dict(
    state: Mapping[str, Tensor],
    config: Mapping[str, Any] | None,
    where: str,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    expect_family: str | None = None,
) -> LanguageModel:
    """The module, in eval mode, of tensors named as any supported program names them; copies them.

    Args:
        state: Names to tensors.
        config: The configuration that came with them, or None; sizes are read off the shapes and checked against it.
        where: The file, for messages.
        dtype, device, expect_family: As for :func:`load`.

    Raises:
        MechintError: as for :func:`load`.
    """
    tensors = clean_names(dict(state), Path(where))
    return build(tensors, config, where, find_dtype(dtype), find_device(device), expect_family)


def build(
    state: dict[str, Tensor],
    config: Mapping[str, Any] | None,
    where: str,
    dtype: torch.dtype,
    device: torch.device,
    expect_family: str | None,
    described: Collection[str] = (),
) -> LanguageModel:
    """The module of the family that knows the tensors. Takes them out of ``state``: each can go once it is copied.

    Args:
        described: Keys of the configuration that describe this model; the others are a trainer's options.
    """
    stacked = declared_family(config, described, where)
    if stacked is not None:
        if expect_family is not None and stacked.name != expect_family:
            raise wrong_family(where, stacked.title, expect_family)
        assert config is not None
        plain_values(config, where)
        with reading(where):
            return build_stack(stacked, state, config, where, dtype, device).eval()
    name = next((name for name, family in FAMILIES.items() if family.detects(state.keys())), None)
    if name is None:
        raise MechintError(f"{where} holds no model of a known family; its tensors are {listing(state)}")
    family = FAMILIES[name]
    if expect_family is not None and name != expect_family:
        raise wrong_family(where, family.title, expect_family)
    if family.build is None:
        raise MechintError(
            f"{where} holds {an(family.title)} model, or a hybrid with its mixers; which, and with how many groups and "
            "states, its tensors do not tell: put its config.json beside it"
        )
    if config is not None:
        config = {str(key): value for key, value in config.items()}
        plain_values(config, where)
        config = merged(config, (*described, *[name] * ("model_type" in config)))
        if family.keys is not None:
            refuse_unknown(config, family.keys, described, where)
    state = without_lead(state, family.layers, family.body) if family.body else state
    with reading(where):
        return family.build(state, config, where, dtype, device).eval()


def wrong_family(where: str, title: str, wanted: str) -> MechintError:
    return MechintError(
        f"{where} holds {an(title)} model, and this configuration is for {wanted}; choose that family's configuration, "
        "or another checkpoint"
    )


def declared_family(config: Mapping[str, Any] | None, described: Collection[str], where: str) -> StackFamily | None:
    """The family of layers made of parts that a configuration names; None where it names none.

    Raises:
        MechintError: a model's own configuration names a family that is not known here.
    """
    named = (config or {}).get("model_type")
    if config is not None and named is None:
        return next((family for family in declared().values() if family.knows and family.knows(config)), None)
    if not isinstance(named, str) or (named in FAMILIES and FAMILIES[named].build is not None):
        return None
    if named in declared():
        return declared()[named]
    if "model_type" in described and named not in OTHER_WORDS:
        raise MechintError(
            f"{where}: a model of the type {shown(named)} is not supported; supported are {', '.join(supported())}"
        )
    return None


OTHER_WORDS = ("gpt", "nanogpt", "mamba1")
"""Words by which trainers call a GPT-2 or a Mamba."""


def supported() -> list[str]:
    """The names of the families that can be loaded."""
    return sorted({*(name for name, family in FAMILIES.items() if family.build is not None), *declared()})


def build_mamba(
    state: dict[str, Tensor], config: Mapping[str, Any] | None, where: str, dtype: torch.dtype, device: torch.device
) -> Mamba:
    """A Mamba of exactly these tensors."""
    sizes, ours = names.infer_config(state, names.claims_of(config, where), where)
    with torch.device("meta"):
        model = Mamba(sizes)
    fill(model, state, ours, where, dtype, device, exact=(".A_log", ".D"))
    return model


def build_gpt2(
    state: dict[str, Tensor], config: Mapping[str, Any] | None, where: str, dtype: torch.dtype, device: torch.device
) -> GPT2:
    """A GPT-2 of exactly these tensors."""
    sizes, ours, turned = gpt2_names.infer_config(state, config, where)
    with torch.device("meta"):
        model = GPT2(sizes)
    fill(model, state, ours, where, dtype, device, turned=turned)
    return model


def build_llama(
    state: dict[str, Tensor], config: Mapping[str, Any] | None, where: str, dtype: torch.dtype, device: torch.device
) -> Llama:
    """A Llama of exactly these tensors."""
    sizes, ours = llama_names.infer_config(state, config, where)
    with torch.device("meta"):
        model = Llama(sizes)
    fill(model, state, ours, where, dtype, device)
    return model


def fill(
    model: nn.Module,
    state: dict[str, Tensor],
    ours: Mapping[str, str],
    where: str,
    dtype: torch.dtype,
    device: torch.device,
    exact: tuple[str, ...] = (),
    turned: Collection[str] = (),
) -> None:
    """Puts the tensors into a model without memory; no initial weights are drawn on the way.

    Args:
        ours: The model's names -> the file's.
        exact: Endings of the names that stay at least float32.
        turned: Names of the model that the file stores transposed.
    """
    shapes = {name: list(parameter.shape) for name, parameter in model.state_dict().items()}
    check_shapes(state, {ours[name]: s[::-1] if name in turned else s for name, s in shapes.items()}, where)
    weights = {}
    with Progress(f"loading {where}", len(ours)) as progress:
        for name, theirs in ours.items():
            kept = torch.float32 if name.endswith(exact) and dtype != torch.float64 else dtype
            tensor = state.pop(theirs)
            weights[name] = convert(tensor.T if name in turned else tensor, kept, device, f"{where}: {theirs}")
            progress.step()
    model.load_state_dict(weights, strict=True, assign=True)


def to_hf_state_dict(model: Model) -> dict[str, Tensor]:
    """The weights under Hugging Face's names, detached and on the CPU; a tied head is left out, as it is there."""
    if isinstance(model, Stack):
        return stack_files.to_hf_state_dict(declared()[model.config.family], model)
    write = FAMILIES[model.config.family].to_hf_state_dict
    assert write is not None
    return write(model)


def hf_config(model: Model) -> dict[str, Any]:
    """The arguments of transformers' configuration, and the contents of a ``config.json``."""
    if isinstance(model, Stack):
        return declared()[model.config.family].write(model)
    write = FAMILIES[model.config.family].hf_config
    assert write is not None
    return write(model)


def locate(path_or_name: str | Path) -> Path:
    """Path of the checkpoint on this machine, fetched from the hub if it is a hub id and not a path."""
    path = Path(path_or_name).expanduser()
    if path_exists(path_or_name):
        return path
    refuse_missing_path(str(path_or_name))
    if is_hub_id(str(path_or_name)):
        return fetch(str(path_or_name))
    raise MechintError(
        f"{short(path_or_name)}: no such file or directory (and not shaped like a hub id, owner/name)"
        f"{todays_name(str(path_or_name))}"
    )


def find_dtype(dtype: str | torch.dtype) -> torch.dtype:
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    if dtype not in DTYPES:
        raise MechintError(f"dtype {dtype} is none of {', '.join(DTYPES)}{did_you_mean(str(dtype), DTYPES)}")
    return DTYPES[str(dtype)]


def find_device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise MechintError(f"device {device!r} is not one that torch knows; use auto, cpu or cuda") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise MechintError("device cuda was asked for, but torch sees no GPU; use auto or cpu")
    return found


def find_devices(devices: str | torch.device | Sequence[str | torch.device]) -> list[torch.device]:
    """One device, or several that commas or spaces stand between; each by its number.

    Raises:
        MechintError: none is given, torch has one of them not, or one is named twice.
    """
    named = devices.replace(",", " ").split() if isinstance(devices, str) else devices
    every = [find_device(device) for device in ([named] if isinstance(named, torch.device) else named)]
    if not every:
        raise MechintError("no device is named; use auto, cpu, cuda, or several such as cuda:0,cuda:1")
    if len(every) == 1:
        return every
    try:
        found = [torch.empty(0, device=device).device for device in every]
    except (RuntimeError, AssertionError) as error:
        raise MechintError(f"devices {shown(str(devices))}: {str(error).splitlines()[0]}; name others") from None
    if len(set(found)) < len(found):
        twice = max(found, key=found.count)
        raise MechintError(f"devices {shown(str(devices))}: {twice} is named twice; name each once")
    return found


def _ending(names: Collection[str], *parts: str) -> bool:
    return any(name == part or name.endswith("." + part) for name in names for part in parts)


def supported_titles() -> dict[str, str]:
    """The title of every family that can be loaded, by each of its values of ``model_type``."""
    known = declared()
    return {name: known[name].title if name in known else FAMILIES[name].title for name in supported()}


def model_classes() -> dict[str, type[LanguageModel]]:
    """The class of every family that can be loaded, by the family's name."""
    return {name: family.model for name, family in FAMILIES.items() if family.model is not None}


FAMILIES: dict[str, Family] = {
    "mamba2": Family("Mamba-2", lambda state: _ending(state, "A_log") and _ending(state, "dt_bias")),
    "mamba": Family(
        "Mamba",
        lambda state: _ending(state, "A_log", "x_proj.weight", "dt_proj.weight"),
        Mamba,
        build_mamba,
        names.to_hf_state_dict,
        names.hf_config,
        names.KEYS,
        "backbone",
    ),
    "gpt2": Family(
        "GPT-2",
        lambda state: _ending(state, "wte.weight", "attn.c_attn.weight"),
        GPT2,
        build_gpt2,
        gpt2_names.to_hf_state_dict,
        gpt2_names.hf_config,
        gpt2_names.KEYS,
        "transformer",
        r"(?:h|layers)\.\d+\.",
    ),
    "llama": Family(
        "Llama",
        lambda state: _ending(state, "self_attn.q_proj.weight"),
        Llama,
        build_llama,
        llama_names.to_hf_state_dict,
        llama_names.hf_config,
        llama_names.KEYS,
        "model",
    ),
}
"""Asked in this order; the first that recognises the tensors' names builds."""
