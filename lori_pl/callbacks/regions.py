"""Shows the Trainer's profiler the named regions of a training step."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.profilers import AdvancedProfiler
from torch.optim import Optimizer

from lori_pl.regions import profiled, region


class ProfiledRegions(pl.Callback):
    """Enters the regions of each training step into ``trainer.profiler``.

    The forward pass is in parts, and so is what follows the backward pass: ``optimiser``, from clipping on. Times are
    those of the calls: on a GPU, which is not waited for, take ``pytorch``, which knows the kernels that each began.
    ``advanced`` sees no regions: it cannot look at an action within an action.
    """

    def __init__(self) -> None:
        self._step = ExitStack()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Regions are looked at from here."""
        if not isinstance(trainer.profiler, AdvancedProfiler):
            self._step.enter_context(profiled(trainer.profiler.profile))

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """The gradients are there."""
        self._step.enter_context(region("optimiser"))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step is done."""
        self._step.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """So is the run."""
        self._step.close()
