"""Reading files: every checkpoint format becomes named tensors and, where there is one, a configuration.

Nothing here knows a model family, and nothing here runs code that a file brings along.
"""

from __future__ import annotations

import argparse
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...utils.checkpoint_step import SUFFIXES
from ...utils.errors import MechintError, one_line, short
from ...utils.files import check_regular, parse_json, read_json, reading, refuse_constant
from ...utils.options import drawn_again
from .gguf import read_gguf

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""The weights of a model directory, the first one there counts."""
MASKS = "final_masks.pt"
NOTES = "mechint"
"""The entry of a safetensors file's header in which our trainer tells the task, the options and the losses, as JSON."""
STATE_KEYS = ("model", "model_state_dict", "state_dict")
CONFIG_KEYS = ("args", "config", "model_args")
"""Places of a configuration in a checkpoint. The last wins: nanoGPT builds its model from ``model_args``."""
WRAPPERS = frozenset({"_orig_mod", "module", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})
"""Parts of names that torch.compile, DistributedDataParallel, checkpointed blocks and FSDP add where they wrap."""
CONFIG_LIMIT = 64_000_000
"""Bytes that are read of a config.json or an index of shards at the most."""


@dataclass
class Checkpoint:
    """The contents of the file or directory ``where``. ``tensors`` may be views of a mapped file: copy to keep."""

    tensors: dict[str, Tensor]
    config: dict[str, Any] | None
    where: Path
    metadata: dict[str, Any] = field(default_factory=dict)
    described: frozenset[str] = frozenset()
    """Keys of the configuration that were written to describe this model; the others are a trainer's options."""

    @property
    def directory(self) -> Path:
        return self.where if self.where.is_dir() else self.where.parent


def is_checkpoint_file(path: Path) -> bool:
    """True if a file's name is that of a checkpoint, and not of masks or of a trainer's state to resume from."""
    return has_name_of_checkpoint(path) and path.is_file()


def has_name_of_checkpoint(path: Path) -> bool:
    """True if a path ends like that of a checkpoint, and not like masks or a trainer's state to resume from."""
    listed = path.suffix in SUFFIXES and (path.suffix != ".bin" or path.name in WEIGHTS)  # others write .bin, too
    return listed and path.name != MASKS and not path.name.endswith(".resume.pt")


def is_model_directory(path: Path) -> bool:
    """True if a directory holds one model under the usual names."""
    return any((path / name).is_file() for name in WEIGHTS)


def refuse_masks(path: Path) -> None:
    """Raises where a finished analysis stands in a checkpoint's place."""
    masks = path / MASKS if path.is_dir() else path
    if masks.name == MASKS and masks.is_file() and not (path.is_dir() and is_model_directory(path)):
        raise MechintError(
            f"{path} is a finished analysis ({MASKS}), not a checkpoint; give the checkpoint it was made from, "
            f"or draw it again with {drawn_again(masks.parent)}"
        )


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a model directory or a single file.

    Raises:
        MechintError: nothing readable is there, or reading it would run code.
    """
    refuse_masks(path)
    if path.is_dir():
        if not is_model_directory(path):
            return read_checkpoint(_only_file(path))
        config = read_config(path)
        told = {**read_notes(path / WEIGHTS[0]), **(config or {})}
        return Checkpoint(read_weights(path), config, path, told, frozenset(config or ()))
    if path.suffix not in SUFFIXES:
        raise MechintError(f"{path} is not a checkpoint: its name ends in none of {', '.join(SUFFIXES)}")
    if re.search(r"-\d{5}-of-\d{5}\.", path.name):
        raise MechintError(f"{path} is one shard of several; give the directory {path.parent}")
    if path.suffix == ".safetensors":
        config = read_config(path.parent)
        tensors = clean_names(read_safetensors(path), path)
        told = {**read_notes(path), **(config or {})}
        return Checkpoint(tensors, config, path, told, frozenset(config or ()))
    if path.suffix == ".gguf":
        tensors, config = read_gguf(path)
        return Checkpoint(clean_names(tensors, path), config, path, dict(config), frozenset(config))
    return _unpack(read_torch(path), path)


def read_config(directory: Path) -> dict[str, Any] | None:
    """``config.json`` of a model directory, None where there is none."""
    path = directory / "config.json"
    return _read_json_dict(path, infinity) if path.is_file() else None


def infinity(name: str) -> Any:
    """The infinity that earlier releases of transformers write into a config.json, in the words of today's."""
    return {"__float__": name} if name == "Infinity" else refuse_constant(name)


def weight_files(directory: Path) -> list[Path]:
    """The files of a model directory's weights; all shards when there is an index.

    Raises:
        MechintError: there are none, the index is unreadable, or a shard is missing.
    """
    first = next((directory / name for name in WEIGHTS if (directory / name).is_file()), None)
    if first is None:
        raise MechintError(f"{directory} holds no weights; looked for {', '.join(WEIGHTS)}")
    if first.suffix != ".json":
        return [first]
    names = index_files(first)
    if absent := [name for name in names if not (directory / name).is_file()]:
        raise MechintError(f"{directory}: {len(absent)} of {len(names)} shards are missing ({absent[0]} …); fetch them")
    return [directory / name for name in names]


def index_files(index: Path) -> list[str]:
    """The shards that an index names, each once, in order of their names."""
    shards = _read_json_dict(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise MechintError(f"{index} has no weight_map of tensor names to shards; fetch it again")
    names = sorted(set(shards.values()))
    if outside := [name for name in names if Path(name).name != name]:
        raise MechintError(f"{index} names a shard outside its directory ({outside[0]}); refused")
    return names


def read_weights(directory: Path) -> dict[str, Tensor]:
    """The tensors of a model directory, of all shards."""
    tensors: dict[str, Tensor] = {}
    for path in weight_files(directory):
        one = read_safetensors(path) if path.suffix == ".safetensors" else _unpack(read_torch(path), path).tensors
        if twice := sorted(tensors.keys() & one.keys()):
            raise MechintError(f"{path}: {len(twice)} tensors are in another shard too ({twice[0]} …)")
        tensors |= one
    return clean_names(tensors, directory)


def clean_names(tensors: dict[str, Tensor], where: Path) -> dict[str, Tensor]:
    """The same tensors without the names of wrappers in theirs."""
    clean: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        bare = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if bare in clean:
            raise MechintError(f"{where}: the tensor {short(bare)} is there twice, once as {short(name)}")
        clean[bare] = tensor
    return clean


def _only_file(directory: Path) -> Path:
    files = sorted(path for path in directory.iterdir() if is_checkpoint_file(path))
    if len(files) == 1:
        return files[0]
    if not files:
        raise MechintError(
            f"{directory} holds no checkpoint; looked for {', '.join(WEIGHTS)} or one file *.pt, *.safetensors, *.gguf"
        )
    names = ", ".join(path.name for path in files[:4])
    raise MechintError(
        f"{directory} holds {len(files)} checkpoints ({names}{' …' if len(files) > 4 else ''}); name one"
    )


def _read_json_dict(path: Path, constant: Callable[[str], Any] = refuse_constant) -> dict[str, Any]:
    value = read_json(path, "fetch it again", CONFIG_LIMIT, constant)
    if not isinstance(value, dict):
        raise MechintError(f"{path} holds a {type(value).__name__} where a JSON object should be; fetch it again")
    return value


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, views of the mapped file.

    Raises:
        MechintError: it is no regular file, or cut short or damaged.
    """
    from safetensors import safe_open

    def read(name: str) -> Tensor:  # one mapping for each tensor, so that memory is freed with the tensor
        with safe_open(str(path), framework="pt") as file:
            return file.get_tensor(name)

    check_regular(path, None, "checkpoint")
    with reading(path):
        with safe_open(str(path), framework="pt") as file:
            names = list(file.keys())
        return {name: read(name) for name in names}


def read_notes(path: Path) -> dict[str, Any]:
    """Reads what our trainer says of a model in the header of its safetensors file; nothing where there is nothing.

    Raises:
        MechintError: it is no regular file, or damaged.
    """
    from safetensors import safe_open

    if not path.is_file():
        return {}
    check_regular(path, None, "checkpoint")
    with reading(path), safe_open(str(path), framework="pt") as file:
        text = (file.metadata() or {}).get(NOTES)
    value = {} if text is None else parse_json(text, f"the header of {path}")
    if not isinstance(value, dict):
        raise MechintError(f"the header of {path} has a {type(value).__name__} under {NOTES!r}, not an object")
    return value


class NumpyType:
    """Stands for ``numpy.dtype`` in a pickle: which number the bytes are, and nothing that numpy would do."""

    def __init__(self, kind: str, align: bool = False, copy: bool = False) -> None:
        self.kind, self.order = str(kind), "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


def numpy_scalar(kind: NumpyType, data: bytes) -> bool | int | float:
    """Stands for numpy's own function, which makes a scalar of its type and bytes: the number as Python has it."""
    letters = {"b1": "?", "f2": "e", "f4": "f", "f8": "d", "i1": "b", "i2": "h", "i4": "i", "i8": "q",
               "u1": "B", "u2": "H", "u4": "I", "u8": "Q"}  # fmt: skip
    if kind.kind not in letters:
        raise ValueError(f"a NumPy scalar of type {short(kind.kind, 20)}")
    number: bool | int | float = struct.unpack(kind.order + letters[kind.kind], data)[0]
    return number


NUMPY = {
    "numpy.dtype": NumpyType,
    "numpy.core.multiarray.scalar": numpy_scalar,
    "numpy._core.multiarray.scalar": numpy_scalar,
}
ALLOWED: list[Any] = [argparse.Namespace, *((ours, theirs) for theirs, ours in NUMPY.items())]
"""Beside tensors and plain values, what a ``.pt`` may call for: a trainer's options, and NumPy's numbers."""
LLM_C = {
    20240520: "a file of tokens (llm.c's GPT-2 tokens), not a checkpoint",
    20240801: "a file of tokens (llm.c's Llama-3 tokens), not a checkpoint",
    20240326: "llm.c's file of a GPT-2's weights, which is not read here",
    20240803: "llm.c's file of a Llama-3's weights, which is not read here",
    20240327: "llm.c's file of a GPT-2's states for debugging, not a checkpoint",
    20240328: "llm.c's file of a tokenizer, not a checkpoint",
    20240527: "llm.c's state of an optimiser, not a checkpoint",
}
"""Kinds of file by their first four bytes, as a little-endian number."""


def read_torch(path: Path) -> Any:
    """Reads a file of ``torch.save`` with ``weights_only=True``; tensors stay in the mapped file where they can.

    Raises:
        MechintError: it is no regular file, damaged, or reading it would run code.
    """
    check_regular(path, None, "checkpoint")
    with open(path, "rb") as file:
        head = file.read(4)
    if what := LLM_C.get(int.from_bytes(head, "little")):
        raise MechintError(f"{path} is {what}; save the model in PyTorch's form (.pt, .safetensors), and give that")
    head = head[:2]
    zipped = head == b"PK"
    if zipped and not zipfile.is_zipfile(path):
        raise MechintError(
            f"{path} is cut short or damaged (its table of contents is missing); copy or download it again"
        )
    if head[:1] == b"\x80" and head != b"\x80\x02":  # torch.save writes protocol 2; this is another program's pickle
        raise _refused(path, _foreign_global(path))
    try:
        with torch.serialization.safe_globals(ALLOWED):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except (OSError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        wanted = re.search(r"(?:GLOBAL|class) ([\w.]+)", str(error))
        raise _refused(path, wanted.group(1) if wanted else None if zipped else _foreign_global(path)) from None
    except Exception as error:  # torch raises a different type for every way in which a file can be broken
        reason = one_line(short((str(error).splitlines() or [""])[0], 120))
        raise MechintError(
            f"{path} is not a checkpoint, or a damaged one: torch can't read it ({type(error).__name__}: {reason})"
        ) from None


def _refused(path: Path, wanted: str | None) -> MechintError:
    if wanted is None:
        return MechintError(f"{path} is not a checkpoint: neither a torch.save file of tensors nor safetensors")
    return MechintError(
        f"{path} is refused: its pickle calls for {wanted}, which could run code on load; "
        "save a dict of tensors and plain values (or safetensors) in its place"
    )


def _foreign_global(path: Path) -> str | None:
    """The first name a pickle would import that is neither torch's nor a plain container."""
    return next(
        (
            name
            for name in _globals(path)
            if not name.startswith(("torch.", "collections.", "argparse.Namespace", "_codecs.encode", *NUMPY))
        ),
        None,
    )


def _globals(path: Path) -> Iterator[str]:
    """The names that a pickle would import, found without running it."""
    words: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for opcode, value, _ in pickletools.genops(path.read_bytes()):
            if opcode.name == "GLOBAL":
                yield str(value).replace(" ", ".")
            elif opcode.name == "STACK_GLOBAL" and len(words) >= 2:
                yield f"{words[-2]}.{words[-1]}"
            elif opcode.name == "MEMOIZE":
                memo[len(memo)] = words[-1] if words else None
            elif "GET" in opcode.name:
                words.append(memo.get(int(value or 0)))
            elif "UNICODE" in opcode.name:
                words.append(value)
    except ValueError:  # not a pickle to its end; the findings so far are kept
        return


def _unpack(value: Any, path: Path) -> Checkpoint:
    """A trainer's dict, or a bare state dict, taken apart."""
    if not isinstance(value, dict):
        raise MechintError(f"{path} holds a {type(value).__name__}, not a dict of tensors; it is not a checkpoint")
    key = next((key for key in STATE_KEYS if isinstance(value.get(key), dict)), None)
    state = value if key is None else value[key]
    odd = [short(str(name), 80) for name, tensor in state.items() if not isinstance(tensor, Tensor)]
    if not state or odd:
        inside = (
            f" under {key!r}"
            if key
            else f" (it has {', '.join(short(str(k), 40) for k in list(value)[:6]) or 'nothing'})"
        )
        what = f"{odd[0]!r} is no tensor" if odd else "nothing is there"
        raise MechintError(f"{path} holds no model weights{inside}: {what}; it is not a checkpoint of a model")
    tensors = clean_names({str(name): tensor for name, tensor in state.items()}, path)
    config: dict[str, Any] | None
    if key is None:
        config = read_config(path.parent) if path.name in WEIGHTS else None
        return Checkpoint(tensors, config, path, dict(config or {}), frozenset(config or ()))
    found = [(name, value[name]) for name in CONFIG_KEYS if isinstance(value.get(name), (dict, argparse.Namespace))]
    config = {} if found else None
    described: frozenset[str] = frozenset()
    for name, said in found:
        plain = {str(k): v for k, v in (vars(said) if isinstance(said, argparse.Namespace) else said).items()}
        config = {**(config or {}), **plain}
        described = frozenset(plain) if name == "model_args" else described
    others = {name: item for name, item in value.items() if name not in (*STATE_KEYS, *CONFIG_KEYS) and _is_plain(item)}
    return Checkpoint(tensors, config, path, {**others, **(config or {})}, described)


def _is_plain(value: Any) -> bool:
    """True if a value is made of numbers, strings and containers of them alone."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))
