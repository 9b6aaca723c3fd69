"""LoRi: low-rank alignment of a student's latent steps with a frozen teacher's rationale."""

from __future__ import annotations

import logging
from typing import Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.nn.utils import parametrize

from lori_pl.alignment import AnchorAlignment, LowRankAlignment, Signals, Term
from lori_pl.data.pairing import PairedBatch
from lori_pl.data.template import Template
from lori_pl.errors import LoriError
from lori_pl.methods.distillation import Distillation
from lori_pl.methods.losses import answer_cross_entropy
from lori_pl.methods.optimization import Schedule
from lori_pl.models.backbone import Backbone
from lori_pl.models.hidden import LayerSelection
from lori_pl.models.thought import LatentScale

log = logging.getLogger(__name__)


class LoRi(Distillation):
    """Distils a frozen explicit-CoT teacher into K recurrent latents (Solgi et al., 2026; a reconstruction).

    L = L_task + the weighted losses of the terms. With both terms off this is ``latent_only``; with one of them
    ``anchor_only`` or ``rationale_only``.

    Args:
        backbone: The student's language model.
        teacher: The teacher: an explicit-CoT model; its folder as written by ``fit`` or ``export``, or any causal LM.
            ``None`` only where ``student_init`` is ``base`` and no term needs one, or a ``cache`` stands for it.
        student_init: Start from the ``teacher``'s weights, or from the ``base`` that ``backbone.name`` gives.
        latents: Number of latents K.
        latent_scale: Initial gain of the projector's LayerNorm: the ``embedding`` matrix's RMS entry, or ``unit``.
        alignment: The rationale-level term; ``null`` leaves it out.
        anchor: The anchor-level term; ``null`` leaves it out.
        terms: Further terms, as class paths.
        weights: Overrides the weight of a loss by its name, e.g. ``{mean: 0.0, covariance: 0.1}``; a term whose
            weights are all zero is left out.
        layers: Layers that make the teacher's trajectory.
        student_layers: The same for the student, where it differs.
        statistics_problems: Training problems on which centre, scale and factors are measured; ``null`` for all.
        template: How problems become text; the command line takes it from ``data.template``.
        optimizer: Optimiser.
        schedule: Learning rate by step.
        max_new_tokens: Most tokens generated for an answer in evaluation.
        cache: Folder of the teacher's statistics, made by the command ``cache``; the teacher is then never run.
        share_base: With LoRA, and where the student starts from the teacher, take its own base model with the adapters
            off for the teacher; ``false`` loads a second copy, which gives the same.
    """

    name = "lori"
    reasoning = "latent"

    def __init__(
        self,
        backbone: Backbone,
        teacher: Backbone | None = None,
        student_init: Literal["teacher", "base"] = "teacher",
        latents: int = 5,
        latent_scale: LatentScale = "embedding",
        alignment: LowRankAlignment | None = None,
        anchor: AnchorAlignment | None = None,
        terms: list[Term] | None = None,
        weights: dict[str, float] | None = None,
        layers: LayerSelection | None = None,
        student_layers: LayerSelection | None = None,
        statistics_problems: int | None = 4096,
        template: Template | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        max_new_tokens: int = 64,
        cache: str | None = None,
        share_base: bool = True,
    ) -> None:
        super().__init__(
            backbone=backbone,
            teacher=teacher,
            cache=cache,
            student_init=student_init,
            share_base=share_base,
            terms=[alignment, anchor, *(terms or [])],
            weights=weights,
            layers=layers,
            student_layers=student_layers,
            statistics_problems=statistics_problems,
            template=template,
            optimizer=optimizer,
            schedule=schedule,
            max_new_tokens=max_new_tokens,
        )
        if latents < 0:
            raise LoriError(f"model.latents is {latents}: give 0 or more (0 is <bot><eot> alone)")
        self.latents = latents
        self.latent_scale = latent_scale
        if not self.needs and teacher is not None:
            log.info("no term is active: this is latent_only, the latents with the task loss alone")
        if "trajectory" in self.needs and latents == 0:
            raise LoriError("model.latents is 0, so there is no trajectory to align: set model.alignment to null")

    @property
    def label(self) -> str:
        """``lori``, or what it is called with some of its standard terms off."""
        names = {AnchorAlignment: "anchor_only", LowRankAlignment: "rationale_only"}
        match self.active_terms:
            case []:
                return "latent_only"
            case [term]:
                return names.get(type(term), self.name)
        return self.name

    # ---- training -------------------------------------------------------------------------------------------------

    def losses(self, batch: PairedBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Task loss plus the weighted losses of the terms."""
        record = self.student_layers if self.needs else None
        state, trajectory = self.student.think(
            batch.question, batch.question_mask, record=record if "trajectory" in self.needs else None
        )
        hidden, anchor = self.student.finish(
            state, batch.answer, batch.answer_mask, batch.anchor, record if "anchor" in self.needs else None
        )
        total = task = answer_cross_entropy(self.student, hidden, batch).mean()
        parts = {"task": task}
        if self.active_terms:
            teacher = self.teacher_signals(batch)
            student = Signals(trajectory, None, anchor)
            with parametrize.cached():
                for key, term in self.named_terms.items():
                    for name, loss in term(student, self.teacher_statistics(key, term, batch, teacher)).items():
                        if name not in term.weights:
                            raise LoriError(f"{type(term).__name__} gives a loss '{name}' that its weights do not name")
                        parts[name] = loss
                        total = total + term.weights[name] * loss
        return total, parts

    @torch.no_grad()
    def alignment_diagnostics(self, batch: PairedBatch | None) -> dict[str, Tensor]:
        """Diagnostics of all terms; those that depend on a batch only where one is given."""
        values: dict[str, Tensor] = {}
        student = statistics = None
        if batch is not None and self.needs:
            state, trajectory = self.student.think(batch.question, batch.question_mask, record=self.student_layers)
            _, anchor = self.student.finish(state, batch.answer, batch.answer_mask, batch.anchor, self.student_layers)
            student, teacher = Signals(trajectory, None, anchor), self.teacher_signals(batch)
            known = teacher is not None or batch.statistics is not None
        for name, term in self.named_terms.items():
            if batch is not None and student is not None and known:
                statistics = self.teacher_statistics(name, term, batch, teacher)
            values |= term.diagnostics(student, statistics)
        return values
