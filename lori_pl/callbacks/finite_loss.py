"""Stops at a loss, or at weights, that are no numbers."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lori_pl.errors import LoriError


class FiniteLoss(pl.Callback):
    """Stops training at the first non-finite loss, naming its part and step; no later checkpoint is saved.

    Nor is one whose weights are not finite: a gradient can be so where the loss was not.

    On an accelerator the first bad step of each part is noted on the device and looked at only when a checkpoint is
    due and every ``every`` steps, so that no step waits for the host.

    Args:
        every: Steps between looks on an accelerator.
    """

    def __init__(self, every: int = 50) -> None:
        self.every = every
        self.first_bad: dict[str, Tensor] = {}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Notes non-finite parts."""
        step = trainer.global_step
        for name, value in outputs.get("parts", {}).items():
            noted = self.first_bad.get(name)
            noted = torch.full_like(value, float("inf")) if noted is None else noted
            self.first_bad[name] = torch.where(value.isfinite(), noted, noted.clamp_max(step))
        if pl_module.device.type == "cpu" or step % self.every == 0:
            self.check()

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Any) -> None:
        """Keeps weights that came after a non-finite loss, or are not finite, from being saved.

        Raises:
            LoriError: Naming the part or the weight, and the step.
        """
        self.check()
        for name, parameter in pl_module.named_parameters():
            if parameter.requires_grad and not parameter.isfinite().all():
                raise LoriError(
                    f"the weight '{name}' is not finite after step {trainer.global_step}; the last checkpoint before "
                    "it is kept: lower the learning rate, or clip gradients"
                )

    def check(self) -> None:
        """Raises where a loss was not finite.

        Raises:
            LoriError: Naming the part and the step.
        """
        bad = {name: int(step) for name, step in self.first_bad.items() if step.isfinite()}
        if not bad:
            return
        step = min(bad.values())
        parts = [name for name, first in bad.items() if first == step]
        culprit = next((name for name in parts if name != "loss"), parts[0])
        raise LoriError(
            f"the loss '{culprit}' is not finite at step {step}; the last checkpoint before it is kept: lower the "
            "learning rate or that part's weight, or clip gradients"
        )
