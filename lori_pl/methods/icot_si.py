"""iCoT-SI: explicit CoT whose rationale is taken away token by token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from lori_pl.data.datamodule import PreparedSplit
from lori_pl.data.moving import send
from lori_pl.data.pairing import PairedBatch, Pieces, join_parts
from lori_pl.errors import LoriError, check_choice
from lori_pl.methods.losses import batch_mean, explicit_cross_entropy
from lori_pl.methods.stages import StagedMethod, Stages
from lori_pl.models.backbone import Backbone
from lori_pl.models.thought import Reasoning

Side = Literal["left", "right"]


class ICoTSI(StagedMethod):
    """iCoT-SI, stepwise internalisation (Deng et al., 2024, arXiv 2405.14838; code as of c2e3891).

    In stage s the first s + o tokens of each rationale are missing, o drawn anew for each problem and step with
    P(o) proportional to exp(-smoothing o); where that exceeds ``remove_all``, all of them are. The loss is explicit
    CoT's on what is left. In the last stage nothing is left and it is No-CoT.

    Args:
        backbone: The student's language model; in the published runs the model itself, which stage 0 teaches the
            rationale.
        stages: How long a stage lasts, each of which takes one more token.
        remove_all: Beyond so many tokens everything goes.
        side: The end of the rationale that tokens are taken from.
        smoothing: The rate of the random offset o; ``null`` for none.
        peer_compat: As the published code: the loss is the mean over the tokens of the batch, the answer prompt among
            them in the last stage too, which is the one where s reaches ``remove_all``, whatever o.
        settings: As in `Method`.

    Raises:
        LoriError: If a value is out of range.
    """

    name = "icot_si"
    reasoning: ClassVar[Reasoning] = "words"
    taken_away = ("remove_all", "tokens")
    stage_settings = ("remove_all", "side", "peer_compat")

    def __init__(
        self,
        backbone: Backbone,
        stages: Stages,
        remove_all: int = 39,
        side: Side = "left",
        smoothing: float | None = 4.0,
        peer_compat: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(backbone, **settings)
        check_choice("model.side", side, Side)
        if remove_all < 0:
            raise LoriError(f"model.remove_all is {remove_all}: give 0 or more")
        if smoothing is not None and not smoothing > 0:
            raise LoriError(f"model.smoothing is {smoothing}: give more than 0, or null for no offset")
        self.stages = stages
        self.remove_all = remove_all
        self.side = side
        self.smoothing = smoothing
        self.peer_compat = peer_compat
        self.draw = (0, 0)

    @property
    def final_stage(self) -> int:
        """The first in which every rationale is gone, whatever its offset."""
        return self.remove_all if self.peer_compat else self.remove_all + 1

    @property
    def saved_stage(self) -> int | None:
        """Told of the last stage alone."""
        return self.final_stage if self.student.reasoning == "none" else None

    @property
    def over_batch(self) -> list[str]:
        """Also the published mean over tokens."""
        return [*super().over_batch, *(["the loss is the mean over the batch's tokens"] if self.peer_compat else [])]

    def longest(self, split: PreparedSplit) -> int:
        """Its tokens."""
        return int(split.student.rationales.lengths.max())

    def enter(self, stage: int) -> None:
        """Also lets the student answer at once in the last stage, and write before it."""
        super().enter(stage)
        if self.reasoner is not None:
            kind: Reasoning = "none" if self.is_final else "words"
            self.reasoner.settings = replace(self.reasoner.settings, reasoning=kind)

    def sequences(self, split: PreparedSplit) -> list[tuple[str, PreTrainedModel, np.ndarray]]:
        """The explicit ones: nothing is longer."""
        return [("question, rationale, answer prompt and answer", self.student.lm, split.student.lengths())]

    def check_reasoning(self, reasoning: str, place: str) -> None:
        """Takes students of any stage."""
        if reasoning not in ("words", "none"):
            super().check_reasoning(reasoning, place)

    def on_train_batch_start(self, batch: PairedBatch, batch_idx: int) -> None:
        """Also begins the draw of this step's offsets."""
        super().on_train_batch_start(batch, batch_idx)
        self.draw = (self.data.seed, self.trainer.global_step)

    def offsets(self, pieces: Pieces) -> np.ndarray:
        """The random offsets (B,) of this step: each problem's own, whatever the process and batch it is in."""
        if self.smoothing is None or not self.training:
            return np.zeros(len(pieces.rows), dtype=np.int64)
        uniform = np.random.default_rng(self.draw).random(pieces.rows.max() + 1)[pieces.rows]
        return (-np.log1p(-uniform) / self.smoothing).astype(np.int64)

    def shortened(self, pieces: Pieces, offsets: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The parts of each problem without the tokens that this stage takes away."""
        shortened = []
        for (question, rationale, answer), offset in zip(pieces.parts, offsets.tolist(), strict=True):
            gone = self.stage + offset
            if self.is_final or (gone > self.remove_all and not self.peer_compat):
                gone = len(rationale)
            kept = rationale[gone:] if self.side == "left" else rationale[: max(0, len(rationale) - gone)]
            shortened.append((question, kept, answer))
        return shortened

    def task_loss(self, batch: PairedBatch) -> Tensor:
        """Mean over problems; over tokens under ``peer_compat``."""
        losses, tokens = self.read_stage(batch)
        return batch_mean(losses, tokens) if self.peer_compat else losses.mean()

    def task_losses(self, batch: PairedBatch) -> Tensor:
        """Cross-entropy (B,) on what this stage leaves, the mean over each problem's tokens."""
        return self.read_stage(batch)[0]

    def read_stage(self, batch: PairedBatch) -> tuple[Tensor, Tensor]:
        """Cross-entropy (B,) on what is left, in the last stage No-CoT's; and the number of tokens (B,) of each."""
        if self.student.reasoning == "none" and not self.peer_compat:
            return super().task_losses(batch), batch.target_mask.sum(1)
        assert batch.pieces is not None
        left = join_parts(self.shortened(batch.pieces, self.offsets(batch.pieces)), self.student.encoder)
        left = send(left, batch.question.device)
        return explicit_cross_entropy(self.student, left), left.mask.sum(1) - left.begin
