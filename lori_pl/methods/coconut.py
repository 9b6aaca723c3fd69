"""Coconut: steps in words give way, stage by stage, to latents that are the last hidden states themselves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from lori_pl.alignment import Signals
from lori_pl.alignment.distributed import mean_across_ranks
from lori_pl.data.datamodule import PreparedSplit
from lori_pl.data.pairing import PairedBatch, pad
from lori_pl.errors import LoriError
from lori_pl.methods.latent import LatentMethod
from lori_pl.methods.losses import unused
from lori_pl.methods.stages import StagedMethod, Stages
from lori_pl.models.backbone import Backbone


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
        settings: As in `Distillation`.

    Raises:
        LoriError: If a number is out of range.
    """

    name = "coconut"

    def __init__(
        self,
        backbone: Backbone,
        stages: Stages,
        latents_a_step: int = 2,
        latent_stages: int = 3,
        first_stage: int = 1,
        projector: bool = False,
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
        super().__init__(backbone, latents=latents_a_step * latent_stages, projector=projector, **settings)
        self.stages = stages
        self.latents_a_step = latents_a_step
        self.latent_stages = latent_stages
        self.first_stage = first_stage

    @property
    def final_stage(self) -> int:
        """The one behind the last that brings latents."""
        return self.latent_stages + 1 - self.first_stage

    def idle_stages(self, split: PreparedSplit) -> str:
        """Those beyond the longest rationale's steps."""
        longest = int(split.steps.max())
        if self.latent_stages <= longest:
            return ""
        return (
            f"model.latent_stages is {self.latent_stages}, but the longest rationale has {longest} steps: "
            f"{self.latent_stages - longest} stages take nothing away; set it to {longest}"
        )

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

    def own_losses(self, batch: PairedBatch) -> tuple[Tensor, dict[str, Tensor], Signals]:
        """Cross-entropy on what stands behind the latents."""
        if self.is_final:
            student = self.read_student(batch, *self.wanted)
            tokens = batch.target_mask.sum(1)
            task = mean_across_ranks((student.losses * tokens).sum(), tokens.sum())
            return task, {"task": task}, student.signals
        assert batch.pieces is not None
        encoder, removed = self.student.encoder, self.removed
        rows, before = [], []
        for (_, rationale, answer), starts in zip(batch.pieces.parts, batch.pieces.starts, strict=True):
            begin = 0 if not removed else starts[removed] if removed < len(starts) else len(rationale)
            rows.append(np.concatenate([encoder.eot, rationale[begin:], encoder.prompt, answer]))
            before.append(len(rows[-1]) - len(answer) - 1)
        ids, mask = (tensor.to(batch.question.device) for tensor in pad(rows, encoder.pad, left=False))
        columns = torch.tensor(before, device=ids.device)[:, None]
        found = self.student.read_pair(batch.question, batch.question_mask, ids, mask, 0, *self.wanted, columns)
        target, logits = ids[:, 1:], self.student.logits(found.hidden).float()
        losses = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(target)
        task = mean_across_ranks((losses * mask[:, 1:]).sum(), mask[:, 1:].sum())
        # without latents the projector is not used
        total = task if removed else task + unused(self.student.thought)
        return total, {"task": task}, Signals(found.trajectory, None, found.anchor)

    def sequences(self, split: PreparedSplit) -> list[tuple[str, PreTrainedModel, np.ndarray]]:
        """The longest of all stages in training; the last stage's in validation."""
        encoder, parts = self.student.encoder, split.student
        fixed = parts.questions.lengths + parts.answers.lengths + len(encoder.bot) + len(encoder.suffix)
        lengths = fixed + self.latents
        if split.name == "train":
            for removed in range(min(self.first_stage, self.latent_stages), self.latent_stages + 1):
                left = parts.rationales.lengths - parts.step_columns(removed)
                lengths = np.maximum(lengths, fixed + self.latents_a_step * removed + left)
        what = f"question, up to {self.latents} latents, the steps that are left, answer prompt and answer"
        return [(what, self.student.lm, lengths)]

    @property
    def checkpoint_settings(self) -> dict[str, Any]:
        """Also what a stage's number means."""
        names = ("latents_a_step", "latent_stages", "first_stage")
        return {**super().checkpoint_settings, **{name: getattr(self, name) for name in names}}
