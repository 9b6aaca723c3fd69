"""iCoT-SI: explicit CoT whose rationale is taken away token by token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from lori_pl.data.datamodule import PreparedSplit
from lori_pl.data.pairing import PairedBatch, Pieces, join_parts
from lori_pl.errors import LoriError
from lori_pl.methods.losses import explicit_cross_entropy
from lori_pl.methods.stages import StagedMethod, Stages
from lori_pl.models.backbone import Backbone
from lori_pl.models.thought import Reasoning


class ICoTSI(StagedMethod):
    """iCoT-SI, stepwise internalisation (Deng et al., 2024, arXiv 2405.14838; code as of c2e3891).

    In stage s the first s + o tokens of each rationale are missing, o drawn anew for each problem and step with
    P(o) proportional to exp(-smoothing o); where that exceeds ``remove_all``, all of them are. The loss is explicit
    CoT's on what is left. In the last stage nothing is left and it is No-CoT.

    Args:
        backbone: The student's language model, an explicit-CoT model's weights in the published runs.
        stages: How long a stage lasts, each of which takes one more token.
        remove_all: Beyond so many tokens everything goes.
        side: The end of the rationale that tokens are taken from.
        smoothing: The rate of the random offset o; ``null`` for none.
        settings: As in `Method`.

    Raises:
        LoriError: If a value is out of range.
    """

    name = "icot_si"
    reasoning: ClassVar[Reasoning] = "words"

    def __init__(
        self,
        backbone: Backbone,
        stages: Stages,
        remove_all: int = 39,
        side: Literal["left", "right"] = "left",
        smoothing: float | None = 4.0,
        **settings: Any,
    ) -> None:
        super().__init__(backbone, **settings)
        if remove_all < 0:
            raise LoriError(f"model.remove_all is {remove_all}: give 0 or more")
        if smoothing is not None and not smoothing > 0:
            raise LoriError(f"model.smoothing is {smoothing}: give more than 0, or null for no offset")
        self.stages = stages
        self.remove_all = remove_all
        self.side = side
        self.smoothing = smoothing
        self.draw = (0, 0)

    @property
    def final_stage(self) -> int:
        """The first in which every rationale is gone, whatever its offset."""
        return self.remove_all + 1

    def idle_stages(self, split: PreparedSplit) -> str:
        """Those beyond the longest rationale's tokens."""
        longest = int(split.student.rationales.lengths.max())
        if self.remove_all <= longest:
            return ""
        return (
            f"model.remove_all is {self.remove_all}, but the longest rationale has {longest} tokens: "
            f"{self.remove_all - longest} stages take nothing away; set it to {longest}"
        )

    def enter(self, stage: int) -> None:
        """Also lets the student answer at once in the last stage, and write before it."""
        super().enter(stage)
        if self.reasoner is not None:
            kind: Reasoning = "none" if self.is_final else "words"
            self.reasoner.settings = replace(self.reasoner.settings, reasoning=kind)

    def sequences(self, split: PreparedSplit) -> list[tuple[str, PreTrainedModel, np.ndarray]]:
        """The explicit ones: nothing is longer."""
        return [("question, rationale, answer prompt and answer", self.student.lm, split.student.lengths())]

    @property
    def checkpoint_settings(self) -> dict[str, Any]:
        """Also what a stage's number means."""
        return {**super().checkpoint_settings, "remove_all": self.remove_all, "side": self.side}

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
            if gone > self.remove_all:
                gone = len(rationale)
            kept = rationale[gone:] if self.side == "left" else rationale[: max(0, len(rationale) - gone)]
            shortened.append((question, kept, answer))
        return shortened

    def task_losses(self, batch: PairedBatch) -> Tensor:
        """Explicit CoT's cross-entropy on what is left (B,); No-CoT's in the last stage."""
        if self.student.reasoning == "none":
            return super().task_losses(batch)
        assert batch.pieces is not None
        left = join_parts(self.shortened(batch.pieces, self.offsets(batch.pieces)), self.student.encoder)
        return explicit_cross_entropy(self.student, left.to(batch.question.device))
