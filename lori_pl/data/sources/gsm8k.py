"""GSM8K in its official files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from lori_pl.data.answers import ANSWER_MARK, extract_answer
from lori_pl.data.problem import Problem
from lori_pl.data.sources.base import OnBadRow, OnMissingRationale, RowSource, Split
from lori_pl.data.sources.fields import ANNOTATION, BadRow, question_hash, text_field
from lori_pl.data.sources.published import PublishedFile
from lori_pl.errors import check_choice

Rationale = Literal["equations", "natural"]

_ORIGIN = (
    "https://raw.githubusercontent.com/openai/grade-school-math/3101c7d5072418e28b9008a6636bde82a006892c/"
    "grade_school_math/data"
)
_TRAIN = PublishedFile(
    "train.jsonl", f"{_ORIGIN}/train.jsonl", "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465"
)


class GSM8K(RowSource):
    """GSM8K, grade-school word problems (Cobbe et al., arXiv 2110.14168).

    Format: JSON lines with `question` and `answer`; the answer is natural sentences, one a line, with calculator
    annotations ``<<48/2=24>>``, then ``#### 72``. Origin: github.com/openai/grade-school-math. Licence: MIT.

    Split rule: the test split is `test.jsonl`; the validation split is the 500 problems of `train.jsonl` that GSM8K-Aug
    (github.com/da03/Internalize_CoT_Step_by_Step) validates on, recognised by a hash of the question; the rest of
    `train.jsonl` is the training split.

    Args:
        path: The folder that holds `train.jsonl` and `test.jsonl`.
        rationale: The steps: `equations` are the annotations, verbatim and in order; `natural` are the sentences
            without their annotations.
        on_bad_row: A malformed row is an `error`, or `skip` counts and leaves it out.
        on_missing_rationale: A training problem without annotations (about 1 % has none): `drop` it (and count it),
            take its `natural`-language steps, or `error`. Evaluation never needs a rationale.
    """

    name: ClassVar[str] = "gsm8k"
    file_names: Mapping[Split, Sequence[str]] = {
        "train": ("train.jsonl",),
        "validation": ("train.jsonl",),
        "test": ("test.jsonl",),
    }
    published: Mapping[Split, PublishedFile] = {
        "train": _TRAIN,
        "validation": _TRAIN,
        "test": PublishedFile(
            "test.jsonl",
            f"{_ORIGIN}/test.jsonl",
            "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
        ),
    }

    def __init__(
        self,
        path: str = "",
        rationale: Rationale = "equations",
        on_bad_row: OnBadRow = "error",
        on_missing_rationale: OnMissingRationale = "drop",
    ) -> None:
        super().__init__(path, on_bad_row, on_missing_rationale)
        check_choice(f"{self.name}: rationale", rationale, Rationale)
        self.rationale = rationale

    def parse(self, value: Any, problem_id: str) -> Problem:
        """Makes a problem of one row.

        Raises:
            BadRow: A field is missing, or the answer has no ``####``.
        """
        question, solution = text_field(value, "question"), text_field(value, "answer")
        if ANSWER_MARK not in solution:
            raise BadRow("answer", f"has no '{ANSWER_MARK}' before the final answer")
        answer = extract_answer(solution)
        if not answer:
            raise BadRow("answer", f"is empty after '{ANSWER_MARK}'")
        steps = self.natural_steps(value) if self.rationale == "natural" else ANNOTATION.findall(solution)
        return Problem(problem_id, question, steps, answer)

    def natural_steps(self, value: Any) -> list[str]:
        """Returns the lines of the solution without their annotations."""
        lines = value["answer"].rsplit(ANSWER_MARK, 1)[0].split("\n")
        return [step for line in lines if (step := ANNOTATION.sub("", line).strip())]

    def in_split(self, problem: Problem, split: Split) -> bool:
        """Whether a problem of `train.jsonl` is for validation or for training."""
        if split == "test":
            return True
        return (question_hash(problem.question) in _validation_hashes()) == (split == "validation")


@cache
def _validation_hashes() -> frozenset[str]:
    asset = Path(__file__).parents[2] / "assets" / "gsm8k_validation.json"
    return frozenset(json.loads(asset.read_text(encoding="utf-8"))["questions"])
