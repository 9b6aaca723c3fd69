"""Processes for a test, forked: they start in half a second, and none that hangs outlives its time."""

from __future__ import annotations

import faulthandler
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

LIMIT = 240  # seconds


def forked(work: Callable[..., object], *arguments: Any, count: int = 2) -> None:
    """Calls ``work`` with a rank and the arguments in so many processes; the test fails with the first that does.

    One that has not ended after `LIMIT` says where it is, and is ended.
    """
    multiprocessing.start_processes(_limited, (work, arguments), nprocs=count, start_method="fork")


def in_group(work: Callable[..., object], folder: Path, *arguments: Any, count: int = 2) -> list[Any]:
    """Calls ``work`` in a group of so many processes, which wait for each other for half that time.

    Returns:
        What it gave back, by rank; it goes through the folder.
    """
    forked(_joined, work, str(folder), count, arguments, count=count)
    return [torch.load(folder / f"{rank}.pt") for rank in range(count)]


def _limited(rank: int, work: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    # a process forked beside other threads may wait forever for what one of them held: only a signal ends it then
    faulthandler.register(signal.SIGALRM, chain=True)
    signal.alarm(LIMIT)
    torch.set_num_threads(1)
    work(rank, *arguments)


def _joined(rank: int, work: Callable[..., object], folder: str, count: int, arguments: tuple[Any, ...]) -> None:
    store, limit = f"file://{folder}/store", timedelta(seconds=LIMIT / 2)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=count, timeout=limit)
    # the group has to outlive what DDP made there: its reducer, as the last owner, would wait for the group's threads
    # while it holds the lock of the interpreter, and they for that
    group = dist.group.WORLD
    found = work(rank, *arguments)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group(group)
