"""The format of circuit-tracer: a ``config.yaml`` that lists a transcoder for each layer, and its two hooks.

``model_kind`` is ``transcoder_set``. ``transcoders`` lists a file for each layer, from layer 0 on: a path beside the
configuration, or ``hf://owner/name/file`` of the hub (with ``?revision=…``). Without a list the files are
``layer_0.safetensors`` and so on beside it. A file has W_enc and W_dec, both [latent, width], b_enc, b_dec, and where
there are some W_skip and the thresholds of JumpReLU; or it is ``params.npz`` of Gemma Scope, or
``params.safetensors`` of Gemma Scope 2.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import yaml  # type: ignore[import-untyped]

from ...models.loading.checkpoints import CONFIG_LIMIT, read_safetensors
from ...models.loading.hub import fetch_folder, is_hub_id
from ...utils.errors import MechintError, short, shown
from ...utils.files import read_regular
from ..transcoder import Transcoder, TranscoderConfig
from . import config_keys as keys
from . import gemma_scope, gemma_scope_2
from .convert import take

CONFIG = "config.yaml"
KNOWN = keys.listed("model_kind transcoders feature_input_hook feature_output_hook activation")
HARMLESS = keys.listed("model_name scan repo_id revision subfolder")
KIND = "transcoder_set"
PLAIN = {"W_enc.T": "W_enc", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
THRESHOLDS = ("activation_function.threshold", "threshold")
ACTIVATIONS = {"relu": "relu", "jumprelu": "jumprelu", "jump_relu": "jumprelu"}
LAYER_FILE = re.compile(r"layer_([0-9]{1,4})\.safetensors")


@dataclass(frozen=True)
class TranscoderSet:
    """The files and hooks of some transcoders, as their configuration says them.

    Attributes:
        file: The configuration.
        places: The file of each layer: a path, or an address of the hub.
        read, written: Names of hooks behind ``blocks.{layer}.``.
        model_name: Hub id of the model.
        activation: ``relu`` or ``jumprelu``; '' where the files say it.
    """

    file: Path
    places: dict[int, str]
    read: str
    written: str
    model_name: str
    activation: str

    def load(self, layer: int) -> Transcoder:
        """Reads the transcoder of one layer; a file of the hub is fetched.

        Raises:
            MechintError: there is none of this layer, or its file is refused.
        """
        if layer not in self.places:
            raise MechintError(f"{self.file} lists no transcoder of layer {layer}; it has {numbers(self.places)}")
        path = local(self.places[layer], self.file)
        tensors = {} if path.suffix == ".npz" else read_safetensors(path)
        if path.suffix == ".npz":
            found = gemma_scope.tensors(path)
        elif "w_enc" in tensors:
            found = gemma_scope_2.named(tensors, path)
        else:
            more = {name: "threshold" for name in THRESHOLDS if name in tensors}
            more |= {"W_skip": "W_skip"} if "W_skip" in tensors else {}
            found = take(tensors, PLAIN | more, (), str(path))
        if found["W_enc"].dim() != 2 or found["W_dec"].dim() != 2:
            raise MechintError(f"{path}: an encoder or a decoder is not a matrix; copy the file again")
        kind = "jumprelu" if "threshold" in found else "relu"
        if self.activation not in ("", kind):
            has = "thresholds" if kind == "jumprelu" else "no thresholds"
            raise MechintError(f"{self.file} says the activation {self.activation}, and {path} has {has}; correct it")
        if kind == "jumprelu" and bool((found["threshold"] < 0).any()):
            raise MechintError(f"{path}: a threshold is below 0, where a latent would be negative; not supported")
        (d_in, d_sae), d_out = found["W_enc"].shape, found["W_dec"].shape[1]
        at = f"blocks.{layer}."
        config = TranscoderConfig(
            kind, d_in, d_sae, d_out, site=at + self.read, site_out=at + self.written, model_name=self.model_name
        )
        return Transcoder(config, found, str(path))


def read_set(directory: Path) -> TranscoderSet:
    """Reads the configuration of a set of transcoders; none of its files.

    Raises:
        MechintError: it is no such configuration, is of another kind, or has a key that is not understood.
    """
    file = directory / CONFIG
    if not file.is_file():
        raise MechintError(f"{directory} is not a set of transcoders: {CONFIG} is missing")
    try:
        raw: Any = yaml.safe_load(read_regular(file, CONFIG_LIMIT, "copy it again"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError):
        raise MechintError(f"{file} is not YAML that can be read; copy it again") from None
    if not isinstance(raw, dict) or not all(isinstance(name, str) for name in raw):
        raise MechintError(f"{file} is not the configuration of a set of transcoders")
    if raw.get("model_kind") != KIND:
        raise MechintError(f"{file}: model_kind is {shown(raw.get('model_kind'))}; only {KIND} can be read")
    keys.refuse_unknown(raw, KNOWN | HARMLESS, file)
    hooks = [raw.get(name) for name in ("feature_input_hook", "feature_output_hook")]
    for name, hook in zip(("feature_input_hook", "feature_output_hook"), hooks, strict=True):
        if not isinstance(hook, str) or not re.fullmatch(r"[a-z][\w.]*", hook):
            raise MechintError(f"{file}: {name} is {shown(hook)}, which is no hook of a layer; correct it")
    said = raw.get("activation")
    if said is not None and said not in ACTIVATIONS:
        raise MechintError(f"{file}: activation is {shown(said)}; take one of {', '.join(ACTIVATIONS)}")
    places = listed(raw["transcoders"], file) if raw.get("transcoders") is not None else beside(directory)
    activation = "" if said is None else ACTIVATIONS[said]
    return TranscoderSet(file, places, str(hooks[0]), str(hooks[1]), keys.text(raw, "model_name"), activation)


def listed(said: Any, file: Path) -> dict[int, str]:
    """The file of each layer, as the configuration lists them."""
    if not isinstance(said, list) or not said:
        raise MechintError(f"{file}: transcoders is {shown(said)}, which is no list of files; correct it")
    for layer, place in enumerate(said):
        if not isinstance(place, str) or (not place.endswith((".safetensors", ".npz")) and "?" not in place):
            raise MechintError(f"{file}: the transcoder of layer {layer} is {shown(place)}, which is no file's path")
    return dict(enumerate(said))


def beside(directory: Path) -> dict[int, str]:
    """The files ``layer_N.safetensors`` in a directory, by their number."""
    named = {path.name: LAYER_FILE.fullmatch(path.name) for path in directory.glob("layer_*.safetensors")}
    found = {int(match[1]): name for name, match in named.items() if match is not None}
    if not found:
        raise MechintError(
            f"{directory / CONFIG} lists no transcoders, and no layer_0.safetensors lies beside it; name the directory "
            f"of a local copy of all its files"
        )
    return dict(sorted(found.items()))


def local(place: str, file: Path) -> Path:
    """The path of one file on this machine, fetched from the hub where it is an address there."""
    if not place.startswith("hf://"):
        path = file.parent / place
        if not path.is_file():
            raise MechintError(f"{file} lists {short(place)}, and there is no such file beside it; copy it again")
        return path
    parts = urlsplit(place)
    name, _, inside = parts.path.strip("/").partition("/")
    repo, asked = f"{parts.netloc}/{name}", dict(parse_qsl(parts.query))
    revision = asked.pop("revision", "main")
    plain = re.fullmatch(r"[\w.-]+", revision) is not None and not asked and not parts.fragment
    if not plain or not is_hub_id(repo) or not inside or ".." in inside.split("/"):
        raise MechintError(f"{file} lists {short(place)}, which is no hf://owner/name/file; correct it")
    folder, _, last = inside.rpartition("/")
    return fetch_folder(repo, folder, ((last,),), revision) / last


def numbers(layers: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(layers)))
