"""The request of a scorecard, and the check that another request's finished card is never overwritten."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..ground_truth import GROUPS, MODELS
from ..report.finished import finished
from ..utils import files, workers
from ..utils.errors import MechintError, did_you_mean
from ..utils.options import check, listed
from ..utils.rundir import check_writable, code_digest, fingerprint, noted
from .hard.from_file import method_from
from .hard.recovery import points
from .methods import METHODS
from .options import ScorecardConfig

OPTION = "--output-dir"
INSTEAD = f'choose another {OPTION} (SCORE="… {OPTION} output/…"), or say --rerun to replace what is there'


def check_request(config: ScorecardConfig) -> None:
    """Raises :class:`MechintError` for an option out of its range, a name of no model and no method, or a bad file."""
    check(config)
    known = [*GROUPS, *MODELS]
    for name in listed(config.models, "models") or [""]:
        if name not in known:
            raise MechintError(f"no model {name!r}{did_you_mean(name, known)}; take {', '.join(known)}")
    config.chosen(METHODS)
    for path in config.score_files():
        method_from(path)
    points(config)


def key_of(config: ScorecardConfig, outside: Iterable[str] = ()) -> dict[str, Any]:
    """All that the numbers of a card follow from; methods of others by their names alone, whatever their code.

    Files of scores are there by their content.
    """
    said = dataclasses.asdict(config)
    said["models"], said["methods"] = (",".join(listed(getattr(config, name))) for name in ("models", "methods"))
    said["scores"] = [files.sha256(path) for path in config.score_files()]
    del said["output_dir"], said["rerun"]
    return {**said, "code": code_digest(), "outside": sorted(outside)}


def standing(folder: Path, key: dict[str, Any], rerun: bool) -> dict[str, Any] | None:
    """The finished results of this very request, if ``folder`` has them; reads and writes nothing else.

    Raises:
        MechintError: it has results or unfinished work that would be lost: of another request, or of other code; or
            results of methods of others, and it is unknown whether these are the same methods.
    """
    if rerun:
        return None
    if noted(folder / ".stages") not in (None, fingerprint(key)):
        raise MechintError(
            f"{folder} holds the unfinished work of another request, or of the same one by other code; {INSTEAD}"
        )
    if key["outside"] and (folder / "results.json").exists():
        raise MechintError(
            f"{folder} holds finished results, and whether {', '.join(key['outside'])} would score the same is not "
            f"known; choose another output_dir, or replace them with rerun=True"
        )
    if not finished(folder, key, rerun, INSTEAD):
        return None
    results: dict[str, Any] = files.read_json(folder / "results.json")
    return results


@contextlib.contextmanager
def claimed(folder: Path, key: dict[str, Any], rerun: bool) -> Iterator[dict[str, Any] | None]:
    """Holds ``folder`` for one request, and gives what :func:`standing` finds there.

    If there are several processes, the first decides and tells the others, so that no process waits for one that was
    refused.
    """
    with contextlib.ExitStack() as held:
        said: Any = None
        if workers.worker()[0] == 0:
            try:
                check_writable(folder, OPTION)
                held.enter_context(files.lock(folder))
                said = standing(folder, key, rerun)
                if noted(folder / ".stages") not in (None, fingerprint(key)):  # a rerun, which may itself keep none
                    files.remove(folder / ".stages")
            except (MechintError, OSError) as error:
                said = error
        said = workers.exchange(said)[0]
        if isinstance(said, Exception):
            raise said
        yield said


def check_place(config: ScorecardConfig, dry: bool = False) -> dict[str, Any] | None:
    """All that is checked before the work, as :func:`claimed` will, and what it will find; ``dry`` writes nothing.

    Raises:
        MechintError: the request would be refused.
    """
    check_request(config)
    folder = Path(config.output_dir)
    check_writable(folder, OPTION, dry)
    with files.lock(folder) if (folder / ".lock").exists() else contextlib.nullcontext():
        return standing(folder, key_of(config), config.rerun)


def plan(config: ScorecardConfig) -> str:
    """Says what would be scored and where it would go; writes nothing.

    Raises:
        MechintError: the request would be refused.
    """
    old = check_place(config, dry=True)
    folder, names, last = Path(config.output_dir), config.names, config.first_seed + config.seeds - 1
    planted = ", and planted features for each seed" if config.plants else ""
    alone = ", of units alone" if config.units_only else ""
    curves = f", at {len(points(config))} points of curves" if points(config) else ""
    items = config.seeds * (len(names) * (1 + len(points(config))) + config.plants)
    sizes = f"models × seeds: {len(names)} × {config.seeds}{planted}{curves}; items: {items}"
    lines = [
        f"would score every method{alone}; {sizes}",
        f"models: {', '.join(names)}",
        f"seeds: {config.first_seed}" + (f" to {last}" if config.seeds > 1 else ""),
        f"results: {folder / 'results.json'}, scorecard.html, .md and .png beside it",
    ]
    unfinished = noted(folder / ".stages")
    if old is not None:
        lines.append("these are finished: their table would be printed, and nothing scored (--rerun scores again)")
    elif unfinished == fingerprint(key_of(config)):
        done = len(list((folder / ".stages").glob("*.done.pt")))
        lines.append(f"items of them finished already, not scored again: {done}")
    elif (folder / "results.json").exists() or unfinished is not None:
        lines.append("what is there would be replaced (--rerun)")
    return "\n".join(lines)
