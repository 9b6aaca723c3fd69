"""A validation, and so a checkpoint, also behind the last step."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from lori_pl.methods.base import is_last


class LastValidation(pl.Callback):
    """Validates after the last step where the interval does not: the steps behind the last interval count too.

    Lightning validates once more when it is told to stop, so it is told at the last batch of all. It does not listen
    where ``check_val_every_n_epoch`` leaves an epoch out or ``min_steps`` is set. And what it saves so at the end of an
    epoch it would go on from with one more batch of that epoch, unless it is made to believe that the validation was
    due by the interval.
    """

    def __init__(self) -> None:
        self._interval: int | float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Makes the validation due whose checkpoint is gone on from, and has none fall into the middle of a step."""
        loop = trainer.fit_loop.epoch_loop
        every, accumulated = trainer.val_check_batch, trainer.accumulate_grad_batches
        if isinstance(every, int) and every % accumulated:  # a share of an epoch
            trainer.val_check_batch = max(every // accumulated, 1) * accumulated
        if loop.restarting and loop.batch_progress.is_last_batch:
            self._interval, trainer.val_check_batch = trainer.val_check_batch, 1

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gives the interval back."""
        if self._interval is not None:
            trainer.val_check_batch, self._interval = self._interval, None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Tells the trainer to stop where it would stop anyway."""
        if is_last(trainer, trainer.global_step):
            trainer.should_stop = True
