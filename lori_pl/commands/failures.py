"""Faults of the machine in a run, as one line that says what was lost and what to do."""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import torch

from lori_pl.errors import LoriError, one_line
from lori_pl.regions import place_of

GO_ON = "; what was trained up to the last checkpoint is there: go on with --ckpt_path last"

_MEMORY = re.compile(r"out of memory|not enough memory|can't allocate memory|cannot allocate memory", re.IGNORECASE)
_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)")
_PEER = re.compile(
    r"connection (?:was )?(?:closed|reset|refused)|broken pipe|remote process exited|socket closed|"
    r"peer (?:closed|has terminated)|ncclRemoteError|read timeout|timed out waiting|wait timeout",
    re.IGNORECASE,
)
_CHANNEL = re.compile(r"\bgloo\b|nccl|c10d|ProcessGroup|TCPStore", re.IGNORECASE)
_STORAGE = {
    errno.ENOSPC: "the disk is full: free space",
    errno.EDQUOT: "the disk quota is used up: free space",
    errno.EFBIG: "the file may not grow any more: raise the limit on file sizes",
    errno.EROFS: "it cannot be written: mount it for writing, or give another folder",
    errno.EACCES: "no permission: change it, or give another folder",
    errno.ESTALE: "the network file system has lost it: mend the mount",
    errno.EIO: "the storage fails: mend the mount or the disk",
}
_REMEDY = {
    "teacher": "build a cache once (`cache`, model.cache), or load the teacher in bfloat16 (model.teacher.dtype)",
    "alignment": "lower model.alignment.rank_hidden, choose fewer layers (model.layers), or lower data.batch_size",
    "optimiser": "train adapters (model.backbone.lora), or shard over more devices (configs/trainer/sharded.yaml)",
    "evaluation": "lower data.eval_batch_size or model.max_new_tokens",
}
_IN_OWN = {
    "analyze": "lower data.eval_batch_size or --problems",
    "benchmark": "lower --largest or --max_new_tokens, or give --dtype bfloat16",
    "cache": "lower data.eval_batch_size, or load the teacher in bfloat16 (model.teacher.dtype)",
}
"""What to do in commands that do not train."""
_LESS = (
    "lower data.batch_size and raise trainer.accumulate_grad_batches as much, set "
    "model.backbone.gradient_checkpointing, or train adapters (model.backbone.lora)"
)


@contextmanager
def explained(checkpoints: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Within the block a fault of the machine becomes one line.

    Args:
        checkpoints: Whether there is a checkpoint that a training may go on with, when it is asked.

    Raises:
        LoriError: Out of memory: which part, and what to lower. A data worker or another process that ended. Storage
            that cannot be written.
    """
    try:
        yield
    except LoriError:
        raise
    except Exception as error:
        if line := fault_behind(error):
            raise LoriError(line + (GO_ON if checkpoints() else "")) from error
        raise


def fault_behind(error: Exception, command: str | None = None) -> str:
    """What to tell a user of the fault of the machine that led to an error; nothing where none is known here.

    Args:
        error: The error.
        command: The command that it ended, where that is none of LightningCLI's.
    """
    # a dying worker strikes wherever the program is, also where its error is turned into another
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    told = (explanation(link, command) for link in chain if isinstance(link, RuntimeError | OSError | MemoryError))
    return next(filter(None, told), "")


def explanation(error: BaseException, command: str | None = None) -> str:
    """What to tell a user of an error; nothing where it is no fault of the machine that is known here.

    Args:
        error: The error.
        command: The command that it ended, where that is none of LightningCLI's.
    """
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or _MEMORY.search(text):
        part = part_of(error)
        asked = re.search(r"Tried to allocate ([\d.]+ \w+)|you tried to allocate (\d+ bytes)", text)
        size = f" (asked for {asked[1] or asked[2]})" if asked else ""
        if command is not None:
            return f"out of memory{size}: {_IN_OWN.get(command, 'give the process more')}"
        return f"out of memory in {part}{size}: {_REMEDY.get(part, _LESS)}"
    if found := _WORKER.search(text):
        if "Bus error" in text:
            return (
                f"a data worker (pid {found[1].strip()}) lost memory that it had mapped: a file of model.cache was cut "
                "off or lost while it was read (mend it by `cache`), or shared memory is too small (/dev/shm: raise "
                "it, or lower data.num_workers)"
            )
        reason = "" if re.search(r"signal: (?!Killed)", text) else ", most likely for want of memory"
        return (
            f"a data worker (pid {found[1].strip()}) was killed{reason}: lower data.num_workers, or give the job more "
            "memory"
        )
    if isinstance(error, OSError) and (remedy := _STORAGE.get(error.errno or 0)):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{remedy} ({one_line(error)})"
    if _is_of_a_peer(error):
        return f"another process of this run ended, its own message says why ({one_line(text, 120)})"
    return ""


def _is_of_a_peer(error: BaseException) -> bool:
    """Whether the channel between the processes broke, and no other connection, such as a logger's or the hub's."""
    if isinstance(error, torch.distributed.DistError):
        return True
    text = str(error)
    if isinstance(error, OSError) or not _PEER.search(text):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    raised_there = bool(frames) and ("torch", "distributed") in pairwise(Path(frames[-1].filename).parts)
    return raised_there or _CHANNEL.search(text) is not None


def part_of(error: BaseException) -> str:
    """The part of a run that an error came from: a region of the step, or what its traceback shows."""
    region = place_of(error)
    frames = traceback.extract_tb(error.__traceback__)
    names = {frame.name for frame in frames}
    if names & {"answer_batch", "generate", "validation_step", "test_step", "predict_step"}:
        return "evaluation"
    if region is not None:
        return region
    files = {Path(frame.filename).parts[-3:-1] for frame in frames}
    if ("torch", "optim") in files and "optimizer_step" not in {frames[-1].name}:
        inner = [frame for frame in frames if Path(frame.filename).parts[-3:-1] == ("torch", "optim")]
        if frames.index(inner[-1]) > max((i for i, f in enumerate(frames) if f.name == "closure"), default=-1):
            return "optimiser"
    if "backward" in names:
        return "backward"
    if "configure_model" in names:
        return "loading the models"
    return "the step"
