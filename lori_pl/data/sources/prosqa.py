"""ProsQA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lori_pl.data.problem import Problem
from lori_pl.data.sources.base import RowSource, Split
from lori_pl.data.sources.fields import steps_field, text_field


class ProsQA(RowSource):
    """ProsQA, logical deductions over a graph of concepts (Hao et al., Coconut, arXiv 2412.06769).

    Format: a JSON list with `question`, `steps` (a list of sentences) and `answer` (a sentence, compared as text); the
    graph's own fields are not read. Origin: github.com/facebookresearch/coconut. Licence: MIT.

    Split rule: a file each: `train.json`, `valid.json`, `test.json`, with or without `prosqa_` before.
    """

    name: ClassVar[str] = "prosqa"
    file_names: Mapping[Split, Sequence[str]] = {
        "train": ("train.json", "prosqa_train.json"),
        "validation": ("valid.json", "prosqa_valid.json"),
        "test": ("test.json", "prosqa_test.json"),
    }

    def parse(self, value: Any, problem_id: str) -> Problem:
        """Makes a problem of one row.

        Raises:
            BadRow: A field is missing or malformed.
        """
        question, answer = text_field(value, "question"), text_field(value, "answer")
        return Problem(problem_id, question, steps_field(value, "steps"), answer)
