"""Explicit CoT: the model that reasons in words, and the teacher of the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from lori_pl.data.datamodule import PreparedSplit
from lori_pl.data.pairing import PairedBatch
from lori_pl.methods.base import Method
from lori_pl.methods.losses import explicit_cross_entropy


class ExplicitCoT(Method):
    """Question, rationale, answer prompt, answer; cross-entropy on all but the question. Makes the teacher."""

    name = "explicit_cot"
    reasoning = "words"

    @classmethod
    def requires_rationale(cls, config: Mapping[str, Any]) -> bool:
        """The rationale is what it learns."""
        return True

    def sequences(self, split: PreparedSplit) -> list[tuple[str, PreTrainedModel, np.ndarray]]:
        """The explicit ones."""
        return [("question, rationale, answer prompt and answer", self.student.lm, split.student.lengths())]

    def task_losses(self, batch: PairedBatch) -> Tensor:
        """Cross-entropy on rationale and answer of each problem (B,)."""
        return explicit_cross_entropy(self.student, batch.explicit)
