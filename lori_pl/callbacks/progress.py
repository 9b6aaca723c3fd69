"""How far the training is, for a program that watches."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl


class ProgressFile(pl.Callback):
    """Keeps ``STEP/TOTAL`` in a file while the run trains; a file that cannot be written does the run no harm.

    Args:
        path: Where; a reader finds the old or the new text, never half of it.
        seconds: How often at most.
    """

    def __init__(self, path: Path, seconds: float = 1.0) -> None:
        self.path = path
        self.seconds = seconds
        self._next = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes where the training starts."""
        self._write(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes the step, now and then."""
        if time.monotonic() >= self._next:
            self._write(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the last step."""
        self._write(trainer)

    def _write(self, trainer: pl.Trainer) -> None:
        if not trainer.is_global_zero:
            return
        self._next = time.monotonic() + self.seconds
        part = self.path.with_name(f".{self.path.name}.part")
        with suppress(OSError):
            part.write_text(f"{trainer.global_step}/{trainer.estimated_stepping_batches}\n", encoding="utf-8")
            os.replace(part, self.path)
