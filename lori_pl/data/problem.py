"""The one record that every data source yields."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem: what is asked, how it is solved in words, and what comes out.

    Args:
        id: Unique within its source, e.g. ``gsm8k/train/17``.
        question: The question as text.
        steps: The rationale, one string a step, kept verbatim (``<<48/2=24>>``); empty where the source has none.
        answer: The gold answer as text.
    """

    id: str
    question: str
    steps: list[str]
    answer: str


def problems_digest(problems: Iterable[Problem]) -> str:
    """A short digest of ids, questions and answers, in whatever order: two sets of problems that share it are the same.

    Ids alone do not tell: they number the problems of a source, whatever its arguments.

    Args:
        problems: The problems.
    """
    lines = sorted(json.dumps([problem.id, problem.question, problem.answer]) for problem in problems)
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=8).hexdigest()
