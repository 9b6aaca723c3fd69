"""Processes that go on from one checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist

from lori_pl.alignment.distributed import is_distributed
from lori_pl.errors import LoriError


class SameStart(pl.Callback):
    """Refuses to train where processes see different checkpoints, as a file system that lags lets them."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Compares path, size and time of what each process is about to take up.

        Raises:
            LoriError: If they differ.
        """
        if stage != "fit" or not is_distributed():
            return
        seen: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(seen, _seen(trainer.ckpt_path))
        for rank, other in enumerate(seen):
            if other != seen[0]:
                raise LoriError(
                    f"process 0 would go on from {_told(seen[0])}, process {rank} from {_told(other)}: wait until all "
                    "see the same files, or name one by --ckpt_path"
                )


def _seen(path: str | Path | None) -> tuple[str, int, float] | None:
    if path is None:
        return None
    found = Path(path).stat()
    return str(path), found.st_size, found.st_mtime


def _told(seen: tuple[str, int, float] | None) -> str:
    return "nothing" if seen is None else f"{seen[0]} ({seen[1]} bytes, time {seen[2]:.0f})"
