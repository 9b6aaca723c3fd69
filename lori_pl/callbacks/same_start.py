"""Processes that go on from one checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist

from lori_pl.alignment.distributed import is_distributed
from lori_pl.errors import LoriError


class SameStart(pl.Callback):
    """Refuses to train where processes see different checkpoints, as a file system that lags lets them.

    Args:
        path: The checkpoint that this process would go on from. (The Trainer does not know it yet when it calls.)
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = path

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Compares path, size and time of what each process is about to take up.

        Raises:
            LoriError: If they differ.
        """
        if stage != "fit" or not is_distributed():
            return
        seen: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(seen, _seen(self.path))
        for rank, other in enumerate(seen):
            if other != seen[0]:
                raise LoriError(
                    f"process 0 would go on from {_told(seen[0])}, process {rank} from {_told(other)}: wait until all "
                    "see the same files, or name one by --ckpt_path"
                )


def _seen(path: str | Path | None) -> tuple[str, int, float] | None:
    if path is None:
        return None
    try:
        found = Path(path).stat()
    except OSError:  # every process takes part in the comparison
        return str(path), -1, 0.0
    return str(path), found.st_size, found.st_mtime


def _told(seen: tuple[str, int, float] | None) -> str:
    if seen is None:
        return "nothing"
    return f"{seen[0]} ({f'{seen[1]} bytes, time {seen[2]:.0f}' if seen[1] >= 0 else 'which it cannot read'})"
