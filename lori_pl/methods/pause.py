"""Pause: No-CoT with learned filler tokens, the control for compute."""

from __future__ import annotations

from typing import Any

from lori_pl.errors import LoriError
from lori_pl.methods.base import Method
from lori_pl.models.backbone import Backbone


class Pause(Method):
    """No-CoT with K learned filler tokens: the latents' compute without their recurrence (Goyal et al., 2024).

    Args:
        backbone: The student's language model.
        latents: Number of fillers K.
        settings: As in `Method`.

    Raises:
        LoriError: If ``latents`` is negative.
    """

    name = "pause"
    reasoning = "pause"

    def __init__(
        self,
        backbone: Backbone,
        latents: int = 5,
        **settings: Any,
    ) -> None:
        super().__init__(backbone, **settings)
        if latents < 0:
            raise LoriError(f"model.latents is {latents}: give 0 or more (0 is <bot><eot> alone)")
        self.latents = latents
