"""Pause: No-CoT with learned filler tokens, the control for compute."""

from __future__ import annotations

import torch
from lightning.pytorch.cli import OptimizerCallable

from lori_pl.data.template import Template
from lori_pl.methods.base import Method
from lori_pl.methods.optimization import Schedule
from lori_pl.models.backbone import Backbone


class Pause(Method):
    """No-CoT with K learned filler tokens: the latents' compute without their recurrence (Goyal et al., 2024).

    Args:
        backbone: The student's language model.
        latents: Number of fillers K.
        template: How problems become text; the command line takes it from ``data.template``.
        optimizer: Optimiser.
        schedule: Learning rate by step.
        max_new_tokens: Most tokens generated for an answer in evaluation.
    """

    name = "pause"
    reasoning = "pause"

    def __init__(
        self,
        backbone: Backbone,
        latents: int = 5,
        template: Template | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        max_new_tokens: int = 64,
    ) -> None:
        super().__init__(backbone, template, optimizer, schedule, max_new_tokens)
        self.latents = latents
