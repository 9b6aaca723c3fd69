"""The one record that every data source yields."""

from __future__ import annotations

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
