"""What methods with a latent thought share: one pass of the student, and terms that align it with a frozen teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils import parametrize
from transformers import Cache

from lori_pl.alignment import Signals
from lori_pl.data.pairing import PairedBatch
from lori_pl.errors import LoriError
from lori_pl.methods.distillation import Distillation
from lori_pl.methods.losses import answer_cross_entropy
from lori_pl.methods.terms import by_part, named_terms
from lori_pl.models.backbone import Backbone
from lori_pl.models.hidden import LayerSelection
from lori_pl.models.state import DecodingState
from lori_pl.models.thought import LatentScale, Reasoning, ThoughtSettings
from lori_pl.regions import region


@dataclass
class StudentPass:
    """What a student's pass over question, thought and answer gives.

    Args:
        losses: (B,) cross-entropy of what each student writes, the mean over its tokens.
        tokens: (B,) how many these are.
        signals: The states that were asked for.
        cache: Keys and values of all that was read, where it was read with a cache.
    """

    losses: Tensor
    tokens: Tensor
    signals: Signals
    cache: Cache | None


class LatentMethod(Distillation):
    """Base of the methods whose student reasons in K latents: the method's own losses, plus those of any terms.

    Args:
        backbone: The student's language model.
        latents: Number of latents K.
        latent_scale: Initial gain of the projector's LayerNorm: the ``embedding`` matrix's RMS entry, or ``unit``.
        projector: Whether a latent is the projected last hidden state, or that state as it is.
        settings: As in `Distillation`.

    Raises:
        LoriError: If K is negative, or 0 where a term reads the latents.
    """

    reasoning: ClassVar[Reasoning] = "latent"
    learns_prompt = False
    """Whether the student's loss counts the answer prompt too, as published codes do, though the prompt is given."""

    def __init__(
        self,
        backbone: Backbone,
        latents: int = 5,
        latent_scale: LatentScale = "embedding",
        projector: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(backbone, **settings)
        if latents < 0:
            raise LoriError(f"model.latents is {latents}: give 0 or more (0 is <bot><eot> alone)")
        self.latents = latents
        self.latent_scale = latent_scale
        self.projector = projector
        if latents == 0 and "trajectory" in self.needs:
            raise LoriError(
                "model.latents is 0, so there is no trajectory to align: leave out the term that reads it "
                "(model.alignment: null)"
            )

    @property
    def thought(self) -> ThoughtSettings:
        """K latents, one after the other."""
        return ThoughtSettings(self.reasoning, self.latents, self.projector, self.latent_scale)

    @property
    def label(self) -> str:
        """The method's name, with LoRi's before it where both its terms weigh, and behind it what else weighs."""
        anchor, rationale, others = by_part(self.weighing_terms)
        if anchor and rationale:
            return "+".join([f"lori_{self.name}", *others])
        return "+".join([self.name, *named_terms(self.weighing_terms)])

    @property
    def wanted(self) -> tuple[LayerSelection | None, LayerSelection | None]:
        """Layers whose states at the latents, and at the anchor, the terms read."""
        trajectory, anchor = (self.student_layers if self._reads(need) else None for need in ("trajectory", "anchor"))
        return trajectory, anchor

    def _reads(self, need: str) -> bool:
        return any(need in term.needs for term in self.weighing_terms)

    def read_student(
        self,
        batch: PairedBatch,
        trajectory: LayerSelection | None,
        anchor: LayerSelection | None,
        state: DecodingState | None = None,
    ) -> StudentPass:
        """Question, thought and answer, once.

        Args:
            batch: The batch.
            trajectory: Layers whose states at the latents are wanted.
            anchor: Layers whose states at the anchor are wanted.
            state: The question, where it was read already.
        """
        question, answer = (batch.question, batch.question_mask), (batch.answer, batch.answer_mask)
        first = 0 if self.learns_prompt else batch.anchor
        columns = torch.full_like(batch.index[:, None], batch.anchor)
        found = self.student.read_pair(*question, *answer, first, trajectory, anchor, columns, state)
        losses = answer_cross_entropy(self.student, found.hidden, batch)
        tokens = batch.answer_mask.sum(1) - first - 1
        return StudentPass(losses, tokens, Signals(found.trajectory, None, found.anchor), found.cache)

    def task_losses(self, batch: PairedBatch) -> Tensor:
        """Cross-entropy on each problem's answer (B,), after the thought."""
        return self.read_student(batch, None, None).losses

    def own_losses(self, batch: PairedBatch) -> tuple[Tensor, dict[str, Tensor], Signals]:
        """The method's loss without its terms, its parts by name, and the student's signals for the terms."""
        student = self.read_student(batch, *self.wanted)
        task = student.losses.mean()
        return task, {"task": task}, student.signals

    def losses(self, batch: PairedBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The method's own losses plus the weighted ones of the terms."""
        total, parts, student = self.own_losses(batch)
        if self.active_terms:
            teacher = self.teacher_signals(batch)
            with region("alignment"), parametrize.cached():
                for key, term in self.named_terms.items():
                    if not term.weighs:
                        continue
                    for name, loss in term(student, self.teacher_statistics(key, term, batch, teacher)).items():
                        if name not in term.weights:
                            raise LoriError(f"{type(term).__name__} gives a loss '{name}' that its weights do not name")
                        parts[name] = loss
                        total = total + term.weights[name] * loss
        return total, parts

    @torch.no_grad()
    def alignment_diagnostics(self, batch: PairedBatch | None) -> dict[str, Tensor]:
        """Diagnostics of all terms; those that depend on a batch only where one is given.

        Where two terms name a value alike, the second's has the term's name before it.
        """
        values: dict[str, Tensor] = {}
        student = statistics = None
        if batch is not None and self.needs:
            with self.trainer.precision_plugin.forward_context():  # as a step reads
                student = self.read_student(batch, self.student_layers, self.student_layers).signals
                teacher = self.teacher_signals(batch)
            known = teacher is not None or batch.statistics is not None
        for name, term in self.named_terms.items():
            if batch is not None and student is not None and known:
                statistics = self.teacher_statistics(name, term, batch, teacher)
            for key, value in term.diagnostics(student, statistics).items():
                values[f"{name}_{key}" if key in values else key] = value
        return values
