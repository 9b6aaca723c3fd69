"""What a training costs in arithmetic, which is counted on some of its batches."""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any

import lightning.pytorch as pl

from lori_pl.arithmetic import Arithmetic
from lori_pl.sharding import is_sharded

SAMPLES = 20
"""Least number of batches that are counted, evenly over the training: stages differ, and a count takes time."""
_WITHOUT_END = 500
"""A batch in so many, where a training has no end."""


class TrainingCost(pl.Callback):
    """Counts floating-point operations on twenty to forty batches, evenly spread.

    Compiled layers and sharded weights are not looked into: there no operations are given.
    """

    def __init__(self) -> None:
        self.batches = self.samples = self.operations = self.teacher = 0
        self._batch = ExitStack()
        self._arithmetic: Arithmetic | None = None
        self._every = 1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Spreads the counts over the training."""
        steps = float(trainer.estimated_stepping_batches)
        batches = steps * trainer.accumulate_grad_batches if math.isfinite(steps) else _WITHOUT_END * SAMPLES
        self._every = max(1, int(batches) // SAMPLES)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begins to count on a batch whose turn it is."""
        if self.batches % self._every or not self._can_look(pl_module):
            return
        self._arithmetic = Arithmetic()
        self._batch.enter_context(self._arithmetic.counting())

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Takes in what was counted."""
        self._batch.close()
        self.batches += 1
        if (found := self._arithmetic) is not None:
            self.samples += 1
            self.operations += found.total
            self.teacher += found.regions.get("teacher", 0)
            self._arithmetic = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Ends counting."""
        self._batch.close()

    def figures(self, processes: int) -> dict[str, Any]:
        """Of the whole training so far, for a summary.

        Args:
            processes: Number of processes, each of which has done as much.

        Returns:
            ``training_tflop``, and of these ``teacher_tflop``, those of a frozen teacher, in 10^12 operations; nothing
            where they were not counted.
        """
        if not self.samples:
            return {}
        scale = self.batches * processes / self.samples / 1e12
        return {"training_tflop": _rounded(self.operations * scale), "teacher_tflop": _rounded(self.teacher * scale)}

    def state_dict(self) -> dict[str, Any]:
        """Keeps the counts over a resume."""
        return {name: getattr(self, name) for name in ("batches", "samples", "operations", "teacher")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting."""
        for name, value in state_dict.items():
            setattr(self, name, value)

    @staticmethod
    def _can_look(module: Any) -> bool:
        return not (module.backbone.compile or is_sharded(module))


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
