"""Two processes for a test, forked: they start in half a second, and a wait for the other ends after a minute."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch.distributed.device_mesh import init_device_mesh

from lori_pl.methods import Method

CPU = torch.device("cpu")


def joined(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store, limit = f"file://{folder}/store", timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=limit)


def in_two(work: Callable[..., None], folder: Path, *arguments: Any) -> list[Any]:
    """What two processes, given their rank, the folder and the arguments, leave as ``RANK.pt`` in the folder."""
    multiprocessing.start_processes(work, (str(folder), *arguments), nprocs=2, start_method="fork")
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def divide(method: Method) -> None:
    method.shard(init_device_mesh("cpu", (2,)), CPU, reshard_after_forward=True, cpu_offload=False)
