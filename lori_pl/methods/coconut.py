"""Coconut: steps in words give way, stage by stage, to latents that are the last hidden states themselves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lori_pl.alignment import Signals
from lori_pl.data.datamodule import PreparedSplit
from lori_pl.data.moving import send
from lori_pl.data.pairing import PairedBatch, pad
from lori_pl.data.tokenizer import load_tokenizer
from lori_pl.errors import LoriError
from lori_pl.methods.latent import LatentMethod, StudentPass
from lori_pl.methods.losses import batch_mean, token_losses, token_mean, unused
from lori_pl.methods.stages import StagedMethod, Stages
from lori_pl.models.backbone import Backbone
from lori_pl.models.embeddings import copy_marker_rows
from lori_pl.models.hidden import LayerSelection

PEER_ROW = "<<"
"""The token that the published code's new rows are copies of."""


class Coconut(StagedMethod, LatentMethod):
    """Coconut (Hao et al., 2024, arXiv 2412.06769; facebookresearch/coconut, commit 27273cb).

    In stage s the first s steps are replaced by c s latents, and the model learns to write the steps that remain, the
    answer prompt and the answer: cross-entropy, the mean over all tokens of the batch. Behind the last of the
    ``latent_stages`` comes one in which no step remains; there K = c x ``latent_stages`` latents stand before the
    answer, whose prompt is given.

    Args:
        backbone: The student's language model.
        stages: How long a stage lasts.
        latents_a_step: c.
        latent_stages: Number of stages that bring c latents each.
        first_stage: The stage that training begins in; the published runs begin behind stage 0, which is explicit CoT.
        projector: Whether a latent is the projected last hidden state; the published one is that state as it is.
        peer_compat: As the published code: the rows of ``<bot>`` and ``<eot>`` start as copies of that of ``<<``, the
            optimiser's moments are forgotten at every epoch too, and the last stage's loss counts the answer prompt.
        settings: As in `Distillation`.

    Raises:
        LoriError: If a number is out of range, or ``peer_compat`` is to keep the optimiser's moments.
    """

    name = "coconut"
    taken_away = ("latent_stages", "steps")
    stage_settings = ("latents_a_step", "latent_stages", "first_stage")

    def __init__(
        self,
        backbone: Backbone,
        stages: Stages,
        latents_a_step: int = 2,
        latent_stages: int = 3,
        first_stage: int = 1,
        projector: bool = False,
        peer_compat: bool = False,
        **settings: Any,
    ) -> None:
        if latents_a_step < 1 or latent_stages < 1:
            raise LoriError(
                f"model.latents_a_step is {latents_a_step} and latent_stages {latent_stages}: give 1 or more"
            )
        if not 0 <= first_stage <= latent_stages + 1:
            raise LoriError(f"model.first_stage is {first_stage}: give 0 to {latent_stages + 1}, the last stage")
        if first_stage == 0 and settings.get("terms"):
            raise LoriError("model.first_stage is 0, a stage without latents, which model.terms could not read: give 1")
        if peer_compat and not stages.reset_optimizer:
            raise LoriError(
                "model.peer_compat forgets the optimiser's moments at every epoch, and model.stages.reset_optimizer is "
                "false: set one of the two otherwise"
            )
        super().__init__(backbone, latents=latents_a_step * latent_stages, projector=projector, **settings)
        self.peer_compat = self.learns_prompt = peer_compat
        self.stages = stages
        self.latents_a_step = latents_a_step
        self.latent_stages = latent_stages
        self.first_stage = first_stage

    @property
    def final_stage(self) -> int:
        """The one behind the last that brings latents."""
        return self.latent_stages + 1 - self.first_stage

    def longest(self, split: PreparedSplit) -> int:
        """Its steps, without the last where the template leaves that out."""
        return int(split.student.step_count.max())

    @property
    def removed(self) -> int:
        """Steps that latents stand for in this stage."""
        return min(self.stage + self.first_stage, self.latent_stages)

    @property
    def over_batch(self) -> list[str]:
        """Also the mean over all tokens."""
        return [*super().over_batch, "the loss is the mean over the batch's tokens"]

    def enter(self, stage: int) -> None:
        """Also sets the number of latents, and whether steps in words follow them."""
        super().enter(stage)
        if self.reasoner is not None:
            self.reasoner.thought.latents = self.latents_a_step * self.removed
            self.reasoner.settings = replace(self.reasoner.settings, then="answer" if self.is_final else "words")

    def load_backbone(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        """Also starts the markers' rows as published, where that is asked for and they are new.

        Raises:
            LoriError: If the tokenizer has no ``<<``.
        """
        if self.peer_compat and PEER_ROW not in tokenizer.get_vocab():
            raise LoriError(
                f"model.peer_compat starts <bot> and <eot> as copies of the token '{PEER_ROW}', which the student's "
                "tokenizer does not have: set it to false"
            )
        lm: PreTrainedModel = super().load_backbone(tokenizer)
        if self.peer_compat:
            chosen = self.tokenizer_backbone
            copy_marker_rows(lm, tokenizer, load_tokenizer(chosen.tokenizer_name, False, chosen.revision), PEER_ROW)
        return lm

    def begins_anew(self, step: int) -> bool:
        """At every epoch too under ``peer_compat``."""
        return super().begins_anew(step) or (self.peer_compat and step > 0 and step % self.steps_an_epoch == 0)

    @property
    def saved_stage(self) -> int | None:
        """Told by the number of latents, and by what follows them."""
        if self.student.settings.then == "answer":
            return self.final_stage
        return self.student.thought.latents // self.latents_a_step - self.first_stage

    def set_latents(self) -> None:
        """Sets the number of latents that this run asks for.

        Raises:
            LoriError: If steps in words follow them, and it is not clear which.
        """
        super().set_latents()
        latents = self.student.thought.latents
        if self.student.settings.then == "words" and latents % self.latents_a_step:
            raise LoriError(
                f"this student, of a stage in which words follow, takes its latents {self.latents_a_step} a step "
                f"(model.latents_a_step), and this run asks for {latents}: give a multiple of {self.latents_a_step}"
            )

    def own_losses(self, batch: PairedBatch) -> tuple[Tensor, dict[str, Tensor], Signals]:
        """Cross-entropy on what stands behind the latents."""
        student = self.read_stage(batch, *self.wanted)
        task = batch_mean(student.losses, student.tokens)
        # without latents the projector is not used
        total = task if self.student.thought.latents else task + unused(self.student.thought)
        return total, {"task": task}, student.signals

    def task_losses(self, batch: PairedBatch) -> Tensor:
        """Cross-entropy (B,) on what this stage has behind the latents, the mean over each problem's tokens."""
        return self.read_stage(batch, None, None).losses

    def read_stage(
        self, batch: PairedBatch, trajectory: LayerSelection | None, anchor: LayerSelection | None
    ) -> StudentPass:
        """Question, latents, the steps that this stage leaves in words, and answer.

        Args:
            batch: The batch.
            trajectory: Layers whose states at the latents are wanted.
            anchor: Layers whose states at the anchor are wanted.
        """
        if self.student.settings.then == "answer":
            return self.read_student(batch, trajectory, anchor)
        assert batch.pieces is not None
        encoder, removed = self.student.encoder, self.student.thought.latents // self.latents_a_step
        rows, before = [], []
        for (_, rationale, answer), starts in zip(batch.pieces.parts, batch.pieces.starts, strict=True):
            begin = 0 if not removed else starts[removed] if removed < len(starts) else len(rationale)
            rows.append(np.concatenate([encoder.eot, rationale[begin:], encoder.prompt, answer]))
            before.append(len(rows[-1]) - len(answer) - 1)
        made = (*pad(rows, encoder.pad, left=False), torch.tensor(before)[:, None])
        ids, mask, columns = (send(tensor, batch.question.device) for tensor in made)
        question = (batch.question, batch.question_mask)
        found = self.student.read_pair(*question, ids, mask, 0, trajectory, anchor, columns)
        losses, written = token_losses(self.student, found.hidden, ids[:, 1:]), mask[:, 1:]
        signals = Signals(found.trajectory, None, found.anchor)
        return StudentPass(token_mean(losses, written), written.sum(1), signals, found.cache)

    def sequences(self, split: PreparedSplit) -> list[tuple[str, PreTrainedModel, np.ndarray]]:
        """The longest of all stages in a training; outside it those of the stage that the student is in; the terms'."""
        encoder, parts = self.student.encoder, split.student
        lengths = parts.questions.lengths + parts.answers.lengths + len(encoder.bot) + len(encoder.suffix)
        latents = self.latents if self.trains else self.student.thought.latents
        gone: Iterable[int] = range(min(self.first_stage, self.latent_stages), self.latent_stages + 1)
        if not self.trains:
            gone = [latents // self.latents_a_step] if self.student.settings.then == "words" else []
        left = [self.latents_a_step * k + parts.rationales.lengths - parts.step_columns(k) for k in gone]
        between = np.max([np.full_like(lengths, latents), *left], axis=0)
        what = f"question, up to {latents} latents, the steps that are left, answer prompt and answer"
        _, *of_terms = super().sequences(split)
        return [(what, self.student.lm, lengths + between), *of_terms]
