"""PCCoT: CODI's losses with latents that are updated together."""

from __future__ import annotations

from typing import Any

from lori_pl.errors import LoriError
from lori_pl.methods.joint import JointMethod
from lori_pl.models.backbone import Backbone
from lori_pl.models.thought import ThoughtSettings


class PCCoT(JointMethod):
    """PCCoT (Wu et al., 2025; github.com/whyNLP/PCCoT, commit 2e32e3e): K latents in T Jacobi passes.

    Args:
        backbone: The language model.
        latents: K.
        passes: T; with T >= K the latents are the recurrent ones.
        gamma: Weight of the distance at the anchor.
        settings: As in `JointMethod`, `LatentMethod` and `Distillation`.

    Raises:
        LoriError: If T is not positive.
    """

    name = "pccot"
    reasoning = "parallel"

    def __init__(
        self, backbone: Backbone, latents: int = 24, passes: int = 3, gamma: float = 1.0, **settings: Any
    ) -> None:
        super().__init__(backbone, gamma, latents=latents, **settings)
        self.passes = passes
        if passes < 1:
            raise LoriError(f"model.passes is {passes}: give 1 or more")

    @property
    def thought(self) -> ThoughtSettings:
        """K latents together."""
        return ThoughtSettings(self.reasoning, self.latents, self.projector, self.latent_scale, self.passes)
