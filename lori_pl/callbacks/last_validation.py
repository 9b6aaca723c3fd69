"""A validation, and so a checkpoint, also behind the last step."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl


class LastValidation(pl.Callback):
    """Validates after the last step where the interval does not: the steps behind the last interval count too.

    Lightning validates once more when it is told to stop, so it is told at the last batch of all.
    """

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Tells the trainer to stop where it would stop anyway."""
        last_epoch = trainer.max_epochs not in (None, -1) and trainer.current_epoch + 1 == trainer.max_epochs
        if trainer.global_step == trainer.max_steps or (last_epoch and trainer.is_last_batch):
            trainer.should_stop = True
