"""Processes that share one piece of work: who this one is, and how the parts come together."""

from __future__ import annotations

import atexit
import os
from typing import Any

import torch
import torch.distributed as group


def join() -> None:
    """Joins the process group that torchrun asks for; does nothing in a process of its own."""
    if "WORLD_SIZE" in os.environ and int(os.environ["WORLD_SIZE"]) > 1 and not group.is_initialized():
        store, rank, world = next(iter(group.rendezvous("env://")))
        # after a worker has died, its restarted peers would find the addresses of the dead in the same store
        store = group.PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        group.init_process_group(backend, store=store, rank=rank, world_size=world)
        atexit.register(leave)


def leave() -> None:
    """Closes the connections; without it the threads that hold them may abort a process that ends after its peer."""
    if group.is_initialized():
        group.destroy_process_group()


def worker() -> tuple[int, int]:
    """This process' number and how many there are: (0, 1) outside a process group."""
    if group.is_available() and group.is_initialized():
        return group.get_rank(), group.get_world_size()
    return 0, 1


def gather_parts(parts: dict[int, Any]) -> dict[int, Any]:
    """The parts of all processes, in all of them."""
    _, world = worker()
    if world == 1:
        return parts
    every: list[dict[int, Any]] = [{} for _ in range(world)]
    group.all_gather_object(every, parts)
    return {k: part for some in every for k, part in some.items()}
