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
        peer_compat: As the published code: both cross-entropies are means over the tokens of the batch, the student's
            over the answer prompt too, and the teacher's rationale lacks its last step (needs
            ``data.template.drop_last_step``).
        settings: As in `JointMethod`, `LatentMethod` and `Distillation`.

    Raises:
        LoriError: If T is not positive.
    """

    name = "pccot"
    reasoning = "parallel"

    def __init__(
        self,
        backbone: Backbone,
        latents: int = 24,
        passes: int = 3,
        gamma: float = 1.0,
        peer_compat: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(backbone, gamma, peer_compat, latents=latents, **settings)
        self.passes = passes
        if passes < 1:
            raise LoriError(f"model.passes is {passes}: give 1 or more")

    @property
    def thought(self) -> ThoughtSettings:
        """K latents together."""
        return ThoughtSettings(self.reasoning, self.latents, self.projector, self.latent_scale, self.passes)
