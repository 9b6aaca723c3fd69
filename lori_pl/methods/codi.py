"""CODI: one set of weights reasons in words and in latents, and the second follows the first at the anchor."""

from __future__ import annotations

from typing import Any

from lori_pl.methods.joint import JointMethod
from lori_pl.models.backbone import Backbone


class CODI(JointMethod):
    """CODI (Shen et al., 2025, arXiv 2502.21074; github.com/zhenyi4/codi, commit 4fd88d4): recurrent latents.

    Args:
        backbone: The language model.
        gamma: Weight of the distance at the anchor: 1 for GPT-2, 20 for LLaMA in the published runs.
        peer_compat: As the published code: both cross-entropies are means over the tokens of the batch, the student's
            over the answer prompt too, the embedding layer counts as a layer of the distance, the teacher's rationale
            lacks its last step (needs ``data.template.drop_last_step``), and under LoRA the markers' rows do not train.
        settings: As in `JointMethod`, `LatentMethod` and `Distillation`.
    """

    name = "codi"

    def __init__(self, backbone: Backbone, gamma: float = 1.0, peer_compat: bool = False, **settings: Any) -> None:
        super().__init__(backbone, gamma, peer_compat, **settings)
        self.first_layer = 0 if peer_compat else 1

    def configure_model(self) -> None:
        """Builds the student; under ``peer_compat`` the markers' own rows stay as they start."""
        super().configure_model()
        if self.peer_compat and self.student.markers is not None:
            self.student.markers.requires_grad_(False)
