"""Activations on disk: one memory-mapped shard for each pool and site, and a manifest that says what they are.

A shard is whole or absent and the manifest is written after it, so a killed or full cache resumes where it was. The
manifest holds the hashes of weights, sites, rules and contexts; a cache of anything else is refused.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...utils import files, workers
from ...utils.errors import MechintError
from ...utils.progress import Progress
from .pools import Streamed

SCHEMA = 1
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Cached:
    """Pools from a cache that :func:`fill_cache` has filled; nothing but the shard in use is in memory.

    Args:
        directory: Directory of the cache.
        fingerprint: Content that it must hold, from :attr:`Streamed.fingerprint`; None takes whatever it holds.

    Raises:
        MechintError: there is no cache, it holds something else, or shards are missing or cut short.
    """

    def __init__(self, directory: str | Path, fingerprint: str | None = None) -> None:
        self.directory = Path(directory)
        manifest = read_manifest(self.directory)
        if manifest is None:
            raise MechintError(f"{directory} holds no activations (no manifest.json); fill it first")
        if fingerprint is not None:
            check_manifest(manifest, fingerprint, {}, self.directory)
        self.dtype = DTYPES[manifest["dtype"]]
        self.widths: dict[str, int] = dict(manifest["widths"])
        self.sites = list(manifest["sites"])
        self.shards: list[dict[str, int]] = manifest["shards"]
        self.count: int | None = len(self.shards)
        self.fingerprint: str = manifest["fingerprint"]
        for i, rows in enumerate(self.shards):
            for site in self.sites:
                path, size = self.path(site, i), rows[site] * self.widths[site] * self.dtype.itemsize
                if not path.is_file() or path.stat().st_size != size:
                    raise MechintError(f"{path} is missing or cut short; delete {directory} and fill the cache again")
        if not self.shards:
            raise MechintError(f"{directory} holds no shard yet; fill the cache first")

    def path(self, site: str, i: int) -> Path:
        return shard_path(self.directory, site, i)

    def pool(self, i: int) -> dict[str, Tensor]:
        """Shard i of each site, [rows, d_in] float32.

        Raises:
            MechintError: it holds NaN or infinite numbers.
        """
        found = {}
        for site in self.sites:
            rows, width = self.shards[i][site], self.widths[site]
            if rows == 0:
                found[site] = torch.empty(0, width)
                continue
            flat = torch.from_file(str(self.path(site, i)), shared=False, size=rows * width, dtype=self.dtype)
            value = flat.view(rows, width)
            bad = (~torch.isfinite(value.sum(-1))).nonzero()
            bad = bad[(~torch.isfinite(value[bad.squeeze(1)])).any(-1)] if len(bad) else bad
            if len(bad):
                raise MechintError(
                    f"{self.path(site, i)}: row {int(bad[0])} holds NaN or infinite numbers; delete {self.directory} "
                    f"and fill the cache again"
                )
            found[site] = value.float()
        return found


def fill_cache(source: Streamed, directory: str | Path, pools: int | None = None, dtype: str = "float32") -> Cached:
    """Writes the pools that are not there yet.

    Args:
        source: Activations from the model.
        directory: Directory of the cache; made if it does not exist.
        pools: Number of pools; None for all of a finite corpus.
        dtype: On disk: float32 keeps every bit; bfloat16 and float16 need half the room.

    Raises:
        MechintError: the cache there is of another model, site or corpus; or the disk has not enough room.
    """
    directory = Path(directory)
    count = source.count if pools is None else pools if source.count is None else min(pools, source.count)
    if count is None:
        raise MechintError("these contexts have no end; say how many pools to cache")
    if dtype not in DTYPES:
        raise MechintError(f"activations can't be stored as {dtype!r}; take {', '.join(DTYPES)}")
    rank, _ = workers.team()
    with files.lock(directory) if rank == 0 else contextlib.nullcontext():
        manifest = read_manifest(directory) if rank == 0 else None
        if manifest is None:
            manifest = {
                "schema": SCHEMA, "fingerprint": source.fingerprint, "facts": source.facts, "dtype": dtype,
                "sites": source.sites, "widths": source.widths, "shards": [], "contexts": source.contexts.name,
            }  # fmt: skip
        else:
            check_manifest(manifest, source.fingerprint, source.facts, directory)
        manifest = workers.from_first(manifest)
        with Progress("caching activations", count) as progress:
            progress.skip_to(len(manifest["shards"]))
            for i in range(len(manifest["shards"]), count):
                pool = source.pool(i)
                if rank == 0:
                    write_shard(directory, i, pool, manifest, count)
                progress.step()
        workers.barrier()
    return Cached(directory, source.fingerprint)


def write_shard(directory: Path, i: int, pool: dict[str, Tensor], manifest: dict[str, Any], count: int) -> None:
    """One shard of each site, then the manifest that knows it."""
    kind = DTYPES[manifest["dtype"]]
    need = sum(rows.numel() for rows in pool.values()) * kind.itemsize
    written: list[Path] = []
    try:
        if (free := shutil.disk_usage(directory).free) < need:
            raise OSError(errno.ENOSPC, "No space left on device", str(directory))
        for site, rows in pool.items():
            data = rows.to(kind).cpu().contiguous().view(torch.uint8).numpy().tobytes()
            written.append(files.write_bytes(shard_path(directory, site, i), data))
        manifest["shards"].append({site: len(rows) for site, rows in pool.items()})
        files.write_json(directory / "manifest.json", manifest)
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(directory).free
        raise MechintError(
            f"the disk of {directory} is full at shard {i + 1} of {count} ({free / 2**20:.0f} MiB free, "
            f"{need * (count - i) / 2**20:.0f} MiB needed); free the space and run again to go on, or choose another "
            f"directory"
        ) from None


def shard_path(directory: Path, site: str, i: int) -> Path:
    return directory / site / f"shard-{i:05d}.bin"


def read_manifest(directory: Path) -> dict[str, Any] | None:
    path = directory / "manifest.json"
    if not path.exists():
        return None
    manifest = files.read_json(path)
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise MechintError(f"{path} is not a manifest of activations of schema {SCHEMA}; choose another directory")
    return manifest


def check_manifest(manifest: dict[str, Any], fingerprint: str, facts: dict[str, Any], directory: Path) -> None:
    """Raises :class:`MechintError` when a cache holds other activations than those wanted, and says what differs."""
    if manifest["fingerprint"] == fingerprint:
        return
    old = manifest["facts"]
    names = {"weights": "model", "sites": "site", "contexts": "text"}
    differs = [names.get(name, name) for name, value in facts.items() if old.get(name) != value] or ["origin"]
    raise MechintError(
        f"{directory} holds activations of another {', '.join(differs)} ({', '.join(manifest['sites'])} of "
        f"{manifest['contexts']}); choose another cache directory or delete it"
    )
