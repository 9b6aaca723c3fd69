"""How fast a reasoner answers: the same questions, one at a time or in batches, phase by phase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lori_pl.data.answers import same_answer
from lori_pl.data.pairing import pad_questions
from lori_pl.data.problem import Problem
from lori_pl.errors import LoriError
from lori_pl.evaluation.intervals import wilson
from lori_pl.models.generation import Stopwatch
from lori_pl.models.reasoner import LatentReasoner

PHASES = ("prefill", "thought", "answer")


@dataclass
class Timing:
    """What a reasoner took for a set of problems in batches of one size.

    Args:
        batch: Problems a batch.
        correct: (n,) bool, whether each problem was answered correctly.
        passes: (n,) sequential backbone calls of each problem until its end token.
        tokens: (n,) tokens written.
        milliseconds: By phase (n,): the batch's time divided by its problems.
        repeats: (r,) milliseconds a question of each repeat of the whole set.
    """

    batch: int
    correct: np.ndarray
    passes: np.ndarray
    tokens: np.ndarray
    milliseconds: dict[str, np.ndarray]
    repeats: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """(n,) milliseconds of each question, all phases."""
        return np.sum([self.milliseconds[phase] for phase in PHASES], axis=0)

    def summary(self, steps: np.ndarray) -> dict[str, Any]:
        """Plain numbers: accuracy with its interval, means, medians with quartiles, and the same by number of steps.

        Args:
            steps: (n,) number of rationale steps of each problem.
        """
        values = self._part(np.ones(len(steps), dtype=bool))
        low, high = wilson(int(self.correct.sum()), len(self.correct))
        values |= {"low": low, "high": high, "repeats": [round(float(value), 4) for value in self.repeats]}
        values["by_steps"] = {str(count): self._part(steps == count) for count in np.unique(steps).tolist()}
        return values

    def _part(self, rows: np.ndarray) -> dict[str, Any]:
        total = self.total[rows]
        low, median, high = (float(value) for value in np.percentile(total, [25, 50, 75]))
        return {
            "n": int(rows.sum()),
            "accuracy": float(self.correct[rows].mean()),
            "passes": float(self.passes[rows].mean()),
            "tokens": float(self.tokens[rows].mean()),
            "milliseconds": {"median": median, "quartiles": [low, high], "mean": float(total.mean())},
            "phases": {phase: float(np.median(self.milliseconds[phase][rows])) for phase in PHASES},
        }


@torch.no_grad()
def time_answers(
    reasoner: LatentReasoner, problems: Sequence[Problem], batch: int, max_new_tokens: int, repeats: int = 3
) -> Timing:
    """Answers problems in batches and takes the time.

    Every repeat answers all problems, in the order of their questions' lengths, so that a batch has little padding;
    each problem's time is its median over the repeats.

    Args:
        reasoner: The reasoner, in eval mode.
        problems: The problems.
        batch: Problems a batch.
        max_new_tokens: Most tokens of an answer.
        repeats: How often; before them the batches of the shortest, middling and longest questions, which do not count.

    Raises:
        LoriError: If there is no problem, or an argument is below 1.
    """
    if not problems or min(batch, max_new_tokens, repeats) < 1:
        raise LoriError("benchmark: give at least one problem, batch size, token and repeat")
    encoded, order = _by_length(reasoner, problems)
    batches = [order[i : i + batch] for i in range(0, len(order), batch)]
    count = len(problems)
    correct = np.zeros(count, dtype=bool)
    passes, tokens = np.zeros(count), np.zeros(count)
    times = {phase: np.zeros((repeats, count)) for phase in PHASES}
    warm_up = [batches[place] for place in sorted({0, len(batches) // 2, len(batches) - 1})]
    for number, chosen in [(-1, warm_up), *((number, batches) for number in range(repeats))]:
        for rows in chosen:
            ids, mask = pad_questions([encoded[row] for row in rows], reasoner.encoder)
            ids, mask = ids.to(reasoner.device), mask.to(reasoner.device)
            watch = Stopwatch(reasoner.device)
            made = reasoner.generate(ids, mask, max_new_tokens=max_new_tokens, stopwatch=watch)
            if number < 0:
                continue
            for phase in PHASES:
                times[phase][number, rows] = 1000 * watch.seconds.get(phase, 0.0) / len(rows)
            if number == 0:
                passes[rows] = made.passes.cpu().numpy()
                tokens[rows] = made.mask.sum(1).cpu().numpy()
                answers = reasoner.texts(made)
                correct[rows] = [
                    same_answer(answer.text, problems[row].answer) for answer, row in zip(answers, rows, strict=True)
                ]
    whole = np.sum([times[phase] for phase in PHASES], axis=0).mean(1)
    return Timing(batch, correct, passes, tokens, {phase: np.median(times[phase], 0) for phase in PHASES}, whole)


def _by_length(reasoner: LatentReasoner, problems: Sequence[Problem]) -> tuple[Sequence[Any], np.ndarray]:
    """The questions' tokens, and the problems' places in the order of their number."""
    encoded = reasoner.encoder.questions([problem.question for problem in problems])
    return encoded, np.argsort([len(ids) for ids in encoded], kind="stable")


def largest_batch(reasoner: LatentReasoner, problems: Sequence[Problem], max_new_tokens: int, most: int) -> int:
    """The largest power of two, up to ``most`` and the number of problems, whose longest questions fit into memory.

    On a CPU, whose memory ends in a killed process, it is simply the largest of these.
    """
    size = 1
    limit = min(most, len(problems))
    while size * 2 <= limit:
        size *= 2
    if reasoner.device.type != "cuda":
        return size
    longest = [problems[row] for row in _by_length(reasoner, problems)[1]]
    while size > 1:
        try:
            time_answers(reasoner, longest[-size:], size, max_new_tokens, repeats=1)
            return size
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            size //= 2
    return size
