"""What methods share whose one set of weights is teacher and student: it reasons in words and in latents."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss
from transformers import PreTrainedModel

from lori_pl.alignment import Signals
from lori_pl.alignment.distributed import batch_deviation
from lori_pl.data.datamodule import PreparedSplit
from lori_pl.data.pairing import PairedBatch
from lori_pl.errors import LoriError
from lori_pl.methods.latent import LatentMethod, StudentPass
from lori_pl.methods.losses import batch_mean, explicit_cross_entropy
from lori_pl.models.attention import AttentionInputs, recorded_attention
from lori_pl.models.backbone import Backbone
from lori_pl.models.hidden import LayerSelection, record_hidden, stack_layers, take
from lori_pl.models.pair_reading import ReadQuestion, read_question


@dataclass
class WordsPass:
    """What the teacher's pass over the explicit sequence gives.

    Args:
        losses: (B,) cross-entropy of each rationale and answer, the mean over its tokens.
        tokens: (B,) how many these are.
        anchor: (B, L, D) states at the anchor.
        attention: What each layer's attention read, where it was asked for.
        first: (B, 1) which of its queries is the first behind the question; before the queries' own keys come those
            of a question that was read already.
    """

    losses: Tensor
    tokens: Tensor
    anchor: Tensor
    attention: list[AttentionInputs]
    first: Tensor


class JointMethod(LatentMethod):
    """Base of the methods that teach themselves: L = CE_student + gamma L_KD + CE_teacher.

    The teacher reads question, rationale and answer, the student question, K latents and answer; the question is read
    once for both. L_KD is `anchor_distance`; the teacher's side of it has no gradients. The last layer's states are
    those behind the final norm, unless ``student_layers.final_norm`` (or ``layers.final_norm``) is false.

    Args:
        backbone: The language model.
        gamma: Weight of L_KD.
        peer_compat: As the published codes: both cross-entropies are means over the tokens of the batch, the student's
            over the answer prompt too, and the teacher's rationale lacks its last step (needs
            ``data.template.drop_last_step``).
        settings: As in `LatentMethod` and `Distillation`.

    Raises:
        LoriError: If gamma is negative, or ``peer_compat`` meets a template that keeps the last step.
    """

    first_layer = 1
    """The first layer that L_KD compares, 0 for the embeddings."""
    reads_attention = False

    def __init__(self, backbone: Backbone, gamma: float = 1.0, peer_compat: bool = False, **settings: Any) -> None:
        super().__init__(backbone, **settings)
        if not gamma >= 0:
            raise LoriError(f"model.gamma is {gamma}: give 0 or more")
        if peer_compat and not self.template.drop_last_step:
            raise LoriError("model.peer_compat leaves out each rationale's last step: set data.template.drop_last_step")
        self.gamma = gamma
        self.peer_compat = self.learns_prompt = peer_compat

    @classmethod
    def requires_rationale(cls, config: Mapping[str, Any]) -> bool:
        """The teacher learns to write it."""
        return True

    @property
    def over_batch(self) -> list[str]:
        """Also the deviation that L_KD is divided by, and published means over tokens."""
        means = ["the cross-entropies are means over the batch's tokens"] if self.peer_compat else []
        return [*super().over_batch, "L_KD is over the deviation of the batch's states", *means]

    def sequences(self, split: PreparedSplit) -> list[tuple[str, PreTrainedModel, np.ndarray]]:
        """The student's and, in training, its own explicit ones."""
        found = super().sequences(split)
        if split.name == "train":
            found.append(("question, rationale, answer prompt and answer", self.student.lm, split.student.lengths()))
        return found

    def own_losses(self, batch: PairedBatch) -> tuple[Tensor, dict[str, Tensor], Signals]:
        """CE_student, L_KD and CE_teacher."""
        layers = LayerSelection(final_norm=self.student_layers.final_norm, embedding_layer=True)
        question = read_question(self.student, batch.question, batch.question_mask)
        words = self.read_words(batch, layers, question)
        student = self.read_student(batch, self.wanted[0], layers, None if question is None else question.state)
        signals = student.signals
        assert signals.anchor is not None
        compared = slice(self.first_layer, None)
        parts = {
            "task": self.mean(student),
            "distillation": anchor_distance(signals.anchor[:, compared], words.anchor[:, compared].detach()),
            "teacher": self.mean(words),
        }
        total = parts["task"] + self.gamma * parts["distillation"] + parts["teacher"]
        for name, (weight, loss) in self.further_losses(batch, student, words).items():
            parts[name] = loss
            total = total + weight * loss
        if self.active_terms:
            # layer numbers are columns here, for layer 0 is there; a list as an index would be copied to the device
            chosen = self.student_layers.resolve(self.student.depth)
            signals.anchor = torch.stack([signals.anchor[:, layer] for layer in chosen], dim=1)
        return total, parts, signals

    def mean(self, read: StudentPass | WordsPass) -> Tensor:
        """Mean cross-entropy over problems; over tokens under ``peer_compat``."""
        return batch_mean(read.losses, read.tokens) if self.peer_compat else read.losses.mean()

    def read_words(self, batch: PairedBatch, anchor: LayerSelection, question: ReadQuestion | None) -> WordsPass:
        """The explicit sequence: question, if it was not read already, rationale and answer in words.

        Args:
            batch: The batch.
            anchor: Layers whose states at the anchor are wanted.
            question: The question, where it was read already.
        """
        lm, explicit = self.student.lm, batch.explicit
        first = explicit.begin[:, None] if question is None else torch.zeros_like(explicit.begin[:, None])
        column = (explicit.anchor - explicit.begin)[:, None] + first
        layers = anchor.resolve(self.student.depth)
        recording: AbstractContextManager[list[AttentionInputs]] = (
            recorded_attention(lm) if self.reads_attention else nullcontext([])
        )
        with (
            recording as attention,
            record_hidden(lm, layers, anchor.final_norm, lambda hidden: take(hidden, column)) as records,
        ):
            losses = explicit_cross_entropy(self.student, explicit, question)
        tokens = explicit.mask.sum(1) - explicit.begin
        return WordsPass(losses, tokens, stack_layers(records)[:, :, 0], attention, first)

    def further_losses(
        self, batch: PairedBatch, student: StudentPass, words: WordsPass
    ) -> dict[str, tuple[float, Tensor]]:
        """Losses of a method's own by name, each with its weight.

        Args:
            batch: The batch.
            student: The student's pass.
            words: The teacher's, with what attention read if ``reads_attention``.
        """
        return {}


def anchor_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over layers of smooth-L1(student - teacher), mean over problems and entries, over the teacher's deviation.

    The deviation is that of all entries of a layer, over the whole batch of all processes.

    Args:
        student: (B, L, D) anchor states.
        teacher: (B, L, D), without gradients.
    """
    teacher = teacher.float()
    distance = smooth_l1_loss(student.float(), teacher, reduction="none").mean((0, 2))
    return (distance / batch_deviation(teacher)).mean()
