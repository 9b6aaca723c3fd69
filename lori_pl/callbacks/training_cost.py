"""What a training costs in arithmetic, which is counted on some of its batches."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import lightning.pytorch as pl

from lori_pl.arithmetic import SAMPLES, Arithmetic, can_count
from lori_pl.methods import Method
from lori_pl.methods.measuring import MeasuringCost

_WITHOUT_END = 500
"""A batch in so many, where a training has no end."""


class TrainingCost(pl.Callback):
    """Counts floating-point operations on twenty to forty batches, evenly spread: stages differ.

    Those of what terms measure before the training stand apart. Compiled layers and sharded weights are not looked
    into: there no operations are given.
    """

    def __init__(self) -> None:
        self.batches = self.samples = self.operations = self.teacher = 0
        self.measuring = MeasuringCost()
        self._batch = ExitStack()
        self._arithmetic: Arithmetic | None = None
        self._every = 1

    def on_train_start(self, trainer: pl.Trainer, pl_module: Method) -> None:
        """Spreads the counts over the training, and takes in what went before it."""
        found: MeasuringCost | None = getattr(pl_module, "measuring_cost", None)
        if found is not None and found.seconds:  # a run that goes on measured before it was stopped
            self.measuring = found
        steps = float(trainer.estimated_stepping_batches)
        batches = steps * trainer.accumulate_grad_batches if math.isfinite(steps) else _WITHOUT_END * SAMPLES
        self._every = max(1, int(batches) // SAMPLES)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Method, batch: Any, batch_idx: int) -> None:
        """Begins to count on a batch whose turn it is."""
        if self.batches % self._every or not can_count(pl_module):
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
            ``training_tflop``, and of these ``teacher_tflop``, those of a frozen teacher, in 10^12 operations, where
            they were counted; beside them ``measuring_tflop`` of what went before the steps, and its seconds.
        """
        found: dict[str, Any] = {"measuring_seconds": round(self.measuring.seconds, 1)}
        if self.samples and self.measuring.operations is not None:
            scale = self.batches * processes / self.samples / 1e12
            found["training_tflop"] = _rounded(self.operations * scale)
            found["teacher_tflop"] = _rounded(self.teacher * scale)
            found["measuring_tflop"] = _rounded(self.measuring.operations * processes / 1e12)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Keeps the counts over a resume."""
        counts = {name: getattr(self, name) for name in ("batches", "samples", "operations", "teacher")}
        return {**counts, "measuring": asdict(self.measuring)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting."""
        counts = dict(state_dict)
        self.measuring = MeasuringCost(**counts.pop("measuring", {}))
        for name, value in counts.items():
            setattr(self, name, value)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
