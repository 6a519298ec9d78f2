"""A run at Weights & Biases: checked before any work starts, and logged to while the work goes on."""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from .checkpoint_step import name_of
from .errors import MechintError, did_you_mean

CONNECT_SECONDS = 30.0
Mode = Literal["online", "offline", "disabled", "shared"]
LOCAL = ("offline", "disabled")
"""Modes that need no account."""
MODES = ("online", "shared", "dryrun", *LOCAL)
TAG = 64
"""Most characters of a tag, as W&B documents."""
HINT = "run `wandb login`, or set WANDB_MODE=offline"


def check() -> Mode:
    """The mode in which a run would be logged; call it before work whose results are to be logged.

    Raises:
        MechintError: W&B is not installed, ``WANDB_MODE`` is none of its modes, or no user is logged in.
    """
    try:
        import wandb
    except ImportError:
        raise MechintError(
            "logging to Weights & Biases needs its package; run `pip install wandb`, or turn visualize_wandb off"
        ) from None
    asked = os.environ.get("WANDB_MODE", "")
    if asked and asked not in MODES:
        raise MechintError(
            f"WANDB_MODE={asked[:40]!r} is not a mode of Weights & Biases{did_you_mean(asked, MODES)}; "
            f"it has {', '.join(MODES)}"
        )
    mode: Mode = wandb.setup().settings.mode  # setup() remembers the mode of its first call
    if asked:
        mode = "offline" if asked == "dryrun" else cast(Mode, asked)  # the older name of offline
    if mode not in LOCAL and not wandb.login(prompt=False, verify=False):
        raise MechintError(f"not logged in to Weights & Biases; {HINT}")
    return mode


@contextlib.contextmanager
def started(
    project: str, name: str, job: str, group: str, config: Mapping[str, Any], tags: Sequence[str] = ()
) -> Iterator[Any]:
    """A W&B run that asks nothing on the terminal and gives up after :data:`CONNECT_SECONDS`.

    Args:
        name: Name of the run, unique in an experiment.
        job: Work of the run: ``training``, or the analysis.
        group: Group of the run: the directory of a study's checkpoints.
        tags: Further tags beside the job.

    Raises:
        MechintError: as :func:`check`, or W&B cannot be reached.
    """
    mode = check()
    import wandb

    settings = wandb.Settings(
        silent=True,
        console="off",
        init_timeout=CONNECT_SECONDS,
        disable_git=True,
        disable_code=True,
        x_disable_stats=True,
    )
    try:
        run = wandb.init(
            project=project,
            name=name,
            mode=mode,
            config=dict(config),
            dir=os.environ.get("WANDB_DIR"),  # W&B remembers that of its first run in a process
            job_type=job,
            group=group or None,
            tags=tags_of(job, *tags),
            settings=settings,
            reinit="create_new",
        )
    except wandb.Error as error:
        raise MechintError(f"Weights & Biases could not be started: {str(error).splitlines()[0]}; {HINT}") from None
    try:
        yield run
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()


def tags_of(*texts: str | None) -> list[str]:
    """The texts as tags, each once and cut to the length that W&B takes; those without a text are left out."""
    return list(dict.fromkeys(text[:TAG] for text in texts if text))


class Logged:
    """A run that begins when something is logged; it listens to :mod:`mechint.utils.progress` and logs every point.

    Points have the keys ``mechint/{kind}/{field}/{curve}`` against ``mechint/step``; those of dictionaries, which
    count tokens, ``mechint/training/{field}/{curve}`` against ``mechint/tokens``. No point is logged twice.

    Args:
        start: Begins the run, as :func:`started` does.
        kind: Source of the points: ``search``, or ``train``.
    """

    def __init__(self, start: Callable[[], contextlib.AbstractContextManager[Any]], kind: str = "search") -> None:
        self._start, self.kind = start, kind
        self._stack = contextlib.ExitStack()
        self._seen: set[tuple[str, float]] = set()

    def __enter__(self) -> Logged:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    @functools.cached_property
    def run(self) -> Any:
        """W&B's own run."""
        run = self._stack.enter_context(self._start())
        for axis, kind in (("step", self.kind), ("tokens", "training")):
            run.define_metric(f"mechint/{axis}", hidden=True)
            run.define_metric(f"mechint/{kind}/*", step_metric=f"mechint/{axis}")
        return run

    def __call__(self, curve: str, values: Mapping[str, float]) -> None:
        axis, kind = ("tokens", "training") if "tokens" in values else ("step", self.kind)
        place = float(values[axis])
        if (curve, place) in self._seen:
            return
        self._seen.add((curve, place))
        tail = f"/{curve}" if curve else ""
        shown = {field: value for field, value in values.items() if field not in ("step", "tokens")}
        if "kept" in shown and "units" in shown:
            shown["sparsity"] = 1 - shown["kept"] / shown.pop("units")
        self.run.log({f"mechint/{axis}": place, **{f"mechint/{kind}/{f}{tail}": v for f, v in shown.items()}})


def run_name(checkpoint: str, job: str) -> str:
    """``output_baseline/final_model_stepV0 ssm``: the checkpoint with its directory, and what is done with it."""
    path = Path(checkpoint)
    shown = path.with_name(name_of(path)) if path.name else path
    return f"{'/'.join(part for part in shown.parts[-2:] if part not in ('/', '.', '..'))} {job}".strip()


def artifact_name(checkpoint: str, job: str, kind: str, digest: str) -> str:
    """The name of an artifact: it tells what the weights are, so that two models share none."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", f"{name_of(checkpoint)}-{job}-{kind}")[:100] + f"-{digest[:12]}"
