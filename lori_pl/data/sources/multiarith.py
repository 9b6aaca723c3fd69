"""MultiArith."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lori_pl.data.problem import Problem
from lori_pl.data.sources.base import RowSource, Split
from lori_pl.data.sources.equations import equation_rationale
from lori_pl.data.sources.fields import BadRow, answer_field, field, text_field
from lori_pl.data.sources.published import PublishedFile


class MultiArith(RowSource):
    """MultiArith, word problems of two and more operations (Roy and Roth, arXiv 1608.01413).

    Format: a JSON list with `sQuestion`, `lSolutions` (one number: ``[39.0]``, read as ``39``) and `lEquations` (one
    text: ``["X=((32.0+42.0)-35.0)"]``). The rationale is the equation solved exactly, one annotation an operation,
    innermost first: ``<<32+42=74>>``, ``<<74-35=39>>``; an equation that contradicts the answer is none. Origin:
    github.com/CogComp/arithmetic. Licence: MIT.

    Split rule: evaluation only, the whole of `MultiArith.json` (600 problems) is the test split; `path` may be the file
    itself.
    """

    name: ClassVar[str] = "multiarith"
    file_names: Mapping[Split, Sequence[str]] = {"test": ("MultiArith.json", "test.json")}
    published: Mapping[Split, PublishedFile] = {
        "test": PublishedFile(
            "MultiArith.json",
            "https://raw.githubusercontent.com/kojima-takeshi188/zero_shot_cot/"
            "5ef330fcdeec0cd26aee27943504f91f8ec1c33c/dataset/MultiArith/MultiArith.json",
        )
    }
    lone_file_split: ClassVar[Split | None] = "test"

    def parse(self, value: Any, problem_id: str) -> Problem:
        """Makes a problem of one row.

        Raises:
            BadRow: A field is missing or malformed, or the equation cannot be solved.
        """
        question = text_field(value, "sQuestion")
        solution, equation = _only(value, "lSolutions"), _only(value, "lEquations")
        answer = answer_field({"lSolutions": solution}, "lSolutions").removesuffix(".0")
        if not isinstance(equation, str):
            raise BadRow("lEquations", "should hold one text")
        left, equals, right = equation.partition("=")
        if not equals or "x" not in (left.strip().lower(), right.strip().lower()):
            raise BadRow("lEquations", f"should be 'X=...', but is {equation!r}")
        try:
            steps = equation_rationale(right if left.strip().lower() == "x" else left, answer)
        except ValueError as error:
            raise BadRow("lEquations", str(error)) from None
        return Problem(problem_id, question, steps, answer)


def _only(value: Any, name: str) -> Any:
    content = field(value, name)
    if not isinstance(content, list) or len(content) != 1:
        raise BadRow(name, "should be a list of one")
    return content[0]
