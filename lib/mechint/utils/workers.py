"""Processes that share one piece of work: who this one is, and how the parts come together."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar, cast

import torch
import torch.distributed as group

from .errors import MechintError, SaidElsewhere
from .options import whole_number

T = TypeVar("T")

PATIENCE = datetime.timedelta(days=20)
"""Longest wait of one process for another, which may work alone for hours; torchrun reports one that died.

Below 2³¹ milliseconds, 24.8 days: sockets are polled with a C int of them.
"""


_rank, _world = 0, 1
_store: Any = None
_rounds = _dealt = 0


TOLD = ("RANK", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables that a launcher of several processes sets for each, beside WORLD_SIZE."""


def started() -> bool:
    """True if this process was started as one of several, by torchrun, make or a script.

    Raises:
        MechintError: it was told a part of what it must know of the others.
    """
    said = os.environ.get("WORLD_SIZE", "")
    if said in ("", "1"):
        return False
    missing = [name for name in TOLD if not os.environ.get(name)]
    if len(missing) == len(TOLD):
        print(f"note: WORLD_SIZE={said} is set, but no RANK: this process works alone", file=sys.stderr, flush=True)
        return False
    numbers = {name: os.environ.get(name, "") for name in ("WORLD_SIZE", "RANK", "MASTER_PORT")}
    if wrong := [name for name, text in numbers.items() if whole_number(text) is None and name not in missing]:
        missing = wrong
    elif not missing and (whole_number(numbers["RANK"]) or 0) >= (whole_number(said) or 0):
        missing = ["RANK"]
    if missing:
        raise MechintError(
            f"WORLD_SIZE={said} says that this is one of several processes, but {', '.join(missing)} does not fit it; "
            f"start them with torchrun or make PROCESSES=, or unset WORLD_SIZE"
        )
    return True


def join() -> None:
    """Finds the other processes that torchrun started; does nothing in a process of its own."""
    global _store, _rank, _world
    if _store is None and started():
        store, _rank, _world = next(iter(group.rendezvous("env://")))
        # after a worker died, its restarted peers would find its old messages in the same store
        _store = group.PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        if torch.cuda.is_available():  # "cuda" is then this process' own
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", _rank)) % torch.cuda.device_count())


def _connect() -> None:
    """Opens the connections of one piece of work; processes that only share out checkpoints need none."""
    if _world > 1 and not group.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        group.init_process_group(backend, store=_store, rank=_rank, world_size=_world, timeout=PATIENCE)
        atexit.register(leave)


def leave() -> None:
    """Closes the connections; without it the threads that hold them may abort a process that ends after its peer."""
    if group.is_initialized():
        group.destroy_process_group()


def end(status: int) -> NoReturn:
    """Ends a script with an exit status; at once where it has peers.

    A thread of the connections that asks for the interpreter while that is being taken down aborts the process (CPython
    before 3.14 ends such a thread, which C++ does not survive), and torchrun then takes finished work for lost.
    """
    if _world > 1:
        leave()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def worker() -> tuple[int, int]:
    """This process' number and how many there are: (0, 1) where torchrun started no others."""
    return _rank, _world


def exchange(part: Any) -> list[Any]:
    """Gathers a value of every process in all of them, in their order; waits for the slowest."""
    global _rounds
    if _world == 1:
        return [part]
    _rounds += 1
    said, read = ([f"{word}-{_rounds}-{k}" for k in range(_world)] for word in ("said", "read"))
    _store.set(said[_rank], pickle.dumps(part))
    _store.wait(said, PATIENCE)
    every = [pickle.loads(_store.get(key)) for key in said]
    _store.set(read[_rank], b"")
    if _rank == 0:  # the first process may host the store, which ends with it
        _store.wait(read, PATIENCE)
    return every


def by_first(compute: Callable[[], T]) -> T:
    """Runs ``compute`` in the first process and returns its result in all of them.

    Raises:
        MechintError: it did in the first one; :class:`~mechint.utils.errors.SaidElsewhere` in the others.
    """
    found: T | None = None
    failure: MechintError | None = None
    if _rank == 0:
        try:
            found = compute()
        except MechintError as error:
            failure = error
    found, failed = exchange((found, failure is not None))[0]
    if failure is not None:
        raise failure
    if failed:
        raise SaidElsewhere("the first process says why")
    return cast(T, found)


def deal(count: int) -> Iterator[int]:
    """Yields this process's share of ``count`` pieces of work: the next free one whenever it asks."""
    global _rounds, _dealt
    if _world == 1:
        for _dealt in range(1, count + 1):
            yield _dealt - 1
        return
    _rounds += 1
    while (number := _store.add(f"dealt-{_rounds}", 1) - 1) < count:
        yield number


def dealt(count: int) -> int:
    """Counts those of the ``count`` pieces of work of :func:`deal` that some process has taken."""
    return _dealt if _world == 1 else min(count, int(_store.add(f"dealt-{_rounds}", 0)))


_together = False


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Within this context all processes work on one thing, and the functions below have them share it.

    Outside, each works on something of its own, so those functions do not wait for the others.
    """
    global _together
    _connect()
    before, _together = _together, True
    try:
        yield
    finally:
        _together = before


def team() -> tuple[int, int]:
    """:func:`worker` within :func:`together`; (0, 1) outside."""
    return worker() if _together else (0, 1)


def gather_parts(parts: dict[int, Any]) -> dict[int, Any]:
    """The parts of all processes, in all of them."""
    _, world = team()
    if world == 1:
        return parts
    every: list[dict[int, Any]] = [{} for _ in range(world)]
    group.all_gather_object(every, parts)
    return {k: part for some in every for k, part in some.items()}


def mean_over(value: torch.Tensor) -> torch.Tensor:
    """The mean of a scalar over all processes; the gradient is that of this process' own."""
    _, world = team()
    if world == 1:
        return value
    every = value.detach().clone()
    group.all_reduce(every)
    return value + (every / world - value.detach())


def sum_over(value: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all processes, in place."""
    if team()[1] > 1:
        group.all_reduce(value)
    return value


def kth_largest(values: torch.Tensor, count: int, beyond: int = 0) -> torch.Tensor:
    """The (count · processes + beyond)-th largest of the values ≥ 0 of all processes, or 0 where there are fewer."""
    _, world = team()
    count = count * world + beyond
    mine = values.flatten().topk(min(count, values.numel()), sorted=False).values
    mine = torch.cat([mine, mine.new_zeros(count - len(mine))])
    if world > 1:
        every = [torch.empty_like(mine) for _ in range(world)]
        group.all_gather(every, mine)
        mine = torch.cat(every)
    return mine.topk(count, sorted=False).values.min()


def hand_out(value: torch.Tensor | None, owner: int) -> torch.Tensor:
    """A tensor that only the process ``owner`` has, in all of them."""
    rank, world = team()
    if world == 1:
        assert value is not None
        return value
    about = [(value.shape, value.dtype) if value is not None else None]
    group.broadcast_object_list(about, src=owner)
    assert about[0] is not None
    shape, dtype = about[0]
    device = torch.device("cuda") if group.get_backend() == "nccl" else torch.device("cpu")
    whole = (
        value.contiguous() if rank == owner and value is not None else torch.empty(shape, dtype=dtype, device=device)
    )
    group.broadcast(whole, src=owner)
    return whole


def from_first(value: Any) -> Any:
    """Sends a value of the first process to all of them."""
    if team()[1] == 1:
        return value
    held = [value]
    group.broadcast_object_list(held, src=0)
    return held[0]


def barrier() -> None:
    """Waits for all processes."""
    if team()[1] > 1:
        group.barrier()
