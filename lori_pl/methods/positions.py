"""Checks, before long work starts, that what models are to read fits their positions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from transformers import PreTrainedModel

from lori_pl.data.datamodule import PairedDataModule, PreparedSplit
from lori_pl.errors import LoriError
from lori_pl.models.generation import position_limit

Sequences = Callable[[PreparedSplit], list[tuple[str, PreTrainedModel, np.ndarray]]]


def check_sequences(data: PairedDataModule, sequences: Sequences, *names: str) -> None:
    """Makes sure that all sequences of these splits fit the models that read them.

    Args:
        data: Where the splits are.
        sequences: What models read of a split: what it is, which model, and each problem's positions.
        names: The splits.

    Raises:
        LoriError: If one takes more positions than its model has.
    """
    faults: list[tuple[str, int, str]] = []
    for name in names:
        split = data.splits[name]
        # what data.max_length counts
        counted = split.student.lengths() if name == "train" else split.student.questions.lengths
        for what, lm, lengths in sequences(split):
            limit = position_limit(lm)
            if limit is not None and (beyond := lengths > limit).any():
                row = int(lengths.argmax())
                fault = f"{what} take {lengths[row]} positions, but the model has {limit}"
                shorter = int(counted[beyond].min()) - 1
                faults.append((name, shorter, f"{name} problem {split.problems[row].id}: {fault}"))
    if faults:
        least = min(shorter for _, shorter, _ in faults)
        # in evaluation it leaves out long questions, not long rationales
        others = "" if faults[0][0] == "train" else ", leave that problem out of the source"
        raise LoriError(
            f"{faults[0][2]}; lower --data.max_length to {least}{others} or take a model with more positions"
        )


def check_questions(split: PreparedSplit, lm: PreTrainedModel, further: int) -> None:
    """Makes sure that each question leaves a position for an answer, before any is answered.

    Args:
        split: The questions.
        lm: The model that reads them.
        further: Positions between question and answer.

    Raises:
        LoriError: If one does not.
    """
    limit = position_limit(lm)
    lengths = split.student.questions.lengths + further
    if limit is not None and (lengths > limit).any():
        row = int(lengths.argmax())
        raise LoriError(
            f"question {split.problems[row].id} takes {lengths[row]} positions, and the model has {limit}: leave it "
            "out or make it shorter"
        )
