"""How far the building of a cache is: problems a second, bytes written, time left."""

from __future__ import annotations

import logging
import time
from typing import Any

import lightning.pytorch as pl
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

_EVERY = 30.0


class BuildProgress(pl.Callback):
    """Shows the first process's share: a bar on a terminal, elsewhere a line every half minute."""

    def __init__(self) -> None:
        self.done = 0
        self._start = self._said = 0.0
        self._bar: Progress | None = None

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock, and the bar where there is a terminal."""
        self._start = self._said = time.monotonic()
        if not trainer.is_global_zero:
            return
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed} of {task.total}"))
        self._bar = Progress(*columns, TextColumn("{task.fields[speed]}"), TimeRemainingColumn())
        if not self._bar.console.is_terminal:
            self._bar = None
            return
        self._bar.start()
        module: Any = pl_module
        self._bar.add_task(module.label, total=module.to_do, speed="")

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Counts a batch."""
        module: Any = pl_module
        self.done += len(batch.index)
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self.done, speed=self._speed(module, now))
        elif trainer.is_global_zero and now - self._said >= _EVERY:
            self._said = now
            left = (module.to_do - self.done) * (now - self._start) / max(self.done, 1)
            log.info(
                "%s: %d of %d problems, %s, %.0f s left",
                module.label,
                self.done,
                module.to_do,
                self._speed(module, now),
                left,
            )

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes the bar away and says how fast it was."""
        self._stop()
        module: Any = pl_module
        if trainer.is_global_zero and self.done:
            log.info("%s: %d problems, %s", module.label, self.done, self._speed(module, time.monotonic()))

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Takes the bar away."""
        self._stop()

    def _speed(self, module: Any, now: float) -> str:
        speed = f"{self.done / max(now - self._start, 1e-9):.0f} problems/s"
        return speed + (f", {module.written / 1e6:.1f} MB written" if module.written else "")

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
