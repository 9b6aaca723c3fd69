"""How far the training is and on what machine, for a program that watches."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lori_pl.evaluation.report import machine_name
from lori_pl.run_files import MACHINE


class ProgressFile(pl.Callback):
    """Keeps ``STEP/TOTAL`` in a file while the run trains, and in `MACHINE` beside it from the start what it runs on.

    A file that cannot be written does the run no harm.

    Args:
        path: Where; a reader finds the old or the new text, never half of it.
        seconds: How often at most.
    """

    def __init__(self, path: Path, seconds: float = 1.0) -> None:
        self.path = path
        self.seconds = seconds
        self._next = 0.0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Writes the machine."""
        if trainer.is_global_zero:
            _replace(self.path.with_name(MACHINE), machine_name(trainer.strategy.root_device))

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
        _replace(self.path, f"{trainer.global_step}/{trainer.estimated_stepping_batches}")


def _replace(path: Path, line: str) -> None:
    part = path.with_name(f".{path.name}.part")
    with suppress(OSError):
        part.write_text(f"{line}\n", encoding="utf-8")
        os.replace(part, path)
