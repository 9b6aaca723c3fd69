"""The time that one job, or one run, may take."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Timer


class JobTimer(Timer):
    """A `Timer` of the time since this process began to train, whatever a run that it goes on with had taken.

    Lightning's counts both, so that a run that ended by ``max_time`` would never train again. A cell of a sweep wants
    just that: its time is a budget, which an interruption makes no larger.

    Args:
        duration: As in `Timer`.
        of_run: Count the time of earlier jobs of the same run, up to the checkpoint that this one goes on from.
    """

    def __init__(self, duration: str | timedelta | dict[str, int] | None, of_run: bool = False) -> None:
        super().__init__(duration)
        self.of_run = of_run

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Ends the training behind a whole step only: the checkpoint there has no gradients."""
        if not trainer.fit_loop.epoch_loop._should_accumulate():
            super().on_train_batch_end(trainer, *args, **kwargs)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the time of earlier jobs in, or leaves it out."""
        if self.of_run:
            super().load_state_dict(state_dict)
