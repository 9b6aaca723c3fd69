"""What `plan` predicts of a step's memory in two processes against what each of them allocated.

Run in the root of the repository: ``python experiments/bench/plan_processes.py``; on Linux with glibc, whose allocator
says how many bytes are given out (`mallinfo2`; not resident memory). It is asked behind each operation. PyTorch's own
profiler, as in ``plan.py``, does not see what gloo's threads free. Leaves ``plan_processes.csv`` beside this file.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import shlex
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from common import bucketed, encoder, problems
from plan import SIZES, method
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from lori_pl.data.pairing import PairedBatch
from lori_pl.evaluation.records import git_commit, write_rows
from lori_pl.methods import Method
from lori_pl.planning import Strategy, cost_of_step, hollow
from lori_pl.sharding import FSDP1Strategy, own_part

TABLE = Path("experiments/bench/plan_processes.csv")
COLUMNS = (
    *("size", "method", "strategy", "accumulated", "reshard_after_forward"),
    *("planned_mb", "measured_mb", "ratio", "commit", "command"),
)
SIZES["11M"] = (320, 6)
RUNS: tuple[tuple[Strategy, int, bool], ...] = (
    ("ddp", 1, True),
    ("ddp", 2, True),
    ("sharded", 1, True),
    ("sharded", 2, True),
    ("sharded", 1, False),
    ("fsdp1", 1, True),
    ("fsdp1", 2, True),
    ("fsdp1", 1, False),
)
"""Strategy, batches whose gradients are accumulated, and whether layers are given back behind each pass."""
BATCH = 2
CPU = torch.device("cpu")


class _Given(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")),
        *((name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")),
    ]


def given_out() -> int:
    """Bytes that the C library's allocator has given out and not got back, mapped ones included."""
    ask = ctypes.CDLL(None).mallinfo2
    ask.restype = _Given
    info = ask()
    return info.uordblks + info.hblkhd


class Peak(TorchDispatchMode):
    """Asks the allocator behind each operation and keeps the most."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation, then asks."""
        out = func(*args, **(kwargs or {}))
        self.most = max(self.most, given_out())
        return out


class Losses(nn.Module):
    """A method whose forward pass is its loss, as DDP asks."""

    def __init__(self, built: Method) -> None:
        super().__init__()
        self.built = built

    def forward(self, batch: PairedBatch) -> Any:
        """The batch's losses."""
        return self.built.losses(batch)


def wrapped(built: Method, strategy: Strategy, reshard: bool) -> Callable[[PairedBatch], Any]:
    """The loss of a method whose weights are held as the strategy holds them."""
    if strategy == "ddp":
        return DistributedDataParallel(Losses(built))
    if strategy == "sharded":
        built.shard(init_device_mesh("cpu", (2,)), CPU, reshard_after_forward=reshard, cpu_offload=False)
    else:
        older = FSDP1Strategy("FULL_SHARD" if reshard else "SHARD_GRAD_OP")
        older.parallel_devices = [CPU]
        older.cluster_environment: Any = SimpleNamespace(local_rank=lambda: 0)
        older._wrapped(built)
    return lambda batch: built.losses(batch)


def steps(rank: int, folder: str, size: str, kind: str, strategy: Strategy, accumulated: int, reshard: bool) -> None:
    """A process's three steps; leaves the peak of the last two, what lives between steps counted by its tensors."""
    torch.set_num_threads(1)
    store, limit = f"file://{folder}/store", timedelta(minutes=5)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=limit)
    built = method(size, kind)
    built.configure_model()
    for term in getattr(built, "active_terms", []):
        term.assume_fitted()
    built.train()
    batch = bucketed(problems(64, encoder()), BATCH, 1)[0]
    losses = wrapped(built, strategy, reshard)
    optimizer = built.optimizer([p for p in built.parameters() if p.requires_grad])
    peak = Peak()

    def step() -> None:
        for _ in range(accumulated):
            loss, _ = losses(batch)
            loss.backward()
            del loss
        optimizer.step()

    step()  # makes the moments, and what libraries make once
    gc.collect()
    trained = [p for p in built.parameters() if p.requires_grad]
    moments = [value for entry in optimizer.state.values() for value in entry.values() if isinstance(value, Tensor)]
    gradients = [p.grad for p in trained if p.grad is not None]
    lasting = [*built.parameters(), *built.buffers(), *gradients, *moments]
    between = sum(own_part(tensor).nbytes for tensor in lasting)
    if strategy == "ddp":  # its buffers
        between += sum(gradient.nbytes for gradient in gradients)
    del gradients, lasting
    before = given_out()
    with peak:
        for _ in range(2):
            optimizer.zero_grad()  # behind the step before, as in a training
            step()
    Path(folder, str(rank)).write_text(str(between + peak.most - before), encoding="utf-8")
    dist.destroy_process_group()


def compared(size: str, kind: str, strategy: Strategy, accumulated: int, reshard: bool) -> tuple[int, int]:
    """Bytes that a process needs at the peak: planned, and the most that one of two allocated."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (folder, size, kind, strategy, accumulated, reshard)
        multiprocessing.start_processes(steps, arguments, nprocs=2, start_method="fork")
        real = max(int(Path(folder, str(rank)).read_text(encoding="utf-8")) for rank in range(2))
    planned = method(size, kind)
    batch = bucketed(problems(64, encoder()), BATCH, 1)[0]
    cost = cost_of_step(planned, hollow(planned), batch, "32-true", on_gpu=False, accumulated=accumulated)
    return cost.parts(2, strategy, reshard).total, real


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--record", action="store_true", help=f"write {TABLE}")
    options.add_argument("--size", choices=list(SIZES), default="11M", help="the model (default: 11M)")
    arguments = options.parse_args()
    command = shlex.join(["python", "experiments/bench/plan_processes.py", *sys.argv[1:]])
    torch.set_num_threads(1)
    rows = []
    for strategy, accumulated, reshard in RUNS:
        found, real = compared(arguments.size, "explicit_cot", strategy, accumulated, reshard)
        sizes = [round(found / 1e6, 1), round(real / 1e6, 1), round(found / real, 3)]
        given_back = "yes" if reshard else "no"
        rows.append([arguments.size, "explicit_cot", strategy, accumulated, given_back, *sizes, git_commit(), command])
        print(*rows[-1][:8], flush=True)
    if arguments.record:
        write_rows(TABLE, [dict(zip(COLUMNS, row, strict=True)) for row in rows])


if __name__ == "__main__":
    main()
