"""The step under which loggers write."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl


class LoggedStep(pl.Callback):
    """Has what a resumed run logs stand under the step that it would stand under without a break.

    Lightning counts these steps apart, and from a checkpoint behind the last validation goes on with one too few.
    """

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Sets that count to the optimiser's steps."""
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
