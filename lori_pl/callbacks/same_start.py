"""Processes that start from one place."""

from __future__ import annotations

import lightning.pytorch as pl

from lori_pl.alignment.distributed import is_distributed
from lori_pl.errors import LoriError
from lori_pl.sharding import most_anywhere


class SameStart(pl.Callback):
    """Refuses to train where processes took up different checkpoints, as a file system that lags lets them."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compares the steps that the processes are at.

        Raises:
            LoriError: If they differ.
        """
        if not is_distributed():
            return
        step = trainer.global_step
        last, first = most_anywhere(step, pl_module.device), -most_anywhere(-step, pl_module.device)
        if first != last:
            raise LoriError(
                f"the processes took up checkpoints of different steps, {first} to {last} (process "
                f"{trainer.global_rank}: {step}): give them one file by --ckpt_path where all "
                "see the same files"
            )
