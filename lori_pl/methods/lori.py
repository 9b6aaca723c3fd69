"""LoRi: low-rank alignment of a student's latent steps with a frozen teacher's rationale."""

from __future__ import annotations

import logging
from typing import Any

from lori_pl.alignment import AnchorAlignment, LowRankAlignment, Term
from lori_pl.methods.latent import LatentMethod
from lori_pl.methods.terms import by_part
from lori_pl.models.backbone import Backbone

log = logging.getLogger(__name__)


class LoRi(LatentMethod):
    """Distils a frozen explicit-CoT teacher into K recurrent latents (Solgi et al., 2026; a reconstruction).

    L = L_task + the weighted losses of the terms. With both terms off this is ``latent_only``; with one of them
    ``anchor_only`` or ``rationale_only``.

    Args:
        backbone: The student's language model.
        alignment: The rationale-level term; ``null`` leaves it out.
        anchor: The anchor-level term; ``null`` leaves it out.
        terms: Further terms, as class paths.
        settings: As in `LatentMethod` and `Distillation`.
    """

    name = "lori"
    term_fields = ("alignment", "anchor")

    def __init__(
        self,
        backbone: Backbone,
        alignment: LowRankAlignment | None = None,
        anchor: AnchorAlignment | None = None,
        terms: list[Term] | None = None,
        **settings: Any,
    ) -> None:
        standard = [term for term in (alignment, anchor) if term is not None]
        super().__init__(backbone, terms=[*standard, *(terms or [])], **settings)
        if not self.needs and self.teacher_backbone is not None:
            log.info("no term is active: this is latent_only, the latents with the task loss alone")

    @property
    def label(self) -> str:
        """``lori``, or what it is called with a standard term off; behind it the further terms that weigh."""
        anchor, rationale, others = by_part(self.weighing_terms)
        names = {(False, False): "latent_only", (True, False): "anchor_only", (False, True): "rationale_only"}
        own = names.get((bool(anchor), bool(rationale)), self.name)
        return "+".join([own, *others])
