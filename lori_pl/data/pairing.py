"""Pairing: for each problem a teacher sequence and a student sequence, as padded tensors with their masks.

Explicit (teacher): question, rationale, answer prompt, answer, end token; padded on the right.
Student: question [``<bot>``] padded on the left, and [``<eot>``] answer prompt, answer, end token padded on the right;
the latents stand between the two. All index tensors are made here, once a batch.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lori_pl.cache.store import CachedRows
from lori_pl.data.moving import TensorFields
from lori_pl.data.problem import Problem
from lori_pl.data.template import Encoder, RationaleTokens

Ids = Sequence[int] | np.ndarray
Parts = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Token ids of a question, its rationale, and the answer with the end token."""


class Ragged:
    """A list of integer sequences in two flat arrays (a tenth of the memory of Python lists)."""

    def __init__(self, rows: Sequence[Ids]) -> None:
        """Packs ``rows``."""
        self.lengths = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        self.values = np.concatenate([np.asarray(row, dtype=np.int32) for row in rows] or [np.zeros(0, np.int32)])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> np.ndarray:
        return self.values[self.offsets[i] : self.offsets[i + 1]]

    def select(self, rows: Sequence[int]) -> Ragged:
        """Gives the sequences of ``rows``."""
        return Ragged([self[i] for i in rows])


class EncodedProblems:
    """Problems as token ids, part by part, in one tokenizer.

    Args:
        problems: The problems.
        encoder: Tokenizer and template.
        tokens: The rationale tokens that make a trajectory.
        steps: Whether to find where each step of a rationale begins.
    """

    def __init__(
        self, problems: Sequence[Problem], encoder: Encoder, tokens: RationaleTokens = "all", steps: bool = False
    ) -> None:
        self.encoder = encoder
        self.step_starts = Ragged(encoder.step_starts(problems)) if steps else None
        self.selected = None if tokens == "all" else Ragged(encoder.selected(problems, tokens))
        self.questions = Ragged(encoder.questions([problem.question for problem in problems]))
        self.rationales = Ragged(encoder.rationales(problems))
        self.answers = Ragged(encoder.answers(problems))

    def select(self, rows: Sequence[int]) -> EncodedProblems:
        """Gives the problems of ``rows``, encoded as they are."""
        chosen = copy.copy(self)
        chosen.questions, chosen.rationales, chosen.answers = (
            part.select(rows) for part in (self.questions, self.rationales, self.answers)
        )
        chosen.selected = None if self.selected is None else self.selected.select(rows)
        chosen.step_starts = None if self.step_starts is None else self.step_starts.select(rows)
        return chosen

    def parts(self, rows: Sequence[int]) -> list[Parts]:
        """Gives the parts of each problem of ``rows``."""
        return [(self.questions[i], self.rationales[i], self.answers[i]) for i in rows]

    @property
    def step_count(self) -> np.ndarray:
        """(n,) steps of each rationale, as the template keeps them; where it was asked where they begin."""
        assert self.step_starts is not None
        return self.step_starts.lengths

    def step_columns(self, number: int) -> np.ndarray:
        """(n,) where step ``number`` of each rationale begins: 0 for the first, its length where there are fewer."""
        starts = self.step_starts
        assert starts is not None
        if number == 0:
            return np.zeros(len(starts), dtype=np.int64)
        there = starts.lengths > number
        columns = self.rationales.lengths.copy()
        columns[there] = starts.values[starts.offsets[:-1][there] + number]
        return columns

    def keys(self) -> np.ndarray:
        """(n, 16) uint8: a digest of what a teacher has read of each problem when its answer begins.

        That is question, rationale and answer prompt, with the positions of the tokens that make the trajectory.
        """
        prompt = np.asarray(self.encoder.prompt, dtype=np.int32)
        keys = np.empty((len(self.questions), 16), dtype=np.uint8)
        for i in range(len(keys)):
            parts = [self.questions[i], self.rationales[i], prompt]
            if self.selected is not None:
                parts.append(self.selected[i])
            digest = hashlib.blake2b(np.array([len(part) for part in parts], dtype=np.int32).tobytes(), digest_size=16)
            for part in parts:
                digest.update(part.tobytes())
            keys[i] = np.frombuffer(digest.digest(), dtype=np.uint8)
        return keys

    def lengths(self) -> np.ndarray:
        """Tokens of each explicit sequence."""
        parts = self.questions.lengths + self.rationales.lengths + self.answers.lengths
        return np.asarray(parts + len(self.encoder.prompt))

    def student_lengths(self, latents: int) -> np.ndarray:
        """Positions of each student sequence: question, markers, latents, answer prompt and answer."""
        fixed = len(self.encoder.bot) + latents + len(self.encoder.suffix)
        return np.asarray(self.questions.lengths + self.answers.lengths + fixed)


@dataclass
class ExplicitBatch(TensorFields):
    """Question, rationale, answer prompt and answer of B problems in one tokenizer.

    Args:
        ids: (B, T) token ids, padded on the right.
        mask: (B, T) true at real tokens.
        target_index: (N,) flat positions (row * T + column) of the tokens that are predicted: rationale, answer
            prompt, answer, end.
        target_weight: (N,) weights that make their sum a mean over each problem's tokens, then over problems.
        rationale_index: (B, R) columns of the rationale tokens that make the trajectory, from the left; 0 beyond.
        rationale_mask: (B, R) true where there is one.
        anchor: (B,) column of the token that predicts the answer's first token.
        begin: (B,) column of the first token behind the question.
        written: W, the most tokens that any problem has behind its question.
        anchored: Columns up to the last anchor, its own among them.
    """

    ids: Tensor
    mask: Tensor
    target_index: Tensor
    target_weight: Tensor
    rationale_index: Tensor
    rationale_mask: Tensor
    anchor: Tensor
    begin: Tensor
    written: int
    anchored: int


@dataclass
class Pieces:
    """What a method needs that cuts the sequences of B problems anew at every stage; stays on the host.

    Args:
        parts: Token ids of question, rationale and answer of each.
        starts: Positions in each rationale at which its steps begin.
        rows: (B,) row numbers in the data set.
    """

    parts: list[Parts]
    starts: list[np.ndarray]
    rows: np.ndarray


@dataclass
class StepBatch(TensorFields):
    """The rationales of B problems, a step a row; a last row may hold several (`step_batch`).

    Args:
        ids: (N, S) tokens of a step and the end token, padded on the right.
        mask: (N, S) true at real tokens.
        row: (N,) the problem's place in the batch.
        number: (N,) the step's, from 0, below K.
        target_index: (M,) flat positions (step * S + column) of the real tokens.
        target_weight: (M,) weights that make their sum a mean over each step's tokens, each problem's steps, problems.
    """

    ids: Tensor
    mask: Tensor
    row: Tensor
    number: Tensor
    target_index: Tensor
    target_weight: Tensor


@dataclass
class PairedBatch(TensorFields):
    """B problems as the student sees them, and as words.

    Args:
        index: (B,) row numbers in the data set.
        steps: (B,) number of rationale steps.
        question: (B, Q) ids of the question (and ``<bot>``), padded on the left.
        question_mask: (B, Q) true at real tokens.
        answer: (B, A) ids of (``<eot>``,) answer prompt, answer and end token, padded on the right.
        answer_mask: (B, A) true at real tokens.
        target_mask: (B, A) true at tokens that are predicted: answer and end.
        anchor: Column of ``answer`` that predicts the answer's first token, the same for all rows.
        explicit: The problem in words, in the student's tokenizer.
        teacher: The same in the teacher's tokenizer; the same object as ``explicit`` where the two agree.
        statistics: What a cache holds of the teacher, tensors (B, ...) by ``TERM/NAME``; ``None`` without one.
        pieces: The explicit sequences in pieces, where a method cuts them anew.
    """

    index: Tensor
    steps: Tensor
    question: Tensor
    question_mask: Tensor
    answer: Tensor
    answer_mask: Tensor
    target_mask: Tensor
    anchor: int
    explicit: ExplicitBatch
    teacher: ExplicitBatch
    statistics: dict[str, Tensor] | None = None
    pieces: Pieces | None = None


def pad(rows: Sequence[Ids], value: int, left: bool) -> tuple[Tensor, Tensor]:
    """Pads rows to one length.

    Returns:
        Ids (B, T) int64 and mask (B, T) bool.
    """
    ids, mask = _padded(rows, value, left)
    return torch.from_numpy(ids), torch.from_numpy(mask)


def _padded(rows: Sequence[Ids], value: int, left: bool) -> tuple[np.ndarray, np.ndarray]:
    width = max((len(row) for row in rows), default=0)
    ids = np.full((len(rows), width), value, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=bool)
    for i, row in enumerate(rows):
        columns = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, columns] = row
        mask[i, columns] = True
    return ids, mask


def pad_questions(questions: Sequence[Ids], encoder: Encoder, left: bool = True) -> tuple[Tensor, Tensor]:
    """Pads questions with ``<bot>`` at their end where the encoder has markers: ids and mask (B, Q)."""
    return pad([np.concatenate([np.asarray(q, np.int64), encoder.bot]) for q in questions], encoder.pad, left)


def explicit_batch(rows: Sequence[int], data: EncodedProblems) -> ExplicitBatch:
    """Collates the explicit sequences of ``rows``."""
    selected = None if data.selected is None else [data.selected[i] for i in rows]
    return join_parts(data.parts(rows), data.encoder, selected)


def join_parts(parts: Sequence[Parts], encoder: Encoder, selected: Sequence[Ids] | None = None) -> ExplicitBatch:
    """Collates explicit sequences from their parts.

    Args:
        parts: Question, rationale and answer of each problem.
        encoder: Tokenizer and template.
        selected: Positions of the rationale tokens that make a trajectory; ``None`` for all.
    """
    prompt = np.asarray(encoder.prompt)
    ids, mask = _padded([np.concatenate([q, r, prompt, a]) for q, r, a in parts], encoder.pad, left=False)
    question, rationale = (np.array([len(part[i]) for part in parts], dtype=np.int64)[:, None] for i in (0, 1))
    if selected is None:
        columns = np.arange(int(rationale.max()) if len(parts) else 0)[None]
        rationale_mask = columns < rationale
    else:
        columns, rationale_mask = _padded(selected, 0, left=False)
    target = mask & (np.arange(ids.shape[1])[None] >= question)
    count = target.sum(1, keepdims=True)
    weight = np.float32(1) / (np.maximum(count, 1) * max(len(parts), 1)).astype(np.float32)
    anchor = (question + rationale)[:, 0] + len(prompt) - 1
    return ExplicitBatch(
        ids=torch.from_numpy(ids),
        mask=torch.from_numpy(mask),
        target_index=torch.from_numpy(np.flatnonzero(target)),
        target_weight=torch.from_numpy(np.broadcast_to(weight, target.shape)[target]),
        rationale_index=torch.from_numpy(np.where(rationale_mask, question + columns, 0)),
        rationale_mask=torch.from_numpy(rationale_mask),
        anchor=torch.from_numpy(anchor),
        begin=torch.from_numpy(question[:, 0].copy()),
        written=int(count.max()) if len(parts) else 0,
        anchored=int(anchor.max()) + 1 if len(parts) else 0,
    )


def step_batch(pieces: Pieces, encoder: Encoder, most: int, takes_rest: bool = True) -> StepBatch:
    """Collates rationales step by step.

    Args:
        pieces: The problems.
        encoder: Tokenizer and template.
        most: Most rows a problem.
        takes_rest: Whether the last of them holds all steps that are left; else these are left out.
    """
    parts, places, numbers, shares = [], [], [], []
    for place, ((_, rationale, _), found) in enumerate(zip(pieces.parts, pieces.starts, strict=True)):
        starts = found[:most]
        behind = found[most] if len(found) > most and not takes_rest else len(rationale)
        for number, (start, end) in enumerate(itertools.pairwise([*starts, behind])):
            parts.append(np.append(rationale[start:end], encoder.end))
            places.append(place)
            numbers.append(number)
            shares.append(1.0 / (len(starts) * len(pieces.parts)))
    ids, mask = _padded(parts, encoder.pad, left=False)
    weight = np.array(shares, dtype=np.float32)[:, None] / mask.sum(1, keepdims=True).astype(np.float32)
    return StepBatch(
        ids=torch.from_numpy(ids),
        mask=torch.from_numpy(mask),
        row=torch.tensor(places, dtype=torch.long),
        number=torch.tensor(numbers, dtype=torch.long),
        target_index=torch.from_numpy(np.flatnonzero(mask)),
        target_weight=torch.from_numpy(np.broadcast_to(weight, mask.shape)[mask]),
    )


def paired_batch(
    rows: Sequence[int],
    steps: np.ndarray,
    student: EncodedProblems,
    teacher: EncodedProblems | None,
    cached: CachedRows | None = None,
    pieces: bool = False,
) -> PairedBatch:
    """Collates ``rows`` into a batch of pairs.

    Args:
        rows: Row numbers.
        steps: Number of rationale steps of every row of the data set.
        student: The data in the student's tokenizer.
        teacher: The data in the teacher's, where it differs.
        cached: The teacher's statistics of every row, where there is a cache.
        pieces: Also gives the explicit sequences in pieces.
    """
    encoder = student.encoder
    question, question_mask = pad_questions([student.questions[i] for i in rows], encoder)
    suffix = np.asarray(encoder.suffix)
    answer, answer_mask = pad([np.concatenate([suffix, student.answers[i]]) for i in rows], encoder.pad, left=False)
    explicit = explicit_batch(rows, student)
    return PairedBatch(
        index=torch.as_tensor(list(rows)),
        steps=torch.from_numpy(steps[list(rows)]),
        question=question,
        question_mask=question_mask,
        answer=answer,
        answer_mask=answer_mask,
        target_mask=answer_mask & (torch.arange(answer.shape[1])[None] >= len(suffix)),
        anchor=len(suffix) - 1,
        explicit=explicit,
        teacher=explicit if teacher is None else explicit_batch(rows, teacher),
        statistics=None if cached is None else cached.read(rows),
        pieces=_pieces(rows, student) if pieces else None,
    )


def _pieces(rows: Sequence[int], data: EncodedProblems) -> Pieces:
    assert data.step_starts is not None
    return Pieces(data.parts(rows), [data.step_starts[i] for i in rows], np.asarray(rows, dtype=np.int64))
